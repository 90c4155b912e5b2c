"""Laws of the simulation: what it takes from the real lanes, and what it says of the shipped policies."""

from __future__ import annotations

import random
from collections import defaultdict
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.core import simulation
from engine.core.ceiling import ceilings
from engine.core.grammar import Range, Rate
from engine.core.identity import Identity, Limits
from engine.core.policy import Control, Ladders, Policy, PolicySet, Recipients, Refusals, Sessions
from engine.core.simulation import Assumed, Course, Mail, Simulation
from engine.flow.policies import load_policies

HOUR_S = 3600.0
NOBODY = Assumed(refused=0.0, tempfail=0.0)


def policy(**changes: object) -> Policy:
    plain = Policy(
        name="lab",
        sessions=Sessions(concurrency=2, rate=Rate(60, 60.0), burst=2),
        recipients=Recipients(rate=Range(Rate(10, 1.0), Rate(10, 1.0)), per_session=10, per_transaction=4),
        refusals=Refusals(per_session=5, rate=Range(Rate(1000, HOUR_S), Rate(1000, HOUR_S))),
    )
    return replace(plain, **changes)


def mail(addresses: int, own: Policy, *, domain: str = "a.example", site: str = "site", lane: str = "") -> Mail:
    return Mail(domain, lane or site, site, own, addresses)


def play(list_of: list[Mail], assumed: Assumed, seed: int = 0, **more: object) -> dict[str, Course]:
    courses = Simulation(list_of, assumed, random.Random(seed).random, **more).run()
    assert courses is not None
    return courses


# --- what it is made of -------------------------------------------------------------------------------------------


@given(
    st.lists(st.integers(1, 12), min_size=1, max_size=12),
    st.floats(0, 0.6),
    st.floats(0, 0.4),
    st.floats(0, 1),
    st.integers(0, 9),
)
@settings(max_examples=60, deadline=None)
def test_every_address_ends_once_and_only_failures_are_unanswered(sizes, refused, tempfail, greylisted, seed):
    """Whatever is assumed: all are done, and as many unanswered as fail to the end."""
    own = policy(name="default")
    total = sum(sizes)
    listed = [mail(size, own, domain=f"d{n}.example", site=f"s{n % 3}") for n, size in enumerate(sizes)]
    courses = play(listed, Assumed(refused, tempfail, greylisted), seed)
    assert sum(course.done for course in courses.values()) == total
    assert total - sum(course.answered for course in courses.values()) == pytest.approx(tempfail * total, abs=2.01)


def test_the_same_draws_give_the_same_course():
    """A forecast doesn't change by being asked twice."""
    listed = [mail(40, policy(name="default"), domain=f"d{n}.example", site=f"s{n}") for n in range(5)]
    first, second = (play(listed, Assumed(0.1, 0.05, 0.5), 3) for _ in range(2))
    assert first == second


def test_shares_are_exact_over_the_list_even_where_lanes_are_small():
    """100 sites of one address each, and 8 % of them refused: eight, not a lane's share rounded."""
    own = policy(retry=Ladders(tempfail_s=()))
    listed = [mail(1, own, site=f"s{n}") for n in range(100)]
    answered = sum(course.answered for course in play(listed, Assumed(0.0, 0.08)).values())
    assert answered == 92


@pytest.mark.parametrize(
    ("changes", "assumed", "binding", "seconds"),
    [
        ({"recipients": Recipients(Range(Rate(1, 1.0), Rate(1, 1.0)), 50, 1)}, NOBODY, "recipients.rate", 400),
        ({"sessions": Sessions(2, Rate(6, 60.0), 1), "recipients": Recipients(Range(Rate(9, 1.0), Rate(9, 1.0)), 5, 1)},
         NOBODY, "sessions.rate", 800),
        ({"refusals": Refusals(5, Range(Rate(10, HOUR_S), Rate(10, HOUR_S)))}, Assumed(0.1, 0.0),
         "refusals.rate", 3.5 * HOUR_S),
        ({"sessions": Sessions(1, Rate(60, 1.0), 1)}, Assumed(0.0, 0.0, rtt_s=5.0), "sessions.concurrency", None),
        ({"retry": Ladders(tempfail_s=(900.0, 3600.0))}, Assumed(0.0, 0.01), "retry", 4500),
    ],
)  # fmt: skip
def test_the_limit_that_binds_is_named_and_its_time_is_what_arithmetic_says(changes, assumed, binding, seconds):
    """400 addresses of one domain, under one tight limit after the other."""
    own = policy(control=Control(refuses_unknown_domains=frozenset({"a.example"})), **changes)
    course = play([mail(400, own)], assumed)["site"]
    assert course.binding == binding
    if seconds is not None:
        assert course.seconds == pytest.approx(seconds, rel=0.2)


