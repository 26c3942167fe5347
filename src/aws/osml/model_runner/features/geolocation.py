"""From detections in a tile to features of the image: offset into the full image, and located on the ground.

All features of a tile go through numpy together; only taking their dictionaries apart and putting them together
again is done one by one.
"""

from collections.abc import Sequence
from math import isnan

import numpy as np

from aws.osml.model_runner.common.typing import ImageRegion
from aws.osml.model_runner.exceptions import FeatureError

from .geolocation_grid import LocationGrid
from .geometry_arrays import FloatArray, GeometryArrays
from .image_geometry import IMAGE_BBOX, IMAGE_GEOMETRY, Geometry, find_image_geometry
from .properties import IMAGE_ID, INFERENCE_TIME, UNCUT, Feature, convert_deprecated_feature_properties
from .rfc7946 import bounds_of, crosses_antimeridian, cut, ring_areas, ring_order, wrapped
from .scored_boxes import set_flat_class

# A millionth of a pixel, and at least of a degree (0.1 m) in geometries: what the GeoJSON library of earlier releases
# wrote. Pixels of less than a metre take more.
POSITION_DECIMALS = 6
_ROUNDING_PX = 0.1
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
    [longitude, latitude], and elevation where the grid has heights; ``bbox`` is its box where there is an
    ``imageBBox``; and ``center_longitude`` and ``center_latitude`` are those of the centroid in pixels. Without one,
    ``geometry`` stays what the model said. What crosses the antimeridian has the property ``UNCUT`` and is cut when it
    is delivered. ``class`` and ``score`` are those of the best class, unless the model has properties of these names.
    Properties come last in each feature, and ``id`` first. The features passed in are not changed.

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
        alone = [place for place, feature in enumerate(boxed) if _is_box_alone(feature)]
        if grid is not None and alone:
            _locate_boxes([boxed[place] for place in alone], boxes[alone], grid)
    for feature in refined:
        _put_properties_last(feature)
    return refined


def _is_box_alone(feature: Feature) -> bool:
    """Tell whether nothing but its ``imageBBox`` says where a feature is: most models say no more, so it is fast."""
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
    ground, centres = np.split(world, [len(places.positions)])
    ground = rounded(ground[:, : _dimensions(grid)], decimals_of(grid))
    ground = ground[ring_order(places, ground)]
    geometries = places.with_positions(ground)
    _set_geometries(features, geometries)
    _set_centres(features, centres[:, :2])
    is_inner = np.ones(len(ground), dtype=np.bool_)
    is_inner[np.concatenate([[0], places.ends[:-1]])] = False
    is_jump = is_inner & np.concatenate([[False], crosses_antimeridian(ground[:, 0])])
    extremes = places.extremes(ground)
    for feature, box in zip(features, extremes.tolist(), strict=True):
        if feature["properties"].get(IMAGE_BBOX) is not None:
            feature["bbox"] = box
    owners = places.owners[np.searchsorted(places.ends, np.flatnonzero(is_jump), side="right")]
    is_off_earth = np.isnan(extremes[:, 0])
    for index in np.flatnonzero(is_off_earth).tolist():
        features[index]["geometry"] = None
        features[index].pop("bbox", None)
    for feature in [features[owner] for owner in set(owners.tolist()) if not is_off_earth[owner]]:
        feature["properties"][UNCUT] = True
        if "bbox" in feature:
            feature["bbox"] = bounds_of(cut(feature["geometry"]))


def _locate_boxes(features: Sequence[Feature], boxes: FloatArray, grid: LocationGrid) -> None:
    """Write where features are on the ground whose (n, 4) boxes in pixels of the image are all that is known.

    A feature with a corner off the Earth has neither geometry nor ``bbox``.
    """
    corners = boxes[:, _CORNERS].reshape(-1, 2)
    world = grid.locate(np.concatenate([corners, (boxes[:, :2] + boxes[:, 2:]) / 2]))
    ground, centres = world[: len(corners), : _dimensions(grid)], world[len(corners) :, :2]
    rings = rounded(ground, decimals_of(grid)).reshape(len(boxes), 4, -1)[:, _RING]
    is_clockwise = ring_areas(rings.reshape(-1, rings.shape[2]), np.arange(1, len(boxes) + 1) * len(_RING)) < 0
    rings[is_clockwise] = rings[is_clockwise, ::-1]
    _set_geometries(features, [{"type": "Polygon", "coordinates": [ring]} for ring in rings.tolist()])
    _set_centres(features, centres)
    _set_ground_boxes(features, rings[:, :4])
    is_off_earth = np.isnan(rings[..., 0]).any(axis=1)
    for index in np.flatnonzero(is_off_earth).tolist():
        features[index]["geometry"] = None
        del features[index]["bbox"]
    for index in np.flatnonzero(crosses_antimeridian(rings[..., 0]).any(axis=1) & ~is_off_earth).tolist():
        features[index]["properties"][UNCUT] = True


def decimals_of(grid: LocationGrid) -> int:
    """Return the decimals of longitudes and latitudes that tell a tenth of a pixel apart."""
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


def _set_ground_boxes(boxed: Sequence[Feature], corners: FloatArray) -> None:
    """Set ``bbox`` = [west, south, east, north] from (n, 4, 2) corners, or with least and most elevation from 3.

    Across the antimeridian west is greater than east, as RFC 7946, 5.2, has it.
    """
    first = corners[:, :1, :1] * np.eye(1, corners.shape[2])
    around_first = corners - first
    around_first[..., 0] = wrapped(around_first[..., 0])
    low, high = (first[:, 0] + extreme for extreme in (around_first.min(axis=1), around_first.max(axis=1)))
    low[:, 0], high[:, 0] = wrapped(low[:, 0]), wrapped(high[:, 0])
    for feature, box in zip(boxed, rounded(np.hstack([low, high]), BOX_DECIMALS).tolist(), strict=True):
        feature["bbox"] = box


def rounded(values: FloatArray, decimals: int) -> FloatArray:
    """Return values rounded to decimals, without minus zero."""
    short: FloatArray = np.round(values, decimals)
    return short + 0.0
