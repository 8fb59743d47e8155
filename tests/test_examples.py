"""`lopside examples`, on a split and summaries of two documents."""

from pathlib import Path

import pandas as pd
import pytest
from click.testing import CliRunner

from lopside.commands import main
from lopside.splits import write_split


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with what a run leaves of two test documents."""
    monkeypatch.chdir(tmp_path)
    texts = {"document": ["f: gives a\n  number back", "g: no"], "body": ["gives", "no"], "summary": ["Number.", "No."]}
    (tmp_path / "data/splits").mkdir(parents=True)
    write_split({"id": ["b", "a"], "source": ["x", "x"], **texts}, tmp_path / "data/splits/test.parquet")
    (tmp_path / "outputs/generate").mkdir(parents=True)
    for side in ("dense", "pruned"):
        table = pd.DataFrame({"id": ["b", "a"], "summary": [f"{side} one", f"{side} two"], "tokens": [2, 2]})
        table.to_parquet(tmp_path / f"outputs/generate/{side}.parquet")
    return tmp_path


def test_the_first_documents_in_their_order(run: Path) -> None:
    result = CliRunner().invoke(main, ["examples", "--count", "1"])
    assert result.output.splitlines() == [
        "document   f: gives a number back",
        "reference  Number.",
        "dense      dense one",
        "pruned     pruned one",
    ]
    assert CliRunner().invoke(main, ["examples"]).output.count("document ") == 2


def test_what_is_missing_or_of_other_documents_is_named(run: Path) -> None:
    path = run / "outputs/generate/pruned.parquet"
    table = pd.read_parquet(path)
    table.iloc[::-1].to_parquet(path)
    result = CliRunner().invoke(main, ["examples"])
    assert result.exit_code == 1
    assert "outputs/generate/pruned.parquet: holds summaries of other documents" in result.output
    path.unlink()
    result = CliRunner().invoke(main, ["examples"])
    assert "pruned.parquet: no such file; `dvc repro generate@pruned` makes it" in result.output


def test_a_long_document_is_wrapped_beside_its_name(run: Path) -> None:
    from lopside.side_by_side import _lines

    lines = "\n".join(_lines({"document": "word " * 60})).splitlines()
    assert len(lines) > 2
    assert all(len(line) <= 100 for line in lines)
    assert all(line.startswith(" " * 10 + "word") for line in lines[1:])
