"""Parameters of a request that reach a model, and their names there."""

import re

import pytest
import structlog.testing
from hypothesis import given
from hypothesis import strategies as st

from aws.osml.model_runner.inference.detector import content_type_of
from aws.osml.model_runner.inference.sagemaker_parameters import (
    INVOKE_PARAMETERS,
    header_of_parameter,
    header_parameters,
    invoke_parameters,
)

FORBIDDEN = {
    "authorization", "connection", "content-length", "cookie", "host", "keep-alive", "proxy-authorization",
    "te", "trailer", "transfer-encoding", "upgrade", "x-amz-security-token", "x-forwarded-for",
}  # fmt: skip


def test_invoke_endpoint_gets_known_parameters_only() -> None:
    given_parameters = {"TargetVariant": "blue", "Body": "x", "EndpointName": "other", "Accept": None, "SessionId": 7}
    assert invoke_parameters(given_parameters, "a") == {"TargetVariant": "blue", "SessionId": "7"}


def test_no_parameters_are_no_arguments() -> None:
    assert invoke_parameters(None, "a") == {} == header_parameters(None, "a")


def test_all_ten_parameters_of_version_three_pass() -> None:
    parameters = dict.fromkeys(INVOKE_PARAMETERS, "x")
    assert len(parameters) == 10
    assert invoke_parameters(parameters, "a") == parameters


def test_dropped_parameters_are_logged_once_per_endpoint() -> None:
    with structlog.testing.capture_logs() as logs:
        for _ in range(5):
            invoke_parameters({"Odd": "1", "Even": "2"}, "endpoint-that-warns")
    assert [(entry["event"], entry["names"]) for entry in logs] == [("model.parameters_dropped", ["Even", "Odd"])]


@pytest.mark.parametrize(
    ("name", "header"),
    [
        ("CustomAttributes", "X-Amzn-SageMaker-Custom-Attributes"),
        ("ContentType", "Content-Type"),
        ("X-Api-Key", "X-Api-Key"),
        ("Accept", "Accept"),
        ("TargetModel", "TargetModel"),
        ("bad name", None),
        ("bad:name", None),
        ("", None),
        ("X-HTTP-Method-Override", None),
        ("X-Original-URL", None),
        ("X-Rewrite-URL", None),
        ("X-Real-IP", None),
        ("Range", None),
        ("If-Match", None),
        *[(name, None) for name in sorted(FORBIDDEN)],
    ],
)
def test_headers_of_parameters(name: str, header: str | None) -> None:
    assert header_of_parameter(name, "value") == header


@pytest.mark.parametrize("name", sorted(FORBIDDEN))
def test_letter_case_opens_no_way_to_forbidden_header(name: str) -> None:
    assert header_of_parameter(name.upper(), "value") is header_of_parameter(name.title(), "value") is None


@pytest.mark.parametrize("value", ["a\r\nHost: evil", "a\nb", "a\x00b", "a\x7fb", "snow ☃", "x" * 9000])
def test_values_that_no_header_holds_are_dropped(value: str) -> None:
    assert header_parameters({"X-Thing": value}, "a") == {}
    assert invoke_parameters({"CustomAttributes": value}, "a") == {}


@given(
    st.dictionaries(
        st.text(max_size=30) | st.sampled_from(sorted(FORBIDDEN)).map(str.title),
        st.text(max_size=40) | st.integers() | st.none(),
        max_size=8,
    )
)
def test_only_safe_headers_are_sent(parameters: dict[str, object]) -> None:
    for name, value in header_parameters(parameters, "property").items():
        assert name.lower() not in FORBIDDEN
        assert re.fullmatch(r"[!-9;-~]+", name)
        assert "\r" not in value
        assert "\n" not in value
        value.encode("latin-1")


@pytest.mark.parametrize(
    ("tile_format", "content_type"),
    [("NITF", "image/nitf"), ("GTIFF", "image/tiff"), ("PNG", "image/png"), ("JPEG", "image/jpeg"), (None, None)],
)
def test_media_types_of_tiles(tile_format: str | None, content_type: str | None) -> None:
    assert content_type_of(tile_format) == content_type
