"""Finds boxes that overlap, and by how much, in bounded memory and without comparing all pairs."""

from collections.abc import Callable, Iterator
from functools import cached_property

import numpy as np
import shapely
from numpy.typing import NDArray

from .detections import Floats, Indices

Flags = NDArray[np.bool_]

# Added to a side of zero length, so that points and lines have an area.
MIN_SIDE_PX = 0.1

# Maximum number of candidate pairs in memory; each takes about 100 bytes.
PAIRS_AT_ONCE = 1_000_000

# Cells along each axis of the grid that limits the number of candidates.
CELLS = 512
# Up to so many boxes, counting in cells is not worth its time.
_FEW = 100


class BoxPairs:
    """Finds the boxes of the same category that overlap some of the boxes.

    ``searched``: (n, 4) the areas that the search compares: each box, or a part of it. ``record_life`` is called before
    each batch and raises an error to stop the work.
    """

    def __init__(
        self,
        boxes: Floats,
        categories: Indices,
        searched: Floats | None = None,
        record_life: Callable[[], None] = lambda: None,
    ) -> None:
        """Index ``boxes`` (n, 4) of minx, miny, maxx, maxy, none of them NaN, and ``categories`` (n,)."""
        self._boxes = with_area(boxes)
        self.searched = self._boxes if searched is None else with_area(searched)
        self.categories = categories
        self.record_life = record_life
        # The tree uses only envelopes, and a diagonal has the envelope of its box at half the cost.
        diagonals = np.asarray(shapely.linestrings(self.searched.reshape(-1, 2, 2)))
        self._tree = shapely.STRtree(diagonals)

    def __len__(self) -> int:
        return len(self._boxes)

    def touching(self, queries: Indices) -> tuple[Indices, Indices]:
        """Return pairs (i, j) of a query i and any other box j whose searched areas meet; sorted by i."""
        first, second = self._tree.query(self._tree.geometries[queries])
        first = queries[first]
        is_pair = (first != second) & (self.categories[first] == self.categories[second])
        first, second = first[is_pair], second[is_pair]
        order = np.argsort(first, kind="stable")
        return first[order], second[order]

    def overlapping(self, queries: Indices) -> tuple[Indices, Indices, Floats]:
        """Return (i, j, IoU) of pairs of a query i and any other box j with IoU > 0; sorted by i."""
        first, second = self.touching(queries)
        iou = self.overlap_of(first, second)
        is_overlap = iou > 0
        return first[is_overlap], second[is_overlap], iou[is_overlap]

    def touching_new(self, queries: Indices, is_new: Flags) -> tuple[Indices, Indices]:
        """Return each pair of ``touching`` once, as (i, j) with i < j. The queries must be new boxes."""
        first, second = self.touching(queries)
        is_once = (first < second) | ~is_new[second]
        first, second = first[is_once], second[is_once]
        return np.minimum(first, second), np.maximum(first, second)

    def overlap_of(self, first: Indices, second: Indices) -> Floats:
        """Return the IoU of pairs."""
        return intersection_over_union(self._boxes[first], self._boxes[second])

    def take(self, indices: Indices) -> "BoxPairs":
        """Return the pairs of only these boxes, in this order."""
        return BoxPairs(self._boxes[indices], self.categories[indices], self.searched[indices], self.record_life)

    @cached_property
    def limits(self) -> Floats:
        """(n,) an upper bound on the number of boxes that touch each box."""
        return candidate_limits(self.searched)

    def batches(self, pairs_at_once: int) -> Iterator[tuple[int, int]]:
        """Yield [start, end) of boxes to query together, with at most ``pairs_at_once`` candidates.

        A box that alone may have more candidates is its own batch.
        """
        total = np.cumsum(self.limits)
        start, done = 0, 0
        while start < len(total):
            end = max(start + 1, int(np.searchsorted(total, done + pairs_at_once, side="right")))
            self.record_life()
            yield start, end
            start, done = end, int(total[end - 1])


def with_area(boxes: Floats) -> Floats:
    """Return boxes whose sides are longer than zero: zero width or height becomes ``MIN_SIDE_PX``."""
    low, high = boxes[:, :2], boxes[:, 2:]
    grown: Floats = np.hstack([low, np.where(high > low, high, low + MIN_SIDE_PX)])
    return grown


def intersection_over_union(first: Floats, second: Floats) -> Floats:
    """Return the area that two boxes share divided by the area of their union, for n pairs of (n, 4)."""
    shared = area(intersections(first, second))
    iou: Floats = shared / (area(first) + area(second) - shared)
    return iou


def intersections(first: Floats, second: Floats) -> Floats:
    """Return the intersection of two boxes, for n pairs of (n, 4). If it is empty, a minimum exceeds its maximum."""
    shared: Floats = np.hstack([np.maximum(first[:, :2], second[:, :2]), np.minimum(first[:, 2:], second[:, 2:])])
    return shared


def area(boxes: Floats) -> Floats:
    """Return the areas of (n, 4) boxes, 0 for an empty intersection."""
    width, height = (boxes[:, 2:] - boxes[:, :2]).clip(0).T
    product: Floats = width * height
    return product


def candidate_limits(boxes: Floats, weights: Floats | None = None) -> Floats:
    """Return an upper bound on the number of boxes that overlap each of (n, 4) boxes, itself included; at most n.

    With ``weights``, (n,), it is an upper bound on the sum of their weights, at most the sum of all weights.

    Boxes are counted on a grid whose lines are quantiles, so that one distant box does not make the cells coarse.
    Overlapping boxes share a cell, so the sum over the cells of a box counts each overlapping box at least once.
    """
    if len(boxes) <= _FEW:
        return np.full(len(boxes), len(boxes) if weights is None else weights.sum(), dtype=np.float64)
    left, right = _cells(boxes[:, 0], boxes[:, 2])
    top, bottom = _cells(boxes[:, 1], boxes[:, 3])
    side = CELLS + 2
    corners = np.zeros(side * side)
    for rows, columns, sign in (
        (top, left, 1),
        (top, right + 1, -1),
        (bottom + 1, left, -1),
        (bottom + 1, right + 1, 1),
    ):
        corners += sign * np.bincount(rows * side + columns, weights, minlength=side * side)
    corners = corners.reshape(side, side)
    boxes_in_cell = corners.cumsum(axis=0).cumsum(axis=1)
    total = np.pad(boxes_in_cell.cumsum(axis=0).cumsum(axis=1), (1, 0))
    in_cells = total[bottom + 1, right + 1] - total[top, right + 1] - total[bottom + 1, left] + total[top, left]
    limits: Floats = np.minimum(in_cells, len(boxes) if weights is None else weights.sum())
    return limits


def _cells(low: Floats, high: Floats) -> tuple[Indices, Indices]:
    """Return the first and the last cell of an axis that [low, high] touches."""
    lines = np.quantile(low, np.linspace(0, 1, CELLS + 1)[1:-1])
    return np.searchsorted(lines, low, side="right"), np.searchsorted(lines, high, side="right")
