"""The protocol needs an emulator that arbitrates concurrent writes as DynamoDB does, and keeps every update."""

import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest
import urllib3
from botocore.exceptions import ClientError

from aws.osml.model_runner.exceptions import LocalStackError
from aws.osml.model_runner.local.stack.child_process import ChildProcess
from aws.osml.model_runner.local.stack.emulator import Emulator, local_client

CLIENTS = 16
ROUNDS = 25


def in_parallel(work):
    with ThreadPoolExecutor(CLIENTS) as pool:
        return list(pool.map(work, range(CLIENTS)))


def is_refused(call, code="ConditionalCheckFailedException", **arguments):
    try:
        call(**arguments)
    except ClientError as error:
        if error.response["Error"]["Code"] != code:
            raise
        return True
    return False


def test_one_writer_wins_each_conditional_put(emulator, data_plane):
    dynamodb, table = emulator.client("dynamodb"), data_plane.environment["FEATURE_TABLE"]

    def write(writer):
        won = []
        for number in range(ROUNDS):
            item = {"hash_key": {"S": "image"}, "range_key": {"S": f"{number:03}"}, "writer": {"N": str(writer)}}
            condition = "attribute_not_exists(range_key)"
            if not is_refused(dynamodb.put_item, TableName=table, Item=item, ConditionExpression=condition):
                won.append((number, writer))
        return won

    winners = dict(pair for won in in_parallel(write) for pair in won)
    key = {":image": {"S": "image"}}
    rows = dynamodb.query(
        TableName=table, KeyConditionExpression="hash_key = :image", ExpressionAttributeValues=key, ConsistentRead=True
    )["Items"]
    assert {int(row["range_key"]["S"]): int(row["writer"]["N"]) for row in rows} == winners
    assert len(winners) == ROUNDS


def test_counter_keeps_every_addition(emulator, data_plane):
    dynamodb, table = emulator.client("dynamodb"), data_plane.environment["JOB_TABLE"]
    key = {"image_id": {"S": "counted"}}

    def add(_):
        values = {":one": {"N": "1"}}
        for _ in range(ROUNDS):
            dynamodb.update_item(
                TableName=table, Key=key, UpdateExpression="ADD region_success :one", ExpressionAttributeValues=values
            )

    in_parallel(add)
    item = dynamodb.get_item(TableName=table, Key=key, ConsistentRead=True)["Item"]
    assert int(item["region_success"]["N"]) == CLIENTS * ROUNDS


def test_transaction_counts_each_region_once_however_many_try(emulator, data_plane):
    dynamodb, environment = emulator.client("dynamodb"), data_plane.environment
    image = {"image_id": {"S": "image"}}
    dynamodb.put_item(TableName=environment["JOB_TABLE"], Item=image | {"region_success": {"N": "0"}})

    def end_regions(_):
        for number in range(ROUNDS):
            row = {
                "TableName": environment["REGION_REQUEST_TABLE"],
                "Item": image | {"region_id": {"S": str(number)}},
                "ConditionExpression": "attribute_not_exists(region_id)",
            }
            count = {
                "TableName": environment["JOB_TABLE"],
                "Key": image,
                "UpdateExpression": "ADD region_success :one",
                "ExpressionAttributeValues": {":one": {"N": "1"}},
            }
            is_refused(
                dynamodb.transact_write_items,
                code="TransactionCanceledException",
                TransactItems=[{"Put": row}, {"Update": count}],
            )

    in_parallel(end_regions)
    item = dynamodb.get_item(TableName=environment["JOB_TABLE"], Key=image, ConsistentRead=True)["Item"]
    assert int(item["region_success"]["N"]) == ROUNDS


def test_message_is_handed_to_one_receiver(emulator, data_plane):
    sqs, queue = emulator.client("sqs"), data_plane.environment["REGION_QUEUE"]
    for start in range(0, 100, 10):
        entries = [{"Id": str(number), "MessageBody": str(number)} for number in range(start, start + 10)]
        sqs.send_message_batch(QueueUrl=queue, Entries=entries)

    def receive(_):
        bodies = []
        while messages := sqs.receive_message(QueueUrl=queue, MaxNumberOfMessages=2).get("Messages"):
            bodies += [message["Body"] for message in messages]
        return bodies

    received = [body for bodies in in_parallel(receive) for body in bodies]
    assert sorted(received, key=int) == [str(number) for number in range(100)]


def test_emulator_environment_has_no_user_credentials(emulator):
    identity = emulator.client("sts").get_caller_identity()
    assert identity["Account"] == "000000000000"
    assert emulator.environment["AWS_ENDPOINT_URL"] == emulator.url
    assert emulator.environment["AWS_S3_ENDPOINT"] in emulator.url


def test_emulator_reports_reason_when_it_cannot_start(tmp_path):
    command = [sys.executable, "-c", "raise SystemExit('no room on this machine')"]
    with pytest.raises(LocalStackError, match=r"exit code 1(.|\n)*no room on this machine"):
        Emulator(tmp_path, command).__enter__()


