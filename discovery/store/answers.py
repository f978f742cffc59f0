"""Answers: what the store says, and how it says no."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from discovery.records import WorkerRecord
from discovery.store.known import Known


class Conflict(Exception):
    """A commit was refused because others changed the same things; load again and decide again.

    Attributes:
        what: ``stale`` (a task changed), ``repeated`` (idempotency key known), ``credits``, ``worker``, ``vesting``
            (pay vested that was to be taken back), ``hushed`` (a job was found out before), ``held`` (hold fees would
            be more than they may be).
    """

    def __init__(self, what: str, which: Sequence[str]) -> None:
        super().__init__(f"{what}: {', '.join(which[:3])}")
        self.what = what


class NotAdmitted(Exception):
    """A worker may not enter the pool.

    Attributes:
        what: ``forbidden`` (the id is another account's), ``banned``; or what has as many as it may have: ``account``
            (workers), ``ids`` (worker ids of the account), ``neighbourhood`` (workers).
    """

    def __init__(self, what: str) -> None:
        super().__init__(what)
        self.what = what


@dataclass(frozen=True, slots=True)
class Sample:
    """Free workers drawn at random, and what was true at that moment.

    Attributes:
        named: those that were asked for by name, alive or not.
        known: what the foreman that asks knows of both, and of its job.
    """

    now_ms: int
    balance: int
    workers: list[WorkerRecord]
    workers_alive: int
    slots_alive: int
    named: dict[str, WorkerRecord]
    known: Known


@dataclass(frozen=True, slots=True)
class Told:
    """An account's balance, and tasks of one of its jobs that are to be computed again and were not heard of."""

    balance: int
    recompute: list[str]


@dataclass(frozen=True, slots=True)
class Registered:
    """A worker's registration: its epoch, and leases it held before it started anew."""

    epoch: int
    now_ms: int
    lost_leases: list[str]


@dataclass(frozen=True, slots=True)
class Beat:
    """What a heartbeat learns. `called`: somebody wants the worker at the relay."""

    now_ms: int
    epoch: int
    earned: int
    balance: int
    open_leases: list[str]
    called: bool = False
