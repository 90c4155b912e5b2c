"""Laws of what is asked of block lists before a run: only what could forbid it, and what was not asked is named."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from engine.core.finding import Check
from engine.core.listing import Severity
from engine.reputation.blocklist import Family
from engine.reputation.forbidding import forbidding, may_forbid
from engine.reputation.listed import findings
from engine.reputation.query import QueryError
from engine.reputation.registry import load_registry

ME = "203.0.113.9"


def outcomes(found: Any) -> list[tuple[Check, str]]:
    return [(each.outcome, each.say) for each in findings(ME, found)]


def test_only_lists_that_could_forbid_are_asked(
    server: Any, healthy: Callable[..., Any], code: Callable[..., Any], registry: Callable[..., Any]
) -> None:
    """A critical code or a policy list; of the others nothing would follow."""
    grave = healthy("grave.example", None, code("127.0.0.2", severity=Severity.CRITICAL))
    policy = healthy("policy.example", {ME: ["127.0.0.10"]}, code("127.0.0.2"), code("127.0.0.10", sublist="pbl"))
    lesser = healthy("lesser.example", {ME: ["127.0.0.2"]})
    checks = forbidding(registry(grave, policy, lesser), (server.address,))(ME)
    assert server.count("lesser.example") == 0
    assert [(outcome, "policy (pbl)" in say) for outcome, say in outcomes(checks)] == [(Check.FAIL, True)]


def test_a_list_that_is_off_is_unknown_with_what_it_wants(
    server: Any, healthy: Callable[..., Any], code: Callable[..., Any], registry: Callable[..., Any]
) -> None:
    """It is neither asked nor clean."""
    grave = healthy("grave.example", {ME: ["127.0.0.2"]}, code("127.0.0.2", severity=Severity.CRITICAL))
    checks = forbidding(registry(grave, off={"grave": "needs a key"}), (server.address,))(ME)
    ((outcome, say),) = outcomes(checks)
    assert outcome is Check.UNKNOWN
    assert say.endswith("could not be asked of grave (needs a key).")
    assert server.asked == []


def test_a_machine_without_name_servers_knows_nothing(
    healthy: Callable[..., Any], code: Callable[..., Any], registry: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """That is unknown, and no failure."""
    grave = healthy("grave.example", None, code("127.0.0.2", severity=Severity.CRITICAL))

    def nobody() -> None:
        raise QueryError("resolv.conf can't be read")

    monkeypatch.setattr("engine.reputation.checker.system_servers", nobody)
    assert [outcome for outcome, _ in outcomes(forbidding(registry(grave))(ME))] == [Check.UNKNOWN]


def test_the_shipped_lists_that_could_forbid_are_known() -> None:
    """Spamhaus' are among them, and without a key no list of addresses is asked for it."""
    registry = load_registry()
    able = [each for each in registry.lists.values() if may_forbid(each) and each.takes(Family.IPV4)]
    assert "spamhaus-zen" in [each.name for each in able]
    assert [each.name for each in able if each.name not in registry.off] == []
    ((outcome, say),) = outcomes(forbidding(registry, (("127.0.0.1", 9),))(ME))
    assert outcome is Check.UNKNOWN
    assert "spamhaus-zen (needs a key" in say
