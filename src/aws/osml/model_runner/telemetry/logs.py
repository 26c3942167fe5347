"""Logs: one JSON object per line, with the job at hand bound to every event and no credentials in any.

Events have names and fields (``tile.failed``, ``code="MODEL_5XX"``). The logs of other libraries pass through the same
formatter, so that a line is a line whoever wrote it.
"""

import json
import logging
import math
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ParamSpec, TextIO, TypeVar

import structlog
from structlog.contextvars import bound_contextvars, get_contextvars, merge_contextvars
from structlog.stdlib import ProcessorFormatter
from structlog.typing import EventDict, Processor, WrappedLogger

from .redaction import redact, redact_text

P = ParamSpec("P")
R = TypeVar("R")

# At DEBUG these log requests and responses whole, bodies and signatures among them; at INFO, where each key came from;
# and urllib3 at WARNING the path and the query of what it tries again.
_QUIETEST = {
    "boto3": logging.WARNING,
    "botocore": logging.WARNING,
    "s3transfer": logging.WARNING,
    "asyncio": logging.WARNING,
    "urllib3": logging.ERROR,
}
_LONGEST_MESSAGE = 2_000
_LONGEST_STACK = 16_000


def configure_logging(level: str = "INFO", stream: TextIO | None = None) -> None:
    """Send all logs of the process from ``level`` up to ``stream`` (the standard output) as JSON lines.

    Replaces what was configured before, so it may be called again.
    """
    handler = logging.StreamHandler(sys.stdout if stream is None else stream)
    handler.setFormatter(
        ProcessorFormatter(
            foreign_pre_chain=[*_shared(), structlog.stdlib.ExtraAdder()],
            processors=[ProcessorFormatter.remove_processors_meta, _exception_fields, _redacted, _json_line],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    for name, quietest in _QUIETEST.items():
        logging.getLogger(name).setLevel(max(quietest, root.level))
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
    """Add these fields to every event within the block, on this thread; what was bound before comes back after it."""
    given = {"job_id": job_id, "image_id": image_id, "region_id": region_id, **fields}
    with bound_contextvars(**{name: value for name, value in given.items() if value is not None}):
        yield


def carrying_context(function: Callable[P, R]) -> Callable[P, R]:
    """Return ``function`` so that it logs, on whatever thread it runs, with the fields that are bound here and now."""
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
    found = event.pop("exc_info", None)
    error = _error_of(found)
    if error is not None:
        stack = "".join(traceback.format_exception(error))
        event["error_type"] = type(error).__name__
        event["error_message"] = str(error)[:_LONGEST_MESSAGE]
        event["error_stack"] = stack[-_LONGEST_STACK:]
    return event


def _error_of(found: Any) -> BaseException | None:
    if isinstance(found, BaseException):
        return found
    if isinstance(found, tuple):
        return found[1] if isinstance(found[1], BaseException) else None
    return sys.exc_info()[1] if found else None


def _redacted(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    cleaned: EventDict = redact(event)
    return cleaned


def _json_line(_logger: WrappedLogger, _method: str, event: EventDict) -> str:
    """Return the event as one line of ASCII, in which control characters and line breaks are escaped."""
    first = {name: event.pop(name) for name in ("timestamp", "level", "event", "logger") if name in event}
    return json.dumps(_finite(first | dict(event)), default=_as_text)


def _finite(value: Any) -> Any:
    """Return ``value`` with text keys and finite numbers only, since JSON has no others."""
    if isinstance(value, Mapping):
        return {str(name): _finite(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _as_text(value: Any) -> str:
    return redact_text(str(value))
