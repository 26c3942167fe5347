"""The properties of a feature: what older models call them, what a job stamps on them, what never leaves the house."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple
from uuid import UUID

import orjson

from aws.osml.model_runner.common.typing import ImageRegion
from aws.osml.model_runner.exceptions import InvalidFeaturePropertiesException

from .rfc7946 import conformed

Feature = dict[str, Any]

INFERENCE_TIME = "inferenceTime"
IMAGE_ID = "image_id"
FEATURE_CLASSES = "featureClasses"
FEATURE_TYPES = "feature_types"
CLASS = "class"
SCORE = "score"
INFERENCE_METADATA = "inferenceMetadata"

# What the worker keeps on a feature between its stages may use any name with this prefix.
INTERNAL_PREFIX = "_modelRunner"
# The tile that saw a feature, [[row, col], [width, height]].
TILE = f"{INTERNAL_PREFIX}Tile"
# Its geometry crosses the antimeridian in one piece: see ``rfc7946``.
UNCUT = f"{INTERNAL_PREFIX}Uncut"
INTERNAL_PROPERTIES = (
    INFERENCE_TIME,
    "bounds_imcoords",
    "geom_imcoords",
    "detection_score",
    FEATURE_TYPES,
    IMAGE_ID,
    "adjusted_feature_types",
)
_INTERNAL_NAMES = frozenset(INTERNAL_PROPERTIES)

_FEATURE_NAMESPACE = UUID("5f4e9bd2-93c1-5d0a-8a54-6f1f3a0f7c11").bytes


class FeatureOrigin(NamedTuple):
    """Where a feature comes from: its id, the tile that saw it and when, and the features that it absorbed.

    ``absorbed_ids`` are told where their places are part of this feature's.
    """

    feature_id: str
    tile: ImageRegion
    absorbed: int = 0
    absorbed_ids: Sequence[str] = ()
    inference_time: str | None = None

    def metadata(self) -> dict[str, Any]:
        """Return what ``inferenceMetadata`` tells of it."""
        told: dict[str, Any] = {"featureId": self.feature_id, "tile": self.tile.to_lists()}
        if self.absorbed:
            told["absorbed"] = self.absorbed
        if self.absorbed_ids:
            told["absorbedIds"] = list(self.absorbed_ids)
        return told


@dataclass(frozen=True)
class FeatureStamp:
    """What one job writes on each of its features."""

    job_id: str
    properties: Mapping[str, Any]

    @classmethod
    def from_request(
        cls,
        job_id: str,
        feature_properties: Sequence[Mapping[str, Any]] | None,
        source_metadata: Mapping[str, Any] | None = None,
    ) -> "FeatureStamp":
        """Return the stamp of a request's ``featureProperties``, in order, and the image's source metadata after them.

        Raises InvalidFeaturePropertiesException where they are no list of JSON objects.
        """
        if isinstance(feature_properties, Mapping | str) or not isinstance(feature_properties, Sequence | None):
            raise InvalidFeaturePropertiesException("featureProperties is no list of objects")
        merged: dict[str, Any] = {}
        for number, properties in enumerate(feature_properties or ()):
            if not isinstance(properties, Mapping):
                raise InvalidFeaturePropertiesException(f"featureProperties[{number}] is no object")
            merged.update(properties)
        merged.update(source_metadata or {})
        _check_is_json(merged)
        return cls(job_id, merged)

    def finalized(self, feature: Mapping[str, Any], origin: FeatureOrigin | None = None) -> Feature:
        """Return the feature as it is delivered; the one passed in stays as it is.

        ``inferenceMetadata`` comes first, so that a request may override it; internal properties go last, whoever
        set them and whatever their value.

        Raises InvalidFeaturePropertiesException where the feature's own properties are no object.
        """
        own = feature.get("properties")
        if type(own) is not dict and not isinstance(own, Mapping | None):
            raise InvalidFeaturePropertiesException("the properties of a feature are no object")
        properties = dict(own or {})
        if UNCUT in properties:
            feature = conformed(feature)
        inference_time = origin.inference_time if origin else properties.get(INFERENCE_TIME)
        metadata = {"jobId": self.job_id, "inferenceDT": inference_time}
        if origin:
            metadata |= origin.metadata()
        properties[INFERENCE_METADATA] = metadata
        properties |= self.properties
        for name in internal_among(tuple(properties)):
            del properties[name]
        # The last member, as ``TextStamp`` sets it.
        own_id = {"id": origin.feature_id} if origin and feature.get("id") is None else {}
        return {**feature, "properties": properties, **own_id}


def finalize_feature(
    feature: Mapping[str, Any],
    job_id: str,
    feature_properties: Sequence[Mapping[str, Any]] | None,
    source_metadata: Mapping[str, Any] | None = None,
) -> Feature:
    """Return one feature as it is delivered; for many features of a job, make one ``FeatureStamp`` instead.

    ``source_metadata`` is the whole object to add: ``{"sourceMetadata": [{…}]}``.
    """
    return FeatureStamp.from_request(job_id, feature_properties, source_metadata).finalized(feature)


@lru_cache(maxsize=256)
def internal_among(names: tuple[str, ...]) -> tuple[str, ...]:
    """Return which of a feature's names are internal; the features of a model have the same names, or nearly."""
    return tuple(filter(is_internal, names))


