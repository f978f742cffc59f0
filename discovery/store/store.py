"""What discovery remembers, in Redis: loads, atomic commits, nothing decided here.

Redis' TIME is the only clock that decides. Cost: one commit of n tasks is one call, 5 to 10 us of Redis a task.
"""

from __future__ import annotations

import secrets
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import redis

from discovery.records import AccountRecord, JobRecord, TaskRecord, WorkerRecord
from discovery.tasks import Changes, Move

_LUA = Path(__file__).parent / "lua"
_PREFIX = "{ec}:"
_records = msgspec.msgpack.Decoder(TaskRecord)
_pack = msgspec.msgpack.Encoder().encode
_moves = msgspec.msgpack.Decoder(list[Move])


class Conflict(Exception):
    """A commit was refused because others changed the same things; load again and decide again.

    Attributes:
        what: ``stale`` (a task changed), ``repeated`` (idempotency key known), ``credits``, ``worker``.
    """

    def __init__(self, what: str, which: Sequence[str]) -> None:
        super().__init__(f"{what}: {', '.join(which[:3])}")
        self.what = what


@dataclass(frozen=True, slots=True)
class Sample:
    """Free workers drawn at random, and what was true at that moment."""

    now_ms: int
    balance: int
    workers: list[WorkerRecord]
    workers_alive: int
    slots_alive: int


@dataclass(frozen=True, slots=True)
class Registered:
    """A worker's registration: its epoch, and leases it held before it started anew."""

    epoch: int
    now_ms: int
    lost_leases: list[str]


@dataclass(frozen=True, slots=True)
class Beat:
    """What a heartbeat learns."""

    now_ms: int
    epoch: int
    earned: int
    balance: int
    open_leases: list[str]


