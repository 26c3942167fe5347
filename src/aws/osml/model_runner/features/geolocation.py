"""Turns detections of a tile into features of the image: moves them into the full image and locates them.

Numbers of all features of a tile are computed in one numpy call. Only dictionaries are handled one by one.
"""

from collections.abc import Sequence
from math import isnan

import numpy as np

from aws.osml.model_runner.common.pixel_ratio import ONE, PixelRatio
from aws.osml.model_runner.common.typing import ImageRegion
from aws.osml.model_runner.exceptions import FeatureError

from .best_class import set_flat_class
from .geolocation_grid import LocationGrid
from .geometry_arrays import FloatArray, GeometryArrays
from .image_geometry import IMAGE_BBOX, IMAGE_GEOMETRY, Geometry, find_image_geometry
from .properties import IMAGE_ID, INFERENCE_TIME, UNCUT, Feature, convert_deprecated_feature_properties
from .rfc7946 import bounds_of, crosses_antimeridian, cut, ring_areas, ring_order, wrapped

# Decimals of pixels, and the minimum for degrees in geometries (0.1 m): the GeoJSON library of earlier releases wrote
# as many. Pixels smaller than a metre need more: see ``decimals_of``.
POSITION_DECIMALS = 6
_ROUNDING_PX = 0.1
# Decimals of boxes and centres in degrees. 0.1 mm keeps all information and drops the noise of the last bits.
BOX_DECIMALS = 9

# The columns of a box that are its four corners (x, y), counterclockwise on the ground if north is up.
_CORNERS = np.array([[0, 1], [0, 3], [2, 3], [2, 1]])
_RING = [0, 1, 2, 3, 0]


def refine_features(
    features: Sequence[Feature],
    tile: ImageRegion,
    grid: LocationGrid | None,
    ratio: PixelRatio = ONE,
) -> list[Feature]:
    """Return the features of one tile, checked by ``check_features``, as new features of the image.

    Pixels move by the tile's origin, and are then scaled by ``ratio``. Positions in the tile are in model pixels, and
    positions of the new features in image pixels. A geometry in a deprecated property becomes ``imageGeometry``; the
    deprecated property stays relative to the tile.
    With a grid, ``geometry`` is the geometry on the ground, of the same type. Its positions are [longitude, latitude],
    with the elevation if the grid has heights. ``bbox`` is set if there is an ``imageBBox``. ``center_longitude`` and
    ``center_latitude`` locate the centroid in pixels. Without a grid, ``geometry`` is the model's.
    A geometry that crosses the antimeridian has the property ``UNCUT`` and is cut at delivery. ``class`` and ``score``
    are those of the best class, unless the model has set them. ``id`` is the first member, ``properties`` the last.

    Raises FeatureError if a feature has no image geometry.
    """
    if not features:
        return []
    offset = np.array([tile.origin.col, tile.origin.row], dtype=np.float64)
    refined = [_copied(feature) for feature in features]
    shaped = [feature for feature in refined if not _is_box_alone(feature)]
    boxed = [feature for feature in refined if feature["properties"].get(IMAGE_BBOX) is not None]
    if shaped:
        geometries = _move_geometries(shaped, offset, ratio)
        if grid is not None:
            _locate_shapes(shaped, geometries, grid)
    if boxed:
        # The smaller numbers come first.
        corners = np.array([feature["properties"][IMAGE_BBOX] for feature in boxed], dtype=np.float64).reshape(-1, 2, 2)
        boxes = rounded((np.sort(corners, axis=1) + offset) * ratio, POSITION_DECIMALS).reshape(-1, 4)
        for feature, box in zip(boxed, boxes.tolist(), strict=True):
            feature["properties"][IMAGE_BBOX] = box
        alone = [index for index, feature in enumerate(boxed) if _is_box_alone(feature)]
        if grid is not None and alone:
            _locate_boxes([boxed[index] for index in alone], boxes[alone], grid)
    for feature in refined:
        # ``text_stamp`` relies on the order, and these two properties are stored once for the whole tile.
        properties = feature["properties"] = feature.pop("properties")
        properties.pop(IMAGE_ID, None)
        properties.pop(INFERENCE_TIME, None)
    return refined


def _is_box_alone(feature: Feature) -> bool:
    """Return True if a feature has an ``imageBBox`` alone, as from most models. It takes a quicker way."""
    properties = feature["properties"]
    return properties.get(IMAGE_GEOMETRY) is None and properties.get(IMAGE_BBOX) is not None


def _copied(feature: Feature) -> Feature:
    copy = {**feature, "properties": dict(feature["properties"])}
    if "id" in copy:
        own_id = copy.pop("id")
        if type(own_id) in (str, int, float):
            copy = {"id": own_id, **copy}
    convert_deprecated_feature_properties(copy)
    set_flat_class(copy)
    return copy


def _move_geometries(features: Sequence[Feature], offset: FloatArray, ratio: PixelRatio) -> GeometryArrays:
    """Set ``imageGeometry`` in pixels of the image."""
    geometries = []
    for feature in features:
        geometry = find_image_geometry(feature["properties"])
        if geometry is None:
            raise FeatureError("a feature has no image geometry")
        geometries.append(geometry)
    in_tile = GeometryArrays.of(geometries)
    in_image = in_tile.moved_to(rounded((in_tile.positions + offset) * ratio, POSITION_DECIMALS))
    for feature, geometry in zip(features, in_image.geometries, strict=True):
        feature["properties"][IMAGE_GEOMETRY] = geometry
    return in_image


