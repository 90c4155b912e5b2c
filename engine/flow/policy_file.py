"""One policy file: YAML with the line of every key, checked for shape; problems are collected, not raised.

1. Every problem names file, line, field and what is expected, in one sentence.
2. YAML's traps are closed: a key given twice, aliases (`*name`) and dates that turn into objects.
"""

from __future__ import annotations

import difflib
import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml

from engine.core.grammar import GrammarError
from engine.core.reasons import REASONS, Category, Stage
from engine.core.reply import ProtocolError, Reply, ReplyParser
from engine.flow.policy_model import KEYS, NAME, ROW_KEYS, SOURCE_KEYS, Kind, reply_row

_Path = tuple[str | int, ...]
# libyaml is five times faster; PyYAML may be built without it.
_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
RCPT = Stage.RCPT
_MAX_DEPTH = 8  # a policy needs four
_MAX_BYTES = 1024 * 1024

_KINDS = {key.path: key.kind for key in KEYS}
KNOWN = {"provider", "sources", "replies", *_KINDS}
SECTIONS = {path.rpartition(".")[0] for path in KNOWN if "." in path} | {"pace"}


@dataclass(frozen=True, slots=True, order=True)
class Problem:
    """What is wrong with a file, and where. `line` counts from 1; 0 where there is none."""

    file: str
    line: int
    field: str
    what: str

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}" if self.line else self.file
        return f"{place}: {self.field}: {self.what}" if self.field else f"{place}: {self.what}"


@dataclass(slots=True)
class PolicyFile:
    """One file as read: `data` is plain YAML, `lines` where each path of it stands. `layer` 0 is the shipped one."""

    label: str
    layer: int
    digest: str = ""
    data: dict[str, Any] = field(default_factory=dict)
    lines: dict[_Path, int] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    @property
    def provider(self) -> str:
        """The provider it speaks of; empty when it doesn't say."""
        name = self.data.get("provider")
        return name if isinstance(name, str) else ""

    def line(self, path: _Path) -> int:
        """Where a path stands, or what encloses it."""
        while path and path not in self.lines:
            path = path[:-1]
        return self.lines.get(path, 0)

    def problem(self, path: _Path, what: str) -> None:
        """Note a problem."""
        self.problems.append(Problem(self.label, self.line(path), field_name(path), what))

    def values(self) -> dict[str, Any]:
        """What it sets, by dotted path. A section that is null sets all of its keys to null."""
        found: dict[str, Any] = {}
        for key in KEYS:
            node: Any = self.data
            for part in key.path.split("."):
                if not isinstance(node, dict) or part not in node:
                    break
                node = node[part]
                if node is None:
                    found[key.path] = None
                    break
            else:
                found[key.path] = node
        return found


def field_name(path: _Path) -> str:
    """`recipients.rate`, `replies[2].text`: items count from 1, as people do."""
    name = ""
    for part in path:
        name += f"[{part + 1}]" if isinstance(part, int) else f".{part}" if name else part
    return name


def read_file(label: str, content: bytes, layer: int, *, checked: bool = True) -> PolicyFile:
    """Parse a file, and with `checked` hold it against the model."""
    found = PolicyFile(label, layer, hashlib.sha256(content).hexdigest())
    if len(content) > _MAX_BYTES:
        found.problem((), f"the file is larger than {_MAX_BYTES // 1024} KiB, which no policy is")
        return found
    try:
        node = yaml.compose(content.decode("utf-8"), Loader=_Loader)
    except UnicodeDecodeError:
        found.problem((), "the file is not UTF-8 text")
        return found
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        reason = getattr(error, "problem", None) or str(error)
        found.problems.append(Problem(label, mark.line + 1 if mark else 0, "", f"not YAML: {reason}"))
        return found
    if not isinstance(node, yaml.MappingNode):
        found.problem((), "the file holds no keys (expected `provider: NAME` and what its policy says)")
        return found
    data = _plain(node, (), found, set())
    if not found.problems:
        found.data = data
        if checked:
            check(found)
    return found


def _plain(node: yaml.Node, path: _Path, found: PolicyFile, seen: set[int]) -> Any:
    found.lines.setdefault(path, node.start_mark.line + 1)
    if isinstance(node, yaml.ScalarNode):
        return _scalar(node)
    if id(node) in seen or len(path) > _MAX_DEPTH:
        found.problem(path, "is an alias or nested too deep (expected to be written out here)")
        return None
    seen.add(id(node))
    if isinstance(node, yaml.SequenceNode):
        return [_plain(item, (*path, index), found, seen) for index, item in enumerate(node.value)]
    plain: dict[str, Any] = {}
    for key_node, value_node in node.value:
        below = (*path, str(key_node.value) if isinstance(key_node, yaml.ScalarNode) else "?")
        line = key_node.start_mark.line + 1
        if below in found.lines:
            found.problem(below, f"is said twice (here and in line {line})")
            continue
        found.lines[below] = line
        plain[str(below[-1])] = _plain(value_node, below, found, seen)
    return plain


def _scalar(node: yaml.ScalarNode) -> Any:
    """YAML 1.1 reads 1:30 as 90, 010 as 8 and 2026-11-22 as an object; here they stay the texts that they are."""
    kind, text = node.tag.rpartition(":")[2], node.value
    if kind == "null":
        return None
    if kind == "bool":
        return text.lower() in ("true", "yes", "on")
    if kind == "int" and re.fullmatch(r"0|-?[1-9][0-9]{0,17}", text):
        return int(text)
    if kind == "float" and re.fullmatch(r"-?[0-9]+\.[0-9]+", text):
        return float(text)
    return text


