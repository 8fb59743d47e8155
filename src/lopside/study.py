"""The rows of the history, set in order: what may be compared with what, and the mean of a cell's seeds."""

from __future__ import annotations

import math
import re
import shlex
import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from lopside.engines import BASELINE
from lopside.estimates import Estimate, mean, student_quantile
from lopside.grid import Pair
from lopside.history import SPEED, TRAINING, Row, seedless
from lopside.intervals import CONFIDENCE

Speed = tuple[str, int]
"""Setting and batch size."""
Subject = tuple[str, str]
"""Model and data set."""

SERVING = {"engine", "dtype"}
"""What may set two studies apart of one training: what computed the pruned models, and in which precision."""

SETTINGS = {"fixed": "fixed output", "natural": "natural output", "paper": "the paper's setting"}
"""The settings that are timed, in words; one that is not here goes by its own name. The first is the usual one."""


@dataclass(frozen=True)
class Cell:
    """One (enc, dec) of a study: its rows, by seed. A figure is the mean of the seeds that have it, None where none."""

    enc: int
    dec: int
    rows: tuple[Row, ...]

    @property
    def label(self) -> str:
        return f"{self.enc}-{self.dec}"

    @property
    def delta(self) -> Estimate:
        """Pruned minus dense, ROUGE-2 points."""
        found = self.estimate("delta.rouge2")
        assert found  # VITAL, in history.py
        return found

    @property
    def retained(self) -> Estimate | None:
        """Pruned / dense."""
        return self.estimate("retained.rouge2")

    def speedup(self, speed: Speed) -> Estimate | None:
        return self.estimate("{}.batch_{}.speedup".format(*speed))

    def gain(self, speed: Speed) -> Estimate | None:
        """How many times as fast as dense in the baseline: the speedup, but where an engine computes both, in all."""
        return self.estimate("{}.batch_{}.total".format(*speed)) or self.speedup(speed)

    def figure(self, key: str) -> float | None:
        """The mean of the seeds."""
        found = [row.figures[key] for row in self.rows if key in row.figures]
        return sum(found) / len(found) if found else None

    def estimate(self, key: str) -> Estimate | None:
        """The mean of the seeds; its interval covers the choice of documents (or of pairs timed), not that of seeds."""
        keys = (key, f"{key}_low", f"{key}_high")
        found = [row.figures for row in self.rows if row.figures.keys() >= {*keys}]
        return mean([Estimate(*(figures[each] for each in keys)) for figures in found]) if found else None


