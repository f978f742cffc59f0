"""The processes backend: this machine's cores, without a network.

Children are interpreters of their own (`ec262.backends.process_child`), each with one task at work and one waiting.
All waiting is one ``poll`` in the thread of the job. With ``sandbox=True`` the tasks run as on a volunteer's machine
instead (`ec262.backends.sandboxed`).
"""

from __future__ import annotations

import os
import pickle
import select
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Final

from ec262.backends.base import Backend, PhaseName, Stage, Tally, Unit, WorkerTally, digest_of, run_phases
from ec262.backends.children import Child, close_all
from ec262.backends.failures import everything_here, program_failed, task_died, task_too_long
from ec262.backends.process_child import OK, PROGRAM, READY, SPLIT, TASK, UNREAD
from ec262.backends.sandboxed import SandboxedUnits
from ec262.backends.spool import Spool
from ec262.errors import EC262Error, JobCancelled, ProgramError, SetupError
from ec262.policy import Policy
from ec262.protocol.framing import frame_parts, unframe_parts
from ec262.sandbox.pack import pack_program

DEPTH: Final = 2
"""Tasks with a child: one at work, one waiting, so that it never waits for the parent."""
_TICK_S: Final = 0.2
_SHOW_S: Final = 0.2
_FALSE_STARTS: Final = 3


