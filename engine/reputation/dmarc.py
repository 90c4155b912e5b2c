"""The DMARC policy that holds for a domain, by the tree walk of RFC 9989 (section 4.10): no list of public suffixes.

1. A name whose look-up failed ends the walk as a failure: what stands above it may not be what holds.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from engine.reputation.answer import Ask

MAX_LABELS = 7  # a longer name goes on with its last seven labels
POLICIES = ("none", "quarantine", "reject")
_VERSION = re.compile(r"\s*v\s*=\s*DMARC1\s*(;|$)")


@dataclass(frozen=True, slots=True)
class Dmarc:
    """The record at `name` that holds for a domain, and its policy; both empty where there is none.

    `problem` says what is wrong with records that were found, `failure` why nothing is known.
    """

    name: str = ""
    policy: str = ""
    tags: Mapping[str, str] = field(default_factory=dict)
    problem: str = ""
    failure: str = ""


def find_policy(domain: str, ask: Ask) -> Dmarc:
    """Walk up from a domain (A-labels) to the policy that holds for it: its own, its organisation's, its suffix's."""
    found: list[tuple[str, dict[str, str]]] = []
    problem = ""
    for name in walk(domain):
        answer = ask(f"_dmarc.{name}", "TXT")
        if answer.failure:
            return Dmarc(failure=f"_dmarc.{name}: {answer.failure}")
        records = [text for text in answer.values if _VERSION.match(text)]
        if len(records) > 1:
            problem = problem or f"_dmarc.{name} has {len(records)} DMARC records, which count as none"
        if len(records) != 1:
            continue
        tags = parse(records[0])
        found.append((name, tags))
        if name == domain or tags.get("psd") in ("y", "n"):
            break
    if not found:
        return Dmarc(problem=problem)
    name, tags = _holds(domain, found)
    policy = tags.get("p", "") if name == domain else tags.get("sp", tags.get("p", ""))
    if policy.lower() not in POLICIES:
        if not tags.get("rua"):
            return Dmarc(name, "", tags, f"the record at _dmarc.{name} states no policy")
        policy = "none"  # section 4.7: reports are wanted, so the record is meant
    return Dmarc(name, policy.lower(), tags)


def walk(domain: str) -> list[str]:
    """The names that are asked about, the domain itself first."""
    labels = domain.split(".")
    steps = [labels]
    labels = labels[-MAX_LABELS:] if len(labels) > MAX_LABELS else labels[1:]
    while labels:
        steps.append(labels)
        labels = labels[1:]
    return [".".join(each) for each in steps]


def parse(text: str) -> dict[str, str]:
    """The tags of a record; of one that stands there twice the first."""
    tags: dict[str, str] = {}
    for part in text.split(";"):
        name, equals, value = part.partition("=")
        if equals:
            tags.setdefault(name.strip().lower(), value.strip())
    return tags


def _holds(domain: str, found: Sequence[tuple[str, dict[str, str]]]) -> tuple[str, dict[str, str]]:
    """The domain's own record, else that of its organisation, else that of the public suffix above it."""
    last, tags = found[-1]  # the one with the fewest labels: where the walk ended, or the highest one
    if found[0][0] == domain or tags.get("psd") != "y":
        return found[0] if found[0][0] == domain else found[-1]
    labels = domain.split(".")
    organisation = ".".join(labels[-len(last.split(".")) - 1 :])  # one label below the suffix
    return next((each for each in found if each[0] == organisation), found[-1])
