"""Rows out: the caller's columns first, untouched, then ours, as CSV or JSONL.

1. A file is whole or not there: written under a temporary name in its folder, flushed to disk, renamed. A pipe gets
   each row once, at once.
2. Files are 0600: a list of addresses with what their servers said is personal data; its owner may open it wider.
3. Our columns are `core.result.COLUMNS`. Where the caller has a column of that name, ours gets the prefix `engine_`,
   and again while that is taken too. Nothing of the caller's is renamed, dropped or reformatted; bytes of his that
   are no text go out as they came in, but for JSON that is made of his cells, where U+FFFD stands for them.
4. CSV has true/false and nothing for none; it keeps the caller's delimiter. In CSV the words of strangers (reply text,
   MX name) that a spreadsheet would take for a formula get an apostrophe in front; in JSONL they stand as they are.
"""

from __future__ import annotations

import csv
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from operator import attrgetter, itemgetter
from pathlib import Path
from typing import IO, Any, Final

from engine.core.result import COLUMNS, Result
from engine.flow.records import cleaned, encoded, json_object

Verdict = Result | Mapping[str, Any]
Row = tuple[Sequence[str], Verdict]  # the caller's cells as `IntakeRow` holds them, and our result

_SUFFIXES = {".csv": "csv", ".jsonl": "jsonl", ".json": "jsonl", ".ndjson": "jsonl"}
_STRANGERS = (COLUMNS.index("smtp_text"), COLUMNS.index("mx_host"))
_FORMULA = ("=", "+", "-", "@", "\t", "\r")
_BOOLS = tuple(map(COLUMNS.index, ("answered", "probed", "role", "disposable", "free", "tagged")))
_NUMBERS = tuple(map(COLUMNS.index, ("smtp_code", "attempts", "duration_ms")))
_QUOTED = re.compile(r'["\r\n]')  # in whatever holds one of these, or a delimiter, the csv module puts quotes
_of_result, _of_mapping = attrgetter(*COLUMNS), itemgetter(*COLUMNS)


class OutputProblem(Exception):  # noqa: N818 - it is the target's problem, not an error of ours
    """The output can't be written there. The message says what, where and what to do."""


def output_format(name: str | Path, source: str) -> str:
    """csv or jsonl: by the output's suffix, else as the input's format (`source`); plain lines give CSV."""
    return _SUFFIXES.get(Path(name).suffix.lower()) or ("jsonl" if source == "jsonl" else "csv")


def check_output(name: str | Path, source: str | Path = "-") -> None:
    """Makes sure, before anything is sent, that the output can be written and is not the input `source`.

    Raises OutputProblem.
    """
    if str(name) == "-":
        return
    path = Path(name)
    if path.is_dir():
        raise OutputProblem(f"{name} is a directory; name a file for the results")
    if path.exists() and not path.is_file():
        raise OutputProblem(f"{name} is no regular file and can't be replaced; write to standard output with -o -")
    if str(source) != "-" and path.exists() and Path(source).exists() and path.samefile(source):
        raise OutputProblem(f"{name} is the input itself; name another file for the results")
    with _own_sentence(name):
        temporary = _temporary(path)
        os.close(_created(temporary))
        temporary.unlink()


def write_file(name: str | Path, rows: Iterable[Row], layout: Layout) -> int:
    """Writes all rows to a file, whole or not at all; gives their number. Raises OutputProblem.

    An old file of that name is there until the new one is on disk. `rows` is drawn one by one.
    """
    path = Path(name).resolve()  # a symbolic link stays one
    temporary = _temporary(path)
    count = 0
    with _own_sentence(name):
        try:
            with os.fdopen(_created(temporary), "wb", buffering=1 << 20) as file:
                file.write(encoded(layout.heading()))
                for cells, verdict in rows:
                    file.write(encoded(layout.row(cells, verdict)))
                    count += 1
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)  # the rename itself
        finally:
            os.close(folder)
    return count


class Stream:
    """Rows to a pipe: each once, flushed, so that the reader has it at once. The heading goes first."""

    def __init__(self, file: IO[bytes], layout: Layout) -> None:
        self._file = file
        self._layout = layout
        self._put(layout.heading())

    def write(self, cells: Sequence[str], verdict: Verdict) -> None:
        """One row. Raises OSError when nobody reads any more."""
        self._put(self._layout.row(cells, verdict))

    def _put(self, line: str) -> None:
        self._file.write(encoded(line))
        self._file.flush()


