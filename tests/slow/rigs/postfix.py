"""Postfix from Debian on loopback: one master, and one listening address for each way of treating us.

1. All addresses share one port, so a run with `--smtp-port` reaches them all; the address decides the treatment:

   | host    | domain             | what it does |
   |---------|--------------------|--------------|
   | plain   | postfix.lab        | virtual mailboxes, STARTTLS and SMTPUTF8 offered; any.postfix.lab is its catch-all |
   | listed  | listed.postfix.lab | reject_rbl_client zen.spamhaus.org, delayed to RCPT as Postfix does by default |
   | shut    | shut.postfix.lab   | the same list with smtpd_delay_reject=no: refused in the greeting |
   | limit   | limit.postfix.lab  | smtpd_recipient_limit=3 |
   | grey    | grey.postfix.lab   | asks Postgrey |
   | tls     | tls.postfix.lab    | STARTTLS required before MAIL |
   | screen  | screen.postfix.lab | postscreen, denied sources: enforce |
   | drop    | drop.postfix.lab   | postscreen, denied sources: drop |
   | deep    | deep.postfix.lab   | postscreen with deep protocol tests: a source's first contact is put off with 450 |

2. Every domain but the catch-all has the same mailboxes (`MAILBOXES`, and jörg) and the same awkward ones (`AWKWARD`).
3. What is refused is decided by our source address (`DENIED`), never by our HELO or MAIL FROM. Postfix's own limits on
   errors are in force: slower answers after 10 in a session, 421 after 20.
4. Postfix resolves nothing: peer names are off, and no restriction needs DNS. The block list is the exception: libc
   reads its server from /etc/resolv.conf and always uses port 53, so the two listed services run in Postfix's own
   chroot, whose etc/resolv.conf names our rbldnsd.
5. No queue manager runs, for no mail comes: without `in_flow_delay = 0` cleanup would wait for one, a second for each
   transaction with an accepted recipient.
6. No user is made: the daemons run as `mail`, `news` and `nobody`, which Debian and Ubuntu always have.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

from rigs.daemon import DENIED, MAILBOXES, Daemon, Host, own_folder, unpacked

HOSTS = {
    host.name: host
    for host in (
        Host("plain", "127.30.1.1", "postfix.lab", "any.postfix.lab"),
        Host("listed", "127.30.1.2", "listed.postfix.lab"),
        Host("shut", "127.30.1.3", "shut.postfix.lab"),
        Host("limit", "127.30.1.4", "limit.postfix.lab"),
        Host("grey", "127.30.1.5", "grey.postfix.lab"),
        Host("tls", "127.30.1.6", "tls.postfix.lab"),
        Host("screen", "127.30.1.7", "screen.postfix.lab"),
        Host("drop", "127.30.1.8", "drop.postfix.lab"),
        Host("deep", "127.30.1.9", "deep.postfix.lab"),
    )
}
AWKWARD: Mapping[str, str] = {
    "busy": "450 4.2.0 Mailbox busy",
    "full": "452 4.2.2 Mailbox full",
    "quota": "552 5.2.2 Over quota",
    "closed": "550 5.2.1 Mailbox disabled",
}
"""Local part -> an operator's answer; Postfix puts "<address>: Recipient address rejected: " before the text."""
RBL_ZONE = "zen.spamhaus.org"

MAIN = """\
compatibility_level = 3.6
command_directory = {root}/usr/sbin
daemon_directory = {libs}/sbin
shlib_directory = {libs}
meta_directory = {folder}/conf
queue_directory = {folder}/queue
data_directory = {folder}/data
mail_owner = mail
setgid_group = news
default_privs = nobody
import_environment = MAIL_CONFIG POSTLOG_SERVICE POSTLOG_HOSTNAME LD_LIBRARY_PATH LANG=C
maillog_file = {log}
maillog_file_prefixes = {folder}

myhostname = mx.postfix.lab
mydestination =
mynetworks = 127.255.255.254/32
inet_interfaces = all
inet_protocols = ipv4
in_flow_delay = 0
alias_maps =
local_recipient_maps =
virtual_mailbox_domains = {domains}
virtual_mailbox_maps = texthash:{folder}/conf/mailboxes
virtual_alias_maps =

smtpd_peername_lookup = no
disable_dns_lookups = yes
smtpd_relay_restrictions = reject_unauth_destination
smtpd_recipient_restrictions = check_recipient_access texthash:{folder}/conf/awkward
smtpd_tls_security_level = none
smtpd_tls_chain_files = {folder}/conf/tls.pem
smtpd_tls_loglevel = 0
tls_random_source = dev:/dev/urandom

postscreen_access_list = cidr:{folder}/conf/denied
postscreen_greet_wait = 1s
"""

