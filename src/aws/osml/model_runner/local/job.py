"""Runs one job as a user of the service does: submit the request, follow the job, fetch the result."""

import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

from aws.osml.model_runner.api.image_url import public_url
from aws.osml.model_runner.api.job_keys import image_id_of
from aws.osml.model_runner.common.typing import RequestStatus
from aws.osml.model_runner.exceptions import LocalStackError
from aws.osml.model_runner.local.output_file import COVERAGE_SUFFIX
from aws.osml.model_runner.local.stack.data_plane import DataPlane

Client = Callable[[str], Any]

POLL_S = 0.2
COUNT_SHARE = 0.1  # maximum share of the time for counting tiles

# If all boxes are smaller than this, they are most likely shares of the tile instead of pixels.
_MIN_BOX_PX = 2.0


@dataclass(frozen=True)
class JobProgress:
    """Status and progress of a job. ``tiles_total`` is None until the image is planned."""

    status: RequestStatus | None = None
    message: str = ""
    tiles_done: int = 0
    tiles_total: int | None = None


@dataclass(frozen=True)
class JobOutcome:
    """Terminal status and result of a job. ``duration_s`` is the time between its first and last status in SNS."""

    status: RequestStatus
    message: str
    tiles_succeeded: int
    tiles_failed: int
    duration_s: float
    location: str | None
    result: bytes = field(repr=False, default=b"")
    coverage: bytes = field(repr=False, default=b"")
    tiles_skipped: int = 0

    @property
    def features(self) -> list[dict[str, Any]]:
        """The delivered features."""
        return list(json.loads(self.result)["features"]) if self.result else []

    @property
    def tiles_per_second(self) -> float:
        """Tiles, including failed tiles, per second of ``duration_s``."""
        return (self.tiles_succeeded + self.tiles_failed) / max(self.duration_s, 1e-3)


@dataclass(frozen=True)
class StatusEvent:
    """A status message of an image; ``time_s`` is the time of SNS in epoch seconds."""

    status: RequestStatus
    message: str
    time_s: float
    attributes: Mapping[str, str]


