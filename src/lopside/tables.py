"""Tables of documents and summaries, from files here or on a hub, to checked splits.

A row that cannot be used stops the download with file, row and fault; `skip_bad` leaves such rows out and counts them.
A fault of a whole file (not gzip, a CSV quote that never closes) always stops it: what follows would be read wrongly.
"""

import csv
import gzip
import hashlib
import io
import json
import re
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import IO, Any

from lopside.errors import LopsideError
from lopside.files import new_folder, sha256_of, write_json
from lopside.hub import Hub
from lopside.known import DATASETS, FILE, Known, known_dataset, locate
from lopside.params import ColumnParams, LimitParams
from lopside.progress import progress
from lopside.splits import FOLDER, SPLITS, sample, write_split

ROLES = ("document", "summary", "body", "id")
NEEDED = ("document", "summary")
WORDS = {"train": "train", "training": "train", "validation": "validation", "valid": "validation"}
WORDS |= {"val": "validation", "dev": "validation", "test": "test"}
"""How files and folders of a split are called."""
GUESSES = {role: {known.columns[role] for known in DATASETS.values() if role in known.columns} for role in ROLES}
"""Columns that are taken for a role without being named: those that the known data sets have for it."""
NO_COLUMN = "-"
LONGEST = 1_000_000
"""Characters of a document that are kept; many times what any model reads, and what tokenizers do in no time."""
HELD_OUT = 0.1
"""Share of the documents that validation, and test, get where a data set does not split itself."""
SHOWN = 5
"""Faults of skipped rows that provenance.json quotes."""


@dataclass(frozen=True)
class File:
    """A file of a data set."""

    path: Path
    name: str
    """As messages and the column ``source`` call it."""


@dataclass
class Pairs:
    """Pairs in the order they were read; a list a column of `lopside.splits.COLUMNS`."""

    id: list[str] = field(default_factory=list)
    document: list[str] = field(default_factory=list)
    body: list[str] = field(default_factory=list)
    summary: list[str] = field(default_factory=list)
    source: list[str] = field(default_factory=list)

    def pick(self, rows: Sequence[int]) -> "Pairs":
        """The pairs at these places, in that order."""
        return Pairs(**{name: [column[row] for row in rows] for name, column in vars(self).items()})


@dataclass
class Tally:
    """What was left out or changed on the way."""

    skipped: int = 0
    faults: list[str] = field(default_factory=list)
    cut: int = 0
    """Documents longer than LONGEST."""


def make_tables(
    name: str,
    revision: str = "",
    config: str = "",
    columns: ColumnParams | None = None,
    limits: LimitParams | None = None,
    skip_bad: bool = False,
    folder: Path = FOLDER,
    hub: Hub | None = None,
) -> dict[str, int]:
    """Write ``folder``: a Parquet file a split, and ``provenance.json``. Returns how many pairs each split has.

    Args:
        name: a known name, owner/name on the hub, or a file or folder here.
        revision: of a hub set: branch, tag or commit; empty: what is known of it, else main.
        config: of a hub set: its configuration; empty: what is known of it, else the only one.
        columns: which column has which role; empty ones are known or guessed.
        limits: how many pairs a split keeps, and the seed of that sample.
        skip_bad: leave out rows that cannot be used.
        folder: where to write.
        hub: another than the usual one.

    Raises:
        LopsideError: nothing can be read, or a row cannot be used; names file, row or key. Then nothing is written.
    """
    known = known_dataset(name)
    origin: dict[str, Any] = {"dataset": name}
    if locate("dataset", name, DATASETS) == "local":
        for key, value in {"revision": revision, "config": config}.items():
            if value:
                raise LopsideError(f"data.{key}: {value!r} is refused; {name} is not on a hub. Allowed: empty")
        files = _own_files(name)
    else:
        hub_id = known.hub_id or name
        revision, config = revision or known.revision, config or known.config
        found: dict[str, list[str]] = {}

        def choose(names: Sequence[str]) -> list[str]:
            found.update(find_splits(names, f"dataset: {hub_id}", config))
            return [each for part in found.values() for each in part]

        fetched = (hub or Hub()).fetch_files(hub_id, revision, choose)
        files = {split: [File(fetched.folder / each, each) for each in part] for split, part in found.items()}
        origin |= {"hub_id": hub_id, "revision": revision, "commit": fetched.commit, "config": config}
    return _write(files, origin, known, columns, limits, skip_bad, folder)


