"""Sealing: authenticated encryption of everything that passes a party who may not read or change it.

A sealed token has exactly the published Fernet format (https://github.com/fernet/spec): version byte 0x80, 8-byte
time, 16-byte IV, AES-128-CBC with PKCS#7 padding, HMAC-SHA-256 over all before it, URL-safe Base64. The time is left
zero: deadlines are in tickets, and a time would only tell an eavesdropper when something was computed.

pycryptodome does the AES; the standard library's one-shot ``hmac.digest`` the rest, because pycryptodome's own HMAC is
written in Python and halves the speed of small tokens.
"""

from __future__ import annotations

import binascii
import hmac
import os

from Crypto.Cipher import AES

from ec262.errors import SealBroken

KEY_BYTES = 32
MAX_TOKEN_BYTES = 8 * 1024 * 1024
"""Longest token anybody accepts; larger things travel as several."""
MAX_SEALED_BYTES = (MAX_TOKEN_BYTES // 4) * 3 - 80
"""Most plain bytes that fit into one token."""

_HEADER = b"\x80" + bytes(8)
_TO_URLSAFE = bytes.maketrans(b"+/", b"-_")
_FROM_URLSAFE = bytes.maketrans(b"-_", b"+/")
_PADDING = [bytes([n]) * n for n in range(17)]


def seal(key: bytes, data: bytes, *, iv: bytes | None = None) -> str:
    """A token only holders of `key` can make or open.

    Args:
        key: 32 bytes; the first half authenticates, the second encrypts.
        data: at most `MAX_SEALED_BYTES`.
        iv: 16 random bytes; given only by tests that compare with another implementation.

    Raises:
        ValueError: wrong key length or too much data (a bug of the caller, not of a peer).
    """
    if len(key) != KEY_BYTES:
        raise ValueError("a sealing key has 32 bytes")
    if len(data) > MAX_SEALED_BYTES:
        raise ValueError(f"{len(data)} bytes do not fit into one token of {MAX_TOKEN_BYTES}")
    iv = os.urandom(16) if iv is None else iv
    cipher = AES.new(key[16:], AES.MODE_CBC, iv=iv)
    body = b"".join((_HEADER, iv, cipher.encrypt(data + _PADDING[16 - len(data) % 16])))
    raw = body + hmac.digest(key[:16], body, "sha256")
    return binascii.b2a_base64(raw, newline=False).translate(_TO_URLSAFE).decode("ascii")


def unseal(key: bytes, token: str) -> bytes:
    """What `seal` put into `token`.

    Raises:
        SealBroken: any other token, key or change of a single bit, also one that decodes to the same bytes.
    """
    try:
        text = token.encode("ascii")
        if len(text) > MAX_TOKEN_BYTES or b"+" in text or b"/" in text:
            raise SealBroken("not a sealed token")
        text = text.translate(_FROM_URLSAFE)
        raw = binascii.a2b_base64(text, strict_mode=True)
    except (UnicodeEncodeError, binascii.Error):
        raise SealBroken("not a sealed token") from None
    # Base64 leaves up to four bits of the last group unused; a token with these set is not one that was made. Nor is
    # one with more padding than needed, which some Pythons let pass.
    tail = len(raw) - len(raw) % 3
    if len(text) != (len(raw) + 2) // 3 * 4:
        raise SealBroken("not a sealed token")
    if len(raw) % 3 and binascii.b2a_base64(raw[tail:], newline=False) != text[-4:]:
        raise SealBroken("not a sealed token")
    if len(raw) < 73 or (len(raw) - 57) % 16 or raw[0] != 0x80:
        raise SealBroken("not a sealed token")
    body = raw[:-32]
    if not hmac.compare_digest(hmac.digest(key[:16], body, "sha256"), raw[-32:]):
        raise SealBroken("sealed with another key, or changed on its way")
    plain = AES.new(key[16:], AES.MODE_CBC, iv=body[9:25]).decrypt(body[25:])
    pad = plain[-1]
    if not 1 <= pad <= 16 or plain[-pad:] != _PADDING[pad]:
        raise SealBroken("padding is wrong although the seal holds: made by something else")
    return plain[:-pad]
