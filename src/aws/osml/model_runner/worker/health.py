"""Writes the time of the worker's last progress to a file that the container's health check reads."""

import errno
import json
import os
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import structlog

from aws.osml.model_runner.api.problems import shortened
from aws.osml.model_runner.exceptions import ConfigurationError, Problem

logger = structlog.get_logger(__name__)

# A worker without progress for this long is stuck: even an idle worker polls its queues far more often.
MAX_AGE_S = 120.0


@dataclass(frozen=True)
class HealthReport:
    """Contents of the file: process id, state, and Unix time of the last progress in seconds."""

    pid: int
    state: str
    last_progress: float

    def problem(self, now_s: float, is_alive: Callable[[int], bool]) -> str | None:
        """Return why the worker is not healthy, or None when it is."""
        if not is_alive(self.pid):
            return f"process {self.pid} is gone"
        age_s = now_s - self.last_progress
        return f"no progress for {age_s:.0f} s" if age_s > MAX_AGE_S else None


class HealthFile:
    """Writes the report; cheap enough to be called for every poll and every tile. Without a path it writes nothing.

    The states are ``running``, ``aws_unreachable`` (a poll failed because of AWS, the worker polls again) and
    ``stopped``.
    """

    def __init__(
        self, path: str | Path | None, now: Callable[[], float] = time.time, min_interval_s: float = 5.0
    ) -> None:
        self._path = Path(path) if path else None
        self._now = now
        self._min_interval_s = min_interval_s
        self._written = 0.0
        self._state = ""
        self._is_writable = True
        self._lock = threading.Lock()

    def start(self) -> None:
        """Write the first report.

        Raises:
            ConfigurationError: the file cannot be written, so a health check would always fail.
        """
        try:
            if self._path is not None and self._path.exists() and not self._path.is_file():
                # Each report takes the place of the file: as root, that of a device too.
                raise OSError(errno.EINVAL, "it is not a regular file")
            self._write("running", self._now())
        except OSError as err:
            problem = Problem(
                "HEALTH_FILE", shortened(str(self._path)), f"a file that the worker can write: {err.strerror}"
            )
            raise ConfigurationError("the health file cannot be written", [problem]) from err

    def note_progress(self, state: str = "running") -> None:
        """Record progress; the file is written once per ``min_interval_s`` at most, and when the state changes.

        A failed write is logged once and never raised: the work goes on.
        """
        now_s = self._now()
        with self._lock:
            if now_s - self._written < self._min_interval_s and state == self._state:
                return
            try:
                self._write(state, now_s)
                self._is_writable = True
            except OSError as err:
                if self._is_writable:
                    logger.warning("health.not_written", path=str(self._path), reason=str(err))
                self._is_writable = False

    def _write(self, state: str, now_s: float) -> None:
        self._written, self._state = now_s, state
        if self._path is not None:
            report = HealthReport(os.getpid(), state, now_s)
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            fresh = self._path.with_suffix(f".{report.pid}.new")
            fresh.write_text(json.dumps(asdict(report)))
            # A rename is atomic, so a reader never sees half a report.
            fresh.replace(self._path)


def read_health(path: str | Path) -> HealthReport:
    """Return the report in a health file.

    Raises:
        OSError, ValueError, TypeError: the file does not exist, or does not hold a report.
    """
    return HealthReport(**json.loads(Path(path).read_text()))


def is_process_alive(pid: int) -> bool:
    """Return True when a process with this id exists."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
