"""Finds detections of neighbouring tiles that are one object, and the detection to keep.

Only detections of different tiles are compared; duplicates within a tile are left to the model. The strongest detection
of an object is kept. Strength is compared by these rules, in this order:

1. A fragment is weaker: a detection of which another tile shows more. The other detection reaches beyond the fragment's
   tile, and the fragment does not reach beyond the other's tile.
2. A detection that an inner edge of its tile cuts is weaker than an uncut detection.
3. A lower score is weaker, and no score is weakest.
4. A later detection in the list is weaker. The caller has to keep the order of the list the same in each run.

A detection is dropped only for a detection of a tile that covers it too.
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
from .detections import Floats, Indices, Kind
from .geometry_arrays import ObjectArray
from .nms import suppress, suppress_linked
from .overlap_groups import shared_flags
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

# Default distance of points, and of lines, that are one object: a share of the tiles' overlap, at least one pixel.
DISTANCE_SHARE = 1 / 16
MIN_DISTANCE_PX = 1.0

# Maximum number of pairs of one object that are kept in memory.
MAX_LINKS = 1_000_000
# Maximum work of pairs that are compared at once; see ``TiledFeatures.weights``.
_WORK_AT_ONCE = 2_000_000


def suppressors(
    features: TiledFeatures, options: FeatureDistillationSeam, pairs_at_once: int = PAIRS_AT_ONCE
) -> Indices:
    """Return for each detection the index of the detection that replaces it, or its own index if it is kept.

    With ``SeamMerge.UNION`` it is the strongest of all linked parts, else the strongest that suppresses it.
    """
    return SeamComparison.of(features, options).suppressors(pairs_at_once)


def are_cut(features: TiledFeatures) -> Flags:
    """Return which features touch an inner edge of their tile: (n,)."""
    boxes, tiles = features.detections.boxes, features.tile_bounds[features.tiles]
    flags: Flags = touching_edges(boxes, tiles, features.spans.outermost).any(axis=1)
    return flags


def default_distance_px(spans: TileSpans) -> float:
    """Return the default maximum distance: a share of the smallest overlap of neighbouring tiles."""
    return max(MIN_DISTANCE_PX, DISTANCE_SHARE * spans.least_overlap_px)


@dataclass(frozen=True, eq=False)
class SeamComparison:
    """A ``Comparison`` of the detections that several tiles cover, strongest first.

    ``ranking`` holds their indices in ``features``; all other arrays are in the order of the ranking. The search is
    limited by ``TileSpans.within_reach``.
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
        record_life: Callable[[], None] = lambda: None,
    ) -> Self:
        """Return the comparison of the features of some tiles, except features with ``is_left_out``."""
        distance_px = default_distance_px(features.spans) if options.distance_px is None else options.distance_px
        reach = np.where(features.detections.kinds < Kind.LINE, 0.0, distance_px / 2)[:, None] * [-1, -1, 1, 1]
        # A box that ends near an edge may belong to the neighbour too: its end is uncertain by ``EDGE_PX``.
        noise = EDGE_PX * np.array([-1, -1, 1, 1])
        is_shared = shared_flags(features.detections.boxes + reach + noise, features.spans)
        shared = np.flatnonzero(is_shared if is_left_out is None else is_shared & ~is_left_out)
        boxes, tiles = features.detections.boxes[shared], features.tile_bounds[features.tiles[shared]]
        is_box = (features.detections.kinds[shared] == Kind.BOX)[:, None]
        is_touching = touching_edges(boxes, tiles, features.spans.outermost)
        views = TileDetections(np.where(is_box, with_area(boxes), boxes), tiles, is_touching)
        scores = features.detections.scores[shared]
        falling = np.where(np.isnan(scores), np.inf, -scores)
        ranking = np.lexsort([falling, views.is_touching.any(axis=1)])
        indices = shared[ranking]
        categories = features.detections.categories[indices]
        if options.is_class_agnostic:
            categories = np.zeros_like(categories)
        views = views.take(ranking)
        return cls(
            features=features,
            ranking=indices,
            views=views,
            tiles=features.tiles[indices],
            kinds=features.detections.kinds[indices],
            pairs=BoxPairs(
                *(views.boxes, categories, features.spans.within_reach(views.boxes, views.tiles) + reach[indices]),
                record_life,
            ),
            weights=features.weights[indices],
            shapes=lambda chosen: features.shapes(indices[chosen]),
            options=options,
            distance_px=distance_px,
        )

    @property
    def margin_px(self) -> float:
        """The margin that ``pairs`` adds around a detection."""
        return self.distance_px / 2

    def suppressors(
        self, pairs_at_once: int = PAIRS_AT_ONCE, is_query: Flags | None = None, links: Links | None = None
    ) -> Indices:
        """Return for each detection the index of the detection that replaces it; see the function of this name.

        ``is_query``: flags of the ranking; only these detections are compared, so it must include all that are linked
        to them. ``links``: (2, k) stronger and weaker detections of all pairs of one object, if known.
        """
        count = len(self.ranking)
        if links is None:
            links = self._links(pairs_at_once, is_query)
        if links is not None:
            order = np.argsort(self.fragments(*links), kind="stable")
            ranks = _ranks(order)
            links = np.sort(ranks[links], axis=0)
            if self.options.merge is SeamMerge.UNION:
                merged_into = connected(np.arange(count), *links)
            else:
                merged_into = suppress_linked(count, links[:, self._sees(*order[links])])
        else:
            # The pairs are too many to keep, so they are found twice.
            is_fragment = np.zeros(count, dtype=np.bool_)
            for pairs in self._batches(pairs_at_once, is_query):
                is_fragment |= self.fragments(*pairs)
            order = np.argsort(is_fragment, kind="stable")
            ranks = _ranks(order)
            is_query_in_order = None if is_query is None else is_query[order]
            merged_into = self._in_order(order)._merged_into(pairs_at_once, is_query_in_order)
        found = np.arange(len(self.features.tiles))
        found[self.ranking] = self.ranking[order[merged_into[ranks]]]
        return found

    def fragments(self, first: Indices, second: Indices) -> Flags:
        """Return which detections are fragments, given pairs of one object: another tile shows more of the object.

        The other detection reaches beyond the fragment's tile by more than ``EDGE_PX``, and the fragment does not reach
        so far beyond the other's tile.
        """
        flags = np.zeros(len(self.ranking), dtype=np.bool_)
        for one, other in ((first, second), (second, first)):
            flags[one[are_fragments(self.views.take(one), self.views.take(other))]] = True
        return flags

    def _sees(self, first: Indices, second: Indices) -> Flags:
        """Return for each pair whether the tile of the first has a pixel of the second; see ``tiles_covering``."""
        tiles, boxes = self.views.tiles[first], self.views.boxes[second]
        low = np.floor(boxes[:, :2])
        high = np.maximum(low, np.ceil(boxes[:, 2:]) - 1)
        flags: Flags = ((low < tiles[:, 2:]) & (high >= tiles[:, :2])).all(axis=1)
        return flags

    def _in_order(self, order: Indices) -> Self:
        """Return the comparison of the same detections in this order."""
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

    def _links(self, pairs_at_once: int, is_query: Flags | None) -> Links | None:
        """Return (2, k) stronger and weaker detections of all pairs of one object, or None if they are too many."""
        found, count = [np.zeros((2, 0), np.intp)], 0
        for pairs in self._batches(pairs_at_once, is_query):
            count += len(pairs[0])
            if count > MAX_LINKS:
                return None
            found.append(np.stack(pairs))
        return np.concatenate(found, axis=1)

    def _batches(self, pairs_at_once: int, is_query: Flags | None) -> Iterator[tuple[Indices, Indices]]:
        for start, end in self.pairs.batches(pairs_at_once):
            queries = np.arange(start, end)
            yield self._same_objects(queries if is_query is None else queries[is_query[start:end]])

    def _merged_into(self, pairs_at_once: int, is_query: Flags | None) -> Indices:
        """Return for each detection the first that suppresses it, or for a union the first of all linked parts."""
        if self.options.merge is not SeamMerge.UNION:

            def removals(queries: Indices) -> tuple[Indices, Indices]:
                first, second = self._same_objects(queries)
                is_removal = self._sees(first, second)
                return first[is_removal], second[is_removal]

            return suppress(len(self.ranking), self.pairs.batches(pairs_at_once), removals, is_query)
        labels = np.arange(len(self.ranking))
        for pairs in self._batches(pairs_at_once, is_query):
            labels = connected(labels, *pairs)
        return labels

    def linked(self, first: Indices, second: Indices) -> Flags:
        """Return for each pair of ``pairs``, as indices in the ranking, whether it is one object.

        One of the tiles must cover the other's detection; for a union, each tile must cover the other's.
        """
        flags: Flags = self.tiles[first] != self.tiles[second]
        sees = np.stack([self._sees(first[flags], second[flags]), self._sees(second[flags], first[flags])])
        flags[flags] = sees.all(axis=0) if self.options.merge is SeamMerge.UNION else sees.any(axis=0)
        flags[flags] = self._are_same(first[flags], second[flags])
        return flags

    def _same_objects(self, queries: Indices) -> tuple[Indices, Indices]:
        """Return (stronger, weaker) of pairs of one object. The stronger is a query; pairs are sorted by it."""
        first, second = self.pairs.touching(queries)
        is_pair = first < second
        first, second = first[is_pair], second[is_pair]
        is_same = self.linked(first, second)
        return first[is_same], second[is_same]

    def _are_same(self, first: Indices, second: Indices) -> Flags:
        kinds = np.stack([self.kinds[first], self.kinds[second]])
        is_same = np.zeros(len(first), dtype=np.bool_)
        options, distance_px = self.options, self.distance_px
        for kind, is_chosen in (
            (Kind.BOX, (kinds == Kind.BOX).all(axis=0)),
            (Kind.AREA, (kinds <= Kind.AREA).all(axis=0) & (kinds == Kind.AREA).any(axis=0)),
            (Kind.LINE, (kinds == Kind.LINE).all(axis=0)),
            (Kind.POINT, (kinds == Kind.POINT).all(axis=0)),
        ):
            for chosen in self._parts(np.flatnonzero(is_chosen), first, second):
                one, other = first[chosen], second[chosen]
                views = self.views.take(one), self.views.take(other)
                if kind is Kind.BOX:
                    is_same[chosen] = are_same_boxes(*views, options)
                elif kind is Kind.AREA:
                    is_same[chosen] = are_same_areas(*views, self._shapes(one, other), options)
                elif kind is Kind.LINE:
                    is_same[chosen] = are_same_lines(*views, self._shapes(one, other), options, distance_px)
                else:
                    is_same[chosen] = are_same_points(*self._shapes(one, other), distance_px)
        return is_same

    def _parts(self, chosen: Indices, first: Indices, second: Indices) -> Iterator[Indices]:
        """Yield parts of the chosen pairs to compare at once; call ``pairs.record_life`` after each part."""
        work = np.cumsum(self.weights[first[chosen]] + self.weights[second[chosen]]) / 2
        number = (work // _WORK_AT_ONCE).astype(np.intp)
        for part in np.split(chosen, 1 + np.flatnonzero(np.diff(number))):
            if len(part):
                yield part
                self.pairs.record_life()

    def _shapes(self, first: Indices, second: Indices) -> tuple[ObjectArray, ObjectArray]:
        """Return the shapes of pairs. A shape that occurs in several pairs is made once."""
        chosen, inverse = np.unique(np.concatenate([first, second]), return_inverse=True)
        shapes = self.shapes(chosen)[inverse]
        return shapes[: len(first)], shapes[len(first) :]


def _ranks(order: Indices) -> Indices:
    """Return the rank of each item in an order: the inverse permutation."""
    ranks = np.empty_like(order)
    ranks[order] = np.arange(len(order))
    return ranks


def connected(labels: Indices, first: Indices, second: Indices) -> Indices:
    """Return labels after linking these pairs: the smallest label of each connected group, an index in it."""
    count = len(labels)
    ends = labels[first], labels[second]
    graph = coo_array((np.ones(len(first), np.int8), ends), shape=(count, count))
    _, groups = connected_components(graph, directed=False)
    _, least = np.unique(groups, return_index=True)
    found: Indices = least[groups][labels]
    return found
