"""Shares of the regions in the tiles that wait for the model."""

import threading
from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

# How often a region looks whether it is stopped, while it has its share.
_LOOK_AGAIN_S = 0.1


@dataclass
class _Share:
    tiles: int = 0
    tile_bytes: int | None = None


class QueueShares:
    """Bounds the tiles of one region that wait, so that an endpoint that takes none leaves room for other regions.

    All regions that are being put in have the same share of ``max_tiles`` and of ``max_bytes``, and at least one tile.
    The size of a region's tiles is known from those that were cut; before the first is, ``first_tiles`` may wait.
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
        """Count one tile of ``region`` in when its share has room; False when it had none for a while."""
        with self._changed:
            if not self._changed.wait_for(lambda: self._has_room(region), _LOOK_AGAIN_S):
                return False
            self._shares[region].tiles += 1
            return True

    def record_bytes(self, region: Hashable, tile_bytes: int) -> None:
        """Note how large a tile of ``region`` is."""
        with self._changed:
            if region in self._shares:
                self._shares[region].tile_bytes = max(1, tile_bytes, self._shares[region].tile_bytes or 0)
                self._changed.notify_all()

    def give_back(self, region: Hashable) -> None:
        """Count one tile of ``region`` out: the model is called with it, or never will be."""
        with self._changed:
            if region in self._shares:
                self._shares[region].tiles -= 1
            self._changed.notify_all()

    def _has_room(self, region: Hashable) -> bool:
        share = self._shares[region]
        if share.tile_bytes is None:
            return share.tiles < self._first_tiles
        most = min(self._max_tiles, self._max_bytes // share.tile_bytes) // len(self._shares)
        return share.tiles < max(1, most)
