"""Laws of the intake: every row comes out once, nothing in a row ends a run, nothing is guessed without evidence."""

from __future__ import annotations

import contextlib
import csv
import hashlib
import io
import os
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine.flow.intake import PROBLEMS, InputProblem, Intake, IntakeRow, file_sha256, open_intake
from engine.flow.records import MAX_RECORD, encoded


@pytest.fixture
def written(tmp_path: Path):  # type: ignore[no-untyped-def]
    """Writes bytes or text to a file and opens it; closes all at the end."""
    opened = contextlib.ExitStack()

    def write(data: bytes | str, name: str = "list.csv", column: str | None = None) -> Intake:
        path = tmp_path / name
        path.write_bytes(data.encode() if isinstance(data, str) else data)
        return opened.enter_context(open_intake(path, column))

    with opened:
        yield write


def texts(intake: Intake) -> list[str]:
    return [row.text for row in intake.rows()]


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
@pytest.mark.parametrize("name", ["list.csv", "list.txt"])
def test_any_delimiter_is_found(written, delimiter: str, name: str) -> None:
    """The delimiter is what cuts rows alike and leaves addresses in a column, whatever other commas say."""
    rows = [["name", "e-mail", "note"], ["Lee, Ann", "ann@example.org", "a; b"], ["Ray", "ray@example.org", "x | y, z"]]
    text = io.StringIO()
    csv.writer(text, delimiter=delimiter).writerows(rows)
    intake = written(text.getvalue(), name)
    assert (intake.format, intake.delimiter, intake.column) == ("csv", delimiter, "e-mail")
    assert [list(row.cells) for row in intake.rows()] == rows[1:]


def test_unquoted_commas_in_another_column_do_not_mislead(written) -> None:
    """Commas of names do not outvote the semicolon that cuts out the addresses."""
    assert written("name, first;mail\nLee, Ann;ann@a.example\nRay, Jo;jo@b.example\n").delimiter == ";"


def test_a_header_is_kept_and_a_missing_one_is_numbered(written) -> None:
    """A first row without an @ names the columns; else they are called column_1, column_2, ... and it is a row."""
    assert written("Name,E-Mail\nAnn,ann@x.example\n").header == ("Name", "E-Mail")
    bare = written("Ann,ann@x.example\nRay,ray@x.example\n")
    assert (bare.header, bare.column, texts(bare)) == (
        ("column_1", "column_2"),
        "column_2",
        ["ann@x.example", "ray@x.example"],
    )


@pytest.mark.parametrize(
    ("text", "column"),
    [
        ("id,Email Address,x\n1,ann@x.example,\n", "Email Address"),
        ("address,kunde\nMain St 1,ann@x.example\nSide St 2,ray@x.example\n", "kunde"),
        ("user,email\nann@a.example,ann@x.example\n", "email"),
        ("name,email\n", "email"),
        ("name,email\nann,nothing\n", "email"),
        ("contact,Kunden-Email\nann,\nray,ray@x.example\n", "Kunden-Email"),
        ("email\nann@x.example\n", "email"),
        ('"ann@x.example"\n"ray@x.example"\n', "column_1"),
    ],
)
def test_the_column_is_found_by_what_it_holds_and_then_by_name(written, text: str, column: str) -> None:
    """Content outweighs names; a name decides between columns of addresses, or where there is nothing to see."""
    assert written(text).column == column


@pytest.mark.parametrize(("asked", "index"), [("two", 1), ("TWO ", 1), ("column_1", 0), ("column_3", 2)])
def test_a_column_is_asked_for_by_name_or_place(written, asked: str, index: int) -> None:
    """--column takes the name as it stands, in any case, or column_N."""
    intake = written("one,Two,three\na@x.example,b@x.example,c@x.example\n", column=asked)
    assert texts(intake) == [("a@x.example", "b@x.example", "c@x.example")[index]]


