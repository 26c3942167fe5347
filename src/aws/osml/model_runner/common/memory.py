"""How much memory this process may use, what it keeps for later, and giving that back."""

import ctypes
import gc
import os
from collections.abc import Iterable
from pathlib import Path

# Of control groups, version 2 and version 1.
_LIMIT_FILES = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))

# As malloc.h numbers them: M_MMAP_THRESHOLD (32 MiB are the most that glibc takes) and M_TRIM_THRESHOLD.
_MALLOC_OPTIONS = ((-3, 32 * 1024 * 1024), (-1, 16 * 1024 * 1024))
# Python's own figure is 700.
_COLLECT_AFTER_OBJECTS = 20_000


def memory_limit_bytes(limit_files: Iterable[Path] = _LIMIT_FILES) -> int:
    """Return the smaller of the machine's memory and, in a container, its control group's limit."""
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limits = (_limit_in(path) for path in limit_files)
    return min([machine, *(limit for limit in limits if limit is not None)])


def _limit_in(path: Path) -> int | None:
    try:
        text = path.read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdecimal() else None  # "max": no limit


def tune_malloc() -> None:
    """Have the C library keep what is freed for what is allocated next, where that library can: glibc.

    Left to itself it gives the pixels of a tile back to the system, which fills the same pages with zeros for the
    next tile. That took a fifth of the worker's CPU.
    """
    set_option = getattr(ctypes.CDLL(None), "mallopt", None)
    if set_option is not None:
        for option, value in _MALLOC_OPTIONS:
            set_option(option, value)


def tune_gc() -> None:
    """Have Python look for cycles less often, and not in what has been imported and stays as long as the process.

    The features of a tile are thousands of lists and dictionaries, none of them in a cycle.
    """
    gc.freeze()
    gc.set_threshold(_COLLECT_AFTER_OBJECTS)


def trim_heap() -> None:
    """Give the system the memory that the C library keeps for later, where that library can: glibc.

    It keeps what many threads have freed, the pixels of tiles above all, each in a heap of its own, where no other
    thread finds it. Takes a few milliseconds.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def share_of_memory(most_bytes: int, part: int = 8) -> int:
    """Return ``most_bytes``, or an eighth or another part of the memory limit of the container where that is less."""
    return min(most_bytes, memory_limit_bytes() // part)
