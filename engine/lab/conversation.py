"""The server's side of one SMTP session, with no socket in sight: command lines in, turns out.

1. A turn is one reply and what comes after it (`then`); `smtp` sends it and does that.
2. The persona is looked up anew at each command, so that a change at run time works in sessions that are open.
3. What a server remembers beyond a session (greylist, rates, busy counts) is in Memory, by server and client.
"""

from __future__ import annotations

import re
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from engine.lab.persona import Persona
from engine.lab.spec import Domain, Host, ascii_name

MAX_ERRORS = 100  # of a session whose persona states no limit: nobody keeps the lab busy for ever
MAX_MESSAGE = 1 << 20  # bytes after DATA
_PATH = re.compile(r"\s*<([^>]*)>(.*)", re.DOTALL)
_ADDRESS = re.compile(r"[^\s@<>]+@[^\s@<>]+")
_SUBJECT = re.compile(r"(\d{3})(?: (\d\.\d{1,3}\.\d{1,3})(?= ))? ?(.*)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Turn:
    """One reply (empty: none) at a stage, and `then`: go, close, reset, silence, flood, tls or broken_tls."""

    reply: str = ""
    then: str = "go"
    stage: str = ""
    domain: str = ""


@dataclass(slots=True)
class Memory:
    """What the servers of a lab remember across sessions, and the personas as they are now."""

    personas: dict[str, Persona]
    first_seen: dict[tuple[str, ...], float] = field(default_factory=dict)
    sessions: dict[tuple[str, str], int] = field(default_factory=lambda: defaultdict(int))
    recipients: dict[tuple[str, str], deque[float]] = field(default_factory=lambda: defaultdict(deque))

    def forget(self) -> None:
        """Greylists, rates and busy counts begin anew."""
        self.first_seen.clear()
        self.sessions.clear()
        self.recipients.clear()


class Conversation:
    """One session. `greeting` first, then `command` for each line, `message` for the bytes after DATA."""

    def __init__(self, host: Host, domains: Mapping[str, Domain], memory: Memory, client: str) -> None:
        self._host = host
        self._domains = domains
        self._memory = memory
        self._client = client
        self._helo = ""
        self._named = ""  # the last EHLO or HELO name, accepted or not
        self._secure = False
        self._sender: str | None = None
        self._utf8 = False
        self._accepted: list[str] = []  # domains of the transaction's accepted recipients
        self._asked = 0  # recipients of the session
        self._errors = 0
        self._number = 0
        self._now = 0.0
        self._over = False  # refused at the greeting: QUIT is all that is left

    @property
    def persona(self) -> Persona:
        """The persona of this server, as it is at this moment."""
        return self._memory.personas[self._host.persona]

    def greeting(self) -> Turn:
        """The first turn of a session."""
        key = (self._host.ip, self._client)
        self._memory.sessions[key] += 1
        self._number = self._memory.sessions[key]
        persona = self.persona
        if persona.hangup == "connect":
            return Turn(then=persona.manner, stage="connect")
        name = "greeting"
        if persona.block == "greeting":
            name = "block"
        elif persona.busy_at == "connect" and self._number <= persona.busy:
            name = "busy"
        turn = self._say(name, "connect")
        self._over = not turn.reply.startswith("220")
        return _last(turn)

    def secured(self) -> None:
        """After the handshake a session begins anew (RFC 3207 section 4.2)."""
        self._secure = True
        self._helo = ""
        self._sender = None

    def command(self, line: str, now: float) -> Turn:
        """The answer to one command line, without its line end, at `now` (seconds of any steady clock)."""
        self._now = now
        verb, _, rest = line.strip().partition(" ")
        verb = verb.upper()
        if verb in ("EHLO", "HELO"):
            turn = self._hello(verb, rest.strip())
        else:
            answer = _VERBS.get(verb)
            turn = answer(self, rest) if answer else self._fixed("502 5.5.2 Error: command not recognized")
        if self._over and verb != "QUIT":
            turn = self._fixed("503 5.5.0 No service here")
        return self._counted(turn)

    def message(self) -> Turn:
        """The answer to the dot that ends a message."""
        self._reset()
        return self._say("queued", "data")

    def _counted(self, turn: Turn) -> Turn:
        if turn.reply[:1] != "5" or turn.reply[:3] == "521":
            return _last(turn)
        self._errors += 1
        limit = self.persona.limits.errors or MAX_ERRORS
        if self._errors < limit or turn.then != "go":
            return turn
        return Turn(self._text("errors"), "close", turn.stage, turn.domain)

    def _hello(self, verb: str, name: str) -> Turn:
        persona = self.persona
        if persona.hangup == "ehlo":
            return Turn(then=persona.manner, stage="ehlo")
        if verb == "EHLO" and not persona.ehlo:
            return self._fixed("502 5.5.2 Error: command not recognized", "ehlo")
        self._reset()
        if not name:
            return self._fixed(f"501 5.5.4 Syntax: {verb} hostname", "ehlo")
        self._named = name
        if persona.replies.get("helo"):
            return self._say("helo", "ehlo")
        self._helo = name
        if verb == "HELO":
            return self._fixed(f"250 {self._host.name}", "ehlo")
        offered = [self._host.name, "SIZE 10240000", "8BITMIME", "ENHANCEDSTATUSCODES"]
        offered += ["PIPELINING"] if persona.pipelining else []
        offered += ["SMTPUTF8"] if persona.smtputf8 else []
        offered += ["STARTTLS"] if persona.starttls != "no" and not self._secure else []
        return self._fixed("250 " + "\n".join(offered), "ehlo")

    def _starttls(self, _: str) -> Turn:
        persona = self.persona
        if persona.starttls == "no" or self._secure:
            return self._fixed("502 5.5.1 Error: command not implemented")
        if persona.starttls == "unavailable":
            return self._fixed("454 4.7.0 TLS not available due to local problem", "tls")
        then = "broken_tls" if persona.starttls == "broken" else "tls"
        return Turn("220 2.0.0 Ready to start TLS", then, "tls")

    def _mail(self, rest: str) -> Turn:
        persona = self.persona
        if persona.hangup == "mail":
            return Turn(then=persona.manner, stage="mail")
        found = _PATH.fullmatch(rest[5:]) if rest[:5].upper() == "FROM:" else None
        utf8 = found is not None and "SMTPUTF8" in found[2].upper().split()
        wrong = self._wrong_mail(well_formed=found is not None, utf8=utf8)
        if wrong:
            return self._fixed(wrong, "mail")
        turn = self._say("block" if persona.block == "mail" else "mail", "mail")
        if found and turn.reply.startswith("2"):
            self._sender, self._utf8 = found[1], utf8
        return turn

    def _wrong_mail(self, *, well_formed: bool, utf8: bool) -> str:
        """What is wrong with a MAIL command, whatever the server thinks of the sender."""
        persona = self.persona
        if persona.starttls == "required" and not self._secure:
            return self._text("tls_required")
        if not self._helo:
            return "503 5.5.1 Error: send HELO/EHLO first"
        if self._sender is not None:
            return "503 5.5.1 Error: nested MAIL command"
        if not well_formed:
            return "501 5.5.4 Syntax: MAIL FROM:<address>"
        return "555 5.5.4 Unsupported option: SMTPUTF8" if utf8 and not persona.smtputf8 else ""

    def _rcpt(self, rest: str) -> Turn:
        found = _PATH.fullmatch(rest[3:]) if rest[:3].upper() == "TO:" else None
        if self.persona.hangup == "rcpt":
            return Turn(then=self.persona.manner, stage="rcpt")
        if self._sender is None:
            return self._fixed("503 5.5.1 Error: need MAIL command", "rcpt")
        if found is None:
            return self._fixed("501 5.5.4 Syntax: RCPT TO:<address>", "rcpt")
        self._asked += 1
        recipient = found[1]
        domain = _domain(recipient)
        name = self._verdict(recipient, domain)
        turn = self._say(name, "rcpt", recipient)
        if turn.reply.startswith("2"):
            self._accepted.append(domain)
        return Turn(turn.reply, "go", "rcpt", domain)

    def _verdict(self, recipient: str, domain: str) -> str:
        """The name of the reply to a recipient: first what concerns the client, then limits, then the mailbox."""
        local = recipient.rpartition("@")[0]
        served = self._domains.get(domain)
        boxes = served.mailboxes if served else {}
        name = boxes.get(local.lower()) or boxes.get(local.lower().partition("+")[0]) or "unknown"
        return next(self._objections(recipient, domain, served), name)

    def _objections(self, recipient: str, domain: str, served: Domain | None) -> Iterator[str]:
        persona, limits = self.persona, self.persona.limits
        if persona.block == "rcpt":
            yield "block"
        if persona.replies.get("rcpt"):
            yield "rcpt"
        if persona.busy_at == "rcpt" and self._number <= persona.busy:
            yield "busy"
        if limits.per_session and self._asked > limits.per_session:
            yield "per_session"
        if self._too_fast(limits.rate):
            yield "rate"
        if limits.per_mail and len(self._accepted) >= limits.per_mail:
            yield "per_mail"
        if limits.domains and len({*self._accepted, domain}) > limits.domains:
            yield "domains"
        if _ADDRESS.fullmatch(recipient) is None or not (recipient.isascii() or (persona.smtputf8 and self._utf8)):
            yield "bad_address"
        if not persona.serves or served is None or self._host.ip not in served.servers:
            yield "relay"
        if self._greylisted(recipient):
            yield "greylist"

    def _too_fast(self, rate: tuple[int, float]) -> bool:
        count, period = rate
        if not count:
            return False
        seen = self._memory.recipients[(self._host.ip, self._client)]
        while seen and seen[0] <= self._now - period:
            seen.popleft()
        if len(seen) >= count:
            return True
        seen.append(self._now)
        return False

    def _greylisted(self, recipient: str) -> bool:
        if self.persona.greylist is None:
            return False
        key = (self._host.ip, self._client, self._helo, self._sender or "", recipient.lower())
        return self._now - self._memory.first_seen.setdefault(key, self._now) < self.persona.greylist

    def _data(self, _: str) -> Turn:
        if not self._accepted:
            return self._fixed("503 5.5.1 Error: need RCPT command", "data")
        return Turn("354 End data with <CR><LF>.<CR><LF>", "data", "data")

    def _reset(self) -> None:
        self._sender, self._accepted, self._utf8 = None, [], False

    def _rset(self, _: str) -> Turn:
        self._reset()
        return self._fixed("250 2.0.0 Ok")

    def _say(self, name: str, stage: str, recipient: str = "") -> Turn:
        return Turn(self._text(name, recipient), "go", stage)

    def _fixed(self, text: str, stage: str = "") -> Turn:
        return Turn(text, "go", stage)

    def _text(self, name: str, recipient: str = "") -> str:
        text = self.persona.replies[name]
        if "{" not in text:
            return text
        local, _, domain = recipient.rpartition("@")
        values = {
            "host": self._host.name,
            "client": self._client,
            "helo": self._named,
            "sender": self._sender or "",
            "rcpt": recipient,
            "local": local,
            "domain": domain,
        }
        for key, value in values.items():
            text = text.replace("{" + key + "}", value)
        return text


def rendered(text: str) -> bytes:
    """A reply as it goes over the wire: code and enhanced code on every line. A text without a code goes as it is."""
    match = _SUBJECT.fullmatch(text)
    if match is None:
        return _wire(text + "\r\n")
    code, enhanced, words = match[1], match[2], match[3]
    prefix = f"{enhanced} " if enhanced else ""
    lines = words.rstrip("\n").split("\n")
    marks = ["-"] * (len(lines) - 1) + [" "]
    return _wire("".join(f"{code}{mark}{prefix}{line}\r\n" for mark, line in zip(marks, lines, strict=True)))


def _last(turn: Turn) -> Turn:
    """421 and 521 end a session (RFC 5321 section 3.8, RFC 7504)."""
    return Turn(turn.reply, "close", turn.stage, turn.domain) if turn.reply[:3] in ("421", "521") else turn


def _wire(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def _domain(recipient: str) -> str:
    try:
        return ascii_name(recipient.rpartition("@")[2])
    except UnicodeError:
        return ""


_VERBS: dict[str, Callable[[Conversation, str], Turn]] = {
    "STARTTLS": Conversation._starttls,
    "MAIL": Conversation._mail,
    "RCPT": Conversation._rcpt,
    "DATA": Conversation._data,
    "RSET": Conversation._rset,
    "NOOP": lambda session, _: session._fixed("250 2.0.0 Ok"),
    "VRFY": lambda session, _: session._fixed("252 2.0.0 Cannot VRFY user"),
    "QUIT": lambda session, _: Turn("221 2.0.0 Bye", "close"),
}
