"""Tasks of the processes backend in a sandbox: what a volunteer's machine forbids a program is forbidden here as well.

One sandbox, as many units at a time as processors, each driven by a thread. The job's thread gives the tasks out and
takes the outcomes, so that all that belongs to the job stays in one thread.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import queue
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Final

from ec262.backends.base import Backend, PhaseName, Stage, Unit, WorkerTally, digest_of, run_phases
from ec262.backends.failures import DIED, task_failed, task_too_long
from ec262.backends.spool import Spool
from ec262.errors import EC262Error, JobCancelled
from ec262.sandbox.launcher import Outcome, Sandbox, UnitTask
from ec262.sandbox.pack import pack_program
from ec262.sandbox.policy import DEFAULT

DEPTH: Final = 2
"""Tasks given out for each thread: one at work, one waiting."""
WALL_A_CPU_SECOND: Final = 3.0
WALL_EXTRA_S: Final = 10.0
"""By the clock a task may take so many times its CPU limit, and so much more: machines have other work."""
_OPTIONAL_MODULES: Final = ("numpy",)
_TICK_S: Final = 0.2


class SandboxedUnits:
    """Runs the stages of a backend in a sandbox.

    Args:
        backend: whose stages.
        count: so many tasks at a time.
        cancelled: whether the job was.
    """

    def __init__(self, backend: Backend, count: int, cancelled: Callable[[], bool]) -> None:
        self._backend = backend
        self._cancelled = cancelled
        self._count = count
        self._sandbox: Sandbox | None = None
        self._finished = [0] * count

    def run_stage(self, stage: Stage) -> Spool:
        """See `Backend`.

        Raises:
            SandboxUnavailable: this machine cannot confine programs.
        """
        program = pack_program(stage.program)
        sandbox = self._opened()

        def run(
            phase: PhaseName,
            units: Iterable[Unit],
            count: int | None,
            done: Callable[[Unit, list[bytes]], None],
            spool: Spool,
        ) -> None:
            work = _Phase(self._backend, stage, sandbox, program, self._finished)
            try:
                work.run(iter(units), done, spool, self._cancelled)
            finally:
                work.close()

        return run_phases(self._backend, stage, digest_of(program), run)

    def _opened(self) -> Sandbox:
        if self._sandbox is None:
            extra = frozenset(name for name in _OPTIONAL_MODULES if importlib.util.find_spec(name) is not None)
            policy = dataclasses.replace(DEFAULT, extra_modules=DEFAULT.extra_modules | extra)
            self._sandbox = Sandbox(policy=policy, slots=self._count)
            self._sandbox.start()
        return self._sandbox

    def close(self) -> None:
        """Ends the sandbox and all in it."""
        if self._sandbox is not None:
            self._sandbox.close()
            self._sandbox = None


class _Phase:
    """One phase: tasks go through `_waiting` to the threads, outcomes come back through `_outcomes`."""

    def __init__(self, backend: Backend, stage: Stage, sandbox: Sandbox, program: bytes, finished: list[int]) -> None:
        self._backend = backend
        self._stage = stage
        self._sandbox = sandbox
        self._program = program
        self._finished = finished
        self._stop = False
        self._units: dict[int, Unit] = {}
        self._losses: dict[int, int] = {}
        self._waiting: queue.SimpleQueue[UnitTask | None] = queue.SimpleQueue()
        self._outcomes: queue.SimpleQueue[tuple[int, UnitTask, Outcome] | BaseException] = queue.SimpleQueue()
        self._threads = [
            threading.Thread(target=self._drive, args=(number,), name=f"ec262-unit-{number}", daemon=True)
            for number in range(len(finished))
        ]
        for thread in self._threads:
            thread.start()

    def run(
        self,
        units: Iterator[Unit],
        done: Callable[[Unit, list[bytes]], None],
        spool: Spool,
        cancelled: Callable[[], bool],
    ) -> None:
        """Until every task has its result or is left out."""
        tally = self._backend.tally
        again: deque[Unit] = deque()
        exhausted = False
        while True:
            if cancelled():
                raise JobCancelled("the job was cancelled")
            while len(self._units) < DEPTH * len(self._threads) and (again or not exhausted):
                unit = again.popleft() if again else next(units, None)
                if unit is None:
                    exhausted = True
                else:
                    self._give(unit)
            tally.running = len(self._units)
            if not self._units:
                break
            with contextlib.suppress(queue.Empty):
                self._take(self._outcomes.get(timeout=_TICK_S), done, spool, again)
        tally.done = tally.total = len(spool)

    def close(self) -> None:
        """Ends the threads and what they drive."""
        self._stop = True
        for _ in self._threads:
            self._waiting.put(None)
        for thread in self._threads:
            thread.join()

    def _give(self, unit: Unit) -> None:
        policy = self._backend.policy
        wall_s = policy.timeout_s or policy.cpu_limit_s * WALL_A_CPU_SECOND + WALL_EXTRA_S
        parts = unit.load()
        self._backend.tally.bytes_in += sum(map(len, parts))
        self._units[unit.number] = unit
        most = self._sandbox.policy.max_message_bytes
        self._waiting.put(UnitTask(unit.number, parts, policy.cpu_limit_s, wall_s, most))

    def _take(
        self,
        outcome: tuple[int, UnitTask, Outcome] | BaseException,
        done: Callable[[Unit, list[bytes]], None],
        spool: Spool,
        again: deque[Unit],
    ) -> None:
        if isinstance(outcome, BaseException):
            raise outcome
        thread, task, made = outcome
        backend, tally = self._backend, self._backend.tally
        unit = self._units.pop(int(task.id))
        self._finished[thread] += 1
        if made.kind == "ok":
            tally.bytes_out += sum(map(len, made.parts))
            done(unit, made.parts)
        else:
            reason = self._judge(unit, task, made)
            if reason is None:
                tally.retried += 1
                again.append(unit)
                return
            backend.skip(self._stage, unit, spool, reason)
        tally.done = len(spool)
        tally.workers = [WorkerTally(f"sandbox {at}", 0, count, 0.0) for at, count in enumerate(self._finished)]
        backend.changed()

    def _judge(self, unit: Unit, task: UnitTask, made: Outcome) -> EC262Error | None:
        """Why a task has failed; None: it is to be tried again, for its process was lost or it took too long."""
        error = made.error
        assert error is not None
        if error.limit not in ("crash", "wall"):
            text = error.message
            return task_failed(unit.label(), error.type, text, error.traceback, limit=made.kind == "limit")
        times = self._losses[unit.number] = self._losses.get(unit.number, 0) + 1
        if times <= self._backend.policy.max_retries:
            return None
        if error.limit == "wall":
            return task_too_long(unit.label(), task.wall_limit_s, times)
        return task_failed(unit.label(), DIED, error.message + ("" if times == 1 else f" ({times} times)"))

    # --- in the threads ---

    def _drive(self, number: int) -> None:
        first: list[UnitTask] = []

        def next_task() -> UnitTask | None:
            if first:
                return first.pop()
            try:
                task = self._waiting.get_nowait()
            except queue.Empty:
                return None
            if task is None:
                self._waiting.put(None)  # the others are to see it too
            return task

        def more() -> bool:
            task = self._waiting.get()
            if task is None:
                self._waiting.put(None)
                return False
            first.append(task)
            return True

        def on_outcome(task: UnitTask, outcome: Outcome) -> None:
            self._outcomes.put((number, task, outcome))

        try:
            while not self._stop:
                if not first and not more():
                    return
                self._sandbox.run_unit(self._program, next_task, on_outcome, stop=lambda: self._stop, more=more)
        except BaseException as reason:
            self._outcomes.put(reason)
