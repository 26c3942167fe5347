"""boto3 clients: one per service and role, and credentials of a role that renew themselves."""

import datetime
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from typing import Any

import boto3
import pytest
from botocore.awsrequest import AWSResponse
from botocore.exceptions import ClientError, ResponseStreamingError

from aws.osml.model_runner.aws.clients import AwsClients, client_config, default_clients
from aws.osml.model_runner.common.credentials_utils import get_credentials_for_assumed_role
from aws.osml.model_runner.exceptions import InvalidAssumedRoleException
from aws_faults import Raw, answering, query_error

ROLE = "arn:aws:iam::123456789012:role/images"
OTHER_ROLE = "arn:aws:iam::123456789012:role/results"


@pytest.fixture
def clients(emulator, monkeypatch) -> Iterator[AwsClients]:
    for name, value in emulator.environment.items():
        monkeypatch.setenv(name, value)
    default_clients.cache_clear()
    yield AwsClients()
    default_clients.cache_clear()


class ShortLived:
    """STS that issues numbered credentials; each lives for the next number of seconds in ``lives_s``."""

    def __init__(self, sts: Any, *lives_s: float) -> None:
        self.issued = 0
        self.roles: list[str] = []
        self._lives_s = list(lives_s)
        sts.meta.events.register_first("before-call.sts.AssumeRole", self._note_role)
        sts.meta.events.register_first("before-send.sts.AssumeRole", self._answer)

    def _note_role(self, params: dict[str, Any], **_: Any) -> None:
        self.roles.append(params["body"]["RoleArn"])

    def _answer(self, request: Any, **_: Any) -> AWSResponse:
        self.issued += 1
        life_s = self._lives_s.pop(0) if len(self._lives_s) > 1 else self._lives_s[0]
        until = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=life_s)
        body = f"""<AssumeRoleResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/"><AssumeRoleResult><Credentials>
            <AccessKeyId>ASIA{self.issued:016}</AccessKeyId><SecretAccessKey>secret-{self.issued}</SecretAccessKey>
            <SessionToken>token-{self.issued}</SessionToken><Expiration>{until:%Y-%m-%dT%H:%M:%SZ}</Expiration>
            </Credentials></AssumeRoleResult></AssumeRoleResponse>"""
        return AWSResponse(request.url, 200, {"Content-Type": "text/xml"}, Raw(body.encode()))


def signing_key(client: Any) -> str:
    """Return the access key that the client's next call is signed with."""
    seen: list[str] = []

    def look(request: Any, **_: Any) -> None:
        authorization = request.headers["Authorization"]
        text = authorization.decode() if isinstance(authorization, bytes) else authorization
        seen.append(text.split("Credential=")[1].split("/")[0])

    client.meta.events.register_first("before-send.sqs.ListQueues", look)
    client.list_queues()
    client.meta.events.unregister("before-send.sqs.ListQueues", look)
    return seen[0]


def test_one_client_per_service_and_role(clients):
    assert clients.client("sqs") is clients.client("sqs")
    assert clients.client("sqs", "") is clients.client("sqs")
    assert clients.client("sqs", ROLE) is clients.client("sqs", ROLE)
    made = {id(clients.client(*key)) for key in (("sqs",), ("sns",), ("sqs", ROLE), ("sqs", OTHER_ROLE))}
    assert len(made) == 4
    assert clients.dynamodb_resource() is clients.dynamodb_resource()


def test_threads_get_same_client_when_they_request_it_at_once(clients):
    with ThreadPoolExecutor(16) as pool:
        made = list(pool.map(lambda _: clients.client("sqs", ROLE), range(32)))
    assert len({id(client) for client in made}) == 1


def test_clients_reach_service_and_resource_converts_types(clients, data_plane):
    assert data_plane.image_queue in clients.client("sqs").list_queues()["QueueUrls"]
    table = data_plane.environment["ENDPOINT_TABLE"]
    clients.dynamodb_resource().Table(table).put_item(Item={"endpoint": "ships", "max_regions": 1})
    answer = clients.dynamodb_resource().meta.client.get_item(TableName=table, Key={"endpoint": "ships"})
    assert answer["Item"] == {"endpoint": "ships", "max_regions": 1}


