"""The splits of the data set that the pipeline runs on: what they hold, where they lie, how they are read, written."""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lopside.errors import LopsideError

if TYPE_CHECKING:
    import pandas as pd

FOLDER = Path("data/splits")
SPLITS = ("train", "validation", "test")
COLUMNS = ("id", "document", "body", "summary", "source")
"""``body`` is the document without its name; ``source`` says where the pair is from."""


def read_split(name: str, folder: Path = FOLDER) -> "pd.DataFrame":
    """A split as a table of text, with the columns of :data:`COLUMNS`, one row a pair.

    Raises LopsideError that names the file which is missing, empty or no such table.
    """
    import pandas as pd

    path = Path(folder) / f"{name}.parquet"
    if name not in SPLITS:
        raise LopsideError(f"there is no split {name!r}. Allowed: {', '.join(SPLITS)}")
    if not path.is_file():
        raise LopsideError(f"{path}: no such file; `dvc repro download` makes it")
    try:
        table = pd.read_parquet(path)
    except (OSError, ValueError) as error:
        raise LopsideError(f"{path}: cannot be read as Parquet: {str(error).splitlines()[0]}") from error
    lacking = [column for column in COLUMNS if column not in table]
    if lacking:
        raise LopsideError(f"{path}: has no column {', '.join(lacking)}; a split has {', '.join(COLUMNS)}")
    if table.empty:
        raise LopsideError(f"{path}: the split has no pair; at least one is needed")
    return table[list(COLUMNS)]


def write_split(columns: Mapping[str, Sequence[str]], path: Path) -> None:
    """Write the columns of :data:`COLUMNS`, of equal length, as Parquet; equal texts give equal bytes."""
    import pyarrow
    import pyarrow.parquet

    # Not by pandas, which would write its version into the file.
    table = pyarrow.table({name: pyarrow.array(columns[name], pyarrow.string()) for name in COLUMNS})
    pyarrow.parquet.write_table(
        table, path, compression="zstd", compression_level=9, row_group_size=len(columns[COLUMNS[0]])
    )


def sample(ids: Sequence[str], count: int, seed: int) -> list[int]:
    """The places of ``count`` of the ids (all if 0, or if there are no more), in their order.

    Which ones depends on the seed and on each id, on nothing else: a larger count has all that a smaller one has, and
    the order of the data does not matter.
    """
    places = range(len(ids))
    if not 0 < count < len(ids):
        return list(places)
    ranked = sorted(places, key=lambda place: hashlib.sha256(f"{seed}\0{ids[place]}".encode()).digest())
    return sorted(ranked[:count])
