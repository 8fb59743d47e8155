import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lopside.estimates import Estimate, difference, geometric_mean, least_squares, mean, ratio, student_quantile

FIGURE = st.floats(0.1, 100)
ESTIMATES = st.builds(lambda value, down, up: Estimate(value, value - down, value + up), *[FIGURE] * 3)


def test_a_mean_has_the_means_of_the_ends() -> None:
    assert mean([Estimate(1, 0, 3), Estimate(2, 1, 4)]) == (1.5, 0.5, 3.5)


def test_the_reaches_of_a_difference_are_added_in_squares_each_to_its_side() -> None:
    # Down: 3 of the one below and 4 of the other above; up: 5 and 12.
    assert difference(Estimate(10, 7, 15), Estimate(2, -10, 6)) == (8, 8 - 5, 8 + 13)


@given(ESTIMATES, ESTIMATES)
def test_a_difference_turns_round_and_is_wider_than_either(one: Estimate, other: Estimate) -> None:
    forth, back = difference(one, other), difference(other, one)
    assert forth == pytest.approx((-back.value, -back.high, -back.low))
    assert forth.high - forth.low >= max(one.high - one.low, other.high - other.low) - 1e-9


def test_a_ratio_is_a_difference_of_logarithms() -> None:
    e = math.e
    assert ratio(Estimate(e**10, e**7, e**15), Estimate(e**2, e**-10, e**6)) == pytest.approx((e**8, e**3, e**21))
    assert geometric_mean([Estimate(1, 1, 4), Estimate(4, 1, 9)]) == pytest.approx((2, 1, 6))


@pytest.mark.parametrize(
    ("freedom", "expected"), [(1, 12.7062), (2, 4.30265), (5, 2.57058), (10, 2.22814), (30, 2.04227)]
)
def test_students_quantile_is_that_of_the_tables(freedom: int, expected: float) -> None:
    assert student_quantile(0.975, freedom) == pytest.approx(expected, rel=1e-5)
    assert student_quantile(0.5, freedom) == 0


def test_least_squares_by_hand() -> None:
    # One column of ones: the mean, 2, and the textbook interval of a mean, t * s / sqrt(n) with s = 1.
    (found,) = least_squares([[1], [1], [1]], [1, 2, 3]) or []
    reach = 4.302653 / math.sqrt(3)
    assert found == pytest.approx((2, 2 - reach, 2 + reach), rel=1e-5)


@given(st.floats(-5, 5), st.floats(-5, 5))
def test_least_squares_finds_what_was_put_in(encoder: float, decoder: float) -> None:
    rows = [(1, 0), (0, 1), (2, 3), (5, 5)]
    found = least_squares(rows, [encoder * x + decoder * y for x, y in rows])
    assert found
    assert [each.value for each in found] == pytest.approx([encoder, decoder], abs=1e-9)
    assert all(each.high - each.low < 1e-9 for each in found)


@pytest.mark.parametrize("rows", [[], [(1, 2)], [(1, 2), (3, 4)], [(1, 1), (2, 2), (3, 3)]])
def test_too_few_rows_or_rows_that_tell_nothing_apart_have_no_fit(rows: list[tuple[int, int]]) -> None:
    assert least_squares(rows, [1.0] * len(rows)) is None