@pytest.mark.parametrize(
    ("data", "name", "column", "says"),
    [
        ("", "l.csv", None, "is empty"),
        (" \n\r\n\n", "l.txt", None, "is empty"),
        (b"\xef\xbb\xbf", "l.csv", None, "is empty"),
        ("name,age\nAnn,3\n", "l.csv", None, "has no address column; columns: name, age; choose with --column"),
        ("name,age\nAnn,3\n", "l.csv", "mail", "has no column 'mail'; columns: name, age"),
        ("a,a\nb@x.example,c@x.example\n", "l.csv", "a", "has 2 columns named 'a' (column_1 is the first)"),
        ("one,two\na@x.example,b@x.example\n", "l.csv", None, "has addresses in 'one' and in 'two'"),
        ("ann\nray\n", "l.txt", None, "has no address in its first lines"),
        ("ann@x.example\n", "l.txt", "mail", "plain lines without columns"),
        ('[{"email": "ann@x.example"}]', "l.json", None, "is a JSON array"),
        ('{"name": "ann"}\n', "l.jsonl", None, "has no address column; keys: name"),
        ('{"name": "ann"}\n', "l.jsonl", "mail", "has no column 'mail'; keys: name"),
        (b"PK\x03\x04abc", "l.xlsx", None, "spreadsheet or zip"),
        (b"\x1f\x8b\x08", "l.csv.gz", None, "gzip"),
        ("email\nann@x.example\n".encode("utf-16-le"), "l.csv", None, "save it as UTF-8"),
    ],
)
def test_what_is_no_list_gets_one_sentence(
    written, data: bytes | str, name: str, column: str | None, says: str
) -> None:
    """A problem of the input as a whole is told before the first row, with its name and what to do."""
    with pytest.raises(InputProblem) as caught:
        written(data, name, column)
    assert says in str(caught.value)
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_can_t_be_opened_gets_one_sentence(tmp_path: Path) -> None:
    """A missing file and a directory are named as such."""
    with pytest.raises(InputProblem, match="No such file"):
        open_intake(tmp_path / "none.csv")
    with pytest.raises(InputProblem, match="is a directory"):
        open_intake(tmp_path)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_byte_order_marks_and_line_ends_leave_no_trace(written, encoding: str, end: str) -> None:
    """UTF-8 with and without BOM, UTF-16 by its BOM, and any line ends give the same rows."""
    intake = written(end.join(["email,name", "jürgen@x.example,Jürgen", "ann@x.example,Ann", ""]).encode(encoding))
    assert intake.header == ("email", "name")
    assert [row.cells for row in intake.rows()] == [("jürgen@x.example", "Jürgen"), ("ann@x.example", "Ann")]


def test_newlines_in_quotes_belong_to_the_cell(written) -> None:
    """A quoted cell keeps its line ends, quotes and delimiters."""
    intake = written('name,email\r\n"Ann ""A""\r\nLee, Dr.",ann@x.example\r\n')
    assert [row.cells for row in intake.rows()] == [('Ann "A"\r\nLee, Dr.', "ann@x.example")]


def test_undecodable_bytes_of_an_address_are_told_in_their_row(written) -> None:
    """Its text has U+FFFD for what is no text; a name in another encoding is nobody's problem."""
    intake = written(b"email,name\nann@x.example,Ann\nj\xfcrgen@x.example,J\xff\nray@x.example,J\xfcrgen\n")
    assert [(row.text, row.problem) for row in intake.rows()] == [
        ("ann@x.example", ""),
        ("j\ufffdrgen@x.example", "undecodable"),
        ("ray@x.example", ""),
    ]


def test_undecodable_cells_are_kept_to_the_byte(written) -> None:
    """Latin-1 names beside ASCII addresses, in CSV and in JSONL: encoded again, they are the bytes that they were."""
    line = "1;Jürgen;ann@x.example".encode("latin-1")
    (row,) = written(b"id;name;mail\n" + line + b"\n").rows()
    assert encoded(";".join(row.cells)) == line
    line = '{"name": "Jürgen", "mail": "ann@x.example"}'.encode("latin-1")
    (row,) = written(line + b"\n", "list.jsonl").rows()
    assert (row.text, row.problem, encoded(row.cells[0])) == ("ann@x.example", "", line)


