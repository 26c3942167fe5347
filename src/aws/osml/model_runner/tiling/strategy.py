"""What a tiling strategy promises, and the arithmetic that strategies share.

A plan is separable: columns and rows are divided apart, and regions and tiles are the products of both. So everything
here is about one axis, a ``Span`` of it at a time, until ``cross`` puts the axes together.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from aws.osml.model_runner.common.typing import ImageCoord, ImageDimensions, ImageRegion, RegionLike
from aws.osml.model_runner.features.overlap_groups import Selector
from aws.osml.model_runner.features.properties import Feature


@dataclass(frozen=True)
class Tile:
    """A tile of a region's plan: its place in the plan, from 0, and its pixels in the full image."""

    index: int
    bounds: ImageRegion


class Span(NamedTuple):
    """Consecutive columns or rows of an image: [start, start + length)."""

    start: int
    length: int

    @property
    def end(self) -> int:
        """The first column or row past the span."""
        return self.start + self.length


class TilingStrategy(ABC):
    """How an image is divided into regions, one for a worker at a time, and a region into tiles, one for a model call.

    Places are pixels of the full image, (row, col); sizes are (width, height). Lists are in reading order: from left
    to right, then down. A strategy holds no state: the same arguments give the same plan in every process.
    """

    @abstractmethod
    def compute_regions(
        self,
        processing_bounds: ImageRegion,
        region_size: ImageDimensions,
        tile_size: ImageDimensions,
        overlap: ImageDimensions,
    ) -> list[ImageRegion]:
        """Return the regions of the part of an image that is to be processed.

        ``region_size`` is the largest that a region should be; ``overlap`` the least that neighbours share.
        """

    @abstractmethod
    def compute_tiles(
        self, region: ImageRegion, tile_size: ImageDimensions, overlap: ImageDimensions
    ) -> list[ImageRegion]:
        """Return the tiles of one region. They cover each of its pixels, and none outside it."""

    @abstractmethod
    def cleanup_duplicate_features(
        self,
        processing_bounds: ImageRegion,
        region_size: ImageDimensions,
        tile_size: ImageDimensions,
        overlap: ImageDimensions,
        features: list[Feature],
        feature_selector: Selector,
    ) -> list[Feature]:
        """Return the features without those that the selector finds to be the same object, seen from several tiles.

        Only features that more than one tile of the plan could have seen are offered to the selector.
        """


def generate_crops(
    region: ImageRegion, chip_size: ImageDimensions, overlap: ImageDimensions, only_full_tiles: bool = False
) -> list[ImageRegion]:
    """Return crops of a region at a fixed stride of ``chip_size - overlap``, cut off where the region ends.

    A crop that would show nothing but the overlap of the one before is left out, so a region is always covered, and
    one that is smaller than the overlap gets one crop. With ``only_full_tiles``, crops that were cut off are left out.

    Raises ValueError where the overlap is negative, or not smaller than the crop.
    """
    columns, rows = axis_spans(region)
    column_crops = stepped_spans(columns, chip_size[0], overlap[0])
    row_crops = stepped_spans(rows, chip_size[1], overlap[1])
    if only_full_tiles:
        column_crops = [crop for crop in column_crops if crop.length == chip_size[0]]
        row_crops = [crop for crop in row_crops if crop.length == chip_size[1]]
    return cross(column_crops, row_crops)


def stepped_spans(span: Span, length: int, overlap: int) -> list[Span]:
    """Return spans of ``length`` that start every ``length - overlap``, cut off where ``span`` ends.

    The first is always there; a later one only where more than the overlap is left for it. An empty span has none.
    """
    stride = stride_of(length, overlap)
    if span.length <= 0:
        return []
    count = max(1, ceildiv(span.length - overlap, stride))
    starts = range(span.start, span.start + count * stride, stride)
    return [Span(start, min(length, span.end - start)) for start in starts]


def stride_of(length: int, overlap: int) -> int:
    """Return how far apart neighbours of this length may start; ValueError unless 0 <= overlap < length."""
    if not 0 <= overlap < length:
        raise ValueError(f"overlap {overlap} px: expected 0 or more, and less than the {length} px that overlap")
    return length - overlap


def axis_spans(region: RegionLike) -> tuple[Span, Span]:
    """Return the columns and the rows of a region."""
    (row, col), (width, height) = ImageRegion.of(region)
    return Span(col, width), Span(row, height)


def cross(columns: Sequence[Span], rows: Sequence[Span]) -> list[ImageRegion]:
    """Return the rectangles that columns and rows make together, in reading order."""
    return [
        ImageRegion(ImageCoord(row.start, column.start), ImageDimensions(column.length, row.length))
        for row in rows
        for column in columns
    ]


def ceildiv(a: int, b: int) -> int:
    """Return a / b, rounded up."""
    return -(-a // b)
