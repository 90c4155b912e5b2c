"""The library's way in: addresses of a program go into a verification, its results come out.

1. Wrong use is told at the call, before anything is read or sent; the work begins when the first result is wanted.
2. No result comes before the list is done. The caller's code between two results may block as long as it likes:
   no session is open then that would time out because of it.
3. Nothing is read that the caller did not name, the provider policies and the machine's state excepted: no settings
   file, no environment.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from functools import partial
from itertools import islice
from pathlib import Path
from typing import IO, Literal

from engine.core.address import BadAddress, parse
from engine.core.identity import Consent, Identity, Mode, Status
from engine.core.policy import PolicySet
from engine.core.result import Result
from engine.flow.intake import Intake
from engine.flow.job import Suppression, WrongUse, result_of
from engine.flow.policies import load_policies
from engine.flow.verification import Request, Verification
from engine.store.journal import Journal
from engine.store.state import default_path
from engine.store.writer import Writer

KEY = "address"
CHUNK = 2000  # results in memory at a time


def verify(
    addresses: Iterable[str],
    *,
    mode: Mode | Literal["standard", "enhanced"],
    identity: Identity | Sequence[Identity] | None = None,
    consent: Consent | None = None,
    connect: bool = True,
    policies: PolicySet | None = None,
    suppression: Suppression | None = None,
    one_attempt: bool = False,
    deadline_s: float | None = None,
    concurrency: int = 500,
    journal: Path | str | None = None,
    resume: bool = False,
    state: Path | str | None = None,
    dns: Sequence[tuple[str, int]] | None = None,
    smtp_port: int = 25,
    allow_private: bool = False,
    accepted_risk: str = "",
) -> Generator[Result, None, None]:
    """Verify addresses; iterate over one `Result` for each, in the order given, duplicates included.

    The first `next()` does the whole list and returns when it is done; the others read results from the journal.
    It drives gevent's hub in the thread that iterates: other greenlets of that thread run meanwhile, nothing else of
    it does. The process may be monkey-patched by gevent or not; nothing is patched here. Where that thread must go
    on (an asyncio loop, a window), iterate in another one. `concurrency` sessions at once need as many files open.

    Args:
        addresses: Texts of any kind; one that is no address gets a result that says so.
        mode: `standard` ends at EHLO, once a site; `enhanced` asks RCPT for each address and needs `consent`.
        identity: Who asks, one or several; needed unless `connect` is false, which ends at the mail hosts (DNS only).
            Of several each site is asked by one, and each has limits, breakers and budgets of its own.
        consent: The record that allows asking about these mailboxes.
        policies: What may be done to which provider; `load_policies()`, if not given. Load once for many calls.
        suppression: Addresses and domains that are never asked about.
        one_attempt: Ask each address once and take a temporary refusal for the answer. Otherwise greylisting and
            temporary failures are asked again by the policy's ladder, which takes up to hours.
        deadline_s: End after so many seconds; what still waits gets the reason `deadline_exceeded`.
        journal: Where the job, its evidence and its audit are kept; without it they are gone with the iterator.
        resume: Go on with the unfinished job of `journal`, with the same addresses in the same order.
        state: The identity state; the machine's own, if not given ($ENGINE_STATE, else below $XDG_STATE_HOME).
        dns: (IP address, port) of name servers; the system's, if not given.
        smtp_port: The port of all mail hosts.
        allow_private: Admit mail hosts and identities at private and loopback addresses, for test networks.
        accepted_risk: Why to go on although this identity is not fit to ask from here; it is audited.

    Raises:
        WrongUse: What is asked for can't or mustn't be done; nothing was sent. Consent and identity are looked at
            when `verify` is called, what takes DNS or files (PTR, journal, the identity's lock) at the first result.
        PolicyProblems: A policy file is wrong.
        StoreError: The disk fails. With `journal` and `resume` the next call goes on.
    """
    if isinstance(addresses, str):
        raise TypeError(f"addresses is one text; for one address give a list: [{addresses!r}]")
    chosen = _mode(mode)
    if chosen is Mode.ENHANCED:
        _in_force(consent, datetime.now(UTC))
    identities = (identity,) if isinstance(identity, Identity) else tuple(identity or ())
    if connect:
        _presentable(identities)
    if resume and journal is None:
        raise WrongUse("resume=True needs the journal of the job that it goes on with: give journal=PATH.")

    request = partial(
        Request, mode=chosen, policies=load_policies() if policies is None else policies,
        state=default_path(os.environ) if state is None else Path(state), identities=identities,
        consent=consent if chosen is Mode.ENHANCED else None, suppression=suppression or Suppression(), resume=resume,
        dns=dns, smtp_port=smtp_port, allow_private=allow_private, connect=connect, concurrency=concurrency,
        deadline_s=deadline_s, accepted_risk=accepted_risk, one_attempt=one_attempt,
    )  # fmt: skip
    return _results(addresses, request, None if journal is None else Path(journal))


def _results(
    addresses: Iterable[str], request: Callable[..., Request], journal: Path | None
) -> Generator[Result, None, None]:
    with ExitStack() as held:
        if journal is None:
            journal = Path(held.enter_context(tempfile.TemporaryDirectory(prefix="engine-"))) / "journal"
        with tempfile.TemporaryFile() as listed:
            if not _spool(addresses, listed):
                return
            intake = Intake("addresses", listed, KEY, "jsonl")
            with Verification(request(intake=intake, journal=journal)) as verification:
                verification.run()
        yield from _told(journal)


def _told(journal: Path) -> Iterator[Result]:
    """The results of a journal. It is opened anew for each chunk: nothing is held while the caller's code runs."""
    after = -1
    while True:
        with Writer() as writer:
            rows = list(islice(Journal(journal, writer).rows(after, CHUNK), CHUNK))
        yield from map(result_of, rows)
        if len(rows) < CHUNK:
            return
        after = rows[-1]["n"]


def _spool(addresses: Iterable[str], file: IO[bytes]) -> bool:
    """One JSON object a line: the form of a list that holds any text, line ends included. Says whether any came."""
    for address in addresses:
        file.write(json.dumps({KEY: address}).encode() + b"\n")
    return file.tell() > 0


def _mode(mode: str) -> Mode:
    try:
        return Mode(mode)
    except ValueError:
        raise WrongUse(f"mode={mode!r}: there is no such mode; give 'standard' or 'enhanced'.") from None


def _in_force(consent: Consent | None, now: datetime) -> None:
    """Consent that is missing, unnamed, not yet granted or expired is none."""
    if consent is None:
        raise WrongUse(
            "An enhanced verification asks about mailboxes and needs the leave for it: give "
            "consent=Consent(reference, granted_by, granted_at), or load_consent(PATH, now)."
        )
    if not consent.reference.strip() or not consent.granted_by.strip():
        raise WrongUse("The consent lacks its reference or who granted it; an audit could not name it.")
    if any(moment is not None and moment.tzinfo is None for moment in (consent.granted_at, consent.expires)):
        raise WrongUse(f"The consent {consent.reference} has a time without zone; give UTC: datetime.now(UTC).")
    if consent.granted_at > now:
        raise WrongUse(f"The consent {consent.reference} is granted in the future ({consent.granted_at}).")
    if consent.expired(now):
        raise WrongUse(f"The consent {consent.reference} expired on {consent.expires}; an expired consent is none.")


def _presentable(identities: Sequence[Identity]) -> None:
    """Somebody to ask as: with a name to greet with, an address to write from, and one that the world sees."""
    if not identities:
        raise WrongUse(
            "A verification that connects needs an identity: give identity=Identity(...), or those of "
            "load_identity(PATH); connect=False ends at the mail hosts and needs none."
        )
    for place, identity in enumerate(identities):
        if not identity.helo_name or not identity.key:
            raise WrongUse(f"The identity {identity.name} lacks its helo_name, or public_v4 and public_v6 both.")
        if isinstance(parse(identity.mail_from), BadAddress):
            raise WrongUse(
                f"The identity {identity.name} writes from {identity.mail_from!r}, which is no mail address."
            )
        if identity.status is not Status.ENABLED:
            raise WrongUse(f"The identity {identity.name} is {identity.status}; only an enabled one may ask.")
        if any(other.key == identity.key or other.name == identity.name for other in identities[:place]):
            raise WrongUse(f"Two identities share the name {identity.name} or the address {identity.key}.")
