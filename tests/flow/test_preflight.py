"""Preflight against a name server that knows one good identity."""

from __future__ import annotations

import dataclasses
import socketserver
import threading

import dns.flags
import dns.message
import dns.rcode
import dns.rdatatype
import dns.rrset
import pytest

from engine.core.identity import Identity
from engine.core.listing import Check as ListCheck
from engine.core.listing import Listing, Severity, Status
from engine.flow.preflight import Check, preflight
from engine.net.resolver import Resolver

GOOD = Identity("node", "probe.node.lab", "probe@node.lab", public_v4="127.1.0.1")
RECORDS = {
    ("probe.node.lab", "A"): "127.1.0.1",
    ("1.0.1.127.in-addr.arpa", "PTR"): "probe.node.lab.",
    ("2.0.1.127.in-addr.arpa", "PTR"): "other.node.lab.",
    ("4.0.1.127.in-addr.arpa", "PTR"): "sick.lab.",
    ("other.node.lab", "A"): "127.1.0.9",
    ("node.lab", "MX"): "10 probe.node.lab.",
    ("null.lab", "MX"): "0 .",
    ("bare.lab", "TXT"): "x",
}
SICK = ("sick.lab", "5.0.1.127.in-addr.arpa")


def answer(wire: bytes) -> bytes:
    query = dns.message.from_wire(wire)
    name, kind = str(query.question[0].name).rstrip("."), dns.rdatatype.to_text(query.question[0].rdtype)
    reply = dns.message.make_response(query)
    if (name, kind) in RECORDS:
        data = [RECORDS[name, kind]]
        reply.answer.append(dns.rrset.from_text_list(f"{name}.", 60, "IN", kind, data, relativize=False))
    elif name in SICK:
        reply.set_rcode(dns.rcode.SERVFAIL)
    elif not any(known == name for known, _ in RECORDS):
        reply.set_rcode(dns.rcode.NXDOMAIN)
    return reply.to_wire()


class Datagram(socketserver.BaseRequestHandler):
    def handle(self):
        self.request[1].sendto(answer(self.request[0]), self.client_address)


class Stream(socketserver.StreamRequestHandler):
    def handle(self):
        while head := self.rfile.read(2):
            reply = answer(self.rfile.read(int.from_bytes(head, "big")))
            self.wfile.write(len(reply).to_bytes(2, "big") + reply)


def both():
    """Servers at one port; a port that is free for UDP may be somebody's for TCP."""
    while True:
        udp = socketserver.UDPServer(("127.0.0.1", 0), Datagram)
        try:
            return udp, socketserver.ThreadingTCPServer(udp.server_address, Stream)
        except OSError:
            udp.server_close()


@pytest.fixture(scope="module")
def resolver():
    """A resolver on a server of RECORDS; the names of SICK fail."""
    udp, tcp = both()
    tcp.daemon_threads, tcp.block_on_close = True, False
    for server in (udp, tcp):
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    made = Resolver([udp.server_address], allow_private=True, timeout_s=3)
    yield made
    made.close()
    for server in (udp, tcp):
        server.shutdown()
        server.server_close()


def outcomes(resolver, **changes):
    """{check: outcome} of the good identity with these changes."""
    found = preflight(dataclasses.replace(GOOD, **changes), resolver, allow_private=True)
    assert all(finding.say.endswith(".") for finding in found)
    return {finding.check: finding.outcome for finding in found}


def test_a_good_identity_passes_every_check(resolver):
    """Public address, confirmed reverse name, HELO that leads to us, a sender that takes mail."""
    assert outcomes(resolver) == dict.fromkeys(
        ["public_address", "fcrdns", "helo_name", "helo_resolves", "mail_from", "mail_from_domain"], Check.PASS
    )


@pytest.mark.parametrize(
    "name",
    [
        "localhost",
        "me.localdomain",
        "127.1.0.1",
        "[127.1.0.1]",
        "probe",
        "gmail.com",
        "mail.gmail.com",
        "mx1.google.com",
        "a.mail.protection.outlook.com",
        "web.de",
    ],
)
def test_names_that_are_not_ours_are_refused(resolver, name):
    """Neither a machine's own name, nor an address, nor a provider's name greets anybody or sends mail."""
    found = outcomes(resolver, helo_name=name, mail_from=f"probe@{name}")
    assert (found["helo_name"], found["mail_from"]) == (Check.FAIL, Check.FAIL)
    assert "helo_resolves" not in found


