"""The shared types: coordinates and sizes in an image, and the values of wire fields."""

from enum import StrEnum
from typing import NamedTuple


class ImageCoord(NamedTuple):
    """The coordinates of a pixel: (row, col), both counted from 0 at the upper left."""

    row: int
    col: int


class ImageDimensions(NamedTuple):
    """A size in pixels: (width, height)."""

    width: int
    height: int


class ImageRegion(NamedTuple):
    """A rectangle of pixels: rows [row, row + height), columns [col, col + width).

    Equal to the plain tuple ``((row, col), (width, height))``, which is its form in messages and tables.
    """

    origin: ImageCoord
    size: ImageDimensions

    @classmethod
    def of(cls, bounds: "RegionLike") -> "ImageRegion":
        """Return the region that a nested pair ``((row, col), (width, height))`` of any sequence type describes."""
        (row, col), (width, height) = bounds
        return cls(ImageCoord(int(row), int(col)), ImageDimensions(int(width), int(height)))

    @property
    def right(self) -> int:
        """The first column past the region."""
        return self.origin.col + self.size.width

    @property
    def bottom(self) -> int:
        """The first row past the region."""
        return self.origin.row + self.size.height

    def to_lists(self) -> list[list[int]]:
        """Return ``[[row, col], [width, height]]``, the form that JSON and DynamoDB carry."""
        return [list(self.origin), list(self.size)]


# A region as a caller may pass it; parsed JSON has lists.
RegionLike = ImageRegion | tuple[tuple[int, int], tuple[int, int]] | list[list[int]]

# The file of a tile, as it is sent to a model.
EncodedTile = bytes | memoryview


class ImageCompression(StrEnum):
    """The compression of a tile's pixels inside its format."""

    NONE = "NONE"
    JPEG = "JPEG"
    J2K = "J2K"
    LZW = "LZW"


class ImageFormats(StrEnum):
    """The file format in which a tile is sent to the model."""

    NITF = "NITF"
    JPEG = "JPEG"
    PNG = "PNG"
    GTIFF = "GTIFF"


class RequestStatus(StrEnum):
    """The status of a job, an image or a region. The last three are terminal."""

    STARTED = "STARTED"
    IN_PROGRESS = "IN_PROGRESS"
    PARTIAL = "PARTIAL"
    SUCCESS = "SUCCESS"
    FAILED = "FAILED"

    @property
    def is_terminal(self) -> bool:
        """True when the status is final."""
        return self in TERMINAL_STATUSES


TERMINAL_STATUSES = (RequestStatus.SUCCESS, RequestStatus.PARTIAL, RequestStatus.FAILED)


class GeojsonDetectionField(StrEnum):
    """Properties in which older models return the pixels of a detection."""

    BOUNDS = "bounds_imcoords"
    GEOM = "geom_imcoords"


class TileState(StrEnum):
    """The outcome of a tile."""

    SUCCEEDED = "succeeded"
    FAILED = "failed"


VALID_IMAGE_COMPRESSION = [item.value for item in ImageCompression]
VALID_IMAGE_FORMATS = [item.value for item in ImageFormats]
