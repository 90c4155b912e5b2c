"""Our side of one SMTP connection, with no socket in sight (RFC 5321, 2920, 3207, 6531).

1. Every move is a row of MOVES; nothing else changes `state`, and a move without a row is `Misuse`.
2. This file knows no provider, no clock and no socket: bytes in, events out, bytes to send.
3. There is no way to DATA, no empty MAIL FROM, and no command with a control character in it.
4. A reply is paired only with a command that had left before the reply began. Anything else is unasked, and ends the
   dialogue: one surplus reply would answer every later recipient with its neighbour's verdict. Only a 421, which a
   server may say at any time, is heard.
5. A `ProtocolError` is final.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from typing import NamedTuple, NoReturn

from engine.core.reasons import Stage
from engine.core.reply import ProtocolError, Reply, ReplyParser

MAX_COMMAND = 512  # octets with CRLF, RFC 5321 section 4.5.3.1.4
MAX_COMMAND_UTF8 = MAX_COMMAND + 10  # RFC 6531 section 3.1 lengthens MAIL by its parameter
MAX_RECIPIENTS = 100  # what every server must take, RFC 5321 section 4.5.3.1.8; as one write it fits any send buffer
MAX_EXTENSIONS = 64  # IANA lists some 40 keywords in all


class State(StrEnum):
    """Whose turn it is, and for what."""

    GREETING = "greeting"  # connected; the server speaks first
    EHLO = "ehlo"
    HELO = "helo"  # the server does not know EHLO
    STARTTLS = "starttls"
    HANDSHAKE = "handshake"  # 220 came; nothing is SMTP until `secured`
    READY = "ready"  # ours to ask
    RSET = "rset"
    MAIL = "mail"
    RCPT = "rcpt"
    VOID = "void"  # the transaction was refused; replies to the rest of its group mean nothing
    ENDED = "ended"  # the server will not have us; QUIT is all that is left
    QUIT = "quit"
    OVER = "over"
    ERROR = "error"


class Move(StrEnum):
    """What happens: the peer's replies and faults, and our own decisions."""

    ACCEPTED = "accepted"  # 2yz
    REFUSED = "refused"  # 4yz, 5yz
    UNKNOWN = "unknown"  # a 5yz that says "I don't know EHLO", and no more
    UPGRADE = "upgrade"  # EHLO offered STARTTLS, and we want it
    INSECURE = "insecure"  # we require TLS and can't have it
    SHUTDOWN = "shutdown"  # 421
    BELATED = "belated"  # after our QUIT, a reply to an earlier command
    DONE = "done"  # no reply of the transaction is owed any more
    GARBAGE = "garbage"
    LOST = "lost"  # the line is gone
    SECURED = "secured"
    ASK = "ask"
    ASK_AGAIN = "ask_again"  # with RSET in front
    QUIT = "quit"


_IN_TRANSACTION = frozenset({State.RSET, State.MAIL, State.RCPT, State.VOID})
_LIVE = _IN_TRANSACTION | {State.GREETING, State.EHLO, State.HELO, State.STARTTLS, State.READY}
_DEAF = frozenset({State.HANDSHAKE, State.ENDED, State.OVER})

MOVES: Mapping[tuple[State, Move], State] = {
    **{(state, Move.GARBAGE): State.ERROR for state in State},
    **{(state, Move.LOST): State.ERROR for state in State},
    **{(state, Move.SHUTDOWN): State.ENDED for state in _LIVE},
    # Not before the greeting, where the server speaks first, and not into a handshake.
    **{(state, Move.QUIT): State.QUIT for state in _LIVE - {State.GREETING, State.STARTTLS} | {State.ENDED}},
    (State.GREETING, Move.ACCEPTED): State.EHLO,
    (State.GREETING, Move.REFUSED): State.ENDED,
    (State.EHLO, Move.ACCEPTED): State.READY,
    (State.EHLO, Move.REFUSED): State.ENDED,
    (State.EHLO, Move.UNKNOWN): State.HELO,
    (State.EHLO, Move.UPGRADE): State.STARTTLS,
    (State.EHLO, Move.INSECURE): State.ENDED,
    (State.HELO, Move.ACCEPTED): State.READY,
    (State.HELO, Move.REFUSED): State.ENDED,
    (State.HELO, Move.INSECURE): State.ENDED,
    (State.STARTTLS, Move.ACCEPTED): State.HANDSHAKE,
    (State.STARTTLS, Move.REFUSED): State.READY,
    (State.STARTTLS, Move.INSECURE): State.ENDED,
    (State.HANDSHAKE, Move.SECURED): State.EHLO,
    (State.READY, Move.ASK): State.MAIL,
    (State.READY, Move.ASK_AGAIN): State.RSET,
    (State.RSET, Move.ACCEPTED): State.MAIL,
    (State.RSET, Move.REFUSED): State.VOID,
    (State.MAIL, Move.ACCEPTED): State.RCPT,
    (State.MAIL, Move.REFUSED): State.VOID,
    (State.RCPT, Move.ACCEPTED): State.RCPT,
    (State.RCPT, Move.REFUSED): State.RCPT,
    (State.RCPT, Move.DONE): State.READY,
    (State.VOID, Move.ACCEPTED): State.VOID,
    (State.VOID, Move.REFUSED): State.VOID,
    (State.VOID, Move.DONE): State.READY,
    (State.QUIT, Move.ACCEPTED): State.OVER,
    (State.QUIT, Move.BELATED): State.QUIT,
    (State.QUIT, Move.SHUTDOWN): State.OVER,
    (State.QUIT, Move.LOST): State.OVER,  # a peer that drops the line after QUIT has done as asked
    (State.OVER, Move.LOST): State.OVER,
}

