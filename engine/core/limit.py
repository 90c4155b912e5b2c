"""What an operator narrows for a while, without touching a policy file.

1. A limit never widens: each number is the smaller of the policy's and the order's.
2. Several limits of one provider hold together: the tightest of each number.
3. It holds where the policy's own numbers hold: for each site, or for the provider as a whole (`scope`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from engine.core.grammar import Range, Rate
from engine.core.policy import Policy, PolicySet


@dataclass(frozen=True, slots=True)
class Limit:
    """At most `rate` session starts and as many recipients, and `concurrency` open sessions; None narrows nothing.

    `provider` is a policy's name, empty for all of them; `source` is what to name as the origin of the values that it
    changes.
    """

    provider: str
    rate: Rate | None = None
    concurrency: int | None = None
    source: str = "lane limit"


def narrowed(policy: Policy, limits: Iterable[Limit]) -> Policy:
    """The policy under its limits; the same object where they change nothing."""
    for limit in limits:
        if limit.provider not in ("", policy.name):
            continue
        sessions, recipients, pace, origin = policy.sessions, policy.recipients, policy.pace, dict(policy.origin)
        if limit.concurrency is not None and limit.concurrency < sessions.concurrency:
            sessions = replace(sessions, concurrency=limit.concurrency)
            origin["sessions.concurrency"] = limit.source
        if limit.rate is not None:
            most = limit.rate.count  # a burst of more would be no such rate
            sessions = replace(sessions, rate=_slower(sessions.rate, limit.rate), burst=min(sessions.burst, most))
            recipients = replace(
                recipients,
                rate=Range(_slower(recipients.rate.start, limit.rate), _slower(recipients.rate.ceiling, limit.rate)),
                per_transaction=min(recipients.per_transaction, most),
            )
            pace = replace(pace, floor=_slower(pace.floor, limit.rate))
            for key, before, after in (
                ("sessions.rate", policy.sessions.rate, sessions.rate),
                ("sessions.burst", policy.sessions.burst, sessions.burst),
                ("recipients.rate", policy.recipients.rate, recipients.rate),
                ("recipients.per_transaction", policy.recipients.per_transaction, recipients.per_transaction),
                ("pace.floor", policy.pace.floor, pace.floor),
            ):
                if before != after:
                    origin[key] = limit.source
        if (sessions, recipients, pace) != (policy.sessions, policy.recipients, policy.pace):
            policy = replace(policy, sessions=sessions, recipients=recipients, pace=pace, origin=origin)
    return policy


def narrowed_set(policies: PolicySet, limits: Sequence[Limit]) -> PolicySet:
    """All policies under their limits; the same object without any."""
    if not limits:
        return policies
    return replace(
        policies,
        policies=tuple(narrowed(policy, limits) for policy in policies.policies),
        default=narrowed(policies.default, limits),
    )


def _slower(one: Rate, other: Rate) -> Rate:
    return other if other.per_s < one.per_s else one