def own_paths(name: str) -> list[Path]:
    """The files that a local data set is read from. Raises LopsideError as `make_tables` does for its files."""
    return sorted(each.path for part in _own_files(name).values() for each in part)


def _own_files(name: str) -> dict[str, list[File]]:
    path = Path(name).expanduser()
    if path.is_file():
        if not FILE.search(path.name):
            raise LopsideError(
                f"dataset: {name}: its kind is unknown. Allowed: .jsonl, .csv, .parquet, and .gz of these"
            )
        return {"": [File(path, path.name)]}
    names = [each.relative_to(path).as_posix() for each in sorted(path.rglob("*")) if each.is_file()]
    return {
        split: [File(path / each, each) for each in part]
        for split, part in find_splits(names, f"dataset: {name}").items()
    }


def find_splits(names: Iterable[str], where: str, config: str = "") -> dict[str, list[str]]:
    """Which of the files ``names`` hold which split: train, validation and test, or "" where one file holds all.

    A file belongs to a split if its name begins with that word (``train.csv``, ``test-00000-of-00002.parquet``), or the
    name of its folder does (``default/train/0000.parquet``). Files of several configurations lie in folders of
    their own, which ``config`` chooses from.

    Raises:
        LopsideError: there are none, or it is not clear which; begins with ``where`` and lists what there is.
    """
    data = [name for name in sorted(names) if FILE.search(name) and not name.startswith(".")]
    found: dict[str, dict[str, list[str]]] = {}
    for name in data:
        *folders, file = name.split("/")
        split = WORDS.get(re.split(r"[-.]", file)[0].lower())
        if split is None and folders:
            split = WORDS.get(folders.pop().lower().removeprefix("partial-"))
        if split:
            found.setdefault("/".join(folders), {}).setdefault(split, []).append(name)
    if not found and len(data) == 1 and not config:
        return {"": data}
    if not found:
        listed = f"; it has {_some(data)}" if data else ""
        raise LopsideError(f"{where}: has no train, validation or test file in .jsonl, .csv or .parquet{listed}")
    if config and config not in found:
        raise LopsideError(f"data.config: {config!r}: {where} has no such folder. Allowed: {_some(sorted(found))}")
    if not config and len(found) > 1:
        raise LopsideError(
            f"{where}: files lie in several folders: {_some(sorted(found))}; choose one, here by its path, on the hub "
            "by data.config"
        )
    splits = found[config or next(iter(found))]
    for split, part in splits.items():
        kinds = {match[0].lower() for each in part if (match := FILE.search(each))}
        if len(kinds) > 1:
            raise LopsideError(f"{where}: there are {split} files of several kinds, where one is meant: {_some(part)}")
    if "train" not in splits:
        raise LopsideError(
            f"{where}: has no train file; it has {_some([each for part in splits.values() for each in part])}"
        )
    return {split: splits[split] for split in SPLITS if split in splits}


# From files to splits


def _write(
    files: Mapping[str, list[File]],
    origin: dict[str, Any],
    known: Known,
    columns: ColumnParams | None,
    limits: LimitParams | None,
    skip_bad: bool,
    folder: Path,
) -> dict[str, int]:
    roles = choose_columns(next(iter(files.values()))[0], columns, known)
    print("columns: " + ", ".join(f"{role} from {column}" for role, column in roles.items()), flush=True)
    tally = Tally()
    parts = {split: read_pairs(part, roles, skip_bad, tally) for split, part in files.items()}
    made = [split for split in ("validation", "test") if split not in parts]
    if made:
        print(f"{' and '.join(made)}: split off by a hash of each document, {HELD_OUT:.0%} each", flush=True)
        parts = _split_off(parts, made)
    for split, pairs in parts.items():
        if not pairs.id:
            raise LopsideError(
                f"dataset: {origin['dataset']}: no pair is left for the {split} split; at least one is needed"
            )
    trained = {_family(document) for document in parts["train"].document}
    repeated = {
        split: sum(_family(document) in trained for document in parts[split].document)
        for split in ("validation", "test")
    }
    whole = {split: len(pairs.id) for split, pairs in parts.items()}
    if limits:
        parts = {
            split: pairs.pick(sample(pairs.id, getattr(limits, split), limits.seed)) for split, pairs in parts.items()
        }
    counts = {split: len(pairs.id) for split, pairs in parts.items()}
    provenance = origin | {
        "pairs": counts,
        "pairs_before_limits": whole,
        "sample_seed": limits.seed if limits else 0,
        "split_off": made,
        "documents_also_in_train": repeated,
        "skipped": tally.skipped,
        "skipped_because": tally.faults,
        "documents_cut": {"count": tally.cut, "characters": LONGEST},
        "columns": roles,
        "files": [
            {"file": each.name, "split": split, "sha256": sha256_of(each.path)}
            for split, part in files.items()
            for each in part
        ],
    }
    with new_folder(folder) as temporary:
        for split, pairs in parts.items():
            write_split(vars(pairs), temporary / f"{split}.parquet")
        write_json(temporary / "provenance.json", provenance)
    if tally.skipped:
        print(f"{tally.skipped:,} rows skipped (data.skip_bad), the first: {tally.faults[0]}")
    if tally.cut:
        print(f"{tally.cut:,} documents cut at {LONGEST:,} characters")
    for split, count in repeated.items():
        if count:
            print(f"beware: {count:,} of the {whole[split]:,} {split} documents are in train too")
    return counts