@dataclass(frozen=True)
class Study:
    """Rows that compare: the same data, model, training, strategy and scoring, timed on one machine in one way.

    Of cells that are there, further seeds may come from elsewhere, without their times.
    """

    rows: tuple[Row, ...]
    """Its own come first."""
    alike: tuple[Study, ...] = ()
    """Those that `is_alike` holds for: they know of the luck of training, too."""

    @property
    def first(self) -> Row:
        return self.rows[0]

    @property
    def elsewhere(self) -> int:
        """How many rows were timed otherwise or on another machine."""
        return sum((row.machine, row.timing) != (self.first.machine, self.first.timing) for row in self.rows)

    @property
    def title(self) -> str:
        return f"{self.first.model} on {self.first.dataset}, {self.first.strategy}, {self.length}, {self.engine}"

    @property
    def length(self) -> str:
        """How long was trained, as in ``80 steps`` or ``1 epoch of 12,800 pairs``."""
        if self.in_steps:
            return counted(int(self._trained("train.max_steps")), "step")
        epochs, limit = float(self._trained("train.epochs")), self.features.get("data.limits.train", "0")
        pairs = f" of {int(limit):,} pairs" if limit.isdigit() and limit != "0" else ""
        return f"{epochs:g} {'epoch' if epochs == 1 else 'epochs'}{pairs}"

    @property
    def in_steps(self) -> bool:
        """Whether that was so many steps, not epochs."""
        return self._trained("train.max_steps") != "0"

    def _trained(self, key: str) -> str:
        return self.first.training[TRAINING.index(key)]

    @property
    def engine(self) -> str:
        """What computed the pruned models, and in which precision, as in ``transformers float32``."""
        settings = dict(setting.partition(":")[::2] for setting in self.first.timing.split("|"))
        return settings.get("engine", "unknown")

    @property
    def training(self) -> str:
        """Its settings of training, as in ``epochs 1.0, max_steps 0``."""
        return ", ".join(
            f"{key.removeprefix('train.')} {value}" for key, value in zip(TRAINING, self.first.training, strict=True)
        )

    @cached_property
    def features(self) -> dict[str, str]:
        """What may set it apart from other studies of its model and data set, as far as rows say it in words."""
        row = self.first
        parts = [*row.timing.split("|"), *seedless(row.signature).split("|")]
        return {
            **dict(each.partition("=")[::2] for each in shlex.split(row.overrides)),
            **dict(each.partition(":")[::2] for each in parts),
            **dict(zip(TRAINING, row.training, strict=True)),
            "keep.strategy": row.strategy,
            "keep.unit": row.unit,
            "inputs": row.inputs,
            "machine": row.machine,
        }

    def apart(self, other: Study) -> list[str]:
        """What sets them apart: keys of `features`."""
        own, its = self.features, other.features
        return sorted(key for key in own.keys() | its.keys() if own.get(key) != its.get(key))

    def is_alike(self, other: Study) -> bool:
        """Whether they are of one model and data set, and what sets them apart is the engine alone.

        Where no feature does, their params.yaml differed in something that rows have only a digest of.
        """
        own, its = self.first, other.first
        apart = self.apart(other)
        return (own.model, own.dataset) == (its.model, its.dataset) and bool(apart) and SERVING.issuperset(apart)

    @property
    def in_sixths(self) -> bool:
        """Whether enc and dec are shares as in the paper."""
        return self.first.unit == "sixths" and self.first.strategy != "explicit"

    @cached_property
    def cells(self) -> dict[Pair, Cell]:
        """By (enc, dec), most layers first. Where a cell was run twice with one seed, the later day counts, or row."""
        by_seed: dict[Pair, dict[int, Row]] = defaultdict(dict)
        for row in sorted(self.rows, key=lambda row: row.date):
            by_seed[row.enc, row.dec][row.seed] = row
        return {
            pair: Cell(*pair, tuple(row for _, row in sorted(by_seed[pair].items())))
            for pair in sorted(by_seed, reverse=True)
        }

    @property
    def singles(self) -> dict[Pair, list[float]]:
        """ROUGE-2 of the pruned model of each seed, for the cells that were trained with several.

        Of studies that are `alike` those count that have more seeds of a cell: equal training, equal luck.
        """
        found: dict[Pair, list[float]] = {}
        for study in (self, *self.alike):
            for pair, cell in study.cells.items():
                figures = [row.figures["pruned.rouge2"] for row in cell.rows if "pruned.rouge2" in row.figures]
                if len(figures) > max(1, len(found.get(pair, ()))):
                    found[pair] = figures
        return found

    @cached_property
    def seed_noise(self) -> tuple[float, int] | None:
        """How far ROUGE-2 differs from seed to seed: a standard deviation, pooled over cells, and degrees of freedom.

        None where no cell was trained with several seeds.
        """
        several = self.singles.values()
        freedom = sum(len(each) - 1 for each in several)
        if not freedom:
            return None
        return math.sqrt(sum(statistics.variance(each) * (len(each) - 1) for each in several) / freedom), freedom

    def is_dense(self, cell: Cell) -> bool:
        """Whether nothing was pruned, and nothing computes it otherwise."""
        return self.engine == BASELINE and cell.figure("parameters.pruned") == cell.figure("parameters.dense")

    def delta(self, cell: Cell) -> Estimate:
        """The cell's, its interval covering the choice of seeds too, its own and dense's, as far as that is known."""
        return cell.delta if self.is_dense(cell) else self._with_noise(cell, trainings=2)

    def deltas(self, *pairs: Pair) -> list[Estimate]:
        """Those of cells that are to be compared: of the seeds for which all of them have the same dense, if any.

        Its luck does not count then; else it does. Other code may train dense otherwise with the same seed.
        """
        cells = [self.cells[pair] for pair in pairs]
        common = set.intersection(*(set(map(_dense, cell.rows)) for cell in cells))
        if common:
            cells = [replace(cell, rows=tuple(row for row in cell.rows if _dense(row) in common)) for cell in cells]
        return [self._with_noise(cell, trainings=1 if common else 2) for cell in cells]

    def retained(self, cell: Cell) -> Estimate | None:
        """The cell's share of dense's ROUGE-2, with an interval as that of `delta`."""
        dense = cell.figure("dense.rouge2")
        if not cell.retained or not dense or self.is_dense(cell):
            return cell.retained
        # A share p / d varies as (p - d * share) / d: dense's luck counts by the share.
        return self._widened(cell.retained, cell, math.hypot(1, cell.retained.value) / dense)

    def _with_noise(self, cell: Cell, trainings: int) -> Estimate:
        return self._widened(cell.delta, cell, math.sqrt(trainings))

    def _widened(self, estimate: Estimate, cell: Cell, times: float) -> Estimate:
        """An estimate whose interval takes in so many ``times`` a training's luck, less what the cell's seeds average.

        Where that luck is not known it is left as it is.
        """
        if not self.seed_noise:
            return estimate
        value, low, high = estimate
        deviation, freedom = self.seed_noise
        reach = student_quantile((1 + CONFIDENCE) / 2, freedom) * deviation * times / math.sqrt(len(cell.rows))
        return Estimate(value, value - math.hypot(value - low, reach), value + math.hypot(high - value, reach))

    def milliseconds(self, cell: Cell, speed: Speed) -> float | None:
        """A batch of the pruned model: dense's median over all cells / the cell's speedup.

        A machine's pace changes from hour to hour; within a cell both sides have the same hour, between cells not.
        """
        key = "{}.batch_{}.dense_ms".format(*speed)
        dense = [found for each in self.cells.values() if (found := each.figure(key)) is not None]
        speedup = cell.speedup(speed)
        return statistics.median(dense) / speedup.value if dense and speedup else None

    @cached_property
    def speeds(self) -> list[Speed]:
        """Settings and batch sizes of which there are speedups with intervals, the usual setting first."""
        order = list(SETTINGS)
        named = {speed for row in self.rows for speed in row.speeds}
        speeds = {speed for speed in named if any(cell.speedup(speed) for cell in self.cells.values())}
        return sorted(speeds, key=lambda speed: (order.index(speed[0]) if speed[0] in order else len(order), *speed))

    @property
    def settings(self) -> list[str]:
        return list(dict.fromkeys(setting for setting, _ in self.speeds))

    def batches(self, setting: str) -> list[int]:
        return [batch for timed, batch in self.speeds if timed == setting]


