"""Whether trouble at one provider costs the others anything: healthy ones alone, and beside four that are not.

One provider fails every recipient for now, one blocks us, one takes 2 s a reply, one greylists. The healthy ones have
limits that bind; what they get with and without the others is read from the server's log. It proves something only
while the CPU has room, so that is measured too.

    python -m bench fairness [--short] [--seconds 60]
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.measure.engine import LIFTED, QUICK, Setup, accepted
from bench.measure.judge import mean_rate
from bench.measure.report import Report, options
from bench.world import Plan, World

HEALTHY = 6
RATE = 15  # addresses a second that each healthy provider allows
KEPT = 0.95
BUSY = 0.5
TROUBLE = {"tempfail": "tempfailing", "block": "blocking", "tarpit": "tarpit", "greylist": "greylisting"}
EACH = 400  # addresses at each provider in trouble
REPLY_S = 0.01
LIMITS: dict[str, dict[str, Any]] = {
    "sessions": {
        "sessions": {"concurrency": 8, "rate": f"{RATE}/s", "burst": 2},
        "recipients": {"rate": "1000/s..1000/s", "per_session": 1, "per_transaction": 1},
        "refusals": {"per_session": 10, "rate": "1000000/h..1000000/h"},
    },
    "recipients": {
        "sessions": {"concurrency": 4, "rate": "20/s", "burst": 2},
        "recipients": {"rate": f"{RATE}/s..{RATE}/s", "per_session": 50, "per_transaction": 5},
        "refusals": {"per_session": 10, "rate": "1000000/h..1000000/h"},
    },
}
GENEROUS: dict[str, Any] = {  # what the others may take of us, if nothing stops them
    "sessions": {"concurrency": 50, "rate": "50/s", "burst": 10},
    "recipients": {"rate": "500/s..500/s", "per_session": 20, "per_transaction": 5},
    "refusals": {"per_session": 10, "rate": "1000000/h..1000000/h"},
}


@dataclass(frozen=True, slots=True)
class Course:
    """What the healthy got in one run."""

    rates: dict[str, float]
    busy: float
    ended_s: float
    sessions: dict[str, int]  # at each provider


def main(arguments: list[str]) -> int:
    """Run it and report."""
    parser = options("fairness", __doc__)
    parser.add_argument("--seconds", type=int, help="how long the healthy have work; 60, or 15 with --short")
    chosen = parser.parse_args(arguments)
    seconds = chosen.seconds or (15 if chosen.short else 60)
    report = Report("fairness")
    with tempfile.TemporaryDirectory() as name:
        folder = chosen.keep or Path(name)
        alone = course(folder / "alone", seconds, beside=False)
        together = course(folder / "together", seconds, beside=True)
    for provider, rate in alone.rates.items():
        report.figure("alone", rate, "/s", per=provider)
        report.figure("beside trouble", together.rates[provider], "/s", per=provider)
        report.figure("kept", together.rates[provider] / rate * 100, "%", per=provider)
    worst = min(together.rates[provider] / rate for provider, rate in alone.rates.items())
    report.at_least("what a healthy provider keeps beside trouble", worst * 100, KEPT * 100, "%")
    report.at_most("CPU used meanwhile, alone", alone.busy * 100, BUSY * 100, "% of a core")
    report.at_most("CPU used meanwhile, beside trouble", together.busy * 100, BUSY * 100, "% of a core")
    for name in TROUBLE:
        report.figure(f"sessions at {name} meanwhile", together.sessions[name])
    return report.finish(chosen)


def course(folder: Path, seconds: int, *, beside: bool) -> Course:
    """One run, until the healthy are through."""
    plan, policies, lists, where = Plan(), {}, [], {}
    plan.persona("normal", delay_s=REPLY_S)
    for number in range(HEALTHY):
        name, binds = f"healthy{number}", "sessions" if number % 2 else "recipients"
        where[name] = plan.host(f"mx.{name}.lab")
        plan.domain(f"{name}.lab", [f"mx.{name}.lab"])
        policies[name] = {
            "match": {"mx": [f"*.{name}.lab"]}, "scope": "provider", **LIMITS[binds],
            "control_rcpt": {"refuses_unknown_domains": [f"{name}.lab"]},
        }  # fmt: skip
        lists.append([f"user{each}@{name}.lab" for each in range(RATE * seconds)])
    for name, persona in TROUBLE.items():
        where[name] = plan.host(f"mx.{name}.lab", persona)
        plan.domain(f"{name}.lab", [f"mx.{name}.lab"])
        policies[name] = {"match": {"mx": [f"*.{name}.lab"]}, "scope": "provider", **QUICK, **GENEROUS}
        if beside:
            lists.append([f"user{each}@{name}.lab" for each in range(EACH)])
    addresses = [each for turn in range(max(map(len, lists))) for row in lists for each in row[turn : turn + 1]]
    with World(plan) as world:
        setup = Setup(folder, world, addresses, policies, LIFTED, more=("--deadline", f"{int(seconds * 1.2) + 5}s"))
        running = setup.start()
        spent = accepted(running.until_done(limit_s=10.0 * seconds))
        log = world.log()
    moments: dict[str, list[float]] = {name: [] for name in where}
    sessions = dict.fromkeys(where, 0)
    names = {ip: name for name, ip in where.items()}
    for row in log:
        if row.event == "RCPT":
            moments[names[row.ip]].append(row.t)
        sessions[names[row.ip]] += row.event == "+"
    healthy = [name for name in where if name not in TROUBLE]
    first = min(moment for name in healthy for moment in moments[name])
    last = max(moment for name in healthy for moment in moments[name])
    used = [cpu for at, cpu, _ in spent.samples if first <= running.began + at <= last]
    rates = {name: mean_rate(moments[name], burst=5) for name in healthy}
    return Course(rates, (used[-1] - used[0]) / (last - first), last - first, sessions)
