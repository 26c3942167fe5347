"""From the words of a request to the detector that speaks to its model."""

from collections.abc import Mapping, Sequence
from typing import Any

from aws.osml.model_runner.api.inference import MAX_ANSWER_BYTES, MAX_SAGEMAKER_BODY_BYTES, ModelInvokeMode
from aws.osml.model_runner.aws.clients import Role
from aws.osml.model_runner.exceptions import Problem, UnsupportedModelException

from .detector import Detector
from .endpoint_address import parse_endpoint_address
from .endpoint_builder import FeatureEndpointBuilder
from .endpoint_name import check_endpoint_name
from .http_detector import DEFAULT_CONNECTIONS, DEFAULT_TIMEOUTS, CallTimeouts, HTTPDetectorBuilder
from .sm_detector import SMDetectorBuilder


class FeatureDetectorFactory:
    """Chooses the detector for an endpoint.

    ``assumed_role`` makes a SageMaker client that refreshes itself; ``assumed_credentials`` are used as they are.
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

    def check(self) -> None:
        """Check the endpoint as it is written, before any tile is cut for it; nothing is looked up or called.

        Raises:
            UnsupportedModelException: no call to this endpoint can ever be made.
        """
        match self.endpoint_mode:
            case ModelInvokeMode.SM_ENDPOINT:
                check_endpoint_name(self.endpoint)
            case ModelInvokeMode.HTTP_ENDPOINT:
                parse_endpoint_address(self.endpoint, self.allowed_hosts)
            case _:
                problem = Problem("imageProcessor.type", str(self.endpoint_mode)[:80], "expected a way to call a model")
                raise UnsupportedModelException("no model is called this way", [problem])

    def build(self) -> Detector | None:
        """Return the detector; None for a mode that calls no model."""
        builder = self._builder()
        return builder.build() if builder is not None else None

    def _builder(self) -> FeatureEndpointBuilder | None:
        shared: dict[str, Any] = {
            "parameters": self.parameters,
            "tile_format": self.tile_format,
            "max_answer_bytes": self.max_answer_bytes,
        }
        match self.endpoint_mode:
            case ModelInvokeMode.SM_ENDPOINT:
                options = {**shared, "assumed_role": self.assumed_role, "max_body_bytes": self.max_body_bytes}
                return SMDetectorBuilder(self.endpoint, self.assumed_credentials, **options)
            case ModelInvokeMode.HTTP_ENDPOINT:
                options = {
                    **shared,
                    "allowed_hosts": self.allowed_hosts,
                    "max_connections": self.max_connections,
                    "timeouts": self.timeouts,
                }
                return HTTPDetectorBuilder(self.endpoint, **options)
        return None
