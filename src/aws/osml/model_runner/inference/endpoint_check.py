"""Checks an endpoint without a model call: whether it exists and is in service, and its maximum tile size."""

import dataclasses
import socket
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from botocore.exceptions import BotoCoreError, ClientError

from aws.osml.model_runner.api.inference import MAX_SERVERLESS_BODY_BYTES
from aws.osml.model_runner.api.problems import role_problem, shortened
from aws.osml.model_runner.aws.errors import error_code, is_role_refusal
from aws.osml.model_runner.exceptions import ModelCallError, ModelErrorClass, Problem

from .call_errors import ModelErrorCode, error_of_aws_response
from .endpoint_address import EndpointAddress, checked_addresses

# States in which an endpoint takes no calls until its owner acts. In all other states it takes calls, or soon will; so
# does an endpoint after a failed roll-back (UpdateRollbackFailed), which has instances of both versions.
_DOWN = frozenset({"OutOfService", "Failed", "Deleting"})
_MISSING = frozenset({"ValidationException", "ValidationError", "ResourceNotFound", "ResourceNotFoundException"})

_NAME = "imageProcessor.name"
_ROLE = "imageProcessor.assumedRole"
_VARIANT = "imageProcessorParameters.TargetVariant"
_COMPONENT = "imageProcessorParameters.InferenceComponentName"

# No endpoint has a variant of this name, so no container gets the call.
_NO_VARIANT = "preflight-names-no-variant"

_CONNECT_S = 2.0
_MAX_ADDRESSES = 4


@dataclasses.dataclass(frozen=True)
class Finding:
    """The result of a check; ``is_known`` is False where the check was not possible, for ``reason``.

    With ``problems`` every call, or delivery, fails. ``absent`` is set where no server listens now; a server may start
    later. ``max_body_bytes`` is the maximum size of a tile, where the endpoint's description limits it.
    """

    problems: tuple[Problem, ...] = ()
    absent: Problem | None = None
    max_body_bytes: int | None = None
    is_known: bool = True
    reason: str = ""

    @property
    def is_good(self) -> bool:
        """True when the check found no problem, or was not possible."""
        return not self.problems and self.absent is None


UNKNOWN = Finding(is_known=False)


class Describe(Protocol):
    """A source of descriptions of endpoints and inference components."""

    def __call__(self, kind: str, name: str, role: str, is_new: bool = False) -> Mapping[str, Any]:
        """Return the description of an ``"endpoint"`` or a ``"component"``, seen under ``role`` if that is not empty.

        The description has the form of SageMaker's response. With ``is_new`` it is at most some seconds old.

        Raises:
            ClientError, BotoCoreError: this call looked it up, and cannot describe it.
        """


def check_sagemaker(describe: Describe, name: str, role: str, parameters: Mapping[str, Any]) -> Finding:
    """Return the problems of an endpoint, and of the inference component that ``parameters`` name.

    Raises:
        ClientError, BotoCoreError: the endpoint cannot be described now, or access is denied.
    """
    component = parameters.get("InferenceComponentName")
    finding = UNKNOWN
    # An older description is enough to accept a request; only a new description refuses one.
    for is_new in (False, True):
        field, value, kind = _NAME, name, "an endpoint"
        try:
            finding = endpoint_finding(describe("endpoint", name, role, is_new), name, parameters)
            if component and finding.is_good:
                field, value, kind = _COMPONENT, str(component), "an inference component"
                described = describe("component", value, role, is_new)
                finding = dataclasses.replace(finding, problems=tuple(_component_problems(described, name, value)))
        except ClientError as err:
            if is_role_refusal(err):
                return Finding((role_problem(_ROLE, role, error_code(err)),))
            if not is_missing(err):
                raise
            return Finding((Problem(field, shortened(value), f"{kind} that exists ({error_code(err)})"),))
        if finding.is_good:
            break
    return finding


def is_missing(error: ClientError | BotoCoreError) -> bool:
    """Return True when SageMaker responded that the endpoint or component does not exist."""
    return error_code(error) in _MISSING


