"""The text that docs-bart-mini learns from: docstrings of the wheels in wheels.lock, far from validation and test."""

from pathlib import Path

import click

from lopside.docstrings import deduplicate, leave_out
from lopside.files import new_file
from lopside.sources import fetch_wheels, frame_of, pairs_of, read_wheels_at_once
from lopside.splits import read_split

HERE = Path(__file__).parent


@click.command()
def main() -> None:
    """Write outputs/pairs.parquet: every pair that is neither in nor near the validation and test splits."""
    held_out = [pair for name in ("validation", "test") for pair in pairs_of(read_split(name))]
    found = read_wheels_at_once(fetch_wheels(HERE / "wheels.lock"))
    pairs = leave_out(deduplicate(found), held_out)
    with new_file(HERE / "outputs/pairs.parquet") as temporary:
        frame_of(pairs).to_parquet(temporary, index=False)
    print(f"{len(found):,} pairs found, {len(pairs):,} kept")


if __name__ == "__main__":
    main()
