"""A verification from end to end: what `engine verify` and the library do with one list.

1. What can be found wrong is found before anything is sent, and before an older journal is touched.
2. An identity is used by one verification at a time: the lock is held from before the first probe to the end.
3. Output files appear whole or not at all; what is settled so far is in `OUTPUT.part`, every 15 minutes and at a stop.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import IO

import gevent
from gevent.event import Event

from engine.core.identity import Consent, Identity, Job, Mode, Status
from engine.core.lane import Lane
from engine.core.policy import PolicySet
from engine.core.result import Result
from engine.flow.forecast import Outlook, outlook
from engine.flow.intake import Intake
from engine.flow.job import (
    Suppression,
    WrongUse,
    cells_of,
    check_journal,
    mail_settings,
    open_job,
    results,
    take_in,
    verdict_of,
)
from engine.flow.lane_limits import LaneLimits
from engine.flow.orders import OrderDesk
from engine.flow.output import Layout, Stream, output_format, write_file
from engine.flow.preflight import Check, Listed, preflight, unbindable
from engine.flow.reload import InForce, Reloader
from engine.flow.run import Run, Settings, Snapshot, stamp
from engine.flow.standing import Standing, refuse_held
from engine.log import log
from engine.metrics import Metrics
from engine.net.resolver import Resolver
from engine.store.audit import AuditRow
from engine.store.database import StoreError
from engine.store.journal import Journal
from engine.store.lock import HeldByOther, IdentityLock
from engine.store.state import State
from engine.store.writer import Writer
from engine.views import Live

PART_EVERY_S = 15 * 60.0
PIPE_EVERY_S = 1.0
COUNT_EVERY_S = 1.0  # how often settled verdicts go to the metrics
LAG_LIMIT_S = 10.0  # a journal that commits no faster is not ready for more


@dataclass(frozen=True, slots=True)
class Request:
    """Everything that a verification is told. `output` None leaves results in the journal (the library reads them)."""

    intake: Intake
    mode: Mode
    policies: PolicySet
    journal: Path
    state: Path
    output: Path | None = None
    pipe: IO[bytes] | None = None  # a stream that gets each row once, in order of settling
    identities: tuple[Identity, ...] = ()
    listed: Listed | None = None  # who asks block lists about an address, before the first probe
    consent: Consent | None = None
    suppression: Suppression = field(default_factory=Suppression)
    resume: bool = False
    dns: Sequence[tuple[str, int]] | None = None
    smtp_port: int = 25
    allow_private: bool = False
    connect: bool = True
    concurrency: int = 500
    deadline_s: float | None = None
    accepted_risk: str = ""  # why the operator goes on although preflight failed
    one_attempt: bool = False  # `check`: ask once
    policy_dirs: tuple[Path, ...] | None = None  # over the shipped ones, to be watched; None: `policies` never change
    transcript: Callable[[str, str, float], None] | None = None


class Held(WrongUse):
    """Another process is at work under this identity."""

    def __init__(self, message: str, identity: Identity) -> None:
        super().__init__(message)
        self.identity = identity


class Verification:
    """Runs one request. `run` is True when the list is done, False when it was stopped and can be resumed."""

    def __init__(
        self,
        request: Request,
        *,
        forecast: Callable[[Outlook], None] | None = None,
        metrics: Metrics | None = None,
    ) -> None:
        self.request = request
        self.metrics = metrics or Metrics()
        self._left = 0  # addresses without a settled verdict; orders' own are not in it
        self.job: Job | None = None
        self._forecast = forecast
        self._run: Run | None = None
        self._stopped = False
        self._writer = Writer()
        self._journal: Journal | None = None
        self._stream: Stream | None = None
        self._broken: OSError | None = None
        self.reloader: Reloader | None = None
        if request.policy_dirs is not None:
            self.reloader = Reloader(
                request.policy_dirs, request.policies.etag, self._reloaded, record=self.metrics.reloaded
            )
        self._in_force: list[InForce] = []  # by identity: an operator's limits may name one

    def __enter__(self) -> Verification:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Everything is on disk and the files are closed."""
        self.metrics.watch(None)
        self._writer.close()

    def run(self) -> bool:
        """Verify. Raises WrongUse before anything is sent, StoreError when the disk fails."""
        request = self.request
        job = Job(
            new_job_id(), request.mode, request.intake.name, request.intake.sha256, request.intake.column,
            request.consent, mail_settings(request.identities if request.connect else ()),
        )  # fmt: skip
        try:
            request.state.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            raise WrongUse(
                f"{request.state.parent}: no folder for the state can be here; name it with --state."
            ) from error
        with self._lock(job):
            resolver = Resolver(
                request.dns, allow_private=request.allow_private,
                ipv6=any(each.public_v6 for each in request.identities), record=self.metrics.dns,
            )  # fmt: skip
            try:
                try:  # a file that can't be opened now was named wrongly; one that fails later is the disk's fault
                    state = State(self._writer, request.state)
                    goes_on = check_journal(request.journal, self._writer, job, resume=request.resume)
                except StoreError as error:
                    raise WrongUse(str(error)) from error
                for identity in request.identities if request.connect else ():
                    refuse_held(state, identity, time.time())
                notes = self._preflight(resolver)
                journal, job, sealed = open_job(
                    request.journal, self._writer, job, goes_on=goes_on, output=request.output
                )
                self._journal, self.job = journal, job
                journal.consent = job.consent.reference if job.consent else ""
                journal.count_settled()
                journal.audit(notes).wait()
                if not sealed:
                    journal.clear_input()
                    take_in(request.intake, journal, request.suppression)
                return self._go(job, journal, state, resolver, goes_on=sealed)
            finally:
                resolver.close()

    def stop(self) -> None:
        """Start nothing more; what is settled stays settled. Safe from a signal's greenlet."""
        self._stopped = True
        if self._run is not None:
            self._run.stop()

    def reload(self) -> None:
        """Load the policy files anew (SIGHUP), where this verification was told their directories."""
        if self.reloader is not None:
            self.reloader.ask()

    def watch(self) -> Snapshot:
        """How far it is."""
        return self._run.watch() if self._run is not None else Snapshot()

    def lanes(self) -> list[Lane]:
        """The lanes in memory; whoever looks at them changes nothing."""
        return self._run.lanes() if self._run is not None else []

    def complaint(self) -> str:
        """Why it is not ready for work, in one line; empty when it is (`/readyz`)."""
        if self._writer.problem:
            return self._writer.problem
        if self._stopped:
            return "the run was stopped"
        if self._run is None:
            return "the input is being read"
        for prober in self._run.probers:
            if prober.status is not Status.ENABLED:
                return f"the identity {prober.identity.name} is {prober.hold.why or prober.status}"
        if self._writer.lag_s > LAG_LIMIT_S:
            return f"the journal lags {self._writer.lag_s:.0f} s behind"
        return ""

    def results(self) -> Iterator[tuple[tuple[str, ...], Result]]:
        """(the caller's cells, result) of each row in input order."""
        assert self._journal is not None, "run() comes first"
        return results(self._journal)

    def counts(self) -> dict[str, int]:
        """Addresses by reason; what is still open has the key ''."""
        assert self._journal is not None, "run() comes first"
        return self._journal.counts()

    def _go(self, job: Job, journal: Journal, state: State, resolver: Resolver, *, goes_on: bool) -> bool:
        request = self.request
        settings = Settings(
            request.identities if request.connect else (), request.policies, request.smtp_port, request.concurrency,
            request.connect, request.deadline_s, request.one_attempt,
        )  # fmt: skip
        self._run = run = Run(
            job, settings, journal, state, resolver, metrics=self.metrics, transcript=request.transcript
        )
        self._take_settled(journal)  # what intake settled is none of those that are left
        self._left = journal.counts().get("", 0)
        self.metrics.watch(lambda: self._live(run))
        if self._stopped:
            run.stop()
        self._in_force = [InForce(request.policies, prober.adopt) for prober in run.probers]
        if goes_on:  # what an earlier process routed may be forbidden by now
            for prober in run.probers:
                prober.adopt(request.policies)
        over = Event()
        beside = [gevent.spawn(self._tell, journal, over), gevent.spawn(self._count, journal, over)]
        watcher = gevent.spawn(self.reloader.serve) if self.reloader else None
        desks = []
        for prober, in_force in zip(run.askers, self._in_force, strict=False):
            limits = LaneLimits(state, journal, prober.identity, job.id, in_force.limit)
            limits.look()  # those in force bind the first session too
            standing = Standing(run, prober)
            standing.look()
            desks.append(OrderDesk(run, prober, request.suppression, limits, standing))
        clerks = [gevent.spawn(desk.serve) for desk in desks]
        try:
            run.survey()
            if self._forecast is not None and not self._stopped:
                policies = run.probers[0].policies
                self._forecast(outlook(journal, state, policies, job.mode, request.concurrency, settings.identities))
            done = not self._stopped and run.probe()
        except BaseException:  # sessions in flight end politely while the journal can still be written
            run.stop()
            run.drain()
            raise
        finally:
            over.set()
            gevent.joinall(beside)
            if watcher is not None:
                watcher.kill()
            gevent.killall(clerks)
            for desk in desks:
                desk.close()
        self._write(journal, part=not done)
        if done:
            journal.put("finished_at", stamp())
        return done

    def _preflight(self, resolver: Resolver) -> list[AuditRow]:
        """An Enhanced run asks only from a source that is fit to be seen; what it goes on in spite of is audited."""
        identities = self.request.identities if self.request.connect else ()
        return [row for identity in identities for row in self._preflight_of(identity, resolver)]

    def _preflight_of(self, identity: Identity, resolver: Resolver) -> list[AuditRow]:
        request = self.request
        unusable = unbindable(identity)
        if unusable:
            raise WrongUse(f"The identity {identity.name}: {unusable}")
        lifted = [name for name in ("sessions", "refusals") if getattr(identity.limits, name) is None]
        lift = f"limits lifted by the identity's file: {', '.join(lifted)}" if lifted else ""
        if request.mode is not Mode.ENHANCED:
            return [AuditRow(at=time.time(), kind="policy", identity=identity.key, note=lift)] if lift else []
        findings = preflight(identity, resolver, allow_private=request.allow_private, listed=request.listed)
        failed = [finding.say for finding in findings if finding.outcome is Check.FAIL]
        if failed and not request.accepted_risk:
            raise WrongUse(
                f"The identity {identity.name} is not fit to probe from here: {' '.join(failed)} "
                "This machine can give syntax, domain and mail-host answers (--no-connect); RCPT needs a host with "
                "an open port 25, a PTR record and a HELO name of its own. --accept-identity-risk REASON goes on."
            )
        accepted = f"accepted risk: {request.accepted_risk}" if failed else ""
        unknown = " ".join(finding.say for finding in findings if finding.outcome is Check.UNKNOWN)
        if unknown:
            log.warning("preflight_unknown", identity=identity.name, why=unknown)
        private = "private addresses admitted" if request.allow_private else ""
        return [
            AuditRow(at=time.time(), kind="policy", identity=identity.key, note=note)
            for note in (accepted, f"not known before the run: {unknown}" if unknown else "", private, lift)
            if note
        ]

    def _lock(self, job: Job) -> AbstractContextManager[object]:
        request = self.request
        since = datetime.now(UTC).timestamp()
        with ExitStack() as taken:  # all of them, or none
            for identity in request.identities if request.connect else ():
                try:
                    taken.enter_context(IdentityLock(request.state.parent, identity.key, job=job.id, since=since))
                except HeldByOther as held:
                    raise Held(str(held), identity) from held
                except StoreError as error:
                    raise WrongUse(str(error)) from error
            return taken.pop_all()

    def _reloaded(self, policies: PolicySet) -> None:
        """A changed set: into force, and into the audit."""
        assert self._in_force and self._journal is not None, "the watcher runs while the run does"
        before = self._in_force[0].policies.etag
        lanes = sum(in_force.load(policies) for in_force in self._in_force)
        note = f"policies reloaded: {before} -> {policies.etag}, {lanes} lanes changed"
        keys = [identity.key for identity in self.request.identities] or [""]
        self._journal.audit([AuditRow(time.time(), "policy", identity=key, note=note) for key in keys]).wait()

    def _tell(self, journal: Journal, over: Event) -> None:
        """Rows to a pipe as they settle; for a file, the part every 15 minutes. Ends between two writes."""
        while not over.wait(PIPE_EVERY_S if self.request.pipe else PART_EVERY_S):
            try:
                self._write(journal, part=True)
            except OSError as error:  # nobody reads the pipe any more
                self._broken = error
                self.stop()
                return

    def _count(self, journal: Journal, over: Event) -> None:
        """Settled verdicts to the metrics, to the last one when the run is over."""
        ended = False
        with suppress(StoreError):  # the run tells of it
            while not ended:
                ended = over.wait(COUNT_EVERY_S)
                self._take_settled(journal)

    def _live(self, run: Run) -> Live:
        identities = {prober.identity.name: prober.status for prober in run.askers}
        refused = {prober.identity.name: prober.refused for prober in run.askers}
        return Live(run.views(), identities, self._writer.lag_s, max(0, self._left), refused)

    def _take_settled(self, journal: Journal) -> None:
        for provider, reason, count in journal.take_settled():
            self.metrics.settled(provider, reason, count)
            self._left -= count

    def _write(self, journal: Journal, *, part: bool) -> None:
        request = self.request
        header, source = tuple(journal.get("header") or ()), journal.get("format") or "lines"
        delimiter = request.intake.delimiter
        if request.pipe is not None:
            if self._broken is not None:
                raise self._broken
            if self._stream is None:
                self._stream = Stream(request.pipe, Layout(header, source, output_format("-", source), delimiter))
            while untold := journal.untold():
                for row in untold:
                    self._stream.write(cells_of(row), verdict_of(row))
        elif request.output is not None:
            layout = Layout(header, source, output_format(request.output, source), delimiter)
            beside = request.output.with_name(request.output.name + ".part")
            rows = ((cells_of(row), verdict_of(row)) for row in journal.rows(settled_only=part))
            write_file(beside if part else request.output, rows, layout)
            if not part:
                beside.unlink(missing_ok=True)


def new_job_id() -> str:
    """A job's name: the day it was begun, and eight random hex digits."""
    return f"{datetime.now(UTC):%Y%m%d}-{secrets.token_hex(4)}"
