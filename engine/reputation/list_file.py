"""Reads files of block lists: the shipped `lists.yaml`, and what an operator lays over it in the same form.

1. A file is held against its shape, which stands below; every fault names file, line, field and what is expected.
2. Files are layers. A list of the same name is overridden key by key, maps inside it too; sequences replace.
3. What a list lacks is told of the last file that spoke of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path
from typing import Any

from engine.core.grammar import duration, rate
from engine.core.listing import Severity
from engine.reputation.blocklist import (
    DEFAULT_RATE,
    METHODS,
    BlockList,
    Code,
    Delist,
    Effect,
    Family,
    Kind,
    Needs,
    TestPoints,
)
from engine.settings import Part, SettingsError, read_yaml

_INTERVALS = {
    Severity.CRITICAL: 900.0,
    Severity.HIGH: 900.0,
    Severity.MEDIUM: 3600.0,
    Severity.LOW: 21_600.0,
    Severity.INFO: 86_400.0,
}
_USUAL = {
    Family.IPV4: TestPoints("127.0.0.2", "127.0.0.1"),
    Family.IPV6: TestPoints("::ffff:7f00:2", "::ffff:7f00:1"),
    Family.DOMAIN: TestPoints("test", "invalid"),
}


@dataclass(frozen=True, slots=True)
class Access:
    """What opens lists whose terms ask for something: a key, or a statement; both are settings of `rbl.NAME`."""

    name: str
    needs: Needs
    key: str = ""  # the setting that holds the key
    setting: str = ""  # the setting that holds the statement
    words: str = ""  # what it must say
    terms: str = ""


@dataclass(frozen=True, slots=True)
class Denied:
    """A zone that must not be asked, with everything below it."""

    zone: str
    why: str
    since: str = ""

    def covers(self, zone: str) -> bool:
        """Whether a list's zone is this one, or below it."""
        name = zone.lower().rstrip(".")
        return name == self.zone or name.endswith(f".{self.zone}")


@dataclass(slots=True)
class Layers:
    """What files said so far: lists as plain values, each with the part of the file that spoke of it last."""

    lists: dict[str, dict[str, Any]] = field(default_factory=dict)
    parts: dict[str, Part] = field(default_factory=dict)
    access: dict[str, Access] = field(default_factory=dict)
    denied: list[Denied] = field(default_factory=list)

    def lay(self, path: Path) -> None:
        """Lay a file over what is there; raises SettingsError with a line for each fault."""
        part = read_yaml(path)
        if part.value is None:
            raise part.wrong("the file holds nothing (expected `lists:` and a list's name below it)")
        data = _checked(part)
        for name, values in data.get("lists", {}).items():
            self.lists[name] = _merged(self.lists.get(name, {}), values)
            self.parts[name] = part.at("lists").at(name)
        for name, values in data.get("access", {}).items():
            setting, words = next(iter(values.get("statement", {}).items()), ("", ""))
            self.access[name] = Access(
                name, values["needs"], values.get("key", ""), setting, words, values.get("terms", "")
            )
        for row in data.get("denied", ()):
            self.denied += [Denied(zone.removeprefix("*."), row["why"], row.get("since", "")) for zone in row["zones"]]

    def build(self) -> dict[str, BlockList]:
        """The lists that come of it; raises SettingsError."""
        return {name: self._build(name, values, self.parts[name]) for name, values in self.lists.items()}

    def _build(self, name: str, values: Mapping[str, Any], part: Part) -> BlockList:
        for key in ("kind", "severity", "codes"):
            if values.get(key) in (None, []):
                raise part.wrong(f"{key} is missing (or is the name mistyped? No other file speaks of this list)")
        kind, zone, access = values["kind"], values.get("zone", ""), values.get("access", "")
        if access and access not in self.access:
            raise part.at("access").wrong(f"{access!r} is not described (expected one of {', '.join(self.access)})")
        needs = self.access[access].needs if access else Needs.NOTHING
        if not zone and needs is not Needs.SUBSCRIPTION:
            raise part.wrong("zone is missing (only a list for subscribers may leave it to the operator)")
        if "{key}" in zone + values.get("keyed_zone", "") and not (access and self.access[access].key):
            raise part.wrong("a zone with {key} needs an `access` that has a `key`")
        families = (Family.DOMAIN,) if kind is Kind.DOMAIN else tuple(values.get("families") or (Family.IPV4,))
        if kind is not Kind.DOMAIN and Family.DOMAIN in families:
            raise part.wrong(f"a list of kind {kind} knows no domains (expected families: [ipv4], [ipv6] or both)")
        return _blocklist(name, values, needs, families)


