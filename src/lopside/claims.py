"""The paper's five claims: what our rows say of each, what the authors' own published figures say, and a verdict.

A verdict goes by the interval: `holds` and `does not hold` where it lies on one side of the bound, else `undecided`;
`not measured` where rows are missing. An average is of two comparisons at least, or undecided. Intervals of ROUGE-2 are
those of `Study.delta` and `Study.deltas`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise
from typing import TypeVar

from lopside import published
from lopside.estimates import IN_POINTS, IN_TIMES, Estimate, difference, geometric_mean, least_squares, mean, ratio
from lopside.grid import ALL, DENSE, FEWER, Pair, names
from lopside.study import Speed, Study, Subject

ABOUT_3, ABOUT_1 = 2.5, 1.5
"""What rounds to 3 (times as fast, at least) and to 1 (point lost, at most)."""

HOLDS, FAILS, UNDECIDED, UNMEASURED = "holds", "does not hold", "undecided", "not measured"

ENCODER = "1. Accuracy follows the encoder"
DECODER = "2. Latency follows the decoder"
ASYMMETRY = "3. Asymmetric beats symmetric"
THREE_FOR_ONE = "4. About 3x for about 1 point"
SAME = "5. The same across sizes and data"

Figure = TypeVar("Figure")
Pairs = Mapping[int, tuple[Estimate, Estimate]]
"""x -> two figures to compare."""


@dataclass(frozen=True)
class _Kind:
    """How two figures are compared, and the comparisons averaged and shown."""

    compare: Callable[[Estimate, Estimate], Estimate]
    average: Callable[[Sequence[Estimate]], Estimate]
    alike: float
    """What the comparison of equal figures gives."""
    form: str
    bare: str
    """Without the interval."""


POINTS = _Kind(difference, mean, 0, f"{IN_POINTS} points", "{:+.2f} points")
TIMES = _Kind(ratio, geometric_mean, 1, IN_TIMES, "{:.2f}x")


@dataclass(frozen=True)
class Verdict:
    """A row of the claims table."""

    claim: str
    measure: str
    """What is compared."""
    speed: Speed | None
    """Where it was timed; None where time plays no part."""
    ours: str
    theirs: str
    verdict: str


@dataclass(frozen=True)
class Fit:
    """ROUGE-2 points lost a sixth of the encoder, and of the decoder, that is removed."""

    subject: str
    cells: int
    encoder: Estimate
    decoder: Estimate


def study_verdicts(study: Study) -> list[Verdict]:
    """The first four claims for one study, a row for each setting and batch size where time plays a part."""
    found = [accuracy_follows_encoder(study)]
    for claim in (latency_follows_decoder, asymmetric_beats_symmetric, three_for_one):
        found += [claim(study, speed) for speed in study.speeds]
    return found


def accuracy_follows_encoder(study: Study) -> Verdict:
    """ROUGE-2 of 6-x minus that of x-6, as many layers, the mean over x."""
    pairs = {x: _compared(study, (ALL, x), (x, ALL)) for x in _mirrored(study.cells)}
    theirs = [_mirrored(_exact(figures)) for figures in published.rouge2().values()]
    return _averaged(ENCODER, "ROUGE-2 of 6-x minus x-6", None, POINTS, pairs, theirs)


def latency_follows_decoder(study: Study, speed: Speed) -> Verdict:
    """Speedup of 6-x / speedup of x-6, the geometric mean over x."""
    batch = _their_batch(speed)
    theirs = [_mirrored(batches.get(batch, {})) for batches in published.speedups().values()]
    return _averaged(DECODER, "speedup of 6-x / x-6", speed, TIMES, _mirrored(_speedups(study, speed)), theirs)


def decoder_over_encoder(speedups: Mapping[Pair, Estimate]) -> Estimate:
    """The geometric mean of the speedup of 6-x / that of x-6, over the x that have both, of which there must be one."""
    return geometric_mean([ratio(*both) for both in _mirrored(speedups).values()])


def asymmetric_beats_symmetric(study: Study, speed: Speed) -> Verdict:
    """ROUGE-2 of the best asymmetric cell that is not slower than x-x, minus that of x-x, the mean over x."""
    speedups, deltas, batch = _speedups(study, speed), _deltas(study), _their_batch(speed)
    beside = _beside_symmetric(deltas, speedups)
    pairs = {x: _compared(study, best, (x, x)) for x, best in beside.items() if best}
    theirs = []
    for model, figures in published.deltas().items():
        exact = _exact(figures)
        found = _beside_symmetric(exact, published.speedups()[model].get(batch, {}))
        theirs.append({x: (exact[best], exact[x, x]) for x, best in found.items() if best})
    words = [f"{names([best])} beside {x}-{x}" if best else f"none is as fast as {x}-{x}" for x, best in beside.items()]
    measure = "ROUGE-2 of the best cell as fast as x-x, minus x-x"
    return _averaged(ASYMMETRY, measure, speed, POINTS, pairs, theirs, words)


def three_for_one(study: Study, speed: Speed) -> Verdict:
    """The asymmetric cell that loses least of those about three times as fast; it fails only where 6-1 and 6-2 did."""
    speedups = {pair: speedup for pair, speedup in _speedups(study, speed).items() if pair[0] != pair[1]}
    deltas = {pair: delta for pair, delta in _deltas(study).items() if pair in speedups}
    shown = _least_loss(deltas, speedups)
    if shown:
        ours = _in_words(study, shown, deltas[shown], speedups[shown])
    elif speedups:
        shown = max(speedups, key=lambda pair: speedups[pair].value)
        ours = f"none; the fastest is {_in_words(study, shown, deltas[shown], speedups[shown])}"
    else:
        ours = ""
    theirs = []
    for model, figures in published.deltas().items():
        times = published.speedups()[model].get(_their_batch(speed), {})
        lopsided = {pair: delta for pair, delta in _exact(figures).items() if pair[0] != pair[1]}
        if pair := _least_loss(lopsided, times):
            kept = 1 + figures[pair] / published.rouge2()[model][DENSE]
            words = "{} {} {}-{}: {:.2f}x, {:+.2f}, {:.1%} retained"
            theirs.append(words.format(*model, *pair, times[pair].value, figures[pair], kept))
        elif times:
            theirs.append("{} {}: none".format(*model))
    possible = [pair for pair in speedups if speedups[pair].high >= ABOUT_3 and deltas[pair].high >= -ABOUT_1]
    sure = [pair for pair in possible if speedups[pair].low >= ABOUT_3 and deltas[pair].low >= -ABOUT_1]
    if sure:
        verdict = HOLDS
        ours += "" if shown in sure else f"; even at the far ends of its intervals: {names(sure)}"
    elif not {(ALL, 1), (ALL, 2)} <= speedups.keys():
        verdict = UNMEASURED
    elif possible:
        verdict = UNDECIDED
        ours += f"; within its intervals: {names(possible)}"
    else:
        verdict = FAILS
    return Verdict(
        THREE_FOR_ONE,
        f"the least loss at {ABOUT_3}x or more; holds at {ABOUT_1} points or less",
        speed,
        ours,
        "; ".join(theirs),
        verdict,
    )


def same_across(mains: Mapping[Subject, Study]) -> Verdict:
    """Whether 6-1, 3-3 and 1-6 come in the same order of ROUGE-2 for each model and data set.

    It does not where two of them differ, by their intervals, one way here and the other way there; that it does takes
    two models and two data sets.
    """
    cells: tuple[Pair, ...] = ((ALL, 1), (3, 3), (1, ALL))
    measured = {
        subject: dict(zip(cells, study.deltas(*cells), strict=True))
        for subject, study in mains.items()
        if all(pair in study.cells for pair in cells)
    }
    ours = [f"{' on '.join(subject)}: {_order(deltas)}" for subject, deltas in measured.items()]
    theirs = [
        f"{' '.join(model)}: {_order(_exact({pair: figures[pair] for pair in cells}), steps=False)}"
        for model, figures in published.rouge2().items()
        if all(pair in figures for pair in cells)
    ]
    signs = [
        {_sign(difference(deltas[one], deltas[other])) for deltas in measured.values()}
        for one, other in combinations(cells, 2)
    ]
    if len(measured) < 2:
        verdict = UNMEASURED
    elif any({-1, 1} <= each for each in signs):
        verdict = FAILS
    else:
        across = all(len(set(each)) > 1 for each in zip(*measured, strict=True))
        verdict = HOLDS if across and all(each in ({1}, {-1}) for each in signs) else UNDECIDED
    return Verdict(SAME, "order of 6-1, 3-3 and 1-6 by ROUGE-2", None, "; ".join(ours), "; ".join(theirs), verdict)


def fits(mains: Mapping[Subject, Study]) -> tuple[list[Fit], list[Fit]]:
    """The regression of ROUGE-2 lost on the sixths removed of encoder and decoder, for each of ours and of theirs.

    Through zero, as at 6-6 nothing is removed; 6-6 itself takes no part. Those of too few cells are left out.
    """
    ours = [
        _fit(" on ".join(subject), {pair: cell.delta.value for pair, cell in study.cells.items()})
        for subject, study in mains.items()
    ]
    theirs = [_fit(f"flan-t5-{size} on {dataset}", figures) for (size, dataset), figures in published.deltas().items()]
    return [fit for fit in ours if fit], [fit for fit in theirs if fit]


def _fit(subject: str, deltas: Mapping[Pair, float]) -> Fit | None:
    pairs = [pair for pair in deltas if pair != DENSE]
    coefficients = least_squares([(ALL - enc, ALL - dec) for enc, dec in pairs], [-deltas[pair] for pair in pairs])
    return Fit(subject, len(pairs), *coefficients) if coefficients else None


def _mirrored(figures: Mapping[Pair, Figure]) -> dict[int, tuple[Figure, Figure]]:
    """x -> the figures of 6-x and of x-6, where there are both."""
    return {x: (figures[ALL, x], figures[x, ALL]) for x in FEWER if (ALL, x) in figures and (x, ALL) in figures}


def _beside_symmetric(deltas: Mapping[Pair, Estimate], speedups: Mapping[Pair, Estimate]) -> dict[int, Pair | None]:
    """x -> of the asymmetric cells that are as fast as x-x, within its interval, the one that loses least, if any."""
    both = sorted(deltas.keys() & speedups.keys())
    found = {}
    for x in FEWER:
        if (x, x) in both:
            fast = [pair for pair in both if pair[0] != pair[1] and speedups[pair].value >= speedups[x, x].low]
            found[x] = max(fast, key=lambda pair: deltas[pair].value, default=None)
    return found


def _least_loss(deltas: Mapping[Pair, Estimate], speedups: Mapping[Pair, Estimate]) -> Pair | None:
    fast = [pair for pair in deltas if pair in speedups and speedups[pair].value >= ABOUT_3]
    return max(fast, key=lambda pair: deltas[pair].value, default=None)


def _their_batch(speed: Speed) -> int:
    """The batch size of the authors' times that stand beside ours; 0 where none do.

    They compare with the paper's setting alone.
    """
    return speed[1] if speed[0] == "paper" else 0


def _compared(study: Study, one: Pair, other: Pair) -> tuple[Estimate, Estimate]:
    first, second = study.deltas(one, other)
    return first, second


def _deltas(study: Study) -> dict[Pair, Estimate]:
    return {pair: study.delta(cell) for pair, cell in study.cells.items()}


def _speedups(study: Study, speed: Speed) -> dict[Pair, Estimate]:
    found = ((pair, cell.speedup(speed)) for pair, cell in study.cells.items())
    return {pair: speedup for pair, speedup in found if speedup}


def _exact(figures: Mapping[Pair, float]) -> dict[Pair, Estimate]:
    """Figures of one run, of which no interval is known."""
    return {pair: Estimate(value, value, value) for pair, value in figures.items()}


def _sign(estimate: Estimate) -> int:
    return (estimate.low > 0) - (estimate.high < 0)


def _verdict(estimate: Estimate, bound: float) -> str:
    return {1: HOLDS, -1: FAILS, 0: UNDECIDED}[_sign(Estimate(*(end - bound for end in estimate)))]


def _averaged(
    claim: str,
    measure: str,
    speed: Speed | None,
    kind: _Kind,
    pairs: Pairs,
    theirs: Iterable[Pairs],
    more: Sequence[str] = (),
) -> Verdict:
    """The row of a claim that says the first of each two figures is the greater, on average; ``more`` is said of ours.

    One comparison decides nothing about an average.
    """
    found = [kind.compare(*both) for both in pairs.values()]
    published_ones = [kind.compare(*both) for each in theirs for both in each.values()]
    verdict = (UNMEASURED, UNDECIDED)[len(found)] if len(found) < 2 else _verdict(kind.average(found), kind.alike)
    return Verdict(
        claim,
        measure,
        speed,
        "; ".join(filter(None, [_shown(kind, kind.form, found) + _over(pairs), *more])),
        _shown(kind, kind.bare, published_ones),
        verdict,
    )


def _shown(kind: _Kind, form: str, estimates: Sequence[Estimate]) -> str:
    """Their average, and how many say that the first is the greater; nothing where there are none."""
    if not estimates:
        return ""
    above = sum(estimate.value > kind.alike for estimate in estimates)
    return f"{form.format(*kind.average(estimates))}, above {kind.alike} in {above} of {len(estimates)}"


def _over(found: Iterable[int]) -> str:
    """Which x a mean is of."""
    each = sorted(found)
    whole = len(each) > 2 and each == list(range(each[0], each[-1] + 1))
    return f", x = {f'{each[0]} to {each[-1]}' if whole else ', '.join(map(str, each))}" if each else ""


def _in_words(study: Study, pair: Pair, delta: Estimate, speedup: Estimate) -> str:
    retained = study.retained(study.cells[pair])
    kept = ", {:.1%} [{:.1%}, {:.1%}] retained".format(*retained) if retained else ""
    return f"{names([pair])}: {TIMES.form.format(*speedup)}, {POINTS.form.format(*delta)}{kept}"


def _order(deltas: Mapping[Pair, Estimate], steps: bool = True) -> str:
    """Best first, and with ``steps`` the difference from each to the next."""
    ordered = sorted(deltas, key=lambda pair: deltas[pair].value, reverse=True)
    order = names(ordered, " > ")
    if not steps:
        return order
    differences = (difference(deltas[one], deltas[other]) for one, other in pairwise(ordered))
    return f"{order}, by {' and '.join(POINTS.form.format(*each) for each in differences)}"
