"""smtplib in a gevent-patched process, as many verifiers are written: one session and one RCPT an address."""

from __future__ import annotations

from gevent import monkey

if __name__ == "__main__":
    monkey.patch_all()

import json
import smtplib
import sys

from gevent.pool import Pool

from bench.peers import Peer, addresses, of_python, peer_options
from bench.peers.bare import Names

PEER = Peer("smtplib on gevent", "python", of_python("bench.peers.smtplib_gevent"))


def ask(ip: str, port: int, address: str) -> bool:
    """One session; whether RCPT was answered."""
    with smtplib.SMTP(ip, port, local_hostname="probe.lab", timeout=60) as server:
        server.ehlo()
        server.mail("probe@probe.lab")
        code, _ = server.rcpt(address)
        return code > 0


def main(arguments: list[str]) -> int:
    """Ask the whole list."""
    chosen = peer_options().parse_args(arguments)
    rows, names, pool = addresses(chosen.list), Names(chosen.dns), Pool(chosen.concurrency)

    def one(address: str) -> bool:
        return ask(names.host(address.partition("@")[2]), chosen.port, address)

    answered = sum(pool.imap_unordered(one, rows))
    print(json.dumps({"addresses": len(rows), "answered": answered}))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
