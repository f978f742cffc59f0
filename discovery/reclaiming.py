"""Reclaiming: what a convicted worker was paid for results that are computed again goes back to who paid. No I/O.

Only of tasks that were overturned, for these their foreman has to pay once more. Where others vouch for the answer of a
convicted worker, it was right, and stays paid: nobody loses honest pay for what he did elsewhere. And only what has not
vested, for the rest may be spent already.
"""

from __future__ import annotations

from discovery.changes import Changes, View
from discovery.payments import pay_back
from discovery.records import TaskRecord
from ec262.protocol.states import ReplicaEvent, ReplicaState, TaskState, advance_replica


def reclaim(task: TaskRecord, view: View, now_ms: int, changes: Changes) -> int:
    """Takes the unvested pay of banned workers for an overturned task back; their answers go on counting against them.

    Returns:
        Credits that went back.
    """
    if task.state is not TaskState.OVERTURNED:
        return 0
    back = 0
    for replica in task.replicas:
        if replica.state is not ReplicaState.PAID or not view.standing(replica.worker_id).banned:
            continue
        amount = pay_back(task, replica, now_ms, changes)
        if amount:
            replica.state = advance_replica(replica.state, ReplicaEvent.PAY_RECLAIMED)
            changes.jobs[task.account_id, task.job_id].back[replica.worker_id] += amount
            back += amount
    return back
