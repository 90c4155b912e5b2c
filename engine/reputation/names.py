"""Whether an identity's names and addresses are its own to use: what a receiving server looks at first.

1. A check passes, fails, or is unknown; unknown is not failed: a name server that is down forbids nothing.
2. Refused are names that are not ours to use, a source without a confirmed reverse name, a sender that takes no mail.
3. Here nothing is sent but DNS questions. What follows from a failure is the caller's to decide: preflight refuses to
   start, `identity check` shows it.
"""

from __future__ import annotations

from collections.abc import Iterator

from engine.core.finding import Check, Finding
from engine.core.flags import FREE
from engine.core.identity import Identity
from engine.core.reasons import REASONS, Category
from engine.net.public import admissible, is_literal
from engine.net.resolver import LookupFailedError, Resolver

MAX_PTR_NAMES = 10  # as RFC 7208 section 4.6.4 for its own look-ups by PTR
# Names of large providers that a stranger's HELO or MAIL FROM would borrow; the free-mail domains come on top.
PROVIDERS = frozenset(
    """
    google.com googlemail.com gmail.com microsoft.com outlook.com office365.com office.com hotmail.com live.com
    yahoo.com yahoodns.net aol.com oath.com apple.com icloud.com me.com mail.ru yandex.ru yandex.net gmx.net gmx.com
    t-online.de orange.fr comcast.net zoho.com qq.com tencent.com 163.com netease.com pphosted.com mimecast.com
    messagelabs.com barracudanetworks.com iphmx.com amazon.com amazonses.com facebook.com sendgrid.net mailgun.org
    """.split()  # noqa: SIM905 - it reads better than forty quoted names
)


def check_names(identity: Identity, resolver: Resolver, *, allow_private: bool = False) -> tuple[Finding, ...]:
    """All findings about an identity's names, in the order in which a server would meet them."""
    return (
        *(_address(ip, allow_private) for ip in identity.addresses),
        *(_reverse(ip, resolver) for ip in identity.addresses),
        *_helo(identity, resolver),
        *_mail_from(identity, resolver),
    )


def _address(ip: str, allow_private: bool) -> Finding:
    if admissible(ip, allow_private=allow_private):
        return Finding("public_address", Check.PASS, f"{ip} is an address that the world can see.")
    return Finding(
        "public_address",
        Check.FAIL,
        f"{ip} is not a public address; give the one that the world sees (a local one belongs into bind_address).",
    )


def _reverse(ip: str, resolver: Resolver) -> Finding:
    """PTR, and one of its names leads back: forward-confirmed reverse DNS."""
    try:
        names = resolver.reverse(ip)
    except LookupFailedError as error:
        return Finding("ptr", Check.UNKNOWN, f"The reverse name of {ip} could not be looked up ({error}).")
    if not names:
        return Finding("ptr", Check.FAIL, f"{ip} has no PTR record; ask whoever owns the address for one.")
    failed = ""
    for name in names[:MAX_PTR_NAMES]:
        try:
            if ip in resolver.addresses(name):
                return Finding("fcrdns", Check.PASS, f"{ip} is named {name}, and {name} leads back to it.")
        except LookupFailedError as error:
            failed = str(error)
    shown = ", ".join(names[:3])
    if failed:
        return Finding(
            "fcrdns", Check.UNKNOWN, f"Whether {shown} leads back to {ip} could not be looked up ({failed})."
        )
    return Finding(
        "fcrdns", Check.FAIL, f"{ip} is named {shown}, which does not lead back to {ip}; add an address record."
    )


def _helo(identity: Identity, resolver: Resolver) -> Iterator[Finding]:
    name = identity.helo_name
    wrong = _not_ours(name)
    if wrong:
        yield Finding("helo_name", Check.FAIL, f"The HELO name {name} {wrong}; use a host name of your own.")
        return
    yield Finding("helo_name", Check.PASS, f"The HELO name {name} is a host name.")
    try:
        addresses = resolver.addresses(name)
    except LookupFailedError as error:
        yield Finding("helo_resolves", Check.UNKNOWN, f"The HELO name could not be looked up ({error}).")
        return
    public = identity.addresses
    if not addresses:
        yield Finding(
            "helo_resolves", Check.FAIL, f"The HELO name {name} does not resolve; add a record for {public[0]}."
        )
    elif set(addresses) & set(public):
        yield Finding("helo_resolves", Check.PASS, f"The HELO name {name} leads to this identity's address.")
    else:
        yield Finding(
            "helo_resolves",
            Check.FAIL,
            f"The HELO name {name} leads to {', '.join(addresses[:3])} and not to {' or '.join(public)}; correct it.",
        )


def _mail_from(identity: Identity, resolver: Resolver) -> Iterator[Finding]:
    sender = identity.mail_from
    domain = sender.rpartition("@")[2]
    wrong = _not_ours(domain) if sender else "is empty"
    if wrong:
        yield Finding(
            "mail_from", Check.FAIL, f"The MAIL FROM domain {domain} {wrong}; use a mailbox of your own domain."
        )
        return
    yield Finding("mail_from", Check.PASS, f"MAIL FROM is {sender}.")
    route = resolver.route(domain)
    if route.dialable or route.reason == "no_route_ipv6":
        yield Finding("mail_from_domain", Check.PASS, f"{domain} takes mail at {route.names[0]}.")
    elif REASONS[route.reason].category is Category.INVALID:
        why = REASONS[route.reason].meaning
        yield Finding(
            "mail_from_domain",
            Check.FAIL,
            f"{domain} takes no mail ({why[0].lower()}{why[1:]}); MAIL FROM has to be a mailbox that exists.",
        )
    else:
        yield Finding(
            "mail_from_domain", Check.UNKNOWN, f"Whether {domain} takes mail could not be looked up ({route.reason})."
        )


def _not_ours(name: str) -> str:
    """Why nobody may use this name for himself, or nothing."""
    if is_literal(name):
        return "is an address, not a name"
    if name.rsplit(".", maxsplit=1)[-1] in ("localhost", "localdomain", "local"):
        return "means every machine"
    if "." not in name.strip("."):
        return "is not fully qualified"
    labels = name.split(".")
    above = {".".join(labels[start:]) for start in range(len(labels))}
    if above & (FREE | PROVIDERS):
        return f"belongs to a provider ({min(above & (FREE | PROVIDERS), key=len)})"
    return ""
