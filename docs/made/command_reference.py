"""`docs/command-reference.md`: every command with its options, as `--help` has them."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator

import click

from engine.cli.main import COMMANDS, cli

_HEAD = """# Command reference

Made from the commands in `engine/cli` by `make docs`; don't edit it here. [Command line](command-line.md) explains what
needs more than a line: exit codes, what a run prints and logs, settings file and environment.

`engine COMMAND --help` (or `-h`) shows the same. `--version` and `--debug` stand before the command, all other options
behind it.
"""
_WIDTH = 110


def page() -> str:
    """The whole page."""
    return _HEAD + "".join(_section(*each) for each in commands())


def commands(
    command: click.Command = cli, name: str = "engine", within: click.Context | None = None
) -> Iterator[tuple[str, click.Command, click.Context]]:
    """Every command with its full name, groups before what is in them."""
    context = click.Context(command, info_name=name.rpartition(" ")[2], parent=within)
    yield name, command, context
    if isinstance(command, click.Group):
        for each in command.list_commands(context):
            below = command.get_command(context, each)
            assert below is not None
            yield from commands(below, f"{name} {each}", context)


def _section(name: str, command: click.Command, context: click.Context) -> str:
    usage = " ".join([name, *command.collect_usage_pieces(context)])
    parts = [f"## {name}", f"```text\n{usage}\n```", *_prose(command.help or "")]
    if isinstance(command, click.Group):
        parts.append("\n".join(_below(name, command, context)))
    rows = [_row(option, context) for option in command.params if isinstance(option, click.Option)]
    if rows:
        parts.append("\n".join(["| option | meaning |", "| --- | --- |", *rows]))
    return "\n" + "\n\n".join(parts) + "\n"


def _prose(text: str) -> Iterator[str]:
    """The paragraphs of a help text; what the terminal must not wrap is code."""
    for paragraph in inspect.cleandoc(text).split("\n\n"):
        if paragraph.startswith("\b"):
            yield f"```text\n{inspect.cleandoc(paragraph[1:])}\n```"
        else:
            yield _marked(paragraph)


def _below(name: str, group: click.Group, context: click.Context) -> Iterator[str]:
    """The commands of a group, as links."""
    for each in group.list_commands(context):
        below = group.get_command(context, each)
        assert below is not None
        line = COMMANDS[each][2] if group is cli else below.get_short_help_str(_WIDTH)
        yield f"- [`{name} {each}`](#{f'{name} {each}'.replace(' ', '-')}): {_marked(line)}"


def _row(option: click.Option, context: click.Context) -> str:
    """One option: its names as they are typed, and all that a reader has to know of it."""
    value = "" if option.is_flag else f" {_value(option, context)}"
    names = [f"`{each}{value}`" if each == option.opts[-1] else f"`{each}`" for each in option.opts]
    facts = [_marked((option.help or "").rstrip("."))]
    if option.required:
        facts.append("Needed")
    if option.multiple and not re.search("more than once|repeat", option.help or ""):
        facts.append("May be given more than once")
    if isinstance(option.type, click.IntRange):
        low, high = option.type.min, option.type.max
        facts.append(f"{low} to {high}" if high is not None else f"At least {low}")
    if option.show_default and option.default is not None:
        facts.append(f"Without it: {option.show_default if isinstance(option.show_default, str) else option.default}")
    return f"| {', '.join(names)} | {'. '.join(facts)} |".replace("\n", " ")


def _value(option: click.Option, context: click.Context) -> str:
    if option.metavar is None and isinstance(option.type, click.IntRange):
        return "N"
    return option.make_metavar(context).replace("|", "\\|")


def _marked(text: str) -> str:
    """Options, paths, names of variables and files stand out; a bar ends no cell; braces and brackets are words."""
    parts = re.split(r"(`[^`]*`)", " ".join(text.split()))
    return "".join(part if part.startswith("`") else _words(part) for part in parts).replace("|", "\\|")


def _words(text: str) -> str:
    return re.sub(r"(?<![\w`-])(--[a-z][a-z-]*|/[a-z]+z\b|/metrics|\$[A-Z_]+|\{[^}]*\})", r"`\1`", text)
