"""Each persona says what lab.yaml says, over real sockets."""

from __future__ import annotations

import os
import re
import smtplib
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest

from engine.lab.process import LabProcess
from engine.lab.spec import Spec

Dial = Callable[[str], smtplib.SMTP]
# A persona, a host of it and the beginning of its greeting; then commands with the beginnings of their replies. `open`
# is EHLO and MAIL, an address alone is its RCPT, (x5) is five times the same.
TRANSCRIPTS = """
normal at mx.normal.lab: 220 mx.normal.lab
    open
    ada@normal.lab = 250 2.1.5
    ADA+news@Normal.LAB = 250 2.1.5
    adda@normal.lab = 550 5.1.1
    ada@plain.lab = 554 5.7.1
    RCPT TO:<@> = 501 5.1.3
    RCPT ada = 501 5.5.4
    MAIL FROM:<x@probe.lab> = 503 5.5.1
    RSET = 250 2.0.0
    ada@normal.lab = 503 5.5.1
    NOOP = 250
    VRFY ada = 252
    WHO = 502
    QUIT = 221
smtputf8 at mx.eai.lab: 220
    open
    jörg@eai.lab = 501 5.1.3
    RSET = 250
    MAIL FROM:<probe@probe.lab> SMTPUTF8 = 250
    jörg@eai.lab = 250
    ärg@eai.lab = 550 5.1.1
plain at mx.plain.lab: 220
    open
    STARTTLS = 502
one-at-a-time at mx.one-at-a-time.lab: 220
    open
    ada@one-at-a-time.lab = 250
helo-only at mx.helo-only.lab: 220
    EHLO probe.lab = 502
    HELO probe.lab = 250
    MAIL FROM:<probe@probe.lab> = 250 2.1.0
no-codes at mx.no-codes.lab: 220
    EHLO probe.lab = 250 mx.
    MAIL FROM:<probe@probe.lab> = 250 OK
    x@no-codes.lab = 550 No such
folded at mx.folded.lab: 220
    open
    x@folded.lab = 550 5.1.1 The email account that you tried to reach
tls-only at mx.tls-only.lab: 220
    EHLO probe.lab = 250 mx.
    MAIL FROM:<probe@probe.lab> = 530 5.7.0
tls-unavailable at mx.tls-unavailable.lab: 220
    EHLO probe.lab = 250 mx.
    STARTTLS = 454 4.7.0
    MAIL FROM:<probe@probe.lab> = 250 2.1.0
catch-all at mx.catch-all.lab: 220
    open
    q8x@catch-all.lab = 250
accept-then-bounce at mx.accept-then-bounce.lab: 220
    open
    q8x@accept-then-bounce.lab = 250
    DATA = 354
    . = 554 5.1.1
refuse-all at mx.refuse-all.lab: 220
    open
    postmaster@refuse-all.lab = 550 5.1.1
bare-refusals at mx.bare-refusals.lab: 220
    open
    ada@bare-refusals.lab = 250
    x@bare-refusals.lab = 550 Rejected
rejects-all at mx.rejects-all.lab: 220
    open
    postmaster@rejects-all.lab = 550 Rejected
turncoat at mx.turncoat.lab: 220
    open
    x@turncoat.lab = 550 5.1.1
greylisting at mx.greylisting.lab: 220
    open
    ada@greylisting.lab = 450 4.2.0
greylisting-451 at mx.greylisting-451.lab: 220
    open
    ada@greylisting-451.lab = 451 4.7.1 Greylisting
greylisting-delay at mx.greylisting-delay.lab: 220
    open
    ada@greylisting-delay.lab = 451 4.7.1 Greylisted, please try again in 2 seconds
greylisting-silent at mx.greylisting-silent.lab: 220
    open
    ada@greylisting-silent.lab = 451 4.3.0
greylisting-forever at mx.greylisting-forever.lab: 220
    open
    ada@greylisting-forever.lab = 450 4.2.0
busy-once at mx.busy-once.lab: 421 4.3.2
busy-rcpt at mx.busy-rcpt.lab: 220
    open
    ada@busy-rcpt.lab = 451 4.3.2
busy-always at mx.busy-always.lab: 421 4.3.2
blocking-greeting at greeting.blocked.lab: 554 greeting.blocked.lab
    EHLO probe.lab = 503
    QUIT = 221
blocking-mail at mail.blocked.lab: 220
    EHLO probe.lab = 250
    MAIL FROM:<probe@probe.lab> = 550 5.7.1
blocking-rcpt at rcpt.blocked.lab: 220
    open
    ada@blocking-rcpt.lab = 554 5.7.1 Service unavailable; Client host [127.0.0.1]
blocking-later at later.blocked.lab: 220
    open
    ada@blocking-later.lab = 250
no-ptr at no-ptr.blocked.lab: 220
    open
    ada@no-ptr.lab = 550 5.7.25
helo-critic at helo.blocked.lab: 220
    EHLO probe.lab = 550 5.7.1 <probe.lab>
    HELO probe.lab = 550 5.7.1
    MAIL FROM:<probe@probe.lab> = 503
sender-critic at sender.blocked.lab: 220
    EHLO probe.lab = 250
    MAIL FROM:<probe@probe.lab> = 550 5.1.8
postscreen at postscreen.blocked.lab: 220
    open
    ada@postscreen.lab = 550 5.3.2
postscreen-drop at postscreen-drop.blocked.lab: 521 5.3.2
postscreen-patient at mx.postscreen-patient.lab: 220
    open
rate-limiting at rate.blocked.lab: 220
    open
    ada@rate-limiting.lab = 250 (x5)
    ada@rate-limiting.lab = 421 4.7.28
relay-denied at mx.relay-denied.lab: 220
    open
    ada@relay-denied.lab = 554 5.7.1
auth-only at mx.auth-only.lab: 220
    EHLO probe.lab = 250 mx.
    MAIL FROM:<probe@probe.lab> = 530 5.7.0
prohibiting at mx.prohibiting.lab: 220
    open
    ada@prohibiting.lab = 550 5.7.1
no-mail at mx.no-mail.lab: 521 mx.no-mail.lab
one-recipient at mx.one-recipient.lab: 220
    open
    nobody@one-recipient.lab = 550
    ada@one-recipient.lab = 250
    alan@one-recipient.lab = 452 4.5.3
    RSET = 250
    MAIL FROM:<probe@probe.lab> = 250 2.1.0
    alan@one-recipient.lab = 250
session-limit at mx.session-limit.lab: 220
    open
    ada@session-limit.lab = 250 (x5)
    ada@session-limit.lab = 421 4.5.3
error-limit at mx.error-limit.lab: 220
    open
    x@error-limit.lab = 550 5.1.1 (x19)
    x@error-limit.lab = 421 4.7.0
microsoft-like at tenant-1.lab.microsoft.lab: 220
    open
    x@tenant-1.lab = 550 5.4.1 Recipient address rejected: Access denied
    ceo@tenant-1.lab = 250
    it@tenant-1.lab = 452 4.5.3
google-like at aspmx.google.lab: 220
    open
    ada@gmail-like.lab = 250
    ceo@workspace-1.lab = 451 4.3.0
    x@gmail-like.lab = 550 5.1.1
    full@gmail-like.lab = 452 4.2.2
yahoo-like at mta.yahoo.lab: 220
    open
    x@yahoo-like.lab = 250
garbage-rcpt at mx.garbage-rcpt.lab: 220
    open
tarpit at mx.tarpit.lab: 220
    open
dripping at mx.dripping.lab: 220
    open
"""
# What no transcript can show has a test of its own below.
ELSEWHERE = {
    *("tls-broken", "refusing", "blackhole", "silent", "silent-rcpt", "drop-connect", "reset-connect", "drop-ehlo"),
    *("drop-rcpt", "reset-rcpt", "garbage", "endless", "dripping-forever"),
}


