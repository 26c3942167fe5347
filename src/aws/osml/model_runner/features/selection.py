"""Which features are kept where several may show the same object."""

import copy
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol

import numpy as np

from aws.osml.model_runner.api.post_processing import (
    FeatureDistillationAlgorithm,
    FeatureDistillationNMS,
    FeatureDistillationNone,
    FeatureDistillationSeam,
    FeatureDistillationSoftNMS,
    SeamMerge,
)
from aws.osml.model_runner.common.typing import ImageRegion
from aws.osml.model_runner.exceptions import FeatureDistillationException

from .box_pairs import BoxPairs
from .nms import hard_suppression_of, soft_nms, suppress_linked
from .overlap_groups import shared_flags
from .properties import SCORE, TILE, Feature
from .scored_boxes import Floats, Indices, ScoredBoxes, best_class, canonical_order, score_boxes, strength_order
from .seam_merge import Links, SeamComparison, are_cut
from .seam_overlap import Flags
from .tiled_features import TiledFeatures
from .union import join_features

__all__ = ["Comparison", "FeatureSelector", "Links", "Selection", "compared", "select", "with_score"]

DROPPED = -1


@dataclass(frozen=True, eq=False)
class Selection:
    """What becomes of each of n features.

    ``standing``: (n,) the index of the feature that is delivered for it: its own, that of the one that absorbed it, or
    ``DROPPED``. ``scores`` holds the new scores of those that have one; ``joined`` those that are delivered together
    with what they absorbed, as one; lines are joined where they are no farther apart than ``distance_px``.
    """

    standing: Indices
    scores: Mapping[int, float] = field(default_factory=dict)
    joined: frozenset[int] = frozenset()
    distance_px: float = 0.0

    @property
    def kept(self) -> Indices:
        """The indices of the features that are delivered, rising."""
        return np.flatnonzero(self.standing == np.arange(len(self.standing)))

    @cached_property
    def absorbed(self) -> Mapping[int, list[int]]:
        """The indices of the features that each has absorbed, rising; those that absorbed none are not named."""
        found = defaultdict(list)
        for index in np.flatnonzero((self.standing != np.arange(len(self.standing))) & (self.standing >= 0)).tolist():
            found[int(self.standing[index])].append(index)
        return dict(found)

    def changes(self, index: int) -> bool:
        """Tell whether a feature that is kept has a new score, or a new place."""
        return index in self.scores or index in self.joined

    def finished(self, index: int, feature: Feature, feature_at: Callable[[int], Feature]) -> Feature:
        """Return a feature that is kept, with its new score, or its new place, where it has one."""
        if index in self.scores:
            return with_score(feature, self.scores[index])
        if index in self.joined:
            return join_features([feature, *map(feature_at, self.absorbed[index])], self.distance_px)
        return feature


class Comparison(Protocol):
    """The features that may have an influence on one another: which those are, and what becomes of them."""

    @property
    def ranking(self) -> Indices:
        """The indices of the features that are compared, strongest first."""

    @property
    def pairs(self) -> BoxPairs:
        """Finds those that may be linked; it counts them by their places in the ranking."""

    @property
    def margin_px(self) -> float:
        """By how much ``pairs`` looks beyond what a feature is."""

    @property
    def weights(self) -> Floats:
        """(n,) the work of comparing each of the ranking, in units of ``TiledFeatures.weights``."""

    def linked(self, first: Indices, second: Indices) -> Flags:
        """Tell of each pair (stronger, weaker) of ``pairs`` whether one has an influence on the other."""

    def selection(self, is_asked: Flags | None = None, links: Links | None = None) -> Selection:
        """Return what becomes of all features; of the ranking, only of those that are asked for.

        Where it is asked for one, it has to be for all that are linked to it, directly or through others. ``links``:
        (2, k) stronger and weaker of all pairs of them that are linked, where the caller knows.
        """


def compared(
    features: TiledFeatures,
    options: FeatureDistillationAlgorithm | None,
    is_left_out: Flags | None = None,
    note: Callable[[], None] = lambda: None,
) -> Comparison | None:
    """Return the comparison of the features of an image; None where each is delivered as it is.

    ``is_left_out``: (n,) features that are delivered as they are anyway. ``note`` is called now and then during the
    comparison, and raises where it has to stop.
    """
    if isinstance(options, FeatureDistillationSeam):
        return _SeamSelection.of(features, options, is_left_out, note)
    if options is None or isinstance(options, FeatureDistillationNone):
        return None
    scored = features.scored
    order = strength_order(scored)
    is_shared = shared_flags(scored.boxes, features.spans)
    order = order[(is_shared if is_left_out is None else is_shared & ~is_left_out)[order]]
    searched = features.spans.within_reach(scored.boxes, features.frames[features.tiles])
    return _compared_boxes(scored, order, options, searched, note)


