"""Which features more than one tile could have seen, so that they may be there twice."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from .properties import Feature
from .scored_boxes import Floats, Indices, canonical_order, score_boxes
from .tile_spans import TileSpans


class Selector(Protocol):
    """Decides which of several features are kept; ``FeatureSelector`` is one."""

    def select_features(self, feature_list: list[Feature]) -> list[Feature]:
        """Return the features that are kept."""
        ...


def select_where_shared(
    features: Sequence[Feature],
    tile_columns: Sequence[tuple[int, int]],
    tile_rows: Sequence[tuple[int, int]],
    selector: Selector,
) -> list[Feature]:
    """Return the features, after the selector has had its say on those that more than one tile could have seen.

    ``tile_columns`` and ``tile_rows`` are [start, end) pixels of the tiles on each axis; a tile is where a pair of one
    meets a pair of the other. All features in question go to the selector in one call, since a seam has no end: what
    lies at a corner meets the duplicates of both seams. It is not called where there are none.

    The features that one tile alone could have seen come first, then what the selector returned. Each part is, or
    was given to the selector, in ``canonical_order``; so the order of ``features`` has no influence.
    """
    scored = score_boxes(features)
    order = canonical_order(features, scored)
    is_shared = tiles_covering(scored.boxes, tile_columns, tile_rows)[order] > 1
    kept = [features[index] for index in order[~is_shared].tolist()]
    shared = [features[index] for index in order[is_shared].tolist()]
    return kept + selector.select_features(shared) if shared else kept


def shared_flags(boxes: Floats, spans: TileSpans) -> NDArray[np.bool_]:
    """Return which of (n, 4) boxes more than one tile of a plan could have seen."""
    flags: NDArray[np.bool_] = tiles_covering(boxes, spans.columns, spans.rows) > 1
    return flags


def tiles_covering(
    boxes: Floats, tile_columns: Sequence[tuple[int, int]] | Floats, tile_rows: Sequence[tuple[int, int]] | Floats
) -> Indices:
    """Return for each of (n, 4) boxes how many tiles contain at least one of its pixels; 0 for a box of NaN.

    A box from x_1 to x_2 has the pixels floor(x_1) to ceil(x_2) - 1, and never less than the one its corner is in: it
    ends where the next pixel begins, so a box that ends where a tile begins is none of that tile's.
    """
    seen: Indices = _spans_that_see(boxes[:, [0, 2]], tile_columns) * _spans_that_see(boxes[:, [1, 3]], tile_rows)
    return seen


def _spans_that_see(intervals: Floats, spans: Sequence[tuple[int, int]] | Floats) -> Indices:
    starts, ends = np.sort(np.array(spans, dtype=np.float64).reshape(-1, 2), axis=0).T
    first = np.floor(intervals[:, 0])
    last = np.maximum(first, np.ceil(intervals[:, 1]) - 1)
    # Those that have begun, less those that are over; NaN sorts behind all numbers, and counts as both.
    count: Indices = np.searchsorted(starts, last, side="right") - np.searchsorted(ends, first, side="right")
    return count
