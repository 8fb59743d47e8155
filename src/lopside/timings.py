"""What was timed, as figures for people and as raw times for whoever wants others."""

from __future__ import annotations

import csv
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from lopside.files import new_file, write_json
from lopside.machine import one_line
from lopside.pairs import SIDES, Done, Side, Timing

Figures = dict[str, float | int | str]


@dataclass(frozen=True)
class Cell:
    """What was measured of one setting at one batch size."""

    timing: Timing
    peak: Mapping[Side, int]
    """Bytes of a model's weights and of what a call takes beside them at most; empty where the system does not tell."""
    total: Timing | None = None
    """Pruned against dense by the baseline; None where ``timing`` is that already."""


@dataclass(frozen=True)
class Latency:
    """All that was measured, and under which settings."""

    cells: Mapping[str, Mapping[int, Cell]]
    """By setting and batch size."""
    too_large: Mapping[str, int]
    """By setting: the smallest batch for which there was no memory, where there is one."""
    parameters: Mapping[Side, int]
    size_mb: Mapping[Side, float]
    """Weights on disk, in megabytes (10^6 bytes)."""
    gflop: Mapping[Side, float]
    """Floating-point operations of matrix products, in 10^9, for one document of the setting ``fixed``."""
    load: Mapping[str, float | None]
    """The system's load average over a minute, before and after; None where it keeps none."""
    settings: Mapping[str, str | int | float]

    def metrics(self, machine: Mapping[str, Any]) -> dict[str, Any]:
        """The contents of metrics/latency.json. ``machine``: the fingerprint of where this was measured."""
        cores = None if self.settings["device"] == "cuda" else int(self.settings["threads"])
        figures = {
            name: {f"batch_{batch}": summarise(name, batch, cell, cores) for batch, cell in cells.items()}
            for name, cells in self.cells.items()
        }
        return figures | {
            "too_large": dict(self.too_large),
            "parameters": dict(self.parameters),
            "size_mb": {side: round(value, 1) for side, value in self.size_mb.items()},
            "gflop": {side: _significant(value) for side, value in self.gflop.items()},
            "load": dict(self.load),
            "settings": dict(self.settings),
            "versions": machine["versions"],
            "machine": one_line(machine),
        }

    def write_metrics(self, path: str | Path, machine: Mapping[str, Any]) -> None:
        """The metrics as JSON."""
        write_json(path, self.metrics(machine))

    def write_plot(self, path: str | Path) -> None:
        """CSV of two rows, dense and pruned, with the median milliseconds at each batch size of ``fixed``."""
        cells = self.cells["fixed"]
        header = ["side", *(f"batch_{batch}_ms" for batch in cells)]
        rows = ([side, *(_median_ms(cell.timing.seconds(side)) for cell in cells.values())] for side in SIDES)
        _write_csv(path, header, rows)

    def write_timings(self, path: str | Path) -> None:
        """CSV of every call that counts, in the order of calling; ``order`` is 1 or 2, the place within the pair.

        ``tokens`` are those of all documents of the batch; ``encoder`` and ``first`` are the seconds in the encoder and
        until the first token, empty where the engine does not tell.
        """
        # `baseline` is dense by transformers in float32, in pairs with pruned, where both were timed by another engine.
        header = ["setting", "batch", "pair", "order", "side", "seconds", "tokens", "encoder", "first"]
        _write_csv(path, header, self._calls())

    def _calls(self) -> Iterable[Sequence[Any]]:
        for setting, cells in self.cells.items():
            for batch, cell in cells.items():
                names: dict[Side, str] = {"dense": "dense", "pruned": "pruned"}
                yield from _rows(setting, batch, cell.timing, names)
                if cell.total:
                    yield from _rows(setting, batch, cell.total, names | {"dense": "baseline"})


def _rows(setting: str, batch: int, timing: Timing, names: Mapping[Side, str]) -> Iterable[Sequence[Any]]:
    for number, pair in enumerate(timing.pairs, start=1):
        for order, side in enumerate(pair.order, start=1):
            done = pair.told.get(side)
            told = (done.tokens, done.encoder, done.first) if done else (None, None, None)
            yield setting, batch, number, order, names[side], getattr(pair, side), *told


