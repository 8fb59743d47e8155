"""The figures made of what was timed, and the files they are written to."""

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from lopside.pairs import Done, Pair, Timing
from lopside.timings import Cell, Latency, in_words, summarise

MACHINE = {"cpu": "A CPU", "physical_cores": 2, "gpus": [], "versions": {"torch": "2.13.0", "numpy": "2.4.6"}}

# Ratios 2, 2, 3, 4, 5, 1: the median is (2 + 3) / 2.
SECONDS = [(2.0, 1.0), (4.0, 2.0), (6.0, 2.0), (8.0, 2.0), (10.0, 2.0), (3.0, 3.0)]


def cell(*told: tuple[Done | None, Done | None], peak: dict[Any, int] | None = None) -> Cell:
    """The seconds above, each pair with what dense and pruned told."""
    pairs = [
        Pair(dense, pruned, "dense" if number % 2 == 0 else "pruned", {"dense": left, "pruned": right})
        for number, ((dense, pruned), (left, right)) in enumerate(zip(SECONDS, told or [(None, None)] * 6, strict=True))
    ]
    return Cell(Timing(pairs, 1.0, 5.0, "seconds"), peak or {})


def latency(**changes: Any) -> Latency:
    settings: dict[str, Any] = {
        "cells": {"paper": {1: cell()}, "fixed": {1: cell(), 8: cell()}},
        "too_large": {"fixed": 16},
        "parameters": {"dense": 20, "pruned": 10},
        "size_mb": {"dense": 120.34567, "pruned": 0.1},
        "gflop": {"dense": 12.34567, "pruned": 0.1},
        "load": {"before": 0.25, "after": None},
        "settings": {"device": "cpu", "threads": 2},
    }
    return Latency(**settings | changes)


def test_figures_by_hand() -> None:
    assert summarise("paper", 4, cell(), cores=2) == {
        "speedup": 2.5,
        "speedup_low": 1.0,
        "speedup_high": 5.0,
        "precision": 0.8,  # (5 - 1) / 2 / 2.5
        "pairs": 6,
        "ended": "seconds",
        "total": 2.5,  # both by the baseline
        "total_low": 1.0,
        "total_high": 5.0,
        "baseline_ms": 5000.0,
        "dense_ms": 5000.0,  # of 2 3 4 6 8 10
        "dense_p90_ms": 9000.0,  # place 0.9 * 5 = 4.5, halfway from 8 to 10
        "dense_p99_ms": 9900.0,  # place 4.95
        "dense_docs_s": 0.7273,  # 6 batches of 4 in 33 s
        "dense_core_hours": 763.9,  # 33/24 s a document, a million of them, 3,600 s an hour, 2 cores
        "pruned_ms": 2000.0,  # of 1 2 2 2 2 3
        "pruned_p90_ms": 2500.0,
        "pruned_p99_ms": 2950.0,
        "pruned_docs_s": 2.0,
        "pruned_core_hours": 277.8,
    }


def test_the_gain_in_all_is_from_the_baseline() -> None:
    slow = [Pair(dense=4 * pair.dense, pruned=pair.pruned, first=pair.first) for pair in cell().timing.pairs]
    figures = summarise("paper", 4, replace(cell(), total=Timing(slow, 4.0, 20.0, ended="seconds")), cores=2)
    assert (figures["speedup"], figures["total"], figures["total_low"], figures["total_high"]) == (2.5, 10, 4, 20)
    assert (figures["dense_ms"], figures["baseline_ms"]) == (5000, 20000)


def test_on_a_gpu_hours_are_its_own() -> None:
    figures = summarise("paper", 4, cell(), cores=None)
    assert figures["dense_gpu_hours"] == 381.9
    assert not any("core_hours" in name for name in figures)


def test_natural_tells_the_tokens_of_a_summary() -> None:
    told = [(Done(number), Done(40)) for number in (10, 12, 14, 16, 18, 21)]
    figures = summarise("natural", 4, cell(*told), cores=2)
    assert (figures["dense_tokens"], figures["pruned_tokens"]) == (3.8, 10.0)  # 91 / 6 / 4
    assert not any(name.endswith(("encoder_ms", "first_ms", "token_ms", "peak_mb")) for name in figures)


