"""Own data: how files become splits, and what is said of a row or file that cannot be used."""

import csv
import gzip
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lopside.errors import LopsideError
from lopside.params import ColumnParams, LimitParams
from lopside.splits import SPLITS, read_split, sample
from lopside.tables import HELD_OUT, LONGEST, find_splits, make_tables, own_paths

NO_COLUMNS = ColumnParams("", "", "", "")


def rows(count: int, start: int = 0) -> list[dict[str, Any]]:
    return [{"document": f"The river rose on day {n}.", "summary": f"Day {n}."} for n in range(start, start + count)]


def write_jsonl(path: Path, items: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(item) + "\n" for item in items), encoding="utf-8")
    return path


def write_csv(path: Path, items: list[dict[str, Any]]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(items[0]))
        writer.writeheader()
        writer.writerows(items)
    return path


def make(folder: Path, name: Path, **settings: Any) -> dict[str, pd.DataFrame]:
    make_tables(str(name), folder=folder / "splits", **settings)
    return {split: read_split(split, folder / "splits") for split in SPLITS}


def provenance(folder: Path) -> Any:
    return json.loads((folder / "splits/provenance.json").read_text())


# One file


def test_the_same_pairs_come_from_every_kind_of_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    items = rows(50)
    write_jsonl(tmp_path / "a.jsonl", items)
    write_csv(tmp_path / "b.csv", items)
    pd.DataFrame(items).to_parquet(tmp_path / "c.parquet")
    for name in ("a.jsonl", "b.csv", "c.parquet"):
        (tmp_path / f"{name}.gz").write_bytes(gzip.compress((tmp_path / name).read_bytes()))
    read = [make(tmp_path, path) for path in sorted(tmp_path.glob("?.*"))]
    assert len(read) == 6
    for parts in read:
        for split in SPLITS:
            assert parts[split].drop(columns="source").equals(read[0][split].drop(columns="source"))
    assert sorted(text for split in SPLITS for text in read[0][split]["document"]) == sorted(
        item["document"] for item in items
    )
    said = capsys.readouterr().out
    assert "columns: document from document, summary from summary\n" in said
    assert "\nvalidation and test: split off by a hash of each document, 10% each\n" in said
    assert provenance(tmp_path)["split_off"] == ["validation", "test"]
    assert read[0]["test"]["id"].str.fullmatch("[0-9a-f]{16}").all()


def test_equal_documents_stay_together_and_more_rows_move_none(tmp_path: Path) -> None:
    items = rows(200)
    again = [{"document": item["document"].upper().replace(" ", "  "), "summary": "Again."} for item in items]
    parts = make(tmp_path, write_jsonl(tmp_path / "a.jsonl", items + again))
    families = {split: set(parts[split]["document"].str.casefold().str.split().str.join(" ")) for split in SPLITS}
    assert sum(map(len, families.values())) == 200
    for split in ("validation", "test"):
        assert abs(len(families[split]) / 200 - HELD_OUT) < 0.08
    more = make(tmp_path, write_jsonl(tmp_path / "a.jsonl", rows(100, 1000) + items))
    for split in SPLITS:
        assert families[split] >= set(more[split]["document"].str.casefold()) & set().union(*families.values())


def test_the_same_pair_twice_has_two_ids(tmp_path: Path) -> None:
    parts = make(tmp_path, write_jsonl(tmp_path / "a.jsonl", rows(40) * 2))
    ids = [each for split in SPLITS for each in parts[split]["id"]]
    assert len(set(ids)) == 80
    assert sum(each.endswith("-2") for each in ids) == 40


