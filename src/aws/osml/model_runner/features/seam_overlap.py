"""Compares detections of two tiles: by area, by length, or by distance.

Each tile may have cut off another part of one object, so a pair is compared twice. The first comparison takes the
detections as they are: a cut detection lies within the whole detection of the other tile. The second comparison is
limited to the pixels that both tiles cover, where both must show the same. It finds the two halves of an object that no
tile covers completely. It uses intersection over union, and only for pairs whose truncation agrees. Truncation agrees
if a detection that reaches beyond the other's tile meets a detection that touches that edge of its tile.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import shapely
from numpy.typing import NDArray

from aws.osml.model_runner.api.post_processing import FeatureDistillationSeam, OverlapMetric

from .box_pairs import area, intersections
from .detections import Floats, Indices
from .entanglement import FEW_CORNERS, is_entangled
from .geometry_arrays import ObjectArray

Flags = NDArray[np.bool_]

# Tolerance at an edge of a tile. A detection that ends nearer to the edge counts as cut by it. A box that reaches less
# beyond the edge does not count as reaching beyond it, because of the model's noise.
EDGE_PX = 4.0
# A detection with less than this share of the other's area is smaller by more than noise.
FRAGMENT_SHARE = 0.9


@dataclass(frozen=True, eq=False)
class TileDetections:
    """n detections and their tiles.

    ``boxes`` and ``tiles``: (n, 4) minx, miny, maxx, maxy of the detection and of its tile. ``is_touching``: (n, 4) the
    sides at which an inner edge of the tile cuts the detection.
    """

    boxes: Floats
    tiles: Floats
    is_touching: Flags

    def take(self, indices: Indices) -> "TileDetections":
        """Return only these detections, in this order."""
        return TileDetections(self.boxes[indices], self.tiles[indices], self.is_touching[indices])


def touching_edges(boxes: Floats, tiles: Floats, outermost: Floats) -> Flags:
    """Return the sides at which each box touches an inner edge of its tile: (n, 4), in the order of a box.

    An edge is an inner edge if tiles reach beyond it, so that another tile may cover the rest of the object.
    ``outermost``: (4,) the box around all tiles.
    """
    low, high = tiles[:, :2], tiles[:, 2:]
    is_low = (low > outermost[:2]) & (boxes[:, :2] <= low + EDGE_PX)
    is_high = (high < outermost[2:]) & (boxes[:, 2:] >= high - EDGE_PX)
    return np.hstack([is_low, is_high])


def are_same_boxes(first: TileDetections, second: TileDetections, options: FeatureDistillationSeam) -> Flags:
    """Return for each of n pairs of boxes whether they are one object."""
    shared = intersections(first.boxes, second.boxes)
    both = area(shared)
    is_same = _agree(both, (area(first.boxes), area(second.boxes)), options.metric, options.iou_threshold)
    seen_by_both = intersections(first.tiles, second.tiles)
    parts = [area(intersections(view.boxes, seen_by_both)) for view in (first, second)]
    both_in_view = area(intersections(shared, seen_by_both))
    is_same_part = _agree(both_in_view, parts, OverlapMetric.IOU, options.iou_threshold)
    flags: Flags = is_same | (is_same_part & truncation_agrees(first, second))
    return flags


def are_same_areas(
    first: TileDetections,
    second: TileDetections,
    shapes: tuple[ObjectArray, ObjectArray],
    options: FeatureDistillationSeam,
) -> Flags:
    """Return for each pair of polygons whether they are one object; ``shapes`` must be valid and have an area.

    Entangled polygons are two objects.
    """
    corners = np.multiply(*(shapely.get_num_coordinates(shape) for shape in shapes))
    compared = shapes[0].copy()
    for index in np.flatnonzero(corners > FEW_CORNERS**2).tolist():
        if is_entangled(np.array([shape[index] for shape in shapes], dtype=object)):
            compared[index] = shapely.Polygon()
    shared = np.asarray(shapely.intersection(compared, shapes[1]))
    is_same = _agree(
        shapely.area(shared), [shapely.area(shape) for shape in shapes], options.metric, options.iou_threshold
    )
    indices = np.flatnonzero(~is_same & truncation_agrees(first, second) & ~shapely.is_empty(shared))
    both_saw = shapely.box(*intersections(first.tiles[indices], second.tiles[indices]).T)
    both, *parts = (
        shapely.area(shapely.intersection(shape[indices], both_saw)) for shape in (np.asarray(shared), *shapes)
    )
    is_same[indices] = _agree(both, parts, OverlapMetric.IOU, options.iou_threshold)
    return is_same


def are_same_lines(
    first: TileDetections,
    second: TileDetections,
    shapes: tuple[ObjectArray, ObjectArray],
    options: FeatureDistillationSeam,
    distance_px: float,
) -> Flags:
    """Return for each pair of lines whether they are one object, by the length of each that is near the other."""
    is_same = _agree_in_length(shapes, distance_px, options.metric, options.iou_threshold)
    indices = np.flatnonzero(~is_same & truncation_agrees(first, second))
    both_saw = shapely.box(*intersections(first.tiles[indices], second.tiles[indices]).T)
    parts = [np.asarray(shapely.intersection(shape[indices], both_saw)) for shape in shapes]
    is_same[indices] = _agree_in_length(parts, distance_px, OverlapMetric.IOU, options.iou_threshold)
    return is_same


def are_same_points(first: ObjectArray, second: ObjectArray, distance_px: float) -> Flags:
    """Return for each pair of points whether their distance is at most ``distance_px``."""
    flags: Flags = shapely.distance(first, second) <= distance_px
    return flags


def truncation_agrees(first: TileDetections, second: TileDetections) -> Flags:
    """Return for each pair whether each touches every edge of its tile that the other reaches beyond."""
    flags: Flags = ~(
        _reaches_beyond(first.boxes, second.tiles) & ~second.is_touching
        | _reaches_beyond(second.boxes, first.tiles) & ~first.is_touching
    ).any(axis=1)
    return flags


def are_fragments(views: TileDetections, others: TileDetections) -> Flags:
    """Return for each pair of one object whether the first shows less of it because its tile ends there.

    The other reaches beyond that tile by more than noise, or by less if its area is larger by more than noise.
    """
    is_larger = area(views.boxes) < FRAGMENT_SHARE * area(others.boxes)
    is_outreached = _reaches_beyond(others.boxes, views.tiles).any(axis=1)
    is_outreached |= is_larger & _reaches_beyond(others.boxes, views.tiles, 0.0).any(axis=1)
    flags: Flags = is_outreached & ~_reaches_beyond(views.boxes, others.tiles).any(axis=1)
    return flags


def _reaches_beyond(boxes: Floats, tiles: Floats, noise_px: float = EDGE_PX) -> Flags:
    flags: Flags = np.hstack([boxes[:, :2] < tiles[:, :2] - noise_px, boxes[:, 2:] > tiles[:, 2:] + noise_px])
    return flags


def _agree(shared: Floats, parts: Sequence[Floats], metric: OverlapMetric, threshold: float) -> Flags:
    """Compare the shared area of pairs with the smaller area (IOS) or with the area of the union (IOU)."""
    first, second = parts
    whole = np.minimum(first, second) if metric is OverlapMetric.IOS else first + second - shared
    flags: Flags = np.divide(shared, whole, out=np.zeros(len(whole)), where=whole > 0) > threshold
    return flags


def _agree_in_length(
    lines: Sequence[ObjectArray], distance_px: float, metric: OverlapMetric, threshold: float
) -> Flags:
    """Compare lines by the share of each that lies within ``distance_px`` of the other.

    IOS uses the share of the shorter line, IOU the smaller of both shares.
    """
    first, second = lines
    lengths = np.stack([shapely.length(first), shapely.length(second)])
    near = np.stack([_length_near(first, second, distance_px), _length_near(second, first, distance_px)])
    shares = np.divide(near, lengths, out=np.zeros_like(lengths), where=lengths > 0)
    if metric is OverlapMetric.IOS:
        share = np.where(lengths[0] <= lengths[1], shares[0], shares[1])
    else:
        share = shares.min(axis=0)
    flags: Flags = share > threshold
    return flags


def _length_near(lines: ObjectArray, others: ObjectArray, distance_px: float) -> Floats:
    near: Floats = shapely.length(shapely.intersection(lines, shapely.buffer(others, distance_px, quad_segs=4)))
    return near
