"""Runner: a greenlet for each slot, that opens, runs and seals what the worker holds.

A slot takes the job whose turn it is and runs a *unit* of it, a fresh confined process for many tasks one after the
other. Inputs are opened when their turn comes, results sealed as they arrive.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from types import MappingProxyType
from typing import Protocol

import gevent
from gevent.event import Event

from ec262.config import WorkerSettings
from ec262.errors import EC262Error, Malformed, TicketRefused
from ec262.protocol.canonical import decode_value
from ec262.protocol.tickets import CLOCK_GRACE_S, Ticket
from ec262.sandbox.executor_program import ExecutorCall, executor_call
from ec262.sandbox.outcome import Outcome, UnitTask
from ec262.sandbox.policy import Limits
from ec262.worker.events import EVENT, shown
from ec262.worker.holdings import HeldJob, HeldTask, Holdings
from ec262.worker.outcomes import Sealed, open_input, refuse, seal_error, seal_limit, seal_result
from ec262.worker.stored import StoredInputs
from ec262.worker.unsettled import UnsettledReceipts

log = logging.getLogger("ec262.worker")

WALL_A_CPU_SECOND = 3.0
WALL_EXTRA_S = 10.0
UNIT_CPU_S = 7200
"""CPU seconds of a unit; it ends before its tasks could use them up, or one would be blamed for all."""
_CPU_SLACK_S = 60.0
_LIMITS = Limits(unit_cpu_s=UNIT_CPU_S)
_PAUSE_S = 1.0
_PAUSE_MAX_S = 30.0


class UnitSandbox(Protocol):
    """What the runner asks of `ec262.sandbox.launcher.Sandbox`, and of an executor's processes."""

    def run_unit(
        self,
        program: bytes,
        next_task: Callable[[], UnitTask | None],
        on_outcome: Callable[[UnitTask, Outcome], None],
        limits: Limits = ...,
        stop: Callable[[], bool] | None = None,
        more: Callable[[], bool] | None = None,
    ) -> int: ...


class Runner:
    """Computes what is held.

    Args:
        sandbox: where strangers' code runs.
        executors: by name, where map tasks run whose program the volunteer installed.
        stored: reads what tasks do not bring with them.
        holdings: where tasks come from and results go.
        unsettled: where receipts are kept.
        now_s: discovery's clock.
        on_many_receipts: called now and then as receipts become many.
    """

    def __init__(
        self,
        settings: WorkerSettings,
        sandbox: UnitSandbox,
        holdings: Holdings,
        unsettled: UnsettledReceipts,
        now_s: Callable[[], float],
        on_many_receipts: Callable[[], None],
        *,
        stored: StoredInputs,
        executors: Mapping[str, UnitSandbox] = MappingProxyType({}),
    ) -> None:
        self._stored = stored
        self._executors = executors
        self._on_many_receipts = on_many_receipts
        self._settings = settings
        self._sandbox = sandbox
        self._holdings = holdings
        self._unsettled = unsettled
        self._now_s = now_s
        self._work = Event()
        self._slots: list[gevent.Greenlet] = []
        self._units: set[_Unit] = set()
        self.running = 0
        """Units at work."""

    def start(self) -> None:
        """Starts the slots."""
        self._slots = [gevent.spawn(self._serve_slot) for _ in range(self._settings.slots)]

    def stop(self) -> None:
        """Ends the slots; what they compute is lost."""
        gevent.killall(self._slots)
        self._slots = []

    def wake(self) -> None:
        """There may be something to do: tasks were taken, or results made room."""
        if not self._work.is_set():
            self._work.set()

    def _serve_slot(self) -> None:
        holdings, pause_s = self._holdings, _PAUSE_S
        while True:
            job = holdings.next_job() if holdings.has_room else None
            if job is None:
                self._work.clear()
                self._work.wait()
                continue
            unit = _Unit(self, job)
            self.running += 1
            try:
                unit.run()
                pause_s = _PAUSE_S
            except EC262Error as reason:
                log.warning("the sandbox does not work: %s; trying again in %.0f s", shown(reason), pause_s)
                gevent.sleep(pause_s)
                pause_s = min(pause_s * 2, _PAUSE_MAX_S)
            except Exception:
                log.exception("a fault of the worker while it ran tasks")
                gevent.sleep(pause_s)
                pause_s = min(pause_s * 2, _PAUSE_MAX_S)
            finally:
                self.running -= 1

    def _finish(self, task: HeldTask, sealed: Sealed) -> None:
        if self._holdings.finish(task, sealed):
            self._unsettled.keep(sealed.receipt, time.monotonic())
            if not len(self._unsettled) % 1000:
                self._on_many_receipts()


