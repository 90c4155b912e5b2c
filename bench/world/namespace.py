"""A network of this process's own: only loopback, where SMTP is at port 25 and DNS at 53, as unmodified peers ask.

1. It is a network namespace without a name: the kernel removes it when the last process in it has ended.
2. Nothing in it reaches the machine's network, so that no peer's mistake does.
3. The machine's resolv.conf and nsswitch.conf are covered by ours for these processes only.
4. Root may always; others where the kernel lets users have namespaces of their own.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import socket
import struct
import tempfile
from pathlib import Path

SMTP_PORT, DNS_PORT = 25, 53
COVERED = {
    Path("/etc/resolv.conf"): "nameserver 127.0.0.1\noptions timeout:5 attempts:3\n",
    Path("/etc/nsswitch.conf"): "hosts: files dns\n",
}
CLONE_NEWNS, CLONE_NEWUSER, CLONE_NEWNET = 0x00020000, 0x10000000, 0x40000000
MS_BIND, MS_REC, MS_PRIVATE = 4096, 16384, 1 << 18
SIOCGIFFLAGS, SIOCSIFFLAGS, IFF_UP = 0x8913, 0x8914, 1

_libc = ctypes.CDLL(None, use_errno=True)
_entered = False


def enter() -> str:
    """Put this process and all that it starts from now on into a namespace; why it could not, empty when it could."""
    global _entered  # noqa: PLW0603 - a process enters once
    if _entered:
        return ""
    uid, gid = os.getuid(), os.getgid()
    try:
        _call(_libc.unshare, CLONE_NEWNET | CLONE_NEWNS | (CLONE_NEWUSER if uid else 0))
        if uid:
            Path("/proc/self/setgroups").write_text("deny", encoding="ascii")
            Path("/proc/self/uid_map").write_text(f"0 {uid} 1", encoding="ascii")
            Path("/proc/self/gid_map").write_text(f"0 {gid} 1", encoding="ascii")
        _call(_libc.mount, b"none", b"/", None, MS_REC | MS_PRIVATE, None)
        for path, text in COVERED.items():
            _cover(path, text)
        _raise_loopback()
    except OSError as error:
        return f"no network namespace could be made ({error.strerror}): run it as root"
    # A peer opens a connection an address, hundreds a second to one provider's address.
    Path("/proc/sys/net/ipv4/ip_local_port_range").write_text("1024 65535", encoding="ascii")
    _entered = True
    return ""


def _cover(path: Path, text: str) -> None:
    target = path.resolve()  # often a link, and only what is there can be covered
    if not target.exists():
        raise FileNotFoundError(2, f"{path} is not there")
    with tempfile.NamedTemporaryFile("w", encoding="ascii") as file:
        file.write(text)
        file.flush()
        Path(file.name).chmod(0o644)
        _call(_libc.mount, file.name.encode(), str(target).encode(), None, MS_BIND, None)


def _raise_loopback() -> None:
    """The kernel gives it 127.0.0.1/8 as it comes up."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        request = struct.pack("16sH14x", b"lo", 0)
        (flags,) = struct.unpack_from("H", fcntl.ioctl(any_socket, SIOCGIFFLAGS, request), 16)
        fcntl.ioctl(any_socket, SIOCSIFFLAGS, struct.pack("16sH14x", b"lo", flags | IFF_UP))


def _call(function: object, *arguments: object) -> None:
    if function(*arguments):  # type: ignore[operator]
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
