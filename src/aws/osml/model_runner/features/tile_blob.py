"""Stores the features of one tile as one compressed blob: their JSON and their arrays.

A blob is a zstd frame with a checksum. Its content, all numbers little-endian:

1. the number of features and the length of the IRIs, two uint32
2. the IRIs of the categories, a JSON list
3. the length of each feature's JSON, uint32
4. a ``RECORD`` of each feature
5. the JSON of all features

Lengths and records are transposed: all first bytes come before all second bytes, because similar bytes compress better
together. For the same reason ``own_end`` is counted from the end of the JSON.
"""

import struct
from collections.abc import Iterator, Sequence
from typing import Any, overload

import numpy as np
import orjson
import zstandard
from numpy.typing import NDArray

from aws.osml.model_runner.exceptions import FeatureBlobError, FeaturesTooLargeError

from .detections import Detections

# Maximum size of a tile's features before compression. A reader holds several tiles at a time.
MAX_CONTENT_BYTES = 128 * 1024 * 1024

_HEAD = struct.Struct("<II")
# Level 6 makes blobs 2.5 % smaller and takes three times as long.
_LEVEL = 1
_LENGTH = np.dtype("<u4")
# The record of one feature, as it is stored.
RECORD = np.dtype([("box", "<f8", 4), ("score", "<f8"), ("category", "<u4"), ("kind", "i1"), ("own_end", "<u4")])


class FeatureTexts(Sequence[bytes]):
    """The JSON of each feature of a tile: slices of one text, made on access."""

    def __init__(self, text: bytes, lengths: NDArray[np.uint32]) -> None:
        self._text = text
        self._ends = np.cumsum(lengths, dtype=np.uint32)

    def __len__(self) -> int:
        return len(self._ends)

    @overload
    def __getitem__(self, key: int) -> bytes: ...
    @overload
    def __getitem__(self, key: slice) -> Sequence[bytes]: ...
    def __getitem__(self, key: int | slice) -> bytes | Sequence[bytes]:
        if isinstance(key, slice):
            return [self[index] for index in range(*key.indices(len(self)))]
        index = range(len(self))[key]
        start = self._ends.item(index - 1) if index else 0
        return self._text[start : self._ends.item(index)]

    def __iter__(self) -> Iterator[bytes]:
        start = 0
        for end in self._ends.tolist():
            yield self._text[start:end]
            start = end

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]  # compared by content

    def __repr__(self) -> str:
        return f"FeatureTexts({len(self)} features, {len(self._text)} bytes)"


def pack_tile(bodies: Sequence[bytes], detections: Detections) -> bytes:
    """Return the blob of a tile's features.

    Raises:
        FeaturesTooLargeError: the content exceeds ``MAX_CONTENT_BYTES``.
    """
    iris = orjson.dumps(list(detections.iris))
    size = _HEAD.size + len(iris) + len(bodies) * (_LENGTH.itemsize + RECORD.itemsize) + sum(map(len, bodies))
    if size > MAX_CONTENT_BYTES:
        reason = f"the features of a tile have {size} bytes; at most {MAX_CONTENT_BYTES} can be stored"
        raise FeaturesTooLargeError(reason)
    lengths = np.fromiter(map(len, bodies), _LENGTH, len(bodies))
    records = np.zeros(len(bodies), RECORD)
    records["box"], records["score"], records["kind"] = detections.boxes, detections.scores, detections.kinds
    records["category"], records["own_end"] = detections.categories, lengths - detections.own_ends
    content = b"".join((_HEAD.pack(len(bodies), len(iris)), iris, _transposed(lengths), _transposed(records), *bodies))
    # One compressor per blob, because threads must not share a compressor.
    return zstandard.ZstdCompressor(level=_LEVEL, write_checksum=True).compress(content)


def unpack_tile(blob: bytes) -> tuple[FeatureTexts, Detections]:
    """Return the texts and arrays of the features in a blob of ``pack_tile``.

    Raises:
        FeatureBlobError: ``blob`` is damaged.
    """
    try:
        size = zstandard.frame_content_size(blob)
        if not 0 <= size <= MAX_CONTENT_BYTES:
            raise FeatureBlobError(f"the features of a tile have {size} bytes; expected 0 to {MAX_CONTENT_BYTES}")
        content = zstandard.ZstdDecompressor().decompress(blob)
        return _read(content)
    except (zstandard.ZstdError, struct.error, ValueError) as err:
        raise FeatureBlobError(f"the features of a tile cannot be read: {err}") from err


def _read(content: bytes) -> tuple[FeatureTexts, Detections]:
    count, iris_bytes = _HEAD.unpack_from(content)
    start = _HEAD.size + iris_bytes
    iris = orjson.loads(content[_HEAD.size : start])

    lengths = _restored(content, start, count, _LENGTH)
    start += lengths.nbytes
    records = _restored(content, start, count, RECORD)
    start += records.nbytes
    # Copies, because numpy is slow on the strided fields of records.
    detections = Detections(
        records["box"].copy(),
        records["score"].copy(),
        records["category"].astype(np.intp),
        records["kind"].copy(),
        lengths - records["own_end"],
        iris,
    )
    return FeatureTexts(content[start:], lengths), detections


def _transposed(values: NDArray[Any]) -> bytes:
    """Return the bytes of numbers or records, all first bytes before all second bytes."""
    return values.view(np.uint8).reshape(len(values), values.itemsize).T.tobytes()


def _restored(content: bytes, start: int, count: int, dtype: np.dtype[Any]) -> NDArray[Any]:
    """Return the numbers or records whose transposed bytes begin at ``start``."""
    planes = np.frombuffer(content, np.uint8, count * dtype.itemsize, start).reshape(dtype.itemsize, count)
    return planes.T.copy().view(dtype).reshape(count)
