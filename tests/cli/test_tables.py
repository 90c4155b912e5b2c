"""Laws of tables: a pipe gets a line a row, a terminal that is too narrow gets the last column folded below itself."""

from __future__ import annotations

from engine.cli.tables import aligned, folded

ROWS = [("list", "why"), ("bl", "it answers for what cannot be listed, and is not asked")]


def test_a_pipe_gets_a_line_a_row() -> None:
    """Width 0: nobody looks."""
    assert folded(ROWS, width=0) == aligned(ROWS)


def test_a_narrow_terminal_gets_the_last_column_folded() -> None:
    """No line is wider than the terminal, and no word is lost or cut."""
    lines = folded(ROWS, width=40, indent=2)
    assert max(map(len, lines)) <= 38
    assert lines[0] == "list  why"
    assert all(line.startswith(" " * 6) for line in lines[2:])
    assert " ".join(" ".join(lines[1:]).split()) == "bl it answers for what cannot be listed, and is not asked"


def test_a_terminal_too_narrow_to_fold_wraps_by_itself() -> None:
    """A column of single words is no help."""
    assert folded(ROWS, width=20) == aligned(ROWS)
