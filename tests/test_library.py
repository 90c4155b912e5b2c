"""Laws of the library: what the page says is so, rules hold as on the command line, and nothing is left behind."""

from __future__ import annotations

import ast
import asyncio
import doctest
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import engine
from engine import Consent, Held, Identity, PolicySet, Suppression, WrongUse, load_policies, verify
from engine.core.identity import Limits, Status
from engine.flow.run import Run
from engine.lab.process import LabProcess
from engine.lab.spec import SHIPPED
from engine.store.lock import IdentityLock

PAGE = Path(__file__).parents[1] / "docs" / "library.md"
BLOCKS = re.findall(r"^```python\n(.*?)^```$.*?^```text\n(.*?)^```$", PAGE.read_text("utf-8"), re.M | re.S)
PATCHED = "from gevent import monkey; monkey.patch_all()\n"

LAB = Identity(
    name="lab", helo_name="probe.lab", mail_from="probe@probe.lab", public_v4="127.0.0.1", limits=Limits(None, None)
)
LEAVE = Consent("TICKET-7", "A. Owner", datetime(2026, 1, 1, tzinfo=UTC))


@pytest.fixture(scope="module")
def running() -> Iterator[LabProcess]:
    with LabProcess() as lab:
        yield lab


@pytest.fixture
def lab(running: LabProcess) -> LabProcess:
    running.reset()
    return running


@pytest.fixture(scope="module")
def policies() -> PolicySet:
    return load_policies([SHIPPED.parent / "policies"])


@pytest.fixture
def ask(lab: LabProcess, policies: PolicySet, tmp_path: Path) -> partial[Any]:
    """`verify` in enhanced mode against the lab, with a state of its own."""
    return partial(
        verify, mode="enhanced", identity=LAB, consent=LEAVE, policies=policies, dns=[lab.dns],
        smtp_port=lab.smtp_port, allow_private=True, state=tmp_path / "state" / "state.db",
    )  # fmt: skip


@pytest.fixture
def offline(policies: PolicySet, tmp_path: Path) -> partial[Any]:
    """`verify` without a connection, for addresses that end before DNS is asked."""
    return partial(verify, mode="standard", connect=False, policies=policies, state=tmp_path / "state.db")


# What the page says


@pytest.mark.parametrize("first", ["", PATCHED], ids=["unpatched", "patched"])
@pytest.mark.parametrize("number", range(3))
def test_the_programs_of_the_page_print_what_the_page_says(number: int, first: str, tmp_path: Path) -> None:
    """Each program of docs/library.md runs as it stands, in a plain process and in one that gevent has patched."""
    program, printed = BLOCKS[number]
    environ = {**os.environ, "ENGINE_STATE": str(tmp_path / "state.db"), "TMPDIR": str(tmp_path)}
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", first + program],
        check=False, capture_output=True, text=True, cwd=tmp_path, env=environ, timeout=60,
    )  # fmt: skip
    assert (run.stdout, run.stderr, run.returncode) == (printed, "", 0)


def test_the_page_has_no_program_without_its_output() -> None:
    """So that no example goes untested."""
    assert PAGE.read_text("utf-8").count("```python") == len(BLOCKS) == 3


def test_the_small_examples_of_the_page_hold() -> None:
    """What the page shows of parse, flags and classify is what they answer."""
    told = doctest.testfile(str(PAGE), module_relative=False, encoding="utf-8")
    assert told.attempted > 5
    assert told.failed == 0


# The public names


def test_every_public_name_is_there_and_is_listed_once() -> None:
    """`__all__`, what type checkers see, and what is loaded on first use name the same things in the same modules."""
    tree = ast.parse(Path(engine.__file__).read_text("utf-8"))
    seen = {
        (node.module, alias.asname or alias.name)
        for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module != "importlib"
        for alias in node.names
    }  # fmt: skip
    lazy = {(module, name) for module, names in engine._HOMES.items() for name in names}
    assert seen == {*lazy, ("engine.version", "__version__")}
    assert sorted(engine.__all__) == sorted(name for _, name in seen)
    assert set(engine.__all__) <= set(dir(engine))
    for name in engine.__all__:
        assert getattr(engine, name) is not None


def test_an_unknown_name_is_an_attribute_error() -> None:
    """As with any module: `hasattr` and `from engine import nonsense` behave."""
    assert not hasattr(engine, "nonsense")


# Results


