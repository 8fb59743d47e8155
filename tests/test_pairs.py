"""Pairs of calls, with a clock that we turn: what is measured, when it ends, how far to trust the interval."""

import gc
import random
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from lopside import pairs
from lopside.intervals import Looks, median_interval
from lopside.pairs import Done, Pair, Timing, WallClock, time_pairs, warm_up


class Clock:
    """Time that passes only when a call lets it."""

    def __init__(self) -> None:
        self.now = 100.0

    def mark(self) -> float:
        return self.now

    def seconds(self, start: float, end: float) -> float:
        return end - start

    def call(self, seconds: float | Callable[[], float], told: Done | None = None) -> Callable[[], Done | None]:
        """A call that takes this long; ``seconds`` may be a function that tells it anew each time."""

        def pass_time() -> Done | None:
            self.now += seconds() if callable(seconds) else seconds
            return told

        return pass_time


def until(max_seconds: float, min_pairs: int = 6, precision: float = 1e-9) -> dict[str, Any]:
    """Settings of `time_pairs`; by the default precision, equal ratios alone end it before the time does."""
    return {"min_pairs": min_pairs, "max_seconds": max_seconds, "precision": precision}


# How far the interval can be trusted: dense and pruned are equal in 1,000 simulated runs, and 1.00 is to lie within.


def independent(rng: random.Random) -> Iterator[float]:
    while True:
        yield rng.lognormvariate(0, 0.04)


def autocorrelated(rng: random.Random) -> Iterator[float]:
    """Slow phases: each call is like the one before it."""
    level = rng.gauss(0, 0.1)
    while True:
        level = 0.9 * level + rng.gauss(0, 0.1 * (1 - 0.9**2) ** 0.5)
        yield 2.718281828**level


def heavy_tailed(rng: random.Random) -> Iterator[float]:
    """One call in seven is interrupted, and for how long has no mean."""
    while True:
        yield rng.lognormvariate(0, 0.02) + (rng.paretovariate(0.9) / 5 if rng.random() < 1 / 7 else 0)


def drifting(rng: random.Random) -> Iterator[float]:
    """A machine that becomes faster or slower as it goes, by up to a half."""
    pace = rng.uniform(-0.5, 0.5)
    for number in range(10_000):
        yield (1 + pace * number / (number + 100)) * rng.lognormvariate(0, 0.04)


def held(noise: Callable[[random.Random], Iterator[float]], truth: float = 1.0, delay: float = 0.0) -> tuple[int, int]:
    """Of 1,000 runs: how many hold the truth in their interval, and how many ended by precision.

    Both sides take ``truth`` and 1 second but for noise; dense takes ``delay`` more, without noise.
    """
    rng = random.Random(0)
    hold = precise = 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gc, "collect", lambda: 0)  # which is slow, and there is no garbage
        for _ in range(1000):
            clock, noises = Clock(), noise(rng)
            timing = time_pairs(
                clock.call(lambda noises=noises: truth * next(noises) + delay),  # type: ignore[misc]
                clock.call(lambda noises=noises: next(noises)),  # type: ignore[misc]
                **until(max_seconds=150, precision=0.03),
                clock=clock,
            )
            hold += timing.low <= truth + delay <= timing.high
            precise += timing.ended == "precision"
    return hold, precise


@pytest.mark.parametrize("noise", [independent, autocorrelated, heavy_tailed, drifting])
def test_equal_sides_hold_one_as_often_as_promised(noise: Callable[[random.Random], Iterator[float]]) -> None:
    hold, precise = held(noise)
    assert hold >= 930
    assert precise >= 300  # so that it is stopping early that is tested


def test_unequal_sides_and_a_known_delay_are_measured_right_as_often() -> None:
    assert held(independent, truth=1.7)[0] >= 930
    # dense = noise + 0.25, so that the median of the ratio is 1.25 but for a thousandth
    assert held(independent, delay=0.25)[0] >= 930


# What ends it


