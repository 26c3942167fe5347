"""The features of an image, and their tiles, as arrays for merging."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import orjson
import shapely
from shapely.geometry import shape

from aws.osml.model_runner.common.typing import ImageRegion

from .box_pairs import with_area
from .detections import Detections, Floats, Indices, Kind
from .entanglement import FEW_CORNERS, coarse, is_entangled
from .geometry_arrays import ObjectArray
from .image_geometry import find_image_geometry
from .properties import Feature
from .tile_spans import TileSpans, bounds_of_tiles

# Work of comparing a polygon, in units of a box: a constant, plus one per so many bytes of its text.
SHAPE_WEIGHT = 50
BYTES_PER_WEIGHT = 64


@dataclass(frozen=True, eq=False)
class TiledFeatures:
    """n features and their m tiles.

    ``tiles``: (n,) row indices of ``tile_bounds``. ``tile_bounds``: (m, 4) minx, miny,
    maxx, maxy of the tiles in pixels of the image. ``shapes`` returns the shapes in pixels of the features with these
    indices: lines, points, and valid polygons with an area. It is called only for features of candidate pairs that are
    not both boxes. ``plan``: the spans of all tiles of the image, if ``tile_bounds`` does not have all; see ``spans``.
    ``sizes``: (n,) the bytes of each feature's JSON, if known.
    """

    detections: Detections
    tiles: Indices
    tile_bounds: Floats
    shapes: Callable[[Indices], ObjectArray]
    plan: TileSpans | None = None
    sizes: Indices | None = None

    @cached_property
    def weights(self) -> Floats:
        """(n,) the work of comparing each feature: 1 for a box; for others it grows with their text."""
        sizes = np.zeros(len(self.detections)) if self.sizes is None else self.sizes
        weights: Floats = np.where(self.detections.kinds == Kind.BOX, 1.0, SHAPE_WEIGHT + sizes // BYTES_PER_WEIGHT)
        return weights

    @cached_property
    def spans(self) -> TileSpans:
        """The spans of the plan, or of ``tile_bounds`` if these are all tiles."""
        return self.plan or TileSpans.of(self.tile_bounds)

    @classmethod
    def of(
        cls, tiles: Iterable[tuple[ImageRegion, Iterable[Feature]]], feature_at: Callable[[int], Feature]
    ) -> "TiledFeatures":
        """Return the arrays of the features of these tiles, in order; ``feature_at`` returns a feature by its index."""
        return cls.joined([(bounds, Detections.of(features)) for bounds, features in tiles], feature_at)

    @classmethod
    def joined(
        cls, tiles: Sequence[tuple[ImageRegion, Detections]], feature_at: Callable[[int], Feature]
    ) -> "TiledFeatures":
        """Return the arrays of the features of these tiles, in order; ``feature_at`` returns a feature by its index."""
        return cls(
            Detections.joined([detections for _, detections in tiles]),
            np.repeat(np.arange(len(tiles)), [len(detections) for _, detections in tiles]),
            bounds_of_tiles(tile for tile, _ in tiles),
            lambda indices: shapes_of([feature_at(index) for index in indices.tolist()]),
        )

    def take(self, indices: Indices) -> "TiledFeatures":
        """Return only these features, in this order, with all tiles."""
        return TiledFeatures(
            self.detections.take(indices),
            self.tiles[indices],
            self.tile_bounds,
            lambda chosen: self.shapes(indices[chosen]),
            self.spans,
            None if self.sizes is None else self.sizes[indices],
        )


def shapes_of(features: Sequence[Mapping[str, Any]]) -> ObjectArray:
    """Return the image geometries of features as shapes that can be compared.

    A shape that crosses itself is made valid, or coarse if it does so too often. A polygon without an area becomes the
    box of its bounds. Several points become their centroid. A collection is reduced to its members of the highest
    dimension.
    """
    geometries = [find_image_geometry(feature["properties"]) for feature in features]
    texts = [orjson.dumps(geometry) for geometry in geometries]
    shapes = np.asarray(shapely.from_geojson(texts, on_invalid="ignore"), dtype=object).reshape(-1)
    for index in np.flatnonzero(shapely.is_missing(shapes)).tolist():
        shapes[index] = shape(geometries[index])  # closes rings that the model left open
    return comparable(np.asarray(shapely.force_2d(shapes)))


def comparable(shapes: ObjectArray) -> ObjectArray:
    """Return shapes fit to be compared; see ``shapes_of``."""
    is_valid = shapely.is_valid(shapes)
    is_doubtful = ~is_valid | (shapely.get_dimensions(shapes) == 1)
    for index in np.flatnonzero(is_doubtful & (shapely.get_num_coordinates(shapes) > FEW_CORNERS)).tolist():
        if is_entangled(shapes[index : index + 1]):
            shapes[index], is_valid[index] = coarse(shapes[index]), True
    sound = shapes.copy()
    sound[~is_valid] = shapely.make_valid(shapes[~is_valid])
    for index in np.flatnonzero(shapely.get_type_id(sound) == shapely.GeometryType.GEOMETRYCOLLECTION).tolist():
        parts = shapely.get_parts(sound[index])
        dimensions = shapely.get_dimensions(parts)
        sound[index] = shapely.union_all(parts[dimensions == dimensions.max()])
    is_flat = (shapely.get_dimensions(shapes) == 2) & (shapely.area(sound) == 0)
    sound[is_flat] = shapely.box(*with_area(shapely.bounds(shapes[is_flat])).T)
    is_point = shapely.get_dimensions(sound) == 0
    sound[is_point] = shapely.centroid(sound[is_point])
    return sound
