"""Looks up the addresses of a URL's host, for endpoints and for images; see ``address_rule``."""

import ipaddress
import socket
from collections.abc import Callable, Sequence
from typing import Any

from .address_rule import IPAddress, is_forbidden

LookUp = Callable[..., Sequence[tuple[Any, ...]]]


class ForbiddenAddressError(OSError):
    """A host resolves to a forbidden address."""


def literal_address(host: str) -> IPAddress | None:
    """Return the address that a host name denotes, in any form that the C library reads; None for a real name.

    ``2852039166``, ``0xa9fea9fe`` and ``169.254.43518`` are all 169.254.169.254.
    """
    try:
        return ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        pass
    try:
        return ipaddress.IPv4Address(socket.inet_aton(host))
    except (OSError, UnicodeEncodeError):
        return None


def allowed_addresses(host: str, port: int, look_up: LookUp = socket.getaddrinfo) -> list[str]:
    """Resolve ``host`` and return its addresses in the resolver's order, if all of them are allowed.

    A single forbidden address refuses the host, because no legitimate host shares a name with the metadata service.

    Raises:
        ForbiddenAddressError: the host is refused.
        socket.gaierror: the name cannot be resolved.
    """
    found = [str(entry[4][0]) for entry in look_up(host, port, type=socket.SOCK_STREAM)]
    if any(is_forbidden(ipaddress.ip_address(text.partition("%")[0])) for text in found):
        raise ForbiddenAddressError(f"{host} resolves to a link-local, metadata or multicast address")
    return list(dict.fromkeys(found))
