"""One unit as the parent sees it: tasks out, outcomes in, limits kept, the guilty named."""

from __future__ import annotations

import json
import os
import select
import time
from collections import deque
from collections.abc import Callable
from typing import Final, Literal, Protocol

from ec262.errors import Malformed, SandboxUnavailable
from ec262.protocol.framing import MAX_PARTS, frame_parts, unframe_parts
from ec262.sandbox.frames import (
    ERROR,
    HEADER,
    LIMIT,
    MAX_BODY_BYTES,
    MAX_ERROR_BYTES,
    OK,
    PROGRAM,
    READY,
    SETTINGS,
    TASK,
)
from ec262.sandbox.outcome import ErrorInfo, Outcome, UnitTask, death, exceeded, read_error
from ec262.sandbox.policy import Limits, Policy
from ec262.sandbox.zygote import Grants, PollLike, ZygoteGone

_AHEAD_S: Final = 0.020
_MOST_AHEAD: Final = 64
_MOST_AHEAD_BYTES: Final = 4 << 20
_STOP_CHECK_S: Final = 0.2
_READY_S: Final = 20.0
_END_S: Final = 5.0  # a large process takes its time to go
_MOST_FALSE_STARTS: Final = 3
_FRAMING_BYTES: Final = 7 + 4 * MAX_PARTS
_SMALL_READ, _LARGE_READ = 1 << 16, 1 << 20

End = Literal["done", "stopped", "died", "replaced"]


class ChildLike(Protocol):
    """A process that computes tasks: a sandbox's child, or an executor's (`ec262.worker.executor_process`)."""

    tasks: int
    results: int

    def cpu_s(self) -> float: ...
    def kill(self) -> None: ...
    def await_end(self, poll: Callable[[], PollLike], seconds: float) -> int | None: ...
    def discard(self) -> None: ...


class ChildSource(Protocol):
    """What a unit asks of the sandbox."""

    policy: Policy

    def acquire(self) -> ChildLike: ...
    def start(self) -> Grants: ...
    def lost(self) -> None: ...


class UnitRun:
    """The tasks of one unit, over as many children as their misdeeds make necessary. See `Sandbox.run_unit`."""

    def __init__(
        self,
        source: ChildSource,
        poll: Callable[[], PollLike],
        program: bytes,
        next_task: Callable[[], UnitTask | None],
        on_outcome: Callable[[UnitTask, Outcome], None],
        limits: Limits,
        stop: Callable[[], bool] | None,
        more: Callable[[], bool] | None = None,
    ) -> None:
        self._more = more
        self._source = source
        self._poll = poll
        self._program = program
        self._next_task = next_task
        self._on_outcome = on_outcome
        self._limits = limits
        self._stop = stop
        self._waiting: deque[UnitTask] = deque()  # taken, and with no child
        self._taken = 0
        self._exhausted = False
        self._outcomes = 0
        self._mean_s = _AHEAD_S  # of a task, learnt

    def run(self) -> int:
        """Until the unit is done; returns the number of outcomes."""
        false_starts = 0
        while self._peek() and not self._stopped():
            child = self._source.acquire()
            try:
                talk = _Conversation(self, child)
                end = talk.run()
                if end == "died":
                    false_starts = 0 if talk.ready else false_starts + 1
                    self._judge_death(talk, child)
            finally:
                child.discard()
            self._waiting.extendleft(reversed(talk.sent))
            if end in ("done", "stopped"):
                break
            if false_starts >= _MOST_FALSE_STARTS:
                raise SandboxUnavailable("children end before they are ready; is the machine out of memory?")
        return self._outcomes

    def _peek(self) -> bool:
        if not self._waiting:
            task = self.pull()
            if task is not None:
                self._waiting.append(task)
        return bool(self._waiting)

    def pull(self) -> UnitTask | None:
        """The next task, as long as the unit goes on."""
        if self._waiting:
            return self._waiting.popleft()
        if self._exhausted or self._taken >= self._limits.max_unit_tasks:
            return None
        task = self._next_task()
        if task is None:
            self._exhausted = self._more is None
        else:
            self._taken += 1
        return task

    def wait_for_more(self) -> bool:
        """Nothing is with the child: whether its unit goes on, which `more` may take its time to say."""
        if self._more is None or self._taken >= self._limits.max_unit_tasks:
            return False
        return not self._stopped() and self._more()

    def deliver(self, task: UnitTask, outcome: Outcome) -> None:
        """Hands one outcome on."""
        self._outcomes += 1
        self._on_outcome(task, outcome)

    def _stopped(self) -> bool:
        return self._stop is not None and self._stop()

    def _judge_death(self, talk: _Conversation, child: ChildLike) -> None:
        """Blames the task that was being computed, unless the child died of something else."""
        if talk.verdict is None:
            try:
                status = child.await_end(self._poll, _END_S)
            except ZygoteGone:
                self._source.lost()
                return  # the zygote died and took its children along: nobody's fault
            if not talk.ready:
                return
            talk.verdict = death(status) if status is not None else exceeded("crash", "the task closed its own output")
        if talk.sent:
            talk.blame(talk.verdict)

    # What a conversation needs of its unit.

    @property
    def poll(self) -> Callable[[], PollLike]:
        return self._poll

    @property
    def asks_stop(self) -> bool:
        return self._stop is not None

    def stopped(self) -> bool:
        return self._stopped()

    def depth(self) -> int:
        """How many tasks may be with the child at once: about `_AHEAD_S` of work."""
        return min(_MOST_AHEAD, max(1, int(_AHEAD_S / self._mean_s) if self._mean_s > 0 else _MOST_AHEAD))

    def learn(self, seconds: float, tasks: int) -> None:
        """Takes a batch's time into the mean; a slow task counts at once, fast ones bit by bit."""
        mean = seconds / tasks
        self._mean_s = mean if mean > self._mean_s else self._mean_s + (mean - self._mean_s) * min(1.0, tasks / 4)

    def preface(self) -> list[bytes]:
        """The frames before the first task."""
        settings = {
            "memory_bytes": self._limits.memory_bytes,
            "unit_cpu_s": self._limits.unit_cpu_s,
            "base_bytes": self._source.start().base_bytes,
        }
        body = json.dumps(settings).encode()
        program = self._program
        return [HEADER.pack(SETTINGS, 0, len(body), 0), body, HEADER.pack(PROGRAM, 0, len(program), 0), program]

    @property
    def max_message_bytes(self) -> int:
        return self._source.policy.max_message_bytes


