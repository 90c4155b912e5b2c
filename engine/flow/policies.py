"""Finds, layers and loads policies.

1. Effective values: the model's own <- default.yaml <- the provider's shipped file <- the same `provider:` in each
   further directory, in order. A directory may hold `provider: default` too; it lies over default.yaml, below all
   providers.
2. Maps merge key by key, lists replace; null goes back to the model's own value. Of `replies` and `sources` the later
   layers' rows come first, and null drops what lies below.
3. `match`, `aliases`, `terms`, `replies` and `pools` are not inherited from default.yaml.
4. One load gives a whole set or PolicyProblems with everything that is wrong, never a part of a set.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from functools import cached_property
from importlib.resources import files
from pathlib import Path
from typing import Any

from engine.core.grammar import GrammarError
from engine.core.policy import DEFAULT_NAME, Policy, PolicySet
from engine.flow.policy_file import PolicyFile, Problem, field_name, read_file
from engine.flow.policy_model import KEYS, MODEL, build, inherited, reply_row, source

MODEL_ORIGIN = "model"  # the origin of a value that no file set
_SUFFIXES = (".yaml", ".yml")


class PolicyProblems(Exception):  # noqa: N818 - it is what its list says
    """Everything that is wrong with the policy files; str() has one problem a line."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(sorted(set(problems)))
        super().__init__("\n".join(map(str, self.problems)))


def load_policies(extra_dirs: Sequence[Path] = (), shipped: Path | None = None) -> PolicySet:
    """The policies of the shipped directory under those of `extra_dirs`; raises PolicyProblems.

    The package's own files are held against the model by the tests and by `engine policy check`, not at each start,
    which would read them twice. They still are read by the same code.
    """
    found = read_layers(extra_dirs, shipped, checked=shipped is not None)
    try:
        return merge(found)
    except (GrammarError, LookupError, TypeError):
        return merge(read_layers(extra_dirs, shipped))  # somebody edited a shipped file: say which and where


def check_policies(extra_dirs: Sequence[Path] = (), shipped: Path | None = None) -> tuple[PolicySet, int]:
    """As `load_policies`, with every file held against the model; also says how many files there are."""
    found = read_layers(extra_dirs, shipped)
    return merge(found), len(found)


def shipped_dir() -> Path:
    """Where the policies that come with the package are."""
    return Path(str(files("engine") / "policies"))


def read_layers(
    extra_dirs: Sequence[Path] = (), shipped: Path | None = None, *, checked: bool = True
) -> list[PolicyFile]:
    """All policy files, layer by layer, in the order of their names. What can't be read is a problem of its file."""
    found = []
    for layer, directory in enumerate(map(Path, [shipped or shipped_dir(), *extra_dirs])):
        try:
            paths = sorted(path for path in directory.iterdir() if path.suffix in _SUFFIXES)
        except OSError as error:
            found.append(_unreadable(str(directory), layer, f"can't be read as a directory: {error.strerror}"))
            continue
        if not paths:
            found.append(_unreadable(str(directory), layer, "holds no policy (expected files named *.yaml)"))
        for path in paths:
            label = str(path) if layer else path.name
            try:
                content = path.read_bytes()
            except OSError as error:
                found.append(_unreadable(label, layer, f"can't be read: {error.strerror}"))
                continue
            found.append(read_file(label, content, layer, checked=checked or layer > 0))
    return found


def _unreadable(label: str, layer: int, what: str) -> PolicyFile:
    return PolicyFile(label, layer, problems=[Problem(label, 0, "", what)])


def merge(found: Sequence[PolicyFile]) -> PolicySet:
    """One set out of all files; raises PolicyProblems, or GrammarError where an unchecked file has a bad value."""
    problems = [problem for file in found for problem in file.problems]
    layered: dict[str, list[PolicyFile]] = {}
    for file in found:
        if file.provider:
            layered.setdefault(file.provider, []).append(file)
    problems += _twice_in_a_layer(layered)
    if DEFAULT_NAME not in layered:
        problems.append(Problem("default.yaml", 0, "", "is missing: every set of policies needs `provider: default`"))
    base = _Layers(DEFAULT_NAME, layered.pop(DEFAULT_NAME, []), None)
    merged = [_Layers(name, group, base) for name, group in layered.items()]
    problems += _claimed_twice(merged)
    for layers in (base, *merged):
        if not any(file.problems for file in (*base.files, *layers.files)):  # else one problem is told twice
            problems += layers.inconsistencies()
    if problems:
        raise PolicyProblems(problems)
    # Later layers stand later: on a tie between patterns they win.
    merged.sort(key=lambda layers: (layers.layer("match.mx"), layers.name))
    etag = hashlib.sha256()
    for file in found:
        etag.update(f"{file.layer} {file.label} {file.digest}\n".encode())
    return PolicySet(tuple(layers.policy for layers in merged), base.policy, etag.hexdigest()[:16])


