"""The log of the process: one event a line, with its facts as fields, to stderr.

1. JSON off a terminal, readable on one.
2. Writing never waits: a line that its reader has no room for is dropped, and the next one says how many are missing.
3. The local part of an address is never written: `ann@example.org` is logged as `***@example.org`, wherever it stands.
4. Only the hub logs, never the store's thread: a lock shared with a native thread can hang both.
5. Until a command opens it the log goes nowhere: a library writes nothing into its caller's streams, and neither uses
   nor changes its caller's structlog configuration.
6. The first event loads structlog, which takes as long as a third of a start; most runs have nothing to say.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable, MutableMapping
from typing import Any, TextIO

from gevent.monkey import get_original

LONGEST_LINE = 4096  # bytes: what a pipe that has room takes whole (PIPE_BUF)
LONGEST_READ = 16_384  # characters of a value that are looked at; masked first, cut then: no half address is left
LONGEST_VALUE = 1024  # characters of one field
LONGEST_TRACE = 2500  # characters of a traceback, its end: there the error stands
LEVELS = ("debug", "info", "warning", "error", "critical")

_select = get_original("select", "select")  # gevent's would let other greenlets run in the middle of a log call
_NAMELESS = frozenset({"local", "local_part"})  # fields that hold a local part by itself
_QUOTED = re.compile(r'"(?:[^"\\]|\\.)*"@')
_WORD = re.compile(r"\S+")
_NOT_IN_A_LOCAL_PART = re.compile(r'.*[<>()\[\]\\,;:"]', re.DOTALL)  # RFC 5321 section 4.1.2: not in a dot-string

Event = MutableMapping[str, Any]


class Log:
    """The process's log: `log.info("breaker_moved", to="open")`."""

    def __init__(self) -> None:
        self._opens: Callable[[], Any] | None = None
        self._to: Any = None

    def open(self, stream: TextIO | None = None, *, level: str = "info", as_json: bool | None = None) -> None:
        """Write to `stream` (stderr) what is of `level` (one of LEVELS) or above.

        `as_json` None: JSON unless the stream is a terminal.
        """
        out = sys.stderr if stream is None else stream
        sink, readable = Sink(out), out.isatty() if as_json is None else not as_json
        self._opens, self._to = lambda: _opened(sink, level, readable=readable), None

    def close(self) -> None:
        """Write nowhere again."""
        self._opens = self._to = None

    def debug(self, event: str, **fields: Any) -> None:
        """For whoever looks for a fault of ours."""
        self._say("debug", event, fields)

    def info(self, event: str, **fields: Any) -> None:
        """What an operator may want to know afterwards."""
        self._say("info", event, fields)

    def warning(self, event: str, **fields: Any) -> None:
        """What changes how the run goes on."""
        self._say("warning", event, fields)

    def error(self, event: str, **fields: Any) -> None:
        """What somebody has to put right."""
        self._say("error", event, fields)

    def exception(self, event: str, **fields: Any) -> None:
        """An error of ours, with the traceback of the exception that is being handled."""
        self._say("exception", event, fields)

    def _say(self, how: str, event: str, fields: dict[str, Any]) -> None:
        if self._opens is None:
            return
        if self._to is None:
            self._to = self._opens()
        getattr(self._to, how)(event, **fields)


log = Log()


class Sink:
    """Lines to a stream that is never waited for; `lost` counts what was dropped since the last line that got out."""

    def __init__(self, stream: TextIO) -> None:
        self.lost = 0
        self._stream = stream
        try:
            self._fd: int | None = stream.fileno()
        except (OSError, ValueError, AttributeError):
            self._fd = None  # no file: a capture in memory, which always has room

    def write(self, line: str) -> None:
        """Write the line, or count it as lost. Never raises: a log must not end a run."""
        try:
            written = self._write(line)
        except (OSError, ValueError):
            written = False
        self.lost = 0 if written else self.lost + 1

    def _write(self, line: str) -> bool:
        if self._fd is None:
            self._stream.write(line + "\n")
            return True
        if not _select([], [self._fd], [], 0)[1]:
            return False
        os.write(self._fd, line.encode("utf-8", "backslashreplace")[: LONGEST_LINE - 1] + b"\n")
        return True

    debug = info = warning = error = critical = exception = write


def without_local_parts(_: Any, __: str, event: Event) -> Event:
    """Cut every value to size and take the local parts out of it."""
    return {key: "***" if key in _NAMELESS else _clean(value, trace=key == "exception") for key, value in event.items()}


def masked(text: str) -> str:
    """The text with the local part of each address in it replaced by ***."""
    if "@" not in text:
        return text
    return _WORD.sub(lambda word: _masked_word(word[0]), _QUOTED.sub("***@", text))


def _masked_word(word: str) -> str:
    if "@" not in word:
        return word
    *before, last = word.split("@")
    return "".join(f"{_up_to_local(part)}***@" for part in before) + last


def _up_to_local(part: str) -> str:
    """What stands before a local part in the same word, such as `TO:<`."""
    found = _NOT_IN_A_LOCAL_PART.match(part)
    return found[0] if found and found.end() < len(part) else ""


def _clean(value: Any, *, trace: bool = False) -> Any:
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, dict):
        return {masked(str(key)): "***" if key in _NAMELESS else _clean(each) for key, each in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_clean(each) for each in value]
    text = value if isinstance(value, str) else repr(value)
    return masked(text[-LONGEST_READ:])[-LONGEST_TRACE:] if trace else masked(text[:LONGEST_READ])[:LONGEST_VALUE]


def _as_json(_: Any, __: str, event: Event) -> str:
    head = {key: event.pop(key) for key in ("timestamp", "level", "event") if key in event}
    line = json.dumps({**head, **event}, ensure_ascii=False)
    size = len(line.encode("utf-8", "backslashreplace"))
    if size < LONGEST_LINE:
        return line
    return json.dumps(head | {"cut": f"{size} bytes are more than one line holds"}, ensure_ascii=False)


def _opened(sink: Sink, level: str, *, readable: bool) -> Any:
    """A structlog logger that writes there."""
    import structlog  # noqa: PLC0415 - rule 6

    def tell_lost(_: Any, __: str, event: Event) -> Event:
        if sink.lost:
            event["lines_lost"] = sink.lost
        return event

    def short_time(_: Any, __: str, event: Event) -> Event:
        event["timestamp"] = str(event.get("timestamp", ""))[11:19]  # without its date
        return event

    for_people = structlog.dev.ConsoleRenderer(
        colors="NO_COLOR" not in os.environ, exception_formatter=structlog.dev.plain_traceback, pad_event_to=24
    )
    return structlog.wrap_logger(
        sink,
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            tell_lost,
            without_local_parts,
            *((short_time, for_people) if readable else (_as_json,)),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        cache_logger_on_first_use=True,
    )