@dataclass(frozen=True, slots=True)
class Transcript:
    persona: str
    host: str
    greeting: str
    turns: list[tuple[str, str]]


def transcripts() -> Iterator[Transcript]:
    for block in re.split(r"\n(?=\S)", TRANSCRIPTS.strip()):
        head, *lines = block.splitlines()
        persona, host, greeting = re.fullmatch(r"(\S+) at (\S+): (.+)", head).groups()
        turns: list[tuple[str, str]] = []
        for line in lines:
            command, _, reply = line.strip().partition(" = ")
            if command == "open":
                turns += [("EHLO probe.lab", "250"), ("MAIL FROM:<probe@probe.lab>", "250 2.1.0")]
                continue
            text, _, times = reply.removesuffix(")").partition(" (x")
            command = f"RCPT TO:<{command}>" if re.fullmatch(r"\S+@\S+", command) else command
            turns += [(command, text)] * int(times or 1)
        yield Transcript(persona, host, greeting, turns)


def said(reply: tuple[int, bytes]) -> str:
    return f"{reply[0]} {reply[1].decode()}"


def raw(lab: LabProcess, described: Spec, host: str) -> socket.socket:
    sock = socket.create_connection((described.hosts[host].ip, lab.smtp_port), timeout=3)
    assert sock.recv(1000).startswith(b"220 ")
    return sock


