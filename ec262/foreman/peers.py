"""Peers: the foreman's talk with workers, the only place where it does."""

from __future__ import annotations

from urllib.parse import urlencode

import gevent
import msgspec
from geventhttpclient import HTTPClient

from ec262.errors import Malformed, NetworkError, ProblemError
from ec262.protocol import messages as m
from ec262.protocol.polling import poll_authorization
from ec262.protocol.routes import route

MAX_ANSWER_BYTES = 96 * 1024 * 1024
CONNECT_S = 5.0
ANSWER_S = 60.0
_JSON = {"Content-Type": "application/json"}


class PeerUnreachable(NetworkError):
    """A worker does not answer: it is gone, busy beyond measure, or behind something that lets nothing through."""


class PeerClient:
    """One worker, for one job. May be used by several greenlets of the thread that made it."""

    def __init__(self, address: str, port: int, *, job_id: str, poll_key: bytes) -> None:
        self._job_id = job_id
        self._poll_key = poll_key
        self._sequence = 0
        self._http = HTTPClient(
            address, port, concurrency=8, connection_timeout=CONNECT_S, network_timeout=ANSWER_S, disable_ipv6=False
        )

    def push(self, pushed: m.PushTasks) -> m.Pushed:
        """Redeems tickets.

        Raises:
            PeerUnreachable: no answer. ProblemError: refused, with the reason.
        """
        return self._call("POST", route("worker", "push_tasks").path, m.Pushed, m.encode(pushed), _JSON)

    def results(self, *, after: int, wait_s: float) -> m.Results:
        """Waits for results past a cursor. Raises as `push`."""
        target = route("worker", "fetch_results").path.replace("<job_id>", self._job_id)
        target += "?" + urlencode({"after": after, "wait_s": wait_s})
        return self._call("GET", target, m.Results, b"", self._signed("GET", target))

    def cancel(self) -> m.Cancelled:
        """Has the worker give back what it has not started. Raises as `push`."""
        target = route("worker", "cancel_job").path.replace("<job_id>", self._job_id)
        return self._call("DELETE", target, m.Cancelled, b"", self._signed("DELETE", target))

    def close(self) -> None:
        """Closes its connections."""
        self._http.close()

    def _signed(self, method: str, target: str) -> dict[str, str]:
        self._sequence += 1
        return {
            "Authorization": poll_authorization(self._poll_key, method=method, target=target, sequence=self._sequence)
        }

    def _call(self, method: str, target: str, kind: type[m.M], body: bytes, headers: dict[str, str]) -> m.M:
        try:
            response = self._http.request(method, target, body=body, headers=headers)
            try:
                answer = bytes(response.read(MAX_ANSWER_BYTES + 1))
                status = int(response.status_code)
            finally:
                response.release()
        except gevent.GreenletExit:
            raise
        except Exception as reason:  # geventhttpclient raises errors of sockets, of HTTP, of gevent and its own
            raise PeerUnreachable(f"the worker does not answer: {type(reason).__name__}: {reason}") from None
        if len(answer) > MAX_ANSWER_BYTES:
            raise PeerUnreachable("the worker's answer is too large")
        if status != 200:
            raise _refusal(status, answer)
        try:
            return m.decode(kind, answer)
        except Malformed as reason:
            raise PeerUnreachable(f"the worker's answer is not of the protocol: {reason}") from None


def _refusal(status: int, body: bytes) -> ProblemError:
    try:
        problem = m.decode(m.Problem, body)
    except (Malformed, msgspec.DecodeError):
        return ProblemError(status, "unknown", "the worker refused without saying why")
    return ProblemError(status, problem.code, problem.detail[:500])
