"""The shared types. Names that need boto3 are imported on first use, so that pure packages do not import it."""

import importlib
from typing import TYPE_CHECKING, Any

from .typing import (
    TERMINAL_STATUSES,
    VALID_IMAGE_COMPRESSION,
    VALID_IMAGE_FORMATS,
    GeojsonDetectionField,
    ImageCompression,
    ImageCoord,
    ImageDimensions,
    ImageFormats,
    ImageRegion,
    RegionLike,
    RequestStatus,
    TileState,
)

if TYPE_CHECKING:
    from aws.osml.model_runner.aws.clients import AwsClients, default_clients

    from .credentials_utils import get_credentials_for_assumed_role
    from .endpoint_utils import EndpointUtils

_LAZY = {
    "AwsClients": "aws.osml.model_runner.aws.clients",
    "EndpointUtils": "aws.osml.model_runner.common.endpoint_utils",
    "default_clients": "aws.osml.model_runner.aws.clients",
    "get_credentials_for_assumed_role": "aws.osml.model_runner.common.credentials_utils",
}

__all__ = [
    "TERMINAL_STATUSES",
    "VALID_IMAGE_COMPRESSION",
    "VALID_IMAGE_FORMATS",
    "AwsClients",
    "EndpointUtils",
    "GeojsonDetectionField",
    "ImageCompression",
    "ImageCoord",
    "ImageDimensions",
    "ImageFormats",
    "ImageRegion",
    "RegionLike",
    "RequestStatus",
    "TileState",
    "default_clients",
    "get_credentials_for_assumed_role",
]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_LAZY[name]), name)
