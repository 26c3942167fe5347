"""Keeps a region that crashed several workers in a row apart from the other regions of a process."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TypeVar

from .outcome import Deferred

C = TypeVar("C")

_WAIT_S = 2.0
_RETRY_AFTER_S = 5.0


class Isolation:
    """While a suspect is worked on, its process claims no other region.

    Regions share their process, so the one that kills it takes the others with it, and each of them counts a crash.
    Without this a healthy region could be given up for what its neighbour did, whenever the two are claimed together.
    ``pause`` waits for so many seconds; ``claiming`` lets one thread in at a time.
    """

    def __init__(self, pause: Callable[[float], object], claiming: AbstractContextManager[object]) -> None:
        self._pause = pause
        self._claiming = claiming
        self._has_suspect = False

    @contextmanager
    def entered(self, claim: Callable[[], C], is_suspect: Callable[[C], bool]) -> Iterator[C | Deferred]:
        """Claim a region and yield what ``claim`` returned, for as long as the caller works on it.

        Where a suspect is here nothing is claimed, and ``Deferred`` is yielded.
        """
        if self._has_suspect:
            # Or this worker would give back the whole queue, message after message, for as long as the suspect takes.
            self._pause(_WAIT_S)
        claimed: C | Deferred = Deferred("a region that crashed workers is alone here", _RETRY_AFTER_S)
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
