"""Keys: each derived from another by HKDF-SHA-256 (RFC 5869) under a label of its own, so no key serves two purposes.

Written out over ``hmac.digest``: discovery derives three keys a task, and library versions cost ten to fifty times as
much. Tests compare with RFC 5869's vectors and with `cryptography`.
"""

from __future__ import annotations

import hmac
from enum import Enum

_SALT = b"ec262/v1"


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


def hkdf_sha256(secret: bytes, *, salt: bytes, info: bytes, length: int) -> bytes:
    """RFC 5869 extract and expand; `length` at most 8160 bytes."""
    prk = hmac.digest(salt or bytes(32), secret, "sha256")
    block = b""
    made = b""
    counter = 1
    while len(made) < length:
        block = hmac.digest(prk, block + info + bytes([counter]), "sha256")
        made += block
        counter += 1
    return made[:length]


def derive(secret: bytes, label: Label, *context: bytes) -> bytes:
    """The 32-byte key for `label` in `context`; other labels or contexts give unrelated keys.

    Contexts are length-prefixed, so that ("ab", "c") and ("a", "bc") differ.
    """
    return expand(extract(secret), label, *context)


def extract(secret: bytes) -> bytes:
    """What `expand` makes keys of: worth keeping where one secret makes many."""
    return hmac.digest(_SALT, secret, "sha256")


def expand(extracted: bytes, label: Label, *context: bytes) -> bytes:
    """`derive`, of a secret that was extracted; or of one that was derived, which needs no extraction (RFC 5869, 3.3).

    The keys of a task are made of its root key so, for that is a good part of what a settlement costs.
    """
    info: bytes = label._value_
    for item in context:
        info += b"\0" + len(item).to_bytes(4, "big") + item
    return hmac.digest(extracted, info + b"\x01", "sha256")


def worker_key(master: bytes, worker_id: str, key_version: int) -> bytes:
    """The key that discovery shares with one worker."""
    return derive(master, Label.WORKER, worker_id.encode(), key_version.to_bytes(4, "big"))


def spot_check_key(master: bytes) -> bytes:
    """What decides which tasks are checked: whoever knew it could lie in all others."""
    return derive(master, Label.SPOT_CHECK)


def task_key(wrapping_key: bytes, nonce: bytes, task_id: str) -> bytes:
    """A task's root key: gone as soon as either its nonce or the wrapping key is."""
    return derive(wrapping_key, Label.TASK, nonce, task_id.encode())


class TaskKeys:
    """The keys of one task, as `task_key`, `input_key` and `result_key` make them."""

    __slots__ = ("_task",)

    def __init__(self, extracted_wrapping: bytes, nonce: bytes, task_id: str) -> None:
        self._task = expand(extracted_wrapping, Label.TASK, nonce, task_id.encode())

    def input(self) -> bytes:
        """The key of the task's input."""
        return input_key(self._task)

    def result(self, lease_id: str) -> bytes:
        """The key of one replica's result."""
        return result_key(self._task, lease_id)


def input_key(task: bytes) -> bytes:
    """The key under which a task's input travels, known to its foreman and its workers."""
    return expand(task, Label.INPUT)


def result_key(task: bytes, lease_id: str) -> bytes:
    """The key under which one replica's result travels, known to its worker, and to the foreman once it has paid."""
    return expand(task, Label.RESULT, lease_id.encode())


def program_key(master: bytes, account_id: str, job_id: str) -> bytes:
    """The key under which a job's program travels. The account is in it: naming another's job gives another key."""
    return derive(master, Label.PROGRAM, account_id.encode(), job_id.encode())


def poll_key(master: bytes, account_id: str, job_id: str) -> bytes:
    """The key with which a foreman proves to a worker that a job's results are its own."""
    return derive(master, Label.POLL, account_id.encode(), job_id.encode())
