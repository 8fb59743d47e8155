"""The text that docs-bart-mini learns from: docstrings of the wheels in wheels.lock, far from validation and test."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import click

from lopside.docstrings import BODY_WORDS, SAME, Pair, deduplicate, leave_out, near
from lopside.files import new_file
from lopside.sources import fetch_wheels, frame_of, pairs_of, read_wheels_at_once
from lopside.splits import read_split

HERE = Path(__file__).parent


def to_learn(found: Sequence[Pair], held_out: Sequence[Pair]) -> list[Pair]:
    """The pairs to learn from, in the order of ids: neither in nor near the held-out ones, each summary once.

    Of those with a body of a few words or none, which are as many again, equal summaries alone count as copies: all
    of them are alike by their words. A pair of any length whose summary's words are those of a held-out one, or alike
    by ``SAME``, is left out.
    """
    long = deduplicate(pair for pair in found if len(pair.body.split()) >= BODY_WORDS)
    known = {pair.summary.lower() for pair in long}
    short: dict[str, Pair] = {}
    for pair in sorted(found, key=lambda pair: (pair.id, pair.source)):
        if len(pair.body.split()) < BODY_WORDS and pair.summary.lower() not in known:
            short.setdefault(pair.summary.lower(), pair)
    others = leave_out([*long, *short.values()], held_out)
    ours, theirs = ([replace(pair, body="") for pair in each] for each in (others, held_out))
    alike = {index for index, _ in near(ours, theirs, SAME)}
    return sorted((pair for index, pair in enumerate(others) if index not in alike), key=lambda pair: pair.id)


@click.command()
def main() -> None:
    """Write outputs/pairs.parquet: every pair that is neither in nor near the validation and test splits."""
    held_out = [pair for name in ("validation", "test") for pair in pairs_of(read_split(name))]
    found = read_wheels_at_once(fetch_wheels(HERE / "wheels.lock"), body_words=0)
    pairs = to_learn(found, held_out)
    with new_file(HERE / "outputs/pairs.parquet") as temporary:
        frame_of(pairs).to_parquet(temporary, index=False)
    short = sum(len(pair.body.split()) < BODY_WORDS for pair in pairs)
    print(f"{len(found):,} pairs found, {len(pairs):,} kept, {short:,} of them with a body below {BODY_WORDS} words")


if __name__ == "__main__":
    main()
