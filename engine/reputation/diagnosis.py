"""Whether a resolver is fit to ask block lists through: what it can be seen to do wrong, in one sentence each.

1. A name that does not exist must not exist: a resolver that invents answers makes lists list the world.
2. Lists that refuse (127.255.255.254 and the like) say that the resolver is a public one, or one of many customers. The
   text beside the refusal may say whose address the list saw.
3. When no list answers at all, the fault is the resolver's, or the network's.
4. Only lists that this machine may ask are asked for this.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import ip_address

from engine.reputation.blocklist import BlockList
from engine.reputation.checker import Checker
from engine.reputation.health import Finding
from engine.reputation.question import asked_name

NOWHERE = "com"  # where a made-up name must not exist; a network of its own has another
_SEEN = re.compile(r"DNS IP:?\s*\[?([0-9A-Fa-f.:]{3,45})")  # as in "[Your DNS IP: 192.0.2.53]"


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """What a resolver was seen to do. `rewrites` is None where it said nothing about the made-up name."""

    rewrites: bool | None
    refused_by: tuple[str, ...] = ()
    silent: int = 0  # lists that gave no answer
    asked: int = 0
    seen_as: str = ""  # the address that a list saw asking

    @property
    def faults(self) -> list[str]:
        """What is wrong with it and what to do, a sentence each; none where it is fit."""
        found = []
        if self.rewrites:
            found.append("It answers for names that don't exist: ask a resolver that rewrites nothing, by --dns.")
        if self.refused_by:
            seen = f", seen as {self.seen_as}" if self.seen_as else ""
            found.append(
                f"It is refused by {', '.join(self.refused_by)}{seen}: run a recursive resolver of your own that "
                "forwards to nobody, and name it by --dns."
            )
        if self.asked and self.silent == self.asked:
            found.append("No list answered through it: see that it is up, and that it may ask the world.")
        return found


def diagnose(checker: Checker, lists: Iterable[BlockList] | None = None, nowhere: str = NOWHERE) -> Diagnosis:
    """Examine the resolver: a made-up name, and the probes of these lists (all enabled ones), which this makes."""
    chosen = checker.registry.enabled if lists is None else tuple(lists)
    made_up = checker.asker.ask(f"{secrets.token_hex(12)}.{nowhere}")
    health = list(checker.probe_all(chosen))
    refused = [each.name for each in chosen if checker.health(each.name).finding is Finding.REFUSED]
    seen = next((found for name in refused if (found := _seen_as(checker, checker.registry.named(name)))), "")
    return Diagnosis(
        rewrites=None if made_up.error else bool(made_up.records),
        refused_by=tuple(refused),
        silent=sum(each.finding is Finding.SILENT for each in health),
        asked=len(chosen),
        seen_as=seen,
    )


def _seen_as(checker: Checker, blocklist: BlockList) -> str:
    """Whose address a list that refuses us says that it saw; empty where it doesn't say."""
    points = next((points for _, points in blocklist.tests if points.listed is not None), None)
    if points is None or points.listed is None:
        return ""
    answer = checker.ask(blocklist, asked_name(blocklist, points.listed), "TXT")
    for found in filter(None, map(_SEEN.search, answer.records)):
        try:
            return str(ip_address(found[1].rstrip(".")))
        except ValueError:
            continue
    return ""
