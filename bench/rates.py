"""Whether limits hold: 12 providers with different limits at once, shared addresses, shared hosts; no window over any.

Each window of any length is judged, twice: from the audit rows at the moment of sending, exactly, and from the server's
log, where each window is taken to be longer by the jitter that this run measured. A provider that always has work must
also get 97 % of what it allows.

    python -m bench rates [--short] [--seconds 60]
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.measure.engine import LIFTED, UNLIMITED, Setup
from bench.measure.judge import asked, counted, excess, kept, mean_rate, measured_jitter, most_open
from bench.measure.report import Report, options
from bench.world import Plan, World
from bench.world.log import Row
from engine.core.grammar import rate

REPLY_S = 0.01  # a reply of the world: sessions last, so that concurrency can bind
SHARE = 0.97
DOMAINS = 4  # of each provider
HOSTING = 500  # domains on one address
MIXED = 50  # domains with one host of a provider and one of their own


@dataclass(frozen=True, slots=True)
class Limits:
    """What a provider allows; `binds` names the limit that its work meets first."""

    sessions: str
    burst: int
    concurrency: int
    recipients: str
    per_transaction: int
    binds: str

    @property
    def rate(self) -> float:
        """Addresses a second that it allows."""
        return rate(self.sessions if self.binds == "sessions" else self.recipients).per_s

    def policy(self) -> dict[str, Any]:
        """The limits as a policy file has them: where sessions bind, each asks one recipient."""
        return {
            "sessions": {"concurrency": self.concurrency, "rate": self.sessions, "burst": self.burst},
            "recipients": {
                "rate": f"{self.recipients}..{self.recipients}",
                "per_session": 1 if self.binds == "sessions" else 100,
                "per_transaction": self.per_transaction,
            },
            "refusals": {"per_session": 100, "rate": "1000000/h..1000000/h"},
        }


PROVIDERS = (
    Limits("5/s", 1, 2, "1000/s", 1, "sessions"),
    Limits("20/s", 4, 4, "1000/s", 1, "sessions"),
    Limits("120/min", 2, 2, "1000/s", 1, "sessions"),
    Limits("40/s", 10, 8, "1000/s", 1, "sessions"),
    Limits("7/2s", 1, 1, "1000/s", 1, "sessions"),
    Limits("600/min", 5, 3, "1000/s", 1, "sessions"),
    Limits("50/s", 5, 4, "10/s", 1, "recipients"),
    Limits("50/s", 5, 4, "30/s", 5, "recipients"),
    Limits("50/s", 5, 2, "300/min", 10, "recipients"),
    Limits("50/s", 5, 8, "60/s", 20, "recipients"),
    Limits("50/s", 5, 1, "15/s", 3, "recipients"),
    Limits("50/s", 5, 2, "120/min", 2, "recipients"),
)
HOST_LIMITS = Limits("10/s", 2, 3, "25/s", 4, "recipients")  # of default.yaml in this run: one address is one neighbour
SHARED_LIMITS = Limits("6/s", 1, 2, "12/s", 3, "recipients")  # of the provider that 50 domains name beside their own


def main(arguments: list[str]) -> int:
    """Run it and report."""
    parser = options("rates", __doc__)
    parser.add_argument("--seconds", type=int, help="how long each provider has work; 60, or 20 with --short")
    chosen = parser.parse_args(arguments)
    seconds = chosen.seconds or (20 if chosen.short else 60)
    report = Report("rates")
    with tempfile.TemporaryDirectory() as name:
        folder = chosen.keep or Path(name)
        many(folder / "providers", seconds, report)
        hosted(folder / "hosting", seconds, report, two_hosts=False)
        hosted(folder / "hosting-two", seconds, report, two_hosts=True)
        mixed(folder / "mixed", seconds, report)
    return report.finish(chosen)


def many(folder: Path, seconds: int, report: Report) -> None:
    """12 providers at once."""
    plan, policies, addresses, where = Plan(), {}, [], {}
    plan.persona("normal", delay_s=REPLY_S)
    for number, limits in enumerate(PROVIDERS, 1):
        name = f"p{number:02}"
        where[name] = plan.host(f"mx.{name}.lab")
        domains = [plan.domain(f"d{each}.{name}.lab", [f"mx.{name}.lab"]) for each in range(DOMAINS)]
        count = int(limits.rate * seconds)
        addresses += [f"user{each}@{domains[each % DOMAINS]}" for each in range(count)]
        policies[name] = {
            "match": {"mx": [f"*.{name}.lab"]}, "scope": "provider", **limits.policy(),
            "control_rcpt": {"refuses_unknown_domains": domains},
        }  # fmt: skip
    with World(plan) as world:
        setup = Setup(folder, world, addresses, policies, LIFTED)
        spent = setup.run(limit_s=20.0 * seconds)
        log, audit = world.log(), setup.audit()
        ceiling = world.ceiling()
    jitter_s = measured_jitter(audit, log)
    over, slow = [], 1.0
    for number, limits in enumerate(PROVIDERS, 1):
        name = f"p{number:02}"
        found, sent, over_by = counted(log, {where[name]}), asked(audit, {where[name]}), 0.0
        for what, at_server, at_us, allowed, burst in (
            ("sessions", found.sessions, sent.sessions, limits.sessions, limits.burst),
            ("recipients", found.recipients, sent.recipients, limits.recipients, limits.per_transaction),
        ):
            per_s = rate(allowed).per_s
            if not kept(at_server, per_s, burst, jitter_s):
                over.append(f"{name} {what} at the server by {excess(at_server, per_s, burst):.2f}")
            if not kept(at_us, per_s, burst):
                over.append(f"{name} {what} as sent by {excess(at_us, per_s, burst):.2f}")
            over_by = max(over_by, excess(at_us, per_s, burst))
        if most_open([(began, ended - jitter_s) for began, ended in found.spans]) > limits.concurrency:
            over.append(f"{name} concurrency")
        moments, burst = found.recipients, limits.per_transaction
        if limits.binds == "sessions":
            moments, burst = found.sessions, limits.burst
        share = mean_rate(moments, burst) / limits.rate
        slow = min(slow, share)
        report.figure("allows", limits.rate, "/s", per=f"{name} {limits.binds}")
        report.figure("got", share * 100, "%", per=f"{name} {limits.binds}")
        report.figure("most over, as sent", round(over_by, 3), per=f"{name} {limits.binds}")
    _claims(report, "12 providers", over)
    report.at_least("mean rate of the slowest provider, of what it allows", slow * 100, SHARE * 100, "%")
    report.figure("jitter between sending and the server", jitter_s * 1000, "ms")
    report.figure("engine CPU", spent.cpu_s / spent.wall_s * 100, "% of a core")
    report.figure("world: could serve at most", ceiling["sessions_per_s"], "sessions/s")


def hosted(folder: Path, seconds: int, report: Report, *, two_hosts: bool) -> None:
    """Domains with an MX name each, all on one address; with `two_hosts` a second name each on another address.

    One name each is one site by its address; two names each are as many sites, held together by nothing but a cap on
    the address that is dialled.
    """
    plan = Plan()
    plan.persona("normal", delay_s=REPLY_S)
    first = plan.host("mx0.hosting.lab")
    second = plan.host("mx0.spare.lab")
    for number in range(HOSTING):
        names = [f"mx1.h{number:03}.lab", f"mx2.h{number:03}.lab"][: 1 + two_hosts]
        for name, ip in zip(names, (first, second), strict=False):
            plan.host(name, ip=ip)
        plan.domain(f"h{number:03}.lab", names)
    count = min(HOSTING, int(HOST_LIMITS.rate * seconds))
    what = f"{HOSTING} domains, {'two MX names each on two addresses' if two_hosts else 'one MX name each'}"
    with World(plan) as world:
        addresses = [f"gone{number}@h{number:03}.lab" for number in range(count)]
        setup = Setup(folder, world, addresses, {"default": HOST_LIMITS.policy()}, LIFTED)
        setup.run(limit_s=20.0 * seconds)
        log, audit = world.log(), setup.audit()
    _judged(report, what, HOST_LIMITS, log, audit, {first})


def mixed(folder: Path, seconds: int, report: Report) -> None:
    """Domains with one host of a provider and one of their own, beside the provider's own domains."""
    plan = Plan()
    plan.persona("normal", delay_s=REPLY_S)
    ip = plan.host("in.shared.lab")
    own = [plan.domain(f"d{each}.shared.lab", ["in.shared.lab"]) for each in range(DOMAINS)]
    for number in range(MIXED):
        plan.host(f"mx.own{number:02}.lab")
        plan.domain(f"own{number:02}.lab", ["in.shared.lab", f"mx.own{number:02}.lab"])
    count = int(SHARED_LIMITS.rate * seconds) // 2
    addresses = [f"gone{each}@own{each % MIXED:02}.lab" for each in range(count)]
    addresses += [f"gone{each}@{own[each % DOMAINS]}" for each in range(count)]
    policies = {
        "shared": {"match": {"mx": ["*.shared.lab"]}, "scope": "provider", **SHARED_LIMITS.policy()},
        "default": UNLIMITED,
    }
    with World(plan) as world:
        setup = Setup(folder, world, addresses, policies, LIFTED)
        setup.run(limit_s=20.0 * seconds)
        log, audit = world.log(), setup.audit()
    what = f"{MIXED} domains with a provider's host and their own"
    _judged(report, what, SHARED_LIMITS, log, audit, {ip})


def _judged(
    report: Report, what: str, limits: Limits, log: Sequence[Row], audit: Sequence[dict[str, Any]], ips: set[str]
) -> None:
    """A claim on what one address or provider sees."""
    found, jitter_s, over = counted(log, ips), measured_jitter(audit, log), []
    for name, moments, allowed, burst in (
        ("sessions", found.sessions, limits.sessions, limits.burst),
        ("recipients", found.recipients, limits.recipients, limits.per_transaction),
    ):
        per_s = rate(allowed).per_s
        if not kept(moments, per_s, burst, jitter_s):
            over.append(f"{name} by {excess(moments, per_s, burst):.1f}")
    together = most_open([(began, ended - jitter_s) for began, ended in found.spans])
    if together > limits.concurrency:
        over.append(f"{together} open, not {limits.concurrency}")
    report.note(f"{what}: {len(found.sessions)} sessions, {len(found.recipients)} recipients there")
    _claims(report, what, over)


def _claims(report: Report, what: str, over: list[str]) -> None:
    report.claim(f"{what}: windows over a limit", "none", f"{len(over)} over" if over else "none", met=not over)
    for each in over:
        report.note(f"over, {what}: {each}")
