"""Channel: what the processes of one discovery service say to each other, through Redis' publish and subscribe.

Nothing of it is kept: it is in no file and on no replica, and who does not listen at that moment misses it. A process
listens only once it needs to, in a thread of its own (a greenlet where gevent has patched the process).
"""

from __future__ import annotations

import logging
import secrets
import threading
from collections.abc import Callable
from typing import Any

import msgspec
import redis

log = logging.getLogger("ec262.discovery")

_PREFIX = "{ec}:relay:"
_IDLE_S = 20.0
_RETRY_S = 0.5


class Channel:
    """This process's ear, and its voice to others.

    Attributes:
        process: the name of this process, new each time: 16 hexadecimal digits.
    """

    def __init__(self, client: redis.Redis) -> None:
        self._redis = client
        self.process = secrets.token_hex(8)
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._ready = threading.Event()
        self._closed = False

    def listen(self, hear: Callable[[list[Any]], None]) -> None:
        """Sees to it that messages to this process are heard from now on; the first call says by whom.

        Raises:
            redis.RedisError: Redis does not answer in time.
        """
        if not self._ready.is_set():
            with self._lock:
                if self._thread is None:
                    self._thread = threading.Thread(target=self._run, args=(hear,), daemon=True, name="relay")
                    self._thread.start()
            if not self._ready.wait(10.0):
                raise redis.ConnectionError("the store's channel does not answer")

    def tell(self, process: str, message: list[Any]) -> bool:
        """Tells another process something; False: it does not listen."""
        return int(self._redis.publish(_PREFIX + process, msgspec.msgpack.encode(message))) > 0

    def close(self) -> None:
        """Stops listening."""
        self._closed = True
        thread, self._thread = self._thread, None
        if thread is not None:
            try:
                self.tell(self.process, ["close"])
            except redis.RedisError:
                return  # then the ear breaks off as well
            thread.join(2.0)

    def _run(self, hear: Callable[[list[Any]], None]) -> None:
        while not self._closed:
            try:
                with self._redis.pubsub() as ear:  # type: ignore[no-untyped-call]
                    ear.subscribe(_PREFIX + self.process)
                    self._hear(ear, hear)
            except (redis.RedisError, OSError, ValueError) as reason:
                self._ready.clear()
                if not self._closed:
                    log.warning("the relay hears nothing of other processes: %s", reason)
                    threading.Event().wait(_RETRY_S)

    def _hear(self, ear: Any, hear: Callable[[list[Any]], None]) -> None:
        while not self._closed:
            # Shorter than the connection's own patience, which would take silence for a fault.
            came = ear.get_message(timeout=_IDLE_S)
            if came is None:
                continue
            if came["type"] == "subscribe":
                self._ready.set()
            elif came["type"] == "message":
                try:
                    message = msgspec.msgpack.decode(came["data"])
                    if message != ["close"]:
                        hear(message)
                except Exception:
                    log.exception("a fault in what a process of this service told another")
