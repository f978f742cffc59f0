"""What the processes of one service share about themselves: rates of requests, who leads, what was counted.

All of it is of the moment: lost, it is made anew.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import redis

_PREFIX = "{ec}:"
_COUNTED = f"{_PREFIX}counted"
_PROCESSES = f"{_PREFIX}processes"
_TROUBLE = f"{_PREFIX}trouble"

Rate = tuple[str, int, int]
"""What is limited (``account:<id>``), requests a second, burst."""


@dataclass(frozen=True, slots=True)
class Left:
    """How a limit stands: requests left, ms until all are, and ms until what was asked for fits."""

    requests: int
    whole_ms: int
    wait_ms: int


@dataclass(frozen=True, slots=True)
class Entered:
    """Who asked, and what is left.

    Attributes:
        proven: the request showed the secret of its account.
        banned: why that account is banned; empty: it is not.
        good: there was room in all limits that count, and it was taken.
        left: how these limits stand.
    """

    proven: bool
    banned: str
    good: bool
    left: list[Left]


class Rates:
    """The side of the store that serves the service itself. Methods raise `redis.RedisError` when Redis is gone."""

    def __init__(self, client: redis.Redis, scripts: Mapping[str, Any]) -> None:
        self._redis = client
        self._scripts = scripts

    def spend(self, cost: int, limits: Sequence[Rate]) -> tuple[bool, list[Left]]:
        """Counts a request against all of `limits`, or against none where one has no room."""
        entered = self.enter(cost, "", b"", (), limits)
        return entered.good, entered.left

    def enter(
        self, cost: int, account_id: str, secret_hash: bytes, limits: Sequence[Rate], others: Sequence[Rate]
    ) -> Entered:
        """Finds out whether a request is its account's, and counts it as `spend`, in one step.

        Args:
            account_id: that the request names.
            secret_hash: of the secret that it shows.
            limits: against which it counts if that is the account's secret.
            others: and if it is not.
        """
        parts = [part for limit in (*limits, *others) for part in limit]
        good, proven, banned, *rest = self._scripts["spend"](args=[cost, account_id, secret_hash, len(limits), *parts])
        left = [Left(*rest[at : at + 3]) for at in range(0, len(rest), 3)]
        return Entered(proven == 1, banned.decode("utf-8", "replace"), good == 1, left)

    def lead(self, process: str, lease_ms: int) -> bool:
        """Whether this process leads for the next `lease_ms`; exactly one does. With 0 it gives that up."""
        return int(self._scripts["lead"](args=[process, lease_ms])) == 1

    def tell_trouble(self, trouble: str, keep_ms: int) -> None:
        """What keeps the process that leads from archiving, for the others to say; empty: nothing does."""
        if trouble:
            self._redis.set(_TROUBLE, trouble, px=keep_ms)
        else:
            self._redis.delete(_TROUBLE)

    def trouble(self) -> str:
        """What the process that leads told of."""
        found: Any = self._redis.get(_TROUBLE)
        return found.decode() if found else ""

    def count(self, counted: Mapping[str, int], process: str, state: bytes, kept: int) -> None:
        """Adds to what all processes counted, and says how this one is.

        Args:
            kept: of how many processes that is known, dead ones included.
        """
        pipeline = self._redis.pipeline(transaction=False)
        for name, number in counted.items():
            pipeline.hincrby(_COUNTED, name, number)
        if state:
            pipeline.hset(_PROCESSES, process, state)
        else:
            pipeline.hdel(_PROCESSES, process)
        pipeline.hlen(_PROCESSES)
        if pipeline.execute()[-1] > kept:
            self._redis.delete(_PROCESSES)  # those that live say it again

    def counted(self) -> tuple[dict[str, int], dict[str, bytes], dict[str, int]]:
        """What all processes counted; how each said that it is; and of the store: memory, entries, tasks, workers."""
        pipeline = self._redis.pipeline(transaction=False)
        pipeline.hgetall(_COUNTED)
        pipeline.hgetall(_PROCESSES)
        pipeline.info("memory")
        pipeline.xlen(f"{_PREFIX}ledger")
        pipeline.zcard(f"{_PREFIX}due")
        pipeline.zcard(f"{_PREFIX}alive")
        counted, processes, memory, waiting, due, workers = pipeline.execute()
        store = {
            "memory": int(memory["used_memory"]),
            "waiting": waiting,
            "due": due,
            "workers": workers,
        }
        return (
            {name.decode(): int(number) for name, number in counted.items()},
            {name.decode(): state for name, state in processes.items()},
            store,
        )
