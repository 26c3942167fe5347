"""Finds the tiles of an image that another raster masks: a raster on any grid, sampled by georeference.

Each tile has 16 x 16 samples, and each sample is the nearest pixel of the mask. A sample beyond the mask is not masked.
Positions in the mask are interpolated between a few that the sensor models compute, because those take long.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from typing import Any

import numpy as np
import numpy.typing as npt
from osgeo import gdal

from aws.osml.model_runner.common.typing import ImageRegion
from aws.osml.model_runner.exceptions import LoadImageException

from .georeference import image_to_world, world_to_image
from .handle_pool import ImageHandle
from .image_source import ImageSource
from .invalid_tiles import BoolArray, read_samples, region_around
from .overviews import Level
from .sensor_model import UNREADABLE
from .settings import MIB
from .validity import names_a_file

FloatArray = npt.NDArray[np.float64]

SAMPLES_PER_TILE = 16
# A mask has at most so many pixels over the image. Where it has more, the finest overview with so many is read.
MAX_MASK_PX = 1024 * MIB
# Pixels of a mask that are read at once.
_PART_PX = 4 * MIB
_TOLERANCE_PX = 0.25
_FIRST_CELLS, _MAX_CELLS = 8, 32
# Samples of a row of tiles that are located one by one, where interpolation fails.
_MAX_EXACT = 16 * 1024
_FOOTPRINT_NODES = 9


@dataclass(frozen=True)
class MaskRule:
    """The samples of a mask that are masked: ``values``, or samples with one of ``bits`` set.

    A tile is masked from a share of ``above`` of its samples on.
    """

    values: Sequence[float] = ()
    bits: Sequence[int] = ()
    above: float = 1.0

    def masked(self, samples: npt.NDArray[Any]) -> BoolArray:
        """Return which samples are masked."""
        if self.bits:
            mask = sum(1 << bit for bit in self.bits)
            return np.asarray(samples.astype(np.int64) & mask != 0)
        return np.isin(samples.astype(np.float64), self.values)


class MaskedTiles:
    """Finds tiles of an open image that an open mask masks.

    Raises LoadImageException when one of them has no georeference, or the mask is too fine.
    """

    def __init__(self, source: ImageSource, mask: ImageSource, rule: MaskRule) -> None:
        if source.sensor_model is None:
            raise LoadImageException("the image has no georeference, so a mask cannot be placed on it")
        if mask.sensor_model is None:
            raise LoadImageException(f"{mask.location.url} has no georeference, so it cannot be placed on the image")
        self._rule = rule
        self._mask = mask
        self._to_world = image_to_world(source.sensor_model)
        self._level: Level = mask.read(partial(self._level_for, (source.width, source.height)))

    def find(self, windows: Sequence[ImageRegion]) -> Iterator[BoolArray]:
        """Yield which windows, in image pixels, are masked: a part of them at a time, in order.

        Raises ImageError when the mask cannot be read.
        """
        for _, row in groupby(windows, key=lambda window: window.origin.row):
            tiles = list(row)
            pixels = self._located(tiles)
            is_masked = self._masked(pixels)
            # A share of exactly ``above`` counts, whatever its rounding.
            yield is_masked.mean(axis=1) >= self._rule.above - 1e-9

    def _level_for(self, size: tuple[int, int], handle: ImageHandle) -> Level:
        """Return the raster to read: the mask, or an overview where the mask is too fine over the image."""
        dataset, mask = handle.dataset, self._mask
        band = dataset.GetRasterBand(1)
        if self._rule.bits and gdal.GetDataTypeName(band.DataType).startswith(("F", "C")):
            raise LoadImageException(f"{mask.location.url} must hold whole numbers, because bits are asked for")
        xs, ys = np.meshgrid(*(np.linspace(0, side, _FOOTPRINT_NODES) for side in size))
        places = self._in_mask(np.column_stack([xs.ravel(), ys.ravel()]))
        inside = np.clip(places[np.isfinite(places).all(axis=1)], 0, (mask.width, mask.height))
        footprint_px = float(np.prod(np.ptp(inside, axis=0))) if len(inside) else 0.0
        levels = [Level(None, mask.width, mask.height)]
        if not names_a_file(dataset):
            overviews = [band.GetOverview(index) for index in range(band.GetOverviewCount())]
            levels += [Level(index, overview.XSize, overview.YSize) for index, overview in enumerate(overviews)]
        for level in sorted(levels, key=lambda level: -level.width * level.height):
            if footprint_px * (level.width / mask.width) * (level.height / mask.height) <= MAX_MASK_PX:
                return level
        raise LoadImageException(
            f"{mask.location.url} is too large: it has {footprint_px:.0f} pixels over the image, the limit is"
            f" {MAX_MASK_PX}; add overviews, by the method NEAREST or MODE"
        )

    # Positions ------------------------------------------------------------------------------------------------------

    def _located(self, tiles: Sequence[ImageRegion]) -> FloatArray:
        """Return the position in the mask of each sample: (tiles, samples, 2) x, y; NaN where it has none."""
        shares = (np.arange(SAMPLES_PER_TILE) + 0.5) / SAMPLES_PER_TILE
        across, down = (axis.ravel() for axis in np.meshgrid(shares, shares))
        corners = np.array([(tile.origin.col, tile.origin.row, *tile.size) for tile in tiles], dtype=np.float64)
        points = corners[:, None, :2] + corners[:, None, 2:] * np.stack([across, down], axis=-1)
        around = region_around(tiles)
        low = np.array([around.origin.col, around.origin.row], dtype=np.float64)
        size = np.array(around.size, dtype=np.float64)
        units = (points - low) / size
        cells = _FIRST_CELLS
        while True:
            nodes = self._nodes(low, size, cells, 0.0)
            middles = self._nodes(low, size, cells, 0.5)[:-1, :-1]
            off_px = np.abs(middles - (nodes[:-1, :-1] + nodes[1:, :-1] + nodes[:-1, 1:] + nodes[1:, 1:]) / 4).max(-1)
            # NaN compares as too far off.
            is_smooth = off_px <= _TOLERANCE_PX
            if is_smooth.all() or cells == _MAX_CELLS:
                break
            cells *= 4
        return self._interpolated(points, units * cells, nodes, is_smooth)

    def _nodes(self, low: FloatArray, size: FloatArray, cells: int, shift: float) -> FloatArray:
        """Return the positions in the mask of (cells + 1) x (cells + 1) nodes, (rows, columns, 2)."""
        steps = (np.arange(cells + 1) + shift) / cells
        xs, ys = np.meshgrid(low[0] + steps * size[0], low[1] + steps * size[1])
        return self._in_mask(np.column_stack([xs.ravel(), ys.ravel()])).reshape(cells + 1, cells + 1, 2)

    def _interpolated(
        self, points: FloatArray, in_cells: FloatArray, nodes: FloatArray, is_smooth: BoolArray
    ) -> FloatArray:
        """Return positions between nodes; ``in_cells`` are the points in units of cells."""
        first = np.clip(in_cells.astype(np.intp), 0, len(is_smooth) - 1)
        col, row = first[..., 0], first[..., 1]
        u, v = np.moveaxis((in_cells - first)[..., None], 2, 0)
        top = nodes[row, col] * (1 - u) + nodes[row, col + 1] * u
        bottom = nodes[row + 1, col] * (1 - u) + nodes[row + 1, col + 1] * u
        pixels: FloatArray = top * (1 - v) + bottom * v
        is_rough = ~is_smooth[row, col]
        if is_rough.any():
            pixels[is_rough] = np.nan
            exact = np.argwhere(is_rough)[:_MAX_EXACT]
            pixels[exact[:, 0], exact[:, 1]] = self._in_mask(points[exact[:, 0], exact[:, 1]])
        return pixels

    def _in_mask(self, points: FloatArray) -> FloatArray:
        """Return the positions in the mask of (n, 2) image pixels; NaN where they have none."""
        places = self._to_world(points)
        pixels = np.full((len(points), 2), np.nan)
        on_earth = np.flatnonzero(np.isfinite(places).all(axis=1))
        # A mask may count longitudes from 0 to 360 degrees.
        for turn in (0.0, 360.0, -360.0):
            is_beside = ~((pixels[on_earth, 0] >= 0) & (pixels[on_earth, 0] <= self._mask.width))
            chosen = on_earth[is_beside]
            found = self._projected(places[chosen] + np.array([turn, 0.0, 0.0]))
            is_better = (
                (found[:, 0] >= 0) & (found[:, 0] <= self._mask.width) if turn else np.isfinite(found).all(axis=1)
            )
            pixels[chosen[is_better]] = found[is_better]
        return pixels

    def _projected(self, places: FloatArray) -> FloatArray:
        """Return the positions in the mask of (n, 3) places; not finite where its sensor model finds none."""
        try:
            return world_to_image(self._mask.sensor_model, places)
        except UNREADABLE:
            if len(places) == 1:
                return np.full((1, 2), np.nan)
        return np.concatenate([self._projected(place) for place in places[:, None]])

    # Samples --------------------------------------------------------------------------------------------------------

    def _masked(self, pixels: FloatArray) -> BoolArray:
        """Return which samples are masked, (tiles, samples), for their positions in the mask."""
        level, mask = self._level, self._mask
        scale = np.array([level.width / mask.width, level.height / mask.height])
        with np.errstate(invalid="ignore"):
            at = np.floor(pixels * scale)
            is_inside = ((at >= 0) & (at < (level.width, level.height))).all(axis=-1)
        is_masked = np.zeros(is_inside.shape, np.bool_)
        indices = np.where(is_inside[..., None], at, 0).astype(np.intp)
        waiting = [np.arange(len(pixels))]
        while waiting:
            tiles = waiting.pop()
            tiles = tiles[is_inside[tiles].any(axis=1)]
            if not len(tiles):
                continue
            boxes = np.array([_box(indices[tile][is_inside[tile]]) for tile in tiles])
            box = np.array([*boxes[:, :2].min(axis=0), *boxes[:, 2:].max(axis=0)])
            area, areas = np.prod(box[2:] - box[:2]), np.prod(boxes[:, 2:] - boxes[:, :2], axis=1).sum()
            if len(tiles) > 1 and (area > _PART_PX or area > 2 * areas):
                # Tiles that lie askew in the mask are read in smaller groups, so that little around them is read.
                waiting += np.array_split(tiles, 2)
                continue
            chosen, inside = indices[tiles], is_inside[tiles]
            found = np.zeros(inside.shape, np.bool_)
            found[inside] = self._read(chosen[inside], box)
            is_masked[tiles] = found
        return is_masked

    def _read(self, at: npt.NDArray[np.intp], box: npt.NDArray[np.intp]) -> BoolArray:
        """Return which pixels at (n, 2) x, y of the level are masked; all are in ``box``, left, top, right, bottom."""
        left, top, right, bottom = box.tolist()
        rows = max(1, _PART_PX // (right - left))
        is_masked = np.zeros(len(at), np.bool_)
        for first in range(top, bottom, rows):
            last = min(first + rows, bottom)
            is_here = (at[:, 1] >= first) & (at[:, 1] < last)
            if not is_here.any():
                continue
            window = ImageRegion.of(((first, left), (right - left, last - first)))
            try:
                samples = self._mask.read(partial(self._samples, window))
            except UNREADABLE as err:
                raise LoadImageException(f"{self._mask.location.url} cannot be read: {err}") from err
            is_masked[is_here] = self._rule.masked(samples[at[is_here, 1] - first, at[is_here, 0] - left])
        return is_masked

    def _samples(self, window: ImageRegion, handle: ImageHandle) -> npt.NDArray[Any]:
        return read_samples(self._level.band(handle.dataset, 1), window)


def _box(at: npt.NDArray[np.intp]) -> npt.NDArray[np.intp]:
    """Return left, top, right and bottom of pixels at (n, 2) x, y."""
    return np.concatenate([at.min(axis=0), at.max(axis=0) + 1])
