"""The proxy that adds AWS's limits and faults to the emulator."""

import itertools
import json

import pytest
import urllib3
from botocore.exceptions import ClientError, ConnectionClosedError

from aws.osml.model_runner.local.stack.emulator import local_client
from aws.osml.model_runner.local.stack.sagemaker_gateway import LocalEndpoint, SageMakerGateway
from aws_proxy.limits import ServiceLimits
from aws_proxy.meter import UnitMeter
from aws_proxy.proxy import RESET, AwsProxy
from aws_proxy.storage import CutBodies, Outage, one_in
from aws_proxy.throttling import (
    THROTTLING,
    Chance,
    Delays,
    ThrottledCalls,
    ThrottledReads,
    ThrottledWrites,
    TokenBucket,
)
from aws_proxy.units import item_bytes, write_units

pytestmark = pytest.mark.unmeasured
_numbers = itertools.count()
KB = 1024


@pytest.fixture
def proxy(emulator):
    with AwsProxy(emulator.url) as running:
        yield running


@pytest.fixture
def dynamodb(proxy):
    client = local_client("dynamodb", proxy.url, max_attempts=1)
    yield client
    client.close()


@pytest.fixture
def table(emulator):
    name = f"proxied-{next(_numbers)}"
    keys = (("h", "HASH"), ("r", "RANGE"))
    emulator.client("dynamodb").create_table(
        TableName=name,
        KeySchema=[{"AttributeName": key, "KeyType": kind} for key, kind in keys],
        AttributeDefinitions=[{"AttributeName": key, "AttributeType": "S"} for key, _ in keys],
        BillingMode="PAY_PER_REQUEST",
    )
    return name


def item(number, size, **more):
    """Return an item of so many bytes."""
    base = {"h": {"S": "p"}, "r": {"S": f"{number:04d}"}, **more, "filler": {"S": ""}}
    base["filler"] = {"S": "x" * (size - item_bytes(base))}
    return base


def key(number):
    return {"h": {"S": "p"}, "r": {"S": f"{number:04d}"}}


def code_of(call, **arguments):
    with pytest.raises(ClientError) as caught:
        call(**arguments)
    return caught.value.response["Error"]["Code"]


@pytest.fixture
def meter(proxy):
    proxy.steps.append(UnitMeter())
    return proxy.steps[-1]


def test_writes_are_charged_by_larger_of_old_and_new_item(meter, dynamodb, table):
    dynamodb.put_item(TableName=table, Item=item(1, 3 * KB))
    assert meter.written(table) == 3
    dynamodb.put_item(TableName=table, Item=item(1, 10))
    assert meter.written(table) == 3 + 3
    dynamodb.delete_item(TableName=table, Key=key(1))
    assert meter.written(table) == 3 + 3 + 1
    dynamodb.put_item(TableName=table, Item=item(1, 2 * KB))
    answer = dynamodb.update_item(
        TableName=table,
        Key=key(1),
        UpdateExpression="SET more = :more",
        ExpressionAttributeValues={":more": {"S": "x" * 3 * KB}},
    )
    assert meter.writes[table, "UpdateItem"] == 6
    assert set(answer) == {"ResponseMetadata"}, "the client sees nothing of the count"


def test_write_is_charged_when_condition_fails(meter, dynamodb, table):
    dynamodb.put_item(TableName=table, Item=item(1, 5 * KB))
    put = {"TableName": table, "Item": item(1, 2 * KB), "ConditionExpression": "attribute_not_exists(h)"}
    with pytest.raises(ClientError) as caught:
        dynamodb.put_item(**put)
    assert "Item" not in caught.value.response
    assert meter.writes[table, "PutItem"] == 5 + 5
    with pytest.raises(ClientError) as caught:
        dynamodb.put_item(**put, ReturnValuesOnConditionCheckFailure="ALL_OLD")
    assert caught.value.response["Item"] == item(1, 5 * KB)


