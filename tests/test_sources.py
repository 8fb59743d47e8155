import hashlib
import json
import re
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner

from lopside import sources
from lopside.docstrings import Pair, split
from lopside.errors import LopsideError
from lopside.files import sha256_of
from lopside.sources import (
    check_not_trained_on,
    fetch_wheels,
    frame_of,
    licence_of,
    make_splits,
    pairs_of,
    read_lock,
    read_wheels_at_once,
)
from lopside.splits import read_split

ROOT = Path(__file__).parents[1]
ZEROS = "0" * 64


def words(count: int, seed: str) -> str:
    """Up to 12 words of five letters that no other seed gives."""
    letters = hashlib.sha256(seed.encode()).hexdigest().translate(str.maketrans("0123456789", "ghijklmnop"))
    return " ".join(letters[start : start + 5] for start in range(0, 5 * count, 5))


def wheel(folder: Path, name: str, count: int, metadata: Sequence[str] = ("License-Expression: MIT",)) -> Path:
    """A wheel ``name`` 1.0 whose one module has ``count`` documented functions, none of them like another."""
    functions = "".join(
        f'def f{number}():\n    """Do {words(4, f"{name} {number}")} well.\n\n'
        f'    The {words(12, f"body of {name} {number}")} is of use.\n    """\n'
        for number in range(count)
    )
    path = folder / f"{name}-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for file, text in {
            f"{name}/__init__.py": functions,
            f"{name}-1.0.dist-info/METADATA": "\n".join(
                ["Metadata-Version: 2.1", f"Name: {name}", "Version: 1.0", *metadata, "", "Licence: none of the body"]
            ),
            f"{name}-1.0.dist-info/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
            f"{name}-1.0.dist-info/RECORD": "",
        }.items():
            archive.writestr(zipfile.ZipInfo(file), text)
    return path


