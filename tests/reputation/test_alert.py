"""Laws of alerts: each fact is told once, in time, in one message, to people who can act on it."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.core.listing import Severity
from engine.core.listing_event import Change, Close, ListingEvent, Method, Progress, Request, Transition
from engine.core.notice import Message, Notice
from engine.reputation import alert, delist
from engine.reputation.alert import BROKEN_S, FLOOD_S, GATHER_S, Composition, Habits, Quiet, compose
from engine.reputation.delist import Applicant, DelistError, Procedure
from engine.reputation.digest import digest
from engine.reputation.rendering import email_of, slack_body, text_of

NOW = 1_790_000_000.0  # 2026-09-21 14:13 UTC
HOUR, DAY = 3600.0, 86_400.0
LOUD = Habits(digest_min=None)
FORM = Procedure("zen", Method.FORM, "https://check.example/", "One form for each address.", 12 * HOUR, 3 * DAY)


def event(number: int = 1, **fields: object) -> ListingEvent:
    one = ListingEvent(
        f"203.0.113.{number}", "zen", "sbl", Severity.CRITICAL, NOW - 300, NOW, Severity.CRITICAL, NOW - 300,
        id=number, confirmed_at=NOW, opened_at=NOW, code="127.0.0.2", meaning="a manual listing",
        text=("https://check.example/sbl/SBL1",), expected_expiry=NOW + 3 * DAY,
    )  # fmt: skip
    return replace(one, **fields)  # type: ignore[arg-type]


def opened(number: int = 1, at: float = NOW, **fields: object) -> Notice:
    one = event(number, **{"opened_at": at, **fields})
    notice = alert.of_transition(Transition(Change.OPENED, one, at), delist.needed(one, FORM, at))
    assert notice is not None
    return notice


def closed(number: int = 1, at: float = NOW + HOUR, **fields: object) -> Notice:
    one = event(number, closed_at=at, close_reason=Close.EXPIRED, **fields)
    notice = alert.of_transition(Transition(Change.CLOSED, one, at), None)
    assert notice is not None
    return notice


def titles(composition: Composition) -> list[str]:
    return [each.message.title for each in composition.messages]


def at_ripe(
    *notices: Notice, habits: Habits = LOUD, told: frozenset[str] = frozenset(), now: float | None = None
) -> Composition:
    return compose(notices, [], told, habits, max(one.at for one in notices) + GATHER_S if now is None else now)


# --- which message, and when


def test_an_opening_waits_a_minute_for_company_and_is_told() -> None:
    """Not longer: somebody has to get up for it."""
    assert compose([opened()], [], frozenset(), LOUD, NOW + GATHER_S - 1) == Composition()
    composition = at_ripe(opened())
    assert titles(composition) == ["CRITICAL: 203.0.113.1 is listed on zen/sbl"]
    assert composition.messages[0].keys == (opened().key,)


def test_three_are_told_one_by_one_and_four_together() -> None:
    """More than three listings of one list have one cause, and are one message."""
    assert len(at_ripe(*map(opened, range(1, 4))).messages) == 3
    composition = at_ripe(*map(opened, range(1, 5)))
    assert titles(composition) == ["CRITICAL: 4 targets are newly listed on zen"]
    assert len(composition.messages[0].keys) == 4
    assert "203.0.113.4 on zen/sbl (critical)" in composition.messages[0].message.parts[0][1]


def test_a_flood_is_told_every_quarter_of_an_hour() -> None:
    """After three messages about one list within the hour, the next ones are gathered for longer."""
    recent = [opened(number) for number in range(1, 4)]
    more = [opened(number, at=NOW + 600) for number in range(4, 6)]
    assert compose(more, recent, frozenset(), LOUD, NOW + 600 + GATHER_S) == Composition()
    assert titles(compose(more, recent, frozenset(), LOUD, NOW + 600 + FLOOD_S)) == [
        "CRITICAL: 2 targets are newly listed on zen"
    ]


def test_lists_are_not_mixed() -> None:
    """Two lists are two stories."""
    others = [replace(opened(number), key=f"x{number}", list="psbl") for number in range(4)]
    assert len(at_ripe(*map(opened, range(1, 5)), *others).messages) == 2


def test_an_end_is_told_where_the_beginning_was() -> None:
    """Whoever read that it began reads that it is over; nobody else does."""
    assert titles(at_ripe(closed(), told=frozenset({"event:1:0"}))) == ["Resolved: 203.0.113.1 is off zen/sbl"]
    composition = at_ripe(closed())
    assert (composition.messages, composition.silent) == ((), (closed().key,))


def test_what_is_over_before_it_was_told_wakes_nobody() -> None:
    """A listing that came and went in the quiet hours is in the digest only."""
    habits = replace(LOUD, quiet=Quiet(0, 24 * 60, Severity.HIGH))
    low = {"severity": Severity.LOW, "seen": Severity.LOW}
    composition = at_ripe(opened(**low), closed(**low), habits=habits)
    assert composition.messages == ()
    assert set(composition.silent) == {opened(**low).key, closed(**low).key}


def test_quiet_hours_hold_low_severities_until_they_end() -> None:
    """At night what is critical comes at once, what is low in the morning; in the zone of those who read it."""
    berlin = ZoneInfo("Europe/Berlin")  # 14:13 UTC is 16:13 there
    habits = replace(LOUD, quiet=Quiet(16 * 60, 8 * 60, Severity.HIGH), zone=berlin)
    low, critical = opened(1, severity=Severity.LOW), opened(2)
    assert titles(at_ripe(low, critical, habits=habits)) == ["CRITICAL: 203.0.113.2 is listed on zen/sbl"]
    assert len(at_ripe(low, habits=replace(habits, zone=UTC)).messages) == 1
    assert at_ripe(low, habits=habits, now=NOW + 15 * HOUR).messages == ()
    assert len(at_ripe(low, habits=habits, now=NOW + 16 * HOUR).messages) == 1


@pytest.mark.parametrize(("start", "end", "quiet"), [(60, 120, {60, 119}), (120, 60, {120, 0, 59}), (5, 5, set())])
def test_quiet_hours_may_go_over_midnight(start: int, end: int, quiet: set[int]) -> None:
    """The first minute is quiet, the last one is not."""
    assert {minute for minute in (0, 59, 60, 119, 120) if Quiet(start, end, Severity.HIGH).holds(minute)} >= quiet
    assert not Quiet(start, end, Severity.HIGH).holds(end)


def test_what_nobody_wants_to_hear_is_silent() -> None:
    """Below `least` there is no message; UCEPROTECT's level 3 lists half of all clouds."""
    composition = at_ripe(opened(severity=Severity.INFO))
    assert (composition.messages, len(composition.silent)) == ((), 1)


