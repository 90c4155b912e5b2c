"""Which addresses we may connect to.

1. A mail host on the Internet has a global unicast address; what else DNS gives may point at us or at a neighbour.
2. `allow_private` admits the networks of test set-ups: loopback, RFC 1918, RFC 6598 and unique local (RFC 4193).
3. Link-local and metadata addresses, unspecified, multicast and reserved ones are never admitted.
"""

from __future__ import annotations

from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address

_PRIVATE_V4 = tuple(map(IPv4Network, ("127.0.0.0/8", "10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10")))
_PRIVATE_V6 = (IPv6Network("::1/128"), IPv6Network("fc00::/7"))
# Metadata services of clouds that don't live in 169.254/16: Azure, Alibaba, AWS.
_METADATA = frozenset(map(ip_address, ("168.63.129.16", "100.100.100.200", "fd00:ec2::254")))
_GLOBAL_V6 = IPv6Network("2000::/3")  # leaves out v4-mapped (::ffff:0:0/96) and NAT64 (64:ff9b::/96, RFC 6052) too
_NEWER_THAN_PYTHON = IPv6Network("3fff::/20")  # documentation, RFC 9637


@lru_cache(maxsize=8192)  # a run's addresses repeat, and parsing one is half the cost of a warm look-up
def admissible(address: str, *, allow_private: bool = False) -> bool:
    """Whether a mail host at `address` (text of an IPv4 or IPv6 address) may be dialled."""
    ip = ip_address(address)
    if ip in _METADATA:
        return False
    if isinstance(ip, IPv4Address):
        return _public_v4(ip) or (allow_private and any(ip in net for net in _PRIVATE_V4))
    return _public_v6(ip) or (allow_private and any(ip in net for net in _PRIVATE_V6))


def is_literal(name: str) -> bool:
    """Whether a host name is an address instead of a name: `192.0.2.1`, `[192.0.2.1]`, `[IPv6:2001:db8::1]`."""
    if not (name[-1:].isdigit() or "]" in name or ":" in name):  # no top-level domain ends in a digit
        return False
    text = name.strip("[]").removeprefix("ipv6:").removeprefix("IPv6:")
    try:
        ip_address(text)
    except ValueError:
        return False
    return True


def _public_v4(ip: IPv4Address) -> bool:
    return ip.is_global and not ip.is_multicast


def _public_v6(ip: IPv6Address) -> bool:
    if ip not in _GLOBAL_V6 or ip in _NEWER_THAN_PYTHON or not ip.is_global:
        return False
    return ip.sixtofour is None or _public_v4(ip.sixtofour)
