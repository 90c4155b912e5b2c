"""Reads lab.yaml, or a spec of a test in the same form: personas, hosts, domains, zones and expected verdicts.

1. Shipped personas, block lists and `probe.lab` (the identity's own domain) are in every lab; a spec adds to them.
2. Addresses are given in the order of the file: hosts with the same last two labels share a /24 of 127.20.0.0/16,
   since a verifier takes these for one organisation; generated hosts lie in /24s of their own, 16,384 of them from
   127.64.0.0 on, and beyond that many share them.
3. `expect` names the reason that a verifier must give in enhanced mode; `a|b` where both are right.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import idna
import yaml

from engine.lab.blocklist import BlockList
from engine.lab.persona import LabError, Persona

SHIPPED = Path(__file__).with_name("lab.yaml")
FIRST_GENERATED = int(IPv4Address("127.64.0.1"))
GENERATED_NETWORKS = 64 * 256
_SERIES = re.compile(r"\{(\d+)\.\.(\d+)\}")
_KEYS = {"personas", "hosts", "domains", "records", "blocklists", "generate", "expect", "replies"}
_DOMAIN_KEYS = {"persona", "mailboxes", "mx", "a", "cname", "hosts", "records", "faults", "expect"}
_GENERATE_KEYS = {"domains", "per_domain", "known", "persona", "prefix", "per_host", "expect"}

Expectation = tuple[str, tuple[str, ...]]  # an address, and the reasons that are right for it


@dataclass(frozen=True, slots=True)
class Host:
    """One mail host: its name, its address on loopback and its persona's name."""

    name: str
    ip: str
    persona: str


@dataclass(frozen=True, slots=True)
class Domain:
    """One mail domain: the addresses of its servers, its mailboxes (local part -> name of the reply)."""

    name: str
    servers: frozenset[str]
    mailboxes: Mapping[str, str]


@dataclass(slots=True)
class Spec:
    """A whole lab. `records` is name -> type -> rdata texts, `faults` name -> servfail, refused or silent."""

    personas: dict[str, Persona] = field(default_factory=dict)
    hosts: dict[str, Host] = field(default_factory=dict)
    domains: dict[str, Domain] = field(default_factory=dict)
    records: dict[str, dict[str, list[str]]] = field(default_factory=dict)
    faults: dict[str, str] = field(default_factory=dict)
    blocklists: dict[str, BlockList] = field(default_factory=dict)
    expect: list[Expectation] = field(default_factory=list)

    def servers(self) -> dict[str, Host]:
        """The hosts by address; names that share an address are one server, the first of them."""
        found: dict[str, Host] = {}
        for host in self.hosts.values():
            found.setdefault(host.ip, host)
        return found


def load(source: Mapping[str, Any] | Path | None = None) -> Spec:
    """The lab that a file or mapping describes, the shipped one for None.

    Raises:
        LabError: it is not a lab; the message says where.
    """
    shipped = _read(SHIPPED)
    given = shipped if source is None else _read(source) if isinstance(source, Path) else source
    unknown = set(given) - _KEYS
    if unknown:
        raise LabError(f"the lab has no section {', '.join(sorted(unknown))}; it has {', '.join(sorted(_KEYS))}")
    builder = _Builder()
    builder.personas(shipped["replies"], shipped["personas"])
    if given is not shipped:
        builder.personas({}, given.get("personas", {}))
        builder.domains({"probe.lab": shipped["domains"]["probe.lab"]})
    builder.blocklists({**shipped["blocklists"], **given.get("blocklists", {})})
    builder.hosts(given.get("hosts", {}), where="hosts")
    builder.domains(given.get("domains", {}))
    builder.records(given.get("records", ()) if given is shipped else [*shipped["records"], *given.get("records", ())])
    generate = given.get("generate", ())
    for index, entry in enumerate([generate] if isinstance(generate, Mapping) else generate):
        builder.generate(entry, where=f"generate[{index}]")
    builder.expectations(given.get("expect", {}))
    return builder.finish()


def addresses(source: Mapping[str, Any] | Path | None = None) -> Iterator[Expectation]:
    """Every address of a lab with the reasons that are right for it, the lab's whole list for a verifier."""
    yield from load(source).expect


