"""Models behind a SageMaker endpoint."""

import re
import threading
import time
from collections.abc import Mapping
from io import BufferedReader
from typing import TYPE_CHECKING, Any, Final

import boto3
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConnectTimeoutError,
    CredentialRetrievalError,
    NoCredentialsError,
    ParamValidationError,
    PartialCredentialsError,
    ReadTimeoutError,
    UnauthorizedSSOTokenError,
)
from urllib3 import exceptions as http_errors

from aws.osml.model_runner.api.inference import MAX_ANSWER_BYTES, MAX_SAGEMAKER_BODY_BYTES, ModelInvokeMode
from aws.osml.model_runner.api.model_protocol import ModelProtocol
from aws.osml.model_runner.aws.clients import Role, client_config, default_clients
from aws.osml.model_runner.common.typing import EncodedTile
from aws.osml.model_runner.exceptions import ModelCallError, ModelErrorClass, Problem, UnsupportedModelException

from .call_errors import ModelErrorCode, error_of_aws_response
from .detection import detect
from .detector import Detector, read_bounded
from .endpoint_builder import FeatureEndpointBuilder
from .sagemaker_parameters import invoke_parameters
from .tensor_envelope import envelope_of, framed_response

if TYPE_CHECKING:
    from aws_embedded_metrics.logger.metrics_logger import MetricsLogger
    from geojson import FeatureCollection

SERVICE: Final = "sagemaker-runtime"
MAX_CONNECTIONS = 64
# A model may take 60 s; the other 15 s are for the bytes of the response.
TOTAL_S = 75.0
# Many threads find an expired token in the same moment; one of them refreshes for all.
REFRESH_INTERVAL_S = 5.0

# Media type of SageMaker's Triton containers; the length of the JSON before the bytes of tensors follows.
_TRITON_TYPE = "application/vnd.sagemaker-triton.binary+json;json-header-size="
_ENDPOINT_NAME = re.compile(r"[a-zA-Z0-9](-*[a-zA-Z0-9]){0,62}", re.ASCII)
_CREDENTIAL_FAILURES = (
    CredentialRetrievalError,
    NoCredentialsError,
    PartialCredentialsError,
    UnauthorizedSSOTokenError,
)