def until(sock: socket.socket, end: bytes) -> bytes:
    data = b""
    while end not in data and (got := sock.recv(65536)):
        data += got
    return data


def test_every_persona_has_a_transcript_or_a_test_of_its_own(described: Spec) -> None:
    """No persona ships untested."""
    assert set(described.personas) == {each.persona for each in transcripts()} | ELSEWHERE


@pytest.mark.parametrize("told", list(transcripts()), ids=lambda told: told.persona)
def test_a_persona_says_what_the_file_says(told: Transcript, dial: Dial, described: Spec) -> None:
    """Greeting, code, enhanced code and words are those of lab.yaml."""
    assert told.persona == described.hosts[told.host].persona
    client = dial(told.host)
    client.command_encoding = "utf-8"
    assert said(client.greeting).startswith(told.greeting)
    for command, beginning in told.turns:
        assert said(client.docmd(command)).startswith(beginning), command


def test_a_folded_reply_repeats_its_codes(dial: Dial) -> None:
    """Every line of a multi-line reply has code and enhanced code."""
    client = dial("mx.folded.lab")
    client.ehlo()
    client.mail("a@probe.lab")
    client.putcmd("RCPT TO:<x@folded.lab>")
    lines = client.getreply()[1].decode().split("\n")
    assert ([line[:6] for line in lines], len(lines)) == (["5.1.1 "] * 3, 3)


def test_what_ends_a_session_ends_the_line(dial: Dial) -> None:
    """After 421 and 521 the server closes."""
    for host in ("mx.busy-always.lab", "postscreen-drop.blocked.lab"):
        assert dial(host).sock.recv(1) == b""


def test_ehlo_offers_what_the_persona_can(dial: Dial) -> None:
    """Extensions are those of the persona."""
    offers = {}
    for host in ("mx.normal.lab", "mx.eai.lab", "mx.plain.lab", "mx.one-at-a-time.lab"):
        client = dial(host)
        client.ehlo()
        offers[host] = {name for name in ("pipelining", "smtputf8", "starttls") if client.has_extn(name)}
    assert offers == {
        "mx.normal.lab": {"pipelining", "starttls"},
        "mx.eai.lab": {"pipelining", "smtputf8", "starttls"},
        "mx.plain.lab": {"pipelining"},
        "mx.one-at-a-time.lab": {"starttls"},
    }


def test_pipelined_commands_get_their_replies_in_order(lab: LabProcess, described: Spec) -> None:
    """A group of commands in one write gets one reply each, in order (RFC 2920)."""
    with raw(lab, described, "mx.normal.lab") as sock:
        sock.sendall(
            b"EHLO probe.lab\r\nMAIL FROM:<>\r\nRCPT TO:<ada@normal.lab>\r\nRCPT TO:<x@normal.lab>\r\nRSET\r\nQUIT\r\n"
        )
        lines = until(sock, b"221 ").decode().splitlines()
        assert [line[:3] for line in lines if line[3] == " "] == ["250", "250", "250", "550", "250", "221"]


