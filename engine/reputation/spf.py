"""Would SPF let this address speak for that name: check_host() of RFC 7208, over look-ups that somebody else does.

Our own: the one library that evaluates (pyspf) had its last release in 2020 and calls what dnspython has deprecated.

1. Nothing is asked but through `ask`; a failed look-up is a temperror, never a missing record.
2. At most 10 terms that look up (section 4.6.4), 2 of them void; more is a permerror. Of MX hosts more than 10 are a
   permerror, of reverse names the first 10 count. A term is void when its own question is.
3. `exp=` must be well-formed and is never fetched: we show our own status, and refuse nobody.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from urllib.parse import quote

from engine.reputation.answer import Answer, Ask
from engine.reputation.spf_record import Record, SpfSyntaxError, Term, parse, select

MAX_TERMS = 10
MAX_VOIDS = 2
MAX_HOSTS = 10
MAX_NAME = 253
MAX_LABEL = 63
_MACRO = re.compile(r"%(?:\{([a-z])(\d*)(r?)([.\-+,/_=]*)\}|([%_-]))", re.IGNORECASE)
_PLAIN = {"%": "%", "_": " ", "-": "%20"}


class SpfResult(StrEnum):
    """The results of section 2.6."""

    NONE = "none"
    NEUTRAL = "neutral"
    PASS = "pass"  # noqa: S105 - no password
    FAIL = "fail"
    SOFTFAIL = "softfail"
    TEMPERROR = "temperror"
    PERMERROR = "permerror"


_QUALIFIERS = {"+": SpfResult.PASS, "-": SpfResult.FAIL, "~": SpfResult.SOFTFAIL, "?": SpfResult.NEUTRAL}


@dataclass(frozen=True, slots=True)
class Spf:
    """What an evaluation gave. `matched` is the term that decided, with the way to it: `include:a.example > ip4:...`.

    `lookups` counts the terms that looked up, of MAX_TERMS; `problem` tells of an error what and where.
    """

    result: SpfResult
    record: str = ""
    matched: str = ""
    lookups: int = 0
    voids: int = 0
    problem: str = ""

    @property
    def count(self) -> str:
        """The look-ups as operators write them: `3/10`."""
        return f"{self.lookups}/{MAX_TERMS}"


def check_host(ip: str, domain: str, sender: str, ask: Ask, *, helo: str = "") -> Spf:
    """Evaluate the SPF of `domain` for a client at `ip`; `sender` without a local part is its postmaster."""
    address = ip_address(ip)
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    local, _, name = sender.rpartition("@")
    found = _Evaluation(address, local or "postmaster", name or domain, helo or domain, ask)
    try:
        result, record, matched = found.check(domain.lower().removesuffix("."))
    except _Ends as end:
        return Spf(end.result, found.record, "", found.lookups, found.voids, end.problem)
    return Spf(result, record, matched, found.lookups, found.voids)


class _Ends(Exception):  # noqa: N818 - a result of its own, from wherever it is found
    def __init__(self, result: SpfResult, problem: str) -> None:
        super().__init__(problem)
        self.result, self.problem = result, problem


class _Evaluation:
    """One run of check_host with what all its domains share: the client, the sender and the limits."""

    def __init__(self, ip: IPv4Address | IPv6Address, local: str, sender_domain: str, helo: str, ask: Ask) -> None:
        self.ip = ip
        self.local, self.sender_domain, self.helo = local, sender_domain, helo
        self.ask = ask
        self.lookups = self.voids = 0
        self.record = ""  # of the domain that was asked about

    def check(self, domain: str) -> tuple[SpfResult, str, str]:
        """(result, record, term that decided) of one domain; raises _Ends for errors."""
        if not _is_name(domain):
            return SpfResult.NONE, "", ""
        answer = self.ask(domain, "TXT")
        if answer.failure:
            raise _Ends(SpfResult.TEMPERROR, f"the TXT records of {domain} could not be looked up ({answer.failure})")
        found = select(answer.values)
        if not found:
            return SpfResult.NONE, "", ""
        self.record = self.record or found[0]
        if len(found) > 1:
            raise _Ends(SpfResult.PERMERROR, f"{domain} has {len(found)} SPF records; one is allowed")
        try:
            record = parse(found[0])
        except SpfSyntaxError as error:
            raise _Ends(SpfResult.PERMERROR, f"the SPF record of {domain}: {error}") from error
        result, matched = self._evaluate(record, domain)
        return result, found[0], matched

    def _evaluate(self, record: Record, domain: str) -> tuple[SpfResult, str]:
        for term in record.terms:
            matched = self._matches(term, domain)
            if matched:
                return _QUALIFIERS[term.qualifier], matched
        if not record.redirect:
            return SpfResult.NEUTRAL, ""
        self._count(f"redirect={record.redirect}")
        target = self._expand(record.redirect, domain)
        result, _, matched = self.check(target)
        if result is SpfResult.NONE:
            raise _Ends(SpfResult.PERMERROR, f"redirect={target} leads to no SPF record")
        return result, " > ".join(filter(None, (f"redirect={target}", matched)))

    def _matches(self, term: Term, domain: str) -> str:
        """The way to the term if it matches, else nothing."""
        match term.name:
            case "all":
                matches = True
            case "ip4" | "ip6":
                assert term.network is not None
                matches = self.ip.version == term.network.version and self.ip in term.network
            case "include":
                return self._include(term, domain)
            case "a":
                matches = self._a(term, self._question(term, domain, self._family))
            case "mx":
                matches = self._mx(term, self._question(term, domain, "MX"))
            case "exists":
                matches = bool(self._question(term, domain, "A").values)
            case _:
                matches = self._ptr(term, domain)
        return term.text if matches else ""

    # --- mechanisms -------------------------------------------------------------------------------------------

    def _include(self, term: Term, domain: str) -> str:
        self._count(term.text)
        target = self._expand(term.target, domain)
        result, _, matched = self.check(target)
        if result is SpfResult.NONE:
            raise _Ends(SpfResult.PERMERROR, f"{term.text} leads to no SPF record")
        return f"{term.text} > {matched}" if result is SpfResult.PASS else ""

    def _question(self, term: Term, domain: str, kind: str) -> Answer:
        """The one question that a term counts for."""
        self._count(term.text)
        name = self._expand(term.target, domain) if term.target else domain
        answer = self._asked(name, kind)
        if answer.failure:
            raise _Ends(SpfResult.TEMPERROR, f"{term.text} could not be looked up ({answer.failure})")
        self._note(answer, term.text)
        return answer

    def _a(self, term: Term, answer: Answer) -> bool:
        prefix = term.prefix_v4 if self.ip.version == 4 else term.prefix_v6
        return any(self.ip in ip_network(f"{each}/{prefix}", strict=False) for each in answer.values)

    def _mx(self, term: Term, hosts: Answer) -> bool:
        if len(hosts.values) > MAX_HOSTS:
            raise _Ends(SpfResult.PERMERROR, f"{term.text} leads to {len(hosts.values)} mail hosts; 10 are allowed")
        for host in hosts.values:
            answer = self._asked(host, self._family)
            if answer.failure:
                raise _Ends(SpfResult.TEMPERROR, f"{term.text}: {host} could not be looked up ({answer.failure})")
            if self._a(term, answer):
                return True
        return False

    def _ptr(self, term: Term, domain: str) -> bool:
        """A failed look-up here is no error; the term does not match (section 5.5)."""
        self._count(term.text)
        target = (self._expand(term.target, domain) if term.target else domain).lower()
        answer = self._asked(self.ip.reverse_pointer, "PTR")
        self._note(answer, term.text)
        return any(name == target or name.endswith(f".{target}") for name in self._validated(answer))

    def _validated(self, answer: Answer) -> Iterator[str]:
        """The reverse names that lead back to the client."""
        for name in answer.values[:MAX_HOSTS]:
            if any(self.ip == ip_address(each) for each in self._asked(name, self._family).values):
                yield name

    # --- limits and look-ups ----------------------------------------------------------------------------------

    @property
    def _family(self) -> str:
        return "A" if self.ip.version == 4 else "AAAA"

    def _count(self, what: str) -> None:
        self.lookups += 1
        if self.lookups > MAX_TERMS:
            raise _Ends(SpfResult.PERMERROR, f"more than {MAX_TERMS} terms look up; {what} is one too many")

    def _note(self, answer: Answer, what: str) -> None:
        self.voids += answer.void
        if self.voids > MAX_VOIDS:
            raise _Ends(SpfResult.PERMERROR, f"more than {MAX_VOIDS} look-ups find nothing; {what} is one too many")

    def _asked(self, name: str, kind: str) -> Answer:
        """A name that no query can carry does not exist (section 4.3 by analogy)."""
        return self.ask(name.lower(), kind) if _fits(name) else Answer(nxdomain=True)

    # --- macros (section 7) -----------------------------------------------------------------------------------

    def _expand(self, text: str, domain: str) -> str:
        """A domain-spec as the name that it stands for; one that is too long loses labels on its left."""
        name = _MACRO.sub(lambda match: self._macro(match, domain), text).removesuffix(".")
        while len(name) > MAX_NAME and "." in name:
            name = name.partition(".")[2]
        return name

    def _macro(self, match: re.Match[str], domain: str) -> str:
        letter, digits, turned, delimiters, plain = match.groups()
        if plain:
            return _PLAIN[plain]
        parts = re.split(f"[{re.escape(delimiters or '.')}]", self._value(letter.lower(), domain))
        if turned:
            parts.reverse()
        value = ".".join(parts[-int(digits) :] if digits else parts)
        return quote(value, safe="-._~") if letter.isupper() else value

    def _value(self, letter: str, domain: str) -> str:
        if letter == "p":
            return self._named(domain)
        six = self.ip.version == 6
        values = {
            "s": f"{self.local}@{self.sender_domain}", "l": self.local, "o": self.sender_domain, "d": domain,
            "i": ".".join(self.ip.exploded.replace(":", "")) if six else str(self.ip),
            "v": "ip6" if six else "in-addr", "h": self.helo,
        }  # fmt: skip
        return values[letter]

    def _named(self, domain: str) -> str:
        """The macro `p`: a validated reverse name, the domain itself or one below it first; else `unknown`."""
        names = list(self._validated(self._asked(self.ip.reverse_pointer, "PTR")))
        near = [name for name in names if name == domain] + [name for name in names if name.endswith(f".{domain}")]
        return next(iter(near + names), "unknown")


def _is_name(domain: str) -> bool:
    """Whether it is a fully qualified domain name (section 4.3)."""
    return "." in domain and _fits(domain) and not domain.startswith("[")


def _fits(name: str) -> bool:
    return 0 < len(name) <= MAX_NAME and all(0 < len(label) <= MAX_LABEL for label in name.split("."))
