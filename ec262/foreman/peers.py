"""Peers: the foreman's talk with workers, the only place where it does."""

from __future__ import annotations

import time
from urllib.parse import urlencode

import gevent
import msgspec

from ec262.errors import Malformed, ProblemError
from ec262.foreman.direct import MAX_ANSWER_BYTES, Direct, Way
from ec262.foreman.direct import PeerUnreachable as PeerUnreachable  # what callers catch
from ec262.foreman.relayed import PAUSE_S, Relay, RelayDown, Relayed
from ec262.protocol import messages as m
from ec262.protocol.polling import poll_authorization
from ec262.protocol.routes import route

RESULT_WAIT_S = 6.0
RELAY_DOWN_FOR_S = 60.0
"""A relay that does not answer is no reason to give a worker up: without discovery the job ends anyway."""


class PeerClient:
    """One worker, for one job. May be used by several greenlets of the thread that made it.

    Where a worker can be connected to and serves through the relay too, the way that worked last is tried first, and
    then the other.

    Args:
        refusal: why not to connect to the worker's address; empty: nothing speaks against it.

    Attributes:
        sent, received: bytes of bodies.
    """

    def __init__(
        self, worker: m.AssignedWorker, relay: Relay, *, job_id: str, poll_key: bytes, refusal: str = ""
    ) -> None:
        self._job_id = job_id
        self._poll_key = poll_key
        # A foreman that goes on with a job after a kill must not use a number again.
        self._sequence = time.time_ns() // 1000
        self.sent = self.received = 0
        self._relay = relay
        self._at: tuple[str, int, str] = ("", 0, "")
        self._direct: Direct | None = None
        self._answered = False  # directly, at this address
        self._relayed: Relayed | None = None
        self._ways: list[Way] = []
        self._refusal = ""
        self.renew(worker, refusal)

    def renew(self, worker: m.AssignedWorker, refusal: str = "") -> None:
        """Discovery named the worker again: it may have moved, and its pass is a later one."""
        self._refusal = refusal
        at = (worker.address, worker.port, worker.relay)
        if worker.relay != "never" and self._relayed is not None:
            self._relayed.relay_pass = worker.relay_pass
        if at == self._at:
            return
        self._at = at
        self._answered = False
        if self._direct is not None:
            self._direct.close()
        usable = worker.relay != "must" and not refusal
        self._direct = Direct(worker.address, worker.port, RESULT_WAIT_S) if usable else None
        self._relayed = Relayed(self._relay, worker.worker_id, worker.relay_pass) if worker.relay != "never" else None
        self._ways = [way for way in (self._direct, self._relayed) if way is not None]

    def push(self, pushed: m.PushTasks) -> m.Pushed:
        """Redeems tickets.

        Raises:
            PeerUnreachable: no answer. ProblemError: refused, with the reason.
        """
        body = m.encode(pushed, m.PACKED)
        return self._call("POST", route("worker", "push_tasks").path, m.Pushed, body)

    def results(self, *, after: int) -> m.Results:
        """Waits up to `RESULT_WAIT_S` for results past a cursor. Raises as `push`."""
        target = route("worker", "fetch_results").path.replace("<job_id>", self._job_id)
        target += "?" + urlencode({"after": after, "wait_s": RESULT_WAIT_S})
        return self._call("GET", target, m.Results, wait_s=RESULT_WAIT_S)

    def cancel(self) -> m.Cancelled:
        """Has the worker give back what it has not started. Raises as `push`."""
        target = route("worker", "cancel_job").path.replace("<job_id>", self._job_id)
        return self._call("DELETE", target, m.Cancelled)

    def close(self) -> None:
        """Closes its connections."""
        for way in self._ways:
            way.close()

    def _headers(self, method: str, target: str, body: bytes) -> dict[str, str]:
        if body:
            return {"Content-Type": m.PACKED}
        self._sequence += 1
        signed = poll_authorization(self._poll_key, method=method, target=target, sequence=self._sequence)
        return {"Authorization": signed, "Accept": m.PACKED} if method == "GET" else {"Authorization": signed}

    def _call(self, method: str, target: str, kind: type[m.M], body: bytes = b"", wait_s: float = 0.0) -> m.M:
        self.sent += len(body)
        until_s = time.monotonic() + RELAY_DOWN_FOR_S
        while True:
            try:
                status, media, answer = self._exchange(method, target, body, wait_s)
                break
            except RelayDown:
                if time.monotonic() > until_s:
                    raise
                gevent.sleep(PAUSE_S)
        self.received += len(answer)
        if len(answer) > MAX_ANSWER_BYTES:
            raise PeerUnreachable("the worker's answer is too large")
        if status != 200:
            raise _refusal(status, answer)
        try:
            return m.decode(kind, answer, media)
        except Malformed as reason:
            raise PeerUnreachable(f"the worker's answer is not of the protocol: {reason}") from None

    def _exchange(self, method: str, target: str, body: bytes, wait_s: float) -> tuple[int, str, bytes]:
        """One request, the one way or the other. Each try is signed anew, for the one before may have arrived."""
        if not self._ways:
            raise PeerUnreachable(self._refusal or "the worker has no address", untouched=True)
        first: PeerUnreachable | None = None
        for way in list(self._ways):
            try:
                done = way.exchange(method, target, body, self._headers(method, target, body), wait_s)
            except PeerUnreachable as reason:
                if first is None:
                    first = reason
                    # Nobody listens where the worker was a moment ago: it has ended, and the relay would say the same.
                    ended = reason.refused and self._answered and way is self._direct
                    if (reason.silent or reason.untouched) and not ended:
                        continue
                    raise
                raise PeerUnreachable(
                    f"{first}; and {reason}",
                    silent=first.silent or reason.silent,
                    untouched=first.untouched and reason.untouched,
                ) from None
            self._answered = self._answered or way is self._direct
            if first is not None and way in self._ways:
                self._ways.sort(key=lambda each: each is not way)
            return done
        assert first is not None
        raise first


def _refusal(status: int, body: bytes) -> ProblemError:
    try:
        problem = m.decode(m.Problem, body)
    except (Malformed, msgspec.DecodeError):
        return ProblemError(status, "unknown", "the worker refused without saying why")
    return ProblemError(status, problem.code, problem.detail[:500])
