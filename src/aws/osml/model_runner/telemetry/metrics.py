"""Metrics: lists of values per operation, written in CloudWatch's embedded metric format, one JSON line per flush.

A tile has four measurements or more and an image has thousands of tiles, so values are collected and written once per
region. Names, units and dimensions match the existing dashboards.
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

# Dimensions of values without an operation, as the library would add them.
_DEFAULT_DIMENSIONS = {"LogGroup": LOG_GROUP_NAME, "ServiceName": SERVICE_NAME, "ServiceType": "Unknown"}
_MAX_DIMENSION_CHARACTERS = 1_024
# Each value of a dimension is a separate metric, which costs money, and a sender may name any URL as a model. So a
# process records this many models separately, and all others together.
MAX_MODELS = 100
OTHER_MODELS = "Other"

_Scope = tuple[tuple[str, str], ...]


def configure_metrics() -> None:
    """Set the names of the metrics library, and its local environment, in which it does not look for EC2."""
    config = get_config()
    config.service_name = SERVICE_NAME
    config.log_group_name = LOG_GROUP_NAME
    config.namespace = NAMESPACE
    config.environment = "local"


def create_metrics_logger() -> MetricsLogger:
    """Return a logger of the metrics library that writes to the standard output on any machine."""

    async def local_environment() -> Environment:
        return LocalEnvironment()

    return MetricsLogger(local_environment, MetricsContext(namespace=NAMESPACE))


class MetricsRecorder:
    """Collects measurements from any number of threads until ``flush`` writes them."""

    def __init__(
        self,
        stream: TextIO | None = None,
        now: Callable[[], float] = time.perf_counter,
        namespace: str = NAMESPACE,
    ) -> None:
        self.stream = stream
        self._now = now
        self._namespace = namespace
        self._lock = threading.Lock()
        self._scopes: dict[_Scope, dict[tuple[str, str], list[float]]] = {}
        self._models: set[str] = set()

    def record(self, operation: str | None, metric: str, value: float, unit: str = COUNT, **dimensions: str) -> None:
        """Record one value of ``metric`` (``Duration``, ``Invocations``, …) for an operation (``TileProcessing``, …).

        ``dimensions`` are ``ModelName`` and ``InputFormat``. A value without an operation has the default dimensions of
        the service. A value that is not finite is left out, because the format does not allow it.
        """
        if not math.isfinite(value):
            return
        named = ({"Operation": operation} if operation else _DEFAULT_DIMENSIONS) | dimensions
        with self._lock:
            scope = tuple((name, self._bounded(name, _dimension_value(str(text)))) for name, text in named.items())
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

        A list of more than 100 values takes further lines, because the format allows 100 values in a line. Nothing is
        written to a terminal, where no agent reads the lines.
        """
        with self._lock:
            scopes, self._scopes = self._scopes, {}
        stream = sys.stdout if self.stream is None else self.stream
        if stream.isatty():
            return
        lines = [line for scope, metrics in scopes.items() for line in _lines(self._namespace, scope, metrics)]
        if lines:
            stream.write("".join(f"{line}\n" for line in lines))
            stream.flush()

    def _bounded(self, name: str, value: str) -> str:
        if name != "ModelName" or value in self._models:
            return value
        if len(self._models) >= MAX_MODELS:
            return OTHER_MODELS
        self._models.add(value)
        return value


@lru_cache(maxsize=1024)
def _dimension_value(value: str) -> str:
    """Return ``value`` as the format requires it: ASCII, at most 1,024 characters, not blank; without credentials."""
    text = redacted_beginning(value, _MAX_DIMENSION_CHARACTERS).encode("ascii", "replace").decode()
    return text[:_MAX_DIMENSION_CHARACTERS] if text[:_MAX_DIMENSION_CHARACTERS].strip() else "Unknown"


def _lines(namespace: str, scope: _Scope, metrics: dict[tuple[str, str], list[float]]) -> list[str]:
    context = MetricsContext(namespace=namespace)
    # An alarm needs one metric for all models and formats; CloudWatch adds up no dimensions by itself.
    operation = {name: value for name, value in scope if name == "Operation"}
    context.set_dimensions([dict(scope), *([operation] if operation and len(scope) > 1 else [])])
    for (metric, unit), values in metrics.items():
        for value in values:
            context.put_metric(metric, value, unit)
    lines: list[str] = LogSerializer.serialize(context)
    return lines
