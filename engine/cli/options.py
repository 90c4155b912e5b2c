"""Options that `verify` and `check` share, and what they make of flags, environment and settings file."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from ipaddress import ip_address
from pathlib import Path
from typing import Any, TypeVar

import click

from engine.core.grammar import duration
from engine.core.identity import Consent, Identity, Mode
from engine.core.policy import PolicySet
from engine.flow.job import Suppression, WrongUse, read_suppression
from engine.flow.policies import load_policies
from engine.identity_file import consent_from_flags, enabled, find_identities, load_consent
from engine.settings import Configuration, load_configuration
from engine.store.state import default_path

_F = TypeVar("_F", bound=Callable[..., Any])
_FILE = click.Path(dir_okay=False, path_type=Path)

MODES = """Two modes:
  standard  syntax, domain, mail hosts, and one connection a site up to EHLO; no mailbox is asked about
  enhanced  the same, and RCPT for each address; it needs a consent record"""

_OPTIONS = (
    click.option("--consent", metavar="REF", help="What names the consent: a ticket, a contract. Enhanced needs it."),
    click.option("--consent-by", metavar="WHO", help="Who granted it. Enhanced needs it."),
    click.option("--purpose", metavar="TEXT", default="", help="What the answers are for."),
    click.option("--consent-at", metavar="TIME", default="", help="When it was granted (RFC 3339); now, if not given."),
    click.option("--consent-file", type=_FILE, help="The record from a YAML or JSON file, in place of these four."),
    click.option("--identity", "identity_file", type=_FILE, help="Who asks: a YAML file."),
    click.option("--helo", default="", metavar="NAME", help="Who asks, by flags: the HELO name."),
    click.option("--mail-from", default="", metavar="ADDR", help="Who asks, by flags: an existing mailbox of yours."),
    click.option("--public-ip", default="", metavar="IP", help="Who asks, by flags: the address that the world sees."),
    click.option("--bind", default="", metavar="IP", help="Who asks, by flags: the local source address."),
    click.option("--pool", "pools", multiple=True, metavar="TAG", help="Who asks, by flags: a pool that it is in."),
    click.option("--policies", "policy_dirs", multiple=True, metavar="DIR",
                 type=click.Path(exists=True, file_okay=False, path_type=Path),
                 help="Policy files over the shipped ones; may be given more than once."),
    click.option("--suppress", type=_FILE, help="Addresses and domains that are never probed, one a line."),
    click.option("--dns", multiple=True, metavar="HOST:PORT", help="Name servers to ask; the system's, if not given."),
    click.option("--smtp-port", type=click.IntRange(1, 65535), help="For test networks; 25, if not given."),
    click.option("--allow-private", is_flag=True, help="Dial private mail hosts too (test networks); audited."),
    click.option("--accept-identity-risk", "accepted_risk", default="", metavar="REASON",
                 help="Go on although preflight failed; audited."),
    click.option("--state", type=_FILE, help="What this machine remembers; $ENGINE_STATE, or the user's state folder."),
    click.option("--config", type=_FILE, help="The settings file."),
    click.option("--lab", is_flag=True, help="Ask the bundled lab, with identity, consent, DNS and state of its own."),
)  # fmt: skip


def asking_options(command: _F) -> _F:
    """The options that say who asks whom, with whose leave."""
    return functools.reduce(lambda inner, option: option(inner), reversed(_OPTIONS), command)


@dataclass(frozen=True, slots=True)
class Asking:
    """Who asks whom and how: flags, environment and settings file put together."""

    policies: PolicySet
    state: Path
    identities: tuple[Identity, ...] = ()
    consent: Consent | None = None
    suppression: Suppression = field(default_factory=Suppression)
    dns: tuple[tuple[str, int], ...] | None = None
    smtp_port: int = 25
    allow_private: bool = False
    accepted_risk: str = ""
    settings: Configuration | None = None
    policy_dirs: tuple[Path, ...] = ()  # where `policies` come from, over the shipped ones


@contextmanager
def asking(mode: Mode | None, flags: dict[str, Any]) -> Iterator[Asking]:
    """Who asks whom, by these flags; with --lab, the lab runs as long as the context does."""
    if flags["lab"]:
        yield from _lab(flags)
        return
    settings = load_configuration(flags["config"])
    now = datetime.now(UTC)
    suppress = settings.option("suppress", flags["suppress"])
    dns = settings.option("dns", flags["dns"], ())
    dirs = settings.option("policies", flags["policy_dirs"], ())
    state = settings.option("state", flags["state"])
    private = flags["allow_private"] or str(settings.option("allow_private", None, "no")).lower() in {
        "1",
        "yes",
        "true",
    }
    if flags["pools"] and not flags["helo"]:
        raise WrongUse("--pool belongs to --helo, --mail-from and --public-ip; a file names them as pool_tags.")
    identities = enabled(find_identities(
        settings, file=flags["identity_file"], helo=flags["helo"], mail_from=flags["mail_from"],
        public_ip=flags["public_ip"], bind=flags["bind"], pools=flags["pools"],
    ))  # fmt: skip
    directories = tuple(Path(each) for each in _listed(dirs))
    yield Asking(
        policies=load_policies(directories),
        policy_dirs=directories,
        state=Path(state) if state else default_path(settings.environ),
        identities=identities,
        consent=_consent(flags, now) if mode is Mode.ENHANCED else None,
        suppression=read_suppression(Path(suppress)) if suppress else Suppression(),
        dns=tuple(name_server(each) for each in _listed(dns)) or None,
        smtp_port=number(settings.option("smtp_port", flags["smtp_port"], 25), "smtp_port", 1, 65_535),
        allow_private=private,
        accepted_risk=flags["accepted_risk"],
        settings=settings,
    )


def _consent(flags: dict[str, Any], now: datetime) -> Consent:
    if flags["consent_file"] is not None:
        return load_consent(flags["consent_file"], now)
    return consent_from_flags(
        flags["consent"] or "", flags["consent_by"] or "", flags["purpose"], flags["consent_at"], now
    )


def _lab(flags: dict[str, Any]) -> Iterator[Asking]:
    from engine.identity_file import load_identity  # noqa: PLC0415 - only the lab needs these
    from engine.lab.process import LabProcess  # noqa: PLC0415
    from engine.lab.spec import SHIPPED  # noqa: PLC0415

    brings = ("identity_file", "helo", "mail_from", "public_ip", "bind", "pools", "dns", "smtp_port", "consent",
              "consent_by", "consent_at", "consent_file")  # fmt: skip
    given = next((name for name in brings if flags[name]), "")
    if given:
        flag = given.removesuffix("_file").replace("_", "-").replace("pools", "pool")
        raise WrongUse(f"--lab brings its own identity, consent and DNS; --{flag} has no place beside it.")
    folder = SHIPPED.parent
    suppress = flags["suppress"]
    with LabProcess(log=False) as lab:
        directories = (folder / "policies", *flags["policy_dirs"])
        yield Asking(
            policies=load_policies(directories),
            policy_dirs=directories,
            state=flags["state"] or default_path(_without_state(os.environ)).with_name("lab") / "state.db",
            identities=load_identity(folder / "identity.yaml"),
            consent=Consent("LAB", "the lab", datetime.now(UTC), "a try on loopback"),
            suppression=read_suppression(suppress) if suppress else Suppression(),
            dns=(lab.dns,),
            smtp_port=lab.smtp_port,
            allow_private=True,
        )


def _without_state(environ: Mapping[str, str]) -> dict[str, str]:
    """The environment less $ENGINE_STATE: the lab's state is never the machine's own."""
    return {name: value for name, value in environ.items() if name != "ENGINE_STATE"}


def option(who: Asking, name: str, flag: Any, default: Any = None) -> Any:
    """A flag, or what environment and settings file say where it is not given."""
    if who.settings is None:
        return default if flag is None else flag
    return who.settings.option(name, flag, default)


def number(value: Any, name: str, low: int, high: int) -> int:
    """A whole number of a setting that may come from the environment."""
    text = str(value).strip()
    if not text.isdigit() or not low <= int(text) <= high:
        raise WrongUse(f"{name} (ENGINE_{name.upper()}): '{text}' is no number from {low} to {high}.")
    return int(text)


def _yes(value: Any) -> bool:
    text = str(value).strip().lower()
    if text in {"1", "yes", "true", "on"}:
        return True
    if text in {"0", "no", "false", "off", ""}:
        return False
    raise WrongUse(f"allow_private (ENGINE_ALLOW_PRIVATE): '{text}' is neither yes nor no.")


def _listed(value: Any) -> list[str]:
    if isinstance(value, str):
        return [each.strip() for each in value.split(",") if each.strip()]
    return [str(each) for each in value]


def name_server(text: str) -> tuple[str, int]:
    """An --dns option: HOST, HOST:PORT or [IPV6]:PORT."""
    host, port = text, 53
    if text.startswith("[") and "]" in text:
        host, _, rest = text[1:].partition("]")
        port = int(rest[1:]) if rest.startswith(":") and rest[1:].isdigit() else 53 if not rest else -1
    elif text.count(":") == 1:
        host, _, number = text.partition(":")
        port = int(number) if number.isdigit() else -1
    try:
        ip_address(host)
    except ValueError:
        port = -1
    if not 0 < port < 65536:
        raise WrongUse(f"--dns {text}: expected the IP address of a name server, with :PORT if it is not 53.")
    return host, port


def listen_address(text: str) -> tuple[str, int]:
    """(address, port) out of `HOST:PORT`, `:PORT` or `PORT`; without a host it is loopback. Raises WrongUse."""
    host, _, port = text.strip().rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    host = "127.0.0.1" if host in ("", "localhost") else host
    try:
        ip_address(host)
    except ValueError:
        port = ""
    if port.isascii() and port.isdigit() and len(port) < 6 and int(port) < 65536:
        return host, int(port)
    raise WrongUse(f"--metrics {text}: an address and a port are expected, such as 127.0.0.1:9464, [::1]:9464 or 9464.")


def seconds(text: str | None, option: str) -> float | None:
    """A duration option in seconds, such as `90m` or `1h30m`."""
    if not text:
        return None
    try:
        return duration(text)
    except ValueError as error:
        raise WrongUse(f"{option}: {error}.") from error


def missing_identity(stage: str) -> WrongUse:
    """Nobody to ask as."""
    return WrongUse(
        f"{stage} needs an identity: give --identity FILE, or --helo NAME --mail-from ADDR --public-ip IP, or run "
        "`engine identity init` once; --no-connect ends at the mail hosts and needs none."
    )
