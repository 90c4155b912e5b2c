"""Whole verifications against real Postfix, postscreen, Exim and Postgrey, with the servers' own logs as the judge."""

from __future__ import annotations

import contextlib
import csv
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import pytest
from rigs import exim as exim_rig
from rigs import postfix as postfix_rig
from rigs.daemon import DENIED, MAILBOXES, or_skip
from rigs.dns import NsdRig, zone_of
from rigs.exim import RECIPIENTS_MAX, EximRig
from rigs.postfix import PostfixRig
from rigs.postgrey import PostgreyRig

from engine.core.identity import Consent, Identity, Mode
from engine.core.result import CatchAll, Result
from engine.flow.intake import open_intake
from engine.flow.policies import load_policies
from engine.flow.verification import Request, Verification

pytestmark = pytest.mark.slow

SOURCE = "127.30.8.1"
NOBODY = tuple(f"nobody.{number}" for number in range(1, 41))
"""Local parts without a mailbox anywhere."""
LIMIT = 3  # smtpd_recipient_limit of Postfix's host `limit`
SOFT_ERRORS = 10  # from here on Postfix answers slowly (smtpd_soft_error_limit)
PER_SESSION = 8  # unknown recipients that the tests' policy spends in one session
FreshSource = Callable[[], str]

POLICY = """\
provider: default
sessions: {{concurrency: 4, rate: 100/s, burst: 10}}
recipients: {{rate: 1000/s..1000/s, per_session: 50, per_transaction: {per_transaction}}}
refusals: {{per_session: {refusals}, rate: 100000/h..100000/h}}
timeouts: {{connect: 2s, greeting: 10s, command: 10s, session: 60s}}
tls: {tls}
retry: {{greylist: [2s, 4s, 8s], tempfail: [1s, 2s], give_up: {give_up}}}
pace: {{recover: {{step: 100/s, every: 1s}}}}
breaker: {{window: 10s, min_samples: 20, tempfail_ratio: 0.5, open: 1s}}
"""
ZONE = f"""\
probe IN A {SOURCE}
probe IN MX 10 probe
denied.probe IN A {DENIED}
denied.probe IN MX 10 denied.probe
stray IN MX 10 mx.postfix.lab.
astray IN MX 10 mx.exim.lab.
twofold IN MX 10 mx.drop.postfix.lab.
twofold IN MX 20 mx.postfix.lab.
"""
REVERSE = "1.8 IN PTR probe.lab.\n1.9 IN PTR denied.probe.lab.\n"

# What Postfix, postscreen and Exim log of a client that breaks the protocol, runs away or asks too much.
RUDE = re.compile(
    r"lost connection|improper command pipelining|too many errors|timeout after|non-SMTP command|hostname .* does not"
    r"|HANGUP|COMMAND (?:PIPELINING|COUNT LIMIT|TIME LIMIT|LENGTH LIMIT)|PREGREET|BARE NEWLINE"
    r"|synchronization error|unexpected disconnection|too many (?:nonmail|syntax|unrecognized)|connection .* lost",
    re.IGNORECASE,
)
_FAREWELL = re.compile(r"disconnect from unknown\[(?P<ip>[\d.]+)\] (?P<counts>.*)")
SETTLE_S = 10.0  # how long a log may take to tell what the server did


@dataclass(slots=True)
class Witness:
    """What a rig logs of one source from now on."""

    rig: PostfixRig | EximRig | PostgreyRig
    source: str = SOURCE
    before: int = 0

    def __post_init__(self) -> None:
        self.before = len(self.rig.log)

    @property
    def lines(self) -> list[str]:
        """Its lines so far about this source."""
        mark = re.compile(rf"\[{re.escape(self.source)}\]|client_address={re.escape(self.source)}(?!\d)")
        return [line for line in self.rig.log[self.before :].splitlines() if mark.search(line)]

    def until(self, told: Callable[[list[str]], bool]) -> list[str]:
        """Its lines once they tell this: a log is written after the client got its answer."""
        deadline = time.monotonic() + SETTLE_S
        while not told(lines := self.lines):
            assert time.monotonic() < deadline, "the log does not tell it:\n" + "\n".join(lines)
            time.sleep(0.02)
        return lines

    def said(self, words: str) -> int:
        """How many of its lines hold these words."""
        return sum(words in line for line in self.lines)


