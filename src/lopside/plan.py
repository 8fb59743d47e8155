"""What every cell will cost, told before anything is trained.

At fixed lengths the time of a model depends on its shape, not on its weights, and layers that are alike take the same
time. So a handful of cells are built and timed in rounds, one call of each, and each round gives an additive model: a
part for each encoder layer, a part for each decoder layer (over all tokens that are written), and a fixed part. What
slows a round down slows all of its cells.
"""

from __future__ import annotations

import random
import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from lopside.architectures import layer_counts
from lopside.claims import decoder_over_encoder
from lopside.engines import BASELINE, baseline, export, load_engine
from lopside.errors import LopsideError
from lopside.estimates import IN_TIMES, Estimate
from lopside.grid import ALL, DENSE, GRIDS, Pair, names
from lopside.hub import find_model
from lopside.inputs import positions
from lopside.intervals import median_interval
from lopside.models import read_config
from lopside.pairs import FEWEST_PAIRS, Call, Clock, without_garbage_collection
from lopside.progress import progress
from lopside.pruning import prune
from lopside.published import speedups
from lopside.report import markdown_table
from lopside.selection import kept_count
from lopside.untrained import SHAPES, write_untrained
from lopside.workloads import PAPER_NEW_TOKENS, PAPER_SOURCE_TOKENS, Setting, calls_of, choose_clock

Name = TypeVar("Name")

FITTED: tuple[Pair, ...] = (DENSE, (ALL, 1), (1, ALL), (1, 1), (3, 3))
"""The cells that the model is fitted to: the corners of the grid, and one between them."""


@dataclass(frozen=True)
class Work:
    """What is timed: every call alike."""

    batch: int
    source_tokens: int
    new_tokens: int
    masked: bool = True
    """Whether a mask says that no token is padding, as `generate` has it; the authors timed without one."""


PAPER = Work(1, PAPER_SOURCE_TOKENS, PAPER_NEW_TOKENS, masked=False)
"""The authors' setting, at batch 1; documents are shorter where the model has fewer positions."""


@dataclass(frozen=True)
class Prediction:
    """One cell: what the model says, with 95% intervals, and what was measured of it."""

    seconds: Estimate
    speedup: Estimate
    """Dense time / its time, both by the same engine."""
    total: Estimate | None = None
    """The time of dense in the baseline, transformers and float32, / its time; None where that is the engine."""
    measured: float | None = None
    """Median seconds, where it was timed."""

    @property
    def error(self) -> float | None:
        """Predicted / measured, less 1."""
        return None if self.measured is None else self.seconds.value / self.measured - 1


@dataclass(frozen=True)
class Plan:
    """All cells of one model, engine and setting on this machine."""

    model: str
    engine: str
    work: Work
    layers: Pair
    """Of the full model: encoder, decoder."""
    device: str
    threads: int
    cells: Mapping[Pair, Prediction]
    fitted: tuple[Pair, ...]
    rounds: int
    took: float
    """Seconds in all, from building to the last round."""

    def reaching(self, speedup: float) -> list[Pair]:
        """The cells that are predicted to be so fast or faster, those with the most encoder layers first."""
        return sorted(
            (pair for pair, cell in self.cells.items() if cell.speedup.value >= speedup), key=lambda p: (-p[0], -p[1])
        )

    def errors(self) -> dict[Pair, float]:
        """Of the cells that were timed and not fitted to."""
        cells = {pair: cell.error for pair, cell in self.cells.items() if pair not in self.fitted}
        return {pair: error for pair, error in cells.items() if error is not None}


