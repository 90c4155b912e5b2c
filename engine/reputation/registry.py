"""The lists that this machine knows, and which of them it may ask: the shipped ones, the operator's, his settings.

1. A list whose terms need a key, a registration or a statement is off until the section `rbl` says so; it is never
   passed over in silence: `unchecked` names it with what is missing.
2. Dead zones and fakes are refused, from whichever file they come, unless forced: a dead list lists nobody until its
   domain is sold, and then everybody.
3. Keys come from the settings file or the environment (`ENGINE_RBL_<ACCESS>_<SETTING>`, or `..._FILE`), never from a
   flag, and are shown nowhere.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from engine.core.listing import Severity
from engine.reputation.blocklist import BlockList, Kind, Needs
from engine.reputation.list_file import Access, Denied, read_layers
from engine.reputation.question import Target
from engine.settings import Configuration, Part, SettingsError

SHIPPED = Path(__file__).with_name("lists.yaml")
_OWN = ("lists", "skip")  # settings of `rbl` that are no access


class Unchecked(NamedTuple):
    """A list that is not asked."""

    name: str
    severity: Severity
    why: str


@dataclass(frozen=True, slots=True)
class Registry:
    """Every list by name, and why some of them are off."""

    lists: Mapping[str, BlockList]
    off: Mapping[str, str] = field(default_factory=dict)  # name -> why it is not asked, in words
    denied: tuple[Denied, ...] = ()

    @property
    def enabled(self) -> tuple[BlockList, ...]:
        """The lists that are asked."""
        return tuple(each for name, each in self.lists.items() if name not in self.off)

    @property
    def unchecked(self) -> tuple[Unchecked, ...]:
        """Every list that is off, the gravest first; white lists are none that one has to ask."""
        found = [
            Unchecked(name, each.severity, self.off[name])
            for name, each in self.lists.items()
            if name in self.off and each.kind is not Kind.WHITE
        ]
        return tuple(sorted(found, key=lambda each: (-each.severity, each.name)))

    @property
    def unasked(self) -> list[str]:
        """The lists that are off and would count, the gravest first, with why: a line each for a report."""
        return [f"{one.name}, {one.severity.label} ({one.why})" for one in self.unchecked]

    def named(self, name: str) -> BlockList:
        """The list of that name; raises SettingsError."""
        if name not in self.lists:
            near = difflib.get_close_matches(name, self.lists, 1)
            hint = f"did you mean {near[0]}?" if near else "`engine rbl lists` shows them"
            raise SettingsError(f"there is no block list {name!r} ({hint})")
        return self.lists[name]

    def asked_about(self, target: Target) -> tuple[BlockList, ...]:
        """The lists that are asked about such a target."""
        return tuple(each for each in self.enabled if each.takes(target.family))

    def unchecked_for(self, target: Target) -> tuple[Unchecked, ...]:
        """The lists that would be asked about such a target, and are off."""
        return tuple(each for each in self.unchecked if self.lists[each.name].takes(target.family))


def load_registry(
    settings: Configuration | None = None, files: Sequence[Path] = (), *, force: bool = False, shipped: Path = SHIPPED
) -> Registry:
    """The registry: `shipped`, then the files of the settings (`rbl.lists`), then `files`.

    Raises:
        SettingsError: a file or the section `rbl` is wrong, or a denied zone is in it and `force` is not given.
    """
    settings = settings or Configuration(Part("", {}), {})
    section = settings.section("rbl")
    named = [Path(each).expanduser() for each in _texts(section.at("lists"), "a file of lists")]
    layers = read_layers([shipped, *named, *files])
    if section.value is not None:
        section.keys((*_OWN, *layers.access))
    lists, off = layers.build(), {}
    for name, each in lists.items():
        denied = next((row for row in layers.denied if each.zone and row.covers(each.zone)), None)
        if denied and not force:
            since = f", {denied.since}" if denied.since else ""
            raise layers.parts[name].wrong(
                f"{each.zone} is a denied zone ({denied.why}{since}); --force asks it anyway"
            )
        lists[name], off[name] = _opened(each, layers.access.get(each.access), settings)
    for name in _texts(section.at("skip"), "the name of a list"):
        if name not in lists:
            raise section.at("skip").wrong(f"there is no list {name!r}")
        off[name] = "left out by the settings (rbl.skip)"
    return Registry(lists, {name: why for name, why in off.items() if why}, tuple(layers.denied))


def _texts(part: Part, needed: str) -> list[str]:
    return [each.text(needed=needed) for each in part.each()] if part.value else []


def _opened(blocklist: BlockList, access: Access | None, settings: Configuration) -> tuple[BlockList, str]:
    """The list as it may be asked, and why it may not; the one or the other says nothing."""
    if all(points.listed is None for _, points in blocklist.tests):
        return blocklist, "has no test entry, so that its silence would prove nothing; name one in a --lists file"
    if access is None:
        return blocklist, ""
    if access.needs is Needs.SUBSCRIPTION:  # a zone that stands in an operator's file was told to him
        return blocklist, "" if blocklist.zone else "for subscribers only; put the zone you were told in a --lists file"
    keyed = blocklist.keyed_zone or (blocklist.zone if "{key}" in blocklist.zone else "")
    if keyed and (key := _setting(settings, access, access.key)):
        return replace(blocklist, zone=keyed, key=_plain_key(key, access)), ""
    public = "{key}" not in blocklist.zone and bool(access.setting)
    if public and _stated(settings, access):
        return blocklist, ""
    return blocklist, _missing(access, keyed=bool(keyed), public=public)


def _missing(access: Access, *, keyed: bool, public: bool) -> str:
    """What would open it, in words that can be typed."""
    words = access.words if access.words == "yes" else f'"{access.words}"'
    state, key = f"set rbl.{access.name}.{access.setting}: {words}", f"set rbl.{access.name}.{access.key}"
    if keyed and public:
        return f"needs a key or your statement; {key}, or where its terms allow you that {state}"
    if keyed:
        return f"needs a key; {key}"
    return f"needs your {'registration' if access.needs is Needs.REGISTRATION else 'statement'}; {state}"


def _setting(settings: Configuration, access: Access, name: str) -> str:
    """A setting of an access, the environment first; its value is never part of an error."""
    given: Any = settings.secret(f"rbl_{access.name}_{name}")
    part = settings.section("rbl").at(access.name)
    if given is None and part.value is not None:
        given = part.keys(tuple(filter(None, (access.key, access.setting)))).at(name).value
    if given is None or isinstance(given, bool):
        return "yes" if given else ""
    if not isinstance(given, str):
        raise part.at(name).wrong("is not one line of text")
    return given.strip()


def _plain_key(key: str, access: Access) -> str:
    if not key.isascii() or not key.replace("-", "").replace("_", "").isalnum() or len(key) > 63:
        raise SettingsError(f"rbl.{access.name}.{access.key}: the key is not one label (letters, digits, - and _)")
    return key.lower()


def _stated(settings: Configuration, access: Access) -> bool:
    said = _setting(settings, access, access.setting) if access.setting else ""
    if not said or said.lower() == "no":
        return False
    if said.lower() != access.words.lower():
        part = settings.section("rbl").at(access.name).at(access.setting)
        raise part.wrong(f'{said!r} is not the statement (expected "{access.words}", if it is true)')
    return True