def check(found: PolicyFile) -> None:
    """Hold a file against the model, and its reply rows against their own examples."""
    wrong: set[_Path] = set()
    if not well_formed(found.data):
        from engine.flow.policy_shape import shape_errors  # noqa: PLC0415 - it imports pydantic

        for error in shape_errors(found.data):
            found.problem(error["loc"], _sentence(error))
            wrong.add(error["loc"][:2])
    rows = [((name, index), row) for name in ("replies", "sources") for index, row in enumerate(_list(found, name))]
    for place, row in rows:
        if place in wrong or place[:1] in wrong:
            continue
        if place[0] == "replies":
            _check_reply(found, place, row)
            continue
        for name in row["for"]:
            if name not in KNOWN | SECTIONS:
                found.problem((*place, "for"), f"{name!r} is no key or section{_nearest(name, SECTIONS)}")


def well_formed(data: Mapping[str, Any]) -> bool:
    """Whether each key is known and each value reads; where not, `policy_shape` says what is wrong."""
    rows = {"replies": (ROW_KEYS, ("reason", "examples")), "sources": (SOURCE_KEYS, ("for", "say"))}
    return (
        _reads(NAME, data.get("provider"))
        and _section_reads("", {key: value for key, value in data.items() if key not in ("provider", *rows)})
        and all(
            given is None or (isinstance(given, list) and all(_row_reads(row, *of) for row in given))
            for given, of in ((data.get(key), of) for key, of in rows.items())
        )
    )


def _section_reads(above: str, given: Any) -> bool:
    return isinstance(given, dict) and all(
        "." not in key and _value_reads(f"{above}{key}", value) for key, value in given.items()
    )


def _value_reads(path: str, value: Any) -> bool:
    if value is None:
        return path in SECTIONS or path in _KINDS
    return _section_reads(f"{path}.", value) if path in SECTIONS else path in _KINDS and _reads(_KINDS[path], value)


def _row_reads(row: Any, kinds: Mapping[str, Kind], required: Sequence[str]) -> bool:
    return (
        isinstance(row, dict)
        and all(key in row for key in required)
        and all(key in kinds and _reads(kinds[key], value) for key, value in row.items())
    )


def _reads(kind: Kind, value: Any) -> bool:
    try:
        kind.read(value)
    except GrammarError:
        return False
    return True


def _list(found: PolicyFile, name: str) -> list[Any]:
    rows = found.data.get(name)
    return rows if isinstance(rows, list) else []


def _sentence(error: Mapping[str, Any]) -> str:
    path, given = error["loc"], error["input"]
    names = _names_below(path[:-1])
    match error["type"]:
        case "value_error":
            return str(error["ctx"]["error"])
        case "extra_forbidden":
            return f"unknown key{_nearest(str(path[-1]), names)}"
        case "missing":
            return "is missing"
        case "dict_type":
            return f"{given!r} is not a map (expected keys below it: {', '.join(_names_below(path))})"
        case "list_type":
            return f"{given!r} is not a list (expected one `- ...` a line)"
        case _:
            return f"{given!r}: {error['msg']}"


def _names_below(path: _Path) -> list[str]:
    """The keys that may stand below a path, in the order of the table."""
    if path[:1] in (("replies",), ("sources",)):
        return list(ROW_KEYS if path[0] == "replies" else SOURCE_KEYS)
    above = "".join(f"{part}." for part in path)
    ordered = ["provider", *(key.path for key in KEYS), "sources", "replies"]
    return list(dict.fromkeys(name[len(above) :].split(".")[0] for name in ordered if name.startswith(above)))


def _nearest(name: str, names: Iterable[str]) -> str:
    known = list(names)
    close = difflib.get_close_matches(name, known, 1)
    return f" (did you mean {close[0]!r}?)" if close else f" (expected one of {', '.join(sorted(known))})"


def _check_reply(found: PolicyFile, place: _Path, values: Mapping[str, Any]) -> None:
    from engine.core.classify import classify  # noqa: PLC0415 - its tables are for who checks, not for each start

    row = reply_row(values)
    if not (row.code or row.enhanced or row.text or row.pattern):
        found.problem(place, "asks for nothing (expected at least one of code, enhanced, text, pattern)")
        return
    invalid = REASONS[row.reason].category is Category.INVALID
    if invalid and ((row.code or 500) < 500 or row.enhanced[:1] in ("2", "4") or (row.stage or RCPT) is not RCPT):
        found.problem(place, f"{row.reason} is a verdict of invalid, which only a 5yz at RCPT can give")
        return
    for index, example in enumerate(row.examples):
        path = (*place, "examples", index)
        try:
            reply = _reply(example)
        except ProtocolError:
            found.problem(path, f"{example!r} is not a reply (expected the whole line, as in '550 5.1.1 No such user')")
            continue
        judged = classify(reply.code, reply.enhanced, reply.text, row.stage or RCPT, [row])
        if not judged.rule.startswith("provider"):
            found.problem(path, f"the row does not match its own example {example!r}")


def _reply(example: str) -> Reply:
    parser = ReplyParser()
    parser.feed("".join(f"{line}\r\n" for line in example.splitlines()).encode())
    reply = parser.next()
    if reply is None or parser.unread:
        raise ProtocolError("not_a_reply", "an example holds one whole reply")
    return reply
