"""The pipeline on a user's own data and model: files here, up to where nothing knows of them any more, and a hub."""

import io
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from lopside.params import leaf_keys
from tests import projects
from tests.hub_server import Server, serve
from tests.projects import ROOT, TINY, commit, invoke, metrics, new_project, ran, run

TOKEN = "hf_secretsecretsecret"


def articles(count: int) -> list[dict[str, str]]:
    return [
        {
            "headline": f"Day {number} on the river",
            "story": f"The river rose on day {number}. Nobody slept, and the school stayed shut until noon.",
            "brief": f"River rose on day {number}.",
        }
        for number in range(count)
    ]


def run_the_other_stages(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From `prune` on no stage knows where model and data come from: `score` and what it needs, in this process."""
    monkeypatch.chdir(project)
    for stage in ("finetune dense", "finetune pruned", "export pruned", "generate dense", "generate pruned", "score"):
        done = invoke(*stage.split())
        assert done.exit_code == 0, (stage, done.output, done.exception)


@pytest.mark.usefixtures("threads_as_before", "preloaded")
def test_files_and_a_model_of_ones_own(tmp_path: Path, tiny_bart: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    project = tmp_path / "project"
    project.mkdir()
    new_project(project, TINY)
    mine = tmp_path / "mine.jsonl"  # outside the repository
    mine.write_text("".join(json.dumps(article) + "\n" for article in articles(60)))
    shutil.copytree(tiny_bart, project / "mine/bart")
    shutil.copy(tiny_bart / "config.json", project / "models/docs-bart-mini")  # DVC wants it to be there
    places = ["-S", f"dataset={mine}", "-S", "model=./mine/bart"]
    columns = ["-S", "data.columns.document=story", "-S", "data.columns.summary=brief", "-S", "data.limits.test=4"]
    commit(project)

    output = run("dvc", "exp", "run", *places, *columns, "prune", folder=project)
    assert ran(output) == ["download", "machine", "parent", "prune"]
    assert "columns: document from story, summary from brief" in output
    assert len(pd.read_parquet(project / "data/splits/test.parquet")) == 4
    assert json.loads((project / "outputs/parent_origin.json").read_text()) == {"model": "./mine/bart"}
    commit(project)
    assert ran(run("dvc", "repro", "prune", folder=project)) == ["machine"]

    # A changed file is seen, a changed model likewise, each by what depends on it.
    with mine.open("a") as file:
        file.write(json.dumps({"story": "Late.", "brief": 3}) + "\n")
    with pytest.raises(AssertionError, match=r"error: mine.jsonl, line 61: brief is not text but int"):
        run("dvc", "repro", "download", folder=project)
    mine.write_text("".join(json.dumps(article) + "\n" for article in articles(61)))
    assert ran(run("dvc", "repro", "download", folder=project)) == ["download", "machine"]
    generation = project / "mine/bart/generation_config.json"
    generation.write_text(json.dumps(json.loads(generation.read_text()) | {"max_length": 99}))
    assert ran(run("dvc", "repro", "prune", folder=project)) == ["machine", "parent", "prune"]

    run_the_other_stages(project, monkeypatch)
    assert metrics(project, "rouge")["documents"] == 4
    assert 'prefix:""|source_tokens:128|new_tokens:6' in metrics(project, "rouge")["signature"]


@pytest.fixture
def server(tmp_path: Path, tiny_t5: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A private hub with a model like flan-t5-small and a set like cnn_dailymail, and an environment that uses it."""
    with serve() as running:
        running.token = TOKEN
        model = running.repository("model", "google/flan-t5-small")
        model.private = True
        model.commit({path.name: path.read_bytes() for path in tiny_t5.iterdir()})
        news = running.repository("dataset", "abisee/cnn_dailymail")
        news.private = True
        files: dict[str, bytes] = {}
        for start, count, split in ((0, 12, "train"), (20, 4, "validation"), (30, 6, "test")):
            rows = pd.DataFrame(articles(40)[start : start + count])
            rows = rows.rename(columns={"story": "article", "brief": "highlights", "headline": "id"})
            buffer = io.BytesIO()
            rows.to_parquet(buffer, index=False)
            files[f"3.0.0/{split}-00000-of-00001.parquet"] = buffer.getvalue()
        news.commit(files)
        settings = {"HF_ENDPOINT": running.url, "HF_TOKEN": TOKEN, "HF_HOME": str(tmp_path / "home")}
        settings |= {"HF_HUB_OFFLINE": "0", "no_proxy": "127.0.0.1,localhost", "NO_PROXY": "127.0.0.1,localhost"}
        monkeypatch.setattr(projects, "ENVIRONMENT", projects.ENVIRONMENT | settings)
        yield running


@pytest.mark.usefixtures("threads_as_before", "preloaded")
def test_a_model_and_a_data_set_of_a_hub(tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    project = tmp_path / "project"
    project.mkdir()
    settings: dict[str, Any] = TINY | {"data": {"max_source_tokens": 48}}
    new_project(project, settings)
    commit(project)
    cell = ["-S", "model=flan-t5-small", "-S", "dataset=cnn_dailymail", "-S", "enc=6", "-S", "dec=1"]

    output = run("dvc", "exp", "run", *cell, "-S", "keep.strategy=last", "prune", folder=project)

    assert ran(output) == ["download", "machine", "parent", "prune"]
    provenance = json.loads((project / "data/splits/provenance.json").read_text())
    assert list(server.repositories["datasets/abisee/cnn_dailymail"].commits) == [provenance["commit"]]
    origin = json.loads((project / "outputs/parent_origin.json").read_text())
    assert list(server.repositories["models/google/flan-t5-small"].commits) == [origin["commit"]]
    assert TOKEN not in output
    told = [path for path in tmp_path.rglob("*") if path.is_file() and TOKEN.encode() in path.read_bytes()]
    assert told == []

    # All of it again without a network, from huggingface_hub's cache.
    offline = projects.ENVIRONMENT | {"HF_HUB_OFFLINE": "1", "HF_ENDPOINT": "http://127.0.0.1:9"}
    monkeypatch.setattr(projects, "ENVIRONMENT", offline)
    assert ran(run("dvc", "repro", "--force", "--single-item", "download", "parent", folder=project)) == [
        "download",
        "parent",
    ]
    assert json.loads((project / "data/splits/provenance.json").read_text()) == provenance

    run_the_other_stages(project, monkeypatch)
    assert 'prefix:"summarize: "|source_tokens:48' in metrics(project, "rouge")["signature"]
    assert metrics(project, "rouge")["documents"] == 6


def test_the_docs_set_known_keys_and_have_the_papers_setting() -> None:
    texts = [ROOT / "README.md", *ROOT.glob("docs/*.md"), *ROOT.glob("recipes/*.sh")]
    settings = [each for text in texts for each in re.findall(r"-S ([a-z_.]+)=(\S*)", text.read_text())]
    assert {key for key, _ in settings} <= set(leaf_keys())
    paper = {"keep.strategy": "published", "parent.train": "true", "train.batch_size": "64", "train.epochs": "3"}
    paper |= {"model": "flan-t5-small", "dataset": "cnn_dailymail", "train.learning_rate": "1e-4"}
    assert set(paper.items()) <= set(settings)