class Store:
    """The one door to Redis; safe to use from many threads or greenlets.

    Every method raises `redis.RedisError` when Redis does not answer.
    """

    def __init__(self, url: str) -> None:
        self._redis: redis.Redis = redis.Redis.from_url(url, socket_timeout=30)
        self._scripts = {path.stem: self._redis.register_script(path.read_text()) for path in _LUA.glob("*.lua")}

    def ping(self) -> None:
        """Raises when Redis does not answer."""
        self._redis.ping()

    def close(self) -> None:
        """Closes all connections."""
        self._redis.close()

    # --- accounts ---

    def create_account(self, account_id: str, secret_hash: bytes, name: str, credits: int) -> bool:
        """Makes an account with minted credits; False when the id is taken."""
        entry = _pack([("mint", f"account:{account_id}", credits)]) if credits else b""
        return bool(self._run("create_account", account_id, secret_hash, name, credits, entry, -credits))

    def secret_hash(self, account_id: str) -> bytes | None:
        """The stored hash of an account's secret; None: no such account."""
        found: bytes | None = self._redis.hget(f"{_PREFIX}account:{account_id}", "secret_hash")  # type: ignore[assignment]
        return found

    def account(self, account_id: str) -> AccountRecord:
        """An account that exists."""
        pipeline = self._redis.pipeline(transaction=True)
        pipeline.hmget(f"{_PREFIX}account:{account_id}", ["name", "escrow", "earned", "spent"])
        pipeline.hget(f"{_PREFIX}balances", f"account:{account_id}")
        pipeline.scard(f"{_PREFIX}account:{account_id}:workers")
        (name, escrow, earned, spent), balance, workers = pipeline.execute()
        return AccountRecord(
            account_id, (name or b"").decode(), _int(balance), _int(escrow), _int(earned), _int(spent), workers
        )

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
    ) -> Registered | None:
        """Puts a worker in the pool; None when the id is another account's."""
        answer = self._run(
            "register",
            *(worker_id, account_id, address, port, slots, capacity, boot_id, worker_class, ttl_ms, ",".join(layers)),
            " ".join(capabilities),
        )
        if answer[0] != b"ok":
            return None
        return Registered(answer[1], answer[2], [lease.decode() for lease in answer[3:]])

    def heartbeat(self, worker_id: str, account_id: str, boot_id: str, ttl_ms: int) -> Beat | None:
        """Prolongs a registration; None: not registered, and nothing was made."""
        answer = self._run("heartbeat", worker_id, account_id, boot_id, ttl_ms)
        if answer[0] != b"ok":
            return None
        return Beat(answer[1], answer[2], answer[3], answer[4], [lease.decode() for lease in answer[5:]])

    def leave(self, worker_id: str, account_id: str) -> bool:
        """Takes a worker out of the pool; False: not registered."""
        return int(self._run("leave", "leave", worker_id, account_id)) == 1

    def lapse(self, limit: int) -> int:
        """Takes up to `limit` workers out of the pool whose heartbeats stopped; returns how many."""
        return int(self._run("leave", "lapse", limit))

    def sample(self, worker_class: str, capabilities: Sequence[str], count: int, account_id: str = "") -> Sample:
        """Up to `count` random workers of a class that have all `capabilities` and a slot free.

        Cost: with one capability or none that of `count` workers; with several also that of the rarest.
        """
        answer = self._run("sample", worker_class, count, account_id, secrets.randbits(31), *capabilities)
        workers = []
        for worker_id, fields in zip(answer[4::2], answer[5::2], strict=True):
            account, address, port, slots, epoch, used, capacity = fields
            workers.append(
                WorkerRecord(
                    *(worker_id.decode(), account.decode(), address.decode(), int(port), int(slots)),
                    *(int(epoch), int(used), int(capacity)),
                )
            )
        return Sample(answer[0], answer[1], workers, answer[2], answer[3])

    def workers(self, worker_ids: Sequence[str]) -> dict[str, WorkerRecord]:
        """The records of workers, alive or not."""
        pipeline = self._redis.pipeline(transaction=False)
        for worker_id in worker_ids:
            pipeline.hmget(
                f"{_PREFIX}worker:{worker_id}",
                ["account", "address", "port", "slots", "epoch", "used", "capacity"],
            )
        found = {}
        for worker_id, fields in zip(worker_ids, pipeline.execute(), strict=True):
            if fields[0] is not None:
                account, address, port, slots, epoch, used, capacity = fields
                found[worker_id] = WorkerRecord(
                    *(worker_id, account.decode(), address.decode(), int(port), int(slots)),
                    *(int(epoch), int(used), int(capacity)),
                )
        return found

    def worker_counts(self, worker_id: str) -> dict[str, int]:
        """A worker's counters: agreed, dissented, refused, expired, earned."""
        names = ["agreed", "dissented", "refused", "expired", "earned"]
        values = self._redis.hmget(f"{_PREFIX}worker:{worker_id}", names)
        return {name: _int(value) for name, value in zip(names, values, strict=True)}  # type: ignore[arg-type]

    def workers_alive(self) -> int:
        """How many workers are registered, of all classes."""
        return int(self._redis.zcard(f"{_PREFIX}alive"))

    # --- tasks ---

    def load(self, task_ids: Sequence[str]) -> tuple[int, dict[str, TaskRecord]]:
        """Redis' time in ms, and working copies of those tasks that there are."""
        pipeline = self._redis.pipeline(transaction=False)
        pipeline.time()
        if task_ids:
            pipeline.mget([f"{_PREFIX}task:{task_id}" for task_id in task_ids])
        (seconds, micros), *found = pipeline.execute()
        now_ms = seconds * 1000 + micros // 1000
        if not task_ids:
            return now_ms, {}
        return now_ms, {
            task_id: _records.decode(data[8:])
            for task_id, data in zip(task_ids, found[0], strict=True)
            if data is not None
        }

    def due(self, limit: int) -> list[str]:
        """Ids of tasks that need attention now."""
        seconds, micros = self._redis.time()
        found = self._redis.zrangebyscore(f"{_PREFIX}due", "-inf", seconds * 1000 + micros // 1000, start=0, num=limit)
        return [task_id.decode() for task_id in found]  # type: ignore[union-attr]

    def leased_before(self, account_id: str, idempotency_key: str) -> list[str] | None:
        """The tasks a lease request with this key got; None: no such request, or long ago."""
        found: bytes | None = self._redis.get(f"{_PREFIX}idempotency:{account_id}:{idempotency_key}")  # type: ignore[assignment]
        if found is None:
            return None
        return found.decode().split(",") if found else []

    def commit(
        self,
        changes: Changes,
        now_ms: int,
        *,
        needs: dict[str, int] | None = None,
        idempotency: tuple[str, str, int] | None = None,
    ) -> None:
        """Commits all of `changes` in one atomic step, or nothing.

        Args:
            needs: least balance of places such as ``account:<id>``.
            idempotency: (``account:key``, value, seconds to keep).

        Raises:
            Conflict: what `changes` was decided on is no longer so.
        """
        accounts: defaultdict[str, int] = defaultdict(int)
        escrows: defaultdict[str, int] = defaultdict(int)
        for source, target, amount in changes.moves:
            _add(accounts, escrows, source, -amount)
            _add(accounts, escrows, target, amount)
        tasks = []
        blobs = [_pack(changes.moves) if changes.moves else b""]
        for record, version, due_ms in changes.tasks:
            tasks.append((record.task_id, f"{version:08}" if version else "", due_ms or 0))
            record.version = version + 1
            blobs.append(b"" if due_ms is None else b"%08d%b" % (record.version, _pack(record)))
        answer = self._run(
            "commit",
            _pack(
                {
                    "tasks": tasks,
                    "accounts": [item for item in accounts.items() if item[1]],
                    "escrows": [item for item in escrows.items() if item[1]],
                    "takes": [(worker, epoch, leases) for (worker, epoch), leases in changes.takes.items()],
                    "frees": list(changes.frees.items()),
                    "counts": [(key, name, n) for (key, name), n in changes.counts.items() if n],
                    "needs": list(needs.items()) if needs else [],
                    "idempotency": list(idempotency) if idempotency else [],
                    "now": now_ms,
                }
            ),
            *blobs,
        )
        if answer[0] != b"ok":
            raise Conflict(answer[0].decode(), [which.decode() for which in answer[1:]])

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

    def ledger(self, page: int = 1000) -> Iterator[Move]:
        """All movements there ever were, oldest first."""
        start = "-"
        while True:
            entries: Any = self._redis.xrange(f"{_PREFIX}ledger", min=start, count=page)
            for entry_id, fields in entries:
                yield from _moves.decode(fields[b"m"])
                start = f"({entry_id.decode()}"
            if len(entries) < page:
                return

    def _run(self, name: str, *arguments: Any) -> Any:
        return self._scripts[name](args=arguments)


def _add(accounts: dict[str, int], escrows: dict[str, int], place: str, amount: int) -> None:
    if place.startswith("escrow:"):
        escrows[place[7:]] += amount
    else:
        accounts[place] += amount


def _int(value: bytes | None) -> int:
    return int(value) if value else 0