def test_in_utf_16_what_is_no_text_is_replaced(written) -> None:
    """Half a character there is no byte that could be kept."""
    (row,) = written("name,mail\nJ?,ann@x.example\n".encode("utf-16").replace(b"?\0", b"\x00\xd8")).rows()
    assert (row.cells, row.problem) == (("J\ufffd", "ann@x.example"), "")


def test_nul_bytes_are_text_like_any_other(written) -> None:
    """A NUL ends nothing: the address parser will name it."""
    assert texts(written(b"email,n\nan\0n@x.example,1\nray@x.example,2\n")) == ["an\0n@x.example", "ray@x.example"]


def test_a_bad_row_costs_only_itself(written) -> None:
    """Too few cells and quotes that nothing closes are told in their row; stray quotes are text; none is swallowed."""
    intake = written(
        "name,email\n"
        "Ann,ann@x.example\n"
        "short\n"
        '"Joe,joe@x.example\n'
        "Ray,ray@x.example\n"
        '"Jo "the man" Lee",jo@x.example\n'
        '5" pipe,pipe@x.example\n'
        ",\n"
        "Kim,kim@x.example,more\n"
        "\n"
        '"open,open@x.example\n'
        "End,end@x.example"
    )
    assert [(row.n, row.text, row.problem) for row in intake.rows()] == [
        (1, "ann@x.example", ""),
        (2, "", "bad_row"),
        (3, "joe@x.example", "bad_row"),
        (4, "ray@x.example", ""),
        (5, "jo@x.example", ""),
        (6, "pipe@x.example", ""),
        (7, "", ""),
        (8, "kim@x.example", ""),
        (9, "open@x.example", "bad_row"),
        (10, "end@x.example", ""),
    ]


def test_a_row_without_end_is_cut(written) -> None:
    """A line of megabytes is one row with a problem, and the next row is well."""
    for name in ("list.csv", "list.txt"):
        head = "email,x\n" if name == "list.csv" else ""
        intake = written(head + "ann@x.example,1\n" + "x" * (3 * MAX_RECORD) + "\nray@x.example,2\n", name)
        found = list(intake.rows())
        assert [row.problem for row in found] == ["", "row_too_long", ""]
        assert len(found[1].cells[0]) <= MAX_RECORD
        assert found[2].text == "ray@x.example"


def test_plain_lines_are_rows(written) -> None:
    """One address a line; blank lines are none; what is written in a line is judged later, not here."""
    intake = written("ann@x.example\n\n  ray@x.example \nA, B <c@x.example>\nno address\n", "list.txt")
    assert (intake.format, intake.header, intake.column) == ("lines", (), "")
    assert list(intake.rows()) == [
        IntakeRow(1, (), "ann@x.example"),
        IntakeRow(2, (), "  ray@x.example "),
        IntakeRow(3, (), "A, B <c@x.example>"),
        IntakeRow(4, (), "no address"),
    ]


def test_json_lines_are_rows(written) -> None:
    """The line's text is kept; the key is found by name or content; what is no object, or has no text, is told."""
    lines = [
        '{"id": 1.50, "mail": "ann@x.example"}',
        '{"id": 2, "mail": null}',
        '{"id": 3, "new": true}',
        "{broken",
        "[1]",
        '{"id": 4, "mail": "\\ud800@x.example"}',
        "[" * 100_000,
        '{"mail": "ray@x.example"}',
    ]
    intake = written("\n".join(lines), "list.txt")
    assert (intake.format, intake.column) == ("jsonl", "mail")
    found = list(intake.rows())
    assert [row.cells[0] for row in found] == lines
    assert [(row.text, row.problem) for row in found] == [
        ("ann@x.example", ""),
        ("", "no_address"),
        ("", "no_address"),
        ("", "bad_json"),
        ("", "bad_json"),
        ("\ufffd@x.example", "undecodable"),
        ("", "bad_json"),
        ("ray@x.example", ""),
    ]
    assert intake.header == ("id", "mail", "new")


