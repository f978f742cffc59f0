"""Records: what discovery remembers of accounts, workers and tasks.

A task's record is loaded whole, changed by the rules in `tasks`, and committed with its version to compare: a working
copy is never shared, so these types are not frozen.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import msgspec

from ec262.protocol.messages import EXECUTOR
from ec262.protocol.receipts import Kind
from ec262.protocol.states import HOLDS_ESCROW, ReplicaState, TaskState


class ReplicaRecord(msgspec.Struct, array_like=True):
    """One worker's attempt. `deadline_ms` by Redis' clock."""

    worker_id: str
    worker_account: str
    epoch: int
    deadline_ms: int
    state: ReplicaState = ReplicaState.OPEN
    kind: Kind | None = None
    commitment: bytes = b""
    cpu_s: float = 0.0
    lost: bool = False


class TaskRecord(msgspec.Struct, array_like=True):
    """One task. Its keys follow from `nonce` and wrapping key `wrapping`, and are gone with either.

    `worker_class` is what replicas have to share to be compared (`class_of`); `capabilities`, sorted, what each of its
    workers has to have.
    """

    task_id: str
    account_id: str
    job_id: str
    version: int
    state: TaskState
    created_ms: int
    nonce: bytes
    wrapping: int
    input_digest: bytes
    cpu_limit_s: float
    timeout_s: float
    price: int
    redundancy: int
    quorum: int
    max_replicas: int
    worker_class: str
    replicas: list[ReplicaRecord]
    kind: Kind | None = None
    commitment: bytes = b""
    forget_ms: int = 0
    capabilities: list[str] = []

    def lease_id(self, number: int) -> str:
        """The id of replica `number`: it names its task, so that no table has to."""
        return f"{self.task_id}.{number}"

    @property
    def holding(self) -> list[int]:
        """Numbers of the replicas whose price is in escrow."""
        return [number for number, replica in enumerate(self.replicas) if replica.state in HOLDS_ESCROW]


@dataclass(frozen=True, slots=True)
class WorkerRecord:
    """A worker as discovery sees it."""

    worker_id: str
    account_id: str
    address: str
    port: int
    slots: int
    epoch: int
    used: int
    capacity: int

    @property
    def free(self) -> int:
        """How many more leases it may hold."""
        return max(0, self.capacity - self.used)


@dataclass(frozen=True, slots=True)
class AccountRecord:
    """An account as discovery sees it, in credits."""

    account_id: str
    name: str
    balance: int
    escrow: int
    earned: int
    spent: int
    workers: int


@dataclass(frozen=True, slots=True)
class JobRecord:
    """A job as it was last reported, `report` as the message that said so. Times by Redis' clock."""

    job_id: str
    started_ms: int
    updated_ms: int
    report: bytes


def class_of(lane: str, python: str, capabilities: Iterable[str] = ()) -> str:
    """The class of a worker or requirement: results are comparable within one.

    Workers with an executor are a class of their own, whatever else they have: they cannot run Python programs.
    """
    executor = any(capability.startswith(EXECUTOR) for capability in capabilities)
    return f"{lane}/{python}/executor" if executor else f"{lane}/{python}"


def set_of(capabilities: Iterable[str]) -> list[str]:
    """Capabilities in the one order in which they are stored and compared, each once."""
    return sorted(set(capabilities))


def split_lease(lease_id: str) -> tuple[str, int]:
    """Task id and replica number of a lease id of valid form."""
    task_id, _, number = lease_id.partition(".")
    return task_id, int(number)
