"""How much memory this process may use, and giving back what it does not."""

import ctypes
import os
from collections.abc import Iterable
from pathlib import Path

# Of control groups, version 2 and version 1.
_LIMIT_FILES = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))


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


def give_memory_back() -> None:
    """Give the system the memory that the C library keeps for later, where that library can: glibc.

    It keeps what many threads have freed, the pixels of tiles above all, each in a heap of its own, where no other
    thread finds it. Takes a few milliseconds.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
