"""The strategy of a fixed stride: the overlap is what was asked for, and tiles at the edges are smaller."""

from .axis import AxisTilingStrategy
from .strategy import Span, stepped_spans, stride_of


class VariableTileTilingStrategy(AxisTilingStrategy):
    """Tiles that share exactly the overlap asked for; those at the right and the lower edge of a region are cut off.

    Regions of R pixels start every R - V pixels of the processing bounds, tiles of T pixels every T - V of the region.
    What would show nothing but the overlap of the one before is left out; the first is always there, however
    small. Regions that are no larger than the overlap could not be stepped: they become tiles.
    """

    def region_spans(self, span: Span, region_px: int, tile_px: int, overlap_px: int) -> list[Span]:
        """Return the spans of the regions on one axis."""
        stride_of(tile_px, overlap_px)  # refuse here what would fail once the regions are queued
        return stepped_spans(span, region_px if region_px > overlap_px else tile_px, overlap_px)

    def tile_spans(self, span: Span, tile_px: int, overlap_px: int) -> list[Span]:
        """Return the spans of the tiles on one axis of a region."""
        return stepped_spans(span, tile_px, overlap_px)