def test_a_control_costs_a_refusal_of_each_domain():
    """30 domains that refuse nobody of the list still spend 30 refusals of the budget."""
    budget = Refusals(5, Range(Rate(10, HOUR_S), Rate(10, HOUR_S)))
    listed = [mail(2, policy(refusals=budget), domain=f"d{n}.example") for n in range(30)]
    known = [replace(each, refuses=True) for each in listed]
    asked = play(listed, NOBODY)["site"]
    assert asked.binding == "refusals.rate"
    assert asked.seconds > 2 * HOUR_S
    assert play(known, NOBODY)["site"].seconds < 0.1 * HOUR_S


def test_greylisting_costs_a_step_of_its_ladder():
    """A greylisting domain's addresses are asked twice, its control as well; a provider's are spared."""
    own = policy(name="default", retry=Ladders(greylist_s=(300.0, 900.0)))
    course = play([mail(20, own)], Assumed(0.0, 0.0, 1.0))["site"]
    assert course.seconds == pytest.approx(600.0, rel=0.05)
    spared = play([mail(20, replace(own, name="lab"))], Assumed(0.0, 0.0, 1.0))["site"]
    assert spared.seconds < 60


def test_half_and_twice_the_refused_share_take_less_and_more():
    """Nobody knows the share beforehand: the forecast spans it."""
    own = policy(refusals=Refusals(5, Range(Rate(20, HOUR_S), Rate(20, HOUR_S))))
    hours = [play([mail(1000, own)], Assumed(0.08, 0.0).times(factor))["site"].seconds for factor in (0.5, 1, 2)]
    assert hours[1] == pytest.approx(2 * hours[0], rel=0.3)
    assert hours[2] == pytest.approx(2 * hours[1], rel=0.3)
    assert Assumed(0.7, 0.2).times(2).refused == pytest.approx(0.8)


def test_sessions_over_all_lanes_are_capped():
    """With one session at a time, ten sites take ten times as long as one."""
    listed = [mail(4, policy(), domain=f"d{n}.example", site=f"s{n}") for n in range(10)]
    at_once = max(course.seconds for course in play(listed, NOBODY).values())
    one_by_one = max(course.seconds for course in play(listed, NOBODY, concurrency=1).values())
    assert one_by_one > 8 * at_once


@given(
    st.lists(st.tuples(st.integers(1, 3), st.booleans()), min_size=1, max_size=40),
    st.floats(0, 0.6),
    st.floats(0, 0.4),
    st.floats(0, 1),
    st.sampled_from(["", "identity", "address"]),
)
@settings(max_examples=60, deadline=None)
def test_a_lane_that_is_played_for_others_fares_as_each_of_them_would(sizes, refused, tempfail, greylisted, shared):
    """One by one or as crowds, alone or under a limit that they share: each ends at the same moment."""
    own = policy(name="default")
    limits = Limits() if shared == "identity" else Limits(None, None)
    asker = Identity("a", "a.example", "p@a.example", public_v4="203.0.113.1", limits=limits)
    listed = [
        Mail(f"d{n}.example", f"s{n}", f"s{n}", own, size, refuses, asker.key,
             [(f"mx{n}.example", [f"192.0.2.{0 if shared == 'address' else n}"])])
        for n, (size, refuses) in enumerate(sizes)
    ]  # fmt: skip
    more = {"policies": PolicySet((), own), "identities": [asker], "concurrency": 2000}
    crowds = play(listed, Assumed(refused, tempfail, greylisted), **more)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(simulation, "CROWDS", 2000)
        one_by_one = play(listed, Assumed(refused, tempfail, greylisted), **more)
    assert len({id(course) for course in one_by_one.values()}) == len(listed)
    assert crowds == one_by_one


