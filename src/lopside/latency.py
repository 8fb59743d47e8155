"""Time two models side by side: both loaded, then every setting at every batch size.

How pairs of calls are timed is in `lopside.pairs`, what a call does in `lopside.workloads`, what is written in
`lopside.timings`.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lopside.engines import BASELINE, FILES, baseline, load_engine
from lopside.errors import LopsideError
from lopside.flops import count_flops
from lopside.generation import Engine, Transformers
from lopside.inputs import Inputs, positions
from lopside.machine import Device, choose_device, keep_memory, set_threads
from lopside.memory import growth, is_out_of_memory, within_free_memory
from lopside.models import load_model, load_tokenizer, read_config, weight_files
from lopside.pairs import FEWEST_PAIRS, SIDES, Call, Clock, Side, Timing, time_pairs, warm_up
from lopside.timings import Cell, Latency, in_words
from lopside.workloads import (
    PAPER_SOURCE_TOKENS,
    Prepare,
    Setting,
    calls_of,
    choose_clock,
    fixed,
    natural,
    paper,
    transformers_calls,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

WARM_UP_SHARE = 1 / 4
"""Of the seconds that pairs may take: no more are spent on warming up, but for the pairs asked for."""


@dataclass(frozen=True)
class Effort:
    """How much time a measurement takes: that of each setting at each batch size."""

    warmup: int
    """Pairs that do not count, at least."""
    min_pairs: int
    """Pairs that count, at least."""
    max_seconds: float
    """No further pair begins after so many seconds of pairs that count."""
    precision: float
    """Nor once half the speedup's 95% interval is at most this share of the speedup."""


def measure(
    folders: Mapping[Side, Path],
    exported: Mapping[Side, Path],
    documents: Sequence[str],
    *,
    batch_sizes: Sequence[int],
    source_tokens: int,
    new_tokens: int,
    inputs: Inputs,
    max_new_tokens: int,
    num_beams: int,
    effort: Effort,
    threads: int = 0,
    device: str = "auto",
) -> Latency:
    """Time both models in the settings ``paper``, ``fixed`` and ``natural``, see `lopside.workloads`.

    Dense and pruned are timed by one engine, which gives the speedup by pruning; where that engine is not the baseline,
    transformers in float32, pruned is timed against dense by the baseline too, which gives the gain in all.

    A batch for which there is no memory is left out with all that are larger, and half of it tried where no batch of
    this size or more was measured.

    Args:
        folders: of the two models and their tokenizers.
        exported: what `lopside.engines.export` wrote for each of them.
        documents: without prefix, at least one.
        batch_sizes: documents a call.
        source_tokens, new_tokens: of ``fixed``.
        inputs, max_new_tokens, num_beams: of ``natural``, those of `lopside.generation.summarise`.
        effort: when a measurement ends.
        threads: of the CPU; 0: one a physical core.
        device: may be ``auto``.

    What happens, and what to beware of, is said on stderr.

    Raises:
        LopsideError: a folder holds no model; the lengths fit neither models nor documents; there is no such device, or
            no memory for a single document.
    """
    if effort.min_pairs < FEWEST_PAIRS:
        raise LopsideError(
            f"time.min_pairs: {effort.min_pairs} is refused; a 95% interval needs {FEWEST_PAIRS} or more"
        )
    if not effort.precision > 0:
        raise LopsideError(f"time.precision: {effort.precision} is refused; no interval has a width of 0")
    for folder in folders.values():
        check_lengths(folder, source_tokens, new_tokens, max_new_tokens)

    before = _load_average()
    keep_memory()
    threads = set_threads(threads)
    chosen_device = choose_device(device)
    engines = {side: load_engine(folders[side], exported[side], chosen_device, threads) for side in SIDES}
    name = engines["dense"].name
    if engines["pruned"].name != name:
        raise LopsideError(f"{exported['pruned']}: is for {engines['pruned'].name}, {exported['dense']} for {name}")
    _say(f"timing {name} on {chosen_device}, {threads} threads")
    if before is not None and before > threads:
        _say(
            f"warning: load average {before} on {threads} cores: other work takes their time, or did within the last "
            "minute; intervals will be wide, and milliseconds many"
        )
    models = {
        side: engine.model if type(engine) is Transformers else load_model(folders[side])
        for side, engine in engines.items()
    }
    size = max(batch_sizes)
    paper_tokens = min(PAPER_SOURCE_TOKENS, positions(read_config(folders["dense"]), "encoder") or PAPER_SOURCE_TOKENS)

    def settings_of(tokenizer: PreTrainedTokenizerBase) -> list[Setting]:
        return [
            paper(tokenizer, documents, size=size, source_tokens=paper_tokens),
            fixed(tokenizer, documents, size=size, source_tokens=source_tokens, new_tokens=new_tokens),
            natural(tokenizer, documents, inputs, new_tokens=max_new_tokens, beams=num_beams),
        ]

    # The same documents, by the tokenizer of each: a trimmed vocabulary has ids of its own.
    tokenizers = {side: load_tokenizer(folders[side]) for side in SIDES}
    settings = {side: settings_of(tokenizer) for side, tokenizer in tokenizers.items()}
    clock = choose_clock(chosen_device)
    bench = _Bench(
        calls={side: calls_of(engine, clock) for side, engine in engines.items()},
        baseline=None if name == BASELINE else calls_of(baseline(folders["dense"], chosen_device), clock),
        weights={side: _loaded_bytes(engine, folders[side], exported[side]) for side, engine in engines.items()},
        device=chosen_device,
        clock=clock,
        effort=effort,
    )
    cells: dict[str, dict[int, Cell]] = {}
    too_large: dict[str, int] = {}
    for dense, pruned in zip(settings["dense"], settings["pruned"], strict=True):
        cells[dense.name], refused = bench.cells({"dense": dense, "pruned": pruned}, batch_sizes)
        too_large |= {dense.name: refused} if refused else {}
    return Latency(
        cells=cells,
        too_large=too_large,
        parameters={side: sum(p.numel() for p in model.parameters()) for side, model in models.items()},
        size_mb={side: _stored_bytes(folders[side], exported[side]) / 1e6 for side in SIDES},
        gflop={
            side: count_flops(transformers_calls(model, tokenizers[side].pad_token_id, clock)(settings[side][1], 1))
            / 1e9
            for side, model in models.items()
        },
        load={"before": before, "after": _load_average()},
        settings={
            "device": chosen_device,
            "engine": name,
            "threads": threads,
            "paper_source_tokens": paper_tokens,
            "source_tokens": source_tokens,
            "new_tokens": new_tokens,
            "natural_source_tokens": inputs.max_source_tokens,
            "natural_new_tokens": max_new_tokens,
            "natural_beams": num_beams,
            "precision": effort.precision,
            "max_seconds": effort.max_seconds,
            "memory": "resident" if chosen_device == "cpu" else "allocated on the GPU",
        },
    )