def test_a_list_that_is_back_soon_is_not_told() -> None:
    """A list is broken for a quarter of an hour before anybody hears of it."""
    broken = alert.list_broken(
        "zen", "a random address is listed", severity=Severity.HIGH, last_good=NOW - HOUR,
        withdrawn=[], now=NOW,
    )  # fmt: skip
    usable = alert.list_usable("zen", severity=Severity.HIGH, last_good=NOW - HOUR, now=NOW + 600)
    assert compose([broken], [], frozenset(), LOUD, NOW + BROKEN_S - 1) == Composition()
    assert at_ripe(broken, usable).messages == ()
    taking_back = alert.list_broken(
        "zen", "a random address is listed", severity=Severity.HIGH, last_good=NOW - HOUR,
        withdrawn=[event(), event(2)], now=NOW,
    )  # fmt: skip
    (told,) = at_ripe(taking_back).messages  # there is something to be taken back
    assert told.message.title == "List broken: zen is not checked"
    assert "2 listings that it reported since then (203.0.113.1, 203.0.113.2)." in told.message.parts[0][1]
    assert titles(at_ripe(broken, now=NOW + BROKEN_S)) == [told.message.title]
    assert titles(at_ripe(taking_back, usable)) == [told.message.title, "Resolved: zen is checked again"]
    assert titles(at_ripe(usable, told=frozenset({broken.subject}))) == ["Resolved: zen is checked again"]


def test_many_lists_that_break_at_once_are_one_message() -> None:
    """Nobody gets seventy mails because a resolver went; three are told one by one, and none before its time."""

    def broken(number: int, at: float = NOW) -> Notice:
        return alert.list_broken(
            f"list-{number}", "REFUSED", severity=Severity(number % 5), last_good=NOW - HOUR, withdrawn=[], now=at
        )

    assert len(at_ripe(*map(broken, range(1, 4)), now=NOW + BROKEN_S).messages) == 3
    late = broken(99, at=NOW + 60)
    composition = compose([*map(broken, range(70)), late], [], frozenset(), LOUD, NOW + BROKEN_S)
    (told,) = composition.messages
    assert told.message.title == f"Lists broken: {70 - 14} lists are not checked"  # those of info tell nobody
    assert late.key not in told.keys
    usable = [alert.list_usable(one.list, severity=Severity.HIGH, last_good=NOW - HOUR, now=NOW + HOUR)
              for one in map(broken, range(5))]  # fmt: skip
    composition = compose(usable, [], frozenset(one.subject for one in usable), LOUD, NOW + HOUR + GATHER_S)
    assert titles(composition) == ["Resolved: 5 lists are checked again"]