def test_there_is_one_result_for_each_address_in_the_order_given(ask: partial[Any]) -> None:
    """Duplicates and what is no address included; the first say what the others say."""
    given = ["adda@normal.lab", "nobody", "ada@normal.lab", "", "ada@normal.lab", "a\nb@normal.lab", "ADA@Normal.LAB"]
    found = list(ask(given))
    assert [result.address for result in found] == given
    assert [result.reason for result in found] == [
        "mailbox_not_found", "syntax_invalid", "rcpt_ok", "syntax_invalid", "rcpt_ok", "syntax_invalid", "rcpt_ok",
    ]  # fmt: skip
    assert found[2].category == "valid"
    assert found[2].smtp_code == 250
    assert found[2].source_ip == "127.0.0.1"


@pytest.mark.parametrize("number", [0, 1, 2000, 2001])
def test_lists_of_any_length_pass_through(offline: partial[Any], number: int) -> None:
    """None of them, one, a chunk exactly, and one more; an iterator will do."""
    given = [f"a{each}@example.invalid" for each in range(number)]
    assert [result.address for result in offline(iter(given))] == given


def test_half_a_character_spoils_its_own_row_only(offline: partial[Any]) -> None:
    """A lone surrogate can't be stored; it is a syntax error like others."""
    found = list(offline(["a\ud800@example.org", "ada@example.invalid"]))
    assert [result.reason for result in found] == ["syntax_invalid", "domain_reserved"]
    assert found[0].detail == "undecodable"


def test_one_attempt_takes_later_for_an_answer(ask: partial[Any]) -> None:
    """A greylisted address is asked once; without `one_attempt` the ladder is followed to its end."""
    (once,) = ask(["ada@greylisting.lab"], one_attempt=True)
    assert (once.reason, once.attempts) == ("greylisted", 1)
    (again,) = ask(["ada@greylisting.lab"])
    assert again.reason == "rcpt_ok"


def test_suppressed_addresses_are_never_asked_about(ask: partial[Any], lab: LabProcess) -> None:
    """Nothing is sent to anybody for them."""
    before = lab.stats().get("connect", 0)
    keep_off = Suppression(addresses=frozenset({"ada@normal.lab"}), domains=frozenset({"catch-all.lab"}))
    found = list(ask(["ada@normal.lab", "ada@catch-all.lab"], suppression=keep_off))
    assert {result.reason for result in found} == {"suppressed_local"}
    assert lab.stats().get("connect", 0) == before


def test_what_one_call_learnt_binds_the_next(ask: partial[Any], lab: LabProcess) -> None:
    """The second call asks the address and no control: the first has settled that the domain refuses unknown ones."""
    assert next(ask(["ada@normal.lab"])).reason == "rcpt_ok"
    before = _recipients(lab)
    assert next(ask(["grace@normal.lab"])).answered
    assert _recipients(lab)[len(before) :] == ["grace@normal.lab"]


def _recipients(lab: LabProcess) -> list[str]:
    said = (row["text"] for row in lab.log() if row["event"] == "command")
    return [found[1] for each in said if (found := re.match(r"RCPT TO:<(.*?)>", each, re.I))]


# Rules


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"consent": None}, "consent=Consent"),
        ({"consent": Consent(" ", "A. Owner", LEAVE.granted_at)}, "reference"),
        ({"consent": Consent("T", "A", LEAVE.granted_at, expires=datetime(2026, 2, 1, tzinfo=UTC))}, "expired"),
        ({"consent": Consent("T", "A", datetime.now(UTC) + timedelta(days=1))}, "future"),
        ({"consent": Consent("T", "A", datetime(2026, 1, 1))}, "zone"),  # noqa: DTZ001 - that is the mistake
        ({"identity": None}, "identity=Identity"),
        ({"identity": Identity("me", "", "probe@probe.lab", "127.0.0.1")}, "helo_name"),
        ({"identity": Identity("me", "probe.lab", "probe@probe.lab")}, "public_v4"),
        ({"identity": Identity("me", "probe.lab", "", "127.0.0.1")}, "no mail address"),
        ({"identity": Identity("me", "probe.lab", "a@b.lab", "127.0.0.1", status=Status.DRAINING)}, "draining"),
        ({"mode": "thorough"}, "thorough"),
        ({"resume": True}, "journal"),
    ],
)
def test_wrong_use_is_told_at_the_call(ask: partial[Any], wrong: dict[str, Any], says: str, tmp_path: Path) -> None:
    """Before the first result is wanted, the addresses are read, or a file is made."""
    with pytest.raises(WrongUse, match=says):
        ask(iter_that_must_not_be_read(), **wrong)
    assert list(tmp_path.iterdir()) == []


