"""A person who waits for a job learns why it stands still, and not for ever."""

import json

import pytest

from aws.osml.model_runner.common.typing import RequestStatus
from aws.osml.model_runner.local.job import JobProgress
from aws.osml.model_runner.local.patience import JobStuckError, Patience
from aws.osml.model_runner.local.worker_logs import WorkerLogs

RUNNING = RequestStatus.IN_PROGRESS


class Display:
    def __init__(self) -> None:
        self.said: list[str] = []

    def __call__(self, progress: JobProgress) -> None: ...

    def say(self, text: str) -> None:
        self.said.append(text)


class Log:
    def __init__(self, path) -> None:
        self.path = path
        self.number = 0

    def add(self, event: str, level: str = "info", **fields: object) -> None:
        self.number += 1
        line = {"timestamp": f"2026-01-01T00:00:{self.number:02}Z", "level": level, "event": event, **fields}
        with self.path.open("a") as file:
            file.write('{"_aws": {}}\nno JSON\n' + json.dumps(line) + "\n")


@pytest.fixture
def world(tmp_path):
    clock, display = [0.0], Display()
    patience = Patience(display, WorkerLogs(tmp_path), limit_s=100, now=lambda: clock[0])

    def wait(seconds: float, progress: JobProgress) -> None:
        for _ in range(int(seconds)):
            clock[0] += 1
            patience(progress)

    return display, Log(tmp_path / "worker-0.log"), wait


def test_job_that_stands_still_is_explained_and_ends_in_end(world):
    display, log, wait = world
    log.add("region.finished", reason="of long ago")
    wait(10, JobProgress(RUNNING, tiles_done=3, tiles_total=9))
    log.add("tile.failed", "warning", reason="the model returned status 500")
    log.add("region.given_back", reason="5 of 9 tiles crash the model", retry_after_s=5.4)
    log.add("region.started", tiles=9)
    wait(10, JobProgress(RUNNING, tiles_done=3, tiles_total=9))
    assert display.said == ["no progress for 15 s: 5 of 9 tiles crash the model; next try 5 s later"]
    log.add("region.given_back", reason="refused", retry_after_s=40)
    with pytest.raises(JobStuckError, match="no progress for 100 s: refused; next try 40 s later"):
        wait(200, JobProgress(RUNNING, tiles_done=3, tiles_total=9))
    assert len(display.said) == 2


def test_progress_resets_earlier_trouble(world):
    display, log, wait = world
    log.add("region.given_back", reason="refused", retry_after_s=4)
    for tiles in range(5):
        wait(12, JobProgress(RUNNING, tiles_done=tiles, tiles_total=9))
    assert display.said == []


def test_slow_job_without_trouble_is_waited_for(world):
    display, log, wait = world
    log.add("region.started", tiles=9)
    wait(5000, JobProgress(RUNNING, tiles_done=0, tiles_total=9))
    assert display.said == []
