"""What this machine gives to whoever probes from it: files, disk, name servers, clock, a way out by port 25.

1. A check passes, fails, or is unknown, as in `flow.preflight`; what fails says what to mend.
2. Nothing is sent but questions to the name servers, and one connection to each host that the operator names.
3. Whether port 25 is open can't be known without dialling somebody. We dial no stranger to find out: unnamed, it is
   unknown, and a run learns it from its first mail hosts.
"""

from __future__ import annotations

import ctypes
import os
import resource
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import suppress
from ipaddress import ip_address
from pathlib import Path
from secrets import token_hex
from time import monotonic

from engine.core.identity import Identity
from engine.flow.preflight import Check, Finding
from engine.net.public import admissible, is_literal
from engine.net.resolver import LookupFailedError, Resolver
from engine.net.stream import DeadlinePassed, Stream

FILES_BESIDE = 200  # descriptors that are no sessions: databases, DNS, the output, a safety margin
ROOM_BYTES = 1024**3  # our guess: a journal of a million rows, the write-ahead logs, the output beside it
EGRESS_S = 10.0  # as long as the shipped policies give a connection
GREETING_S = 20.0  # a mail host of one's own need not be waited for longer; postscreen holds back for 6 s
_TIME_ERROR = 5  # adjtimex(2): nobody sets this clock
# Anycast addresses of large public resolvers: block lists answer none of them, or wrongly.
PUBLIC_RESOLVERS = frozenset(
    """
    8.8.8.8 8.8.4.4 1.1.1.1 1.0.0.1 9.9.9.9 149.112.112.112 208.67.222.222 208.67.220.220 4.2.2.1 4.2.2.2 94.140.14.14
    2001:4860:4860::8888 2001:4860:4860::8844 2606:4700:4700::1111 2606:4700:4700::1001 2620:fe::fe 2620:fe::9
    """.split()  # noqa: SIM905 - it reads better than a dozen quoted addresses
)


def files(concurrency: int) -> Finding:
    """Whether the hard limit of open files lets so many sessions be open at once."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = concurrency + FILES_BESIDE
    if hard == resource.RLIM_INFINITY or hard >= needed:
        return Finding(
            "files", Check.PASS, f"This process may open {hard} files; {concurrency} sessions need {needed}."
        )
    return Finding(
        "files",
        Check.FAIL,
        f"This process may open {hard} files, and {concurrency} sessions need {needed}; raise LimitNOFILE of the unit, "
        f"or the hard limit in /etc/security/limits.conf, or give --concurrency {max(1, hard - FILES_BESIDE)}.",
    )


def state_folder(state: Path) -> Finding:
    """Whether the state's file can be written, and what room its disk has."""
    folder = state.parent
    there = next(each for each in (folder, *folder.parents) if each.exists())
    if not there.is_dir():
        return Finding("state", Check.FAIL, f"{there} is no folder; name another file with --state.")
    try:
        with tempfile.NamedTemporaryFile(dir=there, prefix=".engine-doctor-"):
            pass
    except OSError as error:
        why = error.strerror or str(error)
        return Finding(
            "state", Check.FAIL,
            f"{there} can't be written ({why}); make it this user's own, or name another file with --state.",
        )  # fmt: skip
    if state.exists() and not os.access(state, os.R_OK | os.W_OK):
        return Finding(
            "state", Check.FAIL, f"{state} is another user's; run as that one, or name another with --state."
        )
    free = os.statvfs(there).f_bavail * os.statvfs(there).f_frsize
    room = f"{free / 1024**3:.1f} GiB"
    if free < ROOM_BYTES:
        return Finding("state", Check.FAIL, f"{there} has {room} left; a long job's journal may need more: free some.")
    new = "" if folder.exists() else " (it is made by the first run)"
    return Finding("state", Check.PASS, f"{folder} can be written{new} and has {room} left.")


def clock() -> Finding:
    """Whether something keeps the clock right: the kernel knows, nobody is asked."""
    try:
        told = ctypes.CDLL(None).adjtimex(ctypes.create_string_buffer(1024))  # struct timex of zeros: a mere question
    except (AttributeError, OSError):
        told = -1
    if told < 0:
        return Finding("clock", Check.UNKNOWN, "The kernel does not say whether the clock is kept right.")
    if told == _TIME_ERROR:
        return Finding(
            "clock",
            Check.FAIL,
            "Nothing keeps this clock right, and consent, greylists and budgets go by it; install chrony or enable "
            "systemd-timesyncd.",
        )
    return Finding("clock", Check.PASS, "The clock is kept right.")


