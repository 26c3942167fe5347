"""Twins of SQS, SNS, S3, Kinesis and SageMaker's runtime in memory, with boto3's signatures and errors.

A twin executes a call at once; ``ports`` adds the faults on the way. The faults of the services themselves are here:
messages that come twice, early or never, and records that are refused.
"""

import base64
import dataclasses
import hashlib
import io
import itertools
import json
import random
from collections import Counter
from collections.abc import Callable
from typing import Any

from .dynamodb import aws_error
from .faults import Faults
from .scheduler import Scheduler, _Ticket

Answer = dict[str, Any]


class Chance:
    """Draws what goes wrong, until the faults are over, and counts it."""

    def __init__(self, scheduler: Scheduler, faults: Faults) -> None:
        self._scheduler = scheduler
        self.faults = faults
        self.rng: random.Random = scheduler.rng
        self.until_s = scheduler.now + faults.until_s
        self.injected: dict[str, int] = {}

    @property
    def is_active(self) -> bool:
        return self._scheduler.now < self.until_s

    def strikes(self, kind: str) -> bool:
        """Return True when the fault of this name happens now."""
        probability: float = getattr(self.faults, kind)
        if not probability or self._scheduler.now >= self.until_s or self.rng.random() >= probability:
            return False
        self.injected[kind] = self.injected.get(kind, 0) + 1
        return True


@dataclasses.dataclass(eq=False)
class _Message:
    body: str
    message_id: str
    visible_at: float
    receive_count: int = 0
    handle: str = ""


class Queue:
    """One queue: at least once, in no order, and with receipt handles that the next receive makes stale."""

    def __init__(
        self,
        name: str,
        scheduler: Scheduler,
        chance: Chance,
        visibility_s: int = 30,
        max_receives: int | None = None,
        dead_letters: "Queue | None" = None,
    ) -> None:
        self.name = name
        self.url = f"https://sqs.us-west-2.amazonaws.com/123456789012/{name}"
        self.visibility_s = visibility_s
        self.max_receives = max_receives
        self.dead_letters = dead_letters
        self.messages: list[_Message] = []
        self._scheduler = scheduler
        self._chance = chance
        self._waiting: list[_Ticket] = []
        self._handles = itertools.count()

    def put(self, body: str, can_lose: bool = False, delay_s: float = 0.0) -> None:
        """Have a message appear, or appear twice; those between workers may be lost."""
        rng, message_id = self._chance.rng, f"{self.name}-message-{next(self._handles)}"
        delays_s = [] if can_lose and self._chance.strikes("loss") else [delay_s + rng.uniform(0, 1)]
        if self._chance.strikes("duplicate"):
            delays_s.append(delay_s + rng.uniform(0, 90))
        for seen_after_s in delays_s:
            self._show_at(_Message(body, message_id, self._scheduler.now + seen_after_s), is_new=True)

    def wait(self, seconds: float) -> bool:
        """Let the running thread wait until a message may be there; False when none came in time."""
        ends = self._scheduler.now + seconds
        while not self._visible():
            if self._scheduler.now >= ends:
                return False
            ticket = self._scheduler.ticket()
            self._waiting.append(ticket)
            self._scheduler.wake(ticket, ends - self._scheduler.now)
            self._scheduler.park()
            if ticket in self._waiting:
                self._waiting.remove(ticket)
        return True

    def take(self) -> list[_Message]:
        """Receive a message. A message that was received too often moves to the dead-letter queue instead."""
        while found := self._visible():
            message = self._chance.rng.choice(found)
            message.receive_count += 1
            if self.max_receives is not None and message.receive_count > self.max_receives:
                self.messages.remove(message)
                if self.dead_letters is not None:
                    self.dead_letters.put(message.body)
                continue
            hidden_s = self._chance.rng.uniform(0, 2) if self._chance.strikes("early") else self.visibility_s
            message.handle = f"{self.name}-{next(self._handles)}"
            self._show_at(message, hidden_s=hidden_s)
            return [message]
        return []

    def delete(self, handle: str) -> None:
        """Delete a message; SQS may take an old handle, pass over it, or refuse it."""
        message = self._of(handle)
        if message is not None:
            self.messages.remove(message)
            return
        if self._chance.rng.random() < 0.3:
            raise aws_error("ReceiptHandleIsInvalid", "DeleteMessage")

    def change_visibility(self, handle: str, seconds: int) -> None:
        message = self._of(handle)
        if message is None or message.visible_at <= self._scheduler.now:
            code = self._chance.rng.choice(["ReceiptHandleIsInvalid", "MessageNotInflight", "InvalidParameterValue"])
            raise aws_error(code, "ChangeMessageVisibility")
        self._show_at(message, hidden_s=seconds)

    def _of(self, handle: str) -> _Message | None:
        return next((message for message in self.messages if message.handle == handle), None)

    def _visible(self) -> list[_Message]:
        now = self._scheduler.now
        return [message for message in self.messages if message.visible_at <= now]

    def _show_at(self, message: _Message, hidden_s: float = 0.0, is_new: bool = False) -> None:
        if is_new:
            self.messages.append(message)
        else:
            message.visible_at = self._scheduler.now + hidden_s
        self._scheduler.at(max(0.0, message.visible_at - self._scheduler.now), self._offer)

    def _offer(self) -> None:
        """Wake one who waits, if there is something for him."""
        if not self._waiting or not self._visible():
            return
        awake = [ticket for ticket in self._waiting if ticket.fiber.process.is_alive and not ticket.is_spent]
        self._waiting = awake
        if awake:
            ticket = self._chance.rng.choice(awake)
            awake.remove(ticket)
            self._scheduler.wake(ticket)


