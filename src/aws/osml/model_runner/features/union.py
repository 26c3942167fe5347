"""Joins the parts of one object that several tiles cut: the union of areas, lines end to end."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import shapely
from numpy.typing import NDArray
from scipy.spatial import cKDTree
from shapely.geometry import LineString, mapping
from shapely.geometry.base import BaseGeometry

from .detections import Floats, Kind, kind_and_box
from .entanglement import is_entangled
from .geolocation import BOX_DECIMALS, POSITION_DECIMALS, rounded
from .geometry_arrays import GeometryArrays, IndexArray, ObjectArray
from .image_geometry import IMAGE_BBOX, IMAGE_GEOMETRY, find_image_geometry, geometry_paths
from .properties import UNCUT, Feature
from .rfc7946 import conformed, lists_of, right_hand_order, ring_areas, wrapped
from .tiled_features import shapes_of


def join_features(parts: Sequence[Feature], distance_px: float) -> Feature:
    """Return the first part with the joined geometry of all parts, in pixels and on the ground.

    Boxes become their common box, areas their union. Lines that run within ``distance_px`` of each other count once.
    Points and entangled parts are not joined: the first is returned unchanged. If positions on the ground do not
    correspond to positions in pixels, as in geometries from the model, ``geometry`` stays that of the first part.
    """
    kinds = {kind_and_box(part)[0] for part in parts}
    if Kind.POINT in kinds:
        return parts[0]
    shapes = shapes_of(parts)
    if is_entangled(shapes):
        return parts[0]
    whole = _join_lines(shapes, distance_px) if Kind.LINE in kinds else shapely.union_all(shapes)
    if kinds == {Kind.BOX}:
        whole = shapely.box(*shapely.bounds(whole))
    whole = shapely.transform(whole, lambda xy: rounded(xy, POSITION_DECIMALS))
    first = parts[0]
    properties = dict(first["properties"])
    if properties.get(IMAGE_GEOMETRY) is not None or properties.get(IMAGE_BBOX) is None:
        properties[IMAGE_GEOMETRY] = _geojson(whole)
    if properties.get(IMAGE_BBOX) is not None:
        properties[IMAGE_BBOX] = list(whole.bounds)
    joined = {**first, "properties": properties}
    ground = _LocalFit.through(parts)
    if ground is not None:
        ground.locate(joined, whole)
    return joined


def _join_lines(lines: ObjectArray, distance_px: float) -> BaseGeometry:
    """Return the first line, extended by the parts of the other lines that do not run along it."""
    whole: BaseGeometry = lines[0]
    for line in lines[1:]:
        rest = shapely.get_parts(shapely.difference(line, shapely.buffer(whole, distance_px)))
        parts = [part for part in rest if shapely.length(part) > distance_px]
        ends = shapely.get_coordinates(shapely.boundary(whole))
        if len(ends):
            parts = [_bridged(part, ends, distance_px) for part in parts]
        if parts:
            whole = shapely.line_merge(shapely.union_all([whole, *parts]))
    return whole


def _bridged(part: BaseGeometry, ends: Floats, distance_px: float) -> BaseGeometry:
    """Return a part extended to the nearest of (n, 2) ``ends``, if that is within twice the distance."""
    coordinates = shapely.get_coordinates(part)
    for end, insert_at in ((0, 0), (-1, len(coordinates))):
        distances = np.linalg.norm(ends - coordinates[end], axis=1)
        if distances.min() <= 2 * distance_px:
            coordinates = np.insert(coordinates, insert_at, ends[distances.argmin()], axis=0)
            break
    return LineString(coordinates)


def _geojson(shape: BaseGeometry) -> dict[str, object]:
    """Return a GeoJSON geometry with lists for positions, as in all other features."""
    return {"type": shape.geom_type, "coordinates": lists_of(mapping(shape)["coordinates"])}


@dataclass(frozen=True, eq=False)
class _LocalFit:
    """Georeference around some features: an affine fit to their positions, plus the residual of the nearest position.

    So each position of a feature keeps its position on the ground, and a pixel between features lies between them.
    Longitudes are continuous across the antimeridian.
    """

    plane: NDArray[np.float64]
    centre: Floats
    residuals: Floats
    nearest: cKDTree
    decimals: int

    @classmethod
    def through(cls, features: Sequence[Feature]) -> "_LocalFit | None":
        """Return the fit, or None if positions in pixels and on the ground do not correspond."""
        in_pixels, positions = [], []
        for feature in features:
            pixels, ground = find_image_geometry(feature["properties"]), feature.get("geometry")
            if pixels is None or not ground or "type" not in ground:
                return None
            in_pixels.append(pixels)
            positions += [position for path in geometry_paths(ground) for position in path]
        arrays = GeometryArrays.of(in_pixels)
        if len(arrays.positions) != len(positions) or {len(position) for position in positions} not in ({2}, {3}):
            return None
        world = np.array(positions, dtype=np.float64)
        world[:, 0] = world[0, 0] + wrapped(world[:, 0] - world[0, 0])
        fits = [cls._fitted(arrays.positions, world[order]) for order in _orders(arrays, world)]
        # The first order is the usual one. Another has to fit far better.
        return fits[-1] if fits[-1].max_error < fits[0].max_error / 4 else fits[0]

    @property
    def max_error(self) -> float:
        """The largest residual of the affine fit, in degrees."""
        return float(np.abs(self.residuals[:, :2]).max())

    @classmethod
    def _fitted(cls, xy: Floats, world: Floats) -> "_LocalFit":
        centre = xy.mean(axis=0)
        plane, *_ = np.linalg.lstsq(_with_one(xy - centre), world, rcond=None)
        decimals = POSITION_DECIMALS
        while decimals < BOX_DECIMALS and not np.allclose(np.round(world, decimals), world, rtol=0, atol=1e-11):
            decimals += 1
        return cls(plane, centre, world - _with_one(xy - centre) @ plane, cKDTree(xy), decimals)

    def at(self, xy: Floats) -> Floats:
        """Return the positions of (n, 2) pixels on the ground, with an elevation if the features have one."""
        _, index = self.nearest.query(xy)
        positions: Floats = _with_one(xy - self.centre) @ self.plane + self.residuals[index]
        return positions

    def locate(self, feature: Feature, whole: BaseGeometry) -> None:
        """Set ``geometry``, ``bbox`` and centre of the feature from ``whole``, which is in pixels."""
        properties = feature["properties"]
        has_height = self.plane.shape[1] == 3
        shape = shapely.force_3d(whole) if has_height else whole
        positions = rounded(_wrapped(self.at(shapely.get_coordinates(whole))), self.decimals)
        feature["geometry"] = _geojson(shapely.set_coordinates(shape, positions))
        properties.pop(UNCUT, None)
        feature |= conformed(feature)
        if "center_longitude" in properties:
            centre = _wrapped(self.at(shapely.get_coordinates(shapely.centroid(whole))))[0, :2]
            longitude, latitude = rounded(centre, BOX_DECIMALS).tolist()
            properties |= {"center_longitude": longitude, "center_latitude": latitude}


def _orders(arrays: GeometryArrays, world: Floats) -> list[IndexArray]:
    """Return the possible orders of ``world`` that correspond to the positions in pixels, the usual order first.

    Rings on the ground follow the right-hand rule, so rings in pixels may run the other way. It depends on the image,
    whether north or south is up, which rings do.
    """
    areas = ring_areas(arrays.positions, arrays.ends, are_degrees=False)
    on_ground = ring_areas(world, arrays.ends)[arrays.is_ring & arrays.is_outer]
    if not len(on_ground) or (on_ground < 0).any():
        return [np.arange(len(world))]
    return [right_hand_order(arrays, -areas), right_hand_order(arrays, areas)]


def _with_one(xy: Floats) -> Floats:
    return np.hstack([xy, np.ones((len(xy), 1))])


def _wrapped(positions: Floats) -> Floats:
    return np.column_stack([wrapped(positions[:, 0]), positions[:, 1:]])
