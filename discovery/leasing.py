"""Leasing: credits into escrow, workers for tasks, keys and tickets for both sides."""

from __future__ import annotations

import random
import secrets
from collections import defaultdict
from collections.abc import Sequence

from discovery.keyring import Keyring
from discovery.matching import assign
from discovery.records import TaskRecord, WorkerRecord, class_of, set_of
from discovery.registry import Registry
from discovery.settings import Settings
from discovery.store.store import Conflict, Sample, Store
from discovery.tasks import Changes, Grace, add_replicas, next_due
from ec262.errors import Malformed, ProblemError
from ec262.protocol import keys
from ec262.protocol import messages as m
from ec262.protocol.credits import price_of
from ec262.protocol.states import ReplicaState, TaskState
from ec262.protocol.tickets import Ticket, TicketBundle, seal_tickets

ATTEMPTS = 8
"""How often a decision is made anew when others were faster, before the caller is asked to try again."""
IDEMPOTENCY_S = 600
MOST_REPLICAS = 64
"""Of one task, those that were refused or lost included."""


class Leasing:
    """Leases tasks to workers and makes the answers that carry keys and tickets."""

    def __init__(self, store: Store, keyring: Keyring, registry: Registry, settings: Settings) -> None:
        self._store = store
        self._keyring = keyring
        self._registry = registry
        self._settings = settings
        self._chance = random.SystemRandom()
        self.grace = Grace(int(settings.late_grace_s * 1000), int(settings.settled_grace_s * 1000))

    def lease(self, account_id: str, wanted: m.LeaseTasks) -> m.Leased:
        """Assigns as many of the tasks, in order, as are affordable and have workers.

        Raises:
            ProblemError: ``insufficient-credits``, with nothing taken; ``conflict`` after many attempts.
            Malformed: a policy that contradicts itself.
        """
        policy = wanted.policy
        if policy.quorum > policy.max_replicas or policy.redundancy > policy.max_replicas:
            raise Malformed("policy: quorum and redundancy may not be more than max_replicas")
        prices = {price_of(task.cpu_limit_s) for task in wanted.tasks}
        if len(prices) > 1:
            raise Malformed("tasks: their CPU limits differ in price; lease each kind in a request of its own")
        (price,) = prices
        capabilities = set_of(wanted.requirements.capabilities)
        worker_class = class_of(wanted.requirements.lane, wanted.requirements.python, capabilities)
        for _ in range(ATTEMPTS):
            before = self._store.leased_before(account_id, wanted.idempotency_key)
            sample = self._store.sample(worker_class, capabilities, self._settings.sample, account_id)
            if before is not None:
                # An empty answer is not remembered, so there is always a task to recognise the request by.
                digests = {task.input_digest for task in wanted.tasks}
                return self._repeat(account_id, wanted.job_id, before, digests, sample, price)
            affordable = _affordable(wanted.tasks, policy.redundancy, sample.balance)
            if not affordable:
                needed = price_of(wanted.tasks[0].cpu_limit_s) * policy.redundancy
                raise ProblemError(
                    *(402, "insufficient-credits"),
                    f"one task costs {needed} credits (price of a replica times redundancy), the account has "
                    f"{sample.balance}: run a worker to earn some",
                    needed=needed,
                    available=sample.balance,
                )
            groups = assign(
                self._fit(sample.workers, account_id),
                tasks=affordable,
                replicas=policy.redundancy,
                distinct=self._settings.distinct,
                chance=self._chance,
            )
            changes = Changes()
            records = self._make(account_id, wanted, groups, (worker_class, capabilities), sample.now_ms, changes)
            if not records:
                return self._answer(account_id, wanted.job_id, [], {}, sample, price, sample.balance)
            try:
                self._store.commit(
                    changes,
                    sample.now_ms,
                    needs={f"account:{account_id}": _cost(changes)},
                    idempotency=(
                        f"{account_id}:{wanted.idempotency_key}",
                        ",".join(record.task_id for record in records),
                        IDEMPOTENCY_S,
                    ),
                )
            except Conflict:
                continue
            numbers = [(record, list(range(len(record.replicas)))) for record in records]
            workers = {worker.worker_id: worker for group in groups for worker in group}
            return self._answer(
                account_id, wanted.job_id, numbers, workers, sample, price, sample.balance - _cost(changes)
            )
        raise ProblemError(409, "conflict", "many foremen want the same workers at once: try again")

    def sample_for(self, task: TaskRecord) -> Sample:
        """Workers that could take a further replica of `task`."""
        return self._store.sample(task.worker_class, task.capabilities, self._settings.sample, task.account_id)

    def extend(
        self, task: TaskRecord, replicas: int, sample: Sample, past: dict[str, WorkerRecord], changes: Changes
    ) -> list[tuple[int, WorkerRecord]]:
        """Adds up to `replicas` workers to a task, distinct from those it had; returns their numbers and them.

        A worker whose replica merely expired may have it again: it gave no answer that could count twice.
        """
        had = [
            past[replica.worker_id]
            for replica in task.replicas
            if replica.state is not ReplicaState.EXPIRED and replica.worker_id in past
        ]
        fit = self._fit(sample.workers, task.account_id)
        for count in range(replicas, 0, -1):
            groups = assign(
                *(fit,),
                tasks=1,
                replicas=count,
                distinct=self._settings.distinct,
                chance=self._chance,
                exclude=had,
            )
            if groups:
                return list(zip(add_replicas(task, groups[0], sample.now_ms, changes), groups[0], strict=True))
        return []

    def may_extend(self, task: TaskRecord, now_ms: int) -> bool:
        """Whether the task may have a further replica: its keys live long enough, and it had not too many."""
        young = now_ms - task.created_ms < self._settings.max_task_life_s * 1000
        return young and len(task.replicas) < MOST_REPLICAS

    def leased_task(self, task: TaskRecord, numbers: Sequence[int], task_key: bytes) -> m.LeasedTask:
        """A task for its foreman."""
        return m.LeasedTask(
            task_id=task.task_id,
            input_key=keys.input_key(task_key),
            replicas=[
                m.LeasedReplica(lease_id=task.lease_id(number), worker_id=task.replicas[number].worker_id)
                for number in numbers
            ],
        )

    def task_key(self, task: TaskRecord) -> bytes | None:
        """The root of a task's keys; None once it is destroyed."""
        wrapping = self._keyring.wrapping(task.wrapping)
        return None if wrapping is None else keys.task_key(wrapping, task.nonce, task.task_id)

    def assigned_workers(
        self,
        account_id: str,
        job_id: str,
        leases: Sequence[tuple[TaskRecord, bytes, Sequence[int]]],
        workers: dict[str, WorkerRecord],
    ) -> list[m.AssignedWorker]:
        """The workers of some leases, each with its tickets in one bundle."""
        master = self._keyring.master
        program_key = keys.program_key(master, account_id, job_id)
        poll_key = keys.poll_key(master, account_id, job_id)
        tickets: defaultdict[tuple[str, int], list[Ticket]] = defaultdict(list)
        for task, task_key, numbers in leases:
            input_key = keys.input_key(task_key)
            for number in numbers:
                replica = task.replicas[number]
                lease_id = task.lease_id(number)
                tickets[replica.worker_id, replica.epoch].append(
                    Ticket(
                        lease_id=lease_id,
                        input_digest=task.input_digest,
                        input_key=input_key,
                        result_key=keys.result_key(task_key, lease_id),
                        cpu_limit_s=task.cpu_limit_s,
                        max_result_bytes=self._settings.max_result_bytes,
                        deadline_s=replica.deadline_ms / 1000,
                        price=task.price,
                    )
                )
        assigned = []
        for (worker_id, epoch), listed in tickets.items():
            worker = workers[worker_id]
            bundle = TicketBundle(worker_id, epoch, job_id, program_key, poll_key, listed)
            assigned.append(
                m.AssignedWorker(
                    worker_id=worker_id,
                    address=worker.address,
                    port=worker.port,
                    slots=worker.slots,
                    tickets=seal_tickets(self._registry.worker_key(worker_id), bundle),
                )
            )
        return assigned

    def _make(
        self,
        account_id: str,
        wanted: m.LeaseTasks,
        groups: list[list[WorkerRecord]],
        fit: tuple[str, list[str]],
        now_ms: int,
        changes: Changes,
    ) -> list[TaskRecord]:
        number, _ = self._keyring.current(now_ms / 1000)
        random_bytes = secrets.token_bytes(28 * len(groups))
        records = []
        for position, (task, group) in enumerate(zip(wanted.tasks, groups, strict=False)):
            entropy = random_bytes[28 * position : 28 * position + 28]
            record = TaskRecord(
                task_id=entropy[:12].hex(),
                account_id=account_id,
                job_id=wanted.job_id,
                version=0,
                state=TaskState.LEASED,
                created_ms=now_ms,
                nonce=entropy[12:],
                wrapping=number,
                input_digest=task.input_digest,
                cpu_limit_s=task.cpu_limit_s,
                timeout_s=self._timeout(task, wanted.timeout_s),
                price=price_of(task.cpu_limit_s),
                redundancy=wanted.policy.redundancy,
                quorum=wanted.policy.quorum,
                max_replicas=wanted.policy.max_replicas,
                worker_class=fit[0],
                replicas=[],
                capabilities=fit[1],
            )
            add_replicas(record, group, now_ms, changes)
            changes.tasks.append((record, 0, next_due(record, self.grace)))
            records.append(record)
        return records

    def _repeat(
        self, account_id: str, job_id: str, task_ids: list[str], digests: set[bytes], sample: Sample, price: int
    ) -> m.Leased:
        """The answer to a request that was answered before, made again from what is stored."""
        _, records = self._store.load(task_ids)
        mine = [
            records[task_id]
            for task_id in task_ids
            if task_id in records and records[task_id].account_id == account_id and records[task_id].job_id == job_id
        ]
        if not mine or any(record.input_digest not in digests for record in mine):
            raise ProblemError(409, "conflict", "this idempotency key was used for other tasks: choose a new one")
        numbers = [(record, list(range(record.redundancy))) for record in mine]
        workers = self._store.workers(sorted({r.worker_id for record in mine for r in record.replicas}))
        return self._answer(account_id, job_id, numbers, workers, sample, price, sample.balance)

    def _answer(
        self,
        account_id: str,
        job_id: str,
        leases: list[tuple[TaskRecord, list[int]]],
        workers: dict[str, WorkerRecord],
        sample: Sample,
        price: int,
        balance: int,
    ) -> m.Leased:
        keyed = []
        for record, numbers in leases:
            task_key = self.task_key(record)
            if task_key is not None:
                keyed.append((record, task_key, numbers))
        master = self._keyring.master
        return m.Leased(
            program_key=keys.program_key(master, account_id, job_id),
            poll_key=keys.poll_key(master, account_id, job_id),
            tasks=[self.leased_task(record, numbers, task_key) for record, task_key, numbers in keyed],
            workers=self.assigned_workers(account_id, job_id, keyed, workers),
            network=m.NetworkState(workers=sample.workers_alive, slots=sample.slots_alive),
            price=price,
            balance=balance,
        )

    def _fit(self, workers: list[WorkerRecord], account_id: str) -> list[WorkerRecord]:
        if self._settings.own_workers:
            return workers
        return [worker for worker in workers if worker.account_id != account_id]

    def _timeout(self, task: m.TaskWanted, wanted_s: float | None) -> float:
        least = max(self._settings.min_timeout_s, task.cpu_limit_s if wanted_s is None else 0.0)
        usual = max(self._settings.default_timeout_s, 4 * task.cpu_limit_s)
        return min(max(usual if wanted_s is None else wanted_s, least), self._settings.max_timeout_s)


def _affordable(tasks: Sequence[m.TaskWanted], redundancy: int, balance: int) -> int:
    """How many of the tasks, in order, the balance pays for."""
    for count, task in enumerate(tasks):
        balance -= price_of(task.cpu_limit_s) * redundancy
        if balance < 0:
            return count
    return len(tasks)


def _cost(changes: Changes) -> int:
    return sum(amount for source, _, amount in changes.moves if source.startswith("account:"))
