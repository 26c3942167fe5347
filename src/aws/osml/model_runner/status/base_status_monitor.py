"""Base of the status monitors of images and regions."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from aws.osml.model_runner.common.typing import RequestStatus
from aws.osml.model_runner.telemetry.redaction import safe_text

from .exceptions import SNSPublishException, StatusMonitorException
from .sns_helper import SNSHelper
from .status_message import StatusMessage, status_name


class StatusItem(Protocol):
    """A row whose status is published; other attributes of ``JobItem`` and ``RegionRequestItem`` are read by name."""

    job_id: Any
    image_id: Any
    processing_duration: Any


class BaseStatusMonitor(ABC):
    """Computes the status of a row, and publishes it."""

    def __init__(self, sns_topic: str | None) -> None:
        self.sns_helper = SNSHelper(sns_topic)

    @abstractmethod
    def process_event(
        self, request_item: StatusItem, status: RequestStatus, message: str, extra: Mapping[str, str] | None = None
    ) -> None:
        """Publish ``status`` of a row with the reason for it; ``extra`` becomes attributes of the message.

        Raises:
            StatusMonitorException: the row lacks an attribute of the message, or SNS did not take the message.
        """

    @abstractmethod
    def get_status(self, request_item: StatusItem) -> RequestStatus:
        """Compute the status from the counters of a row."""

    def _publish(
        self, message: StatusMessage, reason: str, extra: Mapping[str, str] | None, marks: Sequence[object]
    ) -> None:
        """Publish a status. ``marks`` distinguish the events of one status; see ``StatusMessage.event_id``."""
        text = f"StatusMonitor update: {status_name(message.status)} {message.job_id}: {safe_text(reason)}"
        attributes = {**(extra or {}), **message.asdict_str_values(), "status_id": message.event_id(*marks)}
        try:
            self.sns_helper.publish_message(text, attributes)
        except SNSPublishException as err:
            raise StatusMonitorException(f"the status {status_name(message.status)} was not published: {err}") from err


def require_fields(item: StatusItem, names: tuple[str, ...]) -> None:
    """Raise StatusMonitorException when an attribute is missing or None; zero and empty values are allowed."""
    missing = [name for name in names if getattr(item, name, None) is None]
    if missing:
        raise StatusMonitorException(f"the row lacks {', '.join(missing)}")


def count_of(item: StatusItem, name: str) -> int | None:
    """Return a counter of a row, None when it is missing; DynamoDB returns it as a decimal."""
    value = getattr(item, name, None)
    return None if value is None else int(value)
