"""Engine: runs phases of tasks on the network. Lease, push, poll and settle go on side by side, each a greenlet.

Everything here runs in one thread with a gevent loop of its own (see `job`); nothing waits by looking again and again:
each greenlet sleeps on the event that concerns it.
"""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Callable, Sequence
from itertools import pairwise

import gevent
from gevent.event import Event
from gevent.pool import Group

from ec262.discovery_client import DiscoveryClient
from ec262.errors import (
    DiscoveryUnreachable,
    InsufficientCredits,
    JobCancelled,
    JobFailed,
    Malformed,
    NetworkError,
    NoWorkers,
    ProblemError,
    SealBroken,
    TaskFailed,
)
from ec262.foreman.options import JobOptions
from ec262.foreman.payloads import batches, describe, open_result, seal_input, seal_pieces
from ec262.foreman.peers import PeerClient, PeerUnreachable
from ec262.foreman.schedule import Peer, Replica, Schedule, Task
from ec262.protocol import messages as m

log = logging.getLogger("ec262.foreman")

SETTLE_TASKS = 500
LEASING = 2
"""Lease requests under way at a time: while one is answered the next is made ready."""
RESULT_WAIT_S = 20.0
PEER_RETRIES_S = (0.05, 0.1, 0.2, 0.4, 0.8)
"""A worker that does not answer is asked again after these pauses, then counts as lost."""
DISAGREE_S = 5.0
"""How long workers that disagree wait for one more to be asked."""
PAUSE_S = 0.25
"""Until asking again for workers, or for verdicts that wait for workers."""


