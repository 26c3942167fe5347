"""The cores and the memory that this process may use, and how it uses memory."""

import ctypes
import gc
import math
import os
from collections.abc import Iterable
from pathlib import Path

# Control groups of version 2 and version 1. A quota is in microseconds per period, in one file or in two.
_QUOTA_FILES = (
    (Path("/sys/fs/cgroup/cpu.max"),),
    (Path("/sys/fs/cgroup/cpu/cpu.cfs_quota_us"), Path("/sys/fs/cgroup/cpu/cpu.cfs_period_us")),
)
_LIMIT_FILES = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))

# Numbers of malloc.h: M_MMAP_THRESHOLD (glibc accepts at most 32 MiB) and M_TRIM_THRESHOLD.
_MALLOC_OPTIONS = ((-3, 32 * 1024 * 1024), (-1, 16 * 1024 * 1024))
# Python's default is 700.
_COLLECT_AFTER_OBJECTS = 20_000


def usable_cores(quota_files: Iterable[Iterable[Path]] = _QUOTA_FILES) -> int:
    """Return the minimum of the machine's cores, the process's affinity, and the control group's quota; at least 1.

    A quota is rounded up. ``quota_files`` hold the quota, for control groups of version 2 and 1. A file that cannot be
    read, or holds ``max`` or -1, sets no limit.
    """
    cores = os.cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):
        cores = min(cores, len(os.sched_getaffinity(0)))
    for files in quota_files:
        try:
            quota, period = " ".join(path.read_text() for path in files).split()
        except (OSError, ValueError):
            continue
        if quota.isdecimal() and period.isdecimal() and int(period):
            cores = min(cores, math.ceil(int(quota) / int(period)))
    return max(1, cores)


def memory_limit_bytes(limit_files: Iterable[Path] = _LIMIT_FILES) -> int:
    """Return the smaller of the machine's memory and, in a container, its control group's limit."""
    limit = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for path in limit_files:
        try:
            text = path.read_text().strip()
        except OSError:
            continue
        if text.isdecimal():  # "max" sets no limit
            limit = min(limit, int(text))
    return limit


def tune_malloc() -> None:
    """Make the C library reuse freed memory for the next allocation, if the library is glibc.

    By default it returns the pixels of a tile to the system, which fills the same pages with zeros for the next tile.
    That took a fifth of the worker's CPU.
    """
    set_option = getattr(ctypes.CDLL(None), "mallopt", None)
    if set_option is not None:
        for option, value in _MALLOC_OPTIONS:
            set_option(option, value)


def tune_gc() -> None:
    """Make Python look for reference cycles less often, and not in imported modules, which are never freed.

    The features of a tile are thousands of lists and dictionaries without cycles.
    """
    gc.freeze()
    gc.set_threshold(_COLLECT_AFTER_OBJECTS)


def trim_heap() -> None:
    """Return the memory that the C library keeps for reuse to the system, if the library is glibc.

    The library keeps memory that threads have freed, such as pixels of tiles, in a heap per thread. Other threads
    cannot use it. The call takes a few milliseconds.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def share_of_memory(max_bytes: int, part: int = 8) -> int:
    """Return ``max_bytes``, or 1 / ``part`` of ``memory_limit_bytes`` if that is less."""
    return min(max_bytes, memory_limit_bytes() // part)
