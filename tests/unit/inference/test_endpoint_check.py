"""Endpoints as their descriptions, names and ports show them."""

import socket
from collections.abc import Callable
from typing import Any

import pytest

from aws.osml.model_runner.api.inference import MAX_SERVERLESS_BODY_BYTES
from aws.osml.model_runner.exceptions import ModelCallError, ModelErrorClass
from aws.osml.model_runner.inference.endpoint_address import parse_endpoint_address
from aws.osml.model_runner.inference.endpoint_check import (
    Finding,
    check_http,
    check_sagemaker,
    endpoint_finding,
)

URL = "http://models.example:8080/invocations?token=secret"
ADDRESS = parse_endpoint_address(URL)
SERVERLESS = {"VariantName": "cheap", "CurrentServerlessConfig": {"MaxConcurrency": 5, "MemorySizeInMB": 2048}}
INSTANCES = {"VariantName": "fast", "CurrentInstanceCount": 2}


@pytest.mark.parametrize(
    ("state", "is_refused"),
    [
        ("InService", False),
        ("Updating", False),
        ("SystemUpdating", False),
        ("RollingBack", False),
        ("UpdateRollbackFailed", False),
        ("Creating", False),
        ("OutOfService", True),
        ("Failed", True),
        ("Deleting", True),
    ],
)
def test_endpoint_is_refused_only_when_it_will_not_be_in_service(state: str, is_refused: bool) -> None:
    finding = endpoint_finding({"EndpointStatus": state}, "ships", {})
    assert [problem.field for problem in finding.problems] == ["imageProcessor.name"] * is_refused
    assert all(state in problem.expectation for problem in finding.problems)


@pytest.mark.parametrize(
    ("variants", "parameters", "limit"),
    [
        ([INSTANCES], {}, None),
        ([SERVERLESS], {}, MAX_SERVERLESS_BODY_BYTES),
        ([INSTANCES, SERVERLESS], {}, MAX_SERVERLESS_BODY_BYTES),
        ([INSTANCES, SERVERLESS], {"TargetVariant": "fast"}, None),
        ([INSTANCES, SERVERLESS], {"TargetVariant": "cheap"}, MAX_SERVERLESS_BODY_BYTES),
        ([], {"InferenceComponentName": "one"}, None),
    ],
)
def test_longest_tile_is_that_of_variants_that_are_called(
    variants: list[dict[str, Any]], parameters: dict[str, str], limit: int | None
) -> None:
    finding = endpoint_finding({"ProductionVariants": variants}, "ships", parameters)
    assert finding == Finding(max_body_bytes=limit)


class Components:
    """A control plane with one endpoint, and a component as it is described."""

    def __init__(self, **description: str) -> None:
        self._description = description

    def __call__(self, kind: str, name: str, role: str, is_new: bool = False) -> dict[str, Any]:
        return {"EndpointStatus": "InService"} if kind == "endpoint" else self._description


@pytest.mark.parametrize(
    ("description", "reason"),
    [
        ({"InferenceComponentStatus": "InService", "EndpointName": "ships"}, None),
        ({"InferenceComponentStatus": "Creating", "EndpointName": "ships"}, None),
        ({"InferenceComponentStatus": "Failed", "EndpointName": "ships"}, "a component in service (it is Failed)"),
        ({"EndpointName": "planes"}, "a component of the endpoint (it is one of planes)"),
    ],
)
def test_component_is_one_of_its_endpoint_and_in_service(description: dict[str, str], reason: str | None) -> None:
    finding = check_sagemaker(Components(**description), "ships", "", {"InferenceComponentName": "one"})
    assert [problem.expectation for problem in finding.problems] == ([reason] if reason else [])


def test_only_new_description_refuses_request() -> None:
    looked_up: list[bool] = []

    def describe(_kind: str, _name: str, _role: str, is_new: bool = False) -> dict[str, Any]:
        looked_up.append(is_new)
        return {"EndpointStatus": "InService" if is_new else "OutOfService"}

    assert check_sagemaker(describe, "ships", "", {}) == Finding()
    assert looked_up == [False, True]


def answering(*errors: BaseException | None) -> Callable[..., socket.socket]:
    """Return what connects: an error each time, or none."""
    left = list(errors)

    def connect(*_: Any, **__: Any) -> socket.socket:
        error = left.pop(0)
        if error is not None:
            raise error
        return socket.socket()

    return connect


def two(*_: Any) -> list[str]:
    return ["192.0.2.1", "192.0.2.2"]


def raising(error: BaseException) -> Callable[[str, int], list[str]]:
    def resolve(*_: Any) -> list[str]:
        raise error

    return resolve


def test_one_address_that_accepts_connection_is_enough() -> None:
    assert check_http(ADDRESS, URL, two, answering(ConnectionRefusedError(), None)) == Finding()


def test_check_passes_when_connection_is_refused() -> None:
    finding = check_http(ADDRESS, URL, two, answering(ConnectionRefusedError(), ConnectionRefusedError()))
    assert (finding.problems, finding.is_good) == ((), False)
    assert str(finding.absent) == (
        'imageProcessor.name="http://models.example:8080/invocations":'
        " an address at which a model is served (connection refused)"
    )


@pytest.mark.parametrize("error", [TimeoutError(), OSError(113, "No route to host")])
def test_check_is_undecided_when_address_does_not_respond(error: OSError) -> None:
    with pytest.raises(type(error)):
        check_http(ADDRESS, URL, two, answering(ConnectionRefusedError(), error))


def test_unknown_host_is_problem_unless_lookup_fails() -> None:
    finding = check_http(ADDRESS, URL, raising(socket.gaierror(socket.EAI_NONAME, "unknown")))
    assert [problem.expectation for problem in finding.problems] == ["a host whose name can be resolved"]
    with pytest.raises(socket.gaierror):
        check_http(ADDRESS, URL, raising(socket.gaierror(socket.EAI_AGAIN, "later")))


def test_name_that_leads_to_instance_metadata_is_problem() -> None:
    error = ModelCallError("resolves to a link-local address", ModelErrorClass.JOB, "BAD_ENDPOINT")
    (problem,) = check_http(ADDRESS, URL, raising(error)).problems
    assert problem.expectation == "resolves to a link-local address"
