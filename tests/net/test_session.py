from __future__ import annotations

import contextlib
import re
import ssl
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from time import monotonic
from typing import Any

import gevent
import gevent.event
import gevent.ssl
import pytest
import trustme
from aiosmtpd.controller import Controller
from gevent import socket
from gevent.lock import Semaphore
from gevent.server import StreamServer

from engine.core.dialogue import Misuse
from engine.core.identity import Identity
from engine.core.policy import Timeouts
from engine.core.reasons import Stage
from engine.net import session as session_module
from engine.net import stream
from engine.net.session import Answer, Endpoint, Session, SessionEnded

IDENTITY = Identity("node", "probe.example.net", "probe@example.net")
TIMEOUTS = Timeouts(5, 5, 5, 20)
SHORT = Timeouts(0.2, 0.2, 0.2, 5)
BRIEF = Timeouts(5, 5, 5, 0.3)


class Peer:
    """A server's end of one connection, in a greenlet; `heard` is what the client said."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # what is said is on its way, even before a reset
        self.socket = sock
        self.heard: list[str] = []
        self.rest = b""

    def say(self, *lines: str) -> None:
        self.socket.sendall("".join(f"{line}\r\n" for line in lines).encode())

    def hear(self) -> str:
        """The next command; empty when the client has gone."""
        while b"\n" not in self.rest:
            data = self.socket.recv(4096)
            if not data:
                return ""
            self.rest += data
        line, _, self.rest = self.rest.partition(b"\n")
        self.heard.append(line.decode().rstrip("\r"))
        return self.heard[-1]

    def greet(self, *extensions: str) -> None:
        self.say("220 mx.example.com ESMTP")
        assert self.hear() == "EHLO probe.example.net"
        self.say(*(f"250-{word}" for word in ("mx.example.com", *extensions)), "250 HELP")

    def drip(self, byte: bytes) -> None:
        """A byte every 20 ms until the client has had enough."""
        with contextlib.suppress(OSError):
            while True:
                self.socket.sendall(byte)
                gevent.sleep(0.02)

    def reset(self) -> None:
        """Close with RST."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()


Script = Callable[[Peer], Any]


class Scripted:
    """A server that gives each connection to the next script, and the last one to all that follow."""

    def __init__(self, scripts: tuple[Script, ...], host: str) -> None:
        self.scripts = list(scripts)
        self.peers: list[Peer] = []
        self.errors: list[BaseException] = []
        self.server = StreamServer((host, 0), self.handle)
        self.server.start()
        self.port = self.server.server_port
        self.host = host

    def handle(self, sock: socket.socket, _: object) -> None:
        peer = Peer(sock)
        self.peers.append(peer)
        script = self.scripts.pop(0) if len(self.scripts) > 1 else self.scripts[0]
        try:
            script(peer)
        except OSError:
            pass  # the client's right
        except Exception as error:  # noqa: BLE001 -- the test shall see it
            self.errors.append(error)
        finally:
            peer.socket.close()


@pytest.fixture
def serve() -> Iterator[Callable[..., Scripted]]:
    """Starts a server of scripts on loopback; what a script asserts fails the test."""
    servers: list[Scripted] = []

    def start(*scripts: Script, host: str = "127.0.0.1") -> Scripted:
        servers.append(Scripted(scripts, host))
        return servers[-1]

    yield start
    for each in servers:
        each.server.stop(timeout=0.2)
        assert not each.errors, each.errors


@pytest.fixture
def connect() -> Iterator[Callable[..., Session]]:
    """Makes sessions and closes them."""
    sessions: list[Session] = []

    def make(server: Any, timeouts: Timeouts = TIMEOUTS, tls: str = "never", **more: Any) -> Session:
        endpoint = Endpoint(more.pop("name", "mx.example.com"), server.host, server.port)
        sessions.append(Session(endpoint, more.pop("identity", IDENTITY), timeouts, tls, **more))
        return sessions[-1]

    yield make
    for session in sessions:
        session.close()


