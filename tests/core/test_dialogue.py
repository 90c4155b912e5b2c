from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.core.dialogue import (
    MAX_COMMAND,
    MAX_EXTENSIONS,
    MAX_RECIPIENTS,
    MOVES,
    Answered,
    Dialogue,
    Ended,
    Event,
    Misuse,
    Move,
    Ready,
    StartTls,
    State,
)
from engine.core.reasons import REASONS, Stage
from engine.core.reply import ProtocolError, Reply

TRANSCRIPTS = sorted((Path(__file__).parent / "transcripts").glob("*.txt"))
HELO, SENDER = "probe.example.net", "probe@example.net"


class Play:
    """Plays a transcript: `S:` and `C:` lines, `>` our calls, `=` what comes of it. C lines in a row are one write."""

    def __init__(self, path: Path, *, bytewise: bool) -> None:
        lines = [line for line in path.read_text("utf-8").splitlines() if line and not line.startswith("#")]
        tls = lines.pop(0).split()[1] if lines[0].startswith("tls ") else "opportunistic"
        self.dialogue = Dialogue(HELO, SENDER, tls=tls)
        self.bytewise = bytewise
        self.outcomes: list[str] = []
        self.lines = lines

    def run(self) -> Play:
        expected: list[str] = []
        for mark, block in self._blocks():
            match mark:
                case "S:":
                    self.hear("".join(f"{line}\r\n" for line in block).encode())
                case "C:":
                    assert self.dialogue.to_send().decode() == "".join(f"{line}\r\n" for line in block)
                case ">":
                    self._call(block)
                case "=":
                    expected += block
            assert expected[: len(self.outcomes)] == self.outcomes[: len(expected)]
        if self.dialogue.state is State.OVER:
            self.outcomes.append("over")
        assert self.outcomes == expected
        assert self.dialogue.to_send() == b""
        return self

    def hear(self, data: bytes) -> None:
        for chunk in [data[i : i + 1] for i in range(len(data))] if self.bytewise else [data]:
            try:
                self.dialogue.receive(chunk)
                while (event := self.dialogue.next_event()) is not None:
                    self.outcomes.append(shown(event))
            except ProtocolError as error:
                self.outcomes.append(f"error {error.detail}")
                return

    def _call(self, block: list[str]) -> None:
        for verb, *arguments in map(str.split, block):
            match verb:
                case "ask":
                    self.dialogue.ask(arguments)
                case "ask-utf8":
                    self.dialogue.ask(arguments, smtputf8=True)
                case "secured":
                    self.dialogue.secured()
                case "lost":
                    self.dialogue.lost()
                case "quit":
                    assert self.dialogue.quit()

    def _blocks(self) -> Iterator[tuple[str, list[str]]]:
        mark, block = "", []
        for line in self.lines:
            head, _, rest = line.partition(" ")
            if head != mark and block:
                yield mark, block
                block = []
            mark = head
            block.append(rest)
        yield mark, block


def shown(event: Event) -> str:
    def words(*parts: object) -> str:
        return " ".join(str(part) for part in parts if part)

    def codes(reply: Reply | None) -> str:
        return words(reply.code, reply.enhanced) if reply else ""

    match event:
        case Ready():
            return "ready"
        case StartTls():
            return f"starttls {event.discarded}"
        case Answered():
            return words("answered", event.recipient, event.stage, codes(event.reply))
        case Ended():
            return words("ended", event.stage, event.reason, codes(event.reply))


def opened(*extensions: str) -> Dialogue:
    """A dialogue at READY with a server that offers these."""
    dialogue = Dialogue(HELO, SENDER, tls="never")
    dialogue.receive(b"220 mx\r\n")
    assert dialogue.next_event() is None
    dialogue.to_send()
    dialogue.receive("".join(f"250-{word}\r\n" for word in ("mx", *extensions)).encode() + b"250 HELP\r\n")
    assert dialogue.next_event() == Ready()
    return dialogue


