"""The recipe that makes a data set of the package aclsum; the package here is made up, of the same layout."""

import json
import zipfile
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from lopside.errors import LopsideError
from lopside.files import sha256_of
from lopside.params import ColumnParams
from lopside.splits import read_split
from lopside.tables import make_tables
from recipes.aclsum import text


def paper(number: int) -> dict[str, Any]:
    return {
        "id": f"P{number}",
        "title": f"Parsing {number} rivers",
        "summary": {
            "outcome": f"Outcome {number}.",
            "challenge": f"Challenge {number}.",
            "approach": f"Approach {number}.",
        },
        "sentences": {
            "conclusion": [f"It works {number} times ."],
            "abstract": [f"Rivers are parsed {number} times .", "So are lakes ."],
            "introduction": [f"Earlier work had {number} rivers ."],
        },
        "highlights": {},
    }


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to be in, where the wheel needs no fetching; papers 0 to 3, 4 and 5 to 6 are the three splits."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(text, "HERE", tmp_path)
    monkeypatch.setattr("subprocess.Popen", None)  # no pip
    wheel = tmp_path / "data/.wheels/aclsum-0.1.2-py3-none-any.whl"
    wheel.parent.mkdir(parents=True)
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("aclsum/__init__.py", "raise ImportError('is never imported')")
        for name, numbers in {"train": range(4), "val": range(4, 5), "test": range(5, 7)}.items():
            archive.writestr(f"aclsum/dataset/{name}.jsonl", "".join(json.dumps(paper(n)) + "\n" for n in numbers))
    (tmp_path / "wheels.lock").write_text(f"aclsum==0.1.2 --hash=sha256:{sha256_of(wheel)}\n")
    return tmp_path


def test_a_pair_is_the_whole_paper_and_its_three_summaries_in_order() -> None:
    body = "Rivers are parsed 7 times . So are lakes . Earlier work had 7 rivers . It works 7 times ."
    assert text.pair(paper(7)) == {
        "id": "P7",
        "document": f"Parsing 7 rivers: {body}",
        "body": body,
        "summary": "Challenge 7. Approach 7. Outcome 7.",
        "challenge": "Challenge 7.",
        "approach": "Approach 7.",
        "outcome": "Outcome 7.",
    }


def test_the_splits_are_the_authors_and_a_data_set_for_the_pipeline(package: Path) -> None:
    result = CliRunner().invoke(text.main, ["--out", "splits"], catch_exceptions=False)
    assert (result.exit_code, result.stdout) == (0, "splits: 4 train, 1 validation, 2 test\n")
    columns = ColumnParams(document="", summary="outcome", body="body", id="")
    assert make_tables("./splits", columns=columns, folder=package / "read") == {
        "train": 4,
        "validation": 1,
        "test": 2,
    }
    test = read_split("test", package / "read")
    assert test["id"].tolist() == ["P5", "P6"]
    assert test["summary"].tolist() == ["Outcome 5.", "Outcome 6."]
    assert test["document"][0] == f"Parsing 5 rivers: {test['body'][0]}"


def test_what_cannot_be_fetched_is_one_line_and_nothing_is_written(
    package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(lock: Path) -> list[Path]:
        raise LopsideError("aclsum==0.1.2: the package index has no such wheel")

    monkeypatch.setattr(text, "fetch_wheels", missing)
    result = CliRunner().invoke(text.main, ["--out", "splits"])
    assert (result.exit_code, result.stderr) == (1, "Error: aclsum==0.1.2: the package index has no such wheel\n")
    assert not (package / "splits").exists()