def ended(session: Session) -> tuple[str, str, int, str]:
    """How a session that can't be opened ends: stage, reason, code, detail. Nothing of it is left open."""
    with pytest.raises(SessionEnded) as caught:
        session.open()
    assert not session.alive
    assert session._stream is None
    end = caught.value
    return end.stage, end.reason, end.reply.code if end.reply else 0, end.detail


def short(answers: list[Answer]) -> list[tuple[str, str, int, str]]:
    return [(a.recipient.split("@")[0], a.stage, a.reply.code if a.reply else 0, a.reason) for a in answers]


def ordinary(*extensions: str, replies: dict[str, str] | None = None) -> Script:
    """A server that refuses nobody but "nobody@"; `replies` by the command's first word."""

    def script(peer: Peer) -> None:
        peer.greet(*extensions)
        converse(peer, replies or {})

    return script


def converse(peer: Peer, replies: dict[str, str]) -> None:
    while command := peer.hear():
        verb = command.split()[0]
        if verb in replies:
            peer.say(replies[verb])
        elif verb == "QUIT":
            peer.say("221 bye")
            return
        else:
            peer.say("550 5.1.1 no such user" if ":<nobody@" in command else "250 2.1.0 ok")


# --- the ordinary way


@pytest.mark.parametrize("extensions", [(), ("PIPELINING",)])
def test_a_session_asks_and_leaves(serve, connect, extensions) -> None:
    """Two transactions and a QUIT: each recipient has its own reply, RSET stands between, the line is closed."""
    server = serve(ordinary(*extensions))
    session = connect(server)
    session.open()
    assert (session.alive, session.tls, session.pipelining) == (True, False, bool(extensions))
    assert session.source_ip == "127.0.0.1"
    first = session.ask(["ann@example.com", "nobody@example.com"])
    assert short(first) == [("ann", "rcpt", 250, ""), ("nobody", "rcpt", 550, "")]
    assert short(session.ask(["bob@example.com"])) == [("bob", "rcpt", 250, "")]
    session.quit()
    assert not session.alive
    assert server.peers[0].heard == [
        "EHLO probe.example.net",
        "MAIL FROM:<probe@example.net>",
        "RCPT TO:<ann@example.com>",
        "RCPT TO:<nobody@example.com>",
        "RSET",
        "MAIL FROM:<probe@example.net>",
        "RCPT TO:<bob@example.com>",
        "QUIT",
    ]
    with pytest.raises(Misuse, match="alive"):
        session.ask(["cyd@example.com"])
    with pytest.raises(Misuse, match="once"):
        session.open()


def test_a_bind_address_is_used_and_shown(serve, connect) -> None:
    """The session leaves from the identity's local address."""
    identity = Identity("node", "probe.example.net", "probe@example.net", bind_v4="127.0.0.77")
    session = connect(serve(ordinary()), identity=identity)
    session.open()
    assert session.source_ip == "127.0.0.77"
    session.quit()


def test_ipv6_is_dialled_by_literal(serve, connect) -> None:
    """An IPv6 mail host works as an IPv4 one, with its own bind address."""
    identity = Identity("node", "probe.example.net", "probe@example.net", bind_v4="192.0.2.1", bind_v6="::1")
    try:
        server = serve(ordinary(), host="::1")
    except OSError:
        pytest.skip("no IPv6 on this machine's loopback")
    session = connect(server, identity=identity)
    session.open()
    assert session.source_ip == "::1"
    session.quit()


def test_a_name_is_never_resolved(serve, connect) -> None:
    """An endpoint that is no literal is our own fault, found without a look-up."""
    server = serve(ordinary())
    server.host = "localhost"
    assert ended(connect(server))[:2] == (Stage.CONNECT, "internal_error")