def test_it_ends_when_the_speedup_is_known_well_enough() -> None:
    clock, rng = Clock(), random.Random(1)
    timing = time_pairs(
        clock.call(lambda: 2.0 * rng.uniform(0.95, 1.05)),
        clock.call(lambda: 1.0 * rng.uniform(0.95, 1.05)),
        **until(max_seconds=1e6, precision=0.02),
        clock=clock,
    )
    assert timing.ended == "precision"
    assert timing.low <= 2 <= timing.high
    assert timing.precision == pytest.approx((timing.high - timing.low) / 2 / timing.speedup)
    assert timing.precision <= 0.02
    worse = time_pairs(
        clock.call(lambda: 2.0 * rng.uniform(0.95, 1.05)),
        clock.call(lambda: 1.0 * rng.uniform(0.95, 1.05)),
        **until(max_seconds=1e6, precision=0.01),
        clock=clock,
    )
    assert len(worse.pairs) > 2 * len(timing.pairs)


def test_looks_are_few_and_set_beforehand(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, bool]] = []

    class Seen(Looks):
        def interval(self, values: Any, last: bool = False) -> tuple[float, float] | None:
            seen.append((len(values), last))
            return super().interval(values, last)

    monkeypatch.setattr(pairs, "Looks", Seen)
    clock, rng = Clock(), random.Random(2)
    timing = time_pairs(
        clock.call(lambda: rng.lognormvariate(0, 1)), clock.call(1.0), **until(max_seconds=170), clock=clock
    )
    assert [count for count, _ in seen[:6]] == [6, 10, 16, 24, 34, 50]  # times the root of 2, up to an even number
    assert [last for _, last in seen] == [False] * (len(seen) - 1) + [True]
    assert seen[-1][0] == len(timing.pairs)


def test_it_ends_when_the_time_is_over() -> None:
    clock, rng = Clock(), random.Random(3)
    noise = partial(rng.uniform, 0.9, 1.1)
    timing = time_pairs(clock.call(noise), clock.call(noise), **until(max_seconds=33), clock=clock)
    assert timing.ended == "seconds"
    assert len(timing.pairs) == 18  # twos of some 4 s begin until 33 s are over
    few = time_pairs(clock.call(noise), clock.call(noise), **until(max_seconds=1, min_pairs=9), clock=clock)
    assert len(few.pairs) == 10
    assert (few.low, few.high) == median_interval([pair.ratio for pair in few.pairs])  # a single look has all of the 5%


def test_fewer_pairs_than_an_interval_needs_are_refused() -> None:
    with pytest.raises(ValueError, match="5 pairs are too few"):
        time_pairs(lambda: None, lambda: None, **until(max_seconds=1, min_pairs=5))


# What is measured


def test_pairs_alternate_and_tell_what_was_told() -> None:
    clock = Clock()
    called: list[str] = []

    def side(name: str, seconds: float, told: Done | None) -> Callable[[], Done | None]:
        def call() -> Done | None:
            called.append(name)
            clock.now += seconds
            return told

        return call

    timing = time_pairs(side("d", 3.0, Done(7)), side("p", 1.0, None), **until(max_seconds=0), clock=clock)
    assert "".join(called) == "dppd" * 3
    assert [pair.first for pair in timing.pairs] == ["dense", "pruned"] * 3
    assert [pair.order for pair in timing.pairs[:2]] == [("dense", "pruned"), ("pruned", "dense")]
    assert {(pair.dense, pair.pruned, pair.ratio) for pair in timing.pairs} == {(3.0, 1.0, 3.0)}
    assert timing.seconds("dense") == [3.0] * 6
    assert timing.told("dense") == [(3.0, Done(7))] * 6
    assert timing.told("pruned") == []
    assert (timing.low, timing.speedup, timing.high, timing.precision) == (3.0, 3.0, 3.0, 0.0)


def test_being_second_favours_neither_side() -> None:
    clock = Clock()
    calls = [0]

    def seconds() -> float:
        calls[0] += 1
        return 1.0 if calls[0] % 2 else 1.3  # every second call is slow

    timing = time_pairs(clock.call(seconds), clock.call(seconds), **until(max_seconds=30), clock=clock)
    assert timing.low < 1 < timing.high
    assert sorted(timing.seconds("dense")) == sorted(timing.seconds("pruned"))


