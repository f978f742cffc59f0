"""Matching: which worker gets which replica. A sample of free workers in, an assignment out; no I/O.

The store draws the sample at random among the fit, so that nobody can choose its foreman or its worker, and cost does
not grow with the number of workers. Within the sample the least loaded come first: n log w for n replicas, w workers.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Collection, Sequence
from ipaddress import ip_address

from discovery.records import WorkerRecord
from discovery.settings import Distinct


def assign(
    workers: Sequence[WorkerRecord],
    *,
    tasks: int,
    replicas: int,
    distinct: Distinct,
    chance: random.Random,
    exclude: Collection[WorkerRecord] = (),
) -> list[list[WorkerRecord]]:
    """Workers for as many tasks as can be served whole, in order.

    Args:
        workers: free workers that fit.
        tasks: how many tasks want workers.
        replicas: how many different workers each wants.
        distinct: in what else these have to differ.
        chance: breaks ties between equally loaded workers.
        exclude: workers that have the task already; the new ones have to be distinct from these too.

    Returns:
        For each served task its workers, `replicas` long.
    """
    heap = [(worker.used / worker.slots, chance.random(), worker.free, worker) for worker in workers if worker.free]
    heapq.heapify(heap)
    taken = {mark for worker in exclude for mark in _marks(worker, distinct)}
    served: list[list[WorkerRecord]] = []
    for _ in range(tasks):
        chosen: list[tuple[float, float, int, WorkerRecord]] = []
        passed: list[tuple[float, float, int, WorkerRecord]] = []
        seen = set(taken) if replicas > 1 or taken else taken
        while heap and len(chosen) < replicas:
            entry = heapq.heappop(heap)
            if replicas == 1 and not taken:
                chosen.append(entry)
                break
            marks = _marks(entry[3], distinct)
            if seen.isdisjoint(marks):
                seen.update(marks)
                chosen.append(entry)
            else:
                passed.append(entry)
        for entry in passed:
            heapq.heappush(heap, entry)
        if len(chosen) < replicas:
            break
        served.append([entry[3] for entry in chosen])
        for load, tie, free, worker in chosen:
            if free > 1:
                heapq.heappush(heap, (load + 1 / worker.slots, tie, free - 1, worker))
    return served


def _marks(worker: WorkerRecord, distinct: Distinct) -> list[str]:
    marks = [f"worker {worker.worker_id}"]
    if distinct != "none":
        marks.append(f"account {worker.account_id}")
    if distinct == "account,address":
        marks.append(f"network {neighbourhood(worker.address)}")
    return marks


def neighbourhood(address: str) -> str:
    """The /24 (IPv4) or /64 (IPv6) an address lies in: what one person can easily have many addresses of."""
    parsed = ip_address(address)
    if parsed.version == 6 and parsed.ipv4_mapped is not None:
        parsed = parsed.ipv4_mapped
    keep = 24 if parsed.version == 4 else 64
    bits = parsed.max_prefixlen
    return f"{int(parsed) >> (bits - keep):x}/{keep}"