def test_the_transcript_shows_every_line_and_when(serve, connect) -> None:
    """Each line of both sides, and notes, with seconds that never go back."""
    told: list[tuple[str, str, float]] = []
    session = connect(serve(ordinary("PIPELINING")), transcript=lambda *line: told.append(line))
    session.open()
    session.ask(["nobody@example.com"])
    session.quit()
    assert [(mark, text) for mark, text, _ in told if mark != "*"] == [
        ("S", "220 mx.example.com ESMTP"),
        ("C", "EHLO probe.example.net"),
        ("S", "250-mx.example.com"),
        ("S", "250-PIPELINING"),
        ("S", "250 HELP"),
        ("C", "MAIL FROM:<probe@example.net>"),
        ("C", "RCPT TO:<nobody@example.com>"),
        ("S", "250 2.1.0 ok"),
        ("S", "550 5.1.1 no such user"),
        ("C", "QUIT"),
        ("S", "221 bye"),
    ]
    assert [text for mark, text, _ in told if mark == "*"][-1] == "closed"
    times = [seconds for _, _, seconds in told]
    assert times == sorted(times)


# --- refused, or not reached


def test_refusals_before_any_question_carry_their_reply(serve, connect) -> None:
    """A refusing greeting or EHLO is the caller's to classify; QUIT is said to it all the same."""
    server = serve(
        lambda peer: (peer.say("554-go", "554 5.7.1 away"), peer.hear(), peer.say("221 bye")),
        lambda peer: (peer.say("421 4.7.0 too many connections"), peer.hear()),
        lambda peer: (peer.say("220 mx"), peer.hear(), peer.say("550 5.7.1 blocked"), peer.hear(), peer.say("221 bye")),
    )
    assert ended(connect(server)) == ("connect", "", 554, "")
    assert ended(connect(server)) == ("connect", "", 421, "")
    assert ended(connect(server)) == ("ehlo", "", 550, "")
    assert [peer.heard[-1] for peer in server.peers] == ["QUIT", "QUIT", "QUIT"]


def test_a_closed_port_is_connect_refused(serve, connect) -> None:
    """Nobody listens: connect_refused."""
    server = serve(ordinary())
    server.server.close()
    assert ended(connect(server)) == ("connect", "connect_refused", 0, "econnrefused")


def test_a_foreign_bind_address_is_our_fault(serve, connect) -> None:
    """A source address that this machine has not says nothing of the host."""
    identity = Identity("node", "probe.example.net", "probe@example.net", bind_v4="192.0.2.1")
    assert ended(connect(serve(ordinary()), identity=identity)) == ("connect", "internal_error", 0, "eaddrnotavail")


def test_a_connect_that_nobody_answers_ends_on_time(connect) -> None:
    """A full backlog swallows the SYN: connect_timeout."""
    with socket.socket() as listener, contextlib.ExitStack() as stack:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for _ in range(3):
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(listener.getsockname())

        class Full:
            host, port = listener.getsockname()

        assert ended(connect(Full, SHORT)) == ("connect", "connect_timeout", 0, "")


