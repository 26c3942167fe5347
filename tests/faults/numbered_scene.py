"""An image whose tiles carry their numbers as pixels, and a model that reads them: so tests know each tile by name."""

import itertools
import random
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from pydantic import Field, PrivateAttr

from aws.osml.model_runner.local.models.example_model import (
    ExampleModel,
    ModelReply,
    feature_collection,
    json_reply,
    polygon_feature,
)
from aws.osml.model_runner.raster.pixels import decode_tile, write_geotiff

TILE_PX = 64
# Square regions of 4 x 4 tiles.
REGION_PX = 4 * TILE_PX


def write_numbered_scene(path: Path, regions: tuple[int, int]) -> Path:
    """Write an image of so many regions (across, down); every pixel of a tile holds the tile's number, from 0."""
    across, down = regions[0] * 4, regions[1] * 4
    numbers = np.arange(across * down, dtype=np.uint16).reshape(down, across)
    write_geotiff(path, numbers.repeat(TILE_PX, 0).repeat(TILE_PX, 1)[np.newaxis])
    return path


class NumberedModel(ExampleModel):
    """Answers each tile by its number, and differently each time it is asked again.

    ``always`` and ``first`` map the number of a tile to the status that every call with it gets, or only its first.
    ``is_json_error`` gives such answers a body that is a good feature collection. Until ``busy_until``, in epoch
    seconds, every call is refused. ``features_per_tile`` and ``bytes_per_feature`` make the answers of some tiles long.
    """

    latency_ms: float = 0.0
    always: dict[int, int] = Field(default_factory=dict)
    first: dict[int, int] = Field(default_factory=dict)
    is_json_error: bool = False
    busy_until: float = 0.0
    bytes_per_feature: dict[int, int] = Field(default_factory=dict)
    features_per_tile: dict[int, int] = Field(default_factory=dict)

    def reply(self, tile: bytes, attempt: int) -> ModelReply:
        """Answer a tile: one to three features, none in the same place as those of another attempt."""
        number = int(decode_tile(tile)[0, 0, 0])
        delay_s = self.latency_ms / 1000
        if time.time() < self.busy_until:
            return ModelReply(b'{"error":"busy"}', 503, delay_s)
        status = self.always.get(number) or (self.first.get(number) if attempt == 0 else None)
        body = self._features(number, attempt)
        if status is not None:
            return ModelReply(body if self.is_json_error else b'{"error":"no"}', status, delay_s)
        return ModelReply(body, 200, delay_s)

    def _features(self, number: int, attempt: int) -> bytes:
        shift = float(attempt % 8)
        corners = [(4.0, 4.0 + shift), (12.0, 4.0 + shift), (12.0, 12.0 + shift)]
        count = self.features_per_tile.get(number, 1 + (number + attempt) % 3)
        marks = {"tile_number": number, "attempt": attempt}
        features = [
            polygon_feature([(x + 16.0 * place, y) for x, y in corners], "object", 0.9, "numbered", **marks)
            for place in range(count)
        ]
        if number in self.bytes_per_feature:
            # Half as long when it is compressed, and the same for each attempt.
            noise, half = random.Random(number), self.bytes_per_feature[number] // 2
            for feature in features:
                feature["properties"]["padding"] = noise.randbytes(half).hex()
        return json_reply(feature_collection(features)).body


class SilentModel(NumberedModel):
    """A ``NumberedModel`` that responds to so many calls; later calls get no response until ``wake``."""

    responses: int = 0
    _calls: Iterator[int] = PrivateAttr(default_factory=itertools.count)
    _awake: threading.Event = PrivateAttr(default_factory=threading.Event)

    def reply(self, tile: bytes, attempt: int) -> ModelReply:
        """Answer a tile, at once or after ``wake``."""
        if next(self._calls) >= self.responses:
            self._awake.wait()
        return super().reply(tile, attempt)

    def wake(self) -> None:
        """Respond to every call from now on."""
        self._awake.set()
