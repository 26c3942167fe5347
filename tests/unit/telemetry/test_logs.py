import io
import json
import logging
import os
import pty
import threading

import pytest
import structlog

from aws.osml.model_runner.telemetry.logs import bind_job, carrying_context, configure_logging
from aws.osml.model_runner.telemetry.redaction import REDACTED, is_secret_name, redact, redact_text, redacted_beginning


@pytest.fixture
def logged():
    """Configure logging to a buffer, hand out a function that reads it, and put everything back."""
    root = logging.getLogger()
    before = root.handlers[:], root.level, {name: logging.getLogger(name).level for name in ("boto3", "botocore")}
    stream = io.StringIO()

    def start(level="INFO", stream=stream):
        configure_logging(level, stream)
        return lambda: [json.loads(line) for line in stream.getvalue().splitlines()]

    yield start
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()
    root.handlers[:], level, levels = before
    root.setLevel(level)
    for name, value in levels.items():
        logging.getLogger(name).setLevel(value)


def test_event_is_one_json_line_with_its_fields(logged):
    events = logged()
    structlog.get_logger("rooms.tiles").info("tile.failed", code="MODEL_5XX", row=5)
    (event,) = events()
    assert event["event"] == "tile.failed"
    assert event["level"] == "info"
    assert event["logger"] == "rooms.tiles"
    assert (event["code"], event["row"]) == ("MODEL_5XX", 5)
    assert event["timestamp"].endswith("Z")


def test_job_is_bound_within_its_block(logged):
    events = logged()
    logger = structlog.get_logger("x")
    with bind_job("job-1", image_id="job-1:s3://b/k"):
        with bind_job(region_id="(0, 0)(1, 1)-job-1", attempt=2):
            logger.info("inner")
        logger.info("outer")
    logger.info("outside")
    inner, outer, outside = events()
    assert (inner["job_id"], inner["region_id"], inner["attempt"]) == ("job-1", "(0, 0)(1, 1)-job-1", 2)
    assert outer["image_id"] == "job-1:s3://b/k"
    assert "region_id" not in outer
    assert "job_id" not in outside


def test_threads_carry_job_when_context_is_copied(logged):
    events = logged()

    def work(name, *, mark):
        structlog.get_logger("x").info(name, mark=mark)

    with bind_job("job-1"):
        threads = [
            threading.Thread(target=carrying_context(work), args=("carried",), kwargs={"mark": 1}),
            threading.Thread(target=work, args=("bare",), kwargs={"mark": 2}),
        ]
    for thread in threads:
        thread.start()
        thread.join()
    carried, bare = events()
    assert (carried["job_id"], carried["mark"]) == ("job-1", 1)
    assert "job_id" not in bare


def test_other_libraries_log_through_same_formatter(logged):
    events = logged("DEBUG")
    with bind_job("job-1"):
        logging.getLogger("aws.osml.photogrammetry").warning("no %s model", "RPC", extra={"path": "/data/a"})
    logging.getLogger("botocore.endpoint").debug("request body: canary")
    logging.getLogger("botocore.credentials").info("found")
    logging.getLogger("botocore.credentials").warning("found")
    logging.getLogger("mine").debug("seen")
    first, second, third = events()
    assert (first["event"], first["level"], first["job_id"]) == ("no RPC model", "warning", "job-1")
    assert first["path"] == "/data/a"
    assert second["logger"] == "botocore.credentials"
    assert third["level"] == "debug"


def test_events_below_level_are_left_out(logged):
    events = logged("WARNING")
    structlog.get_logger("x").info("quiet")
    logging.getLogger("boto3").info("quiet")
    structlog.get_logger("x").warning("loud")
    assert [event["event"] for event in events()] == ["loud"]


def test_control_characters_never_reach_terminal(logged):
    events = logged()
    text = "a\nb\r\x1b[31m\x00\x85\u2028\u202e\ud800"
    structlog.get_logger("x").info("forged", text=text)
    handler = logging.getLogger().handlers[0]
    line = handler.stream.getvalue().removesuffix("\n")
    assert line.isascii()
    assert line.isprintable()
    assert events()[0]["text"] == text