@pytest.mark.parametrize(
    ("script", "timeouts", "end"),
    [
        (lambda peer: peer.hear(), SHORT, ("connect", "greeting_timeout", 0, "deadline")),
        (lambda peer: peer.drip(b"2"), SHORT, ("connect", "greeting_timeout", 0, "deadline")),
        (lambda peer: peer.drip(b"220-x\r\n"), SHORT, ("connect", "greeting_timeout", 0, "deadline")),
        (lambda peer: peer.drip(b"2"), BRIEF, ("connect", "greeting_timeout", 0, "deadline")),
        (lambda peer: peer.reset(), TIMEOUTS, ("connect", "connect_reset", 0, "econnreset")),
        (lambda peer: None, TIMEOUTS, ("connect", "disconnected", 0, "closed")),
        (lambda peer: peer.socket.shutdown(1) or peer.hear(), TIMEOUTS, ("connect", "disconnected", 0, "closed")),
        (lambda peer: peer.say("SSH-2.0-x"), TIMEOUTS, ("connect", "protocol_error", 0, "not_a_reply")),
        (lambda peer: peer.say(*["220-x"] * 200), TIMEOUTS, ("connect", "protocol_error", 0, "too_many_lines")),
        (lambda peer: peer.socket.sendall(b"x" * 10**6), TIMEOUTS, ("connect", "protocol_error", 0, "line_too_long")),
        (lambda peer: (peer.say("220 a"), peer.hear(), peer.hear()), SHORT, ("ehlo", "read_timeout", 0, "deadline")),
        (
            lambda peer: (peer.say("220 a"), peer.hear(), peer.drip(b"250-x\r\n")),
            SHORT,
            ("ehlo", "read_timeout", 0, "deadline"),
        ),
        (lambda peer: (peer.say("220 a"), peer.hear()), TIMEOUTS, ("ehlo", "disconnected", 0, "closed")),
        (lambda peer: (peer.say("220 a"), peer.hear(), peer.reset()), SHORT, ("ehlo", "disconnected", 0, "econnreset")),
    ],
)
def test_a_line_that_breaks_has_a_reason_and_a_stage(serve, connect, script, timeouts, end) -> None:
    """Silence, dripping, closing, resetting and garbage end in time, each under its own name."""
    assert ended(connect(serve(script), timeouts)) == end


def test_a_reply_that_came_before_the_line_broke_is_heard(serve, connect) -> None:
    """A server that refuses and drops the line at once, without hearing us, has still said why."""
    server = serve(lambda peer: peer.say("554 5.7.1 blocked"))
    assert ended(connect(server)) == ("connect", "", 554, "")


def test_bytes_are_limited_over_the_whole_session(serve, connect, monkeypatch) -> None:
    """Many replies, each within its limits, do not add up without end."""
    monkeypatch.setattr(stream, "MAX_BYTES", 20_000)
    server = serve(ordinary(replies={"RCPT": "\r\n".join(["250-" + "x" * 2000] * 4 + ["250 ok"])}))
    session = connect(server)
    session.open()
    answers = session.ask([f"a{i}@example.com" for i in range(5)])
    assert [a.reason for a in answers] == ["", "", *["protocol_error"] * 3]


# --- in the middle


def middle(*extensions: str, at: str, then: Script) -> Script:
    """An ordinary server until a command begins with `at`."""

    def script(peer: Peer) -> None:
        peer.greet(*extensions)
        while command := peer.hear():
            if command.startswith(at):
                then(peer)
                return
            peer.say("250 ok")

    return script


RCPT_2 = "RCPT TO:<a2@"
FOUR = [f"a{i}@example.com" for i in range(1, 5)]


@pytest.mark.parametrize("extensions", [(), ("PIPELINING",)])
@pytest.mark.parametrize(
    ("then", "reason"),
    [
        (lambda peer: None, "disconnected"),
        (lambda peer: peer.reset(), "disconnected"),
        (lambda peer: gevent.sleep(5), "read_timeout"),
        (lambda peer: peer.drip(b"2"), "read_timeout"),
    ],
)
def test_a_lost_line_answers_nobody_who_was_not_answered(serve, connect, extensions, then, reason) -> None:
    """Those before the break keep their replies; those behind it have none."""
    session = connect(serve(middle(*extensions, at=RCPT_2, then=then)), SHORT)
    session.open()
    assert short(session.ask(FOUR)) == [("a1", "rcpt", 250, ""), *((f"a{i}", "rcpt", 0, reason) for i in (2, 3, 4))]
    assert not session.alive
    session.quit()


def slow(peer: Peer) -> None:
    """Takes 0.1 s for each reply to a group."""
    peer.greet("PIPELINING")
    while peer.hear():
        gevent.sleep(0.1)
        peer.say("250 ok")


