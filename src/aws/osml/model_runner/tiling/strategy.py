"""Tiling strategies: the interface, and the two that divide columns and rows separately.

A plan is separable: columns and rows are divided separately, and regions and tiles are the products of both. So the
rules are about one axis, a ``Span`` at a time, until ``cross`` combines the axes.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from aws.osml.model_runner.common.typing import ImageCoord, ImageDimensions, ImageRegion, RegionLike
from aws.osml.model_runner.features.overlap_groups import Selector, select_where_shared
from aws.osml.model_runner.features.properties import Feature


@dataclass(frozen=True)
class Tile:
    """A tile of a region: its index in the region's grid, from 0, and its pixels in the full image."""

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
    """Divides an image into regions, one per worker at a time, and a region into tiles, one per model call.

    Coordinates are pixels of the full image, (row, col); sizes are (width, height). Lists are in reading order: from
    left to right, then down. A strategy holds no state: the same arguments give the same plan in every process.
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

        ``region_size`` is the maximum size of a region; ``overlap`` is the minimum that neighbours share.
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
        """Return the features, with duplicates of one object in several tiles removed or merged by the selector.

        The selector gets only features that more than one tile of the plan could have seen.
        """


class AxisTilingStrategy(TilingStrategy):
    """A strategy that divides columns and rows by the same rule, each independently of the other."""

    @abstractmethod
    def region_spans(self, span: Span, region_px: int, tile_px: int, overlap_px: int) -> list[Span]:
        """Return how the regions divide one axis of the processing bounds."""

    @abstractmethod
    def tile_spans(self, span: Span, tile_px: int, overlap_px: int) -> list[Span]:
        """Return how the tiles divide one axis of a region."""

    def compute_regions(
        self,
        processing_bounds: ImageRegion,
        region_size: ImageDimensions,
        tile_size: ImageDimensions,
        overlap: ImageDimensions,
    ) -> list[ImageRegion]:
        """Return the regions of the processing bounds; see the class for the rule."""
        columns, rows = axis_spans(processing_bounds)
        return cross(
            self.region_spans(columns, region_size[0], tile_size[0], overlap[0]),
            self.region_spans(rows, region_size[1], tile_size[1], overlap[1]),
        )

    def compute_tiles(
        self, region: ImageRegion, tile_size: ImageDimensions, overlap: ImageDimensions
    ) -> list[ImageRegion]:
        """Return the tiles of a region; see the class for the rule."""
        columns, rows = axis_spans(region)
        return cross(
            self.tile_spans(columns, tile_size[0], overlap[0]), self.tile_spans(rows, tile_size[1], overlap[1])
        )

    def cleanup_duplicate_features(
        self,
        processing_bounds: ImageRegion,
        region_size: ImageDimensions,
        tile_size: ImageDimensions,
        overlap: ImageDimensions,
        features: list[Feature],
        feature_selector: Selector,
    ) -> list[Feature]:
        """Return the features, merged by the selector where more than one tile of the plan could have seen them.

        The result does not depend on the order of the features; see ``select_where_shared`` for its own order.
        """
        columns, rows = axis_spans(processing_bounds)
        return select_where_shared(
            features,
            self._planned_tiles(columns, region_size[0], tile_size[0], overlap[0]),
            self._planned_tiles(rows, region_size[1], tile_size[1], overlap[1]),
            feature_selector,
        )

    def _planned_tiles(self, span: Span, region_px: int, tile_px: int, overlap_px: int) -> list[tuple[int, int]]:
        """Return [start, end) of the tiles of all regions on one axis."""
        regions = self.region_spans(span, region_px, tile_px, overlap_px)
        return [(tile.start, tile.end) for region in regions for tile in self.tile_spans(region, tile_px, overlap_px)]


class VariableOverlapTilingStrategy(AxisTilingStrategy):
    """The default strategy: the fewest full tiles that cover an axis, their overlap widened evenly until they fit.

    The rule, for one axis of W pixels, tiles of T, an overlap of at least V, and regions of at most R:

    1. An axis of T pixels or less is one tile, as long as the axis. Else there are n = ceil((W - T) / (T - V)) + 1
       tiles: the fewest that can cover it. Tile i is [s(i), s(i) + T), with s(i) = floor(i * (W - T) / (n - 1)).
       So the first starts where the axis starts, the last ends where it ends, and neighbours share V pixels or more.
    2. The tiles of the processing bounds are grouped, k in a group. ``k = 1 + floor((R - T) * (n - 1) / (W - T))`` is
       the most that always fit in R; k is 1 where R is smaller than T. A region reaches from the start of the first
       tile of its group to the end of the last. Neighbouring regions share the pixels that their tiles share.
    3. The tiles of a region are rule 1 applied to the region alone.

    Rule 3 finds as many tiles in a region as rule 2 put into it. A group of m < n tiles spans T + L pixels with
    ``(m - 2) * (T - V) < L <= (m - 1) * (T - V)``. The first and the last of them are tiles of rule 1 for the whole
    bounds. The others are too where n - 1 divides W - T. Elsewhere the two roundings may put them one pixel apart. They
    never differ by more: the bounds of a region do not determine where the remainder of the whole axis falls.
    """

    def region_spans(self, span: Span, region_px: int, tile_px: int, overlap_px: int) -> list[Span]:
        """Return rule 2 for one axis."""
        tiles = self.tile_spans(span, tile_px, overlap_px)
        group = 1
        if len(tiles) > 1 and region_px >= tile_px:
            group = 1 + (region_px - tile_px) * (len(tiles) - 1) // (span.length - tile_px)
        groups = [tiles[i : i + group] for i in range(0, len(tiles), group)]
        return [Span(tiles[0].start, tiles[-1].end - tiles[0].start) for tiles in groups]

    def tile_spans(self, span: Span, tile_px: int, overlap_px: int) -> list[Span]:
        """Return rule 1 for one axis; an empty span has no tiles."""
        stride = stride_of(tile_px, overlap_px)
        slack = span.length - tile_px
        if slack <= 0:
            return [span] if span.length > 0 else []
        gaps = ceildiv(slack, stride)
        return [Span(span.start + i * slack // gaps, tile_px) for i in range(gaps + 1)]


class VariableTileTilingStrategy(AxisTilingStrategy):
    """Tiles at a fixed stride that share exactly the overlap; tiles at the right and lower edge of a region are cut.

    Regions of R pixels start every R - V pixels of the processing bounds, tiles of T pixels every T - V of the region.
    A region or tile that adds only the overlap of its predecessor is left out; the first is always there, however
    small. Regions that do not exceed the overlap would have no stride, so each tile becomes a region.
    """

    def region_spans(self, span: Span, region_px: int, tile_px: int, overlap_px: int) -> list[Span]:
        """Return the spans of the regions on one axis."""
        stride_of(tile_px, overlap_px)  # raise here, before regions are queued whose tiles have no stride
        return stepped_spans(span, region_px if region_px > overlap_px else tile_px, overlap_px)

    def tile_spans(self, span: Span, tile_px: int, overlap_px: int) -> list[Span]:
        """Return the spans of the tiles on one axis of a region."""
        return stepped_spans(span, tile_px, overlap_px)


def generate_crops(
    region: ImageRegion, chip_size: ImageDimensions, overlap: ImageDimensions, only_full_tiles: bool = False
) -> list[ImageRegion]:
    """Return crops of a region at a fixed stride of ``chip_size - overlap``, cut off where the region ends.

    A crop that adds only the overlap of its predecessor is left out. So the crops always cover the region, and a
    region that is smaller than the overlap has one crop. With ``only_full_tiles``, crops that were cut off are left
    out.

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
    """Return the rectangles that columns and rows form together, in reading order."""
    return [
        ImageRegion(ImageCoord(row.start, column.start), ImageDimensions(column.length, row.length))
        for row in rows
        for column in columns
    ]


def ceildiv(a: int, b: int) -> int:
    """Return a / b, rounded up."""
    return -(-a // b)
