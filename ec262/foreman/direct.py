"""Direct: requests to a worker over a connection to it."""

from __future__ import annotations

import errno
import io
from collections.abc import Mapping
from typing import Protocol

import gevent
from geventhttpclient import HTTPClient

from ec262 import __version__
from ec262.errors import NetworkError
from ec262.protocol import messages as m
from ec262.protocol.versions import user_agent

MAX_ANSWER_BYTES = 96 * 1024 * 1024
CONNECT_S = 5.0
PUSH_S = 6.0
"""Without progress; a worker answers a push at once."""
POLL_S = 4.0
"""Beyond the time a poll waits."""
LARGE_BODY = 256 * 1024
_NOT_REACHED = (errno.ECONNREFUSED, errno.EHOSTUNREACH, errno.ENETUNREACH)


class PeerUnreachable(NetworkError):
    """A worker does not answer: it is gone, busy beyond measure, or behind something that lets nothing through.

    Attributes:
        silent: it takes the connection or did, but says nothing.
        untouched: nothing was delivered for certain.
        refused: its machine answers, and says that nobody listens there.
    """

    def __init__(self, message: str, *, silent: bool = False, untouched: bool = False, refused: bool = False) -> None:
        super().__init__(message)
        self.silent = silent
        self.untouched = untouched
        self.refused = refused


class Way(Protocol):
    """How requests come to a worker."""

    def exchange(
        self, method: str, target: str, body: bytes, headers: Mapping[str, str], wait_s: float
    ) -> tuple[int, str, bytes]:
        """Status, media type and body of the answer to a request, which the worker may hold for `wait_s`.

        Raises:
            PeerUnreachable: no answer.
        """

    def close(self) -> None:
        """Closes connections."""


class _Body(io.BytesIO):
    """A large body: sent in pieces, each with the time limit of its own; a slow line is no silent worker."""

    def __len__(self) -> int:
        return self.getbuffer().nbytes

    def read(self, size: int | None = -1, /) -> bytes:
        """The next piece, of a size that suits the socket, whatever was asked for."""
        return super().read(LARGE_BODY)


class Direct:
    """The way to a worker at its own address.

    Args:
        longest_wait_s: most that a request is held by the worker.
    """

    def __init__(self, address: str, port: int, longest_wait_s: float) -> None:
        def client(patience_s: float) -> HTTPClient:
            return HTTPClient(
                address, port, concurrency=8, connection_timeout=CONNECT_S, network_timeout=patience_s,
                disable_ipv6=False, block_size=64 * 1024, headers={"User-Agent": user_agent(__version__)},
            )  # fmt: skip

        self._prompt = client(PUSH_S)
        self._held = client(longest_wait_s + POLL_S)

    def exchange(
        self, method: str, target: str, body: bytes, headers: Mapping[str, str], wait_s: float
    ) -> tuple[int, str, bytes]:
        """See `Way`."""
        http = self._held if wait_s else self._prompt
        try:
            response = http.request(
                method, target, body=body if len(body) < LARGE_BODY else _Body(body), headers=dict(headers)
            )
            try:
                answer = bytes(response.read(MAX_ANSWER_BYTES + 1))
                status = int(response.status_code)
                media = str(response.get("content-type", m.JSON))
            finally:
                response.release()
        except gevent.GreenletExit:
            raise
        except Exception as reason:  # geventhttpclient raises errors of sockets, of HTTP, of gevent and its own
            raise PeerUnreachable(
                f"the worker does not answer: {type(reason).__name__}: {reason}",
                silent=isinstance(reason, TimeoutError),
                untouched=isinstance(reason, OSError) and reason.errno in _NOT_REACHED,
                refused=isinstance(reason, ConnectionRefusedError),
            ) from None
        return status, media, answer

    def close(self) -> None:
        """See `Way`."""
        self._prompt.close()
        self._held.close()
