"""Policies that change while a run is at work: by a changed file, by SIGHUP, by an operator's limit.

1. A new set comes into force whole or not at all: a bad file keeps the old one, is logged and counted.
2. Files are only looked at (stat) until they changed, and read once they have been quiet for one look: an editor that
   writes in two steps is not met half-way.
3. What is in force is what the files say, narrowed by the limits of lanes. Lanes at work get it in place, and keep what
   they have spent and learnt.
4. What a domain's resolution decided stays for this job: its site, its policy's name, and `scope`. A policy whose
   scope changed keeps its old values as a whole until the next job: its numbers were written for the other scope.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from gevent.event import Event
from gevent.lock import BoundedSemaphore

from engine.core.limit import Limit, narrowed_set
from engine.core.policy import Policy, PolicySet
from engine.flow.policies import load_policies, shipped_dir
from engine.log import log

LOOK_EVERY_S = 2.0
LONGEST_TOLD = 2000  # characters of a bad set's problems in the log

Footprint = tuple[tuple[str, int, int, int], ...]


class InForce:
    """The policies in force in one run. `adopt` hands them to it and says how many lanes they change."""

    def __init__(self, policies: PolicySet, adopt: Callable[[PolicySet], int]) -> None:
        self.policies = policies  # as the files say
        self.limits: tuple[Limit, ...] = ()
        self._adopt = adopt
        self._one_at_a_time = BoundedSemaphore(1)

    def load(self, policies: PolicySet) -> int:
        """Other files; the limits hold on."""
        with self._one_at_a_time:
            self.policies = _routed_as_before(policies, self.policies)
            return self._adopt(narrowed_set(self.policies, self.limits))

    def limit(self, limits: Sequence[Limit]) -> int:
        """Other limits on top of the same files."""
        with self._one_at_a_time:
            self.limits = tuple(limits)
            return self._adopt(narrowed_set(self.policies, self.limits))


class Reloader:
    """Watches policy files and loads them anew. `adopt` gets each good set that differs from the one before."""

    def __init__(
        self,
        directories: Sequence[Path],
        etag: str,
        adopt: Callable[[PolicySet], None],
        *,
        record: Callable[[str], object] = lambda _: None,
        look_every_s: float = LOOK_EVERY_S,
        shipped: Path | None = None,
    ) -> None:
        self.etag = etag
        self.reloads = 0  # sets that came into force
        self.failures = 0  # sets that were refused
        self._directories = tuple(directories)
        self._shipped = shipped
        self._adopt = adopt
        self._record = record  # `loaded` or `refused`
        self._look_every_s = look_every_s
        self._asked = Event()
        self._loaded = self._seen = self._footprint()

    def ask(self) -> None:
        """Load now, whatever the files look like (SIGHUP). Safe from a signal's greenlet."""
        self._asked.set()

    def serve(self) -> None:
        """Look every few seconds, until killed."""
        while True:
            asked = self._asked.wait(self._look_every_s)
            self._asked.clear()
            self.look(asked=asked)

    def look(self, *, asked: bool = False) -> bool:
        """Look once: load what has changed and is quiet, or anything when asked. True when another set is in force."""
        before, self._seen = self._seen, self._footprint()
        now = self._seen
        if not asked and (now == self._loaded or now != before):
            return False
        self._loaded = now
        try:
            found = load_policies(self._directories, self._shipped)
        except Exception as error:  # noqa: BLE001 - whatever is wrong with it, the run goes on under the old set
            self.failures += 1
            self._record("refused")
            log.warning("policies_refused", kept=self.etag, problems=f"{error or type(error).__name__}"[:LONGEST_TOLD])
            return False
        if found.etag == self.etag:
            log.info("policies_unchanged", etag=self.etag)
            return False
        before_etag, self.etag = self.etag, found.etag
        self._adopt(found)
        self.reloads += 1
        self._record("loaded")
        log.info("policies_reloaded", before=before_etag, etag=found.etag)
        return True

    def _footprint(self) -> Footprint | None:
        """What stat says of every policy file; None while a directory can't be listed."""
        try:
            paths = [
                path
                for directory in (self._shipped or shipped_dir(), *self._directories)
                for path in sorted(directory.iterdir())
            ]
            stats = [(str(path), path.stat()) for path in paths]
        except OSError:
            return None
        return tuple((path, stat.st_mtime_ns, stat.st_size, stat.st_ino) for path, stat in stats)


def _routed_as_before(new: PolicySet, old: PolicySet) -> PolicySet:
    """The new set, in which policies whose scope changed keep their old values: rule 4."""

    def kept(policy: Policy) -> Policy:
        before = old.named(policy.name)
        if before is None or before.name != policy.name or before.scope == policy.scope:
            return policy
        log.warning("policy_kept", provider=policy.name, why="its scope changed, which holds from the next job on")
        return before

    return replace(new, policies=tuple(map(kept, new.policies)), default=kept(new.default))
