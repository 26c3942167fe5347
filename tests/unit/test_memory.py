"""The memory that a worker may use is its container's, where that is less; what it has freed goes back when asked."""

import os
import platform

import psutil
import pytest

from aws.osml.model_runner.common.memory import give_memory_back, memory_limit_bytes

MACHINE = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


@pytest.mark.parametrize(
    ("text", "limit"),
    [("536870912\n", 512 * 2**20), ("max\n", MACHINE), ("9223372036854771712\n", MACHINE), ("", MACHINE)],
)
def test_the_smaller_limit_counts(tmp_path, text, limit):
    (tmp_path / "memory.max").write_text(text)
    assert memory_limit_bytes([tmp_path / "memory.max", tmp_path / "absent"]) == limit


def test_without_a_control_group_it_is_the_machines():
    assert memory_limit_bytes([]) == MACHINE


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries have no malloc_trim")
def test_freed_memory_goes_back_to_the_system():
    # Too small for a mapping of their own; the last one holds the heap's end.
    blocks = [bytearray(b"x") * 50_000 for _ in range(1_000)]
    last = blocks.pop()
    blocks.clear()
    held = psutil.Process().memory_info().rss
    give_memory_back()
    assert psutil.Process().memory_info().rss < held - 30_000_000
    assert len(last) == 50_000
