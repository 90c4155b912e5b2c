"""What a world holds: hosts with their addresses and personas, and the records of its zones.

1. Every host without a given address gets one in a /24 of its own, so that a verifier takes no two for one
   organisation, until 57,344 of these are used up.
2. `probe.lab` is who asks: name, MX and PTR of 127.0.0.1, as preflight wants them.
3. Names have two labels and a host's three, so that its registrable domain is its site's. They end in `.lab`, or, where
   peers ask that know the real top-level domains, in one of these.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

NETWORKS = 224 * 256
OURS = "127.0.0.1"


class Plan:
    """A world to be: `persona`, `host` and `domain` add to it."""

    def __init__(self) -> None:
        self.personas: dict[str, dict[str, Any]] = {}
        self.hosts: dict[str, str] = {}  # address -> persona, where it isn't normal
        self.records: list[str] = [
            "lab. NS ns.lab.", f"ns.lab. A {OURS}", f"probe.lab. A {OURS}", "probe.lab. MX 10 probe.lab.",
        ]  # fmt: skip
        self.addresses: dict[str, str] = {}  # host name -> address
        self._given = 0

    def persona(self, name: str, **values: Any) -> str:
        """A way to answer, over the shipped one of that name (bench.world.persona); its name."""
        self.personas[name] = values
        return name

    def host(self, name: str, persona: str = "normal", ip: str = "") -> str:
        """A mail host; its address. Several names may have one address, whose first persona counts."""
        if not ip:
            ip = address(self._given)
            self._given += 1
        if persona != "normal":
            self.hosts.setdefault(ip, persona)
        self.addresses[name] = ip
        self.records.append(f"{name}. A {ip}")
        return ip

    def domain(self, name: str, hosts: Sequence[str]) -> str:
        """A mail domain with these hosts by preference; its name."""
        self.records += [f"{name}. MX {10 * place} {host}." for place, host in enumerate(hosts, 1)]
        return name

    def site(self, name: str, persona: str = "normal") -> str:
        """A domain with one host of its own, `mx.<name>`; its name."""
        self.host(f"mx.{name}", persona)
        return self.domain(name, [f"mx.{name}"])

    def world(self) -> Mapping[str, Any]:
        """What the SMTP process is told."""
        return {"hosts": self.hosts, "personas": self.personas}


def address(number: int) -> str:
    """The address of the host with this number, from 127.32.0.1 on."""
    place, network = divmod(number, NETWORKS)
    return f"127.{32 + network // 256}.{network % 256}.{1 + place}"
