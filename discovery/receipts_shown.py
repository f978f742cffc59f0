"""Receipts as they are shown: sealed bundles opened, and what a foreman is told of those that do not count.

Decided without I/O. What receipts do to tasks is said in `tasks`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from discovery.records import TaskRecord, split_lease
from ec262.errors import SealBroken
from ec262.protocol import messages as m
from ec262.protocol.receipts import Kind, Receipt, open_receipts
from ec262.protocol.states import ReplicaState

MOST_RECEIPTS = 20_000
"""Of one settlement; a foreman's has a few hundred."""
NOT_OPEN = "it does not open, or is of another form: its worker made it wrongly, or it was changed on its way"
NO_RECEIPT = "their results came without a receipt, as their foreman says: nobody can be paid for them"
NOT_OF_JOB = "they are of no task of this job, or of one that is forgotten"

Refusals = dict[tuple[int, str], list[str]]
"""Leases whose receipts do not count, by the position of their bundle and why."""


class Shown(NamedTuple):
    """A receipt somebody showed: whose, of which epoch, for which replica of which task, and what arrived with it."""

    bundle: int
    worker_id: str
    epoch: int
    receipt: Receipt
    arrived: bytes | None
    task_id: str
    number: int


def open_shown(
    sealed: Sequence[m.SealedReceipts], worker_key: Callable[[str], bytes], *, by_worker: bool = False
) -> tuple[list[Shown], Refusals]:
    """The receipts in bundles that hold, and the results that came without one.

    Args:
        worker_key: `Registry.worker_key`.
        by_worker: shown by the worker itself, so that nobody says what arrived.
    """
    shown: list[Shown] = []
    refused: Refusals = {}
    for position, item in enumerate(sealed):
        if len(shown) > MOST_RECEIPTS:
            break
        try:
            bundle = open_receipts(worker_key(item.worker_id), item.token, worker_id=item.worker_id)
            worker_id, epoch, arrived = bundle.worker_id, bundle.epoch, item.arrived
            shown += [
                Shown(
                    position,
                    worker_id,
                    epoch,
                    receipt,
                    None if by_worker else arrived.get(receipt.lease_id, b""),
                    task_id,
                    number,
                )
                for receipt in bundle.receipts
                for task_id, number in (split_lease(receipt.lease_id),)
            ]
        except (SealBroken, ValueError):
            refused[position, NOT_OPEN] = list(item.arrived)
            continue
        named = {receipt.lease_id for receipt in bundle.receipts}
        missing = [lease_id for lease_id in item.arrived if lease_id not in named]
        if missing:
            refused[position, NO_RECEIPT] = missing
    return shown, refused


def refused_receipts(bad: Refusals) -> list[m.RefusedReceipts]:
    """For the foreman: which receipts do not count, and why."""
    return [
        m.RefusedReceipts(position=position, leases=leases, reason=why)
        for (position, why), leases in sorted(bad.items())
    ]


def late_replicas(
    shown: Sequence[Shown], records: dict[str, TaskRecord], decided: Sequence[str]
) -> list[m.LateReplica]:
    """What became of replicas whose receipts were shown beside the tasks that were decided."""
    asked = set(decided)
    late = []
    for item in shown:
        if item.task_id in asked:
            continue
        record = records.get(item.task_id)
        if record is None or not 0 <= item.number < len(record.replicas):
            continue
        replica = record.replicas[item.number]
        if replica.worker_id == item.worker_id and replica.state in (ReplicaState.PAID, ReplicaState.DISSENTED):
            paid = replica.state is ReplicaState.PAID
            late.append(m.LateReplica(lease_id=item.receipt.lease_id, worker_id=item.worker_id, paid=paid))
    return late


def refusals_of(shown: Sequence[Shown], records: dict[str, TaskRecord]) -> list[m.Refusal]:
    """Why workers refused replicas, for the foreman: it cannot open their receipts."""
    refusals = []
    for item in shown:
        if item.receipt.kind is not Kind.REFUSED:
            continue
        record = records.get(item.task_id)
        if record is None or not 0 <= item.number < len(record.replicas):
            continue
        replica = record.replicas[item.number]
        if replica.worker_id == item.worker_id and replica.state is ReplicaState.REFUSED:
            reason = item.receipt.reason[: m.MAX_REASON]
            refusals.append(m.Refusal(lease_id=item.receipt.lease_id, worker_id=item.worker_id, reason=reason))
    return refusals[: m.MAX_TASKS_A_REQUEST]
