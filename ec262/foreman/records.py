"""Records: what a journal says, each a frozen type; and what they say together of one task. No I/O."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

import msgspec

from ec262.protocol import messages as m


class Record(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """What all have in common."""


class Job(Record, frozen=True, array_like=True, tag="job"):
    """The job has its id."""

    job_id: str


class Keys(Record, frozen=True, array_like=True, tag="keys"):
    """The job has its keys."""

    poll_key: bytes
    program_key: bytes


class Met(Record, frozen=True, array_like=True, tag="met"):
    """A worker is known. `relay` and `relay_pass`: as in `ec262.protocol.messages.AssignedWorker`."""

    worker_id: str
    address: str
    port: int
    slots: int
    relay: Literal["never", "may", "must"] = "never"
    relay_pass: bytes = b""


class Asked(Record, frozen=True, array_like=True, tag="asked"):
    """Leases are about to be asked for. `places`: phase and number of each task; `asked_s`: since the epoch; `request`
    is discovery's message, as it travels."""

    key: str
    asked_s: float
    places: list[tuple[str, int]]
    request: bytes

    def wanted(self) -> m.LeaseTasks:
        """The request, word for word."""
        return m.decode(m.LeaseTasks, self.request)


class Answered(Record, frozen=True, array_like=True, tag="answered"):
    """All that was leased by a request is noted."""

    key: str


class Sent(Record, frozen=True, array_like=True, tag="sent"):
    """Nothing of a request is to be sent to anybody any more."""

    key: str


class Leased(Record, frozen=True, array_like=True, tag="leased"):
    """A task was leased, or further replicas of one: lease id, worker id and price each."""

    phase: str
    number: int
    digest: bytes
    task_id: str
    input_key: bytes
    attempts: int
    losses: int
    leases: list[tuple[str, str, int]]


class Pushed(Record, frozen=True, array_like=True, tag="pushed"):
    """A worker has taken leases."""

    lease_ids: list[str]


class Came(Record, frozen=True, array_like=True, tag="came"):
    """Results came, with the receipts that they are settled with. `arrived`: as discovery is told."""

    worker_id: str
    receipts: bytes
    results: list[tuple[str, list[bytes]]]
    arrived: dict[str, bytes] = {}


class Decided(Record, frozen=True, array_like=True, tag="decided"):
    """Discovery has accepted a result; `verdict` is its message, as it travels."""

    verdict: bytes


class Paid(Record, frozen=True, array_like=True, tag="paid"):
    """Replicas were paid: lease id, worker id and credits each. Negative: pay that came back after a dispute."""

    replicas: list[tuple[str, str, int]]


class Sums(Record, frozen=True, array_like=True, tag="sums"):
    """What was paid before the file was written anew; `paid`: of tasks that are not over, not to be counted again."""

    earned: dict[str, int]
    paid: list[str]


class Kept(Record, frozen=True, array_like=True, tag="kept"):
    """A task has its result, in which discovery believes: what it is known by until the job closes."""

    phase: str
    number: int
    digest: bytes
    task_id: str
    commitment: bytes


class Closed(Record, frozen=True, array_like=True, tag="closed"):
    """Discovery stands by all results, and has forgotten what they rested on."""


class Over(Record, frozen=True, array_like=True, tag="over"):
    """Nothing of the task is needed any more."""

    task_id: str


class Dropped(Record, frozen=True, array_like=True, tag="dropped"):
    """The task starts over under another id."""

    phase: str
    number: int
    digest: bytes
    task_id: str
    attempts: int
    losses: int


class Failed(Record, frozen=True, array_like=True, tag="failed"):
    """The task has failed for good."""

    phase: str
    number: int
    digest: bytes
    task_id: str
    reason: str


encoder = msgspec.msgpack.Encoder()
decoder = msgspec.msgpack.Decoder(
    Job
    | Keys
    | Met
    | Asked
    | Answered
    | Sent
    | Leased
    | Pushed
    | Came
    | Decided
    | Paid
    | Sums
    | Kept
    | Closed
    | Over
    | Dropped
    | Failed
)


@dataclass(slots=True)
class Remembered:
    """A task that was not over when the foreman was killed.

    Attributes:
        task_id: empty where it waits to be leased anew.
        leases: lease ids and their workers; `pushed` are those the worker said that it took. `prices`: what they cost.
        results: sealed results by lease id.
        verdict: discovery's, where it had decided.
        paid: lease ids.
        failed: why it may not be tried again; empty where it may.
    """

    phase: str
    number: int
    digest: bytes
    task_id: str = ""
    input_key: bytes = b""
    attempts: int = 0
    losses: int = 0
    leases: dict[str, str] = field(default_factory=dict)
    prices: dict[str, int] = field(default_factory=dict)
    pushed: set[str] = field(default_factory=set)
    results: dict[str, list[bytes]] = field(default_factory=dict)
    verdict: m.TaskVerdict | None = None
    paid: set[str] = field(default_factory=set)
    failed: str = ""


def task_of(lease_id: str) -> str:
    """The id of the task that a lease is of."""
    return lease_id.partition(".")[0]


def last_of(lease_ids: Iterable[str]) -> str:
    """Of leases of one task the one that came last."""
    return max(lease_ids, key=lambda lease_id: int(lease_id.partition(".")[2]))
