"""Rows out: the caller's columns first, untouched, then ours, as CSV or JSONL.

1. A file is whole or not there: written under a temporary name in its folder, flushed to disk, renamed. A pipe gets
   each row once, at once.
2. Files are 0600: a list of addresses with what their servers said is personal data; its owner may open it wider.
3. Our columns are `core.result.COLUMNS`. Where the caller has a column of that name, ours gets the prefix `engine_`,
   and again while that is taken too. Nothing of the caller's is renamed, dropped or reformatted.
4. CSV has true/false and nothing for none; it keeps the caller's delimiter. In CSV the words of strangers (reply text,
   MX name) that a spreadsheet would take for a formula get an apostrophe in front; in JSONL they stand as they are.
"""

from __future__ import annotations

import csv
import io
import json
import os
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from operator import attrgetter
from pathlib import Path
from typing import IO, Any

from engine.core.result import COLUMNS, Result

Verdict = Result | Mapping[str, Any]
Row = tuple[Sequence[str], Verdict]  # the caller's cells as `IntakeRow` holds them, and our result

_SUFFIXES = {".csv": "csv", ".jsonl": "jsonl", ".json": "jsonl", ".ndjson": "jsonl"}
_STRANGERS = frozenset({"smtp_text", "mx_host"})
_FORMULA = ("=", "+", "-", "@", "\t", "\r")
_values = attrgetter(*COLUMNS)


class OutputProblem(Exception):  # noqa: N818 - it is the target's problem, not an error of ours
    """The output can't be written there. The message says what, where and what to do."""


def output_format(name: str | Path, source: str) -> str:
    """csv or jsonl: by the output's suffix, else as the input's format (`source`); plain lines give CSV."""
    return _SUFFIXES.get(Path(name).suffix.lower()) or ("jsonl" if source == "jsonl" else "csv")


def check_output(name: str | Path, source: str | Path = "-") -> None:
    """Makes sure, before anything is sent, that the output can be written and is not the input. Raises OutputProblem."""
    path = Path(name)
    if str(name) == "-":
        return
    if path.exists():
        if path.is_dir():
            raise OutputProblem(f"{name} is a directory; name a file for the results")
        if not path.is_file():
            raise OutputProblem(f"{name} is no regular file and can't be replaced; write to standard output with -o -")
        if str(source) != "-" and Path(source).exists() and path.samefile(source):
            raise OutputProblem(f"{name} is the input itself; name another file for the results")
    folder = path.resolve().parent
    if not folder.is_dir():
        raise OutputProblem(f"{name} can't be written: there is no folder {folder}; make it first")
    try:
        os.unlink(_temporary(path)[1])
    except OSError as error:
        raise OutputProblem(f"{name} can't be written: {error.strerror}; choose a folder that you may write to") from error


class Layout:
    """How rows of one input look in one output. `header` and `source` are the Intake's header and format."""

    def __init__(self, header: Sequence[str], source: str, target: str, delimiter: str = ",") -> None:
        self.target = target
        self.ours = _our_names(header)
        self._source = source
        self._header = tuple(header) if source != "lines" else ()
        self._keys = _our_names((), self._header) if source == "csv" else self._header
        self._line = _Line()
        self._csv = csv.writer(self._line, delimiter=delimiter or ",", lineterminator="\r\n")
