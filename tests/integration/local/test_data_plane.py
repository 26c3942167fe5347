"""The embedded stack has the resources of the template, and AWS gets the same template."""

import json
import re

import pytest

from aws.osml.model_runner.common.job_rules import TILE_MARGIN_S
from aws.osml.model_runner.config import documented_settings
from aws.osml.model_runner.exceptions import LocalStackError
from aws.osml.model_runner.local.stack.data_plane import LOCAL_PARAMETERS, create_data_plane, template_text

VARIABLES = {
    "IMAGE_QUEUE", "IMAGE_DLQ", "REGION_QUEUE", "REGION_DLQ", "IMAGE_STATUS_TOPIC", "REGION_STATUS_TOPIC", "JOB_TABLE",
    "REGION_REQUEST_TABLE", "FEATURE_TABLE", "OUTSTANDING_JOBS_TABLE", "ENDPOINT_TABLE", "WORK_BUCKET",
    "RESULT_BUCKET", "RESULT_STREAM",
}  # fmt: skip
# A topic's own output is its ARN.
ARNS = {f"{variable}_ARN" for variable in VARIABLES if not variable.endswith("_TOPIC")}


@pytest.fixture(scope="module")
def data_plane(emulator, tmp_path_factory):
    """A data plane for the module, from the template as AWS gets it."""
    return create_data_plane(emulator.client, tmp_path_factory.mktemp("data-plane").name)


def queue_attributes(emulator, url):
    return emulator.client("sqs").get_queue_attributes(QueueUrl=url, AttributeNames=["All"])["Attributes"]


def test_every_variable_of_worker_is_filled(data_plane):
    assert set(data_plane.environment) == VARIABLES | ARNS
    assert all(data_plane.environment.values())
    assert all(data_plane.environment[name].startswith("arn:") for name in ARNS)


@pytest.mark.parametrize(("queue", "visibility_s", "receives"), [("IMAGE", 120, 20), ("REGION", 90, 1000)])
def test_queue_has_designed_visibility_and_receive_limit(emulator, data_plane, queue, visibility_s, receives):
    attributes = queue_attributes(emulator, data_plane.environment[f"{queue}_QUEUE"])
    dead_letters = queue_attributes(emulator, data_plane.environment[f"{queue}_DLQ"])
    redrive = json.loads(attributes["RedrivePolicy"])
    assert int(attributes["VisibilityTimeout"]) == visibility_s
    assert int(redrive["maxReceiveCount"]) == receives
    assert redrive["deadLetterTargetArn"] == dead_letters["QueueArn"]
    # A message keeps its age in a dead-letter queue, so a week is left there.
    assert (attributes["MessageRetentionPeriod"], dead_letters["MessageRetentionPeriod"]) == ("604800", "1209600")
    assert attributes["SqsManagedSseEnabled"] == dead_letters["SqsManagedSseEnabled"] == "true"


@pytest.mark.parametrize(
    ("variable", "keys", "has_time_to_live"),
    [
        ("JOB_TABLE", ["image_id"], True),
        ("REGION_REQUEST_TABLE", ["image_id", "region_id"], True),
        ("FEATURE_TABLE", ["hash_key", "range_key"], True),
        ("OUTSTANDING_JOBS_TABLE", ["endpoint_id", "job_id"], False),
        ("ENDPOINT_TABLE", ["endpoint"], True),
    ],
)
def test_table_has_contract_s_keys_and_forgets_by_expire_time(emulator, data_plane, variable, keys, has_time_to_live):
    dynamodb, name = emulator.client("dynamodb"), data_plane.environment[variable]
    table = dynamodb.describe_table(TableName=name)["Table"]
    time_to_live = dynamodb.describe_time_to_live(TableName=name)["TimeToLiveDescription"]
    assert [key["AttributeName"] for key in table["KeySchema"]] == keys
    assert [key["KeyType"] for key in table["KeySchema"]] == ["HASH", "RANGE"][: len(keys)]
    assert table["BillingModeSummary"]["BillingMode"] == "PAY_PER_REQUEST"
    assert (time_to_live.get("AttributeName") == "expire_time") is has_time_to_live
    assert time_to_live["TimeToLiveStatus"] == ("ENABLED" if has_time_to_live else "DISABLED")


def test_bucket_is_closed_to_public_and_encrypted(emulator, data_plane):
    s3 = emulator.client("s3")
    block = s3.get_public_access_block(Bucket=data_plane.result_bucket)["PublicAccessBlockConfiguration"]
    encryption = s3.get_bucket_encryption(Bucket=data_plane.result_bucket)["ServerSideEncryptionConfiguration"]
    assert set(block.values()) == {True}
    assert encryption["Rules"][0]["ApplyServerSideEncryptionByDefault"]["SSEAlgorithm"] == "AES256"


def test_work_bucket_is_closed_to_public(emulator, data_plane):
    bucket = data_plane.environment["WORK_BUCKET"]
    block = emulator.client("s3").get_public_access_block(Bucket=bucket)["PublicAccessBlockConfiguration"]
    assert set(block.values()) == {True}


