"""Time two models side by side.

Dense and pruned are timed in one process, one call of each making a pair, the order turned round at every pair: what
slows the machine down for a while then slows both, and the ratio within a pair hardly feels it. The speedup is the
median of these ratios.
"""

from __future__ import annotations

import csv
import gc
import math
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import chain, count
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from lopside.errors import LopsideError
from lopside.files import new_file, write_json
from lopside.machine import choose_device, choose_dtype, keep_memory, set_threads
from lopside.models import load_model, load_tokenizer, read_config, weight_files

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Side = Literal["dense", "pruned"]
SIDES: tuple[Side, Side] = ("dense", "pruned")

CONFIDENCE = 0.95
FEWEST_PAIRS = 6
"""With fewer, no order statistics enclose the median with 95% confidence."""


@dataclass(frozen=True)
class Pair:
    """Seconds that one call of each side took, back to back."""

    dense: float
    pruned: float
    first: Side
    """The side that was called first."""

    @property
    def ratio(self) -> float:
        return self.dense / self.pruned


@dataclass(frozen=True)
class Latency:
    """All pairs by batch size, with what they were measured on and under which settings."""

    pairs: dict[int, list[Pair]]
    parameters: dict[Side, int]
    size_mb: dict[Side, float]
    """Weights on disk, in megabytes (10^6 bytes)."""
    settings: dict[str, str | int]

    def metrics(self, machine: str) -> dict[str, Any]:
        """The contents of metrics/latency.json. ``machine``: one line on where this was measured."""
        return {
            "fixed": {f"batch_{batch}": summarise(pairs) for batch, pairs in self.pairs.items()},
            "parameters": self.parameters,
            "size_mb": self.size_mb,
            "settings": self.settings,
            "machine": machine,
        }

    def write_metrics(self, path: str | Path, machine: str) -> None:
        """The metrics as JSON."""
        write_json(path, self.metrics(machine))

    def write_plot(self, path: str | Path) -> None:
        """CSV of two rows, dense and pruned, with the median milliseconds at each batch size."""
        summaries = {f"batch_{batch}": summarise(pairs) for batch, pairs in self.pairs.items()}
        header = ["side", *(f"{name}_ms" for name in summaries)]
        _write_csv(path, header, ([side, *(s[f"{side}_ms"] for s in summaries.values())] for side in SIDES))

    def write_timings(self, path: str | Path) -> None:
        """CSV of every call in the order of calling; ``order`` is 1 or 2, the place within the pair."""
        _write_csv(path, ["batch", "pair", "order", "side", "seconds"], self._calls())

    def _calls(self) -> Iterable[Sequence[Any]]:
        for batch, pairs in self.pairs.items():
            for number, pair in enumerate(pairs, start=1):
                for order, side in enumerate(_in_order(pair.first), start=1):
                    yield batch, number, order, side, repr(getattr(pair, side))


def measure(
    dense: Path,
    pruned: Path,
    documents: Sequence[str],
    *,
    batch_sizes: Sequence[int],
    source_tokens: int,
    new_tokens: int,
    warmup: int,
    min_pairs: int,
    max_seconds: float,
    threads: int = 0,
    dtype: str = "auto",
    device: str = "auto",
) -> Latency:
    """Time greedy generation of exactly ``new_tokens`` tokens from exactly ``source_tokens``, for both model folders.

    For each batch size: ``warmup`` pairs that do not count, then pairs for ``max_seconds`` seconds, and at least
    ``min_pairs``. ``threads`` 0 means one a physical core; ``dtype`` and ``device`` may be ``auto``. Source texts are
    ``documents`` joined and cut, so that no row is padded. Settings of the models' own generation_config.json (beams,
    penalties) play no part, only its token ids do.

    Raises LopsideError where a folder holds no model, where the lengths fit neither models nor documents, and where
    there is no such device.
    """
    if min_pairs < FEWEST_PAIRS:
        raise LopsideError(f"time.min_pairs: {min_pairs} is too few for a 95% interval; give {FEWEST_PAIRS} or more")
    folders: dict[Side, Path] = {"dense": dense, "pruned": pruned}
    for folder in folders.values():
        check_lengths(folder, source_tokens, new_tokens)

    keep_memory()
    import torch

    threads = set_threads(threads)
    chosen_device = choose_device(device)
    chosen_dtype = choose_dtype(dtype, chosen_device)
    rows = source_rows(load_tokenizer(dense), documents, rows=max(batch_sizes), tokens=source_tokens)
    models = {
        side: load_model(folder, dtype=getattr(torch, chosen_dtype), device=chosen_device)
        for side, folder in folders.items()
    }
    _say(f"timing on {chosen_device} in {chosen_dtype}, {threads} threads, {source_tokens} tokens in, {new_tokens} out")

    pairs = {}
    for batch in batch_sizes:
        ids = torch.tensor(rows[:batch], device=chosen_device)
        calls = {side: greedy(model, ids, new_tokens) for side, model in models.items()}
        pairs[batch] = time_pairs(
            calls["dense"], calls["pruned"], warmup=warmup, min_pairs=min_pairs, max_seconds=max_seconds
        )
        _say(f"batch {batch}: {_in_words(summarise(pairs[batch]))}")

    return Latency(
        pairs=pairs,
        parameters={side: sum(p.numel() for p in model.parameters()) for side, model in models.items()},
        size_mb={side: _weights_mb(folder) for side, folder in folders.items()},
        settings={
            "device": chosen_device,
            "dtype": chosen_dtype,
            "threads": threads,
            "source_tokens": source_tokens,
            "new_tokens": new_tokens,
        },
    )


