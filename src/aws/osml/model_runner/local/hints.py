"""What a model's author should look at, by the features that were delivered."""

from collections.abc import Mapping, Sequence
from typing import Any

# Boxes that are all smaller than this, in pixels, are most likely shares of the tile.
_SMALLEST_BOX_PX = 2.0


def hints(features: Sequence[dict[str, Any]]) -> list[str]:
    """Return what is odd about features of a model; nothing where there are none."""
    if not features:
        return []
    found = []
    if all(feature.get("geometry") is None for feature in features):
        found.append(
            "the image has no georeference that can be used: places are in pixels only;"
            " world files and other files beside an image are not read"
        )
    properties = [feature.get("properties") or {} for feature in features]
    boxes = [box for box in (one.get("imageBBox") for one in properties) if box]
    if boxes and all(max(box[2] - box[0], box[3] - box[1]) < _SMALLEST_BOX_PX for box in boxes):
        found.append("every box is smaller than 2 pixels: boxes are in pixels of the tile, not in shares of it")
    outside = sum(_is_outside(one) for one in properties)
    if outside:
        found.append(f"{outside} boxes lie outside their tile: a box is [x1, y1, x2, y2] in pixels of the tile")
    scores = [known.get("score") for one in properties for known in one.get("featureClasses") or []]
    if any(isinstance(score, int | float) and score > 1 for score in scores):
        found.append("there are scores above 1: a score is a share in [0, 1]")
    return found


def _is_outside(properties: Mapping[str, Any]) -> bool:
    """Return True where the feature's box shares no pixel with the tile in which the model found it."""
    box, tile = properties.get("imageBBox"), (properties.get("inferenceMetadata") or {}).get("tile")
    if not box or not tile:
        return False
    (top, left), (width, height) = tile
    return bool(box[2] < left or box[0] > left + width or box[3] < top or box[1] > top + height)
