"""A model's answer for one tile: taken apart, checked feature by feature, made safe for every step that follows."""

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from enum import StrEnum
from typing import Any, NamedTuple

import orjson

from aws.osml.model_runner.api.inference import MAX_ANSWER_BYTES
from aws.osml.model_runner.exceptions import BadModelResponseError

from .encoding import FEATURE_TOO_LARGE, MAX_FEATURE_BYTES
from .image_geometry import IMAGE_BBOX, IMAGE_GEOMETRY, geometry_problem, image_geometry_problem
from .properties import FEATURE_CLASSES, FEATURE_TYPES, Feature, without_null_score

# A megabyte of ``[],`` becomes twenty of lists, so what an answer takes is estimated before it is read: bytes of an
# empty object, of an entry in one, of an empty list, and of an element with its number, as CPython 3.11 has them.
MAX_PARSED_BYTES = 128 * 1024 * 1024
_PARSED_BYTES = {b"{": 232, b":": 104, b"[": 64, b",": 40}
# Only a response with such a number is searched for integers above the other.
_LONG_INTEGER = re.compile(rb"(?<![0-9.])[1-9][0-9]{18}")
_MOST_INTEGER = 2**63 - 1


class FeatureProblem(StrEnum):
    """Why a feature was dropped, besides the codes of ``GeometryProblem``."""

    NOT_A_FEATURE = "NOT_A_FEATURE"
    BAD_PROPERTIES = "BAD_PROPERTIES"
    BAD_FEATURE_CLASSES = "BAD_FEATURE_CLASSES"
    FEATURE_TOO_LARGE = FEATURE_TOO_LARGE
    FEATURE_NOT_ENCODABLE = "FEATURE_NOT_ENCODABLE"


class ParsedResponse(NamedTuple):
    """The features of an answer that can be used, in its order, and how many others there were for each reason."""

    features: list[Feature]
    dropped: Counter[str]


def parse_response(body: bytes, max_parsed_bytes: int = MAX_PARSED_BYTES) -> ParsedResponse:
    """Return the features of an answer: a JSON object with a list ``features``, whatever its ``type``.

    An empty list is a tile without detections. An object without the list is not: error bodies look like that, and
    a tile that was never looked at must not count as done. The feature collections of RFC 7946 always have it.

    Raises BadModelResponseError, whose text never holds the body, for anything else: no JSON (NaN and infinity are
    none), nested too deeply to be read, larger than ``MAX_ANSWER_BYTES``, or of so many parts that it would take more
    than ``max_parsed_bytes``.
    """
    if len(body) > MAX_ANSWER_BYTES:
        raise BadModelResponseError(f"the answer has {len(body)} bytes, {MAX_ANSWER_BYTES} are allowed")
    parsed_bytes = sum(body.count(mark) * size for mark, size in _PARSED_BYTES.items())
    if parsed_bytes > max_parsed_bytes:
        raise BadModelResponseError(f"the answer would take {parsed_bytes} bytes, {max_parsed_bytes} are allowed")
    try:
        answer = orjson.loads(body)
    except orjson.JSONDecodeError as err:
        raise BadModelResponseError(f"the answer is no JSON: {err.msg} at character {err.pos}") from err
    features = answer.get("features") if isinstance(answer, dict) else None
    if not isinstance(features, list):
        raise BadModelResponseError("the answer is no feature collection: it has no list of features")
    checked = check_features(features)
    if _LONG_INTEGER.search(body):
        return ParsedResponse([_without_long_integers(feature) for feature in checked.features], checked.dropped)
    return checked


def _without_long_integers(value: Any, replaced: Callable[[int], str | float] = str) -> Any:
    """Return JSON whose integers of 2^63 and more are texts, or floats in scores: GDAL cannot read them."""
    if isinstance(value, dict):
        return {
            name: _without_long_integers(inner, float if name in (FEATURE_CLASSES, FEATURE_TYPES) else replaced)
            for name, inner in value.items()
        }
    if isinstance(value, list):
        return [_without_long_integers(inner, replaced) for inner in value]
    return replaced(value) if type(value) is int and value > _MOST_INTEGER else value


def check_features(candidates: Iterable[Any]) -> ParsedResponse:
    """Return those of the candidates, fresh from JSON, that are GeoJSON features with a usable place in pixels.

    They come as new objects in which ``geometry`` is a GeoJSON geometry or null, and ``imageGeometry``, ``imageBBox``
    and ``featureClasses``, where present, are what they should be; null counts as absent there and in scores.
    """
    answer = ParsedResponse([], Counter())
    for candidate in candidates:
        problem = feature_problem(candidate)
        if problem is None:
            answer.features.append(_normalized(candidate))
        else:
            answer.dropped[str(problem)] += 1
    return answer


def feature_problem(candidate: Any) -> StrEnum | None:
    """Return why a candidate is no feature that can be used, or None."""
    if not isinstance(candidate, dict) or candidate.get("type") != "Feature":
        return FeatureProblem.NOT_A_FEATURE
    properties = candidate.get("properties")
    if not isinstance(properties, dict | None):
        return FeatureProblem.BAD_PROPERTIES
    properties = properties or {}
    return image_geometry_problem(properties) or _classes_problem(properties) or _size_problem(candidate)


def _classes_problem(properties: Mapping[str, Any]) -> FeatureProblem | None:
    classes, types = properties.get(FEATURE_CLASSES), properties.get(FEATURE_TYPES)
    if classes is not None:
        is_sound = isinstance(classes, list) and all(map(_is_class, classes))
    else:
        is_sound = types is None or (isinstance(types, dict) and all(map(_is_score, types.values())))
    return None if is_sound else FeatureProblem.BAD_FEATURE_CLASSES


def _is_class(value: Any) -> bool:
    return isinstance(value, dict) and isinstance(value.get("iri"), str) and _is_score(value.get("score"))


def _is_score(value: Any) -> bool:
    return value is None or (type(value) in (float, int) and -math.inf < value < math.inf)


def _size_problem(candidate: Feature) -> FeatureProblem | None:
    """Encode the feature: it can be read at depths at which it cannot be written."""
    try:
        size_bytes = len(orjson.dumps(candidate))
    except orjson.JSONEncodeError:
        return FeatureProblem.FEATURE_NOT_ENCODABLE
    return FeatureProblem.FEATURE_TOO_LARGE if size_bytes > MAX_FEATURE_BYTES else None


def _is_point_beside_box(place: Mapping[str, Any] | None, box: Sequence[float] | None) -> bool:
    """Return True for a point that is not the place: helpers of models write [0, 0] where they have a box alone."""
    if place is None or box is None or place["type"] != "Point":
        return False
    (x, y), (x_1, y_1, x_2, y_2) = place["coordinates"][:2], box
    return not (min(x_1, x_2) <= x <= max(x_1, x_2) and min(y_1, y_2) <= y <= max(y_1, y_2))


def _normalized(feature: Feature) -> Feature:
    properties = dict(feature["properties"])
    for name in (IMAGE_GEOMETRY, IMAGE_BBOX, FEATURE_CLASSES):
        if properties.get(name) is None:
            properties.pop(name, None)
    if _is_point_beside_box(properties.get(IMAGE_GEOMETRY), properties.get(IMAGE_BBOX)):
        del properties[IMAGE_GEOMETRY]
    if FEATURE_CLASSES in properties:
        properties[FEATURE_CLASSES] = [without_null_score(one) for one in properties[FEATURE_CLASSES]]
    geometry = feature.get("geometry")
    return {**feature, "geometry": None if geometry_problem(geometry) else geometry, "properties": properties}
