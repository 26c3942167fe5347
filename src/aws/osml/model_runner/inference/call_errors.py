"""Classifies failed model calls: pure functions from a status or an AWS error to a ``ModelCallError``.

| Signal                                                           | Class      | Code                |
|------------------------------------------------------------------|------------|---------------------|
| 429, 503, throttling errors, ModelNotReadyException              | THROTTLE   | THROTTLED           |
| ModelError or HTTP endpoint with 429, 502, 503                   | THROTTLE   | THROTTLED           |
| ModelError or HTTP endpoint with any other 5xx                   | SUSPICIOUS | MODEL_5XX           |
| ModelError or HTTP endpoint with 408, 425 or 504                 | TRANSIENT  | TIMEOUT             |
| ModelError without the status of a response: none, or 0          | TRANSIENT  | TIMEOUT             |
| ModelError or HTTP endpoint with any other status                | PERMANENT  | MODEL_4XX           |
| HTTP endpoint with a redirect, or a success other than 200       | PERMANENT  | BAD_RESPONSE        |
| SageMaker's own 500, 530 and other 5xx                           | TRANSIENT  | SERVICE_5XX         |
| time-outs; connections that fail or break                        | TRANSIENT  | TIMEOUT, CONNECTION |
| ValidationError "… not found"                                    | JOB        | ENDPOINT_NOT_FOUND  |
| AccessDenied and its kin                                         | JOB        | ACCESS_DENIED       |
| ExpiredToken, InvalidClientTokenId, RequestExpired and their kin | CREDENTIAL | CREDENTIALS         |
| any other 4xx of SageMaker, parameters that it does not take     | PERMANENT  | BAD_REQUEST         |
| a name or URL that is refused before any look-up                 | PERMANENT  | BAD_ENDPOINT        |
| a URL that resolves to a forbidden address, a wrong certificate  | JOB        | BAD_ENDPOINT        |
| a tile longer than the endpoint takes, 413 of SageMaker          | PERMANENT  | TILE_TOO_LARGE      |
| a response that is too long                                      | PERMANENT  | BAD_RESPONSE        |

An HTTP endpoint is the model itself. So its 500 counts like a 500 that SageMaker passes on from a container: the tile
may have crashed the model. SageMaker's own 500 does not depend on the tile.

SageMaker sends a ModelError with original status 0 when the container did not respond within 60 s, or at all. In most
cases the call waited in the queue of a container that got too many calls. So this is congestion and not a crash.
"""

import re
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from enum import StrEnum
from typing import Any

from aws.osml.model_runner.exceptions import ModelCallError, ModelErrorClass


class ModelErrorCode(StrEnum):
    """The code of a failed call in tables, metrics and status messages."""

    THROTTLED = "THROTTLED"
    TIMEOUT = "TIMEOUT"
    CONNECTION = "CONNECTION"
    SERVICE_5XX = "SERVICE_5XX"
    MODEL_5XX = "MODEL_5XX"
    MODEL_4XX = "MODEL_4XX"
    BAD_REQUEST = "BAD_REQUEST"
    BAD_RESPONSE = "BAD_RESPONSE"
    TILE_TOO_LARGE = "TILE_TOO_LARGE"
    BAD_ENDPOINT = "BAD_ENDPOINT"
    ENDPOINT_NOT_FOUND = "ENDPOINT_NOT_FOUND"
    ACCESS_DENIED = "ACCESS_DENIED"
    CREDENTIALS = "CREDENTIALS"


_BUSY_STATUSES = frozenset({429, 502, 503})
_TIMEOUT_STATUSES = frozenset({408, 425, 504})
_TOO_LARGE_STATUS = 413

