"""A real worker process for tests, on the emulator, and eyes on everything that it does."""

import json
import os
import signal
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from aws.osml.model_runner.local.job import StatusEvent, parse_status
from aws.osml.model_runner.local.stack.child_process import ChildProcess, clean_environment
from aws.osml.model_runner.local.stack.data_plane import DataPlane
from aws.osml.model_runner.local.stack.emulator import Emulator

T = TypeVar("T")

# Long enough for a loaded machine; a test that waits this long has failed.
PATIENCE_S = 60.0


def eventually(probe: Callable[[], T], patience_s: float = PATIENCE_S) -> T:
    """Ask until the answer is true, and return it; fail with the last answer when it never is."""
    deadline = time.monotonic() + patience_s
    while not (answer := probe()):
        assert time.monotonic() < deadline, f"still {answer!r} after {patience_s} s"
        time.sleep(0.05)
    return answer


@dataclass
class Site:
    """One data plane, with what tests ask of it."""

    emulator: Emulator
    data_plane: DataPlane
    directory: Path
    events: list[StatusEvent] = field(default_factory=list)
    _watch_url: str = ""

    def __post_init__(self) -> None:
        self._watch_url = self._subscribed_queue(self.data_plane.environment["IMAGE_STATUS_TOPIC"])

    def client(self, service: str) -> Any:
        return self.emulator.client(service)

    def environment(self, **settings: str) -> dict[str, str]:
        """Return a worker's environment; leases and sweeps are short, so that tests see them end."""
        return {
            **clean_environment(os.environ),
            **self.emulator.environment,
            **self.data_plane.environment,
            "WORKERS": "4",
            "WORKERS_PER_CPU": "1",
            "REGION_SIZE": "(512, 512)",
            "REGION_LEASE_S": "3",
            "AGGREGATION_LEASE_S": "3",
            "SWEEP_INTERVAL_S": "1",
            "QUEUE_WAIT_S": "1",
            "IMAGE_SOURCES": "s3,file",
            # A second of CPU for each worker; the tests of the probe turn it on.
            "IMAGE_OPEN_TIMEOUT_S": "0",
            **settings,
        }

    @contextmanager
    def worker(self, **settings: str) -> Iterator[ChildProcess]:
        """Run a worker for the length of a ``with`` block."""
        log = self.directory / f"worker-{uuid.uuid4().hex[:6]}.log"
        command = [sys.executable, "-m", "aws.osml.model_runner", "serve"]
        with ChildProcess.start("worker", command, self.environment(**settings), log) as process:
            process.wait_until(lambda: "worker.started" in process.log_text() or None)
            yield process

    def submit(self, body: str | Mapping[str, Any]) -> None:
        text = body if isinstance(body, str) else json.dumps(body)
        self.client("sqs").send_message(QueueUrl=self.data_plane.image_queue, MessageBody=text)

    def request(self, image: str, model_url: str, **changes: Any) -> dict[str, Any]:
        """Return a request for a small job with an S3 and a Kinesis output."""
        job_id = changes.pop("jobId", f"job-{uuid.uuid4().hex[:8]}")
        return {
            "jobId": job_id,
            "imageUrls": [image],
            "imageProcessor": {"name": model_url, "type": "HTTP_ENDPOINT"},
            "imageProcessorTileSize": 256,
            "imageProcessorTileOverlap": 32,
            "imageProcessorTileFormat": "GTIFF",
            "outputs": [
                {"type": "S3", "bucket": self.data_plane.result_bucket, "prefix": f"{job_id}/"},
                {"type": "Kinesis", "stream": self.data_plane.result_stream},
            ],
        } | changes

    def statuses(self, job_id: str) -> list[str]:
        """Return what has been published about a job so far, in order."""
        self.listen()
        return self.told(job_id)

    def told(self, job_id: str) -> list[str]:
        """Return the statuses of a job that have been received so far, in order."""
        return [str(event.status) for event in self.events if event.attributes.get("job_id") == job_id]

    def last_event(self, job_id: str) -> StatusEvent:
        return [event for event in self.events if event.attributes.get("job_id") == job_id][-1]

    def wait_for_end(self, job_id: str, count: int = 1) -> list[str]:
        """Wait until ``count`` terminal statuses of a job are out, and return every status that was published.

        A status may be published twice, as when a sweep comes between its publication and the note of that.
        """
        terminal = {"SUCCESS", "PARTIAL", "FAILED"}

        def is_over() -> bool:
            has_ended = sum(status in terminal for status in self.statuses(job_id)) >= count
            if not has_ended:
                # The queue waits for us: asking it all the time takes more of the machine than a small job.
                self.listen(wait_s=1)
            return has_ended

        eventually(is_over)
        return self.statuses(job_id)

    def features(self, job_id: str) -> list[dict[str, Any]]:
        """Return the features that S3 holds for a job with one image."""
        key = f"{job_id}/{job_id}.geojson"
        body = self.client("s3").get_object(Bucket=self.data_plane.result_bucket, Key=key)["Body"].read()
        return list(json.loads(body)["features"])

    def stream_ids(self, job_id: str) -> list[str]:
        """Return the feature ids of a job's records in the stream."""
        properties = [feature["properties"] for feature in self.stream_features()]
        return [item["feature_id"] for item in properties if item["job_id"] == job_id]

    def stream_features(self) -> list[dict[str, Any]]:
        """Return the feature of each record in the stream."""
        kinesis, name = self.client("kinesis"), self.data_plane.result_stream
        found = []
        for shard in kinesis.describe_stream(StreamName=name)["StreamDescription"]["Shards"]:
            iterator = kinesis.get_shard_iterator(
                StreamName=name, ShardId=shard["ShardId"], ShardIteratorType="TRIM_HORIZON"
            )["ShardIterator"]
            while True:
                answer = kinesis.get_records(ShardIterator=iterator, Limit=10_000)
                found += [json.loads(record["Data"]) for record in answer["Records"]]
                if not answer["Records"]:
                    break
                iterator = answer["NextShardIterator"]
        return [collection["features"][0] for collection in found]

    def rows(self, table: str) -> list[dict[str, Any]]:
        """Return every row of a table, in DynamoDB's own form."""
        name = self.data_plane.environment[table]
        pages = self.client("dynamodb").get_paginator("scan").paginate(TableName=name, ConsistentRead=True)
        return [row for page in pages for row in page["Items"]]

    def work_object(self, key: str) -> bytes:
        """Return an object of the work bucket."""
        bucket = self.data_plane.environment["WORK_BUCKET"]
        body: bytes = self.client("s3").get_object(Bucket=bucket, Key=key)["Body"].read()
        return body

    def open_jobs(self, job_id: str | None = None) -> list[dict[str, Any]]:
        """Return the rows of the images that have not ended, of one job or of all."""
        rows = [row for row in self.rows("OUTSTANDING_JOBS_TABLE") if "request_payload" in row]
        return [row for row in rows if job_id in (None, row["image_id"]["S"].partition(":")[0])]

    def drain(self, queue: str) -> list[str]:
        """Take every visible message off a queue and return the bodies."""
        sqs, url, bodies = self.client("sqs"), self.data_plane.environment[queue], []
        while messages := sqs.receive_message(QueueUrl=url, MaxNumberOfMessages=10).get("Messages", []):
            for message in messages:
                sqs.delete_message(QueueUrl=url, ReceiptHandle=message["ReceiptHandle"])
                bodies.append(message["Body"])
        return bodies

    def messages_in(self, queue: str) -> int:
        """Return how many messages a queue holds, hidden ones too."""
        names = ["ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible"]
        url = self.data_plane.environment[queue]
        counts = self.client("sqs").get_queue_attributes(QueueUrl=url, AttributeNames=names)["Attributes"]
        return sum(int(count) for count in counts.values())

    def check_books(self, job_id: str) -> None:
        """Assert what has to hold after every job, whatever happened on the way."""
        (image,) = [row for row in self.rows("JOB_TABLE") if row.get("job_id", {}).get("S") == job_id]
        regions = [row for row in self.rows("REGION_REQUEST_TABLE") if row.get("job_id", {}).get("S") == job_id]
        tiles = [
            row
            for row in self.rows("FEATURE_TABLE")
            if "tile_status" in row and row["hash_key"]["S"].startswith(image["image_id"]["S"])
        ]
        number = {name: int(value["N"]) for name, value in image.items() if "N" in value and "." not in value["N"]}
        assert number["region_success"] + number["region_error"] == number["region_count"] == len(regions)
        assert number["tile_success"] + number["tile_error"] == number["tile_count"] == len(tiles)
        assert number["tile_success"] == sum(row["tile_status"]["S"] == "SUCCEEDED" for row in tiles)
        assert "status_outbox" not in image
        eventually(lambda: not self.open_jobs(job_id))
        terminal = {status for status in self.statuses(job_id) if status in {"SUCCESS", "PARTIAL", "FAILED"}}
        assert terminal == {image["image_status"]["S"]}

    def _subscribed_queue(self, topic: str) -> str:
        sqs = self.client("sqs")
        url: str = sqs.create_queue(QueueName=f"watch-{uuid.uuid4().hex[:8]}")["QueueUrl"]
        arn = sqs.get_queue_attributes(QueueUrl=url, AttributeNames=["QueueArn"])["Attributes"]["QueueArn"]
        self.client("sns").subscribe(TopicArn=topic, Protocol="sqs", Endpoint=arn)
        return url

    def listen(self, wait_s: int = 0) -> None:
        """Take in what has been published; where that is nothing, wait so long for something."""
        sqs, limits = self.client("sqs"), {"QueueUrl": self._watch_url, "MaxNumberOfMessages": 10}
        while messages := sqs.receive_message(**limits, WaitTimeSeconds=wait_s).get("Messages", []):
            wait_s = 0
            self.events += [parse_status(message["Body"]) for message in messages]
            handles = [{"Id": str(n), "ReceiptHandle": one["ReceiptHandle"]} for n, one in enumerate(messages)]
            sqs.delete_message_batch(QueueUrl=self._watch_url, Entries=handles)


def kill(process: ChildProcess) -> None:
    """End a process as the kernel does when memory runs out."""
    os.kill(process.pid, signal.SIGKILL)
    eventually(lambda: process.exit_code is not None)