def test_what_a_failed_list_takes_back_is_no_alert_of_its_own() -> None:
    """One message about the list, not one for each address."""
    gone = event(closed_at=NOW, close_reason=Close.LIST_FAILURE)
    assert alert.of_transition(Transition(Change.CLOSED, gone, NOW), None) is None


def test_a_quarantine_is_told_at_once_and_in_quiet_hours() -> None:
    """It stands still: nobody wants to learn that in the morning."""
    told = alert.quarantined("probe1", "listed on zen/sbl", since=NOW, until=None, now=NOW)
    habits = replace(LOUD, quiet=Quiet(0, 24 * 60, Severity.CRITICAL))
    assert titles(compose([told], [], frozenset(), habits, NOW)) == ["CRITICAL: identity probe1 is quarantined"]
    end = alert.released("probe1", "off zen/sbl for a day", since=NOW, now=NOW + DAY)
    assert titles(compose([end], [], frozenset({told.subject}), habits, NOW + DAY)) == [
        "Resolved: identity probe1 asks again"
    ]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 6), st.booleans(), st.integers(0, 4), st.floats(0, DAY)), max_size=12), st.data()
)
def test_every_notice_is_settled_once(rows: list[tuple[int, bool, int, float]], data: st.DataObject) -> None:
    """Whenever somebody looks: no fact is in two messages, none is both told and silent, and in the end none waits."""
    notices = {}
    for number, end, severity, after in rows:
        one = (closed if end else opened)(number, at=NOW + after, severity=Severity(severity))
        notices[one.key] = one
    waiting, told, recent, seen = dict(notices), set[str](), list[Notice](), list[str]()
    looks = [*sorted(data.draw(st.lists(st.floats(0, DAY), max_size=6))), 3 * DAY]
    for look in looks:
        ready = [one for one in waiting.values() if one.at <= NOW + look]
        composition = compose(ready, recent, told, LOUD, NOW + look)
        for each in composition.messages:
            recent += [waiting[key] for key in each.keys]
            told |= {waiting[key].subject for key in each.keys}
            seen += each.keys
        seen += composition.silent
        for key in seen:
            waiting.pop(key, None)
    assert len(seen) == len(set(seen))
    assert set(seen) == set(notices)


# --- what it says


def only(composition: Composition) -> Message:
    (each,) = composition.messages
    return each.message


def test_a_message_says_what_since_why_and_what_to_do() -> None:
    """All of it, and nothing that has to be looked up first."""
    message = only(at_ripe(opened()))
    assert [label for label, _ in message.parts] == ["What", "Since", "Why it matters", "What to do"]
    assert message.link == FORM.url
    assert (
        text_of(message)
        == """\
What
  zen/sbl answers 127.0.0.2: a manual listing. The list says: https://check.example/sbl/SBL1

Since
  First seen 2026-09-21 14:08 UTC, 6 min ago; confirmed by a second answer.

Why it matters
  Mail hosts that use this list refuse us outright: their answers are about us, not about mailboxes. The identity \
behind the address has to stand still until it is off.

What to do
  Fix the cause, then fill in https://check.example/; then engine rbl delist start 1 --fixed TEXT. Every step: \
engine rbl delist show 1

Link
  https://check.example/
"""
    )


def test_a_mail_is_the_same_mail_however_often_it_is_sent() -> None:
    """Same Message-ID; the resolve is in the same thread; no vacation notice comes back."""
    one, again = (email_of(only(at_ripe(opened())), "engine@example.net", ["a@example.net"]) for _ in range(2))
    assert one["Message-ID"] == again["Message-ID"]
    assert one["Auto-Submitted"] == "auto-generated"
    end = email_of(only(at_ripe(closed(), told=frozenset({"event:1:0"}))), "engine@example.net", ["a@example.net"])
    assert end["References"] == one["References"]
    assert end["Message-ID"] != one["Message-ID"]


def test_what_a_list_says_is_quoted_and_can_do_nothing() -> None:
    """No line break reaches a header, no mention or link reaches Slack, and no text is endless."""
    nasty = event(meaning="<!channel> \r\nBcc: x@example.org", text=("<https://evil|click> " * 900,), sublist="a\r\nb")
    notice = alert.of_transition(Transition(Change.OPENED, nasty, NOW), None)
    assert notice is not None
    message = only(at_ripe(notice))
    mail = email_of(message, "engine@example.net", ["a@example.net"])
    assert mail["Bcc"] is None
    assert "\n" not in mail["Subject"]
    body = slack_body(message)
    texts = [body["text"], *(block["text"]["text"] for block in body["blocks"])]
    assert not [text for text in texts if "<!channel>" in text or "<https://evil" in text]
    assert max(map(len, texts)) <= 3000
    assert len(body["blocks"][0]["text"]["text"]) <= 150


