"""Finds crowded tiles, whose features are not compared because too many lie on one spot.

A merge compares features that touch. Thousands of boxes on one spot make millions of pairs, and the number grows with
the square of the boxes. So the work of each tile has a limit that grows with its features. Thus an image's work grows
only linearly with its tiles and features.

A tile's work is that of its pairs: pairs of its own features, and pairs with features of earlier tiles. So it does not
depend on the number of rows of tiles in a step.
"""

import numpy as np
import shapely

from .box_pairs import BoxPairs, Flags, candidate_limits
from .detections import Floats, Indices

# The work of one pair of boxes is 1, about 0.2 microseconds; for other pairs see ``TiledFeatures.weights``.
FREE_WORK = 4_000_000
WORK_PER_WEIGHT = 64
# Maximum number of pairs of a tile that are counted at once.
_PAIRS_AT_ONCE = 1_000_000


def crowded_tiles(pairs: BoxPairs, tiles: Indices, weights: Floats, is_new: Flags) -> Indices:
    """Return the tiles whose work exceeds ``FREE_WORK`` plus ``WORK_PER_WEIGHT`` times the weight of their features.

    ``tiles``: (n,) the tile number of each box of ``pairs``, in processing order. ``weights``: (n,). ``is_new``: (n,)
    features whose tiles were not checked in an earlier step. Crowded tiles do not count for the work of later tiles.
    """
    allowed = FREE_WORK + WORK_PER_WEIGHT * np.bincount(tiles, weights)
    heavy = pairs.limits if (weights == 1).all() else candidate_limits(pairs.searched, weights)
    max_work = (pairs.limits * weights + heavy) / 2
    suspects = np.flatnonzero(np.bincount(tiles[is_new], max_work[is_new], minlength=len(allowed)) > allowed)
    if not len(suspects):
        return suspects
    is_left = np.ones(len(tiles), dtype=np.bool_)
    order = np.argsort(tiles, kind="stable")
    starts = np.searchsorted(tiles[order], np.arange(len(allowed) + 1))
    crowded = []
    for tile in suspects.tolist():
        own, before = order[starts[tile] : starts[tile + 1]], order[: starts[tile]]
        if _exceeds(pairs, own, before[is_left[before]], weights, allowed[tile]):
            is_left[own] = False
            crowded.append(tile)
    return np.array(crowded, dtype=np.intp)


def _exceeds(pairs: BoxPairs, own: Indices, before: Indices, weights: Floats, allowed: float) -> bool:
    """Return True if the pairs of ``own`` boxes, and of these with boxes ``before``, exceed the allowed work."""
    boxes = pairs.searched
    low, high = boxes[own, :2].min(axis=0), boxes[own, 2:].max(axis=0)
    before = before[((boxes[before, :2] <= high) & (boxes[before, 2:] >= low)).all(axis=1)]
    tree = shapely.STRtree(shapely.box(*boxes[own].T))
    at_once = max(1, _PAIRS_AT_ONCE // len(own))
    work = 0.0
    for others, is_own in ((own, True), (before, False)):
        for start in range(0, len(others), at_once):
            pairs.record_life()
            some = others[start : start + at_once]
            first, second = tree.query(shapely.box(*boxes[some].T))
            first, second = some[first], own[second]
            is_pair = pairs.categories[first] == pairs.categories[second]
            if is_own:
                work += np.count_nonzero(is_pair & (first < second))
            else:
                work += (weights[first[is_pair]] + weights[second[is_pair]]).sum() / 2
            if work > allowed:
                return True
    return False
