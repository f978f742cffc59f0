"""Tasks: everything that can happen to one task and its credits, decided without I/O.

Each function changes a loaded working copy of the record and notes in a `Changes` what has to be committed with it:
credits that move, slots that come free, counters, what the task taught of its workers. The state tables are in
`ec262.protocol.states`.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field

from discovery.credibility import NEWCOMER, QUIET, Noise, Standing, Tally, chance_of, credibility, established
from discovery.records import ReplicaRecord, TaskRecord, WorkerRecord
from discovery.verdict import (
    Accepted,
    Answer,
    More,
    Pending,
    Undecided,
    Verdict,
    Voice,
    belief,
    decide,
    decide_credible,
    lessons,
)
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

NEVER = -1
"""Instead of a time: the task needs no attention, but somebody may still ask for it."""

VOICED = frozenset({ReplicaState.REPORTED, ReplicaState.PAID, ReplicaState.DISSENTED})
"""States of replicas whose answers count towards a verdict."""


@dataclass(slots=True)
class JobChanges:
    """What a job's records gain.

    Attributes:
        compared, differed: answers that were compared with others, and those that differed, by worker.
        doubts: what tallies gained in it, by ``<worker>:d`` (doubts) and ``<worker>:w`` (words).
        effort: effort fees of undecided tasks, by account.
        accepted: tasks to be remembered until it closes.
        recompute: tasks to be computed again.
    """

    compared: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    differed: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    doubts: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    effort: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    accepted: list[str] = field(default_factory=list)
    recompute: list[str] = field(default_factory=list)


@dataclass(slots=True)
class Changes:
    """What one atomic step commits.

    Attributes:
        tasks: (record, version it was loaded with, when it next needs attention in ms, `NEVER`, or None to delete it).
        takes: leases given to a worker, by worker and the epoch they count in.
        frees: leases whose slot comes free, by worker.
        counts: increments, by (``account:<id>``, ``worker:<id>`` or ``stats``, field).
        lessons: what tallies gain, by (worker, party of the foreman).
        jobs: what jobs' records gain, by (account, job).
        vesting: pay that may not be spent yet, by (account, ms from which it may); negative: it is taken back, and has
            to be there.
        hush: a job whose doubts are taken back with this, which happens once.
        touched: tasks to be committed though their states are as before.
        halved, restored: workers that get half of what they got, and those that get all again.
    """

    tasks: list[tuple[TaskRecord, int, int | None]] = field(default_factory=list)
    moves: list[Move] = field(default_factory=list)
    takes: dict[tuple[str, int], list[str]] = field(default_factory=lambda: defaultdict(list))
    frees: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    counts: dict[tuple[str, str], int] = field(default_factory=lambda: defaultdict(int))
    lessons: dict[tuple[str, str], Tally] = field(default_factory=dict)
    jobs: dict[tuple[str, str], JobChanges] = field(default_factory=lambda: defaultdict(JobChanges))
    vesting: dict[tuple[str, int], int] = field(default_factory=lambda: defaultdict(int))
    hush: tuple[str, str] | None = None
    touched: set[str] = field(default_factory=set)
    halved: set[str] = field(default_factory=set)
    restored: set[str] = field(default_factory=set)

    def move(self, source: str, target: str, amount: int) -> None:
        """Notes that credits move; from a place to itself is no movement."""
        if amount and source != target:
            self.moves.append((source, target, amount))

    def learn(self, worker_id: str, party: str, gained: Tally) -> None:
        """Notes what a tally gains."""
        before = self.lessons.get((worker_id, party))
        self.lessons[worker_id, party] = gained if before is None else before.plus(gained)

    @property
    def accuses(self) -> bool:
        """Whether anybody's doubts change, so that somebody may have to be convicted or acquitted."""
        return any(tally.doubts or tally.words for tally in self.lessons.values())


