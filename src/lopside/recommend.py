"""Which cell to take: the fastest that loses no more than asked, or the one that loses least of those fast enough.

A cell counts by the far end of its interval, so that what is recommended is as good as asked even if it was lucky: in
its documents and, as far as several seeds tell, in its training.
"""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from lopside.errors import LopsideError
from lopside.estimates import IN_POINTS, IN_TIMES, Estimate
from lopside.grid import ALL, Pair
from lopside.history import HISTORY, Row
from lopside.params import load_params
from lopside.repository import PARAMS, SHORT, experiments, git
from lopside.study import Cell, Speed, Study, counted, in_words, studies

SEEDS = 3
"""How many are asked for where there are fewer."""
MOST = 3
"""Cells that might do better, and are named."""
TOLD = {"engine", "dtype", "max_seconds", "trained", "train.max_steps", "train.epochs"}
"""Features of a study that its title says, or another feature."""

Figure = Callable[[Study, Cell, Speed], Estimate | None]


@dataclass(frozen=True)
class Goal:
    """What is asked of a cell."""

    bound: Figure
    """What must reach ``least``; its interval decides."""
    least: float
    wish: Figure
    """What is to be as great as possible."""
    words: str
    form: str
    """How a bare ``bound`` is written."""

    @classmethod
    def of(cls, max_loss: float | None, min_retained: str | None, min_speedup: float | None) -> Goal:
        """The goal of the one option that is given. Raises LopsideError where there is not one, or it is refused."""
        if sum(option is not None for option in (max_loss, min_retained, min_speedup)) != 1:
            raise LopsideError("give one of --max-loss, --min-retained and --min-speedup, as in --max-loss 1.0")
        if max_loss is not None:
            _check("--max-loss", max_loss, 0 <= max_loss < math.inf, "ROUGE-2 points of 0 or more")
            words = f"loses at most {max_loss:g} ROUGE-2 points"
            return cls(_delta, -max_loss, _speedup, words, "{:+.2f}")
        if min_retained is not None:
            share = _share(min_retained)
            return cls(_retained, share, _speedup, f"retains at least {share:.4g} of dense's ROUGE-2", "{:.1%}")
        assert min_speedup is not None
        _check("--min-speedup", min_speedup, 0 < min_speedup < math.inf, "a number above 0")
        words = f"is at least {min_speedup:g} times as fast as dense"
        return cls(_speedup, min_speedup, _delta, words, "{:.2f}x")


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
    this precision where they are given, and by those that differ from it in the engine alone. Raises LopsideError where
    there is none, or it was not timed so.
    """
    found = _studies_of(rows, speed, engine, dtype)
    alike = [study for study in found if study is found[0] or study.is_alike(found[0])]
    candidates = [candidate for study in alike for candidate in _candidates(study, goal, speed)]
    sure = [each for each in candidates if each.bound.low >= goal.least]
    best = max(sure, key=_wish, default=None)
    better = [each for each in candidates if best is None or _wish(each) > _wish(best)]
    maybe = sorted((each for each in better if each.bound.low < goal.least <= each.bound.high), key=_wish, reverse=True)
    nearest = max(candidates, key=lambda each: each.bound.value, default=None) if not (best or maybe) else None
    named = best or next(iter(maybe), nearest)
    study = named.study if named else found[0]
    lines = [
        f"{study.title}, {counted(len(study.cells), 'cell')}, timed on {study.first.machine}; "
        f"trained with {study.training}"
    ]
    if best:
        lines += [f"{_in_words(best, study)}.", *_certainty(best, goal)]
        level = [each for each in sure if each is not best and each.wish.high >= best.wish.low]
        if level:
            lines.append(f"Within the intervals as good: {', '.join(_name(each, study) for each in level)}.")
    else:
        lines.append(f"Of no measured cell it is sure that it {goal.words}.")
    if nearest:
        lines.append(f"The nearest is {_in_words(nearest, study)}.")
    lines += _next(study, best, maybe[:MOST])
    if best and (new := _neighbours(best, 1 if goal.wish is _delta else -1)):
        lines.append(f"Not measured yet, and perhaps better: {_sweep(study, new)}")
    if nearest and (new := _neighbours(nearest, -1 if goal.wish is _delta else 1)):
        lines.append(f"Not measured yet, and perhaps nearer: {_sweep(study, new)}")
    if best:
        lines += _commands(best, goal)
    others = [each for each in found if each not in alike]
    return Advice(best is not None, [*lines, _apart(study, others)] if others else lines)


@dataclass(frozen=True)
class _Candidate:
    """A cell, and the figures of it that the goal asks for."""

    study: Study
    cell: Cell
    speed: Speed
    bound: Estimate
    wish: Estimate


def _candidates(study: Study, goal: Goal, speed: Speed) -> list[_Candidate]:
    """The pruned cells of a study that have the figures."""
    pruned = [cell for cell in study.cells.values() if not study.is_dense(cell)]
    figures = ((cell, goal.bound(study, cell, speed), goal.wish(study, cell, speed)) for cell in pruned)
    return [_Candidate(study, cell, speed, bound, wish) for cell, bound, wish in figures if bound and wish]


def _wish(candidate: _Candidate) -> float:
    return candidate.wish.value


def _name(candidate: _Candidate, study: Study) -> str:
    """The cell, with what computed it where that is another study's engine."""
    by = f" by {candidate.study.engine}" if candidate.study is not study else ""
    return f"{candidate.cell.label}{by}"