@pytest.mark.parametrize("path", TRANSCRIPTS, ids=lambda path: path.stem)
@pytest.mark.parametrize("bytewise", [False, True], ids=["whole", "bytewise"])
def test_a_transcript_ends_the_same_in_any_chunking(path: Path, bytewise: bool) -> None:
    """Each transcript gives its outcomes, whole and byte by byte."""
    Play(path, bytewise=bytewise).run()


@pytest.mark.parametrize("path", TRANSCRIPTS, ids=lambda path: path.stem)
def test_trailing_bytes_never_answer_anybody(path: Path) -> None:
    """What follows a finished transcript is unasked or unheard; it gives nobody a verdict."""
    play = Play(path, bytewise=False).run()
    if play.dialogue.state is State.HANDSHAKE:
        return
    seen = len(play.outcomes)
    play.hear(b"250 surplus\r\n")
    assert set(play.outcomes[seen:]) <= {"error unasked", *(o for o in play.outcomes[:seen] if o.startswith("error"))}


@pytest.mark.parametrize("injected", [b"250 forged\r\n", b"250-half a rep", b"x" * 9000])
def test_plaintext_before_the_handshake_is_discarded(injected: bytes) -> None:
    """Bytes in one segment with the 220 to STARTTLS are never read as replies of the encrypted session (RFC 3207)."""
    dialogue = Dialogue(HELO, SENDER, tls="require")
    dialogue.receive(b"220 mx\r\n")
    assert dialogue.next_event() is None
    dialogue.to_send()
    dialogue.receive(b"250-mx\r\n250-SMTPUTF8\r\n250 STARTTLS\r\n")
    assert dialogue.next_event() is None
    assert dialogue.to_send() == b"STARTTLS\r\n"
    dialogue.receive(b"220 go ahead\r\n" + injected)
    assert isinstance(event := dialogue.next_event(), StartTls)
    assert event.discarded >= len(injected.rstrip(b"\r\n"))
    assert dialogue.next_event() is None
    with pytest.raises(Misuse, match="handshake"):
        dialogue.receive(b"250 more\r\n")
    dialogue.secured()
    assert dialogue.next_event() is None
    assert not dialogue.smtputf8
    assert dialogue.to_send() == b"EHLO probe.example.net\r\n"


def test_a_reply_split_around_our_command_is_unasked() -> None:
    """A reply that began before its command left is no answer to it, even if it ends after."""
    dialogue = opened()
    dialogue.ask(["ann@example.com"])
    dialogue.to_send()
    dialogue.receive(b"250 ok\r\n55")
    assert dialogue.next_event() is None
    assert dialogue.to_send() == b"RCPT TO:<ann@example.com>\r\n"
    dialogue.receive(b"0 5.1.1 no such user\r\n")
    with pytest.raises(ProtocolError) as error:
        dialogue.next_event()
    assert error.value.detail == "unasked"


CONTROLS = [chr(c) for c in (*range(32), *range(127, 160))]
INJECTIONS = [
    "ann@example.com>\r\nRCPT TO:<bob@example.com",
    "ann@example.com\r\nDATA",
    "ann@example.com\nQUIT",
    "ann\x00@example.com",
    '"a\r\nb"@example.com',
    '"a\\\r\nb"@example.com',
    "ann@example.com> SIZE=1",
    "ann@example.com>,<bob@example.com",
    "a> NOTIFY=NEVER@example.com",
    "ann @example.com",
    "@relay.example:ann@example.com",
    "ann",
    "",
    "ann@",
    "@example.com",
    "ann@exam\udcffple.com",
]


@pytest.mark.parametrize("address", INJECTIONS)
@pytest.mark.parametrize("smtputf8", [False, True])
def test_nothing_but_one_address_reaches_a_command(address: str, smtputf8: bool) -> None:
    """Line ends, controls and whatever would end the path are refused before any byte is queued, as our own fault."""
    dialogue = opened("SMTPUTF8", "PIPELINING")
    with pytest.raises(Misuse):
        dialogue.ask(["good@example.com", address], smtputf8=smtputf8)
    assert dialogue.to_send() == b""
    assert dialogue.state is State.READY
    with pytest.raises(Misuse):
        Dialogue(HELO, address)