@dataclass(frozen=True, slots=True)
class Terms:
    """What the rules need of the settings; times in ms.

    Attributes:
        late_ms: how late a receipt may come.
        settled_ms: how long settled keys are kept.
        vesting_ms: how long pay may not be spent.
        hold_ms: how long a lease holds a worker that was not pushed it.
        hold_leases: of so many leases that were not pushed one costs a credit.
        effort_cap: most credits of effort fees for undecided tasks, for an account in a job.
        kept_ms: how long a job is remembered of which nothing is heard.
        most_share: a worker gets no less than one in so many of its capacity.
    """

    late_ms: int
    settled_ms: int
    vesting_ms: int = 0
    hold_ms: int = 30_000
    hold_leases: int = 16
    effort_cap: int = 16
    kept_ms: int = 3_600_000
    most_share: int = 64


@dataclass(frozen=True, slots=True)
class View:
    """What is known of workers when tasks of one job are decided.

    Attributes:
        party: of the foreman: accounts of one party are one accuser.
        standings: of the workers, as this foreman sees them.
        accounts_count_once: workers of one account are one voice.
        secret: what decides which tasks are spot checked.
        noise: of the job.
        noisy: the job was found to be not deterministic: no dissent in it costs reputation any more.
        effort: effort fees that accounts had of the job.
        unvested: credits of the foreman that it may not spend yet.
        doubted: workers that dissented in this foreman's own jobs.
    """

    party: str
    standings: Mapping[str, Standing]
    accounts_count_once: bool = True
    secret: bytes = b""
    noise: Noise = QUIET
    noisy: bool = False
    effort: Mapping[str, int] = field(default_factory=dict)
    unvested: int = 0
    doubted: frozenset[str] = frozenset()

    def standing(self, worker_id: str) -> Standing:
        """Of a worker; one that nobody knows is a newcomer."""
        return self.standings.get(worker_id, NEWCOMER)


def add_replicas(task: TaskRecord, workers: list[WorkerRecord], now_ms: int, changes: Changes) -> list[int]:
    """Leases the task to further workers and puts their price in escrow; returns the new replicas' numbers."""
    numbers = []
    for worker in workers:
        number = len(task.replicas)
        price = price_for(task, worker)
        deadline_ms = now_ms + int(task.timeout_s * 1000)
        task.replicas.append(ReplicaRecord(worker.worker_id, worker.account_id, worker.epoch, deadline_ms, price=price))
        changes.move(f"account:{task.account_id}", f"escrow:{task.task_id}", price)
        changes.counts[f"account:{task.account_id}", "escrow"] += price
        changes.takes[worker.worker_id, worker.epoch].append(task.lease_id(number))
        numbers.append(number)
    return numbers


def price_for(task: TaskRecord, worker: WorkerRecord) -> int:
    """Credits that a replica of the task costs at a worker."""
    return task.units * max(1, worker.ask)


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
    replica.tokens = tokens_digest(receipt.token_digests)
    if task.state in (TaskState.ACCEPTED, TaskState.KEPT):
        _judge(task, number, now_ms, terms, changes)
        _teach_late(task, replica, view, changes)
    elif task.state is TaskState.OVERTURNED:
        _compensate(task, number, now_ms, terms, changes)
    elif task.state is not TaskState.LEASED:
        replica.state = advance_replica(replica.state, ReplicaEvent.LEFT_UNDECIDED)
        _refund(task, number, changes)
    return ""


def tokens_digest(digests: list[bytes]) -> bytes:
    """What is kept of a receipt's digests of a result's tokens: it is enough to recognise them by."""
    return hashlib.sha256(b"".join(digests)).digest()


def voices_of(task: TaskRecord, view: View) -> list[Voice]:
    """The answers to a task that count towards a verdict, in the order in which they were asked for."""
    return [_voice(replica, view) for replica in _answered(task)]


def verdict_on(task: TaskRecord, view: View, *, further: float | None = None) -> Verdict:
    """Whose result would count now.

    Args:
        further: how far the worker that is asked next is probably believed; None: it is a newcomer.
    """
    answers: list[Answer] = []
    outstanding = ran = 0
    for replica in task.replicas:
        if replica.state is ReplicaState.OPEN:
            ran += 1
            outstanding += not replica.lost
        elif replica.state is not ReplicaState.REFUSED:
            ran += 1
            if replica.state is ReplicaState.REPORTED and replica.kind:
                answers.append((replica.kind, replica.commitment))
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
    return [n for n, r in enumerate(task.replicas) if n > after and r.state is ReplicaState.OPEN and not r.lost]


