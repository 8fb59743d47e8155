"""Which cell to take: the fastest that loses no more than asked, or the one that loses least of those fast enough.

A cell counts by the far end of its interval, so that what is recommended is as good as asked even if it was lucky.
"""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from lopside.errors import LopsideError
from lopside.estimates import IN_POINTS, IN_TIMES, Estimate
from lopside.grid import ALL, Pair
from lopside.history import HISTORY, Row
from lopside.params import load_params
from lopside.repository import SHORT, experiments
from lopside.study import Cell, Speed, Study, counted, in_words, studies

SEEDS = 3
"""How many are asked for where there are fewer."""
MOST = 3
"""Cells that might do better, and are named."""


@dataclass(frozen=True)
class Goal:
    """What is asked of a cell."""

    bound: Callable[[Cell, Speed], Estimate | None]
    """What must reach ``least``; its interval decides."""
    least: float
    wish: Callable[[Cell, Speed], Estimate | None]
    """What is to be as great as possible."""
    words: str

    @classmethod
    def of(cls, max_loss: float | None, min_retained: str | None, min_speedup: float | None) -> Goal:
        """The goal of the one option that is given. Raises LopsideError where there is not one, or it is refused."""
        if sum(option is not None for option in (max_loss, min_retained, min_speedup)) != 1:
            raise LopsideError("give one of --max-loss, --min-retained and --min-speedup, as in --max-loss 1.0")
        if max_loss is not None:
            _check("--max-loss", max_loss, 0 <= max_loss < math.inf, "ROUGE-2 points of 0 or more")
            return cls(_delta, -max_loss, _speedup, f"loses at most {max_loss:g} ROUGE-2 points")
        if min_retained is not None:
            share = _share(min_retained)
            return cls(_retained, share, _speedup, f"retains at least {share:.4g} of dense's ROUGE-2")
        assert min_speedup is not None
        _check("--min-speedup", min_speedup, 0 < min_speedup < math.inf, "a number above 0")
        return cls(_speedup, min_speedup, _delta, f"is at least {min_speedup:g} times as fast as dense")


@dataclass(frozen=True)
class Advice:
    """The answer, line by line."""

    found: bool
    lines: list[str]


def advise(
    rows: Sequence[Row], goal: Goal, speed: Speed, engine: str | None = None, dtype: str | None = None
) -> Advice:
    """The cell of the history that reaches the goal best, how sure that is, and what would make it surer.

    Goes by the first of the `studies` of the model and data set that params.yaml names, computed by this engine and in
    this precision where they are given. Raises LopsideError where there is none, or it was not timed so.
    """
    study, *others = _studies_of(rows, speed, engine, dtype)
    pruned = [cell for cell in study.cells.values() if not study.is_dense(cell)]
    cells = [cell for cell in pruned if goal.bound(cell, speed) and goal.wish(cell, speed)]

    def bound(cell: Cell) -> Estimate:
        return _known(goal.bound(cell, speed))

    def wished(cell: Cell) -> Estimate:
        return _known(goal.wish(cell, speed))

    def wish(cell: Cell) -> float:
        return wished(cell).value

    sure = [cell for cell in cells if bound(cell).low >= goal.least]
    best = max(sure, key=wish, default=None)
    better = [cell for cell in cells if best is None or wish(cell) > wish(best)]
    maybe = sorted(
        (cell for cell in better if bound(cell).low < goal.least <= bound(cell).high), key=wish, reverse=True
    )
    lines = [
        f"{study.title}, {counted(len(study.cells), 'cell')}, timed on {study.first.machine}; "
        f"trained with {study.training}"
    ]
    if others:
        lines.append(_apart(study, others))
    nearest = None
    if best is None:
        lines.append(f"Of no measured cell it is sure that it {goal.words}.")
        if not maybe and cells:
            nearest = max(cells, key=lambda cell: bound(cell).value)
            lines.append(f"The nearest is {_in_words(nearest, speed)}.")
    else:
        lines += [f"{_in_words(best, speed)}.", *_certainty(best, goal)]
        as_good = [cell.label for cell in sure if cell is not best and _reaches(wished(cell), wished(best))]
        if as_good:
            lines.append(f"Within the intervals as good: {', '.join(as_good)}.")
    lines += _next(study, best, maybe[:MOST], speed)
    if best and (new := _neighbours(study, best, 1 if goal.wish is _delta else -1)):
        lines.append(f"Not measured yet, and perhaps better: {_sweep(study, new, 1)}")
    if nearest and (new := _neighbours(study, nearest, -1 if goal.wish is _delta else 1)):
        lines.append(f"Not measured yet, and perhaps nearer: {_sweep(study, new, 1)}")
    if best is not None:
        lines += _commands(best, goal, speed)
    return Advice(best is not None, lines)


def _studies_of(rows: Sequence[Row], speed: Speed, engine: str | None, dtype: str | None) -> list[Study]:
    found = studies(rows)
    if not found:
        raise LopsideError(f"{HISTORY}: holds no row to recommend from; `lopside sweep` and `lopside report` make some")
    params = load_params()
    named = [study for study in found if (study.first.model, study.first.dataset) == (params.model, params.dataset)]
    if not named:
        there = sorted({f"{study.first.model} on {study.first.dataset}" for study in found})
        raise LopsideError(
            f"{HISTORY}: has no row of {params.model} on {params.dataset}, which params.yaml names; there are: "
            + "; ".join(there)
        )
    computed = [study for study in named if {engine or "", dtype or ""} <= {"", *study.engine.split(" ")}]
    if not computed:
        asked = " ".join(filter(None, [engine and f"--engine {engine}", dtype and f"--dtype {dtype}"]))
        there = sorted({study.engine for study in named})
        raise LopsideError(f"{asked}: {HISTORY} has no row of it; there are: {', '.join(there)}")
    timed = [study for study in computed if speed in study.speeds]
    if not timed:
        speeds = {speed for study in computed for speed in study.speeds}
        there = [f"--setting {setting} --batch {batch}" for setting, batch in sorted(speeds)]
        raise LopsideError(f"--setting {speed[0]} --batch {speed[1]}: was not timed; there are: {', '.join(there)}")
    return timed


