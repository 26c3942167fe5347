"""Returns one square in the middle of each tile: the smallest model whose result can be checked by eye."""

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


class Centerpoint(ExampleModel):
    """Settings: the square's side as a share of the tile's shorter side."""

    share: float = Field(default=0.1, gt=0, le=1)

    def reply(self, tile: bytes, attempt: int) -> ModelReply:  # noqa: ARG002 - every attempt gets the same reply
        """Return the middle of the tile."""
        _bands, height, width = decode_tile(tile).shape
        return json_reply(find_center(width, height, self.share))


def find_center(width: int, height: int, share: float) -> dict[str, Any]:
    """Return one square around the middle of a tile of ``width`` x ``height`` pixels."""
    half = share * min(width, height) / 2
    x, y = width / 2, height / 2
    return feature_collection([box_feature((x - half, y - half, x + half, y + half), "center", 1.0, "centerpoint")])
