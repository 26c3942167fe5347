"""GeoJSON as bytes, in pieces, so that a whole result is never in memory."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import orjson

HEAD = b'{"type":"FeatureCollection","features":['


def collection_bytes(features: Sequence[bytes]) -> bytes:
    """Return the feature collection in one piece."""
    return b"".join(collection_pieces(features))


def collection_pieces(features: Iterable[bytes], members: Callable[[], Mapping[str, Any]] = dict) -> Iterator[bytes]:
    """Yield a feature collection in small pieces; ``members`` is called last and returns the foreign members."""
    yield HEAD
    rest = iter(features)
    yield next(rest, b"")
    for feature in rest:
        yield b"," + feature
    yield b"]"
    for name, value in members().items():
        yield b"".join((b",", orjson.dumps(name), b":", orjson.dumps(value)))
    yield b"}"


def sequence_pieces(features: Iterable[bytes]) -> Iterator[bytes]:
    """Yield features one to a line, each with a line feed at its end."""
    for feature in features:
        yield feature
        yield b"\n"