def test_transactions_cost_twice_as_much_done_or_cancelled(meter, dynamodb, table):
    dynamodb.put_item(TableName=table, Item=item(1, 4 * KB))
    update = {
        "TableName": table,
        "Key": key(1),
        "UpdateExpression": "SET filler = :filler",
        "ExpressionAttributeValues": {":filler": {"S": "short"}},
    }
    put = {"TableName": table, "Item": item(2, 3 * KB)}
    dynamodb.transact_write_items(TransactItems=[{"Update": update}, {"Put": put}])
    assert meter.writes[table, "TransactWriteItems"] == 2 * 4 + 2 * 3
    put |= {"ConditionExpression": "attribute_not_exists(h)"}
    refused = code_of(dynamodb.transact_write_items, TransactItems=[{"Update": update}, {"Put": put}])
    assert refused == "TransactionCanceledException"
    assert meter.writes[table, "TransactWriteItems"] == 14 + 2 * 1 + 2 * 3


def test_reads_are_charged_by_whole_items(meter, dynamodb, table):
    for number in range(3):
        dynamodb.put_item(TableName=table, Item=item(number, 5 * KB, n={"N": str(number)}))
    dynamodb.get_item(TableName=table, Key=key(0), ConsistentRead=True, ProjectionExpression="r")
    assert meter.reads[table, "GetItem"] == 2
    dynamodb.get_item(TableName=table, Key=key(9))
    assert meter.reads[table, "GetItem"] == 2.5
    dynamodb.batch_get_item(
        RequestItems={
            table: {
                "Keys": [key(0), key(1), key(9)],
                "ConsistentRead": True,
                "ProjectionExpression": "#n",
                "ExpressionAttributeNames": {"#n": "n"},
            }
        }
    )
    assert meter.reads[table, "BatchGetItem"] == 2 + 2 + 1
    found = dynamodb.query(
        TableName=table,
        ConsistentRead=True,
        KeyConditionExpression="h = :h AND #r < :r",
        FilterExpression="n = :n",
        ExpressionAttributeNames={"#r": "r"},
        ExpressionAttributeValues={":h": {"S": "p"}, ":r": {"S": "0002"}, ":n": {"N": "1"}},
    )
    assert [one["r"]["S"] for one in found["Items"]] == ["0001"]
    assert meter.reads[table, "Query"] == 3, "10 KB together, in steps of 4"
    dynamodb.scan(TableName=table)
    assert meter.reads[table, "Scan"] == 2, "15 KB, of which half counts"


def test_emulator_and_rules_agree_on_items_size(meter, dynamodb, table):
    values = {"n": {"N": "-1.25E-7"}, "l": {"L": [{"M": {"ä": {"NULL": True}}}] * 700}, "b": {"B": b"x" * 999}}
    dynamodb.put_item(TableName=table, Item={**key(1), **values})
    stored = {**key(1), **values, "b": {"B": "eHh4" * 333}}
    assert meter.written(table) == write_units(item_bytes(stored)) == 7


def test_token_bucket_admits_its_rate(proxy, dynamodb, table):
    now = [0.0]
    proxy.steps += [ThrottledWrites(TokenBucket(10, 5, lambda: now[0]), table), UnitMeter()]
    dynamodb.put_item(TableName=table, Item=item(1, 4 * KB))
    dynamodb.put_item(TableName=table, Item=item(2, 4 * KB))
    assert code_of(dynamodb.put_item, TableName=table, Item=item(3, 1 * KB)) == "ProvisionedThroughputExceededException"
    assert dynamodb.scan(TableName=table)["Count"] == 2
    now[0] = 0.31  # 3 short, and 3.1 later
    dynamodb.put_item(TableName=table, Item=item(3, 1 * KB))
    assert proxy.steps[0].refused == {"PutItem": 1}


def test_of_batch_rest_comes_back_unprocessed(proxy, dynamodb, table):
    proxy.steps += [ThrottledWrites(TokenBucket(0, 5, lambda: 0.0), code=THROTTLING), UnitMeter()]
    writes = {table: [{"PutRequest": {"Item": item(number, 2 * KB)}} for number in range(5)]}
    rest = dynamodb.batch_write_item(RequestItems=writes)["UnprocessedItems"]
    assert rest == {table: writes[table][3:]}
    assert code_of(dynamodb.batch_write_item, RequestItems=rest) == THROTTLING
    assert dynamodb.scan(TableName=table)["Count"] == 3


