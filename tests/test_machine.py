"""The machine's fingerprint, and what is chosen by it."""

import json
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from lopside import machine
from lopside.errors import LopsideError
from tests.families import FAMILIES, build, save

ROOT = Path(__file__).parents[1]
WriteCpuinfo = Callable[..., None]

# Four logical CPUs on two cores of one socket.
CPUINFO = "\n\n".join(
    f"""processor\t: {cpu}
cpu family\t: 25
model\t\t: 17
model name\t: AMD EPYC
cpu MHz\t\t: {2000 + cpu}.25
physical id\t: 0
core id\t\t: {cpu % 2}
flags\t\t: fpu avx2 avx512f FLAGS"""
    for cpu in range(4)
)
ARM = "processor\t: 0\nFeatures\t: fp asimd FLAGS\n\nprocessor\t: 1\nFeatures\t: fp asimd FLAGS\n"


@pytest.fixture
def cpuinfo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> WriteCpuinfo:
    """Make Linux describe other CPUs, without limits from the environment."""
    monkeypatch.delenv("ATEN_CPU_CAPABILITY", raising=False)
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
    monkeypatch.setattr(machine, "CGROUP_CPU_LIMIT", tmp_path / "absent")
    monkeypatch.setattr(machine, "CPUINFO", tmp_path / "cpuinfo")

    def write(text: str, flags: str = "") -> None:
        (tmp_path / "cpuinfo").write_text(text.replace("FLAGS", flags))

    return write


@pytest.mark.parametrize(
    ("text", "flags", "chosen"),
    [
        (CPUINFO, "avx512_bf16", "bfloat16"),
        (CPUINFO, "amx_tile amx_bf16", "bfloat16"),
        (CPUINFO, "avx512_vnni", "float32"),
        (CPUINFO, "avx512_bf16x", "float32"),  # whole words only
        (ARM, "bf16 i8mm", "bfloat16"),
        (ARM, "i8mm", "float32"),
        ("", "", "float32"),
    ],
)
def test_auto_takes_bfloat16_only_with_instructions_for_it(
    cpuinfo: WriteCpuinfo, text: str, flags: str, chosen: str
) -> None:
    cpuinfo(text, flags)
    assert machine.choose_dtype("auto", "cpu") == chosen


def test_without_cpuinfo_bfloat16_counts_as_slow(cpuinfo: WriteCpuinfo) -> None:
    assert machine.choose_dtype("auto", "cpu") == "float32"


@pytest.mark.parametrize(
    ("variable", "value", "fast"),
    [
        ("ATEN_CPU_CAPABILITY", "avx2", False),
        ("ATEN_CPU_CAPABILITY", "default", False),
        ("ATEN_CPU_CAPABILITY", "avx512", True),
        ("ONEDNN_MAX_CPU_ISA", "AVX2", False),
        ("ONEDNN_MAX_CPU_ISA", "avx512_core", False),
        ("ONEDNN_MAX_CPU_ISA", "AVX512_CORE_VNNI", False),
        ("ONEDNN_MAX_CPU_ISA", "AVX512_CORE_BF16", True),
        ("ONEDNN_MAX_CPU_ISA", "AVX512_CORE_AMX", True),
    ],
)
def test_a_limit_in_the_environment_emulates_an_older_machine(
    cpuinfo: WriteCpuinfo, monkeypatch: pytest.MonkeyPatch, variable: str, value: str, fast: bool
) -> None:
    cpuinfo(CPUINFO, "avx512_bf16 amx_bf16")
    monkeypatch.setenv(variable, value)
    assert machine.has_fast_bfloat16() is fast


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_dtype_asked_for_by_name_is_kept(cpuinfo: WriteCpuinfo, dtype: str) -> None:
    cpuinfo(CPUINFO, "avx512_bf16" if dtype == "float32" else "")
    assert machine.choose_dtype(dtype, "cpu") == dtype


@pytest.mark.parametrize(("capability", "chosen"), [((7, 5), "float32"), ((8, 0), "bfloat16"), ((9, 0), "bfloat16")])
def test_dtype_on_a_gpu_goes_by_its_capability(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], chosen: str
) -> None:
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda: capability)
    assert machine.choose_dtype("auto", "cuda") == chosen


@pytest.mark.parametrize(
    ("requested", "available", "chosen"),
    [("auto", True, "cuda"), ("auto", False, "cpu"), ("cpu", True, "cpu"), ("cuda", True, "cuda")],
)
def test_device(monkeypatch: pytest.MonkeyPatch, requested: str, available: bool, chosen: str) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: available)
    assert machine.choose_device(requested) == chosen


def test_cuda_asked_for_where_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(LopsideError, match="device: cuda"):
        machine.choose_device("cuda")


@pytest.mark.parametrize(
    ("usable", "quota", "cores"),
    [
        ({0, 1, 2, 3}, None, 2),
        ({0, 2}, None, 1),  # two threads of one core
        ({1, 2}, None, 2),
        ({0, 1, 2, 3}, "150000 100000", 2),
        ({0, 1, 2, 3}, "50000 100000", 1),
        ({0, 1, 2, 3}, "max 100000", 2),
    ],
)
def test_physical_cores_are_those_this_process_may_use(
    cpuinfo: WriteCpuinfo,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    usable: set[int],
    quota: str | None,
    cores: int,
) -> None:
    cpuinfo(CPUINFO)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: usable, raising=False)
    if quota:
        (tmp_path / "cpu.max").write_text(quota + "\n")
        monkeypatch.setattr(machine, "CGROUP_CPU_LIMIT", tmp_path / "cpu.max")
    assert machine.physical_cores() == cores


