"""The timer: with a clock that we turn, and with tiny models."""

import csv
import gc
import json
import random
import shutil
from collections.abc import Callable
from math import comb
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from lopside.errors import LopsideError
from lopside.latency import (
    Latency,
    Pair,
    check_lengths,
    greedy,
    measure,
    median_interval,
    source_rows,
    summarise,
    time_pairs,
)
from lopside.models import load_model, load_tokenizer
from lopside.pruning import prune
from stages.time import main

ROOT = Path(__file__).parents[1]
DOCUMENTS = ["parse the header of a file", "return the number of rows", "", "open a socket and wait for data"]


class Clock:
    """Time that passes only when a call lets it."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now

    def call(self, seconds: float | Callable[[], float]) -> Callable[[], None]:
        """A call that takes this long; ``seconds`` may be a function that tells it anew each time."""

        def pass_time() -> None:
            self.now += seconds() if callable(seconds) else seconds

        return pass_time


def pairs_of(*seconds: tuple[float, float]) -> list[Pair]:
    return [Pair(dense=dense, pruned=pruned, first="dense") for dense, pruned in seconds]


# The interval


@pytest.mark.parametrize(
    ("count", "rank"),
    # 1 - 2 P(Binomial(n, 1/2) < rank), by hand: 6: 1 - 2/64 = 0.969; 8: 1 - 2/256 = 0.992, (2nd) 1 - 2 * 9/256 = 0.930;
    # 9: 1 - 2 * 10/512 = 0.961; 10: 1 - 2 * 11/1024 = 0.979, (3rd) 1 - 2 * 56/1024 = 0.891;
    # 12: 1 - 2 * 79/4096 = 0.961; 100: 40th to 61st, 0.9648 (David & Nagaraja).
    [(6, 1), (7, 1), (8, 1), (9, 2), (10, 2), (11, 2), (12, 3), (100, 40)],
)
def test_interval_is_two_order_statistics(count: int, rank: int) -> None:
    values = [float(value) for value in range(1, count + 1)]
    random.Random(count).shuffle(values)
    assert median_interval(values) == (rank, count + 1 - rank)


@given(st.integers(6, 300), st.sampled_from([0.8, 0.9, 0.95]))
def test_interval_is_the_narrowest_that_covers_enough(count: int, confidence: float) -> None:
    low, high = median_interval(range(count), confidence)
    assert low + high == count - 1  # as far from one end as from the other

    def coverage(rank: float) -> float:
        return 1 - 2 * sum(comb(count, below) * 0.5**count for below in range(int(rank)))

    assert coverage(low + 1) >= confidence - 1e-12
    assert coverage(low + 2) < confidence + 1e-12


@given(st.integers(1, 5))
def test_too_few_values_give_no_interval(count: int) -> None:
    with pytest.raises(ValueError, match="too few"):
        median_interval([1.0] * count)


def test_equal_sides_hold_one_as_often_as_promised() -> None:
    """1,000 simulated runs of A against A, each call 10% noisy, a drift of 30% through the run."""
    rng = random.Random(0)
    held = 0
    for _ in range(1000):
        clock = Clock()
        pace = rng.uniform(-0.3, 0.3) / 20

        def seconds(clock: Clock = clock, pace: float = pace) -> float:
            return (1 + pace * (clock.now - 100)) * rng.lognormvariate(0, 0.1)

        pairs = time_pairs(
            clock.call(seconds), clock.call(seconds), warmup=1, min_pairs=10, max_seconds=0.001, clock=clock
        )
        low, high = median_interval([pair.ratio for pair in pairs])
        held += low <= 1 <= high
    assert held >= 930


# The pairs


def test_twice_as_slow_is_measured_as_two() -> None:
    clock = Clock()
    rng = random.Random(1)
    dense = clock.call(lambda: 2.0 * rng.uniform(0.95, 1.05))
    pruned = clock.call(lambda: 1.0 * rng.uniform(0.95, 1.05))
    pairs = time_pairs(dense, pruned, warmup=2, min_pairs=7, max_seconds=100, clock=clock)
    figures = summarise(pairs)
    assert figures["speedup_low"] <= 2 <= figures["speedup_high"]
    assert 1.9 < figures["speedup"] < 2.1
    assert figures["dense_ms"] == pytest.approx(2000, rel=0.05)
    assert figures["pruned_ms"] == pytest.approx(1000, rel=0.05)
    assert figures["pairs"] == len(pairs)


def test_pairs_alternate_and_warm_up_is_left_out() -> None:
    clock = Clock()
    called: list[str] = []

    def side(name: str, seconds: float) -> Callable[[], None]:
        def call() -> None:
            called.append(name)
            clock.now += seconds

        return call

    pairs = time_pairs(side("d", 3.0), side("p", 1.0), warmup=1, min_pairs=3, max_seconds=1, clock=clock)
    assert "".join(called) == "dp" + "dp" + "pd" + "dp" + "pd"  # one warm-up pair, then twos until there are three
    assert [pair.first for pair in pairs] == ["dense", "pruned"] * 2
    assert {(pair.dense, pair.pruned) for pair in pairs} == {(3.0, 1.0)}


def test_pairs_go_on_until_the_seconds_are_over() -> None:
    clock = Clock()
    pairs = time_pairs(clock.call(1.0), clock.call(0.5), warmup=3, min_pairs=2, max_seconds=10, clock=clock)
    assert len(pairs) == 8  # twos of 3 s begin at 0, 3, 6 and 9 s; warm-up does not count
    assert len(time_pairs(clock.call(1.0), clock.call(0.5), warmup=0, min_pairs=20, max_seconds=10, clock=clock)) == 20


def test_being_second_favours_neither_side() -> None:
    clock = Clock()
    calls = [0]

    def seconds() -> float:
        calls[0] += 1
        return 1.0 if calls[0] % 2 else 1.3  # every second call is slow

    pairs = time_pairs(clock.call(seconds), clock.call(seconds), warmup=0, min_pairs=9, max_seconds=1, clock=clock)
    figures = summarise(pairs)
    assert figures["speedup_low"] < 1 < figures["speedup_high"]
    assert figures["dense_ms"] == figures["pruned_ms"]


@pytest.mark.parametrize("was_on", [True, False])
def test_no_garbage_is_collected_while_timing_and_the_setting_is_put_back(was_on: bool) -> None:
    seen = []

    def call() -> None:
        seen.append(gc.isenabled())

    def fail() -> None:
        raise KeyError

    before = gc.isenabled()
    try:
        (gc.enable if was_on else gc.disable)()
        time_pairs(call, call, warmup=1, min_pairs=2, max_seconds=0)
        assert gc.isenabled() is was_on
        with pytest.raises(KeyError):
            time_pairs(call, fail, warmup=0, min_pairs=2, max_seconds=0)
        assert gc.isenabled() is was_on
    finally:
        (gc.enable if before else gc.disable)()
    assert seen
    assert not any(seen)


# The figures


def test_summary_by_hand() -> None:
    # Ratios 2, 2, 3, 4, 5, 1: median (2 + 3) / 2; six values, so the interval is from the least to the greatest.
    pairs = pairs_of((2, 1), (4, 2), (6, 2), (8, 2), (10, 2), (3, 3))
    assert summarise(pairs) == {
        "dense_ms": 5000.0,  # of 2 3 4 6 8 10
        "dense_p90_ms": 9000.0,  # place 0.9 * 5 = 4.5, halfway from 8 to 10
        "pruned_ms": 2000.0,  # of 1 2 2 2 2 3
        "pruned_p90_ms": 2500.0,
        "speedup": 2.5,
        "speedup_low": 1.0,
        "speedup_high": 5.0,
        "pairs": 6,
    }


def test_figures_are_rounded() -> None:
    figures = summarise(pairs_of(*[(0.123456, 0.0987654)] * 6))
    assert (figures["dense_ms"], figures["pruned_ms"], figures["speedup"]) == (123.5, 98.77, 1.25)


def test_files(tmp_path: Path) -> None:
    pairs = [Pair(2.0, 1.0, "dense" if number % 2 == 0 else "pruned") for number in range(6)]
    latency = Latency(
        pairs={1: pairs, 8: pairs},
        parameters={"dense": 20, "pruned": 10},
        size_mb={"dense": 0.2, "pruned": 0.1},
        settings={"device": "cpu"},
    )
    latency.write_metrics(tmp_path / "latency.json", "a machine")
    metrics = json.loads((tmp_path / "latency.json").read_text())
    assert metrics["fixed"]["batch_8"]["speedup"] == 2.0
    assert metrics["parameters"] == {"dense": 20, "pruned": 10}
    assert metrics["machine"] == "a machine"

    latency.write_plot(tmp_path / "plot.csv")
    lines = (tmp_path / "plot.csv").read_text().splitlines()
    assert lines == ["side,batch_1_ms,batch_8_ms", "dense,2000.0,2000.0", "pruned,1000.0,1000.0"]

    latency.write_timings(tmp_path / "timings.csv")
    rows = list(csv.DictReader((tmp_path / "timings.csv").open()))
    assert len(rows) == 2 * 6 * 2  # batch sizes, pairs, sides
    assert rows[2] == {"batch": "1", "pair": "2", "order": "1", "side": "pruned", "seconds": "1.0"}
    assert rows[-1] == {"batch": "8", "pair": "6", "order": "2", "side": "dense", "seconds": "2.0"}


# The sources


@pytest.mark.parametrize("family", ["tiny_bart", "tiny_t5"])
@pytest.mark.parametrize("tokens", [5, 16, 61])
def test_rows_have_exactly_the_tokens_and_no_padding(request: pytest.FixtureRequest, family: str, tokens: int) -> None:
    tokenizer = load_tokenizer(request.getfixturevalue(family))
    rows = source_rows(tokenizer, DOCUMENTS, rows=3, tokens=tokens)
    whole = tokenizer(DOCUMENTS[0])["input_ids"]
    bare = tokenizer(DOCUMENTS[0], add_special_tokens=False)["input_ids"]
    at = next(i for i in range(len(whole)) if whole[i : i + len(bare)] == bare)
    before, after = whole[:at], whole[at + len(bare) :]
    assert before + after, "the tiny tokenizers have special tokens"

    assert [len(row) for row in rows] == [tokens] * 3
    texts = [row[len(before) : tokens - len(after)] for row in rows]
    assert [before + text + after for text in texts] == rows
    stream = [id for text in DOCUMENTS for id in tokenizer(text, add_special_tokens=False)["input_ids"]]
    joined = [id for text in texts for id in text]
    assert joined == (stream * len(joined))[: len(joined)]  # starts again where the documents end


def test_no_room_beside_special_tokens(tiny_bart: Path) -> None:
    with pytest.raises(LopsideError, match=r"time\.source_tokens: 1 leaves no room"):
        source_rows(load_tokenizer(tiny_bart), DOCUMENTS, rows=1, tokens=1)


@pytest.mark.parametrize("documents", [[], ["", ""]])
def test_documents_without_text(tiny_bart: Path, documents: list[str]) -> None:
    with pytest.raises(LopsideError, match="no text"):
        source_rows(load_tokenizer(tiny_bart), documents, rows=1, tokens=8)


def test_lengths_beyond_the_positions_are_refused_by_name(tiny_bart: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_bart, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 32}))
    check_lengths(folder, 32, 32)
    with pytest.raises(LopsideError, match=r"time\.source_tokens: 33 is more than the 32 positions"):
        check_lengths(folder, 33, 32)
    with pytest.raises(LopsideError, match=r"time\.new_tokens: 40 is more than the 32 positions"):
        check_lengths(folder, 32, 40)


def test_relative_positions_have_no_limit(tiny_t5: Path) -> None:
    check_lengths(tiny_t5, 100_000, 100_000)


# The models


@pytest.mark.parametrize("family", ["tiny_bart", "tiny_t5"])
def test_one_encoding_and_one_cached_step_a_token(request: pytest.FixtureRequest, family: str) -> None:
    """Whatever the model's own settings say: beams, an early end, a shortest length."""
    import torch

    model: Any = load_model(request.getfixturevalue(family))
    model.generation_config.num_beams = 3
    model.generation_config.max_length = 4
    model.generation_config.no_repeat_ngram_size = 2
    encoded, decoded = [], []
    model.get_encoder().register_forward_hook(
        lambda module, args, kwargs, output: encoded.append(kwargs["input_ids"].shape), with_kwargs=True
    )
    model.get_decoder().register_forward_hook(
        lambda module, args, kwargs, output: decoded.append(kwargs["input_ids"].shape), with_kwargs=True
    )
    greedy(model, torch.full((2, 9), 5), new_tokens=7)()
    assert encoded == [(2, 9)]
    assert decoded == [(2, 1)] * 7


