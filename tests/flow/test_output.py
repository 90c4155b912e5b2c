"""Laws of the output: the caller's columns untouched, ours behind them, a file whole or not there."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import stat
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine.core.reasons import Stage
from engine.core.result import COLUMNS, Result
from engine.flow.intake import open_intake
from engine.flow.output import Layout, OutputProblem, Stream, check_output, output_format, write_file
from engine.flow.records import encoded

RESULT = Result.of(
    "rcpt_ok",
    address="ann@x.example",
    normalized="ann@x.example",
    stage=Stage.RCPT,
    probed=True,
    smtp_code=250,
    smtp_text="2.1.5 Ok",
    attempts=1,
)


def csv_rows(text: str, delimiter: str = ",") -> list[list[str]]:
    return list(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True))


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def lines(layout: Layout, *rows: tuple[tuple[str, ...], Any]) -> str:
    return layout.heading() + "".join(layout.row(cells, result) for cells, result in rows)


def test_the_callers_columns_come_first() -> None:
    """Header and cells as they were, then ours in the result's order; nothing for none, true and false as words."""
    header, row = csv_rows(lines(Layout(["id", "email"], "csv", "csv", ";"), (("007", " ann@x.example "), RESULT)), ";")
    assert header == ["id", "email", *COLUMNS]
    assert row[:2] == ["007", " ann@x.example "]
    ours = dict(zip(COLUMNS, row[2:], strict=True))
    assert ours["category"] == "valid"
    assert ours["stage"] == "rcpt"
    assert (ours["answered"], ours["role"], ours["smtp_code"], ours["duration_ms"]) == ("true", "false", "250", "")


def test_a_name_that_the_caller_has_is_left_to_him() -> None:
    """Ours gets engine_ in front, and again where that is taken."""
    own = ["reason", "address", "engine_reason"]
    header = csv_rows(Layout(own, "csv", "csv").heading())[0]
    assert header[:3] == own
    ours = dict(zip(COLUMNS, header[3:], strict=True))
    assert (ours["reason"], ours["address"], ours["detail"]) == ("engine_engine_reason", "engine_address", "detail")
    assert len(set(header)) == len(header)


def test_a_result_may_be_a_mapping() -> None:
    """What comes back out of the journal is written as the result itself."""
    layout = Layout(["email"], "csv", "csv")
    as_mapping = {column: getattr(RESULT, column) for column in COLUMNS}
    assert layout.row(("a",), as_mapping) == layout.row(("a",), RESULT)


def test_plain_lines_give_our_columns_only() -> None:
    """A list of lines has no column of its own; `address` is the line."""
    header, row = csv_rows(lines(Layout((), "lines", "csv"), ((), RESULT)))
    assert (header, row[0]) == (list(COLUMNS), "ann@x.example")


def test_no_column_moves() -> None:
    """A short row is filled up; cells beyond the header stay at the end of the row."""
    layout = Layout(["email", "a", "b"], "csv", "csv")
    short, long = csv_rows(layout.row(("x",), RESULT) + layout.row(("x", "1", "2", "3", "4"), RESULT))
    assert short[:4] == ["x", "", "", "ann@x.example"]
    assert long[:4] == ["x", "1", "2", "ann@x.example"]
    assert long[3 + len(COLUMNS) :] == ["3", "4"]


@pytest.mark.parametrize("text", ["=cmd|' /C calc'!A0", "+1", "-1", "@SUM(A1)", "\tx"])
def test_a_servers_words_are_no_formula(text: str) -> None:
    """In CSV a stranger's text gets an apostrophe where a spreadsheet would run it; the caller's cells don't."""
    result = Result.of("unclassified_reply", address="a", smtp_text=text, mx_host=text)
    row = csv_rows(Layout(["email"], "csv", "csv").row((text,), result))[0]
    ours = dict(zip(COLUMNS, row[1:], strict=True))
    assert (row[0], ours["smtp_text"], ours["mx_host"]) == (text, f"'{text}", f"'{text}")
    assert json.loads(Layout((), "lines", "jsonl").row((), result))["smtp_text"] == text


def test_json_keeps_the_callers_text_to_the_letter() -> None:
    """Numbers, spacing, repeated keys and escapes stay; ours come behind; a key of our name is left to the caller."""
    layout = Layout(["id", "reason"], "jsonl", "jsonl")
    line = layout.row(('  {"id" : 1.500, "id":1e3, "reason": "\\u00fc" } ',), RESULT)
    assert line.startswith('{"id" : 1.500, "id":1e3, "reason": "\\u00fc", ')
    found = json.loads(line)
    assert (found["reason"], found["engine_reason"], found["smtp_code"], found["duration_ms"]) == (
        "ü",
        "rcpt_ok",
        250,
        None,
    )
    assert json.loads(layout.row(("{}",), RESULT))["category"] == "valid"
    late = json.loads(layout.row(('{"detail": 1}',), RESULT))
    assert (late["detail"], late["engine_detail"]) == (1, "")


