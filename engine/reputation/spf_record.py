"""The grammar of an SPF record (RFC 7208 sections 4.5, 4.6, 5, 6, 7.1 and 12): text in, terms out.

1. A syntax error anywhere in a record is found before anything of it is evaluated.
2. What a macro stands for is not known here; that it is well-formed is.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, ip_network

VERSION = "v=spf1"
_MACRO = r"%(?:\{[slodiphv](?:[1-9]\d{0,2})?r?[.\-+,/_=]*\}|%|_|-)"
_TOPLABEL = r"(?!\d+(?![a-z0-9-]))[a-z0-9](?:[a-z0-9-]*[a-z0-9])?"  # not of digits alone
_STRING = rf"(?:[!-$&-~]|{_MACRO})*"
_DOMAIN = rf"{_STRING}(?:\.{_TOPLABEL}\.?|{_MACRO})"  # domain-spec: it ends in a macro or a real top label
_DOMAIN_SPEC = re.compile(_DOMAIN, re.IGNORECASE)
_MACRO_STRING = re.compile(_STRING, re.IGNORECASE)
_MODIFIER = re.compile(r"([a-z][a-z0-9_.-]*)=(.*)", re.IGNORECASE)
_MECHANISM = re.compile(r"([-+?~]?)([a-z][a-z0-9]*)([:/].*)?", re.IGNORECASE)
_DUAL = re.compile(r"(?::(.+?))?(?:/(0|[1-9]\d?))?(?://(0|[1-9]\d{0,2}))?")
_NETWORK = {
    "ip4": re.compile(r":(\d+\.\d+\.\d+\.\d+)(?:/(0|[1-9]\d?))?"),
    "ip6": re.compile(r":([0-9a-f:.]+)(?:/(0|[1-9]\d{0,2}))?", re.IGNORECASE),
}


class SpfSyntaxError(ValueError):
    """The record is none (RFC 7208 section 4.6: permerror); the message names the term and what is wrong with it."""


@dataclass(frozen=True, slots=True)
class Term:
    """A mechanism: `target` is a domain-spec with its macros, empty where it means the domain itself."""

    text: str
    qualifier: str
    name: str
    target: str = ""
    network: IPv4Network | IPv6Network | None = None
    prefix_v4: int = 32
    prefix_v6: int = 128


@dataclass(frozen=True, slots=True)
class Record:
    """A record that is well-formed. `redirect` is empty where there is none, or `all` makes it meaningless."""

    terms: tuple[Term, ...]
    redirect: str = ""


def select(texts: Sequence[str]) -> list[str]:
    """Those TXT records that are SPF records (section 4.5)."""
    return [text for text in texts if text.lower() == VERSION or text.lower().startswith(f"{VERSION} ")]


def parse(text: str) -> Record:
    """The terms of an SPF record; raises SpfSyntaxError."""
    terms: list[Term] = []
    modifiers: dict[str, str] = {}
    for word in text[len(VERSION) :].split(" "):
        if not word:
            continue
        modifier = _MODIFIER.fullmatch(word)
        if modifier is None:
            terms.append(_mechanism(word))
            continue
        name, value = modifier[1].lower(), modifier[2]
        if name in modifiers:
            raise SpfSyntaxError(f"{name}= stands there twice")
        if name in ("redirect", "exp"):
            modifiers[name] = _domain(word, value)
        elif not _MACRO_STRING.fullmatch(value):
            raise SpfSyntaxError(f"{_shown(word)} has a macro that is none")
    redirect = "" if any(term.name == "all" for term in terms) else modifiers.get("redirect", "")
    return Record(tuple(terms), redirect)


def _mechanism(word: str) -> Term:
    match = _MECHANISM.fullmatch(word)
    name = match[2].lower() if match else ""
    rest = (match[3] or "") if match else ""
    qualifier = (match[1] or "+") if match else "+"
    match name:
        case "all":
            if rest:
                raise SpfSyntaxError(f"{_shown(word)}: all takes no argument")
            return Term(word, qualifier, name)
        case "include" | "exists":
            if not rest.startswith(":"):
                raise SpfSyntaxError(f"{_shown(word)} names no domain")
            return Term(word, qualifier, name, _domain(word, rest[1:]))
        case "ptr":
            if rest and not rest.startswith(":"):
                raise SpfSyntaxError(f"{_shown(word)}: ptr takes no prefix length")
            return Term(word, qualifier, name, _domain(word, rest[1:]) if rest else "")
        case "a" | "mx":
            return _hosts(word, qualifier, name, rest)
        case "ip4" | "ip6":
            return _network(word, qualifier, name, rest)
        case _:
            raise SpfSyntaxError(f"{_shown(word)} is no term of SPF")


def _hosts(word: str, qualifier: str, name: str, rest: str) -> Term:
    dual = _DUAL.fullmatch(rest)
    if dual is None:
        raise SpfSyntaxError(f"{_shown(word)} is no term of SPF")
    prefix_v4, prefix_v6 = int(dual[2] or 32), int(dual[3] or 128)
    if prefix_v4 > 32 or prefix_v6 > 128:
        raise SpfSyntaxError(f"{_shown(word)} has a prefix length that no network has")
    target = _domain(word, dual[1]) if dual[1] else ""
    return Term(word, qualifier, name, target, prefix_v4=prefix_v4, prefix_v6=prefix_v6)


def _network(word: str, qualifier: str, name: str, rest: str) -> Term:
    match = _NETWORK[name].fullmatch(rest)
    length = 32 if name == "ip4" else 128
    if match is not None and int(match[2] or 0) <= length:
        with suppress(ValueError):
            network = ip_network(f"{match[1]}/{match[2] or length}", strict=False)
            return Term(word, qualifier, name, network=network)
    raise SpfSyntaxError(f"{_shown(word)} names no network")


def _domain(word: str, spec: str) -> str:
    if not _DOMAIN_SPEC.fullmatch(spec):
        raise SpfSyntaxError(f"{_shown(word)} names no domain")
    return spec


def _shown(word: str) -> str:
    return word.encode("unicode_escape").decode("ascii")
