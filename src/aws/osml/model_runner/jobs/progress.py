"""Publishes the statuses of an image that has not ended: STARTED and IN_PROGRESS."""

import structlog

from aws.osml.model_runner.common.typing import RequestStatus
from aws.osml.model_runner.database.job_table import JobItem
from aws.osml.model_runner.exceptions import StatusError
from aws.osml.model_runner.status.image_status_monitor import ImageStatusMonitor

logger = structlog.get_logger(__name__)


def publish(
    monitor: ImageStatusMonitor,
    item: JobItem,
    status: RequestStatus,
    message: str,
    attributes: dict[str, str] | None = None,
) -> None:
    """Publish a status of an image; a failure to publish is only logged."""
    try:
        monitor.process_event(item, status, message, attributes or {})
    except StatusError as err:
        logger.warning("status.not_published", status=str(status), reason=str(err))


def publish_progress(monitor: ImageStatusMonitor, item: JobItem) -> None:
    """Publish how many tiles of an image are done, as text and as attributes."""
    attributes = progress_of(item)
    text = f"Processing regions: {attributes['tiles_done']} of {attributes['tiles_total']} tiles done"
    if item.tile_error:
        text += f", {item.tile_error} of them failed"
    if item.tiles_skipped:
        text += f"; {item.tiles_skipped} tiles are skipped"
    publish(monitor, item, RequestStatus.IN_PROGRESS, text, attributes)


def progress_of(item: JobItem) -> dict[str, str]:
    """Return how many tiles are done, as attributes of an IN_PROGRESS status; skipped tiles do not count."""
    total = item.tile_count or 0
    done = (item.tile_success or 0) + (item.tile_error or 0)
    # An image whose tiles are all skipped has nothing to process.
    percent = 100 * done // total if total else 100 if item.tiles_skipped else 0
    return {"tiles_done": str(done), "tiles_total": str(total), "percent": str(percent)}
