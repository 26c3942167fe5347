"""Properties that a job adds to features and removes, and the names and text of features."""

import copy
import datetime
import uuid
from collections import Counter

import geojson
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aws.osml.model_runner.exceptions import InvalidFeaturePropertiesException
from aws.osml.model_runner.features import (
    INTERNAL_PREFIX,
    FeatureStamp,
    convert_deprecated_feature_properties,
    decode_feature,
    encode_feature,
    encode_features,
    feature_id,
    finalize_feature,
)

TIME = "2026-11-20T22:42:58Z"
INTERNAL = [
    "inferenceTime",
    "bounds_imcoords",
    "geom_imcoords",
    "detection_score",
    "feature_types",
    "image_id",
    "adjusted_feature_types",
    INTERNAL_PREFIX + "Tile",
]
SOURCE = {"sourceMetadata": [{"location": "s3://b/k", "format": "NITF", "category": "VIS"}]}


def feature(**properties):
    return {"type": "Feature", "id": "a", "geometry": None, "properties": {"inferenceTime": TIME, **properties}}


def test_known_feature_is_finalized_as_before():
    refined = {
        "type": "Feature",
        "bbox": [10.0001, 19.9959, 10.0002, 19.99602],
        "id": "a",
        "geometry": {"type": "Point", "coordinates": [10.0001, 19.99602, 0.0]},
        "properties": {
            "imageGeometry": {"type": "Point", "coordinates": [10.0, 398.0]},
            "imageBBox": [10.0, 398.0, 20.0, 410.0],
            "featureClasses": [{"iri": "ship", "score": 0.9}],
            "extra": 1,
            "image_id": "job-1",
            "inferenceTime": TIME,
            "center_longitude": 10.00015,
            "center_latitude": 19.99596,
        },
    }

    final = finalize_feature(refined, "job-1", [{"modelMetadata": {"x": 1}}])

    assert encode_feature(final) == (
        b'{"type":"Feature","bbox":[10.0001,19.9959,10.0002,19.99602],"id":"a",'
        b'"geometry":{"type":"Point","coordinates":[10.0001,19.99602,0.0]},'
        b'"properties":{"imageGeometry":{"type":"Point","coordinates":[10.0,398.0]},'
        b'"imageBBox":[10.0,398.0,20.0,410.0],"featureClasses":[{"iri":"ship","score":0.9}],"extra":1,'
        b'"center_longitude":10.00015,"center_latitude":19.99596,'
        b'"inferenceMetadata":{"jobId":"job-1","inferenceDT":"2026-11-20T22:42:58Z"},"modelMetadata":{"x":1}}}'
    )


@pytest.mark.parametrize(
    ("own", "requested", "source", "expected"),
    [
        ({}, [], None, {"inferenceMetadata": {"jobId": "j", "inferenceDT": TIME}}),
        ({}, None, None, {"inferenceMetadata": {"jobId": "j", "inferenceDT": TIME}}),
        ({}, [{"inferenceMetadata": 1}], None, {"inferenceMetadata": 1}),
        ({"inferenceMetadata": 0}, [], None, {"inferenceMetadata": {"jobId": "j", "inferenceDT": TIME}}),
        ({"a": 1}, [{"a": 2, "b": 2}, {"a": 3}], None, {"a": 3, "b": 2}),
        ({}, [{"sourceMetadata": "mine"}], SOURCE, SOURCE),
        ({}, [{"sourceMetadata": "mine"}], None, {"sourceMetadata": "mine"}),
        ({}, [{"image_id": "x", "detection_score": 0, "kept": 0}], None, {"kept": 0}),
        ({"detection": {"type": "Point"}, "featureClasses": []}, [], None, {"detection": {"type": "Point"}}),
    ],
)
def test_later_stamps_win(own, requested, source, expected):
    properties = finalize_feature(feature(**own), "j", requested, source)["properties"]

    assert {name: properties[name] for name in expected} == expected
    assert not set(properties) & set(INTERNAL)


def test_new_properties_come_in_order_of_stamping():
    final = finalize_feature(feature(own=1), "j", [{"second": 1, "first": 1}, {"third": 1, "second": 2}], SOURCE)

    assert list(final["properties"]) == ["own", "inferenceMetadata", "second", "first", "third", "sourceMetadata"]


@pytest.mark.parametrize("name", INTERNAL)
@pytest.mark.parametrize("value", [0, None, "", [], {}, False, "x", [1]])
def test_internal_properties_are_never_delivered(name, value):
    assert name not in finalize_feature(feature(**{name: value}), "j", [])["properties"]
    assert name not in finalize_feature(feature(), "j", [{name: value}])["properties"]


