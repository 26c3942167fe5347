"""How long a person waits for a job that does not get on, and learns why."""

import math
import time
from collections.abc import Callable

from aws.osml.model_runner.local.exceptions import LocalStackError
from aws.osml.model_runner.local.job import JobProgress
from aws.osml.model_runner.local.progress import ProgressDisplay
from aws.osml.model_runner.local.worker_logs import WorkerLogs

# A job that stands still for so long gets a line that says why; and again each time that so much has passed.
EXPLAIN_AFTER_S = 15.0
EXPLAIN_AGAIN_S = 60.0


class JobStuckError(LocalStackError):
    """A job has been in trouble for longer than its user wants to wait."""


class Patience:
    """Shows a job's progress, and why there is none. ``limit_s``: how long a job in trouble is waited for.

    A job without progress and without trouble is a slow one, and is waited for without end.
    """

    def __init__(
        self,
        display: ProgressDisplay,
        logs: WorkerLogs,
        limit_s: float,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._display = display
        self._logs = logs
        self._limit_s = limit_s
        self._now = now
        self._last: JobProgress | None = None
        self._since = now()
        self._look_at = math.inf
        self._trouble = ""

    def __call__(self, progress: JobProgress) -> None:
        """Show where the job stands.

        Raises:
            JobStuckError: it has been in trouble for too long.
        """
        self._display(progress)
        now = self._now()
        if progress != self._last:
            self._logs.latest_trouble()  # whatever it was, it is over
            self._last, self._since, self._trouble = progress, now, ""
            self._look_at = now + min(EXPLAIN_AFTER_S, self._limit_s)
        if now >= self._look_at:
            self._explain(now)

    def _explain(self, now: float) -> None:
        waited_s, ends_at = now - self._since, self._since + self._limit_s
        self._look_at = now + EXPLAIN_AGAIN_S if now >= ends_at else min(now + EXPLAIN_AGAIN_S, ends_at)
        self._trouble = self._logs.latest_trouble() or self._trouble
        if not self._trouble:
            return
        text = f"no progress for {waited_s:.0f} s: {self._trouble}"
        if now >= ends_at:
            raise JobStuckError(text)
        self._display.say(text)
