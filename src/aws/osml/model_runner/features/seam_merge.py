"""Which detections of neighbouring tiles are one object, and which of them stands for it.

Only detections of different tiles are compared: what a model reports twice within a tile is the model's business.
The strongest of an object stays. The weakest is one of which another tile saw more: the other reaches beyond the tile,
and it not beyond the other's. One that an inner edge of its tile cuts is weaker than one that none does; then the score
counts, then the place in the list, which a caller has to keep the same from run to run. Nothing is dropped but for a
detection of a tile that saw it too.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from aws.osml.model_runner.api.post_processing import FeatureDistillationSeam, SeamMerge

from .box_pairs import PAIRS_AT_ONCE, BoxPairs, with_area
from .feature_columns import Kind
from .geometry_arrays import ObjectArray
from .nms import suppress, suppress_linked
from .overlap_groups import shared_flags
from .scored_boxes import Floats, Indices
from .seam_overlap import (
    EDGE_PX,
    Flags,
    TileDetections,
    are_fragments,
    are_same_areas,
    are_same_boxes,
    are_same_lines,
    are_same_points,
    touching_edges,
)
from .tile_spans import TileSpans
from .tiled_features import TiledFeatures

Links = NDArray[np.intp]

# By default points, and lines, are one object within this part of the overlap of the tiles, and within a pixel anyway.
DISTANCE_SHARE = 1 / 16
MIN_DISTANCE_PX = 1.0

# So many pairs that are one object are kept.
MOST_LINKS = 1_000_000
# Pairs of shapes are compared at once until they are so much work; see ``TiledFeatures.weights``.
_WORK_AT_ONCE = 2_000_000


def suppressors(
    features: TiledFeatures, options: FeatureDistillationSeam, pairs_at_once: int = PAIRS_AT_ONCE
) -> Indices:
    """Return for each detection the index of the one that stands for its object; its own where that is itself.

    With ``SeamMerge.UNION`` that is the strongest of all parts that hang together, else the strongest that each was
    compared with.
    """
    return SeamComparison.of(features, options).suppressors(pairs_at_once)


def are_cut(features: TiledFeatures) -> Flags:
    """Return which features touch an inner edge of their tile: (n,)."""
    boxes, tiles = features.scored.boxes, features.frames[features.tiles]
    flags: Flags = touching_edges(boxes, tiles, features.spans.outermost).any(axis=1)
    return flags


def distance_px_of(features: TiledFeatures, options: FeatureDistillationSeam) -> float:
    """Return how far apart points, and lines, of one object may be."""
    return default_distance_px(features.spans) if options.distance_px is None else options.distance_px


def default_distance_px(spans: TileSpans) -> float:
    """Return how far apart points may be by default: a part of the least overlap of neighbouring tiles."""
    return max(MIN_DISTANCE_PX, DISTANCE_SHARE * spans.least_overlap_px)


@dataclass(frozen=True, eq=False)
class SeamComparison:
    """The detections that several tiles may have seen, strongest first: a ``Comparison`` of them.

    ``ranking`` holds their indices among ``features``; every other array is in the order of the ranking. Each is looked
    for no farther than ``TileSpans.within_reach``.
    """

    features: TiledFeatures
    ranking: Indices
    views: TileDetections
    tiles: Indices
    kinds: NDArray[np.int8]
    pairs: BoxPairs
    weights: Floats
    shapes: Callable[[Indices], ObjectArray]
    options: FeatureDistillationSeam
    distance_px: float

    @classmethod
    def of(
        cls,
        features: TiledFeatures,
        options: FeatureDistillationSeam,
        is_left_out: Flags | None = None,
        note: Callable[[], None] = lambda: None,
    ) -> Self:
        """Return the comparison of the features of some tiles, without those that are left out."""
        distance_px = distance_px_of(features, options)
        reach = np.where(features.kinds < Kind.LINE, 0.0, distance_px / 2)[:, None] * [-1, -1, 1, 1]
        is_shared = _is_shared(features.scored.boxes + reach, features.spans)
        shared = np.flatnonzero(is_shared if is_left_out is None else is_shared & ~is_left_out)
        views = _views(features, shared)
        ranking = _ranking(views, features.scored.scores[shared])
        indices = shared[ranking]
        categories = features.scored.categories[indices]
        if options.is_class_agnostic:
            categories = np.zeros_like(categories)
        views = views.take(ranking)
        return cls(
            features=features,
            ranking=indices,
            views=views,
            tiles=features.tiles[indices],
            kinds=features.kinds[indices],
            pairs=BoxPairs(
                *(views.boxes, categories, features.spans.within_reach(views.boxes, views.tiles) + reach[indices]), note
            ),
            weights=features.weights[indices],
            shapes=lambda chosen: features.shapes(indices[chosen]),
            options=options,
            distance_px=distance_px,
        )

    @property
    def margin_px(self) -> float:
        """By how much ``pairs`` looks beyond what a detection is."""
        return self.distance_px / 2

    def suppressors(
        self, pairs_at_once: int = PAIRS_AT_ONCE, is_asked: Flags | None = None, links: Links | None = None
    ) -> Indices:
        """Return for each of all detections the index of the one that stands for it; see the function of this name.

        Only those of the ranking that are ``is_asked`` stand for others; with them goes whatever is linked to them.
        ``links``: (2, k) stronger and weaker of all pairs of them that are one object, where the caller knows.
        """
        count = len(self.ranking)
        if links is None:
            links = self._links(pairs_at_once, is_asked)
        if links is not None:
            order = self._order(self.fragments(*links))
            places = _places_of(order)
            standing = self._standing_of(np.sort(places[links], axis=0), order)
        else:
            # There are too many to keep, so they are found twice.
            is_fragment = np.zeros(count, dtype=np.bool_)
            for pairs in self._batches(pairs_at_once, is_asked):
                is_fragment |= self.fragments(*pairs)
            order = self._order(is_fragment)
            places = _places_of(order)
            standing = self._in_order(order)._standing(pairs_at_once, None if is_asked is None else is_asked[order])
        found = np.arange(len(self.features.tiles))
        found[self.ranking] = self.ranking[order[standing[places]]]
        return found

    def fragments(self, first: Indices, second: Indices) -> Flags:
        """Return which detections show less of their object than that of another tile, given pairs that are one object.

        It is so where the other detection reaches beyond the tile of this one, and this one not beyond the other's.
        """
        flags = np.zeros(len(self.ranking), dtype=np.bool_)
        for one, other in ((first, second), (second, first)):
            flags[one[are_fragments(self.views.take(one), self.views.take(other))]] = True
        return flags

    def _sees(self, first: Indices, second: Indices) -> Flags:
        """Tell of each pair whether the tile of the first has a pixel of the second."""
        return _see(self.views.tiles[first], self.views.boxes[second])

    def _order(self, is_fragment: Flags) -> Indices:
        """Return the order of strength: fragments are weaker than all others."""
        order: Indices = np.argsort(is_fragment, kind="stable")
        return order

    def _in_order(self, order: Indices) -> Self:
        """Return the comparison of the same detections, which come in this order."""
        pairs = self.pairs.take(order)
        return replace(
            self,
            ranking=self.ranking[order],
            views=self.views.take(order),
            tiles=self.tiles[order],
            kinds=self.kinds[order],
            pairs=pairs,
            weights=self.weights[order],
            shapes=lambda chosen: self.shapes(order[chosen]),
        )

    def _links(self, pairs_at_once: int, is_asked: Flags | None) -> Links | None:
        """Return (2, k) stronger and weaker of all pairs that are one object; None where they are too many to keep."""
        found, count = [np.zeros((2, 0), np.intp)], 0
        for pairs in self._batches(pairs_at_once, is_asked):
            count += len(pairs[0])
            if count > MOST_LINKS:
                return None
            found.append(np.stack(pairs))
        return np.concatenate(found, axis=1)

    def _batches(self, pairs_at_once: int, is_asked: Flags | None) -> Iterator[tuple[Indices, Indices]]:
        for start, end in self.pairs.batches(pairs_at_once):
            queries = np.arange(start, end)
            yield self._same_objects(queries if is_asked is None else queries[is_asked[start:end]])

    def _standing_of(self, links: Links, order: Indices) -> Indices:
        """Return what ``_standing`` does where all pairs are known; ``links`` are places in this order."""
        count = len(self.ranking)
        if self.options.merge is SeamMerge.UNION:
            return connected(np.arange(count), *links)
        return suppress_linked(count, links[:, self._sees(*order[links])])

    def _standing(self, pairs_at_once: int, is_asked: Flags | None) -> Indices:
        """Return for each detection the first that removes it, or itself; one that is removed removes none.

        For a union, that is the strongest of those that it hangs together with, directly or through others.
        """
        if self.options.merge is not SeamMerge.UNION:
            return suppress(len(self.ranking), self.pairs.batches(pairs_at_once), self._removals, is_asked)
        labels = np.arange(len(self.ranking))
        for pairs in self._batches(pairs_at_once, is_asked):
            labels = connected(labels, *pairs)
        return labels

    def linked(self, first: Indices, second: Indices) -> Flags:
        """Tell of each pair of ``pairs``, by places in the ranking, whether it is one object.

        A pair counts only where one tile saw what the other reports, or for a union each what the other reports.
        """
        flags: Flags = self.tiles[first] != self.tiles[second]
        sees = np.stack([self._sees(first[flags], second[flags]), self._sees(second[flags], first[flags])])
        flags[flags] = sees.all(axis=0) if self.options.merge is SeamMerge.UNION else sees.any(axis=0)
        flags[flags] = self._are_same(first[flags], second[flags])
        return flags

    def _removals(self, queries: Indices) -> tuple[Indices, Indices]:
        first, second = self._same_objects(queries)
        is_removal = self._sees(first, second)
        return first[is_removal], second[is_removal]

    def _same_objects(self, queries: Indices) -> tuple[Indices, Indices]:
        """Return (stronger, weaker) of the pairs that are one object; the stronger is of the queries, and rises."""
        first, second = self.pairs.touching(queries)
        is_pair = first < second
        first, second = first[is_pair], second[is_pair]
        is_same = self.linked(first, second)
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
            for chosen in self._parts(np.flatnonzero(is_chosen), first, second):
                is_same[chosen] = compare(first[chosen], second[chosen])
        return is_same

    def _parts(self, chosen: Indices, first: Indices, second: Indices) -> Iterator[Indices]:
        """Yield pairs in parts that are compared at once; ``pairs.note`` is called between them."""
        work = np.cumsum(self.weights[first[chosen]] + self.weights[second[chosen]]) / 2
        number = (work // _WORK_AT_ONCE).astype(np.intp)
        for part in np.split(chosen, 1 + np.flatnonzero(np.diff(number))):
            if len(part):
                yield part
                self.pairs.note()

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


def _places_of(order: Indices) -> Indices:
    """Return the place of each item in an order."""
    places = np.empty_like(order)
    places[order] = np.arange(len(order))
    return places


def connected(labels: Indices, first: Indices, second: Indices) -> Indices:
    """Return labels after these links: of all that hang together the least label, which is an index of one of them."""
    count = len(labels)
    ends = labels[first], labels[second]
    graph = coo_array((np.ones(len(first), np.int8), ends), shape=(count, count))
    _, groups = connected_components(graph, directed=False)
    _, least = np.unique(groups, return_index=True)
    found: Indices = least[groups][labels]
    return found


def _is_shared(boxes: Floats, spans: TileSpans) -> Flags:
    """Return which boxes more than one tile may have seen; noise at an edge counts for the neighbour."""
    grown = boxes + EDGE_PX * np.array([-1, -1, 1, 1])
    return shared_flags(grown, spans)


def _views(features: TiledFeatures, indices: Indices) -> TileDetections:
    boxes, tiles = features.scored.boxes[indices], features.frames[features.tiles[indices]]
    is_box = (features.kinds[indices] == Kind.BOX)[:, None]
    is_touching = touching_edges(boxes, tiles, features.spans.outermost)
    return TileDetections(np.where(is_box, with_area(boxes), boxes), tiles, is_touching)


def _ranking(views: TileDetections, scores: Floats) -> Indices:
    """Return the order of strength: what no edge cuts, then by falling score, none last, then as in the list."""
    falling = np.where(np.isnan(scores), np.inf, -scores)
    ranking: Indices = np.lexsort([falling, views.is_touching.any(axis=1)])
    return ranking


def _see(tiles: Floats, boxes: Floats) -> Flags:
    """Tell of each pair of (n, 4) whether the tile has a pixel of the box; see ``tiles_covering``."""
    first = np.floor(boxes[:, :2])
    last = np.maximum(first, np.ceil(boxes[:, 2:]) - 1)
    flags: Flags = ((first < tiles[:, 2:]) & (last >= tiles[:, :2])).all(axis=1)
    return flags