class Layout:
    """How the rows of one input look in one output, line by line, each with its end.

    `header`, `source` and `delimiter` are the Intake's header, format and delimiter; `target` is csv or jsonl.
    """

    def __init__(self, header: Sequence[str], source: str, target: str, delimiter: str = "") -> None:
        self._source = source
        self._target = target
        self._header = () if source == "lines" else tuple(header)
        self._keys = _distinct(self._header)
        self._ours = _our_names(self._keys)
        self._line = _Line()
        self._delimiter = delimiter or ","
        self._csv = csv.writer(self._line, delimiter=self._delimiter, lineterminator=_Line.END)

    def heading(self) -> str:
        """The line before the first row; JSONL has none."""
        return self._csv_line([*self._header, *self._ours]) if self._target == "csv" else ""

    def row(self, cells: Sequence[str], verdict: Verdict) -> str:
        """The line of one row."""
        values = _of_result(verdict) if isinstance(verdict, Result) else _of_mapping(verdict)
        if self._target == "jsonl":
            return self._json_line(cells, values)
        width = len(self._header)
        own = self._json_cells(cells) if self._source == "jsonl" else list(cells[:width])
        own += [""] * (width - len(own))
        ours = list(values)
        for place in _BOOLS:
            ours[place] = "true" if ours[place] else "false"
        for place in _NUMBERS:
            ours[place] = "" if ours[place] is None else str(ours[place])
        for place in _STRANGERS:
            if ours[place].startswith(_FORMULA):
                ours[place] = f"'{ours[place]}"
        # Cells beyond the header have no name: they stay at the end, and no column moves.
        return self._csv_line([*own, *ours, *(cells[width:] if self._source == "csv" else ())])

    def _csv_line(self, cells: Sequence[str]) -> str:
        plain = self._delimiter.join(cells)
        if plain.count(self._delimiter) == len(cells) - 1 and _QUOTED.search(plain) is None:  # so are nearly all
            return plain + "\n"
        self._csv.writerow(cells)
        return self._line.text

    def _json_cells(self, cells: Sequence[str]) -> list[str]:
        found = json_object(cells[0]) or {}
        return [_cell(found.get(key)) for key in self._header]

    def _json_line(self, cells: Sequence[str], values: Sequence[Any]) -> str:
        if self._source != "jsonl":
            keys = [*self._keys, *(f"column_{i}" for i in range(len(self._keys) + 1, len(cells) + 1))]
            own = dict(zip(map(cleaned, keys), map(cleaned, cells), strict=False))
            return _dumped(own | dict(zip(self._ours, values, strict=True))) + "\n"
        found = json_object(cells[0])
        text = cells[0].strip() if found is not None else _dumped({"unparsed": cleaned(cells[0])})
        names = self._ours
        if found and not found.keys().isdisjoint(names):  # a key that was not known when the layout was made
            names = _our_names((*self._keys, *found))
        # The caller's text stays to the letter (numbers, spacing, repeated keys): ours goes in before its last brace.
        ours = _dumped(dict(zip(names, values, strict=True)))
        return f"{text[:-1].rstrip()}{', ' if found != {} else ''}{ours[1:]}\n"


class _Line:
    """Takes one line from a csv writer. Written with CR LF, so that a lone CR gets quotes; ends with LF."""

    END: Final = "\r\n"
    text = ""

    def write(self, text: str) -> None:
        self.text = text.removesuffix(self.END) + "\n"


def _our_names(taken: Iterable[str]) -> tuple[str, ...]:
    """The names of our columns beside the caller's."""
    names = list(taken)
    caller = len(names)
    for column in COLUMNS:
        name = column
        while name in names:
            name = f"engine_{name}"
        names.append(name)
    return tuple(names[caller:])


def _distinct(header: Sequence[str]) -> tuple[str, ...]:
    """CSV names as JSON keys: one that was there before gets its place's number."""
    keys: list[str] = []
    for place, name in enumerate(header, 1):
        key = name
        while key in keys:
            key = f"{key}_{place}"
        keys.append(key)
    return tuple(keys)


def _cell(value: Any) -> str:
    """A value as CSV shows it."""
    if isinstance(value, str):
        return value
    if value is None or value is True or value is False:
        return "" if value is None else str(value).lower()
    return str(value) if type(value) is int else _dumped(value)


def _dumped(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _temporary(path: Path) -> Path:
    """Always the same name, so that a killed run leaves at most one such file and the next one replaces it."""
    return path.resolve().with_name(f".{path.resolve().name}.engine-tmp")


def _created(path: Path) -> int:
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    os.fchmod(handle, 0o600)
    return handle


@contextmanager
def _own_sentence(name: str | Path) -> Iterator[None]:
    """Turns the system's refusal into our sentence."""
    try:
        yield
    except OSError as error:
        raise OutputProblem(
            f"{name} can't be written: {error.strerror}; choose a place that you may write to"
        ) from error
