"""From detections in a tile to features of the image: offset into the full image, and located on the ground.

All features of a tile go through numpy together; only taking their dictionaries apart and putting them together
again is done one by one.
"""

from collections.abc import Sequence
from math import isnan

import numpy as np

from aws.osml.model_runner.common.typing import ImageRegion
from aws.osml.model_runner.exceptions import FeatureError

from .geometry_arrays import FloatArray, GeometryArrays
from .image_geometry import IMAGE_BBOX, IMAGE_GEOMETRY, Geometry, find_image_geometry
from .location_grid import LocationGrid
from .properties import IMAGE_ID, INFERENCE_TIME, Feature, convert_deprecated_feature_properties

# A millionth of a pixel, and of a degree (0.1 m) in geometries: what the GeoJSON library of earlier releases wrote.
POSITION_DECIMALS = 6
# Boxes and centres were never rounded: 0.1 mm keeps what they tell and drops the noise of the last bits.
BOX_DECIMALS = 9

# The columns of a box that make its four corners (x, y), counterclockwise on the ground where north is up.
_CORNERS = np.array([[0, 1], [0, 3], [2, 3], [2, 1]])
_RING = [0, 1, 2, 3, 0]


def refine_features(
    features: Sequence[Feature],
    tile: ImageRegion,
    grid: LocationGrid | None,
) -> list[Feature]:
    """Return the features of one tile, as ``check_features`` lets them pass, as features of the image.

    Pixels move by the tile's origin; a place in a deprecated property becomes ``imageGeometry``, the old property
    stays relative to the tile. With a grid, ``geometry`` is the place on the ground, of the same type, its positions
    [longitude, latitude, elevation]; ``bbox`` is set where there is an ``imageBBox``; and ``center_longitude`` and
    ``center_latitude`` are those of the centroid in pixels. Without one, ``geometry`` stays what the model said.
    Properties come last in each feature. The features passed in are not changed.

    Raises FeatureError where a feature has no place in pixels.
    """
    if not features:
        return []
    offset = np.array([tile.origin.col, tile.origin.row], dtype=np.float64)
    refined = [_copied(feature) for feature in features]
    shaped = [feature for feature in refined if not _is_box_alone(feature)]
    boxed = [feature for feature in refined if feature["properties"].get(IMAGE_BBOX) is not None]
    if shaped:
        places = _moved_places(shaped, offset)
        if grid is not None:
            _locate_shapes(shaped, places, grid)
    if boxed:
        boxes = _moved_boxes(boxed, offset)
        if grid is not None:
            _locate_boxes(boxed, boxes, grid)
    for feature in refined:
        _put_properties_last(feature)
    return refined


def _is_box_alone(feature: Feature) -> bool:
    """Tell whether nothing but its ``imageBBox`` says where a feature is: most models say no more, so it is fast."""
    properties = feature["properties"]
    return properties.get(IMAGE_GEOMETRY) is None and properties.get(IMAGE_BBOX) is not None


def _copied(feature: Feature) -> Feature:
    copy = {**feature, "properties": dict(feature["properties"])}
    convert_deprecated_feature_properties(copy)
    return copy


def _put_properties_last(feature: Feature) -> None:
    """Move the properties to the end, without those that are set for the whole tile: see ``text_stamp``."""
    properties = feature["properties"] = feature.pop("properties")
    properties.pop(IMAGE_ID, None)
    properties.pop(INFERENCE_TIME, None)


def _place(feature: Feature) -> Geometry:
    geometry = find_image_geometry(feature["properties"])
    if geometry is None:
        raise FeatureError("a feature has no place in pixels")
    return geometry


def _moved_places(features: Sequence[Feature], offset: FloatArray) -> GeometryArrays:
    """Write ``imageGeometry`` in pixels of the image."""
    found = GeometryArrays.of([_place(feature) for feature in features])
    places = found.with_places(rounded(found.positions + offset, POSITION_DECIMALS))
    for feature, geometry in zip(features, places.geometries, strict=True):
        feature["properties"][IMAGE_GEOMETRY] = geometry
    return places