def time_pairs(
    dense: Callable[[], object],
    pruned: Callable[[], object],
    *,
    warmup: int,
    min_pairs: int,
    max_seconds: float,
    clock: Callable[[], float] = time.perf_counter,
) -> list[Pair]:
    """Call both sides in turn, pair by pair, and return each pair's seconds; warm-up pairs are left out.

    Pairs come in twos, dense first and then pruned first, so that being first or second favours neither side. Once
    there are ``min_pairs`` pairs, no two more begin after ``max_seconds`` seconds. A call must return only when its
    work is done. Garbage is collected between pairs, never within one.
    """
    calls: dict[Side, Callable[[], object]] = {"dense": dense, "pruned": pruned}

    def pair(first: Side) -> Pair:
        gc.collect()
        seconds = {}
        for side in _in_order(first):
            start = clock()
            calls[side]()
            seconds[side] = clock() - start
        return Pair(dense=seconds["dense"], pruned=seconds["pruned"], first=first)

    collecting = gc.isenabled()
    gc.disable()
    gc.freeze()  # what is there now (all of torch) need not be searched for garbage before every pair
    try:
        for number in range(warmup):
            pair(SIDES[number % 2])
        pairs: list[Pair] = []
        end = clock() + max_seconds
        while len(pairs) < min_pairs or clock() < end:
            pairs += [pair(first) for first in SIDES]
        return pairs
    finally:
        gc.unfreeze()
        if collecting:
            gc.enable()


def summarise(pairs: Sequence[Pair]) -> dict[str, float | int]:
    """Each side's median and 90th percentile (ms, 4 significant digits), speedup with 95% interval, number of pairs."""
    ratios = [pair.ratio for pair in pairs]
    low, high = median_interval(ratios)
    figures: dict[str, float | int] = {}
    for side in SIDES:
        times = [1000 * getattr(pair, side) for pair in pairs]
        figures[f"{side}_ms"] = _significant(statistics.median(times))
        figures[f"{side}_p90_ms"] = _significant(statistics.quantiles(times, n=10, method="inclusive")[-1])
    return figures | {
        "speedup": round(statistics.median(ratios), 3),
        "speedup_low": round(low, 3),
        "speedup_high": round(high, 3),
        "pairs": len(pairs),
    }


