"""Session: what the greenlets of one job share, and what more than one of them does."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence

import gevent
from gevent.event import Event
from gevent.pool import Group

from ec262.discovery_client import DiscoveryClient
from ec262.errors import EC262Error, JobFailed
from ec262.foreman.accepted import Accepted
from ec262.foreman.attempts import Answers, DisputedResult
from ec262.foreman.dissent import Dissent
from ec262.foreman.journal import Journal
from ec262.foreman.payloads import check_fits, describe, input_digest, seal_pieces
from ec262.foreman.peers import PeerClient
from ec262.foreman.purse import Purse
from ec262.foreman.records import Kept
from ec262.foreman.relayed import Relay
from ec262.foreman.schedule import Peer, Replica, Schedule, Task
from ec262.policy import Policy
from ec262.protocol import messages as m
from ec262.protocol.credits import least_timeout_s

log = logging.getLogger("ec262.foreman")

DEFAULT_TIMEOUT_S = 300.0
"""Discovery's, where the policy names none; or four times the CPU limit."""

OnDone = Callable[[Task, list[bytes]], None]
OnFailed = Callable[[Task, EC262Error], None]


class CreditLimitReached(JobFailed):
    """What is left of the job cannot be paid within its limit of credits."""


class Session:
    """One job as its greenlets see it.

    Attributes:
        to_lease, to_settle, to_watch: wake who leases, settles, watches the clock.
        phase_over: the phase has ended, well or not.
        receipts: shown to discovery next; `lost`: leases it is told to count on no longer.
        unsure: tasks that discovery may have leased further, by id, with the last lease that is known of each.
        leasing, pushing: requests for leases, and to workers, that are under way; `settling`: a settlement is.
        closing: no task is leased any more.
        phases: of the tasks that were seen, as a journal names them.
        accepted: with a confidence, the results that discovery believes; `closed`: for good.
        timeout_s: until a task is given up at a worker; `escrow_s`: until its lease's deadline, which may be later.
        answers: how workers agreed; `disputes`: what was not as they had committed themselves.
        failure: why the job ends early.
    """

    def __init__(
        self,
        discovery: DiscoveryClient,
        policy: Policy,
        schedule: Schedule,
        purse: Purse,
        journal: Journal | None,
        *,
        job_id: str,
        program: bytes,
        changed: Callable[[], None],
    ) -> None:
        self.discovery = discovery
        self.policy = policy
        self.schedule = schedule
        self.purse = purse
        self.journal = journal
        self.job_id = job_id
        self.changed = changed
        self.timeout_s = policy.timeout_s or max(DEFAULT_TIMEOUT_S, 4 * policy.cpu_limit_s)
        self.escrow_s = max(self.timeout_s, least_timeout_s(policy.cpu_limit_s))
        self.clients: dict[str, PeerClient] = {}
        self.relay = Relay(discovery)
        self.program_tokens: list[bytes] = []
        self.poll_key = b""
        self.to_lease, self.to_settle, self.to_watch, self.phase_over = Event(), Event(), Event(), Event()
        self.receipts: list[m.SealedReceipts] = []
        self.lost: list[str] = []
        self.unsure: dict[str, str] = {}
        self.dissent = Dissent()
        self.leasing = self.pushing = 0
        self.settling = False
        self.closing = False
        self.failure: BaseException | None = None
        self.group = Group()
        self.on_done: OnDone | None = None
        self.on_failed: OnFailed | None = None
        self.phases: set[str] = set()
        self.accepted = Accepted(journal.accepted.values() if journal is not None else ())
        self.closed = journal is not None and journal.closed
        self.answers = Answers()
        self.disputes: list[DisputedResult] = []
        self._program = program

    # --- greenlets and how they end ---

    def spawn(self, function: Callable[..., None], *arguments: object) -> None:
        """Runs a function beside the others; what it raises ends the job."""

        def guarded() -> None:
            try:
                function(*arguments)
            except gevent.GreenletExit:
                raise
            except Exception as reason:
                self.fail(reason)

        self.group.spawn(guarded)

    def fail(self, reason: BaseException) -> None:
        """The job ends early."""
        if self.failure is None:
            self.failure = reason
        else:
            log.debug("after the job failed: %s", reason)
        self.phase_over.set()

    def look_whether_over(self) -> None:
        """To be called when a task ended or there are no more."""
        if self.schedule.finished:
            self.phase_over.set()

    @property
    def busy(self) -> bool:
        """Whether anything is under way that may bring back credits or tasks."""
        schedule = self.schedule
        return bool(schedule.running or schedule.out or self.leasing or self.settling or self.receipts or self.lost)

    # --- who is known ---

    def meet(self, poll_key: bytes, program_key: bytes) -> None:
        """The job's keys came."""
        if not self.poll_key:
            self.poll_key = poll_key
            self.program_tokens = seal_pieces(program_key, self._program)
            if self.journal is not None and not self.journal.poll_key:
                self.journal.keys(poll_key, program_key)

    def know(self, worker: m.AssignedWorker) -> None:
        """Makes a worker that tasks were leased to known, or where it is now."""
        refusal = self.discovery.refuses(worker.address) if worker.relay != "must" else ""
        if self.journal is not None and worker.relay == "must" and worker.worker_id in self.journal.workers:
            self.journal.met(worker)  # with a later pass
        known = self.clients.get(worker.worker_id)
        if known is not None:
            known.renew(worker, refusal)
        else:
            if refusal:
                log.warning("worker %s: %s", worker.worker_id, refusal)
            self.clients[worker.worker_id] = PeerClient(
                worker, self.relay, job_id=self.job_id, poll_key=self.poll_key, refusal=refusal
            )
            self.schedule.peers.setdefault(worker.worker_id, Peer(worker.worker_id, worker.slots))
            if self.journal is not None and worker.worker_id not in self.journal.workers:
                self.journal.met(worker)

    # --- tasks ---

    def load(self, task: Task) -> list[bytes]:
        """The task's input, loaded unless it is there.

        Raises:
            JobFailed: it is not what it was when it was first loaded.
            LimitExceeded: it is too large to be sent to any worker.
        """
        if task.parts is None:
            parts = task.load()
            digest = input_digest(parts)
            if task.digest and digest != task.digest:
                raise JobFailed(f"{describe(task)}: its input has changed while the job runs")
            task.digest = digest
            check_fits(task, parts, len(self._program))
            task.parts = parts
            task.size = sum(map(len, parts))
            self.schedule.bytes.loaded(task.size)
        return task.parts

    def unload(self, task: Task) -> None:
        """The input is needed no longer, for now."""
        if task.parts is not None:
            task.parts = None
            self.schedule.bytes.inputs -= task.size

    def take(self, task: Task, given: m.LeasedTask) -> list[Replica]:
        """Notes what was leased, before anybody is told."""
        leases = [(replica.lease_id, replica.worker_id) for replica in given.replicas]
        prices = [replica.price for replica in given.replicas]
        if self.journal is not None:
            priced = [(*lease, price) for lease, price in zip(leases, prices, strict=True)]
            tries = (task.attempts, task.losses)
            self.journal.leased(where(task), given.task_id, given.input_key, tries, priced)
        now = time.monotonic()
        for (lease_id, _), price in zip(leases, prices, strict=True):
            self.purse.leased(lease_id, price, now + self.escrow_s)
        if task.reserve:  # what was put aside for them
            used = min(task.reserve, self.purse.price * len(leases))
            task.reserve -= used
            self.purse.reserved -= used
        self.to_watch.set()
        return self.schedule.leased(task, given.task_id, given.input_key, leases, now, self.timeout_s)

    def lose(
        self, worker_id: str, lease_ids: Sequence[str] | None, why: str, *, started: bool = True, final: bool = False
    ) -> None:
        """Counts leases of a worker (None: all) as lost, so that discovery finds others, or their tasks have failed.

        Args:
            why: for messages, such as ``does not answer``.
            started: the worker may have begun with them.
            final: nothing can come of them later.
        """
        gone = self.schedule.lost(worker_id, lease_ids, final=final)
        if not gone:
            return
        log.info("worker %s %s: %d tasks given up", worker_id, why, len(gone))
        if self.journal is not None:
            self.journal.given_up([replica.lease_id for _, replica in gone])
        self._do_without(worker_id, gone, why, started=started)

    def reject(self, worker_id: str, lease_ids: Sequence[str], why: str) -> None:
        """Discovery does not take a worker's receipts for results that came: they are as good as lost."""
        gone = self.schedule.rejected(worker_id, lease_ids)
        if not gone:
            return
        log.warning("worker %s: its receipts for %d tasks do not count: %s", worker_id, len(gone), why)
        self.dissent.wrong([worker_id])
        for task, _ in gone:
            task.shunned.add(worker_id)
        self._do_without(worker_id, gone, "gave no receipt that counts", started=True)

    def _do_without(self, worker_id: str, gone: list[tuple[Task, Replica]], why: str, *, started: bool) -> None:
        policy = self.policy
        for task, replica in gone:
            self.lost.append(replica.lease_id)
            if task.state != "out" or self.failure is not None:
                continue
            task.losses += started
            if task.any_out:
                continue
            if policy.runs_once and not started:
                # Discovery would have to think that it may have run: it gets another id.
                self.start_over(task, f"worker {worker_id} {why} and was not given it", counts=False)
            elif task.losses > policy.max_retries * max(policy.copies, task.answered):
                again = " and must not be tried again (max_retries=0)" if policy.runs_once else ""
                times = f" {task.losses} times" if task.losses > 1 else ""
                self.fail_task(task, JobFailed(f"{describe(task)} was lost{times}{again}: worker {worker_id} {why}"))
            elif not self.purse.affordable(1, 1):
                self.fail(self.over_limit(f"another worker for {describe(task)}"))
        self.to_settle.set()

    def over_limit(self, what: str) -> CreditLimitReached:
        """The error of a job whose limit does not pay for `what`."""
        purse = self.purse
        return CreditLimitReached(
            f"max_credits={purse.limit} does not pay for {what}: {purse.spent} are spent and {purse.escrow} in escrow "
            f"for replicas that may still be paid; one costs up to {purse.price}. {self.schedule.done} tasks of this "
            "phase are done"
        )

    def fail_task(self, task: Task, error: EC262Error) -> None:
        """The task has no result: the phase goes on without it, or ends."""
        task_id = task.task_id
        self._free(task)
        skip = self.policy.on_failure == "skip"
        if self.journal is not None and (skip or self.policy.runs_once):
            self.journal.failed(where(task), task_id, str(error))
        self.schedule.fail(task)
        if not skip:
            self.fail(error)
            return
        log.warning("%s has failed and is left out: %s", describe(task), str(error).partition("\n")[0])
        if self.on_failed is not None:
            try:
                self.on_failed(task, error)
            except Exception as reason:
                self.fail(reason)
        self.look_whether_over()
        self.to_lease.set()

    def start_over(self, task: Task, why: str, *, counts: bool = True, again: str = "") -> None:
        """The task is leased anew under another id, or has failed; not `counts`: it was never started.

        Args:
            again: the accepted task that it computes anew, where discovery knows that it has to be.
        """
        task.again = again or task.again
        if counts and task.attempts >= self.policy.max_retries:
            tried = f"{describe(task)} was tried {task.attempts + 1} times; the last time: {why}"
            self.fail_task(task, JobFailed(tried))
            return
        log.info("%s starts over: %s", describe(task), why)
        task_id = task.task_id
        self._free(task)
        for replica in task.replicas.values():
            if replica.state == "came":
                self.purse.returned(replica.lease_id)  # unless it was paid
        self.schedule.start_over(task)
        task.attempts -= not counts
        if self.journal is not None:
            self.journal.dropped(where(task), task_id, (task.attempts, task.losses))
        self.to_lease.set()

    def finish(self, task: Task, parts: list[bytes], commitment: bytes) -> None:
        """The task has its result."""
        task_id = task.task_id
        task.commitment = commitment
        self._free(task)
        self.schedule.done_with(task)
        if self.on_done is None:
            return  # the phase is over: a journal remembers the verdict
        try:
            self.on_done(task, parts)
        except Exception as reason:
            self.fail(reason)
            return
        if self.policy.confidence:
            self.keep(task, task_id)
        elif self.journal is not None:
            self.journal.over(task_id)
        self.look_whether_over()

    def keep(self, task: Task, task_id: str) -> None:
        """Remembers by what the task's result is known to discovery, until the job closes."""
        record = Kept(task.phase, task.number, task.digest, task_id, task.commitment)
        if task.again:
            self.recall([task.again])
        self.accepted.add(record)
        if self.journal is not None:
            self.journal.kept(record)

    def recall(self, task_ids: Sequence[str]) -> None:
        """What was accepted of these no longer holds."""
        self.accepted.recall(task_ids)
        self.dissent.overturned(task_ids)

    def _free(self, task: Task) -> None:
        """Nothing more is put aside for the task."""
        self.purse.reserved -= task.reserve
        task.reserve = 0


def where(task: Task) -> tuple[str, int, bytes]:
    """The task's place in the journal."""
    return f"{task.phase} again" if task.redone else task.phase, task.number, task.digest
