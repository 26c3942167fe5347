"""What merging needs to know of features, as arrays: box, score, category; and an order in which chance has no part."""

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
    """The class that a feature is taken for: its place in ``featureClasses``, its iri, its score (NaN: it has none)."""

    position: int
    iri: str
    score: float


@dataclass(frozen=True, eq=False)
class ScoredBoxes:
    """n features as arrays.

    ``boxes``: (n, 4) minx, miny, maxx, maxy in pixels of the full image; NaN for a feature without a place in pixels.
    ``scores``: (n,) the score of the best class; NaN for a feature without a score.
    ``categories``: (n,) a number for each iri; features without classes have one of their own.
    """

    boxes: Floats
    scores: Floats
    categories: Indices

    def take(self, indices: Indices) -> "ScoredBoxes":
        """Return these features alone, in this order."""
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
    """Set the properties ``class`` and ``score`` to those of the best class, where the model has not used the names."""
    best, properties = best_class(feature), feature["properties"]
    if best is None:
        return
    properties.setdefault(CLASS, best.iri)
    if not math.isnan(best.score):
        properties.setdefault(SCORE, best.score)


def best_class(feature: Mapping[str, Any]) -> BestClass | None:
    """Return the class with the highest score, the first of equals; the first class where none has a score.

    A score is a finite number. What is no class at all is passed over; None where nothing is left.
    """
    properties = feature.get("properties")
    classes = properties.get("featureClasses") if isinstance(properties, dict) else None
    if not isinstance(classes, _LISTS):
        return None
    best = None
    for position, item in enumerate(classes):
        if isinstance(item, dict):
            score = _score(item.get("score"))
            if best is None or score > best.score or (math.isnan(best.score) and not math.isnan(score)):
                best = BestClass(position, str(item.get("iri", "")), score)
    return best


def _score(value: object) -> float:
    if type(value) is float:  # what most scores are
        return value if math.isfinite(value) else math.nan
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if is_number else math.nan  # type: ignore[arg-type]


def strength_order(scored: ScoredBoxes) -> Indices:
    """Return the indices of features by falling score, then box, then category, then as they stand in the list.

    Features without a score come after those that have one.
    """
    order: Indices = np.lexsort(_keys(scored))
    return order


def canonical_order(features: Sequence[Feature], scored: ScoredBoxes) -> Indices:
    """Return the order of strength, but equals by their content.

    So it follows from what the features are, not from where they stand in the list: two that change places are equal
    in every part.
    """
    keys, order = _keys(scored), strength_order(scored)
    is_tie = (keys[:, order[1:]] == keys[:, order[:-1]]).all(axis=0)
    for start, end in _runs(is_tie):
        order[start:end] = sorted(order[start:end], key=lambda index: _content_key(features[index]))
    return order


def _keys(scored: ScoredBoxes) -> Floats:
    minx, miny, maxx, maxy = np.nan_to_num(scored.boxes, nan=np.inf).T
    falling = np.where(np.isnan(scored.scores), np.inf, -scored.scores)
    return np.stack([scored.categories, maxy, maxx, miny, minx, falling])


def _runs(is_tie: NDArray[np.bool_]) -> list[tuple[int, int]]:
    """Return [start, end) of the runs of equal items, from the flags of neighbours that are equal."""
    edges = np.diff(np.concatenate([[False], is_tie, [False]]).astype(np.int8))
    starts, ends = np.flatnonzero(edges == 1), np.flatnonzero(edges == -1)
    return list(zip(starts.tolist(), (ends + 1).tolist(), strict=True))


def _content_key(feature: Feature) -> tuple[bytes, bytes]:
    """Return a key that is equal only for features of equal content, with the id before the rest."""
    return _canonical_json(feature.get("id")), _canonical_json(feature)


def _canonical_json(value: object) -> bytes:
    options = orjson.OPT_SORT_KEYS | orjson.OPT_NON_STR_KEYS | orjson.OPT_SERIALIZE_NUMPY
    return orjson.dumps(value, default=repr, option=options)
