"""Selects the features to keep where several may show the same object."""

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

from .best_class import best_class
from .box_pairs import BoxPairs
from .detections import Detections, Floats, Indices, canonical_order, checked_box, score_order
from .nms import nms, soft_nms, suppress_linked
from .overlap_groups import shared_flags
from .properties import SCORE, TILE, Feature
from .seam_merge import Links, SeamComparison, are_cut
from .seam_overlap import Flags
from .tiled_features import TiledFeatures
from .union import join_features

__all__ = ["Comparison", "FeatureSelector", "Links", "Selection", "compared", "select", "with_score"]

DROPPED = -1


@dataclass(frozen=True, eq=False)
class Selection:
    """The outcome for each of n features.

    ``merged_into``: (n,) the index of the feature that is delivered in its stead, its own index if it is kept, or
    ``DROPPED``. ``scores``: changed scores by index. ``joined``: indices of features that are delivered as the union
    with the features merged into them. Lines are joined if they are at most ``distance_px`` apart.
    """

    merged_into: Indices
    scores: Mapping[int, float] = field(default_factory=dict)
    joined: frozenset[int] = frozenset()
    distance_px: float = 0.0

    @property
    def kept(self) -> Indices:
        """The indices of the features that are delivered, sorted."""
        return np.flatnonzero(self.merged_into == np.arange(len(self.merged_into)))

    @cached_property
    def absorbed(self) -> Mapping[int, list[int]]:
        """For each feature into which others were merged, the indices of these, sorted."""
        found = defaultdict(list)
        is_other = self.merged_into != np.arange(len(self.merged_into))
        for index in np.flatnonzero(is_other & (self.merged_into >= 0)).tolist():
            found[int(self.merged_into[index])].append(index)
        return dict(found)

    def changes(self, index: int) -> bool:
        """Return True if a kept feature gets a new score or a new geometry."""
        return index in self.scores or index in self.joined

    def finished(self, index: int, feature: Feature, feature_at: Callable[[int], Feature]) -> Feature:
        """Return a kept feature with its new score or new geometry, if it has one."""
        if index in self.scores:
            return with_score(feature, self.scores[index])
        if index in self.joined:
            return join_features([feature, *map(feature_at, self.absorbed[index])], self.distance_px)
        return feature


class Comparison(Protocol):
    """Finds the features that may affect one another, and decides their outcome."""

    @property
    def ranking(self) -> Indices:
        """The indices of the compared features, strongest first."""

    @property
    def pairs(self) -> BoxPairs:
        """Finds pairs that may be linked, as indices in the ranking."""

    @property
    def margin_px(self) -> float:
        """The margin that ``pairs`` adds around a feature."""

    @property
    def weights(self) -> Floats:
        """(n,) the work of comparing each feature of the ranking, in units of ``TiledFeatures.weights``."""

    def linked(self, first: Indices, second: Indices) -> Flags:
        """Return for each pair (stronger, weaker) of ``pairs`` whether one affects the other."""

    def selection(self, is_query: Flags | None = None, links: Links | None = None) -> Selection:
        """Return the outcome for all features. In the ranking, only features with ``is_query`` are compared.

        ``is_query`` must include all features that are linked to an included one, directly or through others.
        ``links``: (2, k) stronger and weaker features of all linked pairs, if known.
        """


def compared(
    features: TiledFeatures,
    options: FeatureDistillationAlgorithm | None,
    is_left_out: Flags | None = None,
    record_life: Callable[[], None] = lambda: None,
) -> Comparison | None:
    """Return the comparison of the features of an image, or None if all features are delivered unchanged.

    ``is_left_out``: (n,) features that are delivered unchanged. ``record_life`` is called repeatedly during the
    comparison and raises an error to stop it.
    """
    if isinstance(options, FeatureDistillationSeam):
        return _SeamSelection.of(features, options, is_left_out, record_life)
    if options is None or isinstance(options, FeatureDistillationNone):
        return None
    detections = features.detections
    order = score_order(detections)
    is_shared = shared_flags(detections.boxes, features.spans)
    order = order[(is_shared if is_left_out is None else is_shared & ~is_left_out)[order]]
    searched = features.spans.within_reach(detections.boxes, features.tile_bounds[features.tiles])
    return _compared_boxes(detections, order, options, searched, record_life)


