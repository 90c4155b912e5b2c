"""`engine identity`: the name under which this machine asks. What orders say of it is in `cli.identity_orders`."""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from ipaddress import ip_address
from pathlib import Path

import click
import yaml

from engine.cli.identity_orders import disable, drain, enable, quarantine, status
from engine.cli.options import name_server
from engine.cli.tables import folded
from engine.core.finding import Check, Finding
from engine.core.identity import Identity
from engine.flow.job import WrongUse
from engine.identity_file import find_identities, identity_from_flags, load_identity
from engine.net.resolver import Resolver
from engine.reputation.dns_identity import dns_identity
from engine.reputation.dns_lookup import DnsLookup
from engine.settings import SettingsError, config_paths, load_configuration, read_text

_QUESTIONS = (
    ("helo", "HELO name (a host name of yours that leads to this machine's public address)"),
    ("mail_from", "MAIL FROM (an existing mailbox of yours; never empty)"),
    ("public_ip", "Public address (what the world sees; its PTR has to name this machine)"),
)


@click.group()
def identity() -> None:
    """The name under which this machine asks."""


@identity.command(short_help="Write the identity, and say which DNS records it needs.")
@click.option("--helo", metavar="NAME", default="", help="The name to greet with.")
@click.option("--mail-from", metavar="ADDR", default="", help="An existing mailbox of yours.")
@click.option("--public-ip", metavar="IP", default="", help="The address that the world sees.")
@click.option("--bind", metavar="IP", default="", help="The local source address, where the system's choice is wrong.")
@click.option("--pool", "pools", metavar="TAG", multiple=True, help="A pool that this identity belongs to; repeatable.")
@click.option("--config", type=click.Path(path_type=Path), metavar="FILE", help="The settings file to write.")
@click.option("--force", is_flag=True, help="Replace the identity that is there.")
def init(
    helo: str, mail_from: str, public_ip: str, bind: str, pools: tuple[str, ...], config: Path | None, force: bool
) -> None:
    """Write this machine's identity to the settings file, and say which DNS records it needs.

    What no option gives is asked for, on a terminal.
    """
    answers = {"helo": helo, "mail_from": mail_from, "public_ip": public_ip}
    if sys.stdin.isatty():
        answers = {name: answers[name] or click.prompt(question) for name, question in _QUESTIONS}
    path = config or config_paths()[0]
    try:
        made = identity_from_flags(**answers, bind=bind, pools=pools)
        write_section(path, made, bind, force=force)
    except SettingsError as error:
        said = str(error).replace(" (or give --identity FILE)", "; give it, or answer on a terminal")
        click.echo(f"Error: {said}", err=True)
        sys.exit(2)
    except OSError as error:
        click.echo(f"Error: {path} can't be written: {error.strerror}; name another file with --config", err=True)
        sys.exit(2)
    click.echo(f"Written to {path}. The world has to know these names; set what is missing:\n")
    for record in records(made):
        click.echo(f"  {record}")
    click.echo(
        f"\nAnd let somebody read {made.mail_from} and, at {made.identity_domain}, postmaster and abuse: "
        "whom we disturb writes there."
    )


