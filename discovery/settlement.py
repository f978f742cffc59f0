"""Settlement: receipts in, verdicts out; payments, verdict and key release are one atomic step."""

from __future__ import annotations

from collections import OrderedDict, defaultdict
from collections.abc import Sequence

from discovery import tasks as rules
from discovery.changes import Changes, View
from discovery.changing import ATTEMPTS, BATCH, Change, change, fingerprints, note_changed
from discovery.credibility import clarity
from discovery.leasing import Leasing
from discovery.receipts_shown import (
    MOST_RECEIPTS,
    NOT_OF_JOB,
    Refusals,
    Shown,
    late_replicas,
    open_shown,
    refusals_of,
    refused_receipts,
)
from discovery.records import TaskRecord, WorkerRecord, split_lease
from discovery.registry import Registry
from discovery.store.answers import Conflict, Told
from discovery.store.known import Job
from discovery.store.store import Store
from discovery.ticketing import Lease, Ticketing
from discovery.trust import Trust, further
from discovery.verdict import Accepted, More, Undecided
from ec262.errors import Malformed, ProblemError
from ec262.protocol import messages as m
from ec262.protocol.keys import Wrapping
from ec262.protocol.states import ReplicaState, TaskState

SWEEP_BATCH = BATCH
MOST_EXTENDED = 10_000
"""Tasks of which this process remembers who had them."""


