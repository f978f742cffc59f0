"""Matching: which worker gets which replica. A sample of free workers in, an assignment out; no I/O.

The store draws the sample at random among the fit, so that nobody can choose its foreman or its worker, and cost does
not grow with the number of workers. Within the sample the least loaded come first, and of workers that are believed
alike and loaded alike the cheapest: n log w for n replicas, w workers.
"""

from __future__ import annotations

import functools
import heapq
import random
from collections.abc import Collection, Sequence

import msgspec

from discovery.addresses import neighbourhood
from discovery.credibility import NOTHING, Standing, Tally, established, standing
from discovery.records import WorkerRecord
from discovery.settings import Distinct
from ec262.protocol.messages import WorkerTerms
from ec262.protocol.terms import objection

ALONE: frozenset[str] = frozenset()
"""What a worker may not share with others of its task, where it is the only one."""
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
    newcomers: Collection[str] = (),
) -> list[list[WorkerRecord]]:
    """Workers for as many tasks as can be served whole, in order.

    Args:
        workers: free workers that fit.
        tasks: how many tasks want workers.
        replicas: how many different workers each wants.
        distinct: in what else these have to differ.
        chance: breaks ties between equally loaded workers; but of two established ones, and of two that are not, the
            one that asks for less comes first.
        exclude: workers that have the task already; the new ones have to be distinct from these too.
        newcomers: ids of workers of which a task gets one at most, those of `exclude` included.

    Returns:
        For each served task its workers, `replicas` long.
    """
    ties = _ties(workers, chance)
    apart = replicas > 1 or bool(exclude)
    heap = [
        (worker.used / worker.slots, tie, worker.free, worker, _marks(worker, distinct, newcomers) if apart else ALONE)
        for worker, tie in zip(workers, ties, strict=True)
        if worker.free
    ]
    heapq.heapify(heap)
    taken = frozenset(mark for worker in exclude for mark in _marks(worker, distinct, newcomers))
    served: list[list[WorkerRecord]] = []
    for _ in range(tasks):
        if not apart:
            chosen = [heapq.heappop(heap)] if heap else []
        else:
            chosen = _first(heap, replicas, taken) or _search(heap, replicas, taken)
        if len(chosen) < replicas:
            break
        served.append([entry[3] for entry in chosen])
        for load, tie, free, worker, marks in chosen:
            if free > 1:
                heapq.heappush(heap, (load + 1 / worker.slots, tie, free - 1, worker, marks))
    return served


def serves(worker: WorkerRecord, account_id: str, job_id: str, cpu_limit_s: float) -> bool:
    """Whether a worker's terms allow such a task."""
    terms = _terms(worker.terms)
    return not objection(terms, account_id=account_id, job_id=job_id, cpu_limit_s=cpu_limit_s)


def newcomers_of(workers: Sequence[WorkerRecord]) -> frozenset[str]:
    """Ids of the workers of a sample that are not established, by what all foremen share; empty where most are not.

    A network whose workers are mostly new could not serve anybody if a task had one of them at most.
    """
    new = [worker.worker_id for worker in workers if not established(standing_of(worker))]
    return frozenset(new) if 2 * len(new) <= len(workers) else frozenset()


def standing_of(worker: WorkerRecord, own: Tally = NOTHING) -> Standing:
    """A worker in the eyes of a foreman whose own tally of it is `own`."""
    known = Tally(worker.verified, worker.doubts, worker.words)
    return standing(known, own, auditor=worker.auditor, banned=worker.banned)


def _ties(workers: Sequence[WorkerRecord], chance: random.Random) -> list[float]:
    """A number for each worker, the lower first: by chance, with those of the equally credible in order of price.

    The numbers of a group are drawn as for anybody and then dealt out, so that a price says nothing between groups.
    """
    ties = [chance.random() for _ in workers]
    if len({worker.ask for worker in workers}) <= 1:
        return ties
    known = [established(standing_of(worker)) for worker in workers]
    for believed in (True, False):
        group = [at for at, each in enumerate(known) if each is believed]
        dealt = sorted(ties[at] for at in group)
        for at, tie in zip(sorted(group, key=lambda at: (workers[at].ask, ties[at])), dealt, strict=True):
            ties[at] = tie
    return ties


@functools.lru_cache(maxsize=4096)
def _terms(text: str) -> WorkerTerms:
    return msgspec.json.decode(text, type=WorkerTerms)


_Entry = tuple[float, float, int, WorkerRecord, frozenset[str]]
"""Load, tie, leases it may still have, worker, and what others in its task may not share with it."""


def _first(heap: list[_Entry], replicas: int, taken: frozenset[str]) -> list[_Entry]:
    """Takes the first `replicas` entries that differ as they should out of the heap; where that fails, none.

    Each is the least loaded that differs from those before it, which is nearly always right. Cost: that of those few.
    """
    chosen: list[_Entry] = []
    passed = []
    seen = taken
    while heap and len(chosen) < replicas:
        entry = heapq.heappop(heap)
        if seen.isdisjoint(entry[4]):
            chosen.append(entry)
            seen |= entry[4]
        else:
            passed.append(entry)
    whole = len(chosen) == replicas
    for entry in passed if whole else [*passed, *chosen]:
        heapq.heappush(heap, entry)
    return chosen if whole else []


def _search(heap: list[_Entry], replicas: int, taken: frozenset[str]) -> list[_Entry]:
    """Takes `replicas` entries that differ as they should out of the heap, where the first that differ leave too few.

    (A worker may share its account with one and its neighbourhood with another.) Others are tried in the order of
    their load, up to `TRIES` in all. Returns [] and takes nothing where it finds none.
    """
    entries = sorted(heap)
    tries = 0

    def search(start: int, seen: frozenset[str], wanted: int) -> list[int] | None:
        nonlocal tries
        if wanted == 0:
            return []
        for at in range(start, len(entries) - wanted + 1):
            if not seen.isdisjoint(entries[at][4]):
                continue
            tries += 1
            rest = search(at + 1, seen | entries[at][4], wanted - 1)
            if rest is not None:
                return [at, *rest]
            if tries > TRIES:
                return None
        return None

    found = search(0, taken, replicas)
    if found is None:
        return []
    chosen = set(found)
    heap[:] = [entry for at, entry in enumerate(entries) if at not in chosen]  # sorted, and so a heap
    return [entries[at] for at in found]


def _marks(worker: WorkerRecord, distinct: Distinct, newcomers: Collection[str]) -> frozenset[str]:
    """What no two workers of a task may share."""
    marks = [f"worker {worker.worker_id}"]
    if worker.worker_id in newcomers:
        marks.append("newcomer")
    if distinct != "none":
        marks.append(f"account {worker.account_id}")
    if distinct == "account,address":
        marks.append(f"network {neighbourhood(worker.address)}")
    return frozenset(marks)
