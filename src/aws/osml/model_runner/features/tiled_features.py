"""The features of an image as arrays: what merging needs to know of each, and of the tile that it comes from."""

import math
from array import array
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

import numpy as np
import orjson
import shapely
from numpy.typing import NDArray
from shapely.geometry import shape

from aws.osml.model_runner.common.typing import ImageRegion

from .box_pairs import with_area
from .geometry_arrays import ObjectArray
from .image_geometry import COLLECTION, Box, Geometry, feature_image_bounds, find_image_geometry, geometry_paths
from .properties import Feature
from .scored_boxes import NO_BOX, Floats, Indices, ScoredBoxes, best_class


class Kind(IntEnum):
    """By what features are compared. A box is an area that is all of its bounds."""

    BOX = 0
    AREA = 1
    LINE = 2
    POINT = 3


_KINDS = {
    "Point": Kind.POINT,
    "MultiPoint": Kind.POINT,
    "LineString": Kind.LINE,
    "MultiLineString": Kind.LINE,
    "Polygon": Kind.AREA,
    "MultiPolygon": Kind.AREA,
}


@dataclass(frozen=True, eq=False)
class TiledFeatures:
    """n features and the m tiles that they come from.

    ``kinds``: (n,) of ``Kind``. ``tiles``: (n,) rows of ``frames``; ``frames``: (m, 4) minx, miny, maxx, maxy of the
    tiles in pixels of the image. ``shapes`` returns the shapes in pixels of the features with these indices: polygons
    that are valid and have an area, lines, points. It is asked for few, and never for those of boxes alone.
    """

    scored: ScoredBoxes
    kinds: NDArray[np.int8]
    tiles: Indices
    frames: Floats
    shapes: Callable[[Indices], ObjectArray]

    @classmethod
    def of(
        cls, tiles: Iterable[tuple[ImageRegion, Iterable[Feature]]], feature_at: Callable[[int], Feature]
    ) -> "TiledFeatures":
        """Return the arrays of the features of these tiles, in order; ``feature_at`` returns one of them again."""
        columns = _Columns()
        for bounds, features in tiles:
            columns.add_tile(bounds, features)
        return columns.to_features(lambda indices: shapes_of([feature_at(index) for index in indices.tolist()]))

    def take(self, indices: Indices) -> "TiledFeatures":
        """Return these features alone, in this order, with all tiles."""
        return TiledFeatures(
            self.scored.take(indices),
            self.kinds[indices],
            self.tiles[indices],
            self.frames,
            lambda chosen: self.shapes(indices[chosen]),
        )


@dataclass
class _Columns:
    """Grows by a feature at a time, in the few bytes that a number takes."""

    boxes: "array[float]" = field(default_factory=lambda: array("d"))
    scores: "array[float]" = field(default_factory=lambda: array("d"))
    categories: "array[int]" = field(default_factory=lambda: array("q"))
    kinds: "array[int]" = field(default_factory=lambda: array("b"))
    counts: list[int] = field(default_factory=list)
    frames: list[Box] = field(default_factory=list)
    numbers: dict[str, int] = field(default_factory=dict)

    def add_tile(self, tile: ImageRegion, features: Iterable[Feature]) -> None:
        before = len(self.kinds)
        for feature in features:
            kind, box = place_of(feature)
            self.kinds.append(kind)
            self.boxes.extend(box)
            found = best_class(feature)
            self.scores.append(found.score if found else math.nan)
            iri = found.iri if found else ""
            self.categories.append(self.numbers.setdefault(iri, len(self.numbers)))
        self.frames.append((tile.origin.col, tile.origin.row, tile.right, tile.bottom))
        self.counts.append(len(self.kinds) - before)

    def to_features(self, shapes: Callable[[Indices], ObjectArray]) -> TiledFeatures:
        return TiledFeatures(
            ScoredBoxes(
                np.frombuffer(self.boxes, dtype=np.float64).reshape(-1, 4),
                np.frombuffer(self.scores, dtype=np.float64),
                np.frombuffer(self.categories, dtype=np.int64),
            ),
            np.frombuffer(self.kinds, dtype=np.int8),
            np.repeat(np.arange(len(self.counts)), self.counts),
            np.array(self.frames, dtype=np.float64).reshape(-1, 4),
            shapes,
        )