def is_internal(name: str) -> bool:
    """Tell whether a property is the worker's own business."""
    return name in _INTERNAL_NAMES or name.startswith(INTERNAL_PREFIX)


def _check_is_json(properties: Mapping[str, Any]) -> None:
    try:
        orjson.dumps(dict(properties))
    except TypeError as err:
        raise InvalidFeaturePropertiesException(f"featureProperties cannot be written as JSON: {err}") from err


def convert_deprecated_feature_properties(feature: Mapping[str, Any]) -> None:
    """Turn ``feature_types`` {name: score} into ``featureClasses`` [{iri, score}], in place, where those are absent."""
    properties = feature["properties"]
    if properties.get(FEATURE_CLASSES) is None and properties.get(FEATURE_TYPES) is not None:
        properties[FEATURE_CLASSES] = classes_of_types(properties.pop(FEATURE_TYPES))


def classes_of_types(feature_types: Mapping[str, float | None]) -> list[dict[str, Any]]:
    """Return ``featureClasses`` for the older form {name: score}."""
    return [without_null_score({"iri": iri, "score": score}) for iri, score in feature_types.items()]


def without_null_score(feature_class: dict[str, Any]) -> dict[str, Any]:
    """Return an element of ``featureClasses``, its score left out where it is null."""
    if feature_class.get("score") is not None or "score" not in feature_class:
        return feature_class
    return {name: value for name, value in feature_class.items() if name != "score"}


def feature_id(job_id: str, region_id: str, tile_index: int, ordinal: int) -> str:
    """Return the identity of a feature within all jobs: the same whenever and wherever its tile is done again."""
    digest = _digest_of_tile(job_id, region_id, tile_index).copy()
    digest.update(b"%d]" % ordinal)
    return _uuid5_text(digest.hexdigest())


@lru_cache(maxsize=64)
def _digest_of_tile(job_id: str, region_id: str, tile_index: int) -> "hashlib._Hash":
    """Return the SHA-1 of what the names of a tile's features begin with."""
    begun = orjson.dumps([job_id, region_id, tile_index])[:-1] + b","
    return hashlib.sha1(_FEATURE_NAMESPACE + begun, usedforsecurity=False)


def _uuid5_text(digits: str) -> str:
    """Return the UUID of version 5, RFC 9562, of a SHA-1 of namespace and name, in hexadecimal digits.

    As ``str(uuid.uuid5(namespace, name))``, in a fraction of the time.
    """
    variant = "89ab"[int(digits[16], 16) & 3]
    return f"{digits[:8]}-{digits[8:12]}-5{digits[13:16]}-{variant}{digits[17:20]}-{digits[20:32]}"
