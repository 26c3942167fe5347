"""Parses and checks a model's response for one tile, feature by feature, so that all later steps can rely on it."""

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from enum import StrEnum
from typing import Any, NamedTuple

import orjson

from aws.osml.model_runner.api.inference import MAX_ANSWER_BYTES
from aws.osml.model_runner.exceptions import BadModelResponseError

from .encoding import FEATURE_TOO_LARGE, MAX_FEATURE_BYTES
from .image_geometry import IMAGE_BBOX, IMAGE_GEOMETRY, geometry_problem, image_geometry_problem
from .properties import FEATURE_CLASSES, FEATURE_TYPES, Feature, without_null_score

# A megabyte of ``[],`` becomes twenty megabytes of lists, so the memory is estimated before parsing. Bytes in CPython
# 3.11 of an empty object, of an entry in it, of an empty list, and of an element with its number.
MAX_PARSED_BYTES = 128 * 1024 * 1024
_PARSED_BYTES = {b"{": 232, b":": 104, b"[": 64, b",": 40}
# Only a response that matches is searched for integers above ``_MAX_INTEGER``.
_LONG_INTEGER = re.compile(rb"(?<![0-9.])[1-9][0-9]{18}")
_MAX_INTEGER = 2**63 - 1


# Stands among the reasons of dropped features before a path of ``imageProcessor.answer`` that selected nothing in any
# item of a response. The number is that of the items.
UNSELECTED = "UNSELECTED "


class FeatureProblem(StrEnum):
    """Reasons to drop a feature, besides the codes of ``GeometryProblem``."""

    NOT_A_FEATURE = "NOT_A_FEATURE"
    BAD_PROPERTIES = "BAD_PROPERTIES"
    BAD_FEATURE_CLASSES = "BAD_FEATURE_CLASSES"
    FEATURE_TOO_LARGE = FEATURE_TOO_LARGE
    FEATURE_NOT_ENCODABLE = "FEATURE_NOT_ENCODABLE"


class ParsedResponse(NamedTuple):
    """The valid features of a response, in its order, and the number of dropped features for each reason.

    A reason that begins with ``UNSELECTED`` counts items that are not dropped.
    """

    features: list[Feature]
    dropped: Counter[str]


def parse_response(body: bytes, max_parsed_bytes: int = MAX_PARSED_BYTES) -> ParsedResponse:
    """Return the features of a response: a JSON object with a list ``features``. Its ``type`` does not matter.

    An empty list means that the tile has no detections. An object without the list is an error: error bodies look like
    that, and a tile without a prediction must not count as processed. RFC 7946 always requires the list.

    Raises BadModelResponseError for such an object, and for a body that ``parsed_json`` refuses.
    """
    response = parsed_json(body, max_parsed_bytes)
    features = response.get("features") if isinstance(response, dict) else None
    if not isinstance(features, list):
        raise BadModelResponseError("the response is not a feature collection: it has no list of features")
    checked = check_features(features)
    if _LONG_INTEGER.search(body):
        return ParsedResponse([_without_long_integers(feature) for feature in checked.features], checked.dropped)
    return checked


def parsed_json(body: bytes, max_parsed_bytes: int = MAX_PARSED_BYTES) -> Any:
    """Return the document of a response.

    Raises BadModelResponseError for a body that is not valid JSON, is nested too deeply, or has more than
    ``MAX_ANSWER_BYTES``. NaN and infinity are not valid JSON. A body is also refused if its estimated memory exceeds
    ``max_parsed_bytes``. The error's text never contains the body.
    """
    if len(body) > MAX_ANSWER_BYTES:
        raise BadModelResponseError(f"the response has {len(body)} bytes, at most {MAX_ANSWER_BYTES} are allowed")
    parsed_bytes = sum(body.count(mark) * size for mark, size in _PARSED_BYTES.items())
    if parsed_bytes > max_parsed_bytes:
        reason = f"the parsed response needs {parsed_bytes} bytes, at most {max_parsed_bytes} are allowed"
        raise BadModelResponseError(reason)
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError as err:
        raise BadModelResponseError(f"the response is not valid JSON: {err.msg} at character {err.pos}") from err


