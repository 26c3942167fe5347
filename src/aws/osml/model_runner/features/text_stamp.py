"""Features stamped in their JSON, without reading it: most of what is written of them is there already.

The worker stores a feature with the properties that are its own business at the very end. What is delivered differs
there alone: these are taken off, and what the job stamps is put in their place.
"""

from collections.abc import Mapping
from typing import Any

import orjson

from aws.osml.model_runner.common.typing import ImageRegion

from .properties import IMAGE_ID, INFERENCE_METADATA, INFERENCE_TIME, FeatureOrigin, FeatureStamp, internal_among

# In this order, and after all others.
_STORED_LAST = (IMAGE_ID, INFERENCE_TIME)
_ID_IN_TEXT = b'"featureId":""'


def own_end(feature: Mapping[str, Any], body: bytes) -> int:
    """Return how many bytes of a feature's JSON are its own; 0 where it cannot be stamped in its text.

    That takes a feature whose last member are its properties, the last of them those that the worker sets, some before
    them, and none of these one that is never delivered, or that every job stamps.
    """
    properties = feature.get("properties") or {}
    names = tuple(properties)
    is_plain = names[-2:] == _STORED_LAST == internal_among(names) and INFERENCE_METADATA not in properties
    if not is_plain or len(names) == 2 or tuple(feature)[-1] != "properties":
        return 0
    last = orjson.dumps({name: properties[name] for name in _STORED_LAST})
    # ``{…}`` of it is ``,…`` in the feature, and both the properties and the feature end after it.
    return len(body) - len(last) - 1


class TextStamp:
    """Stamps features of one tile in their text: byte for byte what ``FeatureStamp`` makes of them."""

    def __init__(self, stamp: FeatureStamp, tile: ImageRegion) -> None:
        self._stamp = stamp
        self._tile = tile
        self._is_possible = INFERENCE_METADATA not in stamp.properties
        self._names_in_text = [orjson.dumps(name) + b":" for name in stamp.properties]
        self._around_id: dict[tuple[bytes, int], tuple[bytes, bytes]] = {}

    def stamped(self, body: bytes, own_end: int, feature_id: str, absorbed: int) -> bytes | None:
        """Return a feature as it is delivered; None where that takes more than to add to its text.

        So it does where ``own_end`` is 0, where the job stamps ``inferenceMetadata`` itself, and where it sets what the
        feature may have already.
        """
        own, internal = body[:own_end], body[own_end:]
        if not own or not self._is_possible or any(name in own for name in self._names_in_text):
            return None
        around = self._around_id.get((internal, absorbed))
        if around is None:
            around = self._around_id[internal, absorbed] = self._text_around_id(internal, absorbed)
        return b"".join((own, around[0], feature_id.encode(), around[1]))

    def _text_around_id(self, internal: bytes, absorbed: int) -> tuple[bytes, bytes]:
        """Return what is written in the place of the worker's properties, before and after the feature's id."""
        properties = orjson.loads(b"{" + internal[1:-1])
        stamped = self._stamp.finalized({"properties": properties}, FeatureOrigin("", self._tile, absorbed))
        before, _, after = orjson.dumps(stamped["properties"]).partition(_ID_IN_TEXT)
        return b"," + before[1:] + _ID_IN_TEXT[:-1], _ID_IN_TEXT[-1:] + after + b"}"
