"""Detections as parallel arrays: the facts of each feature that merging and delivery need, without its JSON.

The arrays are made once from the model's response, stored with the tile, and merged. Orders of detections do not depend
on the order in which they come.
"""

import math
from array import array
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from .best_class import BestClass, best_class
from .image_geometry import COLLECTION, Box, Geometry, feature_image_bounds, find_image_geometry, geometry_paths
from .properties import Feature

Floats = NDArray[np.float64]
Indices = NDArray[np.intp]

NO_BOX = (math.nan, math.nan, math.nan, math.nan)


class Kind(IntEnum):
    """How features are compared. A box is an area that fills its bounds."""

    BOX = 0
    AREA = 1
    LINE = 2
    POINT = 3


_BOX = Kind.BOX  # the kind of most features; a lookup in an enumeration is slow
_KINDS = {
    "Point": Kind.POINT,
    "MultiPoint": Kind.POINT,
    "LineString": Kind.LINE,
    "MultiLineString": Kind.LINE,
    "Polygon": Kind.AREA,
    "MultiPolygon": Kind.AREA,
}


@dataclass(frozen=True, eq=False)
class Detections:
    """n detections.

    ``boxes``: (n, 4) minx, miny, maxx, maxy in pixels of the image; NaN for a feature without an image geometry.
    ``scores``: (n,) the score of the best class; NaN for a feature without a score. ``categories``: (n,) the index of
    its iri in ``iris``; all features without classes share one. ``kinds``: (n,) of ``Kind``. ``own_ends``: (n,) see
    ``text_stamp.own_end``.
    """

    boxes: Floats
    scores: Floats
    categories: Indices
    kinds: NDArray[np.int8]
    own_ends: NDArray[np.uint32]
    iris: Sequence[str]

    @classmethod
    def of(
        cls,
        features: Iterable[Mapping[str, Any]],
        own_ends: Sequence[int] = (),
        locate: "Callable[[Mapping[str, Any]], tuple[Kind, Box]] | None" = None,
    ) -> "Detections":
        """Return the arrays of these features. Iterates once and keeps no feature.

        ``locate`` returns a feature's kind and box; without it the features' properties must be valid.
        """
        kinds, boxes, scores, iris = array("b"), array("d"), array("d"), []
        for feature in features:
            kind, box = (locate or kind_and_box)(feature)
            found = best_class(feature) or _NO_CLASS
            kinds.append(kind)
            boxes.extend(box)
            scores.append(found.score)
            iris.append(found.iri)
        numbers = {iri: number for number, iri in enumerate(sorted(set(iris)))}
        return cls(
            np.array(boxes).reshape(-1, 4),
            np.array(scores),
            np.fromiter((numbers[iri] for iri in iris), np.intp, len(iris)),
            np.array(kinds, np.int8),
            np.array(own_ends, np.uint32) if own_ends else np.zeros(len(iris), np.uint32),
            list(numbers),
        )

    @classmethod
    def joined(cls, parts: Sequence["Detections"]) -> "Detections":
        """Return the detections of all parts together, in order."""
        if len(parts) == 1:
            return parts[0]
        numbers: dict[str, int] = {}
        shared = [
            np.array([numbers.setdefault(iri, len(numbers)) for iri in part.iris], np.intp)[part.categories]
            for part in parts
        ]
        return cls(
            np.concatenate([np.zeros((0, 4)), *(part.boxes for part in parts)]),
            np.concatenate([np.zeros(0), *(part.scores for part in parts)]),
            np.concatenate([np.zeros(0, np.intp), *shared]),
            np.concatenate([np.zeros(0, np.int8), *(part.kinds for part in parts)]),
            np.concatenate([np.zeros(0, np.uint32), *(part.own_ends for part in parts)]),
            list(numbers),
        )

    def take(self, indices: Indices) -> "Detections":
        """Return only these detections, in this order, and only their iris."""
        used, categories = np.unique(self.categories[indices], return_inverse=True)
        return Detections(
            self.boxes[indices],
            self.scores[indices],
            categories,
            self.kinds[indices],
            self.own_ends[indices],
            [self.iris[number] for number in used.tolist()],
        )

    def __len__(self) -> int:
        return len(self.scores)


_NO_CLASS = BestClass(-1, "", math.nan)


