"""metrics/history.csv as a file: what is written is read, and what was broken by hand is named."""

import json
import shlex
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from lopside import history
from lopside.errors import LopsideError
from lopside.grid import plan
from lopside.history import (
    Row,
    _check_current,
    _digest,
    _inputs,
    changes,
    flat,
    read_history,
    seedless,
    write_history,
)
from lopside.repository import Experiment
from tests.projects import ENVIRONMENT, ROOT, commit, run
from tests.rows import row

ROWS = [
    row(6, 1, -1.5, 2.5),
    row(3, 3, -2, 1.9, speeds=(("fixed", 1), ("natural", 8)), stale="revision abc1234 is gone"),
]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "history.csv"
    write_history(ROWS, path)
    return path


def test_what_is_written_is_read(file: Path) -> None:
    assert read_history(file) == ROWS
    before = file.read_bytes()
    write_history(read_history(file), file)
    assert file.read_bytes() == before


@given(
    st.floats(-90, 90), st.floats(0.2, 50), st.text(st.characters(codec="utf-8", exclude_categories=["Cc"]), min_size=1)
)
def test_any_figures_and_texts_are_read_back(delta: float, speedup: float, text: str) -> None:
    rows = [row(6, 1, delta, speedup, dataset=text, signature=f'{text}|"', overrides=shlex.quote(text))]
    with tempfile.TemporaryDirectory() as folder:
        write_history(rows, Path(folder) / "history.csv")
        assert read_history(Path(folder) / "history.csv") == rows


def test_columns_are_named_as_dvc_names_them_and_a_new_setting_adds_its_own(file: Path, tmp_path: Path) -> None:
    header = file.read_text().splitlines()[0].split(",")
    assert {"enc", "keep.strategy", "train.max_steps", "delta.rouge2_low", "parameters.pruned"} < set(header)
    assert {"fixed.batch_1.speedup", "natural.batch_8.speedup_high"} < set(header)
    write_history(ROWS[:1], tmp_path / "less.csv")
    less = (tmp_path / "less.csv").read_text().splitlines()[0].split(",")
    assert set(header) - set(less) == {
        f"natural.batch_8.{leaf}"
        for leaf in (
            "dense_ms",
            "pruned_ms",
            "speedup",
            "speedup_low",
            "speedup_high",
            "total",
            "total_low",
            "total_high",
        )
    }


def test_a_row_more_is_a_line_more(file: Path) -> None:
    before = file.read_text()
    write_history([*ROWS, row(1, 6, -4, 1.2)], file)
    assert file.read_text().startswith(before)
    assert file.read_text().count("\n") == before.count("\n") + 1


def test_no_file_and_an_empty_one_have_no_rows(tmp_path: Path) -> None:
    assert read_history(tmp_path / "none.csv") == []
    (tmp_path / "empty.csv").touch()
    assert read_history(tmp_path / "empty.csv") == []
    write_history([], tmp_path / "header.csv")
    assert read_history(tmp_path / "header.csv") == []


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("2026-01-31", "31.1.2026", r"line 2: date: '31.1.2026' is refused; allowed: a day as 2026-01-31"),
        ("docstrings,docs-bart-mini,6,1,", "docstrings,docs-bart-mini,6,0,", r"line 2: dec: '0' is refused"),
        (
            "docstrings,docs-bart-mini,6,1,",
            "docstrings,docs-bart-mini,7,1,",
            r"line 2: enc: 7 is refused; allowed: 1 to 6",
        ),
        ("-1.5,-2,-1", "abc,-2,-1", r"line 2: delta.rouge2: 'abc' is refused; allowed: a number"),
        ("-1.5,-2,-1", "nan,-2,-1", r"line 2: delta.rouge2: 'nan' is refused"),
        ("-1.5,-2,-1", ",-2,-1", r"line 2: delta.rouge2: '' is refused; allowed: a number"),
        ("-1.5,-2,-1", "-15,-2,-1", r"line 2: delta.rouge2: -15 is outside its own interval, -2 to -1"),
        (",100,40,2.5,2.4,2.6,", ",100,40,2.5,0,2.6,", r"line 2: fixed.batch_1.speedup_low: .0. is refused"),
        (",20000000,", ",-2,", r"line 2: parameters.pruned: '-2' is refused; allowed: a number above 0"),
        ("train.batch_size=64", "data.prefix='a b", r"line 2: overrides: .* is refused; allowed: key=value, quoted as"),
        ("-1.5,-2,-1", "-1.5;-2;-1", r"line 2: has \d+ fields, and the header has \d+"),
        ('"made-up CPU, 2 cores"', '"made-up CPU, 2 cores', r"line 2: is no line of a CSV file"),
        ("0 1 2 3 4 5,5", "5 1 2,5", r"line 2: encoder_kept: '5 1 2' is refused; allowed: rising"),
        ("e6-d1-uniform", "<<<<<<< HEAD\ne6-d1-uniform", r"line 2: git's mark of a conflict"),
        ("e3-d3", "\ne3-d3", r"line 3: has 0 fields"),
        ("delta.rouge2,", "delta.rouge3,", r"line 1: the header is not .*: 'delta.rouge3' is unknown"),
        ("dataset,model", "model,dataset", r"line 1: the header is not .*, which are in this order"),
        (",stale", "", r"line 1: the header is not .*: 'stale' is missing"),
        ("fixed.batch_1.speedup_low,", "", r"line 1: the header is not .*: 'fixed.batch_1.speedup_low' is missing"),
    ],
)
def test_a_line_broken_by_hand_is_named(file: Path, before: str, after: str, message: str) -> None:
    text = file.read_text()
    assert before in text
    file.write_text(text.replace(before, after, 1))
    with pytest.raises(LopsideError, match=rf"^{file}, {message}"):
        read_history(file)


