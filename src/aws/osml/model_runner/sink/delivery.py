"""What a sink is asked to deliver: the features of one image, already encoded."""

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

# Features that come without an id of their own get one from their place in the job's list.
_NAMESPACE = uuid.UUID("6f1d4f0a-5c53-5a8e-9d5a-0b8e1f6a2c77")


@dataclass(frozen=True)
class Delivery:
    """The features of one image in their final order.

    ``features`` holds each one as a GeoJSON feature in UTF-8, ``feature_ids`` the stable id of each. ``result_name``
    tells the results of one job apart; it is empty where a job has one image. A sink that goes on where
    another left off starts at ``position``, an index into both. ``metadata`` is kept with the result where the
    output has a place for it. ``centres``: (n, 2) the middle of each in pixels, where that is known.

    Both sequences may be made as they are read, so they are read once, from the first on, wherever that will do.
    """

    job_id: str
    result_name: str
    features: Sequence[bytes]
    feature_ids: Sequence[str]
    position: int = 0
    metadata: Mapping[str, str] = field(default_factory=dict)
    centres: NDArray[np.float64] | None = None

    @classmethod
    def from_features(cls, job_id: str, features: Sequence[Mapping[str, Any]]) -> "Delivery":
        """Encode features; each keeps the ``feature_id`` in its properties, or gets one from the job and its index."""
        ids = [_feature_id(job_id, index, feature) for index, feature in enumerate(features)]
        return cls(job_id, "", [encode_feature(feature) for feature in features], ids)


def encode_feature(feature: Mapping[str, Any]) -> bytes:
    """Return canonical JSON: keys sorted, no spaces, so that equal features are equal bytes."""
    return orjson.dumps(feature, default=_plain_number, option=orjson.OPT_SORT_KEYS | orjson.OPT_SERIALIZE_NUMPY)


def _plain_number(value: Any) -> float:
    if isinstance(value, Decimal):
        return float(value)
    raise TypeError(f"a feature holds a {type(value).__name__}, which is no JSON")


def _feature_id(job_id: str, index: int, feature: Mapping[str, Any]) -> str:
    own_id = (feature.get("properties") or {}).get("feature_id")
    return own_id if isinstance(own_id, str) and own_id else str(uuid.uuid5(_NAMESPACE, f"{job_id}#{index}"))