def still_out(task: TaskRecord) -> bool:
    """Whether an answer can still come, also of a worker that nobody waits for any more."""
    return any(replica.state is ReplicaState.OPEN for replica in task.replicas)


def accept(task: TaskRecord, verdict: Accepted, now_ms: int, terms: Terms, view: View, changes: Changes) -> None:
    """Makes an answer the task's result: pays who gave it, refunds what others would have cost, teaches of both."""
    task.state = advance_task(task.state, TaskEvent.BELIEVED)
    task.kind, task.commitment = verdict.answer
    task.reached = verdict.confidence or 0.0
    task.forget_ms = now_ms + terms.settled_ms
    changes.counts["stats", "accepted"] += 1
    _teach(task, view, changes)
    if task.confidence:
        task.keep = True
        changes.jobs[task.account_id, task.job_id].accepted.append(task.task_id)
        for replica in task.replicas:
            if replica.state is ReplicaState.REPORTED:
                replica.believed = credibility(view.standing(replica.worker_id))
    for number, replica in enumerate(task.replicas):
        if replica.state is ReplicaState.REPORTED:
            _judge(task, number, now_ms, terms, changes)


def give_up(task: TaskRecord, now_ms: int, terms: Terms, view: View, changes: Changes) -> None:
    """Ends the task without a result: no keys, and nobody's reputation changes.

    Established workers get the effort fee, unless most answers are alike and theirs is another: up to `effort_cap` for
    their account in this job. All else goes back.
    """
    task.state = advance_task(task.state, TaskEvent.GAVE_UP)
    task.forget_ms = now_ms + terms.settled_ms
    reported = [number for number, replica in enumerate(task.replicas) if replica.state is ReplicaState.REPORTED]
    groups = Counter((task.replicas[number].kind, task.replicas[number].commitment) for number in reported)
    majority = next((answer for answer, count in groups.items() if 2 * count > len(reported)), None)
    effort = changes.jobs[task.account_id, task.job_id].effort if reported else {}
    for number in reported:
        replica = task.replicas[number]
        fee = effort_fee(replica)
        account = replica.worker_account
        owed = (
            majority in (None, (replica.kind, replica.commitment))
            and established(view.standing(replica.worker_id))
            and view.effort.get(account, 0) + effort.get(account, 0) + fee <= terms.effort_cap
        )
        if owed:
            effort[account] += fee
            _compensate(task, number, now_ms, terms, changes)
        else:
            replica.state = advance_replica(replica.state, ReplicaEvent.LEFT_UNDECIDED)
            _refund(task, number, changes)


def effort_fee(replica: ReplicaRecord) -> int:
    """What an answer is worth of which nothing is decided: half of its price, rounded up."""
    return (replica.price + 1) // 2


def expire_replicas(task: TaskRecord, numbers: list[int], changes: Changes) -> None:
    """Frees open replicas whose worker started anew: it no longer knows of them."""
    for number in numbers:
        replica = task.replicas[number]
        if replica.state is ReplicaState.OPEN:
            replica.state = advance_replica(replica.state, ReplicaEvent.WORKER_RESTARTED)
            _refund(task, number, changes)


def release_unpushed(
    task: TaskRecord,
    number: int,
    worker_id: str,
    now_ms: int,
    terms: Terms,
    released: dict[str, int],
    changes: Changes,
) -> None:
    """Frees a replica that its worker was never pushed, once it held the worker for too long.

    Of the leases of one foreman that are released together the first of each started `hold_leases` costs it a credit,
    which is burnt: were it the worker's, a worker could live on saying so.

    Args:
        released: how many were released before, by the foreman's account.
    """
    if not 0 <= number < len(task.replicas):
        return
    replica = task.replicas[number]
    leased_ms = replica.deadline_ms - int(task.timeout_s * 1000)
    if replica.worker_id != worker_id or replica.state is not ReplicaState.OPEN or now_ms < leased_ms + terms.hold_ms:
        return
    replica.state = advance_replica(replica.state, ReplicaEvent.NEVER_PUSHED)
    before = released.get(task.account_id, 0)
    released[task.account_id] = before + 1
    fee = 1 if before % terms.hold_leases == 0 else 0
    changes.move(f"escrow:{task.task_id}", "burn", fee)
    changes.counts[f"account:{task.account_id}", "spent"] += fee
    changes.counts[f"worker:{worker_id}", "unpushed"] += 1
    _refund(task, number, changes, less=fee)


