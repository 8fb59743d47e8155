"""What a stand-in cannot show: timing, training and generation on a real CUDA GPU; skipped where there is none."""

import dataclasses
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from lopside.generation import generate
from lopside.importance import rank_layers
from lopside.models import load_model, load_tokenizer, trained_in
from lopside.pairs import time_pairs
from lopside.plan import Work, make_plan
from lopside.training import finetune
from lopside.workloads import choose_clock
from tests.conftest import TEXTS
from tests.test_latency import measured
from tests.test_training import INPUTS, SETTINGS, pairs

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
    pytest.mark.usefixtures("threads_as_before"),
]


def spin(cycles: int) -> None:
    """Keep the GPU busy for so many of its cycles, and return at once."""
    torch.cuda._sleep(cycles)


def seconds_of(cycles: int) -> float:
    """By the wall clock, from an idle GPU to an idle GPU."""
    torch.cuda.synchronize()
    start = time.perf_counter()
    spin(cycles)
    torch.cuda.synchronize()
    return time.perf_counter() - start


def test_work_that_was_only_begun_is_timed_whole() -> None:
    spin(1_000_000)  # the first takes longer
    clock, cycles = choose_clock("cuda"), 100_000_000
    start = clock.mark()
    spin(cycles)
    begun = time.perf_counter()
    found = clock.seconds(start, clock.mark())
    assert time.perf_counter() - begun > 0.5 * found  # it was waited for, not done before
    assert found == pytest.approx(seconds_of(cycles), rel=0.1)


def test_a_known_delay_on_the_gpu_is_measured_right() -> None:
    spin(1_000_000)
    timing = time_pairs(
        lambda: spin(30_000_000),
        lambda: spin(20_000_000),
        min_pairs=6,
        max_seconds=2,
        precision=0.01,
        clock=choose_clock("cuda"),
    )
    assert timing.speedup == pytest.approx(1.5, rel=0.03)
    assert timing.low <= timing.speedup <= timing.high


@pytest.mark.parametrize("family", ["tiny_bart", "tiny_t5"])
def test_both_sides_are_timed_there_in_every_setting(request: pytest.FixtureRequest, family: str) -> None:
    folder = request.getfixturevalue(family)
    found = measured(folder, folder, device="cuda")
    assert found.settings["device"] == "cuda"
    assert found.settings["memory"] == "allocated on the GPU"
    weights = sum(p.numel() * p.element_size() for p in load_model(folder).parameters())
    for cells in found.cells.values():
        for cell in cells.values():
            assert min(cell.peak.values()) > weights
            for side in ("dense", "pruned"):
                for seconds, done in cell.timing.told(side):
                    assert done.encoder is not None
                    assert done.first is not None
                    assert 0 < done.encoder < done.first < seconds


def test_a_plan_is_made_there(tiny_t5: Path) -> None:
    plan = make_plan(str(tiny_t5), Work(2, 16, 4), engine="transformers", seconds=0.1, check=[(6, 3)], device="cuda")
    assert plan.device == "cuda"
    assert set(plan.errors()) == {(6, 3)}
    assert plan.cells[1, 1].seconds.value < plan.cells[6, 6].seconds.value


@pytest.mark.parametrize("family", ["tiny_bart", "tiny_t5"])
def test_summaries_are_those_of_a_cpu(request: pytest.FixtureRequest, family: str) -> None:
    folder = request.getfixturevalue(family)
    both = [
        generate(
            load_model(folder, device=device),
            load_tokenizer(folder),
            list(TEXTS),
            max_source_tokens=24,
            max_new_tokens=8,
            batch_size=2,
        )
        for device in ("cpu", "cuda")
    ]
    assert both[0] == both[1]


def test_layers_are_ranked_as_on_a_cpu(tiny_bart: Path) -> None:
    both = [
        rank_layers(
            load_model(tiny_bart, device=device),
            load_tokenizer(tiny_bart),
            list(TEXTS),
            [text[:20] for text in TEXTS],
            "decoder",
            2,
            measure="loss",
            max_source_tokens=24,
            max_target_tokens=12,
        )
        for device in ("cpu", "cuda")
    ]
    for one, other in zip(*(ranking.scores for ranking in both), strict=True):
        assert one == pytest.approx(other, rel=1e-3)


@pytest.fixture
def as_deterministic_as_before() -> Iterator[None]:
    """Training there asks torch for deterministic kernels, for good."""
    before, warn = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    yield
    torch.use_deterministic_algorithms(before, warn_only=warn)


@pytest.mark.usefixtures("as_deterministic_as_before")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_equal_trainings_give_equal_weights(tiny_bart: Path, tmp_path: Path, dtype: str) -> None:
    settings = dataclasses.replace(SETTINGS, dtype=dtype)
    for name in ("one", "other"):
        folder = tmp_path / name
        finetune(
            tiny_bart, folder / "model", folder / "curve.csv", pairs(10), pairs(5), settings, INPUTS, 0, device="cuda"
        )
    one, other = (load_file(tmp_path / name / "model/model.safetensors") for name in ("one", "other"))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[key], other[key]) for key in one)
    assert trained_in(tmp_path / "one/model") == f"{dtype} on cuda"