@dataclass(frozen=True)
class _Bench:
    """Both models, ready to be timed."""

    calls: Mapping[Side, Prepare]
    baseline: Prepare | None
    """Dense by the baseline; None where that is how both are timed anyway."""
    weights: Mapping[Side, int]
    """Bytes in memory."""
    device: Device
    clock: Clock
    effort: Effort

    def cells(self, settings: Mapping[Side, Setting], batch_sizes: Sequence[int]) -> tuple[dict[int, Cell], int | None]:
        """The cells of all batch sizes that fit into memory, and the smallest that did not fit."""
        name = settings["dense"].name
        cells: dict[int, Cell] = {}
        refused = None
        todo = sorted(batch_sizes)
        while todo:
            batch = todo.pop(0)
            try:
                cells[batch] = self.cell(settings, batch)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                refused, half = batch, batch // 2
                todo = [half] if half > max(cells, default=0) else []
                _say(f"{name}, batch {batch}: too large for the memory here; left out, and all that are larger")
            else:
                _say(in_words(name, batch, cells[batch]))
        if not cells:
            raise LopsideError(f"time: there is no memory here for a single document of the setting {name}")
        return cells, refused

    def cell(self, settings: Mapping[Side, Setting], batch: int) -> Cell:
        """Warm up, with an eye on memory, and time pairs."""
        calls = {side: prepare(settings[side], batch) for side, prepare in self.calls.items()}
        grown: dict[Side, int | None] = {}

        def watched(side: Side) -> Call:
            def call() -> None:
                grown[side] = growth(calls[side], self.device)

            return call

        with within_free_memory() if self.device == "cpu" else nullcontext():
            warm_up(
                watched("dense"),
                watched("pruned"),
                least=self.effort.warmup,
                max_seconds=WARM_UP_SHARE * self.effort.max_seconds,
                clock=self.clock,
            )
            timing = self._pairs(calls["dense"], calls["pruned"])
            total = None
            if self.baseline:
                plain = self.baseline(settings["dense"], batch)
                plain()  # warm
                total = self._pairs(plain, calls["pruned"])
        return Cell(
            timing, {side: self.weights[side] + more for side, more in grown.items() if more is not None}, total
        )

    def _pairs(self, dense: Call, pruned: Call) -> Timing:
        return time_pairs(
            dense,
            pruned,
            min_pairs=self.effort.min_pairs,
            max_seconds=self.effort.max_seconds,
            precision=self.effort.precision,
            clock=self.clock,
        )


def check_lengths(folder: Path, source_tokens: int, new_tokens: int, max_new_tokens: int) -> None:
    """Raise LopsideError where the model in ``folder`` has fewer positions than the lengths ask for.

    Models with relative positions (T5) name no limit, and have none.
    """
    config = read_config(folder)
    source, target = positions(config, "encoder"), positions(config, "decoder")
    for key, value, limit in (
        ("time.source_tokens", source_tokens, source),
        ("time.new_tokens", new_tokens, target),
        ("generate.max_new_tokens", max_new_tokens, target),
    ):
        if limit is not None and value > limit:
            raise LopsideError(f"{key}: {value} is more than the {limit} positions of {folder}; give {limit} or less")


def _load_average() -> float | None:
    """The system's load average over the last minute; None where it keeps none."""
    try:
        return round(os.getloadavg()[0], 2)
    except (AttributeError, OSError):
        return None


def _stored_bytes(folder: Path, exported: Path) -> int:
    """What the weights take on disk, in the files that the engine reads."""
    files = list((exported / FILES).iterdir()) if (exported / FILES).is_dir() else weight_files(folder)
    return sum(file.stat().st_size for file in files)


def _loaded_bytes(engine: Engine, folder: Path, exported: Path) -> int:
    """What the weights take of memory; of CTranslate2, which does not tell, what they take on disk."""
    if not isinstance(engine, Transformers):
        return _stored_bytes(folder, exported)
    return sum(t.numel() * t.element_size() for t in [*engine.model.parameters(), *engine.model.buffers()])


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