def test_a_slow_server_has_its_time_for_each_reply_of_a_group(serve, connect) -> None:
    """The time for a command begins anew with each whole reply, so a group may take longer than one command."""
    session = connect(serve(slow), Timeouts(5, 5, 0.6, 20))
    session.open()
    assert [a.reason for a in session.ask([f"a{i}@example.com" for i in range(7)])] == [""] * 7


def test_a_slow_server_does_not_outlast_the_session(serve, connect) -> None:
    """Progress in every single command is still bounded by the session's own deadline."""
    session = connect(serve(slow), Timeouts(5, 5, 5, 0.5))
    session.open()
    answers = session.ask([f"a{i}@example.com" for i in range(50)])
    assert {a.reason for a in answers[10:]} == {"read_timeout"}
    session.quit()


def test_garbage_in_lockstep_spares_what_was_answered(serve, connect) -> None:
    """In lockstep each reply had its own command, so those before the garbage stand."""
    session = connect(serve(middle(at=RCPT_2, then=lambda peer: (peer.say("huh?"), peer.hear()))))
    session.open()
    answers = session.ask(FOUR)
    assert [(a.reason, bool(a.reply)) for a in answers] == [("", True), *[("protocol_error", False)] * 3]
    assert [a.detail for a in answers] == ["", *["not_a_reply"] * 3]


@pytest.mark.parametrize("surplus", ["550 5.1.1 no such user", "huh?"])
def test_garbage_in_a_group_voids_the_group(serve, connect, surplus) -> None:
    """With one reply too many nobody knows whose is whose: no verdict for anybody."""

    def script(peer: Peer) -> None:
        peer.greet("PIPELINING")
        for _ in range(5):
            peer.hear()
        peer.say("250 ok", "250 ok", "550 no", "250 ok", "250 ok", surplus)
        peer.hear()

    session = connect(serve(script))
    session.open()
    answers = session.ask(FOUR)
    assert short(answers) == [(f"a{i}", "rcpt", 0, "protocol_error") for i in range(1, 5)]
    assert {answer.detail for answer in answers} == {"unasked" if surplus.startswith("550") else "not_a_reply"}
    assert not session.alive


@pytest.mark.parametrize("extensions", [(), ("PIPELINING",)])
def test_a_421_answers_its_recipient_and_ends_the_session(serve, connect, extensions) -> None:
    """The one it stands at has the reply; the rest were cut off."""
    server = serve(middle(*extensions, at=RCPT_2, then=lambda peer: peer.say("421 4.7.0 enough")))
    session = connect(server)
    session.open()
    assert short(session.ask(FOUR)) == [
        ("a1", "rcpt", 250, ""),
        ("a2", "rcpt", 421, ""),
        ("a3", "rcpt", 0, "disconnected"),
        ("a4", "rcpt", 0, "disconnected"),
    ]
    assert not session.alive


def test_mail_refused_is_everybodys_answer(serve, connect) -> None:
    """At MAIL the transaction is refused, not a recipient; the session lives on."""
    session = connect(serve(ordinary("PIPELINING", replies={"MAIL": "550 5.7.1 no", "RCPT": "503 5.5.1 MAIL first"})))
    session.open()
    assert short(session.ask(FOUR[:2])) == [("a1", "mail", 550, ""), ("a2", "mail", 550, "")]
    assert session.alive


