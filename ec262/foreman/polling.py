"""Polling: a greenlet a worker waits for its results, as long as any are expected."""

from __future__ import annotations

import logging
import time

import gevent
from gevent.event import Event

from ec262.errors import ProblemError
from ec262.foreman.peers import PeerUnreachable
from ec262.foreman.session import Session
from ec262.protocol import messages as m
from ec262.protocol.receipts import digests_of, tokens_digest

log = logging.getLogger("ec262.foreman")

PEER_RETRIES_S = (0.05, 0.1, 0.2, 0.4, 0.8)
"""A worker that does not answer is asked again after these pauses, then counts as lost."""
SILENT_COUNTS = 3
"""A worker that takes the connection and says nothing has cost time enough: so many failures at once."""
LATE_RETRY_S = 3.0
"""Pause between calls of a worker that was given up and whose results would be of use still."""
FULL_S = 0.05


class Polling:
    """Fetches results and has them settled."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._wakes: dict[str, Event] = {}

    def __bool__(self) -> bool:
        return bool(self._wakes)

    def see_to(self, worker_id: str) -> None:
        """Sees to it that a greenlet waits for the worker's results."""
        wake = self._wakes.get(worker_id)
        if wake is None:
            wake = self._wakes[worker_id] = Event()
            self._session.spawn(self._poll, worker_id, wake)
        wake.set()

    def wake_all(self) -> None:
        """Has those look up that wait for nothing."""
        for wake in self._wakes.values():
            wake.set()

    def _poll(self, worker_id: str, wake: Event) -> None:
        session = self._session
        schedule = session.schedule
        client = session.clients[worker_id]
        peer = schedule.peers[worker_id]
        cursor = failures = 0
        while True:
            if peer.out <= 0:
                if session.closing:
                    break
                if not schedule.owes(worker_id):
                    wake.clear()
                    wake.wait()
                    continue
            self._await_memory()
            pushed_before = set(schedule.leases_out(worker_id)) if failures else None
            try:
                answer = client.results(after=cursor)
            except ProblemError as reason:
                # Unauthorized: a request that was sent later, to cancel say, came first; the next number is good again.
                if reason.code in ("unknown-job", "unauthorized") and failures < 3:
                    failures += 1
                    gevent.sleep(PEER_RETRIES_S[failures])
                    continue
                session.lose(worker_id, None, f"has nothing to say of them: {reason}", final=True)
                session.lose(worker_id, schedule.owes(worker_id), "", final=True)
                failures = 0
                continue
            except PeerUnreachable as reason:
                log.info("worker %s: %s", worker_id, reason)
                failures += SILENT_COUNTS if reason.silent else 1
                if failures <= len(PEER_RETRIES_S):
                    gevent.sleep(PEER_RETRIES_S[failures - 1])
                    continue
                peer.silent(time.monotonic())
                session.lose(worker_id, None, "does not answer")
                gevent.sleep(LATE_RETRY_S)
                continue
            failures = 0
            peer.answers()
            cursor = answer.cursor
            if answer.results:
                self._take(worker_id, answer)
            elif answer.held == 0 and (known := self._forgotten(worker_id, pushed_before)) is not None:
                failures = 1
                if pushed_before is not None:
                    session.lose(worker_id, known, "knows nothing of them", final=True)
            session.to_lease.set()
        self._wakes.pop(worker_id, None)

    def _take(self, worker_id: str, answer: m.Results) -> None:
        session = self._session
        schedule = session.schedule
        journal = session.journal
        now = time.monotonic()
        came = []
        arrived = {}
        for result in answer.results:
            lease_id = result.lease_id
            whose = schedule.worker_of(lease_id) or (journal.worker_of(lease_id) if journal is not None else "")
            if whose not in ("", worker_id) or schedule.has_come(lease_id):
                continue  # nobody speaks for another worker's lease, and what came first counts
            task = schedule.reported(lease_id, result.tokens, now)
            if task is None:
                # A foreman that goes on may not have come to the task yet: its input is read in the meantime.
                if journal is not None and journal.has_come(lease_id):
                    continue
                wanted = journal is not None and journal.keep(lease_id, result.tokens)
            else:
                wanted = task.state == "out"
            if result.tokens:
                arrived[lease_id] = tokens_digest(digests_of(result.tokens))
            if wanted:
                came.append((lease_id, result.tokens))
        receipts = m.SealedReceipts(worker_id=worker_id, token=answer.receipts, arrived=arrived)
        if journal is not None and came:
            journal.came(receipts, came)
        session.receipts.append(receipts)
        session.to_settle.set()

    def _forgotten(self, worker_id: str, pushed_before: set[str] | None) -> list[str] | None:
        """A worker that answers and holds nothing: what it was given, and has lost or dropped as too late."""
        schedule = self._session.schedule
        known = schedule.leases_out(worker_id)
        if pushed_before is not None:
            known = [lease_id for lease_id in known if lease_id in pushed_before]
        return [*known, *schedule.owes(worker_id)] or None

    def _await_memory(self) -> None:
        """Takes no more results while there are too many that settling makes fewer."""
        session = self._session
        schedule = session.schedule
        while (
            schedule.bytes.results > schedule.bytes.limit
            and session.failure is None
            and (session.receipts or session.settling or schedule.due)
        ):
            gevent.sleep(FULL_S)
