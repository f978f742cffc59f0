"""Receipts: a worker's sealed commitments to results, for discovery's eyes; the foreman only carries them.

A commitment binds the worker to one result before anybody can read it. Discovery compares commitments of replicas; the
foreman, who cannot open a receipt, learns neither the result nor whether two workers agree before it has paid.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from enum import StrEnum
from typing import Annotated

import msgspec
from msgspec import Meta

from ec262.errors import SealBroken
from ec262.protocol.framing import parts_digest
from ec262.protocol.keys import Label, seal_key
from ec262.protocol.sealing import seal, unseal

MAX_RESULT_TOKENS = 65_536
"""Of a result: as many as a dispute can name."""
TokenDigest = Annotated[bytes, Meta(min_length=32, max_length=32)]


class Kind(StrEnum):
    """How a replica ended."""

    OK = "ok"
    ERROR = "error"
    """the program raised an exception: voted on like a result, and paid"""
    LIMIT = "limit"
    """the program went over a limit: voted on like a result, and paid"""
    REFUSED = "refused"
    """the worker did not run it (wrong digest, missing program, cancelled): not paid, the escrow goes back"""


class Receipt(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A worker's word on one replica.

    Attributes:
        lease_id: the replica.
        kind: how it ended.
        commitment: 32 bytes, `result_commitment` or `failure_commitment`.
        token_digests: SHA-256 of each sealed token of the result: binds the worker to what it delivers. Only of
            `Kind.REFUSED` there are none.
        cpu_s: CPU seconds used.
        reason: for `Kind.REFUSED`, why.
    """

    lease_id: str
    kind: Kind
    commitment: bytes
    token_digests: Annotated[list[TokenDigest], Meta(max_length=MAX_RESULT_TOKENS)]
    cpu_s: float
    reason: str = ""


class ReceiptBundle(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """All receipts that one answer of a worker carries."""

    worker_id: str
    epoch: int
    receipts: list[Receipt]


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(ReceiptBundle)


def result_commitment(parts: Sequence[bytes]) -> bytes:
    """Commitment to a result's parts, 32 bytes."""
    return parts_digest(parts, domain=b"result")


def failure_commitment(kind: Kind, *facts: str) -> bytes:
    """Commitment to how a task failed, 32 bytes.

    Args:
        kind: `Kind.ERROR`, `Kind.LIMIT` or `Kind.REFUSED`.
        facts: what replicas must agree on: the exception's type and line, or the limit's name.
    """
    encoded = [fact.encode("utf-8", "surrogatepass") for fact in facts]
    return parts_digest(encoded, domain=b"failure " + kind.value.encode())


def digests_of(tokens: Sequence[bytes]) -> list[bytes]:
    """SHA-256 of each sealed token of a result, as receipts name them."""
    return [hashlib.sha256(token).digest() for token in tokens]


def tokens_digest(digests: Sequence[bytes]) -> bytes:
    """SHA-256 over the digests of a result's tokens, 32 bytes: enough to tell whether it is the one that was named."""
    return hashlib.sha256(b"".join(digests)).digest()


def seal_receipts(worker_key: bytes, bundle: ReceiptBundle) -> bytes:
    """The bundle as a token that only discovery and this worker can open or make."""
    return seal(seal_key(worker_key, Label.RECEIPT_SEAL), _encoder.encode(bundle))


def open_receipts(worker_key: bytes, token: bytes, *, worker_id: str) -> ReceiptBundle:
    """The receipts a worker sealed.

    Raises:
        SealBroken: not made by this worker, or changed on its way.
    """
    try:
        bundle = _decoder.decode(unseal(seal_key(worker_key, Label.RECEIPT_SEAL), token))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise SealBroken("a receipt of another form: the worker is too old or too new") from None
    if bundle.worker_id != worker_id:
        raise SealBroken("the receipt names another worker")
    for receipt in bundle.receipts:
        if len(receipt.commitment) != 32 or not 0 <= receipt.cpu_s < 1e9:
            raise SealBroken("a receipt of another form: the worker is too old or too new")
    return bundle
