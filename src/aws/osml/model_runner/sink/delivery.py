"""Deliveries: the encoded features of one image, for a sink, and their GeoJSON in pieces."""

import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

# Features without an id get one from the job id and their index in the job's list.
_NAMESPACE = uuid.UUID("6f1d4f0a-5c53-5a8e-9d5a-0b8e1f6a2c77")


@dataclass(frozen=True)
class FeatureBatch:
    """Consecutive features of a delivery: each as a GeoJSON feature in UTF-8, and its stable id.

    ``centres``: (n, 2) the centre (x, y) of each in pixels, NaN for a feature without pixels; None if not computed.
    """

    bodies: Sequence[bytes]
    ids: Sequence[str]
    centres: NDArray[np.float64] | None = None

    def __len__(self) -> int:
        return len(self.bodies)


@dataclass(frozen=True)
class Delivery:
    """The features of one image in their final order, as a stream: ``batches`` is read once.

    ``result_name`` distinguishes the results of one job; it is empty if a job has one image. A sink that continues an
    earlier delivery starts at ``position``, an index of features. ``metadata`` is stored with the result if the output
    supports it. ``members`` returns the file's members about the whole image, after all batches are read;
    ``GEOJSONSEQ`` and Kinesis omit them. ``note`` is called while an output is written, and raises to stop it.

    ``coverage`` returns the features of the coverage, after all batches are read. ``columns`` are properties with a
    column of their own in tables, by name, each with Arrow's name of its type.

    A sink may complete the result only after ``batches`` has ended. If features turn out to be missing, the iteration
    raises instead, and the result must not appear.
    """

    job_id: str
    result_name: str
    batches: Iterable[FeatureBatch]
    position: int = 0
    metadata: Mapping[str, str] = field(default_factory=dict)
    note: Callable[[], None] = lambda: None
    members: Callable[[], Mapping[str, Any]] = dict
    coverage: Callable[[], Iterable[FeatureBatch]] | None = None
    columns: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(
        cls, job_id: str, result_name: str, bodies: Sequence[bytes], ids: Sequence[str], **options: Any
    ) -> "Delivery":
        """Return the delivery of a complete list of features."""
        return cls(job_id, result_name, [FeatureBatch(bodies, ids)], **options)

    @classmethod
    def from_features(cls, job_id: str, features: Sequence[Mapping[str, Any]]) -> "Delivery":
        """Encode features; a feature without ``feature_id`` in its properties gets an id from the job and its index."""
        ids = []
        for index, feature in enumerate(features):
            own_id = (feature.get("properties") or {}).get("feature_id")
            derived_id = str(uuid.uuid5(_NAMESPACE, f"{job_id}#{index}"))
            ids.append(own_id if isinstance(own_id, str) and own_id else derived_id)
        return cls.of(job_id, "", [encode_feature(feature) for feature in features], ids)

    def bodies(self) -> Iterator[bytes]:
        """Yield each feature."""
        for batch in self.batches:
            yield from batch.bodies

    def counting(self, count: Callable[[int], None]) -> "Delivery":
        """Return a copy that calls ``count`` with the number of features of each batch that is read."""

        def counted() -> Iterator[FeatureBatch]:
            for batch in self.batches:
                count(len(batch))
                yield batch

        return replace(self, batches=counted())


def encode_feature(feature: Mapping[str, Any]) -> bytes:
    """Return canonical JSON: keys sorted, no spaces, so that equal features are equal bytes."""
    return orjson.dumps(feature, default=_plain_number, option=orjson.OPT_SORT_KEYS | orjson.OPT_SERIALIZE_NUMPY)


def _plain_number(value: Any) -> float:
    if isinstance(value, Decimal):
        return float(value)
    raise TypeError(f"a feature holds a {type(value).__name__}, which is not valid in JSON")


def collection_pieces(features: Iterable[bytes], members: Callable[[], Mapping[str, Any]] = dict) -> Iterator[bytes]:
    """Yield a feature collection in small pieces; ``members`` is called last and returns the foreign members."""
    yield b'{"type":"FeatureCollection","features":['
    rest = iter(features)
    yield next(rest, b"")
    for feature in rest:
        yield b"," + feature
    yield b"]"
    for name, value in members().items():
        yield b"".join((b",", orjson.dumps(name), b":", orjson.dumps(value)))
    yield b"}"


def sequence_pieces(features: Iterable[bytes]) -> Iterator[bytes]:
    """Yield each feature and a line feed."""
    for feature in features:
        yield feature
        yield b"\n"
