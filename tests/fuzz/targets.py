"""Properties of the parsers for every sequence of bytes; each function raises AssertionError where one does not hold.

``run.py`` looks for bytes that break a property, and the tests repeat those bytes.
"""

import math
import re
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import numpy as np
import orjson
from osgeo import osr

from aws.osml.model_runner.api import (
    ImageRequest,
    job_id_of,
    parse_image_request_message,
    parse_region_message,
)
from aws.osml.model_runner.api.exceptions import InvalidImageRequestException, InvalidRegionRequestException
from aws.osml.model_runner.common.typing import ImageCoord, ImageDimensions, ImageRegion
from aws.osml.model_runner.exceptions import BadModelResponseError, InvalidRequestError, LoadImageException
from aws.osml.model_runner.features.encoding import encode_features
from aws.osml.model_runner.features.geolocation import refine_features
from aws.osml.model_runner.features.geolocation_grid import LocationGrid
from aws.osml.model_runner.features.model_response import parse_response
from aws.osml.model_runner.raster import RasterSettings
from aws.osml.model_runner.raster.crs_text import are_plain_citations, is_plain_gml
from aws.osml.model_runner.raster.jpeg2000 import codestreams
from aws.osml.model_runner.raster.open import check_header
from aws.osml.model_runner.raster.tiff_tags import OddHeaderError
from aws.osml.model_runner.sink.result_key import result_key

TILE = ImageRegion(ImageCoord(1000, 2000), ImageDimensions(512, 512))
MAX_MESSAGE_CHARACTERS = 100_000
SETTINGS = RasterSettings(max_xml_bytes=16 * 1024)
MAX_READS = 110_000
# Bytes read from headers beside metadata: directories of tags, headers of boxes and of segments.
MAX_READ_BYTES = 5 * SETTINGS.max_xml_bytes + 128 * 1024
# GDAL's own words for files that a coordinate system names.
_NAMES_FILE = re.compile(r"(?:grids|file)=(?!@null\b)|PARAMETERFILE|PROJ4_GRIDS", re.IGNORECASE)


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
        parsed = parse_response(body)
    except BadModelResponseError:
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
    """Check that headers of any bytes are read in bounded time, and that their sizes are numbers."""

    def read_at(offset: int, count: int) -> bytes:
        return body[offset : offset + count] if offset >= 0 else b""

    with suppress(OddHeaderError):
        for codestream in codestreams(read_at, len(body)):
            assert codestream.decoder_bytes(len(body)) >= 0


def check_image_header(body: bytes) -> None:
    """The header of a file is checked, or its file refused, without an error and in bounded reads."""
    reads, read_bytes, refusal = 0, 0, "image "

    def read_at(offset: int, count: int) -> bytes:
        nonlocal reads, read_bytes
        assert offset >= 0
        assert count >= 0
        part = body[offset : offset + count]
        reads, read_bytes = reads + 1, read_bytes + len(part)
        return part

    try:
        check_header(read_at, len(body), "image", SETTINGS)
    except LoadImageException as err:
        refusal = str(err)
    assert refusal.startswith("image ")
    assert len(refusal) <= MAX_MESSAGE_CHARACTERS
    assert reads <= MAX_READS
    assert read_bytes <= MAX_READ_BYTES


def check_crs_text(body: bytes) -> None:
    """Check that no coordinate system that is passed to PROJ makes GDAL open a file."""
    is_plain_gml(body)
    for citations in (body, b"ESRI PE String = " + body):
        if are_plain_citations(citations):
            text = citations.partition(b"ESRI PE String = ")[2]
            # GDAL cuts a citation at the bar, or does not.
            for wkt in {text, text.partition(b"|")[0]}:
                _check_system(wkt.partition(b"\0")[0].decode("latin-1"))


def _check_system(wkt: str) -> None:
    system = osr.SpatialReference()
    try:
        if not wkt or system.ImportFromWkt(wkt) != 0:
            return
        texts = [system.ExportToProj4(), system.ExportToWkt(["FORMAT=WKT2_2019"]), system.ExportToWkt()]
    except RuntimeError:
        return
    assert not any(_NAMES_FILE.search(text) for text in texts), texts


def _world(pixels: Any) -> Any:
    return np.column_stack((pixels[:, 0] * 1e-5 + 3.0, 48.0 - pixels[:, 1] * 1e-5, np.zeros(len(pixels))))


GRID = LocationGrid.from_sensor_model(_world, TILE)
TARGETS: dict[str, Callable[[bytes], None]] = {
    "requests": check_request,
    "answers": check_answer,
    "codestreams": check_codestream,
    "headers": check_image_header,
    "crs": check_crs_text,
}
