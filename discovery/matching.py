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

TRIES = 500
"""Combinations looked at for one task before it counts as one that cannot be served."""


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
    taken = frozenset(mark for worker in exclude for mark in _marks(worker, distinct))
    served: list[list[WorkerRecord]] = []
    for _ in range(tasks):
        if replicas == 1 and not taken:
            chosen = [heapq.heappop(heap)] if heap else []
        else:
            chosen = _choose(heap, replicas, taken, distinct)
        if len(chosen) < replicas:
            break
        served.append([entry[3] for entry in chosen])
        for load, tie, free, worker in chosen:
            if free > 1:
                heapq.heappush(heap, (load + 1 / worker.slots, tie, free - 1, worker))
    return served


_Entry = tuple[float, float, int, WorkerRecord]


def _choose(heap: list[_Entry], replicas: int, taken: frozenset[str], distinct: Distinct) -> list[_Entry]:
    """Takes `replicas` entries that differ as they should out of the heap, the least loaded where there is a choice.

    The first that fit are nearly always right. Where they leave too few for the rest (a worker may share its account
    with one and its neighbourhood with another), others are tried, up to `TRIES` in all. Returns [] and takes nothing
    where it finds none.
    """
    # Where workers have to differ in nothing else, those few are enough of which `taken` can rule out the rest.
    entries = sorted(heap) if distinct != "none" else heapq.nsmallest(replicas + len(taken), heap)
    marks = [_marks(entry[3], distinct) for entry in entries]
    tries = 0

    def search(start: int, seen: frozenset[str], wanted: int) -> list[int] | None:
        nonlocal tries
        if wanted == 0:
            return []
        for at in range(start, len(entries) - wanted + 1):
            if not seen.isdisjoint(marks[at]):
                continue
            tries += 1
            rest = search(at + 1, seen.union(marks[at]), wanted - 1)
            if rest is not None:
                return [at, *rest]
            if tries > TRIES:
                return None
        return None

    found = search(0, taken, replicas)
    if found is None:
        return []
    chosen = [entries[at] for at in found]
    gone = {entry[3].worker_id for entry in chosen}
    heap[:] = [entry for entry in heap if entry[3].worker_id not in gone]
    heapq.heapify(heap)
    return chosen


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
