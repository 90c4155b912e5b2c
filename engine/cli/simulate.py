"""`engine policy simulate`: how long a list takes under the policies, without asking a mail server."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from engine.cli.options import name_server
from engine.core.grammar import duration
from engine.core.identity import Identity
from engine.core.simulation import Assumed
from engine.flow.job import WrongUse
from engine.flow.policies import load_policies

if TYPE_CHECKING:
    from engine.flow.simulate import Facts, Listed, Plan, Rehearsed

_FILE = click.Path(dir_okay=False, path_type=Path)


@click.command(short_help="Tell how long a list would take, without asking a mail server.")
@click.argument("source", metavar="LIST")
@click.option(
    "--refused",
    default="8%",
    metavar="SHARE",
    help="Addresses that are refused; 8%, if not given. Half and twice as many are told too.",
)
@click.option(
    "--tempfail",
    default="3%",
    metavar="SHARE",
    help="Addresses that fail for a while, to the end of their ladder; 3%, if not given.",
)
@click.option(
    "--greylisted",
    default="0%",
    metavar="SHARE",
    help="Domains that greylist, among those that no provider claims; 0%, if not given.",
)
@click.option(
    "--rtt", default="150ms", metavar="TIME", help="A round trip, server's work included; 150ms, if not given."
)
@click.option("--offline", is_flag=True, help="Ask no DNS: go by stored facts and the domains that policies name.")
@click.option("--column", metavar="NAME", help="The address column; found by itself where it can be.")
@click.option(
    "--identity",
    type=_FILE,
    metavar="FILE",
    help="Who would ask: a YAML file; else one with the limits that every identity has.",
)
@click.option("--pool", "pools", metavar="TAG", multiple=True, help="A pool tag of the identity that would ask.")
@click.option("--dns", "servers", metavar="HOST:PORT", multiple=True, help="Name server; default: the system's.")
@click.option(
    "--state", type=_FILE, help="Where facts are stored; only read; $ENGINE_STATE, or the user's state folder."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--policies", "directories", metavar="DIR", multiple=True,
              type=click.Path(file_okay=False, exists=True, path_type=Path),
              help="Files that lie over the shipped ones, key by key; may be given more than once.")  # fmt: skip
def simulate(source: str, **flags: Any) -> None:
    """Tell how long the addresses of LIST (CSV, JSONL or lines; - is stdin) would take in enhanced mode.

    The engine's own schedule runs through simulated time, at half, once and twice the refused share. DNS is asked for
    mail hosts, unless --offline; no mail server is asked anything.
    """
    from engine.flow.intake import open_intake  # noqa: PLC0415 - the other policy commands need none of these
    from engine.flow.simulate import plan, read_list, rehearse  # noqa: PLC0415

    assumed = Assumed(
        _share(flags["refused"], "--refused"), _share(flags["tempfail"], "--tempfail"),
        _share(flags["greylisted"], "--greylisted"), _time(flags["rtt"], "--rtt"),
    )  # fmt: skip
    if assumed.refused + assumed.tempfail > 1:
        raise WrongUse("--refused and --tempfail: together they are more than all addresses.")
    policies = load_policies(flags["directories"])
    with open_intake(source, flags["column"]) as intake:
        listed = read_list(intake)
    askers = _askers(flags["identity"], flags["pools"])
    resolver = None
    if not flags["offline"]:
        from engine.net.resolver import Resolver  # noqa: PLC0415

        servers: Sequence[str] = flags["servers"]
        resolver = Resolver([name_server(text) for text in servers] or None, allow_private=True)  # nothing is dialled
    try:
        with _facts(flags["state"]) as facts:
            found = plan(listed.domains, policies, facts, resolver=resolver, identities=askers)
    finally:
        if resolver is not None:
            resolver.close()
    told = rehearse(found.mail, assumed, policies, askers)
    if flags["as_json"]:
        print(json.dumps(_values(listed, found, told), indent=2))
    else:
        _print(listed, found, told)


def _askers(file: Path | None, pools: Sequence[str]) -> tuple[Identity, ...]:
    """Who would ask; nobody's name is shown to anybody."""
    if file is None:
        return (Identity("simulated", "", "", public_v4="192.0.2.1", pool_tags=frozenset(pools)),)
    from engine.identity_file import enabled, load_identity  # noqa: PLC0415 - as above

    if pools:
        raise WrongUse("--pool has no place beside --identity: the file names its own pool_tags.")
    return enabled(load_identity(file))