def _read(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise LabError(f"{path} is no readable lab file: {error}") from None
    if not isinstance(content, dict):
        raise LabError(f"{path} must hold a map of {', '.join(sorted(_KEYS))}")
    return content


class _Builder:
    """Puts a Spec together; what refers to later lines (CNAMEs, shared hosts) is resolved in `finish`."""

    def __init__(self) -> None:
        self.spec = Spec()
        self._default = Persona("default")
        self._networks: dict[str, list[int]] = {}
        self._same: dict[str, str] = {}
        self._serving: dict[str, list[str]] = {}  # domain -> names of hosts, or of the domain whose hosts it shares
        self._mailboxes: dict[str, dict[str, str]] = {}
        self._generated = 0

    def personas(self, replies: Mapping[str, str], entries: Mapping[str, Any]) -> None:
        self._default = self._default.changed({"replies": replies}, where="replies")
        for name, values in entries.items():
            persona = Persona(name, replies=self._default.replies)
            self.spec.personas[name] = persona.changed(values or {}, where=f"personas.{name}")

    def blocklists(self, entries: Mapping[str, Any]) -> None:
        for zone, values in entries.items():
            self.spec.blocklists[zone] = BlockList(zone).changed(values or {}, where=f"blocklists.{zone}")

    def hosts(self, entries: Mapping[str, Any], *, where: str) -> None:
        for name, value in entries.items():
            values = value if isinstance(value, Mapping) else {"persona": value}
            if "same_as" in values:
                self._same[name] = values["same_as"]
                continue
            self._host(name, values.get("persona", "normal"), values.get("address", ""), where=f"{where}.{name}")

    def _host(self, name: str, persona: str, ip: str = "", *, where: str) -> None:
        if persona not in self.spec.personas:
            raise LabError(f"{where}: there is no persona {persona!r}")
        ip = ip or self._address(name)
        self.spec.hosts[name] = Host(name, ip, persona)
        self.record(name, "AAAA" if ":" in ip else "A", ip)

    def _address(self, name: str) -> str:
        used = self._networks.setdefault(".".join(name.split(".")[-2:]), [len(self._networks), 0])
        used[1] += 1
        if used[0] > 255 or used[1] > 254:
            raise LabError(f"{name}: the lab's own /16 is full; describe many domains under `generate`")
        return f"127.20.{used[0]}.{used[1]}"

    def record(self, name: str, kind: str, text: str) -> None:
        self.spec.records.setdefault(ascii_name(name), {}).setdefault(kind, []).append(text)

    def records(self, lines: Sequence[str]) -> None:
        for line in lines:
            try:
                name, kind, text = line.split(None, 2)
            except ValueError:
                raise LabError(f"records: {line!r} is not a name, a type and a value") from None
            self.record(name, kind, text)

    def domains(self, entries: Mapping[str, Any]) -> None:
        for pattern, entry in entries.items():
            for name in _series(pattern):
                values = _substituted(entry or {}, name)
                unknown = set(values) - _DOMAIN_KEYS
                if unknown:
                    raise LabError(f"domains.{name} has no {', '.join(unknown)}; it has {', '.join(_DOMAIN_KEYS)}")
                self._domain(name, values)

    def _domain(self, name: str, values: Mapping[str, Any]) -> None:
        where = f"domains.{name}"
        key = ascii_name(name)
        self.hosts(values.get("hosts", {}), where=f"{where}.hosts")
        persona = values.get("persona", "normal")
        exchanges = [_exchange(text) for text in values.get("mx", ())]
        self.spec.records.setdefault(key, {})
        if "cname" in values:
            self.record(key, "CNAME", values["cname"])
        elif values.get("a"):
            self._host(key, persona, where=where)
        elif "mx" not in values:
            exchanges = [(10, f"mx.{key}")]
            if not values.get("hosts"):
                self._host(f"mx.{key}", persona, where=where)
        for preference, exchange in exchanges:
            self.record(key, "MX", f"{preference} {exchange}")
        self.records(values.get("records", ()))
        self.spec.faults.update({ascii_name(each): fault for each, fault in values.get("faults", {}).items()})
        self._serving[key] = [exchange for _, exchange in exchanges] or [values.get("cname", key)]
        boxes = values.get("mailboxes", ())
        self._mailboxes[key] = dict(boxes) if isinstance(boxes, Mapping) else dict.fromkeys(boxes, "known")
        for reasons, locals_ in values.get("expect", {}).items():
            self.spec.expect += [(f"{local}@{name}", tuple(reasons.split("|"))) for local in locals_]

    def generate(self, entry: Mapping[str, Any], *, where: str) -> None:
        """Many domains from one line: `domains` of them, `per_domain` addresses each, the first `known` exist."""
        unknown = set(entry) - _GENERATE_KEYS
        if unknown:
            raise LabError(f"{where} has no {', '.join(unknown)}; it has {', '.join(sorted(_GENERATE_KEYS))}")
        per_domain = int(entry.get("per_domain", 5))
        known = int(entry.get("known", (per_domain + 1) // 2))
        persona, prefix, per_host = entry.get("persona", "normal"), entry.get("prefix", "d"), entry.get("per_host", 1)
        if persona not in self.spec.personas:
            raise LabError(f"{where}: there is no persona {persona!r}")
        right = {"known": "rcpt_ok", "unknown": "mailbox_not_found", **entry.get("expect", {})}
        boxes = {f"user{each}": "known" for each in range(1, known + 1)}
        names = [(f"user{each}", tuple(right["known"].split("|"))) for each in range(1, known + 1)]
        names += [(f"gone{each}", tuple(right["unknown"].split("|"))) for each in range(1, per_domain - known + 1)]
        spec = self.spec
        for index in range(int(entry["domains"])):
            name = f"{prefix}{index + 1:05}.lab"
            if index % per_host == 0:
                place, network = divmod(self._generated, GENERATED_NETWORKS)
                ip = str(IPv4Address(FIRST_GENERATED + 256 * network + place))
                self._generated += 1
                mail_host = f"mx.{name}"
                spec.hosts[mail_host] = Host(mail_host, ip, persona)
                spec.records[mail_host] = {"A": [ip]}
            spec.records[name] = {"MX": [f"10 {mail_host}"]}
            self._serving[name] = [mail_host]
            self._mailboxes[name] = boxes
            spec.expect += [(f"{local}@{name}", reasons) for local, reasons in names]

    def expectations(self, entries: Mapping[str, Sequence[str]]) -> None:
        for reasons, listed in entries.items():
            self.spec.expect += [(address, tuple(reasons.split("|"))) for address in listed]

    def finish(self) -> Spec:
        spec = self.spec
        for name, target in self._same.items():
            if target not in spec.hosts:
                raise LabError(f"hosts.{name}: same_as names {target!r}, which is no host")
            same = spec.hosts[target]
            spec.hosts[name] = Host(name, same.ip, same.persona)
            self.record(name, "A", same.ip)
        for name, mailboxes in self._mailboxes.items():
            servers = frozenset(ip for each in self._serving[name] for ip in self._reached(each))
            spec.domains[name] = Domain(name, servers, mailboxes)
        for host in spec.servers().values():
            if ":" not in host.ip:
                reverse = ".".join(reversed(host.ip.split("."))) + ".in-addr.arpa"
                spec.records.setdefault(reverse, {"PTR": [host.name]})
        return spec

    def _reached(self, name: str, depth: int = 0) -> list[str]:
        """The server addresses behind a host name, CNAMEs and domains that share another's hosts included."""
        if name in self.spec.hosts:
            return [self.spec.hosts[name].ip]
        aliases = self.spec.records.get(name, {}).get("CNAME", [])
        followed = [ip for alias in aliases if depth < 8 for ip in self._reached(alias, depth + 1)]
        if name in self._serving and self._serving[name] != [name] and depth < 8:
            followed += [ip for each in self._serving[name] for ip in self._reached(each, depth + 1)]
        return followed


def ascii_name(name: str) -> str:
    """A domain name in lower case and A-labels, without a trailing dot."""
    text = name.rstrip(".").lower()
    return text if text.isascii() else idna.encode(text).decode()


def _series(pattern: str) -> list[str]:
    """`d-{01..03}.lab` -> d-01.lab, d-02.lab, d-03.lab."""
    match = _SERIES.search(pattern)
    if match is None:
        return [pattern]
    width = len(match[1])
    numbers = range(int(match[1]), int(match[2]) + 1)
    return [f"{pattern[: match.start()]}{number:0{width}}{pattern[match.end() :]}" for number in numbers]


def _substituted(value: Any, domain: str) -> Any:
    if isinstance(value, str):
        return value.replace("{domain}", domain)
    if isinstance(value, Mapping):
        return {_substituted(key, domain): _substituted(item, domain) for key, item in value.items()}
    return [_substituted(item, domain) for item in value] if isinstance(value, list) else value


def _exchange(text: str) -> tuple[int, str]:
    preference, _, name = str(text).rpartition(" ")
    return int(preference or 10), name if name == "." else name.rstrip(".").lower()
