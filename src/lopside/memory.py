"""How much memory a call takes, and what there is to take."""

from __future__ import annotations

import gc
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from lopside.machine import give_memory_back, keep_memory

STATUS = Path("/proc/self/status")
CLEAR_REFS = Path("/proc/self/clear_refs")
MEMINFO = Path("/proc/meminfo")
CGROUP = Path("/sys/fs/cgroup")

NO_MEMORY = re.compile(r"can't allocate memory|not enough memory|out of memory|bad_alloc", re.IGNORECASE)
"""How torch's allocator for CPUs, which has no error class of its own, says that there is no memory."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error of torch or Python says that memory, the machine's or the GPU's, was too small."""
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and bool(NO_MEMORY.search(str(error))))


def growth(call: Callable[[], object], device: str) -> int | None:
    """Call, and return by how many bytes memory grew at the peak; None where the system does not tell.

    On ``cuda`` that is what tensors take of the GPU, on a CPU the resident memory of this process (Linux alone tells
    its peak). Memory is given back before and during the call (`lopside.machine.give_memory_back`), for what is kept
    would hide what is needed; from then on it is kept.
    """
    gc.collect()
    if device == "cuda":
        import torch

        torch.cuda.reset_peak_memory_stats()
        allocated = torch.cuda.memory_allocated()
        call()
        return torch.cuda.max_memory_allocated() - allocated
    give_memory_back()
    try:
        resident = _begin_peak()
        call()
        return None if resident is None else 1024 * (_kib(STATUS, "VmHWM") - resident)
    finally:
        keep_memory()


@contextmanager
def within_free_memory() -> Iterator[None]:
    """Refuse this process more memory than is free at the beginning, so that running out is an error, and not the end.

    Linux grants more than there is and kills a process that uses it. Elsewhere nothing is done.
    """
    try:
        import resource

        limit = 1024 * _kib(STATUS, "VmData") + free_memory()
    except (ImportError, OSError):
        yield
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    lowest = min(value for value in (limit, soft, hard) if value != resource.RLIM_INFINITY)
    resource.setrlimit(resource.RLIMIT_DATA, (lowest, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


def free_memory() -> int:
    """Bytes that this process could take without swapping, in its container. Raises OSError elsewhere than on Linux."""
    free = 1024 * _kib(MEMINFO, "MemAvailable")
    try:
        limit = int((CGROUP / "memory.max").read_text())
        used = int((CGROUP / "memory.current").read_text())
        cached = _number(CGROUP / "memory.stat", r"inactive_file (\d+)")  # makes room where it is wanted
    except (OSError, ValueError):  # no such file; "max"
        return free
    return min(free, limit - used + cached)


def _begin_peak() -> int | None:
    """Have the peak of resident memory begin anew, at what is returned in KiB; None where there is none to ask for."""
    try:
        CLEAR_REFS.write_text("5")
        return _kib(STATUS, "VmRSS")
    except OSError:
        return None


def _kib(file: Path, name: str) -> int:
    return _number(file, rf"{name}:\s*(\d+) kB")


def _number(file: Path, line: str) -> int:
    found = re.search(f"^{line}$", file.read_text(), re.MULTILINE)
    if found is None:
        raise OSError(f"{file}: has no line like {line}")
    return int(found[1])