_STAGES = {
    State.GREETING: Stage.CONNECT,
    State.EHLO: Stage.EHLO,
    State.HELO: Stage.EHLO,
    State.STARTTLS: Stage.TLS,
    State.HANDSHAKE: Stage.TLS,
    State.RSET: Stage.MAIL,
    State.MAIL: Stage.MAIL,
    State.RCPT: Stage.RCPT,
}

# "I don't know this command". A 501 or 550 to EHLO speaks of our name or our address, and HELO would hide that.
_NO_EHLO = frozenset({500, 502, 504})

_KEYWORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9-]*")
_HELO_NAME = re.compile(r"[A-Za-z0-9.:_\[\]-]+")
_CONTROLS = r"\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff"  # and what can't be encoded
_ADDRESS = re.compile(
    rf'(?:[^{_CONTROLS} "(),:;<>@\[\\\]]+|"(?:[^{_CONTROLS}"\\]|\\[ -~])*")@[^{_CONTROLS} "<>@\\]+',
)


class Misuse(Exception):  # noqa: N818 -- it names the mistake, not a condition of the peer
    """A call that would break the protocol: a fault of ours. Nothing was sent."""


@dataclass(frozen=True, slots=True)
class Ready:
    """The next transaction may be asked."""


@dataclass(frozen=True, slots=True)
class StartTls:
    """The server waits for a TLS handshake; call `secured` after it. `discarded` bytes came before it, unencrypted."""

    discarded: int


class Answered(NamedTuple):
    """The reply to one recipient, in the order of asking. At stage MAIL it is the whole transaction's refusal."""

    recipient: str
    stage: Stage
    reply: Reply


@dataclass(frozen=True, slots=True)
class Ended:
    """Nothing more can be asked here. `reason` is empty where `reply` says it all."""

    stage: Stage
    reason: str
    reply: Reply | None
    detail: str = ""


Event = Ready | StartTls | Answered | Ended