def test_every_problem_is_in_the_table(written) -> None:
    """The table of problems and what rows can say are the same."""
    csv_list = written(b'email,x\n\xff@x.example,1\n"open,2\n' + b"x" * (2 * MAX_RECORD) + b"\n")
    json_list = written('{"email": "a@x.example"}\n{"email": 1}\n{\n', "l.jsonl")
    seen = {row.problem for intake in (csv_list, json_list) for row in intake.rows()}
    assert seen - {""} == PROBLEMS.keys()


def test_a_pipe_is_a_list_like_any_other(tmp_path: Path) -> None:
    """Standard input and a named pipe are spooled: looked at, read twice, digested."""
    data = b"email;name\nann@x.example;Ann\n"
    read, write = os.pipe()
    os.write(write, data)
    os.close(write)
    for intake in (open_intake("-", stdin=io.BytesIO(data)), open_intake(f"/dev/fd/{read}")):
        with intake:
            assert (intake.format, intake.delimiter) == ("csv", ";")
            assert texts(intake) == texts(intake) == ["ann@x.example"]
            assert intake.sha256 == hashlib.sha256(data).hexdigest()
    os.close(read)


def test_the_digest_is_the_files(written, tmp_path: Path) -> None:
    """What a resume compares can be had before, after and without reading the rows."""
    intake = written(b"\xef\xbb\xbfemail\r\nann@x.example\r\n")
    before = intake.sha256
    list(intake.rows())
    assert (
        before == file_sha256(tmp_path / "list.csv") == hashlib.sha256((tmp_path / "list.csv").read_bytes()).hexdigest()
    )


@pytest.mark.parametrize("kind", ["csv", "jsonl", "lines"])
def test_memory_does_not_grow_with_the_list(written, kind: str) -> None:
    """200,000 rows pass through a few hundred kilobytes."""
    line = {
        "csv": "{0},ann{0}@x.example\n",
        "jsonl": '{{"n": {0}, "email": "ann{0}@x.example"}}\n',
        "lines": "a{0}@x.de\n",
    }
    head = "n,email\n" if kind == "csv" else ""
    intake = written(head + "".join(line[kind].format(n) for n in range(200_000)), f"list.{kind}")
    tracemalloc.start()
    try:
        assert sum(1 for _ in intake.rows()) == 200_000
        assert tracemalloc.get_traced_memory()[1] < 500_000
    finally:
        tracemalloc.stop()


_CELL = st.text(st.characters(codec="utf-8"), max_size=12) | st.text(',;|\t"\r\n\0 a@', max_size=6)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.lists(_CELL, min_size=2, max_size=2), max_size=6), st.sampled_from(",;\t|"))
def test_any_cells_come_back_untouched(written, cells: list[list[str]], delimiter: str) -> None:
    """Whatever a CSV writer can write is read back cell by cell."""
    rows = [["email", "a", "b"], *(["ann@x.example", *row] for row in cells)]
    text = io.StringIO(newline="")
    csv.writer(text, delimiter=delimiter).writerows(rows)
    intake = written(text.getvalue())
    assert list(intake.header) == rows[0]
    assert [(list(row.cells), row.problem) for row in intake.rows()] == [(row, "") for row in rows[1:]]


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.binary(max_size=60) | st.text('@,;"\n\r{}[]:a ', max_size=40).map(str.encode),
    st.sampled_from(["csv", "txt", "json"]),
)
def test_no_bytes_end_a_run(written, data: bytes, suffix: str) -> None:
    """Any bytes are a list or an InputProblem; an address cell is clean text, and no cell loses a byte."""
    try:
        intake = written(data, f"list.{suffix}")
    except InputProblem:
        return
    for n, row in enumerate(intake.rows(), 1):
        assert row.n == n
        assert row.problem == "" or row.problem in PROBLEMS
        assert row.text.encode().decode() == row.text
        assert [encoded(cell).decode(errors="surrogateescape") for cell in row.cells] == list(row.cells)