class Engine:
    """One job on the network.

    Args:
        program: the packed program.
        lane: of the workers wanted: replicas are compared only within one.
        changed: called now and then when there is progress to show.
    """

    def __init__(
        self,
        discovery: DiscoveryClient,
        options: JobOptions,
        *,
        program: bytes,
        lane: str,
        changed: Callable[[], None],
    ) -> None:
        self.job_id = secrets.token_hex(16)
        self.schedule = Schedule(redundancy=options.redundancy, quorum=options.agreement)
        self.paid: dict[str, str] = {}
        self.credits_spent = 0
        self.dissenters: set[str] = set()
        self._discovery = discovery
        self._options = options
        self._policy = m.Policy(
            redundancy=options.redundancy, quorum=options.agreement, max_replicas=options.max_replicas
        )
        self._requirements = m.Requirements(python=options.python, lane="native" if lane == "native" else "none")
        self._program = program
        self._program_tokens: list[str] = []
        self._poll_key = b""
        self.price = 1
        self._changed = changed
        self._group = Group()
        self._clients: dict[str, PeerClient] = {}
        self._has_program: set[str] = set()
        self._pollers: dict[str, Event] = {}
        self._to_lease = Event()
        self._to_settle = Event()
        self._phase_over = Event()
        self._receipts: list[m.SealedReceipts] = []
        self._lost: list[str] = []
        self._settling = False
        self._closing = False
        self._failure: BaseException | None = None

    # --- from outside ---

    def run_phase(self, tasks: list[Task]) -> None:
        """Has all tasks computed; each then has its `result`.

        Raises:
            TaskFailed, JobFailed, NoWorkers, InsufficientCredits, DiscoveryUnreachable, JobCancelled.
        """
        self._phase_over.clear()
        self.schedule.add(tasks)
        if self.schedule.finished:
            return
        if not self._group:
            for _ in range(LEASING):
                self._spawn(self._lease_all)
            self._spawn(self._settle_all)
        self._to_lease.set()
        self._phase_over.wait()
        if self._failure is not None:
            raise self._failure

    def cancel(self) -> None:
        """Ends the phase that runs with `JobCancelled`. To be called in the engine's thread."""
        self._fail(JobCancelled("the job was cancelled"))

    def close(self, patience_s: float) -> None:
        """Ends the job: after a failure has given back what is not started; settles what comes within `patience_s`."""
        failed = self._failure is not None
        if isinstance(self._failure, DiscoveryUnreachable):
            patience_s = 0.0
        deadline = time.monotonic() + patience_s
        self._closing = True
        try:
            if failed:
                gevent.joinall([gevent.spawn(self._give_back, worker) for worker in list(self._clients)], timeout=3)
            for wake in self._pollers.values():
                wake.set()
            while time.monotonic() < deadline and (
                self._receipts or self._lost or self._settling or (self.schedule.out and self._pollers)
            ):
                self._to_settle.set()
                gevent.sleep(0.01)
        finally:
            self._group.kill(timeout=2)
            for client in self._clients.values():
                client.close()

    # --- leasing and pushing ---

    def _lease_all(self) -> None:
        idle_since: float | None = None
        repeat: tuple[str, list[Task]] | None = None
        while True:
            if self._closing:
                return
            tasks = repeat[1] if repeat else self.schedule.take_to_lease()
            if not tasks:
                self._to_lease.clear()
                self._to_lease.wait()
                continue
            key = repeat[0] if repeat else secrets.token_hex(12)
            repeat = None
            try:
                leased = self._discovery.lease_tasks(
                    m.LeaseTasks(
                        job_id=self.job_id,
                        idempotency_key=key,
                        tasks=[
                            m.TaskWanted(input_digest=task.digest, cpu_limit_s=self._options.cpu_limit_s)
                            for task in tasks
                        ],
                        requirements=self._requirements,
                        policy=self._policy,
                        timeout_s=self._options.timeout_s,
                    )
                )
            except InsufficientCredits as reason:
                self.schedule.put_back(tasks)
                if not self.schedule.out and not self._settling and not self._receipts:
                    raise
                log.info("waiting for escrow to come back: %s", reason)
                gevent.sleep(PAUSE_S)
                continue
            except ProblemError as reason:
                if reason.code != "conflict":
                    raise
                repeat = (key, tasks)
                gevent.sleep(PAUSE_S * secrets.randbelow(100) / 100)
                continue
            self.price = leased.price
            self.schedule.slots_alive = leased.network.slots
            self.schedule.put_back(tasks[len(leased.tasks) :])
            if leased.tasks:
                idle_since = None
                self._meet(leased)
                for worker in leased.workers:
                    self._know(worker)
                pairs = []
                for task, given in zip(tasks, leased.tasks, strict=False):
                    task.replicas = {}
                    pairs += [(task, replica) for replica in self._take(task, given)]
                self._push(pairs, leased.workers)
                continue
            if self.schedule.out or self._settling:
                idle_since = None
                self._to_lease.clear()
                self._to_lease.wait(PAUSE_S)
                continue
            idle_since = idle_since if idle_since is not None else time.monotonic()
            if time.monotonic() - idle_since > self._options.wait_for_workers_s:
                raise NoWorkers(self._no_workers(leased.network.workers))
            gevent.sleep(PAUSE_S)

    def _no_workers(self, alive: int) -> str:
        options = self._options
        waited = f"none came free in {options.wait_for_workers_s:g} s"
        if alive == 0:
            return (
                f"no worker with Python {options.python} is registered at {self._discovery.url} and {waited}: "
                f"start one with: python worker.py --discovery {self._discovery.url}"
            )
        if alive < options.redundancy:
            return (
                f"redundancy={options.redundancy} wants as many different workers for each task, but "
                f"{self._discovery.url} has {alive}: start more, or ask for less"
            )
        return (
            f"{self._discovery.url} has {alive} workers, but none that may serve this job is free and {waited}: "
            "they may be busy, or all your own or each other's neighbours on a public network"
        )

    def _meet(self, leased: m.Leased) -> None:
        if not self._poll_key:
            self._poll_key = leased.poll_key
            self._program_tokens = seal_pieces(leased.program_key, self._program)

    def _know(self, worker: m.AssignedWorker) -> None:
        """Makes a worker that tasks were leased to known."""
        if worker.worker_id not in self._clients:
            self._clients[worker.worker_id] = PeerClient(
                worker.address, worker.port, job_id=self.job_id, poll_key=self._poll_key
            )
        self.schedule.peers.setdefault(worker.worker_id, Peer(worker.worker_id, worker.slots))

    def _take(self, task: Task, given: m.LeasedTask) -> list[Replica]:
        leases = [(replica.lease_id, replica.worker_id) for replica in given.replicas]
        return self.schedule.leased(task, given.task_id, given.input_key, leases)

    def _push(self, pairs: Sequence[tuple[Task, Replica]], workers: Sequence[m.AssignedWorker]) -> None:
        """Sends replicas to their workers, one greenlet each; an input is sealed once for all its replicas."""
        sealed: dict[str, list[str]] = {}
        by_worker: dict[str, list[tuple[Task, Replica]]] = {}
        for task, replica in pairs:
            by_worker.setdefault(replica.worker_id, []).append((task, replica))
        for worker in workers:
            mine = by_worker.get(worker.worker_id, [])
            for start, end in pairwise(batches(mine)):
                self._spawn(self._push_to, worker, mine[start:end], sealed)

    def _push_to(
        self, worker: m.AssignedWorker, pairs: list[tuple[Task, Replica]], sealed: dict[str, list[str]]
    ) -> None:
        tasks = []
        for task, replica in pairs:
            if task.state == "done" and not task.parts:
                continue
            payload = sealed.get(task.task_id)
            if payload is None:
                payload = seal_input(task)
                if self._options.redundancy > 1:
                    sealed[task.task_id] = payload
            tasks.append(m.PushedTask(lease_id=replica.lease_id, payload=payload))
        client = self._clients[worker.worker_id]
        for pause in (*PEER_RETRIES_S, None):
            with_program = worker.worker_id not in self._has_program
            try:
                answer = client.push(
                    m.PushTasks(
                        tickets=worker.tickets, program=self._program_tokens if with_program else [], tasks=tasks
                    )
                )
                if answer.missing_program:
                    self._has_program.discard(worker.worker_id)
                    continue
                self._has_program.add(worker.worker_id)
                given = {task.lease_id for task in tasks[: answer.taken]}
                for _, replica in pairs:
                    replica.pushed = replica.lease_id in given
                self._poll(worker.worker_id)
                pairs = [pair for pair in pairs if not pair[1].pushed]
                if not pairs:
                    return
                log.info("worker %s has no room for %d of %d tasks", worker.worker_id, len(pairs), len(tasks))
                break
            except ProblemError as reason:
                log.warning("worker %s refused %d tasks: %s", worker.worker_id, len(tasks), reason)
                if reason.status != 503:
                    break
            except PeerUnreachable as reason:
                log.info("worker %s: %s", worker.worker_id, reason)
            if pause is None:
                break
            gevent.sleep(pause)
        self._give_up_on(worker.worker_id, [replica.lease_id for _, replica in pairs])

    # --- results ---

    def _poll(self, worker_id: str) -> None:
        """Sees to it that a greenlet waits for the worker's results."""
        wake = self._pollers.get(worker_id)
        if wake is None:
            wake = self._pollers[worker_id] = Event()
            self._spawn(self._poll_peer, worker_id, wake)
        wake.set()

    def _poll_peer(self, worker_id: str, wake: Event) -> None:
        client = self._clients[worker_id]
        peer = self.schedule.peers[worker_id]
        cursor = 0
        failures = 0
        while True:
            if peer.out <= 0:
                if self._closing:
                    break
                wake.clear()
                wake.wait()
                if peer.out <= 0:
                    continue
            pushed_before = set(self.schedule.leases_out(worker_id)) if failures else None
            try:
                answer = client.results(after=cursor, wait_s=RESULT_WAIT_S)
            except ProblemError as reason:
                # Unauthorized: a request that was sent later, to cancel say, came first; the next number is good again.
                if reason.code not in ("unknown-job", "unauthorized") or failures >= 3:
                    log.warning("worker %s: %s", worker_id, reason)
                    self._give_up_on(worker_id, None)
                    failures = 0
                    continue
                failures += 1
                gevent.sleep(PEER_RETRIES_S[failures])
                continue
            except PeerUnreachable as reason:
                log.info("worker %s: %s", worker_id, reason)
                if failures >= len(PEER_RETRIES_S):
                    self._give_up_on(worker_id, None)
                    failures = 0
                    continue
                gevent.sleep(PEER_RETRIES_S[failures])
                failures += 1
                continue
            failures = 0
            cursor = answer.cursor
            now = time.monotonic()
            for result in answer.results:
                self.schedule.reported(result.lease_id, result.tokens, now)
            if answer.results:
                self._receipts.append(m.SealedReceipts(worker_id=worker_id, token=answer.receipts))
                self._to_settle.set()
            elif answer.held == 0:
                # It answers but knows nothing of what it was given: it started anew, or dropped it as too late.
                known = self.schedule.leases_out(worker_id)
                if pushed_before is not None:
                    known = [lease_id for lease_id in known if lease_id in pushed_before]
                if known:
                    failures = 1
                    if pushed_before is not None:
                        self._give_up_on(worker_id, known)
            self._to_lease.set()
        self._pollers.pop(worker_id, None)

    def _give_up_on(self, worker_id: str, lease_ids: list[str] | None) -> None:
        """Counts leases of a worker as lost, so that discovery finds others."""
        gone = self.schedule.lost(worker_id, lease_ids)
        if gone:
            log.info("worker %s: %d tasks given up", worker_id, len(gone))
            self._lost += gone
            self._to_settle.set()

    def _give_back(self, worker_id: str) -> None:
        try:
            self._clients[worker_id].cancel()
        except (PeerUnreachable, ProblemError):
            self.schedule.lost(worker_id)

    # --- settling ---

    def _settle_all(self) -> None:
        while True:
            self._to_settle.wait()
            self._to_settle.clear()
            while True:
                due = self.schedule.take_due(SETTLE_TASKS)
                if not (due or self._receipts or self._lost):
                    break
                if self._failure is not None:
                    due = [task for task in due if self._worth_paying(task)]
                self._settling = True
                try:
                    self._settle(due)
                except NetworkError as reason:
                    if self._failure is not None:
                        raise  # the job has failed already: leave the rest to the deadlines
                    self._fail(reason)
                finally:
                    self._settling = False
                self._to_lease.set()
                self._changed()
                if self.schedule.finished:
                    self._phase_over.set()

    def _worth_paying(self, task: Task) -> bool:
        """Of a job that ends early: whether enough workers did the task, rather than give it back unrun."""
        return sum(1 for replica in task.replicas.values() if replica.tokens) >= self._options.agreement

    def _settle(self, due: list[Task]) -> None:
        receipts, self._receipts = self._receipts[:500], self._receipts[500:]
        lost, self._lost = self._lost[:900], self._lost[900:]
        asked = m.Settle(job_id=self.job_id, receipts=receipts, decide=[task.task_id for task in due], lost=lost)
        for pause in (0.05, 0.2, 0.5, None):
            try:
                settled = self._discovery.settle(asked)
                break
            except ProblemError as reason:
                if reason.code != "conflict" or pause is None:
                    raise
                gevent.sleep(pause)
        if settled.refused_receipts:
            log.warning("discovery does not take %d receipt bundles", len(settled.refused_receipts))
        for worker in settled.workers:
            self._know(worker)
        for replica in settled.late:
            if replica.paid:
                self._pay(replica.lease_id, replica.worker_id)
            else:
                self.dissenters.add(replica.worker_id)
        pairs: list[tuple[Task, Replica]] = []
        pending = []
        for task, verdict in zip(due, settled.tasks, strict=True):
            self._note(verdict)
            if verdict.verdict == "accepted":
                try:
                    self._accept(task, verdict)
                except (TaskFailed, JobFailed) as reason:
                    self._fail(reason)  # the rest of the answer is paid for as well
                    self.schedule.forget(task)
            elif verdict.verdict == "more" and verdict.task is not None:
                pairs += [(task, replica) for replica in self._take(task, verdict.task)]
            elif verdict.verdict == "pending":
                pending.append(task)
            else:
                self._start_over(task, verdict.reason or "discovery forgot the task")
        self._push(pairs, settled.workers)
        if pending:
            stuck = [task for task in pending if not any(replica.out for replica in task.replicas.values())]
            now = time.monotonic()
            for task in stuck:
                task.stuck_s = now if task.stuck_s is None else task.stuck_s
                answered = sum(1 for replica in task.replicas.values() if replica.tokens)
                if answered > 1 and now - task.stuck_s > min(DISAGREE_S, self._options.wait_for_workers_s):
                    raise JobFailed(
                        f"{answered} workers computed {describe(task)} and too few agree, and no other is free to be "
                        "asked: the program looks nondeterministic (time, chance, set order), unless workers lie"
                    )
                if now - task.stuck_s > self._options.wait_for_workers_s:
                    raise NoWorkers(
                        f"{describe(task)} needs one more worker that has not had it yet, and none came free in "
                        f"{self._options.wait_for_workers_s:g} s: start more workers, or ask for less redundancy"
                    )
            if stuck:
                gevent.spawn_later(PAUSE_S, self._ask_again, stuck)

    def _ask_again(self, tasks: list[Task]) -> None:
        for task in tasks:
            self.schedule.ask_again(task)
        self._to_settle.set()

    def _note(self, verdict: m.TaskVerdict) -> None:
        for key in verdict.keys:
            self._pay(key.lease_id, key.worker_id)
        self.dissenters.update(verdict.dissenters)

    def _pay(self, lease_id: str, worker_id: str) -> None:
        if lease_id not in self.paid:
            self.paid[lease_id] = worker_id
            self.credits_spent += self.price

    def _accept(self, task: Task, verdict: m.TaskVerdict) -> None:
        """Opens a paid result, checks it against the agreed commitment, and takes it."""
        junk = 0
        for key in verdict.keys:
            replica = task.replicas.get(key.lease_id)
            if replica is None or replica.tokens is None:
                continue
            try:
                parts = open_result(verdict, key.result_key, replica.tokens, task)
            except (SealBroken, Malformed):
                junk += 1
                continue
            self.schedule.done_with(task, parts)
            if not any(other.out for other in task.replicas.values()):
                self.schedule.forget(task)
            return
        if junk:
            log.warning("task %d: the bytes of %d paid results are not what was committed to", task.number, junk)
        self._start_over(task, "its result was accepted and paid, but the bytes delivered are not that result")

    def _start_over(self, task: Task, why: str) -> None:
        if task.attempts >= self._options.max_retries:
            raise JobFailed(f"{describe(task)} was tried {task.attempts + 1} times; the last time: {why}")
        log.info("task %d starts over: %s", task.number, why)
        self.schedule.start_over(task)
        self._to_lease.set()

    # --- inside ---

    def _spawn(self, function: Callable[..., None], *arguments: object) -> None:
        def guarded() -> None:
            try:
                function(*arguments)
            except gevent.GreenletExit:
                raise
            except Exception as reason:
                self._fail(reason)

        self._group.spawn(guarded)

    def _fail(self, reason: BaseException) -> None:
        if self._failure is None:
            self._failure = reason
        else:
            log.debug("after the job failed: %s", reason)
        self._phase_over.set()
