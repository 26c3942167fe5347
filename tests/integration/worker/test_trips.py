"""A job calls the functions of the architecture page, in the order in which the page lists them."""

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from aws.osml.model_runner import model_runner
from aws.osml.model_runner.queue.request_queue import RequestQueue
from aws.osml.model_runner.scheduler.image_scheduler import LOOK_EVERY_S
from aws.osml.model_runner.worker.consumer import QueueConsumer
from aws.osml.model_runner.worker.messages import DeadLetters, ImageMessages, RegionMessages, ScheduledImages
from trips import TRIPS
from worker_in_process import Clock, InProcessWorker

PACKAGE = f"{Path(model_runner.__file__).parent}/"


class Trace:
    """The functions of the package that any thread calls, each at its first call."""

    def __init__(self) -> None:
        self._calls: dict[tuple[str, str], None] = {}

    def __call__(self, frame: FrameType, event: str, _argument: Any) -> None:
        code = frame.f_code
        if event == "call" and code.co_filename.startswith(PACKAGE):
            self._calls.setdefault((code.co_filename.removeprefix(PACKAGE), code.co_qualname))

    @contextmanager
    def of(self, trip: str) -> Iterator[None]:
        """Check that the block calls the steps of a trip in their order."""
        self._calls.clear()
        sys.setprofile(self)
        try:
            yield
        finally:
            sys.setprofile(None)
        assert [call for call in self._calls if call in TRIPS[trip]] == TRIPS[trip]


@pytest.fixture
def trace() -> Iterator[Trace]:
    """A trace that threads made afterwards report to."""
    made = Trace()
    threading.setprofile(made)
    yield made
    threading.setprofile(None)  # type: ignore[arg-type]


def consumed(handle: Any, message: Any) -> None:
    """Process a message as a consumer does, on this thread."""
    consumer = QueueConsumer("test", None, handle, 1, threading.Event())  # type: ignore[arg-type]
    consumer._slots.acquire()
    consumer._work(message)


def test_job_takes_trips_that_page_draws(trace, data_plane, clients, scene, model_server) -> None:
    worker = InProcessWorker(data_plane.environment, clients, Clock())
    worker.outputs = f'[{{"type": "S3", "bucket": "{data_plane.result_bucket}", "prefix": "out"}}]'
    queue = RequestQueue(data_plane.image_queue, 0, client=clients.client("sqs"))
    letters = DeadLetters(queue, None)
    images = ImageMessages(queue, letters, worker.image_handler, worker.visibility, lambda: None)
    starts = ScheduledImages(worker.scheduler, worker.image_handler)
    regions = RegionMessages(worker.region_queue, letters, worker.region_handler, worker.visibility)
    request = worker.message(scene, model_server("centerpoint").invocations_url)
    queue.send_request(request)
    (received,) = queue.receive()
    with trace.of("image request"):
        consumed(lambda message, _make_room: images.handle(message), received)
    worker.scheduler.due.set()
    worker.clock.ahead_s += LOOK_EVERY_S
    with trace.of("started image"):
        (image,) = worker.scheduler.receive()
        consumed(starts.handle, image)
    messages = [message for message, _ in worker.received_regions()]
    with trace.of("region message"):
        consumed(regions.handle, messages[-1])
    worker.close()
