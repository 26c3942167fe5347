"""The simulation's services behave as the emulator does: each test runs on both."""

import base64
import hashlib
import json
import time
from collections.abc import Callable
from decimal import Decimal
from types import SimpleNamespace
from typing import Any

import boto3
import pytest
from botocore.exceptions import ClientError

from simulation.dynamodb import TABLE_NAMES, DynamoDB, worker_tables
from simulation.expressions import SyntaxProblem, condition, update
from simulation.faults import CALM
from simulation.ports import SqsClient
from simulation.scheduler import Process, Scheduler
from simulation.services import S3, SNS, SQS, Chance, Kinesis, Queue

KEYS = {"aws_access_key_id": "test", "aws_secret_access_key": "test", "region_name": "us-west-2"}


def code_of(call: Callable[..., Any], **request: Any) -> str:
    """Return the code of the error that a call ends in."""
    with pytest.raises(ClientError) as caught:
        call(**request)
    return str(caught.value.response["Error"]["Code"])


class TestDynamoDB:
    @pytest.fixture(params=["emulator", "twin"])
    def api(self, request) -> SimpleNamespace:
        """A client of a resource, and the names of its tables."""
        if request.param == "twin":
            names, resource = TABLE_NAMES, DynamoDB(worker_tables(), lambda: 0.0, Scheduler(1).rng).resource()
        else:
            names = request.getfixturevalue("data_plane").environment
            resource = boto3.resource("dynamodb", endpoint_url=request.getfixturevalue("emulator").url, **KEYS)
        return SimpleNamespace(
            client=resource.meta.client, images=names["JOB_TABLE"], regions=names["REGION_REQUEST_TABLE"]
        )

    def put(self, api: SimpleNamespace, **item: Any) -> None:
        api.client.put_item(TableName=api.images, Item={"image_id": "i"} | item)

    def item(self, api: SimpleNamespace) -> dict[str, Any]:
        found: dict[str, Any] = api.client.get_item(TableName=api.images, Key={"image_id": "i"}, ConsistentRead=True)
        return found.get("Item", {})

    def changed(self, api: SimpleNamespace, expression: str, **values: Any) -> dict[str, Any]:
        answer = api.client.update_item(
            TableName=api.images,
            Key={"image_id": "i"},
            UpdateExpression=expression,
            ExpressionAttributeValues={f":{name}": value for name, value in values.items()},
            ReturnValues="ALL_NEW",
        )
        attributes: dict[str, Any] = answer["Attributes"]
        return attributes

    def test_values_are_read_as_they_were_put(self, api):
        values = {"text": "ä", "count": 3, "half": Decimal("0.5"), "yes": True, "none": None, "set": {"a", "b"}}
        nested = {"list": [1, "x", {"deep": [Decimal(2)]}], "map": {"a": {"b": False}}}
        self.put(api, **values, **nested)
        assert self.item(api) == {"image_id": "i"} | values | nested

    def test_floats_are_refused(self, api):
        with pytest.raises(TypeError):
            self.put(api, half=0.5)

    def test_update_expressions_read_item_before_update(self, api):
        self.put(api, a=1, b=2, gone=1, tags={"x"})
        new = self.changed(
            api,
            "SET a = b, b = if_not_exists(c, :c), d = list_append(if_not_exists(d, :none), :more), e = b + :one"
            " REMOVE gone ADD n :one, tags :tags",
            c=9, none=[], more=[1], one=1, tags={"y"},
        )  # fmt: skip
        assert new == {"image_id": "i", "a": 2, "b": 9, "d": [1], "e": 3, "n": 1, "tags": {"x", "y"}}

    def test_update_without_expression_creates_item(self, api):
        assert self.changed(api, "ADD n :one", one=1) == {"image_id": "i", "n": 1}

    @pytest.mark.parametrize(
        ("condition_text", "values", "is_met"),
        [
            ("n = :n", {":n": 5}, True),
            ("n < :n", {":n": 5}, False),
            ("n <= :n", {":n": 5}, True),
            ("n > :n", {":n": "5"}, False),
            ("absent < :n", {":n": 5}, False),
            ("NOT absent < :n", {":n": 5}, True),
            ("absent <> :n", {":n": 5}, True),
            ("n BETWEEN :a AND :b", {":a": 1, ":b": 5}, True),
            ("t IN (:a, :b)", {":a": "x", ":b": "y"}, True),
            ("NOT t IN (:a, :b)", {":a": "x", ":b": "y"}, False),
            ("attribute_exists(n) AND attribute_not_exists(absent)", {}, True),
            ("attribute_exists(absent) OR n = :n", {":n": 5}, True),
            ("attribute_exists(absent) OR n = :n AND t = :t", {":n": 5, ":t": "z"}, False),
            ("(attribute_exists(n) OR n = :n) AND t = :t", {":n": 4, ":t": "x"}, True),
            ("begins_with(t, :t)", {":t": "x"}, True),
            ("contains(tags, :t)", {":t": "a"}, True),
            ("size(t) = :n", {":n": 1}, True),
        ],
    )
    def test_conditions(self, api, condition_text, values, is_met):
        self.put(api, n=5, t="x", tags={"a"})
        request = {
            "TableName": api.images,
            "Item": {"image_id": "i", "n": 6},
            "ConditionExpression": condition_text,
            "ReturnValuesOnConditionCheckFailure": "ALL_OLD",
        } | ({"ExpressionAttributeValues": values} if values else {})
        if is_met:
            api.client.put_item(**request)
            assert self.item(api)["n"] == 6
            return
        with pytest.raises(ClientError) as caught:
            api.client.put_item(**request)
        assert caught.value.response["Error"]["Code"] == "ConditionalCheckFailedException"
        assert caught.value.response["Item"]["n"] == {"N": "5"}
        assert self.item(api)["n"] == 5

    @pytest.mark.parametrize(
        ("expression", "condition_text", "values"),
        [
            ("SET a = :a", None, {":a": 1, ":unused": 2}),
            ("SET a = :a", None, {":b": 1}),
            ("SET image_id = :a", None, {":a": "other"}),
            ("SET a = absent", None, {}),
            ("ADD t :a", None, {":a": 1}),
            ("SET a = :a", "n === :a", {":a": 1}),
            ("PUT a = :a", None, {":a": 1}),
        ],
    )
    def test_invalid_expression_is_refused(self, api, expression, condition_text, values):
        self.put(api, n=5, t="x")
        request = {"TableName": api.images, "Key": {"image_id": "i"}, "UpdateExpression": expression}
        if condition_text:
            request["ConditionExpression"] = condition_text
        if values:
            request["ExpressionAttributeValues"] = values
        assert code_of(api.client.update_item, **request) == "ValidationException"

    def test_transaction_is_done_whole_or_not_at_all_and_reports_why(self, api):
        self.put(api, n=5)
        put = {"TableName": api.regions, "Item": {"image_id": "i", "region_id": "r"}}
        count = {
            "TableName": api.images,
            "Key": {"image_id": "i"},
            "UpdateExpression": "ADD n :one",
            "ConditionExpression": "n = :five",
            "ExpressionAttributeValues": {":one": 1, ":five": 5},
        }
        api.client.transact_write_items(TransactItems=[{"Put": put}, {"Update": count}])
        with pytest.raises(ClientError) as caught:
            api.client.transact_write_items(
                TransactItems=[{"Put": put | {"Item": {"image_id": "i", "region_id": "s"}}}, {"Update": count}]
            )
        assert caught.value.response["Error"]["Code"] == "TransactionCanceledException"
        codes = [reason["Code"] for reason in caught.value.response["CancellationReasons"]]
        assert codes == ["None", "ConditionalCheckFailed"]
        assert self.item(api)["n"] == 6
        key = {"image_id": "i", "region_id": "s"}
        assert "Item" not in api.client.get_item(TableName=api.regions, Key=key)

    def test_transaction_does_not_touch_item_twice(self, api):
        put = {"Put": {"TableName": api.images, "Item": {"image_id": "i"}}}
        assert code_of(api.client.transact_write_items, TransactItems=[put, put]) == "ValidationException"

    def test_delete_may_have_condition(self, api):
        self.put(api, n=5)
        request = {"TableName": api.images, "Key": {"image_id": "i"}, "ConditionExpression": "n = :n"}
        code = code_of(api.client.delete_item, **request, ExpressionAttributeValues={":n": 6})
        assert code == "ConditionalCheckFailedException"
        api.client.delete_item(**request, ExpressionAttributeValues={":n": 5})
        assert self.item(api) == {}

    def test_queries_and_scans_are_sorted_and_filtered(self, api):
        for image, region in (("i", "b"), ("i", "a"), ("j", "c")):
            item = {"image_id": image, "region_id": region, "n": len(region)}
            api.client.put_item(TableName=api.regions, Item=item)
        found = api.client.query(
            TableName=api.regions,
            ConsistentRead=True,
            KeyConditionExpression="image_id = :i",
            ExpressionAttributeValues={":i": "i"},
        )
        assert [row["region_id"] for row in found["Items"]] == ["a", "b"]
        found = api.client.scan(
            TableName=api.regions, FilterExpression="region_id > :r", ExpressionAttributeValues={":r": "a"}
        )
        assert sorted(row["region_id"] for row in found["Items"]) == ["b", "c"]

    def test_batches_have_their_limits(self, api):
        puts = [{"PutRequest": {"Item": {"image_id": str(number)}}} for number in range(26)]
        assert code_of(api.client.batch_write_item, RequestItems={api.images: puts}) == "ValidationException"
        api.client.batch_write_item(RequestItems={api.images: puts[:25]})
        keys = [{"image_id": str(number)} for number in range(30)]
        wanted = {"Keys": keys, "ProjectionExpression": "image_id", "ConsistentRead": True}
        found = api.client.batch_get_item(RequestItems={api.images: wanted})["Responses"][api.images]
        assert sorted(int(row["image_id"]) for row in found) == list(range(25))
        wanted = wanted | {"Keys": [keys[0], keys[0]]}
        assert code_of(api.client.batch_get_item, RequestItems={api.images: wanted}) == "ValidationException"

    def test_item_has_limit_and_key(self, api):
        too_large = {"image_id": "i", "text": "x" * 410_000}
        assert code_of(api.client.put_item, TableName=api.images, Item=too_large) == "ValidationException"
        for item in ({"n": 1}, {"image_id": ""}, {"image_id": 1}):
            assert code_of(api.client.put_item, TableName=api.images, Item=item) == "ValidationException"
        assert code_of(api.client.get_item, TableName="nowhere", Key={"image_id": "i"}) == "ResourceNotFoundException"


