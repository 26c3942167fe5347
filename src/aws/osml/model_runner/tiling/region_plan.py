"""Plans the regions of an image and the tiles of a region; a region of interest leaves some of them out. Pure."""

from collections.abc import Iterator
from itertools import groupby
from typing import NamedTuple

import numpy as np
import shapely
from numpy.typing import NDArray

from aws.osml.model_runner.common.typing import ImageCoord, ImageDimensions, ImageRegion
from aws.osml.model_runner.exceptions import LoadImageException
from aws.osml.model_runner.features.tile_spans import TileSpans, bounds_of_tiles

from .strategy import Tile, TilingStrategy, ceildiv

# Shapes that share less than this area only touch each other.
_MIN_SHARED_PX2 = 1e-6
# Rounding of an area that is added up, relative to it.
_ROUNDING = 1e-9

FloatArray = NDArray[np.float64]


def region_id_of(region: ImageRegion, job_id: str) -> str:
    """Return the id of a region, such as ``(0, 344)(512, 512)-job-1``; a second plan of the image gives the same id."""
    return f"{tuple(region.origin)}{tuple(region.size)}-{job_id}"


def processing_bounds(width: int, height: int, roi: shapely.Geometry | None) -> ImageRegion:
    """Return the pixels to process: the whole image, or the bounding box of its intersection with ``roi``.

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


class PixelArea:
    """An area of an image: polygons in pixels that do not overlap, see ``roi_in_pixels``."""

    def __init__(self, polygons: shapely.Geometry) -> None:
        self._parts = shapely.STRtree(shapely.get_parts(polygons))

    def touches(self, bounds: FloatArray) -> NDArray[np.bool_]:
        """Return which rectangles, (n, 4) as minx, miny, maxx, maxy, share an area with this area."""
        return np.asarray(self._shared_px2(bounds) > _MIN_SHARED_PX2)

    def holds(self, bounds: FloatArray) -> NDArray[np.bool_]:
        """Return which rectangles, (n, 4) as minx, miny, maxx, maxy, lie wholly in this area."""
        sizes = (bounds[:, 2:] - bounds[:, :2]).prod(axis=1)
        return np.asarray(self._shared_px2(bounds) >= sizes - _MIN_SHARED_PX2 - _ROUNDING * sizes)

    def _shared_px2(self, bounds: FloatArray) -> FloatArray:
        boxes = np.asarray(shapely.box(*bounds.T), dtype=object)
        box, part = self._parts.query(boxes, predicate="intersects")
        areas = shapely.area(shapely.intersection(boxes[box], self._parts.geometries[part]))
        shared: FloatArray = np.bincount(box, weights=areas, minlength=len(boxes)).astype(np.float64)
        return shared


class TilePlanner:
    """Plans the regions and tiles of one request. Every worker computes the same plan.

    ``roi`` is the region of interest in pixels: polygons that do not overlap, see ``roi_in_pixels``.
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
        self._roi = None if roi is None else PixelArea(roi)

    @property
    def has_roi(self) -> bool:
        """True if a region of interest may leave tiles out."""
        return self._roi is not None

    def min_tiles(self, bounds: ImageRegion) -> int:
        """Return a lower bound on the tiles of any plan of ``bounds`` without a region of interest."""
        counts = [
            1 + max(0, ceildiv(length - tile_px, tile_px - overlap_px))
            for length, tile_px, overlap_px in zip(bounds.size, self._tile_size, self._overlap, strict=True)
        ]
        return counts[0] * counts[1]

    def size(self, bounds: ImageRegion, region_size: ImageDimensions) -> PlanSize:
        """Return the size of the plan of ``bounds``, without making the plan.

        Columns and rows are divided separately, so a strip of one pixel shows the division of either axis.
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
        """Return the regions of ``bounds`` that share an area with the region of interest, without making tiles."""
        regions = self._strategy.compute_regions(bounds, region_size, self._tile_size, self._overlap)
        return [regions[index] for index in np.flatnonzero(self._touch_roi(bounds_of_tiles(regions))).tolist()]

    def tile_counts(self, bounds: ImageRegion, region_size: ImageDimensions) -> list[tuple[ImageRegion, int]]:
        """Return the regions of ``bounds`` that have at least one tile, each with the number of its tiles."""
        counts = []
        for region in self.touched(bounds, region_size):
            # The bounds of the tiles, without making the tiles.
            columns, rows = (bounds_of_tiles(strip) for strip in self._strips(region))
            across, down = np.tile(columns, (len(rows), 1)), np.repeat(rows, len(columns), axis=0)
            tiles = np.column_stack([across[:, 0], down[:, 1], across[:, 2], down[:, 3]])
            if count := int(self._touch_roi(tiles).sum()):
                counts.append((region, count))
        return counts

    def max_tiles(self, region: ImageRegion) -> int:
        """Return the number of tiles of a region without a region of interest."""
        columns, rows = self._strips(region)
        return len(columns) * len(rows)

    def tiles(self, region: ImageRegion) -> list[Tile]:
        """Return the tiles of a region that share an area with the region of interest.

        Each tile keeps its index in the region's grid.
        """
        tiles = self._strategy.compute_tiles(region, self._tile_size, self._overlap)
        return [Tile(index, tiles[index]) for index in np.flatnonzero(self._touch_roi(bounds_of_tiles(tiles))).tolist()]

    def outside(self, region: ImageRegion) -> NDArray[np.bool_]:
        """Return which tiles of a region's grid share no area with the region of interest, by their indices."""
        tiles = self._strategy.compute_tiles(region, self._tile_size, self._overlap)
        return ~self._touch_roi(bounds_of_tiles(tiles))

    def rows(self, bounds: ImageRegion, region_size: ImageDimensions) -> Iterator[list[tuple[ImageRegion, Tile]]]:
        """Yield the tiles of all regions, each with its region, one row of tiles at a time.

        Tiles of a row begin at the same row of pixels; they are in order of region and tile.
        """
        waiting: dict[int, list[tuple[ImageRegion, Tile]]] = {}
        for first_row, regions in groupby(self.regions(bounds, region_size), key=lambda region: region.origin.row):
            # No tile of these regions, or of later regions, begins above their first row.
            for row in sorted(row for row in waiting if row < first_row):
                yield waiting.pop(row)
            for region in regions:
                for tile in self.tiles(region):
                    waiting.setdefault(tile.bounds.origin.row, []).append((region, tile))
        for row in sorted(waiting):
            yield waiting[row]

    def spans(self, bounds: ImageRegion, region_size: ImageDimensions) -> TileSpans:
        """Return the columns and rows of all tiles, without a region of interest."""
        regions = self._strategy.compute_regions(bounds, region_size, self._tile_size, self._overlap)
        # The axes are divided separately: the first row of regions has all columns, the first column all rows.
        tiles = (
            tile
            for region in regions
            if region.origin.row == regions[0].origin.row or region.origin.col == regions[0].origin.col
            for tile in self._strategy.compute_tiles(region, self._tile_size, self._overlap)
        )
        return TileSpans.of(bounds_of_tiles(tiles))

    def _strips(self, region: ImageRegion) -> tuple[list[ImageRegion], list[ImageRegion]]:
        """Return the columns and the rows of a region's tiles."""
        columns, rows = (
            self._strategy.compute_tiles(ImageRegion(region.origin, size), self._tile_size, self._overlap)
            for size in (ImageDimensions(region.size.width, 1), ImageDimensions(1, region.size.height))
        )
        return columns, rows

    def _touch_roi(self, bounds: FloatArray) -> NDArray[np.bool_]:
        """Return which rectangles, (n, 4) as minx, miny, maxx, maxy, share an area with the region of interest."""
        if self._roi is not None:
            return self._roi.touches(bounds)
        return np.asarray(shapely.area(shapely.box(*bounds.T)) > _MIN_SHARED_PX2)
