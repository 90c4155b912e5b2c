"""How a run and a monitor stand at the moment of a scrape: what `engine.scrape` asks them for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from engine.core.identity import Status
from engine.core.listing import Check
from engine.families import LaneState


@dataclass(frozen=True, slots=True)
class LaneView:
    """One lane at the moment of a scrape; `budget_used` is the spent share of its refusal budget, 0 to 1."""

    provider: str
    identity: str
    state: LaneState
    queue: int
    sessions: int
    budget_used: float
    pace_per_s: float  # recipients


@dataclass(frozen=True, slots=True)
class View:
    """What a scrape reads of a monitor: newest answers, lists, alerts by channel. Times are Unix seconds."""

    now: float
    checks: Mapping[tuple[str, str], Check]  # by target and list
    answered: Mapping[str, float]  # by target: when a list last gave an answer that counts, or the watch began
    lists: Sequence[tuple[str, bool, str]]  # name, usable, why (`good` where it is)
    waiting: Mapping[str, int]
    unchecked: Sequence[str]  # critical lists that are off, with why
    to_push: int | None = None  # records in the spool; None where nothing is pushed
    push_stalled_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Live:
    """What a scrape reads of the run: `lanes` is walked in slices, so it must bear lanes coming and going."""

    lanes: Iterable[LaneView]
    identities: Mapping[str, Status]  # by name
    journal_lag_s: float
    left: int = 0  # addresses of the job without a settled verdict
    refused: Mapping[str, bool] = field(default_factory=dict)  # identity -> whether its breaker is open
