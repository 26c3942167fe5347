"""The handlers of a worker in the test's own process: real tables, queues, images and models, and a clock to turn."""

import json
import random
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import botocore.endpoint
import numpy as np
from botocore.awsrequest import AWSResponse

from aws.osml.model_runner.api.image_request import ImageRequest
from aws.osml.model_runner.api.region_request import RegionName, RegionRequest, parse_region_message
from aws.osml.model_runner.aws.clients import AwsClients
from aws.osml.model_runner.common.typing import ImageDimensions
from aws.osml.model_runner.config import ServiceConfig
from aws.osml.model_runner.database import (
    JobItem,
    RegionRequestItem,
)
from aws.osml.model_runner.database.scheduler_lock import SchedulerLock
from aws.osml.model_runner.jobs.leases import LeaseKeeper
from aws.osml.model_runner.jobs.preflight import Preflight
from aws.osml.model_runner.jobs.region import Deferred, Ended
from aws.osml.model_runner.queue.request_queue import QueueMessage, RequestQueue
from aws.osml.model_runner.raster import write_geotiff
from aws.osml.model_runner.region_request_handler import region_request_of
from aws.osml.model_runner.scheduler import EndpointLoadImageScheduler
from aws.osml.model_runner.scheduler.image_scheduler import LOOK_EVERY_S
from aws.osml.model_runner.tile_worker import VariableOverlapTilingStrategy
from aws.osml.model_runner.worker.messages import DeadLetters, ImageMessages, ScheduledImages
from aws.osml.model_runner.worker.process import WorkerProcess
from aws.osml.model_runner.worker.wiring import wired
from aws_faults import Raw, json_error

# Tiles of the usual scene, in all and in each of its two regions.
TILES = 8
TILES_PER_REGION = 4
UTM_31N = (500_000.0, 0.5, 0.0, 5_400_000.0, 0.0, -0.5)


def named(region: RegionName | RegionRequest) -> RegionName:
    """Return the name of a region, or of a request's region."""
    return region if isinstance(region, RegionName) else RegionName.of(region)


class Clock:
    """The time of day, which a test may put forward."""

    def __init__(self) -> None:
        self.ahead_s = 0.0

    def __call__(self) -> float:
        return time.time() + self.ahead_s


class ImpatientEvent(threading.Event):
    """An event for which nobody waits, so that pauses between model calls cost no time."""

    def wait(self, timeout: float | None = None) -> bool:
        return super().wait(0.0)


def write_scene(path: Path, width: int = 1024, height: int = 512, is_georeferenced: bool = True, seed: int = 1) -> Path:
    """Write pixels in which no tile is like another."""
    pixels = np.random.default_rng(seed).integers(0, 255, (1, height, width), dtype=np.uint8)
    if is_georeferenced:
        write_geotiff(path, pixels, UTM_31N, epsg=32631)
    else:
        write_geotiff(path, pixels)
    return path


