"""Tasks: everything that can happen to one task and its credits, decided without I/O.

Each function changes a loaded working copy of the record and notes in a `Changes` what has to be committed with it:
credits that move (`payments`), what the task taught of its workers (`beliefs`), slots that come free, counters. The
state tables are in `ec262.protocol.states`.
"""

from __future__ import annotations

import hashlib
import hmac
from collections import Counter

from discovery.beliefs import teach, teach_late, unlearn, voices_of
from discovery.changes import NEVER, Changes, Terms, View
from discovery.credibility import Tally, chance_of, established
from discovery.payments import compensate, effort_fee, judge, pay_back, price_for, refund
from discovery.records import ReplicaRecord, TaskRecord, WorkerRecord
from discovery.verdict import Accepted, Answer, More, Pending, Undecided, Verdict, decide, decide_credible
from ec262.protocol.receipts import Kind, Receipt, tokens_digest
from ec262.protocol.states import (
    AWAITED,
    HOLDS_ESCROW,
    ReplicaEvent,
    ReplicaState,
    TaskEvent,
    TaskState,
    advance_replica,
    advance_task,
)

STRANGERS = 4
"""Of what only its worker says, newcomers are paid one in so many of what others may be."""
NO_TOKENS = "it names no tokens: whoever has computed something has bytes to show for it"
NOT_ARRIVED = (
    "what arrived, as its foreman says, is not what its worker gave a receipt for: one of them is wrong, and it counts "
    "as a receipt that its foreman withheld"
)


def add_replicas(task: TaskRecord, workers: list[WorkerRecord], now_ms: int, changes: Changes) -> list[int]:
    """Leases the task to further workers and puts their price in escrow; returns the new replicas' numbers."""
    numbers = []
    foreman, escrow = f"account:{task.account_id}", f"escrow:{task.task_id}"
    deadline_ms = now_ms + int(task.timeout_s * 1000)
    for worker in workers:
        number = len(task.replicas)
        price = price_for(task, worker)
        task.replicas.append(ReplicaRecord(worker.worker_id, worker.account_id, worker.epoch, deadline_ms, price=price))
        changes.move(foreman, escrow, price)
        changes.counts[foreman, "escrow"] += price
        changes.takes[worker.worker_id, worker.epoch].append(task.lease_id(number))
        numbers.append(number)
    return numbers


def record_receipt(
    task: TaskRecord,
    number: int,
    worker_id: str,
    epoch: int,
    receipt: Receipt,
    now_ms: int,
    terms: Terms,
    view: View,
    changes: Changes,
    arrived: bytes | None,
) -> str:
    """Records a worker's receipt: the first of a lease wins. On an accepted task it is judged at once.

    Before the verdict it is an answer only once its result arrived. Who could be paid for an answer whose bytes nobody
    has would not have to compute it.

    Args:
        arrived: what its foreman says of the tokens that arrived (`tokens_digest`), empty: that none did. None: its
            worker shows the receipt itself, and its foreman says nothing.

    Returns:
        Empty, or why the receipt does not count; `NOT_ARRIVED` for a result that its foreman says it does not have.
    """
    if not 0 <= number < len(task.replicas):
        return "no such lease"
    replica = task.replicas[number]
    if replica.worker_id != worker_id or replica.epoch != epoch:
        return "the lease is another worker's, or from before this worker started anew"
    if replica.state is ReplicaState.SHOWN:
        return _arrive(task, replica, arrived, changes)
    if replica.state is not ReplicaState.OPEN:
        return ""
    if receipt.kind is Kind.REFUSED:
        replica.state = advance_replica(replica.state, ReplicaEvent.REFUSAL_RECORDED)
        refund(task, number, changes)
        changes.counts[f"worker:{worker_id}", "refused"] += 1
        return ""
    if not receipt.token_digests:
        if arrived is not None:
            _deny(task, replica, changes)
        return NO_TOKENS
    replica.kind, replica.commitment, replica.cpu_s = receipt.kind, receipt.commitment, receipt.cpu_s
    replica.tokens = tokens_digest(receipt.token_digests)
    if task.state is TaskState.LEASED and arrived != replica.tokens:
        replica.state = advance_replica(replica.state, ReplicaEvent.RECEIPT_SHOWN)
        return _arrive(task, replica, arrived, changes)
    replica.state = advance_replica(replica.state, ReplicaEvent.RECEIPT_RECORDED)
    if task.state in (TaskState.ACCEPTED, TaskState.KEPT):
        judge(task, number, now_ms, terms, changes)
        teach_late(task, replica, view, changes)
    elif task.state is TaskState.OVERTURNED:
        compensate(task, number, now_ms, terms, changes)
    elif task.state is not TaskState.LEASED:
        replica.state = advance_replica(replica.state, ReplicaEvent.LEFT_UNDECIDED)
        refund(task, number, changes)
    return ""


