"""The tables and the plots of several runs."""

import json
import re
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner

from lopside.commands import main
from lopside.engines import BASELINE
from lopside.errors import LopsideError
from lopside.history import seedless
from lopside.report import (
    Curve,
    Run,
    Scored,
    comparison_table,
    curves_png,
    curves_table,
    read_curve,
    read_run,
    read_scored,
    results_table,
    tradeoff_png,
)

ROUGE = {
    "dense": {"rouge2": 12.104},
    "pruned": {"rouge2": 9.5},
    "delta": {"rouge2": -2.604, "rouge2_low": -3.1, "rouge2_high": -2.05},
    "retained": {"rouge2": 0.7849},
}


def latency(**speedups: float) -> dict[str, Any]:
    figures = {
        name: {"speedup": value, "speedup_low": value - 0.1, "speedup_high": value + 0.1}
        for name, value in speedups.items()
    }
    return {"fixed": figures, "parameters": {"dense": 30_100_000, "pruned": 22_440_000}}


RUN = Run("6-1", "abc1234", ROUGE, latency(batch_1=2.5, batch_8=2.25))
SAME = Run(
    "6-6",
    "def5678",
    ROUGE | {"delta": {"rouge2": 0.0, "rouge2_low": 0.0, "rouge2_high": 0.0}, "retained": {"rouge2": 1.0}},
    latency(batch_8=1.0, batch_16=1.0),
)


def test_table() -> None:
    assert results_table([RUN, SAME]).splitlines() == [
        "| enc-dec | revision | parameters | ROUGE-2 dense | ROUGE-2 pruned | difference | retained "
        "| speedup, batch 1 | speedup, batch 8 | speedup, batch 16 |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
        "| 6-1 | abc1234 | 22.4 M | 12.10 | 9.50 | -2.60 [-3.10, -2.05] | 78.5% | 2.50x [2.40, 2.60] "
        "| 2.25x [2.15, 2.35] |  |",
        "| 6-6 | def5678 | 22.4 M | 12.10 | 9.50 | +0.00 [+0.00, +0.00] | 100.0% |  | 1.00x [0.90, 1.10] "
        "| 1.00x [0.90, 1.10] |",
    ]


def test_an_engine_is_named_and_its_gain_stands_beside_that_of_pruning() -> None:
    def by(run: Run, engine: str, **more: float) -> Run:
        fixed = {"batch_8": run.latency["fixed"]["batch_8"] | more}
        return replace(run, latency=run.latency | {"fixed": fixed, "settings": {"engine": engine}})

    plain = by(SAME, BASELINE, total=1.0, total_low=0.9, total_high=1.1)
    served = by(RUN, "ctranslate2 int8", total=7.0, total_low=6.5, total_high=7.25)
    assert results_table([plain]) == results_table([replace(plain, latency=latency(batch_8=1.0))])
    assert [line.split(" | ")[1:3] + line.split(" | ")[8:] for line in results_table([plain, served]).splitlines()] == [
        ["engine", "revision", "speedup, batch 8", "in all, batch 8 |"],
        ["---", "---", "---:", "---: |"],
        ["transformers float32", "def5678", "1.00x [0.90, 1.10]", "1.00x [0.90, 1.10] |"],
        ["ctranslate2 int8", "abc1234", "2.25x [2.15, 2.35]", "7.00x [6.50, 7.25] |"],
    ]


def test_times_of_several_machines_are_never_side_by_side() -> None:
    """Ratios travel, milliseconds do not: so there are none in what sets runs side by side."""
    runs = []
    for run, machine, milliseconds in ((RUN, "A CPU, 2 cores", 7654.5), (SAME, "Another, 8 cores", 8765.5)):
        times = {f"{side}_{name}": milliseconds for side in ("dense", "pruned") for name in ("ms", "p90_ms", "docs_s")}
        fixed = {name: figures | times for name, figures in run.latency["fixed"].items()}
        runs.append(replace(run, latency=run.latency | {"fixed": fixed, "machine": machine}))
    printed = results_table(runs)
    assert printed == results_table([RUN, SAME])
    assert "speedup" in printed
    assert not re.search(r"7654|8765|\bms\b|milliseconds", printed)


