"""CPU-bound tasks: how much of the machine's cores a job of pure computation gets."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from statistics import median

import ec262
from benchmarks.usage import metered
from ec262.config import core_count
from ec262.embedded import embedded_network

TASK_S = 0.3
_CALIBRATION_LOOPS = 400_000


def spin(number: int, loops: int) -> Iterator[tuple[int, int]]:
    """The mapper: a loop of integer arithmetic (a linear congruential generator)."""
    state = number
    for _ in range(loops):
        state = (state * 1_103_515_245 + 12_345) % 2_147_483_648
    yield number, state


def only(_: int, states: list[int]) -> int:
    """The reducer."""
    return states[0]


@dataclass(frozen=True, slots=True)
class Cpu:
    """Jobs of CPU-bound tasks. Each repeat runs them sequentially, on the network and in a pool, one after the other.

    Attributes:
        task_s: CPU seconds of one task, sequentially, mean.
        sequential_s: CPU seconds of all tasks one after the other in one plain process, each repeat: the work.
        network_s: seconds of the same as a job, each repeat.
        efficiency: work / (cores * network_s), the median of the repeats; `efficiencies` are all.
        pool_s, pool_efficiency: the same for a ``ProcessPoolExecutor`` of as many processes as cores: what the machine
            allowed at that moment, for cores slow down when their neighbours work.
        relative: efficiency / pool_efficiency.
        sandbox_cpu: CPU time in the sandboxes / work: what confinement costs the user's code.
    """

    tasks: int
    cores: int
    workers: int
    task_s: float
    sequential_s: list[float]
    network_s: list[float]
    efficiencies: list[float]
    efficiency: float
    pool_s: list[float]
    pool_efficiency: float
    relative: float
    sandbox_cpu: float | None
    others_cores: float | None


def measure(tasks: int, repeats: int) -> Cpu:
    """Runs `tasks` tasks sequentially, as a job and in a pool, `repeats` times, after a warm-up of each."""
    data = dict.fromkeys(range(tasks), _calibrated())
    network = embedded_network()
    workers = len(network.workers)
    cores = min(core_count(), workers)
    sequential_s, network_s, pool_s, sandbox, others = [], [], [], [], []
    try:
        with ProcessPoolExecutor(cores, multiprocessing.get_context("spawn")) as pool:
            warm_up = dict.fromkeys(range(8 * cores), 10_000)
            ec262.run_job(warm_up, mapper=spin, reducer=only, progress=False)
            list(pool.map(_spin_one, warm_up.items()))
            for _ in range(repeats):
                start_s = time.process_time()
                expected = dict(map(_spin_one, data.items()))
                sequential_s.append(time.process_time() - start_s)

                with metered(network) as usage:
                    result = ec262.run_job(data, mapper=spin, reducer=only, items_per_task=1, progress=False)
                network_s.append(usage.wall_s)
                if result != expected:
                    raise AssertionError("the network computed something else than the sequential run")
                if usage.cpu_s:
                    sandbox.append(usage.cpu_s["sandbox"] / sequential_s[-1])
                if usage.others_cores is not None:
                    others.append(usage.others_cores)

                start_s = time.perf_counter()
                list(pool.map(_spin_one, data.items()))
                pool_s.append(time.perf_counter() - start_s)
    finally:
        network.close()
    efficiencies = [work / (cores * wall) for work, wall in zip(sequential_s, network_s, strict=True)]
    pool_efficiency = median(work / (cores * wall) for work, wall in zip(sequential_s, pool_s, strict=True))
    return Cpu(
        tasks=tasks,
        cores=cores,
        workers=workers,
        task_s=median(sequential_s) / tasks,
        sequential_s=sequential_s,
        network_s=network_s,
        efficiencies=efficiencies,
        efficiency=median(efficiencies),
        pool_s=pool_s,
        pool_efficiency=pool_efficiency,
        relative=median(efficiencies) / pool_efficiency,
        sandbox_cpu=median(sandbox) if sandbox else None,
        others_cores=median(others) if others else None,
    )


def _calibrated() -> int:
    """How many loops take about `TASK_S`."""
    best_s = float("inf")
    for _ in range(5):
        start_s = time.process_time()
        _spin_one((0, _CALIBRATION_LOOPS))
        best_s = min(best_s, time.process_time() - start_s)
    return max(1, int(_CALIBRATION_LOOPS * TASK_S / best_s))


def _spin_one(item: tuple[int, int]) -> tuple[int, int]:
    (pair,) = spin(*item)
    return pair
