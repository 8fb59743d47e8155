"""Repositories of this pipeline with tiny settings, to run DVC in: what several tests of whole runs share."""

import json
import os
import re
import shutil
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pandas as pd
import yaml
from click.testing import CliRunner, Result

from lopside.models import BUILT_IN

ROOT = Path(__file__).parents[1]
ENVIRONMENT = os.environ | {
    "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
    "HF_HUB_OFFLINE": "1",
    "DVC_NO_ANALYTICS": "1",
    "GIT_AUTHOR_NAME": "test",
    "GIT_AUTHOR_EMAIL": "test@example.org",
    "GIT_COMMITTER_NAME": "test",
    "GIT_COMMITTER_EMAIL": "test@example.org",
}


def run(*command: str, folder: Path, libraries: Path | None = None) -> str:
    """What a command prints; it runs the code of ``folder`` (and finds ``libraries`` first), and must succeed."""
    path = os.pathsep.join(str(each) for each in (libraries, folder / "src") if each)
    environment = ENVIRONMENT | {"PYTHONPATH": path, "DVC_SITE_CACHE_DIR": str(folder / ".dvc/tmp/site")}
    done = subprocess.run(command, cwd=folder, env=environment, stdout=-1, stderr=subprocess.STDOUT, text=True)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}"
    return done.stdout


TINY = {
    "dec": 6,
    "device": "cpu",
    "train": {"dtype": "float32", "max_steps": 2, "batch_size": 4, "evaluations": 2, "evaluation_documents": 4},
    "generate": {"max_new_tokens": 6},
    "score": {"resamples": 100},
    "time": {
        "threads": 1,
        "batch_sizes": [1],
        "source_tokens": 16,
        "new_tokens": 4,
        "warmup": 0,
        "min_pairs": 6,
        "max_seconds": 0.1,
    },
}


def write_params(folder: Path, settings: dict[str, Any]) -> None:
    """The shipped params.yaml, but for these settings."""
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    for key, value in settings.items():
        params[key] = params[key] | value if isinstance(value, dict) else value
    (folder / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))


def invoke(stage: str, *arguments: str) -> Result:
    """A stage's command in this process, in the current folder."""
    return CliRunner().invoke(import_module(f"stages.{stage}").main, [*arguments])


def new_project(folder: Path, settings: dict[str, Any]) -> None:
    """A fresh git repository of this pipeline with these settings, nothing built in, nothing run or committed yet."""
    for name in ("src", "stages"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    for name in ("dvc.yaml", ".dvcignore", ".gitignore", ".dvc/config", ".dvc/.gitignore", ".dvc/plots"):
        (folder / name).parent.mkdir(exist_ok=True)
        (shutil.copytree if (ROOT / name).is_dir() else shutil.copy)(ROOT / name, folder / name)
    write_params(folder, settings)
    for name in ("data/docstrings.lock", *(f"{path}/trained_on.npy" for path in BUILT_IN.values())):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    run("git", "init", "--quiet", "--initial-branch=main", ".", folder=folder)


def write_splits(folder: Path, **sizes: int) -> None:
    """data/splits as `download` leaves it, with this many pairs a split."""
    body = "The item at this place of the list is returned. It is not copied, so that a change shows in the list."
    (folder / "data/splits").mkdir(parents=True, exist_ok=True)
    for split, size in sizes.items():
        rows = [
            {
                "id": f"{split}{number}",
                "document": f"{split} function {number} {body}",
                "body": body,
                "summary": f"Return item {number} of the {split} list.",
                "source": f"made==1.0 made:{split}{number}",
            }
            for number in range(size)
        ]
        frame = pd.DataFrame(rows, columns=["id", "document", "body", "summary", "source"]).astype(str)
        frame.to_parquet(folder / f"data/splits/{split}.parquet", index=False)
    (folder / "data/splits/provenance.json").write_text("{}\n")


def commit(folder: Path) -> None:
    run("git", "add", "--all", folder=folder)
    run("git", "commit", "--quiet", "--message=run", folder=folder)


def ran(output: str) -> list[str]:
    """The stages that DVC ran, sorted."""
    return sorted(re.findall(r"^Running stage '([^']+)'", output, re.MULTILINE))


def metrics(folder: Path, name: str) -> Any:
    return json.loads((folder / f"metrics/{name}.json").read_text())