def test_a_host_without_pipelining_drops_who_pipelines(lab: LabProcess, described: Spec) -> None:
    """What was not offered is punished, so that a client's mistake shows."""
    with raw(lab, described, "mx.one-at-a-time.lab") as sock:
        sock.sendall(b"EHLO probe.lab\r\nMAIL FROM:<>\r\n")
        assert until(sock, b"never").startswith(b"503 5.5.0")


def test_who_speaks_before_the_greeting_is_dropped(lab: LabProcess, described: Spec) -> None:
    """A postscreen that waits with its greeting catches early talkers."""
    with socket.create_connection((described.hosts["mx.postscreen-patient.lab"].ip, lab.smtp_port), timeout=3) as sock:
        sock.sendall(b"EHLO probe.lab\r\n")
        assert until(sock, b"never").startswith(b"521 ")


def test_starttls_secures_the_session_and_begins_it_anew(dial: Dial) -> None:
    """After the handshake the client says EHLO again, STARTTLS is offered no more, and tls-only takes MAIL."""
    client = dial("mx.tls-only.lab")
    client.ehlo()
    client.starttls()
    assert client.docmd("MAIL FROM:<probe@probe.lab>")[0] == 503
    client.ehlo()
    assert not client.has_extn("starttls")
    assert client.docmd("MAIL FROM:<probe@probe.lab>")[0] == 250


def test_a_broken_handshake_is_no_tls(dial: Dial) -> None:
    """220, and then something that is no handshake."""
    client = dial("mx.tls-broken.lab")
    client.ehlo()
    with pytest.raises(OSError, match=r"(?i)ssl|wrong version"):
        client.starttls()


@pytest.mark.parametrize("persona", ["greylisting", "greylisting-451", "greylisting-silent"])
def test_a_greylist_lets_the_same_triplet_pass(persona: str, dial: Dial, lab: LabProcess) -> None:
    """Same client, HELO, sender and recipient pass after the time; another sender begins anew."""
    lab.set(persona, greylist="150ms")
    client = dial(f"mx.{persona}.lab")
    client.helo("probe.lab")
    client.mail("a@probe.lab")
    deadline = time.monotonic() + 5
    assert client.rcpt(f"ada@{persona}.lab")[0] in (450, 451)
    while client.rcpt(f"ada@{persona}.lab")[0] != 250:
        assert time.monotonic() < deadline
    client.rset()
    client.mail("b@probe.lab")
    assert client.rcpt(f"ada@{persona}.lab")[0] in (450, 451)


@pytest.mark.parametrize("host", ["mx.busy-once.lab", "mx.busy-rcpt.lab"])
def test_a_busy_server_works_the_second_time(host: str, dial: Dial) -> None:
    """Busy for the first session of a client, then not."""
    dial(host)
    client = dial(host)
    client.ehlo()
    client.mail("a@probe.lab")
    assert client.rcpt(f"ada@{host.removeprefix('mx.')}")[0] == 250


def test_a_rate_limit_relents(dial: Dial, lab: LabProcess) -> None:
    """When the window has passed, the same client is welcome again."""
    lab.set("rate-limiting", limits={"rate": "1/200ms"})
    deadline = time.monotonic() + 5
    codes = []
    while codes[-2:] != [421, 250]:
        assert time.monotonic() < deadline
        client = dial("rate.blocked.lab")
        client.ehlo()
        client.mail("a@probe.lab")
        codes.append(client.rcpt("ada@rate-limiting.lab")[0])


def test_nobody_listens_at_a_refusing_host(lab: LabProcess, described: Spec) -> None:
    """Its connections are refused."""
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((described.hosts["mx.refusing.lab"].ip, lab.smtp_port), timeout=3)


def test_a_black_hole_never_answers(lab: LabProcess, described: Spec) -> None:
    """The connection attempt times out."""
    with pytest.raises(TimeoutError):
        socket.create_connection((described.hosts["mx.blackhole.lab"].ip, lab.smtp_port), timeout=0.3)