@pytest.mark.parametrize("control", CONTROLS, ids=lambda c: f"{ord(c):02x}")
def test_no_control_character_reaches_a_command(control: str) -> None:
    """C0, DEL and C1 are refused in recipient, sender and HELO name, wherever they stand."""
    dialogue = opened("SMTPUTF8")
    for address in (
        f"a{control}b@example.com",
        f'"a{control}b"@example.com',
        f"ab@exa{control}mple.com",
        f"a@b{control}",
    ):
        with pytest.raises(Misuse):
            dialogue.ask([address], smtputf8=True)
        with pytest.raises(Misuse):
            Dialogue(HELO, address)
    with pytest.raises(Misuse):
        Dialogue(f"probe{control}.example.net", SENDER)


@given(st.text(max_size=60))
def test_a_command_is_always_one_line(text: str) -> None:
    """Whatever a caller passes as a recipient, at most one RCPT line with that address leaves, or nothing at all."""
    dialogue = opened("SMTPUTF8", "PIPELINING")
    try:
        dialogue.ask([f"{text}@example.com"], smtputf8=True)
    except Misuse:
        assert dialogue.to_send() == b""
        return
    sent = dialogue.to_send()
    assert sent == f"MAIL FROM:<{SENDER}> SMTPUTF8\r\nRCPT TO:<{text}@example.com>\r\n".encode()
    assert len(sent.splitlines()) == len(sent.decode().splitlines()) == 2


def test_a_quoted_local_part_is_asked_as_it_stands() -> None:
    """Odd but legal addresses are no injections."""
    dialogue = opened()
    for address in ('"ann> x"@example.com', r'"a\"b"@example.com', "a!#$%&'*+/=?^_`{|}~-b@example.com"):
        dialogue.ask([address])
        dialogue.to_send()
        dialogue.receive(b"550 no\r\n")
        assert dialogue.next_event() == Answered(address, Stage.MAIL, Reply(550, "", ("no",)))
        assert dialogue.next_event() == Ready()


def test_addresses_beyond_ascii_need_smtputf8() -> None:
    """Without the extension, or without asking for it, a non-ASCII address is refused before any byte."""
    with pytest.raises(Misuse, match="SMTPUTF8"):
        opened().ask(["jürgen@example.com"], smtputf8=True)
    with pytest.raises(Misuse, match="smtputf8"):
        opened("SMTPUTF8").ask(["jürgen@example.com"])


def test_commands_and_transactions_have_a_size() -> None:
    """A command line has at most 512 octets, a transaction 1 to 100 recipients."""
    dialogue = opened()
    room = MAX_COMMAND - len("RCPT TO:<@example.com>\r\n")
    with pytest.raises(Misuse, match="too long"):
        dialogue.ask(["x" * (room + 1) + "@example.com"])
    for recipients in ([], ["a@example.com"] * (MAX_RECIPIENTS + 1)):
        with pytest.raises(Misuse, match="recipients"):
            dialogue.ask(recipients)
    dialogue.ask(["x" * room + "@example.com"] * MAX_RECIPIENTS)


def test_mail_from_is_never_empty_and_data_can_not_be_said() -> None:
    """There is no sender but a real one, and no call that would send a message."""
    for sender in ("", "<>", "@"):
        with pytest.raises(Misuse):
            Dialogue(HELO, sender)
    assert not [name for name in dir(Dialogue) if "data" in name.lower() or "bdat" in name.lower()]


