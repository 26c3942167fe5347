"""Features as the bytes that are stored and delivered."""

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import orjson

from .feature_columns import FeatureColumns
from .text_stamp import own_end

# Guides for models have always asked for features below 300 KB; a DynamoDB item holds 400 KB.
MAX_FEATURE_BYTES = 300_000

FEATURE_TOO_LARGE = "FEATURE_TOO_LARGE"


class EncodedFeatures(NamedTuple):
    """Features as JSON, those that fit, and in columns; and why others were dropped."""

    bodies: list[bytes]
    columns: FeatureColumns
    dropped: Counter[str]


def encode_feature(feature: Mapping[str, Any]) -> bytes:
    """Return a feature as compact UTF-8 JSON.

    Members stay in the order in which they were set, so the same feature made by the same steps has the same bytes.
    Numbers are written in full: who makes a feature rounds it.
    """
    return orjson.dumps(feature)


def decode_feature(body: bytes) -> dict[str, Any]:
    """Return the feature that ``encode_feature`` wrote."""
    feature: dict[str, Any] = orjson.loads(body)
    return feature


def encode_features(
    features: Iterable[Mapping[str, Any]], max_feature_bytes: int = MAX_FEATURE_BYTES
) -> EncodedFeatures:
    """Return features as JSON; one that has outgrown the limit, since its places were added, is dropped and counted."""
    fitting, dropped = [], Counter[str]()
    for feature in features:
        body = encode_feature(feature)
        if len(body) > max_feature_bytes:
            dropped[FEATURE_TOO_LARGE] += 1
        else:
            fitting.append((feature, body))
    columns = FeatureColumns.of((feature for feature, _ in fitting), [own_end(*pair) for pair in fitting])
    return EncodedFeatures([body for _, body in fitting], columns, dropped)
