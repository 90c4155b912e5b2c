"""`engine policy`: check, explain and show what the policy files say."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
import textwrap
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import click
import yaml

from engine.cli.options import name_server
from engine.cli.simulate import simulate
from engine.cli.tables import limit_lines, limit_values
from engine.core.address import Address, parse
from engine.core.ceiling import USUAL_REFUSED, across_sites, ceilings
from engine.core.limit import narrowed
from engine.core.policy import DEFAULT_NAME, Policy, PolicySet, Source, plain_host
from engine.core.route import Route
from engine.flow.lane_limits import limit_of, read_limits
from engine.flow.policies import MODEL_ORIGIN, PolicyProblems, check_policies, load_policies
from engine.flow.policy_model import KEYS, row_values, texts
from engine.store.database import StoreError
from engine.store.state import Order, default_path

_WIDTH = 100  # of a printed table, for a pipe as for a terminal; a narrower terminal gets its own
_NARROWEST = 16  # of a column that is wrapped
_SILENT = (MODEL_ORIGIN, f"{DEFAULT_NAME}.yaml")  # a key left unset by these is not worth a line
_LIST_SIZES = (1_000, 10_000)
_Found = TypeVar("_Found")

_directories = click.option(
    "--policies",
    "directories",
    metavar="DIR",
    multiple=True,
    type=click.Path(file_okay=False, exists=True, path_type=Path),
    help="Files that lie over the shipped ones, key by key; may be given more than once.",
)


@click.group()
def policy() -> None:
    """Check, explain and show provider policies."""


policy.add_command(simulate)


@policy.command("check", short_help="Read all policies and tell everything that is wrong.")
@click.argument("more", metavar="[DIR]...", nargs=-1, type=click.Path(file_okay=False, exists=True, path_type=Path))
@_directories
def check_command(more: Sequence[Path], directories: Sequence[Path]) -> None:
    """Read the shipped policies and those of every DIR over them, and tell everything that is wrong.

    Exit 0: all is well. Exit 2: it is not, and each problem is named with file, line and key.
    """
    found, count = _loaded(lambda: check_policies([*directories, *more]))
    patterns = sum(len(one.match_mx) for one in found.policies)
    rows = sum(len(one.replies) for one in (found.default, *found.policies))
    print(
        f"ok: {count} files, {len(found.policies)} providers and the default, "
        f"{patterns} patterns of mail hosts, {rows} reply rows (etag {found.etag})"
    )


@policy.command(short_help="Print the effective values of one policy.")
@click.argument("name")
@_directories
def show(name: str, directories: Sequence[Path]) -> None:
    """Print the effective values of one policy, as a file that says the same.

    NAME is a provider, one of its aliases, or a mail host name.
    """
    found = _loaded(lambda: load_policies(directories))
    print(
        yaml.dump(_as_file(_named(found, name)), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110), end=""
    )


@policy.command()
def schema() -> None:
    """Print the JSON Schema of a policy file, for editors."""
    from engine.flow.policy_shape import json_schema  # noqa: PLC0415 - it imports pydantic

    print(json.dumps(json_schema(), indent=2))


@policy.command(short_help="Tell which policy an address falls under, and what it allows.")
@click.argument("target", metavar="ADDRESS|DOMAIN")
@click.option(
    "--mx",
    "hosts",
    metavar="HOST",
    multiple=True,
    help="A mail host, instead of asking DNS for them; may be given more than once.",
)
@click.option("--offline", is_flag=True, help="Go by the domains that the policies name, and ask no DNS.")
@click.option(
    "--dns", "servers", metavar="HOST:PORT", multiple=True, help="Name servers to ask; the system's, if not given."
)
@click.option(
    "--addresses",
    "sizes",
    metavar="N",
    multiple=True,
    type=click.IntRange(1),
    default=_LIST_SIZES,
    help="Tell the hours for a list of N addresses; may be given more than once; 1,000 and 10,000, if not given.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option(
    "--state",
    type=click.Path(dir_okay=False, path_type=Path),
    help="The identity state that holds the limits of lanes; this machine's, if not given.",
)
@_directories
def explain(
    target: str,
    hosts: Sequence[str],
    offline: bool,
    servers: Sequence[str],
    sizes: Sequence[int],
    as_json: bool,
    state: Path | None,
    directories: Sequence[Path],
) -> None:  # fmt: skip
    """Tell which policy an address or domain falls under, why, and what follows from it.

    Shows the provider's terms, every value with the file it came from, limits of its lanes that are in force, where
    the values come from, and how many addresses an hour they allow.
    """
    domain = _domain(target)
    for host in hosts:
        if not re.fullmatch(r"(?=.*[a-z])[a-z0-9_-]+(\.[a-z0-9_-]+)+", plain_host(host)):
            raise click.UsageError(f"--mx {host}: expected the name of a mail host, for example mx.example.com")
    found = _loaded(lambda: load_policies(directories))
    names, problem = (tuple(map(plain_host, hosts)), "") if hosts or offline else _resolve(domain, servers)
    if names:
        chosen, why = found.for_hosts(names), _why(found, names)
    else:
        chosen = found.for_domain(domain) or found.default
        why = f"it names {domain} among its domains" if chosen is not found.default else f"no policy names {domain}"
        why += f"; {problem}" if problem else "; DNS was not asked"
    claims = [(name, found.claim(name)) for name in names]
    rows = [(name, claim[0].name if claim else DEFAULT_NAME, claim[1] if claim else "") for name, claim in claims]
    limits = [order for order in _limits(state) if order.arguments["provider"] == chosen.name]
    # Those for one identity narrow its lanes only: they are listed, and the values are what everybody has.
    chosen = narrowed(chosen, [limit_of(order) for order in limits if not order.identity])
    shown = Shown(domain, rows, chosen, why, limits, sizes)
    if as_json:
        print(json.dumps(_explanation(shown), indent=2, ensure_ascii=False))
    else:
        _print_explanation(shown)


@dataclass(frozen=True, slots=True)
class Shown:
    """What an explanation is made of; `hosts` are (name, policy, pattern)."""

    domain: str
    hosts: Sequence[tuple[str, str, str]]
    chosen: Policy
    why: str
    limits: Sequence[Order]
    sizes: Sequence[int]


def _limits(state: Path | None) -> list[Order]:
    """The limits of lanes in force on this machine; without a readable state, none, which is said."""
    try:
        return read_limits(state or default_path(os.environ), time.time())
    except StoreError as error:
        click.echo(f"engine: limits of lanes are not shown: {error}", err=True)
        return []


def _loaded(load: Callable[[], _Found]) -> _Found:
    try:
        return load()
    except PolicyProblems as error:
        click.echo(error, err=True)
        count = len(error.problems)
        click.echo(f"{count} problem{'s' if count > 1 else ''}; nothing was loaded.", err=True)
        sys.exit(2)


def _named(found: PolicySet, name: str) -> Policy:
    chosen = found.named(name)
    if chosen is None:
        known = ", ".join(one.name for one in (found.default, *sorted(found.policies, key=lambda one: one.name)))
        raise click.UsageError(f"no policy is named {name!r} or claims it as a mail host (there are {known})")
    return chosen


def _domain(target: str) -> str:
    address = parse(target if "@" in target else f"postmaster@{target}")
    if isinstance(address, Address):
        return address.domain
    raise click.UsageError(f"{target!r} is neither an address nor a domain ({address.detail})")


def _resolve(domain: str, servers: Sequence[str]) -> tuple[tuple[str, ...], str]:
    """The domain's mail host names, or why there are none."""
    from engine.net.resolver import Resolver  # noqa: PLC0415 - it loads c-ares, which the other commands don't need

    resolver = Resolver([name_server(text) for text in servers] or None, allow_private=True)  # nothing is dialled here
    try:
        route: Route = resolver.route(domain)
    finally:
        resolver.close()
    return route.names, f"DNS gave no mail host ({route.reason})" if not route.names else ""


