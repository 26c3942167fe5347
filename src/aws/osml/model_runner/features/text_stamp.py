"""Adds a job's properties to the JSON text of a feature without parsing it.

A feature is stored without internal properties, and ``properties`` is its last member. So the delivered text differs
only at its end: the job's properties follow the feature's own properties.
"""

from collections.abc import Mapping
from typing import Any

import orjson

from aws.osml.model_runner.common.typing import ImageRegion

from .properties import INFERENCE_METADATA, FeatureOrigin, FeatureStamp, internal_among

# Ends the properties and the feature.
CLOSING = b"}}"
_ID_IN_TEXT = b'"featureId":""'
# ``geolocation`` makes the model's own id the first member.
_OWN_ID = b'{"id":'


def own_end(feature: Mapping[str, Any], body: bytes) -> int:
    """Return the offset of ``CLOSING`` in ``body``, or 0 if properties cannot be added to the text.

    They can be added if all of this holds: an id, if any, is the first member and is not null; ``properties`` is the
    last member and is not empty; no property is internal, and none is ``inferenceMetadata``, which each job adds.
    """
    properties = feature.get("properties") or {}
    names = tuple(properties)
    is_plain = bool(names) and not internal_among(names) and INFERENCE_METADATA not in properties
    members = tuple(feature)
    has_usual_id = "id" not in members or (members[0] == "id" and feature["id"] is not None)
    if not is_plain or not has_usual_id or members[-1] != "properties":
        return 0
    return len(body) - len(CLOSING)


class TextStamp:
    """Adds a job's properties to the texts of one tile's features, byte for byte as ``FeatureStamp`` does."""

    def __init__(self, stamp: FeatureStamp, tile: ImageRegion, inference_time: str | None) -> None:
        self._stamp = stamp
        self._tile = tile
        self._inference_time = inference_time
        self._is_possible = INFERENCE_METADATA not in stamp.properties
        self._names_in_text = [orjson.dumps(name) + b":" for name in stamp.properties]
        self._around_id: dict[int, tuple[bytes, bytes]] = {}

    def stamped(self, body: bytes, own_end: int, feature_id_text: str, absorbed: int) -> bytes | None:
        """Return a feature as it is delivered, or None if ``FeatureStamp`` has to be used.

        ``FeatureStamp`` is used if ``own_end`` is 0 or the job sets ``inferenceMetadata``. It is also used if the
        feature may already have a name that the job sets.
        """
        own = body[:own_end]
        if not own or not self._is_possible or any(name in own for name in self._names_in_text):
            return None
        feature_id = feature_id_text.encode()
        around = self._around_id.get(absorbed)
        if around is None:
            # The texts between the feature's own text and its id, and after the id.
            origin = FeatureOrigin("", self._tile, absorbed, inference_time=self._inference_time)
            added = self._stamp.finalized({"properties": {}}, origin)["properties"]
            before, _, after = orjson.dumps(added).partition(_ID_IN_TEXT)
            around = b"," + before[1:] + _ID_IN_TEXT[:-1], _ID_IN_TEXT[-1:] + after
            self._around_id[absorbed] = around
        if own.startswith(_OWN_ID):
            return b"".join((own, around[0], feature_id, around[1], b"}"))
        return b"".join((own, around[0], feature_id, around[1], b',"id":"', feature_id, b'"}'))
