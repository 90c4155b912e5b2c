"""One SMTP session with one mail host: `core.dialogue` driven over `net.stream`.

1. Every stage has an absolute deadline and so has the session; the earlier one counts. A command's time begins when
   it is sent, in a group when the reply before it was complete: bytes that complete no reply buy none.
2. Errors of socket, TLS and peer become a reason code here, and nowhere else.
3. What the peer says outranks how the line fails: a failed write still reads, a reply before a reset is heard.
4. A protocol error voids the answers of its pipelined group: with one reply too many, none can be trusted.
5. Killing the greenlet leaves nothing behind: `close` never waits.
"""

from __future__ import annotations

import errno
import ssl
from collections.abc import Callable, Sequence
from functools import cache
from time import monotonic
from typing import NamedTuple

from gevent.lock import Semaphore

from engine.core.dialogue import Answered, Dialogue, Ended, Event, Misuse, Ready, StartTls, State
from engine.core.identity import Identity
from engine.core.policy import Timeouts
from engine.core.reasons import Stage
from engine.core.reply import ProtocolError, Reply, printable
from engine.net.stream import DeadlinePassed, Stream

QUIT_S = 2.0  # how long a farewell may take; the verdicts are in, and most servers answer within a round trip
# A handshake is CPU on the hub: more at once would delay every other session's timers. A slot is held over the peer's
# round trips, so it is a hundred and not ten; waiting for one is at the cost of the session's own deadline.
HANDSHAKES = 100
_handshakes = Semaphore(HANDSHAKES)

_OUT_OF_REACH = {
    errno.ECONNREFUSED: "connect_refused",
    errno.ECONNRESET: "connect_reset",
    errno.ETIMEDOUT: "connect_timeout",
}
# No port or address left, no descriptor, no such source address: nothing that speaks of the host.
_OURS = frozenset(
    {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.EADDRNOTAVAIL, errno.EADDRINUSE, errno.EINVAL}
)

Transcript = Callable[[str, str, float], None]


class Endpoint(NamedTuple):
    """Where to connect. `host` is the MX name (for SNI and records), `ip` an IPv4 or IPv6 literal."""

    host: str
    ip: str
    port: int = 25


class Answer(NamedTuple):
    """What one recipient's question came to.

    With a reply, `reason` is empty and the caller classifies; at stage MAIL the reply refused the whole transaction.
    Without one, `reason` is `disconnected`, `read_timeout` or `protocol_error`, and `detail` says more where it can.
    """

    recipient: str
    stage: Stage
    reply: Reply | None
    reason: str
    duration_ms: int
    detail: str = ""


class SessionEnded(Exception):  # noqa: N818 -- often no error: the server said no
    """The session can't be opened. `reason` is a code of `core.reasons`, or empty where `reply` is to be classified."""

    def __init__(self, stage: Stage, reason: str, reply: Reply | None = None, detail: str = "") -> None:
        super().__init__(f"{reason or reply} at {stage}" + (f" ({detail})" if detail else ""))
        self.stage = stage
        self.reason = reason
        self.reply = reply
        self.detail = detail


