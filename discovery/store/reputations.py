"""Reputations and open jobs, in Redis: what is known of workers, and which tasks rest on whom. Nothing decided here.

Tallies are changed by commit.lua alone, by increments, in the step that settles the task that taught them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import redis

from discovery.credibility import Tally
from discovery.store.known import Job, Known, known_from

_PREFIX = "{ec}:"
VESTING_MS = 10_000
"""Pay vests in lots of so many ms."""


@dataclass(frozen=True, slots=True)
class Suspect:
    """A worker whose doubts changed `times` times since it was judged last."""

    worker_id: str
    account_id: str
    times: int
    known: Tally
    accusers: int
    banned: bool
    auditor: bool


class Reputations:
    """What the store knows of workers and jobs. Every method raises `redis.RedisError` when Redis does not answer."""

    def __init__(self, client: redis.Redis, scripts: Mapping[str, Any]) -> None:
        self._redis = client
        self._scripts = scripts

    def known(self, job: Job, worker_ids: Sequence[str], *, networks_count: bool) -> Known:
        """What is known of workers, by a job's foreman.

        Args:
            networks_count: accounts made from one network are one party.
        """
        script, arguments = self.asking(job, worker_ids, networks_count=networks_count)
        return known_from(worker_ids, script(args=arguments))

    def asking(self, job: Job, worker_ids: Sequence[str], *, networks_count: bool) -> tuple[Any, list[Any]]:
        """How to ask for what `known` says, together with other things; `known_from` reads the answer."""
        return self._scripts["standings"], [*job, "1" if networks_count else "", *worker_ids]

    # --- conviction ---

    def suspects(self, limit: int) -> list[Suspect]:
        """Up to `limit` workers whose doubts changed since they were judged."""
        times: Any = self._redis.hscan(f"{_PREFIX}suspects", count=limit)[1]
        listed = list(times.items())[:limit]
        pipeline = self._redis.pipeline(transaction=False)
        for worker, _ in listed:
            pipeline.hmget(
                f"{_PREFIX}worker:{worker.decode()}",
                ["account", "verified", "doubts", "words", "accusers", "banned", "auditor"],
            )
        return [
            Suspect(
                worker_id=worker.decode(),
                account_id=(account or b"").decode(),
                times=int(count),
                known=Tally(int(verified or 0), int(doubts or 0), int(words or 0)),
                accusers=int(accusers or 0),
                banned=banned is not None,
                auditor=auditor is not None,
            )
            for (worker, count), (account, verified, doubts, words, accusers, banned, auditor) in zip(
                listed, pipeline.execute(), strict=True
            )
        ]

    def judged(self, suspect: Suspect) -> None:
        """This was judged; what came since has to be judged again."""
        if self._redis.hincrby(f"{_PREFIX}suspects", suspect.worker_id, -suspect.times) <= 0:
            self._scripts["forget_suspect"](args=[suspect.worker_id])

    def known_of(self, account_id: str) -> list[Suspect]:
        """All workers of an account, as if they were suspects."""
        found: Any = self._redis.smembers(f"{_PREFIX}account:{account_id}:workers")
        ids = sorted(worker.decode() for worker in found)
        pipeline = self._redis.pipeline(transaction=False)
        for worker_id in ids:
            pipeline.hmget(f"{_PREFIX}worker:{worker_id}", ["verified", "doubts", "words", "accusers"])
        return [
            Suspect(
                worker_id, account_id, 0, Tally(*(int(v or 0) for v in values[:3])), int(values[3] or 0), True, False
            )
            for worker_id, values in zip(ids, pipeline.execute(), strict=True)
        ]

    # --- open jobs ---

    def touch(self, job: Job, kept_ms: int) -> None:
        """A job was heard of: if its answers are remembered, they are for so long from now."""
        self._redis.zadd(f"{_PREFIX}open", {_name(job): self._now_ms() + kept_ms}, xx=True)

    def backtrack(self, limit: int) -> list[Job]:
        """Up to `limit` open jobs to be looked through, for somebody was banned."""
        found: Any = self._redis.srandmember(f"{_PREFIX}backtrack", limit)
        return [_job(name) for name in found]

    def backtracked(self, job: Job) -> None:
        """About to look through a job: who is banned from now on has it looked through again."""
        self._redis.srem(f"{_PREFIX}backtrack", _name(job))

    def look_again(self, job: Job) -> None:
        """A job is to be looked through once more."""
        self._redis.sadd(f"{_PREFIX}backtrack", _name(job))

    def to_backtrack(self, job: Job) -> bool:
        """Whether a job still has to be looked through."""
        return bool(self._redis.sismember(f"{_PREFIX}backtrack", _name(job)))

    def remembered(self, job: Job) -> list[str]:
        """Tasks of a job that were accepted under confidence."""
        found: Any = self._redis.smembers(f"{_key(job)}:tasks")
        return [task_id.decode() for task_id in found]

    def recompute(self, job: Job, limit: int) -> list[str]:
        """Up to `limit` tasks of a job that are to be computed again and whose foreman was not heard to know it."""
        found: Any = self._redis.srandmember(f"{_key(job)}:recompute", limit)
        return sorted(task_id.decode() for task_id in found)

    def heard(self, job: Job, task_ids: Sequence[str]) -> None:
        """The foreman knows that these are to be computed again."""
        if task_ids:
            self._redis.srem(f"{_key(job)}:recompute", *task_ids)

    def silent(self, limit: int) -> list[Job]:
        """Up to `limit` open jobs of which nothing was heard for too long."""
        found: Any = self._redis.zrangebyscore(f"{_PREFIX}open", "-inf", self._now_ms(), start=0, num=limit)
        return [_job(name) for name in found]

    def close(self, job: Job) -> None:
        """A job is over: its tasks are to be forgotten (`closing`)."""
        pipeline = self._redis.pipeline(transaction=True)
        pipeline.sadd(f"{_PREFIX}closing", _name(job))
        pipeline.zrem(f"{_PREFIX}open", _name(job))
        pipeline.srem(f"{_PREFIX}backtrack", _name(job))
        pipeline.execute()

    def closing(self, limit: int) -> list[Job]:
        """Up to `limit` jobs whose tasks are to be forgotten."""
        found: Any = self._redis.srandmember(f"{_PREFIX}closing", limit)
        return [_job(name) for name in found]

    def forget(self, job: Job, task_ids: Sequence[str]) -> None:
        """Forgets what is known of a job beside the records of its tasks; of these `task_ids` are not kept any more."""
        key = _key(job)
        pipeline = self._redis.pipeline(transaction=True)
        names = ("compared", "differed", "doubts", "effort", "undelivered", "held", "back", "recompute")
        pipeline.delete(key, *(f"{key}:{name}" for name in names))
        for start in range(0, len(task_ids), 1000):
            pipeline.srem(f"{key}:tasks", *task_ids[start : start + 1000])
        pipeline.srem(f"{_PREFIX}closing", _name(job))
        pipeline.execute()

    def doubts(self, job: Job) -> dict[str, Tally]:
        """What a job's dissents added to tallies, by worker."""
        found: Any = self._redis.hgetall(f"{_key(job)}:doubts")
        tallies: dict[str, Tally] = {}
        for name, value in found.items():
            worker_id, _, what = name.decode().partition(":")
            gained = Tally(doubts=int(value)) if what == "d" else Tally(words=int(value))
            tallies[worker_id] = tallies.get(worker_id, Tally()).plus(gained)
        return tallies

    def refunded(self, job: Job) -> dict[str, int]:
        """Pay of convicted workers that went back to a job's foreman, by worker."""
        found: Any = self._redis.hgetall(f"{_key(job)}:back")
        return {worker_id.decode(): int(amount) for worker_id, amount in found.items()}

    # --- vesting ---

    def vest(self, limit: int) -> int:
        """Lets pay be spent that may be; returns how many lots were looked at (at most `limit`)."""
        return int(self._scripts["vest"](args=[limit]))

    def _now_ms(self) -> int:
        seconds, micros = self._redis.time()
        return int(seconds) * 1000 + int(micros) // 1000


def _name(job: Job) -> str:
    return f"{job[0]}:{job[1]}"


def _key(job: Job) -> str:
    return f"{_PREFIX}job:{job[0]}:{job[1]}"


def _job(name: bytes) -> Job:
    account_id, _, job_id = name.decode().partition(":")
    return account_id, job_id