class SQS:
    def __init__(self, queues: list[Queue]) -> None:
        self.queues = {queue.url: queue for queue in queues}

    def receive_message(
        self,
        *,
        QueueUrl: str,
        MaxNumberOfMessages: int = 1,
        WaitTimeSeconds: int = 0,
        MessageSystemAttributeNames: list[str] | None = None,
    ) -> Answer:
        messages = [
            {
                "MessageId": message.message_id,
                "ReceiptHandle": message.handle,
                "Body": message.body,
                "Attributes": {"ApproximateReceiveCount": str(message.receive_count)},
            }
            for message in self.queues[QueueUrl].take()
        ]
        return {"Messages": messages} if messages else {}

    def send_message(
        self, *, QueueUrl: str, MessageBody: str, DelaySeconds: int = 0, MessageAttributes: Answer | None = None
    ) -> Answer:
        attributes = [(name, *value.values()) for name, value in (MessageAttributes or {}).items()]
        if sum(len(text.encode()) for text in (MessageBody, *itertools.chain(*attributes))) > 262_144:
            raise aws_error("InvalidParameterValue", "SendMessage")
        self.queues[QueueUrl].put(MessageBody, can_lose=True, delay_s=DelaySeconds)
        return {"MessageId": "sent"}

    def send_message_batch(self, *, QueueUrl: str, Entries: list[Answer]) -> Answer:
        queue = self.queues[QueueUrl]
        if not 1 <= len(Entries) <= 10:
            raise aws_error("AWS.SimpleQueueService.TooManyEntriesInBatchRequest", "SendMessageBatch")
        answer: Answer = {"Successful": [], "Failed": []}
        for entry in Entries:
            if queue._chance.strikes("unprocessed"):
                answer["Failed"].append({"Id": entry["Id"], "SenderFault": False, "Code": "InternalError"})
            else:
                queue.put(entry["MessageBody"], can_lose=True)
                answer["Successful"].append({"Id": entry["Id"], "MessageId": "sent"})
        return answer

    def delete_message(self, *, QueueUrl: str, ReceiptHandle: str) -> Answer:
        self.queues[QueueUrl].delete(ReceiptHandle)
        return {}

    def change_message_visibility(self, *, QueueUrl: str, ReceiptHandle: str, VisibilityTimeout: int) -> Answer:
        self.queues[QueueUrl].change_visibility(ReceiptHandle, VisibilityTimeout)
        return {}

    def get_queue_attributes(self, *, QueueUrl: str, AttributeNames: list[str]) -> Answer:
        queue = self.queues[QueueUrl]
        attributes = {"VisibilityTimeout": str(queue.visibility_s)}
        if queue.dead_letters is not None:
            target = f"arn:aws:sqs:us-west-2:123456789012:{queue.dead_letters.name}"
            policy = {"deadLetterTargetArn": target, "maxReceiveCount": queue.max_receives}
            attributes["RedrivePolicy"] = json.dumps(policy)
        return {"Attributes": {name: attributes[name] for name in AttributeNames if name in attributes}}

    def get_queue_url(self, *, QueueName: str, QueueOwnerAWSAccountId: str) -> Answer:
        return {"QueueUrl": next(url for url, queue in self.queues.items() if queue.name == QueueName)}