class Settlement:
    """Decides tasks, pays for them and releases their keys."""

    def __init__(self, store: Store, registry: Registry, trust: Trust, leasing: Leasing, ticketing: Ticketing) -> None:
        self._store = store
        self._registry = registry
        self._trust = trust
        self._leasing = leasing
        self._ticketing = ticketing
        self._terms = trust.terms
        # Who had a task that got further replicas: once these answer, the first are asked about in the same step. Where
        # that is not known any more, or to another process, it takes the store a further step.
        self._had: OrderedDict[str, list[str]] = OrderedDict()

    def settle(self, account_id: str, asked: m.Settle) -> m.Settled:
        """Records receipts, then decides the tasks named. Asking again within the grace period gives the same answer.

        Raises:
            ProblemError: ``conflict`` after many attempts.
        """
        shown, refused = open_shown(asked.receipts, self._registry.worker_key)
        unreadable = [
            (asked.receipts[position].worker_id, *split_lease(lease_id))
            for (position, _), leases in refused.items()
            for lease_id in leases
        ]
        if len(shown) + len(unreadable) > MOST_RECEIPTS:
            raise Malformed(f"more than {MOST_RECEIPTS} receipts in one settlement: show them in several")
        decide = list(dict.fromkeys(asked.decide))
        lost = [split_lease(lease_id) for lease_id in dict.fromkeys(asked.lost)]
        known = dict(split_lease(lease_id) for lease_id in asked.known)
        task_ids = dict.fromkeys(decide)
        task_ids.update(dict.fromkeys(item.task_id for item in shown))
        task_ids.update(dict.fromkeys(task_id for _, task_id, _ in unreadable))
        task_ids.update(dict.fromkeys(task_id for task_id, _ in lost))
        workers = dict.fromkeys(bundle.worker_id for bundle in asked.receipts)
        workers.update(dict.fromkeys(worker_id for task_id in task_ids for worker_id in self._had.get(task_id, ())))
        job = (account_id, asked.job_id)
        self._store.reputations.heard(job, asked.heard)
        for _ in range(ATTEMPTS):
            now_ms, records, view = self._trust.load(job, list(task_ids), list(workers))
            before = fingerprints(records)
            changes = Changes()
            bad = {key: list(leases) for key, leases in refused.items()}
            undelivered = self._take_in(records, shown, bad, now_ms, view, changes)
            for worker_id, task_id, number in unreadable:
                if task_id in records and rules.note_unreadable(records[task_id], number, worker_id, changes):
                    undelivered.append((task_id, number))
            again: dict[str, int] = {}
            for task_id, number in (*lost, *undelivered):
                if task_id in records and number < len(records[task_id].replicas):
                    replica = records[task_id].replicas[number]
                    if replica.lost:
                        again[task_id] = min(number, again.get(task_id, number))
                    replica.lost = True
            added = self._decide(records, decide, now_ms, view, changes)
            if again or known:
                added |= self._repeat(records, again, known, decide, added)
            note_changed(records, before, self._terms, changes)
            try:
                told = None
                if changes.tasks:
                    needs = _needs(account_id, changes)
                    told = self._store.commit(changes, now_ms, self._terms, needs=needs, tell=job)
            except Conflict:
                continue
            hushed = self._trust.hush(job, view)
            if changes.accuses:
                self._trust.review()
            if told is None or hushed or changes.accuses:  # what was told may have changed by that
                told = self._store.tell(job)
            late, refusals = late_replicas(shown, records, decide), refusals_of(shown, records)
            return self._answer(job, decide, records, added, refused_receipts(bad), refusals, late, view, told)
        raise ProblemError(409, "conflict", "these tasks are being settled by another request: try again")

    def show(self, worker_id: str, tokens: Sequence[bytes]) -> None:
        """Records receipts that a worker shows because its foreman did not: accepted tasks judge them at once."""
        sealed = [m.SealedReceipts(worker_id=worker_id, token=token) for token in tokens]
        # What is beyond that stays open, and is shown again with the next heartbeat.
        shown = open_shown(sealed, self._registry.worker_key, by_worker=True)[0][:MOST_RECEIPTS]
        for start in range(0, len(shown), SWEEP_BATCH):
            batch = shown[start : start + SWEEP_BATCH]

            def record(
                records: dict[str, TaskRecord], now_ms: int, changes: Changes, batch: list[Shown] = batch
            ) -> None:
                views = self._trust.views(records.values())
                for item in batch:
                    if item.task_id in records:
                        of = records[item.task_id]
                        self._record(of, item, now_ms, views[of.account_id, of.job_id], changes)

            self._change(list(dict.fromkeys(item.task_id for item in batch)), record)

    def release(self, worker_id: str, lease_ids: Sequence[str]) -> None:
        """Frees leases that a worker says it was never pushed, once they held it for too long; their foreman pays."""
        leases = [split_lease(lease_id) for lease_id in dict.fromkeys(lease_ids)]

        def free(records: dict[str, TaskRecord], now_ms: int, changes: Changes) -> None:
            views = self._trust.views(records.values())
            for task_id, number in leases:
                if task_id in records:
                    record = records[task_id]
                    view = views[record.account_id, record.job_id]
                    rules.release_unpushed(record, number, worker_id, now_ms, self._terms, view, changes)

        self._change(list(dict.fromkeys(task_id for task_id, _ in leases)), free)

    def expire_leases(self, lease_ids: Sequence[str]) -> None:
        """Frees what a worker held before it started anew."""
        for start in range(0, len(lease_ids), SWEEP_BATCH):
            batch = [split_lease(lease_id) for lease_id in lease_ids[start : start + SWEEP_BATCH]]

            def expire(
                records: dict[str, TaskRecord],
                now_ms: int,
                changes: Changes,
                batch: list[tuple[str, int]] = batch,
            ) -> None:
                for task_id, number in batch:
                    if task_id in records:
                        rules.expire_replicas(records[task_id], [number], changes)

            self._change(list(dict.fromkeys(task_id for task_id, _ in batch)), expire)

    def sweep(self) -> int:
        """Does what time does to tasks that are due; returns how many it looked at (at most `SWEEP_BATCH`)."""
        due = self._store.due(SWEEP_BATCH)

        def fall_due(records: dict[str, TaskRecord], now_ms: int, changes: Changes) -> None:
            views = self._trust.views([record for record in records.values() if rules.rests_on_workers(record)])
            for record in records.values():
                view = views.get((record.account_id, record.job_id))
                rules.fall_due(record, now_ms, self._terms, changes, view)

        self._change(due, fall_due, always=True)
        return len(due)

    # --- inside ---

    def _change(self, task_ids: list[str], work: Change, *, always: bool = False) -> None:
        done = change(self._store, self._terms, task_ids, work, always=always)
        if done is not None and done.accuses:
            self._trust.review()

    def _take_in(
        self,
        records: dict[str, TaskRecord],
        shown: Sequence[Shown],
        bad: Refusals,
        now_ms: int,
        view: View,
        changes: Changes,
    ) -> list[tuple[str, int]]:
        """Records a job's receipts; adds to `bad` what does not count, and returns the replicas that are lost by it."""
        undelivered = []
        for item in shown:
            record = records.get(item.task_id)
            why = NOT_OF_JOB if record is None else self._record(record, item, now_ms, view, changes)
            if why:
                bad.setdefault((item.bundle, why), []).append(item.receipt.lease_id)
            if why in (rules.NOT_ARRIVED, rules.NO_TOKENS):
                undelivered.append((item.task_id, item.number))
        return undelivered

    def _record(self, record: TaskRecord, item: Shown, now_ms: int, view: View, changes: Changes) -> str:
        number, epoch, receipt = item.number, item.epoch, item.receipt
        return rules.record_receipt(
            record, number, item.worker_id, epoch, receipt, now_ms, self._terms, view, changes, item.arrived
        )

    def _decide(
        self, records: dict[str, TaskRecord], wanted: Sequence[str], now_ms: int, view: View, changes: Changes
    ) -> dict[str, list[tuple[int, WorkerRecord]]]:
        """Moves each leased task as far as its answers allow; returns the replicas that were added."""
        extend: list[tuple[TaskRecord, int]] = []
        for task_id in wanted:
            record = records.get(task_id)
            if record is None or record.state is not TaskState.LEASED:
                continue
            verdict = rules.verdict_on(record, view)
            if isinstance(verdict, Accepted):
                rules.accept(record, verdict, now_ms, self._terms, view, changes)
            elif isinstance(verdict, Undecided):
                rules.give_up(record, now_ms, self._terms, view, changes)
            elif isinstance(verdict, More):
                extend.append((record, verdict.replicas))
        return self._extend(extend, now_ms, view, changes) if extend else {}

    def _extend(
        self, extend: Sequence[tuple[TaskRecord, int]], now_ms: int, view: View, changes: Changes
    ) -> dict[str, list[tuple[int, WorkerRecord]]]:
        """Leases tasks to as many further workers as they want and there are."""
        added: dict[str, list[tuple[int, WorkerRecord]]] = {}
        kinds: dict[tuple[object, ...], TaskRecord] = {}
        had: defaultdict[tuple[object, ...], set[str]] = defaultdict(set)
        for record, _ in extend:
            kind = _kind(record)
            kinds[kind] = record
            had[kind].update(each.worker_id for each in (*record.heard, *record.replicas))
        drawn = self._leasing.markets([(of, sorted(had[kind])) for kind, of in kinds.items()])
        markets = dict(zip(kinds, drawn, strict=True))
        for kind, market in markets.items():
            noted = changes.jobs.get((kinds[kind].account_id, kinds[kind].job_id))
            for worker_id in noted.undelivered if noted is not None else ():
                market.workers.pop(worker_id, None)
        for record, count in extend:
            market = markets[_kind(record)]
            if market.budget < record.units or not self._leasing.may_extend(record, now_ms):
                # Whoever is to be backed up may be slow, not dead: its answer is not thrown away for want of a backup.
                if not rules.still_out(record):
                    rules.give_up(record, now_ms, self._terms, view, changes)
                continue
            if count > 1 and record.confidence:
                # So many are wanted of newcomers; of workers that are known fewer may do.
                verdict = rules.verdict_on(record, view, further=further(market.workers.values(), market.view))
                count = verdict.replicas if isinstance(verdict, More) else 1
            fresh = self._leasing.extend(record, count, market, changes)
            if fresh:
                added[record.task_id] = fresh
                self._had[record.task_id] = [each.worker_id for each in (*record.heard, *record.replicas)]
        while len(self._had) > MOST_EXTENDED:
            self._had.popitem(last=False)
        return added

    def _repeat(
        self,
        records: dict[str, TaskRecord],
        again: dict[str, int],
        known: dict[str, int],
        decide: Sequence[str],
        added: dict[str, list[tuple[int, WorkerRecord]]],
    ) -> dict[str, list[tuple[int, WorkerRecord]]]:
        """Replicas that were added before, of tasks whose foreman may not have had that answer: those that are out.

        Args:
            again: by task, the number of the replica that was named lost before: what came for it.
            known: by task, the number of the last replica that its foreman knows of.
        """
        numbers = {}
        for task_id in decide:
            record = records.get(task_id)
            if record is None or record.state is not TaskState.LEASED:
                continue
            after = known.get(task_id, again.get(task_id) if task_id not in added else None)
            if after is not None:
                # Those of the first lease are told by its own answer.
                out = rules.waited_for(record, after=max(after, record.redundancy - 1))
                if out:
                    numbers[task_id] = out
        if not numbers:
            return {}
        names = {records[task_id].replicas[number].worker_id for task_id in numbers for number in numbers[task_id]}
        workers = self._store.workers(sorted(names))
        return {
            task_id: [(number, workers[records[task_id].replicas[number].worker_id]) for number in listed]
            for task_id, listed in numbers.items()
        }

    def _answer(
        self,
        job: Job,
        decide: Sequence[str],
        records: dict[str, TaskRecord],
        added: dict[str, list[tuple[int, WorkerRecord]]],
        refused: list[m.RefusedReceipts],
        refusals: list[m.Refusal],
        late: list[m.LateReplica],
        view: View,
        told: Told,
    ) -> m.Settled:
        verdicts = []
        leases: list[Lease] = []
        workers: dict[str, WorkerRecord] = {}
        for task_id in decide:
            record = records.get(task_id)
            if record is None:
                verdicts.append(m.TaskVerdict(task_id=task_id, verdict="unknown"))
                continue
            wrapping = self._ticketing.wrapping_of(record)
            if record.state is TaskState.ACCEPTED and wrapping is not None:
                verdicts.append(_accepted(record, wrapping))
            elif record.state in (TaskState.UNDECIDED, TaskState.EXPIRED, TaskState.OVERTURNED):
                verdicts.append(m.TaskVerdict(task_id=task_id, verdict="undecided", reason=_why(record)))
            elif wrapping is None:
                verdicts.append(m.TaskVerdict(task_id=task_id, verdict="unknown"))
            elif task_id in added:
                numbers = [number for number, _ in added[task_id]]
                workers.update((worker.worker_id, worker) for _, worker in added[task_id])
                leased = self._ticketing.leased_task(record, numbers, wrapping)
                leases.append((record, numbers, leased, wrapping))
                verdicts.append(m.TaskVerdict(task_id=task_id, verdict="more", task=leased))
            else:
                verdicts.append(m.TaskVerdict(task_id=task_id, verdict="pending"))
        return m.Settled(
            tasks=verdicts,
            workers=self._ticketing.assigned_workers(*job, leases, workers),
            late=late,
            refused_receipts=refused,
            refusals=refusals,
            balance=told.balance,
            recompute=told.recompute,
            clarity=clarity(view.noise),
        )


