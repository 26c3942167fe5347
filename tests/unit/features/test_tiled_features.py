import numpy as np
import pytest
import shapely
from hypothesis import given
from hypothesis import strategies as st

from aws.osml.model_runner.api.post_processing import (
    FeatureDistillationNMS,
    FeatureDistillationSeam,
    FeatureDistillationSoftNMS,
)
from aws.osml.model_runner.common.typing import ImageRegion
from aws.osml.model_runner.features.detections import Kind, kind_and_box
from aws.osml.model_runner.features.image_geometry import feature_image_bounds
from aws.osml.model_runner.features.selection import FeatureSelector, select
from aws.osml.model_runner.features.tiled_features import TiledFeatures, shapes_of

RING = [[1.0, 2.0], [1.0, 6.0], [4.0, 6.0], [4.0, 2.0], [1.0, 2.0]]
PLACES = {
    "box": ({"imageBBox": [1, 2, 4, 6]}, Kind.BOX),
    "box of other corners": ({"imageBBox": [4, 6, 1, 2]}, Kind.BOX),
    "rectangle": ({"imageGeometry": {"type": "Polygon", "coordinates": [RING]}}, Kind.BOX),
    "rectangle the other way": ({"imageGeometry": {"type": "Polygon", "coordinates": [RING[::-1]]}}, Kind.BOX),
    "rectangle in several": ({"imageGeometry": {"type": "MultiPolygon", "coordinates": [[RING]]}}, Kind.BOX),
    "geometry before box": (
        {"imageGeometry": {"type": "LineString", "coordinates": [[1, 2], [4, 6]]}, "imageBBox": [0, 0, 9, 9]},
        Kind.LINE,
    ),
    "triangle": ({"imageGeometry": {"type": "Polygon", "coordinates": [[[1, 2], [4, 2], [4, 6], [1, 2]]]}}, Kind.AREA),
    "rotated": (
        {"imageGeometry": {"type": "Polygon", "coordinates": [[[1, 4], [2, 2], [4, 4], [3, 6], [1, 4]]]}},
        Kind.AREA,
    ),
    "holed": (
        {"imageGeometry": {"type": "Polygon", "coordinates": [RING, [[2, 3], [3, 3], [3, 4], [2, 3]]]}},
        Kind.AREA,
    ),
    "heights": ({"imageGeometry": {"type": "Polygon", "coordinates": [[[*p, 7.0] for p in RING]]}}, Kind.BOX),
    "points": ({"imageGeometry": {"type": "MultiPoint", "coordinates": [[1, 2], [4, 6]]}}, Kind.POINT),
    "collection": (
        {
            "imageGeometry": {
                "type": "GeometryCollection",
                "geometries": [
                    {"type": "Point", "coordinates": [1, 2]},
                    {"type": "LineString", "coordinates": [[1, 2], [4, 6]]},
                ],
            }
        },
        Kind.LINE,
    ),
    "deprecated": ({"bounds_imcoords": [1, 2, 4, 6]}, Kind.BOX),
}


@pytest.mark.parametrize(("properties", "kind"), PLACES.values(), ids=PLACES)
def test_image_geometry_has_bounds_and_kind(properties, kind):
    assert kind_and_box({"properties": properties}) == (kind, (1.0, 2.0, 4.0, 6.0))


@pytest.mark.parametrize(
    "properties", [None, {}, {"imageBBox": [1, 2, 3]}, {"imageBBox": "none"}, {"imageGeometry": {"type": "Circle"}}]
)
def test_feature_without_usable_geometry_has_no_bounds(properties):
    assert np.isnan(kind_and_box({"properties": properties})[1]).all()


@given(box=st.lists(st.floats(-1e6, 1e6), min_size=4, max_size=4))
def test_short_way_and_checked_way_agree(box):
    feature = {"properties": {"imageBBox": box}}
    assert kind_and_box(feature)[1] == feature_image_bounds(feature)


def polygon(*ring):
    return {"properties": {"imageGeometry": {"type": "Polygon", "coordinates": [[list(place) for place in ring]]}}}


def test_shapes_can_be_compared():
    bow_tie = polygon((0, 0), (4, 4), (4, 0), (0, 4), (0, 0))
    flat = polygon((0, 0), (4, 0), (2, 0), (0, 0))
    unclosed = polygon((0, 0), (4, 0), (4, 4))
    points = {"properties": {"imageGeometry": {"type": "MultiPoint", "coordinates": [[0, 0], [4, 2]]}}}
    mixed = {
        "properties": {
            "imageGeometry": {
                "type": "GeometryCollection",
                "geometries": [
                    {"type": "Point", "coordinates": [9, 9]},
                    *(item["properties"]["imageGeometry"] for item in (unclosed, polygon((0, 0), (4, 4), (0, 4)))),
                ],
            }
        }
    }
    shapes = shapes_of([bow_tie, flat, unclosed, points, mixed])
    assert shapely.is_valid(shapes).all()
    assert shapely.area(shapes).tolist() == pytest.approx([8, 0.4, 8, 0, 16])
    assert shapes[3].equals(shapely.Point(2, 1))


def feature(name, box, score, iri="ship"):
    return {
        "type": "Feature",
        "id": name,
        "geometry": None,
        "properties": {"imageBBox": box, "featureClasses": [{"iri": iri, "score": score}]},
    }


LEFT, RIGHT = ImageRegion.of([[0, 0], [60, 60]]), ImageRegion.of([[0, 40], [60, 60]])
SCENE = [
    (
        LEFT,
        [feature("far", [5, 5, 9, 9], 0.9), feature("far too", [5, 5, 9, 9], 0.8), feature("a", [46, 9, 54, 20], 0.7)],
    ),
    (RIGHT, [feature("b", [46, 10, 54, 20], 0.8), feature("boat", [46, 10, 54, 20], 0.1, "boat")]),
]
ALL = [one for _, features in SCENE for one in features]


def kept(options):
    selection = select(TiledFeatures.of(SCENE, ALL.__getitem__), options)
    return [selection.finished(index, ALL[index], ALL.__getitem__) for index in selection.kept.tolist()], selection


def test_every_algorithm_selects_features_of_overlaps():
    assert [one["id"] for one in kept(None)[0]] == ["far", "far too", "a", "b", "boat"]
    for options in (FeatureDistillationSeam(), FeatureDistillationNMS(iou_threshold=0.5)):
        features, selection = kept(options)
        assert [one["id"] for one in features] == ["far", "far too", "b", "boat"]
        assert selection.absorbed == {3: [2]}


def test_soft_suppression_keeps_models_score_beside_lowered_one():
    features, _ = kept(FeatureDistillationSoftNMS(sigma=0.5))
    best = {one["id"]: one["properties"]["featureClasses"][0] for one in features}
    assert best["far"] == {"iri": "ship", "score": 0.9}
    assert best["b"] == {"iri": "ship", "score": 0.8, "rawScore": 0.8}
    assert best["a"]["rawScore"] == 0.7
    assert best["a"]["score"] == pytest.approx(0.7 * np.exp(-((80 / 88) ** 2) / 0.5))


def test_lists_that_name_tiles_come_to_same():
    named = [
        {**one, "properties": one["properties"] | {"_modelRunnerTile": tile.to_lists()}}
        for tile, features in SCENE
        for one in features
    ]
    stray = feature("stray", [46, 10, 54, 20], 0.9)
    found = FeatureSelector(FeatureDistillationSeam()).select_features([stray, *named])
    assert [one["id"] for one in found] == ["stray", "far", "far too", "b", "boat"]
