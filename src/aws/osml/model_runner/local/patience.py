"""Limits the wait for a job without progress, and shows the reason of the wait."""

import math
import time
from collections.abc import Callable

from aws.osml.model_runner.exceptions import LocalStackError
from aws.osml.model_runner.local.job import JobProgress
from aws.osml.model_runner.local.progress import ProgressDisplay
from aws.osml.model_runner.local.worker_logs import WorkerLogs

# Time without progress before the first line with the reason, and between further lines.
EXPLAIN_AFTER_S = 15.0
EXPLAIN_AGAIN_S = 60.0


class JobStuckError(LocalStackError):
    """A job had trouble and no progress for longer than the limit of its run."""


class Patience:
    """Shows a job's progress, and the reason of a long wait.

    A job with trouble in its logs may be without progress for ``limit_s``. A job without trouble is slow, and its time
    is not limited.
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
        self._progress_at = now()
        self._explain_at = math.inf
        self._trouble = ""

    def __call__(self, progress: JobProgress) -> None:
        """Show the progress of the job.

        Raises:
            JobStuckError: the job had trouble and no progress for ``limit_s``.
        """
        self._display(progress)
        now = self._now()
        if progress != self._last:
            self._logs.latest_trouble()  # skip the events before this progress
            self._last, self._progress_at, self._trouble = progress, now, ""
            self._explain_at = now + min(EXPLAIN_AFTER_S, self._limit_s)
        if now < self._explain_at:
            return
        ends_at = self._progress_at + self._limit_s
        self._explain_at = now + EXPLAIN_AGAIN_S if now >= ends_at else min(now + EXPLAIN_AGAIN_S, ends_at)
        self._trouble = self._logs.latest_trouble() or self._trouble
        if not self._trouble:
            return
        text = f"no progress for {now - self._progress_at:.0f} s: {self._trouble}"
        if now >= ends_at:
            raise JobStuckError(text)
        self._display.say(text)
