"""Fields and checks that image requests and region requests share."""

import json
from collections.abc import Sequence
from typing import Any, Protocol

from aws.osml.model_runner.common.typing import VALID_IMAGE_COMPRESSION, VALID_IMAGE_FORMATS
from aws.osml.model_runner.exceptions import InvalidImageURLException

from .image_url import parse_image_url
from .inference import VALID_MODEL_HOSTING_OPTIONS
from .rules import is_role
from .sink import SinkType

# Fields that a region shares with its image, in the order of the region message.
_SHARED_FIELDS = (
    "image_id",
    "job_id",
    "image_url",
    "image_read_role",
    "model_name",
    "model_invoke_mode",
    "model_endpoint_parameters",
    "model_invocation_role",
    "tile_size",
    "tile_overlap",
    "tile_format",
    "tile_compression",
)
_REQUIRED_OUTPUT_KEY: dict[Any, str] = {SinkType.S3: "bucket", SinkType.KINESIS: "stream"}


class SharedProperties(Protocol):
    """The fields that ``shared_properties_are_valid`` checks."""

    job_id: str
    image_id: str
    image_url: str
    image_read_role: str
    model_name: str
    model_invoke_mode: Any
    model_invocation_role: str
    model_endpoint_parameters: dict[str, Any] | None
    tile_size: Any
    tile_overlap: Any
    tile_format: Any
    tile_compression: Any


def json_text(value: Any) -> str:
    """Return ``value`` as stored in rows: JSON without blanks and without ASCII escapes."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def shared_values(request: SharedProperties) -> dict[str, Any]:
    """Return the properties that a region shares with its image, in the order of the region message."""
    return {name: getattr(request, name) for name in _SHARED_FIELDS}


def shared_properties_are_valid(request: SharedProperties) -> bool:
    """Return True if image, model, tiling and roles of a request are valid."""
    return (
        all([request.job_id, request.image_id, request.image_url, request.model_name])
        and request.model_invoke_mode in VALID_MODEL_HOSTING_OPTIONS
        and sizes_are_valid(request.tile_size, request.tile_overlap)
        and request.tile_format in VALID_IMAGE_FORMATS
        and (not request.tile_compression or request.tile_compression in VALID_IMAGE_COMPRESSION)
        and is_role(request.image_read_role or "")
        and is_role(request.model_invocation_role or "")
    )


def sizes_are_valid(tile_size: Sequence[int], tile_overlap: Sequence[int]) -> bool:
    """Return True if both are pairs of whole numbers and the overlap is smaller than the tile on each axis."""
    if not (_is_pair(tile_size) and _is_pair(tile_overlap)):
        return False
    return all(0 <= overlap < size for size, overlap in zip(tile_size, tile_overlap, strict=True))


def outputs_are_valid(outputs: Sequence[dict[str, Any]]) -> bool:
    """Return True if there is an output, and each has a known type and its bucket or stream."""
    return bool(outputs) and all(
        bool(output.get(_REQUIRED_OUTPUT_KEY.get(output.get("type"), ""))) for output in outputs
    )


def get_image_path(image_url: str, assumed_role: str = "") -> str:  # noqa: ARG001  # the known name has it
    """Return the path by which GDAL opens an image. Raises InvalidImageURLException if the URL is not valid.

    It does not check that the object exists and that the role can read it; opening does.
    """
    return parse_image_url(image_url).gdal_path


def validate_image_path(image_url: str, assumed_role: str | None = None) -> bool:  # noqa: ARG001  # the known name has it
    """Return True if ``image_url`` is the valid URL of an image."""
    try:
        parse_image_url(image_url)
    except InvalidImageURLException:
        return False
    return True


def _is_pair(size: Any) -> bool:
    is_sequence = isinstance(size, (tuple, list)) and len(size) == 2
    return is_sequence and all(isinstance(length, int) and not isinstance(length, bool) for length in size)
