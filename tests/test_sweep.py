"""Sweeps, and the history that they become, on a pipeline of lopside's shape that computes nothing."""

import json
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
from click.testing import CliRunner

from lopside import repository
from lopside.commands import main
from lopside.errors import LopsideError
from lopside.grid import Cell, Plan
from lopside.history import Row, row_of, update_history, write_history
from lopside.sweep import COPY, LOGS, _Copy, _Progress, duration, time_left
from tests import cheap_pipeline, history_check
from tests.projects import ENVIRONMENT, commit, run

LOPSIDE = (sys.executable, "-c", "from lopside.commands import main; main()")
SOURCE = str(Path(__file__).parents[1] / "src")


def environment(project: Path, **more: str) -> dict[str, str]:
    told = project / ".dvc/tmp/told"
    told.parent.mkdir(exist_ok=True)
    return ENVIRONMENT | {"PYTHONPATH": SOURCE, "DVC_SITE_CACHE_DIR": f"{project}.site", "TOLD": str(told)} | more


def start(project: Path, *arguments: str, **more: str) -> "subprocess.Popen[str]":
    command = [*LOPSIDE, "sweep", *arguments]
    outputs: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}

    # As at a terminal: what runs these tests may have been started to ignore the signal.
    def listen() -> None:
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    return subprocess.Popen(command, cwd=project, env=environment(project, **more), preexec_fn=listen, **outputs)


def sweep(project: Path, *arguments: str, **more: str) -> tuple[int, str, str]:
    """Exit status, and what is printed."""
    process = start(project, *arguments, **more)
    output, errors = process.communicate()
    return process.returncode, output, errors


def told(project: Path) -> list[str]:
    """The stages that ran, with enc, dec and seed, in their order."""
    return (project / ".dvc/tmp/told").read_text().splitlines()


def revision(project: Path) -> str:
    return run("git", "rev-parse", "HEAD", folder=project)[:7]


def names(project: Path) -> list[str]:
    listed = run("git", "for-each-ref", "--format=%(refname)", "refs/exps", folder=project).split()
    return sorted(name.split("/")[-1] for name in listed)


def files(project: Path) -> dict[str, bytes]:
    """All files but those of git and DVC."""
    paths = [path for path in project.rglob("*") if path.is_file() and not {".git", ".dvc"} & set(path.parts)]
    return {str(path.relative_to(project)): path.read_bytes() for path in paths}


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with a sweep of three cells behind it."""
    project = cheap_pipeline.make(tmp_path_factory.mktemp("swept") / "project")
    before = files(project)
    status, output, errors = sweep(project, "6-6,6-1,1-6")
    assert status == 0, errors
    assert output.startswith("3 of 3 cells are done")
    # Which cell, which stage, and how long it still takes.
    assert f"[2/3] e6-d1-importance-s0-{revision(project)}: score; about " in errors
    # Nothing of the user's was touched.
    assert files(project) == before
    assert run("git", "status", "--porcelain", folder=project) == ""
    assert run("git", "branch", "--show-current", folder=project) == "main\n"
    return project


def copy_of(swept: Path, folder: Path) -> Path:
    """The project in another place, without what DVC and sweeps remember beside git and the cache."""
    shutil.copytree(swept, folder, symlinks=True)
    shutil.rmtree(folder / ".dvc/tmp")
    return folder


@pytest.fixture
def project(swept: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it to be in."""
    copy = copy_of(swept, tmp_path / "project")
    monkeypatch.chdir(copy)
    return copy


def test_a_sweep_runs_each_cell_as_an_experiment_and_what_they_share_once(swept: Path) -> None:
    assert names(swept) == [f"{cell}-importance-s0-{revision(swept)}" for cell in ("e1-d6", "e6-d1", "e6-d6")]
    ran = [line for line in told(swept) if not line.startswith("machine")]
    assert ran == [
        *("dense 6 6 0", "pruned 6 6 0", "score 6 6 0", "time 6 6 0"),
        *("pruned 6 1 0", "score 6 1 0", "time 6 1 0"),
        *("pruned 1 6 0", "score 1 6 0", "time 1 6 0"),
    ]