def usable_cpus() -> int:
    """How many processors this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0)) or 1
    return os.cpu_count() or 1


class ProcessesBackend(Backend):
    """Tasks on this machine's cores.

    Args:
        policy, tally, changed: see `Backend`.
        processes: how many children; default: the usable processors.
        sandbox: run tasks under the restrictions of a volunteer's machine.
    """

    def __init__(
        self,
        policy: Policy,
        tally: Tally,
        changed: Callable[[], None],
        *,
        processes: int | None = None,
        sandbox: bool = False,
    ) -> None:
        super().__init__(policy, tally, changed)
        if processes is not None and (isinstance(processes, bool) or not isinstance(processes, int) or processes < 1):
            raise ProgramError(f"processes={processes!r:.80}: has to be a whole number of 1 or more")
        count = processes or usable_cpus()
        self._sandboxed = SandboxedUnits(self, count, lambda: self._cancelled) if sandbox else None
        self._slots = [_Slot(number) for number in range(count)]
        self._false_starts = 0
        self._shown = 0.0

    def run_stage(self, stage: Stage) -> Spool:
        """See `Backend`."""
        if self._sandboxed is not None:
            return self._sandboxed.run_stage(stage)
        program = pack_program(stage.program, allowed=everything_here())

        def run(
            phase: PhaseName,
            units: Iterable[Unit],
            count: int | None,
            done: Callable[[Unit, list[bytes]], None],
            spool: Spool,
        ) -> None:
            try:
                _Phase(self, stage, program, iter(units), done, spool).run()
            except BaseException:
                self._kill_all()
                raise

        return run_phases(self, stage, digest_of(program), run)

    def close(self, *, failed: bool) -> None:
        """See `Backend`."""
        if self._sandboxed is not None:
            self._sandboxed.close()
        if failed:
            self._kill_all()
        close_all([slot.child for slot in self._slots if slot.child is not None])
        for slot in self._slots:
            slot.child = None

    # --- for the phase that runs ---

    @property
    def cancelled(self) -> bool:
        """Whether somebody called `cancel`."""
        return self._cancelled

    @property
    def slots(self) -> list[_Slot]:
        """Where children run, one after the other."""
        return self._slots

    def show(self, *, at_once: bool = False) -> None:
        """Brings the tally up to date, now and then."""
        now = time.monotonic()
        if at_once or now - self._shown >= _SHOW_S:
            self._shown = now
            self.tally.workers = [slot.tally(now) for slot in self._slots if slot.began]
        self.changed()

    def false_start(self, how: str) -> None:
        """A child ended before it was up.

        Raises:
            SetupError: not the first.
        """
        self._false_starts += 1
        if self._false_starts >= _FALSE_STARTS:
            raise SetupError(f"the processes for the tasks end as they start: the last one {how}; see what it printed")

    def _kill_all(self) -> None:
        for slot in self._slots:
            if slot.child is not None:
                slot.child.kill()
                slot.child = None


class _Slot:
    """A place for a child; what those in it did counts for the place."""

    __slots__ = ("began", "child", "finished", "number")

    def __init__(self, number: int) -> None:
        self.number = number
        self.child: Child | None = None
        self.began = 0.0
        self.finished = 0

    @property
    def held(self) -> int:
        """Tasks with the child."""
        return len(self.child.sent) if self.child is not None else 0

    def tally(self, now: float) -> WorkerTally:
        """What there is to show."""
        rate = self.finished / max(now - self.began, 1e-6)
        return WorkerTally(f"process {self.number}", self.held, self.finished, rate)


class _Phase:
    """The tasks of one phase, from the first to the last."""

    def __init__(
        self,
        backend: ProcessesBackend,
        stage: Stage,
        program: bytes,
        units: Iterator[Unit],
        done: Callable[[Unit, list[bytes]], None],
        spool: Spool,
    ) -> None:
        self._backend = backend
        self._stage = stage
        self._program = program
        self._units = units
        self._done = done
        self._spool = spool
        self._again: deque[Unit] = deque()
        self._exhausted = False
        self._carried: set[int] = set()  # tasks whose input has to be loaded here
        self._attempts: dict[int, int] = {}  # that were lost, by task
        self._look_at = time.monotonic() + _TICK_S
        self._poll = select.poll()
        self._masks: dict[int, int] = {}
        self._by_descriptor: dict[int, _Slot] = {}
        for slot in backend.slots:
            if slot.child is not None:
                self._watch(slot, slot.child)

    def run(self) -> None:
        """Until every task has its result or is left out."""
        backend = self._backend
        tally = backend.tally
        while True:
            if backend.cancelled:
                raise JobCancelled("the job was cancelled")
            hungry = self._feed()
            tally.running = sum(slot.held for slot in backend.slots)
            if not tally.running and not hungry and not self._again:
                break
            self._wait(0.0 if hungry else _TICK_S)
            if time.monotonic() >= self._look_at:
                self._look_around()
        tally.done = tally.total = len(self._spool)
        backend.show(at_once=True)

    # --- to the children ---

    def _feed(self) -> bool:
        """Gives a task to the child that has the fewest; whether another may be given at once."""
        slots = self._backend.slots
        slot = min(slots, key=lambda slot: (slot.held, slot.child is None))
        if slot.held >= DEPTH:
            return False
        unit = self._next()
        if unit is None:
            return False
        child = slot.child
        if child is None:
            child = slot.child = Child()
            slot.began = slot.began or time.monotonic()
            self._watch(slot, child)
        if child.program is not self._program:
            child.program = self._program
            child.post(PROGRAM, self._program)
        if not child.sent:
            child.since = time.monotonic()
        kind, body = self._input(unit)
        child.sent.append(unit)
        child.post(kind, body)
        self._mind(child)
        return True

    def _next(self) -> Unit | None:
        if self._again:
            return self._again.popleft()
        if self._exhausted:
            return None
        unit = next(self._units, None)
        self._exhausted = unit is None
        return unit

    def _input(self, unit: Unit) -> tuple[int, bytes]:
        if unit.split is not None and unit.split.anywhere and unit.number not in self._carried:
            try:
                return SPLIT, pickle.dumps(unit.load, protocol=pickle.HIGHEST_PROTOCOL)
            except (pickle.PicklingError, TypeError, AttributeError):
                pass  # then its bytes travel
        body = frame_parts(unit.load())
        self._backend.tally.bytes_in += len(body)
        return TASK, body

    # --- from the children ---

    def _watch(self, slot: _Slot, child: Child) -> None:
        self._by_descriptor[child.descriptor] = slot
        self._masks[child.descriptor] = child.events
        self._poll.register(child.descriptor, child.events)

    def _mind(self, child: Child) -> None:
        if self._masks[child.descriptor] != child.events:
            self._masks[child.descriptor] = child.events
            self._poll.modify(child.descriptor, child.events)

    def _wait(self, seconds: float) -> None:
        for descriptor, events in self._poll.poll(seconds * 1000):
            slot = self._by_descriptor.get(descriptor)
            child = slot.child if slot is not None else None
            if slot is None or child is None:
                continue
            if events & select.POLLOUT:
                child.flush()
                self._mind(child)
            if events & ~select.POLLOUT:
                self._read(slot, child)

    def _look_around(self) -> None:
        """Finds children that ended while something they started holds their socket, and tasks that take too long."""
        limit = self._backend.policy.timeout_s
        for slot in self._backend.slots:
            child = slot.child
            if child is None:
                continue
            dead = child.process.poll() is not None
            self._read(slot, child)
            if slot.child is not child:
                continue
            if dead:
                self._lost(slot, child)
            elif limit is not None and child.ready and child.sent and time.monotonic() - child.since >= limit:
                self._forget(slot, child)
                child.kill()
                unit = child.sent.popleft()
                self._again.extend(child.sent)
                self._charge(unit, partial(task_too_long, unit.label(), limit))
        self._look_at = time.monotonic() + _TICK_S

    def _read(self, slot: _Slot, child: Child) -> None:
        try:
            while (answer := child.read()) is not None:
                self._take(slot, child, *answer)
        except EOFError:
            self._lost(slot, child)

    def _take(self, slot: _Slot, child: Child, kind: int, body: bytes, loaded: int) -> None:
        backend = self._backend
        child.since = time.monotonic()
        if kind == READY:
            child.ready = True
            return
        unit = child.sent.popleft()
        if kind == UNREAD:  # what it is loaded by is not there; here it is, or it is said here why not
            self._carried.add(unit.number)
            self._again.append(unit)
            return
        tally = backend.tally
        tally.bytes_in += loaded
        tally.bytes_out += len(body)
        slot.finished += 1
        if kind == OK:
            self._done(unit, unframe_parts(body))
        else:
            backend.skip(self._stage, unit, self._spool, program_failed(unit.label(), body))
        tally.done = len(self._spool)
        backend.show()

    # --- children that are lost ---

    def _lost(self, slot: _Slot, child: Child) -> None:
        """A child ended by itself: what it was at is charged with that, what waited there has done nothing."""
        self._forget(slot, child)
        how = child.end()
        if not child.ready:
            self._again.extendleft(reversed(child.sent))
            self._backend.false_start(how)
        elif child.sent:
            unit = child.sent.popleft()
            self._again.extend(child.sent)
            self._charge(unit, partial(task_died, unit.label(), how))

    def _forget(self, slot: _Slot, child: Child) -> None:
        slot.child = None
        self._poll.unregister(child.descriptor)
        del self._by_descriptor[child.descriptor], self._masks[child.descriptor]

    def _charge(self, unit: Unit, error: Callable[[int], EC262Error]) -> None:
        backend = self._backend
        times = self._attempts[unit.number] = self._attempts.get(unit.number, 0) + 1
        if times <= backend.policy.max_retries:
            backend.tally.retried += 1
            self._again.append(unit)
            return
        backend.skip(self._stage, unit, self._spool, error(times))
        backend.tally.done = len(self._spool)
        backend.show()