def make_plan(
    model: str,
    work: Work,
    *,
    revision: str = "",
    engine: str = "transformers",
    dtype: str = "float32",
    seconds: float = 45,
    check: Sequence[Pair] = (),
    threads: int = 0,
    device: str = "auto",
) -> Plan:
    """Time a few cells of a model on this machine, and predict the others.

    Args:
        model: as in params.yaml, its weights taken as they are; a name of `lopside.untrained.SHAPES` needs none.
        work: what is timed.
        revision: of a model on the hub.
        engine, dtype: what computes; dense too.
        seconds: for as many rounds as this is likely to hold; there are 6 anyhow, which a 95% interval needs.
        check: further cells to time, beside those the model is fitted to, in order to see its errors.
        threads: of the CPU; 0: one a physical core.
        device: may be ``auto``.

    Raises:
        LopsideError: the model, its engine or the lengths are refused.
    """
    from lopside.machine import choose_device, keep_memory, set_threads

    started = time.monotonic()
    pairs = list(dict.fromkeys([*FITTED, *check]))
    for pair in pairs:
        _kept(DENSE, pair)  # refuses what are no sixths, before a model is fetched
    keep_memory()
    threads = set_threads(threads)
    chosen_device = choose_device(device)
    clock = choose_clock(chosen_device)
    with tempfile.TemporaryDirectory(prefix="lopside-plan-") as name:
        folder = Path(name)
        with _source(model, revision, folder / "dense") as source:
            config = read_config(source)
            layers = layer_counts(config)
            work = within_positions(work, config)
            setting = Setting("plan", _rows(config, work), work.new_tokens, forced=True, masked=work.masked)
            calls: dict[Pair | str, Call] = {}
            for pair in progress(pairs, len(pairs), "build"):
                kept = _kept(layers, pair)
                target = source if kept == layers else folder / "{}-{}".format(*pair)
                if target != source:
                    prune(source, target, range(kept[0]), range(kept[1]))
                exported = folder / "{}-{}-exported".format(*pair)
                export(target, exported, engine, dtype)
                loaded = load_engine(target, exported, chosen_device, threads)
                calls[pair] = calls_of(loaded, clock)(setting, work.batch)
            if loaded.name != BASELINE:
                calls[BASELINE] = calls_of(baseline(source, chosen_device), clock)(setting, work.batch)
        (first,) = zip(*time_rounds(calls, 1, clock).values(), strict=True)  # warms up, too
        found = time_rounds(calls, max(FEWEST_PAIRS, round(seconds / sum(first))), clock)
    times = {pair: found[pair] for pair in pairs}
    cells = predict(times, layers, FITTED, found.get(BASELINE))
    return Plan(
        model,
        loaded.name,
        work,
        layers,
        chosen_device,
        threads,
        cells,
        FITTED,
        len(times[DENSE]),
        time.monotonic() - started,
    )


def time_rounds(calls: Mapping[Name, Call], rounds: int, clock: Clock) -> dict[Name, list[float]]:
    """Seconds of each call in each round. The rounds go through the calls forwards and backwards in turn."""
    times: dict[Name, list[float]] = {name: [] for name in calls}
    order = list(calls)
    with without_garbage_collection():
        for _ in progress(range(rounds), rounds, "time"):
            for name in order:
                start = clock.mark()
                calls[name]()
                times[name].append(clock.seconds(start, clock.mark()))
            order.reverse()
    return times


