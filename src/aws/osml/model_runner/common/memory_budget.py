"""A memory budget that all aggregations of a process share."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from aws.osml.model_runner.exceptions import AggregationDeferredError, AggregationTooLargeError

# How long an aggregation waits for memory that others hold before it is deferred.
_WAIT_S = 120.0
_POLL_S = 0.2


class MemoryBudget:
    """The total memory, ``total_bytes``, for features in aggregations; ``setting`` is its name in error messages."""

    def __init__(
        self,
        total_bytes: int,
        now: Callable[[], float],
        pause: Callable[[float], object],
        setting: str = "AGGREGATION_MEMORY_BYTES",
    ) -> None:
        self.total_bytes = total_bytes
        self.setting = setting
        self.now = now
        self.pause = pause
        self.lock = threading.Lock()
        # The oldest first; it never gives way to a younger share, so one aggregation always makes progress.
        self.shares: list[MemoryShare] = []

    @contextmanager
    def share(self, on_wait: Callable[[], None]) -> Iterator["MemoryShare"]:
        """Give an aggregation a share; ``on_wait`` is called while it waits, and raises an error to stop it."""
        share = MemoryShare(self, on_wait)
        with self.lock:
            self.shares.append(share)
        try:
            yield share
        finally:
            with self.lock:
                self.shares.remove(share)


class MemoryShare:
    """The memory of one aggregation, in bytes: features that it reads, processes, and keeps for later.

    One thread may read while another processes.
    """

    def __init__(self, budget: MemoryBudget, on_wait: Callable[[], None]) -> None:
        self._budget = budget
        # The bytes that the aggregation may hold when it is the only one.
        self.limit_bytes = budget.total_bytes
        self._on_wait = on_wait
        self._reading = self._working = self._kept = 0
        self._is_waiting = False

    @property
    def held_bytes(self) -> int:
        """The bytes that the aggregation holds."""
        return self._reading + self._working + self._kept

    def read(self, size: int) -> None:
        """Hold ``size`` more bytes for a read; without room, wait for other aggregations or the processing thread.

        Raises:
            AggregationTooLargeError: this aggregation alone needs more than the budget.
            AggregationDeferredError: other aggregations hold the memory and keep it for too long.
        """
        budget = self._budget
        gives_up_at: float | None = None
        while not self._try_to_read(size):
            self._on_wait()
            # An older aggregation may wait for this one's memory, or this one waited too long for others.
            with self._budget.lock:
                others = [share for share in self._budget.shares if share is not self and share.held_bytes]
                older = self._budget.shares[: self._budget.shares.index(self)]
            is_in_the_way = self.held_bytes > 0 and any(share._is_waiting for share in older)
            is_late = bool(older) and gives_up_at is not None and self._budget.now() >= gives_up_at
            if others and (is_in_the_way or is_late):
                raise AggregationDeferredError(f"other aggregations hold the memory of {budget.setting}")
            gives_up_at = gives_up_at or budget.now() + _WAIT_S
            budget.pause(_POLL_S)

    def read_less(self, size: int) -> None:
        """Release ``size`` bytes of a read that was smaller than expected."""
        self._reading -= size

    def work(self, size: int) -> None:
        """Count ``size`` bytes that were read as passed to the processing thread."""
        self._working += size
        self._reading -= size

    def keep(self, size: int) -> None:
        """End the processing of the features passed on; ``size`` bytes in total are kept for later."""
        self._kept = size
        self._working = 0

    def _try_to_read(self, size: int) -> bool:
        budget = self._budget
        with budget.lock:
            if self._reading + self._kept + size > budget.total_bytes:
                raise AggregationTooLargeError(
                    f"{budget.setting} of {budget.total_bytes:,} bytes is too little: features that have to be merged"
                    f" together take {self._reading + self._kept + size:,}"
                )
            is_room = sum(share.held_bytes for share in budget.shares) + size <= budget.total_bytes
            if is_room:
                self._reading += size
            self._is_waiting = not is_room
            return is_room
