"""Explaining: who answered a task, what they weighed when it was decided and weigh now, and why it was decided so."""

from __future__ import annotations

from discovery.beliefs import voices_of
from discovery.changes import View
from discovery.credibility import chance_of, credibility
from discovery.records import ReplicaRecord, TaskRecord
from discovery.store.store import Store
from discovery.trust import Trust
from discovery.verdict import explain
from ec262.errors import ProblemError
from ec262.protocol import messages as m
from ec262.protocol.states import ReplicaState, TaskState


class Explaining:
    """Explains tasks to their own foremen."""

    def __init__(self, store: Store, trust: Trust) -> None:
        self._store = store
        self._trust = trust

    def task(self, account_id: str, task_id: str) -> m.Explanation:
        """All that went into a task's verdict; of one that was not accepted only who has it.

        Raises:
            ProblemError: ``unknown-task``.
        """
        _, records = self._store.load([task_id])
        record = records.get(task_id)
        if record is None or record.account_id != account_id:
            raise ProblemError(404, "unknown-task", "you have no such task, or it is forgotten")
        view = self._trust.views([record])[account_id, record.job_id]
        # Unless it was accepted, and somebody paid, nobody learns whether two workers agree: a foreman whose own
        # workers say "yes" and "no" would know what the third says.
        decided = record.kind is not None
        checked, why_now = _reckon(record, view) if decided else (False, "")
        return m.Explanation(
            task_id=task_id,
            state=record.state,
            confidence=record.confidence,
            reached=record.reached if record.confidence and decided else None,
            kind=record.kind,
            commitment=record.commitment,
            checked=checked,
            why=_why(record),
            why_now=why_now,
            answers=_answers(record, view) if decided else _asked(record),
        )


def _asked(record: TaskRecord) -> list[m.ExplainedAnswer]:
    return [
        m.ExplainedAnswer(
            lease_id=record.lease_id(number),
            worker_id=replica.worker_id,
            state="asked" if record.state is TaskState.LEASED else replica.state,
        )
        for number, replica in enumerate(record.replicas)
    ]


def _answers(record: TaskRecord, view: View) -> list[m.ExplainedAnswer]:
    listed = [(record.lease_id(number), replica) for number, replica in enumerate(record.replicas)]
    listed += [("", replica) for replica in record.heard]
    groups: dict[object, int] = {}
    return [
        _answer(lease_id, replica, view, groups.setdefault((replica.kind, replica.commitment), len(groups)))
        for lease_id, replica in listed
    ]


def _answer(lease_id: str, replica: ReplicaRecord, view: View, group: int) -> m.ExplainedAnswer:
    standing = view.standing(replica.worker_id)
    return m.ExplainedAnswer(
        lease_id=lease_id,
        worker_id=replica.worker_id,
        state=replica.state if lease_id else "heard",
        kind=replica.kind,
        group=group,
        commitment=replica.commitment if replica.state is ReplicaState.PAID else b"",
        verified=standing.verified,
        doubts=standing.doubts,
        auditor=standing.auditor,
        banned=standing.banned,
        believed=replica.believed,
        believed_now=credibility(standing),
    )


def _reckon(record: TaskRecord, view: View) -> tuple[bool, str]:
    """Whether it was a spot check, and what its answers are worth by what is known now."""
    if not record.confidence:
        return False, "redundancy and quorum decide this task: what is known of workers does not count"
    now = explain(voices_of(record, view), confidence=record.confidence, chance=chance_of(view.secret, record.task_id))
    return now.checked, now.why


def _why(record: TaskRecord) -> str:
    same = [(each.kind, each.commitment) for each in record.replicas].count((record.kind, record.commitment))
    match record.state:
        case TaskState.LEASED:
            return "it is not decided yet"
        case TaskState.UNDECIDED:
            return "no answer was believed enough, and no more could be asked or paid"
        case TaskState.EXPIRED:
            return "nobody settled it before its deadline"
        case TaskState.OVERTURNED:
            return f"it was accepted with probability {record.reached:.6f}, and is no longer believed"
    if record.confidence:
        return f"{same} alike, right with probability {record.reached:.6f}; {record.confidence} was wanted"
    return f"{same} alike; {record.quorum} were wanted"
