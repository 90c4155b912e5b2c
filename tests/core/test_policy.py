"""Laws of provider policies: the grammar of their numbers, who claims a mail host, which row matches a reply."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.core.ceiling import across_sites, ceilings
from engine.core.grammar import (
    GrammarError,
    Range,
    Rate,
    duration,
    duration_text,
    range_text,
    rate,
    rate_range,
    rate_text,
)
from engine.core.policy import HostPattern, Policy, PolicySet, Recipients, Refusals, ReplyRow, Sessions
from engine.core.reasons import Stage

labels = st.from_regex(r"[a-z][a-z0-9-]{0,6}", fullmatch=True)
names = st.lists(labels, min_size=1, max_size=5).map(".".join)


def policies(*given_policies: tuple[str, list[str]]) -> PolicySet:
    return PolicySet(tuple(Policy(name, match_mx=tuple(mx)) for name, mx in given_policies), Policy("default"))


# --- grammar


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("30s", 30), ("5m", 300), ("1h30m", 5400), ("7d", 604_800), ("1d1h1m1s", 90_061), ("0.5s", 0.5), ("60m", 3600)],
)
def test_a_duration_is_the_sum_of_its_units(text: str, seconds: float) -> None:
    """Days, hours, minutes and seconds add up."""
    assert duration(text) == seconds


@pytest.mark.parametrize(
    "text", ["30", 30, "", "s", "5min", "30m1h", "1h1h", "-5s", "0s", "400d", "1e3s", None, "٣s", "1.5h"]
)
def test_what_is_no_duration_is_refused_with_an_example(text: object) -> None:
    """A number without its unit, units out of order, nothing at all: the error says what is expected."""
    with pytest.raises(GrammarError, match=r"expected .* for example"):
        duration(text)


@given(st.integers(min_value=1, max_value=365 * 86_400_000))
@settings(max_examples=200)
def test_a_duration_reads_back_as_it_was_written(milliseconds: int) -> None:
    """Writing and reading are inverse."""
    seconds = milliseconds / 1000
    assert duration(duration_text(seconds)) == pytest.approx(seconds)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("5/s", Rate(5, 1)),
        ("20/min", Rate(20, 60)),
        ("20/10min", Rate(20, 600)),
        ("1/h", Rate(1, 3600)),
        ("7/day", Rate(7, 86_400)),
    ],
)
def test_a_rate_is_a_count_in_a_period(text: str, value: Rate) -> None:
    """The period may be a multiple of its unit."""
    assert rate(text) == value
    assert rate_text(value) == text


@pytest.mark.parametrize(
    "text", ["100/mins", "20", 20, "20/m", "/min", "0/min", "5/0min", "5/400day", "1.5/s", None, "٣/s"]
)
def test_what_is_no_rate_is_refused_with_an_example(text: object) -> None:
    """A number without its unit, an unknown unit, no events at all: the error names 20/min."""
    with pytest.raises(GrammarError, match="20/min"):
        rate(text)


rates = st.builds(
    Rate,
    st.integers(min_value=1, max_value=10**9 - 1),
    st.builds(lambda count, unit: float(count * unit), st.integers(1, 300), st.sampled_from([1, 60, 3600, 86_400])),
)


@given(rates, rates)
@settings(max_examples=200)
def test_a_range_reads_back_as_it_was_written(one: Rate, other: Rate) -> None:
    """Whatever the two rates, their text means the same, and start never exceeds the ceiling."""
    low, high = sorted((one, other), key=lambda value: value.per_s)
    again = rate_range(range_text(Range(low, high)))
    assert (again.start.per_s, again.ceiling.per_s) == pytest.approx((low.per_s, high.per_s))


def test_a_single_rate_is_start_and_ceiling() -> None:
    """`20/min` is the range that does not adapt."""
    assert rate_range("20/min") == Range(Rate(20, 60), Rate(20, 60))


@pytest.mark.parametrize("text", ["60/min..20/min", "20/min..", "..20/min", "20..60/min", 20, "1/min..2/min..3/min"])
def test_a_range_without_two_rates_in_order_is_refused(text: object) -> None:
    """A ceiling below the start, or half a range."""
    with pytest.raises(GrammarError, match="expected"):
        rate_range(text)


# --- who claims a host


@given(names, names)
def test_a_leading_star_is_one_or_more_labels(prefix: str, suffix: str) -> None:
    """`*.x` claims everything below x at any depth, not x itself and nothing that merely ends in its letters."""
    pattern = HostPattern(f"*.{suffix}")
    assert pattern.matches(f"{prefix}.{suffix}")
    assert not pattern.matches(f"{prefix}{suffix}") or f"{prefix}{suffix}".endswith(f".{suffix}")


@given(labels, names, names)
def test_an_inner_star_stays_within_one_label(label: str, left: str, right: str) -> None:
    """A star that does not lead never reaches over a dot."""
    pattern = HostPattern(f"{left}.*.{right}")
    assert pattern.matches(f"{left}.{label}.{right}")
    assert not HostPattern(f"a.*.{right}").matches(f"a.{label}.{label}.x{right}")
    assert not HostPattern("mx*.qq.com").matches("mx.a.qq.com")
    assert HostPattern("mx*.qq.com").matches("mx3.qq.com")


@given(st.lists(st.tuples(labels, names), min_size=1, max_size=6, unique_by=lambda row: row[0]), names)
def test_the_index_claims_what_the_patterns_match(rows: list[tuple[str, str]], host: str) -> None:
    """Looking up by the last two labels gives the same answer as trying every pattern."""
    found = policies(*((name, [f"*.{suffix}", f"{name}*.{suffix}"]) for name, suffix in rows))
    expected = any(HostPattern(text).matches(host) for one in found.policies for text in one.match_mx)
    assert (found.claiming(host) is not None) == expected


def test_labels_are_borders() -> None:
    """notgoogle.com is not google.com, and neither case nor a trailing dot matters."""
    found = policies(("gmail", ["*.google.com"]))
    assert found.claiming("notgoogle.com") is None
    assert found.claiming("google.com.evil.example") is None
    claimed = found.claiming("ASPMX.L.Google.COM.")
    assert claimed is not None
    assert claimed.name == "gmail"


def test_the_pattern_with_most_literal_labels_wins() -> None:
    """A narrow policy takes its hosts out of a wide one, whatever their order."""
    wide, narrow = ("wide", ["*.outlook.com"]), ("narrow", ["*.olc.protection.outlook.com"])
    for order in ((wide, narrow), (narrow, wide)):
        claim = policies(*order).claim("hotmail-com.olc.protection.outlook.com")
        assert claim is not None
        assert (claim[0].name, claim[1]) == ("narrow", "*.olc.protection.outlook.com")


def test_on_a_tie_the_later_layer_wins() -> None:
    """Policies stand in the order of their layers, so the later one is the operator's."""
    claim = policies(("shipped", ["*.example.com"]), ("own", ["*.example.com"])).claiming("mx.example.com")
    assert claim is not None
    assert claim.name == "own"


