"""Lends GDAL handles of one image to threads: a handle serves one thread at a time."""

import threading
from collections import deque
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeVar

from aws.osml.model_runner.common.typing import ImageRegion
from aws.osml.model_runner.exceptions import LoadImageException

from .transfers import watched_transfers

T = TypeVar("T")


class AwsKeys(NamedTuple):
    """Keys that sign a call to S3. The token is None for keys that do not expire.

    ``pays``: the account of the keys pays for what it reads of a bucket whose owner does not.
    """

    access_key: str
    secret_key: str
    session_token: str | None = None
    pays: bool = False


class ImageHandle:
    """One open GDAL dataset, the keys of each of its files, and a cache of objects that belong to it.

    ``fetched`` are the last two windows that were fetched ahead.
    """

    def __init__(self, dataset: Any, keys: tuple[AwsKeys | None, ...] = ()) -> None:
        self.dataset = dataset
        self.keys = keys
        self.fetched: deque[ImageRegion] = deque(maxlen=2)
        self._companions: dict[Hashable, Any] = {}

    def companion(self, key: Hashable, create: Callable[[Any], T]) -> T:
        """Return the cached object of ``key``, which the first call makes by ``create(dataset)``.

        Raises IncompleteReadError when a transfer broke off meanwhile.
        """
        if key not in self._companions:
            with watched_transfers() as transfers:
                created = create(self.dataset)
                transfers.check(is_header=True)
            self._companions[key] = created
        companion: T = self._companions[key]
        return companion


class HandlePool:
    """At most ``limit`` handles, opened on demand. The last returned is lent first, so that caches stay warm.

    A thread that holds a handle must not call ``lend`` again: when all handles are lent, that is a deadlock.
    """

    def __init__(
        self, open_handle: Callable[[], ImageHandle], is_current: Callable[[ImageHandle], bool], limit: int
    ) -> None:
        self._open_handle = open_handle
        self._is_current = is_current
        self._limit = limit
        self._idle: list[ImageHandle] = []
        self._count = 0
        self._is_closed = False
        self._changed = threading.Condition()

    @contextmanager
    def lend(self) -> Iterator[ImageHandle]:
        """Lend a handle for the length of a ``with`` block; waits while all are lent.

        A handle is not lent again after an error, because GDAL may keep the error in the handle.
        """
        handle = self._take()
        is_sound = False
        try:
            yield handle
            is_sound = True
        finally:
            self._return(handle if is_sound else None)

    def open(self) -> ImageHandle:
        """Open a handle that the pool does not count, for a caller that keeps it."""
        return self._open_handle()

    def narrow(self, limit: int) -> None:
        """Reduce the limit to ``limit`` handles; a larger value has no effect."""
        with self._changed:
            self._limit = min(self._limit, limit)

    def drop_idle(self) -> None:
        """Close the handles that are not lent."""
        with self._changed:
            self._count -= len(self._idle)
            self._idle.clear()
            self._changed.notify_all()

    def close(self) -> None:
        """Close idle handles now and lent handles when they are returned; ``lend`` raises from now on."""
        with self._changed:
            self._is_closed = True
        self.drop_idle()

    def _take(self) -> ImageHandle:
        """Return an idle handle with current keys, or a new handle instead; waits while all are lent."""
        with self._changed:
            self._changed.wait_for(lambda: self._is_closed or self._idle or self._count < self._limit)
            if self._is_closed:
                raise LoadImageException("the image was closed while it was still needed")
            handle = self._idle.pop() if self._idle else None
            if handle is None:
                # This reserves the slot of the handle that is opened below, outside the lock.
                self._count += 1
        try:
            if handle is not None and self._is_current(handle):
                return handle
            return self._open_handle()
        except BaseException:
            self._return(None)
            raise

    def _return(self, handle: ImageHandle | None) -> None:
        """Return a lent handle to the pool; None frees the slot of a closed handle."""
        with self._changed:
            if handle is None or self._is_closed:
                self._count -= 1
            else:
                self._idle.append(handle)
            self._changed.notify()