def select(features: TiledFeatures, options: FeatureDistillationAlgorithm | None) -> Selection:
    """Return the outcome for the features of an image; see ``FeatureSelector`` for the rules.

    ``NMS`` and ``SOFT_NMS`` consider only features that more than one tile covers. Ties keep the order of the list.
    """
    comparison = compared(features, options)
    return comparison.selection() if comparison else Selection(np.arange(len(features.tiles)))


def _compared_boxes(
    detections: Detections,
    ranking: Indices,
    options: FeatureDistillationAlgorithm,
    searched: Floats,
    record_life: Callable[[], None] = lambda: None,
) -> Comparison:
    """Return the comparison by boxes alone of the features in ``ranking``, strongest first."""
    ranking = ranking[~np.isnan(detections.boxes[ranking, 0])]
    match options:
        case FeatureDistillationNMS():
            return _HardComparison.of(detections, ranking, options, searched, record_life)
        case FeatureDistillationSoftNMS():
            return _SoftComparison.of(detections, ranking, options, searched, record_life)
    raise FeatureDistillationException(f"{options}: expected the options of SEAM, NMS, SOFT_NMS or NONE")


class _SeamSelection(SeamComparison):
    def selection(self, is_query: Flags | None = None, links: Links | None = None) -> Selection:
        merged_into = self.suppressors(is_query=is_query, links=links)
        if self.options.merge is not SeamMerge.UNION:
            return Selection(merged_into)
        # An object that no edge cuts keeps the model's geometry, however many tiles cover it.
        is_merged = merged_into != np.arange(len(merged_into))
        is_cut = are_cut(self.features)
        joined = np.unique(merged_into[is_merged & (is_cut | is_cut[merged_into])])
        return Selection(merged_into, {}, frozenset(joined.tolist()), self.distance_px)


@dataclass(frozen=True, eq=False)
class _HardComparison:
    """NMS. ``weak``: indices of features that are dropped because of their score alone."""

    count: int
    ranking: Indices
    pairs: BoxPairs
    weak: Indices
    iou_threshold: float
    margin_px: float = 0.0

    @classmethod
    def of(
        cls,
        detections: Detections,
        ranking: Indices,
        options: FeatureDistillationNMS,
        searched: Floats,
        record_life: Callable[[], None],
    ) -> "_HardComparison":
        threshold = options.skip_box_threshold
        is_weak = detections.scores[ranking] <= (-np.inf if threshold is None else threshold)
        strong = ranking[~is_weak]
        pairs = BoxPairs(detections.boxes[strong], detections.categories[strong], searched[strong], record_life)
        return cls(len(detections), strong, pairs, ranking[is_weak], options.iou_threshold)

    @property
    def weights(self) -> Floats:
        return np.ones(len(self.ranking))

    def linked(self, first: Indices, second: Indices) -> Flags:
        flags: Flags = self.pairs.overlap_of(first, second) > self.iou_threshold
        return flags

    def selection(self, is_query: Flags | None = None, links: Links | None = None) -> Selection:
        merged_into = np.arange(self.count)
        merged_into[self.weak] = DROPPED
        if links is None:
            found = nms(self.pairs, self.iou_threshold, is_query=is_query)
        else:
            found = suppress_linked(len(self.pairs), links)
        merged_into[self.ranking] = self.ranking[found]
        return Selection(merged_into)


