"""The memory that a worker may use is its container's, where that is less than the machine's."""

import os

import pytest

from aws.osml.model_runner.common.memory_limit import memory_limit_bytes

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
