"""The identity state: what one run learnt or spent binds the next."""

from __future__ import annotations

import sqlite3
import stat
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.store.audit import Head
from engine.store.database import StoreError
from engine.store.state import (
    ACCEPTS,
    CONTROL,
    FORGET_SPENT_S,
    INCONCLUSIVE,
    LISTED_REFUSAL,
    REFUSES,
    Fact,
    Grant,
    State,
    default_path,
    outweighs,
)
from engine.store.writer import Writer

NOW = 1_790_000_000.0
DAY = 86400.0


@pytest.fixture
def writer() -> Iterator[Writer]:
    with Writer() as writer:
        yield writer


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "home" / "engine" / "state.db"


@pytest.fixture
def state(writer: Writer, path: Path) -> State:
    return State(writer, path)


def fact(answer: str = REFUSES, basis: str = CONTROL, *, at: float = NOW, domain: str = "a.lab") -> Fact:
    return Fact(domain, "mx.a.lab", answer, basis, at, at + 7 * DAY)


def test_the_folder_is_private(state: State) -> None:
    """Whoever else has an account on the machine sees nothing of it."""
    assert stat.S_IMODE(state.folder.stat().st_mode) == 0o700
    assert stat.S_IMODE(state.path.stat().st_mode) == 0o600


def test_the_place_follows_the_environment(tmp_path: Path) -> None:
    """$ENGINE_STATE, else $XDG_STATE_HOME where it is absolute, else ~/.local/state."""
    home = Path.home() / ".local" / "state" / "engine" / "state.db"
    assert default_path({"ENGINE_STATE": "/x/y.db", "XDG_STATE_HOME": "/z"}) == Path("/x/y.db")
    assert default_path({"XDG_STATE_HOME": str(tmp_path)}) == tmp_path / "engine" / "state.db"
    assert default_path({}) == default_path({"XDG_STATE_HOME": "here"}) == home


def test_a_folder_that_cannot_be_made_is_one_sentence(writer: Writer, tmp_path: Path) -> None:
    """A file where the folder should be is a StoreError that names it."""
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="file"):
        State(writer, tmp_path / "file" / "state.db")


def test_the_secret_is_made_once(writer: Writer, state: State) -> None:
    """The same 32 bytes for every run of this machine, and others elsewhere."""
    secret = state.secret()
    assert len(secret) == 32
    assert state.secret() == secret
    state.close()
    assert State(writer, state.path).secret() == secret
    assert State(writer, state.path.with_name("other.db")).secret() != secret


# --- facts


def test_a_fact_holds_until_it_expires(state: State) -> None:
    """Within its time a fact is found, later not, and only those that were asked for."""
    state.put_facts([fact(), fact(domain="b.lab")]).wait()
    assert state.facts(["a.lab", "c.lab"], NOW) == {"a.lab": fact()}
    assert state.facts(["a.lab"], NOW + 7 * DAY) == {}
    assert state.facts([], NOW) == {}


def test_facts_of_many_domains_are_one_question(state: State) -> None:
    """No limit of SQLite's on the number of values stands in the way."""
    many = [f"d{n}.lab" for n in range(40_000)]
    state.put_facts([fact(domain=many[-1])]).wait()
    assert list(state.facts(many, NOW)) == [many[-1]]


@pytest.mark.parametrize("good", [fact(REFUSES), fact(ACCEPTS), fact(REFUSES, LISTED_REFUSAL)])
def test_a_failed_probe_never_overwrites_a_good_fact(state: State, good: Fact) -> None:
    """Inconclusive takes the place of a good fact only when that has expired, or was another site's."""
    state.put_facts([good, fact(INCONCLUSIVE, at=NOW + DAY)]).wait()
    assert state.facts(["a.lab"], NOW) == {"a.lab": good}
    late = fact(INCONCLUSIVE, at=NOW + 7 * DAY)
    state.put_facts([late]).wait()
    assert state.facts(["a.lab"], NOW + 7 * DAY) == {"a.lab": late}
    assert outweighs(fact(INCONCLUSIVE)._replace(site="mx.moved.lab"), good)