def test_rows_equal_those_of_boto3_page_by_page(clients, data_plane, emulator):
    table = data_plane.environment["FEATURE_TABLE"]
    every_type = {
        "text": 'a "quote", \\ and \u00e9',
        "number": Decimal("-1.50"),
        "large": 10**20,
        "flag": False,
        "nothing": None,
        "bytes": b"\x00\xff",
        "list": ["x", Decimal(1), [b"y"], {}],
        "map": {"inner": {"deep": [True, None]}},
        "texts": {"a", "b"},
        "numbers": {Decimal(1), Decimal("2.5")},
        "blobs": {b"a", b"\xfe"},
    }
    rows = [every_type | {"hash_key": "every-type", "range_key": f"{number:03d}"} for number in range(5)]
    ours = clients.dynamodb_resource()
    for row in rows:
        ours.Table(table).put_item(Item=row)
    boto3s = boto3.resource("dynamodb", endpoint_url=emulator.url)
    query = {
        "KeyConditionExpression": "hash_key = :key",
        "ExpressionAttributeValues": {":key": "every-type"},
        "Limit": 3,
    }
    answers = []
    for resource in (ours, boto3s):
        first = resource.Table(table).query(**query)
        second = resource.Table(table).query(**query, ExclusiveStartKey=first["LastEvaluatedKey"])
        assert "LastEvaluatedKey" not in second
        answers.append([(page["Count"], page["Items"]) for page in (first, second)])
        keys = [{"hash_key": row["hash_key"], "range_key": row["range_key"]} for row in rows]
        by_key = resource.meta.client.batch_get_item(RequestItems={table: {"Keys": keys}})
        assert not by_key["UnprocessedKeys"]
        assert sorted(by_key["Responses"][table], key=lambda row: row["range_key"]) == rows
        one = {"TableName": table, "Key": keys[0]}
        assert resource.meta.client.get_item(**one)["Item"] == rows[0]
        nobody = {"hash_key": "nobody", "range_key": "none"}
        assert "Item" not in resource.meta.client.get_item(TableName=table, Key=nobody)
        update = {"UpdateExpression": "SET flag = :flag", "ExpressionAttributeValues": {":flag": False}}
        assert resource.meta.client.update_item(**one, **update, ReturnValues="ALL_NEW")["Attributes"] == rows[0]
        assert "Attributes" not in resource.meta.client.update_item(**one, **update)
    assert answers[0] == answers[1]
    assert [row for _, page in answers[0] for row in page] == rows
    assert repr(answers[0][0][1][0]["bytes"]) == repr(answers[1][0][1][0]["bytes"])
    assert ours.Table(table).query(**query | {"Select": "COUNT", "Limit": 5})["Count"] == 5


def test_client_raises_as_botocore_when_response_is_not_rows(clients, data_plane):
    query = {"KeyConditionExpression": "hash_key = :key", "ExpressionAttributeValues": {":key": "a"}}
    api = clients.dynamodb_resource().meta.client
    with pytest.raises(api.exceptions.ResourceNotFoundException):
        api.query(TableName="no-such-table", **query)
    torn = answering(api, "Query", (200, {"Content-Type": "application/x-amz-json-1.0"}, b'{"Items": ['))
    with torn, pytest.raises(ResponseStreamingError):
        api.query(TableName=data_plane.environment["FEATURE_TABLE"], **query)


def test_region_may_be_named(emulator, monkeypatch):
    for name, value in emulator.environment.items():
        monkeypatch.setenv(name, value)
    assert AwsClients(region="eu-central-1").client("sqs").meta.region_name == "eu-central-1"
    assert AwsClients().client("sqs").meta.region_name == "us-west-2"


