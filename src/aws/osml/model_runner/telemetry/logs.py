"""Logs: one JSON object per line, with the ids of the job and without credentials. On a terminal, lines for people.

Events have names and fields (``tile.failed``, ``code="MODEL_5XX"``). The logs of other libraries pass through the same
formatter, so that their lines have the same form.
"""

import json
import logging
import math
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ParamSpec, TextIO, TypeVar

import structlog
from structlog.contextvars import bound_contextvars, get_contextvars, merge_contextvars
from structlog.stdlib import ProcessorFormatter
from structlog.typing import EventDict, Processor, WrappedLogger

from .redaction import printable, redact, redact_text

P = ParamSpec("P")
R = TypeVar("R")

# At DEBUG these libraries log whole requests and responses, with bodies and signatures; at INFO they log the source of
# each key. At WARNING urllib3 logs the path and the query of each retry.
_MIN_LEVELS = {
    "boto3": logging.WARNING,
    "botocore": logging.WARNING,
    "s3transfer": logging.WARNING,
    "asyncio": logging.WARNING,
    "urllib3": logging.ERROR,
}
_MAX_MESSAGE_CHARACTERS = 2_000
_MAX_STACK_CHARACTERS = 16_000


def configure_logging(level: str = "INFO", stream: TextIO | None = None) -> None:
    """Send all logs of the process from ``level`` up to ``stream`` (the standard output) as JSON lines.

    A stream that is a terminal gets coloured lines instead; without colours, if NO_COLOR is set (https://no-color.org).
    Replaces an earlier configuration, so it may be called again.
    """
    target = sys.stdout if stream is None else stream
    handler = logging.StreamHandler(target)
    render: Processor = _json_line
    if target.isatty():
        render = _TerminalLine(colors=not os.environ.get("NO_COLOR"))
    handler.setFormatter(
        ProcessorFormatter(
            foreign_pre_chain=[*_shared(), structlog.stdlib.ExtraAdder()],
            processors=[
                ProcessorFormatter.remove_processors_meta,
                _exception_fields,
                lambda _logger, _method, event: redact(event),
                render,
            ],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    for name, min_level in _MIN_LEVELS.items():
        logging.getLogger(name).setLevel(max(min_level, root.level))
    structlog.configure(
        processors=[structlog.stdlib.filter_by_level, *_shared(), ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=False,
    )


@contextmanager
def bind_job(
    job_id: str | None = None, image_id: str | None = None, region_id: str | None = None, **fields: Any
) -> Iterator[None]:
    """Add these fields to every event of this thread within the block; afterwards the fields are as before."""
    given = {"job_id": job_id, "image_id": image_id, "region_id": region_id, **fields}
    with bound_contextvars(**{name: value for name, value in given.items() if value is not None}):
        yield


def carrying_context(function: Callable[P, R]) -> Callable[P, R]:
    """Return ``function`` so that it logs, on any thread, with the fields that are bound now on this thread."""
    bound = get_contextvars()

    def carried(*args: P.args, **kwargs: P.kwargs) -> R:
        with bound_contextvars(**bound):
            return function(*args, **kwargs)

    return carried


def _shared() -> list[Processor]:
    return [
        merge_contextvars,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.add_log_level,
        structlog.stdlib.PositionalArgumentsFormatter(),
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]


def _exception_fields(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Turn ``exc_info`` into fields: the error's type, its message and the stack with its causes."""
    error = event.pop("exc_info", None)
    if isinstance(error, tuple):
        error = error[1]
    elif error and not isinstance(error, BaseException):
        error = sys.exc_info()[1]
    if isinstance(error, BaseException):
        stack = "".join(traceback.format_exception(error))
        event["error_type"] = type(error).__name__
        event["error_message"] = str(error)[:_MAX_MESSAGE_CHARACTERS]
        event["error_stack"] = stack[-_MAX_STACK_CHARACTERS:]
    return event


def _json_line(_logger: WrappedLogger, _method: str, event: EventDict) -> str:
    """Return the event as one line of ASCII, in which control characters and line breaks are escaped."""
    first = {name: event.pop(name) for name in ("timestamp", "level", "event", "logger") if name in event}
    return json.dumps(_finite(first | dict(event)), default=lambda value: redact_text(str(value)))


class _TerminalLine:
    """Returns an event as a line: time, level, name and fields; the stack of an error follows on lines of its own."""

    def __init__(self, colors: bool) -> None:
        self._render = structlog.dev.ConsoleRenderer(colors=colors, pad_level=False, sort_keys=False)

    def __call__(self, logger: WrappedLogger, method: str, event: EventDict) -> str:
        stack = event.pop("error_stack", "")
        event.pop("logger", None)
        # Control characters of untrusted text would move the cursor or change the terminal.
        shown = {name: printable(value if isinstance(value, str) else str(value)) for name, value in event.items()}
        shown["timestamp"] = shown.get("timestamp", "")[11:19]
        line = str(self._render(logger, method, shown))
        return "\n".join([line, *(f"    {printable(part)}" for part in stack.splitlines())])


def _finite(value: Any) -> Any:
    """Return ``value`` with text keys and with text for numbers that are not finite, because JSON has neither."""
    if isinstance(value, Mapping):
        return {str(name): _finite(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
