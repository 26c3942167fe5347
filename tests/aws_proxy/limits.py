"""A step that enforces those limits of AWS that neither the emulator nor the SageMaker gateway does."""

from collections.abc import Iterable, Mapping
from typing import Any

from aws_proxy.proxy import Answer, Call, Forward, json_error
from aws_proxy.units import item_bytes

BATCH_BYTES = 16 * 2**20
MESSAGE_BYTES = 256 * 2**10
# Queues may be given a larger limit since 2025.
LARGEST_MESSAGE_BYTES = 2**20


class ServiceLimits:
    """Refuses batches above 16 MB and messages above ``message_bytes``, and returns at most 16 MB of a batch of reads.

    ``refused`` lists the operations that broke a limit.
    """

    def __init__(self, message_bytes: int = MESSAGE_BYTES) -> None:
        self.refused: list[str] = []
        self._message_bytes = message_bytes

    def __call__(self, call: Call, forward: Forward) -> Answer:
        match call.service, call.operation:
            case "dynamodb", "BatchWriteItem" if _written_bytes(call.document) > BATCH_BYTES:
                return self._refuse(call, json_error("ValidationException", f"more than {BATCH_BYTES} bytes to write"))
            case "dynamodb", "BatchGetItem":
                return _first_16_mb(call.document, forward(call))
            case "sqs", "SendMessage" if _message_bytes(call.document) > self._message_bytes:
                return self._refuse(call, json_error("InvalidParameterValue", f"more than {self._message_bytes} bytes"))
            case "sqs", "SendMessageBatch" if self._is_long(call.document["Entries"]):
                code = "AWS.SimpleQueueService.BatchRequestTooLong"
                return self._refuse(call, json_error(code, f"more than {self._message_bytes} bytes"))
        return forward(call)

    def _is_long(self, entries: Iterable[Mapping[str, Any]]) -> bool:
        return sum(map(_message_bytes, entries)) > self._message_bytes

    def _refuse(self, call: Call, answer: Answer) -> Answer:
        self.refused.append(call.operation)
        return answer


def _message_bytes(message: Mapping[str, Any]) -> int:
    attributes = message.get("MessageAttributes", {}).items()
    return len(message["MessageBody"].encode()) + sum(
        len(name.encode()) + len(str(value.get("StringValue", "")).encode()) + len(value["DataType"])
        for name, value in attributes
    )


def _written_bytes(request: Mapping[str, Any]) -> int:
    return sum(
        item_bytes(write["PutRequest"]["Item"])
        for writes in request["RequestItems"].values()
        for write in writes
        if "PutRequest" in write
    )


def _first_16_mb(request: Mapping[str, Any], answer: Answer) -> Answer:
    """Return as many items as fit, and the keys of the others as unprocessed."""
    result = answer.document
    if answer.status != 200 or len(answer.body) <= BATCH_BYTES:
        return answer
    left = BATCH_BYTES
    unread: dict[str, Any] = {}
    for table, items in result["Responses"].items():
        keys = request["RequestItems"][table]
        names = keys["Keys"][0].keys()
        kept = []
        for item in items:
            left -= item_bytes(item)
            if left >= 0:
                kept.append(item)
            else:
                unread.setdefault(table, {**keys, "Keys": []})["Keys"].append({name: item[name] for name in names})
        result["Responses"][table] = kept
    return answer.with_document({**result, "UnprocessedKeys": unread})