@pytest.mark.parametrize(
    ("host", "turns", "end"),
    [
        ("mx.silent.lab", b"", TimeoutError),
        ("mx.drop-connect.lab", b"", b""),
        ("mx.reset-connect.lab", b"", ConnectionResetError),
        ("mx.silent-rcpt.lab", b"HELO a\r\nMAIL FROM:<>\r\nRCPT TO:<a@silent-rcpt.lab>\r\n", TimeoutError),
        ("mx.drop-ehlo.lab", b"EHLO a\r\n", b""),
        ("mx.drop-rcpt.lab", b"HELO a\r\nMAIL FROM:<>\r\nRCPT TO:<a@drop-rcpt.lab>\r\n", b""),
        ("mx.reset-rcpt.lab", b"HELO a\r\nMAIL FROM:<>\r\nRCPT TO:<a@reset-rcpt.lab>\r\n", ConnectionResetError),
    ],
)
def test_trouble_ends_as_it_says(
    host: str, turns: bytes, end: bytes | type[OSError], lab: LabProcess, described: Spec
) -> None:
    """Closed, reset or silent, and no reply to the last command."""
    got = b""
    how: bytes | type[OSError] = b""
    try:
        with socket.create_connection((described.hosts[host].ip, lab.smtp_port), timeout=0.3) as sock:
            sock.sendall(turns)
            while data := sock.recv(4096):
                got += data
    except OSError as error:
        how = type(error)
    assert how == end
    replies = [line for line in got.splitlines() if line[3:4] == b" "]
    assert len(replies) == turns.count(b"\r\n")  # the greeting instead of the last one


def test_garbage_is_no_reply(lab: LabProcess, described: Spec, dial: Dial) -> None:
    """Bytes that are no SMTP, at the greeting and at RCPT."""
    with socket.create_connection((described.hosts["mx.garbage.lab"].ip, lab.smtp_port), timeout=3) as sock:
        assert sock.recv(1000) == b"SSH-2.0-OpenSSH_9.2\r\n"
    client = dial("mx.garbage-rcpt.lab")
    client.ehlo()
    client.mail("a@probe.lab")
    assert client.rcpt("ada@garbage-rcpt.lab")[0] == -1


def test_an_endless_reply_goes_on(lab: LabProcess, described: Spec) -> None:
    """More bytes than any reply has, and no last line."""
    with raw(lab, described, "mx.endless.lab") as sock:
        sock.sendall(b"HELO a\r\nMAIL FROM:<>\r\nRCPT TO:<a@endless.lab>\r\n")
        received = 0
        while received < 1 << 20:
            received += len(sock.recv(65536))


def test_a_dripping_server_sends_byte_by_byte(lab: LabProcess, described: Spec) -> None:
    """The greeting comes in more than one piece."""
    with socket.create_connection((described.hosts["mx.dripping-forever.lab"].ip, lab.smtp_port), timeout=3) as sock:
        assert sock.recv(1000) == b"2"


def test_a_tarpit_takes_its_time(dial: Dial) -> None:
    """A reply to RCPT takes as long as the persona says."""
    client = dial("mx.tarpit.lab")
    client.ehlo()
    client.mail("a@probe.lab")
    began = time.monotonic()
    client.rcpt("ada@tarpit.lab")
    assert time.monotonic() - began >= 0.4


def test_a_line_without_end_is_cut(lab: LabProcess, described: Spec) -> None:
    """The server bounds what it reads."""
    with raw(lab, described, "mx.normal.lab") as sock:
        sock.sendall(b"x" * 5000)
        assert until(sock, b"\n").startswith(b"500 5.5.2")


def test_any_bytes_get_an_answer(lab: LabProcess, described: Spec) -> None:
    """Bytes that are no text don't hurt a session."""
    with raw(lab, described, "mx.normal.lab") as sock:
        sock.sendall(
            os.urandom(50).replace(b"\n", b"") + b"\r\nMAIL FROM:<\xff\xfe@x>\r\nRCPT TO:<\xff@\xfe>\r\nQUIT\r\n"
        )
        assert b"221 " in until(sock, b"221 ")
