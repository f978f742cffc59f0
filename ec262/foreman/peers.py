"""Peers: the foreman's talk with workers, the only place where it does."""

from __future__ import annotations

import errno
import io
import time
from urllib.parse import urlencode

import gevent
import msgspec
from geventhttpclient import HTTPClient

from ec262 import __version__
from ec262.errors import Malformed, NetworkError, ProblemError
from ec262.protocol import messages as m
from ec262.protocol.polling import poll_authorization
from ec262.protocol.routes import route
from ec262.protocol.versions import user_agent

MAX_ANSWER_BYTES = 96 * 1024 * 1024
CONNECT_S = 5.0
PUSH_S = 6.0
"""Without progress; a worker answers a push at once."""
POLL_S = 4.0
"""Beyond the time a poll waits."""
RESULT_WAIT_S = 6.0
LARGE_BODY = 256 * 1024
_NOT_REACHED = (errno.ECONNREFUSED, errno.EHOSTUNREACH, errno.ENETUNREACH)


class PeerUnreachable(NetworkError):
    """A worker does not answer: it is gone, busy beyond measure, or behind something that lets nothing through.

    Attributes:
        silent: it takes the connection or did, but says nothing.
        untouched: nothing was delivered for certain.
    """

    def __init__(self, message: str, *, silent: bool = False, untouched: bool = False) -> None:
        super().__init__(message)
        self.silent = silent
        self.untouched = untouched


class _Body(io.BytesIO):
    """A large body: sent in pieces, each with the time limit of its own; a slow line is no silent worker."""

    def __len__(self) -> int:
        return self.getbuffer().nbytes

    def read(self, size: int | None = -1, /) -> bytes:
        """The next piece, of a size that suits the socket, whatever was asked for."""
        return super().read(LARGE_BODY)


class PeerClient:
    """One worker, for one job. May be used by several greenlets of the thread that made it.

    Attributes:
        sent, received: bytes of bodies.
    """

    def __init__(self, address: str, port: int, *, job_id: str, poll_key: bytes) -> None:
        self._job_id = job_id
        self._poll_key = poll_key
        # A foreman that goes on with a job after a kill must not use a number again.
        self._sequence = time.time_ns() // 1000
        self.sent = self.received = 0

        def client(patience_s: float) -> HTTPClient:
            return HTTPClient(
                address, port, concurrency=8, connection_timeout=CONNECT_S, network_timeout=patience_s,
                disable_ipv6=False, block_size=64 * 1024, headers={"User-Agent": user_agent(__version__)},
            )  # fmt: skip

        self._pushes = client(PUSH_S)
        self._polls = client(RESULT_WAIT_S + POLL_S)

    def push(self, pushed: m.PushTasks) -> m.Pushed:
        """Redeems tickets.

        Raises:
            PeerUnreachable: no answer. ProblemError: refused, with the reason.
        """
        body = m.encode(pushed, m.PACKED)
        target, headers = route("worker", "push_tasks").path, {"Content-Type": m.PACKED}
        return self._call(self._pushes, "POST", target, m.Pushed, body, headers)

    def results(self, *, after: int) -> m.Results:
        """Waits up to `RESULT_WAIT_S` for results past a cursor. Raises as `push`."""
        target = route("worker", "fetch_results").path.replace("<job_id>", self._job_id)
        target += "?" + urlencode({"after": after, "wait_s": RESULT_WAIT_S})
        return self._call(
            *(self._polls, "GET", target, m.Results, b""), {"Accept": m.PACKED, **self._signed("GET", target)}
        )

    def cancel(self) -> m.Cancelled:
        """Has the worker give back what it has not started. Raises as `push`."""
        target = route("worker", "cancel_job").path.replace("<job_id>", self._job_id)
        return self._call(self._pushes, "DELETE", target, m.Cancelled, b"", self._signed("DELETE", target))

    def close(self) -> None:
        """Closes its connections."""
        self._pushes.close()
        self._polls.close()

    def _signed(self, method: str, target: str) -> dict[str, str]:
        self._sequence += 1
        return {
            "Authorization": poll_authorization(self._poll_key, method=method, target=target, sequence=self._sequence)
        }

    def _call(
        self, http: HTTPClient, method: str, target: str, kind: type[m.M], body: bytes, headers: dict[str, str]
    ) -> m.M:
        self.sent += len(body)
        try:
            response = http.request(
                method, target, body=body if len(body) < LARGE_BODY else _Body(body), headers=headers
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
            ) from None
        self.received += len(answer)
        if len(answer) > MAX_ANSWER_BYTES:
            raise PeerUnreachable("the worker's answer is too large")
        if status != 200:
            raise _refusal(status, answer)
        try:
            return m.decode(kind, answer, media)
        except Malformed as reason:
            raise PeerUnreachable(f"the worker's answer is not of the protocol: {reason}") from None


def _refusal(status: int, body: bytes) -> ProblemError:
    try:
        problem = m.decode(m.Problem, body)
    except (Malformed, msgspec.DecodeError):
        return ProblemError(status, "unknown", "the worker refused without saying why")
    return ProblemError(status, problem.code, problem.detail[:500])
