"""What a list takes under its policies: the engine's own schedule and lanes, driven through simulated time.

1. Only the servers are made up. Whatever starts, waits or ends is decided by `core.schedule`, `core.lane` and their
   caps, under as many identities as would ask.
2. Nothing here is random by itself: `draw` comes from the caller, and the same draws give the same course.
3. Where a share leaves a choice, the slower one is assumed: every domain refuses its control, what fails once fails to
   the end of its ladder, greylisting meets each address and each control of its domain. Nobody blocks us, and every
   host answers: what can't be foreseen is left out.
4. Shares hold over the list to an address or two, whatever the draws: these only say whom they meet.
5. Lanes that share no limit with another, and to which the same happens, fare alike: one of them is played for a crowd,
   and its sessions take as many places among those that are open at once.
"""

from __future__ import annotations

import heapq
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import count

from engine.core.cap import Cap
from engine.core.caps import Caps, Hosts
from engine.core.ceiling import USUAL_REFUSED
from engine.core.control import ControlAnswer
from engine.core.identity import Identity, Limits
from engine.core.lane import Batch, Lane, Visit
from engine.core.policy import DEFAULT_NAME, Policy, PolicySet
from engine.core.queue import Item
from engine.core.reasons import REASONS, Reach
from engine.core.schedule import Schedule, Wait
from engine.core.verdict import Step, next_move

OPENING_RTTS = 6  # TCP, greeting, EHLO, STARTTLS, TLS 1.3, EHLO again (RFC 5321 section 4.1, RFC 3207, RFC 8446)
LANE_SAMPLE = 20_000  # addresses of one lane that are simulated; what lies beyond goes on as their second half did
CROWDS = 20  # into which the sessions that may be open at once are divided, at least
LOOK_EVERY = 500  # events between two questions whether to go on
JITTER = 0.1  # of a breaker's open time, as `flow` draws it

_ACCEPTED, _REFUSED, _TEMPFAILS = range(3)
_REPLIES = (REASONS["rcpt_ok"], REASONS["mailbox_not_found"], REASONS["mailbox_temporarily_unavailable"])
_GREYLISTED = REASONS["greylisted"]
_UNLIMITED = Limits(None, None)


@dataclass(frozen=True, slots=True)
class Assumed:
    """What is assumed of the servers.

    `refused` and `tempfail` are shares of the addresses, `greylisted` of the domains that no provider's policy
    claims; `rtt_s` is a round trip's time in seconds, server's work included.
    """

    refused: float = USUAL_REFUSED
    tempfail: float = 0.03
    greylisted: float = 0.0
    rtt_s: float = 0.15

    def times(self, factor: float) -> Assumed:
        """The same with another share of refusals, as far as there is room for them."""
        return replace(self, refused=min(factor * self.refused, 1.0 - self.tempfail))


@dataclass(frozen=True, slots=True)
class Mail:
    """The addresses of one domain, and the lane and site that serve it.

    `refuses`: its control question is answered. `identity` is who asks, by its public address.
    """

    domain: str
    lane: str
    site: str
    policy: Policy
    addresses: int
    refuses: bool = False
    identity: str = ""
    hosts: Hosts = ()


@dataclass(slots=True)
class Course:
    """How one lane fared. `waits` has seconds by the limit that was waited for."""

    policy: Policy
    addresses: int = 0
    sampled: int = 0
    done: int = 0
    answered: int = 0
    ended_at: float = 0.0
    half_at: float = 0.0
    most_at: float = 0.0
    waits: dict[str, float] = field(default_factory=lambda: defaultdict(float))

    @property
    def seconds(self) -> float:
        """When its last address was done; beyond the sample, at the pace from its half to nine tenths."""
        beyond = self.addresses - self.sampled
        return self.ended_at + beyond * (self.most_at - self.half_at) / max(1.0, 0.4 * self.sampled)

    @property
    def binding(self) -> str:
        """The limit that it waited for longest; `rtt` when round trips took more than all waiting."""
        waited = sum(max(0.0, seconds) for seconds in self.waits.values())
        longest = max(self.waits, key=lambda key: self.waits[key], default="")
        return longest if longest and 2 * waited >= self.ended_at else "rtt"

    def count(self, now: float, *, answered: bool) -> None:
        """One more address is done."""
        self.done += 1
        self.answered += answered
        if 2 * self.done <= self.sampled:
            self.half_at = now
        if 10 * self.done <= 9 * self.sampled:
            self.most_at = now


