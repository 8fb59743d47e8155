"""Documents of a run with the summaries of both sides, from DVC's cache; no remote is asked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from lopside.errors import LopsideError
from lopside.history import Row
from lopside.repository import LOCK, cache, git, outputs, stages_of

COUNT = 3
LONGEST = 700
"""Characters of a document that are shown."""

FILES = {
    "test": "data/splits/test.parquet",
    "dense": "outputs/generate/dense.parquet",
    "pruned": "outputs/generate/pruned.parquet",
    "scores": "outputs/scores.parquet",
}


@dataclass(frozen=True)
class Example:
    """One test document."""

    document: str
    reference: str
    dense: str
    pruned: str
    rouge2: dict[str, float]
    """Side -> ROUGE-2 of its summary, 0 to 100."""


def read_examples(row: Row, count: int = COUNT, seed: int = 0) -> list[Example] | str:
    """Some documents of the row's experiment, drawn at random by the seed; or why they cannot be read, in words."""
    if git("cat-file", "-e", row.commit) is None:
        return f"there is no commit {row.commit} here; `dvc exp pull` brings experiments"
    import pandas as pd

    frames: dict[str, Any] = {}
    try:
        hashes = outputs(stages_of(LOCK, row.commit))
        for name, path in FILES.items():
            md5 = hashes.get(path)
            if md5 is None or not (file := cache() / md5[:2] / md5[2:]).is_file():
                return f"DVC's cache has no {path} of that commit; `dvc exp pull` brings it"
            frames[name] = pd.read_parquet(file).set_index("id")
    except (LopsideError, OSError, ValueError) as error:
        return f"DVC's cache does not give them: {type(error).__name__}: {error}"
    test = frames["test"]
    drawn = np.random.Generator(np.random.PCG64(seed)).choice(len(test), min(count, len(test)), replace=False)
    return [
        Example(
            document=_cut(test.loc[name, "document"]),
            reference=test.loc[name, "summary"],
            dense=frames["dense"].loc[name, "summary"],
            pruned=frames["pruned"].loc[name, "summary"],
            rouge2={side: float(frames["scores"].loc[name, f"{side}_rouge2"]) for side in ("dense", "pruned")},
        )
        for name in test.index[np.sort(drawn)]
    ]


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST else f"{text[:LONGEST].rsplit(maxsplit=1)[0]} ..."
