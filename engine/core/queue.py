"""What waits in a lane: addresses by domain, control questions, and domains that are held.

1. A domain is *ready* when it has something to ask now and nobody else asks it first contact; it then waits its turn.
2. What is due later, and a domain that is held, lies in one heap by time: nothing is looked at before it can matter.
3. A domain's record leaves memory when nothing of it waits, is in flight or on its way here.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from engine.core.breaker import Breaker
from engine.core.control import ControlAnswer

_NONE: frozenset[str] = frozenset()
_NO_HOLDS: dict[str, Breaker] = {}
RECHECK_AT = 100  # acceptances in a row at a domain that is known to refuse; doubled each time that it still does


@dataclass(slots=True)
class Item:
    """An address that waits to be asked. `id` is the journal's; steps count what its ladders used."""

    id: int
    local: str
    domain: str
    attempts: int = 0
    greylist_steps: int = 0
    tempfail_steps: int = 0
    reconnects: int = 0
    first_at: float | None = None  # wall clock of its first attempt
    last_reason: str = ""


@dataclass(slots=True)
class Domain:
    """What a lane knows of one domain: its addresses, its control question, and whether it refuses us."""

    name: str
    id: int
    site: str
    items: list[Item] = field(default_factory=list)
    later: int = 0  # addresses that wait for a time to come
    in_flight: int = 0  # transactions
    control: ControlAnswer = ControlAnswer.UNKNOWN
    control_due: float | None = None  # accepted addresses wait for a control from this moment on
    control_steps: int = 0
    control_number: int = 0
    control_asked: bool = False  # it is in flight; nobody else asks it
    busy: bool = False  # first contact: one session asks, until the control question is settled
    accepted_in_a_row: int = 0  # since somebody was refused as unknown, or a control was
    recheck_at: int = RECHECK_AT  # so many of them, and the control question is asked again
    refused_before: bool = False  # its control question is open though a fact said that it refuses: the tripwire
    hold: Breaker | None = None  # a refusal of reach `domain` holds this domain only
    ready_since: float = 0.0  # its turn has been due from here on
    expects: int = 0  # readers who will bring addresses of it, or questions, and must find this record then

    @property
    def settled(self) -> bool:
        """Whether its control question is answered for now."""
        return self.control is not ControlAnswer.UNKNOWN

    def heard(self, accepted: int, others: int) -> None:
        """Answers to listed addresses: after so many acceptances in a row a refusing domain is asked once more."""
        self.accepted_in_a_row = 0 if others else self.accepted_in_a_row + accepted
        if self.control is ControlAnswer.REFUSES and self.accepted_in_a_row >= self.recheck_at:
            self.control = ControlAnswer.UNKNOWN
            self.refused_before = True

    def learnt(self, answer: ControlAnswer) -> bool:
        """Its control question is answered; True: it accepts whom it refused before (the tripwire)."""
        trips = self.refused_before and answer is ControlAnswer.ACCEPTS
        if self.refused_before and answer is ControlAnswer.REFUSES:
            self.recheck_at *= 2
        self.control, self.refused_before, self.accepted_in_a_row = answer, False, 0
        return trips

    @property
    def quiet(self) -> bool:
        """Whether nothing of it waits or is in flight."""
        waits = self.items or self.later or self.control_due is not None
        return not (waits or self.in_flight or self.busy or self.hold or self.expects)


