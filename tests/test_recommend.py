"""What is recommended, how sure it is said to be, and what to do next."""

import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from lopside.commands import main
from lopside.history import Row, write_history
from tests.rows import row

ROOT = Path(__file__).parents[1]

# The far ends of the loss: 6-6 0, 6-3 1.0, 6-2 1.4, 6-1 2.0; of the speedup 0.1 below.
CELLS = [row(6, 6, width=0.0), row(6, 3, -0.5, 1.5), row(6, 2, -0.9, 2.0), row(6, 1, -1.5, 3.0), row(1, 6, -4, 1.2)]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the shipped params.yaml and a history, and no git."""
    shutil.copy(ROOT / "params.yaml", tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    write_history(CELLS)
    return tmp_path


def recommend(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["recommend", *arguments])


def label(result: Result) -> str:
    return result.output.splitlines()[1].split(":")[0]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--max-loss", "1.0"], "6-3"),
        (["--max-loss", "1.4"], "6-2"),
        (["--max-loss", "10"], "6-1"),
        (["--min-retained", "95%"], "6-3"),
        (["--min-retained", "0.9"], "6-1"),
        (["--min-speedup", "1.9"], "6-2"),
        (["--min-speedup", "1.91"], "6-1"),
        (["--min-speedup", "0.5"], "6-3"),
    ],
)
def test_the_far_end_of_the_interval_decides(arguments: list[str], expected: str) -> None:
    result = recommend(*arguments)
    assert (result.exit_code, label(result)) == (0, expected), result.output


def test_the_full_model_is_no_answer_but_by_another_engine() -> None:
    none = recommend("--max-loss", "0.99")
    assert (none.exit_code, label(none)) == (
        1,
        "Of no measured cell it is sure that it loses at most 0.99 ROUGE-2 points.",
    )
    served = row(6, 6, 0, 1.0, width=0.1, timing="device:cpu|engine:ctranslate2 int8|threads:2")
    total = {f"fixed.batch_1.total{end}": 2.0 for end in ("", "_low", "_high")}
    write_history([*CELLS, replace(served, figures={**served.figures, **total})])
    lines = recommend("--max-loss", "0.99", "--engine", "ctranslate2").output.splitlines()
    assert lines[1].startswith(
        "6-6: 2.00x [2.00, 2.00] in all (1.00x [0.90, 1.10] by pruning) at fixed output, batch 1; "
    )
    assert recommend("--min-speedup", "1.9", "--engine", "ctranslate2").exit_code == 0


def test_what_is_said() -> None:
    assert recommend("--max-loss", "1").output.splitlines() == [
        "docs-bart-mini on docstrings, uniform, 1 epoch, transformers float32, 5 cells, timed on made-up CPU, 2 cores; "
        "trained with epochs 1.0, max_steps 0, batch_size 64, learning_rate 0.0005, scheduler linear",
        "6-3: 1.50x [1.40, 1.60] at fixed output, batch 1; ROUGE-2 -0.50 [-1.00, +0.00] points, 97.5% retained.",
        "It loses at most 1 ROUGE-2 points even at the far end of its 95% interval, so far as one training can tell.",
        "Perhaps 6-1: 3.00x [2.90, 3.10] at fixed output, batch 1; ROUGE-2 -1.50 [-2.00, -1.00] points, 92.5% retained"
        ": its interval does not say.",
        "Perhaps 6-2: 2.00x [1.90, 2.10] at fixed output, batch 1; ROUGE-2 -0.90 [-1.40, -0.40] points, 95.5% retained"
        ": its interval does not say.",
        "Of 6-1, 6-2, 6-3 fewer than 3 seeds were trained: "
        "`lopside sweep 6-1,6-2,6-3 -S seed=1 --seeds 2 -S keep.strategy=uniform -S train.batch_size=64`, "
        "as at revision abc1234",
        "Not measured yet, and perhaps better: "
        "`lopside sweep 5-3 -S keep.strategy=uniform -S train.batch_size=64`, as at revision abc1234",
        "To run it anew, as at revision abc1234:  "
        "dvc exp run -S enc=6 -S dec=3 -S seed=0 -S keep.strategy=uniform -S train.batch_size=64",
    ]


def test_where_none_will_do_that_is_said_and_the_status_is_1() -> None:
    result = recommend("--min-speedup", "4")
    assert result.exit_code == 1
    assert result.output.splitlines()[1:] == [
        "Of no measured cell it is sure that it is at least 4 times as fast as dense.",
        "The nearest is 6-1: 3.00x [2.90, 3.10] at fixed output, batch 1; "
        "ROUGE-2 -1.50 [-2.00, -1.00] points, 92.5% retained.",
        "Not measured yet, and perhaps nearer: "
        "`lopside sweep 5-1 -S keep.strategy=uniform -S train.batch_size=64`, as at revision abc1234",
    ]
    assert "Perhaps 6-1: 3.00x" in recommend("--min-speedup", "3").output
    write_history([row(3, 3, -3, 2)])
    assert "perhaps nearer: `lopside sweep 4-3,3-4 " in recommend("--max-loss", "1").output


def test_the_full_model_computed_otherwise_has_seeds() -> None:
    for engine in ("transformers float32", "ctranslate2 int8"):
        write_history([row(6, 6, width=0.0, timing=f"device:cpu|engine:{engine}|threads:2")])
        found = "Of 6-6 fewer than 3 seeds were trained" in recommend("--max-loss", "1").output
        assert found == (engine != "transformers float32")


def test_engine_and_precision_can_be_asked_for() -> None:
    others = [
        row(5, dec, -0.1, 5, timing=f"device:cpu|engine:ctranslate2 {dtype}|threads:2")
        for dtype, dec in (("int8", 3), ("float32", 2))
    ]
    write_history([*CELLS, *others])
    asked = ("--max-loss", "1", "--engine", "ctranslate2", "--dtype")
    assert [label(recommend(*asked, dtype)) for dtype in ("int8", "float32")] == ["5-3", "5-2"]
    assert ", ctranslate2 int8, 1 cell, timed on " in recommend(*asked, "int8").output
    assert label(recommend("--max-loss", "1", "--engine", "transformers")) == "6-3"
    assert recommend("--max-loss", "1", "--dtype", "bfloat16").output == (
        "error: --dtype bfloat16: metrics/history.csv has no row of it; there are: ctranslate2 float32, "
        "ctranslate2 int8, transformers float32\n"
    )


def test_other_studies_are_told_by_what_sets_them_apart() -> None:
    longer = row(6, 3, training=("1.0", "80", "64", "0.0005", "linear"), settings="other", machine="a GPU")
    write_history(
        [
            *CELLS,
            replace(longer, overrides="train.max_steps=80 data.prefix='a b'"),
            *(row(6, dec, revision="def5678", settings="third") for dec in (1, 2)),
        ]
    )
    assert recommend("--max-loss", "1").output.splitlines()[-1] == (
        "There are other studies of this model and data, as `lopside report` has them: "
        "2 cells, 1 epoch, transformers float32, with params.yaml of def5678; "
        "1 cell, 80 steps, transformers float32, with data.prefix a b, machine a GPU."
    )


def test_several_seeds_count_by_their_mean_and_are_told() -> None:
    cells = [*CELLS, row(6, 3, -0.3, 1.5, seed=1), row(6, 3, -0.1, 1.7, seed=4)]
    write_history(cells)
    output = recommend("--max-loss", "1.5").output
    assert "interval, the mean of 3 seeds, which by themselves are -0.50, -0.30, -0.10." in output
    # The first that reaches the goal by itself.
    assert " -S seed=0 " in output.splitlines()[-1]
    output = recommend("--min-retained", "94%").output
    assert "interval, the mean of 3 seeds, which by themselves are 97.5%, 98.5%, 99.5%." in output
    output = recommend("--min-speedup", "1.45").output  # the mean is 1.57, its far end 1.47
    assert "interval, the mean of 3 seeds, which by themselves are 1.50x, 1.50x, 1.70x." in output
    assert label(recommend("--min-speedup", "1.5")) == "6-2"


def test_the_luck_of_training_counts() -> None:
    # From seed to seed 0.4 / sqrt(2) points, by one degree of freedom; of a difference, Student's 12.706 x 0.4.
    noisy = [*CELLS, row(6, 3, -0.1, 1.5, seed=1)]
    write_history(noisy)
    assert label(recommend("--max-loss", "5")) == "6-3"  # 6-1 and 6-2 too, of documents alone
    found = recommend("--max-loss", "7").output.splitlines()
    assert found[1].startswith("6-1: 3.00x [2.90, 3.10] at fixed output, batch 1; ROUGE-2 -1.50 [-6.61, +3.61] points")
    assert found[2].endswith("interval, which for its one training takes in how far others differ from seed to seed.")
    # A share varies by its own luck and, times itself, dense's: 12.706 x 0.2828 x hypot(1, 0.925) / 20 = 24.5%.
    assert label(recommend("--min-retained", "0.7")) == "6-2"
    assert label(recommend("--min-retained", "0.67")) == "6-1"
    assert recommend("--min-speedup", "2.9").output.splitlines()[2].endswith(", so far as one training can tell.")


def test_only_the_seeds_that_lack_are_asked_for() -> None:
    write_history([row(6, 3, -0.5, 1.5), row(6, 2, -0.9, 2.0), row(6, 2, -0.9, 2.0, seed=3)])
    lines = [line for line in recommend("--max-loss", "0.9").output.splitlines() if "fewer than 3 seeds" in line]
    settings = "-S keep.strategy=uniform -S train.batch_size=64`, as at revision abc1234"
    assert lines == [
        f"Of 6-2 fewer than 3 seeds were trained: `lopside sweep 6-2 -S seed=4 {settings}",
        f"Of 6-3 fewer than 3 seeds were trained: `lopside sweep 6-3 -S seed=1 --seeds 2 {settings}",
    ]


def test_an_engine_that_does_better_is_named_where_none_is_asked_for() -> None:
    engine = "engine=ctranslate2"
    served = row(6, 3, -0.5, 1.4, timing="device:cpu|engine:ctranslate2 int8|threads:2", settings="served")
    total = {f"fixed.batch_1.total{end}": 4.0 for end in ("", "_low", "_high")}
    served = replace(served, overrides=f"{engine} dtype=int8 train.batch_size=64", figures={**served.figures, **total})
    write_history([*CELLS, served])
    lines = recommend("--max-loss", "1").output.splitlines()
    assert lines[0].startswith("docs-bart-mini on docstrings, uniform, 1 epoch, ctranslate2 int8, 1 cell, ")
    assert lines[1].startswith("6-3: 4.00x [4.00, 4.00] in all (1.40x [1.30, 1.50] by pruning) at fixed output")
    assert "other studies" not in lines[-1]
    assert label(recommend("--min-speedup", "3.5")) == "6-3"
    assert label(recommend("--max-loss", "1.4")) == "6-3"  # 4 times, and 6-2 by transformers 2
    assert label(recommend("--max-loss", "1.4", "--engine", "transformers")) == "6-2"
    # Where none surely does, it is named too.
    lines = recommend("--min-speedup", "5").output.splitlines()
    assert lines[0].startswith("docs-bart-mini on docstrings, uniform, 1 epoch, ctranslate2 int8, 1 cell, ")
    assert lines[2].startswith("The nearest is 6-3: 4.00x ")
    # And where it might do better than what surely does, with its own sweep.
    write_history([*CELLS, row(6, 5, 0.4, 1.1), served])
    lines = recommend("--max-loss", "0.4").output.splitlines()
    assert lines[1].startswith("6-5: 1.10x [1.00, 1.20] at fixed output, batch 1; ")
    assert lines[3].startswith("Perhaps 6-3 by ctranslate2 int8: 4.00x [4.00, 4.00] in all ")
    (asked,) = (line for line in lines if line.startswith("Of 6-3 by ctranslate2 int8 fewer than 3 seeds"))
    assert f"`lopside sweep 6-3 -S seed=1 --seeds 2 -S keep.strategy=uniform -S {engine} -S dtype=int8 " in asked
    # One that was trained otherwise is not compared.
    write_history([*CELLS, replace(served, training=("2.0", "0", "64", "0.0005", "linear"))])
    assert recommend("--max-loss", "1").output.startswith(
        "docs-bart-mini on docstrings, uniform, 1 epoch, transformers"
    )


def test_where_the_params_are_those_of_head_no_revision_is_named(folder: Path) -> None:
    def git(*arguments: str) -> str:
        identity = ("-c", "user.name=a", "-c", "user.email=a@b.c")
        done = subprocess.run(["git", *identity, *arguments], cwd=folder, check=True, capture_output=True, text=True)
        return done.stdout.strip()

    git("init", "--quiet")
    git("add", "params.yaml")
    git("commit", "--quiet", "--message", "params")
    write_history([row(6, 3, -0.5, 1.5, revision=git("rev-parse", "HEAD")[:7])])
    assert "as at revision" not in recommend("--max-loss", "1").output
    (folder / "params.yaml").write_text((folder / "params.yaml").read_text() + "# changed\n")
    git("commit", "--quiet", "--all", "--message", "other params")
    assert "as at revision" in recommend("--max-loss", "1").output


def test_cells_that_are_as_fast_within_the_intervals_are_named() -> None:
    write_history([*CELLS, row(5, 3, -0.4, 1.45)])
    assert "Within the intervals as good: 5-3." in recommend("--max-loss", "1").output


def test_other_models_and_data_take_no_part() -> None:
    others = [row(5, 2, -0.1, 9, dataset="xsum"), row(5, 2, -0.1, 9, model="flan-t5-small")]
    write_history([*CELLS, *others])
    assert label(recommend("--max-loss", "1.0")) == "6-3"


@pytest.mark.parametrize(
    ("rows", "arguments", "message"),
    [
        (CELLS, [], "give one of --max-loss, --min-retained and --min-speedup"),
        (CELLS, ["--max-loss", "1", "--min-speedup", "2"], "give one of "),
        (CELLS, ["--max-loss", "-1"], "--max-loss: -1.0 is refused"),
        (CELLS, ["--max-loss", "nan"], "--max-loss: nan is refused"),
        (CELLS, ["--min-retained", "95"], "--min-retained: 95 is refused; allowed: a share such as 95% or 0.95"),
        (CELLS, ["--min-retained", "most"], "--min-retained: most is refused"),
        (CELLS, ["--min-speedup", "0"], "--min-speedup: 0.0 is refused"),
        (
            CELLS,
            ["--max-loss", "1", "--batch", "8"],
            "--setting fixed --batch 8: was not timed; there are: --setting fixed",
        ),
        (CELLS, ["--max-loss", "1", "--setting", "paper"], "--setting paper --batch 1: was not timed"),
        ([], ["--max-loss", "1"], "metrics/history.csv: holds no row to recommend from"),
        (
            [row(6, 1, stale="gone")],
            ["--max-loss", "1"],
            "metrics/history.csv: holds no row to recommend from: 1 row, all of them stale; `lopside sweep`",
        ),
        (
            [row(6, 1, speeds=())],
            ["--max-loss", "1"],
            "--setting fixed --batch 1: was not timed; nothing was, of this model and data",
        ),
        (
            [row(6, 1, dataset="xsum")],
            ["--max-loss", "1"],
            "metrics/history.csv: has no row of docs-bart-mini on docstrings, which params.yaml names; "
            "there are: docs-bart-mini on xsum",
        ),
    ],
)
def test_bad_input_is_one_clear_error(rows: list[Row], arguments: list[str], message: str) -> None:
    write_history(rows)
    result = recommend(*arguments)
    assert (result.exit_code, result.exception.__class__) == (1, SystemExit)
    assert result.output.startswith(f"error: {message}")
    assert result.output.count("\n") == 1
