"""One SQS queue: receive, delete, release and send messages."""

import copy
import json
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import structlog
from botocore.exceptions import BotoCoreError, ClientError

from aws.osml.model_runner.aws.clients import default_clients
from aws.osml.model_runner.aws.errors import error_code
from aws.osml.model_runner.common.backoff import backoff_s
from aws.osml.model_runner.exceptions import QueueError

logger = structlog.get_logger(__name__)

MAX_BATCH_MESSAGES = 10
# Limit of older queues, for one message and for all messages of a batch together.
MAX_BATCH_BYTES = 262_144
MAX_VISIBILITY_S = 43_200
# Maximum delay of a message that is sent.
MAX_DELAY_S = 900
MAX_SEND_TRIES = 5
BASE_DELAY_S = 0.2
MAX_RESEND_DELAY_S = 5.0

# The message was received again, or deleted. Leases in the tables decide which worker processes it, not handles.
_STALE_HANDLE_ERRORS = frozenset(
    {
        "AWS.SimpleQueueService.MessageNotInflight",
        "InvalidParameterValue",
        "MessageNotInflight",
        "ReceiptHandleIsInvalid",
    }
)


class QueueMessage(NamedTuple):
    """A received message; ``receive_count`` is 1 the first time.

    ``message_id`` is the same in each delivery of one message, and differs when its sender sends it again.
    """

    receipt_handle: str
    body: str
    receive_count: int
    message_id: str = ""