def select(features: TiledFeatures, options: FeatureDistillationAlgorithm | None) -> Selection:
    """Return what becomes of the features of an image; see ``FeatureSelector`` for the rules.

    ``NMS`` and ``SOFT_NMS`` have their say only on what more than one of the tiles could have seen. Equals count in
    the order of the list.
    """
    comparison = compared(features, options)
    return comparison.selection() if comparison else Selection(np.arange(len(features.tiles)))


def _compared_boxes(
    scored: ScoredBoxes,
    ranking: Indices,
    options: FeatureDistillationAlgorithm,
    searched: Floats,
    note: Callable[[], None] = lambda: None,
) -> Comparison:
    """Return the comparison by boxes alone, among those of the ranking, which holds the strongest first."""
    ranking = ranking[~np.isnan(scored.boxes[ranking, 0])]
    match options:
        case FeatureDistillationNMS():
            return _HardComparison.of(scored, ranking, options, searched, note)
        case FeatureDistillationSoftNMS():
            return _SoftComparison.of(scored, ranking, options, searched, note)
    raise FeatureDistillationException(f"{options}: expected the options of SEAM, NMS, SOFT_NMS or NONE")


class _SeamSelection(SeamComparison):
    def selection(self, is_asked: Flags | None = None, links: Links | None = None) -> Selection:
        standing = self.suppressors(is_asked=is_asked, links=links)
        if self.options.merge is not SeamMerge.UNION:
            return Selection(standing)
        # What no edge cuts is delivered as the model gave it, however many tiles saw it.
        is_absorbed = standing != np.arange(len(standing))
        is_cut = are_cut(self.features)
        joined = np.unique(standing[is_absorbed & (is_cut | is_cut[standing])])
        return Selection(standing, {}, frozenset(joined.tolist()), self.distance_px)


@dataclass(frozen=True, eq=False)
class _HardComparison:
    """``weak`` holds the indices of those that score too little, whatever they overlap."""

    count: int
    ranking: Indices
    pairs: BoxPairs
    weak: Indices
    iou_threshold: float
    margin_px: float = 0.0

    @classmethod
    def of(
        cls,
        scored: ScoredBoxes,
        ranking: Indices,
        options: FeatureDistillationNMS,
        searched: Floats,
        note: Callable[[], None],
    ) -> "_HardComparison":
        least = options.skip_box_threshold
        is_weak = scored.scores[ranking] <= (-np.inf if least is None else least)
        strong = ranking[~is_weak]
        pairs = BoxPairs(scored.boxes[strong], scored.categories[strong], searched[strong], note)
        return cls(len(scored.scores), strong, pairs, ranking[is_weak], options.iou_threshold)

    @property
    def weights(self) -> Floats:
        return np.ones(len(self.ranking))

    def linked(self, first: Indices, second: Indices) -> Flags:
        flags: Flags = self.pairs.overlap_of(first, second) > self.iou_threshold
        return flags

    def selection(self, is_asked: Flags | None = None, links: Links | None = None) -> Selection:
        standing = np.arange(self.count)
        standing[self.weak] = DROPPED
        if links is None:
            found = hard_suppression_of(self.pairs, self.iou_threshold, is_asked=is_asked)
        else:
            found = suppress_linked(len(self.pairs), links)
        standing[self.ranking] = self.ranking[found]
        return Selection(standing)


@dataclass(frozen=True, eq=False)
class _SoftComparison:
    scored: ScoredBoxes
    ranking: Indices
    pairs: BoxPairs
    options: FeatureDistillationSoftNMS
    margin_px: float = 0.0

    @classmethod
    def of(
        cls,
        scored: ScoredBoxes,
        ranking: Indices,
        options: FeatureDistillationSoftNMS,
        searched: Floats,
        note: Callable[[], None],
    ) -> "_SoftComparison":
        if options.sigma <= 0:
            raise FeatureDistillationException(f"sigma {options.sigma}: expected more than 0")
        ranking = ranking[~np.isnan(scored.scores[ranking])]
        pairs = BoxPairs(scored.boxes[ranking], scored.categories[ranking], searched[ranking], note)
        return cls(scored, ranking, pairs, options)

    @property
    def weights(self) -> Floats:
        return np.ones(len(self.ranking))

    def linked(self, first: Indices, second: Indices) -> Flags:
        flags: Flags = self.pairs.overlap_of(first, second) > 0
        return flags

    def selection(
        self,
        is_asked: Flags | None = None,
        links: Links | None = None,  # noqa: ARG002 - by how much they overlap counts, not only which do
    ) -> Selection:
        chosen = np.arange(len(self.ranking)) if is_asked is None else np.flatnonzero(is_asked)
        ranking = self.ranking[chosen]
        ranked = self.scored.take(ranking)
        is_kept, scores = soft_nms(
            *(ranked.boxes, ranked.categories, ranked.scores, self.options.sigma, self.options.skip_box_threshold),
            searched=self.pairs.searched[chosen],
            note=self.pairs.note,
        )
        standing = np.arange(len(self.scored.scores))
        standing[ranking[~is_kept]] = DROPPED
        return Selection(standing, dict(zip(ranking[is_kept].tolist(), scores[is_kept].tolist(), strict=True)))