def _studies_of(rows: Sequence[Row], speed: Speed, engine: str | None, dtype: str | None) -> list[Study]:
    found = studies(rows)
    if not found:
        stale = f": {counted(len(rows), 'row')}, all of them stale" if rows else ""
        raise LopsideError(
            f"{HISTORY}: holds no row to recommend from{stale}; `lopside sweep` and `lopside report` make some"
        )
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
        timed_so = f"there are: {', '.join(there)}" if there else "nothing was, of this model and data"
        raise LopsideError(f"--setting {speed[0]} --batch {speed[1]}: was not timed; {timed_so}")
    return timed


def _apart(study: Study, others: Sequence[Study]) -> str:
    """Which other studies of this model and data there are, each by its title and what it has otherwise."""
    found = []
    for other in others:
        its = other.features
        apart = [key for key in study.apart(other) if key not in TOLD]
        words = ", ".join(f"{key} {its[key]}" if key in its else f"no {key}" for key in apart)
        otherwise = words or f"params.yaml of {other.first.revision}"
        found.append(f"{counted(len(other.cells), 'cell')}, {other.length}, {other.engine}, with {otherwise}")
    return f"There are other studies of this model and data, as `lopside report` has them: {'; '.join(found)}."


def _certainty(best: _Candidate, goal: Goal) -> list[str]:
    sure = f"It {goal.words} even at the far end of its 95% interval"
    singles = [goal.form.format(value) for _, value in _singles(best, goal)]
    if len(singles) > 1:
        return [f"{sure}, the mean of {len(singles)} seeds, which by themselves are {', '.join(singles)}."]
    if best.study.seed_noise and goal.bound is not _speedup:
        return [f"{sure}, which for its one training takes in how far others differ from seed to seed."]
    return [f"{sure}, so far as one training can tell."]


def _singles(candidate: _Candidate, goal: Goal) -> list[tuple[Row, float]]:
    """The figure that the goal bounds, of each seed that has it."""
    cell = candidate.cell
    found = ((row, goal.bound(candidate.study, replace(cell, rows=(row,)), candidate.speed)) for row in cell.rows)
    return [(row, bound.value) for row, bound in found if bound]


def _next(study: Study, best: _Candidate | None, maybe: Sequence[_Candidate]) -> list[str]:
    """What to measure again, where that might change the answer."""
    lines = [f"Perhaps {_in_words(each, study)}: its interval does not say." for each in maybe]
    lacking: dict[tuple[str, int, int], list[_Candidate]] = {}
    for each in [*maybe, *([best] if best else [])]:
        rows = each.cell.rows
        # Layers of one's own choice are no cells of a grid.
        if len(rows) < SEEDS and each.study.first.strategy != "explicit":
            following = max(row.seed for row in rows) + 1
            lacking.setdefault((each.study.engine, following, SEEDS - len(rows)), []).append(each)
    for (_, following, seeds), few in lacking.items():
        labels = ", ".join(_name(each, study) for each in few)
        command = _sweep(few[0].study, [each.cell for each in few], following, seeds)
        lines.append(f"Of {labels} fewer than {SEEDS} seeds were trained: {command}")
    return lines