def test_values_that_json_has_not_are_written_as_text(logged):
    events = logged()
    structlog.get_logger("x").info("odd", number=float("nan"), nested=[{1: float("inf")}], thing={1}, other=object)
    (event,) = events()
    assert event["number"] == "nan"
    assert event["nested"] == [{"1": "inf"}]
    assert event["thing"] == [1]
    assert "object" in event["other"]


def fail(message):
    try:
        raise OSError(message)
    except OSError as err:
        raise ValueError("outer") from err


def test_exception_becomes_fields(logged):
    events = logged()
    logger = structlog.get_logger("x")
    try:
        fail("inner SecretAccessKey=canary")
    except ValueError as err:
        logger.exception("work.failed")
        logger.error("work.failed", exc_info=err)
        logging.getLogger("y").exception("work failed")
    for event in events():
        assert event["error_type"] == "ValueError"
        assert event["error_message"] == "outer"
        assert "OSError: inner" in event["error_stack"]
        assert "in fail" in event["error_stack"]
        assert "exc_info" not in event
        assert f"SecretAccessKey={REDACTED}" in event["error_stack"]


def test_no_exception_no_fields(logged):
    events = logged()
    structlog.get_logger("x").info("fine", exc_info=False)
    structlog.get_logger("x").info("fine", exc_info=(None, None, None))
    structlog.get_logger("x").info("fine", exc_info=True)
    assert not any(name.startswith("error_") for event in events() for name in event)


def test_long_errors_are_cut(logged):
    events = logged()
    structlog.get_logger("x").error("long", exc_info=ValueError("x" * 100_000))
    (event,) = events()
    assert len(event["error_message"]) <= 2_000
    assert len(event["error_stack"]) <= 16_000


def test_configuring_again_replaces_handler(logged, capsys):
    events = logged()
    configure_logging("INFO")
    structlog.get_logger("x").info("on standard output")
    assert events() == []
    assert json.loads(capsys.readouterr().out)["event"] == "on standard output"


PRESIGNED = (
    "https://b.s3.amazonaws.com/k?X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential=canary%2F20261121&X-Amz-Date=1"
    "&X-Amz-Security-Token=canary&X-Amz-Signature=canary"
)
LEAKS = [
    PRESIGNED,
    "https://b.s3.amazonaws.com/k?AWSAccessKeyId=canary&Signature=canary&Expires=1",
    "https://acct.blob.core.windows.net/k?sv=1&sig=canary",
    "Authorization: AWS4-HMAC-SHA256 Credential=canary/x, SignedHeaders=host, Signature=canary",
    "{'Authorization': 'Bearer canary'}",
    "AWS_SECRET_ACCESS_KEY=canary AWS_SESSION_TOKEN=canary",
    '{"AccessKeyId": "canary", "SecretAccessKey": "canary", "SessionToken": "canary"}',
    "{'aws_access_key_id': 'canary', 'aws_secret_access_key': 'canary'}",
    "<Credentials><SecretAccessKey>canary</SecretAccessKey><SessionToken>canary</SessionToken></Credentials>",
    "https://user:canary@host/path",
    "https://host/path?key=canary",
    "api_key=canary",
    "x-api-key: canary",
    '"apiKey": "canary"',
    "se=2026&sp=r&sig=canary",
    "AccountKey=canary",
    "Ocp-Apim-Subscription-Key: canary",
    "x-functions-key: canary",
    "private_key=canary",
    "pwd=canary",
    "passphrase: canary",
    '"api_key": ["canary"]',
    "access_token%3Dcanary",
    "Set-Cookie: session=canary; Path=/",
    "https://hooks.example.com/token/canary0123456789/predict",
    "https://hooks.example.com/services/canaryABCDEFGHIJKLMNOPQRSTUVWXYZ012345",
    "https://host/eyJhbGciOiJIUzI1NiJ9canary.eyJzdWIi.canary/predict",
    "git clone with ghp_canary0123456789abcdefghijk",
]


@pytest.mark.parametrize("text", LEAKS)
def test_credentials_are_taken_out_of_text(text):
    cleaned = redact_text(text)
    assert "canary" not in cleaned
    assert REDACTED in cleaned


@pytest.mark.parametrize("filler", ["", "x" * 300, "token=" + "y" * 400 + " "])
@pytest.mark.parametrize("secret", ["https://user:{}@host", "eyJhbGciOiJIUzI1NiJ9.{}"])
def test_text_that_is_cut_shows_no_part_of_secret(secret, filler):
    text = f"{filler} " + secret.format("canary" * 1_000)
    shown = redacted_beginning(text, 80)[:80]
    assert "canary" not in shown