class FeatureSelector:
    """Keeps one feature of each object.

    ``SEAM`` compares only features of different tiles, by their true shape; ``features.seam_merge`` tells the rule. A
    feature's tile is the property ``_modelRunnerTile``, ``[[row, col], [width, height]]``; one without is kept.

    The others judge by boxes and scores within a category. A feature's box is the bounds of its place in pixels, a
    tenth of a pixel wide or high where they have no width or height; its category is the iri of its best class. The
    strongest comes first: by score, features without a score after all others, equals in ``canonical_order``. Features
    without a place in pixels are always kept.

    ``NMS`` removes what overlaps a stronger feature that is kept, IoU above ``iou_threshold``; and what scores no more
    than ``skip_box_threshold``, where that is set.
    ``SOFT_NMS`` lowers the score of what overlaps a stronger one by exp(-IoU² / ``sigma``), and keeps what still scores
    above ``skip_box_threshold``. It has no say on features without a score: they are kept.
    ``NONE``, or no options, keeps all.
    """

    def __init__(self, options: FeatureDistillationAlgorithm | None = None) -> None:
        self.options = options

    def select_features(self, feature_list: list[Feature]) -> list[Feature]:
        """Return the features that are kept, in the order in which they came.

        Which are kept does not depend on that order. The features that came are not changed: ``SOFT_NMS`` returns
        copies, in whose best class ``rawScore`` is the score that the model gave, and ``score`` the lowered one, and
        ``SEAM`` copies with another place where it joins parts.
        Raises FeatureDistillationException for options that do not exist.
        """
        if self.options is None or isinstance(self.options, FeatureDistillationNone):
            return feature_list
        scored = score_boxes(feature_list)
        order = canonical_order(feature_list, scored)
        if isinstance(self.options, FeatureDistillationSeam):
            return _selected_by_tiles(feature_list, order, self.options)
        selection = _compared_boxes(scored, order, self.options, scored.boxes).selection()
        return [
            selection.finished(index, feature_list[index], feature_list.__getitem__)
            for index in selection.kept.tolist()
        ]


def _selected_by_tiles(features: Sequence[Feature], order: Indices, options: FeatureDistillationSeam) -> list[Feature]:
    tiles: dict[ImageRegion, list[int]] = defaultdict(list)
    for index in order.tolist():
        tile = (features[index].get("properties") or {}).get(TILE)
        if tile is not None:
            tiles[ImageRegion.of(tile)].append(index)
    places = [index for indices in tiles.values() for index in indices]
    groups = [(tile, [features[index] for index in indices]) for tile, indices in tiles.items()]

    def feature_at(place: int) -> Feature:
        return features[places[place]]

    selection = select(TiledFeatures.of(groups, feature_at), options)
    chosen = set(places)
    found = {index: feature for index, feature in enumerate(features) if index not in chosen}
    found |= {
        places[place]: selection.finished(place, feature_at(place), feature_at) for place in selection.kept.tolist()
    }
    return [found[index] for index in sorted(found)]


def with_score(feature: Feature, score: float) -> Feature:
    """Return a copy of a feature whose best class has this score, and its old one as ``rawScore``.

    A feature without classes is returned as it is.
    """
    best = best_class(feature)
    if best is None:
        return feature
    properties = dict(feature["properties"])
    classes = list(properties["featureClasses"])
    old = classes[best.position]
    classes[best.position] = {**old, "rawScore": old["score"], "score": score}
    properties["featureClasses"] = classes
    if properties.get(SCORE) == old["score"]:
        properties[SCORE] = score
    copied = copy.copy(feature)
    copied["properties"] = properties
    return copied
