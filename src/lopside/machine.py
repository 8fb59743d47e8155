"""What this machine is, and what it is fast at.

Nothing here imports torch until a function needs it, so that the ``machine`` stage, which runs at every ``dvc repro``,
stays quick.
"""

from __future__ import annotations

import ctypes
import math
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from lopside.errors import LopsideError

Device = Literal["cpu", "cuda"]
Dtype = Literal["float32", "bfloat16"]

LIBRARIES = ("torch", "transformers", "accelerate", "safetensors", "tokenizers", "numpy")
"""Packages whose version can change a time."""

CPUINFO = Path("/proc/cpuinfo")
CGROUP_CPU_LIMIT = Path("/sys/fs/cgroup/cpu.max")

FAST_BFLOAT16_FLAGS = frozenset({"avx512_bf16", "amx_bf16", "bf16"})
"""CPU flags, as Linux names them, of instructions that multiply bfloat16 matrices (x86, x86, Arm)."""

SLOW_ATEN = frozenset({"default", "avx2"})
SLOW_ONEDNN = frozenset(
    {"SSE41", "AVX", "AVX2", "AVX2_VNNI", "AVX2_VNNI_2", "AVX512_CORE", "AVX512_CORE_VNNI"}
)  # fmt: skip
"""Limits a user can set by environment variable, below the first instruction set with bfloat16 products."""

# glibc's malloc.h
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4
KEEP_MEMORY = {M_MMAP_MAX: 0, M_TRIM_THRESHOLD: 2**31 - 1, M_TOP_PAD: 64 * 2**20}
GIVE_MEMORY_BACK = {M_MMAP_MAX: 65536, M_TRIM_THRESHOLD: 128 * 2**10, M_TOP_PAD: 128 * 2**10}
"""glibc's own defaults, `man mallopt`."""


def fingerprint() -> dict[str, Any]:
    """This machine as plain JSON data: hardware, system and versions; equal at every call on one machine.

    Holds nothing that moves by itself (load, free memory, frequency, time), and no name of machine or user.
    Cores are those that this process may use; memory is in GiB, rounded.
    """
    processors = _processors()
    return {
        "cpu": _cpu_name(processors),
        "physical_cores": physical_cores(),
        "logical_cores": len(_usable()),
        "memory_gib": _memory_gib(),
        "bfloat16": "fast" if has_fast_bfloat16() else "slow",
        "gpus": _gpus(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in LIBRARIES},
    }


def one_line(record: Mapping[str, Any]) -> str:
    """A fingerprint in one line for people: CPU, cores, GPUs, torch's version."""
    cores = record["physical_cores"]
    parts = [record["cpu"], f"{cores} core{'' if cores == 1 else 's'}", *record["gpus"]]
    return ", ".join([*parts, f"torch {record['versions']['torch']}"])


def has_fast_bfloat16() -> bool:
    """Whether this CPU multiplies bfloat16 matrices in hardware and torch may use it.

    Without it torch falls back to conversions element by element, measured at a hundredth of float32's speed. Read from
    Linux's CPU flags; unknown systems count as slow. torch obeys ``ATEN_CPU_CAPABILITY`` and ``ONEDNN_MAX_CPU_ISA``,
    so a limit set there below AVX512_CORE_BF16 counts as slow too (which also emulates an older machine).
    """
    if os.environ.get("ATEN_CPU_CAPABILITY", "").lower() in SLOW_ATEN:
        return False
    if os.environ.get("ONEDNN_MAX_CPU_ISA", "").upper() in SLOW_ONEDNN:
        return False
    first = next(iter(_processors().values()), {})
    flags = first.get("flags", "") or first.get("Features", "")
    return not FAST_BFLOAT16_FLAGS.isdisjoint(flags.split())


def choose_device(requested: str) -> Device:
    """``auto`` takes a CUDA GPU where there is one. Raises LopsideError where one is asked for and none is there."""
    if requested == "cpu":
        return "cpu"
    import torch

    if torch.cuda.is_available():
        return "cuda"
    if requested == "cuda":
        raise LopsideError("device: cuda asked for, but torch finds no CUDA GPU here; use auto or cpu")
    return "cpu"