def choose_columns(file: File, given: ColumnParams | None, known: Known) -> dict[str, str]:
    """Role -> column: as given in params.yaml, else as known of the data set, else guessed from the names in a file.

    ``-`` says that there is none (for body and id). Raises LopsideError that lists the columns where one is missing, or
    several could be meant.
    """
    present = columns_of(file)
    listed = f"{file.name} has the columns {', '.join(present)}" if present else f"{file.name} has no column"
    if len(present) == 1 and _kind(file) == "csv":
        listed += ", parted by commas"
    roles: dict[str, str] = {}
    for role in ROLES:
        named = getattr(given, role) if given else ""
        column = named or known.columns.get(role, "")
        if column == NO_COLUMN and role not in NEEDED:
            continue
        if column:
            if column not in present:
                raise LopsideError(f"data.columns.{role}: there is no column {column}; {listed}")
            roles[role] = column
        elif not known.columns:
            could = [each for each in present if each.lower() in GUESSES[role] and each not in roles.values()]
            if len(could) > 1 or (not could and role in NEEDED):
                why = "several columns could be it" if could else "it is not clear which column it is"
                raise LopsideError(f"data.columns.{role}: {why}; {listed}. Name it: -S data.columns.{role}=NAME")
            if could:
                roles[role] = could[0]
    if roles["document"] == roles["summary"]:
        raise LopsideError(f"data.columns: document and summary are both {roles['document']}; {listed}")
    return roles


def read_pairs(files: Sequence[File], roles: Mapping[str, str], skip_bad: bool, tally: Tally) -> Pairs:
    """The usable pairs of the files, one split; what is left out or cut is added to ``tally``.

    A pair without id gets the hash of its texts; ids occur once. Raises LopsideError at the first row that cannot be
    used unless ``skip_bad``, and at a file that cannot be read or has no row.
    """
    pairs, ids, made = Pairs(), dict[str, str](), Counter[str]()
    for file in progress(files, len(files), "read files") if len(files) > 1 else files:
        rows = 0
        for number, row in read_rows(file, tuple(roles.values())):
            rows += 1
            place = f"{file.name}:{number}"
            try:
                texts = _texts(row, roles, tally)
                key = _id(row, roles, texts, made)
                if key in ids:
                    raise _Bad(f"id {key} occurs twice, first in {ids[key]}")
            except _Bad as fault:
                message = f"{file.name}, {_counted(file)} {number}: {fault}"
                if not skip_bad:
                    hint = "-S data.skip_bad=true leaves such rows out, and counts them"
                    raise LopsideError(f"{message}; {hint}") from None
                tally.skipped += 1
                tally.faults += [message] if len(tally.faults) < SHOWN else []
                continue
            ids[key] = place
            pairs.id.append(key)
            pairs.document.append(texts["document"])
            pairs.body.append(texts["body"])
            pairs.summary.append(texts["summary"])
            pairs.source.append(place)
        if not rows:
            raise LopsideError(_no_row(file))
    return pairs


class _Bad(Exception):
    """A row that cannot be used; its text says why."""