def test_an_accepted_control_outweighs_a_listed_refusal(state: State) -> None:
    """In whichever order they come."""
    listed, accepted = fact(REFUSES, LISTED_REFUSAL), fact(ACCEPTS)
    for order in ([listed, accepted], [accepted, listed]):
        state.forget_facts(domain="a.lab").wait()
        state.put_facts(order).wait()
        assert state.facts(["a.lab"], NOW) == {"a.lab": accepted}


ANSWERS = st.sampled_from([(REFUSES, CONTROL), (ACCEPTS, CONTROL), (INCONCLUSIVE, CONTROL), (REFUSES, LISTED_REFUSAL)])


@given(st.lists(ANSWERS, min_size=1, max_size=8))
def test_knowledge_is_never_lost_to_ignorance(answers: list[tuple[str, str]]) -> None:
    """After any sequence, what is kept is good if any was good, and the last control that was conclusive decides."""
    kept = None
    for n, (answer, basis) in enumerate(answers):
        new = fact(answer, basis, at=NOW + n)
        kept = new if outweighs(new, kept) else kept
    assert kept is not None
    assert (kept.answer == INCONCLUSIVE) == all(answer == INCONCLUSIVE for answer, _ in answers)
    controls = [answer for answer, basis in answers if basis == CONTROL and answer != INCONCLUSIVE]
    if controls:
        assert kept.answer == controls[-1]


def test_the_tripwire_forgets_a_whole_site(state: State) -> None:
    """A site loses all its domains' facts, other sites keep theirs, and the numbers of controls stay."""
    assert state.begin_control("a.lab").wait() == 1
    state.put_facts([fact(), fact(domain="b.lab"), fact(domain="c.lab")._replace(site="mx.c.lab")]).wait()
    assert state.forget_facts(site="mx.a.lab").wait() == 2
    assert list(state.facts(["a.lab", "b.lab", "c.lab"], NOW)) == ["c.lab"]
    assert state.begin_control("a.lab").wait() == 2
    with pytest.raises(ValueError, match="either"):
        state.forget_facts()


def test_old_facts_leave_the_file(writer: Writer, state: State) -> None:
    """A month after its end a fact is gone."""
    state.put_facts([fact()]).wait()
    state.put_facts([fact(at=NOW + 60 * DAY, domain="b.lab")]).wait()
    with sqlite3.connect(state.path) as conn:
        assert conn.execute("SELECT domain FROM facts").fetchall() == [("b.lab",)]
    conn.close()


def test_a_control_keeps_its_number_until_it_is_settled(writer: Writer, state: State) -> None:
    """A retry, after a crash too, asks the same local part; the next question another one."""
    assert state.begin_control("a.lab").wait() == 1
    state.close()
    state = State(writer, state.path)
    assert state.begin_control("a.lab").wait() == 1
    assert state.begin_control("b.lab").wait() == 1
    state.put_facts([fact(REFUSES, LISTED_REFUSAL)]).wait()
    assert state.begin_control("a.lab").wait() == 1  # a listed refusal answers no control
    state.put_facts([fact(INCONCLUSIVE)]).wait()
    assert state.begin_control("a.lab").wait() == 2
    state.put_facts([fact(ACCEPTS)]).wait()
    assert state.facts(["a.lab"], NOW)["a.lab"].controls_begun == 2


def test_questions_and_answers_that_meet_keep_their_order(state: State) -> None:
    """In one transaction too a question that was answered is another one's next; before that it is the same."""
    first = [state.begin_control("a.lab"), state.begin_control("b.lab"), state.begin_control("a.lab")]
    state.put_facts([fact()])
    then = [state.begin_control("a.lab"), state.begin_control("b.lab")]
    assert [ticket.wait() for ticket in first + then] == [1, 1, 1, 2, 1]
    assert state.facts(["a.lab"], NOW)["a.lab"].controls_begun == 2


# --- budgets


