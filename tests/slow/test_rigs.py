"""What each real server answers, word for word: the facts that the end-to-end tests stand on."""

from __future__ import annotations

import contextlib
import functools
import smtplib
import socket
import time
from collections.abc import Callable, Iterator

import dns.flags
import dns.message
import dns.query
import dns.rcode
import pytest
from rigs.daemon import CACHE, DENIED, free_port, or_skip, unpacked
from rigs.dns import NsdRig, RbldnsdRig
from rigs.exim import RECIPIENTS_MAX, EximRig
from rigs.postfix import PostfixRig
from rigs.postgrey import PostgreyRig

pytestmark = pytest.mark.slow

SOURCE = "127.30.8.1"
LISTED_PAGE = "https://www.spamhaus.org/query/ip/127.30.9.1"
LISTED = f"Service unavailable; Client host [127.30.9.1] blocked using zen.spamhaus.org; {LISTED_PAGE}"
GREYLIST_PAGE = "http://postgrey.schweikert.ch/help/grey.postfix.lab.html"
UNKNOWN = "Recipient address rejected: User unknown in virtual mailbox table"
EXIM_LISTED = "rejected because 127.30.9.1 is in a black list at zen.spamhaus.org"
FreshSource = Callable[[], str]


def said(reply: tuple[int, bytes]) -> str:
    return f"{reply[0]} {reply[1].decode()}"


@contextlib.contextmanager
def session(rig: PostfixRig | EximRig, host: str, source: str = SOURCE) -> Iterator[tuple[smtplib.SMTP, str]]:
    """An SMTP client at this host of the rig, and the greeting that it got."""
    client = smtplib.SMTP(local_hostname="probe.lab", source_address=(source, 0), timeout=20)
    try:
        yield client, said(client.connect(rig.hosts[host].ip, rig.port))
    finally:
        client.close()


def ask(
    rig: PostfixRig | EximRig,
    host: str,
    *local_parts: str,
    source: str = SOURCE,
    sender: str = "me@probe.lab",
    starttls: bool = False,
) -> list[str]:
    """What one transaction answers to each RCPT of the host's domain."""
    with session(rig, host, source) as (client, greeting):
        assert greeting.startswith("220 ")
        client.ehlo()
        if starttls:
            client._host = "mx.postfix.lab"  # type: ignore[attr-defined]  # the name for SNI, else taken at construction only
            assert client.starttls()[0] == 220
            client.ehlo()
        assert client.mail(sender)[0] == 250
        return [said(client.rcpt(f"{local}@{rig.hosts[host].domain}")) for local in local_parts]


def ask_plain(rig: PostfixRig | EximRig, recipient: str) -> str:
    """What the plain host answers to a RCPT of any address."""
    with session(rig, "plain") as (client, _):
        client.ehlo()
        client.mail("me@probe.lab")
        return said(client.rcpt(recipient))


