"""Status monitor of regions."""

from collections.abc import Mapping

import structlog

from aws.osml.model_runner.common.typing import RequestStatus
from aws.osml.model_runner.telemetry.redaction import safe_text

from .base_status_monitor import BaseStatusMonitor, StatusItem, count_of, require_fields
from .status_message import StatusMessage, status_name

logger = structlog.get_logger(__name__)


class RegionStatusMonitor(BaseStatusMonitor):
    """Publishes the status of regions on the topic for regions."""

    def __init__(self, region_status_topic: str | None) -> None:
        super().__init__(region_status_topic)

    def process_event(
        self,
        region_request_item: StatusItem,
        status: RequestStatus,
        message: str,
        extra: Mapping[str, str] | None = None,
    ) -> None:
        """Publish ``status`` of a region with the reason for it; ``extra`` becomes attributes of the message.

        Raises:
            StatusMonitorException: job_id, image_id, region_id or processing_duration is None, or SNS did not take
                the message.
        """
        require_fields(region_request_item, ("job_id", "image_id", "region_id", "processing_duration"))
        event = StatusMessage(
            status=status,
            job_id=region_request_item.job_id,
            image_id=region_request_item.image_id,
            region_id=getattr(region_request_item, "region_id", None),
            processing_duration=int(region_request_item.processing_duration),
            tiles_skipped=count_of(region_request_item, "tiles_skipped"),
            failed_tiles=getattr(region_request_item, "failed_tiles", None),
        )
        self._publish(event, message, extra, [count_of(region_request_item, "generation") or 0])
        # Saved searches of log lines look for this name.
        logger.debug(
            "RegionStatusMonitorUpdate",
            reason=safe_text(message),
            status=status_name(status),
            request={"job_id": event.job_id, "image_id": event.image_id, "region_id": event.region_id},
        )

    def get_status(self, request_item: StatusItem) -> RequestStatus:
        """Compute the status from a region's counters: FAILED when every tile failed, PARTIAL when some failed.

        A region without tiles is SUCCESS. In a row without a total, the counted tiles are the total. A row without any
        counter is IN_PROGRESS.
        """
        total = count_of(request_item, "total_tiles")
        good, bad = (count_of(request_item, name) for name in ("succeeded_tile_count", "failed_tile_count"))
        if total is None and good is None and bad is None:
            return RequestStatus.IN_PROGRESS
        bad = bad or 0
        total = (good or 0) + bad if total is None else total
        if bad == 0:
            return RequestStatus.SUCCESS
        return RequestStatus.FAILED if bad >= total else RequestStatus.PARTIAL