@dataclass(frozen=True, eq=False)
class _SoftComparison:
    detections: Detections
    ranking: Indices
    pairs: BoxPairs
    options: FeatureDistillationSoftNMS
    margin_px: float = 0.0

    @classmethod
    def of(
        cls,
        detections: Detections,
        ranking: Indices,
        options: FeatureDistillationSoftNMS,
        searched: Floats,
        record_life: Callable[[], None],
    ) -> "_SoftComparison":
        if options.sigma <= 0:
            raise FeatureDistillationException(f"sigma {options.sigma}: expected more than 0")
        ranking = ranking[~np.isnan(detections.scores[ranking])]
        pairs = BoxPairs(detections.boxes[ranking], detections.categories[ranking], searched[ranking], record_life)
        return cls(detections, ranking, pairs, options)

    @property
    def weights(self) -> Floats:
        return np.ones(len(self.ranking))

    def linked(self, first: Indices, second: Indices) -> Flags:
        flags: Flags = self.pairs.overlap_of(first, second) > 0
        return flags

    def selection(
        self,
        is_query: Flags | None = None,
        links: Links | None = None,  # noqa: ARG002 - the decay needs the IoU of pairs too
    ) -> Selection:
        chosen = np.arange(len(self.ranking)) if is_query is None else np.flatnonzero(is_query)
        ranking = self.ranking[chosen]
        ranked = self.detections.take(ranking)
        is_kept, scores = soft_nms(
            *(ranked.boxes, ranked.categories, ranked.scores, self.options.sigma, self.options.skip_box_threshold),
            searched=self.pairs.searched[chosen],
            record_life=self.pairs.record_life,
        )
        merged_into = np.arange(len(self.detections))
        merged_into[ranking[~is_kept]] = DROPPED
        return Selection(merged_into, dict(zip(ranking[is_kept].tolist(), scores[is_kept].tolist(), strict=True)))


class FeatureSelector:
    """Keeps one feature of each object.

    ``SEAM`` compares only features of different tiles, by their true shape; ``features.seam_merge`` has the rules. A
    feature's tile is its property ``_modelRunnerTile``, ``[[row, col], [width, height]]``. Others are always kept.

    The other algorithms compare boxes and scores within a category. A feature's box is the bounds of its image
    geometry; zero width or height becomes a tenth of a pixel. Its category is the iri of its best class. Features are
    ranked by falling score, features without a score last, ties in ``canonical_order``. Features without an image
    geometry are always kept.

    ``NMS`` drops a feature whose IoU with a stronger kept feature is above ``iou_threshold``. If ``skip_box_threshold``
    is set, it also drops features whose score is not above it.
    ``SOFT_NMS`` multiplies the score of a feature that overlaps a stronger one by exp(-IoU² / ``sigma``). It keeps
    features whose score stays above ``skip_box_threshold``, and features without a score.
    ``NONE``, or no options, keeps all features.
    """

    def __init__(self, options: FeatureDistillationAlgorithm | None = None) -> None:
        self.options = options

    def select_features(self, feature_list: list[Feature]) -> list[Feature]:
        """Return the kept features in the order of the list; the choice does not depend on the order.

        The given features are not changed. ``SOFT_NMS`` returns copies, whose best class has the model's score as
        ``rawScore`` and the lowered score as ``score``. ``SEAM`` returns copies with a new geometry if it joins parts.
        Raises FeatureDistillationException for unknown options.
        """
        if self.options is None or isinstance(self.options, FeatureDistillationNone):
            return feature_list
        detections = Detections.of(feature_list, locate=checked_box)
        order = canonical_order(feature_list, detections)
        if isinstance(self.options, FeatureDistillationSeam):
            return _selected_by_tiles(feature_list, order, self.options)
        selection = _compared_boxes(detections, order, self.options, detections.boxes).selection()
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
    tiled = [index for indices in tiles.values() for index in indices]
    groups = [(tile, [features[index] for index in indices]) for tile, indices in tiles.items()]

    def feature_at(position: int) -> Feature:
        return features[tiled[position]]

    selection = select(TiledFeatures.of(groups, feature_at), options)
    chosen = set(tiled)
    found = {index: feature for index, feature in enumerate(features) if index not in chosen}
    found |= {
        tiled[position]: selection.finished(position, feature_at(position), feature_at)
        for position in selection.kept.tolist()
    }
    return [found[index] for index in sorted(found)]


def with_score(feature: Feature, score: float) -> Feature:
    """Return a copy of a feature whose best class has this score, and the old score as ``rawScore``.

    A feature without classes is returned unchanged.
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
