"""The rule of forbidden addresses: one for endpoints and images, in any form of the address. Pure: no socket.

The network of the worker has instance metadata and container credentials on link-local addresses. Loopback and private
addresses are allowed here: a model or an image store may be in the same network.
"""

import ipaddress

IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address

# Instance metadata and pod identity over IPv6 are unique local addresses, not link-local ones.
_METADATA_NETWORK = ipaddress.IPv6Network("fd00:ec2::/32")
# IPv6 networks whose last 32 bits are an IPv4 address: NAT64 (RFC 6052, RFC 8215), the IPv4-translated addresses of
# SIIT (RFC 2765) and the deprecated ::a.b.c.d.
_CARRIER_NETWORKS = tuple(map(ipaddress.IPv6Network, ("64:ff9b::/96", "64:ff9b:1::/48", "::ffff:0:0:0/96", "::/96")))


def is_forbidden(address: IPAddress) -> bool:
    """Return True for link-local, metadata and multicast addresses, and for IPv6 addresses that embed them."""
    return any(
        inner.is_link_local
        or inner.is_multicast
        or (isinstance(inner, ipaddress.IPv6Address) and inner in _METADATA_NETWORK)
        for inner in _with_inner_addresses(address)
    )


def _with_inner_addresses(address: IPAddress) -> list[IPAddress]:
    """Return ``address`` and the IPv4 addresses that it embeds."""
    if isinstance(address, ipaddress.IPv4Address):
        return [address]
    inner: list[IPAddress | None] = [address, address.ipv4_mapped, address.sixtofour]
    inner.extend(address.teredo or ())
    if any(address in network for network in _CARRIER_NETWORKS):
        inner.append(ipaddress.IPv4Address(int(address) & 0xFFFFFFFF))
    return [each for each in inner if each is not None]
