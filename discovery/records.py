"""Records: what discovery remembers of accounts, workers and tasks.

A task's record is loaded whole, changed by the rules in `tasks`, and committed with its version to compare: a working
copy is never shared, so these types are not frozen. None refers to itself, so the garbage collector need not look
through them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import msgspec

from ec262.protocol.messages import EXECUTOR, Requirements
from ec262.protocol.receipts import Kind
from ec262.protocol.states import HOLDS_ESCROW, ReplicaState, TaskState

Reached = Literal["never", "may", "must"]
"""Whether a worker serves through the relay; ``must``: nobody can connect to it."""

PLATFORM = "platform:"
"""How the need of a task begins that keeps to one family of processors."""


class ReplicaRecord(msgspec.Struct, array_like=True, gc=False):
    """One worker's attempt. Times by Redis' clock.

    Attributes:
        price: in escrow for it, and its worker's if its answer counts.
        tokens: SHA-256 over the digests of its result's tokens, as its receipt has them.
        believed: how far its worker was believed when the task was decided.
        verified, doubts, words: what its worker's tally gained by this task (`credibility.Tally`): to be taken back
            should the task be decided anew.
        differed: whether it counts as a dissent in the job's noise; None: it was compared with nobody.
        vests_ms: from when on its pay may be spent.
        disputed: empty, or what became of the foreman's dispute.
    """

    worker_id: str
    worker_account: str
    epoch: int
    deadline_ms: int
    state: ReplicaState = ReplicaState.OPEN
    kind: Kind | None = None
    commitment: bytes = b""
    cpu_s: float = 0.0
    lost: bool = False
    price: int = 1
    tokens: bytes = b""
    believed: float = 0.0
    verified: int = 0
    doubts: int = 0
    words: int = 0
    differed: bool | None = None
    vests_ms: int = 0
    disputed: str = ""


class TaskRecord(msgspec.Struct, array_like=True, gc=False):
    """One task. Its keys follow from `nonce` and wrapping key `wrapping`, and are gone with either.

    `worker_class` is what replicas have to share to be compared (`class_of`); `capabilities`, sorted, what each of its
    workers has to have.

    Attributes:
        units: of work, at most `offer` credits each (`ReplicaRecord.price`).
        confidence: wanted, 0 where redundancy and quorum decide; `reached` when it was accepted.
        keep: it is remembered until its job closes.
        heard: answers to the task that this one computes anew.
        replaced: another task computes it anew, and has heard its answers.
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
    units: int
    redundancy: int
    quorum: int
    max_replicas: int
    worker_class: str
    replicas: list[ReplicaRecord]
    kind: Kind | None = None
    commitment: bytes = b""
    forget_ms: int = 0
    capabilities: list[str] = []
    offer: int = 1
    confidence: float = 0.0
    reached: float = 0.0
    keep: bool = False
    heard: list[ReplicaRecord] = []
    replaced: bool = False

    def lease_id(self, number: int) -> str:
        """The id of replica `number`: it names its task, so that no table has to."""
        return f"{self.task_id}.{number}"

    @property
    def holding(self) -> list[int]:
        """Numbers of the replicas whose price is in escrow."""
        return [number for number, replica in enumerate(self.replicas) if replica.state in HOLDS_ESCROW]


class WorkerRecord(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """A worker as discovery sees it; its fields stand as the store names them (`store/lua/parts/known.lua`).

    Attributes:
        verified, doubts, words: what all foremen share of its record (`credibility.Tally`).
        accusers: in jobs of how many unrelated foremen it is accused.
        share: it is given its capacity divided by this.
        ask: credits that it wants for a unit of the price.
        platform: family of its processor; empty: it did not say.
        banned, auditor: of its account.
        terms: whom it serves, as JSON of `messages.WorkerTerms`; empty: everybody, with anything.
        relay: whether it serves through the relay: ``never``, ``may``, ``must`` (nobody can connect to it).
    """

    worker_id: str
    account_id: str
    address: str
    port: int
    slots: int
    epoch: int
    used: int
    capacity: int
    verified: int = 0
    doubts: int = 0
    words: int = 0
    accusers: int = 0
    share: int = 1
    ask: int = 1
    platform: str = ""
    banned: bool = False
    auditor: bool = False
    terms: str = ""
    relay: Reached = "never"

    @property
    def free(self) -> int:
        """How many more leases it may hold."""
        return max(0, max(1, self.capacity // self.share) - self.used)


@dataclass(frozen=True, slots=True)
class AccountRecord:
    """An account as discovery sees it, in credits.

    Attributes:
        workers: how many are registered now.
        banned: by whom and why, empty: it is not.
        auditor: marked by the operator as one to believe.
        shown: its name on the leaderboard, empty: not there.
        network: the neighbourhood that it was made from, empty: not known.
    """

    account_id: str
    name: str
    balance: int
    escrow: int
    earned: int
    spent: int
    workers: int
    banned: str = ""
    auditor: bool = False
    shown: str = ""
    network: str = ""


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


def needs_of(requirements: Requirements) -> list[str]:
    """What a worker of the right class needs to have: capabilities, and the platform where that matters."""
    platform = [PLATFORM + requirements.platform] if requirements.platform else []
    return set_of([*requirements.capabilities, *platform])


def pools_of(capabilities: Iterable[str], platform: str) -> list[str]:
    """Names of the pools of its class that a worker is in, so that whoever needs these finds it in one step.

    One for each capability, one for the platform, and one for both. A platform that is claimed as if it were a
    capability does not count.
    """
    had = [capability for capability in set_of(capabilities) if not capability.startswith(PLATFORM)]
    if not platform:
        return had
    return [*had, PLATFORM + platform, *(f"{capability}+{PLATFORM}{platform}" for capability in had)]


def pools_for(needs: Sequence[str]) -> list[str]:
    """Names of the pools whose workers have all of `needs`, if they are in all of these pools."""
    platforms = [need for need in needs if need.startswith(PLATFORM)]
    others = [need for need in needs if not need.startswith(PLATFORM)]
    if len(platforms) == 1 and others:
        return [f"{other}+{platforms[0]}" for other in others]
    return list(needs)


def split_lease(lease_id: str) -> tuple[str, int]:
    """Task id and replica number of a lease id of valid form."""
    task_id, _, number = lease_id.partition(".")
    return task_id, int(number)
