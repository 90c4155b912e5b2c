"""What a measurement found: figures, claims that they meet or don't, and what was missing. As a table, JSON, pictures.

1. A claim is met, short, or not measured; what is missing is named, and is neither passed nor failed.
2. With --check the exit status is 1 when a claim falls short, 3 when one could not be measured, else 0.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bench.measure import plots
from bench.measure.machine import machine
from bench.measure.plots import Plot

SHORT, MISSING = 1, 3


@dataclass(frozen=True, slots=True)
class Claim:
    """One requirement and what was measured; `met` None: it could not be."""

    say: str
    required: str
    measured: str
    met: bool | None


@dataclass(frozen=True, slots=True)
class Figure:
    """One measured number; `per` groups figures into rows of a table (a peer, a size)."""

    name: str
    value: float | str
    unit: str = ""
    per: str = ""


@dataclass(slots=True)
class Report:
    """Collects what one scenario finds."""

    scenario: str
    claims: list[Claim] = field(default_factory=list)
    figures: list[Figure] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    plots: list[Plot] = field(default_factory=list)

    def figure(self, name: str, value: float | str, unit: str = "", *, per: str = "") -> None:
        """Note a number."""
        self.figures.append(Figure(name, value, unit, per))

    def claim(self, say: str, required: str, measured: str, *, met: bool | None) -> None:
        """Note a requirement."""
        self.claims.append(Claim(say, required, measured, met))

    def at_most(self, say: str, value: float | None, limit: float, unit: str = "") -> None:
        """A requirement on a number that must not be larger; None: it could not be measured."""
        self._compare(say, value, limit, unit, "at most")

    def at_least(self, say: str, value: float | None, limit: float, unit: str = "") -> None:
        """A requirement on a number that must not be smaller."""
        self._compare(say, value, limit, unit, "at least")

    def absent(self, what: str) -> None:
        """Something is missing; the report says so, and --check exits with 3."""
        if what not in self.missing:
            self.missing.append(what)

    def note(self, text: str) -> None:
        """A sentence below the table."""
        self.notes.append(text)

    def plot(self, name: str, title: str, x: str, y: str, kind: str, series: dict[str, Any], **more: Any) -> None:
        """Note a picture; see bench.measure.plots."""
        self.plots.append(Plot(name, title, x, y, kind, series, **more))

    @property
    def status(self) -> int:
        """What --check exits with."""
        if any(claim.met is False for claim in self.claims):
            return SHORT
        return MISSING if self.missing or any(claim.met is None for claim in self.claims) else 0

    def finish(self, options: argparse.Namespace) -> int:
        """Print, write, draw, and say the exit status."""
        self.print()
        if options.plots and self.plots:
            drawn = plots.missing() or ", ".join(map(str, plots.draw(self.scenario, self.plots, options.plots)))
            print(f"  pictures: {drawn}", flush=True)
        if options.json:
            options.json.write_text(json.dumps(self.as_json(), indent=1) + "\n", encoding="utf-8")
        return self.status if options.check else 0

    def as_json(self) -> dict[str, Any]:
        """Everything, with the machine and the moment."""
        return {**asdict(self), "machine": machine(), "at": datetime.now(UTC).isoformat(timespec="seconds")}

    def print(self) -> None:
        """The table on standard output."""
        host = machine()
        print(f"\n== {self.scenario} ==  {host['cpu']}, {host['cores']} cores, load {host['load']}, Python "
              f"{host['python']}, gevent {host['gevent']}, {host['commit']} {host['engine']}")  # fmt: skip
        rows = list(dict.fromkeys(figure.per for figure in self.figures if figure.per))
        if rows:
            self._table(rows)
        for figure in self.figures:
            if not figure.per:
                print(f"  {figure.name:46} {_number(figure.value):>12} {figure.unit}")
        if self.claims:
            width = max(len(claim.say) for claim in self.claims)
            print(f"\n  {'requirement':{width}}  {'required':>18}  {'measured':>18}  met")
            for claim in self.claims:
                met = {True: "yes", False: "NO", None: "not measured"}[claim.met]
                print(f"  {claim.say:{width}}  {claim.required:>18}  {claim.measured:>18}  {met}")
        for what in self.missing:
            print(f"  missing: {what}")
        for text in self.notes:
            print(f"  note: {text}")
        sys.stdout.flush()

    def _table(self, rows: list[str]) -> None:
        """Figures with `per` as rows and columns."""
        columns = list(dict.fromkeys((figure.name, figure.unit) for figure in self.figures if figure.per))
        cells = {(figure.per, figure.name): _number(figure.value) for figure in self.figures if figure.per}
        heads = [f"{name} {unit}".strip() for name, unit in columns]
        widths = [max(len(head), 9) for head in heads]
        first = max(len(row) for row in rows)
        print(f"  {'':{first}}  " + "  ".join(f"{head:>{w}}" for head, w in zip(heads, widths, strict=True)))
        for row in rows:
            values = [cells.get((row, name), "") for name, _ in columns]
            print(f"  {row:{first}}  " + "  ".join(f"{value:>{w}}" for value, w in zip(values, widths, strict=True)))

    def _compare(self, say: str, value: float | None, limit: float, unit: str, how: str) -> None:
        measured = "-" if value is None else f"{_number(value)} {unit}".strip()
        met = None if value is None else (value <= limit if how == "at most" else value >= limit)
        self.claim(say, f"{how} {_number(limit)} {unit}".strip(), measured, met=met)


def options(name: str, told: str | None) -> argparse.ArgumentParser:
    """The options of every scenario; `told` is its module's docstring."""
    parser = argparse.ArgumentParser(
        prog=f"python -m bench {name}", description=told, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--short", action="store_true", help="small sizes, as `make bench` runs it")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the report there, with machine and versions")
    parser.add_argument("--plots", type=Path, metavar="DIR", help="draw what it found there, as SVG files")
    parser.add_argument("--check", action="store_true", help="exit 1 when a claim falls short, 3 when one is missing")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="leave lists, journals and logs there")
    return parser


def _number(value: float | str) -> str:
    if isinstance(value, str):
        return value
    if value == int(value) and abs(value) < 1e12:
        return f"{int(value):,}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
