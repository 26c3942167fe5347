"""Which tiles report so many features on one spot that their features are not compared with any others.

A merge compares the features that touch. A model that reports thousands of boxes on one spot makes them millions of
pairs, and that number grows with the square of what it reports. So the work of each tile has a limit, which grows with
its features, and an image's work grows with its tiles and features alone.

The work of a tile is that of its pairs: with features of its own, and with those of tiles before it in the order of the
walk. So it does not depend on how many rows of tiles are looked at together.
"""

import numpy as np
import shapely

from .box_pairs import BoxPairs, Flags, candidate_limits
from .scored_boxes import Floats, Indices

# The work of one pair of boxes is 1, about a fifth of a microsecond; see ``TiledFeatures.weights`` for others.
FREE_WORK = 4_000_000
WORK_PER_WEIGHT = 64
# How many pairs of a tile are counted at once.
_PAIRS_AT_ONCE = 1_000_000


def crowded_tiles(pairs: BoxPairs, tiles: Indices, weights: Floats, is_new: Flags) -> Indices:
    """Return the tiles whose work is more than ``FREE_WORK`` and ``WORK_PER_WEIGHT`` for the weight of their features.

    ``tiles``: (n,) the number of the tile of each of the ``pairs``' boxes, in the order of the walk; ``weights``: (n,);
    ``is_new``: (n,) which tiles have not been judged in an earlier step. A tile that is crowded adds nothing to the
    work of later ones.
    """
    allowed = FREE_WORK + WORK_PER_WEIGHT * np.bincount(tiles, weights)
    heavy = pairs.limits if (weights == 1).all() else candidate_limits(pairs.searched, weights)
    most = (pairs.limits * weights + heavy) / 2
    suspects = np.flatnonzero(np.bincount(tiles[is_new], most[is_new], minlength=len(allowed)) > allowed)
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
    """Return True when the pairs of ``own`` boxes with each other and with those before are more work than allowed."""
    boxes = pairs.searched
    low, high = boxes[own, :2].min(axis=0), boxes[own, 2:].max(axis=0)
    before = before[((boxes[before, :2] <= high) & (boxes[before, 2:] >= low)).all(axis=1)]
    tree = shapely.STRtree(shapely.box(*boxes[own].T))
    at_once = max(1, _PAIRS_AT_ONCE // len(own))
    work = 0.0
    for others, is_own in ((own, True), (before, False)):
        for start in range(0, len(others), at_once):
            pairs.note()
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
