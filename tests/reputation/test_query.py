"""Questions to real servers on loopback."""

from __future__ import annotations

import subprocess
import sys

import dns.flags
import dns.rcode
import dns.rrset
import pytest

from engine.reputation.query import Asker, QueryError, must_be_patched
from engine.reputation.verdict import Answer


def asked(server, name: str = "2.0.0.127.bl.example", kind: str = "A") -> Answer:
    return Asker([server.address], timeout_s=0.3).ask(name, kind)


def test_records_rcode_and_ttl_are_read(server, answer) -> None:
    """Several A records are all there."""
    server.scripts["bl.example"] = lambda query, *_: answer(query, "127.0.0.4", "127.0.0.10", ttl=180)
    found = asked(server)
    assert (found.rcode, sorted(found.records), found.ttl_s) == ("NOERROR", ["127.0.0.10", "127.0.0.4"], 180)
    assert found.latency_ms > 0


def test_a_name_that_does_not_exist_is_told(server) -> None:
    """NXDOMAIN is an answer, not an error."""
    found = asked(server)
    assert (found.rcode, found.records, found.error) == ("NXDOMAIN", (), "")


@pytest.mark.parametrize("rcode", [dns.rcode.SERVFAIL, dns.rcode.REFUSED, dns.rcode.FORMERR])
def test_an_rcode_that_is_no_answer_is_an_error(server, answer, rcode: dns.rcode.Rcode) -> None:
    """After each server was asked twice."""

    def script(query, *_):
        reply = answer(query)
        reply.set_rcode(rcode)
        return reply

    server.scripts["bl.example"] = script
    assert asked(server).error == dns.rcode.to_text(rcode)
    assert len(server.asked) == 2


def test_a_lost_packet_is_asked_for_again(server, answer) -> None:
    """Once more is enough, and the answer counts."""
    server.scripts["bl.example"] = lambda query, _, times: None if times == 1 else answer(query, "127.0.0.2")
    assert asked(server).records == ("127.0.0.2",)


def test_silence_is_a_time_out(silent_port) -> None:
    """Told in words."""
    assert Asker([silent_port], timeout_s=0.05).ask("2.0.0.127.bl.example").failure == "timed out"


def test_a_server_that_cannot_be_reached_is_told() -> None:
    """What the system says is no time-out."""
    assert "can't be reached" in Asker([("127.0.0.1", 0)], timeout_s=0.3).ask("2.0.0.127.bl.example").failure


def test_the_next_server_is_asked_when_one_fails(server, answer, silent_port) -> None:
    """One dead resolver of two costs time and no answer."""
    server.scripts["bl.example"] = lambda query, *_: answer(query, "127.0.0.2")
    found = Asker([silent_port, server.address], timeout_s=0.1).ask("2.0.0.127.bl.example")
    assert found.records == ("127.0.0.2",)


def test_a_truncated_answer_is_asked_for_over_tcp(server, answer) -> None:
    """A long TXT doesn't fit into a datagram."""

    def script(query, transport, _):
        if transport == "tcp":
            return answer(query, "x" * 200, kind="TXT")
        reply = answer(query)
        reply.flags |= dns.flags.TC
        return reply

    server.scripts["bl.example"] = script
    assert asked(server, kind="TXT").records == ("x" * 200,)
    assert [transport for transport, *_ in server.asked] == ["udp", "tcp"]


def test_truncated_over_tcp_too_is_an_error(server, answer) -> None:
    """Half an answer is none."""

    def script(query, *_):
        reply = answer(query)
        reply.flags |= dns.flags.TC
        return reply

    server.scripts["bl.example"] = script
    assert asked(server).error == "truncated"


def test_a_cname_is_followed_within_the_answer(server, answer) -> None:
    """As resolvers give it."""

    def script(query, *_):
        reply = answer(query)
        reply.answer.append(dns.rrset.from_text(query.question[0].name, 300, "IN", "CNAME", "other.example."))
        reply.answer.append(dns.rrset.from_text("other.example.", 60, "IN", "A", "127.0.0.2"))
        return reply

    server.scripts["bl.example"] = script
    found = asked(server)
    assert (found.records, found.ttl_s) == (("127.0.0.2",), 60)


def test_a_referral_is_no_clean_answer(server, answer) -> None:
    """A lame server that sends us elsewhere has not said that the target is unlisted."""

    def script(query, *_):
        reply = answer(query)
        reply.flags &= ~(dns.flags.RA | dns.flags.AA)
        reply.authority.append(dns.rrset.from_text("example.", 300, "IN", "NS", "ns.example."))
        return reply

    server.scripts["bl.example"] = script
    assert asked(server).error == "lame"


def test_garbage_is_no_answer(server) -> None:
    """Bytes that are no message are as good as silence."""
    server.scripts["bl.example"] = lambda *_: b"\x00\x01garbage"
    assert asked(server).error == "timed out"


def test_a_reply_that_contradicts_itself_is_no_answer(server, answer) -> None:
    """NXDOMAIN with an address beside it: neither listed nor clean."""

    def script(query, *_):
        reply = answer(query, "127.0.0.2")
        reply.set_rcode(dns.rcode.NXDOMAIN)
        return reply

    server.scripts["bl.example"] = script
    assert asked(server).error == "malformed"


def test_an_answer_to_another_question_is_none(server, answer) -> None:
    """An address of a name that nobody asked about says nothing of ours."""

    def script(query, *_):
        reply = answer(query)
        reply.answer.append(dns.rrset.from_text("other.example.", 60, "IN", "A", "127.0.0.2"))
        return reply

    server.scripts["bl.example"] = script
    assert asked(server).error == "malformed"


def test_a_name_too_long_is_not_asked(server) -> None:
    """254 octets fit nowhere."""
    found = asked(server, "a." * 125 + "bl.example")
    assert (found.failure, server.asked) == ("the name is too long to be asked", [])


def test_a_text_is_one_printable_line(server, answer) -> None:
    """What a stranger wrote reaches a terminal."""

    def script(query, *_):
        reply = answer(query)
        reply.answer.append(dns.rrset.from_text(query.question[0].name, 60, "IN", "TXT", '"red \\027[31m" "alert"'))
        return reply

    server.scripts["bl.example"] = script
    assert asked(server, kind="TXT").records == ("red  [31malert",)


def test_without_a_server_there_is_nobody_to_ask() -> None:
    """Said before the first question."""
    with pytest.raises(QueryError, match="--dns"):
        Asker([])


def test_what_shares_a_process_with_probes_must_be_patched() -> None:
    """An unpatched process would stop every greenlet for each question."""
    with pytest.raises(QueryError, match="engine monitor"):
        must_be_patched()
    script = (
        "from gevent import monkey; monkey.patch_all(); from engine.reputation.query import must_be_patched as m; m()"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", script], check=True)
