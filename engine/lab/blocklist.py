"""A block list of the lab: which targets its zone lists, and in which of a list's bad manners it answers.

Fields, as lab.yaml and `set` write them:
  does    its sentence in docs/lab.md
  kind    ip, or domain: which test points it has (RFC 5782 section 5)
  listed  target -> codes, or a list of targets that get 127.0.0.2
  test    what its test point answers; [] when it has lost it
  text    the TXT of a listed name; {target} is filled in
  always  addresses that it answers whatever is asked: a wildcard, a refusal, a parked domain
  fault   servfail, refused or silent: what it does instead of answering
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from ipaddress import IPv4Address, ip_address
from typing import Any

from engine.lab.persona import LabError

LISTED = ("127.0.0.2",)
_TEST_POINTS = {"ip": ("127.0.0.2", "::ffff:7f00:2"), "domain": ("test",)}
_FAULTS = ("", "servfail", "refused", "silent")


@dataclass(frozen=True)
class BlockList:
    """One list, by its zone."""

    zone: str
    does: str = ""
    kind: str = "ip"
    listed: Mapping[str, Sequence[str]] = field(default_factory=dict)
    test: Sequence[str] = LISTED
    text: str = "{target} is listed, see https://{zone}/{target}"
    always: Sequence[str] = ()
    fault: str = ""

    def changed(self, values: Mapping[str, Any], *, where: str) -> BlockList:
        """The list with other fields; raises LabError."""
        known = {each.name for each in fields(self)} - {"zone"}
        for name in values:
            if name not in known:
                raise LabError(f"{where}: {name!r} is no field of a block list; it has {', '.join(sorted(known))}")
        given = dict(values)
        if isinstance(given.get("listed"), list):
            given["listed"] = dict.fromkeys(given["listed"], LISTED)
        changed = replace(self, **given)
        if changed.kind not in _TEST_POINTS or changed.fault not in _FAULTS:
            raise LabError(f"{where}: kind is ip or domain, and fault servfail, refused or silent")
        try:
            for code in (
                *changed.test,
                *changed.always,
                *(each for codes in changed.listed.values() for each in codes),
            ):
                IPv4Address(code)
        except ValueError as error:
            raise LabError(f"{where}: a code is an IPv4 address ({error})") from None
        return changed

    def owns(self, name: str) -> bool:
        """Whether a name is of this zone."""
        return name == self.zone or name.endswith(f".{self.zone}")

    def answer(self, name: str, kind: str) -> tuple[bool, Sequence[str]]:
        """Whether a name of this zone exists, and its records of a type."""
        target = self._names.get(name)
        codes = self.always or (self._codes[target] if target is not None else ())
        if not codes:
            return name == self.zone, ()
        if kind == "A":
            return True, codes
        text = self.text.format(target=target or name, zone=self.zone)
        return True, (f'"{text}"',) if kind == "TXT" else ()

    @cached_property
    def _codes(self) -> dict[str, Sequence[str]]:
        points = dict.fromkeys(_TEST_POINTS[self.kind], self.test) if self.test else {}
        return {**points, **self.listed}

    @cached_property
    def _names(self) -> dict[str, str]:
        return {f"{_labels(target)}.{self.zone}": target for target in self._codes}


def _labels(target: str) -> str:
    """A target as it stands before the zone (RFC 5782, sections 2.1 and 2.4)."""
    try:
        ip = ip_address(target)
    except ValueError:
        return target
    return ".".join(reversed(str(ip).split(".") if isinstance(ip, IPv4Address) else f"{int(ip):032x}"))