def _neighbours(candidate: _Candidate, step: int) -> list[Pair]:
    """Cells that were not measured and have so many sixths more of one stack."""
    study, cell = candidate.study, candidate.cell
    pairs = [(cell.enc + step, cell.dec), (cell.enc, cell.dec + step)] if study.in_sixths else []
    return [pair for pair in pairs if pair not in study.cells and all(1 <= amount <= ALL for amount in pair)]


def _sweep(study: Study, cells: Sequence[Cell | Pair], seed: int | None = None, seeds: int = 1) -> str:
    labels = [cell.label if isinstance(cell, Cell) else "{}-{}".format(*cell) for cell in cells]
    one = ["-S", f"seed={seed}"] if seed is not None else []
    many = ["--seeds", str(seeds)] if seeds > 1 else []
    command = shlex.join(["lopside", "sweep", ",".join(labels), *one, *many, *_settings(study.first)])
    return f"`{command}`{_as_at(study.first)}"


def _commands(best: _Candidate, goal: Goal) -> list[str]:
    """How to have the model: from its experiment, where that is here, or by running it again.

    Of several seeds the first that reaches the goal by itself; where their mean does, one of them does.
    """
    row = next(row for row, value in _singles(best, goal) if value >= goal.least)
    here = [each.name for each in experiments(row.experiment) if each.commit[:SHORT] == row.commit]
    shares = [] if row.strategy == "explicit" else ["-S", f"enc={row.enc}", "-S", f"dec={row.dec}"]
    run = ["dvc", "exp", "run", *shares, "-S", f"seed={row.seed}"]
    apply = [f"To have it:  dvc exp apply {row.experiment}"] if here else []
    again = f"To run it {'again' if here else 'anew'}{_as_at(row)}:"
    return [*apply, f"{again}  {shlex.join([*run, *_settings(row)])}"]


def _settings(row: Row) -> list[str]:
    """What else the row was run with, as options."""
    settings = [f"keep.strategy={row.strategy}", *shlex.split(row.overrides)]
    return [part for setting in settings for part in ("-S", setting)]


def _as_at(row: Row) -> str:
    """Which revision the options add to, unless its params are those of HEAD."""
    then, now = (git("show", f"{revision}:./{PARAMS}") for revision in (row.revision, "HEAD"))
    return "" if then is not None and then == now else f", as at revision {row.revision}"


def _in_words(candidate: _Candidate, study: Study) -> str:
    cell, speed = candidate.cell, candidate.speed
    gain, speedup = cell.gain(speed), cell.speedup(speed)
    assert gain  # bound or wish
    fast = IN_TIMES.format(*gain)
    if speedup and gain != speedup:
        fast += f" in all ({IN_TIMES.format(*speedup)} by pruning)"
    kept = f", {cell.retained.value:.1%} retained" if cell.retained else ""
    delta = IN_POINTS.format(*candidate.study.delta(cell))
    name = _name(candidate, study)
    return f"{name}: {fast} at {in_words(speed[0])}, batch {speed[1]}; ROUGE-2 {delta} points{kept}"


def _delta(study: Study, cell: Cell, _: Speed) -> Estimate:
    return study.delta(cell)


def _retained(study: Study, cell: Cell, _: Speed) -> Estimate | None:
    return study.retained(cell)


def _speedup(_: Study, cell: Cell, speed: Speed) -> Estimate | None:
    return cell.gain(speed)


def _share(text: str) -> float:
    match = re.fullmatch(r"\s*(\d+(\.\d*)?|\.\d+)\s*(%?)\s*", text)
    share = float(match[1]) / (100 if match[3] else 1) if match else math.nan
    _check("--min-retained", text, 0 < share <= 1.5, "a share such as 95% or 0.95")
    return share


def _check(option: str, value: object, fits: bool, allowed: str) -> None:
    if not fits:
        raise LopsideError(f"{option}: {value} is refused; allowed: {allowed}")