class SMDetector(Detector):
    """Calls a model by InvokeEndpoint.

    ``client`` makes the calls, if it is given. Otherwise a new client signs with ``assumed_credentials`` (AccessKeyId,
    SecretAccessKey, SessionToken), which cannot be refreshed. Without both, the process's client for ``assumed_role``
    signs with credentials that can be refreshed. ``parameters`` are the parameters of a request; InvokeEndpoint's
    arguments are kept, others are dropped. A body longer than ``max_body_bytes`` is refused before it is sent.
    ``protocol`` makes the body of a call from a tile, which is sent as it is by default.
    """

    def __init__(
        self,
        endpoint: str,
        assumed_credentials: dict[str, str] | None = None,
        parameters: Mapping[str, Any] | None = None,
        client: Any = None,
        max_body_bytes: int = MAX_SAGEMAKER_BODY_BYTES,
        tile_format: str | None = None,
        assumed_role: Role = None,
        max_answer_bytes: int = MAX_ANSWER_BYTES,
        total_s: float = TOTAL_S,
        protocol: ModelProtocol | None = None,
    ) -> None:
        super().__init__(endpoint)
        self.assumed_credentials = assumed_credentials
        self.parameters = parameters
        self.max_body_bytes = max_body_bytes
        self.tile_format = tile_format
        self.assumed_role = assumed_role
        self.max_answer_bytes = max_answer_bytes
        self.total_s = total_s
        self._envelope = envelope_of(protocol or ModelProtocol.of(None), tile_format)
        self._client = client
        self._is_fixed_client = client is not None or bool(assumed_credentials)
        self._client_lock = threading.Lock()
        self._refreshed_at_s = float("-inf")

    @property
    def mode(self) -> ModelInvokeMode:
        """How the endpoint is called."""
        return ModelInvokeMode.SM_ENDPOINT

    @property
    def sm_client(self) -> Any:
        """The client that makes the calls, created on first use."""
        with self._client_lock:
            if self._client is None and self.assumed_credentials:
                session = boto3.Session(
                    aws_access_key_id=self.assumed_credentials["AccessKeyId"],
                    aws_secret_access_key=self.assumed_credentials["SecretAccessKey"],
                    aws_session_token=self.assumed_credentials["SessionToken"],
                )
                self._client = session.client(SERVICE, config=client_config(SERVICE, MAX_CONNECTIONS))
            elif self._client is None:
                self._client = default_clients().client(SERVICE, self.assumed_role)
            return self._client

    def find_features(self, payload: BufferedReader | bytes, metrics: "MetricsLogger | None") -> "FeatureCollection":
        """Call the model once with a tile and return its detections, in pixels of that tile."""
        return detect(self, payload, metrics, self.endpoint)

    def invoke(self, tile: EncodedTile) -> bytes:
        """Call InvokeEndpoint with a tile and return the body of the response.

        Raises:
            ModelCallError: the call failed; its class decides whether to retry.
        """
        body, media_type, json_bytes = self._envelope.wrap(tile)
        self._check(len(body))
        self._count_request()
        deadline_s = time.monotonic() + self.total_s
        arguments = invoke_parameters(self.parameters, self.endpoint)
        if json_bytes is not None:
            arguments["ContentType"] = f"{_TRITON_TYPE}{json_bytes}"
        elif media_type:
            arguments.setdefault("ContentType", media_type)
        try:
            # botocore accepts bytes, but no memoryview.
            response = self.sm_client.invoke_endpoint(EndpointName=self.endpoint, Body=bytes(body), **arguments)
            found = self._body(response["Body"], deadline_s)
            if json_bytes is None:
                return found
            content_type = str(response.get("ContentType", ""))
            length = content_type.removeprefix(_TRITON_TYPE) if content_type.startswith(_TRITON_TYPE) else None
            return framed_response(found, length)
        except ClientError as err:
            raise error_of_aws_response(err.response) from err
        except (BotoCoreError, http_errors.HTTPError) as err:
            raise error_of_transport(err) from err

    def refresh_credentials(self) -> None:
        """Fetch new credentials for the next call; a client that was passed in stays as it is."""
        with self._client_lock:
            is_recent = time.monotonic() - self._refreshed_at_s < REFRESH_INTERVAL_S
            if self._is_fixed_client or is_recent:
                return
            self._refreshed_at_s = time.monotonic()
            self._client = default_clients().with_fresh_credentials().client(SERVICE, self.assumed_role)

    def _check(self, body_bytes: int) -> None:
        try:
            check_endpoint_name(self.endpoint)
        except UnsupportedModelException as err:
            raise ModelCallError(str(err), ModelErrorClass.PERMANENT, ModelErrorCode.BAD_ENDPOINT) from err
        if body_bytes > self.max_body_bytes:
            message = f"the tile has {body_bytes} bytes as it is sent; the endpoint takes at most {self.max_body_bytes}"
            raise ModelCallError(message, ModelErrorClass.PERMANENT, ModelErrorCode.TILE_TOO_LARGE)

    def _body(self, stream: Any, deadline_s: float) -> bytes:
        # botocore's stream reads until a piece is full, so a slow response is only visible in the stream that it wraps.
        raw = getattr(stream, "_raw_stream", stream)
        try:
            return read_bounded(raw.read1, self.max_answer_bytes, deadline_s, time.monotonic)
        except ModelCallError:
            stream.close()
            raise


def check_endpoint_name(name: str) -> None:
    """Raise UnsupportedModelException for a name that CreateEndpoint does not accept."""
    if not _ENDPOINT_NAME.fullmatch(name):
        expectation = "expected the name of a SageMaker endpoint: at most 63 letters, digits and inner hyphens"
        raise UnsupportedModelException(
            "this endpoint may not be called", [Problem("imageProcessor.name", name[:80], expectation)]
        )


def error_of_transport(error: BotoCoreError | http_errors.HTTPError) -> ModelCallError:
    """Return the error for a call without a response of SageMaker."""
    message = f"the call failed with {type(error).__name__}"
    if isinstance(error, _CREDENTIAL_FAILURES):
        return ModelCallError(message, ModelErrorClass.CREDENTIAL, ModelErrorCode.CREDENTIALS)
    if isinstance(error, ParamValidationError):
        return ModelCallError(message, ModelErrorClass.PERMANENT, ModelErrorCode.BAD_REQUEST)
    if isinstance(error, ReadTimeoutError | ConnectTimeoutError | http_errors.ReadTimeoutError):
        return ModelCallError(message, ModelErrorClass.TRANSIENT, ModelErrorCode.TIMEOUT)
    return ModelCallError(message, ModelErrorClass.TRANSIENT, ModelErrorCode.CONNECTION)


class SMDetectorBuilder(FeatureEndpointBuilder):
    """Builds an ``SMDetector`` for an endpoint and its credentials, with further options of the detector."""

    def __init__(self, endpoint: str, assumed_credentials: dict[str, str] | None = None, **options: Any) -> None:
        super().__init__()
        self.endpoint = endpoint
        self.assumed_credentials = assumed_credentials
        self.options = options

    def build(self) -> Detector | None:
        """Return the detector; it creates its client at the first call."""
        return SMDetector(self.endpoint, self.assumed_credentials, **self.options)