def test_too_few_pairs_for_three_splits_are_refused(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", rows(1))
    with pytest.raises(LopsideError, match=r"a.jsonl: no pair is left for the (validation|train) split"):
        make(tmp_path, path)
    assert not (tmp_path / "splits").exists()


# Folders


def test_a_folder_keeps_its_own_splits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "mine"
    write_jsonl(folder / "train.jsonl", rows(5))
    write_jsonl(folder / "dev.jsonl", rows(2, 10))
    write_jsonl(folder / "test.jsonl", rows(3, 4))  # day 4 is in train too
    (folder / "README.md").write_text("x")
    parts = make(tmp_path, folder)
    assert {split: len(parts[split]) for split in SPLITS} == {"train": 5, "validation": 2, "test": 3}
    assert parts["test"]["source"].tolist() == ["test.jsonl:1", "test.jsonl:2", "test.jsonl:3"]
    assert provenance(tmp_path)["documents_also_in_train"] == {"validation": 0, "test": 1}
    assert "beware: 1 of the 3 test documents are in train too" in capsys.readouterr().out
    assert own_paths(str(folder)) == [folder / name for name in ("dev.jsonl", "test.jsonl", "train.jsonl")]


def test_a_split_that_a_folder_lacks_is_taken_from_train(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "mine/train.jsonl", rows(60))
    write_jsonl(tmp_path / "mine/test.jsonl", rows(3, 100))
    parts = make(tmp_path, tmp_path / "mine")
    assert len(parts["test"]) == 3
    assert len(parts["train"]) + len(parts["validation"]) == 60
    assert 0 < len(parts["validation"]) < 20
    assert provenance(tmp_path)["split_off"] == ["validation"]


@pytest.mark.parametrize(
    ("names", "config", "found"),
    [
        (["a.csv"], "", {"": ["a.csv"]}),
        (["test.csv", "train.csv", "ca_test.csv"], "", {"train": ["train.csv"], "test": ["test.csv"]}),
        (["x/train-1.parquet", "x/train-0.parquet"], "", {"train": ["x/train-0.parquet", "x/train-1.parquet"]}),
        (["default/partial-train/0.parquet", "README.md"], "", {"train": ["default/partial-train/0.parquet"]}),
        (["a/train.csv", "b/train.csv"], "b", {"train": ["b/train.csv"]}),
    ],
)
def test_files_are_told_by_their_names(names: list[str], config: str, found: dict[str, list[str]]) -> None:
    assert find_splits(names, "dataset: it", config) == found


@pytest.mark.parametrize(
    ("names", "config", "message"),
    [
        ([], "", "dataset: it: has no train, validation or test file in .jsonl, .csv or .parquet"),
        (["a.csv", "b.csv"], "", "dataset: it: has no train, .*; it has a.csv, b.csv"),
        (["a/train.csv", "b/train.csv"], "", "dataset: it: files lie in several folders: a, b; choose .*data.config"),
        (["a/train.csv"], "c", "data.config: 'c': dataset: it has no such folder. Allowed: a"),
        (["train.csv", "train.jsonl"], "", "there are train files of several kinds.*: train.csv, train.jsonl"),
        (["test.csv"], "", "dataset: it: has no train file; it has test.csv"),
    ],
)
def test_files_that_are_not_clear_are_listed(names: list[str], config: str, message: str) -> None:
    with pytest.raises(LopsideError, match=message):
        find_splits(names, "dataset: it", config)


# Columns


@pytest.mark.parametrize(
    ("columns", "given", "message"),
    [
        (["text"], {}, "data.columns.summary: it is not clear which column it is; a.csv has the columns text"),
        (
            ["text", "article", "summary"],
            {},
            "data.columns.document: several columns could be it; .* text, article, summ",
        ),
        (["question", "answer"], {}, "data.columns.document: it is not clear.*-S data.columns.document=NAME"),
        (["text", "summary"], {"document": "txt"}, "data.columns.document: there is no column txt; a.csv has the col"),
        (["text", "summary"], {"document": "summary", "summary": "summary"}, "document and summary are both summary"),
        (["text", "text", "summary"], {}, "a.csv: its header has the column text twice"),
    ],
)
def test_columns_that_are_not_clear_are_listed(
    tmp_path: Path, columns: list[str], given: dict[str, str], message: str
) -> None:
    (tmp_path / "a.csv").write_text(",".join(columns) + "\n" + ",".join("abc"[: len(columns)]) + "\n")
    with pytest.raises(LopsideError, match=message):
        make(tmp_path, tmp_path / "a.csv", columns=ColumnParams(**{**vars(NO_COLUMNS), **given}))


def test_columns_are_taken_as_named(tmp_path: Path) -> None:
    items = [
        {"id": number, "q": f"Title {number}: the rest {number}.", "rest": f"the rest {number}.", "a": f"A {number}."}
        for number in range(50)
    ]
    path = write_jsonl(tmp_path / "a.jsonl", items)
    parts = make(tmp_path, path, columns=ColumnParams("q", "a", "rest", ""))
    train = parts["train"]
    assert [
        document.endswith(body) and len(body) < len(document)
        for document, body in zip(train["document"], train["body"], strict=True)
    ] == [True] * len(train)
    assert set(train["id"]) <= {str(number) for number in range(50)}
    parts = make(tmp_path, path, columns=ColumnParams("q", "a", "", "-"))
    assert parts["train"]["id"].str.fullmatch("[0-9a-f]{16}").all()
    with pytest.raises(LopsideError, match=r"a.jsonl, line 1: q does not end in a"):
        make(tmp_path, path, columns=ColumnParams("q", "rest", "a", ""))


# Bad rows and files

GOOD = '{"document": "The river %s.", "summary": "River."}'


def lines(*bad: bytes) -> bytes:
    """A hundred good lines, the bad ones behind the first two."""
    good = [(GOOD % number).encode() for number in range(100)]
    return b"\n".join([*good[:2], *bad, *good[2:]]) + b"\n"


BAD_ROWS: dict[str, tuple[bytes, str]] = {
    "a document missing": (b'{"summary": "x"}', "document is missing"),
    "a document null": (b'{"document": null, "summary": "x"}', "document is missing"),
    "no text": (b'{"document": ["a"], "summary": "x"}', "document is not text but list"),
    "a summary that is no text": (b'{"document": "a", "summary": 3}', "summary is not text but int"),
    "an empty document": (b'{"document": " \\n", "summary": "x"}', "document is empty"),
    "an empty summary": (b'{"document": "a", "summary": ""}', "summary is empty"),
    "NUL": (b'{"document": "a\\u0000b", "summary": "x"}', "document has a NUL character"),
    "broken UTF-8": (b'{"document": "ab\xff", "summary": "x"}', "document is not UTF-8 at character 2"),
    "half a surrogate pair": (b'{"document": "\\ud83d", "summary": "x"}', "document is not UTF-8 at character 0"),
    "no JSON": (b'{"document": "a", "summ', "is not JSON"),
    "no object": (b'["a", "b"]', "is not a JSON object"),
    "nested without end": (b"[" * 200_000, "is not JSON"),
}


@pytest.mark.parametrize("case", BAD_ROWS)
def test_a_bad_row_stops_the_download_or_is_skipped_and_counted(
    tmp_path: Path, case: str, capsys: pytest.CaptureFixture[str]
) -> None:
    bad, fault = BAD_ROWS[case]
    path = tmp_path / "a.jsonl"
    path.write_bytes(lines(bad, bad))
    with pytest.raises(LopsideError, match=rf"^a.jsonl, line 3: {fault}.*; -S data.skip_bad=true leaves such rows out"):
        make(tmp_path, path)
    assert {each.name for each in tmp_path.iterdir()} == {"a.jsonl"}

    parts = make(tmp_path, path, skip_bad=True)
    assert sum(map(len, parts.values())) == 100
    assert provenance(tmp_path)["skipped"] == 2
    assert provenance(tmp_path)["skipped_because"][1].startswith(f"a.jsonl, line 4: {fault}")
    assert "2 rows skipped (data.skip_bad), the first: a.jsonl, line 3: " in capsys.readouterr().out


def test_an_id_that_occurs_twice_is_named_with_both_places(tmp_path: Path) -> None:
    items = [row | {"id": f"n{place}"} for place, row in enumerate(rows(60))]
    items[7]["id"] = "n3"
    path = write_jsonl(tmp_path / "a.jsonl", items)
    with pytest.raises(LopsideError, match=r"a.jsonl, line 8: id n3 occurs twice, first in a.jsonl:4"):
        make(tmp_path, path)
    assert sum(map(len, make(tmp_path, path, skip_bad=True).values())) == 59


def test_bad_fields_of_a_csv_are_named_by_line(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    good = "".join(f'"The river, {number}.",River.\n' for number in range(50))
    path.write_bytes(b'document,summary\n"two\nlines",x\nonly one\n\xff,x\na\0b,x\n' + good.encode())
    with pytest.raises(LopsideError, match=r"^a.csv, line 4: has 1 fields, the header has 2"):
        make(tmp_path, path)
    parts = make(tmp_path, path, skip_bad=True)
    assert sum(map(len, parts.values())) == 51
    assert provenance(tmp_path)["skipped_because"][1].startswith("a.csv, line 5: document is not UTF-8")
    assert provenance(tmp_path)["skipped_because"][2].startswith("a.csv, line 6: document has a NUL character")


def test_a_header_may_hold_any_text(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    good = "".join(f"River {number}.,River.\n" for number in range(50))
    path.write_text('"der\u00a0lange\nText",Kürze\n' + good, encoding="utf-8")
    parts = make(tmp_path, path, columns=ColumnParams("der\u00a0lange\nText", "Kürze", "", ""))
    assert sum(map(len, parts.values())) == 50


def test_bad_values_of_parquet_are_named_by_row(tmp_path: Path) -> None:
    items = pyarrow.table(
        {
            "document": pyarrow.array([b"a", None, b"b\xff", *(b"c%d" % n for n in range(60))], pyarrow.binary()).view(
                pyarrow.string()
            ),
            "summary": pyarrow.array(["x"] * 63).dictionary_encode(),
        }
    )
    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(items, path)
    with pytest.raises(LopsideError, match=r"^a.parquet, row 2: document is missing"):
        make(tmp_path, path)
    make(tmp_path, path, skip_bad=True)
    assert provenance(tmp_path)["skipped_because"][1].startswith("a.parquet, row 3: document is not UTF-8")
    pyarrow.parquet.write_table(pyarrow.table({"document": [1, 2], "summary": ["a", "b"]}), path)
    with pytest.raises(LopsideError, match=r"^a.parquet, row 1: document is not text but int"):
        make(tmp_path, path)


@pytest.mark.parametrize("skip_bad", [False, True])
@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_a_file_without_the_columns_of_the_first_stops_the_download_always(
    tmp_path: Path, kind: str, skip_bad: bool
) -> None:
    (tmp_path / "mine").mkdir()
    other = pd.DataFrame(rows(40)).rename(columns={"document": "text"})
    for name, table in {f"train-1.{kind}": pd.DataFrame(rows(40)), f"train-2.{kind}": other}.items():
        if kind == "csv":
            table.to_csv(tmp_path / "mine" / name, index=False)
        else:
            table.to_parquet(tmp_path / "mine" / name, index=False)
    with pytest.raises(LopsideError, match=rf"^train-2.{kind}: has no column document; it has text, summary$"):
        make(tmp_path, tmp_path / "mine", skip_bad=skip_bad)
    assert {each.name for each in tmp_path.iterdir()} == {"mine"}


def _cut(content: bytes) -> bytes:
    return content[: len(content) // 2]


BAD_FILES: dict[str, tuple[str, bytes, str]] = {
    "0 bytes": ("a.jsonl", b"", "a.jsonl: is empty"),
    "0 bytes of Parquet": ("a.parquet", b"", "a.parquet: is empty"),
    "no row": ("a.csv", b"document,summary\n", "a.csv: has no row"),
    "blank lines": ("a.jsonl", b"\n\n", "a.jsonl: has no row"),
    "0 bytes of CSV": ("a.csv", b"", "a.csv: is empty"),
    "0 bytes packed": ("a.jsonl.gz", gzip.compress(b""), "a.jsonl.gz: has no row"),
    "one column": (
        "a.jsonl",
        b'{"document": "x"}\n',
        "data.columns.summary: it is not clear .* columns document. Name",
    ),
    "semicolons": ("a.csv", b"document;summary\na;b\n", "has the columns document;summary, parted by commas. Name"),
    "UTF-16": ("a.csv", "document,summary\na,b\n".encode("utf-16"), "a.csv, line 1: the header is not UTF-8 text"),
    "one list": (
        "a.json",
        b'[{"document": "a", "summary": "b"}]',
        "a.json, line 1: is not a JSON object; one is needed",
    ),
    "a quote never closed": (
        "a.csv",
        b'document,summary\na,b\n"c,d\ne,f\n',
        "a.csv, line 3: is not CSV, a quote is brok",
    ),
    "a quote closed too soon": ("a.csv", b'document,summary\n"a"b,c\n', "a.csv, line 2: is not CSV, a quote is broken"),
    "gzip cut": ("a.jsonl.gz", _cut(gzip.compress(lines())), "a.jsonl.gz: cannot be read: "),
    "no gzip": ("a.csv.gz", b"document,summary\n", "a.csv.gz: cannot be read: Not a gzipped file"),
    "no Parquet": ("a.parquet", b"PAR1 or not", "a.parquet: cannot be read: "),
    "another kind": ("a.txt", b"x", "dataset: .*a.txt: its kind is unknown. Allowed: .jsonl, .csv, .parquet"),
}


@pytest.mark.parametrize("skip_bad", [False, True])
@pytest.mark.parametrize("case", BAD_FILES)
def test_a_bad_file_stops_the_download_always(tmp_path: Path, case: str, skip_bad: bool) -> None:
    name, content, message = BAD_FILES[case]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(LopsideError, match=message):
        make(tmp_path, tmp_path / name, skip_bad=skip_bad)
    assert {each.name for each in tmp_path.iterdir()} == {name}


def test_a_very_long_document_is_cut_and_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    items = [*rows(60), {"document": "long " * 1_000_000, "summary": "x"}]
    for path in (write_jsonl(tmp_path / "a.jsonl", items), write_csv(tmp_path / "b.csv", items)):
        parts = make(tmp_path, path)
        assert max(len(text) for split in SPLITS for text in parts[split]["document"]) == LONGEST
        assert provenance(tmp_path)["documents_cut"] == {"count": 1, "characters": LONGEST}
        assert "1 documents cut at 1,000,000 characters" in capsys.readouterr().out


def test_what_is_for_hubs_alone_is_refused(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", rows(50))
    with pytest.raises(LopsideError, match=r"^data.revision: 'main' is refused; .* is not on a hub"):
        make(tmp_path, path, revision="main")


# Samples


def test_limits_leave_a_sample_with_a_seed_of_its_own(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", rows(300))
    whole = make(tmp_path, path)
    limited = make(tmp_path, path, limits=LimitParams(train=20, validation=0, test=5, seed=0))
    assert {split: len(limited[split]) for split in ("train", "test")} == {"train": 20, "test": 5}
    assert limited["validation"].equals(whole["validation"])
    assert set(limited["train"]["id"]) < set(whole["train"]["id"])
    assert provenance(tmp_path)["pairs_before_limits"]["train"] == len(whole["train"])
    other = make(tmp_path, path, limits=LimitParams(train=20, validation=0, test=5, seed=1))
    assert set(other["train"]["id"]) != set(limited["train"]["id"])
    assert provenance(tmp_path)["sample_seed"] == 1


@given(st.lists(st.text(max_size=4), unique=True), st.integers(0, 9), st.integers(0, 3))
def test_a_sample_is_in_order_nested_and_blind_to_order(ids: list[str], count: int, seed: int) -> None:
    places = sample(ids, count, seed)
    assert places == sorted(set(places))
    assert len(places) == (min(count, len(ids)) if count else len(ids))
    if count:
        assert set(places) <= set(sample(ids, count + 1, seed))
    backwards = ids[::-1]
    assert {ids[place] for place in places} == {backwards[place] for place in sample(backwards, count, seed)}


def test_no_message_spans_lines(tmp_path: Path) -> None:
    check: Callable[[str], Any] = re.compile(r"[^\n]+").fullmatch
    for name, content, _ in BAD_FILES.values():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(LopsideError) as caught:
            make(tmp_path, tmp_path / name)
        assert check(str(caught.value))
