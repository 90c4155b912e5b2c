"""Laws of the DNS identity status, against a name server on loopback that can also fail, fall silent and cut short."""

from __future__ import annotations

import base64
import dataclasses
import socketserver
import threading

import dns.flags
import dns.message
import dns.rcode
import dns.rdatatype
import dns.rrset
import pytest

from engine.core.finding import Check
from engine.core.identity import Identity
from engine.net.resolver import Resolver
from engine.reputation.answer import Answer
from engine.reputation.dkim_key import read_key, rsa_bits
from engine.reputation.dmarc import find_policy, walk
from engine.reputation.dns_identity import dns_identity, generic
from engine.reputation.dns_lookup import DnsLookup

GOOD = Identity(
    "node", "probe.node.lab", "probe@node.lab", public_v4="127.1.0.1", public_v6="fd00::1", dkim_selectors=("s1",)
)
V6_REVERSE = ".".join(reversed("fd00" + "0" * 27 + "1")) + ".ip6.arpa"


def rsa_key(bits: int) -> str:
    """A key record's p=, with a modulus of that many bits."""

    def element(kind: int, content: bytes) -> bytes:
        size = len(content)
        length = bytes([size]) if size < 128 else b"\x82" + size.to_bytes(2)
        return bytes([kind]) + length + content

    modulus = b"\0" + (1 << bits - 1 | 1).to_bytes(bits // 8)
    key = element(0x30, element(2, modulus) + element(2, b"\1\0\1"))
    algorithm = element(0x30, bytes.fromhex("06092a864886f70d010101") + b"\x05\x00")
    return base64.b64encode(element(0x30, algorithm + element(3, b"\0" + key))).decode()


def zone() -> dict[tuple[str, str], list[str]]:
    """Where everything is as it should be."""
    key = rsa_key(2048)
    return {
        ("probe.node.lab", "A"): ["127.1.0.1"],
        ("probe.node.lab", "AAAA"): ["fd00::1"],
        ("probe.node.lab", "TXT"): ['"v=spf1 a -all"'],
        ("1.0.1.127.in-addr.arpa", "PTR"): ["probe.node.lab."],
        (V6_REVERSE, "PTR"): ["probe.node.lab."],
        ("node.lab", "MX"): ["10 probe.node.lab."],
        ("node.lab", "TXT"): ['"v=spf1 ip4:127.1.0.1 " "ip6:fd00::1 -all"', '"something else"'],
        ("_dmarc.node.lab", "TXT"): ['"v=DMARC1; p=reject"'],
        ("s1._domainkey.node.lab", "TXT"): [f'"v=DKIM1; p={key[:200]}" "{key[200:]}"'],
    }


@dataclasses.dataclass
class World:
    """The zones of one server and what it does to a name: servfail, refused, silent."""

    records: dict[tuple[str, str], list[str]]
    faults: dict[str, str] = dataclasses.field(default_factory=dict)
    asked: list[tuple[str, str]] = dataclasses.field(default_factory=list)

    def answer(self, wire: bytes, *, tcp: bool) -> bytes | None:
        query = dns.message.from_wire(wire)
        name, kind = str(query.question[0].name).rstrip(".").lower(), dns.rdatatype.to_text(query.question[0].rdtype)
        self.asked.append((name, kind))
        reply = dns.message.make_response(query)
        fault = self.faults.get(name)
        if fault == "silent":
            return None
        if fault == "cut" and not tcp:
            reply.flags |= dns.flags.TC
        elif fault in ("servfail", "refused"):
            reply.set_rcode(dns.rcode.from_text(fault.upper()))
        elif data := self.records.get((name, kind)):
            reply.answer.append(dns.rrset.from_text_list(f"{name}.", 60, "IN", kind, data, relativize=False))
        elif alias := self.records.get((name, "CNAME")):
            target = alias[0].rstrip(".")
            reply.answer.append(dns.rrset.from_text_list(f"{name}.", 60, "IN", "CNAME", alias, relativize=False))
            if data := self.records.get((target, kind)):
                reply.answer.append(dns.rrset.from_text_list(f"{target}.", 60, "IN", kind, data, relativize=False))
        elif not any(known == name or known.endswith(f".{name}") for known, _ in self.records):
            reply.set_rcode(dns.rcode.NXDOMAIN)
        return reply.to_wire()


@pytest.fixture
def world():
    """A name server over UDP and TCP at one port."""
    found = World(zone())

    class Datagram(socketserver.BaseRequestHandler):
        def handle(self):
            if reply := found.answer(self.request[0], tcp=False):
                self.request[1].sendto(reply, self.client_address)

    class Stream(socketserver.StreamRequestHandler):
        def handle(self):
            while head := self.rfile.read(2):
                reply = found.answer(self.rfile.read(int.from_bytes(head)), tcp=True) or b""
                self.wfile.write(len(reply).to_bytes(2) + reply)

    class Tcp(socketserver.ThreadingTCPServer):
        allow_reuse_address = daemon_threads = True

    for _ in range(20):
        udp = socketserver.ThreadingUDPServer(("127.0.0.1", 0), Datagram)
        try:
            tcp = Tcp(udp.server_address, Stream)
        except OSError:
            udp.server_close()
        else:
            break
    for server in (udp, tcp):
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    found.where = udp.server_address
    yield found
    for server in (udp, tcp):
        server.shutdown()
        server.server_close()


@pytest.fixture
def status(world):
    """The findings of the good identity, changed as told."""
    resolver = Resolver([world.where], allow_private=True, timeout_s=0.5, tries=1)

    def look(**changes):
        ask = DnsLookup([world.where], server_s=0.2, question_s=0.5)
        return dns_identity(dataclasses.replace(GOOD, **changes), resolver, ask, allow_private=True)

    yield look
    resolver.close()


def failed(findings, outcome=Check.FAIL):
    return [finding.check for finding in findings if finding.outcome is outcome]


def test_a_complete_identity_passes_everything(status):
    """Both addresses, HELO and sender domain."""
    findings = status()
    assert {finding.outcome for finding in findings} == {Check.PASS}
    assert [finding.check for finding in findings] == [
        *["public_address"] * 2, *["fcrdns"] * 2, "helo_name", "helo_resolves", "mail_from", "mail_from_domain",
        *["helo_ptr", "ptr_name"] * 2, *["spf_helo"] * 2, *["spf_mail_from"] * 2, "dkim", "dmarc",
    ]  # fmt: skip
    (helo, _), (sender, _) = ([each for each in findings if each.check == f"spf_{kind}"] for kind in
                              ("helo", "mail_from"))  # fmt: skip
    assert helo.say == "SPF of probe.node.lab for 127.1.0.1: pass by a, 1/10 look-ups."
    assert sender.seen["matched"] == "ip4:127.1.0.1"


@pytest.mark.parametrize(
    ("gone", "check"),
    [
        (("node.lab", "TXT"), "spf_mail_from"),
        (("probe.node.lab", "TXT"), "spf_helo"),
        (("_dmarc.node.lab", "TXT"), "dmarc"),
        (("s1._domainkey.node.lab", "TXT"), "dkim"),
    ],
)
@pytest.mark.parametrize("fault", ["servfail", "refused", "silent"])
def test_what_can_not_be_looked_up_is_unknown_and_never_missing(world, status, gone, check, fault):
    """The same name: taken out it fails, and says what to add; faulty it is unknown."""
    world.faults[gone[0]] = fault
    findings = status()
    assert check in failed(findings, Check.UNKNOWN)
    assert check not in failed(findings)


@pytest.mark.parametrize(
    ("gone", "check", "remedy"),
    [
        (("node.lab", "TXT"), "spf_mail_from", 'add node.lab. TXT "v=spf1 ip4:127.1.0.1 -all"'),
        (("probe.node.lab", "TXT"), "spf_helo", 'add probe.node.lab. TXT "v=spf1 ip4:127.1.0.1 -all"'),
        (("_dmarc.node.lab", "TXT"), "dmarc", 'add _dmarc.node.lab. TXT "v=DMARC1; p=reject"'),
        (("s1._domainkey.node.lab", "TXT"), "dkim", "publish one key, or take the selector out"),
        (("1.0.1.127.in-addr.arpa", "PTR"), "ptr", "ask whoever owns the address for one"),
    ],
)
def test_what_is_missing_fails_and_says_what_to_do(world, status, gone, check, remedy):
    """The record to add stands there."""
    del world.records[gone]
    finding = next(each for each in status() if each.check == check)
    assert finding.outcome is Check.FAIL
    assert remedy in finding.say


def test_a_refused_address_is_told_with_the_term_to_add(world, status):
    """SPF says no: by which term, after how many look-ups."""
    world.records["node.lab", "TXT"] = ['"v=spf1 mx:other.node.lab ip4:127.1.0.9 ~all"']
    finding = next(each for each in status() if each.check == "spf_mail_from")
    assert finding.outcome is Check.FAIL
    assert finding.say == (
        "SPF of node.lab for 127.1.0.1: softfail by ~all, 1/10 look-ups; add ip4:127.1.0.1 to the record."
    )
    assert (finding.seen["result"], finding.seen["lookups"]) == ("softfail", 1)


def test_the_helo_name_is_the_reverse_name(world, status):
    """Another name of ours is told; a provider's is told too."""
    world.records["1.0.1.127.in-addr.arpa", "PTR"] = ["127-1-0-1.dyn.provider.lab."]
    world.records["127-1-0-1.dyn.provider.lab", "A"] = ["127.1.0.1"]
    assert failed(status()) == ["helo_ptr", "ptr_name"]


@pytest.mark.parametrize(
    ("name", "ip", "made"),
    [
        ("host-203-0-113-7.provider.net", "203.0.113.7", True),
        ("7.113.0.203.provider.net", "203.0.113.7", True),
        ("cb007107.provider.net", "203.0.113.7", True),
        ("203000113007.provider.net", "203.0.113.7", True),
        ("dsl.provider.net", "203.0.113.7", True),
        ("vps12.provider.net", "203.0.113.7", True),
        ("customer.static.provider.net", "203.0.113.7", True),
        ("probe7.example.net", "203.0.113.7", False),
        ("mx-113-7.example.net", "203.0.113.7", False),
        ("statics.example.net", "203.0.113.7", False),
        ("2001-0db8-0000-0000-0000-0000-0000-0007.provider.net", "2001:db8::7", True),
        ("probe.example.net", "2001:db8::7", False),
    ],
)
def test_a_name_that_a_provider_hands_out_is_recognised(name, ip, made):
    """By the address in it, or by what it calls the line."""
    assert generic(name, ip) is made


# --- DMARC


def policy(domain: str, records: dict[str, str | list[str]]):
    def ask(name: str, kind: str) -> Answer:
        held = records.get(name.removeprefix("_dmarc."), [])
        return Answer(failure="timeout") if held == "?" else Answer(tuple([held] if isinstance(held, str) else held))

    return find_policy(domain, ask)


def test_the_walk_asks_at_most_eight_names():
    """RFC 9989 section 4.10: a long name goes on with its last seven labels."""
    assert walk("a.b.example.org") == ["a.b.example.org", "b.example.org", "example.org", "org"]
    long = walk("a.b.c.d.e.f.g.h.mail.example.org")
    assert long[1] == "e.f.g.h.mail.example.org"
    assert len(long) == 8


@pytest.mark.parametrize(
    ("records", "at", "stated"),
    [
        ({"a.example.org": "v=DMARC1; p=none", "example.org": "v=DMARC1; p=reject"}, "a.example.org", "none"),
        ({"example.org": "v=DMARC1; p=reject; sp=quarantine"}, "example.org", "quarantine"),
        ({"example.org": "v=DMARC1; p=reject"}, "example.org", "reject"),
        ({"example.org": "v = DMARC1;p=Reject;t=y"}, "example.org", "reject"),
        ({"example.org": "v=DMARC1; p=reject", "org": "v=DMARC1; p=none; psd=y"}, "example.org", "reject"),
        ({"org": "v=DMARC1; p=none; psd=y"}, "org", "none"),
        ({"example.org": "v=DMARC1; p=none; psd=n", "org": "v=DMARC1; p=reject"}, "example.org", "none"),
        ({"a.example.org": ["v=DMARC1; p=none", "v=DMARC1; p=reject"], "example.org": "v=DMARC1; p=reject"},
         "example.org", "reject"),
        ({"a.example.org": ["v=spf1 -all", "v=DMARC1; p=none"]}, "a.example.org", "none"),
        ({"a.example.org": "v=DMARC1; rua=mailto:d@example.org"}, "a.example.org", "none"),
        ({"a.example.org": "v=DMARC1; p=whatever"}, "a.example.org", ""),
        ({"a.example.org": "v=DMARC10; p=none"}, "", ""),
        ({}, "", ""),
        ({"a.example.org": "?"}, "", ""),
        ({"org": "?"}, "", ""),
    ],
)  # fmt: skip
def test_the_policy_that_holds(records, at, stated):
    """The domain's own, its organisation's (for domains below by sp=), its suffix's; two records are none."""
    found = policy("a.example.org", records)
    assert (found.name, found.policy) == (at, stated)
    assert bool(found.failure) == ("?" in records.values())


# --- DKIM


@pytest.mark.parametrize(
    ("record", "problem", "bits"),
    [
        (f"v=DKIM1; k=rsa; p={rsa_key(2048)}", "", 2048),
        (f"p={rsa_key(1024)}", "", 1024),
        (f"v=DKIM1; p={rsa_key(512)}", "512 bits", 512),
        ("v=DKIM1; p=", "revoked", 0),
        ("v=DKIM1; k=rsa", "no key", 0),
        ("v=DKIM2; p=AAAA", "version", 0),
        ("v=DKIM1; p=AAAA", "no RSA key", 0),
        ("v=DKIM1; p=A", "not base64", 0),
        ("v=DKIM1; k=dsa; p=AAAA", "key type", 0),
        (f"v=DKIM1; k=ed25519; p={base64.b64encode(bytes(32)).decode()}", "", 256),
        ("v=DKIM1; k=ed25519; p=AAAA", "Ed25519", 256),
    ],
)
def test_a_key_is_worth_what_a_receiver_could_do_with_it(record, problem, bits):
    """RFC 6376 section 3.6.1, RFC 8301, RFC 8463."""
    key = read_key(record)
    assert problem in key.problem
    assert bool(key.problem) == bool(problem)
    assert key.bits == bits


def test_a_key_in_test_mode_or_short_works_with_a_remark():
    """It is told, and no failure."""
    key = read_key(f"v=DKIM1; t=s:y; p={rsa_key(1024)}")
    assert (key.testing, key.remark, key.problem) == (True, "2048 bits would be better", "")


@pytest.mark.parametrize("cut", range(0, 60, 7))
def test_a_key_that_is_cut_off_has_no_bits(cut):
    """Nothing breaks on what is no key."""
    assert rsa_bits(base64.b64decode(rsa_key(1024))[:cut]) == 0


# --- the look-up


def test_an_answer_that_does_not_fit_is_asked_for_over_tcp(world):
    """And TXT strings are joined without a space."""
    world.faults["node.lab"] = "cut"
    answer = DnsLookup([world.where])("node.lab", "TXT")
    assert set(answer.values) == {"v=spf1 ip4:127.1.0.1 ip6:fd00::1 -all", "something else"}
    assert len(world.asked) == 2


def test_an_alias_is_followed_inside_the_answer(world):
    """A key that is kept elsewhere is found."""
    world.records["s2._domainkey.node.lab", "CNAME"] = ["s1._domainkey.node.lab."]
    ask = DnsLookup([world.where])
    assert ask("s2._domainkey.node.lab", "TXT") == ask("s1._domainkey.node.lab", "TXT")


def test_void_and_failure_are_told_apart(world):
    """No such name, no such type, no answer, no server."""
    ask = DnsLookup([world.where], server_s=0.1, question_s=0.3)
    assert ask("absent.node.lab", "A") == Answer(nxdomain=True)
    assert ask("node.lab", "A") == Answer()
    world.faults |= {"a.lab": "servfail", "b.lab": "silent"}
    assert ask("a.lab", "A").failure == "servfail"
    assert ask("b.lab", "A").failure == "timeout"
    assert DnsLookup([])("node.lab", "A").failure == "no name server"
    assert DnsLookup([world.where], all_s=0.0)("node.lab", "A").failure == "timeout"


def test_the_next_server_is_asked_when_one_fails(world):
    """A dead one costs its time-out, and nothing else."""
    dead = ("127.0.0.1", 1)
    assert DnsLookup([dead, world.where], server_s=0.2)("probe.node.lab", "A").values == ("127.1.0.1",)
