"""Checks the URL of an HTTP endpoint: http or https, no link-local address, and optionally only listed hosts.

Any sender of a request chooses this URL, and the network of the worker has instance metadata and container credentials
on link-local addresses. So an address is checked twice: in the URL, when the request is parsed, and after the look-up,
when the connection is made. The connection then goes to the checked address, because a name may resolve differently
the next time.

Loopback and private addresses are allowed as long as no hosts are listed. So a model can run on the same laptop, or in
the same private network. With a list (``HTTP_ENDPOINT_HOSTS``), only its hosts are called.
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
    """The parts of a checked URL; ``host`` is in lower case and without brackets."""

    scheme: str
    host: str
    port: int


def parse_endpoint_address(url: str, allowed_hosts: Sequence[str] = ()) -> EndpointAddress:
    """Check a URL without a look-up, and return its parts.

    ``allowed_hosts`` holds ``host``, ``host:port``, ``*.suffix`` or ``*.suffix:port``; an IPv6 address is in brackets.
    Empty allows every host.

    Raises:
        UnsupportedModelException: the URL may not be called; the message gives the reason.
    """
    if len(url) > MAX_URL_CHARACTERS or _ILLEGAL.search(url):
        raise _refusal(url, f"a URL of at most {MAX_URL_CHARACTERS} characters without spaces or control characters")
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
        raise _refusal(url, "an address that is not link-local, metadata or multicast")
    if allowed_hosts and not any(matches(address, entry) for entry in allowed_hosts):
        raise _refusal(url, "a host that is listed in HTTP_ENDPOINT_HOSTS")
    return address


def matches(address: EndpointAddress, entry: str) -> bool:
    """Return whether an allow-list entry covers ``address``; ``*.suffix`` covers sub-domains, but not the suffix."""
    pattern = entry.strip().lower()
    head, colon, tail = pattern.rpartition(":")
    # An IPv6 address has colons of its own; with a port it is in brackets.
    if colon and tail.isdecimal() and (":" not in head or head.endswith("]")):
        if int(tail) != address.port:
            return False
        pattern = head
    if pattern.startswith("*."):
        return address.host.endswith(pattern[1:]) and len(address.host) > len(pattern) - 1
    return address.host == pattern.strip("[]").rstrip(".")


def checked_addresses(host: str, port: int, look_up: LookUp = socket.getaddrinfo) -> list[str]:
    """Return the same as ``allowed_addresses``, but raise the error of a model call.

    Raises:
        ModelCallError: the host is refused; the class is JOB.
        socket.gaierror: the name cannot be resolved.
    """
    try:
        return allowed_addresses(host, port, look_up)
    except ForbiddenAddressError as err:
        raise ModelCallError(str(err), ModelErrorClass.JOB, ModelErrorCode.BAD_ENDPOINT) from err


def _refusal(url: str, expectation: str) -> UnsupportedModelException:
    problem = Problem("imageProcessor.name", url.partition("?")[0][:80], f"expected {expectation}")
    return UnsupportedModelException("this endpoint may not be called", [problem])
