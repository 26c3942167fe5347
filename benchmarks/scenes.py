"""Scenes of known objects, and what a model would report of them tile by tile; the same for the same seed."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from aws.osml.model_runner.common.typing import ImageCoord, ImageDimensions, ImageRegion
from aws.osml.model_runner.tile_worker import VariableOverlapTilingStrategy

Floats = NDArray[np.float64]
Indices = NDArray[np.intp]

TILE, OVERLAP, REGION = (ImageDimensions(side, side) for side in (1024, 128, 10240))
NOISE_PX = 1.0
CUT_SHARE = 0.5
# Long objects: how wide they are, and how far before an edge a detector may stop.
WIDTHS_PX = (8.0, 24.0)
SHORT_PX = 24.0
# A part of an object that shows less than this in a tile is not reported there.
LEAST_VISIBLE_PX = 2.0


@dataclass(frozen=True, eq=False)
class Detections:
    """n detections: boxes (n, 4), scores, the object that each shows, the tile (a row of ``frames``) that saw it.

    ``whole_boxes`` are the boxes as they would be if no tile had cut any; ``is_cut``: which are cut.
    """

    boxes: Floats
    whole_boxes: Floats
    scores: Floats
    objects: Indices
    tiles: Indices
    is_cut: NDArray[np.bool_]
    frames: Floats
    side_px: int

    def fragments_of(self, kept: Indices, share: float = 0.9) -> float:
        """Return the share of objects of which a part was delivered though a tile saw it whole, in percent.

        A part is a box whose longer side is less than this share of the object's.
        """
        known = np.unique(self.objects)
        sides, whole = ((boxes[:, 2:] - boxes[:, :2]).max(axis=1) for boxes in (self.boxes, self.whole_boxes))
        is_whole = sides >= share * whole
        seen, delivered = (np.zeros(known[-1] + 1, dtype=np.bool_) for _ in range(2))
        seen[self.objects[is_whole]] = True
        delivered[self.objects[kept[is_whole[kept]]]] = True
        return 100 * float((seen & ~delivered)[known].mean())

    def score_of(self, kept: Indices) -> tuple[float, float]:
        """Return the shares of objects that are delivered more than once, and not at all, in percent."""
        known = np.unique(self.objects)
        counts = np.bincount(self.objects[kept], minlength=known[-1] + 1)[known]
        return 100 * np.maximum(counts - 1, 0).sum() / len(known), 100 * (counts == 0).sum() / len(known)


def scene(seed: int, count: int, pitch_px: float, sides_px: tuple[float, float]) -> Detections:
    """Return what is reported of objects with sides in this range, one in each cell of a grid, anywhere in it."""
    rng = np.random.default_rng(seed)
    across = int(np.ceil(np.sqrt(count)))
    sizes = rng.uniform(*sides_px, (count, 2))
    cells = np.stack(np.divmod(np.arange(count), across)[::-1], axis=1) * pitch_px
    low = cells + rng.uniform(0, 1, (count, 2)) * (pitch_px - sizes)
    return _detected(rng, np.hstack([low, low + sizes]), int(np.ceil(across * pitch_px)))


def elongated_scene(seed: int, count: int, pitch_px: float, lengths_px: tuple[float, float]) -> Detections:
    """Return what is reported of long and narrow objects by a detector that stops short of the edges of its tiles.

    As a reader of text does between words: of an object that an edge crosses it leaves up to ``SHORT_PX`` at that edge.
    """
    rng = np.random.default_rng(seed)
    across = int(np.ceil(np.sqrt(count)))
    sizes = np.stack([rng.uniform(*lengths_px, count), rng.uniform(*WIDTHS_PX, count)], axis=1)
    is_upright = rng.random(count) < CUT_SHARE
    sizes[is_upright] = sizes[is_upright, ::-1]
    cells = np.stack(np.divmod(np.arange(count), across)[::-1], axis=1) * pitch_px
    low = cells + rng.uniform(0, 1, (count, 2)) * (pitch_px - sizes)
    objects, side_px = np.hstack([low, low + sizes]), int(np.ceil(across * pitch_px))
    frames = tile_frames(side_px)
    seen, tiles = _sightings(objects, frames)
    boxes = objects[seen] + rng.normal(0, NOISE_PX, (len(seen), 4))
    low, high = frames[tiles, :2], frames[tiles, 2:]
    short = rng.uniform(0, SHORT_PX, (len(seen), 4))
    is_cut = np.hstack([objects[seen, :2] < low, objects[seen, 2:] > high])
    ends = np.where(is_cut, np.hstack([low, high]) + short * [1, 1, -1, -1], boxes)
    is_seen = (ends[:, 2:] - ends[:, :2] >= LEAST_VISIBLE_PX).all(axis=1)
    return Detections(
        *(ends[is_seen], boxes[is_seen], rng.uniform(0.5, 1, len(seen))[is_seen], seen[is_seen], tiles[is_seen]),
        *(is_cut.any(axis=1)[is_seen], frames, side_px),
    )


def _detected(rng: np.random.Generator, objects: Floats, side_px: int) -> Detections:
    """Return what each tile reports: half of what an edge crosses is cut there, the other half guessed whole."""
    frames = tile_frames(side_px)
    seen, tiles = _sightings(objects, frames)
    is_cut = rng.random(len(seen)) < CUT_SHARE
    boxes = objects[seen] + rng.normal(0, NOISE_PX, (len(seen), 4))
    low, high = frames[tiles, :2], frames[tiles, 2:]
    clipped = np.clip(boxes, np.hstack([low, low]), np.hstack([high, high]))
    reported = np.where(is_cut[:, None], clipped, boxes)
    corners = np.sort(reported.reshape(-1, 2, 2), axis=1).reshape(-1, 4)
    return Detections(corners, boxes, rng.uniform(0.5, 1, len(seen)), seen, tiles, is_cut, frames, side_px)


def tile_frames(side_px: int) -> Floats:
    """Return (m, 4) minx, miny, maxx, maxy of the tiles of a square image, as a job would cut it."""
    strategy = VariableOverlapTilingStrategy()
    bounds = ImageRegion(ImageCoord(0, 0), ImageDimensions(side_px, side_px))
    regions = strategy.compute_regions(bounds, REGION, TILE, OVERLAP)
    tiles = [tile for region in regions for tile in strategy.compute_tiles(region, TILE, OVERLAP)]
    return np.array([(t.origin.col, t.origin.row, t.right, t.bottom) for t in tiles], dtype=np.float64)


def _sightings(objects: Floats, frames: Floats) -> tuple[Indices, Indices]:
    """Return (object, tile) of the pairs where enough of the object shows in the tile, tile by tile."""
    found = []
    for number, (left, top, right, bottom) in enumerate(frames):
        shown_x = np.minimum(objects[:, 2], right) - np.maximum(objects[:, 0], left)
        shown_y = np.minimum(objects[:, 3], bottom) - np.maximum(objects[:, 1], top)
        shown = np.flatnonzero((shown_x >= LEAST_VISIBLE_PX) & (shown_y >= LEAST_VISIBLE_PX))
        found.append(np.stack([shown, np.full(len(shown), number)]))
    seen, tiles = np.concatenate(found, axis=1)
    return seen, tiles
