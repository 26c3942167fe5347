"""Properties of features: deprecated names, properties that a job adds, and internal properties."""

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

# Prefix of properties that the worker sets between its stages.
INTERNAL_PREFIX = "_modelRunner"
# Tile in which the feature was detected, [[row, col], [width, height]].
TILE = f"{INTERNAL_PREFIX}Tile"
# Marks a geometry that crosses the antimeridian and is not cut yet: see ``rfc7946``.
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
    """Origin of a feature: its id, its tile, the time of inference, and the number of features merged into it.

    ``absorbed_ids``: ids of the features whose geometries were joined to this one's.
    """

    feature_id: str
    tile: ImageRegion
    absorbed: int = 0
    absorbed_ids: Sequence[str] = ()
    inference_time: str | None = None

    def metadata(self) -> dict[str, Any]:
        """Return the members that ``inferenceMetadata`` has besides the job id and the time."""
        members: dict[str, Any] = {"featureId": self.feature_id, "tile": self.tile.to_lists()}
        if self.absorbed:
            members["absorbed"] = self.absorbed
        if self.absorbed_ids:
            members["absorbedIds"] = list(self.absorbed_ids)
        return members


@dataclass(frozen=True)
class FeatureStamp:
    """Properties that one job adds to each of its features."""

    job_id: str
    properties: Mapping[str, Any]

    @classmethod
    def from_request(
        cls,
        job_id: str,
        feature_properties: Sequence[Mapping[str, Any]] | None,
        source_metadata: Mapping[str, Any] | None = None,
    ) -> "FeatureStamp":
        """Return the stamp of a request's ``featureProperties``, in order, then the image's source metadata.

        A later property replaces an earlier one of the same name.
        Raises InvalidFeaturePropertiesException if they are not a list of JSON objects.
        """
        if isinstance(feature_properties, Mapping | str) or not isinstance(feature_properties, Sequence | None):
            raise InvalidFeaturePropertiesException("featureProperties: expected a list of JSON objects")
        merged: dict[str, Any] = {}
        for number, properties in enumerate(feature_properties or ()):
            if not isinstance(properties, Mapping):
                raise InvalidFeaturePropertiesException(f"featureProperties[{number}]: expected a JSON object")
            merged.update(properties)
        merged.update(source_metadata or {})
        try:
            orjson.dumps(merged)
        except TypeError as err:
            raise InvalidFeaturePropertiesException(f"featureProperties cannot be written as JSON: {err}") from err
        return cls(job_id, merged)

    def finalized(self, feature: Mapping[str, Any], origin: FeatureOrigin | None = None) -> Feature:
        """Return a copy of the feature as it is delivered.

        The job's properties are added after ``inferenceMetadata``, so that a request can override it. Internal
        properties are removed last, also if the request or the model set them.

        Raises InvalidFeaturePropertiesException if the feature's own properties are not a JSON object.
        """
        own = feature.get("properties")
        if type(own) is not dict and not isinstance(own, Mapping | None):
            raise InvalidFeaturePropertiesException("the properties of a feature are not a JSON object")
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
        # The id is the last member, because ``TextStamp`` appends it to the text.
        own_id = {"id": origin.feature_id} if origin and feature.get("id") is None else {}
        return {**feature, "properties": properties, **own_id}


def finalize_feature(
    feature: Mapping[str, Any],
    job_id: str,
    feature_properties: Sequence[Mapping[str, Any]] | None,
    source_metadata: Mapping[str, Any] | None = None,
) -> Feature:
    """Return one feature as it is delivered. For many features of a job, use one ``FeatureStamp``.

    ``source_metadata`` is the complete object to add: ``{"sourceMetadata": [{…}]}``.
    """
    return FeatureStamp.from_request(job_id, feature_properties, source_metadata).finalized(feature)


@lru_cache(maxsize=256)
def internal_among(names: tuple[str, ...]) -> tuple[str, ...]:
    """Return the internal names. Cached, because nearly all features of a model have the same names."""
    return tuple(filter(is_internal, names))


def is_internal(name: str) -> bool:
    """Return True for a property that is never delivered."""
    return name in _INTERNAL_NAMES or name.startswith(INTERNAL_PREFIX)


def convert_deprecated_feature_properties(feature: Mapping[str, Any]) -> None:
    """Replace ``feature_types`` {name: score} by ``featureClasses`` [{iri, score}] in place, if those are absent."""
    properties = feature["properties"]
    if properties.get(FEATURE_CLASSES) is None and properties.get(FEATURE_TYPES) is not None:
        properties[FEATURE_CLASSES] = [
            without_null_score({"iri": iri, "score": score}) for iri, score in properties.pop(FEATURE_TYPES).items()
        ]


def without_null_score(feature_class: dict[str, Any]) -> dict[str, Any]:
    """Return an element of ``featureClasses`` without its score if that is null."""
    if feature_class.get("score") is not None or "score" not in feature_class:
        return feature_class
    return {name: value for name, value in feature_class.items() if name != "score"}


def feature_id(job_id: str, region_id: str, tile_index: int, ordinal: int) -> str:
    """Return a feature's id, unique in all jobs. It is the same whenever a worker processes the tile again."""
    digest = _digest_of_tile(job_id, region_id, tile_index).copy()
    digest.update(b"%d]" % ordinal)
    # Equals ``str(uuid.uuid5(namespace, name))``, version 5 of RFC 9562, in a fraction of the time.
    digits = digest.hexdigest()
    variant = "89ab"[int(digits[16], 16) & 3]
    return f"{digits[:8]}-{digits[8:12]}-5{digits[13:16]}-{variant}{digits[17:20]}-{digits[20:32]}"


@lru_cache(maxsize=64)
def _digest_of_tile(job_id: str, region_id: str, tile_index: int) -> "hashlib._Hash":
    """Return the SHA-1 of the namespace and of the name's beginning, which all features of a tile share."""
    prefix = orjson.dumps([job_id, region_id, tile_index])[:-1] + b","
    return hashlib.sha1(_FEATURE_NAMESPACE + prefix, usedforsecurity=False)
