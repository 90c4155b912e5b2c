"""`engine identity`: the name under which this machine asks."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path

import click
import yaml

from engine.core.identity import Identity
from engine.identity_file import identity_from_flags
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