@dataclasses.dataclass(frozen=True)
class Published:
    """A message on a topic, its attributes as plain text."""

    time: float
    topic: str
    attributes: dict[str, str]


class SNS:
    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self.published: list[Published] = []

    def publish(self, *, TopicArn: str, Message: str, MessageAttributes: Answer) -> Answer:
        attributes = {name: entry["StringValue"] for name, entry in MessageAttributes.items()}
        self.published.append(Published(self._scheduler.now, TopicArn, attributes))
        return {"MessageId": "published"}


class S3:
    """All buckets as one, and every body that was ever written under a key."""

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self.bodies: dict[str, set[bytes]] = {}
        self.puts = 0
        # Keys that nobody may write.
        self.denied: set[str] = set()
        self._uploads: dict[str, dict[int, bytes]] = {}
        self._upload_numbers = itertools.count()

    def put_object(
        self, *, Bucket: str, Key: str, Body: bytes, ChecksumSHA256: str | None = None, **options: Any
    ) -> Answer:
        if ChecksumSHA256 is not None:
            _check_sha256(Body, ChecksumSHA256, "PutObject")
        self._check_allowed(Key, "PutObject")
        self._check_condition(Key, options, "PutObject")
        self._write(Key, Body)
        return {}

    def get_object(self, *, Bucket: str, Key: str) -> Answer:
        if Key not in self.objects:
            raise aws_error("NoSuchKey", "GetObject", status=404)
        return {"Body": io.BytesIO(self.objects[Key])}

    def head_object(self, *, Bucket: str, Key: str) -> Answer:
        self.get_object(Bucket=Bucket, Key=Key)
        return {"Metadata": {}, "ETag": _etag(self.objects[Key])}

    def create_multipart_upload(self, *, Bucket: str, Key: str, **_: Any) -> Answer:
        self._check_allowed(Key, "CreateMultipartUpload")
        upload_id = f"{Key}?{next(self._upload_numbers)}"
        self._uploads[upload_id] = {}
        return {"UploadId": upload_id}

    def upload_part(
        self,
        *,
        Bucket: str,
        Key: str,
        UploadId: str,
        PartNumber: int,
        Body: bytes,
        ChecksumSHA256: str,
        ChecksumAlgorithm: str,
    ) -> Answer:
        _check_sha256(Body, ChecksumSHA256, "UploadPart")
        self._parts(UploadId, "UploadPart")[PartNumber] = Body
        return {"ETag": ChecksumSHA256}

    def complete_multipart_upload(
        self, *, Bucket: str, Key: str, UploadId: str, MultipartUpload: Answer, **condition: str
    ) -> Answer:
        parts = self._parts(UploadId, "CompleteMultipartUpload")
        self._check_condition(Key, condition, "CompleteMultipartUpload")
        self._write(Key, b"".join(parts[part["PartNumber"]] for part in MultipartUpload["Parts"]))
        del self._uploads[UploadId]
        return {}

    def abort_multipart_upload(self, *, Bucket: str, Key: str, UploadId: str) -> Answer:
        self._parts(UploadId, "AbortMultipartUpload")
        del self._uploads[UploadId]
        return {}

    def _check_allowed(self, key: str, operation: str) -> None:
        if key in self.denied:
            raise aws_error("AccessDenied", operation, status=403)

    def _check_condition(self, key: str, condition: Answer, operation: str) -> None:
        stored = self.objects.get(key)
        if "IfMatch" in condition and stored is None:
            raise aws_error("NoSuchKey", operation, status=404)
        is_another = stored is not None and condition.get("IfMatch", _etag(stored)) != _etag(stored)
        if is_another or (stored is not None and condition.get("IfNoneMatch") == "*"):
            raise aws_error("PreconditionFailed", operation, status=412)

    def _parts(self, upload_id: str, operation: str) -> dict[int, bytes]:
        if upload_id not in self._uploads:
            raise aws_error("NoSuchUpload", operation, status=404)
        return self._uploads[upload_id]

    def _write(self, key: str, body: bytes) -> None:
        self.puts += 1
        self.objects[key] = body
        self.bodies.setdefault(key, set()).add(body)


def _etag(body: bytes) -> str:
    return hashlib.md5(body, usedforsecurity=False).hexdigest()


