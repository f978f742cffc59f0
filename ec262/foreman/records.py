"""Records: what a journal says, each a frozen type; and what they say together of one task. No I/O."""

from __future__ import annotations

from dataclasses import dataclass, field

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
    """A worker is known."""

    worker_id: str
    address: str
    port: int
    slots: int


class Leased(Record, frozen=True, array_like=True, tag="leased"):
    """A task was leased, or further replicas of one."""

    phase: str
    number: int
    digest: bytes
    task_id: str
    input_key: bytes
    attempts: int
    losses: int
    price: int
    leases: list[tuple[str, str]]


class Pushed(Record, frozen=True, array_like=True, tag="pushed"):
    """A worker has taken leases."""

    lease_ids: list[str]


class Came(Record, frozen=True, array_like=True, tag="came"):
    """Results came, with the receipts that they are settled with."""

    worker_id: str
    receipts: bytes
    results: list[tuple[str, list[bytes]]]


class Decided(Record, frozen=True, array_like=True, tag="decided"):
    """Discovery has accepted a result; `verdict` is its message, as it travels."""

    verdict: bytes


class Paid(Record, frozen=True, array_like=True, tag="paid"):
    """Replicas were paid, (lease id, worker id) each."""

    price: int
    replicas: list[tuple[str, str]]


class Sums(Record, frozen=True, array_like=True, tag="sums"):
    """What was paid before the file was written anew; `paid`: of tasks that are not over, not to be counted again."""

    earned: dict[str, int]
    paid: list[str]


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
    Job | Keys | Met | Leased | Pushed | Came | Decided | Paid | Sums | Over | Dropped | Failed
)


@dataclass(slots=True)
class Remembered:
    """A task that was not over when the foreman was killed.

    Attributes:
        task_id: empty where it waits to be leased anew.
        leases: lease ids and their workers; `pushed` are those the worker said that it took.
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
    price: int = 0
    leases: dict[str, str] = field(default_factory=dict)
    pushed: set[str] = field(default_factory=set)
    results: dict[str, list[bytes]] = field(default_factory=dict)
    verdict: m.TaskVerdict | None = None
    paid: set[str] = field(default_factory=set)
    failed: str = ""