def test_throttled_transaction_is_cancelled_with_reason_for_each_item(proxy, dynamodb, table):
    proxy.steps += [ThrottledWrites(Chance(0.0), table)]
    with pytest.raises(ClientError) as caught:
        dynamodb.transact_write_items(TransactItems=[{"Put": {"TableName": table, "Item": item(1, 100)}}])
    reasons = caught.value.response["CancellationReasons"]
    assert [reason["Code"] for reason in reasons] == ["ProvisionedThroughputExceeded"]


def test_throttled_reads_leave_debt(proxy, dynamodb, table):
    now = [0.0]
    dynamodb.put_item(TableName=table, Item=item(1, 40 * KB))
    proxy.steps += [ThrottledReads(TokenBucket(1, clock=lambda: now[0]), table), UnitMeter()]
    dynamodb.get_item(TableName=table, Key=key(1), ConsistentRead=True)
    assert code_of(dynamodb.scan, TableName=table) == "ProvisionedThroughputExceededException"
    now[0] = 9.5
    dynamodb.scan(TableName=table)


def test_limits_of_dynamodb_hold(proxy, dynamodb, table):
    """The first three are the emulator's own; that they hold is what matters."""
    limits = ServiceLimits()
    proxy.steps.append(limits)
    dynamodb.put_item(TableName=table, Item=item(1, 400 * KB))
    assert code_of(dynamodb.put_item, TableName=table, Item=item(1, 400 * KB + 1)) == "ValidationException"
    for name, length in (("h", 2049), ("r", 1025)):
        long = {**item(1, 2 * KB), name: {"S": "x" * length}}
        assert code_of(dynamodb.put_item, TableName=table, Item=long) == "ValidationException"
    grow = {"UpdateExpression": "SET a = :a", "ExpressionAttributeValues": {":a": {"S": "x" * 100}}}
    assert code_of(dynamodb.update_item, TableName=table, Key=key(1), **grow) == "ValidationException"
    assert limits.refused == []


def test_batch_of_reads_returns_16_mb_and_keys_of_rest(proxy, dynamodb, table):
    proxy.steps.append(ServiceLimits())
    for number in range(43):
        dynamodb.put_item(TableName=table, Item=item(number, 390 * KB))
    answer = dynamodb.batch_get_item(RequestItems={table: {"Keys": [key(number) for number in range(43)]}})
    read = answer["Responses"][table]
    unread = answer["UnprocessedKeys"][table]["Keys"]
    assert (len(read), len(unread)) == (42, 1)
    assert sorted(one["r"]["S"] for one in [*read, *unread]) == [f"{number:04d}" for number in range(43)]


def test_messages_above_limit_are_refused(emulator, proxy):
    proxy.steps.append(ServiceLimits())
    sqs, sns = (local_client(service, proxy.url, max_attempts=1) for service in ("sqs", "sns"))
    url = sqs.create_queue(QueueName=f"proxied-{next(_numbers)}")["QueueUrl"]
    sqs.send_message(QueueUrl=url, MessageBody="x" * 256 * KB)
    assert code_of(sqs.send_message, QueueUrl=url, MessageBody="x" * (256 * KB + 1)) == "InvalidParameterValue"
    entries = [{"Id": str(number), "MessageBody": "x" * 100 * KB} for number in range(3)]
    refused = code_of(sqs.send_message_batch, QueueUrl=url, Entries=entries)
    assert refused == "AWS.SimpleQueueService.BatchRequestTooLong"
    topic = sns.create_topic(Name=f"proxied-{next(_numbers)}")["TopicArn"]
    assert code_of(sns.publish, TopicArn=topic, Message="x" * (256 * KB + 1)) == "InvalidParameter"
    assert (proxy.count("sqs", "SendMessage", "SendMessageBatch"), proxy.count("sns", "Publish")) == (3, 1)


