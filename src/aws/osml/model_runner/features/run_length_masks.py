"""Outlines of masks that are run-length encoded as in COCO: ``{"size": [rows, columns], "counts": …}``.

Runs go down the columns, from left to right. The first run is background, and the kinds alternate. ``counts`` is the
list of their lengths, or the text into which pycocotools compresses it. A character has 6 bits. From the fourth run on,
the text holds the difference to the run before the last.
"""

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import shapely

from aws.osml.model_runner.common.typing import ImageDimensions

from .detections import Floats
from .image_geometry import Geometry

MAX_MASK_SIDE = 16_384
# The union of the runs takes time in proportion to their number: a second for this many in a response.
MAX_RUNS = 100_000
_MAX_RUN_BITS = 35


class MaskError(Exception):
    """A mask that cannot be read."""


class MaskReader:
    """Reads the masks of one response, which have at most ``MAX_RUNS`` runs together."""

    def __init__(self, tile_size: ImageDimensions) -> None:
        self._tile_size = tile_size
        self._runs_left = MAX_RUNS

    def geometry(self, value: Any) -> Geometry:
        """Return the areas of a mask as a Polygon or MultiPolygon, along the edges of its pixels.

        The mask covers the tile: a mask of another size is scaled to it.

        Raises MaskError for a mask that cannot be read.
        """
        mask: dict[str, Any] = value if isinstance(value, dict) else {}
        size, counts = mask.get("size"), mask.get("counts")
        sides = size if isinstance(size, list) else []
        if len(sides) != 2 or not all(type(side) is int and 0 < side <= MAX_MASK_SIDE for side in sides):
            raise MaskError(f"size is not [rows, columns] of 1 to {MAX_MASK_SIDE}")
        rows, columns = sides
        lengths = _decompressed(counts) if isinstance(counts, str) else counts
        if not isinstance(lengths, list) or not all(type(length) is int and length >= 0 for length in lengths):
            raise MaskError("counts is neither a list of lengths nor a compressed text")
        self._runs_left -= len(lengths)
        if self._runs_left < 0:
            raise MaskError(f"the masks of a response have more than {MAX_RUNS} runs")
        if sum(lengths) != rows * columns:
            raise MaskError(f"counts cover {sum(lengths)} of {rows * columns} pixels")
        boxes = _boxes_of_runs(lengths, rows)
        if not len(boxes):
            raise MaskError("the mask has no pixel")
        scale = np.array([self._tile_size.width / columns, self._tile_size.height / rows] * 2)
        union = shapely.union_all(shapely.box(*(boxes * scale).T))
        outline = shapely.geometry.mapping(shapely.simplify(union, 0.0))
        return {"type": outline["type"], "coordinates": _listed(outline["coordinates"])}


def _boxes_of_runs(lengths: Sequence[int], rows: int) -> Floats:
    """Return (n, 4) boxes x1, y1, x2, y2 that cover the foreground; whole columns are one box."""
    boxes: list[tuple[int, int, int, int]] = []
    ends = list(itertools.accumulate(lengths))
    for start, end in zip(ends[0::2], ends[1::2], strict=False):
        while start < end:
            column, row = divmod(start, rows)
            if row == 0 and end - start >= rows:
                whole = (end - start) // rows
                boxes.append((column, 0, column + whole, rows))
                start += whole * rows
            else:
                last = min(end, (column + 1) * rows)
                boxes.append((column, row, column + 1, row + last - start))
                start = last
    return np.array(boxes, dtype=np.float64).reshape(-1, 4)


def _decompressed(text: str) -> list[int]:
    lengths: list[int] = []
    value = bits = 0
    for character in text:
        code = ord(character) - 48
        if not 0 <= code < 64 or bits > _MAX_RUN_BITS:
            raise MaskError("counts is not a compressed list of lengths")
        value |= (code & 0x1F) << bits
        bits += 5
        if code & 0x20:
            continue
        if code & 0x10:
            value -= 1 << bits
        lengths.append(value + (lengths[-2] if len(lengths) > 2 else 0))
        value = bits = 0
    if bits:
        raise MaskError("counts ends inside a length")
    return lengths


def _listed(coordinates: Any) -> Any:
    """Return nested tuples as lists, as JSON has them."""
    return [_listed(item) for item in coordinates] if isinstance(coordinates, tuple) else coordinates
