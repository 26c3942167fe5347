"""One measured call of a detector, its answer as the geojson objects that version 2 returned."""

import time
from collections.abc import Mapping
from io import BufferedReader
from typing import TYPE_CHECKING, Any

import geojson

from aws.osml.model_runner.features.model_response import parse_response

from .detector import Detector

if TYPE_CHECKING:
    from aws_embedded_metrics.logger.metrics_logger import MetricsLogger

# The geojson library rounds coordinates to six decimals unless told otherwise; 15 is what a double holds.
COORDINATE_DECIMALS = 15


def detect(
    detector: Detector, payload: BufferedReader | bytes, metrics: "MetricsLogger | None", model_name: str
) -> geojson.FeatureCollection:
    """Call ``detector`` once with a tile, parse the answer, and record both under ``ModelInvocation``.

    Raises:
        ModelCallError: the call failed.
        BadModelResponseError: the answer is no feature collection.
    """
    tile = payload if isinstance(payload, bytes) else payload.read()
    start_s = time.perf_counter()
    is_answered = False
    try:
        answer = parse_response(detector.invoke(tile))
        is_answered = True
    finally:
        _record(metrics, model_name, time.perf_counter() - start_s, is_answered)
    return geojson.FeatureCollection([_feature(feature) for feature in answer.features])


def _record(metrics: "MetricsLogger | None", model_name: str, duration_s: float, is_answered: bool) -> None:
    if metrics is None:
        return
    metrics.set_dimensions({"Operation": "ModelInvocation", "ModelName": model_name})
    metrics.put_metric("Duration", duration_s, "Seconds")
    metrics.put_metric("Invocations", 1, "Count")
    metrics.put_metric("Retries", 0, "Count")
    if not is_answered:
        metrics.put_metric("Errors", 1, "Count")


def _feature(feature: Mapping[str, Any]) -> geojson.Feature:
    """Return a feature whose geometry is a geojson object with the coordinates as the model gave them."""
    made = geojson.Feature()
    made.update(feature)
    geometry = feature.get("geometry")
    if geometry and geometry.get("type") != "GeometryCollection":
        made["geometry"] = geojson.GeoJSON.to_instance({**geometry, "precision": COORDINATE_DECIMALS}, strict=True)
    return made