class TestPostfix:
    @pytest.mark.parametrize(
        ("recipient", "reply"),
        [
            ("alice@postfix.lab", "250 2.1.5 Ok"),
            ("no.one@any.postfix.lab", "250 2.1.5 Ok"),
            (
                "x@postfix.lab",
                f"550 5.1.1 <x@postfix.lab>: {UNKNOWN}",
            ),
            ("x@example.com", "554 5.7.1 <x@example.com>: Relay access denied"),
            ("busy@postfix.lab", "450 4.2.0 <busy@postfix.lab>: Recipient address rejected: Mailbox busy"),
            ("full@postfix.lab", "452 4.2.2 <full@postfix.lab>: Recipient address rejected: Mailbox full"),
            ("quota@postfix.lab", "552 5.2.2 <quota@postfix.lab>: Recipient address rejected: Over quota"),
            ("closed@postfix.lab", "550 5.2.1 <closed@postfix.lab>: Recipient address rejected: Mailbox disabled"),
        ],
    )
    def test_each_kind_of_recipient_gets_its_own_reply(self, postfix: PostfixRig, recipient: str, reply: str) -> None:
        """Mailbox, catch-all, unknown, relay and every awkward mailbox, as Postfix writes them."""
        assert reply == ask_plain(postfix, recipient)

    def test_it_is_the_real_postfix(self, postfix: PostfixRig) -> None:
        """The log is written by Postfix's own master and smtpd."""
        ask_plain(postfix, "alice@postfix.lab")
        assert "postfix/master[" in postfix.log
        assert "connect from unknown[127.30.8.1]" in postfix.log

    def test_starttls_is_real(self, postfix: PostfixRig) -> None:
        """After a TLS handshake the plain host answers as before it."""
        assert ask(postfix, "plain", "alice", starttls=True) == ["250 2.1.5 Ok"]

    def test_a_host_may_require_starttls(self, postfix: PostfixRig) -> None:
        """Without TLS the tls host refuses MAIL; with it, RCPT is answered."""
        with session(postfix, "tls") as (client, _):
            client.ehlo()
            assert said(client.mail("me@probe.lab")) == "530 5.7.0 Must issue a STARTTLS command first"
        assert ask(postfix, "tls", "alice", starttls=True) == ["250 2.1.5 Ok"]

    def test_smtputf8_is_offered_and_meant(self, postfix: PostfixRig) -> None:
        """A non-ASCII mailbox is accepted in a transaction with SMTPUTF8."""
        with session(postfix, "plain") as (client, _):
            client.ehlo()
            client.command_encoding = "utf-8"
            client.mail("me@probe.lab", ["SMTPUTF8"])
            assert said(client.rcpt("jörg@postfix.lab")) == "250 2.1.5 Ok"
            assert client.rcpt("jürg@postfix.lab")[0] == 550

    def test_a_listed_source_is_refused_at_rcpt_whoever_is_asked(self, postfix: PostfixRig) -> None:
        """reject_rbl_client asks the real list, and its refusal says nothing about the mailbox."""
        assert ask(postfix, "listed", "alice", "x", source=DENIED) == [f"554 5.7.1 {LISTED}"] * 2
        assert ask(postfix, "listed", "alice") == ["250 2.1.5 Ok"]

    def test_a_listed_source_may_be_refused_in_the_greeting(self, postfix: PostfixRig) -> None:
        """With smtpd_delay_reject=no the greeting is the refusal, and all that follows is 503."""
        with session(postfix, "shut", DENIED) as (client, greeting):
            assert greeting == f"554 5.7.1 {LISTED}"
            assert said(client.ehlo()) == "503 5.7.0 Error: access denied for unknown[127.30.9.1]"
        assert ask(postfix, "shut", "alice") == ["250 2.1.5 Ok"]

    def test_the_recipient_limit_puts_off_what_is_over_it(self, postfix: PostfixRig) -> None:
        """Three recipients a transaction; the fourth gets 452 4.5.3, unknown or not."""
        replies = ask(postfix, "limit", "alice", "bob", "carol", "dave", "x")
        assert replies == ["250 2.1.5 Ok"] * 3 + ["452 4.5.3 Error: too many recipients"] * 2

    def test_too_many_errors_end_the_session(self, postfix: PostfixRig) -> None:
        """Postfix's own limits: 20 unknown recipients are answered, slower after 10; the next command gets 421."""
        with session(postfix, "plain") as (client, _):
            client.ehlo()
            client.mail("me@probe.lab")
            assert [client.rcpt(f"x{number}@postfix.lab")[0] for number in range(20)] == [550] * 20
            assert said(client.rcpt("alice@postfix.lab")) == "421 4.7.0 mx.postfix.lab Error: too many errors"

    def test_the_greylist_puts_off_and_then_lets_pass(
        self, postfix: PostfixRig, greylist: PostgreyRig, fresh_source: FreshSource
    ) -> None:
        """Postgrey says 450 "Recipient address rejected: Greylisted" of anybody; later only the unknown is refused."""
        source = fresh_source()
        put_off = "450 4.2.0 <{0}@grey.postfix.lab>: Recipient address rejected: Greylisted, see " + GREYLIST_PAGE
        first = ask(postfix, "grey", "alice", "x", source=source, sender="grey@probe.lab")
        assert first == [put_off.format("alice"), put_off.format("x")]
        deadline = time.monotonic() + greylist.delay_s + 10
        while (replies := ask(postfix, "grey", "alice", "x", source=source, sender="grey@probe.lab")) == first:
            assert time.monotonic() < deadline, greylist.log
            time.sleep(0.1)
        assert replies[0] == "250 2.1.5 Ok"
        assert replies[1].startswith("550 5.1.1 <x@grey.postfix.lab>")

    def test_postscreen_refuses_a_denied_source_with_550(self, postfix: PostfixRig, fresh_source: FreshSource) -> None:
        """Enforced, the refusal is 550 5.3.2 at RCPT, as if a mailbox were meant; a new source passes to smtpd."""
        assert ask(postfix, "screen", "alice", "x", source=DENIED) == ["550 5.3.2 Service currently unavailable"] * 2
        replies = ask(postfix, "screen", "alice", "x", source=fresh_source())
        assert replies[0] == "250 2.1.5 Ok"
        assert replies[1].startswith("550 5.1.1 ")

    def test_postscreen_may_drop_a_denied_source_with_521(self, postfix: PostfixRig, fresh_source: FreshSource) -> None:
        """Dropped, the source gets 521 5.3.2 for a greeting and the line is closed."""
        with session(postfix, "drop", DENIED) as (client, greeting):
            assert greeting == "521 5.3.2 Service currently unavailable"
            with pytest.raises(smtplib.SMTPServerDisconnected):
                client.ehlo()
        assert ask(postfix, "drop", "alice", source=fresh_source()) == ["250 2.1.5 Ok"]

    def test_postscreen_may_put_off_a_first_contact(self, postfix: PostfixRig, fresh_source: FreshSource) -> None:
        """By its deep tests: 450 4.3.2 to any RCPT of the first session; after its QUIT the second reaches smtpd."""
        source = fresh_source()
        with session(postfix, "deep", source) as (client, _):
            client.ehlo()
            client.mail("me@probe.lab")
            for local in ("alice", "x"):
                assert said(client.rcpt(f"{local}@deep.postfix.lab")) == "450 4.3.2 Service currently unavailable"
            client.quit()
        replies = ask(postfix, "deep", "alice", "x", source=source)
        assert [reply[:9] for reply in replies] == ["250 2.1.5", "550 5.1.1"]