def test_what_is_done_is_not_run_again_and_a_dry_run_says_so(project: Path) -> None:
    status, output, _ = sweep(project, "6-6,6-1,1-6")
    assert (status, output.split(";")[0]) == (0, "3 of 3 cells are done")
    assert not (project / ".dvc/tmp/told").exists()
    result = CliRunner().invoke(main, ["sweep", "6-1,3-3", "--dry-run"])
    short = revision(project)
    assert result.output == f"e6-d1-importance-s0-{short}  done\ne3-d3-importance-s0-{short}  to do\n"


def test_dvc_shows_the_experiments_under_the_same_names_and_figures(project: Path) -> None:
    shown = run("dvc", "exp", "show", "--csv", folder=project)
    assert f"e6-d1-importance-s0-{revision(project)}" in shown
    assert "delta.rouge2" in shown
    run("dvc", "exp", "apply", f"e6-d1-importance-s0-{revision(project)}", folder=project)
    rouge = json.loads((project / "metrics/rouge.json").read_text())
    (row,) = [row for row in update_history()[0] if (row.enc, row.dec) == (6, 1)]
    assert row.figure("delta.rouge2") == rouge["delta"]["rouge2"] == -round(0.3 * 5**1.5, 3)
    assert (row.encoder_kept, row.decoder_kept) == ((0, 1, 2, 3, 4, 5), (5,))
    assert row.figure("fixed.batch_8.speedup") == round(12 / (2 + 3 + 1.17), 3)
    advice = CliRunner().invoke(main, ["recommend", "--min-speedup", "1.5"]).output
    assert f"To have it:  dvc exp apply e6-d1-importance-s0-{revision(project)}\n" in advice


def test_rows_are_recomputed_from_their_experiments(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(ENVIRONMENT, "TOLD", str(tmp_path / "told"))
    rows = update_history()[0]
    assert history_check.chosen(rows, [], 2) == [rows[0], rows[2]]
    assert history_check.chosen(rows, [rows[1].experiment], 2) == [rows[1]]
    clone = history_check.clone_of(project, tmp_path / "clone")
    again = history_check.recompute(rows[1], clone, ("dense", "pruned", "score"))
    assert (tmp_path / "told").read_text().splitlines() == [
        f"{stage} {rows[1].enc} {rows[1].dec} 0" for stage in ("dense", "pruned", "score")
    ]
    assert again["delta.rouge2"] == rows[1].figure("delta.rouge2") != 0


def test_a_cell_that_fails_is_reported_with_its_log_and_the_rest_go_on(project: Path) -> None:
    status, output, errors = sweep(project, "3-3,2-2", FAIL="score 3 3")
    failed = f"e3-d3-importance-s0-{revision(project)}"
    assert status == 1
    assert output.splitlines() == [
        "1 of 2 cells are done; `lopside report` sets them side by side",
        f"failed: {failed}",
    ]
    assert f"[1/2] {failed}: failed; the end of {LOGS}/{failed}.log:" in errors
    assert "error: this one is to fail" in errors
    assert f"e2-d2-importance-s0-{revision(project)}" in names(project)
    assert failed not in names(project)
    # Put right, it goes on from where it failed.
    (project / ".dvc/tmp/told").unlink()
    assert sweep(project, "3-3,2-2")[0] == 0
    assert told(project) == ["machine 3 3 0", "score 3 3 0", "time 3 3 0"]


def settled(rows: list[Row]) -> list[tuple[Any, ...]]:
    """Rows but for what differs from run to run: commits and days."""
    return [
        (row.experiment.rpartition("-")[0], row.figures, row.encoder_kept, row.overrides, row.settings) for row in rows
    ]


@pytest.fixture(scope="module")
def undisturbed(swept: Path, tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Any, ...]]:
    """The history of a sweep of four cells, three of them done before, that nothing stopped."""
    project = copy_of(swept, tmp_path_factory.mktemp("undisturbed") / "project")
    assert sweep(project, FOUR)[0] == 0
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(project)
        return settled(update_history()[0])