def kind_and_box(feature: Mapping[str, Any]) -> tuple[Kind, Box]:
    """Return a feature's kind and its bounds in pixels; a box of NaN if its image geometry is not valid."""
    try:
        return _usual_kind_and_box(feature["properties"])
    except (AttributeError, KeyError, TypeError, ValueError):
        # All other features take the slower way, which checks everything.
        box = feature_image_bounds(feature)
    if box is None:
        return Kind.BOX, NO_BOX
    geometry = find_image_geometry(feature["properties"])
    return (_kind_of(geometry) if geometry else Kind.BOX), box


def checked_box(feature: Mapping[str, Any]) -> tuple[Kind, Box]:
    """Return the bounds in pixels of a feature whose properties may be anything, as a box; NaN if none are valid."""
    return Kind.BOX, feature_image_bounds(feature) or NO_BOX


def _usual_kind_and_box(properties: Mapping[str, Any]) -> tuple[Kind, Box]:
    """Return kind and bounds of a box or a polygon of one ring. Any error means that the feature has neither."""
    geometry = properties.get("imageGeometry")
    if geometry is None:
        return _BOX, _box_between(*properties["imageBBox"])
    if geometry["type"] != "Polygon":
        raise ValueError(geometry["type"])
    (ring,) = geometry["coordinates"]
    if is_rectangle(ring):
        return _BOX, _box_between(*ring[0][:2], *ring[2][:2])
    xs, ys, *_ = zip(*ring, strict=True)
    return Kind.AREA, (float(min(xs)), float(min(ys)), float(max(xs)), float(max(ys)))


def _box_between(x0: float, y0: float, x1: float, y1: float) -> Box:
    """Return the box of two opposite corners."""
    left, right = (x0, x1) if x0 < x1 else (x1, x0)
    top, bottom = (y0, y1) if y0 < y1 else (y1, y0)
    return float(left), float(top), float(right), float(bottom)


def is_rectangle(ring: Sequence[Sequence[float]]) -> bool:
    """Return True for a closed ring that is an axis-aligned rectangle, from any corner in either direction."""
    if len(ring) != 5:
        return False
    a, b, c, d, last = ring
    if a[0] != last[0] or a[1] != last[1]:
        return False
    return (a[0] == b[0] and b[1] == c[1] and c[0] == d[0] and d[1] == a[1]) or (
        a[1] == b[1] and b[0] == c[0] and c[1] == d[1] and d[0] == a[0]
    )


def _kind_of(geometry: Geometry) -> Kind:
    """Return the kind of a geometry. A collection has the kind of its member of the highest dimension."""
    if geometry["type"] == COLLECTION:
        return min((_kind_of(member) for member in geometry["geometries"]), default=Kind.POINT)
    kind = _KINDS[geometry["type"]]
    if kind is not Kind.AREA:
        return kind
    paths = geometry_paths(geometry)
    return Kind.BOX if len(paths) == 1 and is_rectangle(paths[0]) else kind


def score_order(detections: Detections) -> Indices:
    """Return the indices of detections by falling score, then box, then category, then list order.

    Features without a score come last.
    """
    order: Indices = np.lexsort(_keys(detections))
    return order


def canonical_order(features: Sequence[Feature], detections: Detections) -> Indices:
    """Return the order of ``score_order``, with ties broken by the content of the features.

    So the order does not depend on the list: two features can only be swapped if they are equal in every part.
    """
    keys, order = _keys(detections), score_order(detections)
    is_tie = (keys[:, order[1:]] == keys[:, order[:-1]]).all(axis=0)
    edges = np.diff(np.concatenate([[False], is_tie, [False]]).astype(np.int8))
    starts, ends = np.flatnonzero(edges == 1), np.flatnonzero(edges == -1) + 1
    for start, end in zip(starts.tolist(), ends.tolist(), strict=True):
        # Equal keys mean equal content. The id comes before all other members.
        order[start:end] = sorted(
            order[start:end],
            key=lambda index: (_canonical_json(features[index].get("id")), _canonical_json(features[index])),
        )
    return order


def _keys(detections: Detections) -> Floats:
    minx, miny, maxx, maxy = np.nan_to_num(detections.boxes, nan=np.inf).T
    falling = np.where(np.isnan(detections.scores), np.inf, -detections.scores)
    return np.stack([detections.categories, maxy, maxx, miny, minx, falling])


def _canonical_json(value: object) -> bytes:
    options = orjson.OPT_SORT_KEYS | orjson.OPT_NON_STR_KEYS | orjson.OPT_SERIALIZE_NUMPY
    return orjson.dumps(value, default=repr, option=options)