def iter_that_must_not_be_read() -> Iterator[str]:
    raise AssertionError("the addresses were read")
    yield


def test_one_text_is_not_a_list_of_addresses(offline: partial[Any]) -> None:
    """`verify("ada@example.org")` would ask about sixteen letters."""
    with pytest.raises(TypeError, match=r"\['ada@example.org'\]"):
        offline("ada@example.org")


def test_an_identity_that_is_not_fit_asks_nobody(ask: partial[Any], lab: LabProcess) -> None:
    """A HELO name that doesn't exist is found before a mail server is dialled."""
    before = lab.stats().get("connect", 0)
    stranger = Identity("me", "no-such-name.lab", "probe@probe.lab", "127.0.0.1")
    with pytest.raises(WrongUse, match="no-such-name"):
        next(ask(["ada@normal.lab"], identity=stranger))
    assert lab.stats().get("connect", 0) == before


def test_an_identity_asks_for_one_call_at_a_time(ask: partial[Any], tmp_path: Path) -> None:
    """A second call is told who holds it, and works when the first is done."""
    state = tmp_path / "state" / "state.db"
    state.parent.mkdir()
    with IdentityLock(state.parent, LAB.key, job="another", since=0.0), pytest.raises(Held, match="another"):
        next(ask(["ada@normal.lab"]))
    assert next(ask(["ada@normal.lab"])).reason == "rcpt_ok"


# What is left behind


def test_nothing_is_left_of_a_job_without_a_journal(
    offline: partial[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither when it was read to its end, nor when its reader broke off, nor when nobody read it."""
    scratch = tmp_path / "tmp"
    scratch.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(scratch))
    given = ["ada@example.invalid", "grace@example.invalid"]
    assert len(list(offline(given))) == 2
    for _ in offline(given):
        break
    offline(given)
    assert list(scratch.iterdir()) == []


def test_a_named_journal_keeps_the_job_and_its_audit(ask: partial[Any], tmp_path: Path) -> None:
    """`engine audit verify` finds it whole, and the consent reference is in each row of a question."""
    journal = tmp_path / "job.journal"
    assert next(ask(["ada@normal.lab"], journal=journal)).reason == "rcpt_ok"
    environ = {**os.environ, "ENGINE_STATE": str(tmp_path / "state" / "state.db")}

    def audit(command: str) -> str:
        words = [sys.executable, "-m", "engine", "audit", command, str(journal)]
        return subprocess.run(words, check=True, capture_output=True, text=True, env=environ, timeout=30).stdout

    audit("verify")
    rows = [json.loads(line) for line in audit("export").splitlines()]
    assert {row["consent"] for row in rows if row["kind"] == "rcpt"} == {"TICKET-7"}


def test_a_job_that_was_interrupted_goes_on(ask: partial[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same call with `resume` finishes it; other addresses are refused, and so is a call without `resume`."""

    def interrupted(_: Run) -> bool:
        raise KeyboardInterrupt

    given = ["ada@normal.lab", "adda@normal.lab"]
    journal = tmp_path / "job.journal"
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Run, "probe", interrupted)
        next(ask(given, journal=journal))
    with pytest.raises(WrongUse, match="resume"):
        next(ask(given, journal=journal))
    with pytest.raises(WrongUse, match="list"):
        next(ask(given[:1], journal=journal, resume=True))
    assert [result.reason for result in ask(given, journal=journal, resume=True)] == ["rcpt_ok", "mailbox_not_found"]


def test_it_runs_in_a_thread_beside_an_event_loop(ask: partial[Any]) -> None:
    """The page's advice for asyncio holds when mail servers are asked, too: the loop goes on meanwhile."""
    ticks = 0

    async def main() -> list[Any]:
        nonlocal ticks
        work = asyncio.create_task(asyncio.to_thread(list, ask(["ada@tarpit.lab", "adda@tarpit.lab"])))
        while not work.done():
            await asyncio.sleep(0.001)
            ticks += 1
        return work.result()

    assert [result.reason for result in asyncio.run(main())] == ["rcpt_ok", "mailbox_not_found"]
    assert ticks > 20
