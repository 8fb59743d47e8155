"""Which layers stay: the authors' table, the rounding rule, refusals."""

import subprocess
import sys
from collections.abc import Callable
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lopside.errors import LopsideError
from lopside.selection import STRATEGIES, Stack, check_kept, keep_layers, kept_count

# FLAN-T5 small, base and large, typed from the table in the authors' src/prune.py.
PUBLISHED = {
    8: {
        1: [0],
        2: [0, 7],
        3: [0, 2, 5, 7],
        4: [0, 2, 4, 5, 7],
        5: [0, 2, 3, 4, 5, 7],
        6: [0, 1, 2, 3, 4, 5, 6, 7],
    },
    12: {
        1: [0, 11],
        2: [0, 3, 8, 11],
        3: [0, 2, 4, 6, 8, 10],
        4: [0, 2, 4, 5, 6, 7, 8, 11],
        5: [0, 1, 2, 4, 5, 6, 7, 8, 10, 11],
        6: [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11],
    },
    24: {
        1: [0, 5, 11, 23],
        2: [0, 1, 3, 7, 11, 15, 19, 23],
        3: [0, 2, 4, 6, 8, 12, 14, 16, 18, 20, 22, 23],
        4: [0, 1, 2, 4, 6, 7, 8, 12, 14, 15, 16, 18, 20, 21, 22, 23],
        5: [0, 1, 2, 3, 4, 6, 7, 8, 9, 12, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23],
        6: [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23],
    },
}

some_layers = st.integers(1, 60)
some_sixths = st.integers(1, 6)


@pytest.mark.parametrize("layers", PUBLISHED)
@pytest.mark.parametrize("sixths", range(1, 7))
def test_published_is_the_authors_table(layers: int, sixths: int) -> None:
    assert keep_layers(layers, sixths, "published") == tuple(PUBLISHED[layers][sixths])


@given(layers=some_layers.filter(lambda layers: layers not in PUBLISHED), sixths=some_sixths)
def test_published_is_refused_where_there_is_no_table(layers: int, sixths: int) -> None:
    with pytest.raises(LopsideError, match=rf"^keep.strategy: 'published' .* 8, 12, 24 .* has {layers};"):
        keep_layers(layers, sixths, "published")


def test_published_by_count() -> None:
    assert keep_layers(12, 8, "published", unit="layers") == keep_layers(12, 4, "published")
    with pytest.raises(LopsideError, match="'published' keeps 1, 2, 4, 5, 6, 8 of 8 layers, and not 3; choose another"):
        keep_layers(8, 3, "published", unit="layers")


@pytest.mark.parametrize(
    ("layers", "sixths", "count"),
    [(8, 1, 1), (8, 3, 4), (8, 5, 6), (12, 1, 2), (24, 5, 20), (4, 1, 1), (1, 1, 1), (5, 4, 3), (6, 6, 6), (7, 6, 7)],
)
def test_sixths_round_down_but_never_to_none(layers: int, sixths: int, count: int) -> None:
    assert kept_count(layers, sixths) == count


@pytest.mark.parametrize(
    ("layers", "sixths", "kept"),
    [
        (6, 2, (0, 5)),
        (6, 3, (0, 3, 5)),  # the middle is 2.5, and halves go up
        (6, 4, (0, 2, 3, 5)),  # 1.67, 3.33
        (6, 5, (0, 1, 3, 4, 5)),  # 1.25, 2.5, 3.75
        (6, 6, (0, 1, 2, 3, 4, 5)),
        (12, 3, (0, 2, 4, 7, 9, 11)),
        (24, 1, (0, 8, 15, 23)),
    ],
)
def test_uniform_by_hand(layers: int, sixths: int, kept: tuple[int, ...]) -> None:
    assert keep_layers(layers, sixths, "uniform") == kept


@pytest.mark.parametrize(("stack", "kept"), [("encoder", (0,)), ("decoder", (5,))])
def test_uniform_keeps_the_end_that_was_measured_to_be_better(stack: Stack, kept: tuple[int, ...]) -> None:
    assert keep_layers(6, 1, "uniform", stack=stack) == kept
    assert keep_layers(6, 2, "uniform", stack=stack) == (0, 5)


def test_first_and_last_by_hand() -> None:
    assert keep_layers(6, 2, "first") == (0, 1)
    assert keep_layers(6, 2, "last") == (4, 5)


