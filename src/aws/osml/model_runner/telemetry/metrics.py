"""Metrics: value lists per operation, written as CloudWatch's embedded metric format, one JSON line per flush.

A tile is measured four times or more and an image has thousands of tiles, so values are collected and written once per
region. Names, units and dimensions are those of the dashboards that exist.
"""

import math
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import TextIO

from aws_embedded_metrics.config import get_config
from aws_embedded_metrics.environment import Environment
from aws_embedded_metrics.environment.local_environment import LocalEnvironment
from aws_embedded_metrics.logger.metrics_context import MetricsContext
from aws_embedded_metrics.logger.metrics_logger import MetricsLogger
from aws_embedded_metrics.serializers.log_serializer import LogSerializer

from .redaction import redacted_beginning

NAMESPACE = "OSML/ModelRunner"
SERVICE_NAME = "OSML"
LOG_GROUP_NAME = "/aws/OSML/MRService"

SECONDS = "Seconds"
MILLISECONDS = "Milliseconds"
COUNT = "Count"
PERCENT = "Percent"

# What operations without dimensions of their own carry, as the library would add them.
_DEFAULT_DIMENSIONS = {"LogGroup": LOG_GROUP_NAME, "ServiceName": SERVICE_NAME, "ServiceType": "Unknown"}
_LONGEST_DIMENSION = 1_024
# Each value of a dimension is a metric of its own, which costs money, and a sender may name any URL as a model. So a
# process measures this many models apart, and all others as one.
MOST_MODELS = 100
OTHER_MODELS = "Other"

_Scope = tuple[tuple[str, str], ...]


def configure_metrics() -> None:
    """Tell the metrics library who we are, and that its output is this process's own: it never looks for EC2 then."""
    config = get_config()
    config.service_name = SERVICE_NAME
    config.log_group_name = LOG_GROUP_NAME
    config.namespace = NAMESPACE
    config.environment = "local"


def create_metrics_logger() -> MetricsLogger:
    """Return a logger of the metrics library that writes to the standard output, whatever the machine is."""

    async def here() -> Environment:
        return LocalEnvironment()

    return MetricsLogger(here, MetricsContext(namespace=NAMESPACE))


class MetricsRecorder:
    """Collects measurements from any number of threads until ``flush`` writes them."""

    def __init__(self, stream: TextIO | None = None, now: Callable[[], float] = time.perf_counter) -> None:
        self._stream = stream
        self._now = now
        self._lock = threading.Lock()
        self._scopes: dict[_Scope, dict[tuple[str, str], list[float]]] = {}
        self._models: set[str] = set()

    def record(self, operation: str | None, metric: str, value: float, unit: str = COUNT, **dimensions: str) -> None:
        """Keep one value of ``metric`` (``Duration``, ``Invocations``, …) for an operation (``TileProcessing``, …).

        ``dimensions`` are ``ModelName`` and ``InputFormat``. Without an operation the value goes under the service's
        own dimensions. A value that is not finite is left out, since the format has none.
        """
        if not math.isfinite(value):
            return
        scope = _scope(operation, dimensions)
        with self._lock:
            scope = tuple((name, self._bounded(name, value)) for name, value in scope)
            self._scopes.setdefault(scope, {}).setdefault((metric, unit), []).append(value)

    @contextmanager
    def timed(self, operation: str, **dimensions: str) -> Iterator[None]:
        """Record one invocation of the block and its duration in seconds, and an error when it raises."""
        start = self._now()
        try:
            yield
        except BaseException:
            self.record(operation, "Errors", 1, COUNT, **dimensions)
            raise
        finally:
            self.record(operation, "Duration", self._now() - start, SECONDS, **dimensions)
            self.record(operation, "Invocations", 1, COUNT, **dimensions)

    def flush(self) -> None:
        """Write what was recorded since the last flush: one line per operation and set of dimensions.

        A list of more than a hundred values takes further lines, since the format has no more in one.
        """
        with self._lock:
            scopes, self._scopes = self._scopes, {}
        lines = [line for scope, metrics in scopes.items() for line in _lines(scope, metrics)]
        if lines:
            stream = sys.stdout if self._stream is None else self._stream
            stream.write("".join(f"{line}\n" for line in lines))
            stream.flush()

    def _bounded(self, name: str, value: str) -> str:
        if name != "ModelName" or value in self._models:
            return value
        if len(self._models) >= MOST_MODELS:
            return OTHER_MODELS
        self._models.add(value)
        return value


def _scope(operation: str | None, dimensions: dict[str, str]) -> _Scope:
    named = ({"Operation": operation} if operation else _DEFAULT_DIMENSIONS) | dimensions
    return tuple((name, _dimension_value(str(value))) for name, value in named.items())


@lru_cache(maxsize=1024)
def _dimension_value(value: str) -> str:
    """Return ``value`` as the format wants it: ASCII, at most 1,024 characters, not blank; and without credentials."""
    text = redacted_beginning(value, _LONGEST_DIMENSION).encode("ascii", "replace").decode()[:_LONGEST_DIMENSION]
    return text if text.strip() else "Unknown"


def _lines(scope: _Scope, metrics: dict[tuple[str, str], list[float]]) -> list[str]:
    context = MetricsContext(namespace=NAMESPACE)
    context.set_dimensions([dict(scope)])
    for (metric, unit), values in metrics.items():
        for value in values:
            context.put_metric(metric, value, unit)
    lines: list[str] = LogSerializer.serialize(context)
    return lines