def lock(folder: Path, *wheels: Path, **hashes: str) -> Path:
    """A list of these wheels, and of others by name and hash."""
    path = folder / "some.lock"
    pins = {each.name.split("-")[0]: sha256_of(each) for each in wheels} | hashes
    path.write_text("# a list\n\n" + "".join(f"{name}==1.0 --hash=sha256:{each}\n" for name, each in pins.items()))
    return path


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is all pip knows."""
    folder = tmp_path / "index"
    folder.mkdir()
    for name in ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


@pytest.fixture
def no_pip(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise AssertionError("pip was called")

    monkeypatch.setattr("subprocess.Popen", fail)


# Lists of wheels


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "some.lock: lists no wheel"),
        ("# nothing\n\n", "some.lock: lists no wheel"),
        (f"a==1 --hash=sha256:{ZEROS}\n\nb>=1 --hash=sha256:{ZEROS}", "some.lock, line 3: 'b>=1 --hash="),
        ("a==1", "some.lock, line 1: 'a==1' is not `name==version --hash=sha256:<64 hex digits>`"),
        ("a==1 --hash=sha256:12", "some.lock, line 1: "),
        ("-r other.lock", "some.lock, line 1: '-r other.lock' is not"),
        (f"a-b==1 --hash=sha256:{ZEROS}\nA_b==1 --hash=sha256:{ZEROS}", "some.lock, line 2: A_b==1 is listed twice"),
    ],
)
def test_a_list_that_is_none_is_refused_with_its_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "some.lock"
    path.write_text(text)

    with pytest.raises(LopsideError, match=re.escape(message)):
        read_lock(path)


def test_a_list_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(LopsideError, match=r"some\.lock: no such file"):
        fetch_wheels(tmp_path / "some.lock", tmp_path)


def test_the_lists_of_this_repository_can_be_read() -> None:
    for path in sources.BUILT_IN.values():
        pins = read_lock(ROOT / path)
        assert 40 <= len(pins) <= 60


# Fetching


def test_wheels_are_fetched_once_in_the_order_of_the_list(
    index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = wheel(index, "one", 1), wheel(index, "two", 1)
    cache = tmp_path / "cache"

    fetched = fetch_wheels(lock(tmp_path, two, one), cache)

    assert fetched == [cache / two.name, cache / one.name]
    assert [path.read_bytes() for path in fetched] == [two.read_bytes(), one.read_bytes()]
    assert sorted(path.name for path in cache.iterdir()) == [one.name, two.name]
    monkeypatch.setattr("subprocess.Popen", None)  # a second time needs no pip, so no network either
    assert fetch_wheels(lock(tmp_path, one), cache) == [cache / one.name]


def test_what_lies_in_the_cache_with_another_hash_is_fetched_again(index: Path, tmp_path: Path) -> None:
    one = wheel(index, "one", 1)
    cache = tmp_path / "cache"
    cache.mkdir()
    (cache / one.name).write_bytes(b"cut short")

    (fetched,) = fetch_wheels(lock(tmp_path, one), cache)

    assert fetched.read_bytes() == one.read_bytes()


def test_a_wheel_with_another_hash_is_named(index: Path, tmp_path: Path) -> None:
    one, two = wheel(index, "one", 1), wheel(index, "two", 1)

    with pytest.raises(LopsideError) as caught:
        fetch_wheels(lock(tmp_path, one, two=ZEROS), tmp_path / "cache")

    assert str(caught.value) == (
        f"two==1.0: the package index has another wheel: its sha256 is {sha256_of(two)}, not {ZEROS}"
    )
    assert not [path for path in (tmp_path / "cache").iterdir() if path.name != one.name]


def test_a_missing_wheel_is_named(index: Path, tmp_path: Path) -> None:
    one = wheel(index, "one", 1)

    with pytest.raises(LopsideError) as caught:
        fetch_wheels(lock(tmp_path, one, two=ZEROS), tmp_path / "cache")

    assert str(caught.value) == f"two==1.0 (sha256 {ZEROS}): the package index has no such wheel"


def test_an_index_that_cannot_be_reached_is_told_from_one_without_the_wheel(
    index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")  # nobody listens there
    monkeypatch.setenv("PIP_RETRIES", "1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")

    with pytest.raises(LopsideError) as caught:
        fetch_wheels(lock(tmp_path, two=ZEROS), tmp_path / "cache")

    message = str(caught.value)
    assert message.startswith(f"two==1.0 (sha256 {ZEROS}): cannot be fetched, as the package index cannot be reached: ")
    assert "\n" not in message


# Reading


def test_wheels_read_at_once_come_in_the_order_given(tmp_path: Path) -> None:
    small, large = wheel(tmp_path, "small", 1), wheel(tmp_path, "large", 3)

    pairs = read_wheels_at_once([small, large])

    assert [pair.source for pair in pairs] == ["small==1.0 small:f0", *(f"large==1.0 large:f{n}" for n in range(3))]


@pytest.mark.parametrize(
    ("metadata", "licence"),
    [
        (
            ["License: Long", "Classifier: License :: OSI Approved :: MIT License", "License-Expression: Apache-2.0"],
            "Apache-2.0",
        ),
        (
            [
                "License: Long",
                "Classifier: License :: OSI Approved",
                "Classifier: License :: OSI Approved :: MIT License",
            ],
            "MIT License",
        ),
        (["License: Three clauses © one", "        and more"], "Three clauses © one"),
        (["Classifier: License :: OSI Approved"], "unknown"),
    ],
)
def test_the_licence_is_the_most_exact_one_named(tmp_path: Path, metadata: list[str], licence: str) -> None:
    assert licence_of(wheel(tmp_path, "one", 0, metadata)) == licence


# Splits


def test_splits_and_where_they_come_from(tmp_path: Path, no_pip: None) -> None:
    cache = tmp_path / "cache"
    cache.mkdir()
    one, three = wheel(cache, "one", 12), wheel(cache, "three", 8, ["License: BSD"])
    folder = tmp_path / "splits"
    folder.mkdir()
    (folder / "old.parquet").touch()

    counts = make_splits(lock(tmp_path, three, one), folder, cache, sizes=(3, 4))

    assert counts == {"train": 13, "validation": 3, "test": 4}
    assert sorted(path.name for path in folder.iterdir()) == [
        "provenance.json",
        "test.parquet",
        "train.parquet",
        "validation.parquet",
    ]
    tables = {name: read_split(name, folder) for name in ("train", "validation", "test")}
    assert {name: len(table) for name, table in tables.items()} == counts
    everything = pd.concat(tables.values())
    assert list(everything) == ["id", "document", "body", "summary", "source"]
    assert everything["id"].is_unique
    assert [pair.id for pair in pairs_of(everything)] == everything["id"].tolist()
    assert (everything["document"].str.endswith(everything["body"].iloc[0])).sum() == 1

    provenance = json.loads((folder / "provenance.json").read_text())
    assert provenance["pairs"] == counts
    assert [each["distribution"] for each in provenance["distributions"]] == ["three", "one"]
    first = provenance["distributions"][0]
    assert {name: first[name] for name in ("version", "file", "sha256", "licence")} == {
        "version": "1.0",
        "file": three.name,
        "sha256": sha256_of(three),
        "licence": "BSD",
    }
    assert sum(first["pairs"].values()) == 8
    assert {name: sum(each["pairs"][name] for each in provenance["distributions"]) for name in counts} == counts
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cache", "some.lock", "splits"]

    # Again, with the list in another order: the same bytes.
    make_splits(lock(tmp_path, one, three), tmp_path / "again", cache, sizes=(3, 4))
    for name in counts:
        assert (tmp_path / f"again/{name}.parquet").read_bytes() == (folder / f"{name}.parquet").read_bytes()


def test_a_split_without_pairs_is_refused_and_nothing_written(tmp_path: Path, no_pip: None) -> None:
    cache = tmp_path / "cache"
    cache.mkdir()
    one = wheel(cache, "one", 2)

    with pytest.raises(LopsideError, match=r"some\.lock: its wheels leave no pair for the train split"):
        make_splits(lock(tmp_path, one), tmp_path / "splits", cache)

    assert not (tmp_path / "splits").exists()


def test_the_download_stops_where_a_model_was_trained_on_the_test_pairs(tmp_path: Path, no_pip: None) -> None:
    cache = tmp_path / "cache"
    cache.mkdir()
    path = lock(tmp_path, wheel(cache, "one", 12))
    folder, model = tmp_path / "splits", tmp_path / "model"
    make_splits(path, folder, cache, sizes=(2, 3))
    model.mkdir()
    write_ids(model, read_split("train", folder)["id"].tolist())
    make_splits(path, folder, cache, trained=[model], sizes=(2, 3))

    write_ids(model, [*read_split("train", folder)["id"], read_split("test", folder)["id"][1]])
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    with pytest.raises(LopsideError, match="1 of the 3 pairs of the test split"):
        make_splits(path, folder, cache, trained=[model], sizes=(2, 3))

    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before


def write_ids(model: Path, ids: Sequence[str]) -> None:
    np.save(model / "trained_on.npy", np.sort(np.array([int(each, 16) for each in ids], dtype=np.uint64)))


def test_a_model_that_saw_a_held_out_pair_is_refused(tmp_path: Path) -> None:
    write_ids(tmp_path, ["ffffffffffffffff", "8000000000000001", "0000000000000007"])

    check_not_trained_on(
        {"validation": ["8000000000000002"], "test": ["fffffffffffffffe", "0000000000000006"]}, tmp_path
    )
    with pytest.raises(LopsideError, match="2 of the 3 pairs of the test split, 8000000000000001 for one"):
        check_not_trained_on(
            {"validation": [], "test": ["8000000000000001", "0000000000000008", "0000000000000007"]}, tmp_path
        )


def test_a_model_that_does_not_say_what_it_was_trained_on_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LopsideError, match=r"trained_on\.npy: no such file"):
        check_not_trained_on({}, tmp_path)
    (tmp_path / "trained_on.npy").touch()
    with pytest.raises(LopsideError, match=r"trained_on\.npy: cannot be read as an array"):
        check_not_trained_on({}, tmp_path)


def test_pairs_become_a_table_and_pairs_again() -> None:
    pairs = [Pair("name: a b", "a b", "A.", "one==1 a"), Pair("name: c d", "c d", "C.", "one==1 c")]

    table = frame_of(pairs)

    assert table["id"].tolist() == [pair.id for pair in pairs]
    assert pairs_of(table) == pairs
    assert pairs_of(frame_of([])) == []


# The stage


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with this repository's params.yaml and a list of one small wheel."""
    (tmp_path / "data/.wheels").mkdir(parents=True)
    (tmp_path / "params.yaml").write_text((ROOT / "params.yaml").read_text())
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_stage_says_what_is_wrong_in_one_line(project: Path, index: Path) -> None:
    from stages.download import main

    lock(project / "data", one=ZEROS).rename(project / "data/docstrings.lock")

    result = CliRunner().invoke(main, [])

    assert result.exit_code == 1
    assert result.stderr.splitlines()[-1] == f"error: one==1.0 (sha256 {ZEROS}): the package index has no such wheel"
    assert not (project / "data/splits").exists()


def test_the_stage_writes_the_splits(project: Path, no_pip: None, monkeypatch: pytest.MonkeyPatch) -> None:
    from stages.download import main

    monkeypatch.setattr(sources, "split", lambda pairs, *_: split(pairs, 1, 2))
    lock(project / "data", wheel(project / "data/.wheels", "one", 6)).rename(project / "data/docstrings.lock")

    result = CliRunner().invoke(main, [])

    assert result.exit_code == 0, result.output
    assert result.stdout == "data/splits: 3 train, 1 validation, 2 test\n"
    assert len(read_split("test", project / "data/splits")) == 2
