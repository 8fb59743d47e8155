"""Intervals of the median, of one look and of many."""

import random
from itertools import accumulate, product
from math import comb

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lopside.intervals import Looks, median_interval


@pytest.mark.parametrize(
    ("count", "rank"),
    # 1 - 2 P(Binomial(n, 1/2) < rank), by hand: 6: 1 - 2/64 = 0.969; 8: 1 - 2/256 = 0.992, (2nd) 1 - 2 * 9/256 = 0.930;
    # 9: 1 - 2 * 10/512 = 0.961; 10: 1 - 2 * 11/1024 = 0.979, (3rd) 1 - 2 * 56/1024 = 0.891;
    # 12: 1 - 2 * 79/4096 = 0.961; 100: 40th to 61st, 0.9648 (David & Nagaraja).
    [(6, 1), (7, 1), (8, 1), (9, 2), (10, 2), (11, 2), (12, 3), (100, 40)],
)
def test_interval_is_two_order_statistics(count: int, rank: int) -> None:
    values = [float(value) for value in range(1, count + 1)]
    random.Random(count).shuffle(values)
    assert median_interval(values) == (rank, count + 1 - rank)


@given(st.integers(6, 300), st.sampled_from([0.8, 0.9, 0.95]))
def test_interval_is_the_narrowest_that_covers_enough(count: int, confidence: float) -> None:
    low, high = median_interval(range(count), confidence)
    assert low + high == count - 1  # as far from one end as from the other

    def coverage(rank: float) -> float:
        return 1 - 2 * sum(comb(count, below) * 0.5**count for below in range(int(rank)))

    assert coverage(low + 1) >= confidence - 1e-12
    assert coverage(low + 2) < confidence + 1e-12


@given(st.integers(0, 5))
def test_too_few_values_give_no_interval(count: int) -> None:
    with pytest.raises(ValueError, match="too few"):
        median_interval([1.0] * count)
    assert Looks().interval([1.0] * count, last=True) is None


def test_two_looks_by_hand() -> None:
    # At 10 values a fifth of the 5% may be spent. 0 or 10 below the median: 2/1024 = 0.2%; 1 or 9: 20/1024 more, 2.1%
    # together. So only the ends. At 12, the last look, whoever has been from 1 to 9: 2 or fewer below the median
    # takes 1 then with at most one more, or 2 with none: 10/1024 * 3/4 + 45/1024 * 1/4 = 1.8%, both sides 3.7%, 3.9%
    # with the first look. 3 below: 10/1024 * 1/4 + 45/1024 * 1/2 + 120/1024 * 1/4 = 5.4% more on one side alone.
    looks = Looks()
    assert looks.interval(range(1, 11)) == (1, 10)
    assert looks.interval(range(1, 13), last=True) == (3, 10)
    # Of a first look at 6, 2/64 = 3.1% would be too much; for the last it is not.
    assert Looks().interval(range(6)) is None
    assert Looks().interval(range(6), last=True) == (0, 5)


def missed(counts: tuple[int, ...], ranks: list[int]) -> float:
    """How often at least one of the looks misses the median, of all rows of values: each below or above it."""
    rows = [list(accumulate(row)) for row in product((0, 1), repeat=counts[-1])]
    looks = list(zip(counts, ranks, strict=True))
    return sum(any(not rank <= below[count - 1] <= count - rank for count, rank in looks) for below in rows) / len(rows)


@pytest.mark.parametrize("counts", [(6, 10), (6, 7, 9), (6, 8, 10, 12, 14), (10, 11, 12, 13, 14), (9, 14)])
def test_all_looks_together_miss_no_more_often_than_promised(counts: tuple[int, ...]) -> None:
    looks = Looks()
    intervals = [looks.interval(range(count), last=count == counts[-1]) for count in counts]
    ranks = [0 if interval is None else round(interval[0]) + 1 for interval in intervals]
    assert ranks[-1] > 0
    assert missed(counts, ranks) <= 0.05
    assert missed(counts, [*ranks[:-1], ranks[-1] + 1]) > 0.05  # what may be spent is spent


def test_looks_that_promise_as_much_each_by_itself_miss_too_often_together() -> None:
    counts = (6, 8, 10, 12, 14)
    assert missed(counts, [round(median_interval(range(count))[0]) + 1 for count in counts]) > 0.05


def test_many_looks_are_wider_than_one_but_not_by_much() -> None:
    looks = Looks()
    count, widths = 6, []
    while count < 1000:
        interval = looks.interval(range(count))
        alone = median_interval(range(count))
        if interval is not None:
            widths.append((interval[1] - interval[0]) / (alone[1] - alone[0]))
        count = round(count * 2**0.5)
    assert 1 < max(widths) < 1.75
    assert min(widths) >= 1
