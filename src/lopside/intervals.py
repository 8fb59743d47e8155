"""Confidence intervals of the median that assume no distribution: for one look at the values, or for many."""

from collections.abc import Sequence

CONFIDENCE = 0.95
HALF_SPENT = 4
"""The look by which half of the probability of a miss may be spent."""


class Looks:
    """Intervals at several looks at a growing row of values, such that all of them hold the median at once.

    Whoever goes on measuring until the interval is narrow looks many times and stops where it is narrow by chance:
    95% at each look would hold the median less often than that. Here 95% is for all looks together, so that it does not
    matter which of them ends the measuring, nor why.

    Of n independent values, the number that lie below the median is a walk: each value adds one with probability 1/2.
    The interval from the k-th smallest to the k-th largest misses the median when that number is below k or above
    n - k. How likely the walk is to be outside at a look, having been inside at those before it, is summed up exactly,
    and k is the greatest that keeps the sum, over all looks so far, within what may be spent by then: of the 5%, look j
    may have spent the share j / (j + HALF_SPENT), the last look all. What is left over at one look, k being whole, is
    spent at the next ones.

    Sources: Jennison & Turnbull 1984, *Repeated confidence intervals for group sequential clinical trials* (intervals
    that hold together); Lan & DeMets 1983, *Discrete sequential boundaries for clinical trials* (spending by a function
    that need not know how many looks there will be); David & Nagaraja 2003, *Order Statistics*, 7.1 (the interval of
    one look). That the time says which look is the last does no harm, as long as it does not depend on the values.
    """

    def __init__(self, confidence: float = CONFIDENCE) -> None:
        self._may_miss = 1 - confidence
        self._spent = 0.0
        self._looks = 0
        self._inside = [1.0]
        """At b: the probability that b values so far lie below the median and that no look has missed it."""

    def interval(self, values: Sequence[float], last: bool = False) -> tuple[float, float] | None:
        """The interval at the next look, two of ``values``; None where there are too few of them.

        ``values`` are those of the look before, and more. After the ``last`` look there can be no other.
        """
        for _ in range(len(self._inside), len(values) + 1):
            pairs = zip([0.0, *self._inside], [*self._inside, 0.0], strict=True)
            self._inside = [(added + stayed) / 2 for added, stayed in pairs]
        self._looks += 1
        allowed = self._may_miss * (1 if last else self._looks / (self._looks + HALF_SPENT))
        k, n = 0, len(values)
        while (spent := self._spent + self._inside[k] + self._inside[n - k]) <= allowed:
            self._inside[k] = self._inside[n - k] = 0.0
            self._spent = spent
            k += 1
        if k == 0:
            return None
        ordered = sorted(values)
        return ordered[k - 1], ordered[n - k]


def median_interval(values: Sequence[float], confidence: float = CONFIDENCE) -> tuple[float, float]:
    """The interval of a single look: two of the values. Few values give more confidence than asked, never less.

    10 give the 2nd and the 9th, 97.9%. Raises ValueError where there are too few (95%: fewer than 6).
    """
    interval = Looks(confidence).interval(values, last=True)
    if interval is None:
        raise ValueError(f"{len(values)} values are too few for a {confidence:.0%} interval of the median")
    return interval