def test_a_row_that_is_there_twice_is_named(file: Path) -> None:
    lines = file.read_text().splitlines()
    file.write_text("\n".join([*lines, lines[1].replace("docstrings", "xsum")]) + "\n")
    with pytest.raises(LopsideError, match=r"line 4: experiment e6-d1-uniform-s0-abc1234 of \w{7} is there before"):
        read_history(file)


def merged(folder: Path, base: list[Row], ours: list[Row], theirs: list[Row]) -> Path:
    """The file of a branch that git has merged with another."""
    shutil.copy(ROOT / ".gitattributes", folder)
    path = folder / "metrics/history.csv"
    run("git", "init", "--quiet", "--initial-branch=main", folder=folder)
    write_history(base, path)
    commit(folder)
    run("git", "checkout", "--quiet", "-b", "other", folder=folder)
    write_history(theirs, path)
    commit(folder)
    run("git", "checkout", "--quiet", "main", folder=folder)
    write_history(ours, path)
    commit(folder)
    run("git", "merge", "--quiet", "--no-edit", "other", folder=folder)
    return path


STALE = replace(ROWS[0], stale="revision abc1234 is gone")
NATURAL = row(1, 6, speeds=(("natural", 8),))


@pytest.mark.parametrize(
    ("ours", "theirs", "expected"),
    [
        ([ROWS[0], row(6, 3)], [ROWS[0], row(1, 6)], [ROWS[0], row(6, 3), row(1, 6)]),
        ([STALE, ROWS[1]], [ROWS[0], row(1, 6)], [STALE, ROWS[1], row(1, 6)]),
        ([ROWS[0], row(6, 3)], [STALE], [STALE, row(6, 3)]),
        ([ROWS[0], row(6, 3)], [ROWS[0], NATURAL], [ROWS[0], row(6, 3), NATURAL]),
        ([ROWS[0], NATURAL], [STALE, row(6, 3)], [STALE, NATURAL, row(6, 3)]),
        ([ROWS[0], NATURAL], [ROWS[0], row(6, 3, speeds=(("paper", 1),))], None),
    ],
    ids=[
        "both appended",
        "marked and appended",
        "appended and marked",
        "new setting there",
        "new setting here",
        "one each",
    ],
)
def test_two_branches_merge(tmp_path: Path, ours: list[Row], theirs: list[Row], expected: list[Row] | None) -> None:
    path = merged(tmp_path, ROWS[:1], ours, theirs)
    if expected:
        assert sorted(read_history(path), key=str) == sorted(expected, key=str)
    else:
        with pytest.raises(
            LopsideError, match=r"line \d: a merge left another header of as many columns, and which rows"
        ):
            read_history(path)


def test_of_new_rows_of_one_cell_the_oldest_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run("git", "init", "--quiet", folder=tmp_path)
    for name, day in (("b", 1), ("a", 2), ("c", 3)):
        monkeypatch.setitem(ENVIRONMENT, "GIT_COMMITTER_DATE", f"2026-01-0{day}T12:00:00Z")
        run("git", "commit", "--quiet", "--allow-empty", f"--message={name}", folder=tmp_path)
        run("git", "update-ref", f"refs/exps/12/{'3' * 38}/{name}", "HEAD", folder=tmp_path)
    monkeypatch.setattr(history, "row_of", lambda each: row(6, 1, experiment=each.name, date=each.date))
    rows, left_out = history.update_history()
    assert ([each.experiment for each in rows], left_out) == (["b", "a", "c"], [])