def test_objects_of_work_bucket_live_as_long_as_their_rows():
    settings = {setting.field: setting.default for setting in documented_settings()}
    longest_life_days = (float(settings["job_deadline_s"]) + TILE_MARGIN_S) / 86_400
    (retention_days,) = re.findall(
        r"^  WorkRetentionDays:(?:\n    .*)*?\n    Default: (\d+)$", template_text(), re.MULTILINE
    )
    assert "ExpirationInDays: !Ref WorkRetentionDays" in template_text()
    assert int(retention_days) > longest_life_days + 1


def test_without_parameters_there_is_no_stream(emulator, data_plane):
    other = create_data_plane(emulator.client, f"{data_plane.name}-bare", {})
    assert set(other.environment) == (VARIABLES | ARNS) - {"RESULT_STREAM", "RESULT_STREAM_ARN"}


def test_stream_stores_records_and_topic_reaches_queue(emulator, data_plane):
    sqs, sns = emulator.client("sqs"), emulator.client("sns")
    emulator.client("kinesis").put_record(StreamName=data_plane.result_stream, PartitionKey="a", Data=b"{}")
    queue = sqs.create_queue(QueueName=f"{data_plane.name}-watch")["QueueUrl"]
    arn = queue_attributes(emulator, queue)["QueueArn"]
    sns.subscribe(TopicArn=data_plane.image_status_topic, Protocol="sqs", Endpoint=arn)
    sns.publish(TopicArn=data_plane.image_status_topic, Message="hello")
    [message] = sqs.receive_message(QueueUrl=queue, WaitTimeSeconds=5)["Messages"]
    assert json.loads(message["Body"])["Message"] == "hello"


def test_two_data_planes_share_no_resource(emulator, data_plane):
    other = create_data_plane(emulator.client, f"{data_plane.name}-twin")
    assert not set(other.environment.values()) & set(data_plane.environment.values())


def test_bucket_has_requested_name(emulator, data_plane):
    named = create_data_plane(emulator.client, f"{data_plane.name}-named", {"ResultBucketName": "harbour-results"})
    assert named.result_bucket == "harbour-results"


def test_resource_that_cannot_be_made_is_named(emulator, data_plane):
    taken = {"ResultBucketName": data_plane.result_bucket}
    with pytest.raises(LocalStackError, match=r"ResultBucket: .*exists"):
        create_data_plane(emulator.client, f"{data_plane.name}-refused", taken)


def test_outputs_are_described_by_their_variables_and_exported():
    outputs = template_text().split("\nOutputs:\n")[1]
    pairs = re.findall(r"^  (\w+):\n(?:    Condition: \w+\n)?    Description: (\w+)$", outputs, flags=re.MULTILINE)
    assert {variable for _, variable in pairs} == VARIABLES | ARNS | {"KEY_ARN"}
    assert all(key == variable.replace("_", "") for key, variable in pairs)
    assert all(f'Export: {{Name: !Sub "${{AWS::StackName}}:{key}"}}' in outputs for key, _ in pairs)


def test_one_key_encrypts_all(emulator, data_plane):
    key = "arn:aws:kms:us-west-2:000000000000:key/1234abcd-12ab-34cd-56ef-1234567890ab"
    encrypted = create_data_plane(emulator.client, f"{data_plane.name}-key", LOCAL_PARAMETERS | {"KeyArn": key})
    environment = encrypted.environment
    assert environment["KEY_ARN"] == key
    for queue in ("IMAGE_QUEUE", "IMAGE_DLQ", "REGION_QUEUE", "REGION_DLQ"):
        assert queue_attributes(emulator, environment[queue])["KmsMasterKeyId"] == key
    # The emulator drops the keys of buckets, topics, tables and the stream.
    assert template_text().count("KMSMasterKeyID: !If [HasKey, !Ref KeyArn, !Ref AWS::NoValue]") == 2
    assert template_text().count("KmsMasterKeyId: !If [HasKey, !Ref KeyArn, alias/aws/sns]") == 2
    assert template_text().count("KMSMasterKeyId: !Ref KeyArn}") == 5
    assert "KeyId: !If [HasKey, !Ref KeyArn, alias/aws/kinesis]" in template_text()


def test_queues_and_topics_refuse_transport_without_encryption(emulator, data_plane):
    for queue in ("IMAGE_QUEUE", "IMAGE_DLQ", "REGION_QUEUE", "REGION_DLQ"):
        (statement,) = json.loads(queue_attributes(emulator, data_plane.environment[queue])["Policy"])["Statement"]
        assert (statement["Effect"], statement["Action"]) == ("Deny", "sqs:*")
        assert statement["Condition"] == {"Bool": {"aws:SecureTransport": "false"}}
        assert data_plane.environment[f"{queue}_ARN"] in statement["Resource"]
    for topic in ("IMAGE_STATUS_TOPIC", "REGION_STATUS_TOPIC"):
        attributes = emulator.client("sns").get_topic_attributes(TopicArn=data_plane.environment[topic])["Attributes"]
        (statement,) = json.loads(attributes["Policy"])["Statement"]
        assert (statement["Effect"], statement["Action"]) == ("Deny", "sns:Publish")
