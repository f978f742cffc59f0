"""Leasing: credits into escrow, and workers for tasks."""

from __future__ import annotations

import random
import secrets
from collections import Counter, defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from msgspec.structs import replace

from discovery.beliefs import hear
from discovery.changes import Changes, View
from discovery.changing import ATTEMPTS
from discovery.keyring import Keyring
from discovery.matching import assign, newcomers_of, serves
from discovery.payments import price_for
from discovery.records import TaskRecord, WorkerRecord, class_of, needs_of
from discovery.settings import Settings
from discovery.store.answers import Conflict, Sample
from discovery.store.known import Job
from discovery.store.sampling import Draw
from discovery.store.store import Store
from discovery.tasks import add_replicas, next_due
from discovery.ticketing import Lease, Ticketing
from discovery.trust import Trust, welcome
from ec262.errors import Malformed, ProblemError
from ec262.protocol import keys
from ec262.protocol import messages as m
from ec262.protocol.credits import least_timeout_s, price_of
from ec262.protocol.keys import NONCE_BYTES
from ec262.protocol.states import ReplicaState, TaskState

IDEMPOTENCY_S = 600
FEW = 12
"""Workers that are looked at first for each further replica of a task."""
MOST_REFUSALS = 4
"""Of one task by one worker; after them it is not asked again."""
MOST_REPLICAS = 64
"""Of one task, those that were refused or lost included."""


@dataclass(slots=True)
class Market:
    """Workers that tasks of one kind can be leased to further, and what their foreman can pay; both shrink as they are.

    Attributes:
        budget: credits that may be spent.
        past: those who had such tasks.
        newcomers: those of whom a task gets one at most.
        view: what the foreman knows of them, and of those who had the tasks.
        chance: what decides between workers. Nobody knows its seed, and nobody sees what it draws before the last is
            drawn; `random.SystemRandom` asks the kernel for each number, and two dozen are drawn a task.
    """

    now_ms: int
    budget: int
    workers: dict[str, WorkerRecord]
    past: dict[str, WorkerRecord]
    newcomers: frozenset[str]
    view: View
    chance: random.Random = field(default_factory=lambda: random.Random(secrets.randbits(256)))

    def take(self, worker: WorkerRecord, price: int) -> None:
        """A worker got a replica."""
        self.workers[worker.worker_id] = replace(worker, used=worker.used + 1)
        self.budget -= price