@cache
def _context(tls: str) -> ssl.SSLContext:
    """TLS without identity: an MX certificate proves nothing without DANE or MTA-STS (RFC 7672 section 1.3)."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    if tls == "opportunistic":
        context.set_ciphers("DEFAULT:@SECLEVEL=0")  # the weakest key beats the plain text that would follow
    return context


class Session:
    """`open`, `ask` any number of times while `alive`, `quit`; `close` in a `finally`.

    `tls` is `never`, `opportunistic` or `require`. Where an opportunistic handshake fails, `open` makes one more
    connection without TLS. `transcript` is called with "C", "S" or "*", a line, and seconds since `open`.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        identity: Identity,
        timeouts: Timeouts,
        tls: str,
        *,
        transcript: Transcript | None = None,
    ) -> None:
        self.endpoint = endpoint
        self.source_ip = ""
        self._identity = identity
        self._timeouts = timeouts
        self._policy = tls
        self._began = self._ends = 0.0  # time.monotonic()
        self._dialogue = Dialogue(identity.helo_name, identity.mail_from, tls=tls)
        self._stream: Stream | None = None
        self._patience = QUIT_S
        self._heard = 0  # replies when the present deadline was set
        self._tell = transcript
        self._partial = b""  # of a line from the peer, for the transcript

    @property
    def alive(self) -> bool:
        """Whether the next transaction can be asked."""
        return self._stream is not None and self._dialogue.state is State.READY

    @property
    def tls(self) -> bool:
        """Whether the line is encrypted."""
        return self._dialogue.secure

    @property
    def pipelining(self) -> bool:
        """Whether recipients are asked in one write."""
        return self._dialogue.pipelining

    @property
    def smtputf8(self) -> bool:
        """Whether the host takes addresses that are not ASCII."""
        return self._dialogue.smtputf8

    def open(self) -> None:
        """Connect, hear the greeting, say EHLO, and STARTTLS by the policy. Raises SessionEnded, the line closed."""
        if self._began:
            raise Misuse("a session opens once; make a new one")
        self._began = monotonic()
        self._ends = self._began + self._timeouts.session_s
        try:
            try:
                self._open()
            except SessionEnded as ended:
                plain = self._policy == "opportunistic" and monotonic() < self._ends
                if ended.reason != "tls_handshake_failed" or not plain:
                    raise
                self._note(f"TLS handshake failed ({ended.detail}); connecting once more, without TLS")
                self.close()
                self._heard = 0
                self._dialogue = Dialogue(self._identity.helo_name, self._identity.mail_from, tls="never")
                self._open()
        except SessionEnded:
            self.quit()
            raise
        except BaseException:
            self.close()
            raise

    def ask(self, recipients: Sequence[str], *, smtputf8: bool = False) -> list[Answer]:
        """One transaction: an answer for each recipient, in order. Raises only Misuse, before anything is sent."""
        if not self.alive:
            raise Misuse("the session is not open; look at `alive` before asking")
        self._dialogue.ask(recipients, smtputf8=smtputf8)
        answers: list[Answer] = []
        began = monotonic()
        stage, reason, detail = Stage.MAIL, "", ""
        try:
            self._listen()
            while not isinstance(event := self._event(), Ready):
                if isinstance(event, Answered):
                    elapsed_ms = round((monotonic() - began) * 1000)
                    answers.append(Answer(event.recipient, event.stage, event.reply, "", elapsed_ms))
                elif isinstance(event, Ended):  # a 421; those behind it were not answered
                    stage, reason = event.stage, "disconnected"
                    break
            else:
                self._drain()
        except SessionEnded as ended:
            stage, reason, detail = ended.stage, ended.reason, ended.detail
            if reason == "protocol_error" and self.pipelining:
                answers.clear()
        elapsed_ms = round((monotonic() - began) * 1000)
        unanswered = recipients[len(answers) :]
        answers += [Answer(recipient, stage, None, reason, elapsed_ms, detail) for recipient in unanswered]
        return answers

    def quit(self) -> None:
        """Say QUIT wherever that can be said, wait a little for the farewell, and close. Raises nothing."""
        stream, dialogue = self._stream, self._dialogue
        if stream is None:
            return
        try:
            if dialogue.quit():
                stream.deadline = min(monotonic() + self._patience, self._ends)
                self._write(dialogue.to_send())
                while dialogue.state is State.QUIT:
                    self._take(stream.read())
                    dialogue.next_event()
        except (OSError, DeadlinePassed, ProtocolError) as error:
            self._note(f"no farewell: {_detail(error)}")
        finally:
            self.close()

    def close(self) -> None:
        """Drop the line; never waits."""
        stream, self._stream = self._stream, None
        if stream is not None:
            if self._partial:
                self._note(f"unfinished line: {printable(self._partial.decode('utf-8', 'replace'))}")
                self._partial = b""
            self._note("closed")
            stream.close()

    def _open(self) -> None:
        self._connect()
        self._until(self._timeouts.greeting_s)
        while not isinstance(event := self._event(), Ready):
            if isinstance(event, StartTls):
                self._secure(event)
            elif isinstance(event, Ended):
                raise _said(event)
        if isinstance(last := self._drain(), Ended):
            raise _said(last)

    def _connect(self) -> None:
        ip, port = self.endpoint.ip, self.endpoint.port
        bind = self._identity.bind_v6 if ":" in ip else self._identity.bind_v4
        self._note(f"connecting to {self.endpoint.host} [{ip}]:{port}")
        try:
            self._stream = stream = Stream(ip)
            self._until(self._timeouts.connect_s)
            stream.connect(port, bind)
            self.source_ip = stream.source_ip
        except DeadlinePassed:
            raise SessionEnded(Stage.CONNECT, "connect_timeout") from None
        except OSError as error:
            reason = _OUT_OF_REACH.get(error.errno or 0, "network_unreachable")
            if error.errno is None or error.errno in _OURS:
                reason = "internal_error"
            raise SessionEnded(Stage.CONNECT, reason, detail=_detail(error)) from None
        self._note(f"connected from [{self.source_ip}]")

    def _secure(self, event: StartTls) -> None:
        stream = self._stream
        assert stream is not None
        if event.discarded:
            self._note(f"discarded {event.discarded} bytes that came before the TLS handshake")
            self._partial = b""
        try:
            self._shake_hands(stream)
        except (OSError, EOFError, DeadlinePassed, ProtocolError) as error:
            self._dialogue.lost()
            raise SessionEnded(Stage.TLS, "tls_handshake_failed", detail=_detail(error)) from None
        self._note(f"TLS: {stream.cipher}")
        self._dialogue.secured()

    def _shake_hands(self, stream: Stream) -> None:
        if not _handshakes.acquire(timeout=max(self._ends - monotonic(), 0.0)):
            raise DeadlinePassed
        try:
            self._until(self._timeouts.command_s)
            stream.start_tls(_context(self._policy), self.endpoint.host)
        finally:
            _handshakes.release()

    def _event(self) -> Event:
        """The next event; sends and reads until there is one. Raises SessionEnded with the reason of a broken line."""
        dialogue, stream = self._dialogue, self._stream
        assert stream is not None
        try:
            while (event := dialogue.next_event()) is None:
                data = dialogue.to_send()
                if data or self._heard != dialogue.heard:
                    self._heard = dialogue.heard
                    self._until(self._timeouts.command_s)
                if data:
                    self._write(data)
                self._take(stream.read())
        except (ProtocolError, DeadlinePassed, OSError, EOFError) as error:
            raise self._broken(error) from None
        return event

    def _listen(self) -> None:
        """Hear what the peer said while it had nothing to answer: a farewell, or what nobody asked for."""
        assert self._stream is not None
        try:
            data = self._stream.poll()
            if data is not None:
                self._take(data)
        except (ProtocolError, OSError, EOFError) as error:
            raise self._broken(error) from None

    def _drain(self) -> Event | None:
        """After the last reply nothing may follow; a 421 ends the session without harm to what was answered."""
        try:
            return self._dialogue.next_event()
        except ProtocolError as error:
            raise self._broken(error) from None

    def _broken(self, error: Exception) -> SessionEnded:
        """The one place where a line that broke after the connect gets its reason."""
        stage = self._dialogue.stage
        greeting = self._dialogue.state is State.GREETING
        detail = _detail(error)
        match error:
            case ProtocolError():
                reason = "protocol_error"
            case DeadlinePassed() | TimeoutError():
                reason = "greeting_timeout" if greeting else "read_timeout"
                self._patience = 0.0  # it said nothing then, and has no more time now
            case ssl.SSLError():
                reason = "protocol_error"
            case ConnectionResetError() if greeting:
                reason = "connect_reset"
            case _:
                reason = "disconnected"
        if isinstance(error, OSError | EOFError):
            self._dialogue.lost()
        return SessionEnded(stage, reason, None, detail)

    def _write(self, data: bytes) -> None:
        assert self._stream is not None
        if self._tell is not None:
            for line in data.decode().splitlines():
                self._tell("C", line, monotonic() - self._began)
        try:
            self._stream.write(data)
        except (ConnectionError, ssl.SSLError):  # the read tells why: what the peer said last, then the error
            self._note("write failed")

    def _take(self, data: bytes) -> None:
        if not data:
            if self._dialogue.state is State.QUIT:
                self._dialogue.lost()
                return
            raise EOFError("closed by the peer")
        if self._tell is not None:
            *lines, self._partial = (self._partial + data).split(b"\n")
            for line in lines:
                self._tell("S", printable(line.rstrip(b"\r").decode("utf-8", "replace")), monotonic() - self._began)
        self._dialogue.receive(data)

    def _until(self, seconds: float) -> None:
        assert self._stream is not None
        self._stream.deadline = min(monotonic() + seconds, self._ends)

    def _note(self, text: str) -> None:
        if self._tell is not None:
            self._tell("*", text, monotonic() - self._began)


def _said(event: Ended) -> SessionEnded:
    return SessionEnded(event.stage, event.reason, event.reply, event.detail)


def _detail(error: Exception) -> str:
    """A short stable word for what went wrong."""
    match error:
        case ProtocolError():
            return error.detail
        case DeadlinePassed():
            return "deadline"
        case EOFError():
            return "closed"
        case ssl.SSLError():
            return (error.reason or "tls").lower()
        case OSError():
            return errno.errorcode.get(error.errno or 0, "unknown").lower()
    return type(error).__name__.lower()