class JobRun:
    """Runs one image request in the stack of ``client`` and ``data_plane``.

    ``check_alive`` is called while waiting, and raises if the stack can no longer end the job. ``request`` is the body
    of an image request with one image. The result is read from its first S3 output.
    """

    def __init__(
        self,
        client: Client,
        data_plane: DataPlane,
        request: Mapping[str, Any],
        check_alive: Callable[[], None] = lambda: None,
        now: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.request = request
        self.image_id = image_id_of(request["jobId"], public_url(request["imageUrls"][0]))
        self._client = client
        self._data_plane = data_plane
        self._check_alive = check_alive
        self._now = now
        self._sleep = sleep
        self._count_after = 0.0

    def run(
        self,
        on_progress: Callable[[JobProgress], None] = lambda _: None,
        timeout_s: float = math.inf,
        resume: Callable[[], None] | None = None,
    ) -> JobOutcome:
        """Submit the request, wait for the job's end, and return the outcome.

        ``resume``, if given, is called instead of the submission; it continues a job that has a plan. ``on_progress``
        is called several times a second, and may raise to end the wait.

        Raises:
            LocalStackError: the job has not ended after ``timeout_s``.
        """
        sqs = self._client("sqs")
        name = f"{self._data_plane.name}-watch-{time.time_ns()}"
        watch_queue: str = sqs.create_queue(QueueName=name)["QueueUrl"]
        arn = sqs.get_queue_attributes(QueueUrl=watch_queue, AttributeNames=["QueueArn"])["Attributes"]["QueueArn"]
        self._client("sns").subscribe(TopicArn=self._data_plane.image_status_topic, Protocol="sqs", Endpoint=arn)
        progress, events = JobProgress(), list[StatusEvent]()
        if resume is None:
            sqs.send_message(QueueUrl=self._data_plane.image_queue, MessageBody=json.dumps(self.request))
        else:
            resume()
            progress = JobProgress(RequestStatus.IN_PROGRESS)
        deadline = self._now() + timeout_s
        while not (events and events[-1].status.is_terminal):
            if self._now() > deadline:
                stage = f"{progress.tiles_done} of {progress.tiles_total or 'an unknown number of'} tiles done"
                raise LocalStackError(f"job {self.request['jobId']} has not ended after {timeout_s:.0f} s: {stage}")
            self._check_alive()
            for event in self._receive(watch_queue):
                events.append(event)
                progress = replace(progress, status=event.status, message=event.message)
            progress = self._count_tiles(progress)
            on_progress(progress)
            self._sleep(POLL_S)
        sqs.delete_queue(QueueUrl=watch_queue)
        return self._outcome(events)

    def _receive(self, queue: str) -> Iterator[StatusEvent]:
        sqs = self._client("sqs")
        for message in sqs.receive_message(QueueUrl=queue, MaxNumberOfMessages=10).get("Messages", []):
            sqs.delete_message(QueueUrl=queue, ReceiptHandle=message["ReceiptHandle"])
            event = parse_status(message["Body"])
            # The status of a request that cannot be read has a job id, and does not have an image id.
            is_own_image = event.attributes.get("image_id", self.image_id) == self.image_id
            if is_own_image and event.attributes.get("job_id") == self.request["jobId"]:
                yield event

    def _count_tiles(self, progress: JobProgress) -> JobProgress:
        """Return the progress with the numbers of tiles in the tables, if the last count is long enough ago."""
        started = self._now()
        has_ended = progress.status is not None and progress.status.is_terminal
        if not has_ended and (progress.status is not RequestStatus.IN_PROGRESS or started < self._count_after):
            return progress
        row = self._job_row()
        # A scan, because the table is local and holds few other rows; a query would need one call per salt.
        pages = (
            self._client("dynamodb")
            .get_paginator("scan")
            .paginate(
                TableName=self._data_plane.environment["FEATURE_TABLE"],
                Select="COUNT",
                FilterExpression="attribute_exists(tile_status) AND begins_with(hash_key, :image)",
                ExpressionAttributeValues={":image": {"S": f"{self.image_id}-"}},
            )
        )
        done = sum(page["Count"] for page in pages)
        self._count_after = self._now() + (self._now() - started) / COUNT_SHARE
        total = int(row["tile_count"]["N"]) if "tile_count" in row else None
        return replace(progress, tiles_done=done, tiles_total=total)

    def _job_row(self) -> dict[str, Any]:
        table, key = self._data_plane.environment["JOB_TABLE"], {"image_id": {"S": self.image_id}}
        response = self._client("dynamodb").get_item(TableName=table, Key=key, ConsistentRead=True)
        return dict(response.get("Item", {}))

    def _outcome(self, events: list[StatusEvent]) -> JobOutcome:
        row = self._job_row()
        names = ("tile_success", "tile_error", "tiles_skipped")
        succeeded, failed, skipped = (int(row.get(name, {"N": "0"})["N"]) for name in names)
        location, result, coverage = self._fetch()
        times = [event.time_s for event in events]
        return JobOutcome(
            status=events[-1].status,
            message=events[-1].message,
            tiles_succeeded=succeeded,
            tiles_failed=failed,
            duration_s=max(times) - min(times),
            location=location,
            result=result,
            coverage=coverage,
            tiles_skipped=skipped,
        )

    def _fetch(self) -> tuple[str | None, bytes, bytes]:
        """Return location and body of the result, and the body of its coverage."""
        location, result, coverage = None, b"", b""
        for output in self.request.get("outputs", []):
            if output["type"] != "S3":
                continue
            bucket, s3 = output["bucket"], self._client("s3")
            for item in s3.list_objects_v2(Bucket=bucket, Prefix=output["prefix"]).get("Contents", []):
                is_coverage = item["Key"].endswith(COVERAGE_SUFFIX)
                if is_coverage or location is None:
                    body: bytes = s3.get_object(Bucket=bucket, Key=item["Key"])["Body"].read()
                    result, coverage = (result, body) if is_coverage else (body, coverage)
                    location = location if is_coverage else f"s3://{bucket}/{item['Key']}"
            if location is not None:
                break
        return location, result, coverage


def parse_status(body: str) -> StatusEvent:
    """Return the status event in the body of an SQS message from SNS."""
    envelope = json.loads(body)
    attributes = {name: item["Value"] for name, item in envelope.get("MessageAttributes", {}).items()}
    prefix = f"StatusMonitor update: {attributes['status']} {attributes['job_id']}: "
    return StatusEvent(
        status=RequestStatus(attributes["status"]),
        message=envelope["Message"].removeprefix(prefix),
        time_s=datetime.fromisoformat(envelope["Timestamp"]).timestamp(),
        attributes=attributes,
    )


def hints(features: Sequence[dict[str, Any]]) -> list[str]:
    """Return a sentence for each likely mistake in the features of a model; an empty list without features."""
    if not features:
        return []
    found = []
    if all(feature.get("geometry") is None for feature in features):
        found.append(
            "the image has no georeference that can be used: positions are in pixels only;"
            " world files and other files beside an image are not read"
        )
    properties = [feature.get("properties") or {} for feature in features]
    boxes = [box for box in (each.get("imageBBox") for each in properties) if box]
    if boxes and all(max(box[2] - box[0], box[3] - box[1]) < _MIN_BOX_PX for box in boxes):
        found.append("every box is smaller than 2 pixels: boxes are in pixels of the tile, not in shares of it")
    outside = 0
    for each in properties:
        box, tile = each.get("imageBBox"), (each.get("inferenceMetadata") or {}).get("tile")
        if box and tile:
            (top, left), (width, height) = tile
            outside += box[2] < left or box[0] > left + width or box[3] < top or box[1] > top + height
    if outside:
        found.append(f"{outside} boxes lie outside their tile: a box is [x1, y1, x2, y2] in pixels of the tile")
    scores = [known.get("score") for each in properties for known in each.get("featureClasses") or []]
    if any(isinstance(score, int | float) and score > 1 for score in scores):
        found.append("there are scores above 1: a score is a share in [0, 1]")
    return found
