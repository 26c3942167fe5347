"""Runs calls of several threads together, without a thread of its own and without waiting for further calls."""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any, Generic, TypeVar

from numpy.typing import NDArray

Array = NDArray[Any]
Result = TypeVar("Result")


class CallBatches(Generic[Result]):
    """Passes arrays to ``run`` in batches of at most ``max_batch``, all of one shape, one batch at a time.

    While a batch runs, further calls collect. The next batch takes the calls that waited longest. So a call that
    comes alone runs alone, at once. ``run`` returns a result for each array, in their order.
    """

    def __init__(self, run: Callable[[Sequence[Array]], Sequence[Result]], max_batch: int) -> None:
        self.max_batch = max_batch
        self.largest_batch = 0
        self._run = run
        self._waiting: list[tuple[Array, Future[Result]]] = []
        self._waiting_lock = threading.Lock()
        self._running = threading.Lock()

    def call(self, array: Array) -> Result:
        """Return the result for one array, or raise the error of its run."""
        future: Future[Result] = Future()
        with self._waiting_lock:
            self._waiting.append((array, future))
        # The thread that gets the lock runs a batch for all; the others find their result when they get it.
        with self._running:
            while not future.done():
                self._run_batch(self._taken())
        return future.result()

    def _taken(self) -> list[tuple[Array, Future[Result]]]:
        with self._waiting_lock:
            shape = self._waiting[0][0].shape
            alike = [call for call in self._waiting if call[0].shape == shape][: self.max_batch]
            chosen = {id(future) for _, future in alike}
            self._waiting = [call for call in self._waiting if id(call[1]) not in chosen]
        self.largest_batch = max(self.largest_batch, len(alike))
        return alike

    def _run_batch(self, calls: list[tuple[Array, Future[Result]]]) -> None:
        try:
            results = self._run([array for array, _ in calls])
        except Exception as err:  # noqa: BLE001 - each caller raises the error of its own array
            if len(calls) == 1:
                calls[0][1].set_exception(err)
            else:
                for call in calls:  # the error of one array is not that of the others
                    self._run_batch([call])
            return
        for (_, future), result in zip(calls, results, strict=True):
            future.set_result(result)