def _why(found: PolicySet, names: Sequence[str]) -> str:
    claiming = {policy.name if policy else DEFAULT_NAME for policy in map(found.claiming, names)}
    if claiming == {DEFAULT_NAME}:
        return "no policy claims its mail hosts"
    if len(claiming) > 1:
        return f"its mail hosts fall under {' and '.join(sorted(claiming))}, and no policy claims them all"
    return "it claims every mail host"


# --- what is shown


class _Dumper(yaml.SafeDumper):
    """Lists of plain values on one line, maps one key a line."""


def _represent_list(dumper: _Dumper, data: list[Any]) -> yaml.Node:
    flow = not any(isinstance(item, dict | list) for item in data) and len(repr(data)) < _WIDTH
    return dumper.represent_sequence("tag:yaml.org,2002:seq", data, flow_style=flow)


_Dumper.add_representer(list, _represent_list)


def _as_file(chosen: Policy) -> dict[str, Any]:
    """The nested maps of a file that says what the policy means."""
    tree: dict[str, Any] = {"provider": chosen.name}
    for path, value in texts(chosen).items():
        if value is None or (value == [] and path in ("aliases", "match.mx", "match.domains", "pools")):
            continue
        *above, last = path.split(".")
        node = tree
        for part in above:
            node = node.setdefault(part, {})
        node[last] = value
    if sources := _telling(chosen):
        tree["sources"] = [_source_values(one) for one in sources]
    if chosen.replies:
        tree["replies"] = [row_values(row) for row in chosen.replies]
    return tree


