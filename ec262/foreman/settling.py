"""Settling: receipts to discovery, verdicts and keys back; results are opened, checked and handed on."""

from __future__ import annotations

import logging
import time

import gevent
import msgspec

from ec262.errors import JobFailed, Malformed, NetworkError, NoWorkers, ProblemError, SealBroken, TaskFailed
from ec262.foreman.attempts import DisputedResult
from ec262.foreman.payloads import describe, dispute_of, open_result, printable
from ec262.foreman.pushing import Pairs, Pushing
from ec262.foreman.records import last_of
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
SETTLE_HEARD = 900
UNCLEAR = 0.5
"""Discovery's word on how deterministic a job looks; below this its dissents cost nobody reputation."""
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
        """Opens a paid result, checks it against the agreed commitment, and hands it on.

        One that is not what its worker committed itself to is disputed; then another payee's is taken, or the task is
        computed anew.
        """
        session = self._session
        session.answers.accepted(len(verdict.keys), len(verdict.dissenters), verdict.confidence)
        if verdict.dissenters:
            told = (describe(task), task.task_id, ", ".join(verdict.dissenters))
            log.info("%s (task %s): outvoted: %s", *told)
        liars: dict[str, str] = {}
        junk: list[tuple[m.ReleasedKey, m.Dispute | None]] = []
        for key in verdict.keys:
            replica = task.replicas.get(key.lease_id)
            if replica is None or replica.tokens is None:
                continue
            try:
                parts = open_result(verdict, key.result_key, replica.tokens, task)
            except (SealBroken, Malformed):
                liars[key.worker_id] = OTHER_BYTES
                junk.append((key, dispute_of(session.job_id, key.lease_id, key.result_key, replica.tokens)))
                continue
            except TaskFailed as reason:
                self._dispute(task, junk)
                if session.policy.confidence and session.policy.on_failure == "skip":
                    task.commitment = verdict.commitment
                    session.keep(task, task.task_id)
                session.fail_task(task, reason)
                return
            try:
                if task.check is not None:
                    task.check(parts)
            except Malformed as reason:
                # All that were paid gave this one: none of them has computed the task.
                liars |= {paid.worker_id: f"is malformed: {reason}" for paid in verdict.keys}
                break
            self._dispute(task, junk)
            session.finish(task, parts, verdict.commitment)
            return
        for worker_id, wrong in liars.items():
            if wrong == OTHER_BYTES:
                continue  # the dispute says so
            log.warning("worker %s: its result of %s was accepted and paid, but %s", worker_id, describe(task), wrong)
        session.dissent.wrong(liars)
        task.shunned.update(liars)
        self._pushing.forget_withheld(task)
        again = task.task_id if self._dispute(task, junk) and session.policy.confidence else ""
        wrong = "; ".join(f"{wrong} (worker {worker_id})" for worker_id, wrong in liars.items()) or OTHER_BYTES
        session.start_over(task, f"its result was accepted and paid, but {wrong}", again=again)

    # --- inside ---

    def _dispute(self, task: Task, junk: list[tuple[m.ReleasedKey, m.Dispute | None]]) -> bool:
        """Tells discovery who was paid for other bytes; whether it wants the task computed anew."""
        session = self._session
        recompute = False
        for key, dispute in junk:
            verdict, why, refund = "untold", "it is larger than discovery takes for a proof", 0
            if dispute is not None:
                try:
                    answer = session.discovery.dispute(dispute)
                except NetworkError as reason:
                    why = str(reason)
                else:
                    verdict, why = answer.verdict, answer.reason
                    refund = answer.refund - answer.fee
                    recompute = recompute or answer.recompute
            if refund:
                session.purse.took_back(key.worker_id, refund)
                if session.journal is not None:
                    session.journal.paid([(key.lease_id, key.worker_id, -refund)])
            made = DisputedResult(describe(task), task.task_id, key.worker_id, verdict, why[:500], refund)
            session.disputes.append(made)
            log.warning(
                "worker %s was paid for %s (task %s), but %s; dispute %s: %s",
                *(key.worker_id, describe(task), task.task_id, OTHER_BYTES, verdict, why[:500]),
            )
        return recompute

    def _worth_paying(self, task: Task) -> bool:
        """Of a job that ends early: whether enough workers did the task, rather than give it back unrun."""
        came = sum(1 for replica in task.replicas.values() if replica.tokens)
        return came >= self._session.policy.agreement

    def _settle(self, due: list[Task]) -> None:
        session = self._session
        receipts, session.receipts = session.receipts[:SETTLE_BUNDLES], session.receipts[SETTLE_BUNDLES:]
        lost, session.lost = session.lost[:SETTLE_LOST], session.lost[SETTLE_LOST:]
        ids = [task.task_id for task in due]
        heard = session.accepted.to_hear(SETTLE_HEARD) if session.policy.confidence else []
        known = [session.unsure.pop(task_id) for task_id in ids if task_id in session.unsure]
        settled = self._ask(
            m.Settle(job_id=session.job_id, receipts=receipts, decide=ids, lost=lost, heard=heard, known=known)
        )
        session.purse.balance = settled.balance
        session.accepted.heard(heard)
        if settled.recompute:
            session.recall(settled.recompute)
        if settled.clarity < session.answers.clarity:
            self._note_clarity(settled.clarity)
        for worker in settled.workers:
            session.know(worker)
        self._book(settled)
        if settled.refusals:
            self._note_refusals(due, settled.refusals)
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
        for refused in settled.refused_receipts:
            bundle = receipts[refused.position]
            session.reject(bundle.worker_id, refused.leases, refused.reason)
        self._pushing.push(pairs, settled.workers)
        self._wait_for_workers([task for task in pending if not task.any_out])

    def _note_refusals(self, due: list[Task], refusals: list[m.Refusal]) -> None:
        tasks = {lease_id: task for task in due for lease_id in task.replicas}
        for refusal in refusals:
            task = tasks.get(refusal.lease_id)
            if task is not None:
                task.refusal = f"; worker {refusal.worker_id} refused it: {printable(refusal.reason)}"
                log.warning("%s%s", describe(task), task.refusal)

    def _note_clarity(self, clarity: float) -> None:
        answers = self._session.answers
        if clarity < UNCLEAR <= answers.clarity:
            log.warning(
                "workers disagree so often that the program looks nondeterministic (time, chance, set order); see "
                "ec262 explain"
            )
        answers.clarity = clarity

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
            session.dissent.outvoted(verdict.task_id, verdict.dissenters)
        for replica in settled.late:
            session.answers.given += 1
            session.answers.dissents += not replica.paid
            if replica.paid:
                paid.append((replica.lease_id, replica.worker_id))
            else:
                session.dissent.outvoted(replica.lease_id.partition(".")[0], [replica.worker_id])
                session.purse.returned(replica.lease_id)
        fresh = [(*pair, price) for pair in paid if (price := session.purse.paid(*pair))]
        if session.journal is not None and fresh:
            session.journal.paid(fresh)

    def _wait_for_workers(self, stuck: list[Task]) -> None:
        """Tasks that want one more worker and none is free: asked for again after a moment, for so long."""
        session = self._session
        patience_s = session.policy.wait_for_workers_s
        now = time.monotonic()
        again = []
        for task in stuck:
            task.stuck_s = now if task.stuck_s is None else task.stuck_s
            answered = sum(1 for replica in task.replicas.values() if replica.tokens)
            believed = session.policy.confidence
            if answered > 1 and not believed and now - task.stuck_s > min(DISAGREE_S, patience_s):
                text = (
                    f"{answered} workers computed {describe(task)} and too few agree, and no other is free to be "
                    "asked: the program looks nondeterministic (time, chance, set order), unless workers lie"
                )
                session.fail_task(task, JobFailed(text + task.refusal))
            elif believed and now - task.stuck_s > patience_s:
                text = (
                    f"{answered} workers computed {describe(task)}, and what they say is not believed with "
                    f"confidence={believed:g} yet: it needs one more worker that has not had it, and none came free in "
                    f"{patience_s:g} s. Four workers that nobody knows yet have to agree to reach 0.99: start more "
                    "workers, or ask for less; if they do not agree the program is nondeterministic, or workers lie "
                    f"(ec262 explain {task.task_id})"
                )
                session.fail_task(task, NoWorkers(text + task.refusal))
            elif now - task.stuck_s > patience_s:
                text = (
                    f"{describe(task)} needs one more worker that has not had it yet, and none came free in "
                    f"{patience_s:g} s: start more workers, or ask for less redundancy"
                )
                session.fail_task(task, NoWorkers(text + task.refusal))
            else:
                again.append(task)
        if again:
            gevent.spawn_later(PAUSE_S, self._ask_again, again)

    def _ask_again(self, tasks: list[Task]) -> None:
        for task in tasks:
            if task.state == "out":
                # An answer that leased further replicas may have been lost, as where discovery was killed.
                self._session.unsure[task.task_id] = last_of(task.replicas)
            self._session.schedule.ask_again(task)
        self._session.to_settle.set()
