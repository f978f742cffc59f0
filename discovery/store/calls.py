"""Calls: the relay's notes of what foremen want of workers, and of who waits where. The calls themselves are not here.

`lua/relay.lua` says what is noted. Nothing of it is in a file: what is lost is asked for again.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import redis

_PREFIX = "{ec}:"


@dataclass(frozen=True, slots=True)
class Offer:
    """A call of a foreman that is to be taken by a worker: who holds it, how large it is, how long it waits.

    Attributes:
        pass_until_ms: until when its account may call the worker.
    """

    worker_id: str
    call_id: str
    process: str
    account_id: str
    size: int
    wait_s: float
    pass_until_ms: int


class Calls:
    """The relay's side of the store. Methods raise `redis.RedisError` when Redis does not answer."""

    def __init__(self, client: redis.Redis, scripts: Mapping[str, Any]) -> None:
        self._redis = client
        self._script = scripts["relay"]

    def count_try(self, origin: str) -> int:
        """Counts an attempt to connect to a worker there; returns how many there were in this minute."""
        key = f"{_PREFIX}tries:{origin}:{int(time.time() // 60)}"
        pipeline = self._redis.pipeline(transaction=False)
        pipeline.incr(key)
        pipeline.expire(key, 120)
        return int(pipeline.execute()[0])

    def offer(self, call: Offer, bounds: tuple[int, int], absent_s: float) -> tuple[str, str, int, str]:
        """Notes a call for a worker, and wakes whoever holds a poll of it.

        Args:
            bounds: most calls of the worker, and bytes of them; an account has as much of it as is free.
            absent_s: a worker that was not heard of for so long is not there.

        Returns:
            ``ok``; or why not (relay.lua): ``full``, ``late``, ``unknown``, ``gone``; or ``absent`` and where it is to
            be called: address, port, boot id.
        """
        answer = self._run(
            *("offer", call.worker_id, call.call_id, call.process, call.account_id, call.size),
            *(int(call.wait_s * 1000), call.pass_until_ms, *bounds, int(absent_s * 1000)),
        )
        what = answer[0].decode()
        if what != "absent":
            return what, "", 0, ""
        return what, answer[1].decode(), int(answer[2]), answer[3].decode()

    def again(self, worker_id: str, call_id: str) -> None:
        """A call that was taken did not arrive: it is the next to be taken."""
        self._run("again", worker_id, call_id)

    def take(
        self, worker_id: str, account_id: str, boot_id: str, process: str, wait_s: float, anew: bool
    ) -> tuple[str, str, int]:
        """``call``, the id of the next call for the worker, and how many more there are; ``none``: and this process is
        woken when one comes; ``unknown``: this is not the worker as it is registered.

        Args:
            anew: calls that were taken and have no reply may be taken again.
        """
        wait_ms = int(wait_s * 1000)
        answer = self._run("take", worker_id, account_id, boot_id, process, wait_ms, "1" if anew else "")
        if answer[0] != b"call":
            return answer[0].decode(), "", 0
        return "call", answer[1].decode(), int(answer[2])

    def end(self, worker_id: str, call_id: str) -> None:
        """Nobody waits for the call's reply any more."""
        self._run("end", worker_id, call_id)

    def _run(self, *arguments: Any) -> Any:
        return self._script(args=arguments)