@given(
    layers=some_layers,
    sixths=some_sixths,
    strategy=st.sampled_from(["uniform", "first", "last"]),
    stack=st.sampled_from(["encoder", "decoder"]),
)
def test_kept_are_sorted_distinct_in_range_and_as_many_as_asked(
    layers: int, sixths: int, strategy: str, stack: Stack
) -> None:
    kept = keep_layers(layers, sixths, strategy, stack=stack)
    assert list(kept) == sorted(set(kept))
    assert set(kept) <= set(range(layers))
    assert len(kept) == max(1, layers * sixths // 6)
    assert keep_layers(layers, len(kept), strategy, stack=stack, unit="layers") == kept


@given(layers=some_layers, data=st.data(), strategy=st.sampled_from(["uniform", "first", "last"]))
def test_layers_are_counts(layers: int, data: st.DataObject, strategy: str) -> None:
    count = data.draw(st.integers(1, layers))
    kept = keep_layers(layers, count, strategy, unit="layers")
    assert list(kept) == sorted(set(kept))
    assert set(kept) <= set(range(layers))
    assert len(kept) == count


@given(layers=some_layers, sixths=some_sixths)
def test_uniform_keeps_both_ends_and_spreads_evenly(layers: int, sixths: int) -> None:
    kept = keep_layers(layers, sixths, "uniform")
    if len(kept) > 1:
        assert (kept[0], kept[-1]) == (0, layers - 1)
        gaps = {later - earlier for earlier, later in pairwise(kept)}
        assert max(gaps) - min(gaps) <= 1


@given(layers=some_layers, strategy=st.sampled_from(["first", "last"]))
def test_keeping_more_from_an_end_drops_none_that_was_kept(layers: int, strategy: str) -> None:
    kept = [set(keep_layers(layers, sixths, strategy)) for sixths in range(1, 7)]
    assert all(fewer <= more for fewer, more in pairwise(kept))


@given(layers=some_layers, data=st.data())
def test_explicit_is_taken_as_it_is(layers: int, data: st.DataObject) -> None:
    kept = sorted(data.draw(st.sets(st.integers(0, layers - 1), min_size=1)))
    assert keep_layers(layers, 1, "explicit", kept) == tuple(kept)


REFUSALS: dict[str, tuple[Callable[[], object], str]] = {
    "a near miss": (
        lambda: keep_layers(6, 3, "unifrom"),
        "keep.strategy: 'unifrom' .*did you mean 'uniform'.*explicit",
    ),
    "far off": (lambda: keep_layers(6, 3, "zzz"), f"keep.strategy: 'zzz' is unknown. Allowed: {', '.join(STRATEGIES)}"),
    "sixths 0": (lambda: keep_layers(6, 0, "uniform"), "enc: 0 is not .* sixths from 1 to 6"),
    "sixths 7": (lambda: keep_layers(6, 7, "first"), "enc: 7 is not .* 1 to 6"),
    "sixths true": (lambda: keep_layers(6, True, "last"), "enc: True is not"),
    "no layers": (lambda: keep_layers(0, 3, "uniform"), "layers: 0 is not"),
    "13 of 12": (
        lambda: keep_layers(12, 13, "last", stack="decoder", unit="layers"),
        "dec: 13 is not a whole number of layers from 1 to 12",
    ),
    "a near unit": (lambda: keep_layers(6, 3, "first", unit="layer"), "keep.unit: 'layer' .*did you mean 'layers'"),
    "explicit absent": (lambda: keep_layers(6, 3, "explicit"), "keep.encoder: is empty.* 0 to 5"),
    "explicit twice": (lambda: check_kept([1, 1], 6, "keep.decoder"), r"keep.decoder: \[1, 1\] .* rising order"),
    "explicit falling": (lambda: check_kept([2, 1], 6, "keep.decoder"), r"keep.decoder: \[2, 1\] .* rising order"),
    "explicit too high": (lambda: check_kept([0, 6], 6, "keep.decoder"), r"keep.decoder: \[0, 6\] .* 0 to 5"),
    "explicit negative": (lambda: check_kept([-1, 0], 6, "keep.decoder"), r"keep.decoder: \[-1, 0\] .* 0 to 5"),
    "explicit true": (lambda: check_kept([0, True], 6, "keep.decoder"), r"keep.decoder: \[0, True\] is not a list"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_refused_by_key_and_value(case: str) -> None:
    call, message = REFUSALS[case]
    with pytest.raises(LopsideError, match=f"^{message}"):
        call()


def test_nothing_heavy_is_imported_with_the_modules() -> None:
    code = (
        "import sys, lopside.selection, lopside.architectures, lopside.models, lopside.pruning;"
        "print(sorted({'torch', 'transformers', 'safetensors'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
