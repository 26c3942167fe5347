"""The default strategy: full tiles that overlap by as much as it takes."""

from .axis import AxisTilingStrategy
from .strategy import Span, ceildiv, stride_of


class VariableOverlapTilingStrategy(AxisTilingStrategy):
    """Full tiles wherever there is room for one, as few as possible, their overlap widened evenly until they fit.

    The rule, for one axis of W pixels, tiles of T, an overlap of at least V, and regions of at most R:

    1. An axis of T pixels or less is one tile, as long as the axis. Else there are n = ceil((W - T) / (T - V)) + 1
       tiles: the fewest that can cover it. Tile i is [s(i), s(i) + T), with s(i) = floor(i * (W - T) / (n - 1)).
       So the first starts where the axis starts, the last ends where it ends, and neighbours share V pixels or more.
    2. The tiles of the processing bounds are taken k at a time, k = 1 + floor((R - T) * (n - 1) / (W - T)), which is
       as many as fit in R wherever they lie; k = 1 where R is smaller than T. A region reaches from the start of the
       first tile of its group to the end of the last. Neighbouring regions share what their tiles share.
    3. The tiles of a region are rule 1 applied to the region alone.

    Rule 3 finds as many tiles in a region as were put into it: a group of m < n tiles spans T + L pixels with
    (m - 2) * (T - V) < L <= (m - 1) * (T - V). The first and the last of them are tiles of rule 1 for the whole bounds.
    Those between are too where n - 1 divides W - T. Elsewhere the two roundings may put them one pixel apart, never
    more: a region's bounds do not tell where the remainder of the whole falls.
    """

    def region_spans(self, span: Span, region_px: int, tile_px: int, overlap_px: int) -> list[Span]:
        """Return rule 2 for one axis."""
        tiles = self.tile_spans(span, tile_px, overlap_px)
        group = _tiles_per_region(span, region_px, tile_px, len(tiles))
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


def _tiles_per_region(span: Span, region_px: int, tile_px: int, tile_count: int) -> int:
    if tile_count <= 1 or region_px < tile_px:
        return 1
    return 1 + (region_px - tile_px) * (tile_count - 1) // (span.length - tile_px)
