"""What discovery remembers, in Redis: loads, atomic commits, nothing decided here.

Redis' TIME is the only clock that decides. Cost: one commit of n tasks is one call, 5 to 10 us of Redis a task.
"""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import msgspec

from discovery.archive.entry import encode_entry, whats_of
from discovery.changes import NEVER, Changes, Terms
from discovery.credibility import NOTHING, THOUSAND, USUAL
from discovery.records import JobRecord, TaskRecord, WorkerRecord, pools_of
from discovery.store.accounts import Accounts
from discovery.store.answers import Beat, Conflict, NotAdmitted, Registered, Sample, Told
from discovery.store.books import Books
from discovery.store.calls import Calls
from discovery.store.channel import Channel
from discovery.store.connection import connect, reconnect, together
from discovery.store.known import Job, Known, known_from
from discovery.store.pulse import Pulse
from discovery.store.rates import Rates
from discovery.store.reading import tasks_of, told_of, whole, workers_of
from discovery.store.reputations import VESTING_MS, Reputations
from discovery.store.sampling import Draw, sample_of
from discovery.store.scripts import scripts_of
from ec262.protocol.messages import MAX_TASKS_A_REQUEST

_PREFIX = "{ec}:"
_pack = msgspec.msgpack.Encoder().encode
_CAPS = [
    *(USUAL.party_verified * THOUSAND, USUAL.party_doubts * THOUSAND, THOUSAND // 2, 2 * USUAL.memory * THOUSAND),
]
"""What commit.lua needs of `credibility.shared`, `Tally.accuses` and `credibility.aged`."""


COMMITS_AT_ONCE = 3
"""Commits that are on their way to Redis: one that it works on, and those that it finds when that is done.

While this process decides something else it sends nothing, and with only one to find the store had nothing to do. A
commit of a thousand tasks takes it some 20 ms, any other command less than one. Were all sent that there are, what is
short would wait behind all of them, and this process with it, though others' requests could be decided meanwhile.
"""


@dataclass(frozen=True, slots=True)
class Most:
    """How many there may be, 0: any number.

    Attributes:
        account: workers of an account at a time.
        ids: worker ids that an account ever had.
        neighbourhood: workers at a time in a neighbourhood.
    """

    account: int = 0
    ids: int = 0
    neighbourhood: int = 0


class Store:
    """The one door to Redis; safe to use from many threads or greenlets.

    Every method raises `redis.RedisError` when Redis does not answer.

    Attributes:
        books: the ledger's side of it.
        accounts: the accounts' side of it.
        reputations: what it knows of workers and of jobs that are not closed.
        pulse: numbers for people to see.
        calls: the relay's notes.
        channel: how the processes of one service talk to each other.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self._redis = connect(url)
        self._scripts = scripts_of(self._redis)
        self._turn = threading.BoundedSemaphore(COMMITS_AT_ONCE)
        self.books = Books(self._redis, self._scripts)
        self.accounts = Accounts(self._redis, self._scripts)
        self.reputations = Reputations(self._redis, self._scripts)
        self.rates = Rates(self._redis, self._scripts)
        self.pulse = Pulse(self._redis)
        self.calls = Calls(self._redis, self._scripts)
        self.channel = Channel(self._redis)

    def ping(self) -> None:
        """Raises when Redis does not answer."""
        self._redis.ping()

    def move_to(self, url: str) -> None:
        """Goes on with the Redis at another URL: the embedded one was started again."""
        reconnect(self._redis, url)
        self.url = url

    def close(self) -> None:
        """Closes all connections."""
        self.channel.close()
        self._redis.close()

    # --- workers ---

    def register(
        self,
        *,
        worker_id: str,
        account_id: str,
        address: str,
        port: int,
        slots: int,
        capacity: int,
        boot_id: str,
        worker_class: str,
        ttl_ms: int,
        layers: Sequence[str],
        capabilities: Sequence[str] = (),
        ask: int = 1,
        platform: str = "",
        near: str = "",
        most: Most = Most(),
        terms: str = "",
        willing: bool = True,
        relay: str = "never",
    ) -> Registered:
        """Puts a worker in the pool.

        Args:
            relay: whether it serves through the relay, as `WorkerRecord.relay`.
            near: the neighbourhood of its address that `most` counts in.
            terms: `WorkerRecord.terms`.
            willing: False: it is alive, and in no pool until a heartbeat says otherwise.

        Raises:
            NotAdmitted: it may not enter; nothing was changed.
        """
        answer = self._run(
            "register",
            *(worker_id, account_id, address, port, slots, capacity, boot_id, worker_class, ttl_ms, ",".join(layers)),
            *(" ".join(pools_of(capabilities, platform)), ask, platform, near),
            *(most.account, most.ids, most.neighbourhood),
            *(terms, "" if willing else "1", relay),
        )
        if answer[0] != b"ok":
            raise NotAdmitted(answer[0].decode())
        return Registered(answer[1], answer[2], [lease.decode() for lease in answer[3:]])

    def heartbeat(
        self,
        worker_id: str,
        account_id: str,
        boot_id: str,
        ttl_ms: int,
        *,
        willing: bool = True,
        address: str = "",
        near: str = "",
    ) -> Beat | None:
        """Prolongs a registration; None: not registered (there, if that is given), and nothing was changed."""
        away = "" if willing else "1"
        answer = self._run("heartbeat", worker_id, account_id, boot_id, ttl_ms, away, address, near)
        if answer[0] != b"ok":
            return None
        leases = [lease.decode() for lease in answer[6:]]
        return Beat(answer[1], answer[2], answer[3], answer[4], leases, bool(answer[5]))

    def leave(self, worker_id: str, account_id: str) -> bool:
        """Takes a worker out of the pool; False: not registered."""
        return int(self._run("leave", "leave", worker_id, account_id)) == 1

    def lapse(self, limit: int) -> int:
        """Takes up to `limit` workers out of the pool whose heartbeats stopped; returns how many."""
        return int(self._run("leave", "lapse", limit))

    def sample(
        self, worker_class: str, needs: Sequence[str], count: int, account_id: str = "", *, offer: int = 1
    ) -> Sample:
        """Up to `count` random workers of a class that have all `needs`, a slot free, and ask for no more than `offer`.

        Those that ask for less come first. While the account has a bound gift to spend, there are no neighbours of it
        among them. Cost: that of `count` workers, and of how many different prices are asked for; with several
        capabilities also that of up to 2048 workers looked at. Of these an answer may then have fewer than there are,
        and `workers_alive` and `slots_alive` are estimates.
        """
        return self.sample_for(Draw(worker_class, needs, count, (account_id, ""), offer))[1]

    def sample_for(self, draw: Draw) -> tuple[list[str] | None, Sample]:
        """The tasks that this lease request got before, None: no such request, or long ago; and `sample`."""
        return sample_of(self._run("sample", *draw.arguments()))

    def samples(self, draws: Sequence[Draw]) -> list[Sample]:
        """`sample` for each, in one go."""
        asked = [(self._scripts["sample"], draw.arguments()) for draw in draws]
        return [sample_of(answer)[1] for answer in together(self._redis, *asked)]

    def workers(self, worker_ids: Sequence[str]) -> dict[str, WorkerRecord]:
        """The records of workers, alive or not."""
        if not worker_ids:
            return {}
        return workers_of(self._run("workers", *worker_ids))

    def worker_counts(self, worker_id: str) -> dict[str, int]:
        """A worker's counters: agreed, dissented, refused, expired, undelivered, earned."""
        names = ["agreed", "dissented", "refused", "expired", "undelivered", "earned"]
        values = self._redis.hmget(f"{_PREFIX}worker:{worker_id}", names)
        return {name: whole(value) for name, value in zip(names, values, strict=True)}  # type: ignore[arg-type]

    def workers_alive(self) -> int:
        """How many workers are registered, of all classes."""
        return int(self._redis.zcard(f"{_PREFIX}alive"))

    # --- tasks ---

    def now_ms(self) -> int:
        """Redis' time."""
        seconds, micros = self._redis.time()
        return int(seconds) * 1000 + int(micros) // 1000

    def load(self, task_ids: Sequence[str]) -> tuple[int, dict[str, TaskRecord]]:
        """Redis' time in ms, and working copies of those tasks that there are."""
        return tasks_of(self._run("load", *task_ids))

    def load_known(
        self, task_ids: Sequence[str], job: Job, worker_ids: Sequence[str], *, networks_count: bool
    ) -> tuple[int, dict[str, TaskRecord], Known]:
        """`load` and then `Reputations.known`, in one go."""
        tasks, known = together(
            self._redis,
            (self._scripts["load"], task_ids),
            self.reputations.asking(job, worker_ids, networks_count=networks_count),
        )
        return *tasks_of(tasks), known_from(worker_ids, known)

    def due(self, limit: int) -> list[str]:
        """Ids of tasks that need attention now."""
        seconds, micros = self._redis.time()
        found = self._redis.zrangebyscore(f"{_PREFIX}due", "-inf", seconds * 1000 + micros // 1000, start=0, num=limit)
        return [task_id.decode() for task_id in found]  # type: ignore[union-attr]

    def commit(
        self,
        changes: Changes,
        now_ms: int,
        terms: Terms,
        *,
        needs: dict[str, int] | None = None,
        idempotency: tuple[str, str, int] | None = None,
        tell: Job | None = None,
    ) -> Told | None:
        """Commits all of `changes` in one atomic step, or nothing.

        Args:
            needs: least balance of places such as ``account:<id>`` that may be spent.
            idempotency: (``account:key``, value, seconds to keep).
            tell: the job of which is to be told what `tell` tells, as it is then.

        Raises:
            Conflict: what `changes` was decided on is no longer so.
        """
        changes.add_up()
        places: defaultdict[str, int] = defaultdict(int)
        for source, target, amount in changes.moves:
            places[source] -= amount
            places[target] += amount
        accounts, escrows = _split(places)
        counts = defaultdict(int, changes.counts)
        counts["stats", "escrow"] += sum(escrows[1])
        vesting: defaultdict[tuple[str, str], int] = defaultdict(int)
        for (account, vests_ms), amount in changes.vesting.items():
            # By tens of seconds, never too early.
            vesting[str(-(-vests_ms // VESTING_MS)), account] += amount
            counts[f"account:{account}", "unvested"] += amount
        for record, version, _ in changes.tasks:
            record.version = version + 1
        ids = [record.task_id for record, _, _ in changes.tasks]
        versions = [_digits(version) if version else "" for _, version, _ in changes.tasks]
        dues = [NEVER if due_ms is None else due_ms for _, _, due_ms in changes.tasks]
        records = [
            b"" if due_ms is None else _digits(record.version).encode() + _pack(record)
            for record, _, due_ms in changes.tasks
        ]
        entry = encode_entry(changes.moves, whats_of(changes.moves, _jobs(changes))) if changes.moves else b""
        decided = _pack(
            {
                "tasks": (ids, versions, dues, [len(packed) for packed in records]),
                "accounts": accounts,
                "escrows": escrows,
                "takes": [(worker, epoch, leases) for (worker, epoch), leases in changes.takes.items()],
                "frees": [(worker, leases, _share(changes, worker)) for worker, leases in changes.frees.items()],
                "counts": _by_key(counts),
                "needs": list(needs.items()) if needs else [],
                "lessons": [
                    (worker, party, tally.verified, tally.doubts, tally.words)
                    for (worker, party), tally in changes.lessons.items()
                    if tally != NOTHING
                ],
                "jobs": [
                    (
                        *(f"{account}:{job}", sum(each.compared.values())),
                        *(_flat(each.compared), _flat(each.differed), _flat(each.doubts), _flat(each.effort)),
                        *(_flat(each.undelivered), each.accepted, each.recompute),
                        *(_flat(each.held), _flat(each.back)),
                    )
                    for (account, job), each in changes.jobs.items()
                ],
                "hush": ":".join(changes.hush) if changes.hush else "",
                "vesting": _by_key(vesting),
                "caps": _CAPS,
                "kept": now_ms + terms.kept_ms,
                "most_share": terms.most_share,
                "denied": [(worker, *parties) for worker, parties in changes.denied.items()],
                "hold": (terms.hold_cap, terms.hold_foremen),
                "idempotency": list(idempotency) if idempotency else [],
                "tell": [*tell, MAX_TASKS_A_REQUEST] if tell else [],
                "now": now_ms,
            }
        )
        with self._turn:
            answer = self._run("commit", decided, entry, b"".join(records))
        if answer[0] != b"ok":
            raise Conflict(answer[0].decode(), [which.decode() for which in answer[1:]])
        return told_of(*answer[1:]) if tell else None

    def tell(self, job: Job) -> Told:
        """What a foreman is told of its account and job with each settlement."""
        account_id, job_id = job
        return told_of(
            *together(
                self._redis,
                ("HGET", [f"{_PREFIX}balances", f"account:{account_id}"]),
                ("SRANDMEMBER", [f"{_PREFIX}job:{account_id}:{job_id}:recompute", MAX_TASKS_A_REQUEST]),
            )
        )

    # --- reports of jobs ---

    def report_job(self, account_id: str, job_id: str, report: bytes, *, ended: bool, keep_ms: int, most: int) -> None:
        """Keeps the last report of a job; of more than `most` an account's longest silent one is forgotten."""
        self._run("report_job", account_id, job_id, int(ended), keep_ms, most, report)

    def jobs(self, account_id: str) -> tuple[int, list[JobRecord]]:
        """Redis' time in ms, and an account's jobs that were reported not too long ago, in any order."""
        pipeline = self._redis.pipeline(transaction=True)
        pipeline.time()
        pipeline.hgetall(f"{_PREFIX}account:{account_id}:jobs")
        (seconds, micros), found = pipeline.execute()
        now_ms = seconds * 1000 + micros // 1000
        jobs = []
        for job_id, kept in found.items():
            _, started_ms, updated_ms, till_ms, report = kept.split(b" ", 4)
            if int(till_ms) > now_ms:
                jobs.append(JobRecord(job_id.decode(), int(started_ms), int(updated_ms), report))
        return now_ms, jobs

    def forget_jobs(self, limit: int) -> int:
        """Forgets up to `limit` jobs of which nothing was heard for too long; returns how many."""
        return int(self._run("forget_jobs", limit))

    # --- the books ---

    def balances(self) -> tuple[dict[str, int], dict[str, int]]:
        """All balances by place, and escrows by task, at one instant. Cost grows with accounts and open tasks."""
        pipeline = self._redis.pipeline(transaction=True)
        pipeline.hgetall(f"{_PREFIX}balances")
        pipeline.hgetall(f"{_PREFIX}escrow")
        balances, escrows = pipeline.execute()
        return (
            {name.decode(): int(amount) for name, amount in balances.items()},
            {name.decode(): int(amount) for name, amount in escrows.items()},
        )

    def _run(self, name: str, *arguments: Any) -> Any:
        return self._scripts[name](args=arguments)


@lru_cache(maxsize=256)
def _digits(version: int) -> str:
    return f"{version:08}"


def _jobs(changes: Changes) -> dict[str, str]:
    """The job of each task; of one of them, where all are of one."""
    names = {record.job_id for record, _, _ in changes.tasks}
    few = changes.tasks[:1] if len(names) == 1 else changes.tasks
    return {record.task_id: record.job_id for record, _, _ in few}


def _share(changes: Changes, worker_id: str) -> int:
    """What becomes of a worker's share: 1 whole again, -1 halved."""
    if worker_id in changes.halved:
        return -1
    return 1 if worker_id in changes.restored else 0


def _flat(counts: dict[str, int]) -> list[str | int]:
    return [part for item in counts.items() if item[1] for part in item]


def _by_key(counts: Mapping[tuple[str, str], int]) -> list[tuple[str, list[str | int]]]:
    """Increments by hash and field: for each hash field, increment, field, increment."""
    found: defaultdict[str, list[str | int]] = defaultdict(list)
    for (key, name), n in counts.items():
        if n:
            found[key] += (name, n)
    return list(found.items())


def _split(places: dict[str, int]) -> tuple[list[str | int], tuple[list[str], list[int]]]:
    """What accounts gain; and tasks' escrows with what they gain."""
    accounts: list[str | int] = []
    tasks, gains = [], []
    for place, amount in places.items():
        if amount and place.startswith("escrow:"):
            tasks.append(place[7:])
            gains.append(amount)
        elif amount:
            accounts += (place, amount)
    return accounts, (tasks, gains)
