"""Passes: what lets a foreman call a worker through the relay. Decided without I/O.

A pass says that an account was leased this worker until some time. It is a MAC under a key of discovery's own, so that
every process of the service can check it and nobody has to remember it.
"""

from __future__ import annotations

import hmac
import struct

_TIME = struct.Struct(">Q")
_MAC_BYTES = 32


def make_pass(key: bytes, account_id: str, worker_id: str, until_ms: int) -> bytes:
    """The pass of an account for a worker.

    Args:
        key: `ec262.protocol.keys.relay_pass_key`.
        until_ms: by Redis' clock.
    """
    return _TIME.pack(until_ms) + _mac(key, account_id, worker_id, until_ms)


def valid_until_ms(key: bytes, account_id: str, worker_id: str, given: bytes) -> int | None:
    """Until when the pass lets this account call this worker; None: it never did."""
    if len(given) != _TIME.size + _MAC_BYTES:
        return None
    (until_ms,) = _TIME.unpack_from(given)
    if not hmac.compare_digest(given[_TIME.size :], _mac(key, account_id, worker_id, until_ms)):
        return None
    return int(until_ms)


def sender_of(key: bytes, account_id: str, worker_id: str) -> str:
    """What a worker knows a foreman's calls by: the same for all of an account's, and of no use elsewhere."""
    return hmac.digest(key, f"sender\0{account_id}\0{worker_id}".encode(), "sha256")[:8].hex()


def _mac(key: bytes, account_id: str, worker_id: str, until_ms: int) -> bytes:
    return hmac.digest(key, f"pass\0{account_id}\0{worker_id}\0{until_ms}".encode(), "sha256")