def test_of_a_dense_model_that_scores_0_nothing_is_retained() -> None:
    nothing = replace(RUN, rouge=ROUGE | {"retained": {"rouge2": None}})
    assert [line.split(" | ")[6] for line in results_table([nothing, SAME]).splitlines()[2:]] == ["", "100.0%"]


def test_figures_that_are_missing_are_named() -> None:
    with pytest.raises(LopsideError, match=r"metrics/rouge.json of abc1234: there is no figure delta.rouge2"):
        results_table([Run("6-1", "abc1234", ROUGE | {"delta": {}}, latency(batch_1=2.5))])
    with pytest.raises(
        LopsideError, match=r"metrics/latency.json of def5678: there is no figure fixed.batch_1.speedup"
    ):
        tradeoff_png([RUN, SAME], "never.png", batch=1)


CURVES = [Curve("6-1", "abc1234", {100: 5.5, 1200: 9.126}), Curve("1-6", "def5678", {100: 9.98, 600: 10.0})]


def test_curves_table() -> None:
    assert curves_table(CURVES).splitlines() == [
        "| step | 6-1 | 1-6 |",
        "| ---: | ---: | ---: |",
        "| 100 | 5.50 | 9.98 |",
        "| 600 |  | 10.00 |",
        "| 1,200 | 9.13 |  |",
    ]


def test_curves_are_a_picture_and_equal_for_equal_runs(tmp_path: Path) -> None:
    curves_png(CURVES, tmp_path / "one.png")
    curves_png(CURVES, tmp_path / "two.png")
    curves_png(CURVES[:1], tmp_path / "three.png")
    one, two, three = ((tmp_path / f"{name}.png").read_bytes() for name in ("one", "two", "three"))
    assert one.startswith(b"\x89PNG")
    assert one == two != three


def test_plot_is_a_picture_and_equal_for_equal_runs(tmp_path: Path) -> None:
    tradeoff_png([RUN, SAME], tmp_path / "one.png", batch=8)
    tradeoff_png([RUN, SAME], tmp_path / "two.png", batch=8)
    tradeoff_png([RUN], tmp_path / "three.png", batch=8)
    one, two, three = ((tmp_path / f"{name}.png").read_bytes() for name in ("one", "two", "three"))
    assert one.startswith(b"\x89PNG")
    assert one == two != three


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A git repository with a run committed at each of two tags, 6-1 and 6-3, and another lying there uncommitted."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "metrics/plots").mkdir(parents=True)

    def write(dec: int, rouge2: float) -> None:
        (tmp_path / "params.yaml").write_text(f"enc: 6\ndec: {dec}\n")
        lock = {"stages": {"prune": {"params": {"params.yaml": {"enc": 6, "dec": dec}}}}}
        (tmp_path / "dvc.lock").write_text(json.dumps(lock))
        (tmp_path / "metrics/rouge.json").write_text(json.dumps(ROUGE | {"pruned": {"rouge2": rouge2}}))
        (tmp_path / "metrics/latency.json").write_text(json.dumps(latency(batch_1=2.0)))
        for side, gain in (("dense", 3), ("pruned", 0)):
            (tmp_path / f"metrics/plots/finetune-{side}.csv").write_text(
                f"step,train_loss,validation_loss,validation_rouge2\n1,5.5,,\n2,4.5,4.0,{rouge2 + gain}\n"
            )

    git = ["git", "-c", "user.name=A", "-c", "user.email=a@example.org"]
    subprocess.run([*git, "init", "-q"], check=True)
    for dec, rouge2 in ((1, 8.0), (3, 10.0)):
        write(dec, rouge2)
        subprocess.run([*git, "add", "."], check=True)
        subprocess.run([*git, "commit", "-qm", "a run"], check=True)
        subprocess.run([*git, "tag", f"run-{dec}"], check=True)
    write(2, 9.0)
    return tmp_path


@pytest.mark.parametrize(
    ("revision", "label", "rouge2"),
    [("run-1", "6-1", 8.0), ("HEAD", "6-3", 10.0), ("HEAD~1", "6-1", 8.0), (None, "6-2", 9.0)],
)
def test_runs_are_read_from_git(repository: Path, revision: str | None, label: str, rouge2: float) -> None:
    run = read_run(revision)
    assert (run.label, run.rouge_figure("pruned.rouge2"), run.batches) == (label, rouge2, [1])


