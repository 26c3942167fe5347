"""Runs a suspected poison region alone in its process."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TypeVar

from .region import Deferred

C = TypeVar("C")

_WAIT_S = 2.0
_RETRY_AFTER_S = 5.0


class Isolation:
    """While a worker processes a suspect, it claims no other region.

    A region that crashes the process ends the other regions in it too, and each of them counts a crash. Without
    isolation a healthy region could be abandoned because of its neighbour. ``pause`` waits for a number of seconds;
    ``claiming`` is a lock for one thread at a time.
    """

    def __init__(self, pause: Callable[[float], object], claiming: AbstractContextManager[object]) -> None:
        self._pause = pause
        self._claiming = claiming
        self._has_suspect = False

    @contextmanager
    def entered(self, claim: Callable[[], C], is_suspect: Callable[[C], bool]) -> Iterator[C | Deferred]:
        """Call ``claim`` and yield its result while the caller processes the region.

        While a suspect is in this process, nothing is claimed and ``Deferred`` is yielded.
        """
        if self._has_suspect:
            # Without this pause the worker would receive and release the whole queue in a busy loop.
            self._pause(_WAIT_S)
        claimed: C | Deferred = Deferred("the worker is isolating a region that crashed workers", _RETRY_AFTER_S)
        is_alone = False
        with self._claiming:
            if not self._has_suspect:
                claimed = claim()
                is_alone = self._has_suspect = is_suspect(claimed)
        try:
            yield claimed
        finally:
            if is_alone:
                self._has_suspect = False