def test_another_number_of_tokens_is_an_error(tiny_bart: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    model = load_model(tiny_bart)
    monkeypatch.setattr(model, "generate", lambda **settings: torch.zeros(1, 4))
    with pytest.raises(RuntimeError, match="3 tokens were generated where 7 were forced"):
        greedy(model, torch.full((1, 9), 5), new_tokens=7)()


@pytest.mark.parametrize("family", ["tiny_bart", "tiny_t5"])
def test_measure(request: pytest.FixtureRequest, family: str, capsys: pytest.CaptureFixture[str]) -> None:
    import torch

    folder = request.getfixturevalue(family)
    threads = torch.get_num_threads()
    try:
        latency = measure(
            folder,
            folder,
            DOCUMENTS,
            batch_sizes=[1, 3],
            source_tokens=12,
            new_tokens=4,
            warmup=1,
            min_pairs=6,
            max_seconds=0.01,
            threads=1,
            dtype="float32",
            device="cpu",
        )
    finally:
        torch.set_num_threads(threads)
    assert list(latency.pairs) == [1, 3]
    for pairs in latency.pairs.values():
        assert len(pairs) >= 6
        assert all(pair.dense > 0 and pair.pruned > 0 for pair in pairs)
    parameters = sum(p.numel() for p in load_model(folder).parameters())
    assert latency.parameters == {"dense": parameters, "pruned": parameters}
    assert latency.settings == {
        "device": "cpu",
        "dtype": "float32",
        "threads": 1,
        "source_tokens": 12,
        "new_tokens": 4,
    }
    assert "batch 3: dense" in capsys.readouterr().err


def test_too_few_pairs_are_refused(tiny_bart: Path) -> None:
    with pytest.raises(LopsideError, match=r"time\.min_pairs: 5"):
        measure(
            tiny_bart,
            tiny_bart,
            DOCUMENTS,
            batch_sizes=[1],
            source_tokens=8,
            new_tokens=2,
            warmup=0,
            min_pairs=5,
            max_seconds=1,
        )


# The stage


def split_of(documents: list[str]) -> pd.DataFrame:
    ids = [str(number) for number in range(len(documents))]
    columns = {"id": ids, "document": documents, "body": documents, "summary": documents, "source": ids}
    return pd.DataFrame(columns, dtype=str)


@pytest.fixture
def workspace(tiny_bart: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder as it lies when the stage begins: tiny models, a few documents, short settings."""
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    params["device"] = "cpu"
    params["time"] |= {"dtype": "float32", "threads": 1, "batch_sizes": [1, 2], "source_tokens": 12, "new_tokens": 3}
    params["time"] |= {"min_pairs": 6, "max_seconds": 0.01}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params))
    (tmp_path / "data/splits").mkdir(parents=True)
    split_of(DOCUMENTS).to_parquet(tmp_path / "data/splits/test.parquet")
    shutil.copytree(tiny_bart, tmp_path / "outputs/finetune/dense")
    prune(tiny_bart, tmp_path / "outputs/finetune/pruned", range(6), [5])
    (tmp_path / "metrics").mkdir()
    record = {"cpu": "A CPU", "physical_cores": 2, "gpus": [], "versions": {"torch": "2.13.0"}}
    (tmp_path / "metrics/machine.json").write_text(json.dumps(record))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_stage_writes_metrics_plot_and_raw_times(workspace: Path) -> None:
    result = CliRunner().invoke(main)
    assert result.exit_code == 0, result.output
    metrics = json.loads((workspace / "metrics/latency.json").read_text())
    assert metrics["machine"] == "A CPU, 2 cores, torch 2.13.0"
    assert metrics["parameters"]["dense"] > metrics["parameters"]["pruned"]
    assert metrics["size_mb"]["dense"] > metrics["size_mb"]["pruned"]
    assert list(metrics["fixed"]) == ["batch_1", "batch_2"]
    plot = pd.read_csv(workspace / "metrics/plots/latency.csv").set_index("side")
    timings = pd.read_csv(workspace / "outputs/timings.csv")
    for batch in (1, 2):
        figures = metrics["fixed"][f"batch_{batch}"]
        raw = timings[timings["batch"] == batch].pivot(index="pair", columns="side", values="seconds")
        assert len(raw) == figures["pairs"] >= 6
        assert (raw["dense"] / raw["pruned"]).median() == pytest.approx(figures["speedup"], abs=6e-4)
        for side in ("dense", "pruned"):
            assert 1000 * raw[side].median() == pytest.approx(figures[f"{side}_ms"], rel=1e-3)
            assert plot.loc[side, f"batch_{batch}_ms"] == figures[f"{side}_ms"]


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ("metrics/machine.json", "metrics/machine.json: no such file"),
        ("data/splits/test.parquet", "data/splits/test.parquet: no such file"),
        ("outputs/finetune/pruned/config.json", "outputs/finetune/pruned/config.json: is missing"),
        ("outputs/finetune/dense/model.safetensors", "outputs/finetune/dense/model.safetensors: the model's weights"),
    ],
)
def test_stage_names_what_is_missing(workspace: Path, missing: str, message: str) -> None:
    (workspace / missing).unlink()
    result = CliRunner().invoke(main)
    assert result.exit_code == 1
    assert f"error: {message}" in result.output
    assert not (workspace / "metrics/latency.json").exists()
    assert not (workspace / "outputs/timings.csv").exists()


def test_stage_refuses_an_empty_split(workspace: Path) -> None:
    split_of([]).to_parquet(workspace / "data/splits/test.parquet")
    result = CliRunner().invoke(main)
    assert result.exit_code == 1
    assert "error: data/splits/test.parquet: the split has no pair" in result.output
