"""Settlement: receipts in, verdicts out; payments, verdict and key release are one atomic step."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

from discovery import tasks as rules
from discovery.leasing import ATTEMPTS, Leasing
from discovery.records import TaskRecord, WorkerRecord, split_lease
from discovery.registry import Registry
from discovery.store.store import Conflict, Sample, Store
from discovery.tasks import Changes, next_due
from discovery.verdict import Accepted, More, Undecided
from ec262.errors import Malformed, ProblemError, SealBroken
from ec262.protocol import keys
from ec262.protocol import messages as m
from ec262.protocol.receipts import Receipt, open_receipts
from ec262.protocol.states import ReplicaState, TaskState

log = logging.getLogger("ec262.discovery.settlement")

SWEEP_BATCH = 500
MOST_RECEIPTS = 20_000
"""Of one settlement; a foreman's has a few hundred."""


class _Shown:
    """A receipt somebody showed: whose, of which epoch, for which replica of which task."""

    __slots__ = ("bundle", "epoch", "number", "receipt", "task_id", "worker_id")

    def __init__(self, bundle: int, worker_id: str, epoch: int, receipt: Receipt) -> None:
        self.bundle = bundle
        self.worker_id = worker_id
        self.epoch = epoch
        self.receipt = receipt
        self.task_id, self.number = split_lease(receipt.lease_id)


