"""What a block list's answer says of the target; pure. Each rule is a mistake that block list checkers make.

1. Only what the list documents as a listing is LISTED. An address record by itself means nothing.
2. No record is CLEAN only where the list is known to work: through a blocked resolver some lists know nobody.
3. SERVFAIL, REFUSED, FORMERR, a time-out, a truncated or lame answer is ERROR, never CLEAN.
4. One address outside of 127.0.0.0/8 makes the whole answer SUSPECT: a resolver that rewrites, a parked domain.
5. 127.255.255.0/24 is REFUSED for every list, and so are codes that a list documents as such (127.0.1.255 of the DBL:
   "don't ask me about addresses"). One of them spoils the others of the same answer.
6. 127.0.0.1 is no listing (RFC 5782 section 5), unless the list itself documents it: it is what sinkholes answer.
7. A code that the list does not document is SUSPECT; beside a documented one it is told and does no harm.
8. Several records are several sublists; a sublist is told once.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network

from engine.core.listing import Listing, Status
from engine.reputation.blocklist import BlockList, Code, Effect

LOOPBACK = IPv4Network("127.0.0.0/8")
REFUSALS = IPv4Network("127.255.255.0/24")
NO_LISTING = IPv4Address("127.0.0.1")
_REFUSED = {
    252: "says that the zone's name is mistyped",
    254: "does not answer this resolver: a public one, or one without a reverse name of its own",
    255: "does not answer us: too many queries, or not registered",
}


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back for one question: an rcode with its records, or a failure that kept one from coming."""

    rcode: str = "NOERROR"
    records: tuple[str, ...] = ()  # addresses of A, strings of TXT
    failure: str = ""  # timed out, truncated, malformed, lame, unreachable, name too long
    ttl_s: int | None = None
    latency_ms: float = 0.0

    @property
    def error(self) -> str:
        """What kept this from being an answer; empty where it is one."""
        return self.failure or ("" if self.rcode in ("NOERROR", "NXDOMAIN") else self.rcode)


@dataclass(frozen=True, slots=True)
class Verdict:
    """The reading of one answer."""

    status: Status
    listings: tuple[Listing, ...] = ()
    detail: str = ""


def judge(blocklist: BlockList, answer: Answer) -> Verdict:
    """The verdict of an answer to the question for a target's A record, from a list that works (see `health`)."""
    if answer.error:
        return Verdict(Status.ERROR, detail=answer.error)
    addresses = sorted({IPv4Address(record) for record in answer.records})
    strangers = [address for address in addresses if address not in LOOPBACK]
    if strangers:
        seen = f"answers {_texts(strangers)}, outside of 127.0.0.0/8: parked, or a resolver that rewrites"
        return Verdict(Status.SUSPECT, detail=seen)
    for address in addresses:
        if refusal := refused(blocklist, address):
            return Verdict(Status.REFUSED, detail=f"{refusal} ({address})")
    listings: dict[str, Listing] = {}
    told: list[str] = []
    unknown: list[IPv4Address] = []
    for address in addresses:
        rows = meanings(blocklist, address)
        if not rows:
            unknown.append(address)
        for row in rows:
            if row.effect is not Effect.LISTING:
                told.append(f"{row.means} ({address})")
            elif row.sublist not in listings or listings[row.sublist].severity < row.severity:
                listings[row.sublist] = Listing(row.sublist, str(address), row.severity, row.means)
    if unknown:
        told.append(
            f"answers {_texts(unknown)}, which is no listing"
            if unknown == [NO_LISTING]
            else f"answers {_texts(unknown)}, which it does not document"
        )
    if listings:
        worst_first = sorted(listings.values(), key=lambda each: (-each.severity, each.sublist))
        return Verdict(Status.LISTED, tuple(worst_first), "; ".join(told))
    return Verdict(Status.SUSPECT if unknown else Status.CLEAN, detail="; ".join(told))


def meanings(blocklist: BlockList, address: IPv4Address) -> list[Code]:
    """The rows of the list's table that an answer is: one, or one a bit; none where it is undocumented."""
    rows = [code for code in blocklist.codes if code.matches(address)]
    exact = [row for row in rows if not row.bit]
    return exact or rows


def refused(blocklist: BlockList, address: IPv4Address) -> str:
    """Why an answer is a refusal to answer us; empty where it is none."""
    if address in REFUSALS:
        return _REFUSED.get(int(address) & 0xFF, "refuses to answer us")
    return next((row.means for row in meanings(blocklist, address) if row.effect is Effect.REFUSED), "")


def _texts(addresses: Iterable[IPv4Address]) -> str:
    return ", ".join(map(str, addresses))