def postfix_sessions(witness: Witness, *, least: int = 1) -> list[dict[str, tuple[int, int]]]:
    """Every smtpd session by command -> (accepted, asked), all over and all of them polite."""

    def over(lines: list[str]) -> bool:
        begun = sum("/smtpd[" in line and ": connect from" in line for line in lines)
        return begun >= least and begun == sum("disconnect from" in line for line in lines)

    lines = witness.until(over)
    assert not [line for line in lines if RUDE.search(line)]
    sessions = [_counts(found["counts"]) for line in lines if (found := _FAREWELL.search(line))]
    for session in sessions:
        assert session["quit"] == (1, 1), lines
        assert not session.keys() & {"data", "bdat", "unknown", "auth", "vrfy", "noop"}, lines
        accepted, asked = session.get("rcpt", (0, 0))
        assert asked - accepted < SOFT_ERRORS, lines
    return sessions


def _counts(text: str) -> dict[str, tuple[int, int]]:
    pairs = (word.split("=") for word in text.split())
    counts = {name: value.split("/") for name, value in pairs}
    return {name: (int(value[0]), int(value[-1])) for name, value in counts.items()}


def exim_sessions(witness: Witness) -> int:
    """How many sessions Exim had with us, all over, all of them polite."""

    def over(lines: list[str]) -> bool:
        begun = sum("SMTP connection from" in line and "connection count" in line for line in lines)
        ended = sum("closed by QUIT" in line or " dropped: " in line or "closed by DROP" in line for line in lines)
        return 0 < begun == ended

    lines = witness.until(over)
    assert not [line for line in lines if RUDE.search(line)]
    assert not [line for line in lines if " <= " in line or "DATA" in line]
    return sum("connection count" in line for line in lines)


@dataclass(slots=True)
class Engine:
    """Runs verifications with one memory: what the first learns, the next knows."""

    folder: Path
    dns: tuple[str, int]
    port: int
    transcript: list[str] = field(default_factory=list)
    runs: int = 0

    def __call__(
        self,
        *addresses: str,
        source: str = SOURCE,
        mode: Mode = Mode.ENHANCED,
        tls: str = "opportunistic",
        give_up: str = "30s",
        per_transaction: int = 20,
        refusals: int = PER_SESSION,
    ) -> dict[str, Result]:
        """The result of each address, asked from this source."""
        self.runs += 1
        listed = self.folder / f"list-{self.runs}.txt"
        listed.write_text("".join(f"{address}\n" for address in addresses))
        given = POLICY.format(tls=tls, give_up=give_up, per_transaction=per_transaction, refusals=refusals)
        self.transcript.clear()
        with open_intake(listed) as intake:
            request = Request(
                intake=intake, mode=mode, policies=load_policies([self.policies(given)]),
                journal=self.folder / f"{self.runs}.journal", state=self.folder / "state.db",
                identities=(identity(source),), consent=Consent("TICKET-7", "A. Owner", datetime.now(UTC)),
                dns=[self.dns], smtp_port=self.port, allow_private=True, transcript=self._hear,
            )  # fmt: skip
            with Verification(request) as verification:
                assert verification.run()
                found = {result.address: result for _, result in verification.results()}
        assert list(found) == list(dict.fromkeys(addresses))
        return found

    def policies(self, text: str) -> Path:
        """A policy folder that holds this default.yaml."""
        folder = self.folder / f"policies-{self.runs}"
        folder.mkdir()
        (folder / "default.yaml").write_text(text)
        return folder

    def commands(self, verb: str) -> int:
        """How many commands of this kind the last run sent."""
        return sum(line.startswith(f"C: {verb}") for line in self.transcript)

    def _hear(self, who: str, line: str, at: float) -> None:
        self.transcript.append(f"{who}: {line}")


def identity(source: str) -> Identity:
    """Who asks from this source; a source that has no names of its own is a local address behind probe.lab's."""
    name, public = ("denied.probe.lab", DENIED) if source == DENIED else ("probe.lab", SOURCE)
    return Identity(name, name, f"me@{name}", public_v4=public, bind_v4=source, identity_domain=name)


@pytest.fixture(scope="session")
def names(smtp_port: int) -> Iterator[NsdRig]:
    """The zones of `mail_dns`, and two domains whose mail host does not know them."""
    hosts = zone_of([*postfix_rig.HOSTS.values(), *exim_rig.HOSTS.values()])
    zones = {"lab": ZONE + hosts, "30.127.in-addr.arpa": REVERSE}
    with contextlib.closing(or_skip(lambda: NsdRig(zones, smtp_port, "127.30.4.3"))) as rig:
        yield rig


