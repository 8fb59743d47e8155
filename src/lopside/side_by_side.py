"""Show what was written: documents of the test split with their reference and both models' summaries."""

from pathlib import Path
from textwrap import fill

from lopside.errors import LopsideError
from lopside.splits import read_split

SUMMARIES = Path("outputs/generate")
SIDES = ("dense", "pruned")
WIDTH = 100


def side_by_side(count: int) -> str:
    """The first ``count`` test documents in the order of the split, none chosen, as text for a terminal.

    Raises LopsideError where a file is missing, or the summaries are of other documents than the split's.
    """
    import pandas as pd

    test = read_split("test")
    columns = {"document": test.document, "reference": test.summary}
    for side in SIDES:
        path = SUMMARIES / f"{side}.parquet"
        if not path.is_file():
            raise LopsideError(f"{path}: no such file; `dvc repro generate@{side}` makes it")
        table = pd.read_parquet(path)
        if list(table.id) != list(test.id):
            raise LopsideError(f"{path}: holds summaries of other documents than data/splits/test.parquet")
        columns[side] = table.summary
    rows = zip(*(column.head(count) for column in columns.values()), strict=True)
    return "\n\n".join("\n".join(_lines(dict(zip(columns, row, strict=True)))) for row in rows)


def _lines(texts: dict[str, str]) -> list[str]:
    margin = max(map(len, texts)) + 2
    return [
        fill(" ".join(text.split()), WIDTH, initial_indent=f"{name:<{margin}}", subsequent_indent=" " * margin)
        for name, text in texts.items()
    ]
