"""Rows in: CSV, JSONL or plain lines, from a file or a pipe.

1. Every row of the input is yielded once, in order. What is wrong with a row is its `problem`; it never ends a run.
2. What is wrong with the input as a whole is an `InputProblem`, told before the first row.
3. Memory does not grow with the input: a row is bounded (`records.MAX_RECORD`), a pipe is spooled to disk.
4. The caller's cells are kept as they were, undecodable bytes in them too; such bytes in the address cell are what is
   wrong with its row, and U+FFFD stands for them in `text`.
"""

from __future__ import annotations

import codecs
import hashlib
import os
import shutil
import stat
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import IO

from engine.flow.columns import choose_delimiter, column_named, column_of_addresses, has_header, names_address
from engine.flow.records import cleaned, csv_records, json_object, physical_lines, spoiled

SAMPLE_ROWS = 200  # looked at to tell format, delimiter, header and column
MAX_KEYS = 1000  # names of JSONL keys that are collected for a CSV header
DELIMITERS = ",;\t|"

PROBLEMS: dict[str, str] = {
    "undecodable": "The address holds bytes that are no text in the input's encoding",
    "bad_row": "The row has too few cells to hold an address, or quotes that nothing closes",
    "bad_json": "The line is not a JSON object",
    "no_address": "The object has no text under the address key",
    "row_too_long": "The row is longer than a megabyte; the rest of it was not read",
}