def summarise(setting: str, batch: int, cell: Cell, cores: int | None) -> Figures:
    """The figures of one cell, rounded to what they are good for.

    First the speedup by pruning: its 95% interval, half of that as a share of it (``precision``), the number of pairs
    and what ended them. Then ``total``, the gain from dense by transformers in float32, with its interval and that
    model's milliseconds. Then of each side, for a batch: the milliseconds (median, 90th and 99th percentile), the
    tokens of a summary on average, and, both by the mean time, documents a second and what a million documents take:
    hours of one core, of ``cores`` in use, or where that is None hours of the GPU. Of ``fixed``, where all summaries
    are of one length, also medians of the milliseconds in the encoder, until the first token and for each one after
    it, and the peak of memory in megabytes.
    """
    timing = cell.timing
    figures: Figures = {
        "speedup": round(timing.speedup, 3),
        "speedup_low": round(timing.low, 3),
        "speedup_high": round(timing.high, 3),
        "precision": _significant(timing.precision, 2),
        "pairs": len(timing.pairs),
        "ended": timing.ended,
    }
    total = cell.total or timing
    figures |= {
        "total": round(total.speedup, 3),
        "total_low": round(total.low, 3),
        "total_high": round(total.high, 3),
        "baseline_ms": _median_ms(total.seconds("dense")),
    }
    for side in SIDES:
        seconds = timing.seconds(side)
        percentiles = statistics.quantiles(seconds, n=100, method="inclusive")
        each = statistics.fmean(seconds) / batch
        hours = each * 1e6 / 3600
        found: Figures = {
            "ms": _median_ms(seconds),
            "p90_ms": _ms(percentiles[89]),
            "p99_ms": _ms(percentiles[98]),
            "docs_s": _significant(1 / each),
        }
        found |= {"gpu_hours": _significant(hours)} if cores is None else {"core_hours": _significant(hours * cores)}
        told = timing.told(side)
        if setting == "fixed":
            found |= _parts(told, batch)
            found |= {"peak_mb": _significant(cell.peak[side] / 1e6)} if side in cell.peak else {}
        elif told:
            found["tokens"] = _tokens(told, batch)
        figures |= {f"{side}_{name}": value for name, value in found.items()}
    return figures


def in_words(setting: str, batch: int, cell: Cell) -> str:
    """One cell in a line for people."""
    sides = []
    for side in SIDES:
        told = cell.timing.told(side) if setting != "fixed" else []
        length = f" for {_tokens(told, batch)} tokens" if told else ""
        sides.append(f"{side} {_median_ms(cell.timing.seconds(side)):g} ms{length}")
    timing = cell.timing
    interval = f"speedup {timing.speedup:.3f} [{timing.low:.3f}, {timing.high:.3f}] of {len(timing.pairs)} pairs"
    ended = "" if timing.ended == "precision" else f"; time over at ±{timing.precision:.1%}"
    if cell.total:
        ended += f"; in all {cell.total.speedup:.3f} [{cell.total.low:.3f}, {cell.total.high:.3f}]"
    return f"{setting}, batch {batch}: {sides[0]}, {sides[1]}, {interval}{ended}"


def _parts(told: Sequence[tuple[float, Done]], batch: int) -> Figures:
    """Where the time of a batch goes, by what the engine told of each call beside its seconds."""
    encoder = [done.encoder for _, done in told if done.encoder is not None]
    first = [done.first for _, done in told if done.first is not None]
    later = [
        (seconds - done.first) / (done.tokens / batch - 1)
        for seconds, done in told
        if done.first is not None and done.tokens > batch
    ]
    parts = {"encoder_ms": encoder, "first_ms": first, "token_ms": later}
    return {name: _median_ms(values) for name, values in parts.items() if values}


def _tokens(told: Sequence[tuple[float, Done]], batch: int) -> float:
    """Tokens of a summary, on average."""
    return round(statistics.fmean(done.tokens for _, done in told) / batch, 1)


def _median_ms(seconds: Sequence[float]) -> float:
    return _ms(statistics.median(seconds))


def _ms(seconds: float) -> float:
    return _significant(1000 * seconds)


def _significant(value: float, digits: int = 4) -> float:
    return float(f"{value:.{digits}g}")


def _write_csv(path: str | Path, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    with new_file(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerows(chain([header], rows))
