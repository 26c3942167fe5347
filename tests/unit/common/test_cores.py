"""A worker has as many threads that cut tiles as there are cores that it may keep busy."""

import os
import subprocess
import sys

import pytest

from aws.osml.model_runner.common.machine import usable_cores

AVAILABLE = min(os.cpu_count() or 1, len(os.sched_getaffinity(0)))


@pytest.mark.parametrize(
    ("texts", "quota"),
    [
        (["100000 100000\n"], 1),
        (["50000 100000\n"], 1),
        (["120000 100000\n"], 2),
        (["6400000 100000\n"], 64),
        (["max 100000\n"], None),
        (["100000\n", "100000\n"], 1),
        (["-1\n", "100000\n"], None),
        (["0 100000\n"], 1),
        (["100000 0\n"], None),
        (["nonsense"], None),
        ([""], None),
    ],
)
def test_smallest_limit_counts_rounded_up(tmp_path, texts, quota):
    files = [tmp_path / str(number) for number in range(len(texts))]
    for file, text in zip(files, texts, strict=True):
        file.write_text(text)

    cores = usable_cores([files, [tmp_path / "absent"]])

    assert cores == min(AVAILABLE, quota or AVAILABLE)


def test_process_that_is_bound_to_one_core_has_one():
    core = min(os.sched_getaffinity(0))
    code = f"import os; os.sched_setaffinity(0, [{core}])\n"
    code += "from aws.osml.model_runner.common.machine import usable_cores; print(usable_cores([]))"

    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True).stdout

    assert printed.strip() == "1"