def test_a_sender_is_never_empty(resolver):
    """MAIL FROM:<> is for bounces; we have a mailbox."""
    assert outcomes(resolver, mail_from="")["mail_from"] is Check.FAIL


@pytest.mark.parametrize(
    ("name", "outcome"), [("absent.lab", Check.FAIL), ("other.node.lab", Check.FAIL), ("sick.lab", Check.UNKNOWN)]
)
def test_the_helo_name_leads_to_us(resolver, name, outcome):
    """A name without address or with another's is refused; one that can't be looked up is unknown, not refused."""
    assert outcomes(resolver, helo_name=name)["helo_resolves"] is outcome


@pytest.mark.parametrize(
    ("domain", "outcome"),
    [
        ("null.lab", Check.FAIL),
        ("absent.lab", Check.FAIL),
        ("bare.lab", Check.FAIL),
        ("sick.lab", Check.UNKNOWN),
        ("other.node.lab", Check.PASS),
    ],
)
def test_the_sender_takes_mail(resolver, domain, outcome):
    """A MAIL FROM domain with null MX, without any host, or that isn't there is refused."""
    assert outcomes(resolver, mail_from=f"p@{domain}")["mail_from_domain"] is outcome


@pytest.mark.parametrize(
    ("address", "check", "outcome"),
    [
        ("127.1.0.2", "fcrdns", Check.FAIL),
        ("127.1.0.3", "ptr", Check.FAIL),
        ("127.1.0.4", "fcrdns", Check.UNKNOWN),
        ("127.1.0.5", "ptr", Check.UNKNOWN),
    ],
)
def test_the_source_has_a_confirmed_reverse_name(resolver, address, check, outcome):
    """No PTR, or one that doesn't lead back, is refused; what can't be looked up is unknown."""
    assert outcomes(resolver, public_v4=address)[check] is outcome


def test_a_private_source_is_for_test_networks(resolver):
    """Without `allow_private` the lab's address is none that the world sees."""
    found = {finding.check: finding for finding in preflight(GOOD, resolver)}
    assert found["public_address"].outcome is Check.FAIL
    assert "bind_address" in found["public_address"].say


# --- block lists


def check(status: Status, *listings: tuple[str, Severity], reliable: bool = True) -> ListCheck:
    found = tuple(Listing(name, "127.0.0.2", severity, "seen sending spam") for name, severity in listings)
    return ListCheck("127.1.0.1", "zen", status, 0.0, found, reliable=reliable)


@pytest.mark.parametrize(
    ("checks", "outcomes"),
    [
        ([check(Status.CLEAN)], [Check.PASS]),
        ([check(Status.LISTED, ("sbl", Severity.CRITICAL))], [Check.FAIL]),
        ([check(Status.LISTED, ("pbl", Severity.INFO))], [Check.FAIL]),
        ([check(Status.LISTED, ("css", Severity.HIGH))], [Check.PASS]),
        ([check(Status.LISTED, ("sbl", Severity.CRITICAL), reliable=False)], [Check.UNKNOWN]),
        ([check(Status.CLEAN, reliable=False)], [Check.UNKNOWN]),
        ([check(Status.CLEAN), check(Status.REFUSED)], [Check.UNKNOWN]),
        ([check(Status.CLEAN), check(Status.ERROR), check(Status.SUSPECT)], [Check.UNKNOWN]),
        ([check(Status.LISTED, ("pbl", Severity.INFO)), check(Status.ERROR)], [Check.FAIL, Check.UNKNOWN]),
        ([], [Check.UNKNOWN]),
    ],
)
def test_a_critical_or_a_policy_list_forbids(resolver, checks, outcomes):
    """Lesser listings don't; a list that gave no answer is unknown, and never clean."""
    findings = preflight(GOOD, resolver, allow_private=True, listed=lambda ip: checks)
    assert [each.outcome for each in findings if each.check == "block_list"] == outcomes
