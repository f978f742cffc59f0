"""Outcomes: from a sealed input to its parts, from what the sandbox says to a sealed result and its receipt. Pure."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import NamedTuple

from ec262.errors import Malformed, SealBroken, TicketRefused
from ec262.mapreduce.program import program_digest_of
from ec262.protocol.canonical import encode_value
from ec262.protocol.framing import frame_parts, parts_digest, unframe_parts
from ec262.protocol.receipts import Kind, Receipt, failure_commitment, result_commitment
from ec262.protocol.sealing import MAX_SEALED_BYTES, seal, unseal
from ec262.protocol.tickets import Ticket

PIECE_BYTES = min(4 * 1024 * 1024, MAX_SEALED_BYTES)
"""Plain bytes in one token of a result."""


class Sealed(NamedTuple):
    """A finished lease: the sealed result, its receipt, and how many bytes the tokens have."""

    tokens: list[bytes]
    receipt: Receipt
    size: int


def name_program(blob: bytes) -> tuple[str, bytes]:
    """A program's digest as inputs name it (SHA-256 in hex), and how a header that names it ends."""
    digest = hashlib.sha256(blob).hexdigest()
    return digest, encode_value(["program", digest]) + b"]}"


def open_input(ticket: Ticket, payload: Sequence[bytes], *, digest: str, header_tail: bytes) -> list[bytes]:
    """A task's input parts, when they are exactly what was leased.

    Args:
        payload: the sealed tokens.
        digest: the job's program, as `name_program` says; `header_tail` likewise.

    Raises:
        TicketRefused: the input does not open, is not the one that the ticket names, or names another program.
    """
    try:
        key = ticket.input_key
        framed = unseal(key, payload[0]) if len(payload) == 1 else b"".join([unseal(key, token) for token in payload])
        parts = unframe_parts(framed)
    except SealBroken:
        raise TicketRefused("the input does not open with the ticket's key") from None
    except Malformed as reason:
        raise TicketRefused(f"the input is malformed: {reason}") from None
    if parts_digest(parts, domain=b"input") != ticket.input_digest:
        raise TicketRefused("the input is not the one the ticket was leased for")
    # A header is a dictionary whose last key, in order, is "program". Canonical JSON that ends like this can name no
    # other; anything that is not canonical JSON fails in the sandbox. This saves decoding every header here.
    if not parts or not parts[0].endswith(header_tail):
        try:
            named = program_digest_of(parts[0]) if parts else ""
        except Malformed:
            named = ""
        if named != digest:
            raise TicketRefused("the input names another program than the job's")
    return parts


def seal_result(ticket: Ticket, parts: Sequence[bytes], *, cpu_s: float) -> Sealed:
    """A computed result."""
    return _seal(ticket, Kind.OK, result_commitment(parts), frame_parts(parts), cpu_s)


def seal_error(ticket: Ticket, fields: dict[str, str], *, cpu_s: float) -> Sealed:
    """The program raised an exception: `fields` has its type, message, line and traceback."""
    commitment = failure_commitment(Kind.ERROR, fields.get("type", ""), fields.get("line", ""))
    return _seal(ticket, Kind.ERROR, commitment, frame_parts([encode_value(fields)]), cpu_s)


def seal_limit(ticket: Ticket, limit: str, message: str, *, cpu_s: float) -> Sealed:
    """The program went over a limit."""
    part = encode_value({"type": "LimitExceeded", "limit": limit, "message": message, "line": "", "traceback": ""})
    return _seal(ticket, Kind.LIMIT, failure_commitment(Kind.LIMIT, limit), frame_parts([part]), cpu_s)


def refuse(ticket: Ticket, reason: str) -> Sealed:
    """A lease that is not run, and why."""
    commitment = failure_commitment(Kind.REFUSED, reason)
    receipt = Receipt(ticket.lease_id, Kind.REFUSED, commitment, [], 0.0, reason)
    return Sealed([], receipt, len(reason))


def _seal(ticket: Ticket, kind: Kind, commitment: bytes, framed: bytes, cpu_s: float) -> Sealed:
    key = ticket.result_key
    if len(framed) <= PIECE_BYTES:
        token = seal(key, framed)
        digests = [hashlib.sha256(token).digest()]
        return Sealed([token], Receipt(ticket.lease_id, kind, commitment, digests, cpu_s), len(token))
    tokens = [seal(key, framed[start : start + PIECE_BYTES]) for start in range(0, len(framed), PIECE_BYTES)]
    digests = [hashlib.sha256(token).digest() for token in tokens]
    return Sealed(tokens, Receipt(ticket.lease_id, kind, commitment, digests, cpu_s), sum(map(len, tokens)))