FOUR = "6-6,6-1,1-6,6-2"


def test_a_sweep_that_was_stopped_and_killed_twice_each_ends_with_the_same_history(
    project: Path, undisturbed: list[tuple[Any, ...]]
) -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        errors = stop_at("pruned 6 2", project, number)
        assert errors.endswith("stopped; the same command goes on from here\n")
        assert not working_in(project)
    stop_at("pruned 6 2", project, signal.SIGKILL)
    left_over = working_in(project)
    assert left_over  # which the next sweep ends, before it takes up the copy
    checkpoint = project / COPY / "outputs/.half-trained"
    checkpoint.touch()
    stop_at("machine 6 2", project, signal.SIGKILL)
    assert not any(process.is_running() for process in left_over)
    # Started again it ends, and with the history of one that nothing stopped.
    assert sweep(project, FOUR)[0] == 0
    assert not working_in(project)
    rows, left_out = update_history()
    assert left_out == []
    assert settled(rows) == undisturbed
    assert [(row.enc, row.dec) for row in rows] == [(6, 6), (6, 2), (6, 1), (1, 6)]
    assert checkpoint.exists()


def stop_at(stage: str, project: Path, number: signal.Signals) -> str:
    """Start the sweep, end it by a signal once the stage is at work, and return what it said on stderr."""
    (project / ".dvc/tmp/told").unlink(missing_ok=True)
    process = start(project, FOUR, WAIT=stage)
    while not (project / ".dvc/tmp/told").exists() or f"{stage} 0" not in told(project):
        assert process.poll() is None
        time.sleep(0.1)
    process.send_signal(number)
    _, errors = process.communicate()
    assert process.returncode == (-number if number == signal.SIGKILL else 130)
    assert run("git", "status", "--porcelain", folder=project) == ""
    return errors