def _source_values(one: Source) -> dict[str, Any]:
    values = {"for": list(one.keys), "say": one.say, "see": one.see, "read": one.read}
    return {name: value for name, value in values.items() if value}


def _telling(chosen: Policy) -> list[Source]:
    """The sources that speak of a value in force, not of one that a later layer replaced."""
    return [
        one
        for one in chosen.sources
        if any(
            chosen.origin.get(path) == one.file and (path == key or path.startswith(f"{key}."))
            for key in one.keys
            for path in chosen.origin
        )
    ]


def _explanation(shown: Shown) -> dict[str, Any]:
    chosen = shown.chosen
    start, top = ceilings(chosen)
    values = texts(chosen)
    return {
        "domain": shown.domain,
        "hosts": [{"host": name, "policy": owner, "pattern": pattern} for name, owner, pattern in shown.hosts],
        "policy": chosen.name,
        "why": shown.why,
        "limits": [limit_values(order) for order in shown.limits],
        "notes": _notes(chosen),
        "values": {key.path: {"value": values[key.path], "from": chosen.origin[key.path]} for key in KEYS},
        "sources": [_source_values(one) | {"file": one.file} for one in _telling(chosen)],
        "ceilings": {
            "refused": USUAL_REFUSED,
            "each": chosen.scope,
            "across_sites": across_sites(chosen),
            **{
                name: {
                    "per_hour": dict(ceiling.per_hour),
                    "binding": ceiling.binding,
                    "hours": {str(size): round(ceiling.hours(size), 2) for size in shown.sizes},
                }
                for name, ceiling in (("start", start), ("ceiling", top))
            },
        },
    }


def _notes(chosen: Policy) -> list[str]:
    notes = {
        "uninformative": "RCPT replies mean nothing here: no session is opened, the result is provider_unverifiable",
        "never": "RCPT is never asked here: the result is provider_not_probed",
    }
    found = [notes[chosen.rcpt]] if chosen.rcpt in notes else []
    if chosen.pools:
        tags = " or ".join(chosen.pools)
        found.append(f"Only an identity with the pool tag {tags} may ask; others get provider_not_probed")
    if chosen.control.refuses_unknown_domains:
        known = ", ".join(sorted(chosen.control.refuses_unknown_domains))
        found.append(f"Known to refuse unknown recipients, so that no control is asked: {known}")
    return found