@identity.command(short_help="Show what the DNS says of the identity.")
@click.option("--identity", "file", type=click.Path(dir_okay=False, path_type=Path), help="The identity file.")
@click.option("--helo", metavar="NAME", default="", help="The identity by flags: the HELO name.")
@click.option("--mail-from", metavar="ADDR", default="", help="An existing mailbox of yours.")
@click.option("--public-ip", metavar="IP", default="", help="The address that the world sees.")
@click.option("--dns", multiple=True, metavar="HOST:PORT", help="Name servers to ask; the system's, if not given.")
@click.option("--allow-private", is_flag=True, help="Private addresses are no fault (test networks).")
@click.option("--config", type=click.Path(path_type=Path), metavar="FILE", help="The settings file.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
@click.option("--lab", is_flag=True, help="Look at the bundled lab's own identity.")
def check(
    file: Path | None, helo: str, mail_from: str, public_ip: str, dns: tuple[str, ...], allow_private: bool,
    config: Path | None, as_json: bool, lab: bool,
) -> None:  # fmt: skip
    """Show what the DNS says of the identity: SPF, DKIM, DMARC, reverse name, HELO name. It changes nothing.
    What block lists say of its addresses, `engine rbl check` asks.

    Exit 0: all passed. 1: something failed. 3: nothing failed, and something could not be looked up.
    """
    outcomes: set[Check] = set()
    if lab and (file or helo or mail_from or public_ip or dns):
        raise WrongUse("--lab brings its own identity and DNS; give it without those.")
    with (
        _looked_at(file, helo, mail_from, public_ip, dns, config, lab=lab) as (identities, servers),
        closing(Resolver(servers, allow_private=lab or allow_private)) as resolver,
    ):
        for each in identities:
            findings = dns_identity(each, resolver, DnsLookup(servers), allow_private=lab or allow_private)
            outcomes.update(finding.outcome for finding in findings)
            print("\n".join(_found_json(each, findings) if as_json else _found_table(each, findings)))
    sys.exit(1 if Check.FAIL in outcomes else 3 if Check.UNKNOWN in outcomes else 0)


_Looked = tuple[Sequence[Identity], Sequence[tuple[str, int]] | None]


@contextmanager
def _looked_at(
    file: Path | None,
    helo: str,
    mail_from: str,
    public_ip: str,
    dns: tuple[str, ...],
    config: Path | None,
    *,
    lab: bool,
) -> Iterator[_Looked]:
    """(identities, name servers); with `lab`, it runs as long as the context does."""
    if lab:
        from engine.lab.process import LabProcess  # noqa: PLC0415 - only the lab needs these
        from engine.lab.spec import SHIPPED  # noqa: PLC0415

        with LabProcess(log=False) as running:
            yield load_identity(SHIPPED.parent / "identity.yaml"), [running.dns]
        return
    settings = load_configuration(config)
    found = find_identities(settings, file=file, helo=helo, mail_from=mail_from, public_ip=public_ip)
    if not found:
        raise WrongUse(
            "There is no identity to look at: give --identity FILE, or --helo NAME --mail-from ADDR --public-ip IP, "
            "or run `engine identity init` once."
        )
    given = settings.option("dns", dns, ())
    named = [each.strip() for each in given.split(",") if each.strip()] if isinstance(given, str) else given
    yield found, [name_server(str(each)) for each in named] or None


def _found_table(each: Identity, findings: Sequence[Finding]) -> list[str]:
    rows = [(f"  {found.outcome}", found.check, found.say) for found in findings]
    counts = {outcome: sum(found.outcome is outcome for found in findings) for outcome in Check}
    dkim = "" if each.dkim_selectors else " DKIM is not checked: the identity names no dkim_selectors."
    return [
        f"{each.name} ({', '.join(each.addresses)}), {each.mail_from}",
        *folded(rows),
        f"{counts[Check.PASS]} passed, {counts[Check.FAIL]} failed, {counts[Check.UNKNOWN]} unknown.{dkim}",
    ]


def _found_json(each: Identity, findings: Sequence[Finding]) -> list[str]:
    return [
        json.dumps(
            {"identity": each.name, "check": found.check, "outcome": found.outcome, "say": found.say}
            | ({"seen": dict(found.seen)} if found.seen else {}),
            ensure_ascii=False,
        )
        for found in findings
    ]


for _order in (drain, disable, quarantine, enable, status):
    identity.add_command(_order)


def write_section(path: Path, made: Identity, bind: str, *, force: bool) -> None:
    """Put the section `identity` into the settings file, mode 0600; everything else in it stays as it is written."""
    section = {
        "name": made.name,
        "helo_name": made.helo_name,
        "mail_from_address": made.mail_from,
        "public_address": made.key,
        **({"bind_address": bind} if bind else {}),
        **({"pool_tags": sorted(made.pool_tags)} if made.pool_tags else {}),
    }
    lines, start, end = [], 0, 0
    if path.exists():
        lines = read_text(path).splitlines(keepends=True)
        found = load_configuration(path).file
        start = found.lines.get(("identity",), 0)
        if start and not force:
            raise SettingsError(f"{path}:{start}: an identity is there already; --force replaces it")
        later = [line for place, line in found.lines.items() if len(place) == 1 and line > start]
        start, end = (start - 1, min(later, default=len(lines) + 1) - 1) if start else (len(lines), len(lines))
    before = "".join(lines[:start])
    before += "" if not before or before.endswith("\n") else "\n"
    text = before + yaml.safe_dump({"identity": section}, sort_keys=False, allow_unicode=True) + "".join(lines[end:])
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")  # mode 0600
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        load_configuration(Path(temporary))  # never leave a file behind that can't be read
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def records(made: Identity) -> Iterator[str]:
    """The DNS records that an identity needs, as they stand in a zone file."""
    mechanisms = []
    for ip in filter(None, (made.public_v4, made.public_v6)):
        kind, mechanism = ("A", "ip4") if ":" not in ip else ("AAAA", "ip6")
        mechanisms.append(f"{mechanism}:{ip}")
        yield f"{made.helo_name}. {kind} {ip}"
        yield f"{ip_address(ip).reverse_pointer}. PTR {made.helo_name}.  ; whoever owns the address sets it"
    sender = made.mail_from.rpartition("@")[2]
    for name in dict.fromkeys((sender, made.helo_name)):
        yield f'{name}. TXT "v=spf1 {" ".join(mechanisms)} -all"  ; or add it to the SPF record that is there'
