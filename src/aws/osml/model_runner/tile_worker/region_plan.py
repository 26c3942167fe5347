"""Which regions an image has, and which tiles a region has, when a region of interest may leave some out. Pure."""

from collections.abc import Callable, Iterator
from itertools import groupby
from typing import NamedTuple

import numpy as np
import shapely
from numpy.typing import NDArray

from aws.osml.model_runner.common.typing import ImageCoord, ImageDimensions, ImageRegion
from aws.osml.model_runner.exceptions import LoadImageException
from aws.osml.model_runner.features.tile_spans import TileSpans, frames_of

from .region_run import Tile
from .tiling_strategy import TilingStrategy, ceildiv

# A straight edge on the map is bent in the image: edges longer than this part of the outline get vertices between.
_EDGE_PART = 1 / 64


def region_id_of(region: ImageRegion, job_id: str) -> str:
    """Return the id of a region, the same whenever the image is planned again: ``(0, 344)(512, 512)-job-1``."""
    return f"{tuple(region.origin)}{tuple(region.size)}-{job_id}"


def interest_in_pixels(
    interest: shapely.Geometry, world_to_image: Callable[[NDArray[np.float64]], NDArray[np.float64]]
) -> shapely.Geometry:
    """Return a region of interest, given in degrees as (lon, lat), as a shape in pixels as (x, y); holes stay holes."""
    step = float(shapely.length(interest)) * _EDGE_PART
    dense = shapely.segmentize(shapely.force_2d(interest), step) if step > 0 else interest
    return shapely.make_valid(shapely.transform(dense, world_to_image))


def processing_bounds(width: int, height: int, interest: shapely.Geometry | None) -> ImageRegion:
    """Return the pixels to process: the whole image, or the smallest rectangle around what it shares with ``interest``.

    Raises:
        LoadImageException: the image and the region of interest share no pixel.
    """
    whole = ImageRegion(ImageCoord(0, 0), ImageDimensions(width, height))
    if interest is None:
        return whole
    shared = shapely.intersection(interest, shapely.box(0, 0, width, height))
    if shared.is_empty or shared.area == 0:
        raise LoadImageException("regionOfInterest does not touch the image")
    min_x, min_y, max_x, max_y = shared.bounds
    left, top = int(np.floor(min_x)), int(np.floor(min_y))
    size = ImageDimensions(int(np.ceil(max_x)) - left, int(np.ceil(max_y)) - top)
    return ImageRegion(ImageCoord(top, left), size)


class PlanSize(NamedTuple):
    """How many parts a plan has when no region of interest leaves any out."""

    regions: int
    largest_region_tiles: int
    tiles: int


class RegionPlanner:
    """Cuts an image into regions and regions into tiles, for one request. Every worker comes to the same plan."""

    def __init__(
        self,
        strategy: TilingStrategy,
        tile_size: ImageDimensions,
        overlap: ImageDimensions,
        interest: shapely.Geometry | None = None,
    ) -> None:
        self._strategy = strategy
        self._tile_size = tile_size
        self._overlap = overlap
        self._interest = interest

    def least_tiles(self, bounds: ImageRegion) -> int:
        """Return how many tiles any plan of ``bounds`` has at least, when no region of interest leaves any out."""
        counts = [
            1 + max(0, ceildiv(length - tile_px, tile_px - overlap_px))
            for length, tile_px, overlap_px in zip(bounds.size, self._tile_size, self._overlap, strict=True)
        ]
        return counts[0] * counts[1]

    def size(self, bounds: ImageRegion, region_size: ImageDimensions) -> PlanSize:
        """Return how large the plan of ``bounds`` would be, without making it.

        Columns and rows are divided apart, so a strip of one pixel shows how either is.
        """
        (row, col), (width, height) = bounds
        columns = self._strip_tiles(ImageRegion(ImageCoord(row, col), ImageDimensions(width, 1)), region_size)
        rows = self._strip_tiles(ImageRegion(ImageCoord(row, col), ImageDimensions(1, height)), region_size)
        return PlanSize(
            regions=len(columns) * len(rows),
            largest_region_tiles=max(columns, default=0) * max(rows, default=0),
            tiles=sum(columns) * sum(rows),
        )

    def _strip_tiles(self, strip: ImageRegion, region_size: ImageDimensions) -> list[int]:
        """Return the number of tiles in each region of a strip."""
        regions = self._strategy.compute_regions(strip, region_size, self._tile_size, self._overlap)
        return [len(self._strategy.compute_tiles(region, self._tile_size, self._overlap)) for region in regions]

    def regions(self, bounds: ImageRegion, region_size: ImageDimensions) -> list[ImageRegion]:
        """Return the regions of ``bounds`` that have at least one tile."""
        regions = self._strategy.compute_regions(bounds, region_size, self._tile_size, self._overlap)
        return regions if self._interest is None else [region for region in regions if self.tiles(region)]

    def tiles(self, region: ImageRegion) -> list[Tile]:
        """Return the tiles of a region that touch the region of interest; each keeps its place in the region's grid."""
        tiles = self._strategy.compute_tiles(region, self._tile_size, self._overlap)
        return [Tile(index, bounds) for index, bounds in enumerate(tiles) if self._is_wanted(bounds)]

    def rows(self, bounds: ImageRegion, region_size: ImageDimensions) -> Iterator[list[tuple[ImageRegion, Tile]]]:
        """Yield the tiles of all regions, each with its region, row by row of tiles.

        Tiles of a row begin at the same row of pixels; they are in order of region and tile.
        """
        waiting: dict[int, list[tuple[ImageRegion, Tile]]] = {}
        for first_row, regions in groupby(self.regions(bounds, region_size), key=lambda region: region.origin.row):
            # No tile of this region, or of one that follows, begins above it.
            for row in sorted(row for row in waiting if row < first_row):
                yield waiting.pop(row)
            for region in regions:
                for tile in self.tiles(region):
                    waiting.setdefault(tile.bounds.origin.row, []).append((region, tile))
        for row in sorted(waiting):
            yield waiting[row]

    def spans(self, bounds: ImageRegion, region_size: ImageDimensions) -> TileSpans:
        """Return the columns and rows of all tiles, when no region of interest leaves any out."""
        regions = self._strategy.compute_regions(bounds, region_size, self._tile_size, self._overlap)
        # Columns and rows are divided apart: the first row of regions has all columns, the first column all rows.
        tiles = (
            tile
            for region in regions
            if region.origin.row == regions[0].origin.row or region.origin.col == regions[0].origin.col
            for tile in self._strategy.compute_tiles(region, self._tile_size, self._overlap)
        )
        return TileSpans.of(frames_of(tiles))

    def _is_wanted(self, tile: ImageRegion) -> bool:
        if self._interest is None:
            return True
        box = shapely.box(tile.origin.col, tile.origin.row, tile.right, tile.bottom)
        return bool(shapely.relate_pattern(self._interest, box, "T********"))