def test_a_lane_beside_a_stricter_host_is_played_on_its_own():
    """A host that another policy claims makes its sessions shorter: it is no member of a crowd without such a host."""
    own = policy(name="default")
    strict = policy(name="strict", match_mx=("*.strict.example",), refusals=replace(own.refusals, per_session=2))
    asker = Identity("a", "a.example", "p@a.example", public_v4="203.0.113.1", limits=Limits(None, None))

    def one(number: int, *beside: str) -> Mail:
        hosts = [(name, [f"192.0.2.{number}"]) for name in (f"mx{number}.example", *beside)]
        return Mail(f"d{number}.example", f"s{number}", f"s{number}", own, 12, False, asker.key, hosts)

    free, bound = one(1), one(2, "mx.strict.example")
    more = {"policies": PolicySet((strict,), own), "identities": [asker]}
    all_refused = Assumed(refused=1.0, tempfail=0.0)
    alone = [play([each], all_refused, **more) for each in (free, bound)]
    together = play([free, bound], all_refused, **more)
    assert together == alone[0] | alone[1]
    assert len({course.seconds for course in together.values()}) == 2


def test_a_crowd_takes_as_many_sessions_as_its_lanes():
    """1,000 sites alike, 100 sessions at once: the same time as with each of them played."""
    listed = [mail(1, policy(), site=f"s{n}") for n in range(1000)]
    courses = play(listed, NOBODY, concurrency=100)
    assert len({id(course) for course in courses.values()}) == 200
    one_by_one = 1000 / 100 * max(course.seconds for course in play(listed[:1], NOBODY).values())
    assert max(course.seconds for course in courses.values()) == pytest.approx(one_by_one, rel=0.15)


def test_what_takes_too_long_gives_up():
    """Who asks for a quick forecast gets none rather than a late one."""
    asked = []
    simulation = Simulation(
        [mail(5000, policy())], NOBODY, random.Random(0).random, go_on=lambda: bool(asked.append(1))
    )
    assert simulation.run() is None
    assert len(asked) == 1


def test_a_huge_lane_is_simulated_in_part_and_goes_on_at_its_pace():
    """40,000 addresses take twice as long as 20,000 at a steady rate; small domains are taken whole or not at all."""
    plenty = Rate(9999, 60.0)
    own = policy(
        recipients=Recipients(Range(Rate(5, 1.0), Rate(5, 1.0)), 100, 10),
        refusals=Refusals(50, Range(plenty, plenty)),
    )
    whole = play([mail(20_000, own)], NOBODY)["site"]
    part = play([mail(20_000, own), *(mail(2, own, domain=f"d{n}.example") for n in range(10_000))], NOBODY)["site"]
    assert (part.addresses, part.done) == (40_000, part.sampled)
    assert part.sampled == pytest.approx(20_000, rel=0.01)
    assert part.seconds > 1.9 * whole.seconds
    assert whole.seconds == pytest.approx(20_000 / 5, rel=0.05)


def test_it_stays_below_the_ceilings():
    """What the limits alone would allow is never passed by what they allow together."""
    for own in (load_policies().named(name) for name in ("gmail", "microsoft365", "icloud", "zoho")):
        course = play([mail(600, own, domain="gmail.com")], Assumed(0.08, 0.0))["site"]
        assert course.seconds > 0.8 * ceilings(own)[1].hours(600) * HOUR_S


# --- the shipped policies -----------------------------------------------------------------------------------------


