"""Status monitor of images."""

from collections.abc import Mapping

import structlog

from aws.osml.model_runner.common.typing import RequestStatus
from aws.osml.model_runner.telemetry.redaction import safe_text

from .base_status_monitor import BaseStatusMonitor, StatusItem, count_of, require_fields
from .status_message import StatusMessage, status_name

logger = structlog.get_logger(__name__)


class ImageStatusMonitor(BaseStatusMonitor):
    """Publishes the status of images on the topic for images."""

    def __init__(self, image_status_topic: str | None) -> None:
        super().__init__(image_status_topic)

    def process_event(
        self,
        image_request_item: StatusItem,
        status: RequestStatus,
        message: str,
        extra: Mapping[str, str] | None = None,
    ) -> None:
        """Publish ``status`` of an image with the reason for it; ``extra`` becomes attributes of the message.

        Raises:
            StatusMonitorException: job_id, image_id or processing_duration is None, or SNS did not take the message.
        """
        require_fields(image_request_item, ("job_id", "image_id", "processing_duration"))
        event = StatusMessage(
            status=status,
            job_id=image_request_item.job_id,
            image_status=status,
            image_id=image_request_item.image_id,
            processing_duration=int(image_request_item.processing_duration),
            tiles_skipped=count_of(image_request_item, "tiles_skipped"),
        )
        # These values distinguish an image's events of one status.
        marks: list[object] = [count_of(image_request_item, "generation") or 0]
        if status == RequestStatus.IN_PROGRESS:
            marks.append(sum(count_of(image_request_item, name) or 0 for name in ("tile_success", "tile_error")))
        if not image_request_item.image_id:
            # A refused request has no image.
            marks.append(getattr(image_request_item, "message_id", None))
        self._publish(event, message, extra, marks)
        # Saved searches of log lines look for this name.
        logger.info(
            "ImageStatusMonitorUpdate",
            reason=safe_text(message),
            status=status_name(status),
            request={"job_id": event.job_id, "image_id": event.image_id},
        )

    def get_status(self, request_item: StatusItem) -> RequestStatus:
        """Compute the status from an image's counters.

        The status is IN_PROGRESS while regions are missing. Then it follows from the tiles: SUCCESS when none failed,
        FAILED when none succeeded, else PARTIAL. So an image whose regions are all PARTIAL is PARTIAL. In a row without
        counts of tiles, it follows from the regions by the same rules.
        """
        total = count_of(request_item, "region_count")
        good, bad = (count_of(request_item, name) or 0 for name in ("region_success", "region_error"))
        if total is None or good + bad < total:
            return RequestStatus.IN_PROGRESS
        tiles = count_of(request_item, "tile_success"), count_of(request_item, "tile_error")
        if any(tiles):
            good, bad = (count or 0 for count in tiles)
        if bad == 0:
            return RequestStatus.SUCCESS
        return RequestStatus.FAILED if good == 0 else RequestStatus.PARTIAL