class Dialogue:
    """One connection's dialogue.

    Drive it so: `receive` what the peer sent, take `next_event` until None, send what `to_send` gives, read again.
    `tls` is `never`, `opportunistic` or `require`.
    """

    def __init__(self, helo_name: str, mail_from: str, *, tls: str = "opportunistic") -> None:
        _check(helo_name, mail_from, tls)
        self.state = State.GREETING
        self.stage = Stage.CONNECT  # the last gate reached: where a fault is to be reported
        self.secure = False
        self.heard = 0  # replies so far
        self.extensions: dict[str, str] = {}
        self._helo_name = helo_name
        self._mail_from = mail_from
        self._tls = tls
        self._parser = ReplyParser()
        self._failure: ProtocolError | None = None
        self._events: list[Event] = []  # a few at most, as below: an empty deque takes 760 bytes
        self._out = b""  # commands not handed out yet
        self._later: list[bytes] = []  # commands that wait for the reply to the one before
        self._owed = 1  # replies the peer owes us, the greeting first
        self._early = False  # the peer had begun to speak before our last command left
        self._asked: list[str] = []  # recipients without an answer
        self._open = False  # a transaction that RSET must close

    def __repr__(self) -> str:
        return f"<Dialogue {self.state}, {self.heard} replies, {len(self._asked)} recipients unanswered>"

    @property
    def pipelining(self) -> bool:
        """Whether the server takes commands in groups (RFC 2920)."""
        return "PIPELINING" in self.extensions

    @property
    def smtputf8(self) -> bool:
        """Whether the server takes addresses that are not ASCII (RFC 6531)."""
        return "SMTPUTF8" in self.extensions

    def receive(self, data: bytes) -> None:
        """Take bytes from the peer. Raises ProtocolError when far too many wait unread."""
        if self.state is State.HANDSHAKE:
            raise Misuse("the peer's bytes belong to the TLS handshake now")
        if self.state not in _DEAF:
            try:
                self._parser.feed(data)
            except ProtocolError as error:
                self._fail(error)

    def next_event(self) -> Event | None:
        """The next thing that happened, or None: send, then read. Raises ProtocolError, from then on always."""
        while not self._events:
            if self._failure is not None:
                raise self._failure
            if self.state in _DEAF:
                return None
            try:
                reply = self._parser.next()
            except ProtocolError as error:
                self._fail(error)
            if reply is None:
                return None
            self._hear(reply)
        return self._events.pop(0)

    def to_send(self) -> bytes:
        """The bytes to send now, in one write; from here on they count as sent."""
        data, self._out = self._out, b""
        if data:
            self._early = self._parser.unread > 0
        return data

    def ask(self, recipients: Sequence[str], *, smtputf8: bool = False) -> None:
        """Begin a transaction: RSET where one is open, MAIL FROM, a RCPT TO each. Misuse before any byte is sent."""
        if not 0 < len(recipients) <= MAX_RECIPIENTS:
            raise Misuse(f"{len(recipients)} recipients; a transaction takes 1 to {MAX_RECIPIENTS}")
        if smtputf8 and not self.smtputf8:
            raise Misuse("the server does not offer SMTPUTF8; don't ask it about such addresses")
        commands = [b"RSET\r\n"] if self._open else []
        commands.append(_mail(self._mail_from, smtputf8))
        commands += [_command("RCPT TO", recipient, smtputf8) for recipient in recipients]
        self._turn(Move.ASK_AGAIN if self._open else Move.ASK)
        self._asked.extend(recipients)
        if self.pipelining:
            self._owed = len(commands)
            self._out = b"".join(commands)
        else:
            self._later.extend(commands)
            self._say(self._later.pop(0))

    def secured(self) -> None:
        """The TLS handshake is done: all that the server said before is forgotten (RFC 3207 section 4.2)."""
        self._turn(Move.SECURED)
        self.secure = True
        self.extensions = {}
        self._say(b"EHLO %b\r\n" % self._helo_name.encode())

    def quit(self) -> bool:
        """Leave politely, from whatever is going on. False where QUIT can't be said: before the greeting, in STARTTLS,
        after an error.
        """
        if (self.state, Move.QUIT) not in MOVES:
            return False
        self._turn(Move.QUIT)
        self._later.clear()
        self._out = b"QUIT\r\n"
        return True

    def lost(self) -> None:
        """The line is gone."""
        self._turn(Move.LOST)

    def _hear(self, reply: Reply) -> None:
        """Pair a reply with the command it answers, and move."""
        self.heard += 1
        state = self.state
        unasked = self._out or self._early or not self._owed
        self._early = False
        if state is State.QUIT:
            self._turn(_judge_farewell(reply))
            return
        if unasked and reply.code != 421:
            self._fail(ProtocolError("unasked", "the server sent a reply to which there is no command"))
        if 300 <= reply.code < 400:
            self._fail(ProtocolError("unexpected_code", "the server asked for data (3yz) that nobody offered"))
        self._owed -= 1
        move = self._judge(reply)
        stage = self.stage
        self._turn(move)
        if state in _IN_TRANSACTION:
            self._answer(state, move, stage, reply)
        if self.state is State.ENDED:
            self._end(stage, move, reply)
        elif state in _IN_TRANSACTION:
            self._go_on()
        else:
            self._enter()

    def _judge(self, reply: Reply) -> Move:
        """What a reply means in the present state; 2yz, 4yz and 5yz only."""
        state, code = self.state, reply.code
        if code == 421:
            return Move.SHUTDOWN
        required = self._tls == "require" and not self.secure
        if code >= 400:
            if state is State.EHLO and code in _NO_EHLO and not reply.enhanced.startswith("5.7."):
                return Move.UNKNOWN
            return Move.INSECURE if state is State.STARTTLS and required else Move.REFUSED
        if state is State.EHLO:
            self.extensions = _extensions(reply)
            if self._tls != "never" and not self.secure and "STARTTLS" in self.extensions:
                return Move.UPGRADE
        return Move.INSECURE if required and state in {State.EHLO, State.HELO} else Move.ACCEPTED

    def _enter(self) -> None:
        """Do what the state before any transaction that we have just come to asks for."""
        match self.state:
            case State.EHLO:
                self._say(b"EHLO %b\r\n" % self._helo_name.encode())
            case State.HELO:
                self._say(b"HELO %b\r\n" % self._helo_name.encode())
            case State.STARTTLS:
                self._say(b"STARTTLS\r\n")
            case State.HANDSHAKE:
                self._events.append(StartTls(self._parser.discard()))
            case State.READY:
                self._events.append(Ready())

    def _answer(self, state: State, move: Move, stage: Stage, reply: Reply) -> None:
        """Give a reply inside a transaction to the recipients that it answers."""
        accepted = move is Move.ACCEPTED
        if state is State.RCPT:
            self._events.append(Answered(self._asked.pop(0), stage, reply))
        elif state is State.RSET and accepted:
            self._open = False
        elif state is State.MAIL and accepted:
            self._open = True
        elif state is not State.VOID:  # RSET or MAIL refused: nobody behind it was asked
            self._later.clear()
            self._events.extend(Answered(recipient, stage, reply) for recipient in self._asked)
            self._asked.clear()

    def _go_on(self) -> None:
        if self._later:
            self._say(self._later.pop(0))
        elif not self._owed:
            self._turn(Move.DONE)
            self._events.append(Ready())

    def _end(self, stage: Stage, move: Move, reply: Reply) -> None:
        self._out = b""
        self._later.clear()
        if move is not Move.INSECURE:
            self._events.append(Ended(stage, "", reply))
        elif stage is Stage.TLS:
            self._events.append(Ended(stage, "tls_handshake_failed", reply, "starttls_refused"))
        else:
            self._events.append(Ended(Stage.TLS, "tls_required", None, "starttls_not_offered"))

    def _say(self, command: bytes) -> None:
        self._out = command
        self._owed += 1

    def _turn(self, move: Move) -> None:
        state = MOVES.get((self.state, move))
        if state is None:
            raise Misuse(f"{move} is no move in state {self.state}")
        self.state = state
        self.stage = _STAGES.get(state, self.stage)

    def _fail(self, error: ProtocolError) -> NoReturn:
        self._turn(Move.GARBAGE)
        self._out = b""
        self._failure = error
        raise error


