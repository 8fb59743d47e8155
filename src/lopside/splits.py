"""The splits of the data set that the pipeline runs on: what they hold, where they lie, how they are read."""

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
