"""Responses of models: accepted ones, dropped features, and refused responses."""

import copy
import json
import math
from collections import Counter

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.provisional import urls

from aws.osml.model_runner.exceptions import BadModelResponseError
from aws.osml.model_runner.features import ParsedResponse, check_features, parse_response
from aws.osml.model_runner.features import model_response as answer_module
from aws.osml.model_runner.features.encoding import MAX_FEATURE_BYTES

POINT = {"type": "Point", "coordinates": [10, 20.5]}


def feature(**properties):
    return {"type": "Feature", "id": "a", "geometry": None, "properties": {"imageGeometry": POINT, **properties}}


def answer(*features, **members):
    return orjson.dumps({"type": "FeatureCollection", "features": list(features), **members})


GOOD = feature(featureClasses=[{"iri": "ship", "score": 0.5}], extra={"kept": [1, None, "ü"]})


def test_features_are_returned_unchanged():
    assert parse_response(answer(GOOD, feature())) == ParsedResponse([GOOD, feature()], Counter())


@pytest.mark.parametrize(
    "body",
    [
        b'{"features": []}',
        b'{"type": "FeatureCollection", "features": []}',
        b'{"type": "anything", "features": [], "bbox": [1, 2]}',
        b' {"type": null, "features": [ ]} \n',
    ],
)
def test_list_without_features_is_tile_without_detections(body):
    assert parse_response(body) == ParsedResponse([], Counter())


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"   ",
        b"null",
        b"true",
        b"12",
        b'"features"',
        b"[]",
        b'[{"type": "Feature"}]',
        b"{}",
        b'{"message": "out of memory"}',
        b'{"type": "FeatureCollection"}',
        b'{"type": "FeatureCollection", "features": null}',
        b'{"type": "FeatureCollection", "features": {}}',
        b'{"type": "FeatureCollection", "features": "none"}',
        orjson.dumps(GOOD),
        b"<html>502 Bad Gateway</html>",
        b'{"features": [',
        b'{"features": []} trailing',
        b'{"features": [NaN]}',
        b'{"features": [Infinity, -Infinity]}',
        b'{"features": [1e999]}',
        b'{"features": ["\xff\xfe"]}',
        b'{"features": ["\\ud800"]}',
        b'\xef\xbb\xbf{"features": []}',
        answer(GOOD).decode().encode("utf-16"),
        b"\x00" * 100,
    ],
)
def test_anything_else_is_bad_response(body):
    with pytest.raises(BadModelResponseError):
        parse_response(body)


@pytest.mark.parametrize("bomb", [b"[" * 5_000_000, b'{"features":' * 100_000, b"[" * 2000 + b"]" * 2000])
def test_depth_bomb_is_bad_response(bomb):
    with pytest.raises(BadModelResponseError):
        parse_response(bomb)


def test_error_does_not_repeat_response():
    with pytest.raises(BadModelResponseError) as caught:
        parse_response(b'{"features": secret-token}')

    assert "secret" not in str(caught.value)


def test_response_is_not_read_beyond_limit(monkeypatch):
    body = answer(GOOD)
    monkeypatch.setattr(answer_module, "MAX_ANSWER_BYTES", len(body) - 1)

    with pytest.raises(BadModelResponseError, match=f"{len(body)} bytes"):
        parse_response(body)