@pytest.mark.parametrize(
    ("hosts", "name"),
    [
        (["a.one.com", "b.one.com"], "one"),
        (["a.one.com", "b.two.com"], "default"),
        (["a.one.com", "mx.elsewhere.org"], "default"),
        ([], "default"),
    ],
)
def test_a_policy_needs_every_host_of_a_domain(hosts: list[str], name: str) -> None:
    """A domain with hosts of two providers falls under neither."""
    assert policies(("one", ["*.one.com"]), ("two", ["*.two.com"])).for_hosts(hosts).name == name


def test_a_policy_is_named_by_name_alias_or_host() -> None:
    """What a log calls the provider finds its policy; anything else finds none."""
    found = PolicySet((Policy("gmail", aliases=("google",), match_mx=("*.google.com",)),), Policy("default"))
    for name in ("gmail", "Google", "aspmx.l.google.com."):
        assert found.named(name) is found.policies[0]
    assert found.named("default") is found.default
    assert found.named("nobody") is None


# --- reply rows


def test_a_row_that_says_invalid_needs_a_5yz_at_rcpt() -> None:
    """Whatever a row's author wrote: no 4yz, no other stage. Stages out of logs read as RCPT."""
    row = ReplyRow("mailbox_not_found", text="No Such User")
    for stage in (Stage.RCPT, Stage.DATA, Stage.UNKNOWN):
        assert row.matches(550, "5.1.1", "there is no such user here", stage)
    for stage in (Stage.CONNECT, Stage.EHLO, Stage.TLS, Stage.MAIL):
        assert not row.matches(550, "5.1.1", "no such user", stage)
    assert not row.matches(450, "4.1.1", "no such user", Stage.RCPT)
    assert not row.matches(None, "", "no such user", Stage.RCPT)


@pytest.mark.parametrize(
    ("row", "matches"),
    [
        (ReplyRow("rate_limited"), True),
        (ReplyRow("rate_limited", code=421), True),
        (ReplyRow("rate_limited", code=450), False),
        (ReplyRow("rate_limited", enhanced="4.7.28"), True),
        (ReplyRow("rate_limited", enhanced="4.7.0"), False),
        (ReplyRow("rate_limited", text="UNUSUAL"), True),
        (ReplyRow("rate_limited", text="usual rate limits"), False),
        (ReplyRow("rate_limited", pattern=re.compile("unusual .* your", re.IGNORECASE)), True),
        (ReplyRow("rate_limited", stage=Stage.MAIL), True),
        (ReplyRow("rate_limited", stage=Stage.RCPT), False),
        (ReplyRow("rate_limited", code=421, text="elsewhere"), False),
    ],
)
def test_a_row_matches_when_all_that_it_asks_is_there(row: ReplyRow, matches: bool) -> None:
    """Code, enhanced code, text, pattern and stage: what is given must hold, what is not is not asked."""
    assert row.matches(421, "4.7.28", "An unusual rate from Your address", Stage.MAIL) is matches


# --- ceilings


def test_the_tightest_limit_binds() -> None:
    """At 8 % refused, 20 refusals an hour let 250 addresses go, however fast RCPT may be."""
    chosen = Policy(
        "x",
        sessions=Sessions(2, Rate(6, 60), 1),
        recipients=Recipients(Range(Rate(10, 60), Rate(20, 60)), 20, 5),
        refusals=Refusals(6, Range(Rate(20, 3600), Rate(200, 3600))),
    )
    start, top = ceilings(chosen, 0.08)
    assert (start.binding, round(start.addresses_per_hour)) == ("refusals.rate", 250)
    assert (top.binding, round(top.addresses_per_hour)) == ("recipients.rate", 1200)
    assert start.hours(1000) == pytest.approx(4)
    assert across_sites(chosen) is None


def test_a_session_carries_what_its_refusals_let_it() -> None:
    """With one refusal kept back for the control, a session of 10 at 50 % refused ends after two addresses."""
    chosen = Policy(
        "x", sessions=Sessions(1, Rate(1, 60), 1), refusals=Refusals(2), recipients=Recipients(per_session=10)
    )
    assert ceilings(chosen, 0.5)[0].per_hour["sessions.rate"] == pytest.approx(120)
