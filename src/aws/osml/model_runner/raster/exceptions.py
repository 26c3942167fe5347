"""The errors of this room, under the names that callers import."""

from typing import ClassVar

from aws.osml.model_runner.exceptions import LoadImageException, TileEncodingError

__all__ = ["ImageUnreachableError", "LoadImageException", "TileEncodingError"]


class ImageUnreachableError(LoadImageException):
    """The image's store did not answer, or is overloaded: the same open may succeed later."""

    can_retry: ClassVar[bool] = True
