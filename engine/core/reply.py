"""An SMTP reply, and the parser that finds replies in bytes (RFC 5321 section 4.2, RFC 3463).

1. Any bytes in any chunking give replies, "need more", or `ProtocolError`; nothing else, and never unbounded memory.
2. An enhanced code counts only directly after the reply code: elsewhere it may be an address, a size or a quotation.
3. A `ProtocolError` is final: what follows it can't be paired with a command any more.
4. Liberal where servers are known to be: a bare LF ends a line, a bare code is a reply, and the lines of one reply
   may differ in code within its class (the last line decides). Lines that disagree on the class are no reply.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import NamedTuple, NoReturn

# RFC 5321 section 4.5.3.1.5 allows 512 octets a line; providers exceed it with URLs and trace ids.
MAX_LINE = 8 * 1024
# Widely used clients stop at 32 KiB too; the longest honest EHLO answers stay under 4 KiB.
MAX_REPLY = 32 * 1024
# EHLO answers have some 20 lines; policy essays at the greeting some 30.
MAX_LINES = 128
# Fed and not yet read: the replies of a hundred pipelined commands, at 2.5 KiB each.
MAX_UNREAD = 256 * 1024
# Most lines of most servers are always the same few: so many are read once, of those that are short.
REMEMBERED = 2048
SHORT_LINE = 160

# Cisco gateways write "#5.1.0". Not followed by more of a number, name or address: 5.1.1.9 is an IP address.
_CODE = r"\s*#?([245]\.[0-9]{1,3}\.[0-9]{1,3})(?!\.?\w)"
_ENHANCED = re.compile(_CODE + r"[\s:;,.-]*")
_LINE = re.compile(rf"([2-5][0-9]{{2}})(?:([ -])(?:{_CODE})?|\Z)")
_BLANK = re.compile("[\t\n\v\f\r\x85\u2028\u2029]+")
# C0, DEL, C1 and what turns the direction of text: none of it may reach a terminal, a log or a CSV.
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]+")


class ProtocolError(Exception):
    """The peer's bytes are not SMTP, or exceed a limit. `detail` is a stable code; the message a sentence."""

    def __init__(self, detail: str, message: str) -> None:
        super().__init__(message)
        self.detail = detail


class Reply(NamedTuple):
    """One reply. `enhanced` is like "5.1.1", or empty. `lines` are what follows the code on each line, printable."""

    code: int
    enhanced: str
    lines: tuple[str, ...]

    @property
    def text(self) -> str:
        """The lines unfolded into one, without the enhanced code at the start of each."""
        short = len(self.lines) == 1 and len(self.lines[0]) <= SHORT_LINE
        return (_text_again if short else _text)(self.enhanced, self.lines)

    def __str__(self) -> str:
        return " ".join(filter(None, (str(self.code), self.enhanced, self.text)))


def _text(enhanced: str, lines: tuple[str, ...]) -> str:
    found = []
    for line in lines:
        code = _ENHANCED.match(line) if enhanced else None
        said = (line[code.end() :] if code is not None and code[1] == enhanced else line).strip()
        if said:
            found.append(said)
    return " ".join(found)


_text_again = lru_cache(maxsize=REMEMBERED)(_text)


def printable(text: str) -> str:
    """The text without control characters; those that part words become a space."""
    if text.isprintable():
        return text
    return _CONTROL.sub("", _BLANK.sub(" ", text))


def _read(line: str) -> tuple[int, str, str, str] | None:
    """A line's code, the sign after it, its enhanced code, and what follows the code."""
    found = _LINE.match(line)
    if found is None:
        return None
    code, separator, enhanced = found.groups()
    return int(code), separator or "", enhanced or "", printable(line[4:])


_read_again = lru_cache(maxsize=REMEMBERED)(_read)


class ReplyParser:
    """Incremental: `feed` bytes as they come, then take replies with `next` until it gives None."""

    __slots__ = ("_buffer", "_code", "_enhanced", "_failure", "_lines", "_scanned", "_size")

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._scanned = 0  # no line ends before this index, so a dripping peer costs linear time
        self._lines: list[str] = []  # of a reply that goes on
        self._code = 0
        self._enhanced = ""
        self._size = 0
        self._failure: tuple[str, str] | None = None

    @property
    def unread(self) -> int:
        """How many bytes are held that no reply has used up yet."""
        return self._size + len(self._buffer)

    def feed(self, data: bytes) -> None:
        """Take bytes from the peer. Raises ProtocolError when more than MAX_UNREAD are held."""
        if len(self._buffer) + len(data) > MAX_UNREAD:
            self._fail("unread_too_long", f"more than {MAX_UNREAD} bytes of replies wait unread")
        self._buffer += data

    def next(self) -> Reply | None:
        """The next whole reply, or None when it needs more bytes. Raises ProtocolError, from then on always."""
        if self._failure is not None:
            raise ProtocolError(*self._failure)
        while self._buffer and (line := self._line()) is not None:
            found = (_read_again if len(line) <= SHORT_LINE else _read)(line)
            if found is None:
                self._fail("not_a_reply", "a line of the server does not begin with a reply code")
            code, separator, enhanced, text = found
            if separator == "-" or self._lines:
                self._add(code, enhanced, text, len(line))
                if separator == "-":
                    continue
                return self._fold()
            return Reply(code, enhanced, (text,))  # nearly every reply: one line
        return None

    def discard(self) -> int:
        """Forget all bytes held; says how many they were."""
        held = self.unread
        self._buffer.clear()
        self._scanned = 0
        self._forget()
        return held

    def _line(self) -> str | None:
        buffer = self._buffer
        end = buffer.find(b"\n", self._scanned)
        if end > MAX_LINE or (end < 0 and len(buffer) > MAX_LINE):
            self._fail("line_too_long", f"a line of the server is longer than {MAX_LINE} bytes")
        if end < 0:
            self._scanned = len(buffer)
            return None
        line = buffer[:end].decode("utf-8", "replace").rstrip("\r")
        del buffer[: end + 1]  # a bytearray gives up its front without moving the rest
        self._scanned = 0
        return line

    def _add(self, code: int, enhanced: str, text: str, size: int) -> None:
        if self._lines and self._code // 100 != code // 100:
            self._fail("mixed_codes", "the lines of one reply disagree on its class")
        self._code = code
        self._enhanced = self._enhanced or enhanced
        self._lines.append(text)
        self._size += size
        if self._size > MAX_REPLY:
            self._fail("reply_too_long", f"a reply of the server is longer than {MAX_REPLY} characters")
        if len(self._lines) > MAX_LINES:
            self._fail("too_many_lines", f"a reply of the server has more than {MAX_LINES} lines")

    def _fold(self) -> Reply:
        reply = Reply(self._code, self._enhanced, tuple(self._lines))
        self._forget()
        return reply

    def _forget(self) -> None:
        self._lines.clear()
        self._enhanced = ""
        self._size = 0

    def _fail(self, detail: str, message: str) -> NoReturn:
        self._failure = (detail, message)
        self.discard()
        raise ProtocolError(detail, message)
