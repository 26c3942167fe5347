"""Creates the sinks for the ``outputs`` of a request."""

import json
from collections.abc import Mapping
from typing import Any

import geojson
import structlog

from aws.osml.model_runner.api.sink import OutputCompression, OutputExtra, OutputFormat, SinkMode, SinkType
from aws.osml.model_runner.exceptions import InvalidImageRequestException, Problem

from .delivery import Delivery
from .exceptions import SinkError
from .kinesis_records import PARTITION_BY_FEATURE
from .kinesis_sink import KinesisSink
from .s3_sink import S3Sink
from .sink import Sink

logger = structlog.get_logger(__name__)


class SinkFactory:
    """Creates sinks, and writes features to all outputs of a request."""

    @staticmethod
    def outputs_to_sinks(destinations: list[dict[str, Any]], bucket_owner: str | None = None) -> list[Sink]:
        """Return one sink per output, in order; ``bucket_owner`` is the account that must own the buckets.

        Raises:
            InvalidImageRequestException: an output has an unknown type, or lacks its bucket or stream.
        """
        sinks: list[Sink] = []
        for index, destination in enumerate(destinations):
            field = f"outputs[{index}]"
            # Each type has its own field for the role; both are accepted.
            role = destination.get("role") or destination.get("assumedRole") or None
            match destination.get("type"):
                case SinkType.S3.value:
                    sink: Sink = S3Sink(
                        bucket=_required(destination, "bucket", field),
                        prefix=destination.get("prefix") or "",
                        assumed_role=role,
                        acl=destination.get("acl") or None,
                        result_format=OutputFormat(destination.get("format") or OutputFormat.GEOJSON),
                        expected_owner=bucket_owner,
                        compression=OutputCompression(destination.get("compression") or OutputCompression.NONE),
                        extras=frozenset(map(OutputExtra, destination.get("extras") or ())),
                    )
                case SinkType.KINESIS.value:
                    stream = _required(destination, "stream", field)
                    partition_key = destination.get("partitionKey") or PARTITION_BY_FEATURE
                    sink = KinesisSink(stream, destination.get("batchSize"), role, partition_key)
                case other:
                    raise _invalid(f"{field}.type", other, "expected S3 or Kinesis")
            sinks.append(sink)
        return sinks

    @staticmethod
    def sink_features(job_id: str, outputs: str, features: list[geojson.Feature]) -> bool:
        """Write features to every output, even after one fails. Return True if at least one output was written.

        Raises:
            InvalidImageRequestException: ``outputs`` is not a JSON list of outputs.
        """
        try:
            destinations = json.loads(outputs or "")
        except ValueError as err:
            raise InvalidImageRequestException("the outputs of the request are not valid JSON") from err
        if not isinstance(destinations, list):
            raise InvalidImageRequestException("the outputs of the request are not a list")
        sinks = SinkFactory.outputs_to_sinks(destinations)
        delivery = Delivery.from_features(job_id, features)
        is_delivered = False
        for sink in sinks:
            if sink.mode is not SinkMode.AGGREGATE:
                continue
            try:
                sink.deliver(delivery)
                is_delivered = True
            except SinkError as err:
                logger.error("sink.failed", sink=str(sink), job_id=job_id, reason=str(err))
        return is_delivered


def _required(destination: Mapping[str, Any], key: str, field: str) -> str:
    value = destination.get(key)
    if not isinstance(value, str) or not value:
        raise _invalid(f"{field}.{key}", value, "expected a name")
    return value


def _invalid(field: str, value: object, expectation: str) -> InvalidImageRequestException:
    return InvalidImageRequestException("invalid output", [Problem(field, repr(value)[:80], expectation)])