def test_what_is_granted_is_spent_until_it_is_given_back(state: State) -> None:
    """Windows show what was granted less what came back, oldest first, for each key that was asked for."""
    ids = state.grant([Grant("lane", "s1", NOW, 5), Grant("identity", "s1", NOW, 5)]).wait()
    state.grant([Grant("lane", "s2", NOW + 10, 3)]).wait()
    assert state.spent(["lane", "identity", "other"], NOW - 1) == {
        "lane": [(NOW, 5), (NOW + 10, 3)],
        "identity": [(NOW, 5)],
        "other": [],
    }
    state.give_back([(ids[0], 4), (ids[1], 5)]).wait()
    assert state.spent(["lane", "identity"], NOW - 1) == {"lane": [(NOW, 1), (NOW + 10, 3)], "identity": []}
    assert state.spent(["lane"], NOW) == {"lane": [(NOW + 10, 3)]}


def test_a_crash_leaves_its_grants_spent(writer: Writer, state: State) -> None:
    """Nobody gives back what a dead process was granted."""
    state.grant([Grant("lane", "s1", NOW, 5)]).wait()
    state.close()
    assert State(writer, state.path).spent(["lane"], NOW - 1) == {"lane": [(NOW, 5)]}


def test_nobody_gives_back_more_than_he_got(state: State) -> None:
    """It is a fault of ours, and changes nothing."""
    (grant_id,) = state.grant([Grant("lane", "s1", NOW, 2)]).wait()
    with pytest.raises(sqlite3.IntegrityError):
        state.give_back([(grant_id, 3)]).wait()
    assert state.spent(["lane"], NOW - 1) == {"lane": [(NOW, 2)]}


def test_sessions_that_meet_spend_each_for_itself(state: State) -> None:
    """Grants of one transaction have ids of their own; a fault in what one session returns costs no other one."""
    asked = [[Grant("a", "s1", NOW, 5)], [], [Grant("b", "s2", NOW, 3), Grant("c", "s2", NOW, 2)]]
    ids = [ticket.wait() for ticket in [state.grant(grants) for grants in asked]]
    assert [len(each) for each in ids] == [1, 0, 2]
    (a,), (b, c) = ids[0], ids[2]
    returns = [state.give_back(back) for back in ([(a, 2)], [(b, 4)], [(c, 2)], [(a, 3)])]
    more = state.grant([Grant("d", "s3", NOW, 1)])
    with pytest.raises(sqlite3.IntegrityError):
        returns[1].wait()
    assert [returns[place].wait() for place in (0, 2, 3)] == [None] * 3
    assert more.wait()[0] > max(a, b, c)
    assert state.spent(["a", "b", "c", "d"], NOW - 1) == {"a": [], "b": [(NOW, 3)], "c": [], "d": [(NOW, 1)]}


def test_spendings_are_forgotten_after_the_longest_window(state: State) -> None:
    """Old rows go with the next grant, their ids never come back, and a late return hits nobody."""
    (old,) = state.grant([Grant("lane", "s1", NOW, 2)]).wait()
    (new,) = state.grant([Grant("lane", "s2", NOW + FORGET_SPENT_S + 1, 3)]).wait()
    assert new > old
    state.give_back([(old, 2)]).wait()
    assert state.spent(["lane"], 0) == {"lane": [(NOW + FORGET_SPENT_S + 1, 3)]}
    state.give_back([(new, 3)]).wait()
    assert state.grant([Grant("lane", "s3", NOW + FORGET_SPENT_S + 2, 1)]).wait()[0] > new


# --- what a site taught


def test_limits_and_breakers_bind_the_next_run(writer: Writer, state: State) -> None:
    """What was learnt and saved is there when the file is opened again."""
    state.learn("mx.a.lab", "per_transaction", 5, NOW)
    state.learn("mx.a.lab", "per_transaction", 3, NOW + 1)
    state.learn("mx.b.lab", "connections", 1, NOW)
    state.save_breaker("lane", {"state": "open", "until": NOW})
    state.save_breaker("gone", {"state": "open"})
    state.save_breaker("gone", None)
    state.save_breaker("back", None)
    state.save_breakers({"back": {"state": "closed"}, "lane": {"state": "open", "until": NOW}})
    state.close()
    state = State(writer, state.path)
    assert state.learned(["mx.a.lab"]) == {"mx.a.lab": {"per_transaction": 3}}
    assert state.learned(["mx.c.lab"]) == {}
    assert state.breakers() == {"lane": {"state": "open", "until": NOW}, "back": {"state": "closed"}}