class _Unit:
    """One unit of one job on one slot."""

    def __init__(self, runner: Runner, job: HeldJob) -> None:
        self._runner = runner
        self._job = job
        self._begun: dict[str, HeldTask] = {}
        self._call = _call_of(job)
        self._phase = ""  # of the unit's tasks, where that decides who computes them
        self._first: UnitTask | None = None
        self._over = False  # the next task is for another unit
        self._until_s = time.monotonic() + runner._settings.unit_s
        self._cpu_s = 0.0  # used by what is finished
        self._allowed_s = 0.0  # that those begun may use

    def run(self) -> None:
        """Until the job has nothing queued, or others wait and the unit's time is up."""
        runner, job = self._runner, self._job
        done = 0
        try:
            sandbox = self._choose()
            if sandbox is None:
                return
            done = sandbox.run_unit(
                job.program or b"", self._next_task, self._on_outcome, _LIMITS, self._is_orphaned, self._wait_for_more
            )
        finally:
            for task in reversed(self._begun.values()):
                runner._holdings.put_back(task)
        if done and log.isEnabledFor(EVENT):
            plural = "s" * (done > 1)
            log.log(EVENT, "finished %d task%s of job %s (%.3f s of CPU)", done, plural, job.job_id[:8], self._cpu_s)

    def _choose(self) -> UnitSandbox | None:
        """Who computes this unit; None: there is nothing to compute."""
        runner = self._runner
        if self._call is None:
            return runner._sandbox
        self._first = self._next_task()  # says of which phase the unit is
        if self._first is None:
            return None
        return runner._executors[self._call.name] if self._phase == "map" else runner._sandbox

    def _wait_for_more(self) -> bool:
        """Keeps the slot for its job a moment longer: a new unit costs a fork, as much as a hundred small tasks."""
        runner, job = self._runner, self._job
        until_s = time.monotonic() + runner._settings.unit_idle_s
        while not self._over and not self._is_orphaned() and runner._holdings.has_room:
            if job.queue:
                if self._turn_is_over():  # else the unit would ask for tasks for ever, and get none
                    return False
                left_s = UNIT_CPU_S - _CPU_SLACK_S - self._cpu_s - self._allowed_s
                return job.queue[0].ticket.cpu_limit_s <= left_s
            rest_s = until_s - time.monotonic()
            if runner._holdings.ready or rest_s <= 0:
                return False
            runner._work.clear()
            runner._work.wait(rest_s)
        return False

    def _turn_is_over(self) -> bool:
        """Whether the unit has had its time, and another job waits."""
        return len(self._runner._holdings.ready) > 1 and time.monotonic() > self._until_s

    def _is_orphaned(self) -> bool:
        holdings, job = self._runner._holdings, self._job
        return holdings.jobs.get((job.job_id, job.poll_key)) is not job

    def _next_task(self) -> UnitTask | None:
        runner, job = self._runner, self._job
        holdings = runner._holdings
        if self._first is not None:
            first, self._first = self._first, None
            return first
        if self._turn_is_over():
            return None
        while holdings.has_room and not self._over:
            left_s = UNIT_CPU_S - _CPU_SLACK_S - self._cpu_s - self._allowed_s
            if job.queue and job.queue[0].ticket.cpu_limit_s > left_s:
                return None
            task = holdings.start(job)
            if task is None:
                return None
            ticket = task.ticket
            now_s = runner._now_s()
            try:
                if ticket.deadline_s + CLOCK_GRACE_S < now_s:
                    raise TicketRefused("past its deadline")
                parts = open_input(ticket, task.payload, digest=job.digest, header_tail=job.header_tail)
                if self._call is not None and self._is_for_another(parts[0]):
                    holdings.put_back(task)
                    self._over = True
                    return None
                wall_s = wall_limit_s(ticket, now_s)
                parts = self._with_stored(task, parts, wall_s)
            except TicketRefused as reason:
                log.log(EVENT, "refused a task of job %s: %s", job.job_id[:8], reason)
                runner._finish(task, refuse(ticket, str(reason)))
                continue
            self._begun[ticket.lease_id] = task
            self._allowed_s += ticket.cpu_limit_s
            return UnitTask(ticket.lease_id, parts, ticket.cpu_limit_s, wall_s, ticket.max_result_bytes)
        return None

    def _is_for_another(self, header: bytes) -> bool:
        """Of a program with an executor: whether a task is of another phase than the unit's.

        Raises:
            TicketRefused: for an executor that is not here.
        """
        assert self._call is not None
        phase = phase_of(header)
        if phase == "map" and self._call.name not in self._runner._executors:
            raise TicketRefused(f"this worker has no executor {self._call.name}")
        self._phase = self._phase or phase
        return phase != self._phase

    def _with_stored(self, task: HeldTask, parts: list[bytes], within_s: float) -> list[bytes]:
        """The task's parts, with what it has in shared storage. While that is read the task is the unit's."""
        lease_id = task.ticket.lease_id
        self._begun[lease_id] = task
        try:
            return self._runner._stored.fill(parts, within_s=min(within_s, self._runner._settings.read_s))
        except TicketRefused:
            del self._begun[lease_id]
            raise

    def _on_outcome(self, unit_task: UnitTask, outcome: Outcome) -> None:
        task = self._begun.pop(str(unit_task.id))
        cpu_s = outcome.cpu_s
        self._cpu_s += cpu_s
        self._allowed_s -= task.ticket.cpu_limit_s
        if outcome.kind == "ok":
            sealed = seal_result(task.ticket, outcome.parts, cpu_s=cpu_s)
        elif outcome.error is None:
            sealed = seal_limit(task.ticket, "protocol", "no result", cpu_s=cpu_s)
        elif outcome.kind == "limit":
            sealed = seal_limit(task.ticket, outcome.error.limit, outcome.error.message, cpu_s=cpu_s)
        else:
            fields = asdict(outcome.error)
            del fields["limit"]
            sealed = seal_error(task.ticket, fields, cpu_s=cpu_s)
        self._runner._finish(task, sealed)


def phase_of(header: bytes) -> str:
    """A task's phase as its header says it; empty: a header that is none, of which the sandbox says what is wrong."""
    try:
        fields = decode_value(header)
    except Malformed:
        return ""
    return str(fields.get("phase", "")) if type(fields) is dict else ""


def _call_of(job: HeldJob) -> ExecutorCall | None:
    try:
        return executor_call(job.program or b"")
    except Malformed:
        return None


def wall_limit_s(ticket: Ticket, now_s: float) -> float:
    """How long a task may take by the clock: longer than its CPU limit, for machines have other work; not past its
    deadline, when nobody takes its result any more."""
    rest_s = ticket.deadline_s + CLOCK_GRACE_S - now_s
    return max(1.0, min(ticket.cpu_limit_s * WALL_A_CPU_SECOND + WALL_EXTRA_S, rest_s))