@pytest.mark.parametrize(
    ("lines", "answer"),
    [
        (("250 and another thing",), ("ann", "mail", 0, "protocol_error")),
        (("554 5.7.1 enough of you",), ("ann", "mail", 0, "protocol_error")),
        (("421 4.4.2 idle too long",), ("ann", "mail", 421, "")),
        ((), ("ann", "mail", 0, "disconnected")),
    ],
)
def test_what_comes_unasked_ends_the_session_before_the_next_question(serve, connect, lines, answer) -> None:
    """Nobody is asked on a line where the server spoke out of turn; only its 421 is taken as an answer."""
    opened, said = gevent.event.Event(), gevent.event.Event()

    def script(peer: Peer) -> None:
        peer.greet()
        opened.wait(5)
        peer.say(*lines)
        peer.socket.shutdown(socket.SHUT_WR)
        said.set()
        while peer.hear():
            pass

    server = serve(script)
    session = connect(server)
    session.open()
    opened.set()
    assert said.wait(5)
    assert session.alive
    assert short(session.ask(["ann@example.com"])) == [answer]
    assert not session.alive
    session.quit()
    assert not [command for command in server.peers[0].heard if command.startswith("MAIL")]


@pytest.mark.parametrize(
    ("line", "end"),
    [("250 surplus", ("ehlo", "protocol_error", 0, "unasked")), ("421 4.3.2 closing", ("ehlo", "", 421, ""))],
)
def test_what_comes_behind_the_ehlo_reply_ends_the_session_at_once(serve, connect, line, end) -> None:
    """A session that is over before its first question does not open."""

    def script(peer: Peer) -> None:
        peer.say("220 mx")
        peer.hear()
        peer.say("250-mx", "250 HELP", line)
        peer.hear()

    assert ended(connect(serve(script))) == end


# --- leaving


@pytest.mark.parametrize(
    "farewell",
    [
        lambda peer: None,
        lambda peer: peer.reset(),
        lambda peer: peer.say("221 bye"),
        lambda peer: peer.say("502 what is QUIT?"),
        lambda peer: peer.say("garbage"),
        lambda peer: peer.drip(b"2"),
        lambda peer: gevent.sleep(5),
    ],
)
def test_quit_never_raises_and_never_hangs(serve, connect, farewell) -> None:
    """However the server takes leave, so do we, within the time that leaving may take."""
    session = connect(serve(middle(at="QUIT", then=farewell)), BRIEF)
    session.open()
    began = monotonic()
    session.quit()
    assert monotonic() - began < 3
    assert not session.alive
    session.quit()
    session.close()


def test_a_killed_greenlet_leaves_nothing_open(serve, connect) -> None:
    """Killing a session at any wait is safe: close never waits, and the server sees the line end."""
    asked, gone = gevent.event.Event(), gevent.event.Event()

    def script(peer: Peer) -> None:
        peer.greet()
        while peer.hear():
            asked.set()
        gone.set()

    session = connect(serve(script))

    def work() -> None:
        try:
            session.open()
            session.ask(["ann@example.com"])
        finally:
            session.close()

    worker = gevent.spawn(work)
    assert asked.wait(5)
    worker.kill(timeout=1)
    assert worker.dead
    assert gone.wait(5)


# --- TLS


@pytest.fixture(scope="module")
def certificate(tmp_path_factory) -> ssl.SSLContext:
    """A server's context with a certificate for mx.example.com from an authority that nobody knows."""
    context = gevent.ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trustme.CA().issue_cert("mx.example.com").configure_cert(context)
    return context


def encrypted(context: ssl.SSLContext) -> Script:
    """An ordinary server behind STARTTLS."""

    def script(peer: Peer) -> None:
        peer.greet("STARTTLS")
        assert peer.hear() == "STARTTLS"
        peer.say("220 go ahead")
        peer.socket = context.wrap_socket(peer.socket, server_side=True)
        peer.hear()
        peer.say("250 mx.example.com")
        converse(peer, {})

    return script


class Handler:
    """aiosmtpd's hooks: PIPELINING is offered (its reader takes groups), "nobody" is unknown."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, list[str]]] = []

    async def handle_EHLO(self, server, session, envelope, hostname, responses):
        session.host_name = hostname
        return [responses[0], "250-PIPELINING", *responses[1:]]

    async def handle_RCPT(self, server, session, envelope, address, options):
        self.seen.append((address, envelope.mail_options))
        if address.startswith("nobody@"):
            return "550 5.1.1 no such user"
        envelope.rcpt_tos.append(address)
        return "250 2.1.5 ok"


class FreePort(Controller):
    """aiosmtpd's controller on whatever port is free; its own connects to the port that it was given."""

    def _trigger_server(self) -> None:
        self.host, self.port = self.server.sockets[0].getsockname()
        super()._trigger_server()


