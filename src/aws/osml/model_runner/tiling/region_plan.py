"""Which regions an image has, and which tiles a region has, when a region of interest may leave some out. Pure."""

from collections.abc import Iterator
from itertools import groupby
from typing import NamedTuple

import numpy as np
import shapely
from numpy.typing import NDArray

from aws.osml.model_runner.common.typing import ImageCoord, ImageDimensions, ImageRegion
from aws.osml.model_runner.exceptions import LoadImageException
from aws.osml.model_runner.features.tile_spans import TileSpans, frames_of
from aws.osml.model_runner.tiling.strategy import Tile

from .strategy import TilingStrategy, ceildiv

# Shapes that share less than this area only touch each other.
_LEAST_SHARED_PX2 = 1e-6


FloatArray = NDArray[np.float64]


def region_id_of(region: ImageRegion, job_id: str) -> str:
    """Return the id of a region, the same whenever the image is planned again: ``(0, 344)(512, 512)-job-1``."""
    return f"{tuple(region.origin)}{tuple(region.size)}-{job_id}"


def processing_bounds(width: int, height: int, roi: shapely.Geometry | None) -> ImageRegion:
    """Return the pixels to process: the whole image, or the smallest rectangle around what it shares with ``interest``.

    Raises:
        LoadImageException: the image and the region of interest share no pixel.
    """
    whole = ImageRegion(ImageCoord(0, 0), ImageDimensions(width, height))
    if roi is None:
        return whole
    shared = shapely.intersection(shapely.get_parts(roi), shapely.box(0, 0, width, height))
    shared = shared[shapely.area(shared) > 0]
    if not len(shared):
        raise LoadImageException("regionOfInterest does not touch the image")
    min_x, min_y, max_x, max_y = shapely.total_bounds(shared).tolist()
    left, top = int(np.floor(min_x)), int(np.floor(min_y))
    size = ImageDimensions(int(np.ceil(max_x)) - left, int(np.ceil(max_y)) - top)
    return ImageRegion(ImageCoord(top, left), size)


class PlanSize(NamedTuple):
    """How many parts a plan has when no region of interest leaves any out."""

    regions: int
    largest_region_tiles: int
    tiles: int


class TilePlanner:
    """Cuts an image into regions and regions into tiles, for one request. Every worker comes to the same plan.

    ``interest`` is the region of interest in pixels: polygons that do not overlap, see ``roi_in_pixels``.
    """

    def __init__(
        self,
        strategy: TilingStrategy,
        tile_size: ImageDimensions,
        overlap: ImageDimensions,
        roi: shapely.Geometry | None = None,
    ) -> None:
        self._strategy = strategy
        self._tile_size = tile_size
        self._overlap = overlap
        self._interest = None if roi is None else shapely.STRtree(shapely.get_parts(roi))

    def min_tiles(self, bounds: ImageRegion) -> int:
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
        columns = self._tiles_per_region(ImageRegion(ImageCoord(row, col), ImageDimensions(width, 1)), region_size)
        rows = self._tiles_per_region(ImageRegion(ImageCoord(row, col), ImageDimensions(1, height)), region_size)
        return PlanSize(
            regions=len(columns) * len(rows),
            largest_region_tiles=max(columns, default=0) * max(rows, default=0),
            tiles=sum(columns) * sum(rows),
        )

    def _tiles_per_region(self, strip: ImageRegion, region_size: ImageDimensions) -> list[int]:
        """Return the number of tiles in each region of a strip."""
        regions = self._strategy.compute_regions(strip, region_size, self._tile_size, self._overlap)
        return [len(self._strategy.compute_tiles(region, self._tile_size, self._overlap)) for region in regions]

    def regions(self, bounds: ImageRegion, region_size: ImageDimensions) -> list[ImageRegion]:
        """Return the regions of ``bounds`` that have at least one tile."""
        return [region for region, _ in self.tile_counts(bounds, region_size)]

    def touched(self, bounds: ImageRegion, region_size: ImageDimensions) -> list[ImageRegion]:
        """Return the regions of ``bounds`` that share an area with the region of interest; no tile is made."""
        regions = self._strategy.compute_regions(bounds, region_size, self._tile_size, self._overlap)
        shared = self._shared_areas(frames_of(regions))
        return [region for region, area in zip(regions, shared, strict=True) if area > _LEAST_SHARED_PX2]

    def tile_counts(self, bounds: ImageRegion, region_size: ImageDimensions) -> list[tuple[ImageRegion, int]]:
        """Return the regions of ``bounds`` that have at least one tile, each with the number of its tiles."""
        counts = [
            (region, int(self._are_wanted(self._frames(region)).sum())) for region in self.touched(bounds, region_size)
        ]
        return [(region, count) for region, count in counts if count]

    def max_tiles(self, region: ImageRegion) -> int:
        """Return how many tiles a region has when no region of interest leaves any out."""
        columns, rows = self._strips(region)
        return len(columns) * len(rows)

    def tiles(self, region: ImageRegion) -> list[Tile]:
        """Return the tiles of a region that share an area with the region of interest.

        Each keeps its index in the region's grid.
        """
        tiles = self._strategy.compute_tiles(region, self._tile_size, self._overlap)
        return [Tile(index, tiles[index]) for index in np.flatnonzero(self._are_wanted(frames_of(tiles))).tolist()]

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

    def _strips(self, region: ImageRegion) -> tuple[list[ImageRegion], list[ImageRegion]]:
        """Return the columns and the rows of a region's tiles."""
        columns, rows = (
            self._strategy.compute_tiles(ImageRegion(region.origin, size), self._tile_size, self._overlap)
            for size in (ImageDimensions(region.size.width, 1), ImageDimensions(1, region.size.height))
        )
        return columns, rows

    def _frames(self, region: ImageRegion) -> FloatArray:
        """Return (minx, miny, maxx, maxy) of a region's tiles, in their order, without making them."""
        columns, rows = (frames_of(strip) for strip in self._strips(region))
        across, down = np.tile(columns, (len(rows), 1)), np.repeat(rows, len(columns), axis=0)
        return np.column_stack([across[:, 0], down[:, 1], across[:, 2], down[:, 3]])

    def _are_wanted(self, frames: FloatArray) -> NDArray[np.bool_]:
        wanted: NDArray[np.bool_] = self._shared_areas(frames) > _LEAST_SHARED_PX2
        return wanted

    def _shared_areas(self, frames: FloatArray) -> FloatArray:
        """Return the area that each rectangle shares with the region of interest, in square pixels."""
        boxes = np.asarray(shapely.box(*frames.T), dtype=object)
        if self._interest is None:
            return np.asarray(shapely.area(boxes))
        of, part = self._interest.query(boxes, predicate="intersects")
        areas = shapely.area(shapely.intersection(boxes[of], self._interest.geometries[part]))
        return np.bincount(of, weights=areas, minlength=len(boxes)).astype(np.float64)
