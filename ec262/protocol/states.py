"""States: what a replica and a task can be, and every way from one to another.

The tables are the truth: discovery moves records with `advance`, docs/protocol.md shows them, a test compares.
"""

from __future__ import annotations

from enum import StrEnum


class ReplicaState(StrEnum):
    """What became of one worker's attempt at a task."""

    OPEN = "open"
    """leased; no receipt yet; its price is in escrow"""
    SHOWN = "shown"
    """a receipt is known, but its foreman does not say that the result arrived; its price is in escrow"""
    REPORTED = "reported"
    """a receipt is recorded, and the result arrived; its price is in escrow until the task is decided"""
    PAID = "paid"
    """agreed with what counts; the escrow went to the worker's account"""
    DISSENTED = "dissented"
    """disagreed with what counts; the escrow went back to the foreman"""
    REFUSED = "refused"
    """the worker did not run it and said so; the escrow went back"""
    EXPIRED = "expired"
    """no receipt in time, or the worker started anew; the escrow went back"""
    RELEASED = "released"
    """reported, but nothing was decided; the escrow went back"""
    COMPENSATED = "compensated"
    """reported, but nothing was decided; the effort fee went to the worker, the rest of the escrow back"""
    FORFEITED = "forfeited"
    """was paid for other bytes than it had committed itself to; what had not vested of the pay went back"""
    RECLAIMED = "reclaimed"
    """was paid; its worker was banned and the task is computed again: the pay, which had not vested, went back"""


class ReplicaEvent(StrEnum):
    """What can happen to a replica."""

    RECEIPT_SHOWN = "receipt shown"
    RECEIPT_RECORDED = "receipt recorded"
    REFUSAL_RECORDED = "refusal recorded"
    AGREED = "agreed"
    DISAGREED = "disagreed"
    LEFT_UNDECIDED = "left undecided"
    EFFORT_OWED = "effort owed"
    FELL_DUE = "fell due"
    WORKER_RESTARTED = "worker restarted"
    NEVER_PUSHED = "never pushed"
    DISPUTE_LOST = "dispute lost"
    PAY_RECLAIMED = "pay reclaimed"


class TaskState(StrEnum):
    """What became of a task."""

    LEASED = "leased"
    """replicas are out"""
    ACCEPTED = "accepted"
    """an answer counts: keys are released for the grace period"""
    KEPT = "kept"
    """accepted; the keys are destroyed, who answered what is remembered until the job closes"""
    OVERTURNED = "overturned"
    """was accepted, and is no longer believed: to be computed again"""
    UNDECIDED = "undecided"
    """no quorum and no further replica allowed or affordable"""
    EXPIRED = "expired"
    """never settled: all replicas fell due"""
    FORGOTTEN = "forgotten"
    """the record and with it the keys are destroyed"""


class TaskEvent(StrEnum):
    """What can happen to a task."""

    BELIEVED = "believed"
    REPLICAS_ADDED = "replicas added"
    GAVE_UP = "gave up"
    ALL_FELL_DUE = "all fell due"
    GRACE_ENDED = "grace ended"
    KEYS_DESTROYED = "keys destroyed"
    NO_LONGER_BELIEVED = "no longer believed"


R, RE, T, TE = ReplicaState, ReplicaEvent, TaskState, TaskEvent

REPLICA_TRANSITIONS: dict[tuple[ReplicaState, ReplicaEvent], ReplicaState] = {
    (R.OPEN, RE.RECEIPT_RECORDED): R.REPORTED,
    (R.OPEN, RE.RECEIPT_SHOWN): R.SHOWN,
    (R.OPEN, RE.REFUSAL_RECORDED): R.REFUSED,
    (R.OPEN, RE.FELL_DUE): R.EXPIRED,
    (R.OPEN, RE.WORKER_RESTARTED): R.EXPIRED,
    (R.SHOWN, RE.RECEIPT_RECORDED): R.REPORTED,
    (R.SHOWN, RE.AGREED): R.PAID,
    (R.SHOWN, RE.DISAGREED): R.DISSENTED,
    (R.SHOWN, RE.LEFT_UNDECIDED): R.RELEASED,
    (R.SHOWN, RE.EFFORT_OWED): R.COMPENSATED,
    (R.REPORTED, RE.AGREED): R.PAID,
    (R.REPORTED, RE.DISAGREED): R.DISSENTED,
    (R.REPORTED, RE.LEFT_UNDECIDED): R.RELEASED,
    (R.REPORTED, RE.EFFORT_OWED): R.COMPENSATED,
    (R.OPEN, RE.NEVER_PUSHED): R.EXPIRED,
    (R.PAID, RE.DISPUTE_LOST): R.FORFEITED,
    (R.PAID, RE.PAY_RECLAIMED): R.RECLAIMED,
}

TASK_TRANSITIONS: dict[tuple[TaskState, TaskEvent], TaskState] = {
    (T.LEASED, TE.REPLICAS_ADDED): T.LEASED,
    (T.LEASED, TE.BELIEVED): T.ACCEPTED,
    (T.LEASED, TE.GAVE_UP): T.UNDECIDED,
    (T.LEASED, TE.ALL_FELL_DUE): T.EXPIRED,
    (T.ACCEPTED, TE.KEYS_DESTROYED): T.KEPT,
    (T.ACCEPTED, TE.NO_LONGER_BELIEVED): T.OVERTURNED,
    (T.KEPT, TE.NO_LONGER_BELIEVED): T.OVERTURNED,
    (T.ACCEPTED, TE.GRACE_ENDED): T.FORGOTTEN,
    (T.KEPT, TE.GRACE_ENDED): T.FORGOTTEN,
    (T.OVERTURNED, TE.GRACE_ENDED): T.FORGOTTEN,
    (T.UNDECIDED, TE.GRACE_ENDED): T.FORGOTTEN,
    (T.EXPIRED, TE.GRACE_ENDED): T.FORGOTTEN,
}

AWAITED = frozenset({R.OPEN, R.SHOWN})
"""States in which a replica's result may still arrive."""
HOLDS_ESCROW = frozenset({R.OPEN, R.SHOWN, R.REPORTED})
"""States in which a replica's price is in escrow and its worker's slot is taken."""


def advance_replica(state: ReplicaState, event: ReplicaEvent) -> ReplicaState:
    """The state after `event`; a KeyError is a bug of the caller, who has to ask what is possible first."""
    return REPLICA_TRANSITIONS[state, event]


def advance_task(state: TaskState, event: TaskEvent) -> TaskState:
    """The state after `event`; a KeyError is a bug of the caller."""
    return TASK_TRANSITIONS[state, event]