def _check_sha256(body: bytes, checksum: str, operation: str) -> None:
    if base64.b64encode(hashlib.sha256(body).digest()).decode() != checksum:
        raise aws_error("BadDigest", operation)


class Kinesis:
    """One stream that refuses records now and then."""

    def __init__(self, chance: Chance) -> None:
        self._chance = chance
        self.records: list[bytes] = []

    def describe_stream_summary(self, *, StreamName: str) -> Answer:
        return {"StreamDescriptionSummary": {"StreamStatus": "ACTIVE", "MaxRecordSizeInKiB": 1024}}

    def put_records(self, *, StreamName: str, Records: list[Answer]) -> Answer:
        answers: list[Answer] = []
        for record in Records:
            if self._chance.strikes("refused_record"):
                answers.append({"ErrorCode": "ProvisionedThroughputExceededException", "ErrorMessage": "slow"})
            else:
                self.records.append(record["Data"])
                answers.append({"SequenceNumber": str(len(self.records)), "ShardId": "shardId-0"})
        return {"FailedRecordCount": sum("ErrorCode" in answer for answer in answers), "Records": answers}


class SageMaker:
    """SageMaker's descriptions of endpoints: each has two variants, and room for one image of a world or two."""

    def describe_endpoint(self, *, EndpointName: str) -> Answer:
        variants = [
            {"VariantName": name, "CurrentInstanceCount": 1, "CurrentWeight": weight}
            for name, weight in (("blue", 3.0), ("green", 1.0))
        ]
        arn = f"arn:aws:sagemaker:::endpoint/{EndpointName}"
        return {"EndpointArn": arn, "EndpointConfigName": "config", "ProductionVariants": variants}

    def describe_endpoint_config(self, *, EndpointConfigName: str) -> Answer:
        return {"ProductionVariants": [{"VariantName": name, "InstanceType": "ml.g4"} for name in ("blue", "green")]}

    def list_tags(self, *, ResourceArn: str, MaxResults: int) -> Answer:
        return {"Tags": [{"Key": "osml:instance-concurrency", "Value": "16"}]}


class EC2:
    """EC2's descriptions of the machines behind the endpoint."""

    def __init__(self, processors: int) -> None:
        self._processors = processors

    def describe_instance_types(self, *, InstanceTypes: list[str]) -> Answer:
        return {"InstanceTypes": [{"VCpuInfo": {"DefaultVCpus": self._processors}} for _ in InstanceTypes]}


class SageMakerRuntime:
    """An endpoint that refuses and stumbles, before a model, whose responses ``answer`` returns.

    ``timeouts`` counts how often a worker waited for a tile in vain.
    """

    def __init__(self, chance: Chance, answer: Callable[[bytes], bytes]) -> None:
        self._chance = chance
        self._answer = answer
        self.calls = 0
        self.timeouts: Counter[bytes] = Counter()

    def invoke_endpoint(self, *, EndpointName: str, Body: bytes, **given: Any) -> Answer:
        if given.get("TargetVariant", "blue") not in ("blue", "green"):
            raise aws_error("ValidationError", "InvokeEndpoint", "Variant not found")
        self.calls += 1
        if self._chance.strikes("busy"):
            raise self._chance.rng.choice(_REFUSALS)()
        if self._chance.strikes("stumble"):
            raise self._chance.rng.choice(_STUMBLES)()
        return {"Body": io.BytesIO(self._answer(Body)), "ContentType": "application/json"}


def model_error(status: int) -> Exception:
    return aws_error("ModelError", "InvokeEndpoint", "the model failed", 424, OriginalStatusCode=status)


_REFUSALS: list[Callable[[], Exception]] = [
    lambda: aws_error("ThrottlingException", "InvokeEndpoint", "Rate exceeded"),
    lambda: aws_error("ModelNotReadyException", "InvokeEndpoint", "starting", 429),
    lambda: aws_error("ServiceUnavailable", "InvokeEndpoint", "busy", 503),
    lambda: model_error(503),
    lambda: model_error(429),
]
_STUMBLES: list[Callable[[], Exception]] = [
    lambda: aws_error("InternalFailure", "InvokeEndpoint", "sorry", 500),
    lambda: aws_error("InternalDependencyException", "InvokeEndpoint", "sorry", 530),
    lambda: aws_error("ExpiredTokenException", "InvokeEndpoint", "expired", 403),
    lambda: model_error(500),
]