class TestExim:
    @pytest.mark.parametrize(
        ("recipient", "reply"),
        [
            ("alice@exim.lab", "250 Accepted"),
            ("no.one@any.exim.lab", "250 Accepted"),
            ("x@exim.lab", "550 Unrouteable address"),
            ("x@example.com", "550 relay not permitted"),
            ("busy@exim.lab", "451 mailbox is busy"),
            ("quota@exim.lab", "550 mailbox is full"),
            ("closed@exim.lab", "550 this account has been disabled"),
        ],
    )
    def test_each_kind_of_recipient_gets_its_own_reply(self, exim: EximRig, recipient: str, reply: str) -> None:
        """Mailbox, catch-all, unknown, relay and every awkward mailbox: never an enhanced code."""
        assert reply == ask_plain(exim, recipient)

    def test_it_is_the_real_exim(self, exim: EximRig) -> None:
        """The greeting and the log are Exim's."""
        with session(exim, "plain") as (_, greeting):
            assert greeting.startswith("220 mx.exim.lab ESMTP Exim 4.")
        assert "daemon started" in exim.log

    def test_starttls_is_real(self, exim: EximRig) -> None:
        """After a TLS handshake the plain host answers as before it."""
        assert ask(exim, "plain", "alice", starttls=True) == ["250 Accepted"]

    def test_the_recipient_limit_puts_off_what_is_over_it(self, exim: EximRig) -> None:
        """One more than recipients_max gets 452, in Exim's words and without an enhanced code."""
        replies = ask(exim, "plain", *["alice"] * (RECIPIENTS_MAX + 1))
        assert replies == ["250 Accepted"] * RECIPIENTS_MAX + ["452 too many recipients"]

    def test_a_denied_source_may_be_refused_in_the_greeting(self, exim: EximRig) -> None:
        """The connect ACL refuses with a 550 greeting and drops the line."""
        with session(exim, "greet", DENIED) as (client, greeting):
            assert greeting == f"550 {EXIM_LISTED}"
            with pytest.raises(smtplib.SMTPServerDisconnected):
                client.ehlo()

    def test_a_denied_source_may_be_refused_at_mail(self, exim: EximRig) -> None:
        """The MAIL ACL refuses the sender for the source's sake."""
        with session(exim, "mail", DENIED) as (client, _):
            client.ehlo()
            assert said(client.mail("me@probe.lab")) == f"550 {EXIM_LISTED}"

    def test_a_denied_source_may_be_refused_at_rcpt(self, exim: EximRig) -> None:
        """The RCPT ACL refuses every recipient with a bare 550, mailbox or not."""
        assert ask(exim, "rcpt", "alice", "x", source=DENIED) == [f"550 {EXIM_LISTED}"] * 2

    @pytest.mark.parametrize("host", ["greet", "mail", "rcpt"])
    def test_a_welcome_source_is_answered_there(self, exim: EximRig, host: str) -> None:
        """The same hosts answer everybody else about the mailbox."""
        assert ask(exim, host, "alice", "x") == ["250 Accepted", "550 Unrouteable address"]


