"""How fast a policy lets a list go: what each limit alone would allow, and which one binds.

1. A forecast, never a permission: nothing that runs asks here.
2. Concurrency is left out, since how long a session takes is the server's choice; so are controls and retries.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from engine.core.grammar import Rate
from engine.core.policy import Policy, Sessions

USUAL_REFUSED = 0.08  # our guess for a list that was not cleaned for a while


@dataclass(frozen=True, slots=True)
class Ceiling:
    """Addresses an hour that each limit allows at one lane, by the limit's key in the policy file."""

    per_hour: Mapping[str, float]

    @property
    def binding(self) -> str:
        """The key of the tightest limit."""
        return min(self.per_hour, key=lambda key: self.per_hour[key])

    @property
    def addresses_per_hour(self) -> float:
        """What the tightest limit allows."""
        return self.per_hour[self.binding]

    def hours(self, addresses: int) -> float:
        """How long a list of that many addresses takes, at this one lane."""
        return addresses / self.addresses_per_hour


def ceilings(policy: Policy, refused: float = USUAL_REFUSED) -> tuple[Ceiling, Ceiling]:
    """What the policy's limits allow where their ranges start, and at their ceilings.

    `refused` is the share of the addresses that the server will refuse, more than 0.
    """
    recipients, refusals = policy.recipients.rate, policy.refusals.rate
    return (
        _ceiling(policy, recipients.start, refusals.start, refused),
        _ceiling(policy, recipients.ceiling, refusals.ceiling, refused),
    )


def across_sites(policy: Policy, refused: float = USUAL_REFUSED) -> float | None:
    """Addresses an hour over all sites of the policy; None where nothing caps their sum."""
    return _by_sessions(policy, policy.across_sites, refused) if policy.across_sites else None


def _ceiling(policy: Policy, recipients: Rate, refusals: Rate, refused: float) -> Ceiling:
    return Ceiling(
        {
            "refusals.rate": refusals.per_s * 3600 / refused,
            "recipients.rate": recipients.per_s * 3600,
            "sessions.rate": _by_sessions(policy, policy.sessions, refused),
        }
    )


def _by_sessions(policy: Policy, sessions: Sessions, refused: float) -> float:
    # One of a session's refusals is kept back for the control.
    carried = min(policy.recipients.per_session, (policy.refusals.per_session - 1) / refused)
    return sessions.rate.per_s * 3600 * max(1.0, carried)
