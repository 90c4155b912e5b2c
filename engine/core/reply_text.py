"""A reply's text as rules see it: unfolded, folded to words, with signs in place of addresses and hosts.

1. What is echoed is no evidence: an address becomes `@`, an IP address `#ip`, a host name `#host`, a URL `#url`; the
   zone or page of a block list becomes `#zone`, because who names one says why he refuses.
2. At most 1,024 characters are read, and every expression here is linear in them: peers write these texts.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Collection, Sequence

from engine.core.vocabulary import LIST_MARKS, WORDS

MAX_TEXT = 1024  # the longest provider texts have about 700
_MAX_DELAY_S = 86_400.0

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]+")
_FOLD = re.compile(
    r"[\r\n]+\s*(?:[245]\d\d[ -])?(?:[245]\.\d{1,3}\.\d{1,3}\s)?"  # lines as they came
    r"|(?<=\s)[45]\d\d-(?:[245]\.\d{1,3}\.\d{1,3}\s|(?=[^\d\s]))"  # lines that somebody joined
)
_ADDRESS = re.compile(r"<?(?<![^\s<>@()\[\]\"',:;=])[^\s<>@()\[\]\"',:;=]{1,320}@[^\s<>()\[\]\"',:;]*>?")
_TOKEN = re.compile(r"[^\s()\[\]{}<>\"!|*,;]+")
_AROUND = ".:;'`-=/?&%+_~#"  # punctuation around a word
_PIECE = re.compile(r"[^\W_]+")
_IPV4 = re.compile(r"(?<![\w.])[\dx#]{1,3}(?:\.[\dx#]{1,3}){3}(?![\w.])")
_IPV6 = re.compile(r"(?:ipv6:)?[0-9a-f]{0,4}(?::[0-9a-f]{0,4}){2,8}")
_HOST = re.compile(r"[\w.-]+\.[a-z]{2,24}")
_MARK = re.compile("|".join(map(re.escape, LIST_MARKS)))
# Who is quoted; it is not us.
_SPEAKER = re.compile(r"\bhost \S{1,300} (?:\S{1,60} )?said:|(?<=address: )host [\w.-]{1,255}\[[\d.:a-f]{2,45}\]")
_DELAY = re.compile(
    r"\b(?:in|after|within|for|of|wait|least|next|another)\s+(?:at least |about |another |the next )?"
    r"(?:(\d{1,2}):(\d\d):(\d\d)|(\d{1,6}) ?(s|sec|second|m|min|minute|minuten|h|hr|hour)s?\b)"
)
_NUMBER = re.compile(r"\s\d")
_UNIT_S = {"s": 1.0, "m": 60.0, "h": 3600.0}
_USUAL = re.compile(r"[\w.+-]+@[\w.-]+", re.ASCII)  # an address without signs that part words
_ANYBODY = "a@a"  # reads as any such address does


def unfold(text: str) -> str:
    """One line of at most `MAX_TEXT` characters, without control characters and repeated reply codes."""
    text = text[:MAX_TEXT]
    if "-" in text or "\n" in text or "\r" in text:
        text = _FOLD.sub(" ", text)
    return (text if text.isprintable() else _CONTROL.sub(" ", text)).strip()


def without_addresses(text: str) -> str:
    """The text as provider rows see it: echoed addresses are gone."""
    return _ADDRESS.sub("", text) if "@" in text else text


def to_anybody(text: str, recipient: str) -> str:
    """A reply with the same address wherever it quotes the recipient: so it reads the same, whoever was asked for."""
    return text.replace(recipient, _ANYBODY) if "@" in text and _USUAL.fullmatch(recipient) else text


def may_name(text: str, recipient: str) -> bool:
    """Whether a reply may quote the recipient, or its domain alone; False is certain."""
    return not text.isascii() or recipient.rpartition("@")[2].lower() in text.lower()


def words(text: str, echoed: Sequence[str] = ()) -> list[str]:
    """The folded words of a text; those without weight are gone, unknown ones stay as they are."""
    text = _plain(text)
    names = {each for name in map(str.lower, echoed) for each in (name, name.rpartition("@")[2])} if echoed else ()
    found: list[str] = []
    for token in _TOKEN.findall(text):
        core = token if token.isalpha() else token.strip(_AROUND)
        word = WORDS.get(core)
        if word is None:
            if core.isalpha():
                found.append(core)
            else:
                found.extend(_unusual(core, names))
        elif word:
            found.append(word)
    return found


def _plain(text: str) -> str:
    """Lower case without accents, with `n't` spelled out."""
    if not text.isascii():
        text = unicodedata.normalize("NFKD", text.casefold().replace("’", "'"))
        text = "".join(char for char in text if not unicodedata.combining(char))
    text = text.lower().replace("n't", " not")
    return _SPEAKER.sub(" ", text) if "said:" in text or "address: host " in text else text


def _unusual(core: str, names: Collection[str]) -> list[str]:  # noqa: PLR0911 - one return a kind of token
    """What a token stands for that is no plain word: an address, a host, or words joined by punctuation."""
    if core in names:
        return ["@"]
    if "@" in core:
        before, _, after = core.partition("@")
        return [*_pieces(before.rpartition(":")[0]), "@", *_pieces(after.partition(":")[2])]
    if "." in core:
        if _MARK.search(core):
            return ["#zone"]
        if "://" in core or core.startswith("www."):
            return ["#url"]
        if (found := _IPV4.search(core)) is not None:
            return [*_pieces(core[: found.start()]), "#ip"]
        if _HOST.fullmatch(core) and not all(label in WORDS for label in core.split(".")):
            return ["#host"]
    elif ":" in core and _IPV6.fullmatch(core):
        return ["#ip"]
    return _pieces(core)


def _pieces(text: str) -> list[str]:
    folded = (WORDS.get(piece, piece) for piece in _PIECE.findall(text))
    return [word for word in folded if word]


def list_name(text: str) -> str:
    """The zone or host of the block list that a text names, its brand where there is no host, or nothing."""
    brand = ""
    for token in _TOKEN.findall(_plain(text)):
        core: str = token.strip(_AROUND)
        if "." in core and _MARK.search(core):
            return core.rpartition("://")[2].partition("/")[0][:64]
        if not brand and WORDS.get(core) == "#zone":
            brand = core
    return brand


def named_delay(text: str) -> float | None:
    """The delay in seconds that a text asks for (`in 5 minutes`, `for 00:05:00`); None without one up to a day."""
    found = _DELAY.search(text.lower()) if _NUMBER.search(text) else None
    if found is None:
        return None
    hours, minutes, seconds, count, unit = found.groups()
    delay = float(count) * _UNIT_S[unit[0]] if count else int(hours) * 3600.0 + int(minutes) * 60.0 + int(seconds)
    return delay if 0 < delay <= _MAX_DELAY_S else None
