"""What a monitor is charged with: the section `monitor` of the settings, and the targets that follow from it.

1. Own addresses and the domains in our names are always watched; `targets` adds others.
2. What is not said has a default that harms nobody: a critical listing stops the identity, a lesser one is only told.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from engine.core.grammar import Rate, duration, rate
from engine.core.identity import Identity
from engine.reputation.question import Target, TargetError, target
from engine.settings import Configuration, Part

FIELDS = ("targets", "quarantine", "dwell", "slow", "beside_jobs")
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Charge:
    """Whom to watch, and what to do about listings. `dry_run` says what it would do, and orders nothing."""

    identities: tuple[Identity, ...] = ()
    targets: tuple[Target, ...] = ()
    quarantine: bool = True
    dry_run: bool = False
    dwell_s: float = 3600.0
    slow: Rate | None = None
    beside_jobs: bool = False

    def identity_of(self, address: str) -> Identity | None:
        """Whose address this is."""
        return next((each for each in self.identities if address in each.addresses), None)


def read_charge(settings: Configuration, identities: Sequence[Identity]) -> Charge:
    """The section `monitor`; raises SettingsError.

    A run of `engine verify` watches beside its work where the settings have a section `monitor` or `rbl`, unless
    `beside_jobs` says no.
    """
    part = settings.section("monitor")
    if part.value is not None:
        part.keys(FIELDS)
    told = any(settings.section(name).value is not None for name in ("monitor", "rbl"))
    named = part.at("quarantine").value
    dry = isinstance(named, str) and named.strip().lower() == "dry-run"
    extra = [_target(each) for each in part.at("targets").each()] if part.at("targets").value else []
    own = [each for identity in identities for each in _own(identity)]
    return Charge(
        tuple(identities),
        tuple(dict.fromkeys([*own, *extra])),
        quarantine=True if dry else _yes(part.at("quarantine"), default=True),
        dry_run=dry,
        dwell_s=_given(part.at("dwell"), duration, 3600.0),
        slow=_given(part.at("slow"), rate, None),
        beside_jobs=_yes(part.at("beside_jobs"), default=told),
    )


def _own(identity: Identity) -> list[Target]:
    """The addresses of an identity, and the domains that its names show."""
    domains = dict.fromkeys([identity.identity_domain, identity.mail_from.rpartition("@")[2], identity.helo_name])
    found = [target(address) for address in identity.addresses]
    for name in filter(None, domains):
        try:
            found.append(target(name))
        except TargetError:  # no name that the world could list
            continue
    return found


def _target(part: Part) -> Target:
    text = part.text(needed="an address or a domain")
    try:
        return target(text)
    except TargetError as error:
        raise part.wrong(str(error)) from None


def _given(part: Part, parse: Callable[[str], _T], default: _T) -> _T:
    return default if part.value is None else part.parsed(lambda value: parse(str(value)))


def _yes(part: Part, *, default: bool) -> bool:
    value = part.value
    if value is None:
        return default
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and value.strip().lower() in ("yes", "no"):
        return value.strip().lower() == "yes"
    raise part.wrong(f"{value!r} is neither yes nor no")