class Leasing:
    """Leases tasks to workers."""

    def __init__(self, store: Store, keyring: Keyring, ticketing: Ticketing, trust: Trust, settings: Settings) -> None:
        self._store = store
        self._keyring = keyring
        self._trust = trust
        self._ticketing = ticketing
        self._settings = settings
        self._chance = random.SystemRandom()

    def lease(self, account_id: str, wanted: m.LeaseTasks) -> m.Leased:
        """Assigns as many of the tasks, in order, as are affordable and have workers.

        Raises:
            ProblemError: ``insufficient-credits``, with nothing taken; ``conflict`` after many attempts.
            Malformed: a policy that contradicts itself.
        """
        policy = wanted.policy
        if not policy.confidence and max(policy.quorum, policy.redundancy) > policy.max_replicas:
            raise Malformed("policy: quorum and redundancy may not be more than max_replicas")
        if len({price_of(limit_s) for limit_s in {task.cpu_limit_s for task in wanted.tasks}}) > 1:
            raise Malformed("tasks: their CPU limits differ in price; lease each kind in a request of its own")
        # Whoever answers first is not to know whether an accomplice has the task as well: so nobody has it, yet.
        replicas = 1 if policy.confidence else policy.redundancy
        units = price_of(wanted.tasks[0].cpu_limit_s)
        job = (account_id, wanted.job_id)
        capabilities = needs_of(wanted.requirements)
        worker_class = class_of(wanted.requirements.lane, wanted.requirements.python, capabilities)
        for _ in range(ATTEMPTS):
            before, sample = self._store.sample_for(
                Draw(
                    *(worker_class, capabilities, self._settings.sample, job, wanted.offer),
                    networks_count=self._trust.networks_count,
                    idempotency_key=wanted.idempotency_key,
                )
            )
            if before is not None:
                return self._repeat(account_id, wanted, before, sample)
            view = self._trust.view_of(sample.known)
            budget = sample.balance - view.unvested
            longest_s = max(task.cpu_limit_s for task in wanted.tasks)
            fit = self._fit(sample.workers, job, longest_s, view, trusting=not policy.confidence)
            least = units * replicas * min((worker.ask for worker in fit), default=1)
            if budget < least:
                raise ProblemError(
                    *(402, "insufficient-credits"),
                    f"one task costs {least} credits (price of a replica times redundancy), the account has "
                    f"{budget} to spend: run a worker to earn some",
                    needed=least,
                    available=budget,
                )
            olds = self._olds(job, wanted)
            groups = self._groups(wanted, replicas, fit, budget // least, olds, view)
            changes = Changes()
            records = self._make(
                account_id, wanted, groups, (worker_class, capabilities), budget, olds, sample.now_ms, changes
            )
            if not records:
                return self._answer(account_id, wanted, [], {}, sample, sample.balance)
            cost = _cost(account_id, changes)
            try:
                self._store.commit(
                    changes,
                    sample.now_ms,
                    self._trust.terms,
                    needs={f"account:{account_id}": cost},
                    idempotency=(
                        f"{account_id}:{wanted.idempotency_key}",
                        ",".join(record.task_id for record in records),
                        IDEMPOTENCY_S,
                    ),
                )
            except Conflict:
                continue
            leases = [(position, record, list(range(len(record.replicas)))) for position, record in enumerate(records)]
            workers = {worker.worker_id: worker for worker in fit}
            return self._answer(account_id, wanted, leases, workers, sample, sample.balance - cost)
        raise ProblemError(409, "conflict", "many foremen want the same workers at once: try again")

    def markets(self, kinds: Sequence[tuple[TaskRecord, Sequence[str]]]) -> list[Market]:
        """For tasks of each of some kinds: workers, drawn for it, that could take a further replica.

        Args:
            kinds: of each a task, and the workers that had one.
        """
        samples = self._store.samples(
            [
                Draw(
                    *(of.worker_class, of.capabilities, self._settings.sample, (of.account_id, of.job_id), of.offer),
                    networks_count=self._trust.networks_count,
                    named=had,
                )
                for of, had in kinds
            ]
        )
        return [self._market(task, sample) for (task, _), sample in zip(kinds, samples, strict=True)]

    def _market(self, task: TaskRecord, sample: Sample) -> Market:
        view = self._trust.view_of(sample.known)
        fit = {
            worker.worker_id: worker
            for worker in self._fit(
                *(sample.workers, (task.account_id, task.job_id), task.cpu_limit_s, view),
                trusting=not task.confidence,
            )
        }
        return Market(
            now_ms=sample.now_ms,
            budget=sample.balance - view.unvested,
            workers=fit,
            past=sample.named,
            newcomers=newcomers_of(list((sample.named | fit).values())) if task.confidence else frozenset(),
            view=view,
        )

    def extend(
        self, task: TaskRecord, replicas: int, market: Market, changes: Changes
    ) -> list[tuple[int, WorkerRecord]]:
        """Adds up to `replicas` workers to a task, distinct from those it had; returns their numbers and them.

        A worker whose replica merely expired may have it again: it gave no answer that could count twice. So may one
        that refused it, but only where nobody else is left, and `MOST_REFUSALS` times: it may have been paused then,
        and be willing now. One that goes on to refuse would be asked as fast as it answers.
        """
        fresh = self._extend(task, replicas, market, frozenset(), changes)
        refusals = Counter(each.worker_id for each in task.replicas if each.state is ReplicaState.REFUSED)
        if fresh or not refusals:
            return fresh
        again = frozenset(worker_id for worker_id, times in refusals.items() if times < MOST_REFUSALS)
        return self._extend(task, replicas, market, again, changes) if again else []

    def _extend(
        self,
        task: TaskRecord,
        replicas: int,
        market: Market,
        again: frozenset[str],
        changes: Changes,
    ) -> list[tuple[int, WorkerRecord]]:
        """As `extend`; those of `again` may have the task again that they refused."""
        had = [
            market.past[replica.worker_id]
            for replica in (*task.heard, *task.replicas)
            if replica.state is not ReplicaState.EXPIRED
            and not (replica.state is ReplicaState.REFUSED and replica.worker_id in again)
            and replica.worker_id in market.past
        ]
        for count in range(replicas, 0, -1):
            fit: Collection[WorkerRecord] = market.workers.values()
            if task.units * task.offer * count > market.budget:
                fit = [worker for worker in fit if price_for(task, worker) * count <= market.budget]
            # Some of them nearly always do, and all are looked at where they do not.
            few = market.chance.sample(list(fit), min(len(fit), count * FEW))
            groups: list[list[WorkerRecord]] = []
            for some in (few, fit) if len(few) < len(fit) else (fit,):
                groups = groups or assign(
                    list(some),
                    tasks=1,
                    replicas=count,
                    distinct=self._settings.distinct,
                    chance=market.chance,
                    exclude=had,
                    newcomers=market.newcomers,
                )
            if groups:
                numbers = add_replicas(task, groups[0], market.now_ms, changes)
                for number, worker in zip(numbers, groups[0], strict=True):
                    market.take(market.workers[worker.worker_id], task.replicas[number].price)
                return list(zip(numbers, groups[0], strict=True))
        return []

    def may_extend(self, task: TaskRecord, now_ms: int) -> bool:
        """Whether the task may have a further replica: its keys live long enough, and it had not too many."""
        young = now_ms - task.created_ms < self._settings.max_task_life_s * 1000
        return young and len(task.replicas) < MOST_REPLICAS

    def _make(
        self,
        account_id: str,
        wanted: m.LeaseTasks,
        groups: list[list[WorkerRecord]],
        fit: tuple[str, list[str]],
        budget: int,
        olds: dict[str, TaskRecord],
        now_ms: int,
        changes: Changes,
    ) -> list[TaskRecord]:
        """Records of the tasks that have workers, as many as the budget pays for."""
        number, _ = self._keyring.current(now_ms / 1000)
        each = 12 + NONCE_BYTES
        random_bytes = secrets.token_bytes(each * len(groups))
        records = []
        worker_class, capabilities = fit
        policy, job_id = wanted.policy, wanted.job_id
        redundancy, quorum = (1, 1) if policy.confidence else (policy.redundancy, policy.quorum)
        units = price_of(wanted.tasks[0].cpu_limit_s)
        limits = {task.cpu_limit_s for task in wanted.tasks}
        times = {
            limit_s: (max(limit_s, self._settings.min_cpu_limit_s), self._timeout(limit_s, wanted.timeout_s))
            for limit_s in limits
        }
        for position, (task, group) in enumerate(zip(wanted.tasks, groups, strict=False)):
            entropy = random_bytes[each * position : each * (position + 1)]
            cpu_limit_s, timeout_s = times[task.cpu_limit_s]
            # By position: so many keywords take as long as all else that is done here for a task.
            record = TaskRecord(
                entropy[:12].hex(),
                account_id,
                job_id,
                0,
                TaskState.LEASED,
                now_ms,
                entropy[12:],
                number,
                task.input_digest,
                cpu_limit_s,
                timeout_s,
                units,
                redundancy,
                quorum,
                policy.max_replicas,
                worker_class,
                [],
                capabilities=capabilities,
                offer=wanted.offer,
                confidence=policy.confidence,
            )
            budget -= sum([price_for(record, worker) for worker in group])
            if budget < 0:
                break
            add_replicas(record, group, now_ms, changes)
            old = olds.get(task.again or "")
            if old is not None and hear(record, old):
                changes.tasks.append((old, old.version, next_due(old, self._trust.terms)))
            changes.tasks.append((record, 0, next_due(record, self._trust.terms)))
            records.append(record)
        return records

    def _groups(
        self,
        wanted: m.LeaseTasks,
        replicas: int,
        fit: list[WorkerRecord],
        affordable: int,
        olds: dict[str, TaskRecord],
        view: View,
    ) -> list[list[WorkerRecord]]:
        """Workers for the first tasks; whoever answered a task before does not get it again."""
        distinct, chance = self._settings.distinct, self._chance
        most = min(len(wanted.tasks), affordable)
        if not olds:
            fresh = newcomers_of(fit) if replicas > 1 else frozenset()
            return assign(fit, tasks=most, replicas=replicas, distinct=distinct, chance=chance, newcomers=fresh)
        past = self._store.workers(
            sorted({each.worker_id for old in olds.values() for each in (*old.heard, *old.replicas)})
        )
        used: defaultdict[str, int] = defaultdict(int)
        groups: list[list[WorkerRecord]] = []
        for task in wanted.tasks[:most]:
            old = olds.get(task.again or "")
            had = [] if old is None else [past[r.worker_id] for r in (*old.heard, *old.replicas) if r.worker_id in past]
            left = [replace(worker, used=worker.used + used[worker.worker_id]) for worker in fit]
            found = assign(left, tasks=1, replicas=replicas, distinct=distinct, chance=chance, exclude=had)
            # Where nobody else is left, whoever answered it may: it is no worse than not to compute it.
            found = found or assign(left, tasks=1, replicas=replicas, distinct=distinct, chance=chance)
            if not found:
                break
            groups += found
            for worker in found[0]:
                used[worker.worker_id] += 1
        return groups

    def _olds(self, job: Job, wanted: m.LeaseTasks) -> dict[str, TaskRecord]:
        """The tasks of this job that are computed anew."""
        named = list(dict.fromkeys(task.again for task in wanted.tasks if task.again is not None))
        found = self._store.load(named)[1] if named else {}
        return {task_id: old for task_id, old in found.items() if (old.account_id, old.job_id) == job}

    def _repeat(self, account_id: str, wanted: m.LeaseTasks, task_ids: list[str], sample: Sample) -> m.Leased:
        """The answer to a request that was answered before, made again from what is stored.

        Tasks whose records are gone are left out, as those are whose keys are. Nothing of them is in escrow, or it goes
        back at its deadline: their foreman leases them anew.

        Raises:
            ProblemError: ``conflict``, the request is another one than then.
        """
        _, records = self._store.load(task_ids)
        leases = []
        same = len(task_ids) <= len(wanted.tasks)
        # The first tasks of a request are leased, in order: the place of an id says which it is of.
        for position, (task_id, task) in enumerate(zip(task_ids, wanted.tasks, strict=False)):
            record = records.get(task_id)
            if record is not None:
                same = same and record.input_digest == task.input_digest and record.job_id == wanted.job_id
                leases.append((position, record, list(range(record.redundancy))))
        if not same:
            raise ProblemError(409, "conflict", "this idempotency key was used for other tasks: choose a new one")
        workers = self._store.workers(sorted({r.worker_id for _, record, _ in leases for r in record.replicas}))
        return self._answer(account_id, wanted, leases, workers, sample, sample.balance)

    def _answer(
        self,
        account_id: str,
        wanted: m.LeaseTasks,
        leases: list[tuple[int, TaskRecord, list[int]]],
        workers: dict[str, WorkerRecord],
        sample: Sample,
        balance: int,
    ) -> m.Leased:
        """What a foreman is told of its leases: position in its request, task, and numbers of replicas."""
        job_id = wanted.job_id
        tasks: list[m.LeasedTask] = []
        listed: list[Lease] = []
        for position, record, numbers in leases:
            wrapping = self._ticketing.wrapping_of(record)
            if wrapping is not None:
                leased = self._ticketing.leased_task(record, numbers, wrapping, position)
                tasks.append(leased)
                listed.append((record, numbers, leased, wrapping))
        master = self._keyring.master
        return m.Leased(
            program_key=keys.program_key(master, account_id, job_id),
            poll_key=keys.poll_key(master, account_id, job_id),
            tasks=tasks,
            workers=self._ticketing.assigned_workers(account_id, job_id, listed, workers),
            network=m.NetworkState(workers=sample.workers_alive, slots=sample.slots_alive),
            price=price_of(wanted.tasks[0].cpu_limit_s) * wanted.offer,
            balance=balance,
        )

    def _fit(
        self, workers: list[WorkerRecord], job: Job, cpu_limit_s: float, view: View, *, trusting: bool
    ) -> list[WorkerRecord]:
        """Workers that may, and want to, serve a job with tasks of up to `cpu_limit_s`.

        `trusting`: a quorum decides, whatever is known of those who answer.
        """
        account_id, job_id = job
        workers = [worker for worker in workers if not worker.terms or serves(worker, account_id, job_id, cpu_limit_s)]
        if view.undelivered:
            workers = [worker for worker in workers if worker.worker_id not in view.undelivered]
        if not self._settings.own_workers:
            workers = [worker for worker in workers if worker.account_id != account_id]
        if trusting:
            return [worker for worker in workers if not worker.banned and worker.account_id not in view.parted]
        return welcome(workers, view)

    def _timeout(self, cpu_limit_s: float, wanted_s: float | None) -> float:
        """Until the deadline: as the foreman asks, but nobody has to do what takes longer than he is given."""
        cpu_limit_s = max(cpu_limit_s, self._settings.min_cpu_limit_s)
        least = max(self._settings.min_timeout_s, least_timeout_s(cpu_limit_s))
        usual = max(self._settings.default_timeout_s, 4 * cpu_limit_s)
        return min(max(usual if wanted_s is None else wanted_s, least), self._settings.max_timeout_s)


def _cost(account_id: str, changes: Changes) -> int:
    account = f"account:{account_id}"
    return sum([amount for source, _, amount in changes.moves if source == account])
