"""`engine doctor`: is this machine fit to probe from, and does the engine on it answer."""

from __future__ import annotations

import http.client
import json
import shutil
import sys
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import click

from engine.cli.options import listen_address, name_server, number
from engine.cli.rbl import opened
from engine.cli.tables import aligned
from engine.core.identity import Identity
from engine.flow.job import WrongUse
from engine.flow.machine import clock, egress, files, name_servers, state_folder
from engine.flow.preflight import Check, Finding, Listed, preflight, unbindable
from engine.identity_file import find_identities
from engine.net.resolver import Resolver
from engine.reputation.diagnosis import diagnose
from engine.reputation.forbidding import forbidding
from engine.reputation.registry import load_registry
from engine.settings import Configuration, load_configuration
from engine.store.state import default_path

ALIVE_S = 5.0
_EVERYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - where such a listener is reached from here
_NARROW = 20  # columns; a sentence is not folded into fewer
_FILE = click.Path(dir_okay=False, path_type=Path)


@click.command(short_help="Look whether this machine is fit to probe from.")
@click.option("--identity", "identity_file", type=_FILE, help="Who will ask: a YAML file.")
@click.option("--helo", default="", metavar="NAME", help="Who will ask, by flags: the HELO name.")
@click.option("--mail-from", default="", metavar="ADDR", help="Who will ask, by flags: an existing mailbox of yours.")
@click.option("--public-ip", default="", metavar="IP", help="Who will ask, by flags: the address that the world sees.")
@click.option("--bind", default="", metavar="IP", help="Who will ask, by flags: the local source address.")
@click.option(
    "--egress",
    "targets",
    multiple=True,
    metavar="HOST[:PORT]",
    help="Dial this mail host of yours, to see whether port 25 is open; repeatable. Nobody else is dialled.",
)
@click.option(
    "--concurrency", type=click.IntRange(1, 20000), help="Sessions that shall be open at once; 500, if not given."
)
@click.option("--dns", multiple=True, metavar="HOST:PORT", help="Name servers to ask; the system's, if not given.")
@click.option(
    "--block-lists",
    is_flag=True,
    help="Ask block lists for their test entries: do they answer these servers? And do they forbid to probe from here?",
)
@click.option("--allow-private", is_flag=True, help="Take private addresses for public ones (test networks).")
@click.option("--state", type=_FILE, help="What this machine remembers; $ENGINE_STATE, or the user's state folder.")
@click.option("--config", type=_FILE, help="The settings file.")
@click.option(
    "--json", "as_json", is_flag=True, help="The findings as a JSON list: check, outcome (pass, fail, unknown), say."
)
@click.option(
    "--alive",
    is_flag=True,
    help="Only ask /healthz where ENGINE_METRICS or the settings say: for container health checks.",
)
def doctor(config: Path | None, targets: tuple[str, ...], *, as_json: bool, alive: bool, **flags: Any) -> None:
    """Look whether this machine is fit to probe from, and say what to mend.

    Files, disk, name servers, clock; the identity's address, PTR, HELO name and MAIL FROM domain; and port 25, by
    the hosts that --egress names. Only name servers and those hosts are asked anything, and of block lists only what
    --block-lists asks for.

    Exit 0: nothing failed; what could not be known is no failure. 1: something failed. 2: wrong use.
    """
    settings = load_configuration(config)
    if alive:
        _ask_alive(str(settings.option("metrics", None, "")))
        return
    findings = list(_findings(settings, [_target(each) for each in targets], {"config": config, **flags}))
    if as_json:
        print(json.dumps([asdict(finding) for finding in findings], indent=2))
    else:
        print("\n".join(_lines(findings, shutil.get_terminal_size().columns if sys.stdout.isatty() else 0)))
    sys.exit(any(finding.outcome is Check.FAIL for finding in findings))


def _lines(findings: Sequence[Finding], width: int) -> Iterator[str]:
    """One line a finding; where people look (`width` is that of a terminal), its sentence folded beside its name."""
    heads = [f"{head}  " for head in aligned([(each.outcome.value, each.check) for each in findings])]
    column = max(map(len, heads))
    for head, each in zip(heads, findings, strict=True):
        if width - column < _NARROW:
            yield f"{head:{column}}{each.say}"
        else:
            yield textwrap.fill(
                each.say, width, initial_indent=f"{head:{column}}", subsequent_indent=" " * column,
                break_long_words=False, break_on_hyphens=False,
            )  # fmt: skip


