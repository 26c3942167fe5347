"""Progress of a job for people: few lines in a log, a bar on a terminal."""

import io

import pytest
from rich.console import Console

from aws.osml.model_runner.common.typing import RequestStatus
from aws.osml.model_runner.local.job import JobProgress
from aws.osml.model_runner.local.progress import LINE_EVERY_S, ProgressDisplay, describe

RUNNING = RequestStatus.IN_PROGRESS


@pytest.mark.parametrize(
    ("progress", "words"),
    [
        (JobProgress(), "waiting for a worker"),
        (JobProgress(RequestStatus.STARTED), "opening the image"),
        (JobProgress(RUNNING, tiles_done=3, tiles_total=9), "finding objects"),
        (JobProgress(RUNNING, tiles_done=9, tiles_total=9), "merging and delivering"),
        (JobProgress(RequestStatus.PARTIAL, tiles_done=9, tiles_total=9), "partial"),
    ],
)
def test_progress_is_described(progress, words):
    assert describe(progress) == words


def shown(is_terminal, reports, seconds_between=0.2):
    text, clock = io.StringIO(), iter(number * seconds_between for number in range(10_000))
    console = Console(file=text, force_terminal=is_terminal, width=120)
    with ProgressDisplay(console, now=lambda: next(clock)) as display:
        for report in reports:
            display(report)
    return text.getvalue()


def test_log_gets_line_when_stage_changes_and_now_and_then():
    many = [JobProgress(RUNNING, tiles_done=n, tiles_total=1000) for n in range(100)]
    lines = shown(False, [JobProgress(), *many], seconds_between=LINE_EVERY_S / 25).splitlines()
    assert lines[0] == "  starting the local stack"
    assert lines[1] == "  waiting for a worker: 0 of ? tiles"
    assert lines[2] == "  finding objects: 0 of 1000 tiles"
    assert 4 <= len(lines) <= 13


def test_job_that_stands_still_gets_no_further_lines():
    lines = shown(False, [JobProgress(RUNNING, tiles_total=9)] * 50, seconds_between=LINE_EVERY_S).splitlines()
    assert lines == ["  starting the local stack", "  finding objects: 0 of 9 tiles"]


def test_terminal_gets_bar():
    text = shown(True, [JobProgress(RUNNING, tiles_done=40, tiles_total=80)])
    assert "40/80" in text
    assert "finding objects" in text
