"""Policy: how a job is to be run, frozen and checked. The same on every backend; what one does not need it ignores."""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from typing import Literal

from ec262.errors import ProgramError

MEMORY_LIMIT = 256 * 1024 * 1024
CAPABILITY = re.compile(r"[a-z0-9][a-z0-9:._-]{0,63}")


@dataclass(frozen=True, slots=True)
class Policy:
    """How a job is to be run.

    Attributes:
        redundancy: how many workers compute each task at first.
        quorum: how many have to agree (default: more than half of `redundancy`).
        max_replicas: most answers discovery may buy for one task.
        cpu_limit_s: CPU seconds a task may use; one credit buys 60.
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

    redundancy: int = 1
    quorum: int | None = None
    max_replicas: int = 9
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
        _whole("redundancy", self.redundancy, 1, 16)
        _whole("quorum", self.quorum, 1, 16, optional=True)
        _whole("max_replicas", self.max_replicas, max(self.redundancy, self.agreement), 64)
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
        if self.max_retries == 0 and self.redundancy != 1:
            raise ProgramError("max_retries=0 is for work that must not run twice: it goes with redundancy=1 only")

    @property
    def agreement(self) -> int:
        """The quorum in force."""
        return self.quorum if self.quorum is not None else self.redundancy // 2 + 1

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
