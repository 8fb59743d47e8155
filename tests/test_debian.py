"""The recipe that makes a data set of package descriptions; what it reads here is made up."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from lopside.docstrings import split
from lopside.errors import LopsideError
from recipes.debian import text
from recipes.debian.text import Index, description, main, pairs, paragraphs

LONG = "This tool counts the words of a text and prints how often each of them occurs, the most frequent one first."


def test_paragraphs_are_fields_with_their_further_lines() -> None:
    lines = [
        "Package: one",
        "Description-en: short",
        " first line",
        " .",
        "",
        "",
        "Package: two",
        "Source: three (1.0)",
    ]
    assert list(paragraphs(lines)) == [
        {"Package": "one", "Description-en": "short\n first line\n ."},
        {"Package": "two", "Source": "three (1.0)"},
    ]
    assert list(paragraphs([])) == []


def test_descriptions_lose_their_layout_and_verbatim_lines() -> None:
    field = "word counter\n Counts words, and\n prints them.\n .\n   * a list\n   * of things\n Ends here."
    assert description(field) == ("word counter", "Counts words, and prints them. Ends here.")
    assert description("") == ("", "")


def test_pairs_know_their_source_package() -> None:
    fields = [
        {"Package": "wc-tool", "Description-en": f"word counter\n {LONG}"},
        {"Package": "wc-doc", "Description-en": f"manual of the word counter\n {LONG}"},
        {"Package": "short", "Description-en": "too short\n Too short."},
        {"Package": "word", "Description-en": f"word\n {LONG}"},
        {"Package": "none"},
    ]
    found = list(pairs(fields, {"wc-doc": "wc-tool"}))
    assert [(pair.document, pair.body, pair.summary, pair.source) for pair in found] == [
        (f"wc-tool: {LONG}", LONG, "word counter", "wc-tool"),
        (f"wc-doc: {LONG}", LONG, "manual of the word counter", "wc-tool"),
    ]


@pytest.fixture
def index(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An index of 60 packages, two from each source package, all described differently."""
    words = [f"{first}{second}" for first in "bdfghklmnp" for second in ("ano", "elu", "iro", "osa", "uti", "ewi")]
    names = [f"{word}{kind}" for word in words[:30] for kind in ("", "-data")]

    def said(number: int) -> str:
        return " ".join(words[(number * 7 + place * (number % 11 + 2)) % 60] for place in range(16))

    kinds = {
        "Packages": [f"Package: {name}\nSource: {name.removesuffix('-data')} (1.0)\n" for name in names],
        "Translations": [
            f"Package: {name}\nDescription-en: the {name} of {said(number)[:20]}\n {said(number)}\n"
            for number, name in enumerate(names)
        ],
    }
    monkeypatch.setattr(Index, "update", lambda self: None)
    monkeypatch.setattr(Index, "read", lambda self, kind: "\n".join(kinds[kind]).splitlines())
    monkeypatch.setattr(text, "OUTPUTS", tmp_path)
    monkeypatch.setattr(text, "split", lambda found, **options: split(found, 10, 10, **options))


def test_source_packages_are_never_parted(index: None, tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["--out", str(tmp_path / "splits")], catch_exceptions=False)
    assert result.exit_code == 0
    rows: dict[str, list[dict[str, Any]]] = {
        name: [json.loads(line) for line in (tmp_path / f"splits/{name}.jsonl").read_text().splitlines()]
        for name in ("train", "validation", "test")
    }
    assert [len(rows[name]) for name in ("validation", "test")] == [10, 10]
    assert len(rows["train"]) > 20  # made up of few words, some are near duplicates
    sources = {name: {row["source"] for row in part} for name, part in rows.items()}
    assert sources["train"].isdisjoint(sources["validation"] | sources["test"])
    assert sources["validation"].isdisjoint(sources["test"])
    assert list(rows["test"][0]) == ["id", "document", "body", "summary", "source"]


def test_without_apt_or_network_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(command: list[str], **options: Any) -> Any:
        raise FileNotFoundError

    def failing(command: list[str], **options: Any) -> Any:
        raise subprocess.CalledProcessError(100, command, stderr="Reading\nE: Failed to fetch the list\n")

    monkeypatch.setattr(subprocess, "run", absent)
    with pytest.raises(LopsideError, match="apt-get: there is no such command; this recipe needs Debian or Ubuntu"):
        Index(tmp_path).update()
    monkeypatch.setattr(subprocess, "run", failing)
    with pytest.raises(LopsideError, match="apt-get update: E: Failed to fetch the list"):
        Index(tmp_path).update()


def test_an_index_without_descriptions_writes_nothing(
    index: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Index, "read", lambda self, kind: [])
    result = CliRunner().invoke(main, ["--out", str(tmp_path / "splits")])
    assert result.exit_code == 1
    assert result.stderr.startswith("Error: the package index has no description")
    assert not (tmp_path / "splits").exists()
