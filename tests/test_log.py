"""The log: lines that machines read off a terminal, that never hold up the process, and never name a mailbox."""

from __future__ import annotations

import io
import json
import os
import pty
from collections.abc import Iterator
from typing import Any

import pytest
import structlog
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.log import LONGEST_LINE, log, masked

LOCAL = st.text("abcXYZ019.!#$%&'+/=?^_`{|}~-éж", min_size=1, max_size=64)


@pytest.fixture(autouse=True)
def _closed_again() -> Iterator[None]:
    """The log is the process's; a test leaves nothing behind."""
    yield
    log.close()


@pytest.fixture
def lines() -> Any:
    """What was logged as JSON, line by line."""
    stream = io.StringIO()
    log.open(stream, as_json=True)
    return lambda: [json.loads(line) for line in stream.getvalue().splitlines()]


@pytest.fixture
def pipe() -> Iterator[tuple[int, io.TextIOWrapper]]:
    """(reading end, writing end) of a pipe, as a log collector holds one."""
    reading, writing = os.pipe()
    with os.fdopen(writing, "w") as stream:
        yield reading, stream
    os.close(reading)


def test_until_it_is_opened_it_goes_nowhere(capfd: pytest.CaptureFixture[str]) -> None:
    """A program that uses the library finds nothing of ours in its streams, and its own structlog as it was."""
    before = structlog.get_config()
    log.warning("breaker_moved", to="open")
    assert capfd.readouterr() == ("", "")
    log.open(io.StringIO())
    log.warning("breaker_moved", to="open")
    assert not structlog.is_configured()
    assert structlog.get_config() == before


def test_off_a_terminal_a_line_is_one_json_object(lines: Any) -> None:
    """Time, level and event come first, then the facts as fields, whatever they hold."""
    log.info("breaker_moved", provider="gmail", to="open", after_s=1.5, cause="two\nlines", n=None)
    (line,) = lines()
    assert list(line)[:3] == ["timestamp", "level", "event"]
    assert line["timestamp"].endswith("Z")
    assert {key: line[key] for key in ("level", "event", "provider", "to", "after_s", "cause", "n")} == {
        "level": "info", "event": "breaker_moved", "provider": "gmail", "to": "open", "after_s": 1.5,
        "cause": "two\nlines", "n": None,
    }  # fmt: skip


def test_on_a_terminal_a_line_is_for_people() -> None:
    """No JSON, and the facts as key=value."""
    ours, theirs = pty.openpty()
    with os.fdopen(theirs, "w") as terminal:
        log.open(terminal)
        log.warning("provider_paused", provider="gmail")
        shown = os.read(ours, 4096).decode()
    os.close(ours)
    assert "provider_paused" in shown
    assert "gmail" in shown
    assert "{" not in shown


def test_what_is_below_the_level_is_not_written() -> None:
    """Debug lines cost nothing unless they are asked for."""
    stream = io.StringIO()
    log.open(stream, level="warning", as_json=True)
    log.info("asked")
    log.error("failed")
    assert [json.loads(line)["event"] for line in stream.getvalue().splitlines()] == ["failed"]


@pytest.mark.parametrize(
    ("text", "logged"),
    [
        ("RCPT TO:<ann@example.org> refused", "RCPT TO:<***@example.org> refused"),
        ("ann@example.org,bob@example.net", "***@example.org,***@example.net"),
        ('"john doe"@example.org', "***@example.org"),
        (r'to "a\"b c"@example.org', "to ***@example.org"),
        ("mailto:ann+tag@example.org", "mailto:***@example.org"),
        ("o'brien@example.org", "***@example.org"),
        ("b'ann@example.org'", "***@example.org'"),
        ("жаня@пример.рф", "***@пример.рф"),
        ("ann@[192.0.2.1]", "***@[192.0.2.1]"),
        ("no address here", "no address here"),
        ("@", "***@"),
    ],
)
def test_addresses_lose_their_local_part(text: str, logged: str) -> None:
    """What stands around an address stays readable, whatever form the address has."""
    assert masked(text) == logged


@settings(max_examples=200, deadline=None)
@given(local=LOCAL, before=st.sampled_from(["", "<", "TO:<", "a, ", "(", "x@y.org "]), nested=st.booleans())
def test_no_local_part_is_ever_written(local: str, before: str, nested: bool) -> None:
    """In the event, a field, a list, a mapping, an exception or an object: the log holds no mailbox."""
    address = f"{before}{local}@example.org"
    stream = io.StringIO()
    log.open(stream, as_json=True)
    log.info(address, field=address, local=local, many=[{address: address}] if nested else (address,), raw={address})
    try:
        int(address)
    except ValueError as error:
        log.exception("failed", error=error)
    for line in map(json.loads, stream.getvalue().splitlines()):
        values = json.dumps(line, ensure_ascii=False)
        assert "***@example.org" in values
        assert values.count("@") == values.count("***@")
        assert line.get("local", "***") == "***"


def test_a_value_is_cut_behind_its_addresses(lines: Any) -> None:
    """No cut leaves the half of a local part without the @ that would have masked it."""
    for length in range(1000, 1030):
        log.info("refused", text="x" * length + " anneliese@example.org " + "y" * 5000)
    assert all("ann" not in line["text"] for line in lines())


def test_a_reader_that_stopped_reading_holds_up_nothing(pipe: tuple[int, io.TextIOWrapper]) -> None:
    """A full pipe costs lines, never time; the next line that gets out says how many."""
    reading, stream = pipe
    log.open(stream, as_json=True)
    for number in range(3000):  # 64 KiB is what a pipe holds: a log that waits would hang here for good
        log.info("line", number=number)
    held = os.read(reading, 1 << 20).splitlines()
    numbers = [json.loads(line)["number"] for line in held]
    assert numbers == list(range(len(numbers)))
    log.info("after")
    told = json.loads(os.read(reading, 1 << 16).splitlines()[-1])
    assert (told["event"], told["lines_lost"]) == ("after", 3000 - len(numbers))
    log.info("again")
    assert "lines_lost" not in json.loads(os.read(reading, 1 << 16))


def test_a_line_is_never_longer_than_a_pipe_takes_whole(pipe: tuple[int, io.TextIOWrapper]) -> None:
    """Huge values are cut, and a line that is still too long keeps what matters and stays JSON."""
    reading, stream = pipe
    log.open(stream, as_json=True)
    log.info("huge", **{f"field{number}": "ж" * 5000 for number in range(9)})
    line = os.read(reading, 1 << 20)
    assert len(line) <= LONGEST_LINE
    assert (json.loads(line)["event"], "cut" in json.loads(line)) == ("huge", True)


def test_a_reader_that_is_gone_ends_nothing() -> None:
    """A closed pipe or stream loses the log, not the run."""
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as stream:
        log.open(stream, as_json=True)
        log.info("nobody reads")
    log.info("nor here")
