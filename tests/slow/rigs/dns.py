"""Real DNS servers on loopback: NSD for zones, rbldnsd for a block list.

1. Neither asks anybody: both are authoritative only, so a name outside their zones is REFUSED and nothing leaves the
   machine.
2. NSD answers over UDP and TCP at (`address`, `port`); rbldnsd has UDP only.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from rigs.daemon import Daemon, Host, own_folder, unpacked

SOA = "$TTL 300\n@ IN SOA ns hostmaster 1 3600 900 604800 30\n@ IN NS ns\nns IN A {address}\n"


def zone_of(hosts: Iterable[Host]) -> str:
    """Zone text for mail hosts: every domain has one MX, whose address is its rig's host."""
    lines = []
    for host in hosts:
        lines.append(f"mx.{host.domain}. IN A {host.ip}")
        lines += [f"{domain}. IN MX 10 mx.{host.domain}." for domain in (host.domain, host.catch_all) if domain]
    return "\n".join(lines) + "\n"


class NsdRig:
    """NSD serving zones given as text, keyed by the zone's name; one without SOA gets SOA and NS (negative TTL 30 s).

    `replace` changes the zones by a restart at the same address.
    """

    def __init__(self, zones: Mapping[str, str], port: int, address: str = "127.30.4.1") -> None:
        self.address = address
        self.port = port
        self._program = unpacked("nsd") / "usr" / "sbin" / "nsd"
        self._daemon = Daemon("nsd", own_folder("nsd"))
        self._start(zones)

    def _start(self, zones: Mapping[str, str]) -> None:
        folder = self._daemon.folder
        config = [
            "server:",
            f"  ip-address: {self.address}@{self.port}",
            "  server-count: 1",
            "  do-ip6: no",
            '  username: ""',  # it stays who we are: the port is high and the folder is ours
            '  chroot: ""',
            '  database: ""',
            f'  zonesdir: "{folder}"',
            f'  pidfile: "{folder}/nsd.pid"',
            f'  xfrdfile: "{folder}/xfrd.state"',
            f'  xfrdir: "{folder}"',
            f'  zonelistfile: "{folder}/zone.list"',
            f'  logfile: "{self._daemon.log_file}"',
            "remote-control:",
            "  control-enable: no",
        ]
        for number, (name, text) in enumerate(zones.items()):
            head = "" if " SOA " in text else SOA.format(address=self.address)
            file = folder / f"{number}.zone"
            file.write_text(f"$ORIGIN {name}.\n{head}{text}\n")
            config += ["zone:", f'  name: "{name}"', f'  zonefile: "{file}"']
        conf = folder / "nsd.conf"
        conf.write_text("\n".join(config) + "\n")
        self._daemon.start([self._program, "-d", "-c", conf], [(self.address, self.port)])

    def replace(self, zones: Mapping[str, str]) -> None:
        """Serve these zones instead."""
        self._daemon.close(keep=True)
        self._start(zones)

    @property
    def log(self) -> str:
        return self._daemon.log

    def close(self) -> None:
        self._daemon.close()


class RbldnsdRig:
    """rbldnsd with one list: the given addresses answer 127.0.0.2 and a TXT with the list's look-up page."""

    def __init__(self, zone: str, listed: Iterable[str], address: str, port: int, page: str) -> None:
        self.zone = zone
        self.address = address
        self.port = port
        program = unpacked("rbldnsd") / "usr" / "sbin" / "rbldnsd"
        self._daemon = Daemon("rbldnsd", own_folder("rbldnsd"))
        data = self._daemon.folder / "listed"
        data.write_text(f":127.0.0.2:{page}$\n" + "".join(f"{entry}\n" for entry in listed))
        argv: list[str | Path] = [program, "-n", "-u", "nobody:nogroup", "-b", f"{address}/{port}", "-r", data.parent]
        self._daemon.start([*argv, f"{zone}:ip4set:{data.name}"], says=" started (")

    @property
    def log(self) -> str:
        return self._daemon.log

    def close(self) -> None:
        self._daemon.close()
