"""Parses and checks requests: JSON messages, image URLs, regions of interest, policies."""

from .image_request import ImageRequest
from .image_request_message import job_id_of, parse_image_request_message
from .image_url import ImageLocation, parse_image_url
from .inference import VALID_MODEL_HOSTING_OPTIONS, ModelInvokeMode
from .region_of_interest import parse_roi
from .region_request import RegionName, RegionRequest, parse_region_message
from .request_utils import get_image_path, shared_properties_are_valid, validate_image_path
from .sink import VALID_SYNC_TYPES, SinkMode, SinkType

__all__ = [
    "VALID_MODEL_HOSTING_OPTIONS",
    "VALID_SYNC_TYPES",
    "ImageLocation",
    "ImageRequest",
    "ModelInvokeMode",
    "RegionName",
    "RegionRequest",
    "SinkMode",
    "SinkType",
    "get_image_path",
    "job_id_of",
    "parse_image_request_message",
    "parse_image_url",
    "parse_region_message",
    "parse_roi",
    "shared_properties_are_valid",
    "validate_image_path",
]
