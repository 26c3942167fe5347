"""Features as arrays for merging: box, score and category; and a deterministic order of features."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import orjson
from numpy.typing import NDArray

from .image_geometry import feature_image_bounds
from .properties import CLASS, SCORE, Feature

Floats = NDArray[np.float64]
Indices = NDArray[np.intp]

NO_BOX = (math.nan, math.nan, math.nan, math.nan)


_LISTS = (list, tuple)


class BestClass(NamedTuple):
    """The class of a feature: its index in ``featureClasses``, its iri, and its score or NaN."""

    position: int
    iri: str
    score: float


@dataclass(frozen=True, eq=False)
class ScoredBoxes:
    """n features as arrays.

    ``boxes``: (n, 4) minx, miny, maxx, maxy in pixels of the full image; NaN for a feature without an image geometry.
    ``scores``: (n,) the score of the best class; NaN for a feature without a score.
    ``categories``: (n,) a number for each iri; all features without classes share one number.
    """

    boxes: Floats
    scores: Floats
    categories: Indices

    def take(self, indices: Indices) -> "ScoredBoxes":
        """Return only these features, in this order."""
        return ScoredBoxes(self.boxes[indices], self.scores[indices], self.categories[indices])


def score_boxes(features: Sequence[Feature]) -> ScoredBoxes:
    """Return the arrays that describe these features."""
    count = len(features)
    boxes = np.array([feature_image_bounds(feature) or NO_BOX for feature in features], dtype=np.float64)
    classes = [best_class(feature) for feature in features]
    iris = [found.iri if found else "" for found in classes]
    numbers = {iri: number for number, iri in enumerate(sorted(set(iris)))}
    return ScoredBoxes(
        boxes.reshape(count, 4),
        np.fromiter((found.score if found else math.nan for found in classes), np.float64, count),
        np.fromiter((numbers[iri] for iri in iris), np.intp, count),
    )


def set_flat_class(feature: Mapping[str, Any]) -> None:
    """Set the properties ``class`` and ``score`` from the best class, unless the model has set them."""
    best, properties = best_class(feature), feature["properties"]
    if best is None:
        return
    properties.setdefault(CLASS, best.iri)
    if not math.isnan(best.score):
        properties.setdefault(SCORE, best.score)


def best_class(feature: Mapping[str, Any]) -> BestClass | None:
    """Return the class with the highest score, the first of equals. If no class has a score, return the first.

    A score is a finite number. Items that are not objects are skipped; without an object the result is None.
    """
    properties = feature.get("properties")
    classes = properties.get("featureClasses") if isinstance(properties, dict) else None
    if not isinstance(classes, _LISTS):
        return None
    best = None
    for position, item in enumerate(classes):
        if isinstance(item, dict):
            value = item.get("score")
            if type(value) is float:  # the usual type, so the check is quick
                score = value if math.isfinite(value) else math.nan
            elif isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
                score = float(value)
            else:
                score = math.nan
            if best is None or score > best.score or (math.isnan(best.score) and not math.isnan(score)):
                best = BestClass(position, str(item.get("iri", "")), score)
    return best


def score_order(scored: ScoredBoxes) -> Indices:
    """Return the indices of features by falling score, then box, then category, then list order.

    Features without a score come last.
    """
    order: Indices = np.lexsort(_keys(scored))
    return order


def canonical_order(features: Sequence[Feature], scored: ScoredBoxes) -> Indices:
    """Return the order of ``score_order``, with ties broken by the content of the features.

    So the order does not depend on the list: two features can only be swapped if they are equal in every part.
    """
    keys, order = _keys(scored), score_order(scored)
    is_tie = (keys[:, order[1:]] == keys[:, order[:-1]]).all(axis=0)
    edges = np.diff(np.concatenate([[False], is_tie, [False]]).astype(np.int8))
    starts, ends = np.flatnonzero(edges == 1), np.flatnonzero(edges == -1) + 1
    for start, end in zip(starts.tolist(), ends.tolist(), strict=True):
        # Equal keys mean equal content. The id comes before all other members.
        order[start:end] = sorted(
            order[start:end],
            key=lambda index: (_canonical_json(features[index].get("id")), _canonical_json(features[index])),
        )
    return order


def _keys(scored: ScoredBoxes) -> Floats:
    minx, miny, maxx, maxy = np.nan_to_num(scored.boxes, nan=np.inf).T
    falling = np.where(np.isnan(scored.scores), np.inf, -scored.scores)
    return np.stack([scored.categories, maxy, maxx, miny, minx, falling])


def _canonical_json(value: object) -> bytes:
    options = orjson.OPT_SORT_KEYS | orjson.OPT_NON_STR_KEYS | orjson.OPT_SERIALIZE_NUMPY
    return orjson.dumps(value, default=repr, option=options)
