"""The features of an image as arrays: what merging needs to know of each, and of the tile that it comes from."""

import math
from array import array
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
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
from .scored_boxes import NO_BOX, BestClass, Floats, Indices, ScoredBoxes, best_class


class Kind(IntEnum):
    """By what features are compared. A box is an area that is all of its bounds."""

    BOX = 0
    AREA = 1
    LINE = 2
    POINT = 3


_BOX = Kind.BOX  # what most features are; a member of an enumeration is looked up slowly
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
        return cls.joined([TileColumns.of(bounds, features) for bounds, features in tiles], feature_at)

    @classmethod
    def joined(cls, tiles: Sequence["TileColumns"], feature_at: Callable[[int], Feature]) -> "TiledFeatures":
        """Return the arrays of the features of these tiles, in order; ``feature_at`` returns one of them again."""
        numbers: dict[str, int] = {}
        shared = [np.array([numbers.setdefault(iri, len(numbers)) for iri in tile.iris], np.int64) for tile in tiles]
        scored = ScoredBoxes(
            np.concatenate([np.zeros((0, 4)), *(tile.scored.boxes for tile in tiles)]),
            np.concatenate([np.zeros(0), *(tile.scored.scores for tile in tiles)]),
            np.concatenate(
                [
                    np.zeros(0, np.int64),
                    *(names[tile.scored.categories] for names, tile in zip(shared, tiles, strict=True)),
                ]
            ),
        )
        return cls(
            scored,
            np.concatenate([np.zeros(0, np.int8), *(tile.kinds for tile in tiles)]),
            np.repeat(np.arange(len(tiles)), [len(tile.kinds) for tile in tiles]),
            np.array([tile.frame for tile in tiles], dtype=np.float64).reshape(-1, 4),
            lambda indices: shapes_of([feature_at(index) for index in indices.tolist()]),
        )

    def take(self, indices: Indices) -> "TiledFeatures":
        """Return these features alone, in this order, with all tiles."""
        return TiledFeatures(
            self.scored.take(indices),
            self.kinds[indices],
            self.tiles[indices],
            self.frames,
            lambda chosen: self.shapes(indices[chosen]),
        )


@dataclass(frozen=True, eq=False)
class TileColumns:
    """The features of one tile, as ``TiledFeatures`` has them; ``iris`` names its categories, from 0 on."""

    frame: Box
    scored: ScoredBoxes
    kinds: NDArray[np.int8]
    iris: Sequence[str]

    @classmethod
    def of(cls, tile: ImageRegion, features: Iterable[Feature]) -> "TileColumns":
        """Return what these features are; each is asked for once, and let go before the next."""
        kinds, boxes, scores, iris = array("b"), array("d"), array("d"), []
        for feature in features:
            kind, box = place_of(feature)
            found = best_class(feature) or _NO_CLASS
            kinds.append(kind)
            boxes.extend(box)
            scores.append(found.score)
            iris.append(found.iri)
        numbers = {iri: number for number, iri in enumerate(dict.fromkeys(iris))}
        scored = ScoredBoxes(
            np.frombuffer(boxes, np.float64).reshape(-1, 4),
            np.frombuffer(scores, np.float64),
            np.array([numbers[iri] for iri in iris], np.int64),
        )
        frame = (tile.origin.col, tile.origin.row, tile.right, tile.bottom)
        return cls(frame, scored, np.frombuffer(kinds, np.int8), list(numbers))


_NO_CLASS = BestClass(-1, "", math.nan)


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
    """Tell whether a closed ring is an upright rectangle, begun at any corner in either direction."""
    if len(ring) != 5:
        return False
    a, b, c, d, last = ring
    if a[0] != last[0] or a[1] != last[1]:
        return False
    return (a[0] == b[0] and b[1] == c[1] and c[0] == d[0] and d[1] == a[1]) or (
        a[1] == b[1] and b[0] == c[0] and c[1] == d[1] and d[0] == a[0]
    )


def _kind_of(geometry: Geometry) -> Kind:
    """Return the kind of a geometry; of a collection, that of its members of the highest dimension."""
    if geometry["type"] == COLLECTION:
        return min((_kind_of(member) for member in geometry["geometries"]), default=Kind.POINT)
    kind = _KINDS[geometry["type"]]
    if kind is not Kind.AREA:
        return kind
    paths = geometry_paths(geometry)
    return Kind.BOX if len(paths) == 1 and is_rectangle(paths[0]) else kind


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
