"""Time two calls side by side, whatever they do.

Both are called in one process, one call of each making a pair, the order turned round at every pair: what slows the
machine down for a while then slows both, and the ratio within a pair hardly feels it. The speedup is the median of
these ratios. Nothing here knows of models or imports torch.
"""

from __future__ import annotations

import gc
import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from lopside.intervals import Looks

Side = Literal["dense", "pruned"]
SIDES: tuple[Side, Side] = ("dense", "pruned")

FEWEST_PAIRS = 6
"""With fewer, no order statistics enclose the median with 95% confidence."""
GROWTH = math.sqrt(2)
"""Pairs at a look, as a multiple of those at the look before: every look costs some of the interval's confidence."""
STEADY = 0.95
"""A warm-up pair that takes at least this share of the one before it was warm."""


class Clock(Protocol):
    """Marks moments and tells the seconds between two of them; whoever asks waits until both have come."""

    def mark(self) -> Any: ...

    def seconds(self, start: Any, end: Any) -> float: ...


class WallClock:
    """For calls that return when their work is done."""

    def mark(self) -> float:
        return time.perf_counter()

    def seconds(self, start: float, end: float) -> float:
        return end - start


@dataclass(frozen=True)
class Done:
    """What a call tells of its work."""

    tokens: int
    """Generated, all documents of the batch together."""
    encoder: float | None = None
    """Seconds in the encoder."""
    first: float | None = None
    """Seconds from the call's beginning until the first token could be chosen."""


Call = Callable[[], Done | None]
"""Summarises one batch. Both sides of a pair get the same documents; the next pair may have others."""


@dataclass(frozen=True)
class Pair:
    """Seconds that one call of each side took, back to back."""

    dense: float
    pruned: float
    first: Side
    """The side that was called first."""
    told: Mapping[Side, Done | None] = field(default_factory=dict)

    @property
    def ratio(self) -> float:
        return self.dense / self.pruned

    @property
    def order(self) -> tuple[Side, Side]:
        return _order(self.first)


@dataclass(frozen=True)
class Timing:
    """The pairs of one measurement, and how far to trust them."""

    pairs: Sequence[Pair]
    low: float
    high: float
    """The median ratio's 95% interval, whatever ended the measurement."""
    ended: Literal["precision", "seconds"]

    def seconds(self, side: Side) -> list[float]:
        """What each call of a side took."""
        return [getattr(pair, side) for pair in self.pairs]

    def told(self, side: Side) -> list[tuple[float, Done]]:
        """The same of those calls that told of their work, with what they told."""
        return [(getattr(pair, side), done) for pair in self.pairs if (done := pair.told.get(side)) is not None]

    @property
    def speedup(self) -> float:
        return statistics.median(pair.ratio for pair in self.pairs)

    @property
    def precision(self) -> float:
        """Half the interval's width, as a share of the speedup."""
        return (self.high - self.low) / 2 / self.speedup


def warm_up(dense: Call, pruned: Call, *, least: int, max_seconds: float, clock: Clock | None = None) -> int:
    """Call both sides, pair by pair, until that makes them no faster, and return the number of pairs.

    That is, until a pair takes at least `STEADY` of the time of the one before, but ``least`` pairs anyhow, and no more
    than these once ``max_seconds`` seconds are over.
    """
    clock = clock or WallClock()
    calls: dict[Side, Call] = {"dense": dense, "pruned": pruned}
    took: list[float] = []
    with without_garbage_collection():
        start = clock.mark()
        while len(took) < least or not (
            (len(took) > 1 and took[-1] >= STEADY * took[-2]) or clock.seconds(start, clock.mark()) >= max_seconds
        ):
            pair = _pair(calls, SIDES[len(took) % 2], clock)
            took.append(pair.dense + pair.pruned)
    return len(took)


def time_pairs(
    dense: Call,
    pruned: Call,
    *,
    min_pairs: int,
    max_seconds: float,
    precision: float,
    clock: Clock | None = None,
) -> Timing:
    """Call both sides in turn, pair by pair, until the speedup is known well enough or the time is over.

    Pairs come in twos, dense first and then pruned first, so that being first or second favours neither side. The
    interval is looked at when there are ``min_pairs`` pairs and whenever there are `GROWTH` times as many again; it
    ends the measurement where half its width is at most ``precision``, a share of the speedup. No two more begin after
    ``max_seconds`` seconds, but there are ``min_pairs`` pairs anyhow. The interval's 95% hold however it ended, see
    `lopside.intervals.Looks`. Garbage is collected between pairs, never within one.

    Raises ValueError where ``min_pairs`` is less than `FEWEST_PAIRS`, and whatever the calls raise.
    """
    if min_pairs < FEWEST_PAIRS:
        raise ValueError(f"{min_pairs} pairs are too few for a 95% interval; {FEWEST_PAIRS} or more are needed")
    clock = clock or WallClock()
    calls: dict[Side, Call] = {"dense": dense, "pruned": pruned}
    pairs: list[Pair] = []
    looks, next_look = Looks(), min_pairs
    with without_garbage_collection():
        start = clock.mark()
        while True:
            pairs += [_pair(calls, first, clock) for first in SIDES]
            over = clock.seconds(start, clock.mark()) >= max_seconds
            if len(pairs) < (min_pairs if over else next_look):
                continue
            interval = looks.interval([pair.ratio for pair in pairs], last=over)
            if interval is not None:
                timing = Timing(pairs, *interval, ended="precision")
                if timing.precision <= precision:
                    return timing
                if over:
                    return Timing(pairs, *interval, ended="seconds")
            next_look = math.ceil(len(pairs) * GROWTH)


def _order(first: Side) -> tuple[Side, Side]:
    return ("dense", "pruned") if first == "dense" else ("pruned", "dense")


def _pair(calls: Mapping[Side, Call], first: Side, clock: Clock) -> Pair:
    gc.collect()
    seconds: dict[Side, float] = {}
    told: dict[Side, Done | None] = {}
    for side in _order(first):
        start = clock.mark()
        told[side] = calls[side]()
        seconds[side] = clock.seconds(start, clock.mark())
    return Pair(seconds["dense"], seconds["pruned"], first, told)


@contextmanager
def without_garbage_collection() -> Iterator[None]:
    """Within it garbage is collected only where that is asked for."""
    collecting = gc.isenabled()
    gc.disable()
    gc.freeze()  # what is there now (all of torch) need not be searched for garbage before every pair
    try:
        yield
    finally:
        gc.unfreeze()
        if collecting:
            gc.enable()
