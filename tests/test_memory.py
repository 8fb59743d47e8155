"""Memory: what a call takes, what there is, and what pruning needs (`tests.memory` measures that for large models)."""

import sys
from pathlib import Path

import pytest

from lopside import memory
from lopside.machine import keep_memory
from lopside.memory import free_memory, growth, is_out_of_memory, within_free_memory
from tests.memory import SMALL, peaks, write_t5

LINUX = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


@LINUX
def test_pruning_needs_at_most_1_3_times_the_weights(tmp_path: Path, fork: str) -> None:
    write_t5(tmp_path / "small", SMALL | {"vocab_size": 100, "d_model": 64, "d_ff": 64})
    write_t5(tmp_path / "parent", SMALL)
    shares = peaks(tmp_path / "small", tmp_path / "parent", tmp_path / "pruned", [(6, 6), (6, 1)], fork)
    assert len(shares) == 2
    assert all(0.3 < share <= 1.3 for share in shares), shares


# What a call takes


@LINUX
def test_growth_is_the_peak_and_the_same_when_called_again() -> None:
    import torch

    keep_memory()

    def call() -> None:
        torch.ones(24 * 2**20)  # 96 MiB in float32, freed again
        torch.ones(8 * 2**20)

    for _ in range(5):
        call()  # and kept
        grown = growth(call, "cpu")
        assert grown is not None
        assert grown / 2**20 == pytest.approx(96, abs=2)  # Linux counts pages in batches
    nothing = growth(lambda: None, "cpu")
    assert nothing is not None
    assert nothing < 4 * 2**20


def test_where_the_system_tells_no_peak_there_is_none_but_the_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "CLEAR_REFS", tmp_path / "no/such")
    called: list[int] = []
    assert growth(lambda: called.append(1), "cpu") is None
    assert called == [1]


def test_on_a_gpu_growth_is_what_tensors_take(monkeypatch: pytest.MonkeyPatch) -> None:
    now = {"taken": 300, "peak": 900}
    monkeypatch.setattr("torch.cuda.reset_peak_memory_stats", lambda: now.update(peak=now["taken"]))
    monkeypatch.setattr("torch.cuda.memory_allocated", lambda: now["taken"])
    monkeypatch.setattr("torch.cuda.max_memory_allocated", lambda: now["peak"])
    assert growth(lambda: now.update(peak=1000), "cuda") == 700
    assert growth(lambda: None, "cuda") == 0


# What there is


@LINUX
def test_asking_for_more_than_is_free_is_an_error_and_not_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    import resource

    import torch

    before = resource.getrlimit(resource.RLIMIT_DATA)
    monkeypatch.setattr(memory, "free_memory", lambda: 64 * 2**20)
    with within_free_memory(), pytest.raises(RuntimeError) as caught:
        torch.empty(2**30)  # 4 GiB, of which nothing is touched
    assert is_out_of_memory(caught.value)
    assert resource.getrlimit(resource.RLIMIT_DATA) == before
    torch.empty(2**27)


@LINUX
def test_a_limit_that_is_there_already_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    limit = 2**44
    resource.setrlimit(resource.RLIMIT_DATA, (limit, hard))
    try:
        monkeypatch.setattr(memory, "free_memory", lambda: 2**50)
        with within_free_memory():
            assert resource.getrlimit(resource.RLIMIT_DATA)[0] == limit
        assert resource.getrlimit(resource.RLIMIT_DATA) == (limit, hard)
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


def test_elsewhere_there_is_no_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "STATUS", tmp_path / "no/such")
    with within_free_memory():
        pass


@pytest.mark.parametrize(
    ("files", "free"),
    [
        ({}, 8 * 2**20),
        ({"memory.max": "max", "memory.current": "5", "memory.stat": "inactive_file 3"}, 8 * 2**20),
        ({"memory.max": "1000", "memory.current": "700", "memory.stat": "anon 1\ninactive_file 30"}, 330),
        ({"memory.max": str(2**40), "memory.current": "700", "memory.stat": "inactive_file 30"}, 8 * 2**20),
    ],
)
def test_free_memory_is_the_machines_and_the_containers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: dict[str, str], free: int
) -> None:
    (tmp_path / "meminfo").write_text("MemTotal:       24684084 kB\nMemFree:  1 kB\nMemAvailable:    8192 kB\n")
    monkeypatch.setattr(memory, "MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(memory, "CGROUP", tmp_path)
    for name, text in files.items():
        (tmp_path / name).write_text(text + "\n")
    assert free_memory() == free


def test_what_counts_as_out_of_memory() -> None:
    import torch

    assert is_out_of_memory(MemoryError())
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."))
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60, dtype=torch.uint8)
    assert is_out_of_memory(caught.value)
    assert not is_out_of_memory(RuntimeError("The size of tensor a (3) must match the size of tensor b (4)"))
    assert not is_out_of_memory(ValueError("out of memory"))