def fall_due(task: TaskRecord, now_ms: int, terms: Terms, changes: Changes) -> None:
    """What time does: replicas past deadline and grace leave escrow, those that answered with the effort fee; a task
    with nothing left ends.
    """
    for number in task.holding:
        replica = task.replicas[number]
        if replica.state is ReplicaState.OPEN and replica.deadline_ms + terms.late_ms <= now_ms:
            replica.state = advance_replica(replica.state, ReplicaEvent.FELL_DUE)
            changes.counts[f"worker:{replica.worker_id}", "expired"] += 1
            changes.halved.add(replica.worker_id)
            _refund(task, number, changes)
    held = task.holding
    if held and _last_ms(task, terms) <= now_ms:
        # Answers that nobody settled while anything was out.
        for number in held:
            _compensate(task, number, now_ms, terms, changes)
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
    held = [task.replicas[number] for number in task.holding]
    opened = [replica.deadline_ms for replica in held if replica.state is ReplicaState.OPEN]
    if opened:
        return min(opened) + terms.late_ms
    if held or task.state is TaskState.LEASED:
        return _last_ms(task, terms)
    if task.keep and task.state is not TaskState.ACCEPTED:
        return NEVER
    return task.forget_ms


# --- what is known of those who answered ---------------------------------------------------------


def believed(task: TaskRecord, view: View) -> float:
    """How likely the accepted answer is right by what is known now."""
    return belief(voices_of(task, view), _answer(task))


def holds(task: TaskRecord, view: View) -> bool:
    """Whether an accepted task is still believed as far as its policy wants."""
    return not task.confidence or believed(task, view) >= task.confidence


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
    _teach(task, view, changes)
    return False


def overturn(task: TaskRecord, view: View, changes: Changes) -> None:
    """Takes an accepted task back: what it taught, and that it is accepted. It is to be computed again."""
    _withdraw(task, view, changes)
    _overturn(task, changes)


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


# --- disputes ------------------------------------------------------------------------------------


def lose_dispute(task: TaskRecord, number: int, now_ms: int, lost: Tally, view: View, changes: Changes) -> int:
    """A paid replica's worker had delivered junk: its pay goes back unless it has vested, its answer counts no more.

    Returns:
        Credits that came back.
    """
    replica = task.replicas[number]
    _unlearn(task, replica, view, changes)
    replica.state = advance_replica(replica.state, ReplicaEvent.DISPUTE_LOST)
    replica.disputed = "upheld"
    if replica.worker_account != task.account_id:
        changes.learn(replica.worker_id, view.party, lost)
    if now_ms >= replica.vests_ms:
        return 0
    changes.move(f"account:{replica.worker_account}", f"account:{task.account_id}", replica.price)
    changes.counts[f"account:{replica.worker_account}", "earned"] -= replica.price
    changes.counts[f"worker:{replica.worker_id}", "earned"] -= replica.price
    changes.counts[f"account:{task.account_id}", "spent"] -= replica.price
    changes.vesting[replica.worker_account, replica.vests_ms] -= replica.price
    return replica.price


def refuse_dispute(task: TaskRecord, number: int, fee: int, changes: Changes) -> None:
    """The bytes were honest: the foreman pays for the trouble."""
    replica = task.replicas[number]
    changes.touched.add(task.task_id)
    replica.disputed = "refused"
    changes.move(f"account:{task.account_id}", f"account:{replica.worker_account}", fee)
    changes.counts[f"account:{task.account_id}", "spent"] += fee
    changes.counts[f"account:{replica.worker_account}", "earned"] += fee


# --- inside --------------------------------------------------------------------------------------


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