@pytest.mark.parametrize(
    ("candidate", "reason"),
    [
        *[(value, "NOT_A_FEATURE") for value in (None, 1, "Feature", [], [GOOD], {}, {"type": "feature"}, POINT)],
        *[({**GOOD, "type": value}, "NOT_A_FEATURE") for value in (None, 1, [], {}, "FeatureCollection")],
        *[({**GOOD, "properties": value}, "BAD_PROPERTIES") for value in (1, "x", [], [1], True, False)],
        *[({**GOOD, "properties": value}, "NO_IMAGE_GEOMETRY") for value in (None, {}, {"score": 1})],
        ({"type": "Feature"}, "NO_IMAGE_GEOMETRY"),
        *[(feature(imageGeometry=value), "BAD_IMAGE_GEOMETRY") for value in (1, "x", [], {}, {"type": "Circle"})],
        (feature(imageGeometry={"type": "Point", "coordinates": [1, None]}), "BAD_COORDINATES"),
        (feature(imageBBox=[1, 2, 3]), "BAD_IMAGE_BBOX"),
        *[(feature(featureClasses=value), "BAD_FEATURE_CLASSES") for value in (1, "ship", {}, {"iri": "a"}, True)],
        *[
            (feature(featureClasses=[{"iri": "a"}, value]), "BAD_FEATURE_CLASSES")
            for value in (None, 1, "ship", [], {}, {"score": 1}, {"iri": 5}, {"iri": None}, {"iri": ["a"]})
        ],
        *[
            (feature(featureClasses=[{"iri": "a", "score": value}]), "BAD_FEATURE_CLASSES")
            for value in ("0.5", True, [], {}, [0.5])
        ],
        *[(feature(feature_types=value), "BAD_FEATURE_CLASSES") for value in (1, "ship", [], ["a"], {"ship": "high"})],
        (feature(text="x" * MAX_FEATURE_BYTES), "FEATURE_TOO_LARGE"),
    ],
)
def test_bad_feature_is_dropped_and_counted_and_its_neighbours_stay(candidate, reason):
    parsed = parse_response(answer(GOOD, candidate, GOOD, candidate))

    assert parsed == ParsedResponse([GOOD, GOOD], Counter({reason: 2}))
    assert {type(code) for code in parsed.dropped} == {str}


def test_feature_is_dropped_when_it_cannot_be_encoded():
    deep = orjson.dumps(feature(extra="DEEP")).replace(b'"DEEP"', b"[" * 300 + b"]" * 300)

    parsed = parse_response(b'{"features":[' + deep + b"," + orjson.dumps(GOOD) + b"]}")

    assert parsed == ParsedResponse([GOOD], Counter({"FEATURE_NOT_ENCODABLE": 1}))


def test_reasons_are_counted_apart():
    parsed = parse_response(answer(None, feature(imageBBox=1), GOOD, feature(imageBBox=2), 7))

    assert parsed == ParsedResponse([GOOD], Counter({"NOT_A_FEATURE": 2, "BAD_IMAGE_BBOX": 2}))


@pytest.mark.parametrize(
    ("said", "kept"),
    [
        (feature(featureClasses=None), feature()),
        (feature(imageBBox=None), feature()),
        (feature(featureClasses=[]), feature(featureClasses=[])),
        (
            feature(featureClasses=[{"iri": "a", "score": None, "color": "red"}, {"iri": "b"}]),
            feature(featureClasses=[{"iri": "a", "color": "red"}, {"iri": "b"}]),
        ),
        (feature(featureClasses=[{"iri": "a", "score": 0}]), feature(featureClasses=[{"iri": "a", "score": 0}])),
        (
            feature(featureClasses=[{"iri": "a"}], feature_types="not looked at"),
            feature(featureClasses=[{"iri": "a"}], feature_types="not looked at"),
        ),
        ({**GOOD, "geometry": POINT}, {**GOOD, "geometry": POINT}),
        *[
            ({**GOOD, "geometry": value}, GOOD)
            for value in (5, "x", [], {}, {"type": "Point"}, {"coordinates": [1, 2]})
        ],
        (
            {"type": "Feature", "properties": {"imageBBox": [1, 2, 3, 4], "imageGeometry": None}},
            {"type": "Feature", "geometry": None, "properties": {"imageBBox": [1, 2, 3, 4]}},
        ),
    ],
)
def test_null_counts_as_absent(said, kept):
    assert parse_response(answer(said)) == ParsedResponse([kept], Counter())


