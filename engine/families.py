"""Every Prometheus metric of the engine: the one list of names, types, labels and help.

1. `docs/metrics.md` is made from it; `engine.metrics` counts, and `engine.scrape` reads what is and shows both.
2. Labels come from closed sets: `provider` is a policy's name (`default` for the rest), never a domain or an address.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from engine.core.identity import Status

# What the client library tells of any process, where there is a /proc: is the machine the limit?
PROCESS = (
    "process_cpu_seconds_total",
    "process_resident_memory_bytes",
    "process_virtual_memory_bytes",
    "process_open_fds",
    "process_max_fds",
    "process_start_time_seconds",
)


class Kind(StrEnum):
    """The types of the exposition format that are used here."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


@dataclass(frozen=True, slots=True)
class Family:
    """One metric: its name as scraped, type, labels and help; `buckets` are upper bounds in the metric's unit."""

    name: str
    kind: Kind
    labels: tuple[str, ...]
    help: str
    buckets: tuple[float, ...] = ()


class LaneState(StrEnum):
    """How a lane stands: its breaker, or else what keeps it from starting the next session."""

    CLOSED = "closed"  # nothing keeps it: it works, or waits for work
    OPEN = "open"
    HALF_OPEN = "half_open"
    WAITING_RATE = "waiting_rate"
    WAITING_BUDGET = "waiting_budget"


_PROVIDER = ("provider",)
_LANE = ("provider", "identity")

FAMILIES: tuple[Family, ...] = (
    Family(
        "engine_probes_total", Kind.COUNTER, ("provider", "category", "reason"),
        "Addresses by settled verdict. Provisional verdicts and endings of the run are not in it.",
    ),
    Family(
        "engine_smtp_replies_total", Kind.COUNTER, ("provider", "stage", "code_class"),
        "SMTP replies that were judged: each reply to RCPT, and the reply that ended an earlier stage.",
    ),
    Family(
        "engine_tempfails_total", Kind.COUNTER, ("provider", "identity", "reason"),
        "Judged replies with a 4yz code, greylisting included.",
    ),
    Family(
        "engine_rejects_total", Kind.COUNTER, ("provider", "identity", "reason"),
        "Judged replies that refuse us (fault us), for good or for now.",
    ),
    Family(
        "engine_refusals_total", Kind.COUNTER, _LANE,
        "Recipients refused with a 5yz or left without an answer, controls included: what a provider holds against us.",
    ),
    Family(
        "engine_unclassified_replies_total", Kind.COUNTER, _PROVIDER,
        "Replies that no rule knows; `engine classify` shows them out of the journal.",
    ),
    Family(
        "engine_breaker_transitions_total", Kind.COUNTER, ("provider", "identity", "to"),
        "Moves of breakers, of lanes and providers that they lead to, by the state moved to: closed, open, half_open.",
    ),
    Family(
        "engine_session_seconds", Kind.HISTOGRAM, _PROVIDER,
        "Length of SMTP sessions that a server let us open, from the first dialling to the end.",
        (0.1, 0.3, 1, 3, 10, 30, 60, 120, 300, 600),
    ),
    Family(
        "engine_session_recipients", Kind.HISTOGRAM, _PROVIDER,
        "Recipients asked in a session that a server let us open; controls included.",
        (0, 1, 2, 3, 5, 10, 20, 50, 100),
    ),
    Family(
        "engine_lane_wait_seconds", Kind.HISTOGRAM, _LANE,
        "How long a domain with something to ask had waited for its turn when its session started.",
        (0.01, 0.1, 1, 10, 60, 300, 900, 3600, 14400, 86400),
    ),
    Family(
        "engine_dns_seconds", Kind.HISTOGRAM, ("type", "outcome"),
        "Questions that went to a name server, by record type and outcome; answers from the cache are not in it.",
        (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10),
    ),
    Family(
        "engine_hub_lag_seconds", Kind.HISTOGRAM, (),
        "How late a timer of 50 ms fires: what every session waits beside its peer. Alert at a p99 over 0.1.",
        (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5),
    ),
    Family(
        "engine_sessions_open", Kind.GAUGE, _PROVIDER,
        "Sessions open now, those that are still dialling included.",
    ),
    Family(
        "engine_lanes", Kind.GAUGE, ("provider", "identity", "state"),
        "Lanes in memory by state: the breaker's, or what a lane with work waits for.",
    ),
    Family(
        "engine_lane_queue", Kind.GAUGE, _LANE,
        "Addresses that wait in the lanes in memory, summed; what is still in the journal only is not in it.",
    ),
    Family(
        "engine_addresses_left", Kind.GAUGE, (),
        "Addresses of the job that have no settled verdict yet, in memory or not.",
    ),
    Family(
        "engine_refusal_budget_used_ratio", Kind.GAUGE, _LANE,
        "Share of the refusal budget that is spent or reserved, of the fullest lane; 1 is all of it.",
    ),
    Family(
        "engine_lane_pace", Kind.GAUGE, _LANE,
        "Recipients a second that the slowest lane asks for at most: what complaints cut, and peace raises again.",
    ),
    Family(
        "engine_identity_state", Kind.GAUGE, ("identity", "state"),
        "1 at the state that the identity is in, 0 at the others.",
    ),
    Family(
        "engine_identity_breaker_open", Kind.GAUGE, ("identity",),
        "1 while so many organisations or the network refuse the identity that it starts nothing, 0 else.",
    ),
    Family(
        "engine_policy_reloads_total", Kind.COUNTER, ("outcome",),
        "Sets of policies that were read while a run was at work: loaded, or refused for a mistake.",
    ),
    Family(
        "engine_rbl_checks_total", Kind.COUNTER, ("list", "outcome"),
        "Answers of block lists about our targets: listed, clean, refused, error, suspect.",
    ),
    Family(
        "engine_rbl_listed", Kind.GAUGE, ("list", "target"),
        "1 where the newest answer that can be relied on says listed, 0 where it says clean; no series else.",
    ),
    Family(
        "engine_rbl_list_usable", Kind.GAUGE, ("list", "reason"),
        "1 for a list that passes its probes (reason good), 0 with the reason for one that fails them, or that is not "
        "asked at all (not_checked).",
    ),
    Family(
        "engine_rbl_check_age_seconds", Kind.GAUGE, ("target",),
        "How long ago any block list gave an answer about the target that can be relied on; where none did yet, for "
        "how long it has been watched.",
    ),
    Family(
        "engine_alerts_total", Kind.COUNTER, ("channel", "outcome"),
        "Attempts to tell people something by mail or Slack: sent, failed.",
    ),
    Family(
        "engine_alerts_waiting", Kind.GAUGE, ("channel",),
        "Messages that a channel did not take yet.",
    ),
    Family(
        "engine_push_records_total", Kind.COUNTER, ("outcome",),
        "Records for the control plane: sent, refused (it did not want this one), dropped (checks, when the spool was "
        "full).",
    ),
    Family(
        "engine_push_posts_total", Kind.COUNTER, ("outcome",),
        "Batches posted to the control plane: taken, failed.",
    ),
    Family(
        "engine_push_waiting", Kind.GAUGE, (),
        "Records in the spool that the control plane did not take yet; no series where nothing is pushed.",
    ),
    Family(
        "engine_push_stalled_seconds", Kind.GAUGE, (),
        "For how long the control plane has taken nothing while records wait; 0 while it takes them.",
    ),
    Family(
        "engine_journal_lag_seconds", Kind.GAUGE, (),
        "How long the oldest write has waited for its commit.",
    ),
    Family(
        "engine_build_info", Kind.GAUGE, ("version", "classifier", "python"),
        "Always 1; the labels say what runs.",
    ),
)  # fmt: skip


