"""A model that refuses above its limit, and remembers how many regions it saw in progress at once."""

import threading
import time
from collections import Counter

from pydantic import PrivateAttr

from aws.osml.model_runner.local.models.example_model import ModelReply
from aws.osml.model_runner.raster.pixels import decode_tile
from faults.numbered_scene import NumberedModel


class LimitedModel(NumberedModel):
    """A ``NumberedModel`` that takes ``limit`` calls at once, each of ``call_ms``, and refuses more with 429.

    ``tiles_across`` is the width of the image in tiles; with it, tiles of different regions are distinguished.
    """

    limit: int = 1_000
    call_ms: float = 50.0
    tiles_across: int = 8
    _lock: threading.Lock = PrivateAttr(default_factory=threading.Lock)
    _in_flight: int = PrivateAttr(default=0)
    _regions: Counter[tuple[int, int]] = PrivateAttr(default_factory=Counter)
    _most_regions: int = PrivateAttr(default=0)
    _refused: int = PrivateAttr(default=0)

    @property
    def refused(self) -> int:
        """How many calls were refused."""
        return self._refused

    @property
    def most_regions(self) -> int:
        """The most regions of which calls were in flight at once."""
        return self._most_regions

    @property
    def regions_now(self) -> int:
        """The regions of which calls are in flight."""
        with self._lock:
            return len(self._regions)

    def reply(self, tile: bytes, attempt: int) -> ModelReply:
        """Answer a tile after its time, or refuse it at once."""
        row, column = divmod(int(decode_tile(tile)[0, 0, 0]), self.tiles_across)
        region = (row // 4, column // 4)
        with self._lock:
            if self._in_flight >= self.limit:
                self._refused += 1
                return ModelReply(b'{"error":"busy"}', 429)
            self._in_flight += 1
            self._regions[region] += 1
            self._most_regions = max(self._most_regions, len(self._regions))
        time.sleep(self.call_ms / 1000)
        with self._lock:
            self._in_flight -= 1
            self._regions[region] -= 1
            self._regions += Counter()
        return super().reply(tile, attempt)