@lru_cache(maxsize=64)  # a process asks in few names; what is wrong is raised each time
def _check(helo_name: str, mail_from: str, tls: str) -> None:
    if not _HELO_NAME.fullmatch(helo_name):
        raise Misuse(f"{helo_name!r} is no HELO name; give a host name in ASCII")
    if not _ADDRESS.fullmatch(mail_from):
        raise Misuse(f"{mail_from!r} is no MAIL FROM address; give one that exists")
    if tls not in {"never", "opportunistic", "require"}:
        raise Misuse(f"{tls!r} is no TLS policy; expected never, opportunistic or require")


def _judge_farewell(reply: Reply) -> Move:
    if reply.code == 421:
        return Move.SHUTDOWN
    return Move.ACCEPTED if reply.code == 221 else Move.BELATED


def _extensions(reply: Reply) -> dict[str, str]:
    """The keywords of an EHLO reply with their parameters; the first line is the server's name."""
    found = {}
    for line in reply.lines[1 : MAX_EXTENSIONS + 1]:
        keyword = _KEYWORD.match(line)
        if keyword is not None:
            found[keyword[0].upper()] = line[keyword.end() :].strip()
    return found


@lru_cache(maxsize=64)
def _mail(sender: str, smtputf8: bool) -> bytes:
    return _command("MAIL FROM", sender, smtputf8, " SMTPUTF8" if smtputf8 else "")


def _command(verb: str, address: str, smtputf8: bool, parameters: str = "") -> bytes:
    """One command line. Raises Misuse for what could be read as more than one address, or as another command."""
    if not _ADDRESS.fullmatch(address):
        raise Misuse(f"{address!r} can't stand in a command; parse addresses before asking about them")
    try:
        line = f"{verb}:<{address}>{parameters}\r\n".encode("utf-8" if smtputf8 else "ascii")
    except UnicodeEncodeError:
        raise Misuse(f"{address!r} is not ASCII; ask with smtputf8 where the server offers it") from None
    if len(line) > (MAX_COMMAND_UTF8 if smtputf8 else MAX_COMMAND):
        raise Misuse(f"a command of {len(line)} octets is too long; {verb} takes at most {MAX_COMMAND}")
    return line