def test_a_line_that_was_no_object_still_gets_its_line() -> None:
    """What could not be read is kept as text beside its verdict."""
    result = Result.of("syntax_invalid", address="", detail="bad_json")
    assert json.loads(Layout(["id"], "jsonl", "jsonl").row(("{broken",), result))["unparsed"] == "{broken"
    row = csv_rows(Layout(["id"], "jsonl", "csv").row(("{broken",), result))[0]
    assert len(row) == 1 + len(COLUMNS)


def test_formats_cross() -> None:
    """CSV to JSONL keys every cell, JSONL to CSV fills the columns of its keys."""
    layout = Layout(["a", "a", "email"], "csv", "jsonl")
    assert layout.heading() == ""
    found = json.loads(layout.row(("1", "2", "ann", "more"), RESULT))
    assert [found[key] for key in ("a", "a_2", "email", "column_4")] == ["1", "2", "ann", "more"]
    row = csv_rows(Layout(["a", "b", "c"], "jsonl", "csv").row(('{"c": [1, "ü"], "a": true}',), RESULT))[0]
    assert row[:3] == ["true", "", '[1, "ü"]']
    lone = Layout(["a"], "jsonl", "csv").row(('{"a": "\\ud800"}',), RESULT)
    assert encoded(lone).startswith(b"\\ud800")


def test_bytes_that_are_no_text_go_out_as_they_came_in() -> None:
    """In the caller's own format to the byte; JSON that is made of his cells is UTF-8 all the same."""
    assert encoded(Layout(["a"], "csv", "csv").row(("J\udcfcrgen",), RESULT)).startswith(b"J\xfcrgen,")
    assert encoded(Layout(["a"], "jsonl", "jsonl").row(('{"a": "J\udcfc"}',), RESULT)).startswith(b'{"a": "J\xfc", ')
    assert json.loads(encoded(Layout(["a"], "csv", "jsonl").row(("J\udcfcrgen",), RESULT)))["a"] == "J\ufffdrgen"
    assert json.loads(encoded(Layout(["a"], "jsonl", "jsonl").row(("J\udcfc",), RESULT)))["unparsed"] == "J\ufffd"


@pytest.mark.parametrize(
    ("name", "source", "expected"),
    [
        ("o.csv", "jsonl", "csv"), ("o.JSONL", "csv", "jsonl"), ("o.ndjson", "csv", "jsonl"),
        ("o.json", "csv", "jsonl"), ("o.txt", "csv", "csv"), ("o", "jsonl", "jsonl"), ("-", "lines", "csv"),
        ("-", "jsonl", "jsonl"),
    ],
)  # fmt: skip
def test_the_suffix_tells_the_format(name: str, source: str, expected: str) -> None:
    """By the output's suffix, else as the input; plain lines give CSV."""
    assert output_format(name, source) == expected


def test_a_file_is_whole_or_not_there(tmp_path: Path) -> None:
    """What fails on the way leaves the old file and nothing else; what succeeds is the owner's alone."""
    target = tmp_path / "out.csv"
    target.write_text("old")
    layout = Layout(["email"], "csv", "csv")

    def failing() -> Iterator[Any]:
        yield ("a",), RESULT
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_file(target, failing(), layout)
    assert (target.read_text(), names(tmp_path)) == ("old", ["out.csv"])
    assert write_file(target, [(("a",), RESULT), (("b",), RESULT)], layout) == 2
    assert [row[0] for row in csv_rows(target.read_text())] == ["email", "a", "b"]
    assert stat.S_IMODE(target.stat().st_mode) == 0o600
    assert names(tmp_path) == ["out.csv"]


def test_what_a_killed_run_left_is_replaced(tmp_path: Path) -> None:
    """The temporary name is one: it neither piles up nor stands in the way, and a planted link is not followed."""
    target = tmp_path / "out.csv"
    left = tmp_path / ".out.csv.engine-tmp"
    left.write_text("half a row")
    left.chmod(0o644)
    write_file(target, [], Layout([], "lines", "csv"))
    assert names(tmp_path) == ["out.csv"]
    assert stat.S_IMODE(target.stat().st_mode) == 0o600
    victim = tmp_path / "victim"
    victim.write_text("mine")
    left.symlink_to(victim)
    with pytest.raises(OutputProblem):
        write_file(target, [], Layout([], "lines", "csv"))
    assert victim.read_text() == "mine"


