"""Schedule: what the foreman should lease, push and settle next. Events in, answers out; no I/O, `now` is given.

A task waits, is out (leased to one or more workers), and is done. How much is out follows what workers get done: each
worker's window is what it finished in the last half second or so, at least two tasks a slot, so that fast
tasks keep long queues filled and slow ones are not hoarded by one worker.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

LOOK_AHEAD_S = 0.5
"""How much work, by its measured speed, a worker should have at hand."""
LEAST_PER_SLOT = 2
"""One task runs, one waits."""
LARGEST_REQUEST = 256
RATE_WINDOW_S = 0.03


@dataclass(slots=True, eq=False)
class Replica:
    """One worker's attempt at a task. `tokens`: its sealed result once it came."""

    lease_id: str
    worker_id: str
    tokens: list[str] | None = None
    pushed: bool = False
    lost: bool = False

    @property
    def out(self) -> bool:
        """Whether something may still come of it."""
        return self.tokens is None and not self.lost


@dataclass(slots=True, eq=False)
class Task:
    """One map or reduce task of the job.

    Attributes:
        parts: its input; dropped when done.
        digest: of `parts`, what the ticket binds.
        result: the agreed parts, once done.
        stuck_s: since when it has waited for a worker that could take a further replica.
    """

    number: int
    parts: list[bytes]
    digest: bytes
    phase: Literal["map", "reduce"] = "map"
    task_id: str = ""
    input_key: bytes = b""
    replicas: dict[str, Replica] = field(default_factory=dict)
    state: Literal["waiting", "out", "done"] = "waiting"
    attempts: int = 0
    stuck_s: float | None = None
    result: list[bytes] | None = None


@dataclass(slots=True, eq=False)
class Peer:
    """A worker as this job sees it."""

    worker_id: str
    slots: int
    out: int = 0
    finished: int = 0
    rate: float = 0.0
    mark_s: float = 0.0
    mark_finished: int = 0

    def window(self) -> int:
        """How many tasks it should have at hand."""
        return max(LEAST_PER_SLOT * self.slots, int(self.rate * LOOK_AHEAD_S))