class TestSQS:
    """The twin's calls take no time here, so that it can be called from outside of its world."""

    @pytest.fixture(params=["emulator", "twin"])
    def queues(self, request) -> SimpleNamespace:
        if request.param == "twin":
            scheduler = Scheduler(1)
            chance = Chance(scheduler, CALM)
            dead = Queue("dead", scheduler, chance)
            queue = Queue("queue", scheduler, chance, 1, 2, dead)
            advance = lambda seconds: scheduler.run(scheduler.now + seconds)  # noqa: E731
            return SimpleNamespace(api=SQS([queue, dead]), url=queue.url, dead=dead.url, advance=advance)
        sqs = request.getfixturevalue("emulator").client("sqs")
        names = request.getfixturevalue("data_plane").environment
        dead_arn = sqs.get_queue_attributes(QueueUrl=names["IMAGE_DLQ"], AttributeNames=["QueueArn"])["Attributes"]
        policy = json.dumps({"deadLetterTargetArn": dead_arn["QueueArn"], "maxReceiveCount": 2})
        sqs.set_queue_attributes(
            QueueUrl=names["IMAGE_QUEUE"], Attributes={"VisibilityTimeout": "1", "RedrivePolicy": policy}
        )
        return SimpleNamespace(api=sqs, url=names["IMAGE_QUEUE"], dead=names["IMAGE_DLQ"], advance=time.sleep)

    def receive(self, queues: SimpleNamespace, url: str | None = None) -> list[dict[str, Any]]:
        answer = queues.api.receive_message(
            QueueUrl=url or queues.url, WaitTimeSeconds=0, MessageSystemAttributeNames=["ApproximateReceiveCount"]
        )
        messages: list[dict[str, Any]] = answer.get("Messages", [])
        return messages

    def test_message_is_hidden_redelivered_and_dead_lettered(self, queues):
        queues.api.send_message(QueueUrl=queues.url, MessageBody="hello")
        queues.advance(1.1)
        (first,) = self.receive(queues)
        assert (first["Body"], first["Attributes"]["ApproximateReceiveCount"]) == ("hello", "1")
        assert self.receive(queues) == []
        queues.advance(1.1)
        (second,) = self.receive(queues)
        assert (second["MessageId"], second["Attributes"]["ApproximateReceiveCount"]) == (first["MessageId"], "2")
        assert second["ReceiptHandle"] != first["ReceiptHandle"]
        queues.advance(1.1)
        assert self.receive(queues) == []
        queues.advance(1.1)
        (dead,) = self.receive(queues, queues.dead)
        assert dead["Body"] == "hello"

    def test_message_may_be_hidden_longer_released_and_deleted(self, queues):
        queues.api.send_message_batch(QueueUrl=queues.url, Entries=[{"Id": "0", "MessageBody": "hello"}])
        queues.advance(1.1)
        (message,) = self.receive(queues)
        handle = {"QueueUrl": queues.url, "ReceiptHandle": message["ReceiptHandle"]}
        queues.api.change_message_visibility(**handle, VisibilityTimeout=3)
        queues.advance(1.5)
        assert self.receive(queues) == []
        queues.api.change_message_visibility(**handle, VisibilityTimeout=0)
        (again,) = self.receive(queues)
        queues.api.delete_message(QueueUrl=queues.url, ReceiptHandle=again["ReceiptHandle"])
        queues.advance(1.1)
        assert self.receive(queues) == []

    def test_queue_attributes_are_those_that_worker_reads(self, queues):
        names = ["VisibilityTimeout", "RedrivePolicy"]
        attributes = queues.api.get_queue_attributes(QueueUrl=queues.url, AttributeNames=names)["Attributes"]
        assert attributes["VisibilityTimeout"] == "1"
        *_, account, name = json.loads(attributes["RedrivePolicy"])["deadLetterTargetArn"].split(":")
        answer = queues.api.get_queue_url(QueueName=name, QueueOwnerAWSAccountId=account)
        assert answer["QueueUrl"].rpartition("/")[2] == queues.dead.rpartition("/")[2]

    def test_batch_holds_ten(self, queues):
        entries = [{"Id": str(number), "MessageBody": "x"} for number in range(11)]
        assert "TooManyEntries" in code_of(queues.api.send_message_batch, QueueUrl=queues.url, Entries=entries)