def predict(
    times: Mapping[Pair, Sequence[float]],
    layers: Pair,
    fitted: Sequence[Pair],
    plain: Sequence[float] | None = None,
) -> dict[Pair, Prediction]:
    """Every cell of the grid of 36, and those of ``times`` beside, in seconds and as a speedup over dense.

    A model is fitted to each round, by least squares of relative errors, so that fast cells count as much as slow ones.
    The figures are medians over the rounds; their intervals are those of the medians, made wider by the factor by which
    the model misses, at worst, a cell that it was fitted to. ``plain``: seconds of dense by the baseline, a round each.
    """
    import numpy as np

    pairs = list(dict.fromkeys([*GRIDS["full"], *times]))
    measured = np.array([times[pair] for pair in fitted])  # (cells, rounds)
    columns = np.array([[1, *_kept(layers, pair)] for pair in fitted], dtype=float)
    wanted = np.array([[1, *_kept(layers, pair)] for pair in pairs], dtype=float)
    parts = np.stack(
        [np.linalg.lstsq(columns / took[:, None], np.ones(len(fitted)), rcond=None)[0] for took in measured.T]
    )
    predicted = dict(zip(pairs, np.maximum(wanted @ parts.T, 1e-9), strict=True))
    medians = {pair: statistics.median(took) for pair, took in times.items()}
    misses = [float(np.median(predicted[pair])) / medians[pair] for pair in fitted]
    misfit = max(max(miss, 1 / miss) for miss in misses)

    def estimate(values: Sequence[float], widened: float) -> Estimate:
        low, high = median_interval(values)
        return Estimate(statistics.median(values), low / widened, high * widened)

    return {
        pair: Prediction(
            estimate(list(took), misfit),
            estimate(list(predicted[DENSE] / took), 1.0 if pair == DENSE else misfit),
            None if plain is None else estimate(list(np.array(plain) / took), misfit),
            medians.get(pair),
        )
        for pair, took in predicted.items()
    }


def authors_speedups(model: str, batch: int) -> dict[str, dict[Pair, Estimate]]:
    """What Campos and Zhai measured on an A10 for this shape and batch size: data set -> cell -> speedup.

    Raises LopsideError where they did not.
    """
    size = model.removeprefix("flan-t5-")
    found = {dataset: of[batch] for (each, dataset), of in speedups().items() if each == size and batch in of}
    if not found:
        raise LopsideError(
            f"--published: the authors timed {', '.join(SHAPES)} at batch 1, 8 and 16, not {model} at batch {batch}"
        )
    return found


def in_words(plan: Plan) -> str:
    """What was timed, on what, and how good the model is; a line each."""
    work = plan.work
    lines = [
        f"{plan.model}, {plan.layers[0]} + {plan.layers[1]} layers, by {plan.engine} on {plan.device}, {plan.threads} "
        f"threads: batch {work.batch}, {work.source_tokens} tokens in{'' if work.masked else ' without mask'}, "
        f"{work.new_tokens} out; fitted to {names(plan.fitted)} in {plan.rounds} rounds; {plan.took:.0f} s in all"
    ]
    errors = [abs(error) for error in plan.errors().values()]
    if errors:
        lines.append(
            f"errors of {len(errors)} cells that were timed and not fitted to: median {statistics.median(errors):.1%}, "
            f"worst {max(errors):.1%}"
        )
    return "\n".join(lines)


def plan_table(plan: Plan, authors: Mapping[str, Mapping[Pair, Estimate]] | None = None) -> str:
    """The cells as a Markdown table, with 95% intervals; beside ``authors``, those that they timed alone."""
    authors = authors or {}
    whole = any(cell.total for cell in plan.cells.values())
    timed = any(cell.measured is not None for pair, cell in plan.cells.items() if pair not in plan.fitted)
    header = ["enc-dec", "layers", "milliseconds", "speedup"]
    header += [f"speedup over {BASELINE}"] if whole else []
    header += ["measured, ms", "error"] if timed else []
    header += [f"authors' speedup, {dataset}" for dataset in authors]
    rows = [header, ["---", "---", *["---:"] * (len(header) - 2)]]
    for pair, cell in sorted(plan.cells.items(), reverse=True):
        if authors and not any(pair in of for of in authors.values()):
            continue
        name = "{}-{}".format(*pair) + (" (fitted)" if pair in plan.fitted else "")
        row = [name, "{} + {}".format(*_kept(plan.layers, pair)), _shown(cell.seconds, 1000, 0), _shown(cell.speedup)]
        if cell.total:
            row.append(_shown(cell.total))
        if timed:
            row.append("" if cell.measured is None else f"{cell.measured * 1000:.0f}")
            row.append("" if cell.error is None or pair in plan.fitted else f"{cell.error:+.1%}")
        rows.append(row + [_shown(of[pair]) if pair in of else "" for of in authors.values()])
    return markdown_table(rows)


