"""Credentials of HTTP models: the right header to the right host, over the right connection, and nowhere else."""

import json

import boto3
import pytest
import structlog

from aws.osml.model_runner.aws.secret_values import HostCredential, SecretValues
from aws.osml.model_runner.config import ServiceConfig
from aws.osml.model_runner.exceptions import ConfigurationError, ModelCallError, UnsupportedModelException
from aws.osml.model_runner.inference.endpoint_address import parse_endpoint_address
from aws.osml.model_runner.inference.http_detector import HTTPDetector
from aws.osml.model_runner.inference.model_credentials import ModelCredentials
from aws.osml.model_runner.local.stack.emulator import Emulator
from detection_servers import Reply, serving
from worker_in_process import Clock

CANARY = "canary-7f3a9c1e5b2d4806"
ENTRY = {"host": "127.0.0.1", "header": "Authorization", "prefix": "Bearer ", "value": {"env": "MODEL_KEY"}}


def credentials(environment, *entries, client=None, clock=None):
    parsed = [HostCredential.model_validate(entry) for entry in entries or (ENTRY,)]
    return ModelCredentials(parsed, SecretValues(client or boto3.client, environment, clock or Clock()))


class Guarded:
    """A model that takes one key, and remembers the headers of each call."""

    def __init__(self, key, header="authorization"):
        self.key, self.header, self.seen = key, header, []

    def __call__(self, _body, headers):
        self.seen.append(headers.get(self.header))
        if self.seen[-1] != self.key:
            return Reply(b"no", {}, 401)
        return b'{"features": []}'


def call(url, owned, **options):
    detector = HTTPDetector(url, tile_format="PNG", credentials=owned, **options)
    try:
        return detector.invoke(b"tile")
    finally:
        detector.close()


def test_header_of_host_is_sent_and_replaces_parameter_of_request():
    model = Guarded(f"Bearer {CANARY}")
    with serving(model) as url:
        assert call(url, credentials({"MODEL_KEY": CANARY + "\n"})) == b'{"features": []}'
    keyed = Guarded(CANARY, "x-api-key")
    entry = {"host": "127.0.0.1", "header": "X-Api-Key", "value": {"env": "MODEL_KEY"}}
    with serving(keyed) as url:
        call(url, credentials({"MODEL_KEY": CANARY}, entry), parameters={"x-api-key": "of the request"})
    assert keyed.seen == [CANARY]


def test_other_host_gets_no_header():
    model = Guarded(None)
    with serving(model) as url:
        for host in ("127.0.0.2", "127.0.0.1:1", "*.127.0.0.1", "example.com"):
            call(url, credentials({"MODEL_KEY": CANARY}, ENTRY | {"host": host}))
        call(url, None)
    assert model.seen == [None] * 5


def test_value_is_fetched_lazily_once_and_again_after_refusal():
    environment, clock = {"MODEL_KEY": "old"}, Clock()
    owned = credentials(environment, clock=clock)
    model = Guarded("Bearer old")
    with serving(model) as url:
        call(url, owned)
        environment["MODEL_KEY"] = "new"
        call(url, owned)
        assert model.seen == ["Bearer old"] * 2
        model.key = "Bearer new"
        call(url, owned)
        assert model.seen[2:] == ["Bearer old", "Bearer new"]
        model.key = "Bearer newest"
        for calls in (1, 1):
            # The value is the same, so the call is not repeated, and the value is not fetched for a while.
            environment["MODEL_KEY"] = "newest"
            before = len(model.seen)
            with pytest.raises(ModelCallError) as caught:
                call(url, owned)
            assert (caught.value.code, len(model.seen) - before) == ("MODEL_4XX", calls)
        clock.ahead_s += 31
        call(url, owned)
        assert model.seen[-1] == "Bearer newest"


def test_redirect_is_not_followed_with_header():
    other = Guarded(f"Bearer {CANARY}")
    with (
        serving(other) as target,
        serving(lambda _body, _headers: Reply(b"", {"Location": target}, 307)) as url,
        pytest.raises(ModelCallError, match="status 307"),
    ):
        call(url, credentials({"MODEL_KEY": CANARY}))
    assert other.seen == []


