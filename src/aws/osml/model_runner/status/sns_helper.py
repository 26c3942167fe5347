"""Publishing to one SNS topic."""

from typing import Any

import structlog
from botocore.exceptions import BotoCoreError, ClientError

from aws.osml.model_runner.aws.clients import default_clients
from aws.osml.model_runner.aws.errors import error_code
from aws.osml.model_runner.telemetry.redaction import printable, shortened

from .exceptions import SNSPublishException

logger = structlog.get_logger(__name__)

MAX_PUBLISH_BYTES = 256 * 1024
MAX_MESSAGE_CHARACTERS = 8 * 1024
FIFO_SUFFIX = ".fifo"


class SNSHelper:
    """Publishes messages with attributes to a topic; without a topic, it only logs a warning."""

    def __init__(self, topic_arn: str | None, client: Any = None) -> None:
        self.topic_arn = topic_arn
        self.sns_client = client

    def publish_message(self, message: str, attributes: dict[str, Any]) -> str | None:
        """Publish ``message`` and return its id, or None without a topic.

        Values of ``attributes`` are text or bytes; empty values are omitted, because SNS refuses them. When the message
        is too long for SNS, the longest attributes are omitted.

        Raises:
            SNSPublishException: SNS did not take the message.
        """
        if not self.topic_arn:
            logger.warning("status.no_topic")
            return None
        text = shortened(printable(message), MAX_MESSAGE_CHARACTERS)
        entries = fitting_attributes(attributes, MAX_PUBLISH_BYTES - len(text.encode()))
        ordering = {}
        if self.topic_arn.endswith(FIFO_SUFFIX):
            # A FIFO topic delivers the messages of a job in order, and each event once.
            ordering["MessageGroupId"] = str(attributes.get("job_id") or "-")[:128]
            if attributes.get("status_id"):
                ordering["MessageDeduplicationId"] = str(attributes["status_id"])
        try:
            response = self._client().publish(
                TopicArn=self.topic_arn, Message=text, MessageAttributes=entries, **ordering
            )
        except (ClientError, BotoCoreError) as err:
            raise SNSPublishException(f"SNS did not take the message: {error_code(err)}") from err
        return str(response["MessageId"])

    def _client(self) -> Any:
        if self.sns_client is None:
            self.sns_client = default_clients().client("sns")
        return self.sns_client


def fitting_attributes(attributes: dict[str, Any], max_bytes: int) -> dict[str, dict[str, Any]]:
    """Return ``attributes`` in the form of SNS, without the longest attributes until all fit into ``max_bytes``."""
    entries: dict[str, dict[str, Any]] = {}
    for name, value in attributes.items():
        if isinstance(value, bytes) and value:
            entries[name] = {"DataType": "Binary", "BinaryValue": value}
        elif value:
            entries[name] = {"DataType": "String", "StringValue": printable(str(value))}
    while sum(_size_bytes(name, entry) for name, entry in entries.items()) > max_bytes:
        longest = max(entries, key=lambda name: _size_bytes(name, entries[name]))
        logger.warning("status.attribute_dropped", attribute=longest)
        del entries[longest]
    return entries


def _size_bytes(name: str, entry: dict[str, Any]) -> int:
    value = entry["BinaryValue"] if "BinaryValue" in entry else entry["StringValue"].encode()
    return len(name.encode()) + len(entry["DataType"]) + len(value)
