"""Shared by the commands that run the embedded stack: its packages, and SIGTERM."""

import importlib.util
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from aws.osml.model_runner.exceptions import ConfigurationError

PACKAGES = ("ministack", "PIL", "rich", "yaml")


class TerminatedError(KeyboardInterrupt):
    """The process received SIGTERM."""


def require_local_extra() -> None:
    """Raise ConfigurationError, with the command that installs them, if packages of the embedded stack are missing."""
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigurationError(f"{', '.join(missing)} is missing: pip install '.[local]' in a clone of this project")


@contextmanager
def ended_by_sigterm() -> Iterator[None]:
    """Raise TerminatedError inside the block at the first SIGTERM, so that it ends as by Ctrl-C.

    Further signals are ignored, so that they do not interrupt the cleanup.
    """

    def end(number: int, _frame: FrameType | None) -> None:
        signal.signal(number, signal.SIG_IGN)
        raise TerminatedError("terminated")

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
