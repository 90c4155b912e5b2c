"""A site as it is dialled, and the line to it: an open session, or why there is none."""

from __future__ import annotations

from dataclasses import dataclass, field

from engine.core.caps import MAX_ADDRESSES, MAX_HOSTS
from engine.core.classify import Classifier
from engine.flow.judged import Judged
from engine.net.session import Endpoint, Session
from engine.store.audit import AuditRow

ANY_HOST = Classifier()


@dataclass(slots=True)
class SiteHosts:
    """A site in memory: its journal id, its hosts to dial, and what was learnt of them in this run."""

    id: int
    key: str
    hosts: tuple[tuple[str, tuple[str, ...]], ...]
    without_utf8: frozenset[str] = frozenset()
    unbacked: bool = True  # refusals that rest on nothing may wait in the journal for an acceptance here

    def endpoints(self, port: int) -> list[Endpoint]:
        """Where to dial, in order."""
        return [
            Endpoint(name, address, port)
            for name, addresses in self.hosts[:MAX_HOSTS]
            for address in addresses[:MAX_ADDRESSES]
        ]


@dataclass(slots=True)
class Line:
    """An open session, or why there is none; `endpoint` is the last one dialled, `classifier` that of its policy.

    `tried` are the audit's rows of its connections, until they are written.
    """

    endpoint: Endpoint | None = None
    session: Session | None = None
    classifier: Classifier = ANY_HOST
    failure: Judged | None = None
    tried: list[AuditRow] = field(default_factory=list)

    def take_tried(self) -> list[AuditRow]:
        """The rows that are not written yet, to be written now."""
        tried, self.tried = self.tried, []
        return tried