_HEAD = """# Metrics

Made from `engine/families.py` by `make docs`; don't edit it here.

`engine verify ... --metrics HOST:PORT` serves `/metrics`, `/healthz` and `/readyz`; a port alone means loopback.
`/healthz` answers 200 while the process turns; `/readyz` 200 while a run is at work and can store what it learns, else
503 with one line that says why. They answer while `verify` runs and end with it. `provider` is the name of a policy,
`default` for hosts that none claims; `identity` is an identity's name. Neither is ever a domain or an address, so the
number of series does not grow with the list.
Counters begin at 0 with the process: a resumed run counts what it settles itself. [Operating](operate.md) has the
dashboards and alerts that read all this.

| metric | type | labels | meaning |
| --- | --- | --- | --- |
"""

_STATES = """
`state` of `engine_lanes` is one of {lanes}; of `engine_identity_state` one of {identities}.

| histogram | upper bounds |
| --- | --- |
"""


def reference() -> str:
    """The page `docs/metrics.md`."""
    rows = (
        f"| `{family.name}` | {family.kind} | {', '.join(f'`{label}`' for label in family.labels)} | {family.help} |\n"
        for family in FAMILIES
    )
    bounds = (
        f"| `{family.name}` | {', '.join(f'{bound:g}' for bound in family.buckets)} |\n"
        for family in FAMILIES
        if family.buckets
    )
    states = _STATES.format(
        lanes=", ".join(f"`{state}`" for state in LaneState), identities=", ".join(f"`{status}`" for status in Status)
    )
    process = ", ".join(f"`{name}`" for name in PROCESS)
    told = f"\nBeside them the process tells of itself, as with any Prometheus client: {process}.\n"
    return _HEAD + "".join(rows) + states + "".join(bounds) + told
