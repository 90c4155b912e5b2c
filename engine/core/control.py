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
_SYLLABLES = 5  # 17**5 * 5**5 local parts of the form "tavorimule", times 900 numbers: no mailbox by accident


class ControlAnswer(StrEnum):
    """What is known of a domain's control question."""

    UNKNOWN = "unknown"
    REFUSES = "refuses"
    ACCEPTS = "accepts"
    INCONCLUSIVE = "inconclusive"


def control_local(secret: bytes, domain: str, begun: int) -> str:
    """The local part of the control number `begun` at `domain`: five syllables and three digits."""
    digest = hmac.digest(secret, f"{begun}:{domain}".encode(), hashlib.sha256)
    number = int.from_bytes(digest, "big")
    letters = []
    for _ in range(_SYLLABLES):
        number, consonant = divmod(number, len(_CONSONANTS))
        number, vowel = divmod(number, len(_VOWELS))
        letters.append(_CONSONANTS[consonant] + _VOWELS[vowel])
    return f"{''.join(letters)}{100 + number % 900}"