def _moved_boxes(boxed: Sequence[Feature], offset: FloatArray) -> FloatArray:
    """Write each ``imageBBox`` in pixels of the image, the smaller numbers first, and return them as (n, 4)."""
    corners = np.array([feature["properties"][IMAGE_BBOX] for feature in boxed], dtype=np.float64).reshape(-1, 2, 2)
    boxes = rounded(np.sort(corners, axis=1) + offset, POSITION_DECIMALS).reshape(-1, 4)
    for feature, box in zip(boxed, boxes.tolist(), strict=True):
        feature["properties"][IMAGE_BBOX] = box
    return boxes


def _locate_shapes(features: Sequence[Feature], places: GeometryArrays, grid: LocationGrid) -> None:
    """Write where features are on the ground, from their places in pixels of the image.

    A feature with a position off the Earth has no geometry.
    """
    world = grid.locate(np.concatenate([places.positions, places.centroids()]))
    geometries, centres = np.split(world, [len(places.positions)])
    _set_geometries(features, places.with_positions(rounded(geometries, POSITION_DECIMALS)))
    _set_centres(features, centres[:, :2])
    is_off_earth = np.isnan(geometries[:, 0])
    if is_off_earth.any():
        for index in np.flatnonzero(np.logical_or.reduceat(is_off_earth, places.position_starts)).tolist():
            features[index]["geometry"] = None


def _locate_boxes(features: Sequence[Feature], boxes: FloatArray, grid: LocationGrid) -> None:
    """Write ``bbox`` from (n, 4) boxes in pixels of the image; of a feature that has no other place, all of it.

    A box with a corner off the Earth has no ``bbox``, and as the only place of a feature no geometry.
    """
    corners = boxes[:, _CORNERS].reshape(-1, 2)
    world = grid.locate(np.concatenate([corners, (boxes[:, :2] + boxes[:, 2:]) / 2]))
    ground_corners, centres = world[: len(corners)].reshape(-1, 4, 3), world[len(corners) :]
    alone = [place for place, feature in enumerate(features) if _is_box_alone(feature)]
    rings = rounded(ground_corners[alone][:, _RING], POSITION_DECIMALS).tolist()
    box_features = [features[place] for place in alone]
    _set_geometries(box_features, [{"type": "Polygon", "coordinates": [ring]} for ring in rings])
    _set_centres(box_features, centres[alone, :2])
    _set_ground_boxes(features, ground_corners[..., :2])
    for index in np.flatnonzero(np.isnan(ground_corners[..., 0]).any(axis=1)).tolist():
        del features[index]["bbox"]
        if _is_box_alone(features[index]):
            features[index]["geometry"] = None


def _set_geometries(features: Sequence[Feature], geometries: Sequence[Geometry]) -> None:
    for feature, geometry in zip(features, geometries, strict=True):
        feature["geometry"] = geometry


def _set_centres(features: Sequence[Feature], centres: FloatArray) -> None:
    for feature, (longitude, latitude) in zip(features, rounded(centres, BOX_DECIMALS).tolist(), strict=True):
        if isnan(longitude):
            continue
        feature["properties"]["center_longitude"] = longitude
        feature["properties"]["center_latitude"] = latitude


def _set_ground_boxes(boxed: Sequence[Feature], corners: FloatArray) -> None:
    """Set ``bbox`` = [west, south, east, north] from (n, 4, 2) corners.

    Across the antimeridian west is greater than east, as RFC 7946, 5.2, has it.
    """
    longitudes, latitudes = corners[..., 0], corners[..., 1]
    first = longitudes[:, :1]
    around_first = first + wrapped(longitudes - first)
    boxes = np.column_stack(
        [
            wrapped(around_first.min(axis=1)),
            latitudes.min(axis=1),
            wrapped(around_first.max(axis=1)),
            latitudes.max(axis=1),
        ]
    )
    for feature, box in zip(boxed, rounded(boxes, BOX_DECIMALS).tolist(), strict=True):
        feature["bbox"] = box


def wrapped(degrees: FloatArray) -> FloatArray:
    """Return angles moved by full turns into [-180, 180]."""
    turns: FloatArray = np.round(degrees / 360.0)
    return degrees - 360.0 * turns


def rounded(values: FloatArray, decimals: int) -> FloatArray:
    """Return values rounded to decimals, without minus zero."""
    short: FloatArray = np.round(values, decimals)
    return short + 0.0
