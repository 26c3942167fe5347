"""Which detections of neighbouring tiles are one object, and which of them stands for it.

Only detections of different tiles are compared: what a model reports twice within a tile is the model's business.
The strongest of an object stays. One that an inner edge of its tile cuts is weaker than one that none does; then the
score counts, then the place in the list, which a caller has to keep the same from run to run. Nothing is dropped but
for a detection of a tile that saw it too.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from aws.osml.model_runner.common.mr_post_processing import FeatureDistillationSeam, SeamMerge

from .box_pairs import PAIRS_AT_ONCE, BoxPairs, with_area
from .feature_columns import Kind
from .geometry_arrays import ObjectArray
from .overlap_groups import shared_flags
from .scored_boxes import Floats, Indices
from .seam_overlap import (
    EDGE_PX,
    Flags,
    Views,
    are_same_areas,
    are_same_boxes,
    are_same_lines,
    are_same_points,
    touching_edges,
)
from .suppression import suppress
from .tiled_features import TiledFeatures

# By default points, and lines, are one object within this part of the overlap of the tiles, and within a pixel anyway.
DISTANCE_SHARE = 1 / 16
MIN_DISTANCE_PX = 1.0


def absorbers(features: TiledFeatures, options: FeatureDistillationSeam, pairs_at_once: int = PAIRS_AT_ONCE) -> Indices:
    """Return for each detection the index of the one that stands for its object; its own where that is itself.

    With ``SeamMerge.UNION`` that is the strongest of all parts that hang together, else the strongest that each was
    compared with.
    """
    merge = _SeamMerge.of(features, options)
    is_union = options.merge is SeamMerge.UNION
    standing = merge.joined(pairs_at_once) if is_union else merge.suppressed(pairs_at_once)
    found = np.arange(len(features.tiles))
    found[merge.ranking] = merge.ranking[standing]
    return found


def are_cut(features: TiledFeatures) -> Flags:
    """Return which features touch an inner edge of their tile: (n,)."""
    boxes, tiles = features.scored.boxes, features.frames[features.tiles]
    flags: Flags = touching_edges(boxes, tiles, features.frames).any(axis=1)
    return flags


def distance_px_of(features: TiledFeatures, options: FeatureDistillationSeam) -> float:
    """Return how far apart points, and lines, of one object may be."""
    return default_distance_px(features.frames) if options.distance_px is None else options.distance_px


def default_distance_px(frames: Floats) -> float:
    """Return how far apart points may be by default: a part of the least overlap of neighbouring tiles."""
    spans = [np.unique(frames[:, sides], axis=0) for sides in ([0, 2], [1, 3])]
    overlaps = np.concatenate([axis[:-1, 1] - axis[1:, 0] for axis in spans])
    least = overlaps[overlaps > 0].min() if (overlaps > 0).any() else 0.0
    return max(MIN_DISTANCE_PX, DISTANCE_SHARE * float(least))


@dataclass(frozen=True, eq=False)
class _SeamMerge:
    """The detections that several tiles may have seen, strongest first.

    ``ranking`` holds their indices among all; every other array is in the order of the ranking.
    """

    ranking: Indices
    views: Views
    tiles: Indices
    kinds: NDArray[np.int8]
    pairs: BoxPairs
    shapes: Callable[[Indices], ObjectArray]
    options: FeatureDistillationSeam
    distance_px: float

    @classmethod
    def of(cls, features: TiledFeatures, options: FeatureDistillationSeam) -> "_SeamMerge":
        distance_px = distance_px_of(features, options)
        reach = np.where(features.kinds < Kind.LINE, 0.0, distance_px / 2)[:, None] * [-1, -1, 1, 1]
        shared = np.flatnonzero(_is_shared(features.scored.boxes + reach, features.frames))
        views = _views(features, shared)
        ranking = _ranking(views, features.scored.scores[shared])
        indices = shared[ranking]
        categories = features.scored.categories[indices]
        if options.is_class_agnostic:
            categories = np.zeros_like(categories)
        views = views.take(ranking)
        return cls(
            ranking=indices,
            views=views,
            tiles=features.tiles[indices],
            kinds=features.kinds[indices],
            pairs=BoxPairs(views.boxes + reach[indices], categories),
            shapes=lambda chosen: features.shapes(indices[chosen]),
            options=options,
            distance_px=distance_px,
        )

    def suppressed(self, pairs_at_once: int) -> Indices:
        """Return for each detection the first that removes it, or itself: one that is removed removes none."""
        return suppress(len(self.ranking), self.pairs.batches(pairs_at_once), self._same_objects)

    def joined(self, pairs_at_once: int) -> Indices:
        """Return for each detection the strongest of those that it hangs together with, directly or through others."""
        count = len(self.ranking)
        links = [np.zeros((2, 0), dtype=np.intp)]
        for start, end in self.pairs.batches(pairs_at_once):
            links.append(np.stack(self._same_objects(np.arange(start, end))))
        ends = np.concatenate(links, axis=1)
        graph = coo_array((np.ones(ends.shape[1], np.int8), tuple(ends)), shape=(count, count))
        _, labels = connected_components(graph, directed=False)
        _, strongest = np.unique(labels, return_index=True)
        found: Indices = strongest[labels]
        return found

    def _same_objects(self, queries: Indices) -> tuple[Indices, Indices]:
        """Return (stronger, weaker) of the pairs that are one object, with the stronger of the queries; rising in it.

        A pair counts only where the stronger one's tile saw the weaker one too, or for a union each the other.
        """
        first, second = self.pairs.touching(queries)
        views = self.views
        is_pair = (first < second) & (self.tiles[first] != self.tiles[second])
        first, second = first[is_pair], second[is_pair]
        is_seen = _see(views.tiles[first], views.boxes[second])
        if self.options.merge is SeamMerge.UNION:
            is_seen &= _see(views.tiles[second], views.boxes[first])
        first, second = first[is_seen], second[is_seen]
        is_same = self._are_same(first, second)
        return first[is_same], second[is_same]

    def _are_same(self, first: Indices, second: Indices) -> Flags:
        kinds = np.stack([self.kinds[first], self.kinds[second]])
        is_same = np.zeros(len(first), dtype=np.bool_)
        for is_chosen, compare in (
            ((kinds == Kind.BOX).all(axis=0), self._are_same_boxes),
            ((kinds <= Kind.AREA).all(axis=0) & (kinds == Kind.AREA).any(axis=0), self._are_same_areas),
            ((kinds == Kind.LINE).all(axis=0), self._are_same_lines),
            ((kinds == Kind.POINT).all(axis=0), self._are_same_points),
        ):
            chosen = np.flatnonzero(is_chosen)
            if len(chosen):
                is_same[chosen] = compare(first[chosen], second[chosen])
        return is_same

    def _are_same_boxes(self, first: Indices, second: Indices) -> Flags:
        return are_same_boxes(self.views.take(first), self.views.take(second), self.options)

    def _are_same_areas(self, first: Indices, second: Indices) -> Flags:
        shapes = self._shapes(first, second)
        return are_same_areas(self.views.take(first), self.views.take(second), shapes, self.options)

    def _are_same_lines(self, first: Indices, second: Indices) -> Flags:
        shapes, views = self._shapes(first, second), self.views
        return are_same_lines(views.take(first), views.take(second), shapes, self.options, self.distance_px)

    def _are_same_points(self, first: Indices, second: Indices) -> Flags:
        return are_same_points(*self._shapes(first, second), self.distance_px)

    def _shapes(self, first: Indices, second: Indices) -> tuple[ObjectArray, ObjectArray]:
        """Return the shapes of pairs; each is made once, however many pairs it is in."""
        chosen, places = np.unique(np.concatenate([first, second]), return_inverse=True)
        shapes = self.shapes(chosen)[places]
        return shapes[: len(first)], shapes[len(first) :]


def _is_shared(boxes: Floats, frames: Floats) -> Flags:
    """Return which boxes more than one tile may have seen; noise at an edge counts for the neighbour."""
    grown = boxes + EDGE_PX * np.array([-1, -1, 1, 1])
    return shared_flags(grown, frames)


def _views(features: TiledFeatures, indices: Indices) -> Views:
    boxes, tiles = features.scored.boxes[indices], features.frames[features.tiles[indices]]
    is_box = (features.kinds[indices] == Kind.BOX)[:, None]
    is_touching = touching_edges(boxes, tiles, features.frames)
    return Views(np.where(is_box, with_area(boxes), boxes), tiles, is_touching)


def _ranking(views: Views, scores: Floats) -> Indices:
    """Return the order of strength: what no edge cuts, then by falling score, none last, then as in the list."""
    falling = np.where(np.isnan(scores), np.inf, -scores)
    ranking: Indices = np.lexsort([falling, views.is_touching.any(axis=1)])
    return ranking


def _see(tiles: Floats, boxes: Floats) -> Flags:
    """Tell of each pair of (n, 4) whether the tile has a pixel of the box; see ``tiles_that_see``."""
    first = np.floor(boxes[:, :2])
    last = np.maximum(first, np.ceil(boxes[:, 2:]) - 1)
    flags: Flags = ((first < tiles[:, 2:]) & (last >= tiles[:, :2])).all(axis=1)
    return flags
