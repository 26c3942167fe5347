"""Published names of the errors of this package."""

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