def place_of(feature: Mapping[str, Any]) -> tuple[Kind, Box]:
    """Return by what a feature is compared, and its bounds in pixels; a box of NaN where it has no usable place."""
    try:
        return _usual_place(feature["properties"])
    except (AttributeError, KeyError, TypeError, ValueError):
        # Anything out of the ordinary takes the way on which everything is checked.
        box = feature_image_bounds(feature)
    if box is None:
        return Kind.BOX, NO_BOX
    geometry = find_image_geometry(feature["properties"])
    return (_kind_of(geometry) if geometry else Kind.BOX), box


def _usual_place(properties: Mapping[str, Any]) -> tuple[Kind, Box]:
    """Return the place of a feature that has a box, or a polygon of one ring; any error means that it has neither."""
    geometry = properties.get("imageGeometry")
    if geometry is None:
        left, top, right, bottom = map(float, properties["imageBBox"])
        return Kind.BOX, (min(left, right), min(top, bottom), max(left, right), max(top, bottom))
    if geometry["type"] != "Polygon":
        raise ValueError(geometry["type"])
    (ring,) = geometry["coordinates"]
    xs, ys, *_ = zip(*ring, strict=True)
    box = float(min(xs)), float(min(ys)), float(max(xs)), float(max(ys))
    return (Kind.BOX if is_rectangle(xs, ys) else Kind.AREA), box


def is_rectangle(xs: Sequence[float], ys: Sequence[float]) -> bool:
    """Tell whether a closed ring is an upright rectangle, begun at any corner in either direction."""
    if len(xs) != 5 or xs[0] != xs[4] or ys[0] != ys[4]:
        return False
    return (xs[0] == xs[1] and ys[1] == ys[2] and xs[2] == xs[3] and ys[3] == ys[0]) or (
        ys[0] == ys[1] and xs[1] == xs[2] and ys[2] == ys[3] and xs[3] == xs[0]
    )


def _kind_of(geometry: Geometry) -> Kind:
    """Return the kind of a geometry; of a collection, that of its members of the highest dimension."""
    if geometry["type"] == COLLECTION:
        return min((_kind_of(member) for member in geometry["geometries"]), default=Kind.POINT)
    kind = _KINDS[geometry["type"]]
    if kind is not Kind.AREA:
        return kind
    paths = geometry_paths(geometry)
    xs, ys = zip(*(position[:2] for position in paths[0]), strict=True)
    return Kind.BOX if len(paths) == 1 and is_rectangle(xs, ys) else kind


def shapes_of(features: Sequence[Mapping[str, Any]]) -> ObjectArray:
    """Return the places of features in pixels as shapes that can be compared.

    What crosses itself is made valid, what has no area gets that of its bounds, several points become their centre;
    of a collection only the members of the highest dimension count.
    """
    geometries = [find_image_geometry(feature["properties"]) for feature in features]
    texts = [orjson.dumps(geometry) for geometry in geometries]
    shapes = np.asarray(shapely.from_geojson(texts, on_invalid="ignore"), dtype=object).reshape(-1)
    for index in np.flatnonzero(shapely.is_missing(shapes)).tolist():
        shapes[index] = shape(geometries[index])  # it closes rings that models leave open
    return comparable(np.asarray(shapely.force_2d(shapes)))


def comparable(shapes: ObjectArray) -> ObjectArray:
    """Return shapes fit to be compared; see ``shapes_of``."""
    sound = np.where(shapely.is_valid(shapes), shapes, shapely.make_valid(shapes))
    for index in np.flatnonzero(shapely.get_type_id(sound) == shapely.GeometryType.GEOMETRYCOLLECTION).tolist():
        sound[index] = _largest_dimension(sound[index])
    is_flat = (shapely.get_dimensions(shapes) == 2) & (shapely.area(sound) == 0)
    sound[is_flat] = shapely.box(*with_area(shapely.bounds(shapes[is_flat])).T)
    is_place = shapely.get_dimensions(sound) == 0
    sound[is_place] = shapely.centroid(sound[is_place])
    return sound


def _largest_dimension(collection: shapely.Geometry) -> shapely.Geometry:
    parts = shapely.get_parts(collection)
    dimensions = shapely.get_dimensions(parts)
    return shapely.union_all(parts[dimensions == dimensions.max()])
