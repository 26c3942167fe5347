"""The words of the model contract: features in pixels of the tile, (x, y) from its upper left corner, unlocated."""

from collections.abc import Sequence
from typing import Any

MODEL_METADATA = {"ontologyName": "example", "ontologyVersion": "1.0.0"}


def feature_collection(features: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the answer for one tile."""
    return {"type": "FeatureCollection", "features": list(features)}


def polygon_feature(
    corners: Sequence[tuple[float, float]], iri: str, score: float, model_name: str, **properties: object
) -> dict[str, Any]:
    """Return a detection: the ring of ``corners`` (x, y) in pixels, which is closed here, its box and its class."""
    xs, ys = [x for x, _ in corners], [y for _, y in corners]
    ring = [[x, y] for x, y in (*corners, corners[0])]
    return {
        "type": "Feature",
        "geometry": None,
        "properties": {
            "imageGeometry": {"type": "Polygon", "coordinates": [ring]},
            "imageBBox": [min(xs), min(ys), max(xs), max(ys)],
            "featureClasses": [{"iri": iri, "score": score}],
            "modelMetadata": {"modelName": model_name, **MODEL_METADATA},
            **properties,
        },
    }


def box_feature(box: tuple[float, float, float, float], iri: str, score: float, model_name: str) -> dict[str, Any]:
    """Return a detection whose shape is the upright box (min x, min y, max x, max y)."""
    x0, y0, x1, y1 = box
    return polygon_feature([(x0, y0), (x1, y0), (x1, y1), (x0, y1)], iri, score, model_name)