class _Conversation:
    """Frames to and from one child."""

    def __init__(self, unit: UnitRun, child: ChildLike) -> None:
        self._unit = unit
        self._child = child
        self.sent: deque[UnitTask] = deque()
        self.ready = False
        self.verdict: ErrorInfo | None = None  # why the parent killed it
        self._number = 0  # of the task at the head of `sent`
        self._out: deque[memoryview] = deque(memoryview(frame) for frame in unit.preface())
        self._out_bytes = 0
        self._buffer = bytearray()
        self._began = self._since = time.monotonic()  # when the head task began, at the latest
        self._cpu_since = 0.0
        self._check_cpu_at = 0.0

    def run(self) -> End:
        unit, child = self._unit, self._child
        results, tasks = child.results, child.tasks
        poll = unit.poll()
        poll.register(results, select.POLLIN)
        writing = False
        while True:
            self._fill()
            if not self.sent and self.ready:
                if unit.wait_for_more():
                    continue
                return "done"
            self._flush()
            if bool(self._out) != writing:
                writing = not writing
                if writing:
                    poll.register(tasks, select.POLLOUT)
                else:
                    poll.unregister(tasks)
            for descriptor, _ in poll.poll(self._patience_ms()):
                if descriptor == results:
                    end = self._read()
                    if end is not None:
                        return end
            if self._over_limit():
                child.kill()
                return "died"
            if unit.asks_stop and unit.stopped():
                return "stopped"

    def blame(self, error: ErrorInfo) -> None:
        """The head task ends with this error; those behind it have done nothing."""
        wall = time.monotonic() - self._since
        cpu = max(0.0, min(self._child.cpu_s() - self._cpu_since, wall))
        self._unit.deliver(self.sent.popleft(), Outcome("limit", [], cpu, wall, error))

    # --- to the child ---

    def _fill(self) -> None:
        unit = self._unit
        depth = unit.depth()
        while len(self.sent) < depth and (self._out_bytes < _MOST_AHEAD_BYTES or not self.sent):
            task = unit.pull()
            if task is None:
                return
            if not self.sent:
                self._restart_clocks(time.monotonic())
            body = frame_parts(task.parts)
            if len(body) > MAX_BODY_BYTES:
                self.sent.append(task)
                raise Malformed("a task's input of 4 GiB or more")
            head = HEADER.pack(TASK, (self._number + len(self.sent)) & 0xFFFFFFFF, len(body), task.max_output_bytes)
            self.sent.append(task)
            if len(body) < _SMALL_READ:
                self._out.append(memoryview(head + body))
            else:
                self._out += (memoryview(head), memoryview(body))
            self._out_bytes += len(head) + len(body)

    def _flush(self) -> None:
        out = self._out
        while out:
            try:
                written = os.writev(self._child.tasks, [out[i] for i in range(min(len(out), 64))])
            except BlockingIOError:
                return
            except OSError:  # it died: its results, then their end, are still to be read
                out.clear()
                return
            self._out_bytes = max(0, self._out_bytes - written)
            while out and written >= len(out[0]):
                written -= len(out.popleft())
            if written:
                out[0] = out[0][written:]

    # --- from the child ---

    def _read(self) -> End | None:
        buffer = self._buffer
        while True:
            size = _LARGE_READ if len(buffer) > _SMALL_READ else _SMALL_READ
            try:
                piece = os.read(self._child.results, size)
            except BlockingIOError:
                return None
            if not piece:
                return "died"
            buffer += piece
            end = self._take_frames()
            if end is not None or len(piece) < size:
                return end

    def _take_frames(self) -> End | None:
        """Every whole frame in the buffer, each field checked."""
        buffer, at, done = self._buffer, 0, 0
        whole = len(buffer)
        now = time.monotonic()
        elapsed = now - self._since
        end: End | None = None
        finished: list[tuple[UnitTask, Outcome]] = []
        cpu_total = 0.0
        while whole - at >= HEADER.size:
            kind, number, length, cpu_ns = HEADER.unpack_from(buffer, at)
            if kind == READY and not self.ready and length == 0 and not self._number:
                self.ready = True
                self._restart_clocks(now)  # what came before was not the task's doing
                elapsed = 0.0
                at += HEADER.size
                continue
            if not self.sent or not self.ready or number != self._number or kind not in (OK, ERROR, LIMIT):
                end = self._break_off(_no_result())
                break
            task = self.sent[0]
            most = task.max_output_bytes + _FRAMING_BYTES if kind == OK else MAX_ERROR_BYTES
            if length > min(most, self._unit.max_message_bytes):
                end = self._break_off(_too_long(task))
                break
            if whole - at - HEADER.size < length:
                break
            at += HEADER.size
            with memoryview(buffer) as view:
                body = bytes(view[at : at + length])
            at += length
            try:
                cpu = min(cpu_ns / 1e9, max(now - self._began - cpu_total, 0.0))
                cpu_total += cpu
                outcome = _outcome(kind, body, cpu)
            except Malformed:
                end = self._break_off(_no_result())
                break
            if outcome.kind == "ok" and sum(map(len, outcome.parts)) > task.max_output_bytes:
                end = self._break_off(_too_long(task))
                break
            finished.append((task, outcome))
            self.sent.popleft()
            self._number = (self._number + 1) & 0xFFFFFFFF
            done += 1
            if kind == LIMIT:
                end = "replaced"
                break
        del buffer[:at]
        if done:
            elapsed = max(elapsed, cpu_total)
            self._unit.learn(elapsed, done)
            self._restart_clocks(now)
            share = elapsed / done
            for task, outcome in finished:
                outcome.wall_s = share
                self._unit.deliver(task, outcome)
        return end

    def _break_off(self, verdict: ErrorInfo) -> End:
        self.verdict = verdict
        self._child.kill()
        return "died"

    # --- limits ---

    def _restart_clocks(self, now: float) -> None:
        self._since = now
        self._cpu_since = max(self._child.cpu_s(), 0.0)
        self._check_cpu_at = now + (self.sent[0].cpu_limit_s if self.sent else 0.0)

    def _patience_ms(self) -> float:
        """How long nothing need be looked after; a little more, so that the clock is past the limit then."""
        now = time.monotonic()
        if self.sent:
            until = min(self._since + self.sent[0].wall_limit_s, max(self._check_cpu_at, now))
        else:
            until = self._since + _READY_S
        seconds = max(until - now, 0.0) + 0.001
        return min(seconds, _STOP_CHECK_S) * 1000 if self._unit.asks_stop else seconds * 1000

    def _over_limit(self) -> bool:
        now = time.monotonic()
        if not self.sent:
            return not self.ready and now > self._since + _READY_S
        task = self.sent[0]
        if now >= self._check_cpu_at:
            used = self._child.cpu_s() - self._cpu_since
            if used >= task.cpu_limit_s:
                self.verdict = exceeded("cpu", f"the task used more than {task.cpu_limit_s:g} s of CPU time")
                return True
            # CPU time cannot pass faster than the clock: nothing to check before then.
            self._check_cpu_at = now + max(task.cpu_limit_s - max(used, 0.0), 0.005)
        if now >= self._since + task.wall_limit_s:
            self.verdict = exceeded("wall", f"the task took longer than {task.wall_limit_s:g} s")
            return True
        return False


def _outcome(kind: int, body: bytes, cpu_s: float) -> Outcome:
    if kind == OK:
        return Outcome("ok", unframe_parts(body), cpu_s)
    error = read_error(body, is_limit=kind == LIMIT)
    return Outcome("limit" if kind == LIMIT else "error", [], cpu_s, 0.0, error)


def _too_long(task: UnitTask) -> ErrorInfo:
    return exceeded("output", f"the task's output is larger than {task.max_output_bytes:,} bytes")


def _no_result() -> ErrorInfo:
    return exceeded("protocol", "the task wrote to its process's output what is no result")