def note_unreadable(task: TaskRecord, number: int, worker_id: str, changes: Changes) -> bool:
    """Its foreman says that a worker's result came without a receipt that can be read; whether it had that lease."""
    replica = task.replicas[number] if number < len(task.replicas) else None
    if replica is None or replica.worker_id != worker_id or replica.state is not ReplicaState.OPEN:
        return False
    _deny(task, replica, changes)
    return True


def verdict_on(task: TaskRecord, view: View, *, further: float | None = None) -> Verdict:
    """Whose result would count now.

    Args:
        further: how far the worker that is asked next is probably believed; None: it is a newcomer.
    """
    if task.confidence and len(task.replicas) == 1 and not task.heard:
        # Most tasks of a network that knows its workers: as `decide_credible` decides it, with all prepared.
        (replica,) = task.replicas
        if replica.state is ReplicaState.REPORTED and replica.kind is not None:
            alone = view.first_word(replica.worker_id)
            if alone.counts(task.confidence, chance_of(view.secret, task.task_id)):
                return Accepted((replica.kind, replica.commitment), alone.believed)
    answers: list[Answer] = []
    outstanding = ran = 0
    for replica in task.replicas:
        state = replica.state
        if state is ReplicaState.REPORTED:
            ran += 1
            if replica.kind:
                answers.append((replica.kind, replica.commitment))
        elif state in AWAITED:
            ran += 1
            outstanding += not replica.lost
        elif state is not ReplicaState.REFUSED:
            ran += 1
    gone = ran - len(answers) - outstanding
    if not task.confidence:
        return decide(answers, outstanding=outstanding, quorum=task.quorum, max_replicas=task.max_replicas, gone=gone)
    verdict = decide_credible(
        voices_of(task, view),
        outstanding=outstanding,
        confidence=task.confidence,
        max_replicas=task.max_replicas + len(task.heard),
        chance=chance_of(view.secret, task.task_id),
        gone=gone,
        further=further,
    )
    if isinstance(verdict, Accepted) and verdict.answer not in answers:
        # What was heard of the task before is believed: but somebody has to bring the bytes.
        if outstanding:
            return Pending()
        return More(1) if ran < task.max_replicas else Undecided()
    return verdict


def waited_for(task: TaskRecord, *, after: int) -> list[int]:
    """Numbers of the replicas past `after` that are out and not given up."""
    return [n for n, r in enumerate(task.replicas) if n > after and r.state in AWAITED and not r.lost]


def still_out(task: TaskRecord) -> bool:
    """Whether an answer can still come, also of a worker that nobody waits for any more."""
    return any(replica.state in AWAITED for replica in task.replicas)


def accept(task: TaskRecord, verdict: Accepted, now_ms: int, terms: Terms, view: View, changes: Changes) -> None:
    """Makes an answer the task's result: pays who gave it, refunds what others would have cost, teaches of both.

    A receipt whose result did not arrive is judged like one that comes late: whoever committed itself to the same has
    computed it.
    """
    task.state = advance_task(task.state, TaskEvent.BELIEVED)
    task.kind, task.commitment = verdict.answer
    task.reached = verdict.confidence or 0.0
    task.forget_ms = now_ms + terms.settled_ms
    changes.counts["stats", "accepted"] += 1
    teach(task, view, changes)
    if task.confidence:
        task.keep = True
        changes.jobs[task.account_id, task.job_id].accepted.append(task.task_id)
        for replica in task.replicas:
            if replica.state is ReplicaState.REPORTED:
                replica.believed = view.first_word(replica.worker_id).believed
    for number, replica in enumerate(task.replicas):
        if replica.state is ReplicaState.REPORTED:
            judge(task, number, now_ms, terms, changes)
        elif replica.state is ReplicaState.SHOWN:
            if _is_contested(replica) and (replica.kind, replica.commitment) != verdict.answer:
                _shift_work(replica, changes)
            judge(task, number, now_ms, terms, changes)
            teach_late(task, replica, view, changes)