def _texts(row: Mapping[str, Any] | str, roles: Mapping[str, str], tally: Tally) -> dict[str, str]:
    if isinstance(row, str):
        raise _Bad(row)
    texts = {role: _text(row.get(column), column) for role, column in roles.items() if role != "id"}
    document = texts["document"]
    name = len(document) - len(texts.setdefault("body", document))
    if not document.endswith(texts["body"]):
        raise _Bad(f"{roles['document']} does not end in {roles['body']}")
    tally.cut += len(document) > LONGEST
    texts["document"] = document[:LONGEST]
    texts["body"] = document[name:LONGEST] or texts["document"]
    return texts


def _text(value: Any, column: str) -> str:
    if value is None:
        raise _Bad(f"{column} is missing")
    if not isinstance(value, str):
        raise _Bad(f"{column} is not text but {type(value).__name__}")
    if not value.strip():
        raise _Bad(f"{column} is empty")
    if "\0" in value:
        raise _Bad(f"{column} has a NUL character")
    try:
        value.encode()
    except UnicodeEncodeError as error:  # what was no UTF-8 was read as lone surrogates
        raise _Bad(f"{column} is not UTF-8 at character {error.start}") from None
    return value


def _id(row: Mapping[str, Any] | str, roles: Mapping[str, str], texts: Mapping[str, str], made: Counter[str]) -> str:
    if "id" in roles and isinstance(row, Mapping):
        value = row.get(roles["id"])
        return str(value) if type(value) is int else _text(value, roles["id"])
    digest = hashlib.sha256(f"{texts['document']}\0{texts['summary']}".encode()).hexdigest()[:16]
    made[digest] += 1
    return digest if made[digest] == 1 else f"{digest}-{made[digest]}"  # the same pair again


def _family(document: str) -> bytes:
    """What documents share that differ in nothing but case and white space."""
    return hashlib.sha256(" ".join(document.casefold().split()).encode()).digest()[:16]


def _split_off(parts: Mapping[str, Pairs], made: Sequence[str]) -> dict[str, Pairs]:
    """The splits ``made`` taken off train (or off the one file): by a hash, so that equal documents stay together and
    none moves to another split when others are added."""
    source = "" if "" in parts else "train"
    pairs = parts[source]
    names = [name for name in ("test", "validation") if name in made]
    rows: dict[str, list[int]] = {name: [] for name in SPLITS if name == "train" or name in made}
    for row, document in enumerate(pairs.document):
        share = int.from_bytes(_family(document)[:8]) / 2**64
        place = int(share / HELD_OUT)
        rows[names[place] if place < len(names) else "train"].append(row)
    taken = {name: pairs.pick(chosen) for name, chosen in rows.items()}
    return {name: taken[name] if name in taken else parts[name] for name in SPLITS}


# From a file to rows


def columns_of(file: File) -> list[str]:
    """The names of a file's columns; of JSON, all keys of the first rows."""
    if _kind(file) == "parquet":
        with _readable(file):
            return [str(name) for name in _parquet(file).schema_arrow.names]
    if _kind(file) == "csv":
        return _header(file)
    first = list(islice(read_rows(file, ()), 100))
    objects = [row for _, row in first if isinstance(row, Mapping)]
    if not objects:
        raise LopsideError(f"{file.name}, line {first[0][0]}: {first[0][1]}" if first else _no_row(file))
    return list(dict.fromkeys(str(key) for row in objects for key in row))


def read_rows(file: File, columns: Sequence[str]) -> Iterator[tuple[int, Mapping[str, Any] | str]]:
    """Number (of the line for JSON and CSV, of the row for Parquet, from 1) and row, or what is wrong with that row.

    Of Parquet only ``columns`` are read. Bytes that are no UTF-8 come as lone surrogates. Raises LopsideError where
    the file is empty or broken.
    """
    with _readable(file):
        yield from {"parquet": _parquet_rows, "csv": _csv_rows}.get(_kind(file), _json_rows)(file, columns)


def _kind(file: File) -> str:
    match = FILE.search(file.path.name) or FILE.search(file.name)
    assert match is not None
    return match[1].lower()


def _counted(file: File) -> str:
    return "row" if _kind(file) == "parquet" else "line"


def _open(file: File) -> IO[bytes]:
    if not file.path.stat().st_size:
        raise LopsideError(f"{file.name}: is empty (0 bytes)")
    name = file.name.lower()
    return gzip.open(file.path, "rb") if name.endswith(".gz") else open(file.path, "rb")  # type: ignore[return-value]


