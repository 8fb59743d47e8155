"""The rows of the history, set in order: what may be compared with what, and the mean of a cell's seeds."""

from __future__ import annotations

import shlex
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from lopside.estimates import Estimate, mean
from lopside.grid import Pair
from lopside.history import TRAINING, Row, seedless

Speed = tuple[str, int]
"""Setting and batch size."""
Subject = tuple[str, str]
"""Model and data set."""

SETTINGS = {"fixed": "fixed output", "natural": "natural output", "paper": "the paper's setting"}
"""The settings that are timed, in words; one that is not here goes by its own name. The first is the usual one."""


@dataclass(frozen=True)
class Cell:
    """One (enc, dec) of a study: its rows, by seed. A figure is the mean of its seeds, None where one lacks it."""

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

    def figure(self, key: str) -> float | None:
        """The mean of the seeds."""
        if not all(key in row.figures for row in self.rows):
            return None
        return sum(row.figures[key] for row in self.rows) / len(self.rows)

    def estimate(self, key: str) -> Estimate | None:
        """The mean of the seeds; its interval covers the choice of documents (or of pairs timed), not that of seeds."""
        keys = (key, f"{key}_low", f"{key}_high")
        if not all(each in row.figures for row in self.rows for each in keys):
            return None
        return mean([Estimate(*(row.figures[each] for each in keys)) for row in self.rows])


@dataclass(frozen=True)
class Study:
    """Rows that compare: the same data, model, training, strategy and scoring, timed on one machine in one way."""

    rows: tuple[Row, ...]

    @property
    def first(self) -> Row:
        return self.rows[0]

    @property
    def title(self) -> str:
        return f"{self.first.model} on {self.first.dataset}, {self.first.strategy}"

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

    @property
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
            "machine": row.machine,
        }

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

    @cached_property
    def speeds(self) -> list[Speed]:
        """Settings and batch sizes that were timed, the usual setting first."""
        order = list(SETTINGS)
        speeds = {speed for row in self.rows for speed in row.speeds}
        return sorted(speeds, key=lambda speed: (order.index(speed[0]) if speed[0] in order else len(order), *speed))

    @property
    def settings(self) -> list[str]:
        return list(dict.fromkeys(setting for setting, _ in self.speeds))

    def batches(self, setting: str) -> list[int]:
        return [batch for timed, batch in self.speeds if timed == setting]


def studies(rows: Iterable[Row]) -> list[Study]:
    """The rows that are not stale, as studies: the one of most cells first, of equal ones that with the latest row."""
    groups: dict[Any, list[tuple[int, Row]]] = defaultdict(list)
    for number, row in enumerate(rows):
        if not row.stale:
            groups[_key(row)].append((number, row))
    found = [(numbered[-1][0], Study(tuple(row for _, row in numbered))) for numbered in groups.values()]
    return [study for _, study in sorted(found, key=lambda each: (-len(each[1].cells), -each[0]))]


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
    kept = (row.encoder_kept, row.decoder_kept) if row.strategy == "explicit" else ()
    scored = seedless(row.signature)
    return row.dataset, row.model, row.strategy, row.unit, row.settings, scored, row.machine, row.timing, kept