def endpoint_finding(description: Mapping[str, Any], name: str, parameters: Mapping[str, Any]) -> Finding:
    """Return the result of the check, from DescribeEndpoint's response, for calls with ``parameters``. Pure."""
    state = description.get("EndpointStatus", "InService")
    if state in _DOWN:
        return Finding((Problem(_NAME, shortened(name), f"an endpoint in service (it is {state})"),))
    variants = {variant["VariantName"]: variant for variant in description.get("ProductionVariants", ())}
    target = parameters.get("TargetVariant")
    if target is not None and variants and str(target) not in variants:
        expected = f"a variant of the endpoint: one of {', '.join(sorted(variants))}"
        return Finding((Problem(_VARIANT, shortened(target), expected),))
    called = [variants[str(target)]] if str(target) in variants else variants.values()
    is_serverless = any(variant.get("CurrentServerlessConfig") for variant in called)
    return Finding(max_body_bytes=MAX_SERVERLESS_BODY_BYTES if is_serverless else None)


def _component_problems(description: Mapping[str, Any], endpoint: str, name: str) -> list[Problem]:
    state, host = description.get("InferenceComponentStatus", "InService"), description.get("EndpointName", endpoint)
    if state in _DOWN:
        return [Problem(_COMPONENT, shortened(name), f"a component in service (it is {state})")]
    if host != endpoint:
        return [Problem(_COMPONENT, shortened(name), f"a component of the endpoint (it is one of {host})")]
    return []


def check_invocation(runtime: Any, name: str, parameters: Mapping[str, Any]) -> Finding:
    """Return a problem when InvokeEndpoint may not be called; ``runtime`` is the client that calls the endpoint.

    The call names a variant that the endpoint does not have. IAM decides before SageMaker looks for the variant, so the
    permission is checked without a model call.

    Raises:
        ClientError, BotoCoreError: the service does not respond, or the role cannot be assumed.
    """
    arguments = {"EndpointName": name, "Body": b"", "TargetVariant": _NO_VARIANT}
    if component := parameters.get("InferenceComponentName"):
        arguments["InferenceComponentName"] = component
    try:
        runtime.invoke_endpoint(**arguments)
    except ClientError as err:
        if is_role_refusal(err):
            raise
        error = error_of_aws_response(err.response)
        if error.code == ModelErrorCode.ACCESS_DENIED:
            expected = f"an endpoint that the worker, or {_ROLE}, may call ({error_code(err)})"
            return Finding((Problem(_NAME, shortened(name), expected),))
        if error.error_class not in (ModelErrorClass.JOB, ModelErrorClass.PERMANENT):
            raise
    return Finding()


def check_http(
    address: EndpointAddress,
    url: str,
    resolve: Callable[[str, int], Sequence[str]] = checked_addresses,
    connect: Callable[..., socket.socket] = socket.create_connection,
) -> Finding:
    """Look up the host of an HTTP endpoint and open a connection to it, without sending a request.

    Raises:
        OSError: the look-up fails now, or an address cannot be reached; the check is not possible.
    """
    value = shortened(url.partition("?")[0])
    try:
        addresses = resolve(address.host, address.port)[:_MAX_ADDRESSES]
    except ModelCallError as err:
        return Finding((Problem(_NAME, value, str(err)),))
    except socket.gaierror as err:
        if err.errno not in (socket.EAI_NONAME, socket.EAI_NODATA):
            raise
        return Finding((Problem(_NAME, value, "a host whose name can be resolved"),))
    refused: list[OSError] = []
    for ip_address in addresses:
        try:
            connect((ip_address, address.port), timeout=_CONNECT_S).close()
        except OSError as err:
            refused.append(err)
        else:
            return Finding()
    other = next((err for err in refused if not isinstance(err, ConnectionRefusedError)), None)
    if other is not None:
        raise other
    return Finding(absent=Problem(_NAME, value, "an address at which a model is served (connection refused)"))