def test_figures_of_other_params_are_refused(repository: Path) -> None:
    (repository / "params.yaml").write_text("enc: 6\ndec: 4\n")
    with pytest.raises(
        LopsideError, match=r"workspace: the figures are not .*: stage prune was last run with dec = 2, not 4"
    ):
        read_run()
    assert read_run("run-1").label == "6-1"


def test_command_prints_the_table_and_writes_the_plot(repository: Path) -> None:
    result = CliRunner().invoke(main, ["table", "run-1", "HEAD", "--plot", "plot.png"])
    assert result.exit_code == 0
    assert [line.split(" | ")[0] for line in result.output.splitlines()[2:]] == ["| 6-1", "| 6-3"]
    assert (repository / "plot.png").read_bytes().startswith(b"\x89PNG")
    assert "| 6-2 | workspace |" in CliRunner().invoke(main, ["table"]).output


def test_curves_are_read_from_git(repository: Path) -> None:
    assert read_curve("run-1") == Curve("6-1", "run-1", {2: 8.0})
    assert read_curve() == Curve("6-2", "workspace", {2: 9.0})
    assert read_curve("run-3", "dense") == Curve("dense", "run-3", {2: 13.0})


def test_command_prints_the_curves_and_writes_the_plot(repository: Path) -> None:
    result = CliRunner().invoke(main, ["curves", "run-1", "HEAD", "--plot", "plot.png"])
    assert result.exit_code == 0
    assert result.output.splitlines()[::2] == ["| step | dense | 6-1 | 6-3 |", "| 2 | 11.00 | 8.00 | 10.00 |"]
    assert (repository / "plot.png").read_bytes().startswith(b"\x89PNG")
    assert CliRunner().invoke(main, ["curves"]).output.splitlines()[-1] == "| 2 | 12.00 | 9.00 |"