def working_in(project: Path) -> list[psutil.Process]:
    """The processes whose folder is the sweep's copy."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            if Path(process.cwd()).is_relative_to(project / COPY):
                found.append(process)
    return found


def test_jobs_share_all_but_time_which_runs_alone(project: Path) -> None:
    status, output, errors = sweep(project, "6-6,3-3,2-2", "--jobs", "2", "-S", "train.batch_size=8", FAIL="score 2 2")
    assert status == 1, errors
    assert output.splitlines()[0].startswith("2 of 3 cells are done")
    assert output.splitlines()[1].startswith("failed: e2-d2-importance-s0-")
    assert "error: this one is to fail" in errors
    ran = told(project)
    assert sum(line.startswith("dense") for line in ran) == 1
    assert [line for line in ran if line.startswith("time")] == ["time 6 6 0", "time 3 3 0"]
    assert ran[-1] == "time 3 3 0"
    assert not any(name.endswith("-untimed") for name in names(project))


def test_what_was_ended_and_not_handed_over_is_not_run_again(project: Path) -> None:
    assert sweep(project, "3-3")[0] == 0
    (done,) = repository.experiments(f"e3-d3-importance-s0-{revision(project)}")
    place = f"refs/exps/{done.baseline[:2]}/{done.baseline[2:]}/{done.name}"
    run("git", "-C", str(COPY), "update-ref", place, done.commit, folder=project)
    run("git", "update-ref", "-d", place, folder=project)
    (project / ".dvc/tmp/told").unlink()
    assert sweep(project, "3-3")[0] == 0
    assert not (project / ".dvc/tmp/told").exists()
    assert repository.experiments(done.name) == [done]


def test_a_copy_that_is_broken_is_made_anew(project: Path) -> None:
    (project / COPY / ".git").mkdir(parents=True)
    (project / COPY / "stage.py").write_text("odd")
    (project / "README.md").write_text("Mine.")
    before, known = files(project), names(project)
    status, _, errors = sweep(project, "3-3")
    assert status == 0, errors
    assert files(project) == before  # where it is broken, git would go on to the repository around it
    assert set(names(project)) == {*known, f"e3-d3-importance-s0-{revision(project)}"}
    assert run("git", "branch", "--show-current", folder=project) == "main\n"


@pytest.fixture
def copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> _Copy:
    """The copy of an empty project, which is where we are."""
    monkeypatch.chdir(tmp_path)
    run("git", "init", "--quiet", ".", folder=tmp_path)
    (tmp_path / ".gitignore").write_text("/.dvc/\n")
    commit(tmp_path)
    run("git", "clone", "--quiet", "--shared", ".", str(COPY), folder=tmp_path)
    return _Copy(Plan(run("git", "rev-parse", "HEAD", folder=tmp_path).strip(), (), ()))


ONE = f"refs/exps/12/{'3' * 38}/e6-d1"


def test_locks_of_git_that_a_killed_sweep_left_are_gone(copy: _Copy) -> None:
    for name in ("index", ONE):
        lock = COPY / f".git/{name}.lock"
        lock.parent.mkdir(parents=True, exist_ok=True)
        lock.touch()
    assert copy._clean()
    run("git", "-C", str(COPY), "update-ref", ONE, "HEAD", folder=Path())


def test_an_experiment_that_cannot_be_handed_over_stays_and_git_says_why(copy: _Copy) -> None:
    run("git", "-C", str(COPY), "update-ref", ONE, "HEAD", folder=Path())
    lock = Path(f".git/{ONE}.lock")
    lock.parent.mkdir(parents=True)
    lock.touch()
    with pytest.raises(
        LopsideError, match=r"e6-d1\.lock': File exists(.|\n)*\nThe experiment waits in \.dvc/tmp/sweep/"
    ):
        copy._clean()
    lock.unlink()
    Path(".git/FETCH_HEAD").write_text("mine")
    assert copy._clean()
    assert [each.name for each in repository.experiments()] == ["e6-d1"]
    assert Path(".git/FETCH_HEAD").read_text() == "mine"
    assert run("git", "for-each-ref", "refs/exps", folder=COPY) == ""


def test_no_cell_is_run_from_another_commit_than_that_of_the_plan(copy: _Copy) -> None:
    cell = Cell("e6-d1", 6, 1, 0, {})
    gone = _Copy(replace(copy.planned, commit="1" * 40))
    with pytest.raises(
        LopsideError, match=r"^\.dvc/tmp/sweep/copy: git could not check 1111111 out there; delete that"
    ):
        gone.run(cell, _Progress(1, 0))
    with pytest.raises(
        LopsideError, match=r"^\.dvc/tmp/sweep/copy: git could not check 1111111 out there; delete that"
    ):
        gone.queue([cell], 1, _Progress(1, 0))


def test_own_data_that_git_does_not_track_is_found_and_may_change(project: Path) -> None:
    (project / "mine.jsonl").touch()
    mine = ("-S", "dataset=./mine.jsonl")
    assert sweep(project, "3-3", *mine)[0] == 0
    refused(
        "--jobs: DVC's queue sees tracked files only: commit ./mine.jsonl, or", "sweep", "2-2", "--jobs", "2", *mine
    )
    refused("dataset: ./none.jsonl: there is no such file or folder", "sweep", "2-2", "-S", "dataset=./none.jsonl")
    commit(project)
    (project / "mine.jsonl").write_text("changed")
    refused("not committed: mine.jsonl;", "sweep", "2-2", *mine)


def test_one_sweep_at_a_time(project: Path) -> None:
    from filelock import FileLock

    (project / COPY).parent.mkdir(parents=True)
    with FileLock(project / COPY.parent / "lock"):
        status, _, errors = sweep(project, "3-3")
    assert (status, errors) == (1, "error: .dvc/tmp/sweep: another sweep is at work here; wait for it, or stop it\n")


def refused(message: str, *arguments: str) -> None:
    """The command ends with an error of one line that begins so."""
    result = CliRunner().invoke(main, [*arguments])
    assert (result.exit_code, result.exception.__class__) == (1, SystemExit), result.output
    assert result.output.startswith(f"error: {message}"), result.output
    assert result.output.count("\n") == 1


def test_files_that_matter_must_be_committed_and_others_need_not(project: Path) -> None:
    (project / "README.md").write_text("Mine.")
    (project / "metrics").mkdir()
    (project / "metrics/history.csv").touch()
    assert CliRunner().invoke(main, ["sweep", "6-1", "--dry-run"]).exit_code == 0
    for name in ("params.yaml", "stage.py"):
        with (project / name).open("a") as file:
            file.write("\n# changed\n")
    refused("not committed: params.yaml, stage.py; a sweep runs what is committed", "sweep", "6-1")
    run("git", "add", "--all", folder=project)
    refused("not committed: params.yaml, stage.py; a sweep runs what is committed", "sweep", "6-1")
    commit(project)
    assert CliRunner().invoke(main, ["sweep", "6-1", "--dry-run"]).output.endswith("to do\n")


def test_a_detached_head_is_as_good_as_a_branch(project: Path) -> None:
    run("git", "checkout", "--quiet", "--detach", folder=project)
    assert sweep(project, "5-5")[0] == 0
    assert f"e5-d5-importance-s0-{revision(project)}" in names(project)


def test_an_experiment_of_the_same_name_and_other_params_is_not_taken_for_the_cell(project: Path) -> None:
    short = revision(project)
    (one, other) = (repository.experiments(f"{cell}-importance-s0-{short}")[0] for cell in ("e6-d1", "e1-d6"))
    place = f"refs/exps/{one.baseline[:2]}/{one.baseline[2:]}/{one.name}"
    run("git", "update-ref", place, other.commit, folder=project)
    refused(f"experiment {one.name}: is there with other params (dec, enc); remove or rename it", "sweep", "6-1")


def test_without_git_or_a_commit_or_dvc_there_is_one_clear_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    refused("git: this folder is in no git repository", "sweep")
    run("git", "init", "--quiet", folder=tmp_path)
    refused("git: nothing is committed here yet", "sweep")
    (tmp_path / "README.md").touch()
    commit(tmp_path)
    refused("dvc.yaml: is not here, or DVC is not set up", "sweep")


def test_jobs_and_seeds_must_be_numbers_of_one_or_more(project: Path) -> None:
    refused("--jobs: 0 is refused", "sweep", "6-1", "--jobs", "0")
    refused("--seeds: -1 is refused", "sweep", "6-1", "--seeds", "-1")
    refused("grid: 'papr' is refused", "sweep", "papr")


# The history


def test_the_history_grows_by_appending_and_stays_as_it_is(project: Path) -> None:
    history = project / "metrics/history.csv"
    rows, left_out = update_history()
    assert (len(rows), left_out) == (3, [])
    before = history.read_text()
    assert update_history() == (rows, [])
    assert history.read_text() == before
    assert sweep(project, "6-1", "--seeds", "2")[0] == 0
    assert [row.seed for row in update_history()[0] if (row.enc, row.dec) == (6, 1)] == [0, 1]
    assert history.read_text().startswith(before)
    # One that DVC has forgotten stays.
    run("dvc", "exp", "remove", rows[0].experiment, folder=project)
    assert len(update_history()[0]) == 4


def test_rows_whose_inputs_are_gone_are_marked(project: Path) -> None:
    rows, _ = update_history()
    changed = [
        rows[0],
        replace(rows[1], overrides="train.momentum=0.9"),
        replace(rows[2], strategy="best"),
        replace(rows[0], experiment="other", revision="0000000"),
        replace(rows[0], experiment="third", dataset="docstring"),
    ]
    write_history(changed)
    assert [row.stale for row in update_history()[0][:5]] == [
        "",
        "train.momentum is no knob",
        "keep.strategy best is unknown",
        "revision 0000000 is gone",
        "dataset docstring is unknown",
    ]


def test_without_git_rows_are_read_and_none_is_marked(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows, _ = update_history()
    shutil.rmtree(project / ".git")
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(project.parent))
    assert update_history() == (rows, [])


def partial(project: Path) -> None:
    run_in(project, "dvc", "exp", "run", "--name", "odd", "-S", "dec=2", "pruned")


def of_other_intervals(project: Path) -> None:
    run_in(project, "dvc", "exp", "run", "--name", "odd", "-S", "score.confidence=0.9")


def run_in(project: Path, *command: str) -> None:
    subprocess.run(command, cwd=project, env=environment(project), check=True, capture_output=True)


def edited(path: str, change: Callable[[str], str]) -> Callable[[Path], None]:
    """An experiment, named odd, whose file was edited by hand."""

    def make(project: Path) -> None:
        (one,) = repository.experiments(f"e6-d1-importance-s0-{revision(project)}")
        run("git", "checkout", "--quiet", "--detach", one.commit, folder=project)
        (project / path).write_text(change((project / path).read_text()))
        commit(project)
        place = f"refs/exps/{one.baseline[:2]}/{one.baseline[2:]}/odd"
        run("git", "update-ref", place, "HEAD", folder=project)
        run("git", "checkout", "--quiet", "main", folder=project)

    return make


def without_delta(text: str) -> str:
    return json.dumps({key: value for key, value in json.loads(text).items() if key != "delta"})


def flattered(text: str) -> str:
    return re.sub(r'"speedup": [\d.]+', '"speedup": 9.0', text, count=1)


def commented(text: str) -> str:
    return f"{text}# not committed\n"


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (partial, "odd: metrics/rouge.json of "),
        (of_other_intervals, "odd: score.confidence: 0.9 is refused; allowed: 0.95 "),
        (edited("metrics/rouge.json", without_delta), "odd: metrics/rouge.json is not what the pipeline wrote"),
        (edited("metrics/latency.json", flattered), "odd: metrics/latency.json is not what the pipeline wrote"),
        (edited("stage.py", commented), "odd: was run with changes that were not committed: stage.py"),
    ],
)
def test_an_experiment_without_its_own_figures_is_left_out_and_named(
    project: Path, make: Callable[[Path], None], reason: str
) -> None:
    make(project)
    rows, left_out = update_history()
    assert len(rows) == 3
    assert [each[: len(reason)] for each in left_out] == [reason]


def test_a_part_of_the_pipeline_on_an_older_run_is_not_taken_for_a_whole(project: Path) -> None:
    run_in(project, "dvc", "repro")
    commit(project)
    partial(project)
    (odd,) = repository.experiments("odd")
    with pytest.raises(LopsideError, match=r"stage score was not run again after outputs/pruned had changed"):
        row_of(odd)
    run_in(project, "dvc", "exp", "run", "--name", "older", "-S", "train.batch_size=4", "pruned")
    (older,) = repository.experiments("older")
    with pytest.raises(LopsideError, match=r"stage dense was last run with train.batch_size = 32, not 4"):
        row_of(older)


# Pure parts


def test_time_left_goes_by_the_usual_cell() -> None:
    assert time_left([], 5, 3) is None
    assert time_left([300, 60, 62], 20, 3) == 62 - 20 + 2 * 62
    assert time_left([60], 90, 2) == 60


@pytest.mark.parametrize(
    ("seconds", "words"), [(0.4, "0 s"), (99, "99 s"), (119, "2 min"), (3599, "1 h 0 min"), (6720, "1 h 52 min")]
)
def test_durations_in_words(seconds: float, words: str) -> None:
    assert duration(seconds) == words
