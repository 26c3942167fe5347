"""File formats of a result: extension of the key, content type, and bytes."""

import importlib.util
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from aws.osml.model_runner.api.sink import OutputCompression, OutputFormat

from .delivery import Delivery, collection_pieces, sequence_pieces
from .geoparquet import REQUIREMENT, parquet_pieces

# The gzip container. Its header does not hold a time or a name, so the same text gives the same bytes.
_GZIP_WINDOW_BITS = 31
_GZIP_LEVEL = 6


@dataclass(frozen=True)
class ResultFormat:
    """A file format; ``pieces`` yields the bytes of a result, and equal deliveries give equal bytes.

    ``library`` is the package that writes the format; it is empty if the format needs no package.
    """

    name: OutputFormat
    extension: str
    content_type: str
    pieces: Callable[[Delivery], Iterator[bytes]]
    library: str = ""

    @classmethod
    def of(cls, name: OutputFormat, compression: OutputCompression = OutputCompression.NONE) -> "ResultFormat":
        """Return the format that an output names; GeoParquet is not compressed again."""
        plain = _FORMATS[name]
        if compression is OutputCompression.NONE or name is OutputFormat.GEOPARQUET:
            return plain
        return cls(name, f"{plain.extension}.gz", "application/gzip", lambda delivery: gzipped(plain.pieces(delivery)))

    def missing_library(self) -> str:
        """Return the command that installs the format's missing package; empty if no package is missing."""
        if not self.library or importlib.util.find_spec(self.library) is not None:
            return ""
        return f"pip install '{REQUIREMENT}'"


_FORMATS = {
    each.name: each
    for each in (
        ResultFormat(
            OutputFormat.GEOJSON,
            ".geojson",
            "application/geo+json",
            lambda delivery: collection_pieces(delivery.bodies(), delivery.members),
        ),
        ResultFormat(
            OutputFormat.GEOJSONSEQ,
            ".geojsonl",
            "application/x-ndjson",
            lambda delivery: sequence_pieces(delivery.bodies()),
        ),
        ResultFormat(
            OutputFormat.GEOPARQUET, ".parquet", "application/vnd.apache.parquet", parquet_pieces, library="pyarrow"
        ),
    )
}


def gzipped(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """Yield pieces compressed as one gzip member."""
    compressor = zlib.compressobj(_GZIP_LEVEL, zlib.DEFLATED, _GZIP_WINDOW_BITS)
    for piece in pieces:
        if compressed := compressor.compress(piece):
            yield compressed
    yield compressor.flush()


def in_parts(pieces: Iterable[bytes], part_bytes: int) -> Iterator[bytes]:
    """Join pieces into parts of at least ``part_bytes``; the last part may be shorter or empty."""
    pending: list[bytes] = []
    size = 0
    for piece in pieces:
        pending.append(piece)
        size += len(piece)
        if size >= part_bytes:
            yield b"".join(pending)
            pending, size = [], 0
    yield b"".join(pending)
