"""Draws what a report holds, as SVG files: a line a series, the share of values up to x, or a bar a contestant.

matplotlib comes with `pip install --group bench`; without it a report says so and has no pictures.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LINES, SHARES, BARS = "lines", "shares", "bars"
HIGHLIGHT, PLAIN = "#c2410c", "#7c93ad"
COLOURS = ("#1d4ed8", "#c2410c", "#15803d", "#7e22ce", "#0e7490", "#a16207")
POINTS = 300
SIZE = (7.2, 4.2)  # inches


@dataclass(frozen=True, slots=True)
class Plot:
    """One picture. Series hold points (x, y) for lines and shares, one value each for bars."""

    name: str
    title: str
    x: str
    y: str
    kind: str
    series: dict[str, Sequence[Any]]
    logarithmic: bool = False  # the x axis
    limit: float | None = None  # the value required of y: a dashed line


def shares(values: Sequence[float]) -> list[tuple[float, float]]:
    """Points (value, % of the values up to it); no more of them than a picture shows."""
    ordered, count = sorted(values), len(values)
    kept = sorted({*range(0, count, max(1, count // POINTS)), count - 1}) if count else []
    return [(ordered[at], (at + 1) / count * 100) for at in kept]


def missing() -> str:
    """Why nothing can be drawn; empty when it can."""
    try:
        import matplotlib  # noqa: PLC0415, F401 - it need not be there
    except ImportError:
        return "matplotlib is not installed; `pip install --group bench` does"
    return ""


def draw(scenario: str, plots: Sequence[Plot], folder: Path, suffix: str = "svg") -> list[Path]:
    """Write each picture to `folder`/<scenario>-<name>.<suffix>; what was written."""
    import matplotlib as mpl  # noqa: PLC0415

    mpl.use("Agg")
    mpl.rcParams.update({
        "font.size": 10, "axes.spines.top": False, "axes.spines.right": False, "axes.titleweight": "bold",
        "axes.titlelocation": "left", "axes.titlesize": 11, "svg.hashsalt": scenario, "legend.frameon": False,
    })  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for plot in plots:
        path = folder / f"{scenario}-{plot.name}.{suffix}"
        _figure(plot).savefig(path, dpi=110, metadata={"Date": None} if suffix == "svg" else None)
        written.append(path)
    return written


def _figure(plot: Plot) -> Any:
    from matplotlib.figure import Figure  # noqa: PLC0415

    height = max(2.0, 1.2 + 0.34 * len(plot.series)) if plot.kind == BARS else SIZE[1]
    figure = Figure(figsize=(SIZE[0], height), layout="constrained")
    axes = figure.add_subplot()
    axes.set_title(plot.title)
    {LINES: _lines, SHARES: _shares, BARS: _bars}[plot.kind](axes, plot)
    axes.set_xlabel(plot.x)
    axes.set_ylabel(plot.y)
    return figure


def _lines(axes: Any, plot: Plot) -> None:
    for colour, (name, points) in zip(COLOURS, plot.series.items(), strict=False):
        axes.plot(*zip(*points, strict=True), marker="o", markersize=4, color=colour, label=name)
    _scale(axes, plot)
    highest = max(y for points in plot.series.values() for _, y in points)
    axes.set_ylim(0, 1.1 * max(highest, plot.limit or 0))
    if plot.logarithmic:
        axes.set_xticks(sorted({x for points in plot.series.values() for x, _ in points}))
        axes.minorticks_off()
    else:
        axes.set_xlim(left=0)
    axes.grid(axis="y", alpha=0.25)
    if plot.limit is not None:
        axes.axhline(plot.limit, color="#555", linestyle="--", linewidth=1, label=f"required: at most {plot.limit:g}")
    if len(plot.series) > 1 or plot.limit is not None:
        axes.legend()


def _shares(axes: Any, plot: Plot) -> None:
    for colour, (name, points) in zip(COLOURS, plot.series.items(), strict=False):
        axes.plot(*zip(*points, strict=True), color=colour, label=name)
    _scale(axes, plot)
    axes.set_ylim(0, 101)
    axes.grid(alpha=0.25)
    if len(plot.series) > 1:
        axes.legend(loc="upper left")


def _bars(axes: Any, plot: Plot) -> None:
    names = list(plot.series)[::-1]  # the first on top
    values = [plot.series[name][0] for name in names]
    bars = axes.barh(names, values, color=[HIGHLIGHT if name == "engine" else PLAIN for name in names], height=0.7)
    axes.bar_label(bars, [f"{value:,.0f}" if value >= 100 else f"{value:.3g}" for value in values], padding=4)
    axes.margins(x=0.12)
    axes.xaxis.set_major_formatter("{x:,.0f}" if max(values) >= 10 else "{x:g}")


def _scale(axes: Any, plot: Plot) -> None:
    if plot.logarithmic:
        axes.set_xscale("log")
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.yaxis.set_major_formatter("{x:,.0f}")
