"""Features as compressed columns, from which the script of the page draws them.

Little-endian sections follow each other, each for all features: class number (uint16), score (uint16, in
ten-thousandths; 65535: none), number of parts (uint32). Then for all parts: kind (uint8; 0 points, 1 line, 2 ring) and
number of points (uint32). Then all x and all y as int32, in eighths of a pixel, each as the difference to the one
before. ``assets/viewer.js`` reads them.
"""

import base64
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import orjson

STEPS_PER_PX = 8
NO_SCORE = 0xFFFF
SCORE_STEPS = 10_000
MAX_CLASSES = 0xFFFF
UNNAMED = "(no class)"
# Members that the columns hold, and that are not shown again as properties.
_HELD = frozenset({"imageGeometry", "imageBBox", "featureClasses", "class", "score"})

Part = tuple[int, Sequence[Sequence[float]]]


class Columns:
    """Collects features, in the order in which the page numbers them."""

    def __init__(self) -> None:
        self.classes: Counter[str] = Counter()
        self.left_out = 0
        self._numbers: dict[str, int] = {}
        self._class: list[int] = []
        self._score: list[int] = []
        self._parts: list[int] = []
        self._kinds = bytearray()
        self._points: list[int] = []
        self._coordinates: list[np.ndarray[Any, np.dtype[np.float64]]] = []

    def add(self, feature: Mapping[str, Any]) -> bool:
        """Add a feature; return False for one without ``imageGeometry``, which the page cannot draw."""
        properties = feature.get("properties") or {}
        parts = [part for part in parts_of(properties.get("imageGeometry")) if len(part[1])]
        if not parts:
            self.left_out += 1
            return False
        name = str(properties.get("class") or UNNAMED)
        number = self._numbers.setdefault(name, min(len(self._numbers), MAX_CLASSES))
        self.classes[name] += 1
        score = properties.get("score")
        self._class.append(number)
        is_scored = isinstance(score, int | float) and 0 <= score <= 1
        self._score.append(round(float(score or 0) * SCORE_STEPS) if is_scored else NO_SCORE)
        self._parts.append(len(parts))
        for kind, points in parts:
            self._kinds.append(kind)
            self._points.append(len(points))
            self._coordinates.append(np.asarray([point[:2] for point in points], np.float64))
        return True

    def header(self) -> dict[str, Any]:
        """Return the counts by which the sections are found, and the classes with their numbers of features."""
        return {
            "features": len(self._class),
            "parts": len(self._kinds),
            "points": sum(self._points),
            "classes": [[name, self.classes[name]] for name in self._numbers],
            "leftOut": self.left_out,
        }

    def body(self) -> str:
        """Return the sections, compressed with zlib, in base64."""
        points = np.concatenate(self._coordinates) if self._coordinates else np.empty((0, 2))
        steps = np.clip(np.rint(points * STEPS_PER_PX), -(2**30), 2**30).astype("<i4")
        sections = [
            np.asarray(self._class, "<u2"),
            np.asarray(self._score, "<u2"),
            np.asarray(self._parts, "<u4"),
            np.frombuffer(bytes(self._kinds), np.uint8),
            np.asarray(self._points, "<u4"),
            np.diff(steps[:, 0], prepend=np.int32(0)).astype("<i4"),
            np.diff(steps[:, 1], prepend=np.int32(0)).astype("<i4"),
        ]
        return packed(b"".join(section.tobytes() for section in sections))


def parts_of(geometry: Any) -> Iterator[Part]:
    """Yield (kind, points) of a GeoJSON geometry in pixels: 0 points, 1 a line, 2 a ring of a polygon."""
    if not isinstance(geometry, Mapping):
        return
    kind, coordinates = geometry.get("type"), geometry.get("coordinates") or ()
    if kind == "GeometryCollection":
        for member in geometry.get("geometries") or ():
            yield from parts_of(member)
    elif kind == "Point":
        yield 0, [coordinates] if coordinates else []
    elif kind == "MultiPoint":
        yield 0, coordinates
    elif kind == "LineString":
        yield 1, coordinates
    elif kind == "MultiLineString":
        yield from ((1, line) for line in coordinates)
    elif kind == "Polygon":
        yield from ((2, ring) for ring in coordinates)
    elif kind == "MultiPolygon":
        yield from ((2, ring) for polygon in coordinates for ring in polygon)


def property_lines(features: Iterable[Mapping[str, Any]], max_bytes: int) -> tuple[str, int]:
    """Return the other properties of the first features as lines of JSON, packed, and the number of features.

    The compressed lines take at most about ``max_bytes``.
    """
    compressor = zlib.compressobj(9)
    taken: list[bytes] = []
    size = count = 0
    for feature in features:
        if size >= max_bytes:
            break
        properties = {name: value for name, value in (feature.get("properties") or {}).items() if name not in _HELD}
        line = orjson.dumps({"id": feature.get("id"), **properties}, option=orjson.OPT_APPEND_NEWLINE)
        taken.append(compressor.compress(line))
        count += 1
        if count % 200 == 0:
            taken.append(compressor.flush(zlib.Z_SYNC_FLUSH))
            size = sum(map(len, taken))
            taken = [b"".join(taken)]
    taken.append(compressor.flush())
    return base64.b64encode(b"".join(taken)).decode(), count


def packed(raw: bytes) -> str:
    """Return bytes compressed with zlib, in base64."""
    return base64.b64encode(zlib.compress(raw, 9)).decode()
