"""Shares of the regions in the tiles that wait for the model, and of endpoints or image stores in the threads."""

import threading
from collections import Counter
from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

# Interval at which a region without room in its share checks whether it is stopped.
_POLL_S = 0.1


@dataclass
class _Share:
    tiles: int = 0
    tile_bytes: int | None = None


class QueueShares:
    """Bounds the waiting tiles of each region, so that an endpoint that takes no calls leaves room for other regions.

    All regions that are being put in have equal shares of ``max_tiles`` and of ``max_bytes``, and at least one tile
    each. A region's tile size is known once a tile was cut; before that, ``first_tiles`` tiles of it may wait.
    """

    def __init__(self, first_tiles: int, max_tiles: int, max_bytes: int) -> None:
        self._first_tiles = first_tiles
        self._max_tiles = max_tiles
        self._max_bytes = max_bytes
        self._shares: dict[Hashable, _Share] = {}
        self._changed = threading.Condition()

    @contextmanager
    def of(self, region: Hashable) -> Iterator[None]:
        """Give ``region`` a share inside the ``with`` block."""
        with self._changed:
            self._shares[region] = _Share()
        try:
            yield
        finally:
            with self._changed:
                del self._shares[region]
                self._changed.notify_all()

    def take(self, region: Hashable) -> bool:
        """Count in one tile of ``region`` once its share has room; return False when it has none for 0.1 s."""
        with self._changed:
            if not self._changed.wait_for(lambda: self._has_room(region), _POLL_S):
                return False
            self._shares[region].tiles += 1
            return True

    def record_bytes(self, region: Hashable, tile_bytes: int) -> None:
        """Record the size of a tile of ``region``; the largest one counts."""
        with self._changed:
            if region in self._shares:
                self._shares[region].tile_bytes = max(1, tile_bytes, self._shares[region].tile_bytes or 0)
                self._changed.notify_all()

    def release(self, region: Hashable) -> None:
        """Count out one tile of ``region``: the model is called with it, or never will be."""
        with self._changed:
            if region in self._shares:
                self._shares[region].tiles -= 1
            self._changed.notify_all()

    def _has_room(self, region: Hashable) -> bool:
        share = self._shares[region]
        if share.tile_bytes is None:
            return share.tiles < self._first_tiles
        max_tiles = min(self._max_tiles, self._max_bytes // share.tile_bytes) // len(self._shares)
        return share.tiles < max(1, max_tiles)


class ThreadShares:
    """Bounds the threads of a stage per holder, an endpoint or an image store, so that a hanging holder stops no other.

    A holder takes a thread while it has fewer threads than are free. This is the
    dynamic threshold of A. K. Choudhury and E. L. Hahne, "Dynamic Queue Length Thresholds for Shared-Memory Packet
    Switches", 1998. The stage has twice ``max_threads`` threads: a single holder takes ``max_threads`` of them, the
    next holder half of the others, and so on. Holders of one thread each leave all others free.
    """

    def __init__(self, max_threads: int) -> None:
        self.threads = 2 * max_threads
        self._free = self.threads
        self._held: Counter[Hashable] = Counter()
        self._lock = threading.Lock()

    def take(self, holder: Hashable) -> bool:
        """Give ``holder`` one more thread if it has fewer than are free; return whether it got the thread."""
        with self._lock:
            has_room = self._held[holder] < self._free
            self._held[holder] += has_room
            self._free -= has_room
            return has_room

    def release(self, holder: Hashable) -> None:
        """Take one thread from ``holder``."""
        with self._lock:
            self._held[holder] -= 1
            self._free += 1
            if not self._held[holder]:
                del self._held[holder]