def _print_explanation(shown: Shown) -> None:
    chosen = shown.chosen
    _sentence(f"{shown.domain} falls under {chosen.name}: {shown.why}")
    _table([("mail host", "policy", "by pattern"), *shown.hosts] if shown.hosts else [])
    if chosen.terms:
        print("\nTerms")
        _paragraph(chosen.terms.say, chosen.terms.see, chosen.terms.read)
    for note in _notes(chosen):
        print()
        _paragraph(note)
    values = texts(chosen)
    if shown.limits:
        print("\nLimits in force (engine lane reset lifts them)")
        print("\n".join(f"  {line}" for line in limit_lines(shown.limits)))
    worth = [
        (path, _flat(value), chosen.origin[path])
        for path, value in values.items()
        if _worth_showing(chosen, path, value)
    ]
    _table([("key", "value", "from"), *worth])
    _print_sources(_telling(chosen))
    if chosen.rcpt == "informative":
        _print_ceilings(chosen, shown.sizes)


def _worth_showing(chosen: Policy, path: str, value: Any) -> bool:
    return not path.startswith("terms.") and (value not in (None, []) or chosen.origin[path] not in _SILENT)


def _flat(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "none" if value is None else str(value)


def _print_sources(sources: Sequence[Source]) -> None:
    print("\nWhere the values come from")
    for one in sources:
        _paragraph(f"{', '.join(one.keys)} ({one.file})")
        _paragraph(one.say, one.see, one.read, indent="    ")


def _print_ceilings(chosen: Policy, sizes: Sequence[int]) -> None:
    start, top = ceilings(chosen)
    each = "each site" if chosen.scope == "site" else "all sites together"
    print()
    _sentence(f"Addresses an hour for {each}, if {USUAL_REFUSED:.0%} are refused (controls and retries come on top)")
    rows = [("limit", "at start", "at ceiling", "")]
    for key in start.per_hour:
        marks = [word for word, ceiling in (("start", start), ("ceiling", top)) if ceiling.binding == key]
        rows.append(
            (
                key,
                f"{start.per_hour[key]:,.0f}",
                f"{top.per_hour[key]:,.0f}",
                f"binds at {' and '.join(marks)}" if marks else "",
            )
        )
    for size in sizes:
        rows.append((f"hours for {size:,} addresses", f"{start.hours(size):,.1f}", f"{top.hours(size):,.1f}", ""))
    _table(rows, numbers=(1, 2), space=False)
    if (total := across_sites(chosen)) is not None:
        print(f"  across_sites caps all sites together at {total:,.0f} addresses an hour")


def _paragraph(text: str, see: str = "", read: str = "", *, indent: str = "  ") -> None:
    print(textwrap.fill(text, _width(), initial_indent=indent, subsequent_indent=indent))
    if see:
        print(f"{indent}{see}" + (f" (read {read})" if read else ""))


def _sentence(text: str) -> None:
    print(textwrap.fill(text, _width()) if sys.stdout.isatty() else text)


def _width() -> int:
    return min(_WIDTH, shutil.get_terminal_size((_WIDTH, 0)).columns) if sys.stdout.isatty() else _WIDTH


def _table(rows: Sequence[tuple[str, ...]], *, numbers: Sequence[int] = (), space: bool = True) -> None:
    """Aligned columns; a long cell of the second column is wrapped below itself."""
    if not rows:
        return
    if space:
        print()
    others = sum(max(map(len, column)) + 2 for place, column in enumerate(zip(*rows, strict=True)) if place != 1)
    wrap_at = _WIDTH // 2 if _width() == _WIDTH else max(_NARROWEST, _width() - 2 - others)
    wrapped = [
        [textwrap.wrap(cell, wrap_at) or [""] if column == 1 else [cell] for column, cell in enumerate(row)]
        for row in rows
    ]
    widths = [max(len(line) for row in wrapped for line in row[column]) for column in range(len(rows[0]))]
    for row in wrapped:
        for index in range(max(map(len, row))):
            cells = [lines[index] if index < len(lines) else "" for lines in row]
            aligned = [
                cell.rjust(width) if column in numbers else cell.ljust(width)
                for column, (cell, width) in enumerate(zip(cells, widths, strict=True))
            ]
            print(f"  {'  '.join(aligned)}".rstrip())
