"""What Campos and Zhai published on FLAN-T5, as estimates to set beside ours; nothing here was measured by lopside."""

from __future__ import annotations

import csv
import math
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from importlib.resources import files

from lopside.estimates import Estimate, student_quantile
from lopside.grid import DENSE, Pair
from lopside.intervals import CONFIDENCE

Model = tuple[str, str]
"""Size (small, base, large) and data set (cnn_dailymail, xsum)."""

UNSOUND = {("large", "xsum", 6, 6), ("base", "cnn_dailymail", 6, 3)}
"""Loss nan on their cards; one scores below several of its own pruned models, one a third of its neighbours."""

REPEATS = 7


@cache
def rouge2() -> dict[Model, dict[Pair, float]]:
    """ROUGE-2, 0 to 100, of the models that have a sound figure."""
    found: dict[Model, dict[Pair, float]] = defaultdict(dict)
    for row in _rows("published_rouge.csv"):
        size, dataset, enc, dec = row["size"], row["dataset"], int(row["enc"]), int(row["dec"])
        if (size, dataset, enc, dec) not in UNSOUND:
            found[size, dataset][enc, dec] = float(row["rouge2"])
    return dict(found)


def deltas() -> dict[Model, dict[Pair, float]]:
    """ROUGE-2 minus the full model's, in points, where that has a sound figure; one run each, so no interval."""
    return {
        model: {cell: figure - figures[DENSE] for cell, figure in figures.items() if cell != DENSE}
        for model, figures in rouge2().items()
        if DENSE in figures
    }


@cache
def speedups() -> dict[Model, dict[int, dict[Pair, Estimate]]]:
    """The full model's time / the pruned model's, by batch size; the intervals are of the two means of 7 repeats."""
    times: dict[Model, dict[int, dict[Pair, tuple[float, float]]]] = defaultdict(lambda: defaultdict(dict))
    for row in _rows("published_latency.csv"):
        cells = times[row["size"], row["dataset"]][int(row["batch_size"])]
        cells[int(row["enc"]), int(row["dec"])] = float(row["latency_ms"]), float(row["std_ms"])
    return {model: {batch: _relative(cells) for batch, cells in batches.items()} for model, batches in times.items()}


def _relative(times: dict[Pair, tuple[float, float]]) -> dict[Pair, Estimate]:
    reach = student_quantile((1 + CONFIDENCE) / 2, REPEATS - 1) / math.sqrt(REPEATS)
    dense, dense_spread = times[DENSE]
    found = {DENSE: Estimate(1.0, 1.0, 1.0)}
    for cell, (pruned, spread) in times.items():
        if cell != DENSE:
            width = reach * math.hypot(dense_spread / dense, spread / pruned)
            found[cell] = Estimate(dense / pruned, dense / pruned * (1 - width), dense / pruned * (1 + width))
    return found


def _rows(name: str) -> Iterator[dict[str, str]]:
    lines = files("lopside").joinpath(name).read_text(encoding="utf-8").splitlines()
    return csv.DictReader(line for line in lines if not line.startswith("#"))