def test_emulator_that_dies_is_reported(tmp_path):
    with Emulator(tmp_path) as emulator:
        emulator.check_alive()
        emulator._process.stop()
        with pytest.raises(LocalStackError, match="the AWS emulator ended"):
            emulator.check_alive()


def test_child_is_killed_when_it_never_gets_ready(tmp_path):
    stubborn = (
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(60)"
    )
    log = tmp_path / "child.log"
    with ChildProcess.start("the child", [sys.executable, "-c", stubborn], {}, log, grace_s=0.1) as child:
        child.wait_until(lambda: "up" in child.log_text() or None)
        with pytest.raises(LocalStackError, match=r"the child was not ready after 0 s(.|\n)*up"):
            child.wait_until(lambda: None, timeout_s=0.1)
        child.stop()
        assert child.exit_code == -9


def test_child_dies_with_parent_that_is_killed(tmp_path):
    script = f"""
import os, sys, time
from pathlib import Path
from aws.osml.model_runner.local.stack.child_process import ChildProcess
from aws.osml.model_runner.local.stack.emulator import local_client
child = ChildProcess.start("sleep", ["sleep", "60"], os.environ, Path({str(tmp_path / "log")!r}))
print(child.pid, flush=True)
time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as parent:
        child_pid = int(parent.stdout.readline())
        assert is_running(child_pid)
        parent.kill()
    deadline = time.monotonic() + 5
    while is_running(child_pid) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not is_running(child_pid)


def is_running(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rsplit(") ", 1)[1][0] != "Z"
    except FileNotFoundError:
        return False


def test_emulator_listens_on_loopback_only(emulator):
    listening = [
        connection.laddr
        for connection in psutil.Process(emulator._process.pid).net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    ]
    assert [address.ip for address in listening] == ["127.0.0.1"]


def signed(key):
    return {"Authorization": f"AWS4-HMAC-SHA256 Credential={key}/20260101/us-west-2/sqs/aws4_request, Signature=0"}


@pytest.fixture(scope="module")
def guarded(tmp_path_factory):
    """An emulator with a queue, for holders of one key."""
    with Emulator(tmp_path_factory.mktemp("guarded"), access_key="its-own-key") as emulator:
        emulator.client("sqs").create_queue(QueueName="images")
        emulator.client("s3").create_bucket(
            Bucket="images", CreateBucketConfiguration={"LocationConstraint": "us-west-2"}
        )
        yield emulator


@pytest.mark.parametrize(
    "headers",
    [
        {},
        signed("another-key"),
        signed("its-own-key") | {"Origin": "http://evil.example"},
        signed("its-own-key") | {"Origin": "null"},
        signed("its-own-key") | {"Host": "evil.example"},
    ],
    ids=["unsigned", "another user", "a page", "a page without origin", "a name that points here"],
)
def test_emulator_refuses_unknown_access_key(guarded, headers):
    queue = guarded.client("sqs").get_queue_url(QueueName="images")["QueueUrl"]
    form = {"Action": "SendMessage", "QueueUrl": queue, "MessageBody": "{}"}
    before = count_of(guarded, queue)
    assert send_form(guarded, form, headers) == (403, None)
    assert count_of(guarded, queue) == before
    assert send_form(guarded, form, signed("its-own-key"))[0] == 200


def test_emulator_for_any_key_refuses_browsers_all_same(emulator):
    form = {"Action": "ListQueues"}
    assert send_form(emulator, form, signed("any"))[0] == 200
    assert send_form(emulator, form, {}) == (403, None)
    assert send_form(emulator, form, signed("any") | {"Origin": "http://evil.example"}) == (403, None)


def count_of(emulator, queue):
    attributes = emulator.client("sqs").get_queue_attributes(QueueUrl=queue, AttributeNames=["All"])["Attributes"]
    return attributes["ApproximateNumberOfMessages"]


def send_form(emulator, form, headers):
    """Send what a form in a browser can, and return the status and the origins that may read the response."""
    with urllib3.PoolManager() as http:
        response = http.request("POST", emulator.url, fields=form, encode_multipart=False, headers=headers)
        return response.status, response.headers.get("Access-Control-Allow-Origin")


def test_emulator_refuses_preflight_of_browser(guarded):
    headers = {"Origin": "http://evil.example", "Access-Control-Request-Method": "POST"}
    with urllib3.PoolManager() as http:
        response = http.request("OPTIONS", guarded.url, headers=headers)
    assert (response.status, response.headers.get("Access-Control-Allow-Origin")) == (403, None)


def test_emulator_serves_issued_roles_and_signed_urls(guarded):
    role = "arn:aws:iam::000000000000:role/reader"
    keys = guarded.client("sts").assume_role(RoleArn=role, RoleSessionName="job")["Credentials"]
    assumed = local_client("sts", guarded.url, access_key=keys["AccessKeyId"])
    assert assumed.get_caller_identity()["Account"] == "000000000000"
    guarded.client("s3").put_object(Bucket="images", Key="a", Body=b"content")
    url = guarded.client("s3").generate_presigned_url("get_object", Params={"Bucket": "images", "Key": "a"})
    with urllib3.PoolManager() as http:
        assert http.request("GET", url).data == b"content"
        assert http.request("GET", f"{guarded.url}/images/a").status == 403
