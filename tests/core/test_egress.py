"""Laws of learning whether this machine gets out, with outcomes as data."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from engine.core.egress import Egress, neighbourhood


def silent(egress: Egress, site: str, network: str) -> None:
    egress.started(site, {network})
    egress.failed(site, timed_out=True)
    egress.ended(site, {network})


def test_three_sites_are_tried_at_once_and_no_more():
    """One session each, until one connects or ends."""
    egress = Egress()
    for n in range(3):
        assert not egress.waits
        assert egress.admits(f"s{n}", {"10.0.0.0/16"})
        egress.started(f"s{n}", {"10.0.0.0/16"})
    assert egress.waits
    assert not egress.admits("s0", {"10.0.0.0/16"})
    egress.connected()
    assert egress.proven


def test_six_silent_sites_in_different_networks_prove_it_closed():
    """The second three lie in other /16s than all before; five are not enough."""
    egress = Egress()
    for n in range(3):
        silent(egress, f"s{n}", "10.0.0.0/16")
    assert not egress.admits("near", {"10.0.0.0/16"})
    for n in range(3):
        assert not egress.closed
        assert egress.admits(f"t{n}", {f"10.{n + 1}.0.0/16"})
        silent(egress, f"t{n}", f"10.{n + 1}.0.0/16")
    assert egress.closed


def test_a_refused_connect_proves_nothing():
    """Somebody spoke: another site takes its place."""
    egress = Egress()
    for n in range(50):
        egress.started(f"s{n}", {f"10.{n}.0.0/16"})
        egress.failed(f"s{n}", timed_out=True)
        egress.failed(f"s{n}", timed_out=False)
        egress.ended(f"s{n}", {f"10.{n}.0.0/16"})
        assert not egress.closed
        assert not egress.waits


def test_sites_that_tell_nothing_new_do_not_count():
    """Retries, and neighbours of those that were silent."""
    egress = Egress()
    for n in range(3):
        silent(egress, f"s{n}", "10.0.0.0/16")
    for n in range(20):
        egress.started(f"again{n}", (), counts=False)
        egress.failed(f"again{n}", timed_out=True)
        egress.ended(f"again{n}", {"10.0.0.0/16"})
    assert not egress.closed


@given(st.lists(st.tuples(st.integers(0, 9), st.sampled_from(["silent", "refused", "connected"])), max_size=40))
@settings(max_examples=150, deadline=None)
def test_it_is_closed_only_when_nobody_ever_connected(course):
    """Whatever the order, and at most three sessions are under way."""
    egress, connected = Egress(), False
    for site, (network, outcome) in enumerate(course):
        where = {f"10.{network}.0.0/16"}
        if egress.waits or not egress.admits(str(site), where):
            continue
        egress.started(str(site), where)
        assert egress.flying <= 3
        if outcome == "connected":
            connected = True
            egress.connected()
        else:
            egress.failed(str(site), timed_out=outcome == "silent")
        egress.ended(str(site), where)
    assert not (connected and egress.closed)
    assert not egress.closed or len({network for network, outcome in course if outcome == "silent"}) >= 4


def test_a_neighbourhood_is_a_16_or_a_32():
    """IPv4 and IPv6."""
    assert neighbourhood("10.1.2.3") == neighbourhood("10.1.200.3") == "10.1.0.0/16"
    assert neighbourhood("2001:db8:1::1") == "2001:db8::/32"
