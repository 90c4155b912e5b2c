"""Fills one identity's lanes from the journal, and brings back what earlier runs spent and learnt.

1. The journal is read in bulk: one look for hundreds of sites, one for what the identity state knows of them.
2. At most IN_MEMORY addresses wait in memory, SITE_SHARE of one site, in a lane for each session that may be open
   and AHEAD more; the rest stays in the journal. A lane takes some 4 KB.
3. Nothing stands still while somebody further down the list could start: where nobody in memory can, it is read on, a
   FEW of each site once there are so many, up to LANES lanes. But where all of them wait for the identity's own limits.
4. Where these are taken, sites that can't start for long leave memory until then: those of which every address waits
   for another attempt or for a limit, and those far back in the line of a cap. They come back before others come in.
5. Other policies reach lanes that are at work in place; where thousands are, other greenlets get their turn between.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Callable, Iterable

import gevent

from engine.core.brake import Doubt
from engine.core.breaker import BreakerState
from engine.core.cap import Cap
from engine.core.caps import Caps, Hosts
from engine.core.control import ControlAnswer
from engine.core.identity import Mode
from engine.core.lane import Lane
from engine.core.policy import Policy, PolicySet
from engine.core.queue import Domain, Item
from engine.core.schedule import Schedule
from engine.core.verdict import plain_words
from engine.flow.line import SiteHosts
from engine.flow.memory import Memory
from engine.flow.survey import unpack_hosts
from engine.store.job_tables import WAITING, Load, Pending, Site
from engine.store.journal import Journal
from engine.store.state import State

IN_MEMORY = 50_000
FEW = 20  # of each site, beyond those
AHEAD = 500
LANES = 20_000  # what lanes and sessions take has to stay below 250 MB
SITES_AT_ONCE = 250
SITE_SHARE = 1_000
EVERY_S = 0.05  # how often memory is looked at for room, while the journal holds more
COUNT_EVERY_S = 0.5
LANES_AT_ONCE = 500
PARKED_S = 60.0  # a site that has to wait for longer makes room
ROOM_EVERY_S = 5.0  # how often such sites are looked for, while room is short
BACK_AT_ONCE = 50  # sites that come back before others get their turn

Expected = tuple[Lane, Domain, bool]  # a record of a lane that something is about to come for, and whether it is new


class Supply:
    """The lanes' source of work."""

    def __init__(
        self,
        journal: Journal,
        state: State,
        policies: PolicySet,
        caps: Caps,
        schedule: Schedule,
        mode: Mode,
        memory: Memory,
        identity: str,
        clock: Callable[[], float],
        wall: Callable[[], float],
        concurrency: int,
    ) -> None:
        self.sites: dict[str, SiteHosts] = {}
        self.look_at: float | None = 0.0  # when to look for room again; None when the journal holds no more sites
        self._journal = journal
        self._state = state
        self._policies = policies
        self._caps = caps
        self._schedule = schedule
        self._mode = mode
        self._memory = memory
        self._identity = identity  # whose sites these are, by its public address
        self._clock = clock
        self._wall = wall
        self._enough = concurrency + AHEAD  # lanes, while somebody in them can start
        self._held = 0  # addresses in memory, at most: counted anew when these are too many,
        self._count_at = 0.0  # and not before this
        self._after = 0
        self._exhausted = False  # the journal holds no more sites
        self._taken: set[int] = set()  # ids of sites that are in memory with all they have, or parked
        self._parked: list[tuple[float, int]] = []  # when a site that made room comes back, and its journal id
        self._knocking: dict[int, Item] = {}  # by site id, of those parked in Standard mode: the journal has no ladder
        self._room_at = 0.0  # when sites that could make room are looked for again
        self._firsts: dict[int, str] = {}  # addresses that an order put first -> their lanes, which hold them already
        self._more: dict[str, dict[int, tuple[str, int]]] = {}  # lane -> site id -> (key, last address id in memory)
        self._lane_sites: dict[str, list[str]] = {}
        self._reading: set[str] = set()  # lanes for which a page is being read

    def look_anew(self) -> None:
        """Sites came that were not there when the journal was read, wherever they stand in it."""
        self._after, self.look_at, self._exhausted = 0, 0.0, False

    def reset(self) -> None:
        """Forget all lanes; what waits is read from the journal again. No session may be open."""
        for lane in list(self._schedule.lanes.values()):
            self.retire(lane)
        self._more.clear()
        self._parked.clear()
        self._taken.clear()
        self._after, self.look_at, self._exhausted = 0, 0.0, False

    def fill(self, now: float) -> None:
        """Take in the next sites and their addresses while there is room: what they bring may start before the rest."""
        if self.look_at is None or now < self.look_at:
            return
        full = len(self._schedule.lanes) >= LANES or self._crowded(now)
        if full and now >= self._room_at and (self._parked or not self._exhausted):
            self._room_at = now + ROOM_EVERY_S
            self._make_room(now)
        if not self._has_room(now):
            self.look_at = None if self._exhausted and not self._parked else now + EVERY_S
            return
        if self._back_at <= now:
            self._bring_back(now)
        elif not self._exhausted:
            share = self._share(now)
            loads = self._journal.load(self._identity, self._after, SITES_AT_ONCE, share)
            self._take_in([load for load in loads if load.site.id not in self._taken], share, now)
            if len(loads) == SITES_AT_ONCE:
                self._after = loads[-1].site.id
                return
            self._exhausted = True
            for lane in [lane for lane in self._schedule.lanes.values() if self.finished(lane)]:
                self.retire(lane)
        if self._exhausted:
            self.look_at = self._back_at if self._parked else None

    def refill(self, lane: Lane, now: float) -> None:
        """More of a lane's addresses, when few are left in memory."""
        more = self._more.get(lane.key)
        while more and lane.queue.waiting <= (share := self._share(now)) // 4 and lane.key not in self._reading:
            site_id = next(iter(more))
            key, after = more.pop(site_id)
            self._reading.add(lane.key)
            try:
                pending = self._journal.waiting(site_id, after, share)
                expected = self._expect(lane, key, ((one.domain_id, one.domain) for one in pending))
                self._know({lane.key: lane}, expected, now, lanes_are_new=False)
                self._queue(lane, key, site_id, pending, share, now)
            finally:
                self._reading.discard(lane.key)

    def finished(self, lane: Lane) -> bool:
        """Whether nothing more can come for this lane, so that it may leave memory."""
        if not lane.idle or lane.key in self._reading or self._more.get(lane.key):
            return False
        return self._exhausted or lane.policy.scope == "site"

    def retire(self, lane: Lane) -> None:
        """Forget a lane whose work is done; its windows live on in the identity state."""
        for key in self._lane_sites.pop(lane.key, ()):
            self._taken.discard(self.sites.pop(key).id)
        if self._firsts:
            self._firsts = {item: key for item, key in self._firsts.items() if key != lane.key}
        if lane.key in self._schedule.lanes:
            self._schedule.retire(lane)
            self._caps.let_go(lane.caps, self._clock())
            self._memory.forget(lane, self._caps)

    def forget_more(self, lane: Lane) -> None:
        """Its addresses were ended in the journal: nothing more of it is to be read."""
        self._more.pop(lane.key, None)

    def reserve(self, item_id: int) -> None:
        """An address that comes into the journal is for `ask_first` alone: no site brings it, whenever it is read."""
        self._firsts[item_id] = ""

    def ask_first(self, key: str, now: float) -> None:
        """Put an address of the journal ahead of its queue (an order's `check`)."""
        row = self._journal.row_of(key)
        if row is None or row["state"] != WAITING or row["site_id"] is None or self._firsts.get(row["id"]):
            return
        site = self._journal.site(row["site_id"])
        if site.identity != self._identity:
            self._firsts.pop(row["id"], None)
            return
        if not self._comes_with(site, row["id"]):
            new = site.lane not in self._schedule.lanes
            lane = self._lane(site)
            expected = self._expect(lane, site.key, [(row["domain_id"], row["domain"])])
            self._know({lane.key: lane}, expected, now, lanes_are_new=new)
        lane = self._lane(site)
        if self._comes_with(site, row["id"]):  # its site came meanwhile, too: it waits there, or is being asked
            lane.queue.put_first(row["domain"], row["id"], now)
        else:
            lane.queue.add(Item(row["id"], row["local"], row["domain"]), now, first=True)
            self._firsts[row["id"]] = lane.key
            self._held += 1
        self._schedule.touch(lane, now)

    def _comes_with(self, site: Site, item_id: int) -> bool:
        return site.id in self._taken and item_id not in self._firsts

    def adopt(self, policies: PolicySet, now: float) -> int:
        """Other policies for the lanes there are and for those to come; says how many lanes they change."""
        self._policies = policies
        changed = 0
        wider = dict(self._caps.adopt(policies, now))
        known: dict[int, tuple[Policy, Policy | None]] = {}  # lanes share policies: each is compared once
        for place, lane in enumerate(list(self._schedule.lanes.values()), 1):
            if place % LANES_AT_ONCE == 0:
                gevent.sleep(0)
            old = lane.policy
            if id(old) not in known:
                policy = policies.named(old.name) or policies.default
                known[id(old)] = (old, None if policy == old else policy)
            new = known[id(old)][1]
            if new is None or lane.key not in self._schedule.lanes:
                continue
            self._caps.rehang(lane, new, self._hosts(lane))
            self._schedule.touch(lane, now)
            changed += 1
        self._memory.restore(self._caps)
        if wider:
            self._memory.spent(wider, wider)
        for place, cap in enumerate(self._caps, 1):  # lanes of other policies may wait for what these now grant
            if place % LANES_AT_ONCE == 0:
                gevent.sleep(0)
            self._schedule.stir((cap,), self._clock())
        return changed

    def drop(self, policy: str, now: float) -> list[str]:
        """Lanes of this policy have nothing to ask any more; says which of them still have sessions open."""
        lanes = [lane for lane in self._schedule.lanes.values() if lane.policy.name == policy]
        for lane in lanes:
            for domain in list(lane.queue.domains.values()):
                lane.queue.drop_domain(domain)
            self.forget_more(lane)
            self._schedule.touch(lane, now)
        return [lane.key for lane in lanes if lane.open_sessions]

    # --- inside -----------------------------------------------------------------------------------------------

    @property
    def _back_at(self) -> float:
        """When the next of the parked sites comes back."""
        return self._parked[0][0] if self._parked else float("inf")

    def _crowded(self, now: float) -> bool:
        """Whether so many addresses wait in memory that no site gets its share."""
        if self._held >= IN_MEMORY and now >= self._count_at:
            self._count_at = now + COUNT_EVERY_S
            self._held = sum(lane.queue.waiting for lane in self._schedule.lanes.values())
        return self._held >= IN_MEMORY

    def _share(self, now: float) -> int:
        """How many addresses of a site are read at once."""
        return min(FEW, SITE_SHARE) if self._crowded(now) else SITE_SHARE

    def _has_room(self, now: float) -> bool:
        lanes, identity = len(self._schedule.lanes), self._caps.identity
        if lanes >= LANES:
            return False
        if lanes + SITES_AT_ONCE <= self._enough and not self._crowded(now):
            return True
        return self._schedule.starved and (identity is None or not identity.line)

    def _make_room(self, now: float) -> None:
        """Park what can't start for long."""
        ahead: Counter[Cap] = Counter()
        for place, lane in enumerate(list(self._schedule.lanes.values()), 1):
            if place % LANES_AT_ONCE == 0:
                gevent.sleep(0)
            until = self._rests_until(lane, now, ahead) if self._schedule.lanes.get(lane.key) is lane else None
            if until is None:
                continue
            (key,) = self._lane_sites[lane.key]
            site_id = self.sites[key].id
            if self._mode is Mode.STANDARD:
                lane.queue.wake(until)
                self._knocking[site_id] = lane.queue.domains[key].items[0]
            heapq.heappush(self._parked, (until, site_id))
            self._more.pop(lane.key, None)
            self.retire(lane)
            self._taken.add(site_id)

    def _rests_until(self, lane: Lane, now: float, ahead: Counter[Cap]) -> float | None:
        """When a site can start again, if that is long and everything of it stands in journal and state.

        `ahead` counts who stands before it in the lines of caps: it comes to its turn no sooner than these can start.
        """
        due, size, cap = lane.due(now), lane.first_size(now), lane.kept_by
        if due is None or lane.policy.scope != "site":
            return None
        for each in lane.caps:
            if each is not self._caps.identity:  # for that one everybody waits
                due = max(due, each.ready_at(now, size) or now)
        if cap is not None and cap is not self._caps.identity and cap.sessions is not None:
            ahead[cap] += 1
            due = max(due, cap.sessions.ready_at(now, ahead[cap]))
        if due <= now + PARKED_S:
            return None
        closed = any(cap.breaker is not None and cap.breaker.state is not BreakerState.CLOSED for cap in lane.caps)
        busy = lane.open_sessions or lane.key in self._reading or lane.brake.doubt is not Doubt.NONE
        bound = any(
            domain.control_due is not None or domain.hold is not None or domain.in_flight or domain.expects
            for domain in lane.queue.domains.values()
        )  # fmt: skip
        return None if closed or busy or bound else due

    def _bring_back(self, now: float) -> None:
        """Take in sites whose time has come, while there is room."""
        for _ in range(BACK_AT_ONCE):
            if self._back_at > now or len(self._schedule.lanes) >= LANES:
                return
            _, site_id = heapq.heappop(self._parked)
            self._taken.discard(site_id)
            share = self._share(now)
            loads = self._journal.load(self._identity, site_id - 1, 1, share)
            self._take_in([load for load in loads if load.site.id == site_id], share, now)
            self._knocking.pop(site_id, None)

    def _take_in(self, loads: list[Load], share: int, now: float) -> None:
        self._taken.update(load.site.id for load in loads)
        new: dict[str, Lane] = {}
        expected: list[Expected] = []
        for load in loads:
            lane_is_new, site_is_new = load.site.lane not in self._schedule.lanes, load.site.key not in self.sites
            lane = self._lane(load.site)
            if lane_is_new:
                new[load.site.lane] = lane
            if site_is_new:
                self.sites[load.site.key].unbacked = bool(load.unbacked)
            if self._mode is Mode.ENHANCED:
                names = [(one.domain_id, one.domain) for one in load.pending]
                names += [*load.unconfirmed, *(each[:2] for each in load.unbacked)]
                expected += self._expect(lane, load.site.key, names)
        self._know(new, expected, now, lanes_are_new=True)
        lanes: dict[str, Lane] = {}
        for load in loads:
            lane = lanes[load.site.lane] = self._lane(load.site)
            self._work(lane, load, share, now)
            self._schedule.touch(lane, now)
        for lane in lanes.values():
            if self.finished(lane):
                self.retire(lane)

    def _work(self, lane: Lane, load: Load, share: int, now: float) -> None:
        if self._mode is Mode.STANDARD:
            lane.queue.domain(load.site.key, 0, load.site.key).control = ControlAnswer.REFUSES
            lane.queue.add(self._knocking.get(load.site.id) or Item(-load.site.id, "", load.site.key), now)
            self._held += 1
            return
        self._queue(lane, load.site.key, load.site.id, load.pending, share, now)
        for _, name in load.unconfirmed:
            domain = lane.queue.domains[name]
            domain.refused_before = domain.control is ControlAnswer.REFUSES  # the tripwire, if it now accepts
            domain.control = ControlAnswer.UNKNOWN
            lane.queue.want_control(domain, now, now)
        lane.brake.distrusts = lane.brake.distrusts or load.distrusted
        for _, name, code, text, local in load.unbacked:
            lane.brake.refused(name, plain_words(code, text, f"{local}@{name}"), now)

    def _queue(self, lane: Lane, key: str, site_id: int, pending: list[Pending], share: int, now: float) -> None:
        """Let addresses of a site wait; `share` is how many were asked for: where that many came there may be more."""
        if len(pending) == share:
            self._more.setdefault(lane.key, {})[site_id] = (key, pending[-1].id)
        self._held += len(pending)
        wall = self._wall()
        for one in pending:
            if one.id in self._firsts:
                continue
            lane.queue.add(_item(one), now, now + max(0.0, one.next_at - wall) if one.next_at else 0.0)

    def _lane(self, site: Site) -> Lane:
        lane, known = self._schedule.lanes.get(site.lane), self.sites.get(site.key)
        if lane is not None and known is not None:
            return lane
        hosts = known.hosts if known is not None else unpack_hosts(site.hosts)
        if lane is None:
            lane = self._caps.lane(site.lane, self._policies.named(site.policy) or self._policies.default, hosts)
            self._schedule.add(lane)
        if known is None:
            self._lane_sites.setdefault(site.lane, []).append(site.key)
            self.sites[site.key] = SiteHosts(site.id, site.key, hosts)
        return lane

    def _hosts(self, lane: Lane) -> Hosts:
        """The hosts of a lane that has one site."""
        for key in self._lane_sites.get(lane.key, ()):
            return self.sites[key].hosts
        return ()

    @staticmethod
    def _expect(lane: Lane, site_key: str, names: Iterable[tuple[int, str]]) -> list[Expected]:
        """Domains of which something is about to come: their records stay until `_know` has told what is known.

        Nothing may be waited for between that and what is brought.
        """
        found = []
        for domain_id, name in dict.fromkeys(names):
            new = name not in lane.queue.domains
            domain = lane.queue.domain(name, domain_id, site_key)
            domain.expects += 1
            found.append((lane, domain, new))
        return found

    def _know(self, lanes: dict[str, Lane], expected: list[Expected], now: float, *, lanes_are_new: bool) -> None:
        """What the identity state knows of these lanes' limits and of the control questions of domains that are new."""
        wall = self._wall()
        if lanes_are_new and lanes:
            self._memory.restore(self._caps, lanes.values())
            for key, limits in self._state.learned(list(lanes)).items():
                lanes[key].learn(
                    per_transaction=int(limits["per_transaction"]) if "per_transaction" in limits else None,
                    per_session=int(limits["per_session"]) if "per_session" in limits else None,
                    connections=int(limits["connections"]) if "connections" in limits else None,
                )
        new = [(lane, domain) for lane, domain, is_new in expected if is_new]
        facts = self._state.facts([domain.name for _, domain in new], wall) if new else {}
        for lane, domain in new:
            fact = facts.get(domain.name)
            if domain.name in lane.policy.control.refuses_unknown_domains:
                domain.control = ControlAnswer.REFUSES
            elif fact is not None and fact.site == domain.site:
                domain.control = ControlAnswer(fact.answer)
        for _, domain, _ in expected:
            domain.expects -= 1


def _item(one: Pending) -> Item:
    return Item(
        one.id, one.local, one.domain, one.attempts, one.greylist_steps, one.tempfail_steps, one.reconnects,
        one.first_at, one.reason,
    )  # fmt: skip
