"""Models behind a plain HTTP endpoint: one POST of the tile's bytes, one JSON response."""

import ssl
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from io import BufferedReader
from typing import TYPE_CHECKING, Any, NamedTuple

from urllib3 import BaseHTTPResponse, Retry
from urllib3 import exceptions as http_errors
from urllib3.util import Timeout

from aws.osml.model_runner.api.inference import MAX_ANSWER_BYTES, ModelInvokeMode
from aws.osml.model_runner.api.model_protocol import ModelProtocol
from aws.osml.model_runner.aws.secret_values import HostCredential
from aws.osml.model_runner.common.checked_connection import checked_pool_manager
from aws.osml.model_runner.common.typing import EncodedTile
from aws.osml.model_runner.exceptions import ModelCallError, ModelErrorClass, UnsupportedModelException

from .call_errors import ModelErrorCode, error_of_model_status, retry_after_seconds
from .detection import detect
from .detector import Detector, read_bounded
from .endpoint_address import checked_addresses, parse_endpoint_address
from .endpoint_builder import FeatureEndpointBuilder
from .model_credentials import ModelCredentials
from .sagemaker_parameters import header_parameters
from .tensor_envelope import envelope_of, framed_response

if TYPE_CHECKING:
    from aws_embedded_metrics.logger.metrics_logger import MetricsLogger
    from geojson import FeatureCollection

DEFAULT_NAME = "http"
DEFAULT_CONNECTIONS = 64
# Maximum size of an error page that is read, so that the connection can be reused; a longer page closes it.
ERROR_PAGE_BYTES = 64 * 1024
# Length of the JSON before the bytes of tensors, in calls and responses of the Open Inference Protocol.
JSON_LENGTH_HEADER = "Inference-Header-Content-Length"
_INFER = "/infer"
_UNAUTHORIZED = 401
_METADATA_BYTES = 256 * 1024


@dataclass(frozen=True)
class CallTimeouts:
    """How long a call may take: to connect, between two pieces of the response, and from request to end of response."""

    connect_s: float = 5.0
    read_s: float = 70.0
    total_s: float = 70.0


DEFAULT_TIMEOUTS = CallTimeouts()


class _UnauthorizedError(ModelCallError):
    """The model does not accept the credential of a call."""


class _Answer(NamedTuple):
    """The body of a response, and the text of the header ``JSON_LENGTH_HEADER``."""

    body: bytes
    json_length: str | None