class Settlement:
    """Decides tasks, pays for them and releases their keys."""

    def __init__(self, store: Store, registry: Registry, leasing: Leasing) -> None:
        self._store = store
        self._registry = registry
        self._leasing = leasing
        self._grace = leasing.grace

    def settle(self, account_id: str, asked: m.Settle) -> m.Settled:
        """Records receipts, then decides the tasks named. Asking again within the grace period gives the same answer.

        Raises:
            ProblemError: ``conflict`` after many attempts.
        """
        shown, refused = self._open(asked.receipts)
        if len(shown) > MOST_RECEIPTS:
            raise Malformed(f"more than {MOST_RECEIPTS} receipts in one settlement: show them in several")
        decide = list(dict.fromkeys(asked.decide))
        lost = [split_lease(lease_id) for lease_id in dict.fromkeys(asked.lost)]
        task_ids = dict.fromkeys(decide)
        task_ids.update(dict.fromkeys(item.task_id for item in shown))
        task_ids.update(dict.fromkeys(task_id for task_id, _ in lost))
        for _ in range(ATTEMPTS):
            now_ms, found = self._store.load(list(task_ids))
            records = {
                task_id: record
                for task_id, record in found.items()
                if record.account_id == account_id and record.job_id == asked.job_id
            }
            before = _fingerprints(records)
            changes = Changes()
            bad = set(refused)
            for item in shown:
                record = records.get(item.task_id)
                why = "not this job's" if record is None else self._record(record, item, changes)
                if why:
                    bad.add(item.bundle)
            again: dict[str, int] = {}
            for task_id, number in lost:
                if task_id in records and number < len(records[task_id].replicas):
                    replica = records[task_id].replicas[number]
                    if replica.lost:
                        again[task_id] = min(number, again.get(task_id, number))
                    replica.lost = True
            added = self._decide(records, decide, now_ms, changes)
            added |= self._repeat(records, again, decide, added)
            self._note_changed(records, before, changes)
            try:
                if changes.tasks:
                    self._store.commit(changes, now_ms, needs=_needs(account_id, changes))
            except Conflict:
                continue
            return self._answer(
                account_id, asked.job_id, decide, records, added, sorted(bad), _late(shown, records, decide)
            )
        raise ProblemError(409, "conflict", "these tasks are being settled by another request: try again")

    def show(self, worker_id: str, tokens: Sequence[bytes]) -> None:
        """Records receipts that a worker shows because its foreman did not: accepted tasks judge them at once."""
        shown, _ = self._open([m.SealedReceipts(worker_id=worker_id, token=token) for token in tokens])
        for start in range(0, len(shown), SWEEP_BATCH):
            batch = shown[start : start + SWEEP_BATCH]

            def record(
                records: dict[str, TaskRecord], now_ms: int, changes: Changes, batch: list[_Shown] = batch
            ) -> None:
                for item in batch:
                    if item.task_id in records:
                        self._record(records[item.task_id], item, changes)

            self._change(list(dict.fromkeys(item.task_id for item in batch)), record)

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
            for record in records.values():
                rules.fall_due(record, now_ms, self._grace, changes)

        self._change(due, fall_due, always=True)
        return len(due)

    # --- inside ---

    def _change(
        self,
        task_ids: list[str],
        change: Callable[[dict[str, TaskRecord], int, Changes], object],
        *,
        always: bool = False,
    ) -> None:
        """Loads tasks, lets `change` work on them, commits; starts over when others were faster."""
        if not task_ids:
            return
        for _ in range(ATTEMPTS):
            now_ms, records = self._store.load(task_ids)
            before = {} if always else _fingerprints(records)
            changes = Changes()
            change(records, now_ms, changes)
            self._note_changed(records, before, changes)
            try:
                if changes.tasks:
                    self._store.commit(changes, now_ms)
                return
            except Conflict:
                continue
        log.warning("tasks changed too often to be changed here; they stay due: %d tasks", len(task_ids))

    def _note_changed(
        self, records: dict[str, TaskRecord], before: dict[str, tuple[object, ...]], changes: Changes
    ) -> None:
        """Has those records committed that the rules changed, and those of which nothing is known from before."""
        for task_id, record in records.items():
            if before.get(task_id) != _fingerprint(record):
                changes.tasks.append((record, record.version, next_due(record, self._grace)))

    def _open(self, sealed: Sequence[m.SealedReceipts]) -> tuple[list[_Shown], list[int]]:
        """The receipts in bundles that hold, and the positions of those that do not."""
        shown = []
        refused = []
        for position, item in enumerate(sealed):
            try:
                bundle = open_receipts(self._registry.worker_key(item.worker_id), item.token, worker_id=item.worker_id)
                shown += [_Shown(position, bundle.worker_id, bundle.epoch, receipt) for receipt in bundle.receipts]
            except (SealBroken, ValueError):
                refused.append(position)
        return shown, refused

    @staticmethod
    def _record(record: TaskRecord, item: _Shown, changes: Changes) -> str:
        return rules.record_receipt(record, item.number, item.worker_id, item.epoch, item.receipt, changes)

    def _decide(
        self, records: dict[str, TaskRecord], wanted: Sequence[str], now_ms: int, changes: Changes
    ) -> dict[str, list[tuple[int, WorkerRecord]]]:
        """Moves each leased task as far as its answers allow; returns the replicas that were added."""
        added: dict[str, list[tuple[int, WorkerRecord]]] = {}
        extend: list[tuple[TaskRecord, int]] = []
        for task_id in wanted:
            record = records.get(task_id)
            if record is None or record.state is not TaskState.LEASED:
                continue
            verdict = rules.verdict_on(record)
            if isinstance(verdict, Accepted):
                rules.accept(record, verdict, now_ms, self._grace, changes)
            elif isinstance(verdict, Undecided):
                rules.give_up(record, now_ms, self._grace, changes)
            elif isinstance(verdict, More):
                extend.append((record, verdict.replicas))
        if not extend:
            return added
        past = self._store.workers(sorted({r.worker_id for record, _ in extend for r in record.replicas}))
        samples: dict[tuple[str, ...], Sample] = {}
        spent = 0
        taken: dict[str, int] = {}
        for record, count in extend:
            fit = (record.worker_class, *record.capabilities)
            if fit not in samples:
                samples[fit] = self._leasing.sample_for(record)
            sample = samples[fit]
            budget = sample.balance - spent
            if budget < count * record.price or not self._leasing.may_extend(record, now_ms):
                # Whoever is to be backed up may be slow, not dead: its answer is not thrown away for want of a backup.
                if not rules.still_out(record):
                    rules.give_up(record, now_ms, self._grace, changes)
                continue
            left = [_with_used(worker, taken.get(worker.worker_id, 0)) for worker in sample.workers]
            fresh = self._leasing.extend(record, count, Sample(now_ms, budget, left, 0, 0), past, changes)
            for _, worker in fresh:
                taken[worker.worker_id] = taken.get(worker.worker_id, 0) + 1
            spent += len(fresh) * record.price
            if fresh:
                added[record.task_id] = fresh
        return added

    def _repeat(
        self,
        records: dict[str, TaskRecord],
        again: dict[str, int],
        decide: Sequence[str],
        added: dict[str, list[tuple[int, WorkerRecord]]],
    ) -> dict[str, list[tuple[int, WorkerRecord]]]:
        """The replicas that came for a lost one, where a foreman names that again: the first answer may be lost, too.

        Args:
            again: by task, the number of the replica that was named before.
        """
        numbers = {}
        for task_id in decide:
            if task_id in again and task_id not in added and records[task_id].state is TaskState.LEASED:
                # Those of the first lease are known to a foreman that can name one of them.
                after = max(again[task_id], records[task_id].redundancy - 1)
                out = rules.waited_for(records[task_id], after=after)
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
        account_id: str,
        job_id: str,
        decide: Sequence[str],
        records: dict[str, TaskRecord],
        added: dict[str, list[tuple[int, WorkerRecord]]],
        refused: list[int],
        late: list[m.LateReplica],
    ) -> m.Settled:
        verdicts = []
        leases = []
        workers: dict[str, WorkerRecord] = {}
        for task_id in decide:
            record = records.get(task_id)
            task_key = None if record is None else self._leasing.task_key(record)
            if record is None or task_key is None:
                verdicts.append(m.TaskVerdict(task_id=task_id, verdict="unknown"))
            elif record.state is TaskState.ACCEPTED:
                verdicts.append(_accepted(record, task_key))
            elif record.state is not TaskState.LEASED:
                verdicts.append(m.TaskVerdict(task_id=task_id, verdict="undecided", reason=_why(record)))
            elif task_id in added:
                numbers = [number for number, _ in added[task_id]]
                workers.update((worker.worker_id, worker) for _, worker in added[task_id])
                leases.append((record, task_key, numbers))
                verdicts.append(
                    m.TaskVerdict(
                        task_id=task_id,
                        verdict="more",
                        task=self._leasing.leased_task(record, numbers, task_key),
                    )
                )
            else:
                verdicts.append(m.TaskVerdict(task_id=task_id, verdict="pending"))
        return m.Settled(
            tasks=verdicts,
            workers=self._leasing.assigned_workers(account_id, job_id, leases, workers),
            late=late,
            refused_receipts=refused,
            balance=self._store.account(account_id).balance,
        )