def test_feature_without_time_has_none_in_its_metadata():
    final = finalize_feature({"type": "Feature", "geometry": None, "properties": None}, "j", [])

    assert final["properties"] == {"inferenceMetadata": {"jobId": "j", "inferenceDT": None}}


def test_finalize_does_not_change_its_argument():
    refined, requested = feature(image_id="x", a=1), [{"a": 2}]
    before = copy.deepcopy((refined, requested))

    finalize_feature(refined, "j", requested)

    assert (refined, requested) == before


@pytest.mark.parametrize("requested", ["[]", {"a": 1}, 5, [1], ["a"], [None], [{"a": 1}, []]])
def test_properties_that_are_no_list_of_objects_cannot_be_stamped(requested):
    with pytest.raises(InvalidFeaturePropertiesException):
        finalize_feature(feature(), "j", requested)


@pytest.mark.parametrize("value", [datetime.timedelta(1), object(), {1, 2}, 10**30, {5: 1}])
def test_properties_that_are_no_json_cannot_be_stamped(value):
    with pytest.raises(InvalidFeaturePropertiesException, match="JSON"):
        FeatureStamp.from_request("j", [{"a": value}])


@pytest.mark.parametrize("properties", [1, "x", []])
def test_feature_without_properties_object_cannot_be_stamped(properties):
    with pytest.raises(InvalidFeaturePropertiesException):
        finalize_feature({"type": "Feature", "properties": properties}, "j", [])


names = st.sampled_from([*INTERNAL, "inferenceMetadata", "a", "b", "sourceMetadata"])
objects = st.dictionaries(names, st.integers(0, 3), max_size=5)


@given(objects, st.lists(objects, max_size=4), objects | st.none())
def test_stamp_is_plain_sequence_of_updates(own, requested, source):
    plain = {"inferenceTime": TIME, **own}
    plain["inferenceMetadata"] = {"jobId": "j", "inferenceDT": plain["inferenceTime"]}
    for update in [*requested, source or {}]:
        plain.update(update)
    for name in INTERNAL:
        plain.pop(name, None)

    final = FeatureStamp.from_request("j", requested, source).finalized(feature(**own))

    assert list(final["properties"].items()) == list(plain.items())


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (
            {"feature_types": {"a": 0.5, "b": 1}},
            {"featureClasses": [{"iri": "a", "score": 0.5}, {"iri": "b", "score": 1}]},
        ),
        ({"feature_types": {"a": None}}, {"featureClasses": [{"iri": "a"}]}),
        ({"feature_types": {"a": 1}, "featureClasses": []}, {"feature_types": {"a": 1}, "featureClasses": []}),
        ({"other": 1}, {"other": 1}),
    ],
)
def test_deprecated_classes_are_converted(before, after):
    converted = geojson.Feature(properties=before)

    convert_deprecated_feature_properties(converted)

    assert converted["properties"] == after


def test_identity_of_feature_never_changes():
    assert feature_id("job", "(0, 0)(10, 10)-job", 3, 7) == "c37d9add-1a68-5718-84ee-1b9204459fc9"
    assert uuid.UUID(feature_id("job", "region", 0, 0)).version == 5


keys = st.tuples(
    st.text(alphabet='a",[\\', max_size=4),
    st.text(alphabet='a",[\\', max_size=4),
    st.integers(0, 20),
    st.integers(0, 20),
)


@given(keys, keys)
def test_different_features_have_different_identities(one, other):
    assert (feature_id(*one) == feature_id(*other)) == (one == other)


json_objects = st.dictionaries(
    st.text(max_size=4), st.none() | st.booleans() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
)


@given(json_objects)
def test_feature_survives_being_written(properties):
    written = encode_feature(feature(**properties))

    assert decode_feature(written) == feature(**properties)
    assert encode_feature(decode_feature(written)) == written
    assert encode_feature(geojson.Feature(properties=properties)) == orjson.dumps(
        {"type": "Feature", "geometry": None, "properties": properties}
    )


def test_features_that_outgrew_limit_are_dropped_and_counted():
    features = [feature(n=0), feature(text="x" * 500), feature(n=2), feature(text="y" * 500)]

    encoded = encode_features(features, max_feature_bytes=500)

    assert encoded.bodies == [encode_feature(features[0]), encode_feature(features[2])]
    assert len(encoded.detections) == 2
    assert encoded.dropped == Counter({"FEATURE_TOO_LARGE": 2})
