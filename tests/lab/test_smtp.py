"""Each persona says what lab.yaml says, over real sockets."""

from __future__ import annotations

import os
import smtplib
import socket
import time
from collections.abc import Callable

import pytest

from engine.lab.process import LabProcess
from engine.lab.spec import Spec

Dial = Callable[[str], smtplib.SMTP]
HELLO = ("EHLO probe.lab", "250 mx.")
MAIL = ("MAIL FROM:<probe@probe.lab>", "250 2.1.0")
OPEN = (HELLO, MAIL)

# persona -> host, beginning of the greeting, then commands with the beginnings of their replies
TRANSCRIPTS: dict[str, tuple[str, str, tuple[tuple[str, str], ...]]] = {
    "normal": (
        "mx.normal.lab",
        "220 mx.normal.lab",
        (
            *OPEN,
            ("RCPT TO:<ada@normal.lab>", "250 2.1.5"),
            ("RCPT TO:<ADA+news@Normal.LAB>", "250 2.1.5"),
            ("RCPT TO:<adda@normal.lab>", "550 5.1.1"),
            ("RCPT TO:<ada@plain.lab>", "554 5.7.1"),
            ("RCPT TO:<@>", "501 5.1.3"),
            ("RCPT ada", "501 5.5.4"),
            ("MAIL FROM:<x@probe.lab>", "503 5.5.1"),
            ("RSET", "250 2.0.0"),
            ("RCPT TO:<ada@normal.lab>", "503 5.5.1"),
            ("NOOP", "250"),
            ("VRFY ada", "252"),
            ("WHO", "502"),
            ("QUIT", "221"),
        ),
    ),
    "smtputf8": ("mx.eai.lab", "220", (HELLO, MAIL, ("RCPT TO:<jörg@eai.lab>", "501 5.1.3"), ("RSET", "250"),
        ("MAIL FROM:<probe@probe.lab> SMTPUTF8", "250"), ("RCPT TO:<jörg@eai.lab>", "250"), ("RCPT TO:<ärg@eai.lab>", "550 5.1.1"))),
    "plain": ("mx.plain.lab", "220", (*OPEN, ("STARTTLS", "502"))),
    "one-at-a-time": ("mx.one-at-a-time.lab", "220", (*OPEN, ("RCPT TO:<ada@one-at-a-time.lab>", "250"))),
    "helo-only": ("mx.helo-only.lab", "220", (("EHLO probe.lab", "502"), ("HELO probe.lab", "250"), MAIL)),
    "no-codes": ("mx.no-codes.lab", "220", (HELLO, ("MAIL FROM:<probe@probe.lab>", "250 OK"), ("RCPT TO:<x@no-codes.lab>", "550 No such"))),
    "folded": ("mx.folded.lab", "220", (*OPEN, ("RCPT TO:<x@folded.lab>", "550 5.1.1 The email account that you tried to reach\n5.1.1 does not\n5.1.1 exist"))),
    "tls-only": ("mx.tls-only.lab", "220", (HELLO, ("MAIL FROM:<probe@probe.lab>", "530 5.7.0"))),
    "tls-unavailable": ("mx.tls-unavailable.lab", "220", (HELLO, ("STARTTLS", "454 4.7.0"), MAIL)),
    "catch-all": ("mx.catch-all.lab", "220", (*OPEN, ("RCPT TO:<q8x@catch-all.lab>", "250"))),
    "accept-then-bounce": ("mx.accept-then-bounce.lab", "220", (*OPEN, ("RCPT TO:<q8x@accept-then-bounce.lab>", "250"),
        ("DATA", "354"), (".", "554 5.1.1"))),
    "refuse-all": ("mx.refuse-all.lab", "220", (*OPEN, ("RCPT TO:<postmaster@refuse-all.lab>", "550 5.1.1"))),
    "bare-refusals": ("mx.bare-refusals.lab", "220", (*OPEN, ("RCPT TO:<ada@bare-refusals.lab>", "250"), ("RCPT TO:<x@bare-refusals.lab>", "550 Rejected"))),
    "rejects-all": ("mx.rejects-all.lab", "220", (*OPEN, ("RCPT TO:<postmaster@rejects-all.lab>", "550 Rejected"))),
    "turncoat": ("mx.turncoat.lab", "220", (*OPEN, ("RCPT TO:<x@turncoat.lab>", "550 5.1.1"))),
    "greylisting": ("mx.greylisting.lab", "220", (*OPEN, ("RCPT TO:<ada@greylisting.lab>", "450 4.2.0"))),
    "greylisting-451": ("mx.greylisting-451.lab", "220", (*OPEN, ("RCPT TO:<ada@greylisting-451.lab>", "451 4.7.1 Greylisting"))),
    "greylisting-delay": ("mx.greylisting-delay.lab", "220", (*OPEN, ("RCPT TO:<ada@greylisting-delay.lab>", "451 4.7.1 Greylisted, please try again in 2 seconds"))),
    "greylisting-silent": ("mx.greylisting-silent.lab", "220", (*OPEN, ("RCPT TO:<ada@greylisting-silent.lab>", "451 4.3.0"))),
    "greylisting-forever": ("mx.greylisting-forever.lab", "220", (*OPEN, ("RCPT TO:<ada@greylisting-forever.lab>", "450 4.2.0"))),
    "busy-once": ("mx.busy-once.lab", "421 4.3.2", ()),
    "busy-rcpt": ("mx.busy-rcpt.lab", "220", (*OPEN, ("RCPT TO:<ada@busy-rcpt.lab>", "451 4.3.2"))),
    "busy-always": ("mx.busy-always.lab", "421 4.3.2", ()),
    "blocking-greeting": ("greeting.blocked.lab", "554 greeting.blocked.lab", (("EHLO probe.lab", "503"), ("QUIT", "221"))),
    "blocking-mail": ("mail.blocked.lab", "220", (HELLO[:1] + ("250",), ("MAIL FROM:<probe@probe.lab>", "550 5.7.1"))),
    "blocking-rcpt": ("rcpt.blocked.lab", "220", (HELLO[:1] + ("250",), MAIL, ("RCPT TO:<ada@blocking-rcpt.lab>", "554 5.7.1 Service unavailable; Client host [127.0.0.1]"))),
    "blocking-later": ("later.blocked.lab", "220", (HELLO[:1] + ("250",), MAIL, ("RCPT TO:<ada@blocking-later.lab>", "250"))),
    "no-ptr": ("no-ptr.blocked.lab", "220", (HELLO[:1] + ("250",), MAIL, ("RCPT TO:<ada@no-ptr.lab>", "550 5.7.25"))),
    "helo-critic": ("helo.blocked.lab", "220", (("EHLO probe.lab", "550 5.7.1 <probe.lab>"), ("HELO probe.lab", "550 5.7.1"), ("MAIL FROM:<probe@probe.lab>", "503"))),
    "sender-critic": ("sender.blocked.lab", "220", (HELLO[:1] + ("250",), ("MAIL FROM:<probe@probe.lab>", "550 5.1.8"))),
    "postscreen": ("postscreen.blocked.lab", "220", (HELLO[:1] + ("250",), MAIL, ("RCPT TO:<ada@postscreen.lab>", "550 5.3.2"))),
    "postscreen-drop": ("postscreen-drop.blocked.lab", "521 5.3.2", ()),
    "postscreen-patient": ("mx.postscreen-patient.lab", "220", OPEN),
    "rate-limiting": ("rate.blocked.lab", "220", (HELLO[:1] + ("250",), MAIL, *[("RCPT TO:<ada@rate-limiting.lab>", "250")] * 5, ("RCPT TO:<ada@rate-limiting.lab>", "421 4.7.28"))),
    "relay-denied": ("mx.relay-denied.lab", "220", (*OPEN, ("RCPT TO:<ada@relay-denied.lab>", "554 5.7.1"))),
    "auth-only": ("mx.auth-only.lab", "220", (HELLO, ("MAIL FROM:<probe@probe.lab>", "530 5.7.0"))),
    "prohibiting": ("mx.prohibiting.lab", "220", (*OPEN, ("RCPT TO:<ada@prohibiting.lab>", "550 5.7.1"))),
    "no-mail": ("mx.no-mail.lab", "521 mx.no-mail.lab", ()),
    "one-recipient": ("mx.one-recipient.lab", "220", (*OPEN, ("RCPT TO:<nobody@one-recipient.lab>", "550"), ("RCPT TO:<ada@one-recipient.lab>", "250"),
        ("RCPT TO:<alan@one-recipient.lab>", "452 4.5.3"), ("RSET", "250"), MAIL, ("RCPT TO:<alan@one-recipient.lab>", "250"))),
    "session-limit": ("mx.session-limit.lab", "220", (*OPEN, *[("RCPT TO:<ada@session-limit.lab>", "250")] * 5, ("RCPT TO:<ada@session-limit.lab>", "421 4.5.3"))),
    "error-limit": ("mx.error-limit.lab", "220", (*OPEN, *[("RCPT TO:<x@error-limit.lab>", "550 5.1.1")] * 19, ("RCPT TO:<x@error-limit.lab>", "421 4.7.0"))),
    "microsoft-like": ("tenant-1.lab.microsoft.lab", "220", (HELLO[:1] + ("250",), MAIL, ("RCPT TO:<x@tenant-1.lab>", "550 5.4.1 Recipient address rejected: Access denied"),
        ("RCPT TO:<ceo@tenant-1.lab>", "250"), ("RCPT TO:<it@tenant-1.lab>", "452 4.5.3"))),
    "google-like": ("aspmx.google.lab", "220", (HELLO[:1] + ("250",), MAIL, ("RCPT TO:<ada@gmail-like.lab>", "250"), ("RCPT TO:<ceo@workspace-1.lab>", "451 4.3.0"),
        ("RCPT TO:<x@gmail-like.lab>", "550 5.1.1"), ("RCPT TO:<full@gmail-like.lab>", "452 4.2.2"))),
    "yahoo-like": ("mta.yahoo.lab", "220", (HELLO[:1] + ("250",), MAIL, ("RCPT TO:<x@yahoo-like.lab>", "250"))),
    "garbage-rcpt": ("mx.garbage-rcpt.lab", "220", OPEN),
    "tarpit": ("mx.tarpit.lab", "220", OPEN),
    "dripping": ("mx.dripping.lab", "220", OPEN),
}  # fmt: skip
# What no transcript can show has a test of its own below.
ELSEWHERE = {"tls-broken", "refusing", "blackhole", "silent", "silent-rcpt", "drop-connect", "reset-connect", "drop-ehlo",
    "drop-rcpt", "reset-rcpt", "garbage", "endless", "dripping-forever"}  # fmt: skip


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
    assert set(described.personas) == set(TRANSCRIPTS) | ELSEWHERE


@pytest.mark.parametrize("persona", TRANSCRIPTS)
def test_a_persona_says_what_the_file_says(persona: str, dial: Dial, described: Spec) -> None:
    """Greeting, code, enhanced code and words are those of lab.yaml."""
    host, greeting, turns = TRANSCRIPTS[persona]
    assert persona == described.hosts[host].persona
    client = dial(host)
    client.command_encoding = "utf-8"
    assert said(client.greeting).startswith(greeting)
    for command, beginning in turns:
        assert said(client.docmd(command)).startswith(beginning), command


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
