"""Bytes to lines, lines to CSV records, in bounded memory and without ever failing.

1. A physical line or a record is at most `MAX_RECORD` characters; what is longer is cut and says so.
2. Undecodable bytes become lone surrogates, which no valid text decodes to: whoever reads the row sees them, and
   `encoded` makes the same bytes of them again. In UTF-16 no byte stands alone: there one surrogate stands for what is
   no text, and U+FFFD is shown for it.
3. A record that is not well formed (a quote that nothing closes) costs its first line only, never what follows.
"""

from __future__ import annotations

import codecs
import csv
import io
import json
import re
from collections import deque
from collections.abc import Iterator
from typing import IO, Any

MAX_RECORD = 1 << 20  # characters; a row of a megabyte belongs to no list of addresses
Line = tuple[str, str]  # a line with its end, and what is wrong with it: empty or `row_too_long`


_SURROGATE = re.compile("[\ud800-\udfff]")  # bytes that are no text, or half a character escaped in JSON
_BYTE = 0xDC00  # what `surrogateescape` adds to a byte


def _mark(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeDecodeError)
    return "\udcff", error.end


def _back(error: UnicodeError) -> tuple[bytes, int]:
    assert isinstance(error, UnicodeEncodeError)
    found = (ord(each) for each in error.object[error.start : error.end])
    return b"".join(
        bytes([each - _BYTE]) if 0x80 <= each - _BYTE <= 0xFF else f"\\u{each:04x}".encode() for each in found
    ), error.end


codecs.register_error("engine_mark", _mark)
codecs.register_error("engine_back", _back)
csv.field_size_limit(MAX_RECORD)  # the csv module's, and so the process's; its own default is 128 KiB


def physical_lines(file: IO[bytes], encoding: str) -> Iterator[Line]:
    """The lines of a file from its start, each with its end; the rest of a line beyond the limit is dropped."""
    file.seek(0)
    errors = "engine_mark" if encoding == "utf-16" else "surrogateescape"
    text = io.TextIOWrapper(file, encoding=encoding, errors=errors, newline="")
    try:
        while line := text.readline(MAX_RECORD):
            cut = len(line) == MAX_RECORD and line[-1] not in "\r\n"
            rest = line
            while cut and rest and rest[-1] not in "\r\n":
                rest = text.readline(MAX_RECORD)
            yield line, "row_too_long" if cut else ""
    finally:
        if not file.closed:
            text.detach()  # or the wrapper would close the file when it goes


def spoiled(text: str) -> bool:
    """Whether it holds what is no text: bytes that could not be decoded, or half a character escaped in JSON."""
    return not text.isascii() and _SURROGATE.search(text) is not None


def cleaned(text: str) -> str:
    """The same with U+FFFD for what is no text."""
    return text if text.isascii() else _SURROGATE.sub("\ufffd", text)


def encoded(text: str) -> bytes:
    """UTF-8, with undecodable bytes as they were; half a character out of a JSON escape becomes that escape again."""
    return text.encode("utf-8", "engine_back")


def csv_records(lines: Iterator[Line], delimiter: str) -> Iterator[tuple[list[str], str]]:
    """CSV records (RFC 4180), and what is wrong with each; blank lines are none."""
    feed = _Feed(lines)
    reader = csv.reader(feed, delimiter=delimiter, strict=True)
    while feed.more():
        try:
            yield next(reader), feed.problem
        except csv.Error:
            yield _lenient(*feed.only_first(), delimiter)
            reader = csv.reader(feed, delimiter=delimiter, strict=True)


def json_object(line: str) -> dict[str, Any] | None:
    """The JSON object of a line, or None."""
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _lenient(line: str, problem: str, delimiter: str) -> tuple[list[str], str]:
    """A line that is no well formed record by itself: stray quotes are text, one that nothing closes is a problem."""
    lines = iter([line, ""])
    cells = next(csv.reader(lines, delimiter=delimiter))
    if next(lines, None) is None:  # the reader wanted more
        return line.rstrip("\r\n").split(delimiter), problem or "bad_row"
    return cells, problem


class _Feed:
    """Lines for a csv reader, which come back when what it read turns out to be no record."""

    def __init__(self, lines: Iterator[Line]) -> None:
        self._lines = lines
        self._ahead: deque[Line] = deque()
        self._taken: list[Line] = []
        self._room = MAX_RECORD

    def __iter__(self) -> _Feed:
        return self

    def __next__(self) -> str:
        line = self._ahead.popleft() if self._ahead else next(self._lines)
        self._taken.append(line)
        self._room -= len(line[0])
        if self._room < 0:
            raise csv.Error("the record is too long")
        return line[0]

    def more(self) -> bool:
        """Whether another record begins; blank lines before it are passed over."""
        self._taken.clear()
        self._room = MAX_RECORD
        while self._ahead:
            if self._ahead[0][0].strip():
                return True
            self._ahead.popleft()
        for line in self._lines:
            if line[0].strip():
                self._ahead.append(line)
                return True
        return False

    @property
    def problem(self) -> str:
        """What is wrong with a line of the record just read."""
        return next((problem for _, problem in self._taken if problem), "")

    def only_first(self) -> Line:
        """The first line of what was read, and its problem; the others come again."""
        self._ahead.extendleft(reversed(self._taken[1:]))
        return self._taken[0]