def give_up(task: TaskRecord, now_ms: int, terms: Terms, view: View, changes: Changes) -> None:
    """Ends the task without a result: no keys, and nobody's reputation changes.

    Established workers get the effort fee, unless most answers are alike and theirs is another: up to `effort_cap` for
    their account in this job. All else goes back. Of receipts whose results did not arrive none makes a majority.
    """
    task.state = advance_task(task.state, TaskEvent.GAVE_UP)
    task.forget_ms = now_ms + terms.settled_ms
    reported = [number for number, replica in enumerate(task.replicas) if replica.state is ReplicaState.REPORTED]
    groups = Counter((task.replicas[number].kind, task.replicas[number].commitment) for number in reported)
    majority = next((answer for answer, count in groups.items() if 2 * count > len(reported)), None)
    for number, replica in enumerate(task.replicas):
        if replica.state in (ReplicaState.REPORTED, ReplicaState.SHOWN):
            if _is_contested(replica):
                _shift_work(replica, changes)
            alike = majority in (None, (replica.kind, replica.commitment))
            known = established(view.standing(replica.worker_id))
            if alike and known and _earns_effort(task, replica, terms.effort_cap, view, changes):
                compensate(task, number, now_ms, terms, changes)
            else:
                replica.state = advance_replica(replica.state, ReplicaEvent.LEFT_UNDECIDED)
                refund(task, number, changes)


def expire_replicas(task: TaskRecord, numbers: list[int], changes: Changes) -> None:
    """Frees open replicas whose worker started anew: it no longer knows of them."""
    for number in numbers:
        replica = task.replicas[number]
        if replica.state is ReplicaState.OPEN:
            replica.state = advance_replica(replica.state, ReplicaEvent.WORKER_RESTARTED)
            refund(task, number, changes)


def release_unpushed(
    task: TaskRecord, number: int, worker_id: str, now_ms: int, terms: Terms, view: View, changes: Changes
) -> None:
    """Frees a replica that its worker was never pushed, once it held the worker for too long.

    One lease in `hold_leases` costs its foreman a credit, up to `hold_cap` for the workers of an account in a job.
    Which one is secret: leases that are denied one by one cost as much as those that are denied together. The credit is
    burnt: were it the worker's, a worker could live on saying so. One's own workers cost nothing.
    """
    if not 0 <= number < len(task.replicas):
        return
    replica = task.replicas[number]
    leased_ms = replica.deadline_ms - int(task.timeout_s * 1000)
    if replica.worker_id != worker_id or replica.state is not ReplicaState.OPEN or now_ms < leased_ms + terms.hold_ms:
        return
    replica.state = advance_replica(replica.state, ReplicaEvent.NEVER_PUSHED)
    changes.counts[f"worker:{worker_id}", "unpushed"] += 1
    fee = 0
    if replica.worker_account != task.account_id:
        changes.denied[worker_id].add(view.party)
        if owes_hold_fee(view.secret, task.lease_id(number), terms.hold_leases):
            held = changes.jobs[task.account_id, task.job_id].held
            account = replica.worker_account
            fee = 1 if view.held.get(account, 0) + held.get(account, 0) < terms.hold_cap else 0
            held[account] += fee
            changes.move(f"escrow:{task.task_id}", "burn", fee)
            changes.counts[f"account:{task.account_id}", "spent"] += fee
    refund(task, number, changes, less=fee)


def owes_hold_fee(secret: bytes, lease_id: str, one_in: int) -> bool:
    """Whether a lease costs a credit if it is not pushed: one in so many does; who has not the secret cannot tell."""
    digest = hmac.digest(secret, b"hold fee " + lease_id.encode(), hashlib.sha256)
    return int.from_bytes(digest[:8], "big") % one_in == 0


def rests_on_workers(task: TaskRecord) -> bool:
    """Whether anything was computed of which only its worker says so: it showed a receipt, its foreman did not."""
    return any(replica.state is ReplicaState.SHOWN for replica in task.replicas)


def fall_due(task: TaskRecord, now_ms: int, terms: Terms, changes: Changes, view: View | None = None) -> None:
    """What time does: replicas past deadline and grace leave escrow, those that answered with the effort fee; a task
    with nothing left ends.

    What only its worker says cannot be told from nothing: the fee has a cap for its account in this job, `effort_cap`
    where it is established, a part of that where nobody knows it; none, where its foreman contradicts a newcomer. Who
    is contradicted or not known is given less from now on: else receipts for nothing would be a living.

    Args:
        view: wanted where it `rests_on_workers`.
    """
    for number in task.holding:
        replica = task.replicas[number]
        if replica.state is ReplicaState.OPEN and replica.deadline_ms + terms.late_ms <= now_ms:
            replica.state = advance_replica(replica.state, ReplicaEvent.FELL_DUE)
            changes.counts[f"worker:{replica.worker_id}", "expired"] += 1
            changes.halved.add(replica.worker_id)
            refund(task, number, changes)
    held = task.holding
    if held and _last_ms(task, terms) <= now_ms:
        # Answers that nobody settled while anything was out.
        for number in held:
            replica = task.replicas[number]
            owed = True
            if replica.state is ReplicaState.SHOWN:
                known = view is not None and established(view.standing(replica.worker_id))
                most = terms.effort_cap // (1 if known else STRANGERS)
                if _is_contested(replica):
                    _shift_work(replica, changes)
                    most = terms.effort_cap if known else 0
                elif not known:
                    changes.halved.add(replica.worker_id)
                owed = view is not None and _earns_effort(task, replica, most, view, changes)
            if owed:
                compensate(task, number, now_ms, terms, changes)
            else:
                replica.state = advance_replica(replica.state, ReplicaEvent.LEFT_UNDECIDED)
                refund(task, number, changes)
    if task.state is TaskState.LEASED and not task.holding and _last_ms(task, terms) <= now_ms:
        task.state = advance_task(task.state, TaskEvent.ALL_FELL_DUE)
        task.forget_ms = now_ms + terms.settled_ms
    if task.state is TaskState.LEASED or task.holding or task.forget_ms > now_ms:
        return
    if not task.keep:
        task.state = advance_task(task.state, TaskEvent.GRACE_ENDED)
    elif task.state is TaskState.ACCEPTED:
        task.state = advance_task(task.state, TaskEvent.KEYS_DESTROYED)
        task.nonce = b""


