"""Targets, and the names under which lists are asked about them."""

from __future__ import annotations

from ipaddress import IPv6Address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.reputation.blocklist import Family, Kind
from engine.reputation.question import TargetError, asked_name, target


def test_an_ipv4_address_is_asked_with_its_octets_reversed(blocklist) -> None:
    """RFC 5782 section 2.1: 192.0.2.99 at bl.example is 99.2.0.192.bl.example."""
    assert asked_name(blocklist("bl.example"), "192.0.2.99") == "99.2.0.192.bl.example"


def test_an_ipv6_address_is_asked_by_the_nibbles_of_the_whole_address(blocklist) -> None:
    """RFC 5782 section 2.4: not of the abbreviated text."""
    name = asked_name(blocklist("bl.example"), "2001:db8::1")
    assert name == "1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.8.b.d.0.1.0.0.2.bl.example"


def test_the_ipv6_test_point_is_no_ipv4_address(blocklist) -> None:
    """::ffff:7f00:2 is v4-mapped, and asked by its 32 nibbles all the same."""
    name = asked_name(blocklist("bl.example"), "::ffff:7f00:2")
    assert name == "2.0.0.0.0.0.f.7.f.f.f.f." + "0." * 20 + "bl.example"


@given(st.integers(0, 2**128 - 1))
def test_nibbles_lead_back_to_the_address(number: int) -> None:
    """Whatever the address: 32 labels of one hexadecimal digit, and read backwards they are its number."""
    from engine.reputation.question import _reversed

    labels = _reversed(str(IPv6Address(number))).split(".")
    assert len(labels) == 32
    assert int("".join(reversed(labels)), 16) == number


def test_a_domain_is_asked_as_it_is(blocklist) -> None:
    """Labels before the zone."""
    assert asked_name(blocklist("uri.example", kind=Kind.DOMAIN), "spam.example") == "spam.example.uri.example"


@pytest.mark.parametrize(
    ("text", "shown", "family"),
    [
        (" 192.0.2.1 ", "192.0.2.1", Family.IPV4),
        ("2001:DB8::0:1", "2001:db8::1", Family.IPV6),
        ("[2001:db8::1]", "2001:db8::1", Family.IPV6),
        ("::ffff:192.0.2.1", "192.0.2.1", Family.IPV4),
        ("Example.ORG.", "example.org", Family.DOMAIN),
        ("Bücher.example", "xn--bcher-kva.example", Family.DOMAIN),
    ],
)
def test_a_target_has_one_form(text: str, shown: str, family: Family) -> None:
    """Addresses as `ipaddress` writes them, a mapped one as the IPv4 address that it is; domains as A-labels."""
    found = target(text)
    assert (found.text, found.family) == (shown, family)


NO_TARGETS = ["localhost", "192.0.2", "192.0.2.256", "a@b.example", "http://a.example/", "fe80::1%eth0", "a..example"]


@pytest.mark.parametrize("text", ["", "a b.example", "x" * 64 + ".example", "a." * 130 + "example", *NO_TARGETS])
def test_what_is_no_target_is_refused_in_a_sentence(text: str) -> None:
    """Half an address is no domain, and an e-mail address no target."""
    with pytest.raises(TargetError, match=r"expected|neither|no domain"):
        target(text)
