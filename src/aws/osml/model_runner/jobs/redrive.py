"""Redrives jobs that ended PARTIAL or FAILED, and dead letters, for the command line."""

import dataclasses
import json
import time
import uuid
from collections.abc import Callable, Collection, Sequence
from typing import Any

import structlog

from aws.osml.model_runner.api.image_request import ImageRequest
from aws.osml.model_runner.api.image_url import is_bucket_name
from aws.osml.model_runner.api.rules import MAX_PREFIX_BYTES, is_prefix
from aws.osml.model_runner.api.sink import SinkType
from aws.osml.model_runner.common.job_rules import TILE_MARGIN_S, is_redrivable
from aws.osml.model_runner.database.job_table import JobItem, JobTable, Redirection
from aws.osml.model_runner.database.outstanding_jobs_table import OutstandingJobsTable
from aws.osml.model_runner.exceptions import InvalidImageRequestException, JobNotFoundError, Problem, QueueError
from aws.osml.model_runner.queue.request_queue import RequestQueue

logger = structlog.get_logger(__name__)

Output = dict[str, Any]

_SCHEME = "s3://"


@dataclasses.dataclass(frozen=True)
class RedriveReport:
    """Images of a job: ``begun`` maps ids to the work that follows, ``left`` maps ids of skipped images to reasons."""

    begun: dict[str, str]
    left: dict[str, str]


class JobRedriver:
    """Begins jobs again from their rows alone; the sweeper then continues them as open jobs.

    ``allow`` raises InvalidImageRequestException for a request that names what the operator has not allowed.
    """

    def __init__(
        self,
        job_table: JobTable,
        outstanding_jobs: OutstandingJobsTable,
        allow: Callable[[ImageRequest], None] = lambda _request: None,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._job_table = job_table
        self._outstanding_jobs = outstanding_jobs
        self._allow = allow
        self._now = now

    def redrive(self, job_id: str, places: Sequence[str] = (), outputs_only: bool = False) -> RedriveReport:
        """Begin again each image of a job that ended PARTIAL or FAILED: what failed is done again, the rest stays.

        ``places`` are ``s3://bucket/prefix`` and take the place of the outputs that are not complete. With
        ``outputs_only`` no tile is done again.

        Raises:
            JobNotFoundError: there is no such job.
            InvalidImageRequestException: a place is not one, or not allowed.
        """
        begun, left, targets = {}, {}, [s3_place(place) for place in places]
        for item in self._job_table.images_of(job_id):
            try:
                reason = self._refusal(item, outputs_only)
                if reason is None and not self._reopen(item, targets, outputs_only):
                    reason = "somebody else began it again, or its last status is not published yet"
            except InvalidImageRequestException:
                # A location that is not valid is not valid for every image.
                raise
            except Exception as err:  # noqa: BLE001 - the other images of the job are begun again all the same
                reason = f"{type(err).__name__}: {err}"
            if reason is None:
                begun[item.image_id] = self._work(item, outputs_only)
            else:
                left[item.image_id] = reason
        if not begun and not left:
            advice = (
                "a request that was refused has none: once its reason is mended, redrive --dead-letters sends it again"
            )
            raise JobNotFoundError(f"there is no job {job_id}; {advice}")
        return RedriveReport(begun, left)

    def _refusal(self, item: JobItem, outputs_only: bool) -> str | None:
        """Return why an image is not begun again, where that shows in its row."""
        if not is_redrivable(item.image_status):
            advice = "; model-runner merge writes its features elsewhere" if item.image_status == "SUCCESS" else ""
            return f"its status is {item.image_status}{advice}"
        if outputs_only and not item.needs_outputs_only(self._now(), outputs_only):
            hours = TILE_MARGIN_S / 3600
            return f"not all of its regions have ended, or its features are more than {hours:g} hours old"
        return None

    def _work(self, item: JobItem, outputs_only: bool) -> str:
        if item.needs_outputs_only(self._now(), outputs_only):
            return "outputs are written, no tile is done again"
        if item.region_count is None:
            return "the image is planned again"
        return "tiles that failed, or whose features have expired, are done again"

    def _reopen(self, item: JobItem, targets: Sequence[tuple[str, str]], outputs_only: bool) -> bool:
        request, redirection = item.image_request(), None
        if targets:
            outputs, done = redirected(request.outputs, item.sinks_done or (), targets)
            request = dataclasses.replace(request, outputs=outputs)
            self._allow(request)
            redirection = Redirection(json.dumps(outputs), done)
        message_id = f"redrive-{uuid.uuid4().hex}"
        return self._outstanding_jobs.reopen(item, request, message_id, redirection, outputs_only)


def s3_place(text: str) -> tuple[str, str]:
    """Return bucket and prefix of ``s3://bucket/prefix``.

    Raises:
        InvalidImageRequestException: the text is not such a URL.
    """
    bucket, _, prefix = text.removeprefix(_SCHEME).partition("/")
    if not text.startswith(_SCHEME) or not is_bucket_name(bucket) or not is_prefix(prefix):
        expected = f"s3://BUCKET/PREFIX with a prefix of at most {MAX_PREFIX_BYTES} bytes"
        raise InvalidImageRequestException("the output is not valid", [Problem("--output", text[:80], expected)])
    return bucket, prefix


def redirected(
    outputs: Sequence[Output], done: Collection[str], places: Sequence[tuple[str, str]]
) -> tuple[list[Output], frozenset[str]]:
    """Return outputs with ``places`` instead of the incomplete outputs, and the names of the complete outputs.

    ``done`` names complete outputs as the image's row does, by index and type. A place takes the format, the role and
    whatever else the first incomplete S3 output has.
    """
    complete_indexes = {int(name.partition(":")[0]) for name in done}
    complete = [output for index, output in enumerate(outputs) if index in complete_indexes]
    incomplete = [output for index, output in enumerate(outputs) if index not in complete_indexes]
    pattern = next((output for output in incomplete if output["type"] == SinkType.S3), {"type": SinkType.S3.value})
    added = [{**pattern, "bucket": bucket, "prefix": prefix} for bucket, prefix in places]
    return [*complete, *added], frozenset(f"{index}:{output['type']}" for index, output in enumerate(complete))


def redrive_dead_letters(dead_letters: RequestQueue, queue: RequestQueue) -> int:
    """Move every message of a dead-letter queue back to the queue that it came from; return how many.

    Each is sent before it is deleted, so that none is lost; a message that was sent twice does no harm. Messages that
    arrive meanwhile stay, since a message that a worker refuses again is back at once.

    Raises:
        QueueError: some could not be moved, and are still there; the others were moved all the same.
    """
    waiting, moved = dead_letters.message_count(), 0
    failures: list[Exception] = []
    while moved + len(failures) < waiting and (messages := dead_letters.receive()):
        for message in messages:
            try:
                queue.send_body(message.body)
                dead_letters.finish_request(message.receipt_handle)
                moved += 1
            except Exception as err:  # noqa: BLE001 - raised when the others are moved
                failures.append(err)
    if failures:
        raise QueueError(f"{moved} messages were moved and {len(failures)} were not: {failures[0]}") from failures[0]
    return moved
