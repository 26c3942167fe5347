"""The best class of a feature: the class with the highest score."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from .properties import CLASS, SCORE

_LISTS = (list, tuple)


class BestClass(NamedTuple):
    """The class of a feature: its index in ``featureClasses``, its iri, and its score or NaN."""

    position: int
    iri: str
    score: float


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