@pytest.mark.parametrize("url", ["http://api.example.com/v1", "http://10.0.0.7/v1", "http://api.example.com:443/v1"])
def test_host_without_tls_is_refused_before_value_is_fetched(url):
    entries = [ENTRY | {"host": "api.example.com"}, ENTRY | {"host": "10.0.0.7"}]
    owned = credentials({}, *entries)
    with pytest.raises(UnsupportedModelException, match="https://"):
        owned.covering(parse_endpoint_address(url))
    with pytest.raises(ModelCallError) as caught:
        call(url, owned)
    assert caught.value.code == "BAD_ENDPOINT"
    assert owned.covering(parse_endpoint_address(url.replace("http://", "https://"))) is not None


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]", "127.1"])
def test_loopback_needs_no_tls(host):
    owned = credentials({}, ENTRY | {"host": host})
    assert owned.covering(parse_endpoint_address(f"http://{host}:8080/v1")) is not None


@pytest.fixture(scope="module")
def secret_services(tmp_path_factory):
    with Emulator(tmp_path_factory.mktemp("secrets"), services="secretsmanager,ssm") as running:
        yield running


def test_values_come_from_services(secret_services):
    emulator = secret_services
    secrets, parameters = emulator.client("secretsmanager"), emulator.client("ssm")
    arn = secrets.create_secret(Name="model-key", SecretString=f"{CANARY}-1")["ARN"]
    parameters.put_parameter(Name="/models/key", Value=f"{CANARY}-2", Type="SecureString")
    for place, key in (({"secretsmanager": arn}, f"{CANARY}-1"), ({"ssm": "/models/key"}, f"{CANARY}-2")):
        model = Guarded(f"Bearer {key}")
        with serving(model) as url:
            call(url, credentials({}, ENTRY | {"value": place}, client=emulator.client))
    for place in ({"secretsmanager": "missing"}, {"ssm": "/missing"}):
        with serving(Guarded("")) as url, pytest.raises(ModelCallError) as caught:
            call(url, credentials({}, ENTRY | {"value": place}, client=emulator.client))
        assert (caught.value.code, str(caught.value.error_class)) == ("CREDENTIALS", "JOB")
        assert "cannot be read: " in str(caught.value)


@pytest.mark.parametrize("value", ["", "  ", f"{CANARY}\r\nX-Other: y", f"{CANARY}ü", CANARY * 1_000])
def test_value_that_no_header_can_hold_is_refused_and_not_shown(value):
    with structlog.testing.capture_logs() as logs, serving(Guarded("")) as url, pytest.raises(ModelCallError) as caught:
        call(url, credentials({"MODEL_KEY": value}))
    assert "env MODEL_KEY is not a text" in str(caught.value)
    assert CANARY not in f"{caught.value!r} {caught.value.__cause__!r} {logs}"


def config(text, **settings):
    needed = {"AWS_DEFAULT_REGION": "us-west-2", "JOB_TABLE": "jobs"}
    return ServiceConfig.for_command({**needed, "MODEL_CREDENTIALS": text, **settings}, ("job_table",))


def test_setting_is_json_or_path_of_file(tmp_path):
    path = tmp_path / "credentials.json"
    path.write_text(json.dumps([ENTRY]))
    expected = (HostCredential.model_validate(ENTRY),)
    assert config(json.dumps([ENTRY])).model_credentials == config(str(path)).model_credentials == expected
    assert config("").model_credentials == ()


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("/missing/file.json", "a JSON list, or the path of a file that holds one"),
        ("[", "a JSON list of host, header, value and prefix"),
        ('[{"host": "a"}]', "header: Field required"),
        (json.dumps([ENTRY | {"host": "https://a/b"}]), "host: Value error, expected a host"),
        (json.dumps([ENTRY | {"header": "Host"}]), "header: Value error, expected the name of a header"),
        (json.dumps([ENTRY | {"value": CANARY}]), "value: "),
        (json.dumps([ENTRY | {"value": {}}]), "exactly one of secretsmanager, ssm and env"),
        (json.dumps([ENTRY | {"value": {"env": "A", "ssm": "b"}}]), "exactly one of secretsmanager, ssm and env"),
        (json.dumps([ENTRY | {"value": {"text": CANARY}}]), "Extra inputs are not permitted"),
        (json.dumps([ENTRY | {"prefix": "a\r\nb"}]), "prefix: "),
    ],
)
def test_setting_that_is_not_valid_is_refused_without_its_content(text, reason):
    with pytest.raises(ConfigurationError) as caught:
        config(text)
    assert reason in str(caught.value)
    assert CANARY not in str(caught.value)
