"""Tickets: discovery's sealed permissions for replicas, opaque to the foreman that carries them (after Kerberos).

All leases that one answer gives to one worker are in one bundle under one seal, because sealing them singly would be
most of discovery's work. A bundle is redeemed lease by lease.
"""

from __future__ import annotations

import msgspec

from ec262.errors import SealBroken, TicketRefused
from ec262.protocol.keys import Label, seal_key
from ec262.protocol.sealing import seal, unseal

CLOCK_GRACE_S = 30.0
"""How far past a deadline a worker still takes a ticket: clocks and networks are late."""


class Ticket(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Permission for one replica of one task.

    Attributes:
        lease_id: the replica; its task's id is the part before the dot.
        input_digest: `framing.parts_digest` of the input, domain ``b"input"``: the worker runs this or nothing.
        input_key: opens the input.
        result_key: seals this replica's result; no other replica has it.
        cpu_limit_s: CPU seconds the task may use.
        max_result_bytes: most bytes of result, plain.
        deadline_s: discovery's clock, seconds since the epoch.
        price: credits in escrow for it.
    """

    lease_id: str
    input_digest: bytes
    input_key: bytes
    result_key: bytes
    cpu_limit_s: float
    max_result_bytes: int
    deadline_s: float
    price: int


class TicketBundle(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """The tickets of one answer for one worker, and what they share. `account_id` is the foreman's."""

    worker_id: str
    epoch: int
    job_id: str
    program_key: bytes
    poll_key: bytes
    tickets: list[Ticket]
    account_id: str = ""


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(TicketBundle)


def seal_tickets(worker_key: bytes, bundle: TicketBundle) -> bytes:
    """The bundle as a token for the worker that holds `worker_key`."""
    return seal(seal_key(worker_key, Label.TICKET_SEAL), _encoder.encode(bundle))


def open_tickets(worker_key: bytes, token: bytes, *, worker_id: str, epoch: int) -> TicketBundle:
    """What discovery permits this worker in this epoch.

    Raises:
        TicketRefused: not sealed for this worker, or for an earlier start of it.
    """
    try:
        bundle = _decoder.decode(unseal(seal_key(worker_key, Label.TICKET_SEAL), token))
    except (SealBroken, msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise TicketRefused("the ticket was not sealed for this worker, or was changed on its way") from None
    if bundle.worker_id != worker_id:
        raise TicketRefused("the ticket names another worker")
    if bundle.epoch != epoch:
        raise TicketRefused("the ticket is from before this worker started anew")
    return bundle