@pytest.mark.parametrize(
    "properties",
    [
        {"geom_imcoords": [[0, 0], [1, 0], [1, 1]]},
        {"detection": {"type": "Point", "pixelCoordinates": [1, 2]}},
        {"bounds_imcoords": [1, 2, 3, 4], "feature_types": {"ship": 0.5, "boat": None}, "detection_score": 0.4},
    ],
)
def test_responses_of_older_models_are_accepted(properties):
    said = {"type": "Feature", "geometry": None, "properties": properties}

    assert parse_response(answer(said)) == ParsedResponse([said], Counter())


def test_response_parsed_by_other_library_is_checked():
    candidates = json.loads('[{"type": "Feature", "properties": {"imageBBox": [0, 0, 1, NaN]}}]')
    unwritable = feature(number=10**30)

    def scored(score):
        return feature(featureClasses=[{"iri": "a", "score": score}])

    parsed = check_features([*candidates, unwritable, *map(scored, [math.inf, math.nan, 10**400])])

    assert parsed == ParsedResponse(
        [], Counter({"BAD_IMAGE_BBOX": 1, "FEATURE_NOT_ENCODABLE": 2, "BAD_FEATURE_CLASSES": 2})
    )


def test_parse_does_not_change_its_argument():
    said = [feature(featureClasses=[{"iri": "a", "score": None}], imageBBox=None)]
    before = copy.deepcopy(said)

    check_features(said)

    assert said == before


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False, allow_infinity=False)
    | st.text() | urls(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=8,
)  # fmt: skip
known_names = st.sampled_from(
    ["imageGeometry", "imageBBox", "geom_imcoords", "detection", "bounds_imcoords", "featureClasses", "feature_types"]
)
geometry_like = st.fixed_dictionaries(
    {"type": st.sampled_from(["Point", "Polygon", "MultiPolygon", "LineString", "GeometryCollection", "x"])},
    optional={"coordinates": json_values, "geometries": json_values, "pixelCoordinates": json_values},
)
feature_like = st.fixed_dictionaries(
    {"type": st.just("Feature")},
    optional={
        "geometry": json_values | geometry_like,
        "properties": json_values | st.dictionaries(known_names, json_values | geometry_like),
    },
)


@given(st.lists(json_values | feature_like, max_size=5))
def test_every_candidate_is_kept_or_counted(candidates):
    parsed = parse_response(orjson.dumps({"features": candidates}))

    assert len(parsed.features) + parsed.dropped.total() == len(candidates)
    assert check_features(parsed.features) == ParsedResponse(parsed.features, Counter())


@given(st.binary(max_size=200) | json_values.map(orjson.dumps))
def test_any_bytes_are_features_or_bad_response(body):
    try:
        parsed = parse_response(body)
    except BadModelResponseError:
        return
    assert isinstance(parsed, ParsedResponse)


def test_integers_that_gdal_cannot_read_are_texts():
    properties = {"imageBBox": [1, 2, 3, 4], "n": 2**63 - 1, "m": [{"k": 2**63}], "note": f"{2**63}"}
    properties["featureClasses"] = [{"iri": "ship", "score": 2**63}]
    body = orjson.dumps({"features": [{"type": "Feature", "geometry": None, "properties": properties}]})
    (feature,) = parse_response(body).features
    expected = {**properties, "m": [{"k": str(2**63)}], "featureClasses": [{"iri": "ship", "score": 2.0**63}]}
    assert feature["properties"] == expected
    assert type(feature["properties"]["featureClasses"][0]["score"]) is float


@pytest.mark.parametrize(
    ("point", "is_kept"), [([0, 0], False), ([15, 5], True), ([10, 9, 7], True), ([15, 10], False)]
)
def test_point_outside_box_is_not_geometry(point, is_kept):
    properties = {"imageBBox": [20, 9, 10, 2], "imageGeometry": {"type": "Point", "coordinates": point}}
    feature = {"type": "Feature", "geometry": None, "properties": properties}
    ((checked,), _) = check_features([feature])
    assert ("imageGeometry" in checked["properties"]) == is_kept
