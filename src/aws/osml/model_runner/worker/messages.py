"""Handles queue messages: process while extending visibility, then delete, release or dead-letter."""

import dataclasses
import math
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import structlog
from botocore.exceptions import ClientError

from aws.osml.model_runner.api.image_request_message import job_id_of, parse_image_request_message
from aws.osml.model_runner.api.problems import shortened
from aws.osml.model_runner.api.region_request import parse_region_message
from aws.osml.model_runner.aws.errors import is_invalid_write
from aws.osml.model_runner.common.job_rules import is_hopeless
from aws.osml.model_runner.common.typing import RequestStatus
from aws.osml.model_runner.database.job_table import JobItem
from aws.osml.model_runner.database.outstanding_jobs_table import OpenJob
from aws.osml.model_runner.exceptions import (
    EndpointFullError,
    InvalidImageRequestException,
    InvalidRequestError,
    Problem,
    ProcessImageException,
    RequestDeferredError,
)
from aws.osml.model_runner.image_request_handler import ImageRequestHandler
from aws.osml.model_runner.jobs.leases import Lease, LeaseKeeper, LeaseKind
from aws.osml.model_runner.jobs.progress import publish
from aws.osml.model_runner.jobs.region import Deferred, Ended
from aws.osml.model_runner.queue.request_queue import MAX_DELAY_S, QueueMessage, RequestQueue
from aws.osml.model_runner.region_request_handler import RegionRequestHandler
from aws.osml.model_runner.scheduler.image_scheduler import LockedScheduler, ScheduledImage
from aws.osml.model_runner.scheduler.load import lane_of
from aws.osml.model_runner.scheduler.look_ahead import LookAhead
from aws.osml.model_runner.telemetry.logs import bind_job
from aws.osml.model_runner.telemetry.redaction import safe_text

logger = structlog.get_logger(__name__)

# SQS dead-letters a message after too many receives. A message that only waits is sent again after this many.
_RENEWED_AFTER = 10
# Receives of a request whose acceptance raises a permanent error, or MemoryError, before the request is rejected.
# Another worker may make each attempt.
_HOPELESS_TRIES = 3
_MEMORY_TRIES = 10
# Most characters of a reason beside a dead letter.
_MAX_REASON = 1_000
# Range of the random wait before a message is visible again, when enough images wait for its endpoint.
_FULL_S = (60.0, 180.0)
# Pause before the next message is received then, so that a queue full of such messages costs few calls.
_FULL_PAUSE_S = 1.0


@dataclasses.dataclass(frozen=True)
class Visibility:
    """Extends the visibility timeout of messages that are processed, by ``min_s`` at least; ``sqs`` sends a call once.

    SQS limits visibility to 12 hours after the receive. Then the message is delivered again, and the second worker
    finds the lease held.
    """

    leases: LeaseKeeper
    sqs: Any
    min_s: float
    now: Callable[[], float] = time.time

    @contextmanager
    def extended(self, queue: RequestQueue, message: QueueMessage) -> Iterator[None]:
        """Keep a message invisible while the caller processes it."""
        visibility_s = queue.visibility_timeout_s()
        # At least one lease, so that the next heartbeat comes in time even if the queue's own timeout is short.
        hidden_s = max(visibility_s, math.ceil(self.min_s))
        hurried = queue.through(self.sqs)

        def renew() -> bool:
            hurried.reset_request(message.receipt_handle, hidden_s)
            return True

        if hidden_s > visibility_s:
            queue.reset_request(message.receipt_handle, hidden_s)
        lease = Lease("message", renew, on_lost=lambda: None, last_progress=self.now, kind=LeaseKind.MESSAGE)
        with self.leases.keep(lease):
            yield


def come_again(queue: RequestQueue, message: QueueMessage, wait_s: int) -> None:
    """Requeue a message after ``wait_s`` seconds, as a new message when SQS has counted many receives."""
    if message.receive_count < _RENEWED_AFTER or wait_s > MAX_DELAY_S:
        queue.reset_request(message.receipt_handle, wait_s)
        return
    queue.send_body(message.body, wait_s)
    queue.finish_request(message.receipt_handle)


