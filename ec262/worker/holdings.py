"""Holdings: what a worker has taken and not yet handed over. Rules without I/O; the caller says what time it is.

A lease is *queued*, then *running*, then *finished*: its result lies in the job's outbox under a cursor until the
foreman, by naming a later cursor, says that it has it. Cursors are drawn from one row for all jobs and begin at the
time of day, so that no later job nor a restarted worker ever gives one twice.

All times here are discovery's clock, in seconds.
"""

from __future__ import annotations

import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable

from ec262.config import WorkerSettings
from ec262.errors import TicketRefused
from ec262.protocol import messages as m
from ec262.protocol.receipts import Receipt
from ec262.protocol.sealing import unseal
from ec262.protocol.tickets import CLOCK_GRACE_S, Ticket, TicketBundle
from ec262.worker.outcomes import Sealed, name_program, refuse

MAX_JOBS = 1024
"""Most jobs known at a time; beyond them the idle ones are forgotten, longest idle first."""
MAX_SEQUENCES = 8192
_REDEEMED_SPAN_S = 120


class WorkerFull(Exception):
    """Memory for inputs, results and programs is used up; nothing was taken."""


class HeldTask:
    """A lease taken and not finished."""

    __slots__ = ("job", "payload", "size", "ticket")

    def __init__(self, job: HeldJob, ticket: Ticket, payload: list[bytes], size: int) -> None:
        self.job = job
        self.ticket = ticket
        self.payload = payload
        self.size = size


class Finished:
    """A lease finished and not yet acknowledged."""

    __slots__ = ("cursor", "delivered", "expires_s", "receipt", "result", "size")

    def __init__(self, cursor: int, result: m.SealedResult, receipt: Receipt, size: int, expires_s: float) -> None:
        self.cursor = cursor
        self.result = result
        self.receipt = receipt
        self.size = size
        self.expires_s = expires_s
        self.delivered = False  # in an answer, which may have got lost


class HeldJob:
    """What is held of one job.

    Attributes:
        account_id: its foreman's; empty: discovery did not say.
        program: the packed program; None until it came. `digest` is its SHA-256 in hex.
        header_tail: how the header of a task's input ends that names this program (see `outcomes.open_input`).
        queue: leases not started.
        running: how many are being computed.
        outbox: finished leases by rising cursor.
        first_ready_s: `time.monotonic` when the oldest of the outbox was put there.
        idle_since_s: when it last had nothing left.
        changed: called after a result was put in the outbox; the poll that waits sets it.
    """

    __slots__ = (
        "account_id", "changed", "digest", "epoch", "first_ready_s", "header_tail", "idle_since_s", "job_id", "outbox",
        "outbox_bytes", "poll_key", "program", "program_key", "queue", "running",
    )  # fmt: skip

    def __init__(self, bundle: TicketBundle, now_s: float) -> None:
        self.job_id = bundle.job_id
        self.account_id = bundle.account_id
        self.epoch = bundle.epoch
        self.program_key = bundle.program_key
        self.poll_key = bundle.poll_key
        self.program: bytes | None = None
        self.digest = ""
        self.header_tail = b""
        self.queue: deque[HeldTask] = deque()
        self.running = 0
        self.outbox: deque[Finished] = deque()
        self.outbox_bytes = 0
        self.first_ready_s = 0.0
        self.idle_since_s = now_s
        self.changed: Callable[[], None] | None = None

    @property
    def unfinished(self) -> int:
        """Leases queued or running."""
        return len(self.queue) + self.running

    @property
    def idle(self) -> bool:
        """Whether nothing of it is left here but its program."""
        return not self.queue and not self.running and not self.outbox