@contextmanager
def _facts(path: Path | None) -> Iterator[Facts]:
    """What the identity state knows of domains; nothing, where there is none. It is only read."""
    from engine.flow.simulate import stamped  # noqa: PLC0415
    from engine.store.database import StoreError, open_read_only  # noqa: PLC0415
    from engine.store.state import KIND, default_path, read_facts  # noqa: PLC0415

    where = path or default_path(os.environ)
    if path is None and not where.exists():
        yield lambda _: {}
        return
    try:
        with open_read_only(where, KIND) as conn:
            yield stamped(lambda domains, now: read_facts(conn, domains, now))
    except StoreError as error:
        raise WrongUse(str(error)) from error


def _share(text: str, option: str) -> float:
    """A share such as `8%` or `0.08`."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(%?)", text.strip())
    value = float(found[1]) / (100 if found[2] else 1) if found else -1.0
    if not 0 <= value <= 1:
        raise WrongUse(f"{option} {text}: expected a share from 0% to 100%, for example 8%.")
    return value


def _time(text: str, option: str) -> float:
    found = re.fullmatch(r"(\d+(?:\.\d+)?)ms", text.strip())
    try:
        return float(found[1]) / 1000 if found else duration(text)
    except ValueError as error:
        raise WrongUse(f"{option}: {error}; a time below a second is written 150ms.") from error


def _values(listed: Listed, found: Plan, told: Rehearsed) -> dict[str, Any]:
    from engine.flow.simulate import FACTORS  # noqa: PLC0415

    def hours(values: Sequence[float]) -> dict[str, float]:
        return {f"{factor:g}": round(value, 2) for factor, value in zip(FACTORS, values, strict=True)}

    assumed = told.assumed
    return {
        "assumed": {
            "refused": assumed.refused, "tempfail": assumed.tempfail, "greylisted": assumed.greylisted,
            "rtt_s": assumed.rtt_s,
        },
        "addresses": sum(listed.domains.values()), "domains": len(listed.domains), "not_addresses": listed.bad,
        "repeated": listed.repeated,
        "providers": [
            {
                "provider": row.provider, "addresses": row.addresses, "sites": row.sites, "hours": hours(row.hours),
                "binding": row.binding,
            }
            for row in told.rows
        ],
        "hours": hours(told.hours), "answered": round(told.answered, 4),
        "not_asked": [
            {"policy": policy, "reason": reason, "detail": detail, "addresses": count}
            for (policy, reason, detail), count in found.ended.items()
        ],
        "unresolved": {"addresses": found.unresolved, "domains": found.unresolved_domains},
    }  # fmt: skip


def _print(listed: Listed, found: Plan, told: Rehearsed) -> None:
    from engine.cli.tables import aligned, assumed_text, hours, share  # noqa: PLC0415
    from engine.flow.simulate import FACTORS  # noqa: PLC0415

    print(f"Simulated, no mail server was asked. Assumed: {assumed_text(told.assumed)}.")
    print(f"{sum(listed.domains.values())} addresses at {len(listed.domains)} domains;", end=" ")
    print(f"{listed.bad} rows are no address, {listed.repeated} came before.")
    if told.rows:
        shares = [f"at {share(told.assumed.times(factor).refused)} refused" for factor in FACTORS]
        asked, sites = sum(row.addresses for row in told.rows), sum(row.sites for row in told.rows)
        table = [("provider", "addresses", "sites", *shares, "bound by")]
        table += [
            (row.provider, str(row.addresses), str(row.sites), *map(hours, row.hours), row.binding) for row in told.rows
        ]
        table.append(("the list", str(asked), str(sites), *map(hours, told.hours), told.rows[0].provider))
        print("\n" + "\n".join(aligned(table, right=range(1, 6))))
        print(f"\n{share(told.answered)} of the addresses asked are answered.")
    for (policy, reason, detail), count in sorted(found.ended.items(), key=lambda each: -each[1]):
        print(f"Not asked: {count} of {policy}: {reason}{f' ({detail})' if detail else ''}.")
    if found.unresolved:
        print(
            f"Unresolved: {found.unresolved} addresses at {found.unresolved_domains} domains, "
            "whose mail hosts are not known without DNS; they are in no number above."
        )
