"""Options of a job, frozen and checked."""

from __future__ import annotations

import sys
from dataclasses import dataclass

from ec262.errors import ProgramError


@dataclass(frozen=True, slots=True)
class JobOptions:
    """How a job is to be run.

    Attributes:
        redundancy: how many workers compute each task at first.
        quorum: how many have to agree (default: more than half of `redundancy`).
        max_replicas: most answers discovery may buy for one task.
        cpu_limit_s: CPU seconds a task may use; one credit buys 60.
        timeout_s: until a leased task is given up; None: discovery's default.
        max_retries: how often a task that found no agreed result is leased anew.
        items_per_task: items one map task gets; None: chosen.
        reducers: reduce partitions; None: chosen.
        wait_for_workers_s: how long to wait while no worker is free.
        rehearse: try the shipped program on a small sample first (see `ec262.foreman.rehearsal`): what cannot travel,
            is not deterministic or gives no pairs is an error before a credit is spent.
    """

    redundancy: int = 1
    quorum: int | None = None
    max_replicas: int = 9
    cpu_limit_s: float = 60.0
    timeout_s: float | None = None
    max_retries: int = 3
    items_per_task: int | None = None
    reducers: int | None = None
    wait_for_workers_s: float = 30.0
    rehearse: bool = True
    python: str = f"{sys.version_info.major}.{sys.version_info.minor}"

    def __post_init__(self) -> None:
        _between("redundancy", self.redundancy, 1, 16)
        _between("quorum", self.agreement, 1, 16)
        _between("max_replicas", self.max_replicas, max(self.redundancy, self.agreement), 64)
        _between("cpu_limit_s", self.cpu_limit_s, 0.001, 3600)
        _between("max_retries", self.max_retries, 0, 1000)
        for name in ("redundancy", "max_replicas", "max_retries", "items_per_task", "reducers"):
            value = getattr(self, name)
            if value is not None and not isinstance(value, int):
                raise ProgramError(f"{name}={value!r}: has to be a whole number")
        _between("wait_for_workers_s", self.wait_for_workers_s, 0, float("inf"))
        if self.timeout_s is not None:
            _between("timeout_s", self.timeout_s, 0.001, 86_400)
        if self.items_per_task is not None:
            _between("items_per_task", self.items_per_task, 1, float("inf"))
        if self.reducers is not None:
            _between("reducers", self.reducers, 1, 1000)

    @property
    def agreement(self) -> int:
        """The quorum in force."""
        return self.quorum if self.quorum is not None else self.redundancy // 2 + 1


def _between(name: str, value: float, least: float, most: float) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not least <= value <= most:
        reach = f"of {least:g} or more" if most == float("inf") else f"from {least:g} to {most:g}"
        raise ProgramError(f"{name}={value!r}: has to be a number {reach}")