def test_a_digest_comes_once_a_morning() -> None:
    """Due at its time, named after its day; an engine that starts in the evening waits for the next one."""
    habits = Habits(digest_min=14 * 60)
    assert alert.digest_key(habits, NOW) == "digest:2026-09-21"
    assert alert.digest_key(habits, NOW - HOUR) == ""
    assert alert.digest_key(habits, NOW + 7 * HOUR) == ""
    assert alert.digest_key(LOUD, NOW) == ""


def test_a_digest_tells_what_is_open_and_what_is_to_be_done() -> None:
    """The worst is in the title."""
    one = event()
    notice = digest("digest:x", [one], [], [(delist.needed(one, FORM, NOW), one)], NOW)
    message = only(compose([notice], [], frozenset(), Habits(least=Severity.CRITICAL), NOW))
    assert message.title == "Daily digest: 1 listing open, the worst critical"
    assert dict(message.parts) == {
        "Open now": "203.0.113.1 on zen/sbl, critical, for 5 min",
        "The last 24 hours": "203.0.113.1 listed on zen/sbl (critical) 2026-09-21 14:13 UTC",
        "Not checked": "Every list answered.",
        "To be done": "event 1, 203.0.113.1 on zen/sbl: Fix the cause, then fill in https://check.example/; then "
        "engine rbl delist start 1 --fixed TEXT.",
    }


# --- getting off a list


def request(status: Progress = Progress.NEEDED, **fields: object) -> Request:
    return replace(delist.needed(event(), FORM, NOW), id=1, status=status, **fields)  # type: ignore[arg-type]


def test_a_request_moves_along_its_way_only() -> None:
    """Nothing is refused that was not asked, and what is done stays done; each move says who and when."""
    asked = delist.move(request(), Progress.SUBMITTED, by="ann", text="port 25 of the guest net is shut", now=NOW)
    assert (asked.requested_at, asked.cooldown_until, asked.actor) == (NOW, NOW + 12 * HOUR, "ann")
    assert asked.notes[-1].text == "submitted: port 25 of the guest net is shut"
    for before, to in ((request(), Progress.REFUSED), (request(Progress.DONE), Progress.SUBMITTED)):
        with pytest.raises(DelistError, match="it can become"):
            delist.move(before, to, by="ann", text="x", now=NOW)


def test_a_list_is_not_asked_again_within_its_cool_down() -> None:
    """Asking twice makes it worse; afterwards it may be asked again."""
    asked = delist.move(request(), Progress.SUBMITTED, by="ann", text="x", now=NOW)
    refused = delist.move(asked, Progress.REFUSED, by="ann", text="", now=NOW + HOUR)
    with pytest.raises(DelistError, match="no second request before 2026-09-22 02:13 UTC, in 11 h"):
        delist.move(refused, Progress.SUBMITTED, by="ann", text="x", now=NOW + HOUR)
    delist.move(refused, Progress.SUBMITTED, by="ann", text="x", now=NOW + 12 * HOUR)


def test_nobody_asks_without_having_fixed_something() -> None:
    """Lists take the same listing up again when its cause comes back."""
    with pytest.raises(DelistError, match="what was fixed"):
        delist.move(request(), Progress.SUBMITTED, by="ann", text=" ", now=NOW)


@pytest.mark.parametrize(
    ("one", "in_time_s"),
    [
        (request(), 4 * HOUR),
        (request(Progress.SUBMITTED, requested_at=NOW), 3 * DAY),
        (request(Progress.SUBMITTED, requested_at=NOW, cooldown_until=NOW + 9 * DAY), 9 * DAY),
        (request(Progress.ACKNOWLEDGED), 7 * DAY),
        (request(method=Method.AUTO), 6 * DAY),
    ],
)
def test_a_request_is_overdue_after_its_time(one: Request, in_time_s: float) -> None:
    """Whoever has to act next has so long; a listing that outlives its expiry twice is being renewed."""
    assert delist.overdue(one, event(), NOW + in_time_s) == ""
    why = delist.overdue(one, event(), NOW + in_time_s + 1)
    assert why
    (told,) = at_ripe(alert.of_overdue(one, event(), why, NOW)).messages
    assert told.message.title == "Overdue: 203.0.113.1 is still on zen/sbl (critical)"


def test_instructions_are_complete() -> None:
    """Where, how, how often, until when, and a text to copy."""
    told = delist.instructions(
        event(), request(), Applicant("guest net shut", "ops@example.net", "probe.example.net"), NOW
    )
    for part in (
        FORM.url, FORM.steps, "none for 12 h", "usually forgets by 2026-09-24", "Reverse name: probe.example.net",
        "What was fixed: guest net shut", "Contact: ops@example.net", "engine rbl delist start 1",
    ):  # fmt: skip
        assert part in told
