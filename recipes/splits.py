"""What the recipes of data sets share: a command that writes the splits they make."""

from collections.abc import Callable, Mapping
from functools import wraps
from pathlib import Path

import click
import pandas as pd

from lopside.errors import LopsideError
from lopside.files import new_folder

Make = Callable[[], Mapping[str, pd.DataFrame]]


def writes_splits(out: Path) -> Callable[[Make], click.Command]:
    """Turn a function that makes a table a split into a command that writes them as ``train.jsonl`` and so on.

    ``out`` is the folder unless another is given with ``--out``; it takes the place of what was there, whole or not at
    all. A :class:`LopsideError` becomes one line on stderr and exit status 1.
    """

    def command(make: Make) -> click.Command:
        @click.command()
        @click.option("--out", type=click.Path(path_type=Path), default=out, show_default=True, help="Folder.")
        @wraps(make)
        def main(out: Path) -> None:
            try:
                tables = make()
            except LopsideError as error:
                raise click.ClickException(str(error)) from error
            with new_folder(out) as folder:
                for name, table in tables.items():
                    table.to_json(folder / f"{name}.jsonl", orient="records", lines=True, force_ascii=False)
            print(f"{out}: " + ", ".join(f"{len(table):,} {name}" for name, table in tables.items()))

        return main

    return command