# --- orders


def test_an_order_is_taken_once_and_answered(state: State) -> None:
    """Its holder is given it once, its issuer sees it taken and then answered."""
    order_id = state.place_order("192.0.2.1", "check", {"addresses": ["a@b.lab"]}, by="Ann", why="T-1", at=NOW).wait()
    placed = state.order(order_id)
    assert placed is not None
    assert (placed.by, placed.why, placed.kind, placed.arguments) == ("Ann", "T-1", "check", {"addresses": ["a@b.lab"]})
    assert state.take_orders("192.0.2.2", NOW + 1) == []
    assert state.take_orders("192.0.2.1", NOW + 1) == [replace(placed, taken_at=NOW + 1)]
    assert state.take_orders("192.0.2.1", NOW + 2) == []
    state.answer_order(order_id, {"done": True}, NOW + 3).wait()
    assert state.order(order_id) == replace(placed, taken_at=NOW + 1, answered_at=NOW + 3, answer={"done": True})
    assert state.order(order_id + 1) is None


def test_a_check_is_forgotten_and_with_it_those_that_nobody_came_back_for(state: State) -> None:
    """The one whose answer was read, and those whose time is over; orders of other kinds stay."""
    read, left, fresh = (
        state.place_order(
            "192.0.2.1", "check", {"addresses": ["a@b.lab"]}, by="Ann", why="", at=NOW, until=until
        ).wait()
        for until in (NOW + 60, NOW + 5, NOW + 60)
    )
    other = state.place_order("192.0.2.1", "drain", {}, by="Ann", why="", at=NOW, until=NOW + 5).wait()
    state.forget_check(read, NOW + 10).wait()
    assert [state.order(each) is None for each in (read, left, fresh, other)] == [True, True, False, False]


def test_orders_come_in_order_and_expire(state: State) -> None:
    """Oldest first; what nobody took in its time is never taken."""
    ids = [
        state.place_order("192.0.2.1", "check", {}, by="Ann", why="", at=NOW, until=until).wait()
        for until in (None, NOW + 5, NOW + 50)
    ]
    assert [order.id for order in state.take_orders("192.0.2.1", NOW + 5)] == [ids[0], ids[2]]


def test_a_new_holder_takes_what_the_dead_one_left(state: State) -> None:
    """An order that was taken and never answered is obeyed after a crash, an answered one is not."""
    ids = [state.place_order("192.0.2.1", "drain", {}, by="Ann", why="", at=NOW).wait() for _ in range(2)]
    state.take_orders("192.0.2.1", NOW + 1)
    state.answer_order(ids[0], {}, NOW + 2).wait()
    assert [order.id for order in state.take_orders("192.0.2.1", NOW + 3, again=True)] == [ids[1]]


def test_looking_for_orders_writes_nothing(writer: Writer, state: State) -> None:
    """The look once a second costs no commit while nothing waits."""
    with sqlite3.connect(state.path) as conn:
        before = conn.execute("PRAGMA data_version").fetchone()
        assert state.take_orders("192.0.2.1", NOW) == []
        assert conn.execute("PRAGMA data_version").fetchone() == before
    conn.close()


# --- heads and events


def test_a_head_only_moves_forward(state: State) -> None:
    """An older head that comes late changes nothing; jobs have heads of their own."""
    state.put_head("job-1", 5, b"five")
    state.put_head("job-1", 3, b"three")
    state.put_head("job-2", 1, b"one")
    assert state.head("job-1") == Head(5, b"five")
    assert state.head("job-2") == Head(1, b"one")
    assert state.head("job-3") is None


def test_events_are_appended(state: State) -> None:
    """Each event is a row of its own, as it was told."""
    state.event("tripwire", NOW, {"site": "mx.a.lab"}).wait()
    state.event("tripwire", NOW, {"site": "mx.a.lab"}).wait()
    with sqlite3.connect(state.path) as conn:
        found = conn.execute("SELECT kind, at, detail FROM events").fetchall()
    conn.close()
    assert found == [("tripwire", NOW, '{"site": "mx.a.lab"}')] * 2
