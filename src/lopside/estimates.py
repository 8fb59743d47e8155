"""Figures with their intervals: means, differences and ratios of them, and a plain regression."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache
from typing import NamedTuple

import numpy as np

from lopside.intervals import CONFIDENCE


class Estimate(NamedTuple):
    """A figure and the ends of its 95% interval."""

    value: float
    low: float
    high: float


IN_POINTS, IN_TIMES = "{:+.2f} [{:+.2f}, {:+.2f}]", "{:.2f}x [{:.2f}, {:.2f}]"
"""How an estimate is written, by ``IN_POINTS.format(*estimate)``."""


def mean(estimates: Sequence[Estimate]) -> Estimate:
    """The mean of one or more, its ends the means of their ends.

    As wide as if they erred together, as figures of the same documents and the same machine do; for others too wide.
    """
    return Estimate(*(sum(ends) / len(estimates) for ends in zip(*estimates, strict=True)))


def difference(one: Estimate, other: Estimate) -> Estimate:
    """``one`` minus ``other``, its interval as if they erred independently of each other.

    Figures of the same documents err together, which this does not count on: for them it is too wide. The ends are
    those of Zou & Donner 2008 (MOVER), which keep the lopsidedness of the two intervals.
    """
    value = one.value - other.value
    down = math.hypot(one.value - one.low, other.high - other.value)
    up = math.hypot(one.high - one.value, other.value - other.low)
    return Estimate(value, value - down, value + up)


def ratio(one: Estimate, other: Estimate) -> Estimate:
    """``one`` / ``other``, all above 0, its interval as in :func:`difference`, of the logarithms."""
    return _mapped(math.exp, difference(_mapped(math.log, one), _mapped(math.log, other)))


def geometric_mean(estimates: Sequence[Estimate]) -> Estimate:
    """As :func:`mean`, of the logarithms."""
    return _mapped(math.exp, mean([_mapped(math.log, estimate) for estimate in estimates]))


def least_squares(rows: Sequence[Sequence[float]], values: Sequence[float]) -> list[Estimate] | None:
    """The coefficients of ``values``, one a row, on the columns of ``rows``, without an intercept, with 95% intervals.

    The intervals are Student's, for errors that are independent and alike. None where the rows are too few (there must
    be more than columns), or do not tell the columns apart.
    """
    matrix, right = np.array(rows, dtype=np.float64), np.array(values, dtype=np.float64)
    if matrix.ndim != 2 or len(matrix) <= matrix.shape[1] or np.linalg.matrix_rank(matrix) < matrix.shape[1]:
        return None
    coefficients, *_ = np.linalg.lstsq(matrix, right)
    freedom = len(matrix) - matrix.shape[1]
    residuals = right - matrix @ coefficients
    variances = np.diag(np.linalg.inv(matrix.T @ matrix)) * (residuals @ residuals) / freedom
    reach = student_quantile((1 + CONFIDENCE) / 2, freedom) * np.sqrt(variances)
    return [
        Estimate(float(value), float(value - width), float(value + width))
        for value, width in zip(coefficients, reach, strict=True)
    ]


@cache
def student_quantile(probability: float, freedom: int) -> float:
    """The quantile of Student's t for a probability of 1/2 or more, to six digits or so.

    With t = sqrt(freedom) tan(a), the angle a has a density proportional to cos(a) to the power of freedom - 1.
    """
    angles = np.linspace(0, np.pi / 2, 200_001)
    density = np.cos(angles) ** (freedom - 1)
    covered = np.concatenate([[0], np.cumsum((density[1:] + density[:-1]) / 2)])
    angle = np.interp(probability - 0.5, covered / covered[-1] / 2, angles)
    return float(np.sqrt(freedom) * np.tan(angle))


def _mapped(function: Callable[[float], float], estimate: Estimate) -> Estimate:
    return Estimate(*map(function, estimate))
