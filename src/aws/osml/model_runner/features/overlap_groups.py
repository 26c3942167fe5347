"""Finds features that more than one tile covers, so that they may be duplicates."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from .detections import Detections, Floats, Indices, canonical_order, checked_box
from .properties import Feature
from .tile_spans import TileSpans


class Selector(Protocol):
    """Selects the features to keep, as ``FeatureSelector`` does."""

    def select_features(self, feature_list: list[Feature]) -> list[Feature]:
        """Return the features that are kept."""
        ...


def select_where_shared(
    features: Sequence[Feature],
    tile_columns: Sequence[tuple[int, int]],
    tile_rows: Sequence[tuple[int, int]],
    selector: Selector,
) -> list[Feature]:
    """Return the features, with the selector applied to the features that more than one tile covers.

    ``tile_columns`` and ``tile_rows`` are [start, end) pixels of the tiles on each axis; a tile is the product of a
    column and a row. The selector gets all these features in one call, because seams meet: a feature at a corner can
    have duplicates at both seams. It is not called without such features.

    Features that one tile covers come first, in ``canonical_order``, then the result of the selector. It gets its
    features in ``canonical_order`` too, so the order of ``features`` does not matter.
    """
    detections = Detections.of(features, locate=checked_box)
    order = canonical_order(features, detections)
    is_shared = tiles_covering(detections.boxes, tile_columns, tile_rows)[order] > 1
    kept = [features[index] for index in order[~is_shared].tolist()]
    shared = [features[index] for index in order[is_shared].tolist()]
    return kept + selector.select_features(shared) if shared else kept


def shared_flags(boxes: Floats, spans: TileSpans) -> NDArray[np.bool_]:
    """Return which of (n, 4) boxes more than one tile of a plan covers."""
    flags: NDArray[np.bool_] = tiles_covering(boxes, spans.columns, spans.rows) > 1
    return flags


def tiles_covering(
    boxes: Floats, tile_columns: Sequence[tuple[int, int]] | Floats, tile_rows: Sequence[tuple[int, int]] | Floats
) -> Indices:
    """Return for each of (n, 4) boxes the number of tiles that contain at least one of its pixels; 0 for NaN.

    A box from x_1 to x_2 has the pixels floor(x_1) to ceil(x_2) - 1, and always the pixel floor(x_1). So a tile that
    begins where a box ends does not cover the box.
    """
    count: Indices = _spans_covering(boxes[:, [0, 2]], tile_columns) * _spans_covering(boxes[:, [1, 3]], tile_rows)
    return count


def _spans_covering(intervals: Floats, spans: Sequence[tuple[int, int]] | Floats) -> Indices:
    starts, ends = np.sort(np.array(spans, dtype=np.float64).reshape(-1, 2), axis=0).T
    first = np.floor(intervals[:, 0])
    last = np.maximum(first, np.ceil(intervals[:, 1]) - 1)
    # Spans that have begun minus spans that have ended. NaN sorts after all numbers, so it counts as both.
    count: Indices = np.searchsorted(starts, last, side="right") - np.searchsorted(ends, first, side="right")
    return count
