"""Returns many random boxes per tile, to test a job with a flood of features."""

import random
import zlib
from typing import Any

from pydantic import Field

from aws.osml.model_runner.local.models.example_model import (
    ExampleModel,
    ModelReply,
    box_feature,
    feature_collection,
    json_reply,
)
from aws.osml.model_runner.raster.pixels import decode_tile


class Flood(ExampleModel):
    """Settings: boxes per tile, their maximum side in pixels, and the seed."""

    count: int = Field(default=1000, ge=0, le=1_000_000)
    largest_px: float = Field(default=40.0, gt=1)
    seed: int = 0

    def reply(self, tile: bytes, attempt: int) -> ModelReply:  # noqa: ARG002 - every attempt gets the same reply
        """Return ``count`` boxes that depend only on the tile's bytes and the seed."""
        _bands, height, width = decode_tile(tile).shape
        rng = random.Random(f"{self.seed}:{zlib.crc32(tile)}")
        return json_reply(random_boxes(rng, self.count, (width, height), self.largest_px))


def random_boxes(rng: random.Random, count: int, size: tuple[int, int], largest_px: float) -> dict[str, Any]:
    """Return ``count`` boxes inside a tile of ``size`` (width, height) in pixels."""
    width, height = size
    features = []
    for _ in range(count):
        w, h = rng.uniform(1, min(largest_px, width)), rng.uniform(1, min(largest_px, height))
        x, y = rng.uniform(0, width - w), rng.uniform(0, height - h)
        box = (round(x, 2), round(y, 2), round(x + w, 2), round(y + h, 2))
        features.append(box_feature(box, "object", round(rng.uniform(0.3, 1), 4), "flood"))
    return feature_collection(features)