class DeadLetters:
    """Sends messages that can never be processed, unchanged, to a dead-letter queue for an operator to inspect.

    The queue is the one at ``url``; without ``url``, the dead-letter queue of the source queue's redrive policy.
    """

    def __init__(self, queue: RequestQueue, url: str | None) -> None:
        self._queue = queue
        self._url = url

    def put(self, body: str, reason: str) -> None:
        """Send a message to the dead-letter queue; without such a queue, only log the reason."""
        url = self._url or self._queue.dead_letter_queue_url()
        logger.error("message.rejected", reason=reason, has_dead_letter_queue=url is not None)
        if url is not None:
            # The body stays as it came, so that it can be sent again; the reason lies beside it.
            RequestQueue(url, client=self._queue.sqs_client).send_body(body, reason=safe_text(reason, _MAX_REASON))

    def put_image(self, job: JobItem) -> None:
        """Dead-letter the message of an image that failed before it had a plan."""
        if job.body is not None:
            self.put(job.body, job.message or "")


class ImageMessages:
    """Accepts image requests and deletes their messages.

    With ``on_waiting`` images are scheduled: the handler reads their headers, calls ``on_waiting``, and they wait for
    the scheduler. Without it they are planned at once. ``look_ahead`` limits how many images wait for an endpoint.
    """

    def __init__(
        self,
        queue: RequestQueue,
        dead_letters: DeadLetters,
        handler: ImageRequestHandler,
        visibility: Visibility,
        on_waiting: Callable[[], None] | None = None,
        look_ahead: LookAhead | None = None,
        pause: Callable[[float], object] = time.sleep,
        rng: random.Random | None = None,
    ) -> None:
        self._queue = queue
        self._dead_letters = dead_letters
        self._handler = handler
        self._visibility = visibility
        self._on_waiting = on_waiting
        self._look_ahead = look_ahead
        self._pause = pause
        self._rng = rng or random.Random()

    def handle(self, message: QueueMessage) -> None:
        """Accept every image of a request. An accepted image depends on its rows and no longer on the message."""
        with self._visibility.extended(self._queue, message):
            try:
                jobs = self._accept(message)
            except InvalidRequestError as err:
                self._reject(message, err)
                return
            except EndpointFullError as err:
                logger.info("request.deferred", reason=str(err), retry_after_s=err.retry_after_s)
                come_again(self._queue, message, math.ceil(err.retry_after_s))
                self._pause(_FULL_PAUSE_S)
                return
            except RequestDeferredError as err:
                logger.info("request.deferred", reason=str(err), retry_after_s=err.retry_after_s)
                self._queue.reset_request(message.receipt_handle, math.ceil(err.retry_after_s))
                return
            except Exception as err:
                most_tries = _HOPELESS_TRIES if is_hopeless(err) else math.inf
                if message.receive_count < (_MEMORY_TRIES if isinstance(err, MemoryError) else most_tries):
                    raise
                logger.exception("request.not_accepted", receive_count=message.receive_count)
                problem = f"the request cannot be accepted: {type(err).__name__}: {err}"
                self._reject(message, InvalidImageRequestException(problem))
                return
            self._queue.finish_request(message.receipt_handle)
        for job in jobs:
            try:
                if self._on_waiting is None:
                    self._handler.process_first(self._handler.plan(job))
                else:
                    self._handler.estimate_load(job)
                    self._on_waiting()
            except ProcessImageException as err:
                logger.warning("image.not_planned", reason=str(err))
            except Exception:  # The other images continue; the sweeper or the scheduler continues this image
                logger.exception("image.not_begun", image_id=job.image_id)

    def _accept(self, message: QueueMessage) -> list[OpenJob]:
        requests = parse_image_request_message(message.body)
        for request in requests:
            self._handler.config.policy.check(request)
        first, look_ahead = requests[0], self._look_ahead
        is_counted = look_ahead is None or look_ahead.take(lane_of(first), len(requests))
        # A message that was accepted before counts already.
        if not is_counted and self._handler.job_table.find(first.image_id) is None:
            retry_after_s = self._rng.uniform(*_FULL_S)
            raise EndpointFullError(f"enough images wait for the endpoint {shortened(first.model_name)}", retry_after_s)
        for request in requests:
            self._handler.check(request, message.receive_count)
        accepted: list[OpenJob] = []
        for request in requests:
            try:
                job = self._handler.accept(request, message.message_id, message.body)
            except ClientError as err:
                # The same write would fail for each delivery of the message.
                if not is_invalid_write(err):
                    raise
                problem = Problem("imageUrls", shortened(request.image_url), f"what the tables can hold: {err}")
                refusal = InvalidImageRequestException("the request cannot be stored", [problem])
                for accepted_job in accepted:
                    ended = self._handler.job_table.fail_hopeless(accepted_job.image_id, str(refusal))
                    if ended is not None:
                        self._handler.parts.completion.close(ended)
                raise refusal from err
            if job is not None:
                accepted.append(job)
        return accepted

    def _reject(self, message: QueueMessage, err: InvalidRequestError) -> None:
        self._dead_letters.put(message.body, str(err))
        job_id = job_id_of(message.body) or "unknown"
        item = JobItem(image_id="", job_id=job_id, message_id=message.message_id, processing_duration=0)
        publish(self._handler.image_status_monitor, item, RequestStatus.FAILED, str(err))
        self._queue.finish_request(message.receipt_handle)


