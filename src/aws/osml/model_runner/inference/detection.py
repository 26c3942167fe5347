"""A single call of a detector with metrics, and its response as the geojson objects that version 2 returned."""

import time
from io import BufferedReader
from typing import TYPE_CHECKING

import geojson

from aws.osml.model_runner.features.model_response import parse_response

from .detector import Detector

if TYPE_CHECKING:
    from aws_embedded_metrics.logger.metrics_logger import MetricsLogger

# The geojson library rounds coordinates to six decimals by default; a double holds 15.
COORDINATE_DECIMALS = 15


def detect(
    detector: Detector, payload: BufferedReader | bytes, metrics: "MetricsLogger | None", model_name: str
) -> geojson.FeatureCollection:
    """Call ``detector`` once with a tile, parse the response, and record both under ``ModelInvocation``.

    Raises:
        ModelCallError: the call failed.
        BadModelResponseError: the response is not a feature collection.
    """
    tile = payload if isinstance(payload, bytes) else payload.read()
    start_s = time.perf_counter()
    has_succeeded = False
    try:
        response = parse_response(detector.invoke(tile))
        has_succeeded = True
    finally:
        _record(metrics, model_name, time.perf_counter() - start_s, has_succeeded)
    features = []
    for found in response.features:
        feature = geojson.Feature()
        feature.update(found)
        geometry = found.get("geometry")
        if geometry and geometry.get("type") != "GeometryCollection":
            exact = {**geometry, "precision": COORDINATE_DECIMALS}
            feature["geometry"] = geojson.GeoJSON.to_instance(exact, strict=True)
        features.append(feature)
    return geojson.FeatureCollection(features)


def _record(metrics: "MetricsLogger | None", model_name: str, duration_s: float, has_succeeded: bool) -> None:
    if metrics is None:
        return
    metrics.set_dimensions({"Operation": "ModelInvocation", "ModelName": model_name})
    metrics.put_metric("Duration", duration_s, "Seconds")
    metrics.put_metric("Invocations", 1, "Count")
    metrics.put_metric("Retries", 0, "Count")
    if not has_succeeded:
        metrics.put_metric("Errors", 1, "Count")