def query(server: NsdRig | RbldnsdRig, name: str, kind: str, *, tcp: bool = False) -> dns.message.Message:
    question = dns.message.make_query(name, kind)
    over = dns.query.tcp if tcp else dns.query.udp
    return over(question, server.address, port=server.port, timeout=5)


def values(message: dns.message.Message) -> list[str]:
    return [str(item) for rrset in message.answer for item in rrset]


class TestDns:
    @pytest.mark.parametrize("tcp", [False, True])
    def test_the_zone_leads_to_every_mail_host(self, mail_dns: NsdRig, tcp: bool) -> None:
        """One MX query gives the exchange and, in the additional section, its address."""
        reply = query(mail_dns, "screen.postfix.lab", "MX", tcp=tcp)
        assert values(reply) == ["10 mx.screen.postfix.lab."]
        additional = {str(rrset.name): str(rrset[0]) for rrset in reply.additional}
        assert additional["mx.screen.postfix.lab."] == "127.30.1.7"
        assert values(query(mail_dns, "any.exim.lab", "MX", tcp=tcp)) == ["10 mx.exim.lab."]

    def test_our_names_stand_both_ways(self, mail_dns: NsdRig) -> None:
        """The identity of the tests has PTR and FCrDNS, denied or not."""
        for address, name in ((SOURCE, "probe.lab."), (DENIED, "denied.probe.lab.")):
            pointer = ".".join(reversed(address.split("."))) + ".in-addr.arpa"
            assert values(query(mail_dns, pointer, "PTR")) == [name]
            assert values(query(mail_dns, name, "A")) == [address]

    def test_what_is_not_there_is_said_by_the_real_server(self, mail_dns: NsdRig) -> None:
        """A missing name is an authoritative NXDOMAIN; a name of somebody else is REFUSED, never asked for."""
        missing = query(mail_dns, "nowhere.lab", "MX")
        assert missing.rcode() == dns.rcode.NXDOMAIN
        assert missing.flags & dns.flags.AA
        assert query(mail_dns, "example.com", "MX").rcode() == dns.rcode.REFUSED

    def test_zones_can_be_replaced_and_nothing_stays_behind(self) -> None:
        """A rig serves its new zones at the same address; closed, its port and folder are free."""
        rig = or_skip(lambda: NsdRig({"a.lab": "@ IN MX 0 ."}, free_port(), "127.30.4.2"))
        with contextlib.closing(rig):
            assert values(query(rig, "a.lab", "MX")) == ["0 ."]
            rig.replace({"b.lab": "@ IN A 192.0.2.1"})
            assert values(query(rig, "b.lab", "A")) == ["192.0.2.1"]
            assert query(rig, "a.lab", "MX").rcode() == dns.rcode.REFUSED
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection((rig.address, rig.port), timeout=1)

    def test_the_block_list_lists_the_denied_source_alone(self, block_list: RbldnsdRig) -> None:
        """A listed address answers 127.0.0.2 with a TXT, any other NXDOMAIN."""
        assert values(query(block_list, "1.9.30.127.zen.spamhaus.org", "A")) == ["127.0.0.2"]
        assert values(query(block_list, "1.9.30.127.zen.spamhaus.org", "TXT")) == [f'"{LISTED_PAGE}"']
        assert query(block_list, "1.8.30.127.zen.spamhaus.org", "A").rcode() == dns.rcode.NXDOMAIN


class TestAbsence:
    def test_an_absent_daemon_skips_here_and_fails_in_ci(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Without `CI` a missing daemon is a skip that names the command; with it, a failure."""
        monkeypatch.delenv("CI", raising=False)
        with pytest.raises(pytest.skip.Exception, match=r"run \.ci/fetch-mtas"):
            or_skip(lambda: unpacked("sendmail"))
        monkeypatch.setenv("CI", "true")
        with pytest.raises(pytest.fail.Exception, match="sendmail is not here"):
            or_skip(lambda: unpacked("sendmail"))

    def test_no_cached_program_is_setuid(self) -> None:
        """The unpacked roots hold no program that would give root to whoever finds it."""
        roots = [or_skip(functools.partial(unpacked, name)) for name in ("postfix", "exim")]
        assert all(CACHE in root.parents for root in roots)
        files = [file for root in roots for file in root.rglob("*") if file.is_file()]
        assert files
        assert not [file for file in files if file.lstat().st_mode & 0o6000]
