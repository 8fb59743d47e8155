"""Summarise a user's own documents with a model folder: what all of it was for."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import IO, Any

from lopside.errors import LopsideError
from lopside.files import write_json
from lopside.known import FILE
from lopside.progress import progress

WINDOW = 16
"""Batches that are put in order of length together: enough for little padding, and what an interruption can lose."""
STDIN = Path("-")


@dataclass(frozen=True)
class Document:
    """A document and what its row in the output begins with."""

    text: str
    key: Mapping[str, Any]
    """``{"id": ...}`` where the file has such a column, ``{"row": ...}`` elsewhere; empty for lines of text."""


@dataclass(frozen=True)
class Settings:
    """How documents become summaries; the options of the command ``lopside summarize``."""

    model: Path
    engine: str
    dtype: str
    device: str
    max_source_tokens: int
    """0: 1,024, or the model's positions where they are fewer."""
    max_new_tokens: int
    """0: 128, likewise."""
    num_beams: int
    batch_size: int


def summarize(source: Path, out: Path | None, settings: Settings, column: str = "") -> None:
    """Write a row for each document of ``source``, in its order: lines of text for lines of text, else JSON lines.

    With ``out`` the rows lie in ``OUT.part`` until all are there; a run that was stopped goes on from its rows.

    Args:
        source: ``.jsonl``, ``.csv`` or ``.parquet``, or ``.gz`` of these; any other file, and ``-`` for standard input,
            is read as a document a line.
        out: file to write; None: standard output.
        settings: model, engine and lengths.
        column: of a table: where the documents are; empty: guessed.

    Raises:
        LopsideError: a file, column or model cannot be used; the rows in ``OUT.part`` were made from other documents or
            with other settings. Nothing is written then.
    """
    from lopside.engines import open_engine
    from lopside.inputs import choose_inputs
    from lopside.machine import choose_device, keep_memory

    documents = read_documents(source, column)
    inputs = choose_inputs(settings.model, "", "auto", settings.max_source_tokens, settings.max_new_tokens)
    unfinished = None if out is None else Unfinished(out, _key(documents, settings))
    done = unfinished.rows() if unfinished else 0
    keep_memory()
    device = choose_device(settings.device)
    engine, tokenizer = open_engine(settings.model, settings.engine, settings.dtype, device)
    from lopside.generation import summarise

    _say(f"{len(documents):,} documents by {engine.name} on {device}" + (f"; {done:,} are done" if done else ""))
    started, size = time.monotonic(), WINDOW * settings.batch_size
    windows = [documents[start : start + size] for start in range(done, len(documents), size)]
    with unfinished.append() if unfinished else nullcontext(sys.stdout) as file:
        for window in progress(windows, len(windows), "summarise"):
            found = summarise(
                engine,
                tokenizer,
                inputs.sources(document.text for document in window),
                max_source_tokens=inputs.max_source_tokens,
                max_new_tokens=inputs.max_target_tokens,
                num_beams=settings.num_beams,
                batch_size=settings.batch_size,
            )
            for document, summary in zip(window, found, strict=True):
                print(_row(document, summary.summary), file=file)
            file.flush()
    if unfinished:
        unfinished.finish()
    seconds = time.monotonic() - started
    _say(f"{(len(documents) - done) / seconds:.1f} documents a second")


def read_documents(source: Path, column: str = "") -> list[Document]:
    """The documents of a file, or of standard input, in order. An empty one is a document too.

    Raises LopsideError where the file cannot be read or has no document, or a row has no text; names file and line.
    """
    if source == STDIN or not FILE.search(source.name):
        if column:
            raise LopsideError(f"--column: {column!r} is refused; {source} is read as a document a line")
        try:
            text = sys.stdin.read() if source == STDIN else source.read_text(encoding="utf-8")
        except OSError as error:
            raise LopsideError(f"{source}: cannot be read: {error.strerror}") from error
        except UnicodeDecodeError as error:
            raise LopsideError(f"{source}: is not UTF-8 text at byte {error.start}") from error
        # Not by splitlines, to which form feeds and Unicode's own separators end a line too.
        documents = [Document(line, {}) for line in text.removesuffix("\n").split("\n")] if text else []
    else:
        documents = list(_table(source, column))
    if not documents:
        raise LopsideError(
            f"{'standard input' if source == STDIN else source}: has no document; at least one is needed"
        )
    return documents


def _table(source: Path, column: str) -> Iterator[Document]:
    from lopside.tables import GUESSES, File, columns_of, read_rows

    if not source.is_file():
        raise LopsideError(f"{source}: there is no such file")
    file = File(source, source.name)
    present = columns_of(file)
    could = [column] if column else [name for name in present if name.lower() in GUESSES["document"]]
    if len(could) != 1 or could[0] not in present:
        why = f"there is no column {column}" if column else "it is not clear which column holds the documents"
        raise LopsideError(f"--column: {why}; {source.name} has the columns {', '.join(present) or 'none'}")
    keys = [name for name in present if name == "id"]
    for number, row in read_rows(file, (could[0], *keys)):
        text = row if isinstance(row, str) else row.get(could[0])
        if isinstance(row, str) or not isinstance(text, str):
            fault = row if isinstance(row, str) else f"{could[0]} is not text but {type(text).__name__}"
            raise LopsideError(f"{source.name}, line or row {number}: {fault}")
        if keys and row.get("id") is None:
            raise LopsideError(f"{source.name}, line or row {number}: has no id, as others have")
        yield Document(text.encode("utf-8", "replace").decode(), {"id": row["id"]} if keys else {"row": number})


class Unfinished:
    """The rows of a run that is not complete: ``OUT.part``, and beside it what they were made of."""

    def __init__(self, out: Path, key: str) -> None:
        self.out, self.key = out, key
        self.path, self.record = out.with_name(f"{out.name}.part"), out.with_name(f"{out.name}.part.json")

    def rows(self) -> int:
        """How many whole rows are there already. Raises LopsideError where they are of something else."""
        if not self.out.parent.is_dir():
            raise LopsideError(f"{self.out}: there is no folder {self.out.parent}")
        if not (self.record.exists() and self.path.exists()):
            return 0
        if json.loads(self.record.read_text(encoding="utf-8"))["key"] != self.key:
            raise LopsideError(
                f"{self.path}: its rows are of other documents or settings; remove it and {self.record.name}"
            )
        return self.path.read_bytes().count(b"\n")

    def append(self) -> IO[str]:
        """The file, to write behind its last whole row."""
        self.path.touch()
        if not self.record.exists():
            self.path.write_bytes(b"")  # whose rows these are is not known
            write_json(self.record, {"key": self.key})
        os.truncate(self.path, self.path.read_bytes().rfind(b"\n") + 1)
        return open(self.path, "a", encoding="utf-8")

    def finish(self) -> None:
        """Put the rows where they belong."""
        os.replace(self.path, self.out)
        self.record.unlink()


def _row(document: Document, summary: str) -> str:
    if document.key:
        return json.dumps({**document.key, "summary": summary}, ensure_ascii=False)
    return " ".join(summary.split())


def _key(documents: Sequence[Document], settings: Settings) -> str:
    digest = sha256(repr(settings).encode())
    for document in documents:
        digest.update(f"{document.text}\0".encode())
    return digest.hexdigest()


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
