"""Attempts: a task, the workers' attempts at it, and the workers, as the job sees them. No I/O, `now` is given."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from ec262.protocol.credits import AT_HAND

LOOK_AHEAD_S = 0.5
"""How much work, by its measured speed, a worker should have at hand."""
LEAST_PER_SLOT = AT_HAND
"""One task runs, one waits."""
RATE_WINDOW_S = 0.03
DOWN_S = 4.0
"""So long a worker that does not answer is given nothing; doubles with each time up to `DOWN_MOST_S`."""
DOWN_MOST_S = 60.0


@dataclass(slots=True, eq=False)
class Replica:
    """One worker's attempt at a task.

    Attributes:
        leased_s: when it was leased, in the schedule's time.
        state: ``out``: expected; ``late``: given up, another one was asked for, but it may still come; ``gone``:
            nothing comes of it; ``came``: its result is there or was.
        tokens: its sealed result while that is of use.
        pushed: its worker has said that it took it.
        backed: another worker was asked for as it takes long; it is expected all the same.
        expected: bytes its result may have, by the size of its input.
    """

    lease_id: str
    worker_id: str
    leased_s: float = 0.0
    state: Literal["out", "late", "gone", "came"] = "out"
    tokens: list[bytes] | None = None
    pushed: bool = False
    backed: bool = False
    expected: int = 0

    @property
    def out(self) -> bool:
        """Whether its result is expected."""
        return self.state == "out"


@dataclass(slots=True, eq=False)
class Task:
    """One map or reduce task of the job.

    Attributes:
        number: among the tasks of its phase.
        load: gives its input, header and data, the same each time it is called.
        label: the task for a person, such as ``map task 3 (book.txt, from byte 4194304)``, or what makes that text.
        digest: of the input, what the ticket binds; known once it was first loaded.
        size: bytes of the input, likewise.
        parts: the input from when it is about to be leased until it is sealed.
        sealed: its tokens from then until all workers have them; `unpushed` says how many have not. `sealed_for`: the
            task's id, and so the key, that they were sealed for.
        check: called with an accepted result's parts; raises `Malformed` if they are not what the task can have.
        shunned: workers that gave such a result of it, or other bytes than they committed to: it goes to others, if
            there are any.
        attempts: how often it was leased anew, under another id.
        losses: how often a worker that may have started it did not deliver.
        backups: how often a further worker was asked for because it took long; `asked_s`: when last.
        stuck_s: since when it has waited for a worker that could take a further replica.
        reserve: credits put aside for replicas that may be leased, where the job has a limit.
        most_replicas: beyond so many discovery leases no further ones, and gives the task up when asked to.
        again: the accepted task that this one computes anew: discovery no longer believes it, or its bytes were junk.
        redone: it computes anew what the job had a result of; its place in a journal is another than the first's.
        commitment: of the result that was accepted.
        refusal: who refused it last, and why, for a person.
    """

    number: int
    load: Callable[[], list[bytes]]
    phase: Literal["map", "reduce"] = "map"
    label: str | Callable[[], str] = ""
    check: Callable[[list[bytes]], None] | None = None
    digest: bytes = b""
    size: int = 0
    parts: list[bytes] | None = None
    sealed: list[bytes] | None = None
    sealed_bytes: int = 0
    sealed_for: str = ""
    unpushed: int = 0
    task_id: str = ""
    input_key: bytes = b""
    replicas: dict[str, Replica] = field(default_factory=dict)
    state: Literal["waiting", "out", "done", "failed"] = "waiting"
    shunned: set[str] = field(default_factory=set)
    attempts: int = 0
    losses: int = 0
    backups: int = 0
    asked_s: float = float("-inf")
    stuck_s: float | None = None
    reserve: int = 0
    most_replicas: int = 64
    again: str = ""
    redone: bool = False
    commitment: bytes = b""
    refusal: str = ""

    @property
    def any_out(self) -> bool:
        """Whether a result of it is expected."""
        return any(replica.state == "out" for replica in self.replicas.values())

    @property
    def answered(self) -> int:
        """How many workers have answered."""
        return sum(1 for replica in self.replicas.values() if replica.state == "came")


@dataclass(slots=True)
class Answers:
    """How workers agreed in the whole job.

    Attributes:
        tasks: tasks with an accepted result, and `given`: answers that were paid or outvoted, of these tasks.
        dissents: answers that others outvoted.
        confidence: the lowest that any accepted result reached; None: the policy does not go by it.
        clarity: below 0.5 the job looks nondeterministic to discovery.
    """

    tasks: int = 0
    given: int = 0
    dissents: int = 0
    confidence: float | None = None
    clarity: float = 1.0

    def accepted(self, keys: int, dissents: int, confidence: float | None) -> None:
        """A result was accepted: so many were paid for it, so many outvoted."""
        self.tasks += 1
        self.given += keys + dissents
        self.dissents += dissents
        if confidence is not None:
            self.confidence = confidence if self.confidence is None else min(self.confidence, confidence)


@dataclass(frozen=True, slots=True)
class DisputedResult:
    """A result that was paid for and is not what its worker had committed itself to.

    Attributes:
        label: the task for a person.
        verdict: ``upheld``, ``refused``, ``unproven``, or ``untold``: discovery could not be shown it.
        refund: credits that came back; negative: a fee that the dispute cost.
    """

    label: str
    task_id: str
    worker_id: str
    verdict: str
    reason: str
    refund: int = 0


@dataclass(slots=True, eq=False)
class Peer:
    """A worker as this job sees it. `down_until_s`: it does not answer and is given nothing before."""

    worker_id: str
    slots: int
    out: int = 0
    finished: int = 0
    rate: float = 0.0
    mark_s: float = 0.0
    mark_finished: int = 0
    down_until_s: float = 0.0
    down_s: float = 0.0

    def window(self, least: int = LEAST_PER_SLOT, look_ahead_s: float = LOOK_AHEAD_S) -> int:
        """How many tasks it should have at hand."""
        return max(least * self.slots, int(self.rate * look_ahead_s))

    def silent(self, now: float) -> None:
        """It does not answer."""
        self.down_s = min(self.down_s * 2, DOWN_MOST_S) if self.down_s else DOWN_S
        self.down_until_s = now + self.down_s

    def answers(self) -> None:
        """It does."""
        self.down_s = self.down_until_s = 0.0

    def count(self, now: float) -> None:
        """It finished a task."""
        self.finished += 1
        if not self.mark_s:
            self.mark_s = now
            return
        elapsed = now - self.mark_s
        if elapsed >= RATE_WINDOW_S:
            fresh = (self.finished - self.mark_finished) / elapsed
            self.rate = fresh if fresh > self.rate else (self.rate + fresh) / 2
            self.mark_s, self.mark_finished = now, self.finished
