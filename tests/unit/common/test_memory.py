"""The memory that a worker may use is its container's, where that is less; what it has freed goes back when asked."""

import multiprocessing
import os
import platform
import resource
from concurrent.futures import ProcessPoolExecutor

import numpy as np
import psutil
import pytest

from aws.osml.model_runner.common.machine import memory_limit_bytes, trim_heap, tune_malloc

MACHINE = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


@pytest.mark.parametrize(
    ("text", "limit"),
    [("536870912\n", 512 * 2**20), ("max\n", MACHINE), ("9223372036854771712\n", MACHINE), ("", MACHINE)],
)
def test_smaller_limit_counts(tmp_path, text, limit):
    (tmp_path / "memory.max").write_text(text)
    assert memory_limit_bytes([tmp_path / "memory.max", tmp_path / "absent"]) == limit


def test_memory_limit_is_that_of_machine_without_control_group():
    assert memory_limit_bytes([]) == MACHINE


needs_glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")


def faults_of_tiles() -> int:
    """Fill and free four tiles' memory again and again, and return how often the system had to find pages for it."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(50):
        tiles = [np.ones(3_200_000, np.uint8) for _ in range(4)]
        del tiles
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def faults_with_kept_memory() -> int:
    tune_malloc()
    return faults_of_tiles()


@needs_glibc
def test_freed_memory_is_kept_for_next_tile():
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, context) as fresh:
        left_alone = fresh.submit(faults_of_tiles).result()
    with ProcessPoolExecutor(1, context) as fresh:
        kept = fresh.submit(faults_with_kept_memory).result()
    assert left_alone > 10 * kept > 0, (left_alone, kept)


@needs_glibc
def test_freed_memory_goes_back_to_system():
    # Too small for a mapping of their own; the last one holds the heap's end.
    blocks = [bytearray(b"x") * 50_000 for _ in range(1_000)]
    last = blocks.pop()
    blocks.clear()
    held = psutil.Process().memory_info().rss
    trim_heap()
    assert psutil.Process().memory_info().rss < held - 30_000_000
    assert len(last) == 50_000