def choose_dtype(requested: str, device: str) -> Dtype:
    """``auto`` takes bfloat16 only where the device computes it in hardware; a dtype asked for by name is kept."""
    if requested == "float32":
        return "float32"
    if requested == "bfloat16":
        return "bfloat16"
    if device == "cpu":
        return "bfloat16" if has_fast_bfloat16() else "float32"
    import torch

    return "bfloat16" if torch.cuda.get_device_capability() >= (8, 0) else "float32"


def physical_cores() -> int:
    """Physical cores among the CPUs that this process may use, at least 1, within a container's CPU quota."""
    processors, usable = _processors(), _usable()
    places = {_place(processors.get(cpu, {}), cpu) for cpu in usable}
    return max(1, min(len(places), _cpu_quota()))


def set_threads(threads: int) -> int:
    """Make torch compute with this many threads (0: one a physical core), and return how many that is.

    Two threads on one core's hyperthreads share its arithmetic units: more threads than cores are slower and noisier.
    """
    import torch

    torch.set_num_threads(threads or physical_cores())
    return torch.get_num_threads()


@contextmanager
def shared_threads(at_once: int) -> Iterator[ThreadPoolExecutor]:
    """A pool of so many workers, no more than torch has threads, which are divided among them for as long."""
    import torch

    threads = torch.get_num_threads()
    try:
        with ThreadPoolExecutor(at_once, initializer=lambda: torch.set_num_threads(threads // at_once)) as pool:
            yield pool
    finally:
        torch.set_num_threads(threads)  # which is also what threads to come begin with


def keep_memory() -> bool:
    """Have glibc keep the memory it has; call it before the first tensor. Returns False, and does nothing, elsewhere.

    By default glibc maps every big block afresh and gives it back when it is freed, so that each large tensor pays for
    its page faults again, step after step: half of the time of a training step on a CPU was seen to go there.
    With mapping switched off and trimming put out of reach, freed blocks are used again. Peak memory is not given back
    until the process ends.
    """
    return _mallopt(KEEP_MEMORY)


def give_memory_back() -> bool:
    """Have glibc give back what it has kept so far, and keep no more. Returns False, and does nothing, elsewhere."""
    if not _mallopt(GIVE_MEMORY_BACK):
        return False
    ctypes.CDLL(None).malloc_trim(0)
    return True


def _mallopt(settings: Mapping[int, int]) -> bool:
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return all(mallopt(setting, value) == 1 for setting, value in settings.items())


def _processors() -> dict[int, dict[str, str]]:
    """Linux's description of each logical CPU by its number; empty where there is none."""
    try:
        text = CPUINFO.read_text()
    except OSError:
        return {}
    processors = {}
    for block in text.split("\n\n"):
        fields = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in block.splitlines())}
        if fields.get("processor", "").isdigit():
            processors[int(fields["processor"])] = fields
    return processors


def _place(processor: Mapping[str, str], cpu: int) -> tuple[str, str]:
    """Socket and core of a logical CPU; where Linux does not tell (Arm), each counts as a core."""
    return processor.get("physical id", "0"), processor.get("core id", f"cpu {cpu}")


def _usable() -> set[int]:
    """Numbers of the logical CPUs that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return set(os.sched_getaffinity(0))
    return set(range(os.cpu_count() or 1))


def _cpu_quota() -> int:
    """CPUs that the container grants, rounded up; without a limit, as good as infinite."""
    try:
        quota, period = CGROUP_CPU_LIMIT.read_text().split()
        return math.ceil(int(quota) / int(period))
    except (OSError, ValueError):  # no such file; "max 100000"
        return sys.maxsize


def _cpu_name(processors: Mapping[int, Mapping[str, str]]) -> str:
    """The CPU's name; on x86 with family and model, for virtual machines tell no more than 'AMD EPYC'."""
    first = next(iter(processors.values()), {})
    name = first.get("model name") or platform.processor() or platform.machine()
    if "cpu family" in first and "model" in first:
        name += f" (family {first['cpu family']} model {first['model']})"
    return name


def _memory_gib() -> int | None:
    try:
        return round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30)
    except (AttributeError, ValueError, OSError):  # no sysconf, or not these names
        return None


def _gpus() -> list[str]:
    """Name and driver of each NVIDIA GPU, as its own tool tells them."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return []
    query = [tool, "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        result = subprocess.run(query, capture_output=True, text=True, timeout=5, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    return [line.strip().replace(", ", " driver ") for line in result.stdout.splitlines() if line.strip()]


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