def name_servers(resolver: Resolver, *, named: bool = False) -> Iterator[Finding]:
    """Whether the name servers answer, tell the truth of a name that nobody can have, and suit block lists.

    `named`: by --dns or the settings, and not by the system.
    """
    servers = resolver.servers
    shown = ", ".join(servers)
    name = f"{token_hex(8)}.invalid"  # RFC 6761 section 6.4: nobody's, for ever
    try:
        lies = resolver.addresses(name)
    except LookupFailedError as error:
        where = "--dns, ENGINE_DNS or dns in the settings" if named else "/etc/resolv.conf"
        yield Finding(
            "resolver", Check.FAIL,
            f"The name servers {shown} give no answer ({error.reason}); see that they run, and that {where} names the "
            "right ones.",
        )  # fmt: skip
        return
    if lies:
        yield Finding(
            "resolver",
            Check.FAIL,
            f"The name servers {shown} say that a name that can't exist is at {lies[0]}: every dead domain would seem "
            "alive; use a resolver of your own (docs/operate.md).",
        )
        return
    yield Finding("resolver", Check.PASS, f"The name servers {shown} answer, and make up no names.")
    hosts = {_host(server) for server in servers}
    public = sorted(hosts & PUBLIC_RESOLVERS)
    if public:
        yield Finding(
            "resolver_own",
            Check.FAIL,
            f"{public[0]} is a public resolver: block lists refuse what comes by it; run one of your own "
            "(docs/operate.md has a configuration for unbound).",
        )
    elif all(ip_address(host).is_private for host in hosts):
        yield Finding("resolver_own", Check.PASS, "The name servers are on this machine or its network.")
    else:
        yield Finding(
            "resolver_own",
            Check.UNKNOWN,
            f"Whether others share {shown} can't be seen from here; block lists refuse a provider's resolver.",
        )


def egress(
    targets: Sequence[tuple[str, int]], resolver: Resolver, identity: Identity | None, *, allow_private: bool = False
) -> Iterator[Finding]:
    """Whether a connection to port 25 leaves this machine: to the hosts that were named, and to nobody else."""
    if not targets:
        yield Finding(
            "egress",
            Check.UNKNOWN,
            "Nobody is dialled unasked; name a mail host of yours with --egress HOST to see whether port 25 is open.",
        )
    for host, port in targets:
        yield _dialled(host, port, resolver, identity, allow_private=allow_private)


def _dialled(host: str, port: int, resolver: Resolver, identity: Identity | None, *, allow_private: bool) -> Finding:
    try:
        found = (host,) if is_literal(host) else resolver.addresses(host)
    except LookupFailedError as error:
        return Finding("egress", Check.UNKNOWN, f"{host} could not be looked up ({error.reason}).")
    v6 = identity is not None and bool(identity.public_v6)
    usable = [ip for ip in found if admissible(ip, allow_private=allow_private) and (v6 or ":" not in ip)]
    if not usable:
        return Finding("egress", Check.UNKNOWN, f"{host} has no address that may be dialled from here.")
    ip = usable[0]
    source = (identity.bind_v6 if ":" in ip else identity.bind_v4) if identity else ""
    where = f"{host}:{port}"
    stream = Stream(ip)
    try:
        stream.deadline = monotonic() + EGRESS_S
        stream.connect(port, source or "")
    except DeadlinePassed:
        stream.close()
        return Finding(
            "egress",
            Check.FAIL,
            f"{where} ({ip}) did not answer in {EGRESS_S:.0f} s: port {port} seems closed on the way out; ask the "
            "provider of this machine to open it. Until then it can give syntax, domain and mail-host answers "
            "(--no-connect).",
        )
    except OSError as error:
        stream.close()
        why = error.strerror or str(error)
        return Finding(
            "egress", Check.FAIL,
            f"{where} ({ip}) can't be reached ({why[0].lower()}{why[1:]}); see that a mail server listens there, and "
            "that neither this machine's firewall nor its provider rejects the way to it.",
        )  # fmt: skip
    return _greeted(stream, where)


def _greeted(stream: Stream, where: str) -> Finding:
    """Its first line, and a farewell. Where something on the way answers for the host, it does not greet as one."""
    greeting = b""
    try:
        stream.deadline = monotonic() + GREETING_S
        while b"\n" not in greeting and len(greeting) < 512:
            more = stream.read()
            if not more:
                break
            greeting += more
        with suppress(DeadlinePassed, OSError):
            stream.deadline = monotonic() + 2.0
            stream.write(b"QUIT\r\n")
            stream.read()
    except (DeadlinePassed, OSError):
        pass
    finally:
        stream.close()
    line = greeting.split(b"\n")[0].decode("ascii", "replace").strip()
    if line.startswith("220"):
        return Finding("egress", Check.PASS, f"{where} greets us: {line[:80]}.".replace("..", "."))
    said = f"says {line[:80]!r}" if line else "says nothing"
    return Finding(
        "egress", Check.FAIL,
        f"{where} took the connection and {said}: no mail host, one that refuses us already, or "
        "somebody on the way who answers for it; name another with --egress to tell which.",
    )  # fmt: skip


def _host(server: str) -> str:
    """The address of "1.2.3.4:53" or "[::1]:53"."""
    host = server.rsplit(":", 1)[0] if server.count(":") == 1 or server.startswith("[") else server
    return host.strip("[]").split("%")[0]
