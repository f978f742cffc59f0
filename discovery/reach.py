"""Reach: whether others can connect to a worker; tried by connecting to it, once, at the address that it came from.

Nobody can have this service connect anywhere else: the address is the one that the worker's own request came from, and
what is sent there is one small request that says nothing to anybody but that worker. Its answer is looked at for one
proof and for nothing else.
"""

from __future__ import annotations

import logging
import secrets
import threading
import time
from collections.abc import Collection
from typing import Literal

from gevent import socket  # where the process is not patched, the worker may be in it

from discovery.addresses import believed, origins
from discovery.store.store import Store
from ec262.protocol.relaying import challenge, proof
from ec262.protocol.routes import route
from ec262.protocol.scopes import Scope, scope_of

log = logging.getLogger("ec262.discovery")

Why = Literal["reach", "call"]

TRY_S = 2.0
"""For a connection and the answer together. Most that lets nothing in drops what comes without a word."""
MOST_AT_ONCE = 64
MOST_A_MINUTE = 60
"""Tries at one address (IPv6: /64): a class room behind one address has as many workers."""
_ANSWER_BYTES = 4096


class Reach:
    """Tries workers.

    Args:
        proxies: nobody's worker: what seems to come from there comes from somebody whom the proxy did not name.
    """

    def __init__(self, store: Store, proxies: Collection[str]) -> None:
        self._calls = store.calls
        self._proxies = proxies
        self._turns = threading.BoundedSemaphore(MOST_AT_ONCE)
        self._warned = False

    def of(self, address: str, port: int, boot_id: str, *, unnamed: bool) -> bool:
        """Whether the worker that just came from an address answers at that address.

        Args:
            unnamed: its request came through something that this service does not believe, which has this address.
        """
        if unnamed or believed(address, self._proxies):
            if not self._warned:
                self._warned = True
                log.warning(
                    "%s passes on the requests of others; if it is your reverse proxy, say --trusted-proxy %s",
                    *(address, address),
                )
            return False
        return self.call(address, port, boot_id, "reach")

    def call(self, address: str, port: int, boot_id: str, why: Why) -> bool:
        """Whether the worker with that boot id answers there; ``call``: and has it come to the relay."""
        if scope_of(address) is Scope.NEVER or not 0 < port < 65_536:
            return False
        if self._calls.count_try(origins(address)[0]) > MOST_A_MINUTE:
            return False
        if not self._turns.acquire(timeout=TRY_S):
            return False
        try:
            return _answers(address, port, boot_id, why)
        finally:
            self._turns.release()


def _answers(address: str, port: int, boot_id: str, why: Why) -> bool:
    nonce = secrets.token_hex(16)
    path = route("worker", "prove").path.replace("<nonce>", nonce).replace("<why>", why)
    path = path.replace("<mac>", challenge(boot_id, nonce, why))
    host = f"[{address}]" if ":" in address else address
    request = f"GET {path} HTTP/1.1\r\nHost: {host}:{port}\r\nConnection: close\r\n\r\n"
    deadline = time.monotonic() + TRY_S
    came = b""
    try:
        with socket.create_connection((address, port), TRY_S) as connection:
            connection.sendall(request.encode("ascii"))
            while len(came) < _ANSWER_BYTES and (left := deadline - time.monotonic()) > 0:
                connection.settimeout(left)
                piece = connection.recv(_ANSWER_BYTES - len(came))
                if not piece:
                    break
                came += piece
    except OSError:
        pass
    return came.startswith(b"HTTP/1.1 200 ") and proof(boot_id, nonce).encode("ascii") in came
