"""The columns and rows of a plan's tiles, so that merging need not read the tiles themselves."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from aws.osml.model_runner.common.typing import ImageRegion

from .detections import Floats, Indices


def bounds_of_tiles(tiles: Iterable[ImageRegion]) -> Floats:
    """Return (m, 4) minx, miny, maxx, maxy of tiles in pixels of the image."""
    corners = [(tile.origin.col, tile.origin.row, tile.right, tile.bottom) for tile in tiles]
    return np.array(corners, dtype=np.float64).reshape(-1, 4)


@dataclass(frozen=True, eq=False)
class TileSpans:
    """``columns`` (k, 2) and ``rows`` (l, 2): [start, end) in pixels of the image, sorted and unique.

    A plan is separable: each tile is the product of a column and a row.
    """

    columns: Floats
    rows: Floats

    @classmethod
    def of(cls, tile_bounds: Floats) -> "TileSpans":
        """Return the spans of tiles; ``tile_bounds``: (m, 4) minx, miny, maxx, maxy of each."""
        columns, rows = (np.unique(tile_bounds[:, sides], axis=0) for sides in ([0, 2], [1, 3]))
        return cls(columns, rows)

    @cached_property
    def row_starts(self) -> Floats:
        """(r,) the upper edges of the rows of tiles, sorted. A feature's row is the index of its tile's edge."""
        starts: Floats = np.unique(self.rows[:, 0])
        return starts

    @cached_property
    def outermost(self) -> Floats:
        """(4,) minx, miny, maxx, maxy around all tiles."""
        (left, right), (top, bottom) = (
            (axis[:, 0].min(initial=np.inf), axis[:, 1].max(initial=-np.inf)) for axis in (self.columns, self.rows)
        )
        return np.array([left, top, right, bottom])

    @cached_property
    def largest_px(self) -> Floats:
        """(2,) the largest width and the largest height of the tiles."""
        return np.array([np.ptp(axis, axis=1).max(initial=0.0) for axis in (self.columns, self.rows)])

    @cached_property
    def least_overlap_px(self) -> float:
        """The smallest overlap of neighbours that overlap; 0 if none overlap."""
        overlaps = np.concatenate([axis[:-1, 1] - axis[1:, 0] for axis in (self.columns, self.rows)])
        return float(overlaps[overlaps > 0].min()) if (overlaps > 0).any() else 0.0

    def within_reach(self, boxes: Floats, tile_bounds: Floats) -> Floats:
        """Return (n, 4) boxes clipped to one tile's size around the tile of each; ``tile_bounds``: (n, 4) these tiles.

        So a feature affects only nearby rows of tiles, however large the model's box is.
        """
        low, high = tile_bounds[:, :2] - self.largest_px, tile_bounds[:, 2:] + self.largest_px
        corners = boxes.reshape(-1, 2, 2)
        cut: Floats = np.clip(corners, low[:, None], high[:, None]).reshape(-1, 4)
        return cut

    def last_rows_within(self, bottoms: Floats, margin_px: float) -> Indices:
        """Return for each of (n,) lower edges the last row of tiles whose boxes may come within the margin."""
        ends = bottoms + self.largest_px[1] + margin_px
        rows: Indices = np.searchsorted(self.row_starts, ends, side="right") - 1
        return rows
