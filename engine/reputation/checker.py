"""Asks the lists of a registry about targets, no faster than their terms allow, and believes none that fails probes.

1. A list is probed before its first check, and again whenever a probe is due. One that is not usable is not asked:
   its checks say why, and are not to be relied on.
2. A list's questions, probes and texts included, go through one bucket; at most PER_LIST of them are open at once. A
   slow list delays itself and no other.
3. The text of a listing (TXT of the same name) is asked after the listing and never before.
4. A check never raises for what a name server does: that is a status.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace

import gevent
from gevent.lock import BoundedSemaphore
from gevent.pool import Pool
from gevent.queue import Queue

from engine.core.bucket import TokenBucket
from engine.core.listing import Check, Status
from engine.reputation.blocklist import BlockList
from engine.reputation.health import Health, Move, assess, questions
from engine.reputation.query import TIMEOUT_S, Asker, Server, system_servers
from engine.reputation.question import Target, asked_name, target
from engine.reputation.registry import Registry
from engine.reputation.verdict import Answer, judge

PER_LIST = 4


class NotAskedError(ValueError):
    """This list is not asked about this target: it is off, or knows other things."""


class Checker:
    """Checks at the lists of `registry` through `servers` (address, port); those of resolv.conf where none is given.

    `moved` is called with each Move of a list's health, on the greenlet that saw it, and `probed` with its health after
    each probe and refusal. `health` brings back what an earlier process knew. `clock` gives Unix seconds.
    """

    def __init__(
        self, registry: Registry, servers: Sequence[Server] = (), *, timeout_s: float = TIMEOUT_S,
        moved: Callable[[Move], object] | None = None, probed: Callable[[Health], object] | None = None,
        health: Iterable[Health] = (),
        clock: Callable[[], float] = time.time, rng: random.Random | None = None,
    ) -> None:  # fmt: skip
        self.registry = registry
        self.asker = Asker(servers or system_servers(), timeout_s)
        self._moved = moved or (lambda move: None)
        self._told = probed or (lambda health: None)
        self._clock = clock
        self._rng = rng or random.SystemRandom()
        self._health = {each.name: each for each in health}
        self._buckets: dict[str, TokenBucket] = {}
        self._probing: dict[str, BoundedSemaphore] = {}

    def health(self, name: str) -> Health:
        """What is known of a list's health; unknown before its first probe."""
        return self._health.setdefault(name, Health(name))

    def check(self, asked: Target | str, on: BlockList | str) -> Check:
        """Ask one list about one target, now.

        Raises:
            TargetError: it is neither an address nor a domain.
            NotAskedError: the list is off, or knows no such targets.
            SettingsError: there is no such list.
        """
        found = asked if isinstance(asked, Target) else target(asked)
        blocklist = self._enabled(on)
        if not blocklist.takes(found.family):
            raise NotAskedError(f"{blocklist.name} is not asked about {found}: it lists {_words(blocklist)} only")
        health = self.probe_if_due(blocklist)
        if not health.usable:
            return Check(found.text, blocklist.name, health.status, self._clock(), detail=health.why, reliable=False)
        name = asked_name(blocklist, found.text)
        answer = self.ask(blocklist, name)
        verdict = judge(blocklist, answer)
        now = self._clock()
        text: tuple[str, ...] = ()
        if verdict.status is Status.LISTED:
            text = tuple(blocklist.hide_key(each) for each in self.ask(blocklist, name, "TXT").records)
        elif verdict.status is Status.REFUSED:
            self._tell(health, health.refuse(verdict.detail, now))
        elif verdict.status is not Status.CLEAN:
            health.hasten(now)
        return Check(
            found.text, blocklist.name, verdict.status, now, verdict.listings, text, verdict.detail,
            round(answer.latency_ms, 1), answer.ttl_s, reliable=health.usable,
        )  # fmt: skip

    def sweep(self, targets: Iterable[Target | str], lists: Iterable[BlockList | str] | None = None) -> Iterator[Check]:
        """Ask every enabled list (or these) about every target that it knows; checks in the order of their answers."""
        wanted = [each if isinstance(each, Target) else target(each) for each in targets]
        chosen = self.registry.enabled if lists is None else tuple(self._enabled(each) for each in lists)
        done: Queue[Check | BaseException | None] = Queue()
        walks = [gevent.spawn(self._walk, blocklist, wanted, done) for blocklist in chosen]
        try:
            for _ in walks:
                while (check := done.get()) is not None:
                    if isinstance(check, BaseException):
                        raise check
                    yield check
        finally:
            gevent.killall(walks)

    def probe(self, on: BlockList | str) -> Health:
        """Ask a list its test points now, whether they are due or not."""
        blocklist = self._enabled(on)
        with self._lock(blocklist):
            return self._probe(blocklist)

    def probe_all(self, lists: Iterable[BlockList] | None = None) -> Iterator[Health]:
        """Probe every enabled list (or these) side by side."""
        chosen = self.registry.enabled if lists is None else tuple(lists)
        yield from Pool(max(1, len(chosen))).imap_unordered(self.probe, chosen)

    def _enabled(self, on: BlockList | str) -> BlockList:
        blocklist = self.registry.named(on) if isinstance(on, str) else on
        if why := self.registry.off.get(blocklist.name, ""):
            raise NotAskedError(f"{blocklist.name} is not asked: {why}")
        return blocklist

    def _walk(self, blocklist: BlockList, wanted: Sequence[Target], done: Queue[Check | BaseException | None]) -> None:
        """One list of a sweep; what it fails at is the sweep's failure."""

        def one(each: Target) -> None:
            try:
                done.put(self.check(each, blocklist))
            except Exception as error:  # noqa: BLE001 - raised again where the sweep is read
                done.put(error)

        pool = Pool(PER_LIST)
        try:
            for each in wanted:
                if blocklist.takes(each.family):
                    pool.spawn(one, each)
            pool.join()
        finally:
            pool.kill(block=False)
            done.put(None)

    def probe_if_due(self, blocklist: BlockList) -> Health:
        """A list's health, after a probe if one is due."""
        health = self.health(blocklist.name)
        if health.due <= self._clock():
            with self._lock(blocklist):
                if health.due <= self._clock():  # nobody else has done it while we waited
                    self._probe(blocklist)
        return health

    def _probe(self, blocklist: BlockList) -> Health:
        health = self.health(blocklist.name)
        asked = questions(blocklist, self._rng)
        answers = Pool(PER_LIST).map(lambda question: self.ask(blocklist, question.name), asked)  # a dead one is slow
        probe = assess(blocklist, list(zip(asked, answers, strict=True)))
        self._tell(health, health.observe(replace(probe, detail=blocklist.hide_key(probe.detail)), self._clock()))
        return health

    def ask(self, blocklist: BlockList, name: str, kind: str = "A") -> Answer:
        """One question to a list, when its rate allows it."""
        bucket = self._buckets.get(blocklist.name)
        if bucket is None:
            bucket = self._buckets[blocklist.name] = TokenBucket(blocklist.rate.per_s, 1)
        now = time.monotonic()
        start = bucket.ready_at(now)
        bucket.take(start)  # a reservation: who comes later waits behind it
        if start > now:
            gevent.sleep(start - now)
        return self.asker.ask(name, kind)

    def _lock(self, blocklist: BlockList) -> BoundedSemaphore:
        return self._probing.setdefault(blocklist.name, BoundedSemaphore(1))

    def _tell(self, health: Health, move: Move | None) -> None:
        if move is not None:
            self._moved(move)
        self._told(health)


def _words(blocklist: BlockList) -> str:
    return " and ".join(family.value if family != "domain" else "domains" for family in blocklist.families)
