"""Reading: what scripts and commands of Redis say, as records and answers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from discovery.records import TaskRecord, WorkerRecord
from discovery.store.answers import Sample, Told

_records = msgspec.msgpack.Decoder(list[TaskRecord | None])


def told_of(balance: bytes | None, recompute: Iterable[bytes]) -> Told:
    """A balance, and ids of tasks."""
    return Told(whole(balance), sorted(task_id.decode() for task_id in recompute))


def leased_of(found: bytes | None) -> list[str] | None:
    """The tasks that an idempotency key stands for."""
    if found is None:
        return None
    return found.decode().split(",") if found else []


def tasks_of(answer: Sequence[Any]) -> tuple[int, dict[str, TaskRecord]]:
    """What load.lua says."""
    now_ms, found = answer
    return now_ms, {record.task_id: record for record in _records.decode(found) if record is not None}


def sample_of(answer: bytes) -> Sample:
    """What sample.lua says."""
    now_ms, balance, workers, slots, *drawn = msgspec.msgpack.decode(answer)
    return Sample(
        now_ms=now_ms,
        balance=balance,
        workers_alive=workers,
        slots_alive=slots,
        workers=[_worker(*pair) for pair in zip(drawn[::2], drawn[1::2], strict=True)],
    )


def workers_of(worker_ids: Sequence[str], answer: bytes) -> dict[str, WorkerRecord]:
    """What workers.lua says."""
    found = zip(worker_ids, msgspec.msgpack.decode(answer), strict=True)
    return {worker_id: _worker(worker_id, fields) for worker_id, fields in found if fields[0]}


def _worker(worker_id: str, fields: Sequence[Any]) -> WorkerRecord:
    """A worker from the fields that sample.lua and workers.lua name; what it does not have is false."""
    account, address, port, slots, epoch, used, capacity, *known = fields
    verified, doubts, words, accusers, share, ask, platform, banned, auditor, terms, relay = known
    return WorkerRecord(
        worker_id=worker_id,
        account_id=account,
        address=address,
        port=int(port),
        slots=int(slots),
        epoch=int(epoch),
        used=int(used),
        capacity=int(capacity),
        verified=int(verified or 0),
        doubts=int(doubts or 0),
        words=int(words or 0),
        accusers=int(accusers or 0),
        share=int(share or 1),
        ask=int(ask or 1),
        platform=platform or "",
        banned=bool(banned),
        auditor=bool(auditor),
        terms=terms or "",
        relay=relay or "never",
    )


def whole(value: bytes | None) -> int:
    """A counter, 0 where there is none."""
    return int(value) if value else 0
