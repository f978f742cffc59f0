"""Pushing: inputs are sealed and sent to the workers they were leased to, a greenlet each push."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from itertools import pairwise

import gevent

from ec262.errors import ProblemError
from ec262.foreman.payloads import batches, seal_input
from ec262.foreman.peers import PeerUnreachable
from ec262.foreman.polling import PEER_RETRIES_S, Polling
from ec262.foreman.schedule import Replica, Task
from ec262.foreman.session import Session
from ec262.protocol import messages as m

log = logging.getLogger("ec262.foreman")

Pairs = list[tuple[Task, Replica]]


class Pushing:
    """Sends replicas to their workers."""

    def __init__(self, session: Session, polling: Polling) -> None:
        self._session = session
        self._polling = polling
        self._has_program: set[str] = set()
        self._withheld: dict[str, list[tuple[Replica, m.AssignedWorker]]] = {}

    def push(self, pairs: Pairs, workers: Sequence[m.AssignedWorker]) -> None:
        """Sends replicas, but none to a worker that lied about the task before: see `send_withheld`."""
        self._push(self._withhold(pairs, workers), workers)

    def _push(self, pairs: Pairs, workers: Sequence[m.AssignedWorker]) -> None:
        """An input is loaded and sealed once for those that go out together."""
        now = time.monotonic()
        by_worker: dict[str, Pairs] = {}
        for task, replica in pairs:
            task.unpushed += 1
            by_worker.setdefault(replica.worker_id, []).append((task, replica))
        for worker in workers:
            mine = by_worker.get(worker.worker_id, [])
            if mine and self._session.schedule.peers[worker.worker_id].down_until_s > now:
                self._give_up(worker.worker_id, mine, "did not answer a moment ago", started=False)
                self._ended(mine)
                continue
            for start, end in pairwise(batches(mine)):
                self._session.spawn(self._push_to, worker, mine[start:end])

    def _withhold(self, pairs: Pairs, workers: Sequence[m.AssignedWorker]) -> Pairs:
        """Sends no task to a worker that gave a malformed result of it, until there turns out to be no other."""
        session = self._session
        sent = []
        for task, replica in pairs:
            # Another one has to be leased beside it, and be paid for.
            room = len(task.replicas) < task.most_replicas and session.purse.affordable(1, 1)
            if replica.worker_id not in task.shunned or not room:
                sent.append((task, replica))
                continue
            worker = next(worker for worker in workers if worker.worker_id == replica.worker_id)
            self._withheld.setdefault(task.task_id, []).append((replica, worker))
            why = "gave another result than that of the task before"
            session.lose(replica.worker_id, [replica.lease_id], why, started=False, final=True)
        return sent

    def send_withheld(self, task: Task, *, patient: bool) -> bool:
        """There is no other worker now: sends the task to the one that it was withheld from, unless it is worth
        waiting. Returns whether it did."""
        if patient or task.any_out or task.task_id not in self._withheld:
            return False
        for replica, worker in self._withheld.pop(task.task_id):
            self._session.schedule.expect_again(replica, time.monotonic(), self._session.timeout_s)
            self._push([(task, replica)], [worker])
        return True

    def forget_withheld(self, task: Task) -> None:
        """The task found another worker, or is leased anew."""
        self._withheld.pop(task.task_id, None)

    def _push_to(self, worker: m.AssignedWorker, pairs: Pairs) -> None:
        wanted = [(task, replica) for task, replica in pairs if task.state == "out" and replica.out]
        message = [m.PushedTask(lease_id=replica.lease_id, payload=self._payload(task)) for task, replica in wanted]
        size = sum(task.sealed_bytes for task, _ in wanted)
        inflight = self._session.schedule.bytes
        inflight.sealed += size  # the body of the request
        self._session.pushing += 1
        try:
            if wanted:
                self._send(worker, message, wanted)
        finally:
            self._session.pushing -= 1
            inflight.sealed -= size
            self._ended(pairs)

    def _send(self, worker: m.AssignedWorker, message: list[m.PushedTask], pairs: Pairs) -> None:
        worker_id = worker.worker_id
        client = self._session.clients[worker_id]
        peer = self._session.schedule.peers[worker_id]
        why, started = "has no room", False
        for pause in (*PEER_RETRIES_S, None):
            program = [] if worker_id in self._has_program else self._session.program_tokens
            try:
                answer = client.push(m.PushTasks(tickets=worker.tickets, program=program, tasks=message))
            except ProblemError as reason:
                log.warning("worker %s refused %d tasks: %s", worker_id, len(message), reason)
                why = "refuses them"
                if reason.status != 503:
                    break
            except PeerUnreachable as reason:
                log.info("worker %s: %s", worker_id, reason)
                why = "does not answer"
                started = started or not reason.untouched
                if reason.silent or pause is None:
                    peer.silent(time.monotonic())
                    break
            else:
                if answer.missing_program:
                    self._has_program.discard(worker_id)
                    continue
                self._has_program.add(worker_id)
                peer.answers()
                pairs = self._taken(worker_id, message[: answer.taken], pairs)
                if not pairs:
                    return
                log.info("worker %s has no room for %d of %d tasks", worker_id, len(pairs), len(message))
                why, started = "has no room", False
                break
            if pause is None:
                break
            gevent.sleep(pause)
        self._give_up(worker_id, pairs, why, started=started)
        if started:  # should it have them after all, what it makes of them is welcome
            self._polling.see_to(worker_id)

    def _taken(self, worker_id: str, message: list[m.PushedTask], pairs: Pairs) -> Pairs:
        """The worker took these; returns the others."""
        given = {task.lease_id for task in message}
        for _, replica in pairs:
            replica.pushed = replica.lease_id in given
        if self._session.journal is not None and given:
            self._session.journal.pushed(list(given))
        self._polling.see_to(worker_id)
        return [pair for pair in pairs if not pair[1].pushed]

    def _give_up(self, worker_id: str, pairs: Pairs, why: str, *, started: bool) -> None:
        leases = [replica.lease_id for _, replica in pairs]
        self._session.lose(worker_id, leases, why, started=started, final=not started)

    def _payload(self, task: Task) -> list[bytes]:
        if task.sealed is None or task.sealed_for != task.task_id:
            self._drop_sealed(task)  # of an attempt before
            task.sealed = seal_input(task, self._session.load(task))
            task.sealed_for = task.task_id
            task.sealed_bytes = sum(map(len, task.sealed))
            self._session.schedule.bytes.sealed += task.sealed_bytes
            self._session.unload(task)
        return task.sealed

    def _drop_sealed(self, task: Task) -> None:
        if task.sealed is not None:
            self._session.schedule.bytes.sealed -= task.sealed_bytes
            task.sealed = None

    def _ended(self, pairs: Pairs) -> None:
        """These pushes are over, well or not: an input that waits for no other is dropped."""
        for task, _ in pairs:
            task.unpushed -= 1
            if task.unpushed == 0:
                self._session.unload(task)
                self._drop_sealed(task)
        self._session.to_lease.set()