def _findings(settings: Configuration, targets: list[tuple[str, int]], flags: Mapping[str, Any]) -> Iterator[Finding]:
    """Cheapest first; each is worth knowing whatever the others say."""
    identities = find_identities(
        settings, file=flags["identity_file"], helo=flags["helo"], mail_from=flags["mail_from"],
        public_ip=flags["public_ip"], bind=flags["bind"],
    )  # fmt: skip
    private = flags["allow_private"]
    named = settings.option("dns", flags["dns"], ())
    named = named.split(",") if isinstance(named, str) else named
    servers = tuple(name_server(str(each).strip()) for each in named) or None
    state = settings.option("state", flags["state"])
    yield files(number(settings.option("concurrency", flags["concurrency"], 500), "concurrency", 1, 20_000))
    yield state_folder(Path(state) if state else default_path(settings.environ))
    yield clock()
    with closing(Resolver(servers, allow_private=private)) as resolver:
        found = list(name_servers(resolver, named=servers is not None))
        yield from found
        answers = found[0].outcome is Check.PASS
        if flags["block_lists"]:
            yield _block_lists(flags["config"], flags["dns"])
        if not identities:
            yield Finding(
                "identity", Check.UNKNOWN,
                "No identity is set up; `engine identity init` makes one. Without it nothing beyond DNS can be asked.",
            )  # fmt: skip
        for identity in identities:
            listed = forbidding(load_registry(settings), servers or ()) if flags["block_lists"] else None
            seen = _identity(identity, resolver, listed, allow_private=private, answers=answers)
            yield from _of(identity, identities, seen)
        able = [each for each in identities if not unbindable(each)]
        for asker in able if targets and able else (None,):
            yield from _of(asker, identities, egress(targets, resolver, asker, allow_private=private))


def _of(identity: Identity | None, among: Sequence[Identity], findings: Iterator[Finding]) -> Iterator[Finding]:
    """Whose findings these are, where there are several identities."""
    if identity is None or len(among) < 2:
        yield from findings
        return
    for each in findings:
        yield replace(each, say=f"{identity.name}: {each.say}", seen={**each.seen, "identity": identity.name})


def _block_lists(config: Path | None, dns: Sequence[str]) -> Finding:
    """Whether the lists that may be asked answer these name servers, by their own test entries."""
    with opened((), False, config, False, dns) as lists:
        told = diagnose(lists.checker())
    if told.faults:
        return Finding("block_lists", Check.FAIL, f"The resolver: {' '.join(told.faults)}")
    return Finding(
        "block_lists", Check.PASS,
        f"{told.asked - told.silent} of {told.asked} block lists answer these name servers; `engine rbl verify-lists` "
        "names each.",
    )  # fmt: skip


def _identity(
    identity: Identity, resolver: Resolver, listed: Listed | None, *, allow_private: bool, answers: bool
) -> Iterator[Finding]:
    wrong = unbindable(identity)
    if wrong:
        yield Finding("bind_address", Check.FAIL, wrong)
    if answers:
        yield from preflight(identity, resolver, allow_private=allow_private, listed=listed)
    else:
        yield Finding("identity", Check.UNKNOWN, "Its PTR and HELO name can't be looked up without name servers.")


def _target(text: str) -> tuple[str, int]:
    """HOST, HOST:PORT or [IPV6]:PORT."""
    host, colon, port = text.rpartition(":") if text.count(":") == 1 or text.startswith("[") else (text, "", "")
    if text.endswith("]"):
        host, colon, port = text, "", ""
    host = (host if colon else text).strip("[]")
    if not host or (colon and not (port.isascii() and port.isdigit() and 0 < int(port) < 65536)):
        raise WrongUse(f"--egress {text}: a mail host is expected, with :PORT if it is not 25.")
    return host, int(port) if colon else 25


def _ask_alive(metrics: str) -> None:
    """Exit 0 where /healthz answers 200, else 1 and why."""
    if not metrics:
        raise WrongUse(
            "--alive needs to know where the engine listens: set ENGINE_METRICS, or metrics in the settings."
        )
    host, port = listen_address(metrics)
    connection = http.client.HTTPConnection(_EVERYWHERE.get(host, host), port, timeout=ALIVE_S)
    try:
        with closing(connection):
            connection.request("GET", "/healthz")
            status = connection.getresponse().status
    except (OSError, http.client.HTTPException) as error:
        print(f"engine: nothing answers at {metrics} ({error}).", file=sys.stderr)
        sys.exit(1)
    if status != 200:
        print(f"engine: {metrics} answers {status}.", file=sys.stderr)
        sys.exit(1)
    print("alive")
