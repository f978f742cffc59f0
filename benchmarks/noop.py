"""No-op tasks: what a task costs that computes nothing. Each is a task, a lease, a ticket and a payment of its own."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from statistics import median

import ec262
from benchmarks.usage import metered
from ec262.embedded import embedded_network

WARM_UP_TASKS = 1000


def emit(number: int, _: None) -> Iterator[tuple[int, int]]:
    """The mapper: one pair of one of ten keys."""
    yield number % 10, 1


def total(_: int, ones: list[int]) -> int:
    """The reducer."""
    return sum(ones)


@dataclass(frozen=True, slots=True)
class Noop:
    """Repeated jobs of no-op tasks.

    Attributes:
        tasks: map tasks of a job.
        replicas: how many answers were paid for a task.
        tasks_per_s: of each repeat, from the call of ``submit`` to the result.
        median_per_s, best_per_s: of these.
        cpu_us: CPU microseconds a task by party, over all repeats; empty where it cannot be read.
        total_cpu_us: their sum: cores times 10^6 over it is the most tasks a second this machine could do.
        others_cores: cores that other programs kept busy meanwhile, mean.
    """

    tasks: int
    redundancy: int
    workers: int
    replicas: float
    tasks_per_s: list[float]
    median_per_s: float
    best_per_s: float
    cpu_us: dict[str, float]
    total_cpu_us: float | None
    others_cores: float | None


def measure(tasks: int, redundancy: int, repeats: int) -> Noop:
    """Runs a warm-up job, then `repeats` jobs of `tasks` tasks."""
    network = embedded_network()
    try:
        _run(WARM_UP_TASKS, redundancy)
        rates = []
        paid = 0
        with metered(network) as usage:
            for _ in range(repeats):
                with metered(network) as one:
                    paid += _run(tasks, redundancy)
                rates.append(tasks / one.wall_s)
        done = tasks * repeats
        return Noop(
            tasks=tasks,
            redundancy=redundancy,
            workers=len(network.workers),
            replicas=paid / done,
            tasks_per_s=rates,
            median_per_s=median(rates),
            best_per_s=max(rates),
            cpu_us={role: seconds / done * 1e6 for role, seconds in usage.cpu_s.items()},
            total_cpu_us=sum(usage.cpu_s.values()) / done * 1e6 if usage.cpu_s else None,
            others_cores=usage.others_cores,
        )
    finally:
        network.close()


def _run(tasks: int, redundancy: int) -> int:
    """One job; returns the credits it cost its map tasks."""
    data = dict.fromkeys(range(tasks))
    job = ec262.submit(data, mapper=emit, reducer=total, items_per_task=1, redundancy=redundancy)
    result = job.result()
    if sum(result.values()) != tasks:
        raise AssertionError(f"{tasks} tasks counted {sum(result.values())}")
    report = job.report()
    return report.credits_spent * report.map_tasks // (report.map_tasks + report.reduce_tasks)