class Holdings:
    """All that a worker holds, within its bounds.

    Attributes:
        jobs: by (job id, poll key): the same id of two accounts is two jobs.
        ready: jobs with a queue, the next to be served first.
        unfinished: leases queued or running, of all jobs.
        held_bytes: memory of sealed inputs and results.
    """

    def __init__(self, settings: WorkerSettings, *, first_cursor: int | None = None) -> None:
        self._settings = settings
        self.jobs: OrderedDict[tuple[str, bytes], HeldJob] = OrderedDict()
        self._by_id: dict[str, list[HeldJob]] = {}
        self.ready: deque[HeldJob] = deque()
        self.unfinished = 0
        self.held_bytes = 0
        self.program_bytes = 0
        self.taken = 0
        self.cursor = int(time.time() * 1e6) if first_cursor is None else first_cursor
        # Redeemed leases, in sets by when they can be forgotten; hashes only: a lease costs some 70 bytes for minutes.
        self._redeemed: dict[int, set[int]] = {}
        self._sequences: OrderedDict[bytes, int] = OrderedDict()

    def jobs_named(self, job_id: str) -> Iterable[HeldJob]:
        """The jobs of that id, one for each account that uses it."""
        return self._by_id.get(job_id, ())

    def accept_sequence(self, job: HeldJob, sequence: int) -> bool:
        """Whether a request's sequence number is larger than all before for this job; then it counts as used."""
        key = job.poll_key
        if sequence <= self._sequences.get(key, -1):
            return False
        self._sequences[key] = sequence
        self._sequences.move_to_end(key)
        if len(self._sequences) > MAX_SEQUENCES:
            # Never of a job that is still here: what somebody overheard could be sent again.
            here = {poll_key for _, poll_key in self.jobs}
            for old in [old for old in self._sequences if old not in here][: len(self._sequences) - MAX_SEQUENCES]:
                del self._sequences[old]
        return True

    def was_pushed(self, lease_id: str) -> bool:
        """Whether a foreman has pushed the lease; known until after its deadline."""
        mark = hash(lease_id)
        return any(mark in marks for marks in self._redeemed.values())

    # --- in ---

    def take(
        self, bundle: TicketBundle, tickets: dict[str, Ticket], push: m.PushTasks, *, capacity: int, now_s: float
    ) -> m.Pushed:
        """Redeems leases of an opened bundle. All are judged before any is taken; of too many, the first ones are.

        A lease that was redeemed before counts as taken and is not run again.

        Raises:
            TicketRefused: a lease that is not in the bundle, or past its deadline.
            SealBroken: the program is not sealed with the job's program key.
            WorkerFull: no memory left.
        """
        oldest_s = now_s - CLOCK_GRACE_S
        size = 0
        for task in push.tasks:
            ticket = tickets.get(task.lease_id)
            if ticket is None:
                raise TicketRefused(f"lease {task.lease_id} is not in this ticket bundle")
            if ticket.deadline_s < oldest_s:
                raise TicketRefused(f"lease {task.lease_id} is past its deadline (by more than {CLOCK_GRACE_S:.0f} s)")
            for token in task.payload:
                size += len(token)
        job = self.jobs.get((bundle.job_id, bundle.poll_key))
        if not push.program and (job is None or job.program is None):
            return m.Pushed(taken=0, missing_program=True)
        if self.held_bytes + size > self._settings.held_bytes:
            raise WorkerFull("this worker's memory for inputs and results is used up")
        if job is None or job.program is None:
            job = self._admit(bundle, push.program, job, now_s)
        self.jobs.move_to_end((bundle.job_id, bundle.poll_key))
        return m.Pushed(taken=self._enqueue(job, tickets, push.tasks, capacity))

    def _admit(self, bundle: TicketBundle, program: list[bytes], job: HeldJob | None, now_s: float) -> HeldJob:
        from_key = bundle.program_key
        size = sum(map(len, program))
        if size > self._settings.program_bytes:
            raise WorkerFull("the program is larger than this worker's memory for programs")
        opened = [unseal(from_key, token) for token in program]
        blob = opened[0] if len(opened) == 1 else b"".join(opened)
        self._make_room(len(blob))
        if job is None:
            job = self.jobs[bundle.job_id, bundle.poll_key] = HeldJob(bundle, now_s)
            self._by_id.setdefault(job.job_id, []).append(job)
        job.program = blob
        job.digest, job.header_tail = name_program(blob)
        self.program_bytes += len(blob)
        return job

    def _make_room(self, size: int) -> None:
        """Forgets idle jobs, longest unused first, until a program of `size` fits."""
        for job in list(self.jobs.values()):
            if self.program_bytes + size <= self._settings.program_bytes and len(self.jobs) < MAX_JOBS:
                return
            if job.idle:
                self._forget(job)
        if self.program_bytes + size > self._settings.program_bytes or len(self.jobs) >= MAX_JOBS:
            raise WorkerFull("this worker's memory for programs is used up by jobs at work")

    def _enqueue(self, job: HeldJob, tickets: dict[str, Ticket], tasks: list[m.PushedTask], capacity: int) -> int:
        redeemed = list(self._redeemed.values())
        queue = job.queue
        was_empty = not queue
        counted = 0
        for task in tasks:
            mark = hash(task.lease_id)
            if not any(mark in known for known in redeemed):
                if self.unfinished >= capacity:
                    break
                ticket = tickets[task.lease_id]
                span = int((ticket.deadline_s + CLOCK_GRACE_S) // _REDEEMED_SPAN_S)
                marks = self._redeemed.get(span)
                if marks is None:
                    marks = self._redeemed[span] = set()
                    redeemed.append(marks)
                marks.add(mark)
                size = sum(map(len, task.payload))
                queue.append(HeldTask(job, ticket, task.payload, size))
                self.held_bytes += size
                self.unfinished += 1
                self.taken += 1
            counted += 1
        if was_empty and queue:
            self.ready.append(job)
        return counted

    # --- through ---

    def next_job(self) -> HeldJob | None:
        """The job whose turn it is; it goes to the end of the row."""
        if not self.ready:
            return None
        job = self.ready[0]
        self.ready.rotate(-1)
        return job

    def start(self, job: HeldJob) -> HeldTask | None:
        """The job's next lease, now running; None: none is queued."""
        if not job.queue:
            return None
        task = job.queue.popleft()
        job.running += 1
        if not job.queue:
            self.ready.remove(job)
        return task

    def put_back(self, task: HeldTask) -> None:
        """A lease that was started and not computed is queued again, first in its row."""
        job = task.job
        if self.jobs.get((job.job_id, job.poll_key)) is not job:
            return
        job.running -= 1
        if not job.queue:
            self.ready.append(job)
        job.queue.appendleft(task)

    def finish(self, task: HeldTask, sealed: Sealed) -> bool:
        """Puts a running lease's result in its job's outbox; False: nobody can want it any more."""
        job = task.job
        if self.jobs.get((job.job_id, job.poll_key)) is not job:
            return False  # from before the worker started a new epoch
        job.running -= 1
        self._finished(job, task, sealed)
        return True

    def _finished(self, job: HeldJob, task: HeldTask, sealed: Sealed) -> None:
        self.unfinished -= 1
        self.cursor += 1
        ticket = task.ticket
        if not job.outbox:
            job.first_ready_s = time.monotonic()
        job.outbox.append(
            Finished(
                self.cursor,
                m.SealedResult(lease_id=ticket.lease_id, tokens=sealed.tokens),
                sealed.receipt,
                sealed.size,
                ticket.deadline_s + CLOCK_GRACE_S,
            )
        )
        job.outbox_bytes += sealed.size
        self.held_bytes += sealed.size - task.size
        if job.changed is not None:
            job.changed()

    def refuse(self, job: HeldJob, why: Callable[[HeldTask], str]) -> list[Receipt]:
        """Refuses what is queued of a job as far as there is a reason; the receipts lie in its outbox, too."""
        kept: deque[HeldTask] = deque()
        receipts = []
        for task in job.queue:
            reason = why(task)
            if not reason:
                kept.append(task)
                continue
            sealed = refuse(task.ticket, reason)
            receipts.append(sealed.receipt)
            self._finished(job, task, sealed)
        if receipts and not kept:
            self.ready.remove(job)
        job.queue = kept
        return receipts

    @property
    def has_room(self) -> bool:
        """Whether another result may be made."""
        return self.held_bytes < self._settings.held_bytes

    # --- out ---

    def acknowledge(self, job: HeldJob, after: int, now_s: float) -> None:
        """Forgets results up to and including cursor `after`. A cursor that was never given acknowledges nothing."""
        if after > self.cursor:
            return
        outbox = job.outbox
        while outbox and outbox[0].cursor <= after:
            self._drop(job, outbox.popleft())
        if job.idle:
            job.idle_since_s = now_s

    def deliver(self, job: HeldJob) -> list[Finished]:
        """What the next answer carries: results from the oldest on, within an answer's bounds, at least one."""
        chosen: list[Finished] = []
        size = 0
        most, most_bytes = self._settings.answer_results, self._settings.answer_bytes
        for finished in job.outbox:
            if chosen and (len(chosen) >= most or size + finished.size > most_bytes):
                break
            finished.delivered = True
            chosen.append(finished)
            size += finished.size
        return chosen

    def is_answerable(self, job: HeldJob, monotonic_s: float) -> bool:
        """Whether a waiting poll is answered now.

        It waits a moment for more results to travel with the first; but not when an answer is full, nor when the
        worker has less left to do than it has to show: the foreman could be late with more work then.
        """
        ready = len(job.outbox)
        return ready > 0 and (
            ready > len(job.queue)
            or ready >= self._settings.answer_results
            or job.outbox_bytes >= self._settings.answer_bytes
            or monotonic_s - job.first_ready_s >= self._settings.linger_s
        )

    def sweep(self, now_s: float) -> int:
        """Drops results that nobody can want any more, jobs that have been idle, marks of old leases.

        Returns:
            How many results were dropped unfetched.
        """
        dropped = 0
        for job in list(self.jobs.values()):
            if job.outbox and min(finished.expires_s for finished in job.outbox) < now_s:
                kept = deque(finished for finished in job.outbox if finished.expires_s >= now_s)
                for finished in job.outbox:
                    if finished.expires_s < now_s:
                        self._drop(job, finished)
                        dropped += 1
                job.outbox = kept
                if job.idle:
                    job.idle_since_s = now_s
            if job.idle and now_s - job.idle_since_s > self._settings.job_idle_s:
                self._forget(job)
        for span in [span for span in self._redeemed if (span + 1) * _REDEEMED_SPAN_S < now_s]:
            del self._redeemed[span]
        return dropped

    def clear(self) -> None:
        """Forgets everything: discovery has started a new epoch for this worker, no ticket from before is good."""
        for job in list(self.jobs.values()):
            self._forget(job)
        self.ready.clear()
        self._redeemed.clear()
        self.unfinished = self.held_bytes = 0

    @property
    def unacknowledged(self) -> int:
        """Results whose receipt by the foreman is not known, of all jobs."""
        return sum(len(job.outbox) for job in self.jobs.values())

    @property
    def undelivered(self) -> int:
        """Results that were in no answer yet, of all jobs."""
        return sum(not finished.delivered for job in self.jobs.values() for finished in job.outbox)

    def _drop(self, job: HeldJob, finished: Finished) -> None:
        job.outbox_bytes -= finished.size
        self.held_bytes -= finished.size

    def _forget(self, job: HeldJob) -> None:
        del self.jobs[job.job_id, job.poll_key]
        others = self._by_id[job.job_id]
        others.remove(job)
        if not others:
            del self._by_id[job.job_id]
        self.program_bytes -= len(job.program or b"")
        job.queue.clear()
        if job.changed is not None:
            job.changed()
