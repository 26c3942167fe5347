"""Reports about a job: one for each image, and their sum."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from aws.osml.model_runner.common.typing import TERMINAL_STATUSES
from aws.osml.model_runner.database.job_item import JobItem


@dataclass(frozen=True)
class Refusal:
    """A request in the dead-letter queue: its job id, the text of the message as it came, and the reason.

    ``job_id`` is empty where the text does not have one, ``reason`` for messages of earlier workers.
    """

    job_id: str
    body: str
    reason: str

    @classmethod
    def of(cls, message: Mapping[str, Any]) -> "Refusal":
        """Return the refusal that a message of SQS holds."""
        try:
            document = json.loads(message["Body"])
        except ValueError:
            document = None
        job_id = document.get("jobId") if isinstance(document, dict) else None
        reason = message.get("MessageAttributes", {}).get("reason", {}).get("StringValue", "")
        return cls(str(job_id or ""), message["Body"], reason)


@dataclass(frozen=True)
class QueueDepth:
    """Messages of a queue: waiting, received and not yet deleted, and delayed. ``name`` is a variable of a worker."""

    name: str
    waiting: int
    in_work: int
    delayed: int


@dataclass(frozen=True)
class Result:
    """A file of a result in S3. ``format`` is GEOJSON, GEOJSONSEQ or GEOPARQUET."""

    bucket: str
    key: str
    format: str
    image_url: str

    @property
    def url(self) -> str:
        """The file as ``s3://bucket/key``."""
        return f"s3://{self.bucket}/{self.key}"


@dataclass(frozen=True)
class ImageReport:
    """An image of a job. ``status`` is ACCEPTED, IN_PROGRESS, SUCCESS, PARTIAL or FAILED.

    ``tiles`` is None until the image is planned. ``failures`` counts failed tiles by error code. Times are in epoch
    seconds; ``ended_s`` is None before the end.
    """

    image_url: str
    status: str
    message: str = ""
    endpoint: str = ""
    tiles: int | None = None
    tiles_succeeded: int = 0
    tiles_failed: int = 0
    accepted_s: float | None = None
    started_s: float | None = None
    ended_s: float | None = None
    failures: dict[str, int] = field(default_factory=dict)
    first_failure: str = ""
    features: int | None = None
    failed_outputs: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, item: JobItem) -> "ImageReport":
        """Return the report of an image's row."""
        return cls(
            image_url=item.image_url or "",
            status=item.image_status or "",
            message=item.message or "",
            endpoint=item.model_name or "",
            tiles=item.tile_count,
            tiles_succeeded=item.tile_success or 0,
            tiles_failed=item.tile_error or 0,
            accepted_s=None if item.start_time is None else item.start_time / 1000,
            started_s=item.first_attempt,
            ended_s=None if item.end_time is None else item.end_time / 1000,
            failures=dict(item.tile_errors or {}),
            first_failure=item.first_failure or "",
            features=item.features_delivered,
            failed_outputs=dict(item.sink_errors or {}),
        )

    @property
    def tiles_done(self) -> int:
        """Tiles that succeeded or failed."""
        return self.tiles_succeeded + self.tiles_failed

    @property
    def has_ended(self) -> bool:
        """True when the image has a terminal status."""
        return self.status in TERMINAL_STATUSES


@dataclass(frozen=True)
class JobReport:
    """A job: its images, or none while no worker has accepted it."""

    job_id: str
    images: Sequence[ImageReport]

    @property
    def status(self) -> str:
        """ACCEPTED until the first image starts, IN_PROGRESS until the last one ends; empty before the acceptance.

        Then the status of all images; PARTIAL, if they differ.
        """
        statuses = {image.status for image in self.images}
        if not statuses:
            return ""
        if not self.has_ended:
            return "ACCEPTED" if statuses == {"ACCEPTED"} else "IN_PROGRESS"
        return statuses.pop() if len(statuses) == 1 else "PARTIAL"

    @property
    def has_ended(self) -> bool:
        """True when every image has a terminal status."""
        return bool(self.images) and all(image.has_ended for image in self.images)

    @property
    def percent(self) -> float | None:
        """Share of the tiles that are done, 0 to 100; None until every image is planned."""
        planned = [image.tiles for image in self.images if image.tiles is not None]
        if len(planned) < len(self.images) or not planned:
            return 100.0 if self.has_ended else None
        done = sum(image.tiles_done for image in self.images)
        return 100.0 * done / sum(planned) if sum(planned) else 100.0