@pytest.mark.parametrize("cut_at", range(40))
def test_key_that_is_cut_is_not_shown(cut_at):
    before = "token=" + "y" * (80 + 512 - 7 - cut_at) + " "
    assert "wJ" not in redacted_beginning(f"{before}wJalrXUtnFEMI/K7MDENG/bPxRfiCY1234567890 {before}", 80)


def test_cut_text_has_shown_length():
    assert redacted_beginning("x" * 30_000, 80).startswith("x" * 80)
    assert redacted_beginning("short", 80) == "short"


@pytest.mark.parametrize("key", ["AKIAIOSFODNN7EXAMPLE", "ASIAIOSFODNN7EXAMPLE"])
def test_access_key_ids_are_taken_out(key):
    assert key not in redact_text(f"The key {key} is unknown")


@pytest.mark.parametrize(
    "text",
    [
        "s3://images/scene.tif",
        "https://host/a#b",
        "is it there?",
        "sigma=0.1",
        "tile (0, 344)(512, 512)-job-1",
        "a: b",
        "s3://bucket/secrets/scene-20261121-0001.tif",
        "design=3",
        "s3://b/0123456789abcdef0123456789abcdef/Tile1/x.tif",
    ],
)
def test_other_text_is_unchanged(text):
    assert redact_text(text) == text


@pytest.mark.parametrize(
    "name",
    [
        "AccessKeyId",
        "SecretAccessKey",
        "SessionToken",
        "Authorization",
        "session_token",
        "aws_secret_access_key",
        "X-Amz-Signature",
        "X-Amz-Credential",
        "x-amz-security-token",
    ],
)
def test_credentials_are_taken_out_of_fields(logged, name):
    events = logged()
    structlog.get_logger("x").info("leak", **{name: "canary"}, nested={"list": [{name: ["canary"]}]}, url=PRESIGNED)
    assert is_secret_name(name)
    (event,) = events()
    assert "canary" not in json.dumps(event)
    assert event[name] == REDACTED


def test_original_is_not_changed_and_depth_is_limited():
    original = {"SessionToken": "canary", "kept": (1, "two")}
    assert redact(original) == {"SessionToken": REDACTED, "kept": [1, "two"]}
    assert original["SessionToken"] == "canary"
    deep = "canary"
    for _ in range(10_000):
        deep = [deep]
    assert "canary" not in str(redact(deep))
    assert "<list>" in str(redact(deep))


@pytest.fixture
def terminal():
    """A terminal: the end that a program writes to, and a function that reads what it shows."""
    master, slave = pty.openpty()
    with os.fdopen(slave, "w", buffering=1) as stream:
        yield stream, lambda: os.read(master, 65536).decode().replace("\r\n", "\n")
    os.close(master)


@pytest.mark.parametrize("is_plain", [True, False])
def test_terminal_gets_lines_for_people(logged, terminal, monkeypatch, is_plain):
    monkeypatch.setenv("NO_COLOR", "1" if is_plain else "")
    stream, shown = terminal
    logged(stream=stream)
    with bind_job("harbour-7"):
        structlog.get_logger("x").warning("tile.failed", code="MODEL_5XX", password="open sesame")
    (line,) = shown().splitlines()
    assert ("\x1b[" in line) is not is_plain
    if is_plain:
        assert line.split()[1:] == [
            "[warning]",
            "tile.failed",
            "code=MODEL_5XX",
            f"password={REDACTED}",
            "job_id=harbour-7",
        ]


def test_untrusted_text_does_not_change_terminal(logged, terminal, monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    stream, shown = terminal
    logged(stream=stream)
    hostile = "\x1b]0;title\x07\x1b[2J\n\u2028\x9b31m"
    try:
        raise ValueError(hostile)
    except ValueError:
        structlog.get_logger("x").exception("model.failed", reason=hostile, listed=[hostile])
    logging.getLogger("foreign").warning("%s", hostile)
    text = shown()
    assert not set(text) & {"\x1b", "\x07", "\u2028", "\x9b"}
    assert "    ValueError: " in text