class _Layers:
    """The files of one provider, laid over each other; remembers which file each value came from."""

    def __init__(self, name: str, files: Sequence[PolicyFile], base: _Layers | None) -> None:
        self.name = name
        self.files = files
        self.values: dict[str, Any] = dict(MODEL)
        self.origin: dict[str, PolicyFile | None] = dict.fromkeys(self.values)
        self.replies: list[tuple[PolicyFile, Any]] = []
        self.sources: list[tuple[PolicyFile, Any]] = list(base.sources) if base else []
        for path in filter(inherited, self.values if base else ()):
            self.values[path], self.origin[path] = base.values[path], base.origin[path]  # type: ignore[union-attr]
        for file in files:
            for path, value in file.values().items():
                self.values[path], self.origin[path] = (MODEL[path] if value is None else value), file
            self._rows("replies", self.replies, file)
            self._rows("sources", self.sources, file)

    @staticmethod
    def _rows(name: str, rows: list[tuple[PolicyFile, Any]], file: PolicyFile) -> None:
        if name not in file.data:
            return
        given = file.data[name]
        if isinstance(given, list):
            rows[:0] = [(file, row) for row in given]
        elif given is None:
            rows.clear()

    def layer(self, path: str) -> int:
        """The layer that a value comes from."""
        file = self.origin[path]
        return file.layer if file else 0

    def problem(self, path: str, what: str) -> Problem:
        """A problem with an effective value, at the place that set it last."""
        file = self.origin.get(path) or self.files[-1]
        place = tuple(path.split("."))
        return Problem(file.label, file.line(place), field_name(place), what)

    @cached_property
    def policy(self) -> Policy:
        """What the layers mean together."""
        return build(
            self.name,
            self.values,
            replies=[reply_row(row) for _, row in self.replies],
            sources=[source(row, file.label) for file, row in self.sources],
            origin={path: file.label if file else MODEL_ORIGIN for path, file in self.origin.items()},
        )

    def inconsistencies(self) -> list[Problem]:
        """What is wrong with the whole though no single value is."""
        if not self.files:
            return []
        problems = [self.problem(path, what) for path, what in self._shape()]
        if not problems:
            problems = [self.problem(path, what) for path, what in _contradictions(self.policy)]
        return problems

    def _shape(self) -> Iterable[tuple[str, str]]:
        values = self.values
        if self.name == DEFAULT_NAME:
            for key in KEYS:
                if not inherited(key.path) and values[key.path]:
                    yield key.path, "does not belong into the default policy, which is for whom no policy claims"
        elif not values["match.mx"]:
            yield "match.mx", 'is missing: no mail host is claimed (expected for example ["*.example.com"])'
        if values["terms.see"] and not values["terms.say"]:
            yield "terms.say", "is missing (expected what the provider's rule says)"
        across = [values[f"across_sites.{key}"] for key in ("concurrency", "rate", "burst")]
        if any(across) and not all(across[:2]):
            yield "across_sites", "needs both concurrency and rate (or is null as a whole)"


def _contradictions(policy: Policy) -> Iterable[tuple[str, str]]:
    """Values that can't both be meant."""
    recipients, timeouts, across = policy.recipients, policy.timeouts, policy.across_sites
    if recipients.per_transaction > recipients.per_session:
        yield "recipients.per_transaction", f"is more than recipients.per_session ({recipients.per_session})"
    if across and policy.scope == "provider":
        yield "across_sites", "says nothing with `scope: provider`, whose numbers hold for all sites (expected null)"
    if across and across.concurrency < policy.sessions.concurrency:
        yield (
            "across_sites.concurrency",
            f"is less than one site's sessions.concurrency ({policy.sessions.concurrency})",
        )
    if policy.pace.floor.per_s > recipients.rate.start.per_s:
        yield "pace.floor", "is faster than recipients.rate starts"
    if policy.breaker.max_open_s < policy.breaker.open_s:
        yield "breaker.max_open", "is shorter than breaker.open"
    if policy.control.inconclusive_ttl_s > policy.control.ttl_s:
        yield "control_rcpt.inconclusive_ttl", "is longer than control_rcpt.ttl"
    for name, seconds in (
        ("connect", timeouts.connect_s),
        ("greeting", timeouts.greeting_s),
        ("command", timeouts.command_s),
    ):
        if seconds > timeouts.session_s:
            yield f"timeouts.{name}", "is longer than timeouts.session"


def _twice_in_a_layer(layered: dict[str, list[PolicyFile]]) -> Iterable[Problem]:
    for name, group in layered.items():
        first: dict[int, PolicyFile] = {}
        for file in group:
            other = first.setdefault(file.layer, file)
            if other is not file:
                what = f"{name!r} is what {other.label} speaks of too (expected one file a provider and directory)"
                yield Problem(file.label, file.line(("provider",)), "provider", what)


def _claimed_twice(merged: Sequence[_Layers]) -> Iterable[Problem]:
    """Equal patterns in one layer, and names that mean two providers."""
    claims: dict[tuple[str, str, int], _Layers] = {}
    names = {layers.name: layers for layers in merged}
    for layers in merged:
        for path in ("match.mx", "match.domains"):
            for text in _texts(layers.values[path]):
                other = claims.setdefault((path, text.lower().rstrip("."), layers.layer(path)), layers)
                if other is not layers:
                    yield layers.problem(path, f"{text!r} is claimed by {other.name} too")
        for alias in _texts(layers.values["aliases"]):
            other = names.setdefault(alias, layers)
            if other is not layers:
                yield layers.problem("aliases", f"{alias!r} means {other.name} too")


def _texts(value: Any) -> list[str]:
    return [item for item in value if isinstance(item, str)] if isinstance(value, list) else []