@pytest.fixture
def aiosmtpd() -> Iterator[Callable[..., Controller]]:
    """Starts aiosmtpd, a server that is not ours, on a free port."""
    started: list[Controller] = []

    def start(**options: Any) -> Controller:
        controller = FreePort(Handler(), hostname="127.0.0.1", port=0, ready_timeout=20, **options)
        controller.start()
        started.append(controller)
        return controller

    yield start
    for controller in started:
        controller.stop()


@pytest.mark.parametrize("tls", ["never", "opportunistic", "require"])
def test_aiosmtpd_is_asked_under_every_tls_policy(aiosmtpd, connect, certificate, tls) -> None:
    """A real server answers the same, with STARTTLS wherever the policy lets us, unverified as MX certificates are."""
    server = aiosmtpd(tls_context=certificate, require_starttls=False)
    session = connect(server, tls=tls)
    session.open()
    assert session.tls == (tls != "never")
    assert session.pipelining
    for _ in range(2):
        assert [(a.reply.code, a.reply.enhanced) for a in session.ask(["ann@example.com", "nobody@example.com"])] == [
            (250, "2.1.5"),
            (550, "5.1.1"),
        ]
    session.quit()


def test_aiosmtpd_takes_addresses_in_utf8(aiosmtpd, connect) -> None:
    """Where SMTPUTF8 is offered a non-ASCII local part is asked as it is."""
    server = aiosmtpd(enable_SMTPUTF8=True)
    session = connect(server)
    session.open()
    assert session.smtputf8
    (answer,) = session.ask(["jürgen@example.com"], smtputf8=True)
    assert answer.reply.code == 250
    session.quit()
    assert server.handler.seen == [("jürgen@example.com", ["SMTPUTF8"])]


def test_a_host_that_wants_starttls_first_says_so_at_mail(aiosmtpd, connect, certificate) -> None:
    """Without TLS a STARTTLS-only host refuses MAIL, not a mailbox."""
    session = connect(aiosmtpd(tls_context=certificate, require_starttls=True))
    session.open()
    assert short(session.ask(["ann@example.com"])) == [("ann", "mail", 530, "")]
    session.quit()


def test_a_failed_handshake_is_followed_by_one_plain_connection(serve, connect) -> None:
    """Opportunistic: the same host once more without TLS, and the transcript tells."""
    told: list[str] = []

    def broken(peer: Peer) -> None:
        peer.greet("STARTTLS")
        peer.hear()
        peer.say("220 go ahead")
        peer.socket.recv(4096)
        peer.say("500 this is no handshake")

    server = serve(broken, ordinary("STARTTLS"))
    session = connect(server, tls="opportunistic", transcript=lambda mark, text, _: told.append(text))
    session.open()
    assert session.alive
    assert not session.tls
    assert short(session.ask(["ann@example.com"])) == [("ann", "rcpt", 250, "")]
    session.quit()
    assert len(server.peers) == 2
    assert "STARTTLS" not in server.peers[1].heard
    assert any(re.search("handshake failed .* without TLS", text) for text in told)


@pytest.mark.parametrize(
    "then",
    [
        lambda peer: peer.say("220 go ahead"),
        lambda peer: (peer.say("220 go ahead"), peer.socket.recv(9), peer.reset()),
        lambda peer: (peer.say("220 go ahead"), peer.drip(b"\x16")),
        lambda peer: (peer.say("220 go ahead"), peer.socket.sendall(b"x" * 9000), peer.socket.recv(9)),
    ],
)
def test_a_required_handshake_that_fails_is_the_end(serve, connect, then) -> None:
    """Required: no plain session follows, however the handshake failed."""
    server = serve(middle("STARTTLS", at="STARTTLS", then=then))
    assert ended(connect(server, SHORT, tls="require"))[:2] == ("tls", "tls_handshake_failed")
    assert len(server.peers) == 1


