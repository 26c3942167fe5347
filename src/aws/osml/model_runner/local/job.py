"""One job from the outside, as a user of the service sees it: submit it, follow it, fetch what it delivered."""

import json
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

from aws.osml.model_runner.api.image_url import public_url
from aws.osml.model_runner.api.job_keys import image_id_of
from aws.osml.model_runner.common.typing import RequestStatus
from aws.osml.model_runner.local.exceptions import LocalStackError
from aws.osml.model_runner.local.stack.data_plane import DataPlane

Client = Callable[[str], Any]

POLL_S = 0.2
COUNT_SHARE = 0.1  # of the time at most is spent on counting tiles


@dataclass(frozen=True)
class JobProgress:
    """Where a job stands. ``tiles_total`` is None until the image is planned."""

    status: RequestStatus | None = None
    message: str = ""
    tiles_done: int = 0
    tiles_total: int | None = None


@dataclass(frozen=True)
class JobOutcome:
    """How a job ended. ``duration_s`` runs from its first status to its last, as SNS dated them."""

    status: RequestStatus
    message: str
    tiles_succeeded: int
    tiles_failed: int
    duration_s: float
    location: str | None
    result: bytes = field(repr=False, default=b"")

    @property
    def features(self) -> list[dict[str, Any]]:
        """The delivered features."""
        return list(json.loads(self.result)["features"]) if self.result else []

    @property
    def tiles_per_second(self) -> float:
        """Tiles, failed ones too, by the time that the job took."""
        return (self.tiles_succeeded + self.tiles_failed) / max(self.duration_s, 1e-3)


@dataclass(frozen=True)
class StatusEvent:
    """What SNS said about an image; ``time_s`` is when, in epoch seconds."""

    status: RequestStatus
    message: str
    time_s: float
    attributes: Mapping[str, str]


class JobRun:
    """Carries one image request through the stack that ``client`` and ``data_plane`` name.

    ``check_alive`` is asked while waiting and raises when the stack can no longer end the job. ``request`` is the body
    of an image request with one image; S3 is taken as the place of its result when it has an S3 output.
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
        """Submit the request, or call ``resume`` to continue a planned job, and return how the job ended.

        ``on_progress`` is called several times a second, and may raise to end the wait.

        Raises:
            LocalStackError: the job has not ended after ``timeout_s``.
        """
        watch_queue = self._subscribe()
        progress, events = JobProgress(), list[StatusEvent]()
        if resume is None:
            body = json.dumps(self.request)
            self._client("sqs").send_message(QueueUrl=self._data_plane.image_queue, MessageBody=body)
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
        self._client("sqs").delete_queue(QueueUrl=watch_queue)
        return self._outcome(events)

    def _subscribe(self) -> str:
        sqs = self._client("sqs")
        url: str = sqs.create_queue(QueueName=f"{self._data_plane.name}-watch-{time.time_ns()}")["QueueUrl"]
        arn = sqs.get_queue_attributes(QueueUrl=url, AttributeNames=["QueueArn"])["Attributes"]["QueueArn"]
        self._client("sns").subscribe(TopicArn=self._data_plane.image_status_topic, Protocol="sqs", Endpoint=arn)
        return url

    def _receive(self, queue: str) -> Iterator[StatusEvent]:
        sqs = self._client("sqs")
        for message in sqs.receive_message(QueueUrl=queue, MaxNumberOfMessages=10).get("Messages", []):
            sqs.delete_message(QueueUrl=queue, ReceiptHandle=message["ReceiptHandle"])
            event = parse_status(message["Body"])
            # A request that cannot be read has no image id, only its job's.
            ours = event.attributes.get("image_id", self.image_id) == self.image_id
            if ours and event.attributes.get("job_id") == self.request["jobId"]:
                yield event

    def _count_tiles(self, progress: JobProgress) -> JobProgress:
        """Read from the tables how many tiles there are and how many are done, as often as that is cheap."""
        started = self._now()
        is_over = progress.status is not None and progress.status.is_terminal
        if not is_over and (progress.status is not RequestStatus.IN_PROGRESS or started < self._count_after):
            return progress
        row = self._job_row()
        done = self._committed_tiles()
        self._count_after = self._now() + (self._now() - started) / COUNT_SHARE
        total = int(row["tile_count"]["N"]) if "tile_count" in row else None
        return replace(progress, tiles_done=done, tiles_total=total)

    def _job_row(self) -> dict[str, Any]:
        table, key = self._data_plane.environment["JOB_TABLE"], {"image_id": {"S": self.image_id}}
        found = self._client("dynamodb").get_item(TableName=table, Key=key, ConsistentRead=True)
        return dict(found.get("Item", {}))

    def _committed_tiles(self) -> int:
        # A scan, because this table is on this machine and holds little else: a query would need one call per salt.
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
        return sum(page["Count"] for page in pages)

    def _outcome(self, events: list[StatusEvent]) -> JobOutcome:
        row = self._job_row()
        succeeded, failed = (int(row.get(name, {"N": "0"})["N"]) for name in ("tile_success", "tile_error"))
        location, result = self._fetch()
        times = [event.time_s for event in events]
        return JobOutcome(
            status=events[-1].status,
            message=events[-1].message,
            tiles_succeeded=succeeded,
            tiles_failed=failed,
            duration_s=max(times) - min(times),
            location=location,
            result=result,
        )

    def _fetch(self) -> tuple[str | None, bytes]:
        for output in self.request.get("outputs", []):
            if output["type"] != "S3":
                continue
            bucket, s3 = output["bucket"], self._client("s3")
            for item in s3.list_objects_v2(Bucket=bucket, Prefix=output["prefix"]).get("Contents", []):
                body: bytes = s3.get_object(Bucket=bucket, Key=item["Key"])["Body"].read()
                return f"s3://{bucket}/{item['Key']}", body
        return None, b""


def parse_status(body: str) -> StatusEvent:
    """Return the event in an SQS message that SNS wrapped."""
    envelope = json.loads(body)
    attributes = {name: item["Value"] for name, item in envelope.get("MessageAttributes", {}).items()}
    prefix = f"StatusMonitor update: {attributes['status']} {attributes['job_id']}: "
    return StatusEvent(
        status=RequestStatus(attributes["status"]),
        message=envelope["Message"].removeprefix(prefix),
        time_s=datetime.fromisoformat(envelope["Timestamp"]).timestamp(),
        attributes=attributes,
    )