def authors_line(plan: Plan, authors: Mapping[str, Mapping[Pair, Estimate]]) -> str:
    """What is won by short decoders over short encoders, here and by the authors: their second claim, on average.

    Intervals are as if 6-x and x-6 erred independently; of the same rounds, they do not, and ours are too wide.
    """
    of = {"here": {pair: cell.speedup for pair, cell in plan.cells.items()}, **authors}
    shown = ", ".join(f"{name} {IN_TIMES.format(*decoder_over_encoder(speedups))}" for name, speedups in of.items())
    return f"speedup of 6-x / x-6, geometric mean over x: {shown}"


def target_line(plan: Plan, speedup: float) -> str:
    """The cells that reach a speedup, and how to have the first of them."""
    found = plan.reaching(speedup)
    if not found:
        best = max(plan.cells, key=lambda pair: plan.cells[pair].speedup.value)
        return (
            f"no cell is {speedup:g} times faster; the fastest is {names([best])}, {_shown(plan.cells[best].speedup)}"
        )
    enc, dec = found[0]
    return f"{speedup:g} times faster or more: {names(found)}; `dvc exp run -S enc={enc} -S dec={dec}` makes the first"


def plan_heat_map(plan: Plan, path: Path) -> None:
    """Milliseconds and speedups over (enc, dec), as a PNG."""
    from lopside.pictures import draw_heat_maps

    times = {pair: plan.cells[pair].seconds.value * 1000 for pair in GRIDS["full"]}
    ratios = {pair: plan.cells[pair].speedup.value for pair in GRIDS["full"]}
    at = f"{plan.model}, {plan.engine}, batch {plan.work.batch}"
    draw_heat_maps({f"{at}: milliseconds": (times, "{:.0f}"), "speedup": (ratios, "{:.2f}")}, "sixths", path)


def _shown(estimate: Estimate, factor: float = 1, digits: int = 2) -> str:
    value, low, high = (f"{each * factor:.{digits}f}" for each in estimate)
    return f"{value} [{low}, {high}]"


@contextmanager
def _source(model: str, revision: str, folder: Path) -> Iterator[Path]:
    """The full model's folder: ``folder`` itself, with random weights, for a shape that is known."""
    if model in SHAPES:
        write_untrained(model, folder)
        yield folder
    else:
        yield find_model(model, revision)[0]


def _kept(layers: Pair, pair: Pair) -> Pair:
    """Sixths as numbers of layers."""
    return kept_count(layers[0], pair[0], key="enc"), kept_count(layers[1], pair[1], key="dec")


def within_positions(work: Work, config: Mapping[str, Any]) -> Work:
    """The work, its documents cut where the paper's are longer than the model's positions.

    Raises LopsideError for other lengths that it has no positions for.
    """
    limits = positions(config, "encoder"), positions(config, "decoder")
    if work.source_tokens == PAPER.source_tokens and not work.masked and limits[0]:
        work = replace(work, source_tokens=min(work.source_tokens, limits[0]))
    for option, tokens, limit in zip(
        ("--source-tokens", "--new-tokens"), (work.source_tokens, work.new_tokens), limits, strict=True
    ):
        if limit is not None and tokens > limit:
            raise LopsideError(f"{option}: {tokens} is more than the model's {limit} positions")
    return work


def _rows(config: Mapping[str, Any], work: Work) -> list[list[int]]:
    """Documents of random tokens; special ones stand at the ends of vocabularies."""
    chosen, size = random.Random(0), config["vocab_size"]
    return [[chosen.randrange(size // 4, size // 2) for _ in range(work.source_tokens)] for _ in range(work.batch)]
