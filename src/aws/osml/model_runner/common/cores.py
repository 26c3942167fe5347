"""How many cores this process may keep busy: those of the machine, or less where a container or an affinity says so."""

import math
import os
from collections.abc import Iterable
from pathlib import Path

# Each file holds a quota and a period in microseconds, or the first of two files the quota and the second the period.
_QUOTA_FILES = (
    (Path("/sys/fs/cgroup/cpu.max"),),
    (Path("/sys/fs/cgroup/cpu/cpu.cfs_quota_us"), Path("/sys/fs/cgroup/cpu/cpu.cfs_period_us")),
)


def usable_cores(quota_files: Iterable[Iterable[Path]] = _QUOTA_FILES) -> int:
    """Return the least of the machine's cores, the affinity of the process, and its control group's quota, rounded up.

    At least 1. ``quota_files`` are those of control groups of version 2 and 1; what cannot be read sets no limit.
    """
    machine = os.cpu_count() or 1
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else machine
    quotas = (_quota(files) for files in quota_files)
    return max(1, min([machine, affinity, *(quota for quota in quotas if quota is not None)]))


def _quota(files: Iterable[Path]) -> int | None:
    """Return how many cores a quota amounts to; None without one, which is written ``max`` or -1."""
    try:
        quota, period = " ".join(path.read_text() for path in files).split()
    except (OSError, ValueError):
        return None
    if not (quota.isdecimal() and period.isdecimal() and int(period)):
        return None
    return math.ceil(int(quota) / int(period))
