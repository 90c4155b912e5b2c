"""Laws of the simulation against the real thing: a run over the lab takes as long as it says."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import yaml

from engine.core.identity import Consent, Mode
from engine.core.policy import DEFAULT_NAME, PolicySet
from engine.core.simulation import Assumed
from engine.flow.forecast import simulated
from engine.flow.intake import open_intake
from engine.flow.policies import load_policies
from engine.flow.simulate import plan, read_list
from engine.flow.verification import Request, Verification
from engine.identity_file import load_identity
from engine.lab.process import LabProcess
from engine.lab.spec import SHIPPED
from engine.net.resolver import Resolver

pytestmark = pytest.mark.slow

LAB = SHIPPED.parent
WITHIN = 0.10
ASKED = ("rcpt_ok", "mailbox_not_found", "mailbox_temporarily_unavailable")


def people(known: int, *, locked: int = 0) -> dict[str, str]:
    """Mailboxes of a domain; the rest that a list names is unknown there."""
    return {f"k{n:03}": "known" for n in range(known)} | {f"l{n:03}": "locked" for n in range(locked)}


def listed(domain: str, known: int, unknown: int = 0, *, locked: int = 0) -> list[str]:
    """Addresses of a domain: known ones, locked ones, and unknown ones spread among them."""
    there = [f"{local}@{domain}" for local in people(known, locked=locked)]
    for n in range(unknown):
        there.insert((n * 37) % (len(there) + 1), f"u{n:03}@{domain}")
    return there


@dataclass(frozen=True)
class Case:
    """A mix: what the lab holds, whom the list names, and the policies under which it is asked."""

    spec: Mapping[str, Any]
    rows: list[str]
    policies: Mapping[str, Mapping[str, Any]]


def one_large_provider() -> Case:
    """The recipient rate binds: a provider with a large domain of its own and 10 tenants."""
    tenants = [f"tenant-{n:02}.lab" for n in range(10)]
    names = ["gmail-like.lab", *tenants]
    return Case(
        {
            "hosts": {"aspmx.google.lab": "google-like"},
            "domains": {
                name: {"mx": ["aspmx.google.lab"], "mailboxes": people(100 if name == names[0] else 4)}
                for name in names
            },
        },
        listed(names[0], 100, 8) + [row for name in tenants for row in listed(name, 4)],
        {"google-like": {"recipients": {"rate": "12/s", "per_session": 20, "per_transaction": 5}}},
    )


def a_crowded_host() -> Case:
    """The refusal budget binds: 60 domains on one host, each with its control, a tenth of the addresses unknown."""
    rows = [f"k{n:03}@crowd-{number:02}.lab" for number in range(60) for n in range(5)]
    unknown = set(random.Random(7).sample(rows, len(rows) // 10))
    mailboxes: dict[str, list[str]] = {f"crowd-{number:02}.lab": [] for number in range(60)}
    for row in rows:
        local, _, domain = row.partition("@")
        if row not in unknown:
            mailboxes[domain].append(local)
    return Case(
        {
            "hosts": {"mx.crowd.lab": "normal"},
            "domains": {name: {"mx": ["mx.crowd.lab"], "mailboxes": there} for name, there in mailboxes.items()},
        },
        rows,
        {
            "default": {
                "refusals": {"per_session": 5, "rate": "10/2s"},
                "recipients": {"per_session": 10, "per_transaction": 4},
            }
        },
    )


def sites_that_greylist() -> Case:
    """Sessions and ladders bind: 16 sites that greylist everybody, each with a mailbox that stays locked."""
    names = [f"small-{n:02}.lab" for n in range(16)]
    return Case(
        {"domains": {name: {"persona": "greylisting", "mailboxes": people(9, locked=1)} for name in names}},
        [row for name in names for row in listed(name, 9, 1, locked=1)],
        {
            "default": {
                "sessions": {"concurrency": 1, "rate": "1/s", "burst": 1},
                "recipients": {"per_session": 2, "per_transaction": 1},
                "retry": {"greylist": ["3s", "5s"], "tempfail": ["2s", "3s"], "give_up": "60s"},
            }
        },
    )


@pytest.fixture
def verified(tmp_path: Path) -> Iterator[Any]:
    """Runs a case over a lab of its own: how long its dialogue took, its rows, and its mail as a simulation sees it."""
    numbers = count()

    def run(case: Case) -> tuple[float, list[dict[str, Any]], PolicySet, Any]:
        folder = tmp_path / str(next(numbers))
        (folder / "policies").mkdir(parents=True)
        for name, fields in case.policies.items():
            text = yaml.safe_dump({"provider": name, **fields})
            (folder / "policies" / f"{name}.yaml").write_text(text, encoding="utf-8")
        policies = load_policies([LAB / "policies", folder / "policies"])
        path = folder / "list.txt"
        path.write_text("".join(f"{row}\n" for row in case.rows), encoding="utf-8")
        with LabProcess(case.spec) as lab:
            with closing(Resolver([lab.dns], allow_private=True)) as resolver, open_intake(path) as intake:
                planned = plan(read_list(intake).domains, policies, lambda _: {}, resolver=resolver)
            since = time.monotonic()
            with open_intake(path) as intake:
                request = Request(
                    intake=intake, mode=Mode.ENHANCED, policies=policies, journal=folder / "journal",
                    state=folder / "state.db", identities=load_identity(LAB / "identity.yaml"),
                    consent=Consent("T-1", "A. Owner", datetime(2026, 1, 1, tzinfo=UTC)), dns=(lab.dns,),
                    smtp_port=lab.smtp_port, allow_private=True,
                )  # fmt: skip
                with Verification(request) as verification:
                    assert verification.run()
                    rows = [result for _, result in verification.results()]
            log = [row for row in lab.log() if row["t"] >= since]
        began = min(row["t"] for row in log if row["event"] == "connect")
        ended = max(row["t"] for row in log if row["event"] == "command" and row["text"].startswith("RCPT"))
        return ended - began, rows, policies, planned

    yield run


def measured(rows: list[Any], policies: PolicySet) -> Assumed:
    """The shares that a finished run saw."""
    asked = [row for row in rows if row.reason in ASKED]
    assert len(asked) == len(rows), {row.reason for row in rows}
    domains = {row.address.rpartition("@")[2] for row in asked if row.policy == DEFAULT_NAME}
    later = {
        row.address.rpartition("@")[2]
        for row in asked
        if row.attempts > 1 and row.reason != "mailbox_temporarily_unavailable"
    }
    return Assumed(
        refused=sum(row.reason == "mailbox_not_found" for row in asked) / len(asked),
        tempfail=sum(row.reason == "mailbox_temporarily_unavailable" for row in asked) / len(asked),
        greylisted=len(later) / len(domains) if domains else 0.0,
        rtt_s=sum(row.duration_ms for row in asked) / len(asked) / 1000,
    )


@pytest.mark.parametrize("case", [one_large_provider, a_crowded_host, sites_that_greylist])
def test_a_run_takes_as_long_as_its_simulation_says(verified, case) -> None:
    """Within a tenth, when the simulation is given the shares that the run measured."""
    took, rows, policies, planned = verified(case())
    assumed = measured(rows, policies)
    courses = simulated(planned.mail, assumed, policies)
    assert courses is not None
    foretold = max(course.ended_at for course in courses.values())
    last = max(courses.values(), key=lambda course: course.ended_at)
    print(f"{case.__name__}: took {took:.1f} s, foretold {foretold:.1f} s by {last.binding}, {assumed}")
    assert took >= 8, "too short a run to tell anything"
    assert foretold == pytest.approx(took, rel=WITHIN)