class Schedule:
    """The state of one phase's tasks and of the workers they are out to.

    Args:
        redundancy: replicas a task is leased to at first.
        quorum: how many results are needed before discovery is asked.
    """

    def __init__(self, *, redundancy: int, quorum: int) -> None:
        self._redundancy = redundancy
        self._quorum = quorum
        self._waiting: deque[Task] = deque()
        self._by_lease: dict[str, Task] = {}
        self._by_id: dict[str, Task] = {}
        self._due: dict[str, Task] = {}
        self.peers: dict[str, Peer] = {}
        self.slots_alive = 0
        self.total = 0
        self.done = 0
        self.retried = 0

    # --- leasing ---

    def add(self, tasks: Iterable[Task]) -> None:
        """Starts a phase with these tasks."""
        self._waiting.extend(tasks)
        self.total = len(self._waiting)
        self.done = 0

    @property
    def finished(self) -> bool:
        """Whether the phase is done."""
        return self.done == self.total

    @property
    def waiting(self) -> int:
        """Tasks not leased yet."""
        return len(self._waiting)

    @property
    def out(self) -> int:
        """Replicas that workers have at hand."""
        return sum(peer.out for peer in self.peers.values())

    def take_to_lease(self) -> list[Task]:
        """The tasks to lease next, in order; empty while workers have enough."""
        known = sum(peer.window() for peer in self.peers.values())
        strangers = max(0, self.slots_alive - sum(peer.slots for peer in self.peers.values()))
        room = known + strangers * LEAST_PER_SLOT - self.out
        count = min(len(self._waiting), LARGEST_REQUEST, max(0, room) // self._redundancy or int(self.out == 0))
        # A window that is only just open waits for more room: small requests cost as much as large ones.
        if count < min(len(self._waiting), known // (8 * self._redundancy), LARGEST_REQUEST // 4):
            return []
        return [self._waiting.popleft() for _ in range(count)]

    def put_back(self, tasks: list[Task]) -> None:
        """Tasks that found no worker wait again, first in line."""
        self._waiting.extendleft(reversed(tasks))

    def leased(self, task: Task, task_id: str, input_key: bytes, leases: list[tuple[str, str]]) -> list[Replica]:
        """The task is out to workers, ``(lease id, worker id)`` each; also for further replicas of one that is out."""
        if task.task_id != task_id:
            task.task_id, task.input_key = task_id, input_key
            self._by_id[task_id] = task
        task.state = "out"
        made = []
        for lease_id, worker_id in leases:
            replica = task.replicas[lease_id] = Replica(lease_id, worker_id)
            self._by_lease[lease_id] = task
            self.peers[worker_id].out += 1
            made.append(replica)
        task.stuck_s = None
        return made

    # --- what workers say ---

    def reported(self, lease_id: str, tokens: list[str], now: float) -> Task | None:
        """A result came. None: of a lease that is unknown, or came before."""
        task = self._by_lease.get(lease_id)
        if task is None:
            return None
        replica = task.replicas[lease_id]
        if replica.tokens is not None:
            return None
        if replica.out:
            peer = self.peers[replica.worker_id]
            peer.out -= 1
            self._count(peer, now)
        replica.tokens = tokens
        if task.state == "out":
            self._consider(task)
        elif not self._any_out(task):
            self._drop(task)
        return task

    def lost(self, worker_id: str, lease_ids: Iterable[str] | None = None) -> list[str]:
        """A worker will not deliver these leases (None: any). Returns those it had."""
        gone = []
        listed = list(self._by_lease) if lease_ids is None else list(lease_ids)
        for lease_id in listed:
            task = self._by_lease.get(lease_id)
            replica = None if task is None else task.replicas.get(lease_id)
            if task is None or replica is None or replica.worker_id != worker_id or not replica.out:
                continue
            replica.lost = True
            self.peers[worker_id].out -= 1
            gone.append(lease_id)
            if task.state == "out":
                self.retried += 1
                self._mark_due(task)
        return gone

    def leases_out(self, worker_id: str, *, pushed: bool = True) -> list[str]:
        """Leases the worker has at hand."""
        return [
            lease_id
            for lease_id, task in self._by_lease.items()
            if (replica := task.replicas[lease_id]).worker_id == worker_id and replica.out and replica.pushed >= pushed
        ]

    # --- settling ---

    def take_due(self, limit: int) -> list[Task]:
        """Tasks that discovery should decide now."""
        taken: list[Task] = []
        while self._due and len(taken) < limit:
            task = self._due.pop(next(iter(self._due)))
            if task.state == "out":
                taken.append(task)
        return taken

    def ask_again(self, task: Task) -> None:
        """Discovery could not decide the task and nothing is out that would cause it to be asked again."""
        if task.state == "out":
            self._mark_due(task)

    def done_with(self, task: Task, result: list[bytes]) -> None:
        """The task has a result; its leases stay known until `forget`, for replicas that come late."""
        task.state = "done"
        task.result = result
        task.parts = []
        self.done += 1

    def start_over(self, task: Task) -> None:
        """The task found no agreed result: it is leased anew, under a new id."""
        self._drop(task)
        task.state = "waiting"
        task.attempts += 1
        self.retried += 1
        self._waiting.append(task)

    def forget(self, task: Task) -> None:
        """Nothing more is expected of the task's replicas, or nobody waits for it."""
        self._drop(task)

    def task(self, task_id: str) -> Task | None:
        """The task of that id."""
        return self._by_id.get(task_id)

    # --- inside ---

    def _consider(self, task: Task) -> None:
        came = sum(1 for replica in task.replicas.values() if replica.tokens is not None)
        if came >= self._quorum or not self._any_out(task):
            self._mark_due(task)

    def _mark_due(self, task: Task) -> None:
        self._due[task.task_id] = task

    @staticmethod
    def _any_out(task: Task) -> bool:
        return any(replica.out for replica in task.replicas.values())

    def _drop(self, task: Task) -> None:
        for replica in task.replicas.values():
            if replica.out:
                self.peers[replica.worker_id].out -= 1
            self._by_lease.pop(replica.lease_id, None)
        self._by_id.pop(task.task_id, None)
        self._due.pop(task.task_id, None)
        task.replicas = {}
        task.task_id = ""

    @staticmethod
    def _count(peer: Peer, now: float) -> None:
        peer.finished += 1
        if not peer.mark_s:
            peer.mark_s = now
            return
        elapsed = now - peer.mark_s
        if elapsed >= RATE_WINDOW_S:
            fresh = (peer.finished - peer.mark_finished) / elapsed
            peer.rate = fresh if fresh > peer.rate else (peer.rate + fresh) / 2
            peer.mark_s, peer.mark_finished = now, peer.finished
