"""Tasks: everything that can happen to one task and its credits, decided without I/O.

Each function changes a loaded working copy of the record and notes in a `Changes` what has to be committed with it:
credits that move, slots that come free, counters. The state tables are in `ec262.protocol.states`.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field

from discovery.records import ReplicaRecord, TaskRecord, WorkerRecord
from discovery.verdict import Accepted, Verdict, decide
from ec262.protocol.receipts import Kind, Receipt
from ec262.protocol.states import (
    ReplicaEvent,
    ReplicaState,
    TaskEvent,
    TaskState,
    advance_replica,
    advance_task,
)

Move = tuple[str, str, int]
"""Credits on their way: from, to, amount. Places are ``mint``, ``burn``, ``account:<id>`` and ``escrow:<task>``."""


@dataclass(slots=True)
class Changes:
    """What one atomic step commits.

    Attributes:
        tasks: (record, version it was loaded with, when it next needs attention in ms or None to delete it).
        takes: leases given to a worker, by worker and the epoch they count in.
        frees: leases whose slot comes free, by worker.
        counts: increments, by (``account:<id>`` or ``worker:<id>``, field).
    """

    tasks: list[tuple[TaskRecord, int, int | None]] = field(default_factory=list)
    moves: list[Move] = field(default_factory=list)
    takes: dict[tuple[str, int], list[str]] = field(default_factory=lambda: defaultdict(list))
    frees: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    counts: dict[tuple[str, str], int] = field(default_factory=lambda: defaultdict(int))

    def move(self, source: str, target: str, amount: int) -> None:
        """Notes that credits move."""
        if amount:
            self.moves.append((source, target, amount))


@dataclass(frozen=True, slots=True)
class Grace:
    """Times the rules need, in ms: how late a receipt may come, how long settled keys are kept."""

    late_ms: int
    settled_ms: int


def add_replicas(task: TaskRecord, workers: list[WorkerRecord], now_ms: int, changes: Changes) -> list[int]:
    """Leases the task to further workers and puts their price in escrow; returns the new replicas' numbers."""
    numbers = []
    for worker in workers:
        number = len(task.replicas)
        task.replicas.append(
            ReplicaRecord(worker.worker_id, worker.account_id, worker.epoch, now_ms + int(task.timeout_s * 1000))
        )
        changes.move(f"account:{task.account_id}", f"escrow:{task.task_id}", task.price)
        changes.counts[f"account:{task.account_id}", "escrow"] += task.price
        changes.takes[worker.worker_id, worker.epoch].append(task.lease_id(number))
        numbers.append(number)
    return numbers


def record_receipt(
    task: TaskRecord, number: int, worker_id: str, epoch: int, receipt: Receipt, changes: Changes
) -> str:
    """Records a worker's receipt: the first of a lease wins. On an accepted task it is judged at once.

    Returns:
        Empty, or why the receipt does not count.
    """
    if not 0 <= number < len(task.replicas):
        return "no such lease"
    replica = task.replicas[number]
    if replica.worker_id != worker_id or replica.epoch != epoch:
        return "the lease is another worker's, or from before this worker started anew"
    if replica.state is not ReplicaState.OPEN:
        return ""
    if receipt.kind is Kind.REFUSED:
        replica.state = advance_replica(replica.state, ReplicaEvent.REFUSAL_RECORDED)
        _refund(task, number, changes)
        changes.counts[f"worker:{worker_id}", "refused"] += 1
        return ""
    replica.state = advance_replica(replica.state, ReplicaEvent.RECEIPT_RECORDED)
    replica.kind, replica.commitment, replica.cpu_s = receipt.kind, receipt.commitment, receipt.cpu_s
    if task.state is TaskState.ACCEPTED:
        _judge(task, number, changes)
    elif task.state is not TaskState.LEASED:
        replica.state = advance_replica(replica.state, ReplicaEvent.LEFT_UNDECIDED)
        _refund(task, number, changes)
    return ""


def verdict_on(task: TaskRecord) -> Verdict:
    """Whose result would count now."""
    answers = [(r.kind, r.commitment) for r in task.replicas if r.state is ReplicaState.REPORTED and r.kind]
    outstanding = sum(1 for r in task.replicas if r.state is ReplicaState.OPEN and not r.lost)
    ran = sum(1 for r in task.replicas if r.state is not ReplicaState.REFUSED)
    return decide(
        answers,
        outstanding=outstanding,
        quorum=task.quorum,
        max_replicas=task.max_replicas,
        gone=ran - len(answers) - outstanding,
    )


def waited_for(task: TaskRecord, *, after: int) -> list[int]:
    """Numbers of the replicas past `after` that are out and not given up."""
    return [n for n, r in enumerate(task.replicas) if n > after and r.state is ReplicaState.OPEN and not r.lost]


