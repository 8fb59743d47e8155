"""Package descriptions of Debian or Ubuntu as a data set: the synopsis is the summary of the long description.

They are read from the machine's own package index, fetched into a folder of its own, so that nothing of the system
changes and no special rights are needed.
"""

import re
import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path

import pandas as pd

from lopside.docstrings import Pair, deduplicate, split
from lopside.errors import LopsideError
from lopside.sources import frame_of
from recipes.splits import writes_splits

OUTPUTS = Path(__file__).parent / "outputs"
SUMMARY_WORDS = (2, 32)
BODY_WORDS = 15


def paragraphs(lines: Iterable[str]) -> Iterator[dict[str, str]]:
    """The fields of each paragraph of a Debian control file; a field's further lines keep their first space."""
    fields: dict[str, str] = {}
    name = ""
    for line in lines:
        if not line.strip():
            if fields:
                yield fields
            fields = {}
        elif line[0] in " \t":
            fields[name] += "\n" + line.rstrip()
        else:
            name, _, value = line.partition(":")
            fields[name] = value.strip()
    if fields:
        yield fields


def description(text: str) -> tuple[str, str]:
    """Synopsis and long description of a ``Description`` field, each in one line.

    A line that holds a dot alone parts paragraphs; lines that are set in further are taken verbatim by Debian (lists,
    tables): they are left out.
    """
    synopsis, *lines = text.split("\n")
    prose = [line.strip() for line in lines if line.strip() != "." and not line.startswith("  ")]
    return synopsis.strip(), " ".join(prose)


def pairs(descriptions: Iterable[dict[str, str]], sources: dict[str, str]) -> Iterator[Pair]:
    """A pair a package: ``source`` is the source package that it is built from, or its own name."""
    for fields in descriptions:
        package = fields["Package"]
        summary, body = description(fields.get("Description-en", ""))
        words = len(re.findall(r"\S*[A-Za-z]\S*", summary))
        if SUMMARY_WORDS[0] <= words <= SUMMARY_WORDS[1] and len(body.split()) >= BODY_WORDS:
            yield Pair(f"{package}: {body}", body, summary, sources.get(package, package))


class Index:
    """The package index of this machine's distribution, in a folder of ours."""

    def __init__(self, folder: Path) -> None:
        for name in ("lists/partial", "cache/archives/partial"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        settings = {"Dir::State::Lists": folder / "lists", "Dir::Cache": folder / "cache", "Acquire::Languages": "en"}
        self.options = [f"-o{key}={value}" for key, value in settings.items()]

    def update(self) -> None:
        """Fetch it. Raises LopsideError where there is no apt, or its servers cannot be reached."""
        self._run("apt-get", "--error-on=any", "update")

    def read(self, kind: str) -> Iterator[str]:
        """The lines of all its files of one kind, ``Packages`` or ``Translations``."""
        for file in self._run("apt-get", "indextargets", "--format=$(FILENAME)", f"Created-By: {kind}").split():
            yield from self._run("/usr/lib/apt/apt-helper", "cat-file", file).splitlines()
            yield ""

    def _run(self, command: str, *arguments: str) -> str:
        try:
            return subprocess.run(
                [command, *self.options, *arguments],
                check=True,
                capture_output=True,
                encoding="utf-8",
                errors="replace",
            ).stdout
        except FileNotFoundError as error:
            raise LopsideError(f"{command}: there is no such command; this recipe needs Debian or Ubuntu") from error
        except subprocess.CalledProcessError as error:
            said = [line for line in error.stderr.splitlines() if line.startswith(("E:", "W:"))] or [error.stderr]
            raise LopsideError(f"{command} {arguments[-1]}: {said[0].strip()}") from error


def _found(index: Index) -> list[Pair]:
    """The pairs of a fresh index, duplicates included. Raises LopsideError where there are none."""
    index.update()
    sources = {
        fields["Package"]: fields["Source"].split(" ")[0]
        for fields in paragraphs(index.read("Packages"))
        if "Source" in fields
    }
    found = list(pairs(paragraphs(index.read("Translations")), sources))
    if not found:
        raise LopsideError("the package index has no description that can be used; it may have no Translation-en")
    return found


@writes_splits(OUTPUTS / "splits")
def main() -> dict[str, pd.DataFrame]:
    """Write train.jsonl, validation.jsonl and test.jsonl; packages of one source package are never parted."""
    found = _found(Index(OUTPUTS / "apt"))
    print(f"{len(found):,} descriptions found", flush=True)
    parts = split(deduplicate(found), kin=lambda pair: pair.source)
    return {name: frame_of(part) for name, part in parts.items()}


if __name__ == "__main__":
    main()
