"""Targets and the names under which block lists are asked about them; pure.

1. IPv4: octets reversed before the zone. IPv6: the 32 nibbles of the whole address reversed (RFC 5782 section 2.4),
   made from its number: text forms abbreviate, and v4-mapped ones turn into IPv4 in many libraries.
2. An address that a user gives as ::ffff:192.0.2.1 is the IPv4 address 192.0.2.1. A test point is never rewritten so:
   ::ffff:7f00:2 is asked by its nibbles.
3. A domain goes as lower-case A-labels, and never to a list of addresses; an address never to a list of domains.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address

import idna

from engine.reputation.blocklist import BlockList, Family

MAX_NAME = 253
_LABEL = re.compile(r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?")


class TargetError(ValueError):
    """Not something that a block list can be asked about; one sentence for the user."""


@dataclass(frozen=True, slots=True, order=True)
class Target:
    """An address or a domain, in the form in which it is shown and compared."""

    text: str
    family: Family

    def __str__(self) -> str:
        return self.text


def target(text: str) -> Target:
    """Read a target as a user writes it.

    Raises:
        TargetError: it is neither an IP address nor a domain name.
    """
    given = text.strip().strip("[]")
    try:
        address = ip_address(given)
    except ValueError:
        return Target(_domain(given, text), Family.DOMAIN)
    if isinstance(address, IPv6Address):
        if address.scope_id:
            raise TargetError(f"{text!r} is an address of one link (expected one that the world can see)")
        if address.ipv4_mapped is None:
            return Target(str(address), Family.IPV6)
        address = address.ipv4_mapped
    return Target(str(address), Family.IPV4)


def _domain(given: str, text: str) -> str:
    if "@" in given or "/" in given:
        raise TargetError(f"{text!r} is no target (expected an IP address or a domain alone, for example example.org)")
    name = given.rstrip(".").lower()
    try:
        name = name if name.isascii() else idna.encode(name, uts46=True).decode("ascii")
    except idna.IDNAError as error:
        raise TargetError(f"{text!r} is no domain name ({error})") from None
    labels = name.split(".")
    if len(labels) < 2 or len(name) > MAX_NAME or not all(_LABEL.fullmatch(label) for label in labels):
        raise TargetError(f"{text!r} is neither an IP address nor a domain name (for example 192.0.2.1, example.org)")
    if labels[-1].isdigit():
        raise TargetError(f"{text!r} is not a whole IP address (expected four numbers, for example 192.0.2.1)")
    return name


def asked_name(blocklist: BlockList, labels: str) -> str:
    """The name to ask a list: an address (as it is written, test points too) reversed, or labels, before the zone."""
    return f"{_reversed(labels)}.{blocklist.asked_zone}"


def _reversed(text: str) -> str:
    try:
        address = ip_address(text)
    except ValueError:
        return text
    if isinstance(address, IPv4Address):
        return ".".join(reversed(str(address).split(".")))
    return ".".join(reversed(f"{int(address):032x}"))
