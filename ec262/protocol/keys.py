"""Keys: each made of another under a label of its own, so no key serves two purposes.

By HKDF-SHA-256 (RFC 5869), written out over SHA-256: `hmac.digest` takes twice as long as the two digests that HMAC is,
libraries' HKDF ten to fifty times. Tests compare with RFC 5869's vectors and with `cryptography`. Those of tasks, of
which discovery makes three a replica, by keyed BLAKE2b: see `Wrapping`.
"""

from __future__ import annotations

from enum import Enum
from functools import lru_cache
from hashlib import blake2b, sha256

NONCE_BYTES = 16
"""Of a task's nonce."""
_SALT = b"ec262/v1"
_BLOCK = 64
_INNER = bytes(byte ^ 0x36 for byte in range(256))
_OUTER = bytes(byte ^ 0x5C for byte in range(256))
"""HMAC's pads (RFC 2104), as tables for `bytes.translate`."""


class Label(Enum):
    """What a derived key is for."""

    WORKER = b"worker key"
    TICKET_SEAL = b"ticket seal"
    RECEIPT_SEAL = b"receipt seal"
    TASK = b"task key"
    INPUT = b"input key"
    RESULT = b"result key"
    PROGRAM = b"program key"
    POLL = b"poll key"
    SPOT_CHECK = b"spot check key"
    RELAY_PASS = b"relay pass key"


def hmac_sha256(key: bytes, data: bytes) -> bytes:
    """RFC 2104 with SHA-256."""
    block = (key if len(key) <= _BLOCK else sha256(key).digest()).ljust(_BLOCK, b"\0")
    return sha256(block.translate(_OUTER) + sha256(block.translate(_INNER) + data).digest()).digest()


def hkdf_sha256(secret: bytes, *, salt: bytes, info: bytes, length: int) -> bytes:
    """RFC 5869 extract and expand; `length` at most 8160 bytes."""
    prk = hmac_sha256(salt, secret)
    block = b""
    made = b""
    counter = 1
    while len(made) < length:
        block = hmac_sha256(prk, block + info + bytes([counter]))
        made += block
        counter += 1
    return made[:length]


def derive(secret: bytes, label: Label, *context: bytes) -> bytes:
    """The 32-byte key for `label` in `context`; other labels or contexts give unrelated keys.

    Contexts are length-prefixed, so that ("ab", "c") and ("a", "bc") differ.
    """
    return expand(extract(secret), label, *context)


def extract(secret: bytes) -> bytes:
    """What `expand` makes keys of."""
    return hmac_sha256(_SALT, secret)


def expand(extracted: bytes, label: Label, *context: bytes) -> bytes:
    """`derive`, of a secret that was extracted."""
    info: bytes = label._value_
    for item in context:
        info += b"\0" + len(item).to_bytes(4, "big") + item
    return hmac_sha256(extracted, info + b"\x01")


def worker_key(master: bytes, worker_id: str, key_version: int) -> bytes:
    """The key that discovery shares with one worker."""
    return derive(master, Label.WORKER, worker_id.encode(), key_version.to_bytes(4, "big"))


@lru_cache(maxsize=8192)
def seal_key(worker_key: bytes, label: Label) -> bytes:
    """The key that seals tickets for a worker, or its receipts; kept, for each request names the same workers."""
    return derive(worker_key, label)


def spot_check_key(master: bytes) -> bytes:
    """What decides which tasks are checked: whoever knew it could lie in all others."""
    return derive(master, Label.SPOT_CHECK)


def relay_pass_key(master: bytes) -> bytes:
    """What discovery makes and checks the passes with that let foremen through its relay."""
    return derive(master, Label.RELAY_PASS)


class Wrapping:
    """A wrapping key, ready to make the keys of tasks with; without it, or the nonce of a task, nobody can make them.

    Discovery alone makes them, two when it leases a replica and one when it settles it, and so by keyed BLAKE2b (RFC
    7693) over label, nonce and name, 32 bytes: that takes a fifth of the time of HKDF.

    Args:
        key: 32 random bytes.
    """

    __slots__ = ("_inputs", "_results")

    def __init__(self, key: bytes) -> None:
        self._inputs = blake2b(Label.INPUT.value + b"\0", key=key, digest_size=32)
        self._results = blake2b(Label.RESULT.value + b"\0", key=key, digest_size=32)

    def input_key(self, nonce: bytes, task_id: str) -> bytes:
        """The key under which a task's input travels, known to its foreman and its workers.

        Args:
            nonce: `NONCE_BYTES` random bytes of the task's record.
        """
        made = self._inputs.copy()
        made.update(nonce + task_id.encode())
        return made.digest()

    def result_key(self, nonce: bytes, lease_id: str) -> bytes:
        """The key under which a replica's result travels, known to its worker, and to the foreman once it has paid."""
        made = self._results.copy()
        made.update(nonce + lease_id.encode())
        return made.digest()


class OlderWrapping(Wrapping):
    """A wrapping key that was drawn before those of `Wrapping`: keys of tasks that it began are made as they were.

    By HKDF, through a root key of the task, which is expanded without extracting first (RFC 5869, 3.3).
    """

    __slots__ = ("_key",)

    def __init__(self, key: bytes) -> None:
        self._key = key

    def input_key(self, nonce: bytes, task_id: str) -> bytes:
        return expand(self._root(nonce, task_id), Label.INPUT)

    def result_key(self, nonce: bytes, lease_id: str) -> bytes:
        return expand(self._root(nonce, lease_id.partition(".")[0]), Label.RESULT, lease_id.encode())

    def _root(self, nonce: bytes, task_id: str) -> bytes:
        return derive(self._key, Label.TASK, nonce, task_id.encode())


def program_key(master: bytes, account_id: str, job_id: str) -> bytes:
    """The key under which a job's program travels. The account is in it: naming another's job gives another key."""
    return derive(master, Label.PROGRAM, account_id.encode(), job_id.encode())


def poll_key(master: bytes, account_id: str, job_id: str) -> bytes:
    """The key with which a foreman proves to a worker that a job's results are its own."""
    return derive(master, Label.POLL, account_id.encode(), job_id.encode())
