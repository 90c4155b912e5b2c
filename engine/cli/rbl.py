"""`engine rbl`: what block lists say of addresses and domains. Its commands are files beside this one.

Exit codes of `check` and `verify-lists`, beside the usual ones (0 done and clean, 1 failed, 2 wrong use): LISTED and
UNCHECKED, so that a script tells a listing from a gap, and both from a machine without DNS.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import reduce
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar

import click

from engine.cli.options import name_server
from engine.flow.job import WrongUse
from engine.reputation.checker import Checker
from engine.reputation.diagnosis import NOWHERE
from engine.reputation.query import QueryError, Server
from engine.reputation.registry import Registry, load_registry
from engine.settings import load_configuration

LISTED = 3
UNCHECKED = 4
COMMANDS = {  # name -> (module, object, one line for the overview)
    "check": ("engine.cli.rbl_check", "check", "Ask every block list about addresses and domains, now."),
    "lists": ("engine.cli.rbl_lists", "lists", "Show the lists that are known, and which of them are asked."),
    "verify-lists": ("engine.cli.rbl_lists", "verify_lists", "Say which lists can be used from this resolver."),
    "events": ("engine.cli.rbl_events", "events", "Show confirmed listings, and what to do about each."),
    "close": ("engine.cli.rbl_events", "close", "Close an event by hand."),
    "delist": ("engine.cli.rbl_events", "delist", "Track the requests that lead off a list."),
}
_F = TypeVar("_F", bound=Callable[..., Any])


class _Commands(click.Group):
    """Loads a command's file when it is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module, name, _ = COMMANDS[cmd_name]
        command: click.Command = getattr(import_module(module), name)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, _, line) in COMMANDS.items()])


@click.group(cls=_Commands)
def rbl() -> None:
    """Ask block lists about addresses and domains, and believe only those that work.

    A list whose terms need a key, a registration or a statement of yours is not asked before the section `rbl` of the
    settings says so; it is always named as not checked. Nothing is ever called clean while a critical list is not.
    """


_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
_LISTS = (
    click.option("--lists", "files", multiple=True, metavar="FILE", type=_FILE,
                 help="Lists of your own, over the shipped ones, in the same form; may be given more than once."),
    click.option("--force", is_flag=True, help="Take lists too whose zones are denied: dead ones and fakes."),
    click.option("--config", type=click.Path(dir_okay=False, path_type=Path), help="The settings file."),
    click.option("--lab", is_flag=True, help="Ask the bundled lab's block lists, on loopback, and no others."),
)  # fmt: skip
_DNS = (
    click.option("--dns", multiple=True, metavar="HOST:PORT", help="Name servers to ask; the system's, if not given."),
)


def list_options(command: _F) -> _F:
    """The options that say which lists are meant."""
    return reduce(lambda inner, each: each(inner), reversed(_LISTS), command)


def asking_options(command: _F) -> _F:
    """The options that say which lists are asked, through whom."""
    return reduce(lambda inner, each: each(inner), reversed((*_DNS, *_LISTS)), command)


@dataclass(frozen=True, slots=True)
class Lists:
    """The registry, and whom to ask."""

    registry: Registry
    servers: tuple[Server, ...] = ()
    nowhere: str = NOWHERE  # where a made-up name must not exist

    def checker(self, **options: Any) -> Checker:
        """Who asks; raises WrongUse where there is no name server."""
        try:
            return Checker(self.registry, self.servers, **options)
        except QueryError as error:
            raise WrongUse(f"{error}.") from error


@contextmanager
def opened(
    files: Sequence[Path], force: bool, config: Path | None, lab: bool, dns: Sequence[str] = ()
) -> Iterator[Lists]:
    """The lists by these options; with --lab, the lab runs as long as the context does."""
    if lab:
        yield from _lab(files, force, dns)
        return
    settings = load_configuration(config)
    given = settings.option("dns", tuple(dns), ())
    named = [each.strip() for each in given.split(",") if each.strip()] if isinstance(given, str) else given
    yield Lists(load_registry(settings, files, force=force), tuple(name_server(str(each)) for each in named))


def _lab(files: Sequence[Path], force: bool, dns: Sequence[str]) -> Iterator[Lists]:
    from engine.lab.process import LabProcess  # noqa: PLC0415 - only the lab needs these
    from engine.lab.spec import SHIPPED  # noqa: PLC0415

    if dns:
        raise WrongUse("--lab brings its own name server; --dns has no place beside it.")
    registry = load_registry(None, files, force=force, shipped=SHIPPED.with_name("lists.yaml"))
    with LabProcess(log=False) as running:
        yield Lists(registry, (running.dns,), "lab")
