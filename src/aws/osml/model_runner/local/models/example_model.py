"""Base of the example models: settings, the reply to a tile, and features by the model contract.

Positions are (x, y) in pixels of the tile from its upper left corner. Models do not georeference their features.
"""

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

from pydantic import BaseModel, ConfigDict

from aws.osml.model_runner.exceptions import ModelRunnerError

MODEL_METADATA = {"ontologyName": "example", "ontologyVersion": "1.0.0"}


class BadModelCallError(ModelRunnerError):
    """The caller has sent a tile or a query that the model does not take."""


@dataclass(frozen=True)
class ModelReply:
    """The response of the model's container to one call, sent after ``delay_s``."""

    body: bytes
    status: int = 200
    delay_s: float = 0.0
    headers: Mapping[str, str] = field(default_factory=dict)


class ExampleModel(BaseModel, ABC):
    """A model with its settings. Its reply depends only on the settings, the tile and the attempt."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @abstractmethod
    def reply(self, tile: bytes, attempt: int) -> ModelReply:
        """Return the reply for an encoded tile; ``attempt`` counts from 0 the calls with the same bytes."""

    def with_query(self, query: Mapping[str, str]) -> Self:
        """Return the model with the settings that the query of a request overrides; objects and lists are JSON."""
        if not query:
            return self
        overrides = {name: json.loads(text) if text[:1] in ("{", "[") else text for name, text in query.items()}
        return type(self).model_validate(self.model_dump() | overrides)


def json_reply(document: Mapping[str, Any]) -> ModelReply:
    """Return a successful reply whose body is ``document``."""
    return ModelReply(json.dumps(document, separators=(",", ":")).encode())


def feature_collection(features: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the response for one tile."""
    return {"type": "FeatureCollection", "features": list(features)}


def polygon_feature(
    corners: Sequence[tuple[float, float]], iri: str, score: float, model_name: str, **properties: object
) -> dict[str, Any]:
    """Return a detection with a polygon, its bounding box and its class.

    ``corners`` are the (x, y) of an open ring in pixels; this function closes it.
    """
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
    """Return a detection with the upright box (min x, min y, max x, max y)."""
    x0, y0, x1, y1 = box
    return polygon_feature([(x0, y0), (x1, y0), (x1, y1), (x0, y1)], iri, score, model_name)
