"""Encodes features as JSON bytes, for storage and delivery."""

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import orjson

from .detections import Detections
from .text_stamp import own_end

# Guides for models require features below 300 KB; a DynamoDB item holds 400 KB.
MAX_FEATURE_BYTES = 300_000

FEATURE_TOO_LARGE = "FEATURE_TOO_LARGE"


class EncodedFeatures(NamedTuple):
    """JSON and arrays of the features that fit, and the number of dropped features for each reason."""

    bodies: list[bytes]
    detections: Detections
    dropped: Counter[str]


def encode_feature(feature: Mapping[str, Any]) -> bytes:
    """Return a feature as compact UTF-8 JSON.

    Members keep their order, so a tile that is processed again has the same bytes. Numbers are not rounded here.
    """
    return orjson.dumps(feature)


def decode_feature(body: bytes) -> dict[str, Any]:
    """Return the feature that ``encode_feature`` wrote."""
    feature: dict[str, Any] = orjson.loads(body)
    return feature


def encode_features(
    features: Iterable[Mapping[str, Any]], max_feature_bytes: int = MAX_FEATURE_BYTES
) -> EncodedFeatures:
    """Return features as JSON. A feature that geolocation made larger than the limit is dropped and counted."""
    fitting, dropped = [], Counter[str]()
    for feature in features:
        body = encode_feature(feature)
        if len(body) > max_feature_bytes:
            dropped[FEATURE_TOO_LARGE] += 1
        else:
            fitting.append((feature, body))
    detections = Detections.of((feature for feature, _ in fitting), [own_end(*pair) for pair in fitting])
    return EncodedFeatures([body for _, body in fitting], detections, dropped)
