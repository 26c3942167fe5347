"""Shows a job's progress: a live bar on a terminal, a line every few seconds in other outputs."""

import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from aws.osml.model_runner.local.job import JobProgress

LINE_EVERY_S = 5.0


class _TimeLeftColumn(TimeRemainingColumn):
    """Shows the estimated time to the end, if there is an estimate."""

    def render(self, task: Task) -> Text:
        """See ``ProgressColumn.render``."""
        return Text() if task.time_remaining is None else super().render(task) + Text(" left", "progress.remaining")


class ProgressDisplay:
    """Shows each progress that it is called with, while its ``with`` block runs."""

    def __init__(self, console: Console, now: Callable[[], float] = time.monotonic) -> None:
        self._console = console
        self._now = now
        self._columns = (
            SpinnerColumn(style="cyan"),
            TextColumn("{task.description}", style="bold"),
            BarColumn(bar_width=40),
            MofNCompleteColumn(),
            TextColumn("tiles"),
            TimeElapsedColumn(),
            _TimeLeftColumn(),
        )
        self._bar = Progress(*self._columns, console=console, transient=True)
        self._task = self._bar.add_task("starting the local stack", total=None)
        self._last_line_time = float("-inf")
        self._last: tuple[str, JobProgress] | None = None

    def say(self, text: str) -> None:
        """Show a line that stays; on a terminal it is above the bar."""
        self._console.print(f"  {text}", highlight=False, markup=False, soft_wrap=True)

    def __call__(self, progress: JobProgress) -> None:
        """Show the progress: a new stage at once, new numbers at most every ``LINE_EVERY_S``."""
        stage = describe(progress)
        if self._console.is_terminal:
            self._bar.update(self._task, description=stage, completed=progress.tiles_done, total=progress.tiles_total)
            return
        if self._last is not None and self._last[0] == stage:
            is_soon = self._now() - self._last_line_time < LINE_EVERY_S
            if is_soon or self._last[1] == progress:
                return
        total = "?" if progress.tiles_total is None else progress.tiles_total
        self._console.print(f"  {stage}: {progress.tiles_done} of {total} tiles", highlight=False)
        self._last, self._last_line_time = (stage, progress), self._now()

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._bar.start()
        else:
            self.say("starting the local stack")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._console.is_terminal:
            self._bar.stop()


def describe(progress: JobProgress) -> str:
    """Return the stage of the job in a few words."""
    if progress.status is None:
        return "waiting for a worker"
    if progress.status.is_terminal:
        return progress.status.value.lower()
    if progress.tiles_total is None:
        return "opening the image"
    if progress.tiles_done < progress.tiles_total:
        return "finding objects"
    return "merging and delivering"
