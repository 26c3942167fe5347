"""One feature of the parts that several tiles saw: areas are united, lines are put end to end."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce

import numpy as np
import shapely
from numpy.typing import NDArray
from scipy.spatial import cKDTree
from shapely.geometry import LineString, mapping
from shapely.geometry.base import BaseGeometry

from .entanglement import is_entangled
from .feature_columns import Kind, place_of
from .geolocation import BOX_DECIMALS, POSITION_DECIMALS, rounded
from .geometry_arrays import GeometryArrays, IndexArray, ObjectArray
from .image_geometry import IMAGE_BBOX, IMAGE_GEOMETRY, find_image_geometry, geometry_paths
from .properties import UNCUT, Feature
from .rfc7946 import conformed, right_hand_order, ring_areas, wrapped
from .scored_boxes import Floats
from .tiled_features import shapes_of


def join_features(parts: Sequence[Feature], distance_px: float) -> Feature:
    """Return the first of the parts with the place of all: of areas, or of lines, in pixels and on the ground.

    Boxes make a box, areas their union. Lines that run together within ``distance_px`` count once. Points have no
    parts: the first is returned as it is. Where the parts' places on the ground do not follow those in pixels position
    by position, such as places that the model returned, ``geometry`` stays that of the first. Parts that are entangled
    with one another are not joined: the first is returned as it is.
    """
    kinds = {place_of(part)[0] for part in parts}
    if Kind.POINT in kinds:
        return parts[0]
    shapes = shapes_of(parts)
    if is_entangled(shapes):
        return parts[0]
    whole = _joined_lines(shapes, distance_px) if Kind.LINE in kinds else shapely.union_all(shapes)
    if kinds == {Kind.BOX}:
        whole = shapely.box(*shapely.bounds(whole))
    return _placed(parts, shapely.transform(whole, lambda xy: rounded(xy, POSITION_DECIMALS)))


def _joined_lines(lines: ObjectArray, distance_px: float) -> BaseGeometry:
    """Return the first line, lengthened by what of each other does not run along it."""
    whole: BaseGeometry = reduce(lambda found, line: _lengthened(found, line, distance_px), lines)
    return whole


def _lengthened(whole: BaseGeometry, line: BaseGeometry, distance_px: float) -> BaseGeometry:
    rest = shapely.get_parts(shapely.difference(line, shapely.buffer(whole, distance_px)))
    bridged = [_bridged(whole, part, distance_px) for part in rest if shapely.length(part) > distance_px]
    return shapely.line_merge(shapely.union_all([whole, *bridged])) if bridged else whole


def _bridged(whole: BaseGeometry, part: BaseGeometry, distance_px: float) -> BaseGeometry:
    """Return a part that begins and ends where the whole does, if an end of the whole is about as near as they say."""
    ends = shapely.get_coordinates(shapely.boundary(whole))
    coordinates = shapely.get_coordinates(part)
    if not len(ends):
        return part
    for place, insert_at in ((0, 0), (-1, len(coordinates))):
        distances = np.linalg.norm(ends - coordinates[place], axis=1)
        if distances.min() <= 2 * distance_px:
            coordinates = np.insert(coordinates, insert_at, ends[distances.argmin()], axis=0)
            break
    return LineString(coordinates)


def _placed(parts: Sequence[Feature], whole: BaseGeometry) -> Feature:
    first = parts[0]
    properties = dict(first["properties"])
    if properties.get(IMAGE_GEOMETRY) is not None or properties.get(IMAGE_BBOX) is None:
        properties[IMAGE_GEOMETRY] = _geojson(whole)
    if properties.get(IMAGE_BBOX) is not None:
        properties[IMAGE_BBOX] = list(whole.bounds)
    joined = {**first, "properties": properties}
    ground = _Ground.under(parts)
    if ground is not None:
        ground.locate(joined, whole)
    return joined


def _geojson(shape: BaseGeometry) -> dict[str, object]:
    """Return a GeoJSON geometry with lists for positions, as the other features have it."""
    return {"type": shape.geom_type, "coordinates": _lists(mapping(shape)["coordinates"])}


def _lists(nested: object) -> object:
    return [_lists(inner) for inner in nested] if isinstance(nested, tuple) else nested


@dataclass(frozen=True, eq=False)
class _Ground:
    """Where the pixels around some features lie: on the plane through all their positions, moved as the nearest is.

    So a position of a feature keeps its place, and one between two features lies between their places. Longitudes
    count from that of the first position on, across the antimeridian.
    """

    plane: NDArray[np.float64]
    centre: Floats
    residuals: Floats
    nearest: cKDTree
    decimals: int

    @classmethod
    def under(cls, features: Sequence[Feature]) -> "_Ground | None":
        pixels, places = [], []
        for feature in features:
            pixel, place = find_image_geometry(feature["properties"]), feature.get("geometry")
            if pixel is None or not place or "type" not in place:
                return None
            pixels.append(pixel)
            places += [position for path in geometry_paths(place) for position in path]
        arrays = GeometryArrays.of(pixels)
        if len(arrays.positions) != len(places) or {len(position) for position in places} not in ({2}, {3}):
            return None
        world = np.array(places, dtype=np.float64)
        world[:, 0] = world[0, 0] + wrapped(world[:, 0] - world[0, 0])
        fits = [cls._through(arrays.positions, world[order]) for order in _orders(arrays, world)]
        # The usual order, unless another fits far better.
        return min(fits, key=lambda fit: fit.worst) if fits[-1].worst < fits[0].worst / 4 else fits[0]

    @property
    def worst(self) -> float:
        """By how many degrees the plane is off at most."""
        return float(np.abs(self.residuals[:, :2]).max())

    @classmethod
    def _through(cls, xy: Floats, world: Floats) -> "_Ground":
        centre = xy.mean(axis=0)
        plane, *_ = np.linalg.lstsq(_with_one(xy - centre), world, rcond=None)
        decimals = next((n for n in range(POSITION_DECIMALS, BOX_DECIMALS) if _has_decimals(world, n)), BOX_DECIMALS)
        return cls(plane, centre, world - _with_one(xy - centre) @ plane, cKDTree(xy), decimals)

    def at(self, xy: Floats) -> Floats:
        """Return the places of (n, 2) pixels, as many numbers each as the features' own places have."""
        _, index = self.nearest.query(xy)
        places: Floats = _with_one(xy - self.centre) @ self.plane + self.residuals[index]
        return places

    def locate(self, feature: Feature, whole: BaseGeometry) -> None:
        """Set the feature's place on the ground to that of ``whole``, and what else it tells of it."""
        properties = feature["properties"]
        has_height = self.plane.shape[1] == 3
        shape = shapely.force_3d(whole) if has_height else whole
        places = rounded(_wrapped(self.at(shapely.get_coordinates(whole))), self.decimals)
        feature["geometry"] = _geojson(shapely.set_coordinates(shape, places))
        properties.pop(UNCUT, None)
        feature |= conformed(feature)
        if "center_longitude" in properties:
            centre = _wrapped(self.at(shapely.get_coordinates(shapely.centroid(whole))))[0, :2]
            longitude, latitude = rounded(centre, BOX_DECIMALS).tolist()
            properties |= {"center_longitude": longitude, "center_latitude": latitude}


def _orders(arrays: GeometryArrays, world: Floats) -> list[IndexArray]:
    """Return in which orders the places of (n,) pixels may be among ``world``; the usual one first.

    Rings are wound by the right-hand rule on the ground, so they run backwards there where their pixels run otherwise:
    as in images whose north is up, or as in those whose south is.
    """
    areas = ring_areas(arrays.positions, arrays.ends, are_degrees=False)
    on_ground = ring_areas(world, arrays.ends)[arrays.is_ring & arrays.is_outer]
    if not len(on_ground) or (on_ground < 0).any():
        return [np.arange(len(world))]
    return [right_hand_order(arrays, -areas), right_hand_order(arrays, areas)]


def _has_decimals(world: Floats, decimals: int) -> bool:
    return bool(np.allclose(np.round(world, decimals), world, rtol=0, atol=1e-11))


def _with_one(xy: Floats) -> Floats:
    return np.hstack([xy, np.ones((len(xy), 1))])


def _wrapped(places: Floats) -> Floats:
    return np.column_stack([wrapped(places[:, 0]), places[:, 1:]])
