"""A DKIM key record (RFC 6376 section 3.6.1, RFC 8463): whether a receiver could verify a signature with it."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from dataclasses import dataclass

from engine.reputation.dmarc import parse

WEAKEST_BITS = 1024  # RFC 8301 section 3.2: verifiers take no shorter key
GOOD_BITS = 2048
_ED25519_OCTETS = 32
_SEQUENCE, _BIT_STRING, _INTEGER = 0x30, 0x03, 0x02


@dataclass(frozen=True, slots=True)
class Key:
    """`problem` says why it verifies nothing, `remark` what is not well though it works."""

    kind: str = ""
    bits: int = 0
    testing: bool = False
    problem: str = ""
    remark: str = ""


def read_key(text: str) -> Key:
    """What a TXT record at SELECTOR._domainkey.DOMAIN is worth."""
    tags = parse(text)
    kind = tags.get("k", "rsa").lower()
    testing = "y" in tags.get("t", "").replace(" ", "").split(":")
    problem = _useless(tags, kind)
    if problem:
        return Key(kind, problem=problem)
    try:
        key = base64.b64decode("".join(tags["p"].split()), validate=True)
    except binascii.Error:
        return Key(kind, problem="its key is not base64")
    if kind == "ed25519":
        wrong = "" if len(key) == _ED25519_OCTETS else "its key is no Ed25519 key of 32 octets"
        return Key(kind, 256, testing, wrong)
    bits = rsa_bits(key)
    if bits < WEAKEST_BITS:
        short = f"its key has {bits} bits; receivers take {WEAKEST_BITS} and more"
        return Key(kind, bits, testing, short if bits else "its key is no RSA key")
    return Key(kind, bits, testing, remark="" if bits >= GOOD_BITS else f"{GOOD_BITS} bits would be better")


def _useless(tags: Mapping[str, str], kind: str) -> str:
    """Why a record can't be used, whatever its key is."""
    if tags.get("v", "DKIM1") != "DKIM1":
        return f"it has the version {tags['v']}; DKIM1 is expected"
    if kind not in ("rsa", "ed25519"):
        return f"its key type {kind} is not one that receivers know"
    if not tags.get("p"):
        return "the key is revoked (p= is empty)" if "p" in tags else "it holds no key (no tag p=)"
    return ""


def rsa_bits(der: bytes) -> int:
    """The length of the modulus of an RSA key (SubjectPublicKeyInfo or RSAPublicKey); 0 for anything else."""
    try:
        inner = _inner(der, _SEQUENCE)
        if inner[0] == _SEQUENCE:  # the algorithm's name, then the key in a bit string
            key = _inner(_after(inner), _BIT_STRING)
            inner = _inner(key[1:], _SEQUENCE)
        return int.from_bytes(_inner(inner, _INTEGER)).bit_length()
    except (ValueError, IndexError):
        return 0


def _inner(der: bytes, kind: int) -> bytes:
    """The content of the first element, which must be of this kind."""
    if der[0] != kind:
        raise ValueError(kind)
    start, length = _extent(der)
    return der[start : start + length]


def _after(der: bytes) -> bytes:
    start, length = _extent(der)
    return der[start + length :]


def _extent(der: bytes) -> tuple[int, int]:
    length, octets = der[1], 0
    if length & 0x80:
        octets = length & 0x7F
        length = int.from_bytes(der[2 : 2 + octets])
    start = 2 + octets
    if start + length > len(der):
        raise ValueError("cut off")
    return start, length
