"""The facts that merging and delivery need of each feature, in columns, so that its JSON need not be parsed."""

import math
from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .image_geometry import COLLECTION, Box, Geometry, feature_image_bounds, find_image_geometry, geometry_paths
from .scored_boxes import NO_BOX, BestClass, Indices, best_class

# The record of one feature. ``tile_blob`` stores records column by column.
RECORD = np.dtype(
    [
        ("box", "<f8", 4),
        ("score", "<f8"),
        ("category", "<u4"),
        ("kind", "i1"),
        ("own_end", "<u4"),
    ]
)


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
class FeatureColumns:
    """n features: a ``RECORD`` of each, and the ``iris`` that ``category`` indexes.

    ``box``: minx, miny, maxx, maxy in pixels of the image, NaN for a feature without an image geometry. ``score``: of
    the best class, or NaN. ``kind``: a ``Kind``. ``own_end``: see ``text_stamp.own_end``.
    """

    records: NDArray[np.void]
    iris: Sequence[str]

    @classmethod
    def of(cls, features: Iterable[Mapping[str, Any]], own_ends: Sequence[int] = ()) -> "FeatureColumns":
        """Return the columns of these features. Iterates once and keeps no feature."""
        kinds, boxes, scores, iris = array("b"), array("d"), array("d"), []
        for feature in features:
            kind, box = kind_and_box(feature)
            found = best_class(feature) or _NO_CLASS
            kinds.append(kind)
            boxes.extend(box)
            scores.append(found.score)
            iris.append(found.iri)
        numbers = {iri: number for number, iri in enumerate(dict.fromkeys(iris))}
        records = np.zeros(len(iris), RECORD)
        records["box"] = np.frombuffer(boxes, np.float64).reshape(-1, 4)
        records["score"] = scores
        records["category"] = [numbers[iri] for iri in iris]
        records["kind"] = kinds
        records["own_end"] = own_ends or 0
        return cls(records, list(numbers))

    @classmethod
    def joined(cls, parts: Sequence["FeatureColumns"]) -> "FeatureColumns":
        """Return the columns of all parts together, in order."""
        if len(parts) == 1:
            return parts[0]
        numbers: dict[str, int] = {}
        records = np.concatenate([np.zeros(0, RECORD), *(part.records for part in parts)])
        shared = [
            np.array([numbers.setdefault(iri, len(numbers)) for iri in part.iris], "<u4")[part.records["category"]]
            for part in parts
        ]
        records["category"] = np.concatenate([np.zeros(0, "<u4"), *shared])
        return cls(records, list(numbers))

    def take(self, indices: Indices) -> "FeatureColumns":
        """Return only these features, in this order, and only their iris."""
        records = self.records[indices]
        used, records["category"] = np.unique(records["category"], return_inverse=True)
        return FeatureColumns(records, [self.iris[number] for number in used.tolist()])

    def __len__(self) -> int:
        return len(self.records)


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
