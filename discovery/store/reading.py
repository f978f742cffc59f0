"""Reading: what scripts and commands of Redis say, as records and answers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from discovery.records import TaskRecord, WorkerRecord
from discovery.store.answers import Told

_records = msgspec.msgpack.Decoder(list[TaskRecord | None])
# Numbers are text in Redis, which is read as such where it is not strict.
_workers = msgspec.msgpack.Decoder(list[WorkerRecord], strict=False)


def told_of(balance: bytes | None, recompute: Iterable[bytes]) -> Told:
    """A balance, and ids of tasks."""
    return Told(whole(balance), sorted(task_id.decode() for task_id in recompute))


def tasks_of(answer: Sequence[Any]) -> tuple[int, dict[str, TaskRecord]]:
    """What load.lua says."""
    now_ms, found = answer
    return now_ms, {record.task_id: record for record in _records.decode(found) if record is not None}


def workers_of(answer: bytes) -> dict[str, WorkerRecord]:
    """What workers.lua says."""
    return {worker.worker_id: worker for worker in _workers.decode(answer)}


def whole(value: bytes | None) -> int:
    """A counter, 0 where there is none."""
    return int(value) if value else 0