def sha256(body: bytes) -> str:
    return base64.b64encode(hashlib.sha256(body).digest()).decode()


class TestOutputs:
    @pytest.fixture(params=["emulator", "twin"])
    def outputs(self, request) -> SimpleNamespace:
        if request.param == "twin":
            scheduler = Scheduler(1)
            chance = Chance(scheduler, CALM)
            return SimpleNamespace(
                s3=S3(), kinesis=Kinesis(chance), sns=SNS(scheduler), bucket="b", stream="s", topic="arn:t"
            )
        client, names = request.getfixturevalue("emulator").client, request.getfixturevalue("data_plane").environment
        return SimpleNamespace(
            s3=client("s3"),
            kinesis=client("kinesis"),
            sns=client("sns"),
            bucket=names["RESULT_BUCKET"],
            stream=names["RESULT_STREAM"],
            topic=names["IMAGE_STATUS_TOPIC"],
        )

    def test_multipart_upload_appears_when_complete(self, outputs):
        place = {"Bucket": outputs.bucket, "Key": "k"}
        outputs.s3.put_object(**place, Body=b"old", ChecksumSHA256=sha256(b"old"))
        upload = place | {
            "UploadId": outputs.s3.create_multipart_upload(**place, ChecksumAlgorithm="SHA256")["UploadId"]
        }
        body = b"x" * 5_300_000
        parts = []
        for number, part in enumerate((body, b"end"), start=1):
            checksum = {"ChecksumSHA256": sha256(part)}
            answer = outputs.s3.upload_part(
                **upload, PartNumber=number, Body=part, ChecksumAlgorithm="SHA256", **checksum
            )
            parts.append({"PartNumber": number, "ETag": answer["ETag"], **checksum})
        outputs.s3.complete_multipart_upload(**upload, MultipartUpload={"Parts": parts})
        assert code_of(outputs.s3.abort_multipart_upload, **upload) == "NoSuchUpload"

    def test_aborted_upload_refuses_parts(self, outputs):
        place = {"Bucket": outputs.bucket, "Key": "k"}
        upload = place | {"UploadId": outputs.s3.create_multipart_upload(**place)["UploadId"]}
        outputs.s3.abort_multipart_upload(**upload)
        part = {"PartNumber": 1, "Body": b"x", "ChecksumAlgorithm": "SHA256", "ChecksumSHA256": sha256(b"x")}
        assert code_of(outputs.s3.upload_part, **upload, **part) == "NoSuchUpload"

    def test_each_record_has_its_response(self, outputs):
        records = [{"Data": b"{}", "PartitionKey": str(number)} for number in range(3)]
        answer = outputs.kinesis.put_records(StreamName=outputs.stream, Records=records)
        assert answer["FailedRecordCount"] == 0
        assert [set(record) >= {"SequenceNumber", "ShardId"} for record in answer["Records"]] == [True] * 3
        summary = outputs.kinesis.describe_stream_summary(StreamName=outputs.stream)["StreamDescriptionSummary"]
        assert summary["StreamStatus"] == "ACTIVE"

    def test_message_on_topic_has_id(self, outputs):
        attributes = {"status": {"DataType": "String", "StringValue": "SUCCESS"}}
        assert outputs.sns.publish(TopicArn=outputs.topic, Message="m", MessageAttributes=attributes)["MessageId"]


