"""How a split is read, and what is said of one that cannot be."""

from pathlib import Path

import pandas as pd
import pytest

from lopside.errors import LopsideError
from lopside.splits import COLUMNS, read_split


def write(folder: Path, *rows: tuple[str, ...], columns: tuple[str, ...] = COLUMNS) -> None:
    pd.DataFrame(rows, columns=list(columns), dtype=str).to_parquet(folder / "test.parquet")


def test_a_split_is_read_in_its_order_without_other_columns(tmp_path: Path) -> None:
    write(tmp_path, ("b", "n: x", "x", "X.", "one", "?"), ("a", "n: y", "y", "Y.", "two", "?"), columns=(*COLUMNS, "z"))
    table = read_split("test", tmp_path)
    assert tuple(table) == COLUMNS
    assert table["id"].tolist() == ["b", "a"]


def test_a_split_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(LopsideError, match=r"no split 'dev'. Allowed: train, validation, test"):
        read_split("dev", tmp_path)
    with pytest.raises(LopsideError, match=r"test\.parquet: no such file; `dvc repro download` makes it"):
        read_split("test", tmp_path)
    (tmp_path / "test.parquet").write_text("no Parquet")
    with pytest.raises(LopsideError, match=r"test\.parquet: cannot be read as Parquet"):
        read_split("test", tmp_path)
    write(tmp_path)
    with pytest.raises(LopsideError, match=r"test\.parquet: the split has no pair"):
        read_split("test", tmp_path)
    write(tmp_path, ("1", "a"), columns=("id", "summary"))
    with pytest.raises(LopsideError, match=r"test\.parquet: has no column document, body, source"):
        read_split("test", tmp_path)