def test_a_stage_that_read_another_file_of_a_folder_than_lies_there_now_was_not_run_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As `dvc exp run download -S data.limits.test=100` leaves it; what DVC keeps no listing of is not judged."""
    monkeypatch.chdir(tmp_path)
    names = ("metrics/rouge.json", "metrics/latency.json")
    figures = [{"path": name, "md5": "99914b932bd37a50b983c5e7c90ae93b"} for name in names]  # of {}
    download = {"outs": [{"path": "data/splits", "md5": "abcd.dir"}]}
    score = {"deps": [{"path": "data/splits/test.parquet", "md5": "old"}], "outs": figures}
    (tmp_path / "metrics").mkdir()
    for name in names:
        (tmp_path / name).write_text("{}")
    (tmp_path / "dvc.lock").write_text(json.dumps({"stages": {"download": download, "score": score}}))
    (tmp_path / ".gitignore").write_text("/.dvc/\n")
    run("git", "init", "--quiet", folder=tmp_path)
    commit(tmp_path)
    head = run("git", "rev-parse", "HEAD", folder=tmp_path).strip()
    experiment = Experiment("odd", head, head, "2026-01-31")
    _check_current(experiment, {})
    listing = tmp_path / ".dvc/cache/files/md5/ab/cd.dir"
    listing.parent.mkdir(parents=True)
    listing.write_text('[{"md5": "old", "relpath": "test.parquet"}]')
    _check_current(experiment, {})
    listing.write_text('[{"md5": "new", "relpath": "test.parquet"}]')
    with pytest.raises(LopsideError, match=r"^stage score was not run again after data/splits/test.parquet had chan"):
        _check_current(experiment, {})


def test_what_is_no_text_is_named(file: Path) -> None:
    with pytest.raises(LopsideError, match=r"cannot be read: Is a directory"):
        read_history(file.parent)
    file.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(LopsideError, match=r"cannot be read: it is no UTF-8 text file"):
        read_history(file)


def test_a_missing_figure_is_named() -> None:
    bare = replace(ROWS[0], figures={})
    with pytest.raises(LopsideError, match=r"^metrics/history.csv: e6-d1-uniform-s0-abc1234 has no delta.rouge2"):
        bare.figure("delta.rouge2")


def test_changes_are_said_as_dvc_takes_them() -> None:
    base = flat(
        {"enc": 6, "data": {"prefix": "", "skip_bad": False}, "train": {"learning_rate": "5e-4", "epochs": 1.0}}
    )
    params = base | {"enc": 1, "data.prefix": "a b", "data.skip_bad": True, "keep.encoder": [0, 2], "train.epochs": 1.0}
    assert base["train.learning_rate"] == 0.0005
    assert changes(base, params) == ['data.prefix="a b"', "data.skip_bad=true", "keep.encoder=[0,2]"]


def test_a_text_that_looks_like_something_else_stays_one() -> None:
    """A short revision of the hub, as `dvc exp run -S` is told it, as DVC writes it and as it is read again."""
    for text in ("12e4567", "2019", "1_0.5", "True", "null", "NaN", "-Inf", ".5", "+1E-3"):
        (said,) = changes({}, {"parent.revision": text})
        assert said == f'parent.revision="{text}"'
        (cell,) = plan("6-1", 1, [said], (ROOT / "params.yaml").read_text(), "1" * 40).cells
        assert cell.params["parent.revision"] == text
    assert changes({}, {"parent.revision": "1e49af1", "dataset": "5/a"}) == ["dataset=5/a", "parent.revision=1e49af1"]


def test_settings_change_with_every_param_that_a_summary_depends_on() -> None:
    shipped = flat(yaml.safe_load((ROOT / "params.yaml").read_text()))

    def without_effect(**changed: str) -> set[str]:
        params = shipped | {key.replace("_", "."): value for key, value in changed.items()}
        return {key for key in params if _digest(params | {key: "changed"}) == _digest(params)}

    timing_and_scoring = {key for key in shipped if key.startswith(("time.", "score."))}
    layers = {"enc", "dec", "seed", "keep.unit", "keep.encoder", "keep.decoder"}
    # The strategy is a column of its own, though its measure counts where there is one.
    own = timing_and_scoring | layers | {"keep.strategy"}
    assert without_effect(keep_strategy="uniform") == own | {"keep.measure", "keep.documents"}
    assert without_effect(keep_strategy="importance") == timing_and_scoring | layers


def test_inputs_change_with_the_parent_and_the_pairs() -> None:
    def inputs(parent: str = "a", pairs: str = "b", origin: str = "c", trained: bool = False) -> str:
        outs = [{"path": "outputs/parent", "md5": parent}, {"path": "outputs/parent_origin.json", "md5": origin}]
        stages = {"parent": {"outs": outs}, "prune": {"deps": [{"path": "data/splits/train.parquet", "md5": pairs}]}}
        return _inputs({"parent.train": trained}, {"machine": {}, **stages})

    assert inputs() == inputs(origin="other")
    assert len({inputs(), inputs(parent="other"), inputs(pairs="other")}) == 3
    # A parent that was trained first is another with every seed.
    assert inputs(trained=True) == inputs("other", trained=True) != inputs(origin="other", trained=True)


def test_a_signature_without_its_seed() -> None:
    assert seedless("a:1|seed:12|b:2") == seedless("a:1|seed:3|b:2") == "a:1|b:2"