def studies(rows: Iterable[Row]) -> list[Study]:
    """The rows that are not stale, as studies.

    What a training leaves to chance has nothing to do with where its model is timed: a study takes the seeds that it
    lacks from rows that are like its own but for machine and timer, and leaves their times behind.

    Those trained for whole epochs come before those trained for some steps; of equal ones that of most cells first,
    and then that with the latest row.
    """
    groups: dict[Any, list[tuple[int, Row]]] = defaultdict(list)
    alike: dict[Any, list[Row]] = defaultdict(list)
    for number, row in enumerate(rows):
        if not row.stale:
            groups[_key(row), row.machine, row.timing].append((number, row))
            alike[_key(row)].append(row)
    found = []
    for (key, *_), numbered in groups.items():
        own = [row for _, row in numbered]
        seeds = {(row.enc, row.dec, row.seed) for row in own}
        cells = {(row.enc, row.dec) for row in own}
        others = {
            (row.enc, row.dec, row.seed): _untimed(row)
            for row in sorted(alike[key], key=lambda row: row.date)
            if (row.enc, row.dec) in cells and (row.enc, row.dec, row.seed) not in seeds
        }
        found.append((numbered[-1][0], Study((*own, *others.values()))))
    found.sort(key=lambda each: (each[1].in_steps, -len(each[1].cells), -each[0]))
    ordered = [study for _, study in found]
    return [
        replace(
            study,
            alike=tuple(each for each in ordered if each is not study and study.is_alike(each)),
        )
        for study in ordered
    ]


def main_studies(found: Sequence[Study]) -> dict[Subject, Study]:
    """(model, dataset) -> the first study of it in sixths."""
    mains: dict[Subject, Study] = {}
    for study in found:
        if study.in_sixths:
            mains.setdefault((study.first.model, study.first.dataset), study)
    return mains


def pareto(points: Mapping[Pair, tuple[float, float]]) -> list[Pair]:
    """The cells that no other one beats in one coordinate without losing in the other, by their first coordinate.

    points: cell -> (speedup, delta); more is better of both.
    """
    front: list[Pair] = []
    best = float("-inf")
    for pair in sorted(points, key=lambda pair: points[pair], reverse=True):
        if points[pair][1] > best:
            best = points[pair][1]
            front.append(pair)
    return front[::-1]


def in_words(setting: str) -> str:
    """A timed setting's name for readers."""
    return SETTINGS.get(setting, setting)


def counted(number: int, one: str, many: str = "") -> str:
    """A number of things in words."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def _key(row: Row) -> tuple[Any, ...]:
    """What rows have in common whose summaries compare."""
    kept = (row.encoder_kept, row.decoder_kept) if row.strategy == "explicit" else ()
    # `score` holds that dense and pruned were trained on one kind of device: on which is no matter between rows.
    scored = re.sub(r"(\|trained:\w+) on \w+", r"\1", seedless(row.signature))
    return row.dataset, row.model, row.strategy, row.unit, row.settings, row.inputs, kept, scored


def _dense(row: Row) -> tuple[int, float | None]:
    """Rows of one seed in which this is equal were compared with the same dense."""
    return row.seed, row.figures.get("dense.rouge2")


def _untimed(row: Row) -> Row:
    return replace(row, figures={key: value for key, value in row.figures.items() if not SPEED.fullmatch(key)})
