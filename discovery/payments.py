"""Payments: what becomes of the credits that are in escrow for a replica. No I/O.

Each function changes a loaded working copy of the task and notes in a `Changes` what moves with it: credits, slots
that come free, counters.
"""

from __future__ import annotations

from discovery.changes import Changes, Terms
from discovery.records import ReplicaRecord, TaskRecord, WorkerRecord
from ec262.protocol.states import ReplicaEvent, advance_replica


def price_for(task: TaskRecord, worker: WorkerRecord) -> int:
    """Credits that a replica of the task costs at a worker."""
    return task.units * max(1, worker.ask)


def effort_fee(replica: ReplicaRecord) -> int:
    """What an answer is worth of which nothing is decided: half of its price, rounded up."""
    return (replica.price + 1) // 2


def judge(task: TaskRecord, number: int, now_ms: int, terms: Terms, changes: Changes) -> None:
    """Pays or refunds one reported replica of an accepted task."""
    replica = task.replicas[number]
    if replica.kind is task.kind and replica.commitment == task.commitment:
        replica.state = advance_replica(replica.state, ReplicaEvent.AGREED)
        _pay_out(task, replica, replica.price, now_ms, terms, changes)
        key = (task.account_id, replica.worker_id, replica.worker_account, replica.vests_ms)
        replicas, credits = changes.agreed.get(key, (0, 0))
        changes.agreed[key] = replicas + 1, credits + replica.price
        changes.frees[replica.worker_id].append(task.lease_id(number))
    else:
        replica.state = advance_replica(replica.state, ReplicaEvent.DISAGREED)
        changes.counts[f"worker:{replica.worker_id}", "dissented"] += 1
        refund(task, number, changes)


def pay_back(task: TaskRecord, replica: ReplicaRecord, now_ms: int, changes: Changes) -> int:
    """Moves a paid replica's pay back to its foreman, unless it has vested; returns how much that is."""
    if now_ms >= replica.vests_ms:
        return 0
    changes.move(f"account:{replica.worker_account}", f"account:{task.account_id}", replica.price)
    changes.pay(task.account_id, replica.worker_id, replica.worker_account, replica.vests_ms, -replica.price)
    return replica.price


def compensate(task: TaskRecord, number: int, now_ms: int, terms: Terms, changes: Changes) -> None:
    """Pays the effort fee for an answer of which nothing was decided, and gives the rest back."""
    replica = task.replicas[number]
    replica.state = advance_replica(replica.state, ReplicaEvent.EFFORT_OWED)
    fee = effort_fee(replica)
    _pay_out(task, replica, fee, now_ms, terms, changes)
    changes.pay(task.account_id, replica.worker_id, replica.worker_account, replica.vests_ms, fee)
    refund(task, number, changes, less=fee)


def refund(task: TaskRecord, number: int, changes: Changes, *, less: int = 0) -> None:
    """Gives a replica's escrow back, `less` what left it already, and frees its worker's slot."""
    replica = task.replicas[number]
    changes.move(f"escrow:{task.task_id}", f"account:{task.account_id}", replica.price - less)
    changes.counts[f"account:{task.account_id}", "escrow"] -= replica.price
    changes.frees[replica.worker_id].append(task.lease_id(number))


def _pay_out(
    task: TaskRecord, replica: ReplicaRecord, amount: int, now_ms: int, terms: Terms, changes: Changes
) -> None:
    """Moves a replica's pay out of escrow, and notes from when on it may be spent; who counts it is the caller's."""
    changes.move(f"escrow:{task.task_id}", f"account:{replica.worker_account}", amount)
    replica.vests_ms = now_ms + terms.vesting_ms if terms.vesting_ms else 0
