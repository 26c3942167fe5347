"""Where an HTTP endpoint may be: http or https, never a link-local address, and on request only listed hosts.

A URL comes from whoever may send a request, and the worker stands inside a network with instance metadata and
container credentials on link-local addresses. So an address is judged twice: as it is written, when the request is
parsed, and as it resolves, when the connection is made; the connection then goes to the very address that was judged,
because a name may resolve differently the next time.

Loopback and private addresses are allowed as long as no hosts are listed, which is how a model runs beside the worker
on a laptop or in the same private network. With a list (``HTTP_ENDPOINT_HOSTS``), only its hosts are called.
"""

import re
import socket
from collections.abc import Sequence
from dataclasses import dataclass

from urllib3.exceptions import LocationParseError
from urllib3.util import parse_url

from aws.osml.model_runner.common.address_rule import is_forbidden
from aws.osml.model_runner.common.web_address import (
    ForbiddenAddressError,
    LookUp,
    allowed_addresses,
    literal_address,
)
from aws.osml.model_runner.exceptions import (
    ModelCallError,
    ModelErrorClass,
    Problem,
    UnsupportedModelException,
)

from .call_errors import ModelErrorCode

DEFAULT_PORTS = {"http": 80, "https": 443}
MAX_URL_CHARACTERS = 2048

_ILLEGAL = re.compile(r"[\x00-\x20\x7f\\]")


@dataclass(frozen=True)
class EndpointAddress:
    """A checked URL: ``host`` in lower case and without brackets."""

    scheme: str
    host: str
    port: int


def parse_endpoint_address(url: str, allowed_hosts: Sequence[str] = ()) -> EndpointAddress:
    """Check a URL as it is written; no name is looked up.

    ``allowed_hosts`` holds ``host``, ``host:port``, ``*.suffix`` or ``*.suffix:port``; an IPv6 address stands in
    brackets. Empty means every host.

    Raises:
        UnsupportedModelException: the URL may not be called; the message says why.
    """
    if len(url) > MAX_URL_CHARACTERS or _ILLEGAL.search(url):
        raise _refusal(url, f"an URL of at most {MAX_URL_CHARACTERS} characters without spaces or controls")
    try:
        parts = parse_url(url)
    except LocationParseError as err:
        raise _refusal(url, "a URL") from err
    if parts.scheme not in DEFAULT_PORTS or not parts.host:
        raise _refusal(url, "a URL that starts with http:// or https:// and names a host")
    if parts.auth:
        raise _refusal(url, "a URL without user name and password")
    host = parts.host.strip("[]").rstrip(".").lower()
    address = EndpointAddress(parts.scheme, host, parts.port or DEFAULT_PORTS[parts.scheme])
    literal = literal_address(host)
    if literal is not None and is_forbidden(literal):
        raise _refusal(url, "no link-local, metadata or multicast address")
    if allowed_hosts and not any(matches(address, entry) for entry in allowed_hosts):
        raise _refusal(url, "a host that is listed in HTTP_ENDPOINT_HOSTS")
    return address


def matches(address: EndpointAddress, entry: str) -> bool:
    """True when an entry of the allow-list covers ``address``; ``*.suffix`` covers sub-domains and not the suffix."""
    pattern, port = _split_port(entry.strip().lower())
    if port is not None and port != address.port:
        return False
    if pattern.startswith("*."):
        return address.host.endswith(pattern[1:]) and len(address.host) > len(pattern) - 1
    return address.host == pattern.strip("[]").rstrip(".")


def checked_addresses(host: str, port: int, look_up: LookUp = socket.getaddrinfo) -> list[str]:
    """Return what ``allowed_addresses`` does, with the error of a model call.

    Raises:
        ModelCallError: of class JOB, when the host is refused.
        socket.gaierror: the name cannot be resolved.
    """
    try:
        return allowed_addresses(host, port, look_up)
    except ForbiddenAddressError as err:
        raise ModelCallError(str(err), ModelErrorClass.JOB, ModelErrorCode.BAD_ENDPOINT) from err


def _split_port(entry: str) -> tuple[str, int | None]:
    head, colon, tail = entry.rpartition(":")
    if colon and tail.isdecimal() and (":" not in head or head.endswith("]")):
        return head, int(tail)
    return entry, None


def _refusal(url: str, expectation: str) -> UnsupportedModelException:
    problem = Problem("imageProcessor.name", url.partition("?")[0][:80], f"expected {expectation}")
    return UnsupportedModelException("this endpoint may not be called", [problem])