_BUSY_ERRORS = frozenset(
    {
        "LimitExceededException",
        "ModelNotReadyException",
        "RequestLimitExceeded",
        "ServiceUnavailable",
        "ServiceUnavailableException",
        "SlowDown",
        "Throttling",
        "ThrottledException",
        "ThrottlingException",
        "TooManyRequestsException",
    }
)
_DENIED_ERRORS = frozenset(
    {"AccessDenied", "AccessDeniedException", "NotAuthorized", "OptInRequired", "UnauthorizedOperation"}
)
_CREDENTIAL_ERRORS = frozenset(
    {
        "ExpiredToken",
        "ExpiredTokenException",
        "InvalidClientTokenId",
        "InvalidSignatureException",
        "InvalidToken",
        "RequestExpired",
        "TokenRefreshRequired",
        "UnrecognizedClientException",
    }
)
_VALIDATION_ERRORS = frozenset({"ValidationError", "ValidationException"})
_NOT_FOUND = re.compile(r"not found|could not find|does not exist", re.IGNORECASE)


def error_of_model_status(status: int, retry_after_s: float | None = None) -> ModelCallError:
    """Return the error for a response of the model itself; ``status`` is any status but 200."""
    message = f"the model returned status {status}"
    if status in _BUSY_STATUSES:
        return ModelCallError(message, ModelErrorClass.THROTTLE, ModelErrorCode.THROTTLED, retry_after_s)
    if status in _TIMEOUT_STATUSES:
        return ModelCallError(message, ModelErrorClass.TRANSIENT, ModelErrorCode.TIMEOUT, retry_after_s)
    if status >= 500:
        return ModelCallError(message, ModelErrorClass.SUSPICIOUS, ModelErrorCode.MODEL_5XX, retry_after_s)
    if status < 400:
        return ModelCallError(message, ModelErrorClass.PERMANENT, ModelErrorCode.BAD_RESPONSE)
    return ModelCallError(message, ModelErrorClass.PERMANENT, ModelErrorCode.MODEL_4XX)


def error_of_aws_response(response: Mapping[str, Any]) -> ModelCallError:
    """Return the error for a failure of SageMaker's runtime; ``response`` is a botocore ``ClientError.response``."""
    name = str(response.get("Error", {}).get("Code", ""))
    text = str(response.get("Error", {}).get("Message", ""))
    status = int(response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
    if name == "ModelError":
        container_status = response.get("OriginalStatusCode")
        if isinstance(container_status, int) and 300 <= container_status <= 599:
            return error_of_model_status(container_status)
        message = "the container sent no response in time"
        return ModelCallError(message, ModelErrorClass.TRANSIENT, ModelErrorCode.TIMEOUT)
    if name in _VALIDATION_ERRORS and _NOT_FOUND.search(text):
        return _aws_error(name, status, ModelErrorClass.JOB, ModelErrorCode.ENDPOINT_NOT_FOUND)
    if name in _CREDENTIAL_ERRORS:
        return _aws_error(name, status, ModelErrorClass.CREDENTIAL, ModelErrorCode.CREDENTIALS)
    if name in _DENIED_ERRORS:
        return _aws_error(name, status, ModelErrorClass.JOB, ModelErrorCode.ACCESS_DENIED)
    if name in _BUSY_ERRORS or status in (429, 503):
        return _aws_error(name, status, ModelErrorClass.THROTTLE, ModelErrorCode.THROTTLED)
    if 400 <= status < 500:
        code = ModelErrorCode.TILE_TOO_LARGE if status == _TOO_LARGE_STATUS else ModelErrorCode.BAD_REQUEST
        return _aws_error(name, status, ModelErrorClass.PERMANENT, code)
    return _aws_error(name, status, ModelErrorClass.TRANSIENT, ModelErrorCode.SERVICE_5XX)


def retry_after_seconds(header: str | None, now_s: float) -> float | None:
    """Return the wait that a ``Retry-After`` header requires (RFC 9110, section 10.2.3); None without a valid header.

    The header holds seconds or a date; the wait until a date counts from ``now_s``, in Unix time.
    """
    text = (header or "").strip()
    if re.fullmatch(r"\d{1,9}", text, re.ASCII):
        return float(text)
    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - now_s)
    except (ValueError, OverflowError):
        return None


def _aws_error(name: str, status: int, error_class: ModelErrorClass, code: ModelErrorCode) -> ModelCallError:
    return ModelCallError(f"SageMaker returned {name or 'an error'} with status {status}", error_class, code)
