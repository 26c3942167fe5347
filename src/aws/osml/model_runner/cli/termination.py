"""SIGTERM as an orderly end: what a command has begun is ended, as by Ctrl-C."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class TerminatedError(KeyboardInterrupt):
    """The process was sent SIGTERM."""


@contextmanager
def ended_by_sigterm() -> Iterator[None]:
    """Raise TerminatedError inside the block at the first SIGTERM; further ones do not break what ends then."""

    def end(number: int, _frame: FrameType | None) -> None:
        signal.signal(number, signal.SIG_IGN)
        raise TerminatedError("terminated")

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
