"""`docs/modules.md` and `docs/modules.svg`: what each module is, and which package imports which.

1. Only imports that run count: what stands under TYPE_CHECKING costs nothing and binds nobody.
2. A package stands above all that it imports; the picture is laid out from the imports alone.
"""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator
from html import escape
from pathlib import Path

ROOT = Path(__file__).parents[2]
SOURCES = ROOT / "engine"
# What each package is. Modules beside the packages are one box: those that many use and that use little.
WHAT = {
    "cli": "what prints: one file a group of commands",
    "library": "the same from Python: engine.verify",
    "lab": "a mail internet on loopback, for trials and tests",
    "flow": "an address's way: intake, lanes, sessions, rows out",
    "reputation": "what the world says of us: lists, events, alerts",
    "net": "DNS and SMTP sessions, over gevent",
    "store": "journal, identity state, audit: SQLite",
    "beside": "settings, log, metrics",
    "core": "what is decided: no socket, file, clock or chance",
}
_HEAD = """# Modules

Made from the sources by `make docs`; don't edit it here. A line is the first of the file's own description, where the
file's rules stand too. [Architecture](architecture.md) says how they work together.
"""


def page() -> str:
    """Every module with its first line, package by package from the top."""
    rows: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for file in sorted(SOURCES.rglob("*.py")):
        line = (ast.get_docstring(ast.parse(file.read_text("utf-8"))) or "").partition("\n\n")[0]
        if line:
            name = "beside" if file.parent == SOURCES else package(file)
            rows[name].append((file.relative_to(ROOT).as_posix(), " ".join(line.split())))
    titles = {name: f"engine/{name}: {what}" for name, what in WHAT.items()} | {"beside": "Beside the packages"}
    return _HEAD + "".join(_table(title, rows[name]) for name, title in titles.items() if rows[name])


def package(file: Path) -> str:
    """The package that a file is in, or the box of the modules beside them."""
    name = file.relative_to(SOURCES).parts[0].removesuffix(".py")
    return name if name in WHAT or name.startswith("__") else "beside"


def _table(title: str, rows: list[tuple[str, str]]) -> str:
    lines = "".join(f"| `{file}` | {line.replace('|', chr(92) + '|')} |\n" for file, line in rows)
    return f"\n## {title}\n\n| file | what it is |\n| --- | --- |\n{lines}"


# --- which package imports which


def imports() -> dict[str, set[str]]:
    """The packages that each package imports, itself left out."""
    found: dict[str, set[str]] = defaultdict(set)
    for file in SOURCES.rglob("*.py"):
        for target in _imported(ast.parse(file.read_text("utf-8"))):
            found[package(file)].add(package(SOURCES / target))
    return {name: found[name] - {name} for name in WHAT}


def _imported(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
        return
    if isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
        path = node.module.split(".")
        if path[0] == "engine":
            yield from path[1:2] or (alias.name for alias in node.names)
    elif isinstance(node, ast.Import):
        yield from (alias.name.split(".")[1] for alias in node.names if alias.name.startswith("engine."))
    for child in ast.iter_child_nodes(node):
        yield from _imported(child)


# --- the picture

_ROW, _HEIGHT, _GAP, _WIDTH = 96, 52, 24, 900
_HEAD_OF_SVG = """\
<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img"
     aria-label="The packages of the engine, and which imports which">
<style>
  text {{ font-family: sans-serif; text-anchor: middle; fill: #1a2a33 }}
  .name {{ font-size: 15px; font-weight: bold }}
  .what {{ font-size: 11.5px }}
  rect {{ fill: #eef4f7; stroke: #4a7080; stroke-width: 1.2 }}
  path {{ stroke: #7d949e; stroke-width: 1.4; fill: none; marker-end: url(#tip) }}
  marker path {{ fill: #7d949e; stroke: none; marker-end: none }}
</style>
<defs>
<marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">
<path d="M0 0L8 4L0 8z"/></marker>
</defs>"""


def diagram() -> str:
    """The packages as an SVG: an arrow leads to what is imported; one that others imply is left out."""
    graph = imports()
    rows: dict[int, list[str]] = defaultdict(list)
    for name in WHAT:
        rows[_depth(name, graph)].append(name)
    boxes = {name: box for depth, row in rows.items() for name, box in _placed(depth, row)}
    parts = [_HEAD_OF_SVG.format(width=_WIDTH, height=(len(rows) - 1) * _ROW + _HEIGHT + 8)]
    for name, target in _needed(graph):
        parts.append(_arrow(boxes[name], boxes[target]))
    for name, (left, top, width) in boxes.items():
        middle = left + width / 2
        parts.append(f'<rect x="{left:g}" y="{top}" width="{width:g}" height="{_HEIGHT}" rx="6"/>')
        parts.append(f'<text class="name" x="{middle:g}" y="{top + 21}">{escape(_shown(name))}</text>')
        parts.append(f'<text class="what" x="{middle:g}" y="{top + 40}">{escape(WHAT[name])}</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"


def _shown(name: str) -> str:
    return "beside the packages" if name == "beside" else f"engine.{name}"


def _depth(name: str, graph: dict[str, set[str]]) -> int:
    """How far below the top: one row under the lowest that imports it."""
    return max((1 + _depth(user, graph) for user, targets in graph.items() if name in targets), default=0)


def _needed(graph: dict[str, set[str]]) -> Iterator[tuple[str, str]]:
    """The imports that no chain of others implies."""
    for name, targets in graph.items():
        for target in sorted(targets):
            if not any(target in _reached(other, graph) for other in targets - {target}):
                yield name, target


def _reached(name: str, graph: dict[str, set[str]]) -> set[str]:
    return graph[name].union(*(_reached(each, graph) for each in graph[name]))


def _placed(depth: int, row: list[str]) -> Iterator[tuple[str, tuple[float, int, float]]]:
    """Boxes of one width over a row: left, top, width."""
    width = min((_WIDTH - 8 - _GAP * (len(row) - 1)) / len(row), 430)
    left = (_WIDTH - len(row) * width - _GAP * (len(row) - 1)) / 2
    for place, name in enumerate(row):
        yield name, (left + place * (width + _GAP), 4 + depth * _ROW, width)


def _arrow(above: tuple[float, int, float], below: tuple[float, int, float]) -> str:
    """From the foot of one box to the head of the other, each aimed at the other's middle as far as its width goes."""
    tops = [(box[0] + box[2] / 2, box[2] / 3) for box in (above, below)]
    (x1, reach1), (x2, reach2) = tops
    start = x1 + max(-reach1, min(reach1, (x2 - x1) / 3))
    end = x2 + max(-reach2, min(reach2, (x1 - x2) / 3))
    y1, y2 = above[1] + _HEIGHT, below[1] - 2
    return f'<path d="M{start:.0f} {y1}C{start:.0f} {y1 + 24} {end:.0f} {y2 - 24} {end:.0f} {y2}"/>'
