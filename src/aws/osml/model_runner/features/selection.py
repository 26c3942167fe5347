"""Which features are kept where several may show the same object."""

import copy

import numpy as np

from aws.osml.model_runner.common.mr_post_processing import (
    FeatureDistillationAlgorithm,
    FeatureDistillationNMS,
    FeatureDistillationNone,
    FeatureDistillationSoftNMS,
)
from aws.osml.model_runner.exceptions import FeatureDistillationException

from .properties import Feature
from .scored_boxes import Indices, ScoredBoxes, best_class, canonical_order, score_boxes
from .suppression import Flags, hard_suppression, soft_suppression


class FeatureSelector:
    """Keeps one feature of each object, judged by boxes and scores within a category.

    A feature's box is the bounds of its place in pixels, a tenth of a pixel wide or high where they have no width or
    height; its category is the iri of its best class. The strongest comes first: by score, features without a score
    after all others, equals in ``canonical_order``. Features without a place in pixels are always kept.

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
        copies, in whose best class ``rawScore`` is the score that the model gave, and ``score`` the lowered one.
        Raises FeatureDistillationException for options that do not exist.
        """
        match self.options:
            case None | FeatureDistillationNone():
                return feature_list
            case FeatureDistillationNMS() as options:
                return _select_hard(feature_list, options)
            case FeatureDistillationSoftNMS() as options:
                return _select_soft(feature_list, options)
        raise FeatureDistillationException(f"{self.options}: expected the options of NMS, SOFT_NMS or NONE")


def _select_hard(features: list[Feature], options: FeatureDistillationNMS) -> list[Feature]:
    scored = score_boxes(features)
    is_kept = _is_above(scored, options.skip_box_threshold)
    ranking = _ranking(features, scored, ~np.isnan(scored.boxes[:, 0]) & is_kept)
    ranked = scored.take(ranking)
    is_kept[ranking] = hard_suppression(ranked.boxes, ranked.categories, options.iou_threshold)
    return [features[index] for index in np.flatnonzero(is_kept).tolist()]


def _is_above(scored: ScoredBoxes, skip_box_threshold: float | None) -> Flags:
    """Return which features do not score at or below the threshold: those without a score, or all where it is None."""
    threshold = -np.inf if skip_box_threshold is None else skip_box_threshold
    is_above: Flags = ~(scored.scores <= threshold)
    return is_above


def _select_soft(features: list[Feature], options: FeatureDistillationSoftNMS) -> list[Feature]:
    if options.sigma <= 0:
        raise FeatureDistillationException(f"sigma {options.sigma}: expected more than 0")
    scored = score_boxes(features)
    ranking = _ranking(features, scored, ~np.isnan(scored.boxes[:, 0]) & ~np.isnan(scored.scores))
    ranked = scored.take(ranking)
    kept, scores = soft_suppression(
        ranked.boxes, ranked.categories, ranked.scores, options.sigma, options.skip_box_threshold
    )
    is_kept = np.ones(len(features), dtype=np.bool_)
    is_kept[ranking] = kept
    return _rescored(features, is_kept, dict(zip(ranking.tolist(), scores.tolist(), strict=True)))


def _ranking(features: list[Feature], scored: ScoredBoxes, is_judged: Flags) -> Indices:
    order = canonical_order(features, scored)
    ranking: Indices = order[is_judged[order]]
    return ranking


def _rescored(features: list[Feature], is_kept: Flags, scores: dict[int, float]) -> list[Feature]:
    return [
        with_score(features[index], scores[index]) if index in scores else features[index]
        for index in np.flatnonzero(is_kept).tolist()
    ]


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
    copied = copy.copy(feature)
    copied["properties"] = properties
    return copied
