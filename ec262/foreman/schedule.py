"""Schedule: what the foreman should lease, push and settle next. Events in, answers out; no I/O, `now` is given.

A task waits, is out (leased to one or more workers), and is done or failed. Tasks come from an iterable that is read as
workers can take more, so that neither their number nor their bytes need to fit into memory. How much is out follows
what workers get done: each worker's window is what it finished in the last half second or so, at least two tasks a
slot, so that fast tasks keep long queues filled and slow ones are not hoarded by one worker.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from statistics import median
from typing import Literal

from ec262.foreman.attempts import LEAST_PER_SLOT, LOOK_AHEAD_S, Peer, Replica, Task
from ec262.foreman.inflight import InFlight

__all__ = ["Peer", "Replica", "Schedule", "Task"]

CAREFUL_AHEAD_S = 0.05
"""The same where what a worker has at hand is lost with it."""
LARGEST_REQUEST = 256
DURATIONS = 255
"""So many of the last finished tasks say how long one takes."""
STRAGGLER_S = 1.0
STRAGGLER_TIMES = 3.0
"""A task out for longer than so many times the median is a straggler."""


class Schedule:
    """The state of one phase's tasks and of the workers they are out to.

    Args:
        redundancy: replicas a task is leased to at first.
        quorum: how many results are needed before discovery is asked.
        runs_once: a worker that is lost takes with it what it has at hand: it gets little.

    Attributes:
        total: tasks of the phase; None until the iterable has ended.
        running: tasks that are out.
        bytes: what is in memory of them.
        left: workers that may have at hand what nobody needs any more.
    """

    def __init__(
        self,
        *,
        redundancy: int,
        quorum: int,
        inflight: InFlight | None = None,
        runs_once: bool = False,
    ) -> None:
        self._redundancy = redundancy
        self._quorum = quorum
        self._least, self._look_ahead_s = (1, CAREFUL_AHEAD_S) if runs_once else (LEAST_PER_SLOT, LOOK_AHEAD_S)
        self._source: Iterator[Task] = iter(())
        self._ended = True
        self._seen = 0
        self._waiting: deque[Task] = deque()
        self._by_lease: dict[str, Task] = {}
        self._by_id: dict[str, Task] = {}
        self._due: dict[str, Task] = {}
        self._any_late = False
        self._deadlines: dict[str, float] = {}  # in order
        self._durations: deque[float] = deque(maxlen=DURATIONS)
        self.left: set[str] = set()
        self.bytes = inflight if inflight is not None else InFlight(2**63)
        self.peers: dict[str, Peer] = {}
        self.slots_alive = 0
        self.done = 0
        self.failed = 0
        self.running = 0
        self.retried = 0

    # --- leasing ---

    def begin(self, tasks: Iterable[Task]) -> None:
        """Starts a phase with these tasks, of which none is looked at yet."""
        self._source = iter(tasks)
        self._ended = False
        self._seen = 0
        self._durations.clear()
        self.bytes.new_phase()
        self.done = self.failed = 0

    @property
    def total(self) -> int | None:
        """Tasks of the phase; None while more may come."""
        return self._seen if self._ended else None

    @property
    def finished(self) -> bool:
        """Whether the phase is over: every task is done or failed."""
        return self._ended and self.done + self.failed == self._seen

    @property
    def waiting(self) -> int:
        """Tasks that were taken from the iterable and are not leased."""
        return len(self._waiting)

    @property
    def out(self) -> int:
        """Replicas that workers have at hand."""
        return sum(peer.out for peer in self.peers.values())

    def room(self) -> int:
        """How many tasks to lease next; 0 while workers have enough."""
        known = sum(peer.window(self._least, self._look_ahead_s) for peer in self.peers.values())
        strangers = max(0, self.slots_alive - sum(peer.slots for peer in self.peers.values()))
        out = self.out
        room = known + strangers * self._least - out
        at_most = len(self._waiting) if self._ended else LARGEST_REQUEST
        count = min(at_most, LARGEST_REQUEST, max(0, room) // self._redundancy or int(out == 0))
        # A window that is only just open waits for more room: small requests cost as much as large ones.
        if count < min(at_most, known // (8 * self._redundancy), LARGEST_REQUEST // 4):
            return 0
        return count

    def peek(self) -> Task | None:
        """The next task to lease, which stays next; None: there is none. Reads the iterable where it has to."""
        if not self._waiting and not self._ended:
            try:
                self._waiting.append(next(self._source))
                self._seen += 1
            except StopIteration:
                self._ended = True
        return self._waiting[0] if self._waiting else None

    def pull(self) -> Task:
        """Takes the task that `peek` showed."""
        return self._waiting.popleft()

    def take_to_lease(self) -> list[Task]:
        """The tasks to lease next, in order; empty while workers have enough."""
        tasks: list[Task] = []
        for _ in range(self.room()):
            if self.peek() is None:
                break
            tasks.append(self.pull())
        return tasks

    def put_back(self, tasks: list[Task]) -> None:
        """Tasks that found no worker wait again, first in line."""
        self._waiting.extendleft(reversed(tasks))

    def leased(
        self,
        task: Task,
        task_id: str,
        input_key: bytes,
        leases: list[tuple[str, str]],
        now: float,
        timeout_s: float = float("inf"),
    ) -> list[Replica]:
        """The task is out to workers, ``(lease id, worker id)`` each; also for further replicas of one that is out."""
        if task.task_id != task_id:
            task.task_id, task.input_key = task_id, input_key
            self._by_id[task_id] = task
        if task.state != "out":
            task.state = "out"
            self.running += 1
        made = []
        expected = self.bytes.expect(task.size)
        for lease_id, worker_id in leases:
            replica = task.replicas[lease_id] = Replica(lease_id, worker_id, now, expected=expected)
            self._by_lease[lease_id] = task
            self.peers[worker_id].out += 1
            self.bytes.expected += expected
            self._deadlines[lease_id] = now + timeout_s
            made.append(replica)
        task.stuck_s = None
        return made

    def expect_again(self, replica: Replica, now: float, timeout_s: float) -> None:
        """A replica that was given up before it was sent is sent after all."""
        replica.state, replica.leased_s = "out", now
        self.peers[replica.worker_id].out += 1
        self.bytes.expected += replica.expected
        self._deadlines[replica.lease_id] = now + timeout_s

    # --- what workers say ---

    def worker_of(self, lease_id: str) -> str:
        """Whose lease it is; empty: it is not known."""
        task = self._by_lease.get(lease_id)
        return "" if task is None else task.replicas[lease_id].worker_id

    def has_come(self, lease_id: str) -> bool:
        """Whether a result of it came."""
        task = self._by_lease.get(lease_id)
        return task is not None and task.replicas[lease_id].state == "came"

    def reported(self, lease_id: str, tokens: list[bytes], now: float) -> Task | None:
        """A result came. None: of a lease that is unknown, or came before."""
        task = self._by_lease.get(lease_id)
        if task is None:
            return None
        replica = task.replicas[lease_id]
        if replica.state == "came":
            return None
        if replica.state == "out":
            self._not_out(replica)
            self.peers[replica.worker_id].count(now)
        replica.state = "came"
        if task.state == "out":
            size = sum(map(len, tokens))
            self._durations.append(now - replica.leased_s)
            self.bytes.came(task.size, size)
            replica.tokens = tokens
            self._consider(task)
        elif not task.any_out:
            self._drop(task)
        return task

    def lost(
        self, worker_id: str, lease_ids: Iterable[str] | None = None, *, final: bool = False
    ) -> list[tuple[Task, Replica]]:
        """A worker will not deliver these leases in time (None: any); `final`: nor later. Returns those it had."""
        gone = []
        listed = list(self._by_lease) if lease_ids is None else list(lease_ids)
        for lease_id in listed:
            task = self._by_lease.get(lease_id)
            replica = None if task is None else task.replicas.get(lease_id)
            if task is None or replica is None or replica.worker_id != worker_id:
                continue
            if replica.state == "late" and final:
                replica.state = "gone"
            if replica.state != "out":
                continue
            self._not_out(replica)
            replica.state = "gone" if final else "late"
            self._any_late = self._any_late or not final
            gone.append((task, replica))
            if task.state == "out":
                self.retried += 1
                self._mark_due(task)
            elif not task.any_out:
                self._drop(task)
        return gone

    def rejected(self, worker_id: str, lease_ids: Iterable[str]) -> list[tuple[Task, Replica]]:
        """Results came, but their worker's receipts do not count, and so nothing comes of them. Returns those that were
        waited for."""
        gone = []
        for lease_id in lease_ids:
            task = self._by_lease.get(lease_id)
            if task is None or task.state != "out":
                continue
            replica = task.replicas[lease_id]
            if replica.worker_id != worker_id or replica.state != "came":
                continue
            self._let_go(replica)
            replica.state = "gone"
            self.retried += 1
            self._mark_due(task)
            gone.append((task, replica))
        return gone

    def leases_out(self, worker_id: str, *, pushed: bool = True) -> list[str]:
        """Leases the worker has at hand."""
        return [
            lease_id
            for lease_id, task in self._by_lease.items()
            if (replica := task.replicas[lease_id]).worker_id == worker_id and replica.out and replica.pushed >= pushed
        ]

    def all_down(self, now: float) -> bool:
        """Whether no known worker answers, and there are no others."""
        peers = self.peers.values()
        known = sum(peer.slots for peer in peers)
        return bool(peers) and self.slots_alive <= known and all(now < peer.down_until_s for peer in peers)

    def owes(self, worker_id: str) -> list[str]:
        """Leases that were given up and whose results would still be of use."""
        if not self._any_late:
            return []
        return [
            lease_id
            for lease_id, task in self._by_lease.items()
            if task.state == "out"
            and (replica := task.replicas[lease_id]).worker_id == worker_id
            and replica.state == "late"
        ]

    # --- time ---

    def overdue(self, now: float) -> list[Replica]:
        """Replicas whose time is up and that are expected still; each is told once."""
        found = []
        while self._deadlines:
            lease_id, deadline_s = next(iter(self._deadlines.items()))
            if deadline_s > now:
                break
            del self._deadlines[lease_id]
            task = self._by_lease[lease_id]
            if task.state == "out":
                found.append(task.replicas[lease_id])
        return found

    def straggler_s(self) -> float | None:
        """How long a task may be out before it is one; None: no task has finished that would tell."""
        return max(STRAGGLER_S, STRAGGLER_TIMES * median(self._durations)) if self._durations else None

    def stragglers(self, now: float, most_backups: int) -> list[tuple[Task, list[Replica]]]:
        """Tasks that hold up the end of the phase, while others have nothing to do: each with the replicas that should
        no longer be counted on, so that one further is wanted."""
        limit = self.straggler_s()
        if limit is None or self._waiting or not self._ended:
            return []
        idle = {peer.worker_id: peer.slots - peer.out for peer in self.peers.values() if now >= peer.down_until_s}
        strangers = max(0, self.slots_alive - sum(peer.slots for peer in self.peers.values()))
        found = []
        for task in self._by_id.values():
            if task.state != "out" or task.task_id in self._due:
                continue
            if task.backups >= most_backups or len(task.replicas) >= task.most_replicas:
                continue
            replicas = task.replicas.values()
            running = [replica for replica in replicas if replica.out]
            youngest = max((replica.leased_s for replica in running), default=now)
            if now - max(youngest, task.asked_s) <= limit:
                continue
            had = {replica.worker_id for replica in replicas}
            free = next((worker for worker, slots in idle.items() if slots > 0 and worker not in had), None)
            if free is not None:
                idle[free] -= 1
            elif strangers > 0:
                strangers -= 1
            else:
                continue
            counted = [replica for replica in running if not replica.backed]
            keep = max(0, self._quorum - task.answered - 1)
            found.append((task, counted[: len(counted) - keep]))
        return found

    def backed(self, task: Task, replicas: list[Replica], now: float) -> None:
        """A further replica of a straggler is asked for."""
        for replica in replicas:
            replica.backed = True
        task.asked_s = now
        self._mark_due(task)

    # --- settling ---

    def take_due(self, limit: int) -> list[Task]:
        """Tasks that discovery should decide now."""
        taken: list[Task] = []
        while self._due and len(taken) < limit:
            task = self._due.pop(next(iter(self._due)))
            if task.state == "out":
                taken.append(task)
        return taken

    @property
    def due(self) -> bool:
        """Whether there are tasks to decide."""
        return bool(self._due)

    def ask_again(self, task: Task) -> None:
        """Discovery could not decide the task."""
        if task.state == "out":
            self._mark_due(task)

    def done_with(self, task: Task) -> None:
        """The task has a result; its leases stay known while replicas may come that nobody has overtaken."""
        self._end(task, "done")
        self.done += 1

    def fail(self, task: Task) -> None:
        """The task will have no result."""
        self._end(task, "failed")
        self.failed += 1

    def start_over(self, task: Task) -> None:
        """The task found no agreed result: it is leased anew, under a new id."""
        if task.state == "out":
            self.running -= 1
        self._drop(task)
        task.state = "waiting"
        task.attempts += 1
        self.retried += 1
        self._waiting.append(task)

    def task(self, task_id: str) -> Task | None:
        """The task of that id."""
        return self._by_id.get(task_id)

    def awaited(self, now: float) -> bool:
        """Whether results may come that count for somebody's pay: of workers that answer and nobody has overtaken."""
        return any(
            replica.out and not replica.backed and self.peers[replica.worker_id].down_until_s <= now
            for task in self._by_id.values()
            for replica in task.replicas.values()
        )

    # --- inside ---

    def _consider(self, task: Task) -> None:
        if task.answered >= self._quorum or not task.any_out:
            self._mark_due(task)

    def _mark_due(self, task: Task) -> None:
        self._due[task.task_id] = task

    def _end(self, task: Task, state: Literal["done", "failed"]) -> None:
        if task.state == "out":
            self.running -= 1
        task.state = state
        for replica in task.replicas.values():
            self._let_go(replica)
        if state == "failed" or not any(replica.out and not replica.backed for replica in task.replicas.values()):
            self._drop(task)

    def _drop(self, task: Task) -> None:
        for replica in task.replicas.values():
            if replica.state in ("out", "late"):
                self.left.add(replica.worker_id)
            if replica.state == "out":
                self._not_out(replica)
                replica.state = "gone"
            self._let_go(replica)
            self._by_lease.pop(replica.lease_id, None)
        self._by_id.pop(task.task_id, None)
        self._due.pop(task.task_id, None)
        task.replicas = {}
        task.task_id = ""

    def _not_out(self, replica: Replica) -> None:
        self.peers[replica.worker_id].out -= 1
        self.bytes.expected -= replica.expected
        self._deadlines.pop(replica.lease_id, None)

    def _let_go(self, replica: Replica) -> None:
        if replica.tokens is not None:
            self.bytes.results -= sum(map(len, replica.tokens))
            replica.tokens = None