def test_stalled_handshakes_do_not_lock_the_others_out(serve, connect, certificate, monkeypatch) -> None:
    """Handshakes are limited in number; one that stalls gives its place back at its deadline."""
    monkeypatch.setattr(session_module, "_handshakes", Semaphore(1))
    stall = middle("STARTTLS", at="STARTTLS", then=lambda peer: (peer.say("220 go ahead"), peer.drip(b"\x16")))
    stalled = connect(serve(stall), SHORT, "require")
    server = serve(encrypted(certificate))
    waiting = connect(server, tls="require")
    first, second = gevent.spawn(ended, stalled), gevent.spawn(waiting.open)
    assert first.get(timeout=5)[:2] == ("tls", "tls_handshake_failed")
    second.get(timeout=5)
    assert waiting.tls


def test_tls_required_and_not_offered(serve, connect) -> None:
    """Required and not offered: nobody is asked, and QUIT is said."""
    server = serve(ordinary())
    assert ended(connect(server, tls="require")) == ("tls", "tls_required", 0, "starttls_not_offered")
    assert server.peers[0].heard == ["EHLO probe.example.net", "QUIT"]


def test_plaintext_before_the_handshake_never_reaches_the_encrypted_session(serve, connect, certificate) -> None:
    """Replies injected behind the 220 to STARTTLS are discarded, told, and answer nobody (RFC 3207 section 4.2)."""
    told: list[str] = []

    def script(peer: Peer) -> None:
        peer.greet("STARTTLS", "PIPELINING")
        assert peer.hear() == "STARTTLS"
        peer.say("220 go ahead", "250-forged", "250 SMTPUTF8", "250 forged", "250 forged")
        peer.socket = certificate.wrap_socket(peer.socket, server_side=True)
        assert peer.hear() == "EHLO probe.example.net"
        peer.say("250 mx.example.com")
        converse(peer, {})

    session = connect(serve(script), tls="opportunistic", transcript=lambda mark, text, _: told.append(text))
    session.open()
    assert session.tls
    assert (session.smtputf8, session.pipelining) == (False, False)
    assert short(session.ask(["nobody@example.com"])) == [("nobody", "rcpt", 550, "")]
    session.quit()
    assert any(text.startswith("discarded ") for text in told)


@pytest.mark.parametrize("name", ["mx.example.com", "_odd.example.com", "", "x" * 70 + ".example.com", ".example.com"])
def test_any_mail_host_name_can_be_met_with_tls(serve, connect, certificate, name) -> None:
    """The MX name is sent as SNI where it can be; where it can't, TLS works without."""
    session = connect(serve(encrypted(certificate)), tls="require", name=name)
    session.open()
    assert session.tls
    assert short(session.ask(["ann@example.com"])) == [("ann", "rcpt", 250, "")]
    session.quit()


def test_a_session_works_in_a_patched_process(aiosmtpd, certificate) -> None:
    """The engine's own process is monkey-patched; there TLS and the stream work all the same."""
    server = aiosmtpd(tls_context=certificate)
    program = f"""
from gevent import monkey; monkey.patch_all()
from engine.net.session import *
from engine.core.policy import Timeouts
session = Session(Endpoint("mx.example.com", "127.0.0.1", {server.port}),
                  Identity("node", "probe.example.net", "probe@example.net"), Timeouts(), "require")
session.open()
print(session.tls, session.ask(["nobody@example.com"])[0].reply)
session.quit()
"""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        capture_output=True, text=True, timeout=60, check=False, cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert (done.stdout, done.stderr) == ("True 550 5.1.1 no such user\n", "")