def _late(shown: Sequence[_Shown], records: dict[str, TaskRecord], decided: Sequence[str]) -> list[m.LateReplica]:
    """What became of replicas whose receipts were shown beside the tasks that were decided."""
    asked = set(decided)
    late = []
    for item in shown:
        record = records.get(item.task_id)
        if record is None or item.task_id in asked or not 0 <= item.number < len(record.replicas):
            continue
        replica = record.replicas[item.number]
        if replica.worker_id == item.worker_id and replica.state in (ReplicaState.PAID, ReplicaState.DISSENTED):
            paid = replica.state is ReplicaState.PAID
            late.append(m.LateReplica(lease_id=item.receipt.lease_id, worker_id=item.worker_id, paid=paid))
    return late


def _accepted(record: TaskRecord, task_key: bytes) -> m.TaskVerdict:
    released = []
    dissenters = []
    for number, replica in enumerate(record.replicas):
        if replica.state is ReplicaState.PAID:
            lease_id = record.lease_id(number)
            released.append(
                m.ReleasedKey(
                    lease_id=lease_id,
                    worker_id=replica.worker_id,
                    result_key=keys.result_key(task_key, lease_id),
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
    )


def _why(record: TaskRecord) -> str:
    answers = sum(1 for replica in record.replicas if replica.kind is not None)
    if record.state is TaskState.EXPIRED:
        return "nobody settled it before its deadline"
    asked = f"{len(record.replicas)} workers were asked and {answers} answered"
    if answers < record.quorum:
        return f"{asked}, and no more may be asked or can be paid"
    return (
        f"{asked}, fewer than {record.quorum} alike, and no more may be asked or can be paid: "
        "the program looks nondeterministic (time, chance, set order), unless many workers lie"
    )


def _fingerprint(record: TaskRecord) -> tuple[object, ...]:
    """What the rules may change of a record: cheaper to compare than to encode it twice."""
    return (record.state, *[(replica.state, replica.lost) for replica in record.replicas])


def _fingerprints(records: dict[str, TaskRecord]) -> dict[str, tuple[object, ...]]:
    return {task_id: _fingerprint(record) for task_id, record in records.items()}


def _with_used(worker: WorkerRecord, more: int) -> WorkerRecord:
    if not more:
        return worker
    return WorkerRecord(
        *(worker.worker_id, worker.account_id, worker.address, worker.port, worker.slots, worker.epoch),
        *(worker.used + more, worker.capacity),
    )


def _needs(account_id: str, changes: Changes) -> dict[str, int] | None:
    cost = sum(amount for source, _, amount in changes.moves if source == f"account:{account_id}")
    return {f"account:{account_id}": cost} if cost else None
