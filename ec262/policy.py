"""Policy: how a job is to be run, frozen and checked. The same on every backend; what one does not need it ignores."""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass, replace
from typing import Literal

from ec262.errors import ProgramError

MEMORY_LIMIT = 256 * 1024 * 1024
MOST_CONFIDENCE = 0.99999
USUAL_CONFIDENCE = 0.99
"""On a public network, where nothing else is asked for."""
REPLICAS, REPLICAS_TO_BELIEVE = 9, 24
"""Most answers for a task, where nobody says: with a quorum, and with a confidence."""
REPLICAS_ASSUMED = 1.5
"""Answers that a task takes to be believed, as estimates have it: about 1.2 where most workers are known by their work,
up to four of workers that nobody knows yet (docs/trust.md)."""
CAPABILITY = re.compile(r"[a-z0-9][a-z0-9:._-]{0,63}")


@dataclass(frozen=True, slots=True)
class Policy:
    """How a job is to be run.

    Attributes:
        confidence: how likely each result has to be right, by what is known of the workers that gave it: one worker
            computes a task, and further ones as long as it takes. 0: `redundancy` and `quorum` decide. None: 0.99 on a
            public network, unless these two are asked for; 0 on others.
        redundancy: how many workers compute each task at first; None: one.
        quorum: how many have to agree (default: more than half of `redundancy`).
        max_replicas: most answers discovery may buy for one task; None: 24 with a confidence, else 9.
        price: credits offered for a unit of work, the most a replica costs: workers may ask for more than one.
        cpu_limit_s: CPU seconds a task may use; a unit of work is 60.
        timeout_s: until a leased task is given up and leased to another worker; None: discovery's default.
        max_retries: how often a task that was lost, timed out or found no agreed result is tried again. 0 is for work
            that must not run twice: one replica, no backup; a task that does not come back has failed.
        on_failure: ``"fail"``: a failed task ends the job; ``"skip"``: its input is left out and the report names it.
        backup_tasks: near the end of a phase, have stragglers computed by a second worker too (not if max_retries=0).
        max_credits: most the job may cost; refused before the start if the estimate is higher.
        requirements: capabilities that workers must have, such as ``"data:books"``.
        items_per_task: items of a dictionary or iterable that one map task gets; None: chosen.
        split_size: bytes of a file that one map task gets; None: chosen from the input's size.
        reducers: reduce partitions; None: chosen from the input's size.
        memory_limit: bytes of results the job holds in memory, what goes beyond is spooled to disk; None: no limit.
        wait_for_workers_s: how long to wait while no worker is free.
        seed: of everything drawn by chance, such as the sample of a range partitioner.
        rehearse: try the shipped program on a small sample first (see `ec262.foreman.rehearsal`): what cannot travel,
            is not deterministic or gives no pairs is an error before a credit is spent.
        overwrite: replace output files that exist.
    """

    confidence: float | None = None
    redundancy: int | None = None
    quorum: int | None = None
    max_replicas: int | None = None
    price: int = 1
    cpu_limit_s: float = 60.0
    timeout_s: float | None = None
    max_retries: int = 3
    on_failure: Literal["fail", "skip"] = "fail"
    backup_tasks: bool = True
    max_credits: int | None = None
    requirements: tuple[str, ...] = ()
    items_per_task: int | None = None
    split_size: int | None = None
    reducers: int | None = None
    memory_limit: int | None = MEMORY_LIMIT
    wait_for_workers_s: float = 30.0
    seed: int = 262
    rehearse: bool = True
    overwrite: bool = False
    python: str = f"{sys.version_info.major}.{sys.version_info.minor}"

    def __post_init__(self) -> None:
        _between("confidence", self.confidence, 0, MOST_CONFIDENCE, optional=True)
        _whole("redundancy", self.redundancy, 1, 16, optional=True)
        _whole("quorum", self.quorum, 1, 16, optional=True)
        _whole("max_replicas", self.max_replicas, self.least_replicas, 64, optional=True)
        _whole("price", self.price, 1, 1000)
        _between("cpu_limit_s", self.cpu_limit_s, 0.001, 3600)
        _between("timeout_s", self.timeout_s, 0.001, 86_400, optional=True)
        _whole("max_retries", self.max_retries, 0, 1000)
        _whole("max_credits", self.max_credits, 0, None, optional=True)
        _whole("items_per_task", self.items_per_task, 1, None, optional=True)
        _whole("split_size", self.split_size, 1, 1 << 30, optional=True)
        _whole("reducers", self.reducers, 1, 10_000, optional=True)
        _whole("memory_limit", self.memory_limit, 0, None, optional=True)
        _between("wait_for_workers_s", self.wait_for_workers_s, 0, float("inf"))
        _whole("seed", self.seed, None, None)
        for name in ("backup_tasks", "rehearse", "overwrite"):
            if not isinstance(getattr(self, name), bool):
                raise ProgramError(f"{name}={getattr(self, name)!r:.80}: has to be True or False")
        if self.on_failure not in ("fail", "skip"):
            raise ProgramError(f"on_failure={self.on_failure!r:.80}: has to be 'fail' or 'skip'")
        if isinstance(self.requirements, str):
            raise ProgramError(f"requirements={self.requirements!r:.80}: has to be a list of capabilities")
        object.__setattr__(self, "requirements", tuple(self.requirements))
        for each in self.requirements:
            if not isinstance(each, str) or CAPABILITY.fullmatch(each) is None:
                raise ProgramError(f"requirements: {each!r:.80} is no capability; one looks like 'data:books'")
        if self.max_retries == 0 and self.copies != 1:
            raise ProgramError("max_retries=0 is for work that must not run twice: it goes with redundancy=1 only")
        if self.confidence:
            for name in ("redundancy", "quorum"):
                if getattr(self, name) is not None:
                    raise ProgramError(
                        f"confidence={self.confidence:g} and {name}={getattr(self, name)} contradict each other: with "
                        "a confidence discovery asks as many workers as it takes; give one of them"
                    )
            if self.max_retries == 0:
                raise ProgramError(
                    f"max_retries=0 is for work that must not run twice: confidence={self.confidence:g} may have a "
                    "task computed by several workers; give one of them"
                )

    def on_network(self, kind: str) -> Policy:
        """The policy with the confidence that is in force on a network of this kind (``public`` or ``private``)."""
        if self.confidence is not None:
            return self
        asked = self.redundancy is not None or self.quorum is not None or self.runs_once
        return replace(self, confidence=USUAL_CONFIDENCE if kind == "public" and not asked else 0.0)

    @property
    def copies(self) -> int:
        """The redundancy in force."""
        return self.redundancy if self.redundancy is not None else 1

    @property
    def agreement(self) -> int:
        """The quorum in force; with a confidence, the answers after which discovery is asked."""
        return self.quorum if self.quorum is not None else self.copies // 2 + 1

    @property
    def least_replicas(self) -> int:
        """Answers without which a task cannot be decided."""
        return max(self.copies, self.agreement)

    @property
    def most_replicas(self) -> int:
        """Most answers for a task."""
        if self.max_replicas is not None:
            return self.max_replicas
        return REPLICAS_TO_BELIEVE if self.confidence else max(REPLICAS, self.least_replicas)

    @property
    def replicas_assumed(self) -> float:
        """Answers for a task, as estimates have it."""
        return min(REPLICAS_ASSUMED, self.most_replicas) if self.confidence else float(self.copies)

    @property
    def runs_once(self) -> bool:
        """Whether no task may be started twice."""
        return self.max_retries == 0


def _whole(name: str, value: object, least: int | None, most: int | None, *, optional: bool = False) -> None:
    if optional and value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int):
        raise ProgramError(f"{name}={value!r:.80}: has to be a whole number")
    _between(name, value, float("-inf") if least is None else least, float("inf") if most is None else most)


def _between(name: str, value: object, least: float, most: float, *, optional: bool = False) -> None:
    if optional and value is None:
        return
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not least <= value <= most:
        reach = f"of {least:g} or more" if most == float("inf") else f"from {least:g} to {most:g}"
        raise ProgramError(f"{name}={value!r:.80}: has to be a number {reach}")