class ScheduledImages:
    """Plans the images that the scheduler starts in this worker, and processes the first region of each."""

    def __init__(self, scheduler: LockedScheduler, handler: ImageRequestHandler) -> None:
        self._scheduler = scheduler
        self._handler = handler

    def handle(self, image: ScheduledImage, on_cut: Callable[[], None] = lambda: None) -> None:
        """Plan an image that this worker has claimed; ``on_cut`` is called when another image can be started."""
        try:
            self._handler.process_first(self._handler.plan_started(image.job), on_cut)
        except ProcessImageException as err:
            logger.warning("image.not_planned", reason=str(err))
        finally:
            self._scheduler.record_ended(image)
        self._scheduler.record_room()


class RegionMessages:
    """Processes the regions that messages name, and deletes each message when its region has ended."""

    def __init__(
        self,
        queue: RequestQueue,
        dead_letters: DeadLetters,
        regions: RegionRequestHandler,
        visibility: Visibility,
        on_ended: Callable[[], None] = lambda: None,
    ) -> None:
        self._queue = queue
        self._dead_letters = dead_letters
        self._regions = regions
        self._visibility = visibility
        self._on_ended = on_ended

    def handle(self, message: QueueMessage, on_cut: Callable[[], None] = lambda: None) -> None:
        """Process the region that a message names; ``on_cut`` is called when another region can be cut."""
        with self._visibility.extended(self._queue, message):
            try:
                region = parse_region_message(message.body)
            except InvalidRequestError as err:
                self._dead_letters.put(message.body, str(err))
                outcome: Ended | Deferred = Ended(None)
            else:
                outcome = self._regions.process_region_request(region, message.receive_count, on_cut)
                if isinstance(outcome, Deferred):
                    retry_after_s, reason = round(outcome.retry_after_s, 1), outcome.reason
                    with bind_job(job_id=region.job_id, image_id=region.image_id, region_id=region.region_id):
                        logger.info("region.given_back", retry_after_s=retry_after_s, reason=reason)
        if isinstance(outcome, Deferred):
            come_again(self._queue, message, math.ceil(outcome.retry_after_s))
            return
        self._queue.finish_request(message.receipt_handle)
        self._on_ended()
