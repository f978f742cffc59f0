"""Settling: receipts to discovery, verdicts and keys back; results are opened, checked and handed on."""

from __future__ import annotations

import logging
import time

import gevent
import msgspec

from ec262.errors import JobFailed, Malformed, NetworkError, NoWorkers, ProblemError, SealBroken, TaskFailed
from ec262.foreman.payloads import describe, open_result
from ec262.foreman.pushing import Pairs, Pushing
from ec262.foreman.schedule import Replica, Task
from ec262.foreman.session import Session
from ec262.protocol import messages as m

log = logging.getLogger("ec262.foreman")

OTHER_BYTES = "the bytes delivered are not that result"
SHUN_S = 15.0
"""How long a task waits for a worker that has not given a malformed result of it, where there are others."""
SETTLE_TASKS = 500
SETTLE_BUNDLES = 500
SETTLE_LOST = 900
DISAGREE_S = 5.0
"""How long workers that disagree wait for one more to be asked."""
PAUSE_S = 0.25
"""Until asking again for verdicts that wait for workers."""


class Settling:
    """Has tasks decided, one settlement at a time."""

    def __init__(self, session: Session, pushing: Pushing) -> None:
        self._session = session
        self._pushing = pushing

    def run(self) -> None:
        """Settles whatever there is to settle, for ever."""
        session = self._session
        while True:
            session.to_settle.wait()
            session.to_settle.clear()
            while True:
                due = session.schedule.take_due(SETTLE_TASKS)
                if not (due or session.receipts or session.lost):
                    break
                if session.failure is not None:
                    due = [task for task in due if self._worth_paying(task)]
                session.settling = True
                try:
                    self._settle(due)
                except NetworkError as reason:
                    if session.failure is not None:
                        raise  # the job has failed already: leave the rest to the deadlines
                    session.fail(reason)
                finally:
                    session.settling = False
                session.to_lease.set()
                session.changed()
                session.look_whether_over()

    def accept(self, task: Task, verdict: m.TaskVerdict) -> None:
        """Opens a paid result, checks it against the agreed commitment, and hands it on."""
        liars: dict[str, str] = {}
        for key in verdict.keys:
            replica = task.replicas.get(key.lease_id)
            if replica is None or replica.tokens is None:
                continue
            try:
                parts = open_result(verdict, key.result_key, replica.tokens, task)
            except (SealBroken, Malformed):
                liars[key.worker_id] = OTHER_BYTES
                continue
            except TaskFailed as reason:
                self._session.fail_task(task, reason)
                return
            try:
                if task.check is not None:
                    task.check(parts)
            except Malformed as reason:
                # All that were paid gave this one: none of them has computed the task.
                liars |= {paid.worker_id: f"is malformed: {reason}" for paid in verdict.keys}
                break
            self._session.finish(task, parts)
            return
        for worker_id, wrong in liars.items():
            log.warning("worker %s: its result of %s was accepted and paid, but %s", worker_id, describe(task), wrong)
        self._session.dissenters.update(liars)
        task.shunned.update(liars)
        self._pushing.forget_withheld(task)
        wrong = "; ".join(f"{wrong} (worker {worker_id})" for worker_id, wrong in liars.items()) or OTHER_BYTES
        self._session.start_over(task, f"its result was accepted and paid, but {wrong}")

    # --- inside ---

    def _worth_paying(self, task: Task) -> bool:
        """Of a job that ends early: whether enough workers did the task, rather than give it back unrun."""
        came = sum(1 for replica in task.replicas.values() if replica.tokens)
        return came >= self._session.policy.agreement

    def _settle(self, due: list[Task]) -> None:
        session = self._session
        receipts, session.receipts = session.receipts[:SETTLE_BUNDLES], session.receipts[SETTLE_BUNDLES:]
        lost, session.lost = session.lost[:SETTLE_LOST], session.lost[SETTLE_LOST:]
        ids = [task.task_id for task in due]
        settled = self._ask(m.Settle(job_id=session.job_id, receipts=receipts, decide=ids, lost=lost))
        session.purse.balance = settled.balance
        if settled.refused_receipts:
            log.warning("discovery does not take %d receipt bundles", len(settled.refused_receipts))
        for worker in settled.workers:
            session.know(worker)
        self._book(settled)
        pairs: Pairs = []
        pending = []
        for task, task_id, verdict in zip(due, ids, settled.tasks, strict=True):
            if task.task_id != task_id or task.state != "out":
                continue  # it failed meanwhile
            if verdict.verdict == "accepted":
                if verdict.dissenters:
                    for replica in task.replicas.values():
                        if replica.worker_id in verdict.dissenters:
                            session.purse.returned(replica.lease_id)
                if session.journal is not None:
                    session.journal.decided(verdict)
                self.accept(task, verdict)
            elif verdict.verdict == "more" and verdict.task is not None:
                pairs += [(task, replica) for replica in self._further(task, verdict.task)]
            elif verdict.verdict == "pending":
                if not self._pushing.send_withheld(task, patient=self._others(task)):
                    pending.append(task)
            else:
                session.start_over(task, verdict.reason or "discovery forgot the task")
        self._pushing.push(pairs, settled.workers)
        self._wait_for_workers([task for task in pending if not task.any_out])

    def _others(self, task: Task) -> bool:
        """Whether to wait for another worker, of a task that one has lied about."""
        schedule = self._session.schedule
        shunned = sum(schedule.peers[worker_id].slots for worker_id in task.shunned if worker_id in schedule.peers)
        waited_s = 0.0 if task.stuck_s is None else time.monotonic() - task.stuck_s
        return schedule.slots_alive > shunned and waited_s < min(SHUN_S, self._session.policy.wait_for_workers_s / 2)

    def _further(self, task: Task, given: m.LeasedTask) -> list[Replica]:
        """Takes further replicas. Those known already were given for a lease that was named lost twice."""
        fresh = [replica for replica in given.replicas if replica.lease_id not in task.replicas]
        if not fresh:
            return []
        self._pushing.forget_withheld(task)
        taken = self._session.take(task, msgspec.structs.replace(given, replicas=fresh))
        if any(replica.backed and replica.out for replica in task.replicas.values()):
            task.backups += 1
            log.info("%s: its backup is worker %s", describe(task), taken[-1].worker_id)
        return taken

    def _ask(self, asked: m.Settle) -> m.Settled:
        for pause in (0.05, 0.2, 0.5):
            try:
                return self._session.discovery.settle(asked)
            except ProblemError as reason:
                if reason.code != "conflict":
                    raise
                gevent.sleep(pause)
        return self._session.discovery.settle(asked)

    def _book(self, settled: m.Settled) -> None:
        """Notes who was paid and who was not."""
        session = self._session
        paid = [(key.lease_id, key.worker_id) for verdict in settled.tasks for key in verdict.keys]
        for verdict in settled.tasks:
            session.dissenters.update(verdict.dissenters)
        for replica in settled.late:
            if replica.paid:
                paid.append((replica.lease_id, replica.worker_id))
            else:
                session.dissenters.add(replica.worker_id)
                session.purse.returned(replica.lease_id)
        fresh = [pair for pair in paid if session.purse.paid(*pair)]
        if session.journal is not None and fresh:
            session.journal.paid(session.purse.price, fresh)

    def _wait_for_workers(self, stuck: list[Task]) -> None:
        """Tasks that want one more worker and none is free: asked for again after a moment, for so long."""
        session = self._session
        patience_s = session.policy.wait_for_workers_s
        now = time.monotonic()
        again = []
        for task in stuck:
            task.stuck_s = now if task.stuck_s is None else task.stuck_s
            answered = sum(1 for replica in task.replicas.values() if replica.tokens)
            if answered > 1 and now - task.stuck_s > min(DISAGREE_S, patience_s):
                text = (
                    f"{answered} workers computed {describe(task)} and too few agree, and no other is free to be "
                    "asked: the program looks nondeterministic (time, chance, set order), unless workers lie"
                )
                session.fail_task(task, JobFailed(text))
            elif now - task.stuck_s > patience_s:
                text = (
                    f"{describe(task)} needs one more worker that has not had it yet, and none came free in "
                    f"{patience_s:g} s: start more workers, or ask for less redundancy"
                )
                session.fail_task(task, NoWorkers(text))
            else:
                again.append(task)
        if again:
            gevent.spawn_later(PAUSE_S, self._ask_again, again)

    def _ask_again(self, tasks: list[Task]) -> None:
        for task in tasks:
            self._session.schedule.ask_again(task)
        self._session.to_settle.set()