def _locate_shapes(features: Sequence[Feature], shapes: GeometryArrays, grid: LocationGrid) -> None:
    """Set the geometries on the ground from the geometries in pixels of the image.

    A feature with a position off the Earth gets the geometry None and no ``bbox``.
    """
    world = grid.locate(np.concatenate([shapes.positions, shapes.centroids()]))
    ground, centres = np.split(world, [len(shapes.positions)])
    ground = rounded(ground[:, : _dimensions(grid)], decimals_of(grid))
    ground = ground[ring_order(shapes, ground)]
    _set_geometries(features, shapes.with_positions(ground))
    _set_centres(features, centres[:, :2])
    is_inner = np.ones(len(ground), dtype=np.bool_)
    is_inner[np.concatenate([[0], shapes.ends[:-1]])] = False
    is_jump = is_inner & np.concatenate([[False], crosses_antimeridian(ground[:, 0])])
    extremes = shapes.extremes(ground)
    for feature, box in zip(features, extremes.tolist(), strict=True):
        if feature["properties"].get(IMAGE_BBOX) is not None:
            feature["bbox"] = box
    owners = shapes.owners[np.searchsorted(shapes.ends, np.flatnonzero(is_jump), side="right")]
    is_off_earth = np.isnan(extremes[:, 0])
    for index in np.flatnonzero(is_off_earth).tolist():
        features[index]["geometry"] = None
        features[index].pop("bbox", None)
    for feature in [features[owner] for owner in set(owners.tolist()) if not is_off_earth[owner]]:
        feature["properties"][UNCUT] = True
        if "bbox" in feature:
            feature["bbox"] = bounds_of(cut(feature["geometry"]))


def _locate_boxes(features: Sequence[Feature], boxes: FloatArray, grid: LocationGrid) -> None:
    """Set the geometries on the ground of features that have a box alone; ``boxes``: (n, 4), in pixels of the image.

    A feature with a corner off the Earth gets the geometry None and no ``bbox``.
    """
    corners = boxes[:, _CORNERS].reshape(-1, 2)
    world = grid.locate(np.concatenate([corners, (boxes[:, :2] + boxes[:, 2:]) / 2]))
    ground, centres = world[: len(corners), : _dimensions(grid)], world[len(corners) :, :2]
    rings = rounded(ground, decimals_of(grid)).reshape(len(boxes), 4, -1)[:, _RING]
    is_clockwise = ring_areas(rings.reshape(-1, rings.shape[2]), np.arange(1, len(boxes) + 1) * len(_RING)) < 0
    rings[is_clockwise] = rings[is_clockwise, ::-1]
    _set_geometries(features, [{"type": "Polygon", "coordinates": [ring]} for ring in rings.tolist()])
    _set_centres(features, centres)
    # Across the antimeridian west is greater than east (RFC 7946, 5.2).
    first = rings[:, :1, :1] * np.eye(1, rings.shape[2])
    around_first = rings[:, :4] - first
    around_first[..., 0] = wrapped(around_first[..., 0])
    low, high = (first[:, 0] + extreme for extreme in (around_first.min(axis=1), around_first.max(axis=1)))
    low[:, 0], high[:, 0] = wrapped(low[:, 0]), wrapped(high[:, 0])
    for feature, box in zip(features, rounded(np.hstack([low, high]), BOX_DECIMALS).tolist(), strict=True):
        feature["bbox"] = box
    is_off_earth = np.isnan(rings[..., 0]).any(axis=1)
    for index in np.flatnonzero(is_off_earth).tolist():
        features[index]["geometry"] = None
        del features[index]["bbox"]
    for index in np.flatnonzero(crosses_antimeridian(rings[..., 0]).any(axis=1) & ~is_off_earth).tolist():
        features[index]["properties"][UNCUT] = True


def decimals_of(grid: LocationGrid) -> int:
    """Return the number of decimals, the same for longitude and latitude, that resolves a tenth of a pixel."""
    if not 0.0 < grid.pixel_degrees < np.inf:
        return POSITION_DECIMALS
    return int(np.clip(np.ceil(-np.log10(_ROUNDING_PX * grid.pixel_degrees) - 1e-3), POSITION_DECIMALS, BOX_DECIMALS))


def _dimensions(grid: LocationGrid) -> int:
    return 3 if grid.has_heights else 2


def _set_geometries(features: Sequence[Feature], geometries: Sequence[Geometry]) -> None:
    for feature, geometry in zip(features, geometries, strict=True):
        feature["geometry"] = geometry


def _set_centres(features: Sequence[Feature], centres: FloatArray) -> None:
    for feature, (longitude, latitude) in zip(features, rounded(centres, BOX_DECIMALS).tolist(), strict=True):
        if isnan(longitude):
            continue
        feature["properties"]["center_longitude"] = longitude
        feature["properties"]["center_latitude"] = latitude


def rounded(values: FloatArray, decimals: int) -> FloatArray:
    """Return values rounded to decimals, without minus zero."""
    short: FloatArray = np.round(values, decimals)
    return short + 0.0
