"""The whole round on a tiny model: a sweep here, its experiment in a fresh clone, weights included."""

import json
import shutil
import sys
from pathlib import Path

import pytest

from lopside.examples import read_examples
from lopside.history import read_history
from tests.test_pipeline import TINY, commit, metrics, new_project, ran, run, write_splits


def lopside(*arguments: str, folder: Path) -> str:
    return run(sys.executable, "-c", "from lopside.commands import main; main()", *arguments, folder=folder)


def test_an_experiment_goes_to_a_fresh_clone_and_there_only_times_are_measured_again(
    tmp_path: Path, tiny_bart: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = tmp_path / "project"
    project.mkdir()
    new_project(project, TINY)
    shutil.copytree(tiny_bart, project / "models/docs-bart-mini", dirs_exist_ok=True)
    write_splits(project, train=12, validation=4, test=6)
    run("dvc", "repro", "--quiet", "machine", folder=project)
    run("dvc", "commit", "--force", "--quiet", "download", folder=project)  # stands for the download
    run("dvc", "remote", "add", "--default", "store", str(tmp_path / "store"), folder=project)
    commit(project)
    run("git", "init", "--quiet", "--bare", "--initial-branch=main", str(tmp_path / "shared.git"), folder=project)
    run("git", "remote", "add", "origin", str(tmp_path / "shared.git"), folder=project)
    run("git", "push", "--quiet", "origin", "main", folder=project)

    name = f"e6-d1-uniform-s0-{run('git', 'rev-parse', 'HEAD', folder=project)[:7]}"
    assert "1 of 1 cells are done" in lopside("sweep", "6-1", folder=project)
    lopside("report", folder=project)
    (row,) = read_history(project / "metrics/history.csv")
    assert (row.experiment, row.documents) == (name, 6)
    monkeypatch.chdir(project)
    examples = read_examples(row)
    assert len(examples) == 3
    assert not isinstance(examples, str)
    assert all(example.document.startswith("test function ") for example in examples)
    assert f"Of {name}, drawn at random" in (project / "report/report.md").read_text()

    run("dvc", "push", "--quiet", folder=project)
    run("dvc", "exp", "push", "--quiet", "origin", name, folder=project)
    clone = tmp_path / "clone"
    run("git", "clone", "--quiet", str(tmp_path / "shared.git"), str(clone), folder=tmp_path)
    run("dvc", "exp", "pull", "--quiet", "origin", name, folder=clone)
    run("dvc", "exp", "apply", name, folder=clone)
    weights = "outputs/finetune/pruned/model.safetensors"
    assert (clone / weights).read_bytes() == (project / ".dvc/tmp/sweep/copy" / weights).read_bytes()
    assert metrics(clone, "rouge")["delta"]["rouge2"] == row.figure("delta.rouge2")
    lopside("report", folder=clone)
    assert (clone / "metrics/history.csv").read_bytes() == (project / "metrics/history.csv").read_bytes()

    # The same machine: nothing is measured again. Another one, as far as a library's version tells: times alone.
    assert ran(run("dvc", "repro", folder=clone)) == ["machine"]
    other = tmp_path / "other/accelerate-99.0.dist-info"
    other.mkdir(parents=True)
    (other / "METADATA").write_text("Metadata-Version: 2.1\nName: accelerate\nVersion: 99.0\n")
    output = run("dvc", "repro", folder=clone, libraries=other.parent)
    assert json.loads((clone / "metrics/machine.json").read_text())["versions"]["accelerate"] == "99.0"
    assert ran(output) == ["machine", "time"]
