"""Makes the page of a result: its template, style, scripts and data in one file.

A policy in the page allows only its own scripts, and forbids all requests. The result is JSON in a script element that
no browser runs; ``<`` is escaped in it. The page's script shows it as text only.
"""

import base64
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson

from .columns import SCORE_STEPS, STEPS_PER_PX, Columns, property_lines

# Features with the highest scores are shown first; a page holds at most so many of a layer.
MAX_FEATURES = 500_000
# Compressed bytes of properties in a page. A page of 100,000 features then stays below 5 MB.
MAX_PROPERTY_BYTES = 1_400_000


@dataclass(frozen=True)
class Picture:
    """The image made smaller, as a JPEG or PNG file. It covers the whole image."""

    body: bytes
    media_type: str = "image/jpeg"


@dataclass(frozen=True)
class Places:
    """Longitudes and latitudes at the nodes of a regular grid over the whole image.

    ``lonlat`` has the shape (rows, columns, 2), degrees; NaN where a pixel has no place. Nodes lie on the edges too.
    """

    lonlat: npt.NDArray[np.float64]


@dataclass(frozen=True)
class Layer:
    """Features to draw: ``name`` on the page, and GeoJSON features with ``imageGeometry`` among their properties."""

    name: str
    features: Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class ResultView:
    """All that a page shows. ``size`` is (width, height) of the image in pixels; None where it is not known.

    ``members`` are the result's own members beside its features, as the runner writes them. ``coverage`` has one
    feature per tile with ``state`` and ``imageBBox``.
    """

    title: str
    layers: Sequence[Layer]
    size: tuple[int, int] | None = None
    members: Mapping[str, Any] = field(default_factory=dict)
    picture: Picture | None = None
    places: Places | None = None
    coverage: Sequence[Mapping[str, Any]] = ()


def page_of(view: ResultView) -> bytes:
    """Return the page as UTF-8. Equal views give equal bytes."""
    document = {
        "title": view.title,
        "size": view.size or _extent(view.layers),
        "isSizeKnown": view.size is not None,
        "run": view.members.get("modelRunner") or {},
        "stepsPerPx": STEPS_PER_PX,
        "scoreSteps": SCORE_STEPS,
        "layers": [_layer(layer) for layer in view.layers],
        "places": _places(view.places),
        "coverage": [_tile(tile) for tile in view.coverage],
    }
    picture = view.picture
    image = f"data:{picture.media_type};base64,{base64.b64encode(picture.body).decode()}" if picture else ""
    styles = [_asset("leaflet.css"), _asset("viewer.css")]
    scripts = [_asset("leaflet.js").partition("//# sourceMappingURL")[0], _asset("viewer.js")]
    policy = (
        f"default-src 'none'; img-src data: blob:; style-src 'unsafe-inline';"
        f" script-src {' '.join(map(_digest, scripts))}; base-uri 'none'; form-action 'none'"
    )
    template = _asset("page.html")
    filled = {
        "@@POLICY@@": policy,
        "@@STYLE@@": "\n".join(styles),
        "@@LICENSE@@": _asset("leaflet.LICENSE").replace("--", "- -"),
        "@@PICTURE@@": image,
        "@@DATA@@": orjson.dumps(document).decode().replace("<", "\\u003c"),
        "@@LEAFLET@@": scripts[0],
        "@@VIEWER@@": scripts[1],
    }
    pieces = [template]
    for mark, text in filled.items():
        before, _, after = pieces.pop().partition(mark)
        pieces += [before, text, after]
    return "".join(pieces).encode()


def _asset(name: str) -> str:
    return resources.files(__package__).joinpath("assets", name).read_text("utf-8")


def _digest(script: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"


def _layer(layer: Layer) -> dict[str, Any]:
    by_score = sorted(layer.features, key=_score, reverse=True)
    columns = Columns()
    drawn = [feature for feature in by_score[:MAX_FEATURES] if columns.add(feature)]
    lines, described = property_lines(drawn, MAX_PROPERTY_BYTES)
    return {
        "name": layer.name,
        "total": len(by_score),
        "described": described,
        **columns.header(),
        "columns": columns.body(),
        "properties": lines,
    }


def _score(feature: Mapping[str, Any]) -> float:
    score = (feature.get("properties") or {}).get("score")
    return float(score) if isinstance(score, int | float) else -1.0


def _extent(layers: Sequence[Layer]) -> tuple[int, int]:
    """Return a size that holds all features, for a result whose image is not at hand."""
    boxes = [
        box
        for layer in layers
        for feature in layer.features
        if isinstance(box := (feature.get("properties") or {}).get("imageBBox"), list) and len(box) == 4
    ]
    right, bottom = np.array(boxes, np.float64)[:, 2:].max(axis=0) if boxes else (1.0, 1.0)
    return max(1, int(np.ceil(right))), max(1, int(np.ceil(bottom)))


def _places(places: Places | None) -> dict[str, Any] | None:
    if places is None or not np.isfinite(places.lonlat).any():
        return None
    rows, columns, _ = places.lonlat.shape
    rounded = np.round(places.lonlat.reshape(-1, 2), 8).tolist()
    flat = [[value if np.isfinite(value) else None for value in pair] for pair in rounded]
    return {"rows": rows, "columns": columns, "lonlat": flat}


def _tile(tile: Mapping[str, Any]) -> dict[str, Any]:
    properties = tile.get("properties") or {}
    return {
        "box": properties.get("imageBBox"),
        "state": str(properties.get("state")),
        "reason": str(properties.get("reason") or ""),
    }
