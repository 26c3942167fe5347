"""GeoJSON as bytes, written piece by piece: a result is never in memory as a whole."""

from collections.abc import Iterable, Iterator, Sequence

HEAD = b'{"type":"FeatureCollection","features":['
TAIL = b"]}"


def collection_bytes(features: Sequence[bytes]) -> bytes:
    """Return the feature collection in one piece."""
    return b"".join(collection_pieces(features))


def collection_pieces(features: Iterable[bytes]) -> Iterator[bytes]:
    """Yield a feature collection in small pieces."""
    yield HEAD
    rest = iter(features)
    yield next(rest, b"")
    for feature in rest:
        yield b"," + feature
    yield TAIL


def sequence_pieces(features: Iterable[bytes]) -> Iterator[bytes]:
    """Yield features one to a line, each with a line feed at its end."""
    for feature in features:
        yield feature
        yield b"\n"
