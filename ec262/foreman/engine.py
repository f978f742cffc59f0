"""Engine: runs phases of tasks on the network. Lease, push, poll and settle go on side by side, each a greenlet.

Everything here runs in one thread with a gevent loop of its own; greenlets sleep on the event that concerns them. The
parts: `leasing` takes tasks and leases them, `pushing` sends them out, `polling` fetches results, `settling` has them
decided and opens them, `watching` looks at the clock, `auditing` asks whether what was accepted still holds, `resuming`
takes up what a killed foreman had begun, `repeating` asks again for leases that it may not have sent. They share a
`session`; what is decided is decided by `schedule`, without I/O.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import gevent

from ec262.discovery_client import DiscoveryClient
from ec262.errors import DiscoveryUnreachable, JobCancelled, ProblemError
from ec262.foreman.accepted import Place
from ec262.foreman.attempts import Answers, DisputedResult
from ec262.foreman.auditing import Auditing
from ec262.foreman.inflight import InFlight
from ec262.foreman.journal import Journal
from ec262.foreman.leasing import Leasing
from ec262.foreman.peers import PeerUnreachable
from ec262.foreman.polling import Polling
from ec262.foreman.purse import Purse
from ec262.foreman.pushing import Pushing
from ec262.foreman.records import Kept
from ec262.foreman.repeating import Repeating
from ec262.foreman.resuming import Resuming
from ec262.foreman.schedule import Schedule, Task
from ec262.foreman.session import OnDone, OnFailed, Session
from ec262.foreman.settling import Settling
from ec262.foreman.watching import Watching
from ec262.policy import Policy
from ec262.protocol import messages as m
from ec262.protocol.credits import price_of

INFLIGHT_BYTES = 96 * 1024 * 1024
LEASING = 2
"""Lease requests under way at a time: while one is answered the next is made ready."""
GIVE_BACK_S = 3.0
"""So long workers have to answer that they give back what they have not started, after a failure; `LEFT_S`: after
success."""
LEFT_S = 0.5
PUSHES_S = 2.0
"""So long pushes that are under way may take before workers are told to give back."""


@dataclass(frozen=True, slots=True)
class WorkerFacts:
    """A worker as the job sees it: tasks at hand, tasks finished, tasks a second of late, credits earned."""

    worker_id: str
    out: int
    finished: int
    rate: float
    credits: int


@dataclass(frozen=True, slots=True)
class Facts:
    """The engine at one moment.

    Attributes:
        total: tasks of the phase; None while more may come.
        done, failed, running: tasks of the phase.
        retried: replicas that were lost and tasks that were leased anew, of the whole job.
        bytes_sent, bytes_received: bodies of requests to workers and of their answers.
        credits_spent, credits_escrow: of the whole job, runs before a kill included.
        answers: how workers agreed, `disputes`: what was junk, in the whole job.
        recomputed: tasks computed anew as discovery no longer believed their results; `unaudited`: tasks of an earlier
            run that it has forgotten.
    """

    total: int | None
    done: int
    failed: int
    running: int
    retried: int
    workers: tuple[WorkerFacts, ...]
    bytes_sent: int
    bytes_received: int
    credits_spent: int
    credits_escrow: int
    answers: Answers
    recomputed: int
    unaudited: int
    disputes: tuple[DisputedResult, ...]


class Engine:
    """One job on the network.

    Args:
        policy: whether by redundancy or by a confidence has to be settled, see `Policy.on_network`.
        program: the packed program.
        lane: of the workers wanted: replicas are compared only within one.
        changed: called now and then when there is progress to show.
        inflight_bytes: bound of the bytes of inputs and results that are on their way.
        credits_limit: most credits the job may cost, those before a kill included; None: no limit.
        job_id: 32 hexadecimal digits; None: the journal's, or a new one.
        journal: where to note what a killed foreman needs; one with records of before is gone on with. `close` closes
            it.

    Attributes:
        job_id: the job's id.
        schedule: the phase that runs.
    """

    def __init__(
        self,
        discovery: DiscoveryClient,
        policy: Policy,
        *,
        program: bytes,
        lane: str,
        changed: Callable[[], None] = lambda: None,
        inflight_bytes: int = INFLIGHT_BYTES,
        credits_limit: int | None = None,
        job_id: str | None = None,
        journal: Journal | None = None,
    ) -> None:
        before = journal.job_id if journal is not None else ""
        self.job_id = before or job_id or secrets.token_hex(16)
        self._purse = Purse(credits_limit, price_of(policy.cpu_limit_s) * policy.price)
        self.schedule = Schedule(
            redundancy=policy.copies,
            quorum=policy.agreement,
            inflight=InFlight(inflight_bytes),
            runs_once=policy.runs_once,
        )
        self._session = Session(
            *(discovery, policy, self.schedule, self._purse, journal),
            job_id=self.job_id,
            program=program,
            changed=changed,
        )
        self._polling = Polling(self._session)
        pushing = Pushing(self._session, self._polling)
        self._settling = Settling(self._session, pushing)
        self._auditing = Auditing(self._session)
        resuming = None
        if journal is not None:
            if not before:
                journal.begun(self.job_id)
            repeating = Repeating(self._session, journal, pushing)
            resuming = Resuming(self._session, journal, repeating, self._polling, self._settling)
        requirements = m.Requirements(
            python=policy.python,
            lane="native" if lane == "native" else "none",
            capabilities=list(policy.requirements),
        )
        self._leasing = Leasing(self._session, pushing, resuming, requirements)

    # --- from outside ---

    def run_phase(self, tasks: Iterable[Task], on_done: OnDone, on_failed: OnFailed | None = None) -> None:
        """Has all tasks computed. The iterable is read in this thread, a little ahead of what workers can take.

        Args:
            on_done: called with each task and its result's parts, once, in this thread; afterwards the engine keeps
                nothing of it. Where there is a journal, what it did has to last when it returns.
            on_failed: called with tasks that have failed and why, where the policy says to go on without them.

        Raises:
            TaskFailed, JobFailed, CreditLimitReached, NoWorkers, InsufficientCredits, DiscoveryUnreachable,
            JobCancelled; and whatever the iterable, loading a task, or a callback raises.
        """
        session = self._session
        if session.failure is not None:
            raise session.failure
        session.phase_over.clear()
        session.on_done, session.on_failed = on_done, on_failed
        self.schedule.begin(tasks)
        if not session.group:
            for _ in range(LEASING):
                session.spawn(self._leasing.run)
            session.spawn(self._settling.run)
            session.spawn(Watching(session).run)
        session.to_lease.set()
        session.phase_over.wait()
        session.on_done = session.on_failed = None
        if session.failure is not None:
            raise session.failure
        if session.journal is not None:
            over = session.phases | ({"map"} if session.phases & {"map", "reduce"} else set())
            for phase in sorted(over):
                session.journal.phase_over(phase)
            session.phases.clear()

    @property
    def audits(self) -> bool:
        """Whether results have to be believed, and may cease to be."""
        return bool(self._session.policy.confidence) and not self._session.closed

    def audit(self, *, whole: bool, closing: bool) -> dict[Place, Kept]:
        """What no longer holds of all results of the job, and has to be computed anew, by phase and number.

        Args:
            whole: asks again of those that were asked for.
            closing: ends the job at discovery, if nothing has to be.

        Raises:
            JobFailed, JobCancelled, NetworkError.
        """
        if self._session.failure is not None:
            raise self._session.failure
        self._auditing.audit(whole=whole, closing=closing)
        return dict(self._session.accepted.stale)

    def task_again(self, task: Task, kept: Kept) -> Task:
        """Makes a task compute anew what no longer holds."""
        task.digest, task.redone = kept.digest, True
        task.again = kept.task_id if kept.task_id in self._session.accepted.vouched else ""
        return task

    def disown(self, place: Place) -> None:
        """The task's result is not used any more: what it was made of is another."""
        self._session.accepted.forget(place)

    def cancel(self) -> None:
        """Ends the phase that runs with `JobCancelled`. To be called in the engine's thread."""
        self._session.fail(JobCancelled("the job was cancelled"))

    def close(self, patience_s: float) -> None:
        """Ends the job: after a failure has given back what is not started; settles what comes within `patience_s`.

        After success it waits for results that their workers should be paid for, but for none of a worker that does not
        answer or that a backup has overtaken. Those are paid when the worker shows its receipt.
        """
        session = self._session
        failed = session.failure is not None
        if isinstance(session.failure, DiscoveryUnreachable):
            patience_s = 0.0
        deadline = time.monotonic() + patience_s
        session.closing = True
        try:
            if failed:
                self._await_pushes(time.monotonic() + PUSHES_S)
            now = time.monotonic()
            # After success nobody needs what a backup has overtaken; a worker that does not answer is not waited for.
            left = [worker for worker in self.schedule.left if self.schedule.peers[worker].down_until_s <= now]
            giving = [gevent.spawn(self._give_back, worker) for worker in (session.clients if failed else left)]
            gevent.joinall(giving, timeout=GIVE_BACK_S if failed else min(LEFT_S, patience_s))
            gevent.killall(giving, block=False)
            self._polling.wake_all()
            while time.monotonic() < deadline and (
                session.receipts
                or session.lost
                or session.settling
                or (self._polling and self.schedule.awaited(time.monotonic()))
            ):
                session.to_settle.set()
                gevent.sleep(0.01)
        finally:
            session.group.kill(timeout=2)
            for client in session.clients.values():
                client.close()
            session.relay.close()
            if session.journal is not None:
                session.journal.close()

    # --- to look at ---

    @property
    def credits_spent(self) -> int:
        """Paid to workers."""
        return self._purse.spent

    @property
    def earned(self) -> dict[str, int]:
        """Credits paid, by worker."""
        return dict(self._purse.earned)

    @property
    def dissenters(self) -> set[str]:
        """Workers that others outvoted, or whose receipts name other bytes than they delivered."""
        return self._session.dissent.workers

    def facts(self) -> Facts:
        """The engine at this moment. May be called in another thread."""
        schedule, purse = self.schedule, self._purse
        clients = list(self._session.clients.values())
        return Facts(
            total=schedule.total,
            done=schedule.done,
            failed=schedule.failed,
            running=schedule.running,
            retried=schedule.retried,
            workers=tuple(
                WorkerFacts(peer.worker_id, peer.out, peer.finished, peer.rate, purse.earned.get(peer.worker_id, 0))
                for peer in list(schedule.peers.values())
            ),
            bytes_sent=sum(client.sent for client in clients),
            bytes_received=sum(client.received for client in clients),
            credits_spent=purse.spent,
            credits_escrow=purse.escrow,
            answers=self._session.answers,
            recomputed=self._session.accepted.recomputed,
            unaudited=len(self._session.accepted.unaudited),
            disputes=tuple(self._session.disputes),
        )

    # --- inside ---

    def _await_pushes(self, until_s: float) -> None:
        """What was leased has to be with its worker before that can give it back."""
        session = self._session
        while True:
            gevent.sleep(0.01)  # first of all: a push may be about to begin
            if not (session.leasing or session.pushing) or time.monotonic() > until_s:
                return

    def _give_back(self, worker_id: str) -> None:
        for _ in range(3):
            try:
                self._session.clients[worker_id].cancel()
                return
            except ProblemError as reason:
                if reason.code != "unauthorized":  # else a poll that was sent later came first
                    break
            except PeerUnreachable:
                break
        self.schedule.lost(worker_id)
