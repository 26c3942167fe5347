"""Stamping features in their text gives byte for byte what stamping them gives."""

import orjson
from hypothesis import example, given
from hypothesis import strategies as st

from aws.osml.model_runner.common.typing import ImageRegion
from aws.osml.model_runner.features import FeatureStamp, decode_feature, encode_feature, refine_features
from aws.osml.model_runner.features.properties import FeatureOrigin
from aws.osml.model_runner.features.text_stamp import TextStamp, own_end

TILE = ImageRegion.of([[512, 0], [256, 128]])
ID = "c37d9add-1a68-5718-84ee-1b9204459fc9"
TIME = "2026-11-20T22:42:58Z"

texts = st.text(alphabet='a"\\{}:,é\n', max_size=6) | st.sampled_from(['"featureId":""', "inferenceMetadata", "}}"])
values = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.floats(allow_nan=False, allow_infinity=False) | texts,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(texts, inner, max_size=2),
    max_leaves=4,
)
names = texts | st.sampled_from(["a", "featureId", "detection_score", "_modelRunnerTile", "image_id", "inferenceTime"])
objects = st.dictionaries(names, values, max_size=3)
members = st.sampled_from([("type", "geometry", "properties"), ("type", "properties", "id"), ("properties",)])


def stamped_both_ways(feature, stamp, absorbed=0):
    """Return a feature as it is delivered: by its text, or None, and by its members."""
    body = encode_feature(feature)
    text = TextStamp(stamp, TILE, TIME).stamped(body, own_end(feature, body), ID, absorbed)
    origin = FeatureOrigin(ID, TILE, absorbed, inference_time=TIME)
    return text, encode_feature(stamp.finalized(decode_feature(body), origin))


@given(objects, members, st.lists(objects, max_size=2), texts, st.none() | st.just(TIME))
@example({"a": {"b": {"image_id": "i"}}}, ("type", "properties"), [{"featureId": ""}], "j", TIME)
@example({"a": 1}, ("type", "properties"), [{"inferenceMetadata": {"featureId": ""}}], "j", TIME)
@example({"a": 1}, ("type", "properties"), [{"image_id": 1, "b": [2]}], '"featureId":""', TIME)
@example({"a": 1, "inferenceMetadata": 1}, ("type", "properties"), [], "j", TIME)
@example({"a": 1}, ("type", "properties", "id"), [], "j", TIME)
@example({"a": 1, "b": 1, "inferenceTime": "never"}, ("type", "properties"), [], "j", None)
def test_text_stamp_gives_same_bytes_as_stamp(own, order, requested, job_id, time):
    members = {"type": "Feature", "geometry": None, "id": 7, "properties": own}
    feature = {name: members[name] for name in order}
    stamp = FeatureStamp.from_request(job_id, requested)
    by_text = TextStamp(stamp, TILE, time)
    body = encode_feature(feature)
    for absorbed in (0, 2, 0):
        expected = encode_feature(stamp.finalized(feature, FeatureOrigin(ID, TILE, absorbed, inference_time=time)))
        assert by_text.stamped(body, own_end(feature, body), ID, absorbed) in (None, expected)


def test_stored_features_are_stamped_in_text():
    answer = [
        {"type": "Feature", "properties": {"imageBBox": [1, 2, 3, 4]}, "id": "behind the properties"},
        {"type": "Feature", "geometry": None, "properties": {"bounds_imcoords": [1, 2, 3, 4], "x": "y"}},
    ]
    usual, deprecated = refine_features(answer, TILE, None)
    stamp = FeatureStamp.from_request("job", [{"modelMetadata": {"x": 1}}])
    text, expected = stamped_both_ways(usual, stamp, absorbed=3)
    assert text == expected
    assert orjson.loads(text)["properties"] == {
        "imageBBox": [1.0, 514.0, 3.0, 516.0],
        "inferenceMetadata": {
            "jobId": "job",
            "inferenceDT": TIME,
            "featureId": ID,
            "tile": [[512, 0], [256, 128]],
            "absorbed": 3,
        },
        "modelMetadata": {"x": 1},
    }
    # A property that is never delivered lies among its own.
    assert stamped_both_ways(deprecated, stamp)[0] is None


def test_replaced_properties_are_not_stamped_in_text():
    feature = {"type": "Feature", "geometry": None, "properties": {"a": 1, "b": 2}}
    text, expected = stamped_both_ways(feature, FeatureStamp.from_request("job", [{"a": 2}]))
    assert text is None
    assert list(orjson.loads(expected)["properties"].items())[:2] == [("a", 2), ("b", 2)]
    assert stamped_both_ways(feature, FeatureStamp.from_request("job", [{"c": 2}]))[0] is not None