def next_due(task: TaskRecord, terms: Terms) -> int | None:
    """When the task next needs attention, ms by Redis' clock; `NEVER`; None: its record can be deleted."""
    if task.state is TaskState.FORGOTTEN:
        return None
    first_ms = 0
    held = False
    for replica in task.replicas:
        if replica.state is ReplicaState.OPEN:
            first_ms = min(first_ms or replica.deadline_ms, replica.deadline_ms)
        elif replica.state in HOLDS_ESCROW:
            held = True
    if first_ms:
        return first_ms + terms.late_ms
    if held or task.state is TaskState.LEASED:
        return _last_ms(task, terms)
    if task.keep and task.state is not TaskState.ACCEPTED:
        return NEVER
    return task.forget_ms


def lose_dispute(task: TaskRecord, number: int, now_ms: int, lost: Tally, view: View, changes: Changes) -> int:
    """A paid replica's worker had delivered junk: its pay goes back unless it has vested, its answer counts no more.

    Returns:
        Credits that came back.
    """
    replica = task.replicas[number]
    unlearn(task, replica, view, changes)
    replica.state = advance_replica(replica.state, ReplicaEvent.DISPUTE_LOST)
    replica.disputed = "upheld"
    if replica.worker_account != task.account_id:
        changes.learn(replica.worker_id, view.party, lost)
    return pay_back(task, replica, now_ms, changes)


def refuse_dispute(task: TaskRecord, number: int, fee: int, changes: Changes) -> None:
    """The bytes were honest: the foreman pays for the trouble."""
    replica = task.replicas[number]
    changes.touched.add(task.task_id)
    replica.disputed = "refused"
    changes.move(f"account:{task.account_id}", f"account:{replica.worker_account}", fee)
    changes.counts[f"account:{task.account_id}", "spent"] += fee
    changes.counts[f"account:{replica.worker_account}", "earned"] += fee


def _arrive(task: TaskRecord, replica: ReplicaRecord, arrived: bytes | None, changes: Changes) -> str:
    """What a known receipt becomes by what its foreman says of the result. Arguments and result as `record_receipt`."""
    if arrived is None:
        return ""
    if arrived == replica.tokens:
        replica.state = advance_replica(replica.state, ReplicaEvent.RECEIPT_RECORDED)
        return ""
    _deny(task, replica, changes)
    return NOT_ARRIVED


def _deny(task: TaskRecord, replica: ReplicaRecord, changes: Changes) -> None:
    """Its foreman says that nothing came of use: it gets no more of this job."""
    changes.jobs[task.account_id, task.job_id].undelivered[replica.worker_id] += 1


def _is_contested(replica: ReplicaRecord) -> bool:
    return replica.state is ReplicaState.SHOWN and replica.lost


def _shift_work(replica: ReplicaRecord, changes: Changes) -> None:
    """Nobody but the worker says that it computed what did not arrive: it is given less from now on. Its name does not
    suffer by its foreman's word."""
    changes.counts[f"worker:{replica.worker_id}", "undelivered"] += 1
    changes.halved.add(replica.worker_id)


def _earns_effort(task: TaskRecord, replica: ReplicaRecord, most: int, view: View, changes: Changes) -> bool:
    """Whether an effort fee is owed, at most `most` credits of them for an account in a job; notes that it is paid."""
    effort = changes.jobs[task.account_id, task.job_id].effort
    account, fee = replica.worker_account, effort_fee(replica)
    owed = view.effort.get(account, 0) + effort.get(account, 0) + fee <= most
    if owed:
        effort[account] += fee
    return owed


def _last_ms(task: TaskRecord, terms: Terms) -> int:
    """When nothing can come for a task any more."""
    return max([replica.deadline_ms for replica in task.replicas], default=0) + terms.late_ms
