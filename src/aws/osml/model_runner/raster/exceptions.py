"""The errors of this package, under the names that callers import."""

from typing import ClassVar

from aws.osml.model_runner.exceptions import LoadImageException, TileEncodingError

__all__ = [
    "ImageBreaksOffError",
    "ImageUnreachableError",
    "LoadImageException",
    "NotAnImageError",
    "OddHeaderError",
    "TileEncodingError",
]


class ImageUnreachableError(LoadImageException):
    """The image's store did not respond, or is overloaded: the same open may succeed later."""

    can_retry: ClassVar[bool] = True


class ImageBreaksOffError(ImageUnreachableError):
    """The image's store responds, but every transfer of this part of the image breaks off."""


class NotAnImageError(LoadImageException):
    """GDAL does not recognize the fetched bytes as an image of a supported format."""


class OddHeaderError(ValueError):
    """GDAL may read a header in another way than the checks before it do; the message has the reason."""
