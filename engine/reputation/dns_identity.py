"""What the DNS says of an identity: SPF, DKIM, DMARC, PTR, HELO. Displayed, never managed.

1. Each check passes, fails, or is unknown, says what was seen, and where it failed what to do.
2. A look-up that failed is unknown; only the DNS itself can say that a record is missing.
3. Names and addresses are judged by the same code as preflight. What comes on top never keeps a run from starting.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from ipaddress import ip_address

from engine.core.finding import Check, Finding
from engine.core.identity import Identity
from engine.net.resolver import LookupFailedError, Resolver
from engine.reputation.answer import Ask
from engine.reputation.dkim_key import read_key
from engine.reputation.dmarc import find_policy
from engine.reputation.names import check_names
from engine.reputation.spf import SpfResult, check_host

# What providers call lines that they hand out to anybody; receivers score such names as home lines.
_GENERIC = re.compile(
    r"(?:^|[.\-_])(?:a?dsl|dhcp|dial(?:up)?|dyn(?:amic)?|pools?|ppp(?:oe)?|static|cable|vps|vm|cust(?:omer)?|broadband)"
    r"\d*(?:[.\-_]|$)"
)


def dns_identity(
    identity: Identity, resolver: Resolver, ask: Ask, *, allow_private: bool = False
) -> tuple[Finding, ...]:
    """All checks of an identity's DNS, in the order of a table for people."""
    domain = identity.mail_from.rpartition("@")[2]
    return (
        *check_names(identity, resolver, allow_private=allow_private),
        *(each for ip in identity.addresses for each in _reverse_name(identity, ip, resolver)),
        *(_spf("spf_helo", ip, identity.helo_name, f"postmaster@{identity.helo_name}", identity, ask)
          for ip in identity.addresses),
        *(_spf("spf_mail_from", ip, domain, identity.mail_from, identity, ask) for ip in identity.addresses),
        *(_dkim(selector, domain, ask) for selector in identity.dkim_selectors),
        _dmarc(domain, ask),
    )  # fmt: skip


def _reverse_name(identity: Identity, ip: str, resolver: Resolver) -> Iterator[Finding]:
    """Whether the reverse name is ours rather than the provider's, and the one that we greet with."""
    try:
        names = resolver.reverse(ip)
    except LookupFailedError as error:
        for check in ("helo_ptr", "ptr_name"):
            yield Finding(check, Check.UNKNOWN, f"The reverse name of {ip} could not be looked up ({error}).")
        return
    if not names:
        return  # said already
    helo, shown = identity.helo_name, ", ".join(names[:3])
    if helo in names:
        yield Finding("helo_ptr", Check.PASS, f"The HELO name {helo} is the reverse name of {ip}.")
    else:
        yield Finding(
            "helo_ptr", Check.FAIL,
            f"The HELO name {helo} is not the reverse name of {ip} ({shown}); make them the same.",
        )  # fmt: skip
    handed_out = [name for name in names if generic(name, ip)]
    if handed_out:
        yield Finding(
            "ptr_name", Check.FAIL,
            f"The reverse name of {ip}, {handed_out[0]}, reads like one that a provider hands out; ask for {helo}.",
        )  # fmt: skip
    else:
        yield Finding("ptr_name", Check.PASS, f"The reverse name of {ip} is one of its own: {shown}.")


def generic(name: str, ip: str) -> bool:
    """Whether a reverse name looks made from its address, or says what kind of line it is."""
    if _GENERIC.search(name):
        return True
    address = ip_address(ip)
    if address.version == 6:
        return address.exploded.replace(":", "") in re.sub(r"[^0-9a-f]", "", name)
    octets = str(address).split(".")
    numbers = re.findall(r"\d+", name)
    in_order = any(numbers[at : at + 3] in (octets[:3], octets[1:], octets[::-1][:3], octets[::-1][1:])
                   for at in range(len(numbers)))  # fmt: skip
    return in_order or f"{int(address):08x}" in name or "".join(each.zfill(3) for each in octets) in name


def _spf(check: str, ip: str, domain: str, sender: str, identity: Identity, ask: Ask) -> Finding:
    found = check_host(ip, domain, sender, ask, helo=identity.helo_name)
    what = f"SPF of {domain} for {ip}"
    seen: dict[str, str | int] = {
        "address": ip, "domain": domain, "result": found.result.value, "lookups": found.lookups,
        "matched": found.matched, "record": found.record, "problem": found.problem,
    }  # fmt: skip
    term = f"{'ip6' if ':' in ip else 'ip4'}:{ip}"
    match found.result:
        case SpfResult.PASS:
            say = f"{what}: pass by {found.matched}, {found.count} look-ups."
            return Finding(check, Check.PASS, say, seen)
        case SpfResult.TEMPERROR:
            return Finding(check, Check.UNKNOWN, f"{what} is not known: {found.problem}.", seen)
        case SpfResult.NONE:
            say = f'{what}: there is no record; add {domain}. TXT "v=spf1 {term} -all".'
        case SpfResult.PERMERROR:
            say = f"{what}: permerror, {found.count} look-ups: {found.problem}; correct the record."
        case _:
            by = f" by {found.matched}" if found.matched else ""
            say = f"{what}: {found.result}{by}, {found.count} look-ups; add {term} to the record."
    return Finding(check, Check.FAIL, say, seen)


def _dkim(selector: str, domain: str, ask: Ask) -> Finding:
    name = f"{selector}._domainkey.{domain}"
    answer = ask(name, "TXT")
    if answer.failure:
        return Finding("dkim", Check.UNKNOWN, f"{name} could not be looked up ({answer.failure}).")
    if len(answer.values) != 1:
        found = f"{len(answer.values)} TXT records, which count as none" if answer.values else "no record"
        return Finding("dkim", Check.FAIL, f"{name} has {found}; publish one key, or take the selector out.")
    key = read_key(answer.values[0])
    seen: dict[str, str | int] = {"selector": selector, "key": key.kind, "bits": key.bits}
    if key.problem:
        return Finding("dkim", Check.FAIL, f"{name}: {key.problem}; publish a key, or take the selector out.", seen)
    remarks = "; ".join(filter(None, (key.remark, "in test mode (t=y)" if key.testing else "")))
    say = f"{name} holds a key of type {key.kind} with {key.bits} bits{f' ({remarks})' if remarks else ''}."
    return Finding("dkim", Check.PASS, say, seen)


def _dmarc(domain: str, ask: Ask) -> Finding:
    found = find_policy(domain, ask)
    if found.failure:
        return Finding(
            "dmarc", Check.UNKNOWN, f"The DMARC policy of {domain} could not be looked up ({found.failure})."
        )
    seen: dict[str, str | int] = {"domain": domain, "at": found.name, "policy": found.policy}
    if not found.policy:
        why = found.problem or "there is no record"
        say = f'{domain} has no DMARC policy: {why}; add _dmarc.{domain}. TXT "v=DMARC1; p=reject".'
        return Finding("dmarc", Check.FAIL, say, seen)
    testing = ", in test mode (t=y)" if found.tags.get("t") == "y" else ""
    at = "" if found.name == domain else f", stated at {found.name}"
    return Finding("dmarc", Check.PASS, f"The DMARC policy of {domain} is {found.policy}{at}{testing}.", seen)
