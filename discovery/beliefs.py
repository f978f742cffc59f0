"""Beliefs: what the answers to a task say of their workers, and whether it still holds. No I/O.

What a task taught is noted in its replicas, so that exactly that can be taken back.
"""

from __future__ import annotations

from discovery.changes import Changes, View
from discovery.credibility import Tally
from discovery.records import ReplicaRecord, TaskRecord
from discovery.verdict import Answer, Voice, belief, lessons
from ec262.protocol.states import ReplicaState, TaskEvent, TaskState, advance_task

VOICED = frozenset({ReplicaState.REPORTED, ReplicaState.PAID, ReplicaState.DISSENTED, ReplicaState.RECLAIMED})
"""States of replicas whose answers count towards a verdict."""


def voices_of(task: TaskRecord, view: View) -> list[Voice]:
    """The answers to a task that count towards a verdict, in the order in which they were asked for."""
    return [_voice(replica, view) for replica in _answered(task)]


def believed(task: TaskRecord, view: View) -> float:
    """How likely the accepted answer is right by what is known now."""
    return belief(voices_of(task, view), _answer(task))


def holds(task: TaskRecord, view: View) -> bool:
    """Whether an accepted task is still believed as far as its policy wants."""
    return not task.confidence or believed(task, view) >= task.confidence


def rests_on_banned(task: TaskRecord, view: View) -> bool:
    """Whether an answer counted whose worker was banned since."""
    return any(view.standing(replica.worker_id).banned for replica in _answered(task))


def settled_answers(task: TaskRecord) -> bool:
    """Whether the task was accepted, and still is."""
    return task.state in (TaskState.ACCEPTED, TaskState.KEPT)


def opened_by_anybody(task: TaskRecord) -> bool:
    """Whether a paid worker's result is left that is not known to be junk."""
    return any(replica.state is ReplicaState.PAID for replica in task.replicas)


def hear(task: TaskRecord, old: TaskRecord) -> bool:
    """Has `task`, which computes `old` anew, heard the answers of `old`; each is heard in one task alone.

    Returns:
        Whether they are heard.
    """
    fits = old.state is TaskState.OVERTURNED and not old.replaced and old.input_digest == task.input_digest
    if fits and old.job_id == task.job_id and old.account_id == task.account_id:
        task.heard = _answered(old)
        old.replaced = True
        return True
    return False


def reconsider(task: TaskRecord, view: View, changes: Changes) -> bool:
    """Backs an accepted task up after a conviction: what it taught is taken back, and taught anew if it still holds.

    Returns:
        Whether it was overturned.
    """
    changes.touched.add(task.task_id)
    _withdraw(task, view, changes)
    if not holds(task, view):
        _overturn(task, changes)
        return True
    teach(task, view, changes)
    return False


def overturn(task: TaskRecord, view: View, changes: Changes) -> None:
    """Takes an accepted task back: what it taught, and that it is accepted. It is to be computed again."""
    _withdraw(task, view, changes)
    _overturn(task, changes)


def teach(task: TaskRecord, view: View, changes: Changes) -> None:
    """Notes what an accepted task says of those who answered it."""
    if len(task.replicas) + len(task.heard) < 2:
        return
    answered = _answered(task)
    if len(answered) < 2:
        return
    taught = lessons([_voice(replica, view) for replica in answered], _answer(task), price=task.units, noise=view.noise)
    for replica, gained in zip(answered, taught, strict=True):
        _learn(task, replica, gained, view, changes)


def teach_late(task: TaskRecord, late: ReplicaRecord, view: View, changes: Changes) -> None:
    """Notes what an answer says of its worker that came after its task was accepted."""
    answered = _answered(task)
    if len(answered) < 2:
        return
    taught = lessons([_voice(replica, view) for replica in answered], _answer(task), price=task.units, noise=view.noise)
    for replica, gained in zip(answered, taught, strict=True):
        if replica is late:
            _learn(task, replica, gained, view, changes)


def unlearn(task: TaskRecord, replica: ReplicaRecord, view: View, changes: Changes) -> None:
    """Takes back what a task taught of one who answered it."""
    if replica.differed is not None:
        job = changes.jobs[task.account_id, task.job_id]
        job.compared[replica.worker_id] -= 1
        if replica.differed:
            job.differed[replica.worker_id] -= 1
        replica.differed = None
    gained = Tally(replica.verified, replica.doubts, replica.words)
    replica.verified = replica.doubts = replica.words = 0
    if view.noisy:
        gained = Tally(verified=gained.verified)  # the doubts of this job were taken back when it was found out
    if gained != Tally():
        changes.learn(replica.worker_id, view.party, Tally().minus(gained))
    if gained.doubts or gained.words:
        job = changes.jobs[task.account_id, task.job_id]
        job.doubts[f"{replica.worker_id}:d"] -= gained.doubts
        job.doubts[f"{replica.worker_id}:w"] -= gained.words


def _answered(task: TaskRecord) -> list[ReplicaRecord]:
    mine = [replica for replica in task.replicas if replica.state in VOICED and replica.kind]
    return [*task.heard, *mine] if task.heard else mine


def _voice(replica: ReplicaRecord, view: View) -> Voice:
    party = replica.worker_account if view.accounts_count_once else replica.worker_id
    assert replica.kind is not None
    return Voice(replica.worker_id, party, (replica.kind, replica.commitment), view.standing(replica.worker_id))


def _answer(task: TaskRecord) -> Answer:
    assert task.kind is not None
    return task.kind, task.commitment


def _learn(task: TaskRecord, replica: ReplicaRecord, gained: Tally, view: View, changes: Changes) -> None:
    if replica.worker_account == task.account_id:
        return  # nobody verifies or doubts himself
    if view.noisy:
        gained = Tally(verified=gained.verified)
    replica.verified, replica.doubts, replica.words = gained.verified, gained.doubts, gained.words
    changes.learn(replica.worker_id, view.party, gained)
    job = changes.jobs[task.account_id, task.job_id]
    if not view.standing(replica.worker_id).banned:
        replica.differed = (replica.kind, replica.commitment) != _answer(task)
        job.compared[replica.worker_id] += 1
        if replica.differed:
            job.differed[replica.worker_id] += 1
    if gained.doubts or gained.words:
        job.doubts[f"{replica.worker_id}:d"] += gained.doubts
        job.doubts[f"{replica.worker_id}:w"] += gained.words


def _withdraw(task: TaskRecord, view: View, changes: Changes) -> None:
    """Takes back what a task taught."""
    for replica in (*task.heard, *task.replicas):
        unlearn(task, replica, view, changes)


def _overturn(task: TaskRecord, changes: Changes) -> None:
    task.state = advance_task(task.state, TaskEvent.NO_LONGER_BELIEVED)
    task.nonce = b""
    changes.jobs[task.account_id, task.job_id].recompute.append(task.task_id)