@contextmanager
def _readable(file: File) -> Iterator[None]:
    """Say which file it is that cannot be read."""
    from pyarrow import ArrowException

    try:
        yield
    except (OSError, EOFError, zlib.error, ArrowException, csv.Error) as error:
        reason = getattr(error, "strerror", None) or (str(error).splitlines() or [type(error).__name__])[0]
        raise LopsideError(f"{file.name}: cannot be read: {reason}") from error


def _json_rows(file: File, columns: Sequence[str]) -> Iterator[tuple[int, Mapping[str, Any] | str]]:
    with _open(file) as lines:
        for number, line in enumerate(lines, start=1):
            text = line.decode("utf-8", "surrogateescape").removeprefix("\ufeff").strip()
            if not text:
                continue
            try:
                value = json.loads(text)
            except ValueError as error:
                yield number, f"is not JSON: {error}"
                continue
            except RecursionError:
                yield number, "is not JSON of use: it is nested too deeply"
                continue
            yield number, value if isinstance(value, dict) else "is not a JSON object; one is needed a line"


def _csv_lines(file: File, stream: IO[bytes]) -> Iterator[str]:
    return io.TextIOWrapper(stream, encoding="utf-8-sig", errors="surrogateescape", newline="")


def _header(file: File) -> list[str]:
    with _readable(file), _open(file) as stream:
        csv.field_size_limit(2**31 - 1)
        header = next(csv.reader(_csv_lines(file, stream), strict=True), [])
    if not header:
        raise LopsideError(_no_row(file))
    if re.search("[\0\ud800-\udfff]", "".join(header)):  # lone surrogates are what bytes of no UTF-8 have become
        raise LopsideError(f"{file.name}, line 1: the header is not UTF-8 text")
    doubled = [name for name, count in Counter(header).items() if count > 1]
    if doubled:
        raise LopsideError(f"{file.name}: its header has the column {doubled[0]} twice")
    return header


def _csv_rows(file: File, columns: Sequence[str]) -> Iterator[tuple[int, Mapping[str, Any] | str]]:
    header = _header(file)
    _check_columns(file, columns, header)
    with _open(file) as stream:
        reader = csv.reader(_csv_lines(file, stream), strict=True)
        next(reader)
        while True:
            number = reader.line_num + 1
            try:
                row = next(reader, None)
            except csv.Error as error:
                raise LopsideError(f"{file.name}, line {number}: is not CSV, a quote is broken: {error}") from None
            if row is None:
                return
            if len(row) == len(header):
                yield number, dict(zip(header, row, strict=True))
            elif row:
                yield number, f"has {len(row)} fields, the header has {len(header)}"


def _parquet(file: File) -> Any:
    import pyarrow.parquet

    with _open(file) as stream:
        if file.name.lower().endswith(".gz"):
            return pyarrow.parquet.ParquetFile(pyarrow.BufferReader(stream.read()))
    return pyarrow.parquet.ParquetFile(file.path)


def _parquet_rows(file: File, columns: Sequence[str]) -> Iterator[tuple[int, Mapping[str, Any] | str]]:
    number = 0
    table = _parquet(file)
    _check_columns(file, columns, table.schema_arrow.names)
    for batch in table.iter_batches(batch_size=1024, columns=list(columns)):
        for row in zip(*(_values(batch.column(column)) for column in columns), strict=True):
            number += 1
            yield number, dict(zip(columns, row, strict=True))


def _check_columns(file: File, columns: Sequence[str], present: Sequence[str]) -> None:
    """Raise LopsideError where a file lacks a column that an earlier one of its set has: no row of it could be used."""
    lacking = [column for column in columns if column not in present]
    if lacking:
        raise LopsideError(f"{file.name}: has no column {lacking[0]}; it has {', '.join(present)}")


def _values(column: Any) -> list[Any]:
    """The values; text is decoded here, so that a fault in it concerns its row alone."""
    import pyarrow

    types = pyarrow.types
    if types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if types.is_string_view(column.type):
        column = column.cast(pyarrow.large_string())
    if types.is_string(column.type) or types.is_large_string(column.type):
        raw = column.cast(pyarrow.large_binary()).to_pylist()
        return [None if value is None else value.decode("utf-8", "surrogateescape") for value in raw]
    values: list[Any] = column.to_pylist()
    return values


def _no_row(file: File) -> str:
    return f"{file.name}: has no row; at least one is needed"


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(name or "the top folder" for name in names[:SHOWN])
    return shown + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")
