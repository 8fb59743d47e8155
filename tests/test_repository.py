"""What is read of dvc.yaml and dvc.lock, and of DVC's cache."""

import shutil
from pathlib import Path

import pytest

from lopside.errors import LopsideError
from lopside.repository import cache, outputs, stages_of
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


def test_the_files_of_a_folder_are_known_where_dvcs_cache_has_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DVC_SITE_CACHE_DIR", str(folder / "site"))
    from dvc.repo import Repo

    (folder / "data/splits").mkdir(parents=True)
    (folder / "data/splits/test.parquet").write_text("one")
    with Repo.init() as repo, repo.config.edit("local") as config:
        config["cache"]["dir"] = str(folder / "elsewhere")
    with Repo() as repo:
        (stage,) = repo.add("data/splits")
    md5 = stage.outs[0].hash_info.value
    stages = {"download": {"outs": [{"path": "data/splits", "md5": md5}]}, "machine": {}}
    files = {"data/splits": md5, "data/splits/test.parquet": "f97c5d29941bfb1b2fdab0874906ab82"}
    assert outputs(stages) == files
    assert (cache() / "f9/7c5d29941bfb1b2fdab0874906ab82").read_text() == "one"
    shutil.rmtree(folder / "elsewhere")
    assert outputs(stages) == {"data/splits": md5}


def test_settings_of_dvc_that_cannot_be_read_are_named(folder: Path) -> None:
    (folder / ".dvc").mkdir()
    (folder / ".dvc/config").write_text("[cache\n")
    with pytest.raises(LopsideError, match=r"^\.dvc: config file error: "):
        cache()
