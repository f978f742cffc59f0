"""Pulse: numbers of the whole network, for people to see. Nothing is decided by them.

Keys:
    {ec}:stats    hash: accepted (tasks), paid (replicas), escrow (credits): counted by the commits that move them
    {ec}:running  sorted set: account:job by the time in ms until which it counts as running without a word
    {ec}:history  list: readings, the last one last
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import redis

_PREFIX = "{ec}:"
EVERY_MS = 5_000
"""How often a reading is kept."""
MOST = 360
"""Readings that are kept: half an hour of them."""


class Reading(msgspec.Struct, array_like=True, frozen=True):
    """The network at an instant.

    Attributes:
        at_ms: by Redis' clock.
        workers: registered now.
        jobs: reported as running.
        accepted: tasks since the service began.
        paid: replicas since the service began.
        escrow: credits in flight.
        accounts: that ever had a credit.
    """

    at_ms: int
    workers: int
    jobs: int
    accepted: int
    paid: int
    escrow: int
    accounts: int


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Reading).decode


class Pulse:
    """Reads and keeps readings. Every method raises `redis.RedisError` when Redis does not answer."""

    def __init__(self, client: redis.Redis) -> None:
        self._redis = client

    def read(self) -> Reading:
        """The network now; costs the same whatever its size."""
        pipeline = self._redis.pipeline(transaction=False)
        pipeline.time()
        pipeline.zcard(f"{_PREFIX}alive")
        pipeline.hmget(f"{_PREFIX}stats", ["accepted", "paid", "escrow"])
        pipeline.hlen(f"{_PREFIX}balances")
        pipeline.hexists(f"{_PREFIX}balances", "mint")
        pipeline.hexists(f"{_PREFIX}balances", "burn")
        (seconds, micros), workers, counts, places, mint, burn = pipeline.execute()
        now_ms = int(seconds) * 1000 + int(micros) // 1000
        jobs = int(self._redis.zcount(f"{_PREFIX}running", now_ms, "+inf"))
        accepted, paid, escrow = (int(count or 0) for count in counts)
        return Reading(now_ms, workers, jobs, accepted, paid, escrow, places - int(mint) - int(burn))

    def keep(self) -> None:
        """Keeps a reading, unless the last one is younger than `EVERY_MS`."""
        last: Any = self._redis.lindex(f"{_PREFIX}history", -1)
        reading = self.read()
        if last is not None and 0 <= reading.at_ms - _decode(last).at_ms < EVERY_MS:
            return
        pipeline = self._redis.pipeline(transaction=True)
        pipeline.rpush(f"{_PREFIX}history", _encode(reading))
        pipeline.ltrim(f"{_PREFIX}history", -MOST, -1)
        pipeline.zremrangebyscore(f"{_PREFIX}running", "-inf", reading.at_ms)
        pipeline.execute()

    def history(self) -> Sequence[Reading]:
        """The readings that are kept, the oldest first."""
        found: Any = self._redis.lrange(f"{_PREFIX}history", 0, -1)
        return [_decode(each) for each in found]
