"""The health file: its content, how often it is written, and when a worker counts as stuck."""

import json
import os
import subprocess
import sys
import threading

import pytest
import structlog

from aws.osml.model_runner.api.problems import shortened
from aws.osml.model_runner.exceptions import ConfigurationError
from aws.osml.model_runner.worker.health import MAX_AGE_S, HealthFile, HealthReport, is_process_alive, read_health


class Clock:
    now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_health_file_holds_process_state_and_time(tmp_path, clock):
    path = tmp_path / "deep" / "health.json"
    HealthFile(path, clock).note_progress()
    assert read_health(path) == HealthReport(os.getpid(), "running", 1000.0)
    assert list(path.parent.iterdir()) == [path], "nothing else is left lying there"


def test_health_file_is_written_every_few_seconds_at_most(tmp_path, clock):
    path = tmp_path / "health.json"
    health = HealthFile(str(path), clock, min_interval_s=5.0)
    health.note_progress()
    clock.now_s = 1004.9
    health.note_progress()
    assert read_health(path).last_progress == 1000.0
    clock.now_s = 1005.0
    health.note_progress()
    assert read_health(path).last_progress == 1005.0


def test_another_state_is_written_at_once(tmp_path, clock):
    path = tmp_path / "health.json"
    health = HealthFile(path, clock)
    health.note_progress()
    clock.now_s = 1000.5
    health.note_progress("stopped")
    assert read_health(path) == HealthReport(os.getpid(), "stopped", 1000.5)


def test_worker_without_aws_stays_healthy_and_its_state_is_written(tmp_path, clock):
    path = tmp_path / "health.json"
    health = HealthFile(path, clock)
    for _ in range(10):
        health.note_progress("aws_unreachable")
        clock.now_s += MAX_AGE_S / 2
    report = read_health(path)
    assert report.state == "aws_unreachable"
    assert report.problem(clock.now_s, lambda _pid: True) is None


def test_file_that_cannot_be_written_is_refused_at_start(tmp_path):
    in_the_way = tmp_path / "file"
    in_the_way.touch()
    with pytest.raises(ConfigurationError) as caught:
        HealthFile(in_the_way / "health.json").start()
    (problem,) = caught.value.problems
    assert (problem.field, problem.value) == ("HEALTH_FILE", shortened(str(in_the_way / "health.json")))


def test_device_and_pipe_are_not_replaced(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ConfigurationError) as caught:
        HealthFile(tmp_path / "pipe").start()
    assert caught.value.problems[0].expectation.endswith("it is not a regular file")
    assert (tmp_path / "pipe").is_fifo()


def test_write_that_fails_later_is_logged_once_and_not_raised(tmp_path, clock):
    path = tmp_path / "full" / "health.json"
    health = HealthFile(path, clock)
    health.start()
    path.unlink()
    path.parent.rmdir()
    path.parent.touch()
    with structlog.testing.capture_logs() as logs:
        for _ in range(3):
            clock.now_s += 10
            health.note_progress()
    assert [log["event"] for log in logs] == ["health.not_written"]
    path.parent.unlink()
    clock.now_s += 10
    health.note_progress()
    assert read_health(path).last_progress == clock.now_s


def test_no_health_file_is_written_without_path(tmp_path, clock, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for path in (None, ""):
        HealthFile(path, clock).note_progress()
    assert list(tmp_path.iterdir()) == []


def test_health_file_is_replaced_atomically(tmp_path):
    path = tmp_path / "health.json"
    health = HealthFile(path, min_interval_s=0.0)
    health.note_progress()
    ended = threading.Event()

    def write() -> None:
        for _ in range(200):
            health.note_progress()
        ended.set()

    thread = threading.Thread(target=write)
    thread.start()
    while not ended.is_set():
        assert read_health(path).pid == os.getpid()
    thread.join()


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "3", '{"pid": 1}', '{"pid": 1, "state": "x", "last_progress": 0, "n": 1}']
)
def test_invalid_health_file_is_refused(tmp_path, text):
    path = tmp_path / "health.json"
    path.write_text(text)
    with pytest.raises((ValueError, TypeError)):
        read_health(path)


def test_missing_file_is_oserror(tmp_path):
    with pytest.raises(OSError, match="No such file"):
        read_health(tmp_path / "none")


@pytest.mark.parametrize(
    ("age_s", "is_alive", "problem"),
    [
        (0.0, True, None),
        (MAX_AGE_S, True, None),
        (MAX_AGE_S + 1, True, "no progress for 121 s"),
        (0.0, False, "process 7 is gone"),
        (MAX_AGE_S + 1, False, "process 7 is gone"),
        (-30.0, True, None),
    ],
)
def test_problem(age_s, is_alive, problem):
    report = HealthReport(7, "running", 1000.0)
    assert report.problem(1000.0 + age_s, lambda pid: is_alive) == problem


def test_is_process_alive():
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    assert is_process_alive(child.pid)
    child.communicate(b"\n")
    assert not is_process_alive(child.pid)


def test_process_of_another_user_is_alive(monkeypatch):
    def refuse(pid: int, signal: int) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "kill", refuse)
    assert is_process_alive(1)


def test_report_is_plain_json(tmp_path, clock):
    path = tmp_path / "health.json"
    HealthFile(path, clock).note_progress()
    assert json.loads(path.read_text()) == {"pid": os.getpid(), "state": "running", "last_progress": 1000.0}