_NO_TEXT = {b"PK\x03\x04": "a spreadsheet or zip archive", b"\x1f\x8b": "gzip data", b"%PDF": "a PDF document"}
_SUFFIXES = {".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "jsonl", ".csv": "csv", ".tsv": "csv"}


class InputProblem(Exception):  # noqa: N818 - it is the list's problem, not an error of ours
    """The input can't be read as a list of addresses. The message says what, where and what to do."""


@dataclass(frozen=True, slots=True)
class IntakeRow:
    """One row. `n` counts from 1, the header not; `text` is the address cell.

    `cells` are the caller's own: those of a CSV row; for JSONL one, the line's text; for plain lines none.
    `problem` is empty or a key of `PROBLEMS`.
    """

    n: int
    cells: tuple[str, ...]
    text: str
    problem: str = ""


def file_sha256(path: str | Path) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal: what tells on a resume that the list is the same."""
    with Path(path).open("rb") as file:
        return _sha256(file)


def open_intake(name: str | Path, column: str | None = None, stdin: IO[bytes] | None = None) -> Intake:
    """Opens a list and finds out how it is written; `-` is standard input. Raises InputProblem."""
    shown = "standard input" if str(name) == "-" else str(name)
    if str(name) == "-":
        return Intake(shown, _spooled(stdin or sys.stdin.buffer), column)
    path = Path(name)
    try:
        if path.is_dir():
            raise InputProblem(f"{shown} is a directory; name the file that holds the list")
        file: IO[bytes] = path.open("rb")
    except OSError as error:
        raise InputProblem(f"{shown} can't be read: {error.strerror}; check the name of the list") from error
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):  # a pipe that has a name: <(zcat list.gz)
        with file:
            file = _spooled(file)
    return Intake(shown, file, column, _SUFFIXES.get(path.suffix.lower(), ""))


def _spooled(stream: IO[bytes]) -> IO[bytes]:
    """All of a pipe in a temporary file without a name: mode 0600, gone with the process."""
    file = tempfile.TemporaryFile()  # noqa: SIM115 - the Intake closes it
    shutil.copyfileobj(stream, file, 1 << 20)
    return file


def _sha256(file: IO[bytes]) -> str:
    digest = hashlib.sha256()
    file.seek(0)
    while block := file.read(1 << 20):
        digest.update(block)
    return digest.hexdigest()


class Intake:
    """A list of addresses, open for reading; close it, or use it as a context manager.

    `format` is csv, jsonl or lines; `column` the name of the address column or key (empty for lines); `delimiter` a
    CSV's own. `header` holds the caller's column names; a CSV without a header line gets `column_1`, `column_2`, ...
    For JSONL it holds the keys met so far, all of them once `rows` has ended. One iteration over `rows` at a time.
    """

    def __init__(self, name: str, file: IO[bytes], column: str | None = None, hint: str = "") -> None:
        self.name = name
        self.format = ""
        self.header: tuple[str, ...] = ()
        self.column = ""
        self.delimiter = ""
        self._file = file
        self._index = 0
        self._keys: set[str] = set()
        self._header_line = False
        try:
            self._encoding = self._find_encoding()
            self._inspect(column, hint)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Intake:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Intake {self.name} {self.format} column={self.column!r} of {len(self.header)}>"

    def close(self) -> None:
        """Gives the file back; a spooled one is gone with that."""
        self._file.close()

    @cached_property
    def sha256(self) -> str:
        """SHA-256 of the input's bytes, in hexadecimal. Not to be asked for while `rows` is being read."""
        return _sha256(self._file)

    def rows(self) -> Iterator[IntakeRow]:
        """The rows from the first to the last; each call begins anew. Blank lines are no rows."""
        read = {"csv": self._csv_rows, "jsonl": self._json_rows, "lines": self._line_rows}[self.format]
        for n, (cells, text, problem) in enumerate(read(), 1):
            own = tuple(map(cleaned, cells) if self._encoding == "utf-16" else cells)
            if spoiled(text):
                yield IntakeRow(n, own, cleaned(text), "undecodable")
            else:
                yield IntakeRow(n, own, text, problem)

    # How the input is written

    def _find_encoding(self) -> str:
        head = self._head()
        for magic, kind in _NO_TEXT.items():
            if head.startswith(magic):
                raise InputProblem(f"{self.name} is {kind}, not text; export the list as CSV")
        if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            return "utf-16"
        if head.count(b"\0") > len(head) // 4:
            raise InputProblem(f"{self.name} is not text (or UTF-16 without a byte order mark); save it as UTF-8")
        return "utf-8-sig"

    def _head(self) -> bytes:
        self._file.seek(0)
        return self._file.read(4096)

    def _inspect(self, column: str | None, hint: str) -> None:
        """Tells format, delimiter, header and column from the first rows. Raises InputProblem."""
        lines = [line for line, _ in islice(self._lines(), SAMPLE_ROWS)]
        if not lines:
            raise InputProblem(f"{self.name} is empty; it needs at least one address")
        if hint == "jsonl" or (not hint and sum(line.lstrip()[0] == "{" for line in lines) > len(lines) // 2):
            self._inspect_json(lines, column)
            return
        samples = {each: [cells for cells, _ in islice(self._records(each), SAMPLE_ROWS)] for each in DELIMITERS}
        self.delimiter = choose_delimiter(samples)
        rows = samples[self.delimiter or ","]
        if not self.delimiter and hint != "csv" and not self._one_column(rows, column):
            self._inspect_lines(lines, column)
            return
        self.format = "csv"
        self.delimiter = self.delimiter or ","
        self._header_line = has_header(rows, column)
        width = max(map(len, rows))
        self.header = tuple(rows[0]) if self._header_line else tuple(f"column_{i}" for i in range(1, width + 1))
        self._choose(column, rows[self._header_line :], "columns")

    def _one_column(self, rows: list[list[str]], column: str | None) -> bool:
        """Whether lines without a delimiter are a CSV of one column: there is a header, or cells are quoted."""
        first = rows[0][0]
        line = next(self._lines())[0].strip()
        return names_address(first, column) or (line != first.strip() and line.startswith('"') and line.endswith('"'))

    def _inspect_lines(self, lines: list[str], column: str | None) -> None:
        if column is not None:
            raise InputProblem(f"{self.name} is a list of plain lines without columns; leave --column out")
        if not any("@" in line for line in lines):
            raise InputProblem(f"{self.name} has no address in its first lines; name a list with an address column")
        self.format = "lines"

    def _inspect_json(self, lines: list[str], column: str | None) -> None:
        if lines[0].lstrip().startswith("["):
            raise InputProblem(f"{self.name} is a JSON array; write one object a line (JSONL)")
        self.format = "jsonl"
        objects = [found for found in map(json_object, lines) if found is not None]
        for found in objects:
            self._collect(found)
        rows = [[value if isinstance(value := found.get(key), str) else "" for key in self.header] for found in objects]
        self._choose(column, rows, "keys")

    def _choose(self, column: str | None, rows: list[list[str]], kind: str) -> None:
        try:
            if column is not None:
                self._index = column_named(self.header, column)
            else:
                self._index = column_of_addresses(self.header, rows)
        except LookupError as error:
            found = ", ".join(self.header[:20]) or "none"
            raise InputProblem(f"{self.name} {error.args[0]}; {kind}: {found}; choose with --column NAME") from None
        self.column = self.header[self._index]

    def _collect(self, found: dict[str, object]) -> None:
        if found.keys() <= self._keys or len(self._keys) >= MAX_KEYS:
            return
        new = [key for key in found if key not in self._keys]
        self._keys.update(new)
        self.header += tuple(map(cleaned, new))

    # What it holds

    def _csv_rows(self) -> Iterator[tuple[list[str], str, str]]:
        for cells, problem in islice(self._records(self.delimiter), int(self._header_line), None):
            short = len(cells) <= self._index
            yield cells, "" if short else cells[self._index], problem or ("bad_row" if short else "")

    def _json_rows(self) -> Iterator[tuple[list[str], str, str]]:
        for line, problem in self._lines():
            found = None if problem else json_object(line)
            if found is None:
                yield [line], "", problem or "bad_json"
                continue
            self._collect(found)
            text = found.get(self.column)
            if isinstance(text, str):
                yield [line], text, ""
            else:
                yield [line], "", "no_address"

    def _line_rows(self) -> Iterator[tuple[list[str], str, str]]:
        for line, problem in self._lines():
            yield [], line, problem

    def _lines(self) -> Iterator[tuple[str, str]]:
        """Lines that hold text, without their ends, and what is wrong with each."""
        for line, problem in physical_lines(self._file, self._encoding):
            if line.strip():
                yield line.rstrip("\r\n"), problem

    def _records(self, delimiter: str) -> Iterator[tuple[list[str], str]]:
        return csv_records(physical_lines(self._file, self._encoding), delimiter)
