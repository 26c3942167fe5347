"""The errors of this package, under the names that callers import."""

from typing import ClassVar

from aws.osml.model_runner.exceptions import LoadImageException, TileEncodingError

__all__ = [
    "ImageBreaksOffError",
    "ImageUnreachableError",
    "LoadImageException",
    "NotAnImageError",
    "TileEncodingError",
]


class ImageUnreachableError(LoadImageException):
    """The image's store did not answer, or is overloaded: the same open may succeed later."""

    can_retry: ClassVar[bool] = True


class ImageBreaksOffError(ImageUnreachableError):
    """The image's store answers, and breaks off each time that this part of the image is read."""


class NotAnImageError(LoadImageException):
    """GDAL takes the bytes that it fetched for no image of a supported format."""
