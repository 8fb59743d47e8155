"""Batches of like lengths: each pair once, little padding, and a chance order that seed and epoch give again."""

import random
from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from lopside.batches import LikeLengths

LENGTHS = st.lists(st.tuples(st.integers(0, 90), st.integers(0, 40)), max_size=60)


def batches(lengths: list[tuple[int, int]], size: int, seed: int = 0, epoch: int = 0) -> list[list[int]]:
    order = LikeLengths(lengths, size, seed)
    order.set_epoch(epoch)
    rows = list(order)
    return [rows[start : start + size] for start in range(0, len(rows), size)]


def padded(lengths: list[tuple[int, int]], grouped: list[list[int]]) -> int:
    """Tokens with the padding."""
    sides = [list(zip(*(lengths[row] for row in batch), strict=True)) for batch in grouped]
    return sum(len(batch) * sum(map(max, side)) for batch, side in zip(grouped, sides, strict=True))


@given(LENGTHS, st.integers(1, 9), st.integers(0, 3), st.integers(0, 3))
def test_each_pair_comes_once_and_the_same_order_comes_again(
    lengths: list[tuple[int, int]], size: int, seed: int, epoch: int
) -> None:
    found = batches(lengths, size, seed, epoch)

    assert sorted(row for batch in found for row in batch) == list(range(len(lengths)))
    assert len(LikeLengths(lengths, size, seed)) == len(lengths)
    assert all(len(batch) == size for batch in found[:-1])
    assert found == batches(lengths, size, seed, epoch)


def test_pairs_of_equal_lengths_share_a_batch() -> None:
    lengths = [(source, target) for source in (80, 30, 5) for target in (40, 20, 4) for _ in range(4)]

    found = batches(lengths, 4)

    assert all(len({lengths[row] for row in batch}) == 1 for batch in found)
    assert lengths[found[0][0]] == (80, 40)  # the most memory, at once


def test_neighbours_are_alike_where_a_range_of_sources_ends() -> None:
    # The longest sources are in a range with their targets from 9 down to 1, those of the next from 1 up to 9.
    lengths = [(80, target) for target in range(1, 10)] + [(65, target) for target in range(1, 10)]

    found = batches(lengths, 6)

    assert sorted(sorted(lengths[row] for row in batch) for batch in found) == [
        [(65, 1), (65, 2), (65, 3), (80, 1), (80, 2), (80, 3)],
        [(65, target) for target in (4, 5, 6, 7, 8, 9)],
        [(80, target) for target in (4, 5, 6, 7, 8, 9)],
    ]


def test_another_epoch_mixes_batches_and_who_shares_them() -> None:
    lengths = [(10 + row % 3, 5) for row in range(90)]

    one, other = (batches(lengths, 10, epoch=epoch) for epoch in (0, 1))

    assert one != other
    assert Counter(map(frozenset, one)) != Counter(map(frozenset, other))
    assert one != batches(lengths, 10, seed=1)


def test_batches_do_not_go_from_the_longest_to_the_shortest() -> None:
    found = batches([(10 * (1 + row // 4), 5) for row in range(32)], 4)

    sources = [10 * (1 + batch[0] // 4) for batch in found]
    assert sorted(sources) == [10, 20, 30, 40, 50, 60, 70, 80]
    assert sources[0] == 80
    assert sources != sorted(sources, reverse=True)


def test_there_is_a_tenth_less_padded_than_by_the_grouping_of_transformers() -> None:
    """On lengths such as those of the docstrings: most sources cut, targets of any length."""
    from torch import Generator
    from transformers.trainer_pt_utils import get_length_grouped_indices

    chance = random.Random(0)
    lengths = [
        (min(80, 5 + int(chance.expovariate(1 / 100))), 3 + min(37, int(chance.expovariate(1 / 14))))
        for _ in range(2560)
    ]
    by_both = [source * 41 + target for source, target in lengths]  # by the source, and then by the target
    theirs = get_length_grouped_indices(by_both, 32, generator=Generator().manual_seed(0))

    ours, grouped = padded(lengths, batches(lengths, 32)), [theirs[start : start + 32] for start in range(0, 2560, 32)]

    assert ours < 0.9 * padded(lengths, grouped)
    assert ours < 1.06 * sum(map(sum, lengths))
