"""`dvc repro` from nothing on a tiny model, experiments on it, and one of them in a fresh clone, weights included."""

import json
import shutil
import sys
from pathlib import Path

import pandas as pd
import pytest

from lopside.examples import read_examples
from lopside.history import read_history
from tests.projects import TINY, commit, metrics, new_project, ran, run, write_splits


def lopside(*arguments: str, folder: Path) -> str:
    return run(sys.executable, "-c", "from lopside.commands import main; main()", *arguments, folder=folder)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, tiny_bart: Path, preloaded: None) -> Path:
    """Such a project with a tiny random model and a handful of pairs, nothing run yet but a stand-in for `download`.

    Both tests use it, so that what the first has run need not be run again: DVC's run cache has it.
    """
    folder = tmp_path_factory.mktemp("project")
    new_project(folder, TINY)
    shutil.copytree(tiny_bart, folder / "models/docs-bart-mini", dirs_exist_ok=True)
    write_splits(folder, train=12, validation=4, test=6)
    # Stands for the download, whose own tests are elsewhere: what lies in data/splits is taken as its result.
    run("dvc", "repro", "--quiet", "machine", folder=folder)
    run("dvc", "commit", "--force", "--quiet", "download", folder=folder)
    commit(folder)
    return folder


def test_the_pipeline_from_nothing_and_experiments_on_it(project: Path) -> None:
    """One test, because each step goes on from what the one before it left."""
    everything = [
        *("export@dense", "export@pruned"),
        *("finetune@dense", "finetune@pruned", "generate@dense", "generate@pruned"),
        *("machine", "parent", "prune", "score", "time"),
    ]
    assert ran(run("dvc", "repro", folder=project)) == everything
    rouge, latency = metrics(project, "rouge"), metrics(project, "latency")
    assert {"dense", "pruned", "lead", "delta", "retained", "documents", "signature"} <= set(rouge)
    assert {"rouge2", "rouge2_low", "rouge2_high", "rouge2_p"} <= set(rouge["delta"])
    assert rouge["documents"] == 6
    assert {"dense_ms", "pruned_ms", "speedup", "speedup_low", "speedup_high"} <= set(latency["fixed"]["batch_1"])
    assert {"paper", "fixed", "natural", "parameters", "machine"} <= set(latency)

    # At 6-6 dense and pruned are the same model, trained on the same batches.
    dense, pruned = (project / f"outputs/finetune/{side}/model.safetensors" for side in ("dense", "pruned"))
    assert dense.read_bytes() == pruned.read_bytes()
    assert dense.read_bytes() != (project / "outputs/parent/model.safetensors").read_bytes()
    assert summaries(project, "dense") == summaries(project, "pruned")
    assert rouge["delta"]["rouge2"] == rouge["delta"]["rouge2_low"] == rouge["delta"]["rouge2_high"] == 0
    assert latency["parameters"]["dense"] == latency["parameters"]["pruned"]

    # All that DVC does not track is for git; nothing else lies about. A model's card is read by no stage.
    (project / "models/docs-bart-mini/README.md").write_text("What it is.\n")
    commit(project)
    assert ran(run("dvc", "repro", folder=project)) == ["machine"]
    assert run("git", "status", "--porcelain", folder=project) == ""

    # enc and dec are read by prune alone; dense stays as it is.
    before = dense.read_bytes()
    output = run("dvc", "exp", "run", "--name=shallow", "-S", "enc=6", "-S", "dec=1", folder=project)
    assert ran(output) == ["export@pruned", "finetune@pruned", "generate@pruned", "machine", "prune", "score", "time"]
    assert dense.read_bytes() == before != pruned.read_bytes()
    parameters = metrics(project, "latency")["parameters"]
    assert parameters["dense"] == latency["parameters"]["dense"] > parameters["pruned"]
    changed = json.loads(run("dvc", "metrics", "diff", "--json", folder=project))
    assert changed["metrics/latency.json"]["parameters.pruned"] == {
        "old": parameters["dense"],
        "new": parameters["pruned"],
        "diff": parameters["pruned"] - parameters["dense"],
    }
    shown = run("dvc", "exp", "show", "--csv", folder=project)
    assert "shallow" in shown
    assert "delta.rouge2" in shown
    base, other = metrics(project, "rouge")["dense"]["rouge2"], metrics(project, "rouge")["pruned"]["rouge2"]
    table = lopside("compare", "HEAD", "shallow", folder=project).splitlines()[
        2:
    ]  # at HEAD, 6-6, pruned scores what dense scores
    assert table[0].startswith(f"| HEAD | {base:.2f} |")
    assert table[1].startswith(f"| shallow | {other:.2f} |")
    drawn = json.loads(run("dvc", "plots", "show", "--json", folder=project))["data"]
    assert {"Validation loss", "Validation ROUGE-2", "ROUGE-2 against latency"} <= set(drawn)
    assert all(plot for plot in drawn.values())

    # Settings of generation leave training alone; the setting `natural` is timed as `generate` generates. (A dry run
    # looks no further than what changed itself.)
    params = (project / "params.yaml").read_text()
    (project / "params.yaml").write_text(params.replace("max_new_tokens: 6", "max_new_tokens: 5"))
    assert ran(run("dvc", "repro", "--dry", folder=project)) == [
        "generate@dense",
        "generate@pruned",
        "machine",
        "time",
    ]

    # What was run once is not run again: back at the first commit's params all comes from the run cache.
    run("git", "checkout", "--quiet", "params.yaml", folder=project)
    assert ran(run("dvc", "repro", folder=project)) == ["machine"]
    assert metrics(project, "rouge") == rouge
    assert metrics(project, "latency") == latency

    # The next test counts the experiments that it makes itself.
    run("dvc", "exp", "remove", "--quiet", "shallow", folder=project)


def summaries(project: Path, side: str) -> list[str]:
    return list(pd.read_parquet(project / f"outputs/generate/{side}.parquet")["summary"])


def test_an_experiment_goes_to_a_fresh_clone_and_there_only_times_are_measured_again(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run("dvc", "remote", "add", "--default", "store", str(tmp_path / "store"), folder=project)
    commit(project)
    run("git", "init", "--quiet", "--bare", "--initial-branch=main", str(tmp_path / "shared.git"), folder=project)
    run("git", "remote", "add", "origin", str(tmp_path / "shared.git"), folder=project)
    run("git", "push", "--quiet", "origin", "main", folder=project)

    name = f"e6-d1-importance-s0-{run('git', 'rev-parse', 'HEAD', folder=project)[:7]}"
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
