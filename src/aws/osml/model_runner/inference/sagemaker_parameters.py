"""Selects the ``imageProcessorParameters`` for InvokeEndpoint, and those for HTTP endpoints as headers."""

import functools
import re
from collections.abc import Callable, Mapping
from typing import Any

import structlog

logger = structlog.get_logger(__name__)

_Rename = Callable[[str, str], str | None]

INVOKE_PARAMETERS = frozenset(
    {
        "Accept",
        "ContentType",
        "CustomAttributes",
        "EnableExplanations",
        "InferenceComponentName",
        "InferenceId",
        "SessionId",
        "TargetContainerHostname",
        "TargetModel",
        "TargetVariant",
    }
)

# SageMaker passes CustomAttributes to a container in this header, and this package passes it to HTTP endpoints.
CUSTOM_ATTRIBUTES_HEADER = "X-Amzn-SageMaker-Custom-Attributes"
_HEADER_OF_PARAMETER = {"CustomAttributes": CUSTOM_ATTRIBUTES_HEADER, "ContentType": "Content-Type"}

# A request may not set headers that control the target, the effect, the identity or the framing of a call. These are
# the headers of RFC 9110, section 7.6.1, and headers by which proxies and the instance metadata service trust a caller.
# Other headers here make a proxy replace a method or a path.
_RESERVED_HEADERS = frozenset(
    {
        "accept-encoding",
        "authorization",
        "cf-connecting-ip",
        "connection",
        "content-encoding",
        "content-length",
        "cookie",
        "cookie2",
        "early-data",
        "expect",
        "forwarded",
        "host",
        "http2-settings",
        "keep-alive",
        "max-forwards",
        "metadata",
        "metadata-flavor",
        "range",
        "set-cookie",
        "te",
        "trailer",
        "transfer-encoding",
        "true-client-ip",
        "upgrade",
        "via",
        "x-client-ip",
        "x-cluster-client-ip",
        "x-host",
        "x-method-override",
        "x-real-ip",
    }
)
# A model may read headers of any name, so a list of allowed names cannot be complete.
_RESERVED_PREFIXES = (
    "if-",
    "proxy-",
    "x-amz-security-",
    "x-aws-ec2-metadata-",
    "x-envoy-",
    "x-forwarded-",
    "x-http-method",
    "x-original-",
    "x-rewrite-",
)

_HEADER_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,128}", re.ASCII)
_ASCII_VALUE = re.compile(r"[\t\x20-\x7e]{0,8192}")
_HEADER_VALUE = re.compile(r"[\t\x20-\x7e\x80-\xff]{0,8192}")


def invoke_parameters(parameters: Mapping[str, Any] | None, endpoint: str) -> dict[str, str]:
    """Return the parameters that InvokeEndpoint takes as arguments; the others are dropped, with one warning."""
    return _select(parameters, endpoint, argument_of_parameter)


def argument_of_parameter(name: str, value: str) -> str | None:
    """Return the name of InvokeEndpoint's argument for a parameter; None if it takes no such argument or value."""
    return name if name in INVOKE_PARAMETERS and _ASCII_VALUE.fullmatch(value) else None


def header_parameters(parameters: Mapping[str, Any] | None, endpoint: str) -> dict[str, str]:
    """Return the headers for parameters; reserved and invalid headers are dropped, with one warning."""
    return _select(parameters, endpoint, header_of_parameter)


def header_of_parameter(name: str, value: str) -> str | None:
    """Return the name of the header for a parameter; None if the header is reserved or invalid."""
    header = _HEADER_OF_PARAMETER.get(name, name)
    is_reserved = header.lower() in _RESERVED_HEADERS or header.lower().startswith(_RESERVED_PREFIXES)
    if is_reserved or not _HEADER_NAME.fullmatch(header) or not _HEADER_VALUE.fullmatch(value):
        return None
    return header


def _select(parameters: Mapping[str, Any] | None, endpoint: str, rename: _Rename) -> dict[str, str]:
    selected: dict[str, str] = {}
    dropped: list[str] = []
    for name, value in (parameters or {}).items():
        if value is None:
            continue
        kept_name = rename(name, str(value))
        if kept_name is None:
            dropped.append(name)
        else:
            selected[kept_name] = str(value)
    if dropped:
        _warn_of_dropped(endpoint, tuple(sorted(dropped)))
    return selected


@functools.lru_cache(maxsize=256)
def _warn_of_dropped(endpoint: str, names: tuple[str, ...]) -> None:
    """Warn once per endpoint and set of names, not once per tile."""
    logger.warning("model.parameters_dropped", endpoint=endpoint.partition("?")[0], names=[name[:80] for name in names])
