"""The lab's zones: a query's bytes in, the answer's bytes out, for a name server that also plays the resolver.

1. The lab answers for `lab.`, the reverse names of its own addresses, and `invalid.`, which nobody has (RFC 6761
   section 6.4); everything else is REFUSED: a lab knows no other domain and must not say that one does not exist.
2. An answer's sections are made once a name and type, at the first query, and kept; a query then costs a header.
3. A block list's zone answers as the list's manner has it; `change` forgets what was kept of it.
4. CNAMEs are followed as a resolver does; an MX answer brings the addresses of its hosts in the additional section.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence

import dns.name
import dns.rdata
import dns.rdataclass
import dns.rdatatype

from engine.lab.blocklist import BlockList

TTL_S = 300
PLAIN_UDP = 512  # bytes of an answer to a query without EDNS (RFC 1035 section 4.2.1)
_MAX_CHAIN = 8
_NOERROR, _FORMERR, _SERVFAIL, _NXDOMAIN, _NOTIMP, _REFUSED = 0, 1, 2, 3, 4, 5
_QR, _AA, _TC, _RD, _RA = 0x8000, 0x0400, 0x0200, 0x0100, 0x0080
_OPT = b"\x00" + struct.pack("!HHIH", 41, 1232, 0, 0)
_SOA = "ns.lab. hostmaster.lab. 1 3600 600 86400 60"
_FAULTS = {"servfail": _SERVFAIL, "refused": _REFUSED}

Sections = tuple[int, int, bytes, int, bytes, int, bytes]  # rcode, then count and bytes of each section


class Zones:
    """Answers queries from `records` (name -> type -> rdata texts); `faults`: name -> servfail, refused or silent."""

    def __init__(
        self,
        records: Mapping[str, Mapping[str, Sequence[str]]],
        faults: Mapping[str, str],
        blocklists: Mapping[str, BlockList] | None = None,
    ) -> None:
        self._records = records
        self._faults = faults
        self.blocklists = dict(blocklists or {})
        self._names = {"lab"}
        for name in records:
            labels = name.split(".")
            self._names.update(".".join(labels[index:]) for index in range(len(labels)))
        self._made: dict[tuple[str, int], Sections | None] = {}

    def change(self, blocklist: BlockList) -> None:
        """Serve a block list so from now on."""
        self.blocklists[blocklist.zone] = blocklist
        self._made.clear()

    def answer(self, query: bytes, *, tcp: bool = False) -> bytes | None:
        """The answer to one query; None where the lab stays silent, or the bytes are no query."""
        if len(query) < 12:
            return None
        ident, flags, questions, answers, _, extra = struct.unpack("!6H", query[:12])
        if flags & _QR:
            return None
        parsed = _question(query) if questions == 1 and not answers else None
        if parsed is None or flags & 0x7800:
            code = _FORMERR if parsed is None else _NOTIMP
            return struct.pack("!6H", ident, _QR | (flags & 0x7900) | code, 0, 0, 0, 0)
        name, kind, end = parsed
        if self._faults.get(name) == "silent":
            return None
        size = _payload(query, end) if extra else 0
        sections = self._sections(name, kind)
        if sections is None:
            return None
        code, an_count, an, ns_count, ns, ar_count, ar = sections
        head = _QR | _AA | _RA | (flags & _RD) | code
        limit = 65535 if tcp else max(PLAIN_UDP, size)
        opt = _OPT if size else b""
        room = limit - end - len(opt)
        if len(an) + len(ns) > room:
            head, an_count, an, ns_count, ns, ar_count, ar = head | _TC, 0, b"", 0, b"", 0, b""
        elif len(an) + len(ns) + len(ar) > room:
            ar_count, ar = 0, b""
        header = struct.pack("!6H", ident, head, 1, an_count, ns_count, ar_count + (1 if opt else 0))
        return b"".join((header, query[12:end], an, ns, ar, opt))

    def _sections(self, name: str, kind: int) -> Sections | None:
        try:
            return self._made[name, kind]
        except KeyError:
            blocklist = next((each for each in self.blocklists.values() if each.owns(name)), None)
            made = self._made[name, kind] = self._listed(blocklist, name, kind) if blocklist else self._make(name, kind)
            return made

    def _listed(self, blocklist: BlockList, name: str, kind: int) -> Sections | None:
        if blocklist.fault:
            return None if blocklist.fault == "silent" else (_FAULTS[blocklist.fault], 0, b"", 0, b"", 0, b"")
        kind_name = dns.rdatatype.to_text(dns.rdatatype.RdataType.make(kind))
        known, texts = blocklist.answer(name, kind_name)
        answer = b"".join(_record(name, name, kind_name, text) for text in texts)
        authority = b"" if texts else _record("lab", name, "SOA", _SOA)
        return _NOERROR if known else _NXDOMAIN, len(texts), answer, int(not texts), authority, 0, b""

    def _make(self, name: str, kind: int) -> Sections:
        kind_name = dns.rdatatype.to_text(dns.rdatatype.RdataType.make(kind))
        answer: list[bytes] = []
        extra: list[bytes] = []
        owner = name
        for _ in range(_MAX_CHAIN):
            fault = _FAULTS.get(self._faults.get(owner, ""))
            if fault is not None:
                return fault, 0, b"", 0, b"", 0, b""
            held = self._records.get(owner, {})
            if kind_name in held or "CNAME" not in held:
                break
            alias = held["CNAME"][0]
            answer.append(_record(owner, name, "CNAME", alias))
            owner = alias.rstrip(".").lower()
        found = self._records.get(owner, {}).get(kind_name, ())
        answer += [_record(owner, name, kind_name, text) for text in found]
        if kind_name == "MX":
            for text in found:
                extra += self._glue(text.split()[1].rstrip(".").lower(), name)
        rcode = _NOERROR if found or owner in self._names else _NXDOMAIN if _ours(owner) else _REFUSED
        nothing = not found and rcode != _REFUSED
        authority = _record("lab", name, "SOA", _SOA) if nothing else b""
        return rcode, len(answer), b"".join(answer), int(nothing), authority, len(extra), b"".join(extra)

    def _glue(self, host: str, asked: str) -> list[bytes]:
        if host in self._faults:
            return []
        held = self._records.get(host, {})
        return [_record(host, asked, kind, text) for kind in ("A", "AAAA") for text in held.get(kind, ())]


def _ours(name: str) -> bool:
    return name == "lab" or name.endswith((".lab", ".invalid", ".127.in-addr.arpa"))


def _record(owner: str, asked: str, kind: str, text: str) -> bytes:
    """One resource record; an owner that is the name asked for points to the question."""
    label = b"\xc0\x0c" if owner == asked else dns.name.from_text(owner).to_wire()
    rdatatype = dns.rdatatype.from_text(kind)
    rdata = dns.rdata.from_text(dns.rdataclass.IN, rdatatype, text, origin=dns.name.root, relativize=False).to_wire()
    assert label is not None
    assert rdata is not None
    return label + struct.pack("!HHIH", rdatatype, dns.rdataclass.IN, TTL_S, len(rdata)) + rdata


def _question(query: bytes) -> tuple[str, int, int] | None:
    """The name asked for in lower case, its type, and where the question ends; None when it is malformed."""
    labels: list[bytes] = []
    at = 12
    while at < len(query) and (length := query[at]):
        if length > 63 or len(labels) > 127:
            return None
        labels.append(query[at + 1 : at + 1 + length])
        at += 1 + length
    if at + 5 > len(query):
        return None
    (kind,) = struct.unpack_from("!H", query, at + 1)
    return b".".join(labels).lower().decode("ascii", "replace"), kind, at + 5


def _payload(query: bytes, end: int) -> int:
    """The UDP payload size that the query's OPT record offers (RFC 6891 section 6.2.3), 0 without one."""
    if len(query) >= end + 11 and query[end] == 0 and query[end + 1 : end + 3] == b"\x00\x29":
        return max(PLAIN_UDP, int.from_bytes(query[end + 3 : end + 5]))
    return 0