@pytest.fixture
def verify(tmp_path: Path, names: NsdRig, smtp_port: int) -> Engine:
    return Engine(tmp_path, (names.address, names.port), smtp_port)


def at(domain: str, *local_parts: str) -> list[str]:
    return [f"{local}@{domain}" for local in local_parts]


def reasons(found: dict[str, Result]) -> dict[str, str]:
    return {address: result.reason for address, result in found.items()}


def nothing_learnt(found: dict[str, Result]) -> None:
    """A block: no address is called invalid or valid, and none counts as answered."""
    assert {(result.category, result.answered) for result in found.values()} == {("risky", False)}, reasons(found)


def screened(witness: Witness) -> int:
    """How many connections postscreen logged, none of them ending by the client's fault."""

    def over(lines: list[str]) -> bool:
        begun = sum("postscreen[" in line and ": CONNECT from" in line for line in lines)
        return 0 < begun == sum(": DISCONNECT [" in line or ": PASS " in line for line in lines)

    lines = witness.until(over)
    assert not [line for line in lines if RUDE.search(line)]
    return sum(": CONNECT from" in line for line in lines)


def in_turn(transcript: list[str]) -> None:
    """No command left before the reply to the one in front of it had come."""
    assert "CC" not in "".join(line[0] for line in transcript if line[0] in "CS")


_networks = iter(range(20, 250))


def grey_source() -> str:
    """A source in a /24 that Postgrey has not seen: it remembers networks, not addresses."""
    return f"127.30.{next(_networks)}.1"