class TestStrictness:
    """Refusals of DynamoDB that the emulator lacks, and behaviour that only a world shows."""

    @pytest.mark.parametrize("text", ["token = :t", "region = :r", "a.b = :c", "a = b = c", "a", "f(a)", "a = :b :c"])
    def test_reserved_words_and_unknown_forms_are_no_conditions(self, text):
        with pytest.raises(SyntaxProblem):
            condition(text)

    @pytest.mark.parametrize(
        "text",
        [
            *("", "SET", "SET a", "SET a = :b c", "ADD a b", "SET status = :s", "REMOVE a, a"),
            *("SET a = :a SET b = :a", "SET a = :a, a = :a", "SET a = :a REMOVE a"),
        ],
    )
    def test_invalid_update_is_refused(self, text):
        with pytest.raises(SyntaxProblem):
            update(text)

    def test_same_token_is_same_transaction(self):
        database = DynamoDB(worker_tables(), lambda: 0.0, Scheduler(1).rng)
        put = {
            "TableName": "images",
            "Item": {"image_id": "i"},
            "ConditionExpression": "attribute_not_exists(image_id)",
        }
        for _ in range(2):
            database.transact_write_items(TransactItems=[{"Put": put}], ClientRequestToken="t")
        with pytest.raises(ClientError):
            database.transact_write_items(TransactItems=[{"Put": put}], ClientRequestToken="u")

    def test_read_that_is_not_consistent_may_be_old(self):
        now = [0.0]
        database = DynamoDB(worker_tables(), lambda: now[0], Scheduler(1).rng, stale_probability=1.0)
        database.put_item(TableName="images", Item={"image_id": "i"})
        key = {"TableName": "images", "Key": {"image_id": "i"}}
        assert database.get_item(**key) == {}
        assert database.get_item(**key, ConsistentRead=True) != {}
        now[0] = 2.0
        assert database.get_item(**key) != {}

    def test_pages_and_unprocessed_keys_give_all_items(self):
        database = DynamoDB(
            worker_tables(), lambda: 0.0, Scheduler(1).rng, page_items=2, unprocessed_probability=lambda: 0.5
        )
        pending = {"images": [{"PutRequest": {"Item": {"image_id": str(number)}}} for number in range(9)]}
        while pending:
            pending = database.batch_write_item(RequestItems=pending)["UnprocessedItems"]
        found: list[str] = []
        start: dict[str, Any] = {}
        while True:
            page = database.scan(TableName="images", **start)
            found += [row["image_id"] for row in page["Items"]]
            if "LastEvaluatedKey" not in page:
                break
            start = {"ExclusiveStartKey": page["LastEvaluatedKey"]}
        assert found == [str(number) for number in range(9)]

    def test_long_poll_ends_when_message_comes(self):
        scheduler = Scheduler(1)
        chance = Chance(scheduler, CALM)
        queue = Queue("queue", scheduler, chance)
        heard: list[float] = []
        process = Process(scheduler, "p")

        class Immediately:
            def call(self, _name: str, effect: Callable[..., Any], request: dict[str, Any], _sends: int) -> Any:
                return effect(**request)

        def poll() -> None:
            client = SqsClient(SQS([queue]), Immediately())  # type: ignore[arg-type]
            assert client.receive_message(QueueUrl=queue.url, WaitTimeSeconds=20)["Messages"]
            heard.append(scheduler.now)

        began = scheduler.now
        process.spawn(poll)
        scheduler.at(5.0, lambda: queue.put("hello"))
        scheduler.run(began + 100)
        assert 5.0 <= heard[0] - began <= 6.0
