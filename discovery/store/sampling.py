"""Sampling: how the store is asked for workers that tasks could be leased to, and what it says."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from discovery.records import WorkerRecord, pools_for
from discovery.store.answers import Sample
from discovery.store.known import Job, KnownAnswer

# Numbers are text in Redis, which is read as such where it is not strict.
_answers = msgspec.msgpack.Decoder(
    tuple[int, int, int, int, str | bool, list[WorkerRecord], list[WorkerRecord], KnownAnswer], strict=False
)


@dataclass(frozen=True, slots=True)
class Draw:
    """Which workers are wanted, and by whom.

    Attributes:
        needs: what they have to have.
        count: at most so many.
        job: of the foreman that asks.
        offer: the most that they may ask.
        networks_count: accounts made from one network are one party.
        idempotency_key: of the lease request that they are for; empty: none.
        named: workers of which it is asked as well, alive or not.
    """

    worker_class: str
    needs: Sequence[str]
    count: int
    job: Job = ("", "")
    offer: int = 1
    networks_count: bool = True
    idempotency_key: str = ""
    named: Sequence[str] = ()

    def arguments(self) -> list[Any]:
        """For sample.lua."""
        account_id, job_id = self.job
        return [
            *(self.worker_class, self.count, account_id, secrets.randbits(31), self.offer, job_id),
            *("1" if self.networks_count else "", self.idempotency_key),
            *(len(self.named), *self.named, *pools_for(self.needs)),
        ]


def sample_of(answer: bytes) -> tuple[list[str] | None, Sample]:
    """What sample.lua says: the tasks that the lease request got before, None: it was none; and the sample."""
    now_ms, balance, alive, slots, before, drawn, named, known = _answers.decode(answer)
    workers = [*drawn, *named]
    return _leased(before), Sample(
        now_ms=now_ms,
        balance=balance,
        workers=drawn,
        workers_alive=alive,
        slots_alive=slots,
        named={worker.worker_id: worker for worker in named},
        known=known.of([worker.worker_id for worker in workers], workers),
    )


def _leased(found: str | bool) -> list[str] | None:
    """The tasks that an idempotency key stands for; false: it stands for nothing."""
    if isinstance(found, bool):
        return None
    return found.split(",") if found else []
