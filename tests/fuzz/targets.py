"""What has to hold for every sequence of bytes that a stranger sends; each function raises AssertionError where not.

``run.py`` looks for bytes for which it does not, and the tests repeat what was found.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import orjson

from aws.osml.model_runner.api import (
    ImageRequest,
    job_id_of,
    parse_image_request_message,
    parse_region_message,
)
from aws.osml.model_runner.api.exceptions import InvalidImageRequestException, InvalidRegionRequestException
from aws.osml.model_runner.common.typing import ImageCoord, ImageDimensions, ImageRegion
from aws.osml.model_runner.exceptions import BadModelAnswerError, InvalidRequestError
from aws.osml.model_runner.features.answer import parse_answer
from aws.osml.model_runner.features.encoding import encode_features
from aws.osml.model_runner.features.location_grid import LocationGrid
from aws.osml.model_runner.features.refinement import refine_features
from aws.osml.model_runner.raster.jpeg2000 import codestreams
from aws.osml.model_runner.sink.result_key import result_key

TILE = ImageRegion(ImageCoord(1000, 2000), ImageDimensions(512, 512))
MAX_MESSAGE_CHARACTERS = 100_000


def check_request(body: bytes) -> None:
    """A message is one of a request, or is refused with everything that is wrong with it."""
    job_id = job_id_of(body)
    assert job_id is None or (job_id.isprintable() and 0 < len(job_id) <= 128)
    _check_region_message(body)
    try:
        requests = parse_image_request_message(body)
    except InvalidImageRequestException as err:
        _check_refusal(err)
        return
    for request in requests:
        item = orjson.loads(orjson.dumps(request.to_item()))
        assert ImageRequest.from_item(item).to_item() == request.to_item()
        assert request.is_valid()
        for output in request.outputs:
            if "bucket" in output:
                key = result_key(output["prefix"], request.job_id, request.result_name)
                assert key.startswith(output["prefix"])
                assert {".", ".."}.isdisjoint(key.split("/"))


def _check_region_message(body: bytes) -> None:
    try:
        region = parse_region_message(body)
    except InvalidRegionRequestException as err:
        _check_refusal(err)
        return
    assert parse_region_message(orjson.dumps(region.to_message())) == region


def _check_refusal(error: InvalidRequestError) -> None:
    assert error.problems
    assert len(str(error)) <= MAX_MESSAGE_CHARACTERS
    assert str(error).isprintable()


def check_answer(body: bytes) -> None:
    """An answer is refused, or each of its features is dropped for a reason or can be placed, stored and read again."""
    try:
        parsed = parse_answer(body)
    except BadModelAnswerError:
        return
    features = refine_features(parsed.features, TILE, GRID)
    encoded = encode_features(features)
    assert len(encoded.bodies) + sum(encoded.dropped.values()) == len(features)
    for text in encoded.bodies:
        feature = orjson.loads(text)
        assert feature["type"] == "Feature"
        properties = feature["properties"]
        assert "imageGeometry" in properties or "imageBBox" in properties
        _check_numbers(properties.get("imageGeometry", {}).get("coordinates", []))
        _check_numbers(properties.get("imageBBox", []))
        if feature.get("geometry"):
            _check_numbers(feature["geometry"]["coordinates"])


def _check_numbers(value: Any) -> None:
    if isinstance(value, list):
        for item in value:
            _check_numbers(item)
    else:
        assert isinstance(value, (int, float))
        assert math.isfinite(value)


def check_codestream(body: bytes) -> None:
    """Whatever a file holds, its headers are read in bounded time, and what they announce is a number."""
    for codestream in codestreams(
        lambda offset, count: body[offset : offset + count] if offset >= 0 else b"", len(body)
    ):
        assert codestream.decoder_bytes(len(body)) >= 0


def _world(pixels: Any) -> Any:
    return np.column_stack((pixels[:, 0] * 1e-5 + 3.0, 48.0 - pixels[:, 1] * 1e-5, np.zeros(len(pixels))))


GRID = LocationGrid.from_sensor_model(_world, TILE)
TARGETS: dict[str, Callable[[bytes], None]] = {
    "requests": check_request,
    "answers": check_answer,
    "codestreams": check_codestream,
}
