"""Laws of lane limits: they narrow, add up, and leave nothing behind."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from engine.core.grammar import Range, Rate
from engine.core.limit import Limit, narrowed, narrowed_set
from engine.core.policy import Policy, PolicySet, Recipients, Sessions

RATES = st.builds(Rate, st.integers(1, 200), st.sampled_from([1.0, 60.0, 3600.0]))
LIMITS = st.lists(
    st.builds(
        Limit, st.sampled_from(["lab", "other"]), st.none() | RATES, st.none() | st.integers(1, 20)
    ),
    max_size=4,
)  # fmt: skip
POLICY = Policy(
    "lab",
    match_mx=("*.lab",),
    sessions=Sessions(concurrency=5, rate=Rate(30, 60.0), burst=4),
    recipients=Recipients(rate=Range(Rate(60, 60.0), Rate(120, 60.0)), per_session=20, per_transaction=8),
    origin={"sessions.rate": "lab.yaml", "sessions.concurrency": "lab.yaml", "scope": "lab.yaml"},
)


@given(LIMITS)
@settings(max_examples=150, deadline=None)
def test_a_limit_never_widens_and_the_tightest_of_several_holds(limits):
    """Each number is at most the policy's and at most that of every limit of this provider."""
    found = narrowed(POLICY, limits)
    mine = [limit for limit in limits if limit.provider == "lab"]
    slowest = min([limit.rate.per_s for limit in mine if limit.rate] + [1e9])
    assert found.sessions.concurrency == min([limit.concurrency for limit in mine if limit.concurrency] + [5])
    assert found.sessions.rate.per_s == min(slowest, 0.5)
    assert found.recipients.rate.start.per_s == min(slowest, 1.0)
    assert found.recipients.rate.ceiling.per_s == min(slowest, 2.0)
    assert 1 <= found.sessions.burst <= 4
    assert 1 <= found.recipients.per_transaction <= 8
    untouched = {"sessions": POLICY.sessions, "recipients": POLICY.recipients, "pace": POLICY.pace}
    assert replace(found, **untouched) == POLICY


@given(LIMITS)
@settings(max_examples=50, deadline=None)
def test_limits_can_be_given_in_any_order(limits):
    """What holds does not depend on which order came first."""
    assert narrowed(POLICY, limits).sessions.rate.per_s == narrowed(POLICY, limits[::-1]).sessions.rate.per_s
    assert narrowed(POLICY, limits).recipients.rate.ceiling.per_s == (
        narrowed(POLICY, limits[::-1]).recipients.rate.ceiling.per_s
    )


def test_a_value_that_a_limit_changes_names_the_limit_as_its_origin():
    """`explain` shows where each value comes from; what the limit left alone keeps its file."""
    found = narrowed(POLICY, [Limit("lab", concurrency=1, source="lane limit 7")])
    assert found.origin["sessions.concurrency"] == "lane limit 7"
    assert found.origin["sessions.rate"] == "lab.yaml"


def test_a_limit_that_is_wider_than_the_policy_changes_nothing():
    """Not even the object: a lane sees that it has nothing to adopt."""
    assert narrowed(POLICY, [Limit("lab", Rate(1000, 1.0), 50), Limit("other", Rate(1, 3600.0), 1)]) is POLICY


def test_a_narrowed_set_finds_the_narrowed_policies():
    """By host, by name, and the default among them; without limits it is the set itself."""
    policies = PolicySet((POLICY,), Policy("default"), "etag")
    found = narrowed_set(policies, [Limit("lab", concurrency=2), Limit("default", rate=Rate(1, 60.0))])
    assert found.for_hosts(["mx.lab"]).sessions.concurrency == 2
    assert found.named("lab").sessions.concurrency == 2
    assert found.for_hosts(["mx.example"]).sessions.rate == Rate(1, 60.0)
    assert found.etag == "etag"
    assert narrowed_set(policies, []) is policies
