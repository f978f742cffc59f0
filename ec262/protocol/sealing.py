"""Sealing: authenticated encryption of everything that passes a party who may not read or change it.

A sealed token is a version byte, a 12-byte random nonce, and what AES-256-GCM (NIST SP 800-38D) makes of the bytes
under key and nonce, its 16-byte tag last; the version byte is authenticated with them. A token has no other form: any
change of a single bit breaks it.

Random nonces of 96 bits allow 2**32 tokens under one key (SP 800-38D, 8.3). Keys of inputs, results and programs seal a
few tokens each; a worker's own key seals a bundle of receipts for each answer it gives, which at a hundred answers a
second is more than a year.

GCM does not commit to its key: who chooses two keys can make a token that opens with both. Nobody here can: discovery
chooses every key, and receipts commit to what is inside.

`cryptography` does it (OpenSSL): a small token takes it 2 us and a megabyte 0.1 ms. pycryptodome, the oracle in tests,
takes 58 us and 0.6 ms; Fernet's format, which this was before, took 11 us and 3.4 ms.
"""

from __future__ import annotations

import os

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from ec262.errors import SealBroken

KEY_BYTES = 32
MAX_TOKEN_BYTES = 8 * 1024 * 1024
"""Longest token anybody accepts; larger things travel as several."""
NONCE_BYTES = 12
OVERHEAD_BYTES = 1 + NONCE_BYTES + 16
"""So much longer than what is inside is a token."""
MAX_SEALED_BYTES = MAX_TOKEN_BYTES - OVERHEAD_BYTES
"""Most plain bytes that fit into one token."""

VERSION = b"\x01"


def seal(key: bytes, data: bytes, *, nonce: bytes | None = None) -> bytes:
    """A token only holders of `key` can make or open.

    Args:
        key: 32 bytes.
        data: at most `MAX_SEALED_BYTES`.
        nonce: 12 random bytes; given only by tests that compare with another implementation.

    Raises:
        ValueError: wrong key length or too much data (a bug of the caller, not of a peer).
    """
    if len(key) != KEY_BYTES:
        raise ValueError("a sealing key has 32 bytes")
    if len(data) > MAX_SEALED_BYTES:
        raise ValueError(f"{len(data)} bytes do not fit into one token of {MAX_TOKEN_BYTES}")
    nonce = os.urandom(NONCE_BYTES) if nonce is None else nonce
    return VERSION + nonce + AESGCM(key).encrypt(nonce, data, VERSION)


def unseal(key: bytes, token: bytes) -> bytes:
    """What `seal` put into `token`.

    Raises:
        SealBroken: any other token, key or change of a single bit.
    """
    if not OVERHEAD_BYTES <= len(token) <= MAX_TOKEN_BYTES or token[:1] != VERSION:
        raise SealBroken("not a sealed token")
    try:
        return AESGCM(key).decrypt(token[1 : 1 + NONCE_BYTES], token[1 + NONCE_BYTES :], VERSION)
    except InvalidTag:
        raise SealBroken("sealed with another key, or changed on its way") from None
