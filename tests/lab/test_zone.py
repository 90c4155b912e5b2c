"""Zone outcomes over UDP and TCP, asked with dnspython."""

from __future__ import annotations

import socket
import struct

import dns.exception
import dns.flags
import dns.message
import dns.query
import dns.rcode
import pytest

from engine.lab.process import LabProcess
from engine.lab.spec import Spec
from engine.lab.zone import Zones


def ask(lab: LabProcess, name: str, kind: str, *, tcp: bool = False, edns: bool = False) -> dns.message.Message:
    query = dns.message.make_query(name, kind, use_edns=0 if edns else None)
    over = dns.query.tcp if tcp else dns.query.udp
    return over(query, lab.dns[0], port=lab.dns_port, timeout=3)


def answers(message: dns.message.Message) -> list[str]:
    return [f"{rrset.name} {rdata}" for rrset in message.answer for rdata in rrset]


@pytest.mark.parametrize(
    ("name", "kind", "rcode", "answer"),
    [
        ("normal.lab", "MX", "NOERROR", ["normal.lab. 10 mx.normal.lab."]),
        ("NORMAL.Lab", "MX", "NOERROR", ["NORMAL.Lab. 10 mx.normal.lab."]),
        ("hosted-01.lab", "MX", "NOERROR", ["hosted-01.lab. 10 mx.hosting.lab."]),
        ("xn--bcher-kva.lab", "MX", "NOERROR", ["xn--bcher-kva.lab. 10 mx.xn--bcher-kva.lab."]),
        ("implicit.lab", "MX", "NOERROR", []),
        ("nothing.lab", "MX", "NOERROR", []),
        ("nothing.lab", "A", "NOERROR", []),
        ("null-mx.lab", "MX", "NOERROR", ["null-mx.lab. 0 ."]),
        ("alias.lab", "MX", "NOERROR", ["alias.lab. normal.lab.", "normal.lab. 10 mx.normal.lab."]),
        ("metadata.lab", "MX", "NOERROR", ["metadata.lab. 10 mx.metadata.lab."]),
        ("mx.metadata.lab", "A", "NOERROR", ["mx.metadata.lab. 169.254.169.254"]),
        ("literal.lab", "MX", "NOERROR", ["literal.lab. 10 127.20.0.1."]),
        ("a.mx-loop.lab", "A", "NOERROR", ["a.mx-loop.lab. b.mx-loop.lab.", "b.mx-loop.lab. a.mx-loop.lab."]),
        ("ipv6-only.lab", "MX", "NOERROR", ["ipv6-only.lab. 10 mx.ipv6-only.lab."]),
        ("mx.ipv6-only.lab", "AAAA", "NOERROR", ["mx.ipv6-only.lab. ::1"]),
        ("mx.ipv6-only.lab", "A", "NOERROR", []),
        ("blocked.lab", "MX", "NOERROR", []),  # names below it exist
        ("nxdomain.lab", "MX", "NXDOMAIN", []),
        ("gone.dangling.lab", "A", "NXDOMAIN", []),
        ("servfail.lab", "MX", "SERVFAIL", []),
        ("mx.mx-servfail.lab", "A", "SERVFAIL", []),
        ("refused.lab", "MX", "REFUSED", []),
        ("elsewhere.example", "MX", "REFUSED", []),
        ("probe.lab", "A", "NOERROR", ["probe.lab. 127.0.0.1"]),
        ("1.0.0.127.in-addr.arpa", "PTR", "NOERROR", ["1.0.0.127.in-addr.arpa. probe.lab."]),
        ("9.9.9.127.in-addr.arpa", "PTR", "NXDOMAIN", []),
    ],
)  # fmt: skip
def test_a_name_has_the_outcome_that_the_file_says(
    name: str, kind: str, rcode: str, answer: list[str], lab: LabProcess
) -> None:
    """Code and records are the same over UDP and TCP."""
    for tcp in (False, True):
        reply = ask(lab, name, kind, tcp=tcp)
        assert (rcode, sorted(answer)) == (dns.rcode.to_text(reply.rcode()), sorted(answers(reply)))


def test_an_mx_answer_brings_the_addresses(lab: LabProcess, described: Spec) -> None:
    """One query is enough where the server knows the hosts; a host whose look-up fails is not brought."""
    reply = ask(lab, "gmail-like.lab", "MX")
    brought = {str(rrset.name): str(rrset[0]) for rrset in reply.additional}
    assert brought == {f"{name}.": described.hosts[name].ip for name in ("aspmx.google.lab", "alt1.google.lab")}
    assert ask(lab, "mx-servfail.lab", "MX").additional == []


def test_negative_answers_carry_the_zone_s_soa(lab: LabProcess) -> None:
    """NXDOMAIN and no data say how long they hold (RFC 2308); a failure doesn't."""
    for name in ("nxdomain.lab", "nothing.lab"):
        assert [str(rrset.name) for rrset in ask(lab, name, "MX").authority] == ["lab."]
    assert ask(lab, "servfail.lab", "MX").authority == []


def test_an_answer_too_long_for_udp_is_truncated(lab: LabProcess) -> None:
    """TC at 512 bytes without EDNS; whole with EDNS, and over TCP."""
    short = ask(lab, "many-hosts.lab", "MX")
    assert (short.flags & dns.flags.TC, answers(short)) == (dns.flags.TC, [])
    for reply in (ask(lab, "many-hosts.lab", "MX", edns=True), ask(lab, "many-hosts.lab", "MX", tcp=True)):
        assert (reply.flags & dns.flags.TC, len(answers(reply))) == (0, 9)


def test_a_silent_name_gets_no_answer(lab: LabProcess) -> None:
    """The client's time-out is all there is, over UDP."""
    query = dns.message.make_query("dns-silent.lab", "MX")
    with pytest.raises(dns.exception.Timeout):
        dns.query.udp(query, lab.dns[0], port=lab.dns_port, timeout=0.2)


def test_bytes_that_are_no_query_do_no_harm(lab: LabProcess) -> None:
    """Malformed queries get FORMERR or nothing, and the next query its answer."""
    zones = Zones({}, {})
    header = struct.pack("!6H", 7, 0x0100, 1, 0, 0, 0)
    for junk in (b"", b"x" * 11, header, header + b"\xc0\x0c\x00\x01\x00\x01", header + b"\x3fab", b"\xff" * 40):
        reply = zones.answer(junk)
        assert reply is None or reply[3] & 0x0F == dns.rcode.FORMERR
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.sendto(junk, lab.dns)
    assert answers(ask(lab, "normal.lab", "MX"))


def test_every_host_has_its_name_both_ways(described: Spec) -> None:
    """Reverse names of the lab's servers lead back to their addresses."""
    for ip, host in described.servers().items():
        if ":" not in ip:
            reverse = ".".join(reversed(ip.split("."))) + ".in-addr.arpa"
            (name,) = described.records[reverse]["PTR"]
            assert ip in described.records[name]["A"], host
