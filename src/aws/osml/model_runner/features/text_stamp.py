"""Features stamped in their JSON, without parsing it.

A feature is stored without the properties that are internal to the worker, and its properties come last. The text that
is delivered differs at its end alone: the job's properties follow the feature's own.
"""

from collections.abc import Mapping
from typing import Any

import orjson

from aws.osml.model_runner.common.typing import ImageRegion

from .properties import INFERENCE_METADATA, FeatureOrigin, FeatureStamp, internal_among

# Ends the properties, and the feature after them.
CLOSING = b"}}"
_ID_IN_TEXT = b'"featureId":""'
# ``refinement`` puts the id that a model gave first.
_OWN_ID = b'{"id":'


def own_end(feature: Mapping[str, Any], body: bytes) -> int:
    """Return where a feature's own text ends, which is before ``CLOSING``; 0 where it cannot be stamped in its text.

    It can be when an id comes first and the properties last, there are some, and none of them is internal or is stamped
    by every job.
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
    """Stamps features of one tile in their text: byte for byte what ``FeatureStamp`` makes of them."""

    def __init__(self, stamp: FeatureStamp, tile: ImageRegion, inference_time: str | None) -> None:
        self._stamp = stamp
        self._tile = tile
        self._inference_time = inference_time
        self._is_possible = INFERENCE_METADATA not in stamp.properties
        self._names_in_text = [orjson.dumps(name) + b":" for name in stamp.properties]
        self._around_id: dict[int, tuple[bytes, bytes]] = {}

    def stamped(self, body: bytes, own_end: int, feature_id_text: str, absorbed: int) -> bytes | None:
        """Return a feature as it is delivered; None where that takes more than to add to its text.

        So it does where ``own_end`` is 0, where the job stamps ``inferenceMetadata`` itself, and where it sets what the
        feature may have already.
        """
        own = body[:own_end]
        if not own or not self._is_possible or any(name in own for name in self._names_in_text):
            return None
        feature_id = feature_id_text.encode()
        around = self._around_id.get(absorbed)
        if around is None:
            around = self._around_id[absorbed] = self._text_around_id(absorbed)
        if own.startswith(_OWN_ID):
            return b"".join((own, around[0], feature_id, around[1], b"}"))
        return b"".join((own, around[0], feature_id, around[1], b',"id":"', feature_id, b'"}'))

    def _text_around_id(self, absorbed: int) -> tuple[bytes, bytes]:
        """Return what follows a feature's own text, before and after the feature's id."""
        origin = FeatureOrigin("", self._tile, absorbed, inference_time=self._inference_time)
        stamped = self._stamp.finalized({"properties": {}}, origin)
        before, _, after = orjson.dumps(stamped["properties"]).partition(_ID_IN_TEXT)
        return b"," + before[1:] + _ID_IN_TEXT[:-1], _ID_IN_TEXT[-1:] + after