def test_a_symbolic_link_stays_one(tmp_path: Path) -> None:
    """The file that a link names is replaced, not the link."""
    (tmp_path / "there").mkdir()
    link = tmp_path / "out.csv"
    link.symlink_to(tmp_path / "there" / "real.csv")
    check_output(link)
    write_file(link, [], Layout([], "lines", "csv"))
    assert link.is_symlink()
    assert (tmp_path / "there" / "real.csv").read_text().startswith("address,")


def test_what_can_t_be_written_is_told_before_anything_is_sent(tmp_path: Path) -> None:
    """The input itself, a folder, a device, a folder that isn't there: one sentence each."""
    source = tmp_path / "list.csv"
    source.write_text("email\n")
    (tmp_path / "link.csv").symlink_to(source)
    for name, says in [
        (source, "is the input itself"),
        (tmp_path / "link.csv", "is the input itself"),
        (tmp_path, "is a directory"),
        ("/dev/null", "-o -"),
        (tmp_path / "none" / "out.csv", "No such file or directory"),
        (tmp_path / ("x" * 250 + ".csv"), "name too long"),
    ]:
        with pytest.raises(OutputProblem, match=says) as caught:
            check_output(name, source)
        assert str(name) in str(caught.value)
    check_output("-", source)
    check_output(tmp_path / "out.csv", source)
    check_output(tmp_path / "out.csv", "-")
    assert names(tmp_path) == ["link.csv", "list.csv"]


def test_a_pipe_gets_each_row_at_once() -> None:
    """The heading first, and every row flushed when it is written."""
    read, write = os.pipe()
    with contextlib.closing(os.fdopen(read, "rb", buffering=0)) as reader, os.fdopen(write, "wb") as writer:
        stream = Stream(writer, Layout(["email"], "csv", "csv"))
        assert reader.read(4096).startswith(b"email,address,")
        stream.write(("ann",), RESULT)
        assert reader.read(4096).startswith(b"ann,ann@x.example,")


def test_memory_does_not_grow_with_the_output(tmp_path: Path) -> None:
    """50,000 rows are drawn and written one by one."""
    layout = Layout(["email"], "csv", "csv")
    tracemalloc.start()
    try:
        assert write_file(tmp_path / "out.csv", ((("a",), RESULT) for _ in range(50_000)), layout) == 50_000
        assert tracemalloc.get_traced_memory()[1] < 2_500_000  # the write buffer is one megabyte
    finally:
        tracemalloc.stop()


_CELL = st.text(st.characters(codec="utf-8"), max_size=12) | st.text(',;|\t"\r\n\0 a@', max_size=6)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.lists(_CELL, min_size=2, max_size=2), max_size=5), st.sampled_from(",;\t|"))
def test_a_list_goes_through_untouched(tmp_path: Path, cells: list[list[str]], delimiter: str) -> None:
    """Read, written, read again: the caller's cells and header are what they were, and the row count too."""
    rows = [["email", "reason", "b"], *(["ann@x.example", *row] for row in cells)]
    text = io.StringIO(newline="")
    csv.writer(text, delimiter=delimiter).writerows(rows)
    (tmp_path / "list.csv").write_bytes(text.getvalue().encode())
    with open_intake(tmp_path / "list.csv") as intake:
        layout = Layout(intake.header, intake.format, "csv", intake.delimiter)
        write_file(tmp_path / "out.csv", ((row.cells, RESULT) for row in intake.rows()), layout)
    with open_intake(tmp_path / "out.csv", "email") as again:
        assert [list(again.header[:3]), *(list(row.cells[:3]) for row in again.rows())] == rows
        assert again.header[3:] == tuple("engine_reason" if name == "reason" else name for name in COLUMNS)


_JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text(st.characters(codec="utf-8"), max_size=8),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=4,
)


@settings(max_examples=100, deadline=None)
@given(st.dictionaries(st.sampled_from([*COLUMNS[:6], "id", "engine_reason", ""]), _JSON, max_size=4))
def test_json_objects_go_through_untouched(own: dict[str, Any]) -> None:
    """Every key of the caller's has its value in the line, and all of ours are there."""
    text = json.dumps(own)
    found = json.loads(Layout(list(own), "jsonl", "jsonl").row((text,), RESULT))
    assert {key: found[key] for key in own} == own
    assert len(found) == len(own) + len(COLUMNS)
