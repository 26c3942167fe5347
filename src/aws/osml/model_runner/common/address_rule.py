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
# The prefix for NAT64 of a network's own, of which a longer one may be in use (RFC 8215).
_LOCAL_NAT64 = ipaddress.IPv6Network("64:ff9b:1::/48")
# In the middle of an address whose last 32 bits are an IPv4 address, local or global (ISATAP, RFC 5214).
_ISATAP, _ISATAP_LOCAL_BIT = 0x00005EFE, 0x02000000


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
    bits = int(address)
    is_isatap = bits >> 32 & 0xFFFFFFFF & ~_ISATAP_LOCAL_BIT == _ISATAP
    if is_isatap or any(address in network for network in _CARRIER_NETWORKS):
        inner.append(ipaddress.IPv4Address(bits & 0xFFFFFFFF))
    if address in _LOCAL_NAT64:
        # A network may translate any part of the prefix; the bits 64 to 71 are left out (RFC 6052, section 2.2).
        above, below = bits >> 64, bits & (1 << 56) - 1
        joined = above << 56 | below
        inner.extend(ipaddress.IPv4Address(joined >> shift & 0xFFFFFFFF) for shift in (40, 32, 24))
    return [each for each in inner if each is not None]
