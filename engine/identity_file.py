"""Who asks, and with whose leave: identities and consent records out of files and flags.

1. What is missing is named together with the flag that gives it.
2. An address stands in the form in which it is dialled and shown; a mail address is one that SG1 would pass.
3. Whether an identity may probe from here is not decided here but in `flow/preflight.py`.
4. Times without an offset are UTC; a bare date is its first moment. An expired consent is none.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import UTC, date, datetime
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path
from typing import Any

from engine.core.address import BadAddress, parse
from engine.core.grammar import Range, rate_range
from engine.core.identity import Consent, Identity, Limits, Status, Warmup
from engine.settings import Configuration, Part, SettingsError, read_yaml

IDENTITY_FIELDS = (
    "name",
    "helo_name",
    "mail_from_address",
    "identity_domain",
    "public_address",
    "bind_address",
    "pool_tags",
    "status",
    "warmup",
    "limits",
    "dkim_selectors",
)
_SELECTOR = re.compile(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?(\.[a-z0-9]([a-z0-9-]*[a-z0-9])?)*")  # RFC 6376 section 3.1
CONSENT_FIELDS = ("reference", "granted_by", "granted_at", "purpose", "expires")


def find_identities(
    settings: Configuration,
    *,
    file: Path | None = None,
    helo: str = "",
    mail_from: str = "",
    public_ip: str = "",
    bind: str = "",
    pools: Sequence[str] = (),
) -> tuple[Identity, ...]:
    """All identities that flags, environment or settings name, by precedence, whatever their status."""
    flags = {"helo": helo, "mail_from": mail_from, "public_ip": public_ip, "bind": bind}
    if file is not None and any(flags.values()):
        raise SettingsError("--identity FILE and --helo, --mail-from, --public-ip, --bind exclude each other; give one")
    if file is None and not any(flags.values()):
        flags = {name: str(settings.environ.get(f"ENGINE_{name.upper()}", "")) for name in flags}
        named = settings.environ.get("ENGINE_IDENTITY")
        file = Path(named) if named and not any(flags.values()) else None
    if any(flags.values()):
        return (identity_from_flags(**flags, pools=pools),)
    return load_identity(file) if file is not None else _section(settings)


def enabled(found: Sequence[Identity]) -> tuple[Identity, ...]:
    """Those that may ask; raises SettingsError where some are named and none of them may."""
    able = tuple(identity for identity in found if identity.status is Status.ENABLED)
    if found and not able:
        raise SettingsError(f"no identity is enabled ({found[0].name} is {found[0].status})")
    return able


def _section(settings: Configuration) -> tuple[Identity, ...]:
    section = settings.section("identity")
    return () if section.value is None else _identities(section)


def load_identity(path: Path) -> tuple[Identity, ...]:
    """The identities of a YAML file that holds one or a list of them; raises SettingsError."""
    return _identities(read_yaml(path))


def identity_from_flags(
    helo: str, mail_from: str, public_ip: str, bind: str = "", pools: Sequence[str] = ()
) -> Identity:
    """The identity of `--helo`, `--mail-from`, `--public-ip`, `--bind` and `--pool`; raises SettingsError."""
    given = {"--helo": helo, "--mail-from": mail_from, "--public-ip": public_ip}
    missing = [flag for flag, value in given.items() if not value]
    if missing:
        raise SettingsError(f"the identity lacks {' and '.join(missing)} (or give --identity FILE)")
    fields = {
        "helo_name": helo,
        "mail_from_address": mail_from,
        "public_address": public_ip,
        "bind_address": bind or None,
        "pool_tags": list(pools),
    }
    return _identity(Part("identity flags", fields))


def load_consent(path: Path, now: datetime) -> Consent:
    """The consent record of a YAML or JSON file; raises SettingsError, also for one that has expired."""
    part = read_yaml(path).keys(CONSENT_FIELDS)
    expires = part.at("expires")
    consent = Consent(
        reference=part.at("reference").text(needed="what names the consent: a ticket, a contract; --consent"),
        granted_by=part.at("granted_by").text(needed="who granted it; --consent-by"),
        granted_at=_required_moment(part.at("granted_at")),
        purpose=part.at("purpose").text(),
        expires=expires.parsed(_moment) if expires.value is not None else None,
    )
    return _in_force(consent, now, part)


def consent_from_flags(reference: str, by: str, purpose: str, at: str, now: datetime) -> Consent:
    """The consent of `--consent`, `--consent-by`, `--purpose`, `--consent-at` (now, where it isn't given)."""
    missing = [flag for flag, value in (("--consent REF", reference), ("--consent-by WHO", by)) if not value.strip()]
    if missing:
        raise SettingsError(f"the consent record lacks {' and '.join(missing)} (or give --consent-file FILE)")
    part = Part("", {"--consent": reference, "--consent-by": by, "--purpose": purpose, "--consent-at": at or None})
    granted = part.at("--consent-at").parsed(_moment) if at else now
    consent = Consent(part.at("--consent").text(), part.at("--consent-by").text(), granted, part.at("--purpose").text())
    return _in_force(consent, now, part)


def _identities(part: Part) -> tuple[Identity, ...]:
    if part.value is None or part.value == []:
        raise part.wrong("no identity is here (expected a mapping, or a list of them)")
    found = tuple(_identity(each) for each in part.each())
    for field, values in (("name", [each.name for each in found]), ("public_address", [each.key for each in found])):
        twice = next((value for number, value in enumerate(values) if value in values[:number]), None)
        if twice is not None:
            raise part.wrong(f"two identities have the {field} {twice}; each needs its own")
    return found


def _identity(part: Part) -> Identity:
    part.keys(IDENTITY_FIELDS)
    helo = part.at("helo_name").text(needed="the name to greet with, whose address is ours; --helo").lower()
    mail_from = part.at("mail_from_address")
    sender = mail_from.text(needed="an existing mailbox of yours; --mail-from")
    parsed = parse(sender)
    if isinstance(parsed, BadAddress):
        raise mail_from.wrong(f"{sender} is not a mail address ({parsed.detail or parsed.reason})")
    public_v4, public_v6 = _addresses(part.at("public_address"), needed="the address that the world sees; --public-ip")
    bind_v4, bind_v6 = _addresses(part.at("bind_address"))
    return Identity(
        name=part.at("name").text() or helo,
        helo_name=helo,
        mail_from=parsed.normalized,
        public_v4=public_v4,
        public_v6=public_v6,
        bind_v4=bind_v4,
        bind_v6=bind_v6,
        identity_domain=part.at("identity_domain").text().lower() or parsed.domain,
        pool_tags=frozenset(_tags(part.at("pool_tags"))),
        status=_status(part.at("status")),
        limits=_limits(part.at("limits")),
        warmup=_warmup(part.at("warmup")),
        dkim_selectors=_selectors(part.at("dkim_selectors")),
    )


def _addresses(part: Part, needed: str = "") -> tuple[str, str]:
    """(IPv4, IPv6), either empty, of one address or of {v4, v6}."""
    if not isinstance(part.value, dict):
        text = part.text(needed=needed)
        if not text:
            return "", ""
        ip = part.parsed(_ip)
        return (str(ip), "") if ip.version == 4 else ("", str(ip))
    part.keys(("v4", "v6"))
    found = []
    for key, version in (("v4", 4), ("v6", 6)):
        below = part.at(key)
        text = below.text()
        if text and below.parsed(_ip).version != version:
            raise below.wrong(f"{text} is not an IPv{version} address")
        found.append(str(below.parsed(_ip)) if text else "")
    if needed and not any(found):
        raise part.wrong(f"is missing ({needed})")
    return found[0], found[1]


def _ip(value: str) -> IPv4Address | IPv6Address:
    try:
        return ip_address(value.strip())
    except ValueError:
        raise ValueError(f"{value!r} is not an IP address") from None


def _tags(part: Part) -> list[str]:
    if part.value is None:
        return []
    return [each.text(needed="a tag") for each in part.each()]


def _selectors(part: Part) -> tuple[str, ...]:
    if part.value is None:
        return ()
    found = tuple(each.text(needed="a selector").lower() for each in part.each())
    for place, selector in enumerate(found):
        if not _SELECTOR.fullmatch(selector):
            raise part.wrong(f"{selector!r} is not a DKIM selector (expected a name, for example s1)")
        if selector in found[:place]:
            raise part.wrong(f"the selector {selector} stands there twice")
    return found


def _status(part: Part) -> Status:
    text = part.text() or Status.ENABLED
    if text not in list(Status):
        raise part.wrong(f"{text!r} is not a status (expected {', '.join(Status)})")
    return Status(text)


def _limits(part: Part) -> Limits:
    """A limit that is not there keeps its default; one that is null is lifted."""
    if part.value is None:
        return Limits()
    given: dict[str, Range | None] = {}
    for key in part.keys(("sessions", "refusals")).value:
        below = part.at(key)
        given[key] = None if below.value is None else below.parsed(rate_range)
    return Limits(**given)


def _warmup(part: Part) -> Warmup | None:
    if part.value is None:
        return None
    part.keys(("since", "per_day"))
    since, steps = part.at("since"), part.at("per_day")
    since.text(needed="the first day, for example 2026-11-22")
    counts = steps.value
    if not isinstance(counts, list) or not counts or not all(type(each) is int and each > 0 for each in counts):
        raise steps.wrong("a list of numbers is expected, one a day, for example [50, 100, 200]")
    return Warmup(since.parsed(_day), tuple(counts))


def _day(value: Any) -> date:
    try:
        return date.fromisoformat(value)
    except (TypeError, ValueError):
        raise ValueError(f"{value!r} is not a date (expected YYYY-MM-DD)") from None


def _moment(value: Any) -> datetime:
    try:
        moment = datetime.fromisoformat(value)
    except (TypeError, ValueError):
        raise ValueError(f"{value!r} is not a time (expected RFC 3339, for example 2026-11-22T09:00:00Z)") from None
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).astimezone(UTC)


def _required_moment(part: Part) -> datetime:
    part.text(needed="when it was granted, for example 2026-11-22T09:00:00Z; --consent-at")
    return part.parsed(_moment)


def _in_force(consent: Consent, now: datetime, part: Part) -> Consent:
    if consent.granted_at > now:
        raise part.wrong(
            f"the consent {consent.reference} is granted in the future ({consent.granted_at:%Y-%m-%d %H:%M} UTC)"
        )
    if consent.expired(now):
        when = f"{consent.expires:%Y-%m-%d %H:%M} UTC"
        raise part.wrong(f"the consent {consent.reference} expired on {when}; an expired consent is none")
    return consent