class InProcessWorker:
    """One worker's handlers. Several of them, on one data plane and one clock, are a fleet."""

    def __init__(
        self, environment: Mapping[str, str], clients: AwsClients, clock: Clock, name: str = "worker", **settings: str
    ) -> None:
        # Tiles of 256 and regions of 512 x 512 make two regions of four tiles of the usual scene.
        defaults = {
            "IMAGE_SOURCES": "file,s3",
            "REGION_SIZE": "(512, 512)",
            "WORKERS": "4",
            "WORKERS_PER_CPU": "1",
            "QUEUE_WAIT_S": "0",
            "AWS_DEFAULT_REGION": "us-west-2",
        }
        variables = {name: value for name, value in {**environment, **defaults, **settings}.items() if value}
        self.config = config = ServiceConfig.from_environment(variables)
        self.clock = clock
        self.clients = clients
        self.worker_process = self._new_process(name)
        parts = wired(config, VariableOverlapTilingStrategy(), self.worker_process)
        self.jobs = parts.job_table
        self.regions = parts.region_request_table
        self.outstanding_jobs = parts.outstanding_jobs
        self.endpoints = parts.endpoint_statistics_table
        self.region_queue = parts.region_request_queue
        self.image_queue = RequestQueue(self.config.image_queue, 0, client=clients.client("sqs"))
        self.features = parts.new_feature_table(ImageDimensions(256, 256), ImageDimensions(0, 0), lambda: None)
        self.capacities = parts.endpoint_capacities
        self.endpoint_utils = parts.endpoint_utils
        self.model_endpoints = parts.model_endpoints
        self.image_status_monitor = parts.image_status_monitor
        self.completion = parts.image_parts.completion
        self.visibility = parts.visibility
        self.region_handler = parts.region_request_handler
        self.image_handler = parts.image_request_handler
        self.scheduler = self._new_scheduler()
        self.sweeper = parts.sweeper
        # How many calls at once an endpoint takes; tests may replace it.
        self.endpoint_calls: Callable[[RegionRequest], int | None] = lambda _request: None
        self.region_handler._endpoint_calls = lambda request: self.endpoint_calls(request)
        self._is_finishing = True
        region_ended = self.completion.region_ended
        self.completion.region_ended = (  # type: ignore[method-assign]
            lambda job: region_ended(job) if self._is_finishing else None
        )

    def _new_process(self, name: str) -> WorkerProcess:
        process = WorkerProcess.from_config(self.config, self.clients, stopping=ImpatientEvent())
        process.now = self.clock
        process.sleep = lambda _: None
        process.rng = random.Random(1)
        process.owner = name
        process.leases = LeaseKeeper(0.05, 600.0, self.clock)
        process.start()
        return process

    def _new_scheduler(self) -> EndpointLoadImageScheduler:
        """Return what starts images; they are not waited for here."""
        process = self.worker_process
        lock = SchedulerLock(self.outstanding_jobs, self.jobs, self.clock)
        return EndpointLoadImageScheduler(
            self.capacities, lock, self.config, process.owner, process.metrics, self.clock, lambda _: None, process.rng
        )

    def new_preflight(self, **arguments: Any) -> Preflight:
        """Return a preflight that remembers nothing yet."""
        credentials, make_sinks = self.clients.credentials, self.worker_process.make_sinks
        describe = self.capacities.describe
        runtime = partial(self.clients.client, "sagemaker-runtime")
        areas = self.image_handler.parts.read_area
        return Preflight(
            *(self.config, self.model_endpoints, describe, credentials, runtime, make_sinks, areas), **arguments
        )

    def close(self) -> None:
        self.worker_process.close()

    def plan(self, request: ImageRequest) -> JobItem:
        """Accept and plan an image, process none of its regions, and return its row."""
        self.image_handler.check(request)
        job = self.image_handler.accept(request)
        assert job is not None
        self.image_handler.plan(job)
        return self.jobs.get_image_request(request.image_id)

    def skip_preflight(self) -> None:
        """Accept requests whose endpoint or output does not exist, as if it had been deleted since."""
        self.image_handler.parts.preflight.check = lambda *_: None  # type: ignore[method-assign]

    def outcome_of(self, region: RegionName | RegionRequest) -> Ended | Deferred:
        """Process a region, as the daemon does, but finish no image."""
        self._is_finishing = False
        try:
            return self.region_handler.process_region_request(named(region))
        finally:
            self._is_finishing = True

    def process(self, region: RegionName | RegionRequest) -> JobItem:
        """Process a region that is not deferred, and return its image's row, which is not finished."""
        outcome = self.outcome_of(region)
        assert isinstance(outcome, Ended), outcome
        assert outcome.job is not None
        return outcome.job

    def deferred(self, region: RegionName | RegionRequest, pattern: str = "") -> Deferred:
        """Process a region that is deferred, for a reason in which ``pattern`` is found."""
        outcome = self.outcome_of(region)
        assert isinstance(outcome, Deferred), outcome
        assert re.search(pattern, outcome.reason)
        return outcome

    def start_waiting(self, *, is_first_processed: bool = True) -> int:
        """Start every image that may start now, as the daemon does, and return how many did."""
        started = 0
        while True:
            self.scheduler.due.set()
            self.clock.ahead_s += LOOK_EVERY_S
            images = self.scheduler.receive()
            if not images:
                break
            for image in images:
                if is_first_processed:
                    ScheduledImages(self.scheduler, self.image_handler).handle(image)
                else:
                    self.image_handler.plan_started(image.job)
                    self.scheduler.record_ended(image)
                started += 1
        return started

    def look_after(self) -> None:
        """Do what a fleet does beside its messages: sweep, and start what may start."""
        self.sweeper.sweep()
        self.start_waiting()

    def received_regions(self) -> list[tuple[QueueMessage, RegionName]]:
        """Take every region message that is on the queue."""
        found = []
        while messages := self.region_queue.receive():
            found += [(message, parse_region_message(message.body)) for message in messages]
        return found

    def work_off(self) -> JobItem | None:
        """Do every region that is on the queue, as the daemon does, and return the last image's row."""
        job = None
        for message, region in self.received_regions():
            outcome = self.region_handler.process_region_request(region)
            assert isinstance(outcome, Ended), outcome
            job = outcome.job
            self.region_queue.finish_request(message.receipt_handle)
        return job and self.jobs.find(job.image_id)

    def regions_of(self, request: ImageRequest) -> list[RegionRequestItem]:
        return list(self.regions.regions_of(request.image_id))

    def region_requests(self, request: ImageRequest) -> list[RegionRequest]:
        """Return the regions of a planned image, as workers get them."""
        job = self.jobs.get_image_request(request.image_id)
        return [region_request_of(job, item) for item in self.regions_of(request)]

    def open_jobs(self) -> list[str]:
        return [job.image_id for job in self.outstanding_jobs.open_jobs()]

    def result(self, job_id: str) -> list[dict[str, Any]]:
        """Return the features that were delivered to S3."""
        features: list[dict[str, Any]] = self.result_file(job_id)["features"]
        return features

    def result_file(self, job_id: str) -> dict[str, Any]:
        """Return the feature collection that was delivered to S3."""
        bucket = json.loads(self.outputs)[0]["bucket"]
        body = self.clients.client("s3").get_object(Bucket=bucket, Key=f"out/{job_id}.geojson")["Body"].read()
        collection: dict[str, Any] = json.loads(body)
        return collection

    outputs = "[]"

    def request(self, image: Path | str, model: str, job_id: str = "job", **changes: Any) -> ImageRequest:
        """Return a request whose result goes to the data plane's bucket under ``out/``."""
        return ImageRequest.from_external_message(self.message(image, model, job_id) | changes)

    def message(self, image: Path | str, model: str, job_id: str = "job") -> dict[str, Any]:
        """Return the message of such a request."""
        return {
            "jobId": job_id,
            "imageUrls": [image if isinstance(image, str) else f"file://{image}"],
            "imageProcessor": {
                "name": model,
                "type": "HTTP_ENDPOINT" if model.startswith("http") else "SM_ENDPOINT",
            },
            "imageProcessorTileSize": 256,
            "imageProcessorTileOverlap": 0,
            "imageProcessorTileFormat": "PNG",
            "imageProcessorTileCompression": "NONE",
            "outputs": json.loads(self.outputs),
        }

    def rows_of_tiles(self, image_id: str) -> Iterator[dict[str, Any]]:
        """Yield the rows of an image's tiles, in no order."""
        values = {":image": f"{image_id}-"}
        return self.features.scan(FilterExpression="begins_with(hash_key, :image)", ExpressionAttributeValues=values)


