"""Exim from Debian on loopback: one daemon, and one listening address for each way of treating us.

1. All addresses share one port; the address decides the treatment:

   | host  | domain         | what it does |
   |-------|----------------|--------------|
   | plain | exim.lab       | mailboxes, STARTTLS and PIPELINING offered; any.exim.lab is its catch-all |
   | greet | greet.exim.lab | refuses `DENIED` in the greeting |
   | mail  | mail.exim.lab  | refuses `DENIED` at MAIL FROM; offers neither PIPELINING nor SMTPUTF8 |
   | rcpt  | rcpt.exim.lab  | refuses `DENIED` at RCPT, before it looks at the recipient |

2. Exim answers without enhanced codes, unlike Postfix; its own words are kept wherever it has some.
3. At most RECIPIENTS_MAX recipients a transaction, at every host: Exim has one such limit for all.
4. Nothing is resolved, no callout is made, and its own limits on commands other than MAIL, RCPT and DATA are in force.
5. Debian's Exim insists on the system user Debian-exim; `.ci/fetch-mtas` makes it.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

from rigs.daemon import DENIED, MAILBOXES, Daemon, Host, own_folder, unpacked

HOSTS = {
    host.name: host
    for host in (
        Host("plain", "127.30.2.1", "exim.lab", "any.exim.lab"),
        Host("greet", "127.30.2.2", "greet.exim.lab"),
        Host("mail", "127.30.2.3", "mail.exim.lab"),
        Host("rcpt", "127.30.2.4", "rcpt.exim.lab"),
    )
}
RECIPIENTS_MAX = 10
AWKWARD: Mapping[str, str] = {
    "busy": ":defer: mailbox is busy",
    "quota": ":fail: mailbox is full",
    "closed": ":fail: this account has been disabled",
}
"""Local part -> what its router does; Exim answers 451 to a deferral and 550 to a failure."""
LISTED = "rejected because $sender_host_address is in a black list at zen.spamhaus.org"

CONFIG = """\
primary_hostname = mx.exim.lab
spool_directory = {folder}/spool
log_file_path = {folder}/spool/%slog
log_selector = +smtp_connection
pid_file_path = {folder}/spool/exim.pid
local_interfaces = {interfaces}
daemon_smtp_ports = {port}
keep_environment =
host_lookup =
disable_ipv6
smtp_accept_max = 100
recipients_max = {recipients_max}
tls_advertise_hosts = *
pipelining_advertise_hosts = ${{if eq{{$received_ip_address}}{{{mail}}}{{}}{{*}}}}
smtputf8_advertise_hosts = ${{if eq{{$received_ip_address}}{{{mail}}}{{}}{{*}}}}
tls_certificate = {folder}/tls.pem
tls_privatekey = {folder}/tls.pem
domainlist boxes = {boxes}
hostlist denied = {denied}
acl_smtp_connect = at_connect
acl_smtp_mail = at_mail
acl_smtp_rcpt = at_rcpt

begin acl
at_connect:
  drop condition = ${{if eq{{$received_ip_address}}{{{greet}}}}}
       hosts = +denied
       message = {listed}
  accept

at_mail:
  deny condition = ${{if eq{{$received_ip_address}}{{{mail}}}}}
       hosts = +denied
       message = {listed}
  accept

at_rcpt:
  deny condition = ${{if eq{{$received_ip_address}}{{{rcpt}}}}}
       hosts = +denied
       message = {listed}
  require message = relay not permitted
          domains = +boxes : {catch_all}
  require verify = recipient
  accept

begin routers
{awkward}
catch_all:
  driver = accept
  domains = {catch_all}
  transport = nowhere
mailboxes:
  driver = accept
  domains = +boxes
  local_parts = {mailboxes}
  transport = nowhere

begin transports
nowhere:
  driver = appendfile
  file = /dev/null
"""


class EximRig:
    """A running Exim; see the head of this file for its hosts."""

    hosts = HOSTS
    domains = tuple(domain for host in HOSTS.values() for domain in (host.domain, host.catch_all) if domain)
    address = HOSTS["plain"].ip
    denied_source = DENIED

    def __init__(self, port: int, certificate: Path) -> None:
        self.port = port
        program = unpacked("exim") / "usr" / "sbin" / "exim4"
        self._daemon = Daemon("exim", own_folder("exim"))
        folder = self._daemon.folder
        (folder / "spool").mkdir()
        self._daemon.log_file = folder / "spool" / "mainlog"
        shutil.copyfile(certificate, folder / "tls.pem")
        for path in ("spool", "tls.pem"):
            shutil.chown(folder / path, "Debian-exim", "Debian-exim")
        awkward = "".join(
            f"{local}:\n  driver = redirect\n  domains = +boxes\n  local_parts = {local}\n"
            f"  data = {action}\n  allow_defer\n  allow_fail\n"
            for local, action in AWKWARD.items()
        )
        conf = folder / "exim.conf"
        conf.write_text(
            CONFIG.format(
                folder=folder,
                port=port,
                interfaces=" : ".join(host.ip for host in HOSTS.values()),
                recipients_max=RECIPIENTS_MAX,
                boxes=" : ".join(host.domain for host in HOSTS.values()),
                catch_all=HOSTS["plain"].catch_all,
                denied=DENIED,
                listed=LISTED,
                awkward=awkward,
                mailboxes=" : ".join(MAILBOXES),
                **{name: host.ip for name, host in HOSTS.items() if name != "plain"},
            )
        )
        conf.chmod(0o644)
        self._daemon.start([program, "-C", conf, "-bdf"], [(host.ip, port) for host in HOSTS.values()])

    @property
    def log(self) -> str:
        return self._daemon.log

    def close(self) -> None:
        self._daemon.close()
