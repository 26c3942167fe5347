"""Hints for the author of a model, from the features that were delivered."""

from collections.abc import Sequence
from typing import Any

# If all boxes are smaller than this, they are most likely shares of the tile instead of pixels.
_MIN_BOX_PX = 2.0


def hints(features: Sequence[dict[str, Any]]) -> list[str]:
    """Return a sentence for each likely mistake in the features of a model; an empty list without features."""
    if not features:
        return []
    found = []
    if all(feature.get("geometry") is None for feature in features):
        found.append(
            "the image has no georeference that can be used: positions are in pixels only;"
            " world files and other files beside an image are not read"
        )
    properties = [feature.get("properties") or {} for feature in features]
    boxes = [box for box in (each.get("imageBBox") for each in properties) if box]
    if boxes and all(max(box[2] - box[0], box[3] - box[1]) < _MIN_BOX_PX for box in boxes):
        found.append("every box is smaller than 2 pixels: boxes are in pixels of the tile, not in shares of it")
    outside = 0
    for each in properties:
        box, tile = each.get("imageBBox"), (each.get("inferenceMetadata") or {}).get("tile")
        if box and tile:
            (top, left), (width, height) = tile
            outside += box[2] < left or box[0] > left + width or box[3] < top or box[1] > top + height
    if outside:
        found.append(f"{outside} boxes lie outside their tile: a box is [x1, y1, x2, y2] in pixels of the tile")
    scores = [known.get("score") for each in properties for known in each.get("featureClasses") or []]
    if any(isinstance(score, int | float) and score > 1 for score in scores):
        found.append("there are scores above 1: a score is a share in [0, 1]")
    return found
