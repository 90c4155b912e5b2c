"""The control recipient: a local part that nobody has, to tell a refusing domain from a catch-all.

1. Others can't predict it (HMAC), and it is the same on a retry, so that greylisting lets it pass.
2. It has human length and letters, so that no filter tells it from an address by its looks.
"""

from __future__ import annotations

import hashlib
import hmac
from enum import StrEnum

_CONSONANTS = "bcdfghjklmnprstvz"
_VOWELS = "aeiou"
_PAIRS = tuple(consonant + vowel for vowel in _VOWELS for consonant in _CONSONANTS)
_SYLLABLES = 5  # 17**5 * 5**5 local parts of the form "tavorimule", times 900 numbers: no mailbox by accident
_PAIRS_IN_ALL = len(_PAIRS)
_LOCALS = _PAIRS_IN_ALL**_SYLLABLES * 900


class ControlAnswer(StrEnum):
    """What is known of a domain's control question."""

    UNKNOWN = "unknown"
    REFUSES = "refuses"
    ACCEPTS = "accepts"
    INCONCLUSIVE = "inconclusive"


def control_local(secret: bytes, domain: str, begun: int) -> str:
    """The local part of the control number `begun` at `domain`: five syllables and three digits."""
    digest = hmac.digest(secret, f"{begun}:{domain}".encode(), hashlib.sha256)
    number = int.from_bytes(digest, "big") % _LOCALS
    word = ""
    for _ in range(_SYLLABLES):
        word += _PAIRS[number % _PAIRS_IN_ALL]
        number //= _PAIRS_IN_ALL
    return f"{word}{100 + number}"
