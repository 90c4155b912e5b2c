"""Laws of a check that is handed over to the engine that holds the identity."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import gevent
import pytest

from engine.core.identity import Consent, Identity, Limits, Mode
from engine.flow.intake import open_intake
from engine.flow.job import WrongUse
from engine.flow.orders import order_check
from engine.flow.policies import load_policies
from engine.flow.verification import Held, Request, Verification
from engine.lab.process import LabProcess
from engine.lab.spec import SHIPPED
from engine.store import audit
from engine.store.database import JOURNAL, open_read_only
from engine.store.state import KIND, State
from engine.store.writer import Writer

SPEC = {
    "personas": {
        "normal": {"does": "knows its mailboxes"},
        "patient": {"does": "greylists for long", "greylist": "1h"},
        "bare": {"does": "refuses with a bare 550", "replies": {"known": "250 OK", "unknown": "550 Rejected"}},
    },
    "domains": {
        "probe.lab": {"mailboxes": ["probe"]},
        "normal.lab": {"mailboxes": ["ada"]},
        "patient.lab": {"persona": "patient", "mailboxes": ["ada"]},
        "bare.lab": {"persona": "bare", "mailboxes": ["ada"]},
    },
    "records": ["lab NS ns.lab", "ns.lab A 127.0.0.1", "1.0.0.127.in-addr.arpa PTR probe.lab"],
}
IDENTITY = Identity("lab", "probe.lab", "probe@probe.lab", public_v4="127.0.0.1", limits=Limits(None, None))
CONSENT = Consent("T-7", "A. Owner", datetime(2026, 1, 1, tzinfo=UTC))


@pytest.fixture
def holder(tmp_path: Path):
    """A run that holds the identity: its one address is greylisted for long."""
    listed = tmp_path / "list.txt"
    listed.write_text("ada@patient.lab\n")
    policy = tmp_path / "policies"
    policy.mkdir()
    (policy / "default.yaml").write_text(
        "provider: default\nretry: {greylist: [1h], tempfail: [1h], give_up: 6h}\n"
        'sources:\n  - {for: [retry], say: "our guess"}\n'
    )
    with LabProcess(SPEC) as lab, open_intake(listed) as intake:
        request = Request(
            intake=intake, mode=Mode.ENHANCED, policies=load_policies([SHIPPED.parent / "policies", policy]),
            journal=tmp_path / "out.journal", state=tmp_path / "state" / "state.db", identities=(IDENTITY,),
            consent=CONSENT, dns=[lab.dns], smtp_port=lab.smtp_port, allow_private=True, accepted_risk="a test",
        )  # fmt: skip
        with Verification(request) as verification:
            greenlet = gevent.spawn(verification.run)
            with gevent.Timeout(20):
                while verification.watch().phase != "probing" or not lab.stats().get("reply"):
                    gevent.sleep(0.02)
            yield lab, request, verification
            verification.stop()
            greenlet.join(20)


def ask(request: Request, *addresses: str, consent: Consent | None = CONSENT, mode: Mode = Mode.ENHANCED):
    with Writer() as writer, gevent.Timeout(30):
        return order_check(State(writer, request.state), IDENTITY, mode, consent, addresses, "a tester")


def test_the_holder_of_an_identity_answers_checks_and_its_output_stays_its_own(holder):
    """Settled verdicts, asked within its limits and audited; no row of them gets into the job's output."""
    _, request, verification = holder
    found = {each["address"]: each for each in ask(request, "ada@normal.lab", "nobody@normal.lab")}
    assert {name: each["reason"] for name, each in found.items()} == {
        "ada@normal.lab": "rcpt_ok",
        "nobody@normal.lab": "mailbox_not_found",
    }
    assert sum(verification.counts().values()) == 1
    with open_read_only(request.journal, JOURNAL) as conn:
        rows = [(row["kind"], row["consent"]) for row in audit.export(conn)]
    assert {"policy", "order", "rcpt"} <= {kind for kind, _ in rows}
    assert {consent for _, consent in rows} == {"T-7"}


def test_the_state_keeps_no_address_of_a_check(holder):
    """Journals can be erased; so the state forgets what a check handed over, once its issuer has read the answer."""
    _, request, _ = holder
    assert ask(request, "nobody@normal.lab")
    with open_read_only(request.state, KIND) as conn:
        rows = [tuple(row) for row in conn.execute("SELECT kind, arguments, answer FROM orders WHERE kind = 'check'")]
    assert rows == []


def test_a_checked_address_that_waits_answers_with_its_reply(holder):
    """A greylisted address says greylisted; a refusal that rests on nothing is no verdict yet."""
    _, request, _ = holder
    found = ask(request, "grace@patient.lab", "nobody@bare.lab")
    assert [each["reason"] for each in found] == ["greylisted", "refusals_suspect"]


def test_nobody_is_asked_under_another_s_consent(holder):
    """The job's consent is the only one under which its engine asks."""
    lab, request, _ = holder
    other = Consent("OTHER", "You", CONSENT.granted_at)
    with pytest.raises(WrongUse, match="T-7"):
        ask(request, "ada@normal.lab", consent=other)
    with pytest.raises(WrongUse, match="mode"):
        ask(request, "ada@normal.lab", mode=Mode.STANDARD, consent=None)
    assert not [entry for entry in lab.log() if "ada@normal.lab" in str(entry)]


def test_a_second_run_under_the_identity_is_told_who_holds_it(holder, tmp_path):
    """The lock names the holder, and nothing is sent."""
    _, request, _ = holder
    listed = tmp_path / "other.txt"
    listed.write_text("ada@normal.lab\n")
    with open_intake(listed) as intake:
        fields = {name: getattr(request, name) for name in Request.__slots__}
        other = Request(**(fields | {"intake": intake, "journal": tmp_path / "other.journal"}))
        with Verification(other) as second, pytest.raises(Held, match=r"127\.0\.0\.1"):
            second.run()