def test_the_next_transaction_waits_for_the_one_before() -> None:
    """Asking out of turn is misuse and changes nothing."""
    dialogue = opened()
    dialogue.ask(["ann@example.com"])
    sent = dialogue.to_send()
    with pytest.raises(Misuse, match="no move"):
        dialogue.ask(["bob@example.com"])
    assert (sent, dialogue.to_send()) == (b"MAIL FROM:<probe@example.net>\r\n", b"")
    with pytest.raises(Misuse):
        dialogue.secured()
    with pytest.raises(Misuse):
        Dialogue(HELO, SENDER).ask(["ann@example.com"])
    with pytest.raises(Misuse, match="TLS policy"):
        Dialogue(HELO, SENDER, tls="always")


def test_quit_can_not_be_said_where_it_would_break_the_protocol() -> None:
    """Before the greeting the server speaks first; in STARTTLS comes the handshake; an error is the end."""
    dialogue = Dialogue(HELO, SENDER)
    assert not dialogue.quit()
    dialogue.receive(b"garbage\r\n")
    with pytest.raises(ProtocolError):
        dialogue.next_event()
    assert not dialogue.quit()
    assert dialogue.to_send() == b""


def test_a_protocol_error_is_final() -> None:
    """After it every call says so again, and nothing is sent or heard."""
    dialogue = opened()
    dialogue.receive(b"hm\r\n250 ok\r\n")
    for _ in range(2):
        with pytest.raises(ProtocolError):
            dialogue.next_event()
    with pytest.raises(Misuse):
        dialogue.ask(["ann@example.com"])
    assert dialogue.state is State.ERROR
    assert dialogue.to_send() == b""


def test_a_server_can_not_offer_without_end() -> None:
    """Extensions are counted, and lines that are none are passed over."""
    dialogue = opened("PIPELINING", "AUTH=LOGIN PLAIN", "size 10", "**** VERBOSE", *(f"X{i}" for i in range(90)))
    assert len(dialogue.extensions) < MAX_EXTENSIONS
    assert dialogue.pipelining
    assert dialogue.extensions["SIZE"] == "10"


def test_the_table_is_whole() -> None:
    """Every state is reached by a row, only OVER and ERROR are left by none but the line's end, and reasons exist."""
    assert set(MOVES.values()) | {State.GREETING} == set(State)
    for end in (State.OVER, State.ERROR):
        assert {move for state, move in MOVES if state is end} == {Move.GARBAGE, Move.LOST}
    assert {"tls_required", "tls_handshake_failed"} <= set(REASONS)
    assert repr(opened()) == "<Dialogue ready, 2 replies, 0 recipients unanswered>"


LINES = st.sampled_from(
    [
        b"220 mx\r\n",
        b"250 ok\r\n",
        b"250-mx\r\n250-PIPELINING\r\n250 STARTTLS\r\n",
        b"250-mx\r\n250 PIPELINING\r\n",
        b"354 go\r\n",
        b"421 4.3.2 bye\r\n",
        b"450 4.2.0 later\r\n",
        b"500 what\r\n",
        b"550 5.1.1 no\r\n",
        b"221 bye\r\n",
        b"25",
        b"\xff\r\n",
    ]
)
CALLS = st.sampled_from(["send", "ask", "secured", "quit", "lost"])


@given(st.lists(st.one_of(LINES, CALLS, CALLS, st.binary(max_size=20)), max_size=40))
@settings(max_examples=300)
def test_any_peer_and_any_caller_meet_only_the_known_errors(script: list[bytes | str]) -> None:
    """Bytes and calls in any order give events, ProtocolError or Misuse; a recipient is answered once at most."""
    dialogue = Dialogue(HELO, SENDER)
    asked = answered = 0
    for step in script:
        try:
            match step:
                case bytes():
                    dialogue.receive(step)
                case "ask":
                    dialogue.ask(["ann@example.com", "bob@example.com"])
                    asked += 2
                case "send":
                    assert b"DATA" not in dialogue.to_send()
                case _:
                    getattr(dialogue, step)()
            while (event := dialogue.next_event()) is not None:
                answered += isinstance(event, Answered)
        except (ProtocolError, Misuse):
            pass
        assert answered <= asked
