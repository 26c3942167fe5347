"""Kinesis sink: one record per feature, delivered at least once. The id of a feature does not change."""

import random
import time
from collections.abc import Callable, Iterator
from itertools import chain
from typing import Any

import geojson
import structlog
from botocore.exceptions import BotoCoreError, ClientError, ParamValidationError

from aws.osml.model_runner.api.problems import role_problem, shortened
from aws.osml.model_runner.api.sink import SinkMode, SinkType
from aws.osml.model_runner.aws.clients import default_clients
from aws.osml.model_runner.aws.errors import error_code, is_role_refusal
from aws.osml.model_runner.aws.role_session import streaming_session
from aws.osml.model_runner.common.backoff import backoff_s
from aws.osml.model_runner.exceptions import Problem

from .delivery import Delivery
from .exceptions import InvalidKinesisStreamException, SinkError, SinkPermanentError
from .kinesis_records import (
    MAX_BATCH_RECORDS,
    PARTITION_BY_FEATURE,
    Record,
    batches,
    may_be_oversize,
    record_of,
    refused,
)
from .sink import Sink

logger = structlog.get_logger(__name__)

DEFAULT_RECORD_BYTES = 1024 * 1024
WRITABLE_STATES = frozenset({"ACTIVE", "UPDATING"})
# A shard accepts 1,000 records a second, so Kinesis refuses parts of a large delivery. Only tries without progress
# count.
MAX_IDLE_TRIES = 8
BASE_DELAY_S = 0.1
MAX_DELAY_S = 5.0
NAMED_IDS = 5

_EXPECTED_STREAMS = {
    "ResourceNotFoundException": "a stream that exists",
    "AccessDeniedException": "a stream that the worker, or the role of the output, may describe and write",
}
_STREAM_ERRORS = frozenset(
    {
        "AccessDenied",
        "AccessDeniedException",
        "InvalidArgumentException",
        "KMSAccessDeniedException",
        "KMSDisabledException",
        "KMSInvalidStateException",
        "KMSNotFoundException",
        "KMSOptInRequired",
        "ResourceNotFoundException",
        "ValidationException",
    }
)