def test_fixed_tells_where_the_time_goes() -> None:
    """Two documents of 5 tokens each: 4 steps follow the first token."""
    told = [(Done(10, encoder=0.5, first=1.0), Done(10, encoder=0.25, first=number / 10)) for number in range(6)]
    figures = summarise("fixed", 2, cell(*told, peak={"dense": 123_456_789}), cores=2)
    expected = {
        "dense_encoder_ms": 500.0,
        "dense_first_ms": 1000.0,
        "dense_token_ms": 1000.0,  # (5 - 1) / 4, all by the median
        "dense_peak_mb": 123.5,
        "pruned_encoder_ms": 250.0,
        "pruned_first_ms": 250.0,  # of 0 to 500
        "pruned_token_ms": 437.5,  # of 1/4, 1.9/4, 1.8/4, 1.7/4, 1.6/4, 2.5/4
    }
    parts = ("encoder_ms", "first_ms", "token_ms", "peak_mb", "tokens")
    assert {name: value for name, value in figures.items() if name.endswith(parts)} == expected


def test_parts_that_an_engine_does_not_tell_are_left_out() -> None:
    figures = summarise("fixed", 1, cell(*[(Done(5, encoder=0.5), Done(1, first=0.5))] * 6), cores=2)
    assert {name for name in figures if name.endswith(("encoder_ms", "first_ms", "token_ms", "peak_mb"))} == {
        "dense_encoder_ms",
        "pruned_first_ms",  # and no further token that took time
    }


def test_in_words() -> None:
    assert in_words("fixed", 8, cell(*[(Done(64), Done(64))] * 6)) == (
        "fixed, batch 8: dense 5000 ms, pruned 2000 ms, speedup 2.500 [1.000, 5.000] of 6 pairs; time over at ±80.0%"
    )
    precise = Cell(Timing(cell(*[(Done(6), Done(9))] * 6).timing.pairs, 2.45, 2.55, "precision"), {})
    assert in_words("natural", 2, precise) == (
        "natural, batch 2: dense 5000 ms for 3.0 tokens, pruned 2000 ms for 4.5 tokens, "
        "speedup 2.500 [2.450, 2.550] of 6 pairs"
    )


def test_metrics(tmp_path: Path) -> None:
    latency().write_metrics(tmp_path / "latency.json", MACHINE)
    metrics = json.loads((tmp_path / "latency.json").read_text())
    assert metrics["paper"]["batch_1"]["speedup"] == metrics["fixed"]["batch_8"]["speedup"] == 2.5
    assert metrics["fixed"]["batch_8"]["dense_core_hours"] == 381.9
    assert metrics["too_large"] == {"fixed": 16}
    assert metrics["parameters"] == {"dense": 20, "pruned": 10}
    assert metrics["size_mb"] == {"dense": 120.3, "pruned": 0.1}
    assert metrics["gflop"] == {"dense": 12.35, "pruned": 0.1}
    assert metrics["load"] == {"before": 0.25, "after": None}
    assert metrics["settings"] == {"device": "cpu", "threads": 2}
    assert metrics["versions"] == MACHINE["versions"]
    assert metrics["machine"] == "A CPU, 2 cores, torch 2.13.0"
    gpu = latency(settings={"device": "cuda", "threads": 2}).metrics(MACHINE)
    assert gpu["fixed"]["batch_8"]["dense_gpu_hours"] == 191.0


def test_plot(tmp_path: Path) -> None:
    latency().write_plot(tmp_path / "plot.csv")
    lines = (tmp_path / "plot.csv").read_text().splitlines()
    assert lines == ["side,batch_1_ms,batch_8_ms", "dense,5000.0,5000.0", "pruned,2000.0,2000.0"]


def test_raw_times(tmp_path: Path) -> None:
    told = cell(*[(Done(7, 0.5, 1 / 3), None)] * 6)
    latency(cells={"paper": {1: cell()}, "natural": {2: told}}).write_timings(tmp_path / "timings.csv")
    rows = list(csv.DictReader((tmp_path / "timings.csv").open()))
    assert len(rows) == 2 * 6 * 2  # cells, pairs, sides
    assert list(rows[2].values()) == ["paper", "1", "2", "1", "pruned", "2.0", "", "", ""]
    assert list(rows[-1].values()) == ["natural", "2", "6", "2", "dense", "3.0", "7", "0.5", "0.3333333333333333"]
    assert list(rows[0]) == ["setting", "batch", "pair", "order", "side", "seconds", "tokens", "encoder", "first"]
