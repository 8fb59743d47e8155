"""What is read of dvc.yaml and dvc.lock."""

from pathlib import Path

import pytest

from lopside.errors import LopsideError
from lopside.repository import stages_of
from lopside.sweep import _inputs
from tests.projects import commit, run


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A git repository to be in."""
    monkeypatch.chdir(tmp_path)
    run("git", "init", "--quiet", ".", folder=tmp_path)
    return tmp_path


@pytest.mark.parametrize("text", ["stages:\n", "stages: [machine]\n", "stages: {machine: }\n", "plots: []\n"])
def test_stages_that_are_none_are_named(folder: Path, text: str) -> None:
    for name in ("dvc.yaml", "dvc.lock"):
        (folder / name).write_text(text)
    commit(folder)
    with pytest.raises(LopsideError, match=r"^dvc\.yaml of workspace: stages: is not a mapping of names to stages$"):
        _inputs()
    with pytest.raises(LopsideError, match=r"^dvc\.lock of HEAD: stages: is not a mapping of names to stages$"):
        stages_of("dvc.lock", "HEAD")
