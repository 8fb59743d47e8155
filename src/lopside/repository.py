"""What git holds of this repository: files at any revision, and DVC's experiments, which are commits under refs/exps.

Names of files are relative to the current folder, which is the root of the project.
"""

from __future__ import annotations

import json
import math
import re
import subprocess
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

from lopside.errors import LopsideError

ROUGE, LATENCY, PARAMS, LOCK = "metrics/rouge.json", "metrics/latency.json", "params.yaml", "dvc.lock"

EXPERIMENT = re.compile(r"refs/exps/([0-9a-f]{2})/([0-9a-f]{38})/([^/]+)")
"""Where DVC keeps an experiment: the commit it was run on, in two parts, and its name."""

SHORT = 7
"""Hexadecimal digits of a short revision. Git's own shortest grows with the repository, and names must not."""


@dataclass(frozen=True)
class Experiment:
    """A DVC experiment: a commit on top of the one that it was run on."""

    name: str
    baseline: str
    """The commit it was run on, 40 hexadecimal digits."""
    commit: str
    """Its own commit."""
    date: str
    """The day it ended, by UTC, as YYYY-MM-DD."""


def git(*arguments: str, folder: str | Path = ".") -> str | None:
    """What git prints; None where it fails, or where there is no git."""
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, encoding="utf-8", errors="replace"
        )
    except FileNotFoundError:
        return None
    return done.stdout if done.returncode == 0 else None


def head() -> str:
    """The commit that is checked out, 40 hexadecimal digits; HEAD may be detached.

    Raises LopsideError where there is no git, no repository or no commit.
    """
    if git("rev-parse", "--git-dir") is None:
        raise LopsideError("git: this folder is in no git repository, and experiments are commits; see `git init`")
    commit = git("rev-parse", "--verify", "--quiet", "HEAD^{commit}")
    if commit is None:
        raise LopsideError("git: nothing is committed here yet, and an experiment is a commit on top of another")
    return commit.strip()


def experiments(name: str = "*") -> list[Experiment]:
    """All experiments of this repository, or those of one name, the oldest first; none where there is no git."""
    form = "--format=%(refname) %(objectname) %(committerdate:unix)"
    listed = git("for-each-ref", "--sort=committerdate", form, f"refs/exps/*/*/{name}")
    found = []
    for line in (listed or "").splitlines():
        reference, commit, seconds = line.split(" ")
        if match := EXPERIMENT.fullmatch(reference):
            day = datetime.fromtimestamp(int(seconds), UTC).date().isoformat()
            found.append(Experiment(match[3], match[1] + match[2], commit, day))
    return found


def commit_of(revision: str) -> str:
    """The commit of a git revision or, by its name, of an experiment. Raises LopsideError where that is not one."""
    commit = git("rev-parse", "--verify", "--quiet", f"{revision}^{{commit}}")
    found = [commit.strip()] if commit else [experiment.commit for experiment in experiments(revision)]
    if len(found) != 1:
        many = "several experiments have this name" if found else "there is no such git revision or experiment"
        raise LopsideError(f"{revision}: {many}; see `git log` and `dvc exp list --all-commits`")
    return found[0]


def read_text(name: str, revision: str | None = None) -> str:
    """A file at a revision; None reads it as it lies here now. Raises LopsideError where it is not there."""
    if revision is None and Path(name).is_file():
        try:
            return Path(name).read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise LopsideError(f"{name}: cannot be read: it is not UTF-8 text") from error
    if revision is not None:
        shown = git("show", f"{commit_of(revision)}:./{name}")
        if shown is not None:
            return shown
    raise LopsideError(f"{name} of {revision or 'workspace'}: there is no such file")


def read_mapping(name: str, revision: str | None = None) -> dict[str, Any]:
    """A JSON or YAML file at a revision, as :func:`read_text`. Raises LopsideError where it holds no mapping."""
    text, where = read_text(name, revision), revision or "workspace"
    try:
        value = json.loads(text) if name.endswith(".json") else yaml.safe_load(text)
    except (json.JSONDecodeError, yaml.YAMLError) as error:
        raise LopsideError(f"{name} of {where}: cannot be read") from error
    if not isinstance(value, dict):
        raise LopsideError(f"{name} of {where}: holds no figures")
    return value


def stages_of(name: str, revision: str | None = None) -> dict[str, dict[str, Any]]:
    """The stages of dvc.yaml or dvc.lock at a revision, as :func:`read_text`. Raises LopsideError where it has none."""
    stages = read_mapping(name, revision).get("stages")
    if not isinstance(stages, dict) or not all(isinstance(stage, dict) for stage in stages.values()):
        raise LopsideError(f"{name} of {revision or 'workspace'}: stages: is not a mapping of names to stages")
    return stages


def outputs(stages: Mapping[str, Mapping[str, Any]]) -> dict[str, str | None]:
    """Path -> hash of what the stages of a dvc.lock wrote, and of the files of folders whose listing DVC's cache has.

    Raises LopsideError as :func:`cache`.
    """
    written = {out["path"]: out.get("md5") for stage in stages.values() for out in stage.get("outs") or ()}
    folders = {path: md5 for path, md5 in written.items() if md5 and md5.endswith(".dir")}
    place = cache() if folders else Path()
    for path, md5 in folders.items():
        with suppress(OSError, ValueError):  # where it is not there, or no listing
            files = json.loads((place / md5[:2] / md5[2:]).read_text(encoding="utf-8"))
            written |= {f"{path}/{file['relpath']}": file["md5"] for file in files}
    return written


def cache_folder() -> Path:
    """The folder that DVC's cache is in here. Raises LopsideError where DVC's settings cannot be read."""
    from dvc.config import Config, ConfigError

    try:
        return Path(Config(".dvc")["cache"].get("dir", ".dvc/cache"))
    except ConfigError as error:
        raise LopsideError(f".dvc: {error}") from error


def cache() -> Path:
    """The folder of the files in it: one lies where its hash says, split after two digits.

    Raises LopsideError where DVC's settings cannot be read.
    """
    return cache_folder() / "files/md5"


def leaf(tree: Any, key: str, where: str) -> float:
    """A figure of a nested mapping by its dotted key. Raises LopsideError, which names ``where``, if there is none."""
    for part in key.split("."):
        tree = tree.get(part) if isinstance(tree, dict) else None
    if not isinstance(tree, int | float) or not math.isfinite(tree):
        raise LopsideError(f"{where}: there is no figure {key}")
    return tree
