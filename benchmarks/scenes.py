"""Scenes of known objects, and what a model would report of them tile by tile; the same for the same seed."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from aws.osml.model_runner.common.typing import ImageCoord, ImageDimensions, ImageRegion
from aws.osml.model_runner.tile_worker import VariableOverlapTilingStrategy

TILE_PX, OVERLAP_PX, REGION_PX = 1024, 128, 10240
NOISE_PX = 1.0
CUT_SHARE = 0.5
# A part of an object that shows less than this in a tile is not reported there.
LEAST_VISIBLE_PX = 2.0


@dataclass(frozen=True, eq=False)
class Detections:
    """n detections: boxes (n, 4), scores, the object that each shows, the tile (rows of ``frames``) that saw it."""

    boxes: NDArray[np.float64]
    scores: NDArray[np.float64]
    objects: NDArray[np.intp]
    tiles: NDArray[np.intp]
    frames: NDArray[np.float64]
    side_px: int


def grid_of_objects(rng: np.random.Generator, count: int, pitch_px: float, sides_px: tuple[float, float]):
    """Return boxes (n, 4) of objects, one in each cell of a grid, anywhere in it, and the side of the image."""
    across = int(np.ceil(np.sqrt(count)))
    sizes = rng.uniform(*sides_px, (count, 2))
    cells = np.stack(np.divmod(np.arange(count), across)[::-1], axis=1) * pitch_px
    low = cells + rng.uniform(0, 1, (count, 2)) * (pitch_px - sizes)
    return np.hstack([low, low + sizes]), int(np.ceil(across * pitch_px))


def detect(rng: np.random.Generator, objects: NDArray[np.float64], side_px: int) -> Detections:
    """Return what each tile reports: half of what an edge crosses is cut there, the other half guessed whole."""
    frames = tile_frames(side_px)
    seen, tiles = _sightings(objects, frames)
    boxes = objects[seen]
    clipped = np.hstack([np.maximum(boxes[:, :2], frames[tiles, :2]), np.minimum(boxes[:, 2:], frames[tiles, 2:])])
    is_cut = rng.random(len(seen)) < CUT_SHARE
    reported = np.where(is_cut[:, None], clipped, boxes) + rng.normal(0, NOISE_PX, boxes.shape)
    reported = np.where(
        is_cut[:, None],
        np.clip(reported, np.tile(frames[tiles, :2], 2), np.tile(frames[tiles, 2:], 2)),
        reported,
    )
    reported = np.hstack([np.minimum(reported[:, :2], reported[:, 2:]), np.maximum(reported[:, :2], reported[:, 2:])])
    return Detections(reported, rng.uniform(0.5, 1, len(seen)), seen, tiles, frames, side_px)


def tile_frames(side_px: int) -> NDArray[np.float64]:
    """Return (m, 4) minx, miny, maxx, maxy of the tiles of a square image, as a job would cut it."""
    strategy = VariableOverlapTilingStrategy()
    bounds = ImageRegion(ImageCoord(0, 0), ImageDimensions(side_px, side_px))
    sizes = (
        ImageDimensions(REGION_PX, REGION_PX),
        ImageDimensions(TILE_PX, TILE_PX),
        ImageDimensions(OVERLAP_PX, OVERLAP_PX),
    )
    regions = strategy.compute_regions(bounds, *sizes)
    tiles = [tile for region in regions for tile in strategy.compute_tiles(region, *sizes[1:])]
    return np.array([(t.origin.col, t.origin.row, t.right, t.bottom) for t in tiles], dtype=np.float64)


def _sightings(objects, frames):
    """Return (object, tile) of the pairs where enough of the object shows in the tile."""
    found = []
    for number, (left, top, right, bottom) in enumerate(frames):
        shown_x = np.minimum(objects[:, 2], right) - np.maximum(objects[:, 0], left)
        shown_y = np.minimum(objects[:, 3], bottom) - np.maximum(objects[:, 1], top)
        shown = np.flatnonzero((shown_x >= LEAST_VISIBLE_PX) & (shown_y >= LEAST_VISIBLE_PX))
        found.append(np.stack([shown, np.full(len(shown), number)]))
    return np.concatenate(found, axis=1)