class HTTPDetector(Detector):
    """Calls a model over HTTP, on persistent connections, with TLS verification and without redirects.

    ``name`` is the model's name in metrics. ``retry`` is urllib3's own retry, off by default, because ``retry.decide``
    decides. ``parameters`` become headers. ``allowed_hosts`` limits the hosts of the URL, and ``resolve`` returns the
    addresses of a host and port that may be called. ``protocol`` makes the body of a call from a tile, which is sent as
    it is by default. ``credentials`` have the header of a host, which replaces a parameter of that name.
    """

    def __init__(
        self,
        endpoint: str,
        name: str | None = None,
        retry: Retry | None = None,
        parameters: Mapping[str, Any] | None = None,
        tile_format: str | None = None,
        allowed_hosts: Sequence[str] = (),
        timeouts: CallTimeouts = DEFAULT_TIMEOUTS,
        max_answer_bytes: int = MAX_ANSWER_BYTES,
        max_connections: int = DEFAULT_CONNECTIONS,
        now: Callable[[], float] = time.time,
        resolve: Callable[[str, int], list[str]] = checked_addresses,
        protocol: ModelProtocol | None = None,
        credentials: ModelCredentials | None = None,
    ) -> None:
        super().__init__(endpoint)
        self.name = name or DEFAULT_NAME
        self.retry = retry
        self.parameters = parameters
        self.tile_format = tile_format
        self.allowed_hosts = allowed_hosts
        self.timeouts = timeouts
        self.max_answer_bytes = max_answer_bytes
        self.http_pool = checked_pool_manager(timeouts.total_s, max_connections, resolve)
        self._now = now
        self._credentials = credentials
        self._envelope = envelope_of(protocol or ModelProtocol.of(None), tile_format, self._metadata)

    @property
    def mode(self) -> ModelInvokeMode:
        """How the endpoint is called."""
        return ModelInvokeMode.HTTP_ENDPOINT

    def find_features(self, payload: BufferedReader | bytes, metrics: "MetricsLogger | None") -> "FeatureCollection":
        """Call the model once with a tile and return its detections, in pixels of that tile."""
        return detect(self, payload, metrics, self.name)

    def invoke(self, tile: EncodedTile) -> bytes:
        """POST a tile and return the body of the response, whose status has to be 200.

        Raises:
            ModelCallError: the call failed; its class decides whether to retry.
        """
        credential = self._credential()
        body, media_type, json_bytes = self._envelope.wrap(tile)
        self._count_request()
        headers = self._headers(media_type)
        if json_bytes is None:
            return self._called(credential, "POST", self.endpoint, headers, body).body
        headers[JSON_LENGTH_HEADER] = str(json_bytes)
        answer = self._called(credential, "POST", self.endpoint, headers, body)
        return framed_response(answer.body, answer.json_length)

    def _credential(self) -> HostCredential | None:
        """Return the credential of the endpoint's host; raises ModelCallError for a URL that may not be called."""
        try:
            address = parse_endpoint_address(self.endpoint, self.allowed_hosts)
            return None if self._credentials is None else self._credentials.covering(address)
        except UnsupportedModelException as err:
            raise ModelCallError(str(err), ModelErrorClass.PERMANENT, ModelErrorCode.BAD_ENDPOINT) from err

    def _metadata(self) -> bytes:
        """Return the description of a model that the Open Inference Protocol serves beside its URL for calls."""
        path, mark, query = self.endpoint.partition("?")
        if not path.endswith(_INFER):
            message = f"the URL does not end in {_INFER}, so the input of the model is not known: use envelope.tensor"
            raise ModelCallError(message, ModelErrorClass.PERMANENT, ModelErrorCode.BAD_ENDPOINT)
        url = f"{path.removesuffix(_INFER)}{mark}{query}"
        headers = self._headers(None)
        return self._called(self._credential(), "GET", url, headers, None, _METADATA_BYTES).body

    def _called(
        self,
        credential: HostCredential | None,
        method: str,
        url: str,
        headers: dict[str, str],
        body: EncodedTile | None,
        max_bytes: int | None = None,
    ) -> _Answer:
        """Make a call. When the model refuses its credential, repeat it once if the value has changed."""
        if credential is None or self._credentials is None:
            return self._exchanged(method, url, headers, body, max_bytes)
        own = {name: text for name, text in headers.items() if name.lower() != credential.header.lower()}
        value = self._credentials.header_value(credential)
        try:
            return self._exchanged(method, url, own | {credential.header: value}, body, max_bytes)
        except _UnauthorizedError:
            if not self._credentials.refresh(credential, value):
                raise
        value = self._credentials.header_value(credential)
        return self._exchanged(method, url, own | {credential.header: value}, body, max_bytes)

    def _exchanged(
        self, method: str, url: str, headers: dict[str, str], body: EncodedTile | None, max_bytes: int | None
    ) -> _Answer:
        deadline_s = time.monotonic() + self.timeouts.connect_s + self.timeouts.total_s
        try:
            response = self.http_pool.request(
                method,
                url,
                body=body,  # type: ignore[arg-type]  # urllib3 sends any object with bytes as it is
                headers=headers,
                preload_content=False,
                decode_content=False,
                redirect=False,
                retries=self.retry if self.retry is not None else False,
                timeout=Timeout(connect=self.timeouts.connect_s, read=self.timeouts.read_s),
            )
            found = self._body(response, deadline_s, max_bytes or self.max_answer_bytes)
            return _Answer(found, response.headers.get(JSON_LENGTH_HEADER))
        except http_errors.HTTPError as err:
            raise error_of_transport(err) from err

    def close(self) -> None:
        """Close the idle connections; a later call opens new ones."""
        self.http_pool.clear()

    def _headers(self, media_type: str | None) -> dict[str, str]:
        """Return the headers of a call; a parameter ``Content-Type``, in any case, replaces the body's media type."""
        headers = header_parameters(self.parameters, self.endpoint)
        if media_type and "content-type" not in map(str.lower, headers):
            headers["Content-Type"] = media_type
        return {**headers, "Accept-Encoding": "identity"}

    def _body(self, response: BaseHTTPResponse, deadline_s: float, max_good_bytes: int) -> bytes:
        """Return the body of a response with status 200; the connection is reusable or closed after any outcome."""
        is_good = response.status == 200
        max_bytes = max_good_bytes if is_good else ERROR_PAGE_BYTES
        try:
            body = read_bounded(response.read1, max_bytes, deadline_s, time.monotonic)
        except ModelCallError:
            response.close()
            if is_good:
                raise
        if is_good:
            return body
        retry_after_s = retry_after_seconds(response.headers.get("Retry-After"), self._now())
        error = error_of_model_status(response.status, retry_after_s)
        if response.status == _UNAUTHORIZED:
            raise _UnauthorizedError(str(error), error.error_class, error.code)
        raise error


def error_of_transport(error: http_errors.HTTPError) -> ModelCallError:
    """Return the error for a failure below HTTP. Time-outs and broken connections are transient.

    A wrong certificate fails the job, because each further call would fail too.
    """
    if isinstance(error, http_errors.MaxRetryError) and isinstance(error.reason, http_errors.HTTPError):
        return error_of_transport(error.reason)
    message = f"the call failed with {type(error).__name__}"
    if isinstance(error, http_errors.SSLError) and isinstance(error.args[0], ssl.SSLCertVerificationError):
        return ModelCallError(message, ModelErrorClass.JOB, ModelErrorCode.BAD_ENDPOINT)
    # NewConnectionError inherits from TimeoutError in urllib3, although it is not a time-out.
    is_unreachable = isinstance(error, http_errors.NewConnectionError)
    if isinstance(error, http_errors.TimeoutError) and not is_unreachable:
        return ModelCallError(message, ModelErrorClass.TRANSIENT, ModelErrorCode.TIMEOUT)
    return ModelCallError(message, ModelErrorClass.TRANSIENT, ModelErrorCode.CONNECTION)


class HTTPDetectorBuilder(FeatureEndpointBuilder):
    """Builds an ``HTTPDetector`` for an endpoint, with further options of the detector."""

    def __init__(self, endpoint: str, **options: Any) -> None:
        super().__init__()
        self.endpoint = endpoint
        self.options = options

    def build(self) -> Detector | None:
        """Return the detector; it makes its first connection at the first call."""
        return HTTPDetector(self.endpoint, **self.options)