def _without_long_integers(value: Any, replaced: Callable[[int], str | float] = str) -> Any:
    """Replace integers of 2^63 and more by text, in scores by floats, because GDAL cannot read them."""
    if isinstance(value, dict):
        return {
            name: _without_long_integers(inner, float if name in (FEATURE_CLASSES, FEATURE_TYPES) else replaced)
            for name, inner in value.items()
        }
    if isinstance(value, list):
        return [_without_long_integers(inner, replaced) for inner in value]
    return replaced(value) if type(value) is int and value > _MAX_INTEGER else value


def check_features(candidates: Iterable[Any]) -> ParsedResponse:
    """Return the candidates, as parsed from JSON, that are GeoJSON features with a valid image geometry.

    The features are new objects. Their ``geometry`` is a GeoJSON geometry or null. Their ``imageGeometry``,
    ``imageBBox`` and ``featureClasses`` are valid or absent; null in these and in scores is removed.
    """
    response = ParsedResponse([], Counter())
    for candidate in candidates:
        problem = feature_problem(candidate)
        if problem is None:
            response.features.append(_normalized(candidate))
        else:
            response.dropped[str(problem)] += 1
    return response


def feature_problem(candidate: Any) -> StrEnum | None:
    """Return the reason to drop a candidate, or None if it is valid."""
    if not isinstance(candidate, dict) or candidate.get("type") != "Feature":
        return FeatureProblem.NOT_A_FEATURE
    properties = candidate.get("properties")
    if not isinstance(properties, dict | None):
        return FeatureProblem.BAD_PROPERTIES
    properties = properties or {}
    problem = image_geometry_problem(properties) or _classes_problem(properties)
    if problem is not None:
        return problem
    try:
        size_bytes = len(orjson.dumps(candidate))
    except orjson.JSONEncodeError:  # orjson reads deeper nesting than it can write
        return FeatureProblem.FEATURE_NOT_ENCODABLE
    return FeatureProblem.FEATURE_TOO_LARGE if size_bytes > MAX_FEATURE_BYTES else None


def _classes_problem(properties: Mapping[str, Any]) -> FeatureProblem | None:
    classes, types = properties.get(FEATURE_CLASSES), properties.get(FEATURE_TYPES)
    if classes is not None:
        is_valid = isinstance(classes, list) and all(
            isinstance(item, dict) and isinstance(item.get("iri"), str) and _is_score(item.get("score"))
            for item in classes
        )
    else:
        is_valid = types is None or (isinstance(types, dict) and all(map(_is_score, types.values())))
    return None if is_valid else FeatureProblem.BAD_FEATURE_CLASSES


def _is_score(value: Any) -> bool:
    return value is None or (type(value) in (float, int) and -math.inf < value < math.inf)


def _normalized(feature: Feature) -> Feature:
    properties = dict(feature["properties"])
    for name in (IMAGE_GEOMETRY, IMAGE_BBOX, FEATURE_CLASSES):
        if properties.get(name) is None:
            properties.pop(name, None)
    point, box = properties.get(IMAGE_GEOMETRY), properties.get(IMAGE_BBOX)
    if point is not None and box is not None and point["type"] == "Point":
        # A point outside the box is not a detection. Helpers of models write [0, 0] if they have only a box.
        (x, y), (x_1, y_1, x_2, y_2) = point["coordinates"][:2], box
        if not (min(x_1, x_2) <= x <= max(x_1, x_2) and min(y_1, y_2) <= y <= max(y_1, y_2)):
            del properties[IMAGE_GEOMETRY]
    if FEATURE_CLASSES in properties:
        properties[FEATURE_CLASSES] = [without_null_score(one) for one in properties[FEATURE_CLASSES]]
    geometry = feature.get("geometry")
    return {**feature, "geometry": None if geometry_problem(geometry) else geometry, "properties": properties}
