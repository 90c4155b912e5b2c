"""`engine check`: a few addresses now, with everything that was said."""

from __future__ import annotations

import dataclasses
import getpass
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from engine.cli.options import Asking, asking, asking_options
from engine.cli.tables import gap
from engine.core.address import Address, parse
from engine.core.identity import Identity, Mode
from engine.core.policy import PolicySet
from engine.core.reasons import REASONS
from engine.core.result import Result
from engine.flow.intake import Intake
from engine.flow.job import Suppression, WrongUse
from engine.flow.orders import MAX_CHECKED, order_check
from engine.flow.preflight import Listed
from engine.flow.verification import Held, Request, Verification
from engine.reputation.listed import asks
from engine.store.state import State
from engine.store.writer import Writer


@click.command(short_help="Check a few addresses now.")
@click.argument("addresses", metavar="ADDRESS...", nargs=-1)
@click.option("--mode", default="", metavar="MODE", help="standard (to EHLO) or enhanced (RCPT; needs consent).")
@click.option(
    "--transcript",
    is_flag=True,
    help="Show the dialogue, with the seconds since each connection began: C we, S the server.",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line, with all columns.")
@click.option("--wait", is_flag=True, help="Follow the ladder (greylisting) instead of asking once.")
@asking_options
def check(addresses: tuple[str, ...], mode: str, transcript: bool, as_json: bool, wait: bool, **flags: Any) -> None:
    """Check up to 10 addresses, one attempt each, and say what was found and what a run would do next.

    Without an identity it ends at the mail hosts; with one it connects and goes up to EHLO; with --mode enhanced
    and a consent record it asks RCPT. Where an engine is at work under the same identity, that one asks.

    \b
    Examples:
      engine check ada@example.org
      engine check ada@example.org --mode enhanced --consent TICKET-7 --consent-by "A. Owner" --transcript
    """
    if not addresses:
        raise WrongUse("ADDRESS is missing: name up to 10 addresses.")
    if len(addresses) > MAX_CHECKED:
        raise WrongUse(f"{len(addresses)} addresses are more than {MAX_CHECKED}; `engine verify` takes a list.")
    try:
        chosen = Mode(mode) if mode else Mode.STANDARD
    except ValueError:
        raise WrongUse(f"--mode {mode}: there is no such mode; give standard or enhanced.") from None
    with asking(chosen, flags) as who:
        if not who.identities and mode:
            raise WrongUse(
                "A mode that connects needs an identity: give --identity FILE, or --helo NAME --mail-from ADDR "
                "--public-ip IP, or run `engine identity init` once."
            )
        results = _results(addresses, chosen, who, transcript=transcript and not as_json, wait=wait)
        for result in results:
            print(json.dumps(result, ensure_ascii=False) if as_json else "\n".join(_lines(result, who.policies)))
        if not as_json:
            _say_next(mode, who, lab=flags["lab"])


def _results(
    addresses: Sequence[str], mode: Mode, who: Asking, *, transcript: bool, wait: bool
) -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory(prefix="engine-check-") as folder:
        listed = Path(folder) / "addresses.jsonl"
        listed.write_text("".join(json.dumps({"address": each}) + "\n" for each in addresses), "utf-8")
        with Intake("check", listed.open("rb"), "address", "jsonl") as intake:
            request = Request(
                intake=intake, mode=mode, policies=who.policies, journal=Path(folder) / "journal", state=who.state,
                identities=who.identities, consent=who.consent, suppression=who.suppression, dns=who.dns,
                smtp_port=who.smtp_port, allow_private=who.allow_private, connect=bool(who.identities),
                concurrency=1 if transcript else MAX_CHECKED, accepted_risk=who.accepted_risk, one_attempt=not wait,
                transcript=_say if transcript else None, listed=_listed(mode, who),
            )  # fmt: skip
            try:
                with Verification(request) as verification:
                    verification.run()
                    return [dataclasses.asdict(result) for _, result in verification.results()]
            except Held as held:
                return _ordered(addresses, mode, who, held.identity)


def _listed(mode: Mode, who: Asking) -> Listed | None:
    """Who asks the block lists that may forbid to probe."""
    if who.settings is None or mode is not Mode.ENHANCED or not asks(who.settings, allow_private=who.allow_private):
        return None
    from engine.reputation.forbidding import forbidding  # noqa: PLC0415 - who asks no list loads nothing of them
    from engine.reputation.registry import load_registry  # noqa: PLC0415

    return forbidding(load_registry(who.settings), tuple(who.dns or ()))


def _ordered(addresses: Sequence[str], mode: Mode, who: Asking, identity: Identity) -> list[dict[str, Any]]:
    """By the engine that is at work; what our own list suppresses never gets there."""
    print(
        f"engine: {identity.key} is at work in another process; that one is asked, without transcript or waiting.",
        file=sys.stderr,
    )
    by = os.environ.get("SUDO_USER") or getpass.getuser()
    suppressed = {each for each in addresses if _suppressed(each, who.suppression)}
    asked = [each for each in addresses if each not in suppressed]
    answers = [
        dataclasses.asdict(Result.of("suppressed_local", address=each)) for each in addresses if each in suppressed
    ]
    if asked:
        with Writer() as writer:
            answers += order_check(State(writer, who.state), identity, mode, who.consent, asked, by)
    return answers


def _suppressed(text: str, suppression: Suppression) -> bool:
    address = parse(text)
    return isinstance(address, Address) and suppression.covers(address)


def _say(direction: str, text: str, seconds: float) -> None:
    print(f"{seconds:9.3f}  {direction}: {text}")


def _lines(found: dict[str, Any], policies: PolicySet) -> list[str]:
    if "error" in found:
        return [str(found["address"]), f"  error     {found['error']}"]
    reason = REASONS[found["reason"]]
    lines = [str(found["address"]), f"  verdict   {found['category']}: {reason.code}" + _detail(found)]
    lines.append(f"  meaning   {reason.meaning}" + ("" if reason.answered else "; nothing learnt of the mailbox"))
    if found["mx_host"]:
        where = f"{found['mx_host']} [{found['mx_ip']}]" if found["mx_ip"] else found["mx_host"]
        lines.append(f"  mail host {where}, policy {found['provider']}")
    if found["smtp_code"]:
        said = " ".join(str(each) for each in (found["smtp_code"], found["enhanced_code"], found["smtp_text"]) if each)
        lines.append(f"  reply     at {found['stage']}: {said}")
    flags = [name for name in ("role", "disposable", "free", "tagged") if found[name]]
    if found["suggestion"]:
        flags.append(f"did you mean {found['suggestion']}?")
    if flags:
        lines.append(f"  flags     {', '.join(flags)}")
    if found["catch_all"] != "not_checked":
        lines.append(f"  catch-all {found['catch_all']}")
    follow = _next(found, policies)
    return [*lines, f"  next      {follow}"] if follow else lines


def _detail(found: dict[str, Any]) -> str:
    return f" ({found['detail']})" if found["detail"] else ""


def _next(found: dict[str, Any], policies: PolicySet) -> str:
    """What a run would do after this answer."""
    policy = policies.named(found["provider"]) or policies.default
    ladders = {"greylist": policy.retry.greylist_s, "backoff": policy.retry.tempfail_s}
    permanent = (found["smtp_code"] or 0) >= 500
    match found["retry"]:
        case "greylist" | "backoff" if not found["answered"] and not permanent and found["probed"]:
            return f"a run would ask again after {', '.join(gap(each) for each in ladders[found['retry']])}"
        case "reconnect":
            return "a run would ask again in a session of its own"
        case "pause" if found["probed"]:
            opened, give_up = gap(policy.breaker.open_s), gap(policy.retry.give_up_s)
            return f"a run would ask nobody there for {opened}, then one address, and give up after {give_up}"
        case _:
            return ""


def _say_next(mode: str, who: Asking, *, lab: bool) -> None:
    if not who.identities:
        print(
            "\nThis ended at the mail hosts. To connect (SG4), say who asks: --identity FILE or `engine identity init`."
            "\nTo ask about the mailbox (SG5), add --mode enhanced with --consent REF --consent-by WHO."
        )
    elif mode != Mode.ENHANCED:
        consent = "" if lab else " --consent REF --consent-by WHO"
        print(f"\nThis ended at EHLO. To ask about the mailbox: --mode enhanced{consent}.")
