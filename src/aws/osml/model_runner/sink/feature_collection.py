"""A feature collection as bytes, written piece by piece: it is never in memory twice."""

from collections.abc import Iterator, Sequence

HEAD = b'{"type":"FeatureCollection","features":['
TAIL = b"]}"


def collection_size_bytes(features: Sequence[bytes]) -> int:
    """Return how long the feature collection of ``features`` is."""
    return len(HEAD) + sum(map(len, features)) + max(0, len(features) - 1) + len(TAIL)


def collection_bytes(features: Sequence[bytes]) -> bytes:
    """Return the feature collection in one piece."""
    return b"".join((HEAD, b",".join(features), TAIL))


def collection_parts(features: Sequence[bytes], part_bytes: int) -> Iterator[bytes]:
    """Yield the feature collection in parts of at least ``part_bytes``, but for the last one."""
    pending, size = [HEAD], len(HEAD)
    for index, feature in enumerate(features):
        if index:
            pending.append(b",")
        pending.append(feature)
        size += len(feature) + 1
        if size > part_bytes:
            yield b"".join(pending)
            pending, size = [], 0
    yield b"".join((*pending, TAIL))