class Queue:
    """The waiting room of one lane."""

    __slots__ = (
        "_controls", "_held", "_holds_to_come", "_later", "_order", "_ready", "_ready_at", "_site", "domains",
        "waiting",
    )  # fmt: skip

    def __init__(self) -> None:
        self.domains: dict[str, Domain] = {}
        self.waiting = 0  # addresses, those for later included
        self._held: frozenset[str] = _NONE
        self._holds_to_come = _NO_HOLDS  # of domains that an earlier run held, and this one has not met
        self._controls = 0  # control questions that wait
        self._ready: OrderedDict[str, Domain] = OrderedDict()
        self._ready_at: dict[str, OrderedDict[str, Domain]] | None = None  # the same by site, where there are several
        self._site = ""  # of all domains, while there is one
        self._later: list[tuple[float, int, Item | None, str]] = []  # without an item: look at the domain again
        self._order = 0

    def domain(self, name: str, domain_id: int, site: str) -> Domain:
        """The record of a domain, made when it is new."""
        known = self.domains.get(name)
        if known is None:
            known = self.domains[name] = Domain(name, domain_id, site)
            if site != self._site:
                self._sees(site)
            if self._holds_to_come and (breaker := self._holds_to_come.pop(name, None)) is not None:
                self.hold(known, breaker)
        return known

    def add(self, item: Item, now: float, at: float = 0.0, *, first: bool = False) -> None:
        """Let an address wait, from `at` on; `first` puts it ahead of its domain's queue."""
        self.waiting += 1
        domain = self.domains[item.domain]
        if at > now:
            domain.later += 1
            heapq.heappush(self._later, (at, self._number(), item, item.domain))
            return
        if first:
            domain.items.insert(0, item)
        else:
            domain.items.append(item)
        self.offer(domain, now, first=first)

    def put_first(self, name: str, item_id: int, now: float) -> None:
        """Put an address ahead, and its domain too, if it waits for its turn and for nothing else."""
        domain = self.domains.get(name)
        for place, item in enumerate(domain.items if domain is not None else ()):
            if item.id == item_id and domain is not None:
                domain.items.insert(0, domain.items.pop(place))
                self.offer(domain, now, first=True)
                return

    def want_control(self, domain: Domain, now: float, at: float) -> None:
        """Accepted addresses wait for the domain's control, to be asked from `at` on, ahead of new addresses."""
        self._controls += domain.control_due is None
        domain.control_due = at
        if at > now:
            self._look_again(domain, at)
        else:
            self.offer(domain, now, first=True)

    def offer(self, domain: Domain, now: float, *, first: bool = False) -> None:
        """Put a domain among the ready ones if it is; while it is held, look again when the hold ends."""
        control = domain.control_due
        if domain.busy or not (domain.items or (control is not None and control <= now)):
            return  # another session asks it first contact, or it has nothing to ask
        if domain.hold is not None and not domain.hold.allows(now):
            self._withdraw(domain)
            if domain.hold.until > now:
                self._look_again(domain, domain.hold.until)
            return
        if domain.name not in self._ready:
            domain.ready_since = now
        self._ready[domain.name] = domain
        if first:
            self._ready.move_to_end(domain.name, last=False)
        if self._ready_at is not None:
            at_site = self._ready_at.setdefault(domain.site, OrderedDict())
            at_site[domain.name] = domain
            if first:
                at_site.move_to_end(domain.name, last=False)

    def due(self, now: float) -> float | None:
        """When it has something to ask, which may be behind us; None while nothing waits for a moment."""
        later = self._later
        if later and later[0][0] <= now:
            self.wake(now)
        if self._ready:
            return now
        return later[0][0] if later else None

    def wake(self, now: float) -> None:
        """Bring in what was due by `now`."""
        while self._later and self._later[0][0] <= now:
            due, _, item, name = heapq.heappop(self._later)
            domain = self.domains.get(name)
            if domain is None:
                continue
            if item is not None:
                domain.later -= 1
                domain.items.append(item)
            fresh = domain.name not in self._ready
            self.offer(domain, now, first=item is None)
            if fresh:
                domain.ready_since = due  # and not from when somebody looked

    def take(self, domain: Domain, number: int) -> list[Item]:
        """The next addresses of a domain, off the queue."""
        items = domain.items[:number]
        del domain.items[:number]
        self.waiting -= len(items)
        self._withdraw(domain)
        return items

    def take_site(self, site: str) -> list[Item]:
        """Every address that could be asked now at a site whose hosts can't be reached."""
        taken: list[Item] = []
        for domain in list(self._at(site).values()):
            taken.extend(domain.items)
            domain.items.clear()
            if domain.control_due is None:
                self._withdraw(domain)
        self.waiting -= len(taken)
        return taken

    def drop_control(self, domain: Domain) -> None:
        """The control is being asked, or its question is settled: it waits no more."""
        if domain.control_due is None:
            return
        self._controls -= 1
        domain.control_due = None
        if not domain.items:
            self._withdraw(domain)

    def drop_domain(self, domain: Domain) -> int:
        """Take everything of a domain off the queue: it needs no asking any more; says how many addresses."""
        gone = len(domain.items) + domain.later
        if domain.later:
            self._later = [entry for entry in self._later if entry[3] != domain.name]
            heapq.heapify(self._later)
        domain.items.clear()
        domain.later = 0
        self.drop_control(domain)
        self._withdraw(domain)
        self.waiting -= gone
        return gone

    def held(self) -> list[Domain]:
        """Domains that refuse us."""
        if not self._held:
            return []
        self._held = frozenset(
            name for name in self._held if name in self.domains and self.domains[name].hold is not None
        )
        return [self.domains[name] for name in self._held]

    def hold(self, domain: Domain, breaker: Breaker) -> None:
        """A domain refuses us: from now on its breaker decides when it may be asked."""
        domain.hold = breaker
        self._held |= {domain.name}

    def recall_hold(self, name: str, breaker: Breaker) -> None:
        """A domain that an earlier run held is held again, as soon as it is met."""
        known = self.domains.get(name)
        if known is None:
            self._holds_to_come = self._holds_to_come or {}
            self._holds_to_come[name] = breaker
        else:
            self.hold(known, breaker)

    @property
    def holds(self) -> bool:
        """Whether domains refuse us, as far as is known."""
        return bool(self._held or self._holds_to_come)

    def holds_to_come(self, now: float) -> dict[str, dict[str, Any]]:
        """The memory of holds whose domains were not met."""
        return {name: breaker.memory(now) for name, breaker in self._holds_to_come.items()}

    def forget(self, domain: Domain) -> None:
        """Let a quiet domain's record go."""
        if domain.quiet and self.domains.get(domain.name) is domain:
            del self.domains[domain.name]

    def next(self, site: str | None = None) -> Domain | None:
        """The domain whose turn it is (at a site), or None."""
        ready = self._ready if site is None else self._at(site)
        return next(iter(ready.values())) if ready else None

    @property
    def next_at(self) -> float | None:
        """When the next of what is due later comes; None when nothing is."""
        return self._later[0][0] if self._later else None

    @property
    def empty(self) -> bool:
        """Whether nothing waits here, neither now nor later."""
        return not self.waiting and not self._controls

    def _look_again(self, domain: Domain, at: float) -> None:
        heapq.heappush(self._later, (at, self._number(), None, domain.name))

    def _number(self) -> int:
        self._order += 1
        return self._order

    def _sees(self, site: str) -> None:
        """A domain of this site came: from the second one on, what is ready is kept by site too."""
        if not self._site:
            self._site = site
        elif self._ready_at is None:
            self._ready_at = {self._site: OrderedDict(self._ready)} if self._ready else {}

    def _at(self, site: str) -> Mapping[str, Domain]:
        """The ready domains of a site."""
        if self._ready_at is not None:
            return self._ready_at.get(site, {})
        return self._ready if site == self._site else {}

    def _withdraw(self, domain: Domain) -> None:
        self._ready.pop(domain.name, None)
        if self._ready_at is not None and (at_site := self._ready_at.get(domain.site)) is not None:
            at_site.pop(domain.name, None)
            if not at_site:
                del self._ready_at[domain.site]

    def __repr__(self) -> str:
        return f"<Queue {self.waiting} waiting at {len(self.domains)} domains, {len(self._ready)} ready>"