@pytest.mark.parametrize("was_on", [True, False])
def test_no_garbage_is_collected_while_timing_and_the_setting_is_put_back(was_on: bool) -> None:
    seen = []

    def call() -> None:
        seen.append(gc.isenabled())

    def fail() -> None:
        raise KeyError

    before = gc.isenabled()
    try:
        (gc.enable if was_on else gc.disable)()
        time_pairs(call, call, **until(max_seconds=0))
        warm_up(call, call, least=1, max_seconds=0)
        assert gc.isenabled() is was_on
        with pytest.raises(KeyError):
            time_pairs(call, fail, **until(max_seconds=0))
        assert gc.isenabled() is was_on
    finally:
        (gc.enable if before else gc.disable)()
    assert seen
    assert not any(seen)


def test_a_known_delay_is_measured_right_by_a_real_clock() -> None:
    """The processor's time of this thread: what others take of the machine is not counted."""

    class ThreadClock(WallClock):
        def mark(self) -> float:
            return time.thread_time()

    def spin(seconds: float) -> None:
        end = time.thread_time() + seconds
        while time.thread_time() < end:
            pass

    timing = time_pairs(
        partial(spin, 0.0025), partial(spin, 0.002), **until(max_seconds=0.2, precision=0.001), clock=ThreadClock()
    )
    assert timing.speedup == pytest.approx(1.25, rel=0.01)
    assert timing.seconds("pruned") == pytest.approx([0.002] * len(timing.pairs), rel=0.25)


def test_the_wall_clock_counts_seconds() -> None:
    clock = WallClock()
    start = clock.mark()
    time.sleep(0.05)
    assert 0.05 <= clock.seconds(start, clock.mark()) < 5


# Warming up


@pytest.mark.parametrize(
    ("took", "least", "max_seconds", "pairs_run"),
    [
        ([9, 5, 3, 2.9, 3], 1, 100, 4),  # the fourth took 97% of the third
        ([9, 5, 3, 2.9, 3, 3], 5, 100, 5),
        ([9, 5, 3, 2.9], 1, 0, 1),
        ([9, 5, 3, 2.9], 2, 0, 2),
        ([9, 5, 3, 2.9], 0, 0, 0),
        ([9, 5, 3, 2.9], 1, 20, 2),  # 9 s are one pair's 18, 28 after the next
        ([2, 3], 1, 100, 2),
    ],
)
def test_warming_up_ends_when_it_helps_no_more(
    took: list[float], least: int, max_seconds: float, pairs_run: int
) -> None:
    clock = Clock()
    dense, pruned = iter(took), iter(took)
    calls = (clock.call(partial(next, dense)), clock.call(partial(next, pruned)))
    assert warm_up(*calls, least=least, max_seconds=max_seconds, clock=clock) == pairs_run
    assert len(list(dense)) == len(list(pruned)) == len(took) - pairs_run


def test_it_agrees_with_torchs_own_timer() -> None:
    """On a clock that we turn; `tests.timer_check` compares both on a real model and a quiet machine."""
    from torch.utils.benchmark import Timer

    clock, rng = Clock(), random.Random(4)
    took: list[float] = []

    def seconds() -> float:
        took.append(rng.lognormvariate(0, 0.5))
        return took[-1]

    call = clock.call(seconds)
    timing = time_pairs(call, call, **until(max_seconds=0), clock=clock)
    assert sorted(timing.seconds("dense") + timing.seconds("pruned")) == pytest.approx(sorted(took))
    took.clear()
    other = Timer("call()", globals={"call": call}, timer=clock.mark)
    theirs = [other.timeit(1).median for _ in range(12)]
    assert theirs == pytest.approx(took[2::3])  # two calls to warm up, one that counts


# The interval as a figure


def test_speedup_is_the_median_ratio() -> None:
    times = [(2, 1), (4, 2), (6, 2), (8, 2), (10, 2), (3, 3)]  # ratios 2 2 3 4 5 1
    timing = Timing([Pair(dense, pruned, "dense") for dense, pruned in times], 1.0, 5.0, "seconds")
    assert timing.speedup == 2.5
    assert timing.precision == 2 / 2.5


def test_the_timer_imports_neither_torch_nor_numpy() -> None:
    import subprocess
    import sys

    code = "import sys, lopside.pairs; print({'torch', 'numpy', 'transformers'} & {*sys.modules})"
    root = Path(__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-c", code], env={"PYTHONPATH": str(root / "src")}, capture_output=True, text=True, check=True
    )
    assert done.stdout == "set()\n"