def _checked(part: Part) -> dict[str, Any]:
    faults: list[SettingsError] = []
    found: dict[str, Any] = _read(_FILE, part, faults)
    if faults:
        raise SettingsError("\n".join(map(str, faults)))
    return found


def _read(shape: Any, part: Part, faults: list[SettingsError]) -> Any:
    """A part's value as its shape reads it; whatever is wrong with it becomes a fault."""
    if isinstance(shape, _Map):
        return shape.read(part, faults)
    if isinstance(shape, list):
        if isinstance(part.value, list):
            return [_read(shape[0], each, faults) for each in part.each()]
        faults.append(part.wrong(f"{part.value!r} is not a list (expected one `- ...` a line)"))
        return []
    try:
        return part.parsed(shape)
    except SettingsError as error:
        faults.append(error)
        return None


def _merged(below: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(below)
    for key, value in over.items():
        old = merged.get(key)
        merged[key] = _merged(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return merged


def _blocklist(name: str, values: Mapping[str, Any], needs: Needs, families: Sequence[Family]) -> BlockList:
    kind, severity, delist = values["kind"], values["severity"], values.get("delist", {})
    return BlockList(
        name=name,
        zone=values.get("zone", ""),
        keyed_zone=values.get("keyed_zone", ""),
        kind=kind,
        severity=severity,
        codes=tuple(_code(name, kind, severity, row) for row in values["codes"]),
        tests=tuple((family, _points(family, values.get("tests", {}))) for family in families),
        interval_s=values.get("interval") or _INTERVALS[severity],
        lists=values.get("lists", ""),
        needs=needs,
        access=values.get("access", ""),
        rate=values.get("rate", DEFAULT_RATE),
        delist=Delist(
            delist.get("url", ""), delist.get("method", "none"), delist.get("how", ""), delist.get("cooldown"),
            delist.get("expires"),
        ),
        verified_on=values.get("verified_on", ""),
        source=values.get("source", ""),
    )  # fmt: skip


def _code(name: str, kind: Kind, severity: Severity, row: Mapping[str, Any]) -> Code:
    first, last, bit = row["code"]
    effect = row.get("effect", Effect.GOOD if kind is Kind.WHITE else Effect.LISTING)
    return Code(
        row.get("sublist", name), row["means"], row.get("severity", severity), effect, first, last, bit,
        row.get("expires"), row.get("delist", ""),
    )  # fmt: skip


def _points(family: Family, given: Mapping[str, Any]) -> TestPoints:
    """The test points of a family: the usual ones (RFC 5782 section 5) but for what the list does otherwise."""
    usual, own = _USUAL[family], given.get(family.value, {})
    listed, unlisted = (
        None if point == "none" else point
        for point in (own.get("listed", usual.listed), own.get("unlisted", usual.unlisted))
    )
    return TestPoints(listed, unlisted, own.get("code", ""))


# --- the shape


def _text(given: Any) -> str:
    if not isinstance(given, str) or not given.strip() or not given.isprintable():
        raise ValueError(f"{given!r} is not one line of text")
    return given.strip()


def _zone(given: Any) -> str:
    name = _text(given).lower().rstrip(".")
    if "." not in name or not all(part and len(part) < 64 for part in name.split(".")) or " " in name:
        raise ValueError(f"{given!r} is not the name of a zone (for example bl.example.net)")
    return name


def _severity(given: Any) -> Severity:
    labels = {each.label: each for each in Severity}
    if not isinstance(given, str) or given not in labels:
        raise ValueError(f"{given!r} is no severity (expected one of {', '.join(labels)})")
    return labels[given]


def _answer(given: Any) -> tuple[int, int, int]:
    """`127.0.0.4`, `127.0.0.4..127.0.0.7` or `bit 8`: first, last, bit."""
    text = _text(given)
    if text.startswith("bit "):
        number = text.removeprefix("bit ").strip()
        if number not in {str(1 << place) for place in range(8)}:
            raise ValueError(f"{given!r} is no bit of an octet (expected bit 1, 2, 4, 8, 16, 32, 64 or 128)")
        return 0, 0, int(number)
    start, _, end = text.partition("..")
    try:
        first, last = IPv4Address(start.strip()), IPv4Address((end or start).strip())
    except ValueError:
        raise ValueError(f"{given!r} is no answer (expected as 127.0.0.2, 127.0.0.4..127.0.0.7 or bit 8)") from None
    if not first.is_loopback or not last.is_loopback or last < first:
        raise ValueError(f"{given!r} is no answer of a block list (expected addresses of 127.0.0.0/8, the lower first)")
    return int(first), int(last), 0


def _point(version: type[IPv4Address] | type[IPv6Address]) -> Callable[[Any], str]:
    def read(given: Any) -> str:
        text = _text(given)
        try:
            fits = text == "none" or isinstance(ip_address(text), version)
        except ValueError:
            fits = False
        if not fits:
            raise ValueError(f"{given!r} is no test address of this family (or `none`, where the list has none)")
        return text

    return read


def _word(words: Iterable[str], means: Callable[[str], Any] = str) -> Callable[[Any], Any]:
    known = tuple(words)

    def read(given: Any) -> Any:
        if not isinstance(given, str) or given not in known:
            raise ValueError(f"{given!r} is unknown here (expected one of {', '.join(known)})")
        return means(given)

    return read


@dataclass(frozen=True, slots=True)
class _Map:
    """A map by field, or with any name where `each` is the shape of what it names."""

    fields: Mapping[str, Any] = field(default_factory=dict)
    needed: tuple[str, ...] = ()
    each: Any = None

    def read(self, part: Part, faults: list[SettingsError]) -> dict[str, Any]:
        """What the map says."""
        if not isinstance(part.value, dict):
            faults.append(part.wrong(f"{part.value!r} is not a map"))
            return {}
        found = {}
        for key in part.value:
            shape = self.fields.get(key, self.each)
            if not isinstance(key, str):
                faults.append(part.at(str(key)).wrong(f"{key!r} is no text (expected a name; quotes make it one)"))
            elif shape is None:
                faults.append(part.at(key).wrong("there is no such field"))
            else:
                found[key] = _read(shape, part.at(key), faults)
        faults += [part.at(key).wrong("is missing") for key in self.needed if key not in part.value]
        return found


_CODE = _Map(
    {
        "code": _answer, "means": _text, "sublist": _text, "severity": _severity, "effect": _word(Effect, Effect),
        "expires": duration, "delist": _text,
    },
    needed=("code", "means"),
)  # fmt: skip
_DELIST = _Map({"url": _text, "method": _word(METHODS), "how": _text, "cooldown": duration, "expires": duration})
_TESTS = _Map(
    {
        family: _Map({"listed": point, "unlisted": point, "code": _text})
        for family, point in (("ipv4", _point(IPv4Address)), ("ipv6", _point(IPv6Address)), ("domain", _text))
    }
)
_LIST = _Map(
    {
        "zone": _zone, "keyed_zone": _zone, "lists": _text, "kind": _word(Kind, Kind),
        "families": [_word(Family, Family)], "severity": _severity, "codes": [_CODE], "tests": _TESTS, "access": _text,
        "rate": rate, "interval": duration, "delist": _DELIST, "verified_on": _text, "source": _text,
    }
)  # fmt: skip
_ACCESS = _Map(
    {"needs": _word(Needs, Needs), "key": _text, "statement": _Map(each=_text), "terms": _text}, needed=("needs",)
)
_DENIED = _Map({"zones": [_zone], "why": _text, "since": _text}, needed=("zones", "why"))
_FILE = _Map({"lists": _Map(each=_LIST), "access": _Map(each=_ACCESS), "denied": [_DENIED]})


def read_layers(files: Sequence[Path]) -> Layers:
    """The layers of these files, in order; raises SettingsError."""
    layers = Layers()
    for path in files:
        layers.lay(path)
    return layers
