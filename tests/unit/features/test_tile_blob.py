"""Features of a tile come back from their blob as they were, and a damaged blob is found out."""

import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aws.osml.model_runner.exceptions import FeatureBlobError, FeaturesTooLargeError
from aws.osml.model_runner.features import tile_blob
from aws.osml.model_runner.features.encoding import encode_features
from aws.osml.model_runner.features.tile_blob import FeatureTexts, pack_tile, unpack_tile

numbers = st.floats(-1e6, 1e6)
boxes = st.tuples(numbers, numbers, numbers, numbers).map(list)
classes = st.fixed_dictionaries({"iri": st.text(max_size=5), "score": st.floats(0, 1)})
properties = st.fixed_dictionaries(
    {"featureClasses": st.lists(classes, max_size=2)},
    optional={"imageBBox": boxes, "inferenceMetadata": st.none(), "name": st.text(max_size=9)},
)
features = st.builds(lambda own: {"type": "Feature", "geometry": None, "properties": own}, properties)


@given(st.lists(features, max_size=6))
def test_features_and_detections_come_back(given_features):
    encoded = encode_features(given_features)
    texts, detections = unpack_tile(pack_tile(encoded.bodies, encoded.detections))
    assert list(texts) == encoded.bodies
    for name, values in vars(encoded.detections).items():
        np.testing.assert_array_equal(getattr(detections, name), values)


def test_texts_are_sequence():
    bodies = [b"a", b"", b"ccc", b"dd"]
    texts = FeatureTexts(b"".join(bodies), np.array([1, 0, 3, 2], "<u4"))
    assert texts == bodies
    assert texts != bodies[:3]
    assert [texts[1], texts[-1], list(texts[1:3]), list(texts[::-2])] == [b"", b"dd", bodies[1:3], bodies[::-2]]
    with pytest.raises(IndexError):
        texts[4]


def test_damaged_blob_is_found_out():
    body = b'{"type":"Feature","properties":{"imageBBox":[0,0,1,1]}}'
    encoded = encode_features([{"type": "Feature", "properties": {"imageBBox": [0, 0, n, n]}} for n in range(9)])
    blob = pack_tile(encoded.bodies, encoded.detections)
    rng = random.Random(1)
    damaged = [b"", blob[:-1], blob[: len(blob) // 2], body]
    for place in rng.sample(range(len(blob)), 20):
        damaged.append(blob[:place] + bytes([blob[place] ^ 0x55]) + blob[place + 1 :])
    for one in damaged:
        with pytest.raises(FeatureBlobError):
            unpack_tile(one)


def test_features_that_are_too_many_are_refused(monkeypatch):
    encoded = encode_features([{"type": "Feature", "properties": {"text": "x" * 100}}] * 9)
    blob = pack_tile(encoded.bodies, encoded.detections)
    monkeypatch.setattr(tile_blob, "MAX_CONTENT_BYTES", 1000)
    with pytest.raises(FeaturesTooLargeError, match="at most 1000"):
        pack_tile(encoded.bodies, encoded.detections)
    with pytest.raises(FeatureBlobError):
        unpack_tile(blob)