class TestPostfix:
    def test_each_kind_of_mailbox_gets_its_verdict(self, postfix: PostfixRig, verify: Engine) -> None:
        """Mailbox, unknown, full, disabled, busy, catch-all and not-ours at one site, in a few polite sessions."""
        witness = Witness(postfix)
        found = verify(
            *at("postfix.lab", *MAILBOXES, *NOBODY[:5], "busy", "full", "quota", "closed"),
            *at("any.postfix.lab", "no.one", "some.one", "any.one"),
            *at("stray.lab", "alice", "x"),
        )
        assert reasons(found) == {
            **dict.fromkeys(at("postfix.lab", *MAILBOXES), "rcpt_ok"),
            **dict.fromkeys(at("postfix.lab", *NOBODY[:5]), "mailbox_not_found"),
            "busy@postfix.lab": "mailbox_temporarily_unavailable",
            "full@postfix.lab": "mailbox_full",
            "quota@postfix.lab": "mailbox_full",
            "closed@postfix.lab": "mailbox_disabled",
            **dict.fromkeys(at("any.postfix.lab", "no.one", "some.one", "any.one"), "catch_all"),
            **dict.fromkeys(at("stray.lab", "alice", "x"), "relay_denied"),
        }
        assert found["alice@postfix.lab"].catch_all is CatchAll.NO
        assert found["no.one@any.postfix.lab"].catch_all is CatchAll.YES
        assert found["quota@postfix.lab"].answered
        assert not found["alice@stray.lab"].answered
        assert found["busy@postfix.lab"].attempts == 3
        assert len(postfix_sessions(witness)) <= 8

    def test_an_accepted_mailbox_is_valid_by_a_refused_control(self, postfix: PostfixRig, verify: Engine) -> None:
        """Where no listed address is refused, one made-up recipient is asked in the same session, and only one."""
        witness = Witness(postfix)
        found = verify(*at("postfix.lab", "alice", "bob"))
        assert set(reasons(found).values()) == {"rcpt_ok"}
        assert [session["rcpt"] for session in postfix_sessions(witness)] == [(2, 3)]
        assert witness.said("User unknown in virtual mailbox table") == 1

    def test_a_listed_refusal_is_the_control(self, postfix: PostfixRig, verify: Engine) -> None:
        """With a listed unknown address, no made-up recipient is asked."""
        witness = Witness(postfix)
        found = verify(*at("postfix.lab", "alice", "x"))
        assert reasons(found) == {"alice@postfix.lab": "rcpt_ok", "x@postfix.lab": "mailbox_not_found"}
        assert [session["rcpt"] for session in postfix_sessions(witness)] == [(1, 2)]

    def test_what_one_run_settled_the_next_does_not_ask(self, postfix: PostfixRig, verify: Engine) -> None:
        """A second run at a domain whose control is settled asks none; at a known catch-all it asks nobody."""
        verify("alice@postfix.lab", "some.one@any.postfix.lab")
        postfix_sessions(witness := Witness(postfix), least=0)
        found = verify("bob@postfix.lab", "any.one@any.postfix.lab")
        assert reasons(found) == {"bob@postfix.lab": "rcpt_ok", "any.one@any.postfix.lab": "catch_all"}
        assert not found["any.one@any.postfix.lab"].probed
        assert [session["rcpt"] for session in postfix_sessions(witness)] == [(1, 1)]

    def test_unknown_recipients_never_use_up_a_session(self, postfix: PostfixRig, verify: Engine) -> None:
        """40 unknown recipients go by the session's budget of refusals: never slowed down, never thrown out."""
        witness = Witness(postfix)
        found = verify(*at("postfix.lab", *NOBODY, *MAILBOXES))
        assert set(reasons(found).values()) == {"mailbox_not_found", "rcpt_ok"}
        sessions = postfix_sessions(witness)
        refused = [session["rcpt"][1] - session["rcpt"][0] for session in sessions]
        assert sum(refused) == len(NOBODY)
        assert max(refused) <= PER_SESSION
        assert len(sessions) <= len(NOBODY) // PER_SESSION + 3

    def test_a_recipient_limit_is_learnt_and_all_are_answered(self, postfix: PostfixRig, verify: Engine) -> None:
        """452 4.5.3 makes transactions smaller and costs nobody an answer."""
        witness = Witness(postfix)
        found = verify(*at("limit.postfix.lab", *NOBODY[:2], *MAILBOXES, *NOBODY[2:14]))
        assert reasons(found) == {
            **dict.fromkeys(at("limit.postfix.lab", *MAILBOXES), "rcpt_ok"),
            **dict.fromkeys(at("limit.postfix.lab", *NOBODY[:14]), "mailbox_not_found"),
        }
        postfix_sessions(witness)
        over = [line for line in verify.transcript if line.startswith("S: 452 4.5.3")]
        assert len(over) <= 20 - LIMIT  # of the first transaction alone

    def test_a_learnt_recipient_limit_is_remembered(self, postfix: PostfixRig, verify: Engine) -> None:
        """The next run keeps to the limit from its first transaction on."""
        verify(*at("limit.postfix.lab", *MAILBOXES))
        assert any(line.startswith("S: 452 4.5.3") for line in verify.transcript)
        found = verify(*at("limit.postfix.lab", *MAILBOXES[::-1]))
        assert set(reasons(found).values()) == {"rcpt_ok"}
        assert not [line for line in verify.transcript if line.startswith("S: 452")]

    def test_tls_is_used_where_it_is_offered(self, postfix: PostfixRig, verify: Engine) -> None:
        """Opportunistic: STARTTLS where offered, required where the host insists; never means plain."""
        for domain in ("postfix.lab", "tls.postfix.lab"):
            witness = Witness(postfix)
            found = verify(*at(domain, "alice", "x"))
            assert [result.category for result in found.values()] == ["valid", "invalid"]
            assert all(session["starttls"] == (1, 1) for session in postfix_sessions(witness))
            assert any("TLSv1." in line for line in verify.transcript)
        witness = Witness(postfix)
        assert [result.category for result in verify("bob@postfix.lab", tls="never").values()] == ["valid"]
        assert all("starttls" not in session for session in postfix_sessions(witness))

    def test_a_host_that_insists_on_tls_says_nothing_without(self, postfix: PostfixRig, verify: Engine) -> None:
        """530 Must issue a STARTTLS command first: `tls_required`, and nothing learnt about anybody."""
        witness = Witness(postfix)
        found = verify(*at("tls.postfix.lab", "alice", "x"), tls="never", give_up="4s")
        nothing_learnt(found)
        assert set(reasons(found).values()) == {"tls_required"}
        assert len(postfix_sessions(witness)) <= 6

    def test_a_refusal_at_mail_ends_the_session(self, postfix: PostfixRig, verify: Engine) -> None:
        """Each RCPT behind a refused MAIL is an error of ours in the server's eyes: QUIT, not the next transaction."""
        witness = Witness(postfix)
        nothing_learnt(verify(*at("tls.postfix.lab", *NOBODY[:8]), tls="never", give_up="4s", per_transaction=4))
        assert max(session["mail"][1] for session in postfix_sessions(witness)) == 1

    def test_a_policy_may_require_tls_where_none_is_offered(self, postfix: PostfixRig, verify: Engine) -> None:
        """Without STARTTLS on offer, a policy that requires it asks nobody."""
        witness = Witness(postfix)
        found = verify("alice@limit.postfix.lab", tls="require", give_up="4s")
        nothing_learnt(found)
        assert not [session for session in postfix_sessions(witness) if "mail" in session]

    def test_recipients_are_pipelined(self, postfix: PostfixRig, verify: Engine) -> None:
        """Where PIPELINING is offered, MAIL and all RCPTs leave before the first reply comes."""
        verify(*at("postfix.lab", "alice", "bob", "x"))
        begun = next(place for place, line in enumerate(verify.transcript) if line.startswith("C: MAIL"))
        assert [line[:7] for line in verify.transcript[begun : begun + 5]] == ["C: MAIL", *["C: RCPT"] * 3, "S: 250 "]

    def test_a_non_ascii_mailbox_is_asked_where_smtputf8_is_offered(self, postfix: PostfixRig, verify: Engine) -> None:
        """jörg has a mailbox, jürg has none, and both are asked beside ASCII neighbours."""
        witness = Witness(postfix)
        found = verify(*at("postfix.lab", "jörg", "jürg", "alice"))
        assert [result.reason for result in found.values()] == ["rcpt_ok", "mailbox_not_found", "rcpt_ok"]
        postfix_sessions(witness)
        assert verify.commands("MAIL FROM:<me@probe.lab> SMTPUTF8") >= 1

    def test_standard_mode_connects_once_and_asks_nobody(self, postfix: PostfixRig, verify: Engine) -> None:
        """Two domains of one site: one session with EHLO, STARTTLS and QUIT."""
        witness = Witness(postfix)
        found = verify(*at("postfix.lab", *MAILBOXES), *at("any.postfix.lab", *MAILBOXES), mode=Mode.STANDARD)
        assert set(reasons(found).values()) == {"mailbox_unchecked"}
        (session,) = postfix_sessions(witness)
        assert session.keys() == {"ehlo", "starttls", "quit", "commands"}

    def test_the_command_line_does_the_same(
        self, postfix: PostfixRig, names: NsdRig, smtp_port: int, tmp_path: Path, verify: Engine
    ) -> None:
        """`engine verify` in a process of its own, with an identity file that binds the source."""
        witness = Witness(postfix)
        (tmp_path / "node.yaml").write_text(
            f"name: probe\nhelo_name: probe.lab\nmail_from_address: me@probe.lab\nidentity_domain: probe.lab\n"
            f"public_address: {SOURCE}\nbind_address: {SOURCE}\nstatus: enabled\n"
        )
        (tmp_path / "list.csv").write_text("id,email\n1,alice@postfix.lab\n2,x@postfix.lab\n3,a@any.postfix.lab\n")
        given = POLICY.format(tls="opportunistic", give_up="30s", per_transaction=20, refusals=PER_SESSION)
        argv = [sys.executable, "-m", "engine", "verify", "list.csv", "-o", "out.csv", "--mode", "enhanced"]
        argv += ["--consent", "TICKET-7", "--consent-by", "A. Owner", "--identity", "node.yaml", "--allow-private"]
        argv += ["--dns", f"{names.address}:{names.port}", "--smtp-port", str(smtp_port), "--state", "state.db"]
        argv += ["--policies", str(verify.policies(given))]
        done = subprocess.run(argv, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr
        with (tmp_path / "out.csv").open(newline="") as file:
            rows = [(row["id"], row["category"], row["reason"], row["source_ip"]) for row in csv.DictReader(file)]
        assert rows == [
            ("1", "valid", "rcpt_ok", SOURCE),
            ("2", "invalid", "mailbox_not_found", SOURCE),
            ("3", "risky", "catch_all", SOURCE),
        ]
        assert len(postfix_sessions(witness)) <= 2


class TestBlocked:
    """Design section 3, hard rule 1: a block is never an invalid."""

    def test_a_block_list_at_rcpt_is_no_invalid(self, postfix: PostfixRig, verify: Engine) -> None:
        """reject_rbl_client says 554 5.7.1 to every RCPT: nothing learnt, and the site is left alone."""
        witness = Witness(postfix, DENIED)
        found = verify(*at("listed.postfix.lab", *MAILBOXES, *NOBODY[:6]), source=DENIED, give_up="4s")
        nothing_learnt(found)
        assert any("zen.spamhaus.org" in result.smtp_text for result in found.values())
        assert len(postfix_sessions(witness)) <= 6
        assert witness.said("blocked using zen.spamhaus.org") <= 20 + 5  # a first transaction, then one at a time

    def test_a_block_list_in_the_greeting_is_no_invalid(self, postfix: PostfixRig, verify: Engine) -> None:
        """With smtpd_delay_reject=no the greeting is 554; QUIT is all that is said."""
        witness = Witness(postfix, DENIED)
        found = verify(*at("shut.postfix.lab", *MAILBOXES, *NOBODY[:6]), source=DENIED, give_up="4s")
        nothing_learnt(found)
        sessions = postfix_sessions(witness)
        assert len(sessions) <= 6
        assert all(session.keys() == {"quit", "commands"} for session in sessions)

    def test_postscreen_that_refuses_us_is_no_invalid(self, postfix: PostfixRig, verify: Engine) -> None:
        """550 5.3.2 Service currently unavailable at RCPT speaks of us, not of the mailbox."""
        witness = Witness(postfix, DENIED)
        found = verify(*at("screen.postfix.lab", *MAILBOXES, *NOBODY[:6]), source=DENIED, give_up="4s")
        nothing_learnt(found)
        assert screened(witness) <= 6

    def test_postscreen_that_refuses_us_is_left_alone(self, postfix: PostfixRig, verify: Engine) -> None:
        """When refused, we stop: the rest of the list waits, and is not asked one by one from a blocked source."""
        witness = Witness(postfix, DENIED)
        found = verify(*at("screen.postfix.lab", *NOBODY), source=DENIED, give_up="4s", per_transaction=4)
        nothing_learnt(found)
        assert screened(witness) <= 6
        assert witness.said("reject: RCPT") <= 4 + 5  # a first transaction, then one address at a time

    def test_postscreen_that_drops_us_is_no_invalid(self, postfix: PostfixRig, verify: Engine) -> None:
        """521 5.3.2 in place of a greeting, and the line is closed."""
        witness = Witness(postfix, DENIED)
        found = verify(*at("drop.postfix.lab", *MAILBOXES, *NOBODY[:6]), source=DENIED, give_up="4s")
        nothing_learnt(found)
        assert {result.smtp_code for result in found.values()} <= {521, None}
        assert set(reasons(found).values()) <= {"greeting_rejected", "domain_refuses_us", "provider_paused"}
        assert screened(witness) <= 6

    def test_postscreen_that_drops_us_is_left_alone(self, postfix: PostfixRig, verify: Engine) -> None:
        """When dropped, we stop: no connection for each few addresses of the list."""
        witness = Witness(postfix, DENIED)
        nothing_learnt(verify(*at("drop.postfix.lab", *NOBODY), source=DENIED, give_up="4s", per_transaction=4))
        assert screened(witness) <= 6

    def test_a_block_at_one_mail_host_is_not_dodged_by_the_next(self, postfix: PostfixRig, verify: Engine) -> None:
        """The first MX drops us with 521, the second would talk to us: it is not dialled."""
        witness = Witness(postfix, DENIED)
        nothing_learnt(verify("alice@twofold.lab", source=DENIED, give_up="4s"))
        screened(witness)
        assert not [line for line in verify.transcript if "connecting to mx.postfix.lab" in line]

    @pytest.mark.parametrize("host", ["greet", "mail", "rcpt"])
    def test_exim_that_refuses_us_is_no_invalid(self, exim: EximRig, verify: Engine, host: str) -> None:
        """A bare 550 "rejected because ... is in a black list" at greeting, MAIL or RCPT."""
        witness = Witness(exim, DENIED)
        found = verify(*at(f"{host}.exim.lab", *MAILBOXES, *NOBODY[:6]), source=DENIED, give_up="4s")
        nothing_learnt(found)
        assert exim_sessions(witness) <= 6

    def test_a_refusal_at_mail_is_one_attempt(self, exim: EximRig, verify: Engine) -> None:
        """`attempts` counts what was asked: one MAIL for one address is one."""
        (result,) = verify("alice@mail.exim.lab", source=DENIED, give_up="2s").values()
        assert result.attempts == verify.commands("MAIL")

    @pytest.mark.parametrize("domain", ["listed.postfix.lab", "shut.postfix.lab", "screen.postfix.lab"])
    def test_the_same_hosts_answer_a_welcome_source(self, postfix: PostfixRig, verify: Engine, domain: str) -> None:
        """What is not blocked gets its verdict there."""
        found = verify(*at(domain, "alice", "x"))
        assert [result.reason for result in found.values()] == ["rcpt_ok", "mailbox_not_found"]


class TestPutOff:
    def test_a_first_contact_that_postscreen_puts_off_is_asked_again(
        self, postfix: PostfixRig, verify: Engine, fresh_source: FreshSource
    ) -> None:
        """450 4.3.2 to everybody in a session without PIPELINING; after our QUIT the ladder's next step is answered."""
        witness = Witness(postfix, source := fresh_source())
        found = verify(*at("deep.postfix.lab", "alice", "bob", "x"), source=source)
        assert [result.reason for result in found.values()] == ["rcpt_ok", "rcpt_ok", "mailbox_not_found"]
        assert {result.attempts for result in found.values()} == {2}
        witness.until(lambda lines: any("PASS NEW [" in line for line in lines))
        assert len(postfix_sessions(witness)) == 1
        assert not [line for line in witness.lines if RUDE.search(line)]
        assert sum("postscreen[" in line and ": CONNECT from" in line for line in witness.lines) == 2

    def test_a_long_list_is_put_off_politely_by_postscreen(
        self, postfix: PostfixRig, verify: Engine, fresh_source: FreshSource
    ) -> None:
        """Postscreen drops a session after 20 commands: what it puts off uses up a session like a refusal."""
        witness = Witness(postfix, source := fresh_source())
        found = verify(*at("deep.postfix.lab", *MAILBOXES, *NOBODY[:30]), source=source, per_transaction=4)
        assert set(reasons(found).values()) == {"rcpt_ok", "mailbox_not_found"}
        postfix_sessions(witness)

    def test_without_pipelining_each_command_waits_for_its_reply(
        self, postfix: PostfixRig, verify: Engine, fresh_source: FreshSource
    ) -> None:
        """Postscreen's deep tests do not offer PIPELINING and count who pipelines all the same."""
        verify(*at("deep.postfix.lab", "alice", "bob"), source=fresh_source())
        first = verify.transcript[: verify.transcript.index("C: QUIT")]
        assert not [line for line in first if "PIPELINING" in line]
        in_turn(first)

    def test_greylisting_is_waited_out(self, postfix: PostfixRig, greylist: PostgreyRig, verify: Engine) -> None:
        """Postgrey puts everybody off once; the ladder's step brings the right verdicts."""
        witness = Witness(postfix, source := grey_source())
        found = verify(*at("grey.postfix.lab", "alice", "x"), source=source)
        assert [result.reason for result in found.values()] == ["rcpt_ok", "mailbox_not_found"]
        assert {result.attempts for result in found.values()} == {2}
        assert len(postfix_sessions(witness)) <= 3

    def test_a_long_list_is_greylisted_politely(
        self, postfix: PostfixRig, greylist: PostgreyRig, verify: Engine
    ) -> None:
        """Postfix counts 4yz among a session's errors as well: never slowed down, never thrown out, all answered."""
        witness = Witness(postfix, source := grey_source())
        found = verify(*at("grey.postfix.lab", *MAILBOXES, *NOBODY[:30]), source=source, per_transaction=4)
        assert reasons(found) == {
            **dict.fromkeys(at("grey.postfix.lab", *MAILBOXES), "rcpt_ok"),
            **dict.fromkeys(at("grey.postfix.lab", *NOBODY[:30]), "mailbox_not_found"),
        }
        postfix_sessions(witness)

    def test_a_greylisted_control_is_asked_again_by_the_same_name(
        self, postfix: PostfixRig, greylist: PostgreyRig, verify: Engine
    ) -> None:
        """Only mailboxes listed: the control is put off too, and passes because it is the same recipient."""
        witness = Witness(greylist, source := grey_source())
        at_postfix = Witness(postfix, source)
        found = verify(*at("grey.postfix.lab", "alice", "bob"), source=source)
        assert set(reasons(found).values()) == {"rcpt_ok"}
        asked = [re.findall(r"action=(\w+),.*recipient=([^@]+)@", line) for line in witness.lines]
        controls = [pair for found in asked for pair in found if pair[1] not in MAILBOXES]
        assert [action for action, _ in controls] == ["greylist", "pass"], witness.rig.log
        assert len({local for _, local in controls}) == 1
        assert len(postfix_sessions(at_postfix)) <= 3

    def test_a_put_off_control_lets_the_rest_go_on(
        self, postfix: PostfixRig, greylist: PostgreyRig, verify: Engine
    ) -> None:
        """While a control waits for its next attempt, others are asked, and no session is opened for nothing."""
        witness = Witness(postfix, source := grey_source())
        found = verify(*at("grey.postfix.lab", *MAILBOXES), source=source, per_transaction=1)
        assert set(reasons(found).values()) == {"rcpt_ok"}
        sessions = postfix_sessions(witness)
        assert len(sessions) <= 8
        assert all("rcpt" in session for session in sessions)


class TestExim:
    def test_each_kind_of_mailbox_gets_its_verdict(self, exim: EximRig, verify: Engine) -> None:
        """The same verdicts from a server that sends no enhanced codes."""
        witness = Witness(exim)
        found = verify(
            *at("exim.lab", *MAILBOXES[:4], *NOBODY[:4], "busy", "quota", "closed"),
            *at("any.exim.lab", "no.one", "some.one"),
            *at("astray.lab", "alice", "x"),
        )
        assert reasons(found) == {
            **dict.fromkeys(at("exim.lab", *MAILBOXES[:4]), "rcpt_ok"),
            **dict.fromkeys(at("exim.lab", *NOBODY[:4]), "mailbox_not_found"),
            "busy@exim.lab": "mailbox_temporarily_unavailable",
            "quota@exim.lab": "mailbox_full",
            "closed@exim.lab": "mailbox_disabled",
            **dict.fromkeys(at("any.exim.lab", "no.one", "some.one"), "catch_all"),
            **dict.fromkeys(at("astray.lab", "alice", "x"), "relay_denied"),
        }
        assert exim_sessions(witness) <= 8
        assert any("TLS1." in line or "TLSv1." in line for line in verify.transcript)

    def test_a_recipient_limit_is_learnt_and_all_are_answered(self, exim: EximRig, verify: Engine) -> None:
        """452 too many recipients, without an enhanced code, costs nobody an answer."""
        witness = Witness(exim)
        found = verify(*at("exim.lab", *NOBODY[:2], *MAILBOXES, *NOBODY[2:20]), refusals=30)
        assert reasons(found) == {
            **dict.fromkeys(at("exim.lab", *MAILBOXES), "rcpt_ok"),
            **dict.fromkeys(at("exim.lab", *NOBODY[:20]), "mailbox_not_found"),
        }
        exim_sessions(witness)
        assert sum("452 too many recipients" in line for line in verify.transcript) <= 20 - RECIPIENTS_MAX

    def test_many_transactions_in_a_session_are_answered(self, exim: EximRig, verify: Engine) -> None:
        """Exim ends a session after 10 commands that carry no mail, RSET among them: all are answered all the same."""
        witness = Witness(exim)
        found = verify(*at("exim.lab", *MAILBOXES, *NOBODY[:24]), per_transaction=1, refusals=50)
        assert set(reasons(found).values()) == {"rcpt_ok", "mailbox_not_found"}
        assert exim_sessions(witness) <= 5

    def test_a_non_ascii_mailbox_is_asked_where_smtputf8_is_offered(self, exim: EximRig, verify: Engine) -> None:
        """Exim offers SMTPUTF8 and knows no jörg; his ASCII neighbour is answered beside him."""
        witness = Witness(exim)
        found = verify(*at("exim.lab", "jörg", "alice"))
        assert [result.reason for result in found.values()] == ["mailbox_not_found", "rcpt_ok"]
        exim_sessions(witness)
        assert verify.commands("RCPT TO:<jörg@exim.lab>") == 1

    def test_a_host_with_neither_pipelining_nor_smtputf8(self, exim: EximRig, verify: Engine) -> None:
        """Each command waits for its reply; a non-ASCII mailbox is `eai_unsupported`, asked of nobody."""
        witness = Witness(exim)
        found = verify(*at("mail.exim.lab", "jörg", "alice", "bob", "x"))
        assert [result.reason for result in found.values()] == [
            "eai_unsupported", "rcpt_ok", "rcpt_ok", "mailbox_not_found",
        ]  # fmt: skip
        assert exim_sessions(witness) <= 2
        assert not [line for line in verify.transcript if "jörg" in line or "PIPELINING" in line]
        in_turn(verify.transcript)