class RequestQueue:
    """A queue of JSON requests. Thread-safe.

    ``wait_seconds`` (0 to 20) is the longest wait of a receive for a message. ``num_messages`` (1 to 10) is the maximum
    number of messages per receive.
    """

    def __init__(
        self,
        queue_url: str,
        wait_seconds: int = 20,
        num_messages: int = 1,
        client: Any = None,
        sleep: Callable[[float], object] = time.sleep,
    ) -> None:
        self.sqs_client = client
        self.queue_url = queue_url
        self.wait_seconds = wait_seconds
        self.num_messages = num_messages
        self._sleep = sleep
        self._visibility_timeout_s: int | None = None

    def through(self, client: Any) -> "RequestQueue":
        """Return a copy of this queue that calls through another client."""
        other = copy.copy(self)
        other.sqs_client = client
        return other

    def __iter__(self) -> Iterator[tuple[str | None, dict[str, Any] | None]]:
        """Yield ``(receipt_handle, request)`` for ever, and ``(None, None)`` after each receive without a request.

        A message that is not a JSON object is skipped; the queue's redrive policy dead-letters it.
        """
        while True:
            is_idle = True
            try:
                messages = self.receive()
            except QueueError as err:
                logger.error("queue.receive_failed", reason=str(err))
                messages = []
            for message in messages:
                request = parse_request(message.body)
                if request is not None:
                    is_idle = False
                    yield message.receipt_handle, request
            if is_idle:
                yield None, None

    def receive(self) -> list[QueueMessage]:
        """Receive up to ``num_messages``; an empty list when none arrived in time.

        Raises:
            QueueError: the call to SQS failed.
        """
        response = self._call(
            "receive_message",
            MaxNumberOfMessages=self.num_messages,
            WaitTimeSeconds=self.wait_seconds,
            MessageSystemAttributeNames=["ApproximateReceiveCount"],
        )
        return [
            QueueMessage(
                message["ReceiptHandle"],
                message["Body"],
                int(message.get("Attributes", {}).get("ApproximateReceiveCount", 1)),
                message.get("MessageId", ""),
            )
            for message in response.get("Messages", [])
        ]

    def finish_request(self, receipt_handle: str) -> None:
        """Delete a message; a stale handle is logged and ignored.

        Raises:
            QueueError: the call failed; SQS delivers the message again.
        """
        self._call_with_handle("delete_message", receipt_handle)

    def reset_request(self, receipt_handle: str, visibility_timeout: int = 0) -> None:
        """Set a message's visibility to ``visibility_timeout`` seconds from now; 0 releases it at once.

        Raises:
            QueueError: the call failed; SQS delivers the message again when its visibility ends.
        """
        seconds = max(0, min(int(visibility_timeout), MAX_VISIBILITY_S))
        self._call_with_handle("change_message_visibility", receipt_handle, VisibilityTimeout=seconds)

    def send_request(self, request: dict[str, Any]) -> None:
        """Send one request as JSON.

        Raises:
            QueueError: SQS did not take it.
        """
        self.send_body(json.dumps(request))

    def send_body(self, body: str, delay_s: int = 0, reason: str = "") -> None:
        """Send a text unchanged; it can be received after ``delay_s`` seconds, at most ``MAX_DELAY_S``.

        ``reason``, if any, becomes the attribute ``reason`` of the message. It is cut, or left out, where the queue has
        no room for it.

        Raises:
            QueueError: SQS did not take it.
        """
        # The name and the type of an attribute count too.
        room = MAX_BATCH_BYTES - len(body.encode(errors="surrogatepass")) - len("reasonString")
        value = reason.encode()[: max(0, room)].decode(errors="ignore")
        attributes = {"reason": {"DataType": "String", "StringValue": value}} if value else {}
        self._call("send_message", MessageBody=body, DelaySeconds=delay_s, MessageAttributes=attributes)

    def send_requests(self, requests: Sequence[dict[str, Any]]) -> None:
        """Send requests as JSON, in batches of ten; requests that SQS did not take are sent again.

        Raises:
            QueueError: some were not taken. Others may have been taken, and sending all again is harmless.
        """
        for bodies in batches_of_bodies([json.dumps(request) for request in requests]):
            pending = [{"Id": str(index), "MessageBody": body} for index, body in enumerate(bodies)]
            for attempt in range(MAX_SEND_TRIES):
                if attempt:
                    self._sleep(backoff_s(attempt - 1, BASE_DELAY_S, MAX_RESEND_DELAY_S))
                failed = self._call("send_message_batch", Entries=pending).get("Failed", [])
                if any(entry.get("SenderFault") for entry in failed):
                    raise QueueError(f"SQS refuses {len(failed)} messages: {failed[0].get('Code')}")
                failed_ids = {entry["Id"] for entry in failed}
                pending = [entry for entry in pending if entry["Id"] in failed_ids]
                if not pending:
                    break
            else:
                raise QueueError(f"SQS did not take {len(pending)} messages in {MAX_SEND_TRIES} tries")

    def visibility_timeout_s(self) -> int:
        """Return the queue's visibility timeout in seconds; it is read from SQS once.

        Raises:
            QueueError: the call to SQS failed.
        """
        if self._visibility_timeout_s is None:
            response = self._call("get_queue_attributes", AttributeNames=["VisibilityTimeout"])
            self._visibility_timeout_s = int(response["Attributes"]["VisibilityTimeout"])
        return self._visibility_timeout_s

    def message_count(self) -> int:
        """Return the approximate number of messages that can be received now.

        Raises:
            QueueError: the call to SQS failed.
        """
        name = "ApproximateNumberOfMessages"
        return int(self._call("get_queue_attributes", AttributeNames=[name])["Attributes"][name])

    def dead_letter_queue_url(self) -> str | None:
        """Return the URL of this queue's dead-letter queue; None when none is set.

        Raises:
            QueueError: the call to SQS failed, or the dead-letter queue does not exist.
        """
        attributes = self._call("get_queue_attributes", AttributeNames=["RedrivePolicy"]).get("Attributes", {})
        target = json.loads(attributes.get("RedrivePolicy", "{}")).get("deadLetterTargetArn")
        if target is None:
            return None
        *_, account, name = target.split(":")
        try:
            response = self.sqs_client.get_queue_url(QueueName=name, QueueOwnerAWSAccountId=account)
        except (ClientError, BotoCoreError) as err:
            raise QueueError(f"the dead-letter queue {target} cannot be found: {error_code(err)}") from err
        return str(response["QueueUrl"])

    def _call_with_handle(self, operation: str, receipt_handle: str, **arguments: Any) -> None:
        try:
            self._call(operation, ReceiptHandle=receipt_handle, **arguments)
        except QueueError as err:
            cause = err.__cause__
            if not isinstance(cause, ClientError) or error_code(cause) not in _STALE_HANDLE_ERRORS:
                raise
            logger.info("queue.stale_handle", operation=operation, code=error_code(cause))

    def _call(self, operation: str, **arguments: Any) -> Any:
        if self.sqs_client is None:
            self.sqs_client = default_clients().client("sqs")
        try:
            return getattr(self.sqs_client, operation)(QueueUrl=self.queue_url, **arguments)
        except (ClientError, BotoCoreError) as err:
            raise QueueError(f"SQS {operation} failed: {error_code(err)}") from err


def parse_request(body: str) -> dict[str, Any] | None:
    """Return the JSON object in a message, or None when the message is not a JSON object."""
    try:
        request = json.loads(body)
    except (ValueError, RecursionError):
        request = None
    if isinstance(request, dict):
        return request
    logger.warning("queue.unreadable_message", size_bytes=len(body))
    return None


def batches_of_bodies(bodies: Sequence[str]) -> Iterator[list[str]]:
    """Yield the bodies in order, in lists within the limits of one call; a longer body forms a list of its own."""
    batch: list[str] = []
    size = 0
    for body in bodies:
        body_bytes = len(body.encode())
        if batch and (len(batch) == MAX_BATCH_MESSAGES or size + body_bytes > MAX_BATCH_BYTES):
            yield batch
            batch, size = [], 0
        batch.append(body)
        size += body_bytes
    if batch:
        yield batch
