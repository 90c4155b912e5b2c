from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.core.reply import MAX_LINE, MAX_LINES, MAX_REPLY, MAX_UNREAD, ProtocolError, Reply, ReplyParser, printable

CASES = [
    (b"220 mx.example.com ESMTP\r\n", [Reply(220, "", ("mx.example.com ESMTP",))]),
    (b"250\r\n", [Reply(250, "", ("",))]),
    (b"250 \r\n", [Reply(250, "", ("",))]),
    (b"250 ok\n", [Reply(250, "", ("ok",))]),
    (b"250 ok\r\r\n", [Reply(250, "", ("ok",))]),
    (b"250-mx\r\n250-SIZE 1\r\n250 HELP\r\n", [Reply(250, "", ("mx", "SIZE 1", "HELP"))]),
    (b"250 a\r\n550 5.1.1 b\r\n", [Reply(250, "", ("a",)), Reply(550, "5.1.1", ("5.1.1 b",))]),
    (b"550-5.1.1 no\r\n550 5.1.1 user\r\n", [Reply(550, "5.1.1", ("5.1.1 no", "5.1.1 user"))]),
    (b"550-no such\r\n550 5.1.1 user\r\n", [Reply(550, "5.1.1", ("no such", "5.1.1 user"))]),
    (b"550-first\r\n554 last decides\r\n", [Reply(554, "", ("first", "last decides"))]),
    (b"452 4.5.3\r\n", [Reply(452, "4.5.3", ("4.5.3",))]),
    (b"599 odd\r\n", [Reply(599, "", ("odd",))]),
    ("550 ungültig\r\n".encode(), [Reply(550, "", ("ungültig",))]),
    ("550 ungültig\r\n".encode("latin-1"), [Reply(550, "", ("ung\ufffdltig",))]),
    (b"250-mx\r\n250-\r\n250 \r\n", [Reply(250, "", ("mx", "", ""))]),
]

GARBAGE = [
    (b"\r\n", "not_a_reply"),
    (b"HTTP/1.1 400 Bad Request\r\n", "not_a_reply"),
    (b"150 soon\r\n", "not_a_reply"),
    (b"600 later\r\n", "not_a_reply"),
    (b"25 ok\r\n", "not_a_reply"),
    (b"2500 ok\r\n", "not_a_reply"),
    (b"250_ok\r\n", "not_a_reply"),
    ("٢٥٠ ok\r\n".encode(), "not_a_reply"),
    (b"250-a\r\n\r\n", "not_a_reply"),
    (b"250-accepted\r\n550 refused\r\n", "mixed_codes"),
    (b"550-refused\r\n450 for now\r\n", "mixed_codes"),
    (b"x" * (MAX_LINE + 1), "line_too_long"),
    (b"250 " + b"x" * MAX_LINE + b"\r\n", "line_too_long"),
    (b"250-x\r\n" * (MAX_LINES + 1), "too_many_lines"),
    ((b"250-" + b"x" * 4096 + b"\r\n") * 9, "reply_too_long"),
]


def read(chunks: list[bytes]) -> tuple[list[Reply], str]:
    """What a peer's chunks come to: the replies, and the detail of the error that ended them, or nothing."""
    parser = ReplyParser()
    replies: list[Reply] = []
    try:
        for chunk in chunks:
            parser.feed(chunk)
            while (reply := parser.next()) is not None:
                replies.append(reply)
    except ProtocolError as error:
        return replies, error.detail
    return replies, ""


def bytewise(data: bytes) -> list[bytes]:
    return [data[i : i + 1] for i in range(len(data))]


@pytest.mark.parametrize(("data", "replies"), CASES)
def test_replies_are_the_same_in_any_chunking(data: bytes, replies: list[Reply]) -> None:
    """Whole, byte by byte and with trailing bytes, the same replies come out."""
    assert read([data]) == (replies, "")
    assert read(bytewise(data)) == (replies, "")
    assert read([data + b"250-unfin"]) == (replies, "")
    assert read([data + b"250 next\r\n"]) == ([*replies, Reply(250, "", ("next",))], "")


@pytest.mark.parametrize(("data", "detail"), GARBAGE)
def test_garbage_is_a_protocol_error_in_any_chunking(data: bytes, detail: str) -> None:
    """What is no reply ends in the same error, after the same replies, however it is cut."""
    before = Reply(220, "", ("mx",))
    assert read([b"220 mx\r\n" + data]) == ([before], detail)
    assert read([b"220 mx\r\n", *bytewise(data)]) == ([before], detail)


def test_a_protocol_error_is_final() -> None:
    """After garbage no reply is ever found again, even where one follows."""
    parser = ReplyParser()
    parser.feed(b"hello\r\n250 ok\r\n")
    for _ in range(2):
        with pytest.raises(ProtocolError):
            parser.next()
    parser.feed(b"250 ok\r\n")
    with pytest.raises(ProtocolError):
        parser.next()


