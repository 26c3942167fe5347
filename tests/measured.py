"""Coverage without what it costs for nothing: tests that repeat others, and the code of AWS's client.

While coverage traces a thread, Python 3.11 runs all code of that thread at about half its speed.
"""

import functools
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import coverage
from botocore.client import BaseClient

# This variable makes a Python process measure its own coverage.
_PROCESS_CONFIG = "COVERAGE_PROCESS_CONFIG"


@contextmanager
def coverage_stopped() -> Iterator[None]:
    """Measure nothing in the block, neither in this process nor in its child processes.

    pytest-cov has a marker for this, but in the processes of pytest-xdist it measures twice, and stops once.
    """
    stopped: list[coverage.Coverage] = []
    config = os.environ.pop(_PROCESS_CONFIG, None)
    while running := coverage.Coverage.current():
        running.stop()
        stopped.append(running)
    try:
        yield
    finally:
        for measuring in reversed(stopped):
            measuring.start()
        if config is not None:
            os.environ[_PROCESS_CONFIG] = config


@contextmanager
def aws_calls_not_traced() -> Iterator[None]:
    """Trace no thread that calls an AWS client until the call returns; these calls take most of the time."""
    with patch.object(BaseClient, "_make_api_call", _not_traced(BaseClient._make_api_call)):
        yield


def _not_traced(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def call(*args: Any, **keywords: Any) -> Any:
        tracer = sys.gettrace()
        if tracer is None:
            return function(*args, **keywords)
        sys.settrace(None)
        try:
            return function(*args, **keywords)
        finally:
            sys.settrace(tracer)
            # Coverage's tracer installs itself at the next call, and has to be in place before this function returns.
            _call_nothing()

    return call


def _call_nothing() -> None:
    pass