class Fleet:
    """One worker that works off its queues whenever the client waits."""

    def __init__(self, worker: InProcessWorker) -> None:
        self.worker = worker
        queue = RequestQueue(worker.config.image_queue, 0, client=worker.clients.client("sqs"))
        dead_letters = DeadLetters(queue, worker.config.image_dlq)
        self.messages = ImageMessages(queue, dead_letters, worker.image_handler, worker.visibility, lambda: None)

    def work(self, seconds: float) -> None:
        self.worker.clock.ahead_s += seconds
        for message in self.worker.image_queue.receive():
            self.messages.handle(message)
        self.worker.start_waiting()
        self.worker.work_off()


class StatusListener:
    """A queue that is subscribed to a topic."""

    def __init__(self, client: Callable[[str], Any], topic: str, name: str) -> None:
        self._sqs = client("sqs")
        self._url = self._sqs.create_queue(QueueName=name)["QueueUrl"]
        attributes = self._sqs.get_queue_attributes(QueueUrl=self._url, AttributeNames=["QueueArn"])
        client("sns").subscribe(TopicArn=topic, Protocol="sqs", Endpoint=attributes["Attributes"]["QueueArn"])

    def heard(self, name: str = "image_status") -> list[str]:
        """Return one attribute of each message since the last time; SNS keeps no order, so neither does this."""
        return [attributes.get(name, "") for _, attributes in self.events()]

    def events(self) -> list[tuple[str, dict[str, str]]]:
        found = []
        while messages := self._sqs.receive_message(QueueUrl=self._url, MaxNumberOfMessages=10).get("Messages"):
            for message in messages:
                self._sqs.delete_message(QueueUrl=self._url, ReceiptHandle=message["ReceiptHandle"])
                envelope = json.loads(message["Body"])
                attributes = envelope.get("MessageAttributes", {})
                found.append((envelope["Message"], {key: value["Value"] for key, value in attributes.items()}))
        return found


@contextmanager
def throttling(worker: InProcessWorker, table: str, operation: str, times: int, refused: list[str]) -> Iterator[None]:
    """Answer the first ``times`` sends of an operation on a table as DynamoDB does when it is busy."""
    client = worker.clients.dynamodb_resource().meta.client
    name, lock = getattr(worker.config, table.lower()), threading.Lock()
    status, headers, body = json_error("ProvisionedThroughputExceededException")

    def refuse(request: Any, **_: Any) -> AWSResponse | None:
        with lock:
            if f'"{name}"'.encode() not in request.body or len(refused) >= times:
                return None
            refused.append(operation)
        return AWSResponse(request.url, status, headers, Raw(body))

    event = f"before-send.dynamodb.{operation}"
    client.meta.events.register_first(event, refuse)
    try:
        # botocore's own waits between its sends.
        with patch.object(botocore.endpoint, "time", SimpleNamespace(sleep=lambda _: None)):
            yield
    finally:
        client.meta.events.unregister(event, refuse)