@pytest.mark.parametrize(
    "text", ["", "step,train_loss\n1,2\n", "step,validation_rouge2\n1,\n", "step,validation_rouge2\nx,1\n"]
)
def test_a_broken_curve_is_named(repository: Path, text: str) -> None:
    (repository / "metrics/plots/finetune-pruned.csv").write_text(text)
    with pytest.raises(LopsideError, match=r"^metrics/plots/finetune-pruned.csv of workspace: "):
        read_curve()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["curves", "no-such"], "error: no-such: there is no such git revision or experiment"),
        (["table", "no-such"], "error: no-such: there is no such git revision or experiment"),
        (["compare", "no-such,run-1", "run-1"], "error: no-such: there is no such git revision or experiment"),
        (["compare", "run-1", "run-3"], "error: outputs/scores.parquet of run-1: cannot be read ("),
        (["table", "--plot", "plot.png", "--batch", "4"], "error: metrics/latency.json of workspace: there is no"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(repository: Path, arguments: list[str], message: str) -> None:
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 1
    assert result.output.startswith(message)
    assert result.output.count("\n") == 1
    assert not (repository / "plot.png").exists()


def test_broken_metrics_are_named(repository: Path) -> None:
    (repository / "metrics/rouge.json").write_text("{")
    with pytest.raises(LopsideError, match=r"metrics/rouge.json of workspace: cannot be read"):
        read_run()


def scored(label: str, rouge2: list[float], ids: str = "abcd", signature: str = "one") -> Scored:
    return Scored(label, signature, tuple(ids), np.array(rouge2))


def test_comparison() -> None:
    base, equal, better = (
        scored("base", [0, 10, 20, 30]),
        scored("equal", [0, 10, 20, 30]),
        scored("better", [5, 15, 25, 35]),
    )
    # Every document gains 5: so does every sample of documents. Only a draw with all four signs alike is as far from 0:
    # 2 of 16, but for chance.
    lines = comparison_table(base, [equal, better]).splitlines()
    assert lines[:4] == [
        "| pruned | ROUGE-2 | minus base | p |",
        "| --- | ---: | ---: | ---: |",
        "| base | 15.00 |  |  |",
        "| equal | 15.00 | +0.00 [+0.00, +0.00] | 1.0000 |",
    ]
    assert lines[4].startswith("| better | 20.00 | +5.00 [+5.00, +5.00] | 0.1")


def test_runs_of_several_seeds_are_scored_alike() -> None:
    table = comparison_table(
        scored("s0", [1] * 4, signature="a:1|seed:0|b:2"), [scored("s1", [2] * 4, signature="a:1|seed:1|b:2")]
    )
    assert table.splitlines()[-1].startswith("| s1 | 2.00 | +1.00 ")


@pytest.mark.parametrize("other", [scored("other", [1] * 4, ids="abce"), scored("other", [1] * 4, signature="two")])
def test_what_was_not_scored_alike_is_not_compared(other: Scored) -> None:
    with pytest.raises(LopsideError, match=r"^other and base cannot be compared"):
        comparison_table(scored("base", [1] * 4), [other])


@pytest.fixture
def experiments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A DVC repository with a committed run, ``main``, and two experiments on it, ``s0`` and ``s1``."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DVC_SITE_CACHE_DIR", str(tmp_path / "site"))
    from dvc.repo import Repo

    git = ["git", "-c", "user.name=A", "-c", "user.email=a@example.org"]
    subprocess.run([*git, "init", "-q", "-b", "main"], check=True)
    for folder in ("metrics", "outputs"):
        (tmp_path / folder).mkdir()
    (tmp_path / "params.yaml").write_text("enc: 6\ndec: 1\n")
    with Repo.init() as repo:
        for name, seed, rouge2 in (("main", 0, [0.0, 10.0]), ("s0", 0, [0.0, 20.0]), ("s1", 1, [10.0, 30.0])):
            signature = {"signature": f"rouge-score:1|bootstrap:100|confidence:0.95|seed:{seed}|beams:1"}
            (tmp_path / "metrics/rouge.json").write_text(json.dumps(ROUGE | signature))
            pd.DataFrame({"id": ["a", "b"], "pruned_rouge2": rouge2}).to_parquet("outputs/scores.parquet")
            repo.add("outputs/scores.parquet")
            subprocess.run([*git, "add", "."], check=True)
            subprocess.run([*git, "commit", "-qm", name], check=True)
            if name != "main":
                subprocess.run([*git, "update-ref", f"refs/exps/12/{'3' * 38}/{name}", "HEAD"], check=True)
                subprocess.run([*git, "reset", "-q", "--hard", "HEAD~1"], check=True)
    return tmp_path


def test_scores_come_from_the_cache_and_seeds_are_averaged(experiments: Path) -> None:
    (experiments / "outputs/scores.parquet").unlink()
    assert read_scored("main").rouge2.tolist() == [0, 10]
    both = read_scored("s0,s1")
    assert (both.label, both.ids, both.rouge2.tolist()) == ("s0,s1", ("a", "b"), [5, 25])
    assert seedless(both.signature) == "rouge-score:1|bootstrap:100|confidence:0.95|beams:1"
    result = CliRunner().invoke(main, ["compare", "main", "s0,s1", "s1"])
    assert result.exit_code == 0
    assert [line.split(" | ")[:2] for line in result.output.splitlines()[2:]] == [
        ["| main", "5.00"],
        ["| s0,s1", "15.00"],
        ["| s1", "20.00"],
    ]


def test_scores_without_a_signature_are_named(experiments: Path) -> None:
    (experiments / "metrics/rouge.json").write_text(json.dumps(ROUGE))
    subprocess.run(["git", "-c", "user.name=A", "-c", "user.email=a@example.org", "commit", "-qam", "old"], check=True)
    with pytest.raises(LopsideError, match=r"^metrics/rouge\.json of main: there is no signature"):
        read_scored("main")


def test_an_experiment_is_known_by_its_name_if_that_is_its_alone(experiments: Path) -> None:
    assert read_scored("s1").rouge2.tolist() == [10, 30]
    subprocess.run(["git", "update-ref", f"refs/exps/45/{'6' * 38}/s1", "HEAD"], check=True)
    with pytest.raises(LopsideError, match=r"^s1: several experiments have this name"):
        read_scored("s1")