class KinesisSink(Sink):
    """Writes each feature as a record of its own.

    ``batch_size`` limits the records of one call below the service's 500. ``partition_key`` is ``FEATURE``, which
    spreads a job over all shards, or ``JOB``, which keeps it on one in order.
    """

    def __init__(
        self,
        stream: str,
        batch_size: int | None = None,
        assumed_role: str | None = None,
        partition_key: str = PARTITION_BY_FEATURE,
        client: Any = None,
        sleep: Callable[[float], object] = time.sleep,
        rng: random.Random | None = None,
        max_idle_tries: int = MAX_IDLE_TRIES,
    ) -> None:
        self.stream = stream
        self.batch_size = batch_size
        self.assumed_role = assumed_role
        self.partition_key = partition_key
        self.max_idle_tries = max_idle_tries
        self._client = client
        self._sleep = sleep
        self._rng = rng or random.Random()

    @staticmethod
    def name() -> str:
        """Name of this type of sink."""
        return SinkType.KINESIS.value

    @property
    def mode(self) -> SinkMode:
        """Features are written when the image is complete."""
        return SinkMode.AGGREGATE

    @property
    def kinesis_client(self) -> Any:
        """The client that writes, created at the first use."""
        if self._client is None:
            self._client = default_clients().client("kinesis", self.assumed_role)
        return self._client

    def write(self, job_id: str, features: list[geojson.Feature]) -> bool:
        """Write all features of a job as records. Return False if that fails, and log why."""
        if not self.validate_kinesis_stream():
            return False
        try:
            self.deliver(Delivery.from_features(job_id, features))
        except SinkError as err:
            logger.error("sink.failed", sink=str(self), stream=self.stream, reason=str(err))
            return False
        return True

    def check(self, job_id: str, result_name: str = "") -> list[Problem]:  # noqa: ARG002 - a stream has one name
        """See ``Sink``. This only describes the stream, because Kinesis checks the permission to write by a record."""
        try:
            self._sign_for(job_id)
            state = self._summary()["StreamStatus"]
        except (ClientError, BotoCoreError) as err:
            code = error_code(err)
            if is_role_refusal(err):
                return [role_problem("role", str(self.assumed_role), code)]
            error = sink_error(self.stream, err)
            if error.can_retry:
                raise error from err
            expected = _EXPECTED_STREAMS.get(code, "a stream that can be written")
            return [Problem("stream", shortened(self.stream), f"{expected} ({code})")]
        if state == "DELETING":
            return [Problem("stream", shortened(self.stream), "a stream that exists (DELETING)")]
        return []

    def deliver(self, delivery: Delivery, on_progress: Callable[[int], None] = lambda _position: None) -> None:
        """Write the features from ``delivery.position`` on; ``on_progress`` is called after each confirmed batch.

        Features that are too long for the stream are omitted, at any position. They make the delivery fail after all
        other features were written.

        Raises:
            InvalidKinesisStreamException: the stream does not exist, or may not be written; the message names it.
            SinkPermanentError: features are too long for the stream; the message names them.
            SinkError: a retry from the last confirmed position may succeed.
        """
        self._sign_for(delivery.job_id)
        max_record_bytes = self._max_record_bytes()
        oversize: list[str] = []
        counts: list[int] = []
        delivery = delivery.counting(counts.append)
        max_records = max(1, min(self.batch_size or MAX_BATCH_RECORDS, MAX_BATCH_RECORDS))
        for batch in batches(self._records(delivery, max_record_bytes, oversize), max_records):
            self._flush_stream([record.to_entry() for record in batch])
            on_progress(batch[-1].position + 1)
        if oversize:
            named = ", ".join(oversize[:NAMED_IDS])
            more = f" and {len(oversize) - NAMED_IDS} more" if len(oversize) > NAMED_IDS else ""
            raise SinkPermanentError(f"Kinesis: features too long for the stream {self.stream}: {named}{more}")
        logger.info("sink.written", sink=str(self), stream=self.stream, features=sum(counts))

    def _records(self, delivery: Delivery, max_record_bytes: int, oversize: list[str]) -> Iterator[Record]:
        """Yield the records from the delivery's position on; add the ids of oversize features to ``oversize``."""
        pairs = (zip(batch.bodies, batch.ids, strict=True) for batch in delivery.batches)
        for index, (body, feature_id) in enumerate(chain.from_iterable(pairs)):
            is_delivered = index < delivery.position
            if is_delivered and not may_be_oversize(delivery.job_id, feature_id, body, max_record_bytes):
                continue
            record = record_of(delivery.job_id, index, feature_id, body, self.partition_key)
            if record.size_bytes > max_record_bytes:
                oversize.append(feature_id)
            elif not is_delivered:
                yield record

    def validate_kinesis_stream(self) -> bool:
        """Return True if the stream exists and can be written; otherwise log the reason."""
        try:
            self._max_record_bytes()
        except SinkError as err:
            logger.error("sink.invalid", sink=str(self), stream=self.stream, reason=str(err))
            return False
        return True

    def _flush_stream(self, records: list[dict[str, Any]]) -> None:
        """Send records until the stream has accepted each of them; only refused records are sent again.

        Raises:
            InvalidKinesisStreamException: the stream cannot be written.
            SinkError: the stream refused all records of several calls in a row.
        """
        pending = records
        idle_tries = 0
        while pending:
            try:
                response = self.kinesis_client.put_records(StreamName=self.stream, Records=pending)
            except (ClientError, BotoCoreError) as err:
                raise sink_error(self.stream, err) from err
            left = refused(pending, response["Records"]) if response.get("FailedRecordCount") else []
            idle_tries = idle_tries + 1 if len(left) == len(pending) else 0
            if idle_tries >= self.max_idle_tries:
                raise SinkError(f"Kinesis: the stream {self.stream} refused {len(left)} records {idle_tries} times")
            pending = left
            if pending:
                self._sleep(backoff_s(idle_tries, BASE_DELAY_S, MAX_DELAY_S, self._rng))

    def _sign_for(self, job_id: str) -> None:
        """Create the client that writes for a job, unless it exists."""
        if self._client is None:
            session = streaming_session(self.assumed_role, job_id, self.stream)
            self._client = default_clients().client("kinesis", session)

    def _summary(self) -> dict[str, Any]:
        response = self.kinesis_client.describe_stream_summary(StreamName=self.stream)
        summary: dict[str, Any] = response["StreamDescriptionSummary"]
        return summary

    def _max_record_bytes(self) -> int:
        """Return the maximum length of a record, key included; raise SinkError unless the stream is writable."""
        try:
            summary = self._summary()
        except (ClientError, BotoCoreError) as err:
            raise sink_error(self.stream, err) from err
        if summary["StreamStatus"] not in WRITABLE_STATES:
            raise SinkError(f"Kinesis: the stream {self.stream} is {summary['StreamStatus']}")
        limit_kib = summary.get("MaxRecordSizeInKiB")
        return int(limit_kib) * 1024 if limit_kib else DEFAULT_RECORD_BYTES


def sink_error(stream: str, error: ClientError | BotoCoreError) -> SinkError:
    """Return the sink's error for a failure of Kinesis."""
    code = error_code(error)
    if code in _STREAM_ERRORS or isinstance(error, ParamValidationError):
        return InvalidKinesisStreamException(f"Kinesis: the stream {stream} cannot be written: {code}")
    return SinkError(f"Kinesis: the stream {stream} did not accept the records: {code}")
