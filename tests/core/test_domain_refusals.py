"""Laws of domains that refuse us: three in a row, or five of the last 25, speak for the whole lane."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from engine.core.domain_refusals import IN_A_ROW, OF_LAST, REFUSING, DomainRefusals


def test_one_domain_that_refuses_again_and_again_speaks_for_itself_only():
    """Each domain counts once, however often it is asked."""
    refusals = DomainRefusals()
    assert not any(refusals.refused("one.test") for _ in range(50))


def test_three_domains_in_a_row_are_the_source():
    """But not when one that lets us in stands between them."""
    refusals = DomainRefusals()
    assert [refusals.refused(name) for name in "ab"] == [False, False]
    refusals.answered("c")
    assert [refusals.refused(name) for name in "def"] == [False, False, True]


def test_five_of_the_last_25_are_the_source():
    """Whatever lies between them; one that refused before the last 25 counts no more."""
    refusals = DomainRefusals()
    refusals.refused("old")
    for place in range(4):
        for number in range(6):
            refusals.answered(f"fine{place}{number}")
        assert not refusals.refused(f"refuses{place}")
    assert refusals.refused("fifth")


@given(st.lists(st.tuples(st.integers(0, 40), st.booleans()), max_size=200))
def test_the_answer_is_that_of_a_plain_count(answers):
    """Over any answers: each domain by its last one, the newest 25 of them."""
    refusals: DomainRefusals = DomainRefusals()
    last: dict[str, bool] = {}
    for number, refused in answers:
        name = f"d{number}"
        last.pop(name, None)
        last = dict(list((last | {name: refused}).items())[-OF_LAST:])
        if not refused:
            refusals.answered(name)
            continue
        newest = list(last.values())
        expected = (len(newest) >= IN_A_ROW and all(newest[-IN_A_ROW:])) or sum(newest) >= REFUSING
        assert refusals.refused(name) is expected