# name, type, private, unpriv, chroot, wakeup, maxproc, command: the columns of master.cf
MASTER = """\
{plain}  inet n - n - - smtpd -o smtpd_tls_security_level=may
{listed} inet n - y - - smtpd -o smtpd_client_restrictions=reject_rbl_client,{rbl}
{shut}   inet n - y - - smtpd -o smtpd_client_restrictions=reject_rbl_client,{rbl} -o smtpd_delay_reject=no
{limit}  inet n - n - - smtpd -o smtpd_recipient_limit=3
{grey}   inet n - n - - smtpd -o smtpd_recipient_restrictions=check_policy_service,inet:{policy}
{tls}    inet n - n - - smtpd -o smtpd_tls_security_level=encrypt
{screen} inet n - n - 1 postscreen
    -o postscreen_denylist_action=enforce
    -o postscreen_cache_map=btree:{folder}/data/screen
{drop}   inet n - n - 1 postscreen
    -o postscreen_denylist_action=drop
    -o postscreen_cache_map=btree:{folder}/data/drop
{deep}   inet n - n - 1 postscreen
    -o postscreen_pipelining_enable=yes
    -o postscreen_non_smtp_command_enable=yes
    -o postscreen_bare_newline_enable=yes
    -o postscreen_cache_map=btree:{folder}/data/deep
smtpd    pass - - n - - smtpd
cleanup  unix n - n - 0 cleanup
rewrite  unix - - n - - trivial-rewrite
anvil    unix - - n - 1 anvil
tlsmgr   unix - - n 1000? 1 tlsmgr
postlog  unix-dgram n - n - 1 postlogd
"""
QUEUES = (
    *("active", "bounce", "corrupt", "defer", "deferred", "flush", "hold"),
    *("incoming", "maildrop", "pid", "private", "public", "saved", "trace"),
)


class PostfixRig:
    """A running Postfix; its hosts are at the head of this file.

    `policy` is Postgrey's host:port, `resolver` the address of the block list's server (port 53).
    """

    hosts = HOSTS
    domains = tuple(domain for host in HOSTS.values() for domain in (host.domain, host.catch_all) if domain)
    address = HOSTS["plain"].ip
    denied_source = DENIED

    def __init__(self, port: int, certificate: Path, *, policy: str, resolver: str) -> None:
        self.port = port
        root = unpacked("postfix")
        libs = root / "usr" / "lib" / "postfix"
        self._daemon = Daemon("postfix", own_folder("postfix"))
        folder = self._daemon.folder
        conf = folder / "conf"
        conf.mkdir()
        self._lay_queue(resolver)
        shutil.copyfile(certificate, conf / "tls.pem")
        main = MAIN.format(
            root=root, libs=libs, folder=folder, log=self._daemon.log_file, domains=" ".join(self.domains)
        )
        (conf / "main.cf").write_text(main)
        listens = {name: f"{host.ip}:{port}" for name, host in HOSTS.items()}
        (conf / "master.cf").write_text(MASTER.format(folder=folder, rbl=RBL_ZONE, policy=policy, **listens))
        (conf / "denied").write_text(f"{DENIED} reject\n0.0.0.0/0 dunno\n")
        named = [f"{local}@{host.domain}" for host in HOSTS.values() for local in (*MAILBOXES, *AWKWARD, "jörg")]
        (conf / "mailboxes").write_text("".join(f"{box} box\n" for box in (*named, "@any.postfix.lab")))
        (conf / "awkward").write_text("".join(f"{local}@ {answer}\n" for local, answer in AWKWARD.items()))
        self._daemon.start(
            [libs / "sbin" / "master", "-c", conf, "-s"],
            [(host.ip, port) for host in HOSTS.values()],
            env={"LD_LIBRARY_PATH": str(libs), "MAIL_CONFIG": str(conf)},
        )

    def _lay_queue(self, resolver: str) -> None:
        """The folders that Debian's installation would lay, with the owners that Postfix checks."""
        folder = self._daemon.folder
        for queue in ("data", *(f"queue/{name}" for name in QUEUES)):
            (folder / queue).mkdir(parents=True)
            shutil.chown(folder / queue, "mail", "news" if queue in ("queue/public", "queue/maildrop") else "root")
            (folder / queue).chmod(0o710 if queue == "queue/public" else 0o730 if queue == "queue/maildrop" else 0o700)
        shutil.chown(folder / "queue" / "pid", "root")
        (folder / "queue" / "pid").chmod(0o755)
        jail = folder / "queue" / "etc"
        jail.mkdir()
        (jail / "resolv.conf").write_text(f"nameserver {resolver}\noptions timeout:2 attempts:1\n")

    @property
    def log(self) -> str:
        return self._daemon.log

    def close(self) -> None:
        self._daemon.close()
