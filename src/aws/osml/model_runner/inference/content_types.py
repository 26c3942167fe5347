"""The media types under which tiles are sent."""

from aws.osml.model_runner.common.typing import ImageFormats

CONTENT_TYPES = {
    ImageFormats.NITF: "image/nitf",
    ImageFormats.GTIFF: "image/tiff",
    ImageFormats.PNG: "image/png",
    ImageFormats.JPEG: "image/jpeg",
}


def content_type_of(tile_format: str | None) -> str | None:
    """Return the media type of a tile format; None when the format is not known, as in version 2."""
    return CONTENT_TYPES[ImageFormats(tile_format)] if tile_format else None
