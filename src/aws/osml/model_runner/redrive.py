"""Begins again what did not end well, when a person asks: jobs that ended PARTIAL or FAILED, and dead letters."""

import dataclasses
import uuid

import structlog

from .database.job_ledger import JobLedger
from .database.job_table import JobItem, JobTable
from .exceptions import InvalidImageRequestException
from .job_rules import is_redrivable
from .queue.request_queue import RequestQueue

logger = structlog.get_logger(__name__)


@dataclasses.dataclass(frozen=True)
class RedriveReport:
    """What became of the images of a job: those begun again, and those left as they are, with why."""

    begun: tuple[str, ...]
    left: dict[str, str]


class JobRedriver:
    """Begins jobs again from their rows alone; the fleet's sweeper finds them open and goes on."""

    def __init__(self, job_table: JobTable, ledger: JobLedger) -> None:
        self._job_table = job_table
        self._ledger = ledger

    def redrive(self, job_id: str) -> RedriveReport:
        """Begin again each image of a job that ended PARTIAL or FAILED: what failed is done again, the rest stays.

        Raises:
            InvalidImageRequestException: there is no such job.
        """
        begun, left = [], {}
        for item in self._job_table.images_of(job_id):
            reason = self._redrive_image(item)
            if reason is None:
                begun.append(item.image_id)
            else:
                left[item.image_id] = reason
        if not begun and not left:
            raise InvalidImageRequestException(f"there is no job {job_id}")
        return RedriveReport(tuple(begun), left)

    def _redrive_image(self, item: JobItem) -> str | None:
        """Begin an image again; return why not, when it was not."""
        if not is_redrivable(item.image_status):
            return f"its status is {item.image_status}"
        if not self._ledger.reopen(item, item.image_request(), f"redrive-{uuid.uuid4().hex}"):
            return "somebody else began it again, or its last status is not published yet"
        return None


def redrive_dead_letters(dead_letters: RequestQueue, queue: RequestQueue) -> int:
    """Move every message of a dead-letter queue back to the queue that it came from; return how many.

    Each is sent before it is deleted, so that none is lost; one that was sent twice does no harm. What comes in
    meanwhile stays, since a message that a worker refuses again is back at once.
    """
    waiting, moved = dead_letters.message_count(), 0
    while moved < waiting and (messages := dead_letters.receive()):
        for message in messages:
            queue.send_body(message.body)
            dead_letters.finish_request(message.receipt_handle)
            moved += 1
    return moved