def still_out(task: TaskRecord) -> bool:
    """Whether an answer can still come, also of a worker that nobody waits for any more."""
    return any(replica.state is ReplicaState.OPEN for replica in task.replicas)


def accept(task: TaskRecord, verdict: Accepted, now_ms: int, grace: Grace, changes: Changes) -> None:
    """Makes the agreed answer the task's result: pays who gave it, refunds what others would have cost."""
    task.state = advance_task(task.state, TaskEvent.QUORUM_REACHED)
    task.kind, task.commitment = verdict.answer
    task.forget_ms = now_ms + grace.settled_ms
    for number, replica in enumerate(task.replicas):
        if replica.state is ReplicaState.REPORTED:
            _judge(task, number, changes)


def give_up(task: TaskRecord, now_ms: int, grace: Grace, changes: Changes) -> None:
    """Ends the task without a result: no keys; what is in escrow for reported replicas goes back."""
    task.state = advance_task(task.state, TaskEvent.GAVE_UP)
    task.forget_ms = now_ms + grace.settled_ms
    for number, replica in enumerate(task.replicas):
        if replica.state is ReplicaState.REPORTED:
            replica.state = advance_replica(replica.state, ReplicaEvent.LEFT_UNDECIDED)
            _refund(task, number, changes)


def expire_replicas(task: TaskRecord, numbers: list[int], changes: Changes) -> None:
    """Frees open replicas whose worker started anew: it no longer knows of them."""
    for number in numbers:
        replica = task.replicas[number]
        if replica.state is ReplicaState.OPEN:
            replica.state = advance_replica(replica.state, ReplicaEvent.WORKER_RESTARTED)
            _refund(task, number, changes)


def fall_due(task: TaskRecord, now_ms: int, grace: Grace, changes: Changes) -> None:
    """What time does: replicas past deadline and grace give their escrow back; a task with nothing left ends."""
    for number in task.holding:
        replica = task.replicas[number]
        if replica.deadline_ms + grace.late_ms <= now_ms:
            if replica.state is ReplicaState.OPEN:
                changes.counts[f"worker:{replica.worker_id}", "expired"] += 1
            replica.state = advance_replica(replica.state, ReplicaEvent.FELL_DUE)
            _refund(task, number, changes)
    if task.state is TaskState.LEASED and not task.holding:
        last_ms = max((replica.deadline_ms for replica in task.replicas), default=now_ms) + grace.late_ms
        if last_ms <= now_ms:
            task.state = advance_task(task.state, TaskEvent.ALL_FELL_DUE)
            task.forget_ms = now_ms + grace.settled_ms
    if task.state is not TaskState.LEASED and not task.holding and task.forget_ms <= now_ms:
        task.state = advance_task(task.state, TaskEvent.GRACE_ENDED)


def next_due(task: TaskRecord, grace: Grace) -> int | None:
    """When the task next needs attention, ms by Redis' clock; None: its record can be deleted."""
    if task.state is TaskState.FORGOTTEN:
        return None
    held = [task.replicas[number].deadline_ms + grace.late_ms for number in task.holding]
    if held:
        return min(held)
    if task.state is TaskState.LEASED:
        return max((replica.deadline_ms for replica in task.replicas), default=0) + grace.late_ms
    return task.forget_ms


def _judge(task: TaskRecord, number: int, changes: Changes) -> None:
    """Pays or refunds one reported replica of an accepted task."""
    replica = task.replicas[number]
    worker = f"worker:{replica.worker_id}"
    if (replica.kind, replica.commitment) == (task.kind, task.commitment):
        replica.state = advance_replica(replica.state, ReplicaEvent.AGREED)
        changes.move(f"escrow:{task.task_id}", f"account:{replica.worker_account}", task.price)
        changes.counts[f"account:{replica.worker_account}", "earned"] += task.price
        changes.counts[f"account:{task.account_id}", "spent"] += task.price
        changes.counts[f"account:{task.account_id}", "escrow"] -= task.price
        changes.counts[worker, "earned"] += task.price
        changes.counts[worker, "agreed"] += 1
        changes.frees[replica.worker_id].append(task.lease_id(number))
    else:
        replica.state = advance_replica(replica.state, ReplicaEvent.DISAGREED)
        changes.counts[worker, "dissented"] += 1
        _refund(task, number, changes)


def _refund(task: TaskRecord, number: int, changes: Changes) -> None:
    """Gives a replica's escrow back and frees its worker's slot."""
    replica = task.replicas[number]
    changes.move(f"escrow:{task.task_id}", f"account:{task.account_id}", task.price)
    changes.counts[f"account:{task.account_id}", "escrow"] -= task.price
    changes.frees[replica.worker_id].append(task.lease_id(number))
