"""Features as Kinesis records, in batches within the limits of the service."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import orjson

from .delivery import collection_pieces

MAX_BATCH_RECORDS = 500
MAX_BATCH_BYTES = 5 * 1024 * 1024
MAX_KEY_CHARACTERS = 256

PARTITION_BY_JOB = "JOB"
PARTITION_BY_FEATURE = "FEATURE"

# Maximum that a record adds to its feature, apart from both ids: the collection and the two properties. A feature
# without "properties" gets an empty object.
_ENVELOPE_BYTES = 192
# Maximum length of one character of an id, escaped in JSON.
_ESCAPED_BYTES = 6


class Record(NamedTuple):
    """One record of PutRecords, and the index of its feature in the delivery."""

    position: int
    data: bytes
    partition_key: str

    @property
    def size_bytes(self) -> int:
        """Size for the limits of Kinesis: data and key."""
        return len(self.data) + len(self.partition_key.encode())

    def to_entry(self) -> dict[str, Any]:
        """Return the record's entry for PutRecords."""
        return {"Data": self.data, "PartitionKey": self.partition_key}


def record_of(job_id: str, index: int, feature_id: str, body: bytes, partition_by: str) -> Record:
    """Return the record of one feature, given as JSON: a feature collection with the ids of feature and job.

    Kinesis delivers at least once; consumers drop copies by ``properties.feature_id``.
    """
    feature = orjson.loads(body)
    feature["properties"] = {**(feature.get("properties") or {}), "feature_id": feature_id, "job_id": job_id}
    key = job_id if partition_by == PARTITION_BY_JOB else feature_id
    data = b"".join(collection_pieces([orjson.dumps(feature)]))
    return Record(index, data, key[:MAX_KEY_CHARACTERS] or "-")


def may_be_oversize(job_id: str, feature_id: str, body: bytes, max_record_bytes: int) -> bool:
    """Return True if the record of a feature may exceed the stream's limit, without building the record."""
    ids_bytes = 2 * _ESCAPED_BYTES * (len(job_id) + len(feature_id))
    return len(body) + _ENVELOPE_BYTES + ids_bytes > max_record_bytes


def batches(
    records: Iterable[Record], max_records: int = MAX_BATCH_RECORDS, max_bytes: int = MAX_BATCH_BYTES
) -> Iterator[list[Record]]:
    """Yield the records in order, in lists of at most ``max_records`` and ``max_bytes``.

    A record above ``max_bytes`` is a list of its own.
    """
    batch: list[Record] = []
    size = 0
    for record in records:
        if batch and (len(batch) == max_records or size + record.size_bytes > max_bytes):
            yield batch
            batch, size = [], 0
        batch.append(record)
        size += record.size_bytes
    if batch:
        yield batch


def refused(entries: Sequence[dict[str, Any]], results: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the entries of a PutRecords call that Kinesis refused; ``results`` are the records of its response."""
    return [entry for entry, result in zip(entries, results, strict=True) if result.get("ErrorCode")]