@pytest.mark.parametrize(
    ("line", "enhanced", "text"),
    [
        ("5.1.1 no such user", "5.1.1", "no such user"),
        ("5.1.1: no such user", "5.1.1", "no such user"),
        ("#5.1.0 Address rejected.", "5.1.0", "Address rejected."),
        ("5.7.133 not allowed", "5.7.133", "not allowed"),
        ("4.2.2", "4.2.2", ""),
        ("5.1.1.9 is listed", "", "5.1.1.9 is listed"),
        ("5.1.1000 x", "", "5.1.1000 x"),
        ("5.1.1x", "", "5.1.1x"),
        ("3.1.1 no such class", "", "3.1.1 no such class"),
        ("user 5.1.1 unknown", "", "user 5.1.1 unknown"),
        ("192.5.7.8 is listed", "", "192.5.7.8 is listed"),
        ("<a@example.com>... 5.1.1 unknown", "", "<a@example.com>... 5.1.1 unknown"),
    ],
)
def test_an_enhanced_code_counts_only_right_after_the_code(line: str, enhanced: str, text: str) -> None:
    """Numbers elsewhere are addresses, sizes or quotations."""
    ((reply,), _) = read([f"550 {line}\r\n".encode()])
    assert (reply.enhanced, reply.text) == (enhanced, text)


def test_the_text_is_unfolded_without_the_enhanced_code_of_each_line() -> None:
    """A provider wraps where it likes; rules see one line."""
    data = b"550-5.1.1 The account that you tried to reach does not exist. Please try\r\n550 5.1.1 checking it.\r\n"
    ((reply,), _) = read([data])
    assert reply.text == "The account that you tried to reach does not exist. Please try checking it."
    assert str(reply) == f"550 5.1.1 {reply.text}"


def test_another_enhanced_code_in_a_later_line_stays_in_the_text() -> None:
    """A gateway that quotes another server's verdict is not cut short."""
    ((reply,), _) = read([b"550-5.7.1 relayed:\r\n550 5.1.1 unknown\r\n"])
    assert (reply.enhanced, reply.text) == ("5.7.1", "relayed: 5.1.1 unknown")


def test_no_control_character_leaves_the_parser() -> None:
    """A reply can't drive a terminal, break a log line or turn the direction of text."""
    ((reply,), _) = read(["550 a\x00b\x1b[31m\tc\rd\x7f\x85e\u202ef g\r\n".encode()])
    assert reply.lines == ("ab[31m c d ef g",)


@given(st.text())
def test_printable_text_has_no_line_ends_and_no_controls(text: str) -> None:
    """Whatever goes in, one line without C0, DEL or C1 comes out; printing it twice changes nothing."""
    clean = printable(text)
    assert len(clean.splitlines()) <= 1
    assert not any(ord(c) < 32 or 127 <= ord(c) < 160 for c in clean)
    assert printable(clean) == clean


SMTPISH = st.lists(
    st.one_of(
        st.binary(max_size=40),
        st.sampled_from([b"250 ok\r\n", b"250-", b"550 5.1.1 x\n", b"\r\n", b"\r", b"\n", b"421", b" ", b"-"]),
    ),
    max_size=30,
).map(b"".join)


@given(SMTPISH, st.lists(st.integers(1, 60), min_size=1, max_size=20))
@settings(max_examples=300)
def test_any_bytes_give_replies_more_or_a_protocol_error(data: bytes, cuts: list[int]) -> None:
    """Never another exception, and never an outcome that depends on how the network cut the bytes."""
    chunks, at = [], 0
    for size in itertools.cycle(cuts):
        if at >= len(data):
            break
        chunks.append(data[at : at + size])
        at += size
    replies, detail = read(chunks)
    assert (replies, detail) == read([data])
    assert all(200 <= reply.code <= 599 for reply in replies)


@pytest.mark.parametrize("chunk", [b"x", b"x" * 1000, b"250-y\r\n", b"250-" + b"y" * 500 + b"\r\n"])
def test_an_endless_peer_fills_no_memory(chunk: bytes) -> None:
    """A peer that never ends a line, or a reply, is cut off at a limit that is known."""
    parser = ReplyParser()
    held = 0
    with pytest.raises(ProtocolError):
        for _ in range(10 * MAX_REPLY):
            parser.feed(chunk)
            assert parser.next() is None
            held = max(held, parser.unread)
    assert held <= MAX_LINE + MAX_REPLY + len(chunk)
    assert parser.unread == 0


def test_bytes_that_nobody_reads_are_limited_too() -> None:
    """Feeding without reading ends in an error as well, not in a full memory."""
    parser = ReplyParser()
    with pytest.raises(ProtocolError, match="unread"):
        for _ in range(MAX_UNREAD):
            parser.feed(b"250 ok\r\n")