def median_interval(values: Sequence[float], confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Confidence interval for the median that assumes no distribution: two of the values themselves.

    Of n independent values, the number below the true median is binomial (n, 1/2). So the k-th smallest and the k-th
    largest enclose it with probability 1 - 2 P(X < k); k is the greatest for which that reaches ``confidence``. Few
    values give more confidence than asked, never less: 10 give the 2nd and the 9th, 97.9%.
    Source: David & Nagaraja 2003, *Order Statistics*, 7.1. Raises ValueError where there are too few values (95%: 6).
    """
    n = len(values)
    outside, k = 0.0, 0
    while k < n and outside + (step := 2 * math.comb(n, k) / 2**n) <= 1 - confidence:
        outside += step
        k += 1
    if k == 0:
        raise ValueError(f"{n} values are too few for a {confidence:.0%} interval of the median")
    ordered = sorted(values)
    return ordered[k - 1], ordered[n - k]


def source_rows(
    tokenizer: PreTrainedTokenizerBase, documents: Iterable[str], *, rows: int, tokens: int
) -> list[list[int]]:
    """``rows`` lists of exactly ``tokens`` ids: documents joined and cut, special tokens where the tokenizer puts them.

    Starts again at the first document where there are too few. Raises LopsideError where ``tokens`` leaves no room
    beside the special tokens, or where the documents hold no text.
    """
    documents = list(documents)
    before, after = _special_tokens(tokenizer, next((document for document in documents if document.strip()), "text"))
    room = tokens - len(before) - len(after)
    if room < 1:
        raise LopsideError(
            f"time.source_tokens: {tokens} leaves no room for text; give {tokens - room + 1} or more, "
            "for the special tokens count too"
        )
    stream: list[int] = []
    for number in count():
        if len(stream) >= rows * room:
            break
        if number >= len(documents) and not stream:
            raise LopsideError("time: the test documents hold no text to time with")
        stream += tokenizer(documents[number % len(documents)], add_special_tokens=False, verbose=False)["input_ids"]
    return [[*before, *stream[row * room : (row + 1) * room], *after] for row in range(rows)]


def check_lengths(folder: Path, source_tokens: int, new_tokens: int) -> None:
    """Raise LopsideError where the model in ``folder`` has fewer positions than the lengths ask for.

    Models with relative positions (T5) name no limit, and have none.
    """
    limit = read_config(folder).get("max_position_embeddings")
    for key, value in (("time.source_tokens", source_tokens), ("time.new_tokens", new_tokens)):
        if limit is not None and value > limit:
            raise LopsideError(f"{key}: {value} is more than the {limit} positions of {folder}; give {limit} or less")


def _special_tokens(tokenizer: PreTrainedTokenizerBase, text: str) -> tuple[list[int], list[int]]:
    """The ids that the tokenizer puts before and after a text."""
    whole = tokenizer(text)["input_ids"]
    bare = tokenizer(text, add_special_tokens=False)["input_ids"]
    start = next(i for i in range(len(whole)) if whole[i : i + len(bare)] == bare)
    return whole[:start], whole[start + len(bare) :]


def greedy(model: PreTrainedModel, ids: torch.Tensor, new_tokens: int) -> Callable[[], object]:
    """A call that generates exactly ``new_tokens`` tokens from ``ids`` (batch, source tokens) and waits for them."""
    import torch
    from transformers import GenerationConfig

    own = model.generation_config
    start = own.decoder_start_token_id
    # The model's own settings (beams, forbidden repeats) would fill whatever is left unset, so they are put aside.
    model.generation_config = GenerationConfig(
        bos_token_id=own.bos_token_id,
        eos_token_id=own.eos_token_id,
        pad_token_id=own.pad_token_id,
        decoder_start_token_id=model.config.decoder_start_token_id if start is None else start,
    )
    mask = torch.ones_like(ids)

    def generate() -> None:
        output: Any = model.generate(  # type: ignore[operator]
            input_ids=ids,
            attention_mask=mask,
            do_sample=False,
            num_beams=1,
            min_new_tokens=new_tokens,
            max_new_tokens=new_tokens,
            use_cache=True,
        )
        if ids.is_cuda:
            torch.cuda.synchronize()
        generated = output.shape[1] - 1  # the start token is not generated
        if generated != new_tokens:
            raise RuntimeError(f"{generated} tokens were generated where {new_tokens} were forced")

    return generate


def _in_order(first: Side) -> tuple[Side, Side]:
    return ("dense", "pruned") if first == "dense" else ("pruned", "dense")


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _in_words(figures: dict[str, float | int]) -> str:
    return (
        "dense {dense_ms:g} ms, pruned {pruned_ms:g} ms, "
        "speedup {speedup} [{speedup_low}, {speedup_high}] of {pairs} pairs".format(**figures)
    )


def _weights_mb(folder: Path) -> float:
    return round(sum(file.stat().st_size for file in weight_files(folder)) / 1e6, 1)


def _significant(value: float, digits: int = 4) -> float:
    return float(f"{value:.{digits}g}")


def _write_csv(path: str | Path, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    with new_file(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerows(chain([header], rows))