class Simulation:
    """Plays one list. `concurrency` is the number of sessions at once over all lanes.

    Without `policies` nothing stands above the lanes but the identities' own limits, and without `identities` not even
    those. `wall` is the moment at which it begins, in seconds since the epoch: a warm-up counts from a date. `go_on` is
    asked every now and then; once it says False, `run` gives up.
    """

    def __init__(
        self,
        mail: Iterable[Mail],
        assumed: Assumed,
        draw: Callable[[], float],
        *,
        policies: PolicySet | None = None,
        identities: Sequence[Identity] = (),
        wall: float = 0.0,
        concurrency: int = 500,
        go_on: Callable[[], bool] = lambda: True,
    ) -> None:
        self.courses: dict[str, Course] = {}
        self._assumed = assumed
        self._draw = draw
        self._room = concurrency
        self._go_on = go_on
        self._policies = policies
        self._identities = {identity.key: identity for identity in identities}
        self._wall = wall
        self._floors: dict[str, tuple[Schedule, Caps]] = {}  # by identity
        self._places: dict[Lane, tuple[Schedule, Caps, Course]] = {}
        self._crowds: dict[Lane, int] = {}  # how many lanes it is played for, itself among them
        self._most = max(1, concurrency // CROWDS)
        self._spent: dict[Cap, str] = {}  # what each identity had last spent of its own limits
        self._events: list[tuple[float, int, Visit, Batch | None]] = []  # None: the server answered QUIT
        self._order = count()
        self._waits: dict[Lane, tuple[str, float]] = {}  # the limit that it waits for, and since when
        self._fates = bytearray()  # by address
        self._greylisting: set[str] = set()
        self._load(mail)

    def run(self) -> dict[str, Course] | None:
        """Play it to its end; the course of each lane, or None when it gave up."""
        now, turns = 0.0, 0
        for lane in list(self._places):
            self._touch(lane, now)
        while True:
            turns += 1
            if turns % LOOK_EVERY == 0 and not self._go_on():
                return None
            turn = self._turn(now) if self._room > 0 else Wait(None)
            if isinstance(turn, Visit):
                self._room -= self._crowds[turn.lane]
                self._note(turn.lane, now)
                self._ask(turn, turn.first, now + OPENING_RTTS * self._assumed.rtt_s)
                continue
            moments = [turn.until] if turn.until is not None else []
            moments += [self._events[0][0]] if self._events else []
            if not moments:
                return self.courses
            now = max(now, min(moments))
            while self._events and self._events[0][0] <= now:
                _, _, visit, batch = heapq.heappop(self._events)
                self._happened(visit, batch, now)

    def _turn(self, now: float) -> Visit | Wait:
        until: list[float] = []
        for schedule, caps in self._floors.values():
            turn = schedule.next(now)
            if isinstance(turn, Visit):
                return turn
            if turn.until is not None:
                until.append(turn.until)
            if caps.identity is not None and (limit := _binds(caps.identity, now)):
                self._spent[caps.identity] = limit
        return Wait(min(until, default=None))

    # --- what the list is -------------------------------------------------------------------------------------

    def _load(self, mail: Iterable[Mail]) -> None:
        by_lane: dict[tuple[str, str], list[Mail]] = {}
        for each in mail:
            by_lane.setdefault((each.identity, each.lane), []).append(each)
        shares = {_REFUSED: self._assumed.refused, _TEMPFAILS: self._assumed.tempfail}
        credit = {fate: self._draw() for fate in shares}  # carried from lane to lane, so that shares are exact
        grey = self._draw()
        lanes = {key: self._lane(*key, group[0]) for key, group in by_lane.items()}
        users = Counter(cap for lane in lanes.values() for cap in lane.caps)
        played: dict[tuple[object, ...], Lane] = {}  # by kind, whose crowd has room for another
        for key, group in by_lane.items():
            lane, addresses = lanes[key], sum(each.addresses for each in group)
            asked = _sample(group, addresses)
            for each in asked:
                if each.policy.name == DEFAULT_NAME:
                    grey += self._assumed.greylisted
                    if grey >= 1.0:
                        grey -= 1.0
                        self._greylisting.add(each.domain)
            first = len(self._fates)
            self._fates.extend(bytes(sum(each.addresses for each in asked)))
            self._cast(first, shares, credit)
            kind = self._kind(lane, key[0], asked, first) if self._alone(lane, key[0], users) else (lane,)
            same = played.get(kind)
            if same is None:
                same = played[kind] = lane
                self._add(lane, asked, first)
                self._floors[key[0]][0].add(lane)
                course = Course(lane.policy, addresses, len(self._fates) - first)
                self._places[lane] = *self._floors[key[0]], course
                self._crowds[lane] = 0
            self.courses[" ".join(key).strip()] = self._places[same][2]
            self._crowds[same] += 1
            if self._crowds[same] == self._most:
                del played[kind]

    def _lane(self, identity: str, name: str, mail: Mail) -> Lane:
        """A lane under its caps."""
        caps = self._floor(identity, mail.policy)[1]
        lane = caps.lane(name, mail.policy, mail.hosts if self._policies is not None else ())
        caps.fresh.clear()  # nothing here has a past
        return lane

    def _alone(self, lane: Lane, key: str, users: Counter[Cap]) -> bool:
        """Whether nothing that another lane does can hold it up, but for the sessions that are open at once."""
        identity = self._identities.get(key)
        free = identity is None or (identity.limits == _UNLIMITED and identity.warmup is None)
        above = self._floors[key][1].identity
        return free and all(cap is above or users[cap] == 1 for cap in lane.caps)

    def _kind(self, lane: Lane, key: str, asked: Sequence[Mail], first: int) -> tuple[object, ...]:
        """All that makes a lane that is alone fare as it does."""
        policies = tuple([cap.policy and cap.policy.name for cap in lane.caps])
        limits = lane.per_session, lane.per_transaction, lane.refusals_per_session
        domains = ((each.addresses, self._refuses(lane, each), each.domain in self._greylisting) for each in asked)
        return key, lane.policy.name, policies, limits, tuple(domains), bytes(self._fates[first:])

    def _floor(self, key: str, policy: Policy) -> tuple[Schedule, Caps]:
        """The schedule and caps of an identity."""
        if key not in self._floors:
            identity = self._identities.get(key)
            began_at = identity.warmup.began_at - self._wall if identity is not None and identity.warmup else 0.0
            self._floors[key] = Schedule(), Caps(self._policies or PolicySet((), policy), identity, began_at)
        return self._floors[key]

    def _add(self, lane: Lane, asked: Sequence[Mail], first: int) -> None:
        """Addresses to ask; their fates begin at `first`."""
        for mail in asked:
            domain = lane.queue.domain(mail.domain, 0, mail.site)
            if self._refuses(lane, mail):
                domain.control = ControlAnswer.REFUSES
            for number in range(first, first + mail.addresses):
                lane.queue.add(Item(number, "", mail.domain), 0.0)
            first += mail.addresses

    @staticmethod
    def _refuses(lane: Lane, mail: Mail) -> bool:
        return mail.refuses or mail.domain in lane.policy.control.refuses_unknown_domains

    def _cast(self, first: int, shares: dict[int, float], credit: dict[int, float]) -> None:
        """Say which addresses of a lane are refused and which fail: so many, anywhere among the rest."""
        left = list(range(first, len(self._fates)))
        size = len(left)
        for fate, share in shares.items():
            credit[fate] += share * size
            chosen = min(int(credit[fate]), len(left))
            credit[fate] -= chosen
            for _ in range(chosen):
                place = min(int(self._draw() * len(left)), len(left) - 1)
                left[place], left[-1] = left[-1], left[place]
                self._fates[left.pop()] = fate

    # --- what happens -----------------------------------------------------------------------------------------

    def _ask(self, visit: Visit, batch: Batch, at: float) -> None:
        """MAIL and each RCPT of a transaction, one round trip each; no server is asked before its tokens are there."""
        held = max(0.0, batch.start_at - at)
        if held:  # open, and idle: not for want of another session
            lane = visit.lane
            waits, share = self._places[lane][2].waits, held / lane.policy.sessions.concurrency
            waits["recipients.rate"] += share
            waits["sessions.concurrency"] -= share
        ends = at + held + self._assumed.rtt_s * (1 + batch.tokens)
        heapq.heappush(self._events, (ends, next(self._order), visit, batch))

    def _happened(self, visit: Visit, batch: Batch | None, now: float) -> None:
        lane = visit.lane
        if batch is None:
            lane.finish(visit, now)
            self._room += self._crowds[lane]
            self._touch(lane, now)
            return
        self._places[lane][2].ended_at = now
        following = self._control(visit, batch, now) if batch.control else self._listed(visit, batch, now)
        if following is not None:
            self._ask(visit, following, now)
        else:
            heapq.heappush(self._events, (now + self._assumed.rtt_s, next(self._order), visit, None))
        self._touch(lane, now)

    def _listed(self, visit: Visit, batch: Batch, now: float) -> Batch | None:
        """Answers for addresses of the list, and the control that they call for."""
        lane, domain = visit.lane, batch.domain
        grey = domain.name in self._greylisting
        replies = [_GREYLISTED if grey and not i.attempts else _REPLIES[self._fates[i.id]] for i in batch.items]
        for item, reason in zip(batch.items, replies, strict=True):
            item.attempts += 1
            if item.first_at is None:
                item.first_at = now
            move = next_move(
                item, reason, permanent=False, backed=True, delay_s=None, ladders=lane.policy.retry, now=now
            )
            if reason is _REPLIES[_ACCEPTED] or move.at is None:
                self._places[lane][2].count(now, answered=reason.answered)
                continue
            item.greylist_steps += move.step is Step.GREYLIST
            item.tempfail_steps += move.step is Step.TEMPFAIL
            lane.queue.add(item, now, move.at)
        refused = sum(reason is _REPLIES[_REFUSED] for reason in replies)
        lane.settle(visit, batch, refused, now)
        for item, reason in zip(batch.items, replies, strict=True):
            lane.observe(domain, reason, Reach.NONE, now, JITTER * self._draw(), first=item.attempts == 1)
        if refused and not domain.settled:
            self._settled(lane, domain.name)
        if _REPLIES[_ACCEPTED] in replies and not domain.settled and domain.control_due is None:
            own_session = lane.policy.control.own_session or visit.half_open
            control = None if own_session else lane.control(visit, domain, now)
            if control is not None:
                return control
            lane.queue.want_control(domain, now, now)
        return lane.more(visit, now)

    def _control(self, visit: Visit, batch: Batch, now: float) -> Batch | None:
        """A made-up recipient is refused; by a greylisting server at the second time."""
        lane, domain = visit.lane, batch.domain
        ladder = lane.policy.retry.greylist_s
        later = domain.name in self._greylisting and not domain.control_steps and bool(ladder)
        reason = _GREYLISTED if later else _REPLIES[_REFUSED]
        lane.settle(visit, batch, int(not later), now)
        lane.observe(domain, reason, Reach.NONE, now, JITTER * self._draw(), first=True)
        if later:
            domain.control_steps += 1
            lane.queue.want_control(domain, now, now + ladder[0])
        else:
            self._settled(lane, domain.name)
        return lane.more(visit, now)

    @staticmethod
    def _settled(lane: Lane, name: str) -> None:
        domain = lane.queue.domains[name]
        domain.control = ControlAnswer.REFUSES
        lane.queue.drop_control(domain)

    # --- what is noted ----------------------------------------------------------------------------------------

    def _touch(self, lane: Lane, now: float) -> None:
        """Something of the lane changed: its place in the heap, and what it waits for."""
        schedule, caps, _ = self._places[lane]
        if lane.idle:
            if lane.key in schedule.lanes:
                schedule.retire(lane)
                caps.let_go(lane.caps, now)
                caps.gone.clear()
        else:
            schedule.touch(lane, now)
        self._note(lane, now)

    def _note(self, lane: Lane, now: float) -> None:
        limit, since = self._waits.get(lane, ("", now))
        if now > since and (limit := limit or self._shared(lane, now)):
            self._places[lane][2].waits[limit] += now - since
        self._waits[lane] = (lane.waits_for(now), now)

    def _shared(self, lane: Lane, now: float) -> str:
        """The limit above a lane that others spent while it waited: nothing of it was to be seen before."""
        found = [self._spent.get(cap) or _binds(cap, now) for cap in lane.caps[1:]]
        return next(filter(None, found), "")


def _binds(cap: Cap, now: float) -> str:
    """The limit of a cap that grants nothing now, or nothing."""
    at, key = max(((at, key) for key, at in cap.moments(now, 1).items()), default=(now, ""))
    return key if at > now else ""


def _sample(group: Sequence[Mail], addresses: int) -> list[Mail]:
    """At most about LANE_SAMPLE addresses of a lane: large domains in part, of small ones some and these whole."""
    share = LANE_SAMPLE / addresses if addresses > LANE_SAMPLE else 1.0
    if share == 1.0:
        return list(group)
    taken, credit = [], 0.0
    for each in group:
        part = round(each.addresses * share)
        if part >= 20:
            taken.append(replace(each, addresses=part))
            continue
        credit += each.addresses * share
        if 2 * credit >= each.addresses:
            credit -= each.addresses
            taken.append(each)
    return taken
