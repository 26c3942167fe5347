"""Divides the capacity of an endpoint between the workers that process regions of it."""

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import structlog
from botocore.exceptions import BotoCoreError, ClientError

from aws.osml.model_runner.database.endpoint_facts import EndpointCallers
from aws.osml.model_runner.exceptions import TableError
from aws.osml.model_runner.inference.call_limit import CallLimit

logger = structlog.get_logger(__name__)

# Interval at which a worker counts the callers, and how long its own row then counts as a caller.
_COUNT_INTERVAL_S = 20.0
_CALLER_S = 70.0


class CallShares:
    """Sets the ceilings of a process's call limits. Any thread may call.

    Each worker records itself in a table as a caller of an endpoint while it processes regions of it. The ceiling is
    the endpoint's capacity divided by the number of such workers. An endpoint of unknown capacity has no ceiling, and
    costs no call to the table. An error of the table leaves the last ceiling in force.
    """

    def __init__(
        self, callers: Callable[[], EndpointCallers], owner: str, now: Callable[[], float] = time.time
    ) -> None:
        self._callers = callers
        self._owner = owner
        self._now = now
        self._regions: Counter[str] = Counter()
        self._counted_at: dict[str, float] = {}
        self._lock = threading.Lock()

    def has_room(self, endpoint: str, capacity: int | None) -> bool:
        """Return False if this worker does not call the endpoint yet, and at least ``capacity`` other workers do."""
        if capacity is None:
            return True
        with self._lock:
            if self._regions[endpoint]:
                return True
        others = self._others(endpoint)
        return others is None or others < max(1, capacity)

    @contextmanager
    def holding(
        self, endpoint: str, capacity: Callable[[], int | None], limit: CallLimit
    ) -> Iterator[Callable[[], None]]:
        """Take a share of an endpoint while this process works on a region of it.

        Yields a function that updates the share; call it regularly, it does nothing within 20 s.
        """
        refresh = partial(self._share, endpoint, capacity, limit)
        with self._lock:
            self._regions[endpoint] += 1
        try:
            refresh()
            yield refresh
        finally:
            with self._lock:
                self._regions[endpoint] -= 1
                is_last = not self._regions[endpoint]
                was_counted = is_last and self._counted_at.pop(endpoint, None) is not None
            if was_counted:
                self._record(endpoint, 0.0)

    def _share(self, endpoint: str, current_capacity: Callable[[], int | None], limit: CallLimit) -> None:
        capacity = current_capacity()
        if capacity is None:
            limit.set_ceiling(None)
            return
        now_s = self._now()
        with self._lock:
            if 0 <= now_s - self._counted_at.get(endpoint, float("-inf")) < _COUNT_INTERVAL_S:
                return
            self._counted_at[endpoint] = now_s
        self._record(endpoint, _CALLER_S)
        others = self._others(endpoint)
        if others is not None:
            limit.set_ceiling(capacity // (1 + others))

    def _record(self, endpoint: str, for_s: float) -> None:
        try:
            self._callers().record(endpoint, self._owner, for_s)
        except (ClientError, BotoCoreError, TableError) as err:
            logger.warning("endpoint.caller_not_noted", endpoint=endpoint, error=type(err).__name__)

    def _others(self, endpoint: str) -> int | None:
        try:
            return self._callers().others(endpoint, self._owner)
        except (ClientError, BotoCoreError, TableError) as err:
            logger.warning("endpoint.callers_not_counted", endpoint=endpoint, error=type(err).__name__)
            return None