@pytest.fixture
def bucket(emulator):
    name = f"proxied-{next(_numbers)}"
    emulator.client("s3").create_bucket(Bucket=name, CreateBucketConfiguration={"LocationConstraint": "us-west-2"})
    emulator.client("s3").put_object(Bucket=name, Key="in/scene.tif", Body=b"0123456789" * 1000)
    return name


def test_body_is_cut_by_reset(proxy, bucket):
    cuts = CutBodies(one_in(3), key="scene")
    proxy.steps.append(cuts)
    http = urllib3.PoolManager(retries=False)
    place = {"Bucket": bucket, "Key": "in/scene.tif"}
    url = local_client("s3", proxy.url).generate_presigned_url("get_object", Params=place)
    with pytest.raises(urllib3.exceptions.ProtocolError) as caught:
        http.request("GET", url)
    assert isinstance(caught.value.args[1], ConnectionResetError | urllib3.exceptions.IncompleteRead)
    for _ in range(2):
        answer = http.request("GET", url, headers={"Range": "bytes=10-19"})
        assert (answer.status, answer.data) == (206, b"0123456789")
    head = http.request("HEAD", url)
    assert (head.headers["Content-Length"], cuts.cut) == ("10000", 1)
    http.clear()


def test_reads_slow_down_when_store_throttles(proxy, bucket):
    now = [0.0]
    slow = Outage(5, after=1, clock=lambda: now[0])
    proxy.steps.append(slow)
    s3 = local_client("s3", proxy.url, max_attempts=1)
    s3.head_object(Bucket=bucket, Key="in/scene.tif")
    assert code_of(s3.get_object, Bucket=bucket, Key="in/scene.tif") == "SlowDown"
    now[0] = 5.0
    assert len(s3.get_object(Bucket=bucket, Key="in/scene.tif")["Body"].read()) == 10_000
    assert slow.refused == 1
    proxy.steps[:] = [Outage(5, RESET)]
    with pytest.raises(ConnectionClosedError):
        s3.get_object(Bucket=bucket, Key="in/scene.tif")
    proxy.steps.clear()
    assert proxy.received_bytes["s3"] > 10_000
    # A body whose checksum trails it comes in chunks.
    s3.put_object(Bucket=bucket, Key="out", Body=b"x" * 100_000, ChecksumAlgorithm="SHA256")
    assert len(s3.get_object(Bucket=bucket, Key="out")["Body"].read()) == 100_000


def test_control_plane_calls_are_late_and_throttled_and_counted(emulator):
    slept = []
    with SageMakerGateway({"numbered": LocalEndpoint("http://127.0.0.1:9")}) as gateway:
        quota = ThrottledCalls(TokenBucket(0, 2, lambda: 0.0), "DescribeEndpoint")
        delays = Delays({"DescribeEndpoint": 0.1}, slept.append)
        with AwsProxy(emulator.url, gateway.url, [quota, delays]) as proxy:
            sagemaker = local_client("sagemaker", proxy.url, max_attempts=1)
            for _ in range(2):
                sagemaker.describe_endpoint(EndpointName="numbered")
            assert code_of(sagemaker.describe_endpoint, EndpointName="numbered") == "ThrottlingException"
            sagemaker.describe_endpoint_config(EndpointConfigName="numbered")
            assert slept == [0.1, 0.1]
            assert proxy.count("sagemaker") == 4
            assert proxy.count("sagemaker", "DescribeEndpoint") == 3
            runtime = local_client("sagemaker-runtime", proxy.url, max_attempts=1)
            body = b"x" * (6 * 2**20 + 1)
            assert code_of(runtime.invoke_endpoint, EndpointName="numbered", Body=body) == "413"
            assert proxy.requests["sagemaker", "InvokeEndpoint"] == 1


def test_environment_names_proxy_for_each_service(emulator):
    with AwsProxy(emulator.url, "http://127.0.0.1:9") as proxy:
        assert json.dumps(proxy.environment).count(proxy.url.removeprefix("http://")) == 4