def _apart(study: Study, others: Sequence[Study]) -> str:
    """Which other studies of this model and data there are, each by what it has otherwise."""
    found = []
    for other in others:
        own, its = study.features, other.features
        odd = sorted(key for key in own.keys() | its.keys() if own.get(key) != its.get(key))
        words = ", ".join(f"{key} {its[key]}" if key in its else f"no {key}" for key in odd)
        found.append(f"{counted(len(other.cells), 'cell')} with {words or f'params.yaml of {other.first.revision}'}")
    return f"There are others of this model and data: {'; '.join(found)}."


def _certainty(cell: Cell, goal: Goal) -> list[str]:
    sure = f"It {goal.words} even at the far end of its 95% interval"
    singles = [f"{row.figure('delta.rouge2'):+.2f}" for row in cell.rows]
    if len(singles) == 1:
        return [f"{sure}, so far as one training can tell."]
    return [f"{sure}, the mean of {len(singles)} seeds, which by themselves are {', '.join(singles)} points."]


def _next(study: Study, best: Cell | None, maybe: Sequence[Cell], speed: Speed) -> list[str]:
    """What to measure again, where that might change the answer."""
    lines = [f"Perhaps {_in_words(cell, speed)}: its interval does not say." for cell in maybe]
    cells = [*maybe, best] if best else maybe
    # Of all layers, pruned is dense itself, whatever the seed.
    few = [cell for cell in cells if len(cell.rows) < SEEDS and not study.is_dense(cell)]
    if few and study.first.strategy != "explicit":
        labels = ", ".join(cell.label for cell in few)
        lines.append(f"Of {labels} fewer than {SEEDS} seeds were trained: {_sweep(study, few, SEEDS)}")
    return lines


def _neighbours(study: Study, cell: Cell, step: int) -> list[Pair]:
    """Cells that were not measured and have so many sixths more of one stack."""
    pairs = [(cell.enc + step, cell.dec), (cell.enc, cell.dec + step)] if study.in_sixths else []
    return [pair for pair in pairs if pair not in study.cells and all(1 <= amount <= ALL for amount in pair)]


def _sweep(study: Study, cells: Sequence[Cell | Pair], seeds: int) -> str:
    labels = [cell.label if isinstance(cell, Cell) else "{}-{}".format(*cell) for cell in cells]
    many = ["--seeds", str(seeds)] if seeds > 1 else []
    command = shlex.join(["lopside", "sweep", ",".join(labels), *many, *_settings(study.first)])
    return f"`{command}`, as at revision {study.first.revision}"


def _commands(cell: Cell, goal: Goal, speed: Speed) -> list[str]:
    """How to have the model: from its experiment, where that is here, or by running it again.

    Of several seeds the first that reaches the goal by itself; where their mean does, one of them does.
    """
    alone = ((row, goal.bound(Cell(cell.enc, cell.dec, (row,)), speed)) for row in cell.rows)
    row = next(row for row, bound in alone if bound and bound.low >= goal.least)
    here = [each.name for each in experiments(row.experiment) if each.commit[:SHORT] == row.commit]
    shares = [] if row.strategy == "explicit" else ["-S", f"enc={row.enc}", "-S", f"dec={row.dec}"]
    run = ["dvc", "exp", "run", *shares, "-S", f"seed={row.seed}"]
    apply = [f"To have it:  dvc exp apply {row.experiment}"] if here else []
    again = f"To run it {'again' if here else 'anew'}, as at revision {row.revision}:"
    return [*apply, f"{again}  {shlex.join([*run, *_settings(row)])}"]


def _settings(row: Row) -> list[str]:
    """What else the row was run with, as options."""
    settings = [f"keep.strategy={row.strategy}", *shlex.split(row.overrides)]
    return [part for setting in settings for part in ("-S", setting)]


def _in_words(cell: Cell, speed: Speed) -> str:
    speedup = IN_TIMES.format(*_known(cell.gain(speed)))
    if cell.gain(speed) != cell.speedup(speed):
        speedup += f" in all ({IN_TIMES.format(*_known(cell.speedup(speed)))} by pruning)"
    kept = f", {cell.retained.value:.1%} retained" if cell.retained else ""
    delta = IN_POINTS.format(*cell.delta)
    return f"{cell.label}: {speedup} at {in_words(speed[0])}, batch {speed[1]}; ROUGE-2 {delta} points{kept}"


def _reaches(one: Estimate, other: Estimate) -> bool:
    return one.high >= other.low


def _delta(cell: Cell, _: Speed) -> Estimate:
    return cell.delta


def _retained(cell: Cell, _: Speed) -> Estimate | None:
    return cell.retained


def _speedup(cell: Cell, speed: Speed) -> Estimate | None:
    return cell.gain(speed)


def _known(estimate: Estimate | None) -> Estimate:
    assert estimate
    return estimate


def _share(text: str) -> float:
    match = re.fullmatch(r"\s*(\d+(\.\d*)?|\.\d+)\s*(%?)\s*", text)
    share = float(match[1]) / (100 if match[3] else 1) if match else math.nan
    _check("--min-retained", text, 0 < share <= 1.5, "a share such as 95% or 0.95")
    return share


def _check(option: str, value: object, fits: bool, allowed: str) -> None:
    if not fits:
        raise LopsideError(f"{option}: {value} is refused; allowed: {allowed}")