def test_every_cpu_counts_as_a_core_where_linux_names_no_cores(
    cpuinfo: WriteCpuinfo, monkeypatch: pytest.MonkeyPatch
) -> None:
    cpuinfo(ARM)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1}, raising=False)
    assert machine.physical_cores() == 2


def test_fingerprint_is_json_and_holds_nothing_that_moves(
    cpuinfo: WriteCpuinfo, monkeypatch: pytest.MonkeyPatch
) -> None:
    cpuinfo(CPUINFO, "avx512_bf16")
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 2, 3}, raising=False)
    record = machine.fingerprint()
    assert record["cpu"] == "AMD EPYC (family 25 model 17)"
    assert (record["physical_cores"], record["logical_cores"], record["bfloat16"]) == (2, 4, "fast")
    assert set(record["versions"]) == {"torch", "transformers", "accelerate", "safetensors", "tokenizers", "numpy"}
    cpuinfo(CPUINFO.replace(".25", ".75"), "avx512_bf16")  # the clock has changed
    assert machine.fingerprint() == record == json.loads(json.dumps(record))


def test_gpus_are_asked_of_their_own_tool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 'NVIDIA A10, 550.54.15'\necho 'NVIDIA A10, 550.54.15'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert machine.fingerprint()["gpus"] == ["NVIDIA A10 driver 550.54.15"] * 2
    tool.write_text("#!/bin/sh\necho 'no driver'; exit 9\n")
    assert machine.fingerprint()["gpus"] == []


def test_one_line() -> None:
    record = {"cpu": "AMD EPYC", "physical_cores": 2, "gpus": [], "versions": {"torch": "2.13.0"}}
    assert machine.one_line(record) == "AMD EPYC, 2 cores, torch 2.13.0"
    assert machine.one_line(record | {"physical_cores": 1, "gpus": ["A10"]}) == "AMD EPYC, 1 core, A10, torch 2.13.0"


def test_threads_are_set_and_zero_means_physical_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    before = torch.get_num_threads()
    monkeypatch.setattr(machine, "physical_cores", lambda: 3)
    try:
        assert machine.set_threads(2) == torch.get_num_threads() == 2
        assert machine.set_threads(0) == torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


# Blocks of 2 to 6 MiB, used and freed in turn, as by a training step; the page faults of the last eight steps.
PAGE_FAULTS = """
import resource, torch
from lopside.machine import keep_memory
if KEEP:
    assert keep_memory()
layers = torch.nn.Sequential(torch.nn.Linear(64, 512), torch.nn.GELU(), torch.nn.Linear(512, 64))
for step in range(16):
    if step == 8:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    layers(torch.ones(1000 * (1 + step % 3), 64)).sum().backward()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt is glibc's")
def test_memory_that_is_kept_is_not_faulted_in_again() -> None:
    def count(keep: bool) -> int:
        code = PAGE_FAULTS.replace("KEEP", str(keep))
        return int(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, env=_env()).stdout)

    # Seen: none at all against ten thousand; once nearly as many, where the system took memory back meanwhile.
    assert any(count(True) * 2 < count(False) for _ in range(3))


def test_the_stage_writes_the_fingerprint_and_imports_no_torch(tmp_path: Path) -> None:
    shutil.copy(ROOT / "params.yaml", tmp_path)
    command = [sys.executable, "-X", "importtime", "-m", "stages.machine"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=_env())
    assert done.returncode == 0, done.stderr
    imported = set(re.findall(r"\| +(\S+)$", done.stderr, re.MULTILINE))
    assert "lopside.machine" in imported
    assert imported.isdisjoint({"torch", "transformers", "datasets", "numpy", "pandas"})
    assert json.loads((tmp_path / "metrics/machine.json").read_text()) == machine.fingerprint()
    assert [path.name for path in (tmp_path / "metrics").iterdir()] == ["machine.json"]  # no temporary file is left


def test_the_stage_refuses_an_engine_before_anything_is_trained_for_it(tmp_path: Path) -> None:
    pytest.importorskip("ctranslate2")
    save(build(next(family for family in FAMILIES if family.model_type == "t5gemma")), tmp_path / "own")
    params = (ROOT / "params.yaml").read_text().replace("model: docs-bart-mini", "model: ./own")
    (tmp_path / "params.yaml").write_text(params.replace("engine: transformers", "engine: ctranslate2"))

    done = subprocess.run(
        [sys.executable, "-m", "stages.machine"], cwd=tmp_path, capture_output=True, text=True, env=_env()
    )

    assert done.returncode == 1
    assert "engine: ctranslate2 is refused for the model type 't5gemma'; it takes bart" in done.stderr
    assert not (tmp_path / "metrics").exists()


def _env() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": f"{ROOT / 'src'}:{ROOT}"}
