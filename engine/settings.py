"""What the engine is told from outside: flags, environment, and the settings file.

1. Precedence: flag, environment (`ENGINE_<OPTION>`; a secret also from the file that `ENGINE_<OPTION>_FILE` names),
   settings file, default.
2. The settings file is `--config FILE`, else `$XDG_CONFIG_HOME/engine/engine.yaml`, else `/etc/engine/engine.yaml`.
   A file that was named must be there; the other two may be missing.
3. Nothing is guessed: an unknown key, a wrong type or a missing field is a SettingsError that names file, line, field
   and what is expected.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import yaml

SECTIONS = ("identity", "rbl", "alerts", "push", "monitor")
OPTIONS = (
    "policies",
    "suppress",
    "concurrency",
    "deadline",
    "dns",
    "smtp_port",
    "allow_private",
    "metrics",
    "state",
)
_T = TypeVar("_T")


class SettingsError(ValueError):
    """Something that the caller has to put right; the message is one sentence for him."""


# libyaml is five times faster; PyYAML may be built without it.
class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """Plain YAML; a time stays the text that it was."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


@dataclass(frozen=True, slots=True)
class Part:
    """A piece of a YAML or JSON file that knows where it stands."""

    file: str
    value: Any
    lines: Mapping[tuple[str | int, ...], int] = field(default_factory=dict, repr=False)
    path: tuple[str | int, ...] = ()

    def wrong(self, what: str) -> SettingsError:
        """The error for this place."""
        place, where = self.path, self.file
        while place and place not in self.lines:
            place = place[:-1]
        line = self.lines.get(place, 0)
        if line:
            where += f":{line}"
        name = "".join(f"[{each + 1}]" if isinstance(each, int) else f".{each}" for each in self.path).lstrip(".")
        return SettingsError(": ".join(filter(None, (where, name, what))))

    def keys(self, known: Sequence[str]) -> Part:
        """Itself, if it is a mapping with no other keys than these."""
        if not isinstance(self.value, dict):
            raise self.wrong(f"a mapping is expected, with {', '.join(known)}")
        for key in self.value:
            if key not in known:
                near = difflib.get_close_matches(str(key), known, n=1)
                hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(known)}"
                raise self.at(key).wrong(f"there is no such field ({hint})")
        return self

    def at(self, key: str | int) -> Part:
        """The part below it; its value is None where there is none."""
        below = self.value.get(key) if isinstance(key, str) and isinstance(self.value, dict) else None
        if isinstance(key, int):
            below = self.value[key]
        return Part(self.file, below, self.lines, (*self.path, key))

    def each(self) -> list[Part]:
        """Its items: those of a list, or itself alone."""
        return [self.at(number) for number in range(len(self.value))] if isinstance(self.value, list) else [self]

    def text(self, *, needed: str = "") -> str:
        """Its one line of text; `needed` says what is missing where there is none."""
        if self.value is None or self.value == "":
            if needed:
                raise self.wrong(f"is missing ({needed})")
            return ""
        if not isinstance(self.value, str) or not self.value.strip() or not self.value.isprintable():
            raise self.wrong(f"{self.value!r} is not one line of text")
        return self.value.strip()

    def parsed(self, parse_: Callable[[Any], _T]) -> _T:
        """What `parse_` makes of its value; its ValueError is told with the place."""
        try:
            return parse_(self.value)
        except ValueError as error:
            raise self.wrong(str(error)) from None


@dataclass(frozen=True, slots=True)
class Configuration:
    """The settings file and the environment, asked option by option. Names are those of the flags, with underscores."""

    file: Part
    environ: Mapping[str, str]

    def option(self, name: str, flag: Any = None, default: Any = None) -> Any:
        """The flag if given (not None, not empty), else environment (text), else the file's value, else the default."""
        for value in (flag, self.environ.get(f"ENGINE_{name.upper()}"), self.file.at(name).value):
            if value is not None and value not in ("", ()):
                return value
        return default

    def secret(self, name: str) -> str | None:
        """A secret from `ENGINE_<NAME>` or the file that `ENGINE_<NAME>_FILE` names; never from a flag."""
        variable = f"ENGINE_{name.upper()}"
        named = self.environ.get(f"{variable}_FILE")
        if self.environ.get(variable) or not named:
            return self.environ.get(variable) or None
        return read_text(Path(named), f"{variable}_FILE").strip()

    def section(self, name: str) -> Part:
        """One of the SECTIONS; its value is None where the file has none."""
        return self.file.at(name)


def load_configuration(path: Path | None = None, environ: Mapping[str, str] = os.environ) -> Configuration:
    """The settings file (`path` is `--config`) with the environment; raises SettingsError."""
    found = path if path is not None else next((each for each in config_paths(environ) if each.is_file()), None)
    part = read_yaml(found) if found is not None else Part("", {})
    if part.value is None:
        part = Part(part.file, {})
    return Configuration(part.keys((*SECTIONS, *OPTIONS)), environ)


def config_paths(environ: Mapping[str, str] = os.environ) -> tuple[Path, ...]:
    """Where a settings file is looked for when none is named, in this order."""
    home = environ.get("XDG_CONFIG_HOME") or str(Path(environ.get("HOME") or "~").expanduser() / ".config")
    return (Path(home) / "engine" / "engine.yaml", Path("/etc/engine/engine.yaml"))


def read_yaml(path: Path) -> Part:
    """A YAML or JSON file, with the line of each of its parts; raises SettingsError."""
    text = read_text(path)
    lines: dict[tuple[str | int, ...], int] = {}
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return Part(str(path), None)
        _note_lines(node, (), lines)
        return Part(str(path), loader.construct_document(node), lines)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 0
        raise SettingsError(f"{path}:{line}: this is not YAML: {error.problem}") from None
    except (yaml.YAMLError, ValueError) as error:
        raise SettingsError(f"{path}: this is not YAML: {error}") from None
    finally:
        loader.dispose()


def read_text(path: Path, named_by: str = "") -> str:
    """A file's text; raises SettingsError that says who named the file."""
    try:
        return path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = (error.strerror or str(error)) if isinstance(error, OSError) else "the file is not UTF-8 text"
        raise SettingsError(
            f"{path}: {why[0].lower()}{why[1:]}" + (f" (named by {named_by})" if named_by else "")
        ) from None


def _note_lines(node: yaml.Node, path: tuple[str | int, ...], lines: dict[tuple[str | int, ...], int]) -> None:
    lines[path] = node.start_mark.line + 1
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            below = (*path, str(key.value))
            if below in lines:
                raise ValueError(f"line {key.start_mark.line + 1}: {key.value} is given twice")
            _note_lines(value, below, lines)
            lines[below] = key.start_mark.line + 1
    elif isinstance(node, yaml.SequenceNode):
        for number, value in enumerate(node.value):
            _note_lines(value, (*path, number), lines)
