"""Makes the detector for the model that a request names."""

from collections.abc import Mapping, Sequence
from typing import Any

from aws.osml.model_runner.api.inference import MAX_ANSWER_BYTES, MAX_SAGEMAKER_BODY_BYTES, ModelInvokeMode
from aws.osml.model_runner.api.model_protocol import ModelProtocol
from aws.osml.model_runner.aws.clients import Role
from aws.osml.model_runner.exceptions import Problem, UnsupportedModelException

from .detector import Detector
from .endpoint_address import parse_endpoint_address
from .endpoint_builder import FeatureEndpointBuilder
from .http_detector import DEFAULT_CONNECTIONS, DEFAULT_TIMEOUTS, CallTimeouts, HTTPDetectorBuilder
from .model_credentials import ModelCredentials
from .sm_detector import SMDetectorBuilder, check_endpoint_name


class FeatureDetectorFactory:
    """Makes the detector of an endpoint, by its mode.

    With ``assumed_role`` the SageMaker client refreshes its credentials; ``assumed_credentials`` are never refreshed.
    """

    def __init__(
        self,
        endpoint: str,
        endpoint_mode: ModelInvokeMode,
        assumed_credentials: dict[str, str] | None = None,
        parameters: Mapping[str, Any] | None = None,
        tile_format: str | None = None,
        assumed_role: Role = None,
        allowed_hosts: Sequence[str] = (),
        max_body_bytes: int = MAX_SAGEMAKER_BODY_BYTES,
        max_connections: int = DEFAULT_CONNECTIONS,
        timeouts: CallTimeouts = DEFAULT_TIMEOUTS,
        max_answer_bytes: int = MAX_ANSWER_BYTES,
        protocol: ModelProtocol | None = None,
        credentials: ModelCredentials | None = None,
    ) -> None:
        self.endpoint = endpoint
        self.endpoint_mode = endpoint_mode
        self.assumed_credentials = assumed_credentials
        self.parameters = parameters
        self.tile_format = tile_format
        self.assumed_role = assumed_role
        self.allowed_hosts = allowed_hosts
        self.max_body_bytes = max_body_bytes
        self.max_connections = max_connections
        self.timeouts = timeouts
        self.max_answer_bytes = max_answer_bytes
        self.protocol = protocol
        self.credentials = credentials

    def check(self) -> None:
        """Check the endpoint's name or URL before any tile is cut for it, without a look-up or a call.

        Raises:
            UnsupportedModelException: the endpoint may never be called.
        """
        match self.endpoint_mode:
            case ModelInvokeMode.SM_ENDPOINT:
                check_endpoint_name(self.endpoint)
            case ModelInvokeMode.HTTP_ENDPOINT:
                address = parse_endpoint_address(self.endpoint, self.allowed_hosts)
                if self.credentials is not None:
                    self.credentials.covering(address)
            case _:
                modes = f"expected {ModelInvokeMode.SM_ENDPOINT} or {ModelInvokeMode.HTTP_ENDPOINT}"
                problem = Problem("imageProcessor.type", str(self.endpoint_mode)[:80], modes)
                raise UnsupportedModelException("this imageProcessor.type is not supported", [problem])

    def build(self) -> Detector | None:
        """Return the detector; None for a mode that calls no model."""
        options: dict[str, Any] = {
            "parameters": self.parameters,
            "tile_format": self.tile_format,
            "max_answer_bytes": self.max_answer_bytes,
            "protocol": self.protocol,
        }
        builder: FeatureEndpointBuilder
        match self.endpoint_mode:
            case ModelInvokeMode.SM_ENDPOINT:
                options |= {"assumed_role": self.assumed_role, "max_body_bytes": self.max_body_bytes}
                builder = SMDetectorBuilder(self.endpoint, self.assumed_credentials, **options)
            case ModelInvokeMode.HTTP_ENDPOINT:
                options |= {
                    "allowed_hosts": self.allowed_hosts,
                    "max_connections": self.max_connections,
                    "timeouts": self.timeouts,
                    "credentials": self.credentials,
                }
                builder = HTTPDetectorBuilder(self.endpoint, **options)
            case _:
                return None
        return builder.build()