@pytest.mark.parametrize(
    ("service", "sends", "read_timeout_s"),
    [("sagemaker-runtime", 1, 70), ("dynamodb", 4, 20), ("sqs", 4, 30), ("s3", 5, 20)],
)
def test_how_often_and_how_long_by_service(service, sends, read_timeout_s):
    config = client_config(service, 7)
    assert config.retries == {"mode": "standard", "total_max_attempts": sends}
    assert (config.connect_timeout, config.read_timeout, config.max_pool_connections) == (5, read_timeout_s, 7)


def test_calls_that_come_again_soon_are_sent_once_and_hang_for_seconds(clients, data_plane):
    for client in (clients.hurried_sqs(), clients.dynamodb_resource(is_hurried=True).meta.client):
        config = client.meta.config
        assert config.retries["total_max_attempts"] == 1
        assert config.connect_timeout + config.read_timeout < 10
    assert clients.hurried_sqs() is clients.hurried_sqs()
    assert clients.dynamodb_resource(is_hurried=True) is not clients.dynamodb_resource()
    assert clients.hurried_sqs().list_queues()


def test_workers_own_credentials(clients):
    keys = clients.credentials().get_frozen_credentials()
    assert (keys.access_key, keys.secret_key) == ("local", "local")


def test_role_is_assumed_once_while_its_credentials_are_valid(clients):
    sts = ShortLived(clients.client("sts"), 3600)
    client = clients.client("sqs", ROLE)
    credentials = clients.credentials(ROLE)
    assert sts.issued == 0
    assert signing_key(client) == "ASIA0000000000000001"
    assert signing_key(client) == "ASIA0000000000000001"
    assert credentials.get_frozen_credentials().token == "token-1"
    assert sts.issued == 1
    assert sts.roles == [ROLE]
    assert signing_key(clients.client("sqs")) == "local"


def test_credentials_of_role_are_renewed_before_they_expire(clients):
    # botocore renews what ends within ten minutes or so, and must not use what ends within five.
    sts = ShortLived(clients.client("sts"), 60, 60, 3600)
    client = clients.client("sqs", ROLE)
    keys = [signing_key(client) for _ in range(4)]
    assert keys == [f"ASIA{number:016}" for number in (1, 2, 3, 3)]
    assert clients.credentials(ROLE).get_frozen_credentials().secret_key == "secret-3"
    assert sts.issued == 3


def test_threads_renew_role_once(clients):
    sts = ShortLived(clients.client("sts"), 3600)
    credentials = clients.credentials(ROLE)
    with ThreadPoolExecutor(8) as pool:
        tokens = set(pool.map(lambda _: credentials.get_frozen_credentials().token, range(16)))
    assert tokens == {"token-1"}
    assert sts.issued == 1


def test_roles_are_kept_apart(clients):
    sts = ShortLived(clients.client("sts"), 3600)
    assert clients.credentials(ROLE).get_frozen_credentials().token == "token-1"
    assert clients.credentials(OTHER_ROLE).get_frozen_credentials().token == "token-2"
    assert sts.roles == [ROLE, OTHER_ROLE]


def test_role_that_may_not_be_assumed_is_error_of_call(clients):
    client = clients.client("sqs", ROLE)
    refusal = answering(clients.client("sts"), "AssumeRole", query_error("AccessDenied", 403))
    with refusal, pytest.raises(ClientError, match="AccessDenied"):
        client.list_queues()
    assert client.list_queues()["ResponseMetadata"]["HTTPStatusCode"] == 200


def test_default_clients_are_shared_when_constructor_gets_none(clients):
    assert default_clients() is default_clients()


def test_assumed_credentials_as_mapping(clients):
    credentials = get_credentials_for_assumed_role(ROLE)
    assert set(credentials) == {"AccessKeyId", "SecretAccessKey", "SessionToken"}
    assert all(credentials.values())


def test_client_raises_when_sts_refuses_role(clients):
    refusal = query_error("AccessDenied", 403)
    with answering(default_clients().client("sts"), "AssumeRole", refusal), pytest.raises(InvalidAssumedRoleException):
        get_credentials_for_assumed_role(ROLE)
