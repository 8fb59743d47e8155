"""The paper's five claims: what our rows say of each, what the authors' own published figures say, and a verdict.

A verdict goes by the interval: `holds` and `does not hold` where it lies on one side of the bound, else `undecided`;
`not measured` where rows are missing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise
from typing import TypeVar

from lopside import published
from lopside.estimates import IN_POINTS, IN_TIMES, Estimate, difference, geometric_mean, least_squares, mean, ratio
from lopside.grid import ALL, DENSE, FEWER, Pair, names
from lopside.study import Cell, Speed, Study, Subject

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
    pairs = _mirrored({pair: cell.delta for pair, cell in study.cells.items()})
    theirs = [_mirrored(_exact(figures)) for figures in published.rouge2().values()]
    return _averaged(ENCODER, "ROUGE-2 of 6-x minus x-6", None, POINTS, pairs, theirs)


def latency_follows_decoder(study: Study, speed: Speed) -> Verdict:
    """Speedup of 6-x / speedup of x-6, the geometric mean over x."""
    batch = _their_batch(study, speed)
    theirs = [_mirrored(batches.get(batch, {})) for batches in published.speedups().values()]
    return _averaged(DECODER, "speedup of 6-x / x-6", speed, TIMES, _mirrored(_speedups(study, speed)), theirs)


def asymmetric_beats_symmetric(study: Study, speed: Speed) -> Verdict:
    """ROUGE-2 of the best asymmetric cell that is not slower than x-x, minus that of x-x, the mean over x."""
    speedups, batch = _speedups(study, speed), _their_batch(study, speed)
    pairs = _beside_symmetric({pair: study.cells[pair].delta for pair in speedups}, speedups)
    theirs = [
        _beside_symmetric(_exact(figures), published.speedups()[model].get(batch, {}))
        for model, figures in published.deltas().items()
    ]
    measure = "ROUGE-2 of the best cell as fast as x-x, minus x-x"
    return _averaged(ASYMMETRY, measure, speed, POINTS, pairs, theirs)


def three_for_one(study: Study, speed: Speed) -> Verdict:
    """The cell that loses least of those about three times as fast; no verdict where neither 6-1 nor 6-2 is there."""
    speedups = _speedups(study, speed)
    deltas = {pair: study.cells[pair].delta for pair in speedups}
    shown = _least_loss(deltas, speedups)
    if shown:
        ours = _in_words(study.cells[shown], speedups[shown])
    elif speedups:
        shown = max(speedups, key=lambda pair: speedups[pair].value)
        ours = f"none; the fastest is {_in_words(study.cells[shown], speedups[shown])}"
    else:
        ours = ""
    theirs = []
    for model, figures in published.deltas().items():
        times = published.speedups()[model].get(_their_batch(study, speed), {})
        if pair := _least_loss(_exact(figures), times):
            theirs.append("{} {} {}-{}: {:.2f}x, {:+.2f}".format(*model, *pair, times[pair].value, figures[pair]))
        elif times:
            theirs.append("{} {}: none".format(*model))
    possible = [pair for pair in speedups if speedups[pair].high >= ABOUT_3 and deltas[pair].high >= -ABOUT_1]
    sure = [pair for pair in possible if speedups[pair].low >= ABOUT_3 and deltas[pair].low >= -ABOUT_1]
    if not {(ALL, 1), (ALL, 2)} & speedups.keys():
        verdict = UNMEASURED
    elif sure:
        verdict = HOLDS
        ours += "" if shown in sure else f"; even at the far ends of its intervals: {names(sure)}"
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

    It does not where two of them differ, by their intervals, one way here and the other way there.
    """
    cells: tuple[Pair, ...] = ((ALL, 1), (3, 3), (1, ALL))
    measured = {
        subject: {pair: study.cells[pair].delta for pair in cells}
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
        verdict = HOLDS if all(each in ({1}, {-1}) for each in signs) else UNDECIDED
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


def _beside_symmetric(
    deltas: Mapping[Pair, Estimate], speedups: Mapping[Pair, Estimate]
) -> dict[int, tuple[Estimate, Estimate]]:
    """x -> the best delta of the asymmetric cells that, within the intervals, are as fast as x-x, and that of x-x."""
    found = {}
    for x in FEWER:
        if (x, x) in deltas and (x, x) in speedups:
            fast = [
                deltas[pair]
                for pair in deltas.keys() & speedups.keys()
                if pair[0] != pair[1] and speedups[pair].high >= speedups[x, x].low
            ]
            if fast:
                found[x] = max(fast, key=lambda delta: delta.value), deltas[x, x]
    return found


def _least_loss(deltas: Mapping[Pair, Estimate], speedups: Mapping[Pair, Estimate]) -> Pair | None:
    fast = [pair for pair in deltas if pair in speedups and speedups[pair].value >= ABOUT_3]
    return max(fast, key=lambda pair: deltas[pair].value, default=None)


def _their_batch(study: Study, speed: Speed) -> int:
    """The batch size of the authors' times that stand beside ours; 0 where none do.

    Theirs are set beside those of the paper's setting, and only where that was not timed beside all.
    """
    return speed[1] if speed[0] == "paper" or "paper" not in study.settings else 0


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
    claim: str, measure: str, speed: Speed | None, kind: _Kind, pairs: Pairs, theirs: Iterable[Pairs]
) -> Verdict:
    """The row of a claim that says the first of each two figures is the greater, on average."""
    found = [kind.compare(*both) for both in pairs.values()]
    published_ones = [kind.compare(*both) for each in theirs for both in each.values()]
    return Verdict(
        claim,
        measure,
        speed,
        _shown(kind, kind.form, found) + _over(pairs),
        _shown(kind, kind.bare, published_ones),
        _verdict(kind.average(found), kind.alike) if found else UNMEASURED,
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


def _in_words(cell: Cell, speedup: Estimate) -> str:
    kept = f", {cell.retained.value:.1%} retained" if cell.retained else ""
    return f"{cell.label}: {TIMES.form.format(*speedup)}, {POINTS.form.format(*cell.delta)}{kept}"


def _order(deltas: Mapping[Pair, Estimate], steps: bool = True) -> str:
    """Best first, and with ``steps`` the difference from each to the next."""
    ordered = sorted(deltas, key=lambda pair: deltas[pair].value, reverse=True)
    order = names(ordered, " > ")
    if not steps:
        return order
    differences = (difference(deltas[one], deltas[other]) for one, other in pairwise(ordered))
    return f"{order}, by {' and '.join(POINTS.form.format(*each) for each in differences)}"
