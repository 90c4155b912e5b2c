"""`engine reasons`: the table of reason codes, for people, for the documentation and for programs."""

from __future__ import annotations

import json

import click
from rich.console import Console
from rich.table import Table

from engine.core.reasons import REASONS, Reason

_COLUMNS = ("reason", "category", "answered", "fault", "retry", "reach", "meaning")

_HEAD = """# Reason codes

Made from `engine/core/reasons.py` by `make docs`; don't edit it here.

Every result carries one of these codes. They are append-only: a code keeps its name and its meaning. `answered` says
whether the mailbox itself was learnt about (who wants *unknown* takes `answered = false`), `fault` whom the outcome
speaks of, `retry` what could bring another answer later, `reach` who is refused: nobody but this address, our
sender at one domain, or our source altogether. A reply's own words can widen `domain` to `source`.
"""


def cells(reason: Reason) -> tuple[str, ...]:
    """One row of the table as text."""
    answered = "yes" if reason.answered else "no"
    return (reason.code, reason.category, answered, reason.fault, reason.retry, reason.reach, reason.meaning)


def markdown() -> str:
    """The page `docs/reasons.md`."""
    lines = [f"| {' | '.join(_COLUMNS)} |", f"|{'|'.join(' --- ' for _ in _COLUMNS)}|"]
    for reason in REASONS.values():
        lines.append(f"| {' | '.join((f'`{reason.code}`', *cells(reason)[1:]))} |")
    return _HEAD + "\n" + "\n".join(lines) + "\n"


@click.command()
@click.option("--markdown", "form", flag_value="markdown", help="Print the page of the documentation.")
@click.option("--json", "form", flag_value="json", help="Print one JSON object a line.")
def reasons(form: str | None) -> None:
    """Print every reason code and what it means."""
    if form == "markdown":
        click.echo(markdown(), nl=False)
    elif form == "json":
        for reason in REASONS.values():
            click.echo(json.dumps(dict(zip(_COLUMNS, cells(reason), strict=True)) | {"answered": reason.answered}))
    else:
        table = Table(*_COLUMNS, box=None, pad_edge=False, header_style="bold")
        for reason in REASONS.values():
            table.add_row(*cells(reason))
        console = Console()
        console.width = console.width if console.is_terminal else 200
        console.print(table)
