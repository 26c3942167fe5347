"""The names under which this room's errors are imported."""

from aws.osml.model_runner.exceptions import (
    InvalidImageRequestException,
    InvalidImageURLException,
    InvalidRegionRequestException,
    InvalidS3ObjectException,
)

__all__ = [
    "InvalidImageRequestException",
    "InvalidImageURLException",
    "InvalidRegionRequestException",
    "InvalidS3ObjectException",
]