def realistic(policies) -> list[Mail]:
    """10,000 addresses: 55 % gmail.com, 500 hosted domains of three addresses, the rest a long tail of small sites.

    Of the hosted domains 40 % are tenants of Microsoft 365, 20 % of Google, 10 % of Zoho; 30 % share eleven web hosts,
    the most crowded of which serves 50 of them.
    """
    gmail, zoho, default = (policies.named(name) for name in ("gmail", "zoho", "default"))
    listed = [Mail("gmail.com", "gmail", "aspmx.l.google.com", gmail, 5500)]
    crowds = [
        f"[192.0.2.{host}]" for host, size in enumerate((50, 25, 17, 12, 10, 8, 7, 6, 6, 5, 4)) for _ in range(size)
    ]
    assert len(crowds) == 150
    for number in range(200):
        site = f"t{number}.mail.protection.outlook.com"
        listed.append(Mail(f"m{number}.example", site, site, policies.named("microsoft365"), 3))
    listed += [Mail(f"g{number}.example", "gmail", "aspmx.l.google.com", gmail, 3) for number in range(100)]
    listed += [Mail(f"z{number}.example", "zoho", "mx.zoho.com", zoho, 3) for number in range(50)]
    listed += [Mail(f"w{number}.example", site, site, default, 3) for number, site in enumerate(crowds)]
    left, number = 10_000 - sum(each.addresses for each in listed), 0
    while left > 0:
        size = min(left, (1, 1, 1, 2, 2, 3, 5, 9)[number % 8])
        site = f"mx{number}.example"
        listed.append(Mail(f"l{number}.example", site, site, default, size))
        left, number = left - size, number + 1
    return listed


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_ten_thousand_addresses_end_within_a_day_under_the_shipped_policies(seed):
    """8 % refused, 3 % failing, 5 % of the small domains greylisting: done in 24 hours, nine in ten answered."""
    policies, asker = load_policies(), Identity("node-1", "", "", public_v4="192.0.2.9")
    listed = [replace(each, identity=asker.key) for each in realistic(policies)]
    assert sum(each.addresses for each in listed) == 10_000
    courses = play(listed, Assumed(0.08, 0.03, 0.05), seed, policies=policies, identities=[asker])
    assert max(course.seconds for course in courses.values()) < 24 * HOUR_S
    assert sum(course.answered for course in courses.values()) >= 0.9 * 10_000
    hours: dict[str, float] = defaultdict(float)
    for course in courses.values():
        hours[course.policy.name] = max(hours[course.policy.name], course.seconds / HOUR_S)
    assert max(hours, key=lambda name: hours[name]) in ("gmail", "default", "zoho")


def test_five_hundred_domains_on_one_web_host_take_more_than_a_day():
    """A truth to know: each domain's control spends the one host's refusal budget, which stays below Cisco's 25/h."""
    own = load_policies().default
    crowd = [mail(3, own, domain=f"w{n}.example", site="[192.0.2.1]") for n in range(500)]
    course = play(crowd, Assumed())["[192.0.2.1]"]
    assert course.binding == "refusals.rate"
    assert 24 < course.seconds / HOUR_S < 48
    known = [replace(each, refuses=True) for each in crowd]
    assert play(known, Assumed())["[192.0.2.1]"].seconds / HOUR_S < 12


# --- limits above the lanes -----------------------------------------------------------------------------------------


def test_an_identity_s_limits_slow_all_its_lanes_and_nobody_else_s():
    """120 sites, one session each: 60 sessions a minute for one identity, all at once for another."""
    slow = Identity("slow", "", "", public_v4="192.0.2.1", limits=Limits(Range(Rate(60, 60.0), Rate(60, 60.0)), None))
    free = Identity("free", "", "", public_v4="192.0.2.2", limits=Limits(None, None))
    sites = [mail(1, policy(), domain=f"d{n}.example", site=f"s{n}") for n in range(120)]
    listed = [replace(each, identity=who.key, refuses=True) for each in sites for who in (slow, free)]
    courses = play(listed, NOBODY, identities=[slow, free])
    assert len(courses) == 240
    took = {who: max(course.seconds for key, course in courses.items() if key.startswith(who)) for who in
            (slow.key, free.key)}  # fmt: skip
    assert took[free.key] < 30
    assert 60 < took[slow.key] < 90
    last = max(courses.values(), key=lambda course: course.seconds)
    assert last.binding == "limits.sessions"


def test_sites_at_one_address_share_its_limits():
    """Ten sites whose first host is one: the address takes as long as one site with all of it would."""
    policies = load_policies()
    hosts = (("mx.example", ("192.0.2.7",)),)
    sites = [mail(2, policies.default, domain=f"d{n}.example", site=f"s{n}") for n in range(10)]
    apart = play(sites, NOBODY, policies=policies)
    shared = play([replace(each, hosts=hosts) for each in sites], NOBODY, policies=policies)
    longest = [max(course.seconds for course in courses.values()) for courses in (apart, shared)]
    assert longest[1] > 5 * longest[0]
