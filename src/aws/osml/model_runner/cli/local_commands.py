"""Shared by the commands that run the embedded stack: its packages, and SIGTERM."""

import argparse
import importlib.util
import os
import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from aws.osml.model_runner.exceptions import ConfigurationError

# Linux refuses longer paths.
_MAX_PATH = 4096
PACKAGES = ("ministack", "PIL", "rich", "yaml")


class TerminatedError(KeyboardInterrupt):
    """The process received SIGTERM."""


def require_local_extra() -> None:
    """Raise ConfigurationError, with the command that installs them, if packages of the embedded stack are missing."""
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigurationError(f"{', '.join(missing)} is missing: pip install '.[local]' in a clone of this project")


def files_read(arguments: argparse.Namespace, *outputs: str) -> list[str]:
    """Return the files that the arguments name, except those of the options ``outputs``, which are written."""
    given = {name: value for name, value in vars(arguments).items() if name not in outputs}
    return [text for text in dict.fromkeys(_texts(given)) if text and len(text) < _MAX_PATH and os.path.isfile(text)]


def _texts(value: Any) -> Iterator[str]:
    """Yield the texts in a value of an option, which may be a part of a request."""
    if isinstance(value, Mapping):
        yield from _texts(list(value.values()))
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _texts(item)
    elif isinstance(value, str | Path):
        yield str(value).removeprefix("file://")


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