def _kind(record: TaskRecord) -> tuple[object, ...]:
    """What tasks share that the same workers can have."""
    return (record.worker_class, record.offer, *record.capabilities)


def _accepted(record: TaskRecord, wrapping: Wrapping) -> m.TaskVerdict:
    released = []
    dissenters = []
    for number, replica in enumerate(record.replicas):
        if replica.state is ReplicaState.PAID:
            lease_id = record.lease_id(number)
            released.append(
                m.ReleasedKey(
                    lease_id=lease_id,
                    worker_id=replica.worker_id,
                    result_key=wrapping.result_key(record.nonce, lease_id),
                )
            )
        elif replica.state is ReplicaState.DISSENTED:
            dissenters.append(replica.worker_id)
    return m.TaskVerdict(
        task_id=record.task_id,
        verdict="accepted",
        kind=record.kind,
        commitment=record.commitment,
        keys=released,
        dissenters=dissenters,
        confidence=record.reached if record.confidence else None,
    )


def _why(record: TaskRecord) -> str:
    answers = sum(1 for replica in record.replicas if replica.kind is not None)
    if record.state is TaskState.EXPIRED:
        return "nobody settled it before its deadline"
    if record.state is TaskState.OVERTURNED:
        return "it was accepted, and is no longer believed: compute it again"
    asked = f"{len(record.replicas)} workers were asked and {answers} answered"
    if record.confidence:
        return (
            f"{asked}, no answer is right with probability {record.confidence}, no more may be asked or can be paid: "
            "the network has too few workers, or the program looks nondeterministic (time, chance, set order)"
        )
    if answers < record.quorum:
        return f"{asked}, and no more may be asked or can be paid"
    return (
        f"{asked}, fewer than {record.quorum} alike, and no more may be asked or can be paid: "
        "the program looks nondeterministic (time, chance, set order), unless many workers lie"
    )


def _needs(account_id: str, changes: Changes) -> dict[str, int] | None:
    account = f"account:{account_id}"
    cost = sum([amount for source, _, amount in changes.moves if source == account])
    return {account: cost} if cost else None