def _last_ms(task: TaskRecord, terms: Terms) -> int:
    """When nothing can come for a task any more."""
    return max((replica.deadline_ms for replica in task.replicas), default=0) + terms.late_ms


def _teach(task: TaskRecord, view: View, changes: Changes) -> None:
    """Notes what an accepted task says of those who answered it."""
    answered = _answered(task)
    if len(answered) < 2:
        return
    taught = lessons([_voice(replica, view) for replica in answered], _answer(task), price=task.units, noise=view.noise)
    for replica, gained in zip(answered, taught, strict=True):
        _learn(task, replica, gained, view, changes)


def _teach_late(task: TaskRecord, late: ReplicaRecord, view: View, changes: Changes) -> None:
    """Notes what an answer says of its worker that came after its task was accepted."""
    answered = _answered(task)
    if len(answered) < 2:
        return
    taught = lessons([_voice(replica, view) for replica in answered], _answer(task), price=task.units, noise=view.noise)
    for replica, gained in zip(answered, taught, strict=True):
        if replica is late:
            _learn(task, replica, gained, view, changes)


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
        _unlearn(task, replica, view, changes)


def _unlearn(task: TaskRecord, replica: ReplicaRecord, view: View, changes: Changes) -> None:
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


def _overturn(task: TaskRecord, changes: Changes) -> None:
    task.state = advance_task(task.state, TaskEvent.NO_LONGER_BELIEVED)
    task.nonce = b""
    changes.jobs[task.account_id, task.job_id].recompute.append(task.task_id)


def _judge(task: TaskRecord, number: int, now_ms: int, terms: Terms, changes: Changes) -> None:
    """Pays or refunds one reported replica of an accepted task."""
    replica = task.replicas[number]
    if replica.kind is task.kind and replica.commitment == task.commitment:
        replica.state = advance_replica(replica.state, ReplicaEvent.AGREED)
        _pay(task, number, replica.price, now_ms, terms, changes)
        changes.counts[f"account:{task.account_id}", "escrow"] -= replica.price
        changes.counts[f"worker:{replica.worker_id}", "agreed"] += 1
        changes.counts["stats", "paid"] += 1
        changes.restored.add(replica.worker_id)
        changes.frees[replica.worker_id].append(task.lease_id(number))
    else:
        replica.state = advance_replica(replica.state, ReplicaEvent.DISAGREED)
        changes.counts[f"worker:{replica.worker_id}", "dissented"] += 1
        _refund(task, number, changes)


def _pay(task: TaskRecord, number: int, amount: int, now_ms: int, terms: Terms, changes: Changes) -> None:
    """Moves a replica's pay out of escrow."""
    replica = task.replicas[number]
    changes.move(f"escrow:{task.task_id}", f"account:{replica.worker_account}", amount)
    changes.counts[f"account:{replica.worker_account}", "earned"] += amount
    changes.counts[f"account:{task.account_id}", "spent"] += amount
    changes.counts[f"worker:{replica.worker_id}", "earned"] += amount
    if terms.vesting_ms:
        replica.vests_ms = now_ms + terms.vesting_ms
        changes.vesting[replica.worker_account, replica.vests_ms] += amount


def _compensate(task: TaskRecord, number: int, now_ms: int, terms: Terms, changes: Changes) -> None:
    """Pays the effort fee for an answer of which nothing was decided, and gives the rest back."""
    replica = task.replicas[number]
    replica.state = advance_replica(replica.state, ReplicaEvent.EFFORT_OWED)
    fee = effort_fee(replica)
    _pay(task, number, fee, now_ms, terms, changes)
    _refund(task, number, changes, less=fee)


def _refund(task: TaskRecord, number: int, changes: Changes, *, less: int = 0) -> None:
    """Gives a replica's escrow back, `less` what left it already, and frees its worker's slot."""
    replica = task.replicas[number]
    changes.move(f"escrow:{task.task_id}", f"account:{task.account_id}", replica.price - less)
    changes.counts[f"account:{task.account_id}", "escrow"] -= replica.price
    changes.frees[replica.worker_id].append(task.lease_id(number))
