"""Compare: the same problem done in several ways, each measured in a fresh process, results held against each other.

A round runs every way once; every other round runs them in reverse, so that a machine that slows down or speeds up
meanwhile favours none. What starts before the clock (clusters, networks, pools, input that is to be in memory) is timed
apart.
"""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any, TypeVar

from benchmarks.tree import Taken, watched
from ec262.errors import EC262Error

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Settings:
    """What a way is to do.

    Attributes:
        directory: for input and output files.
        size: of the input: bytes of text, records, or distinct keys.
        workers: how many, the same for all ways that have any.
    """

    directory: Path
    size: int
    workers: int


@dataclass(slots=True)
class Ready:
    """A way that is about to start.

    Attributes:
        run: what is measured; gives the result.
        services: processes that are neither the user's program nor workers.
        facts: numbers of its own that `run` leaves.
    """

    run: Callable[[], Any]
    services: tuple[int, ...] = ()
    facts: dict[str, int] = field(default_factory=dict)


Way = Callable[[Settings], AbstractContextManager[Ready]]


@dataclass(frozen=True, slots=True)
class Goal:
    """A ratio that is to stay below a limit: of the wall clock of `way` to that of the best of `others`."""

    way: str
    others: tuple[str, ...]
    limit: float


@dataclass(frozen=True, slots=True)
class Workload:
    """A problem and the ways to do it; everything in it can be pickled.

    Attributes:
        digest: of a result: equal for equal results, whatever their form.
        size, short_size: of the input, see `Settings`.
    """

    name: str
    title: str
    ways: Mapping[str, Way]
    digest: Callable[[Any], str]
    size: int
    short_size: int
    goals: tuple[Goal, ...] = ()


@dataclass(slots=True)
class Row:
    """A way and its measurements, one a round."""

    way: str
    taken: list[Taken] = field(default_factory=list)
    start_s: list[float] = field(default_factory=list)
    facts: dict[str, int] = field(default_factory=dict)
    digest: str = ""
    failed: str = ""

    @property
    def wall_s(self) -> float:
        """Median of the rounds."""
        return median(one.wall_s for one in self.taken)


@dataclass(frozen=True, slots=True)
class Compared:
    """All ways of a workload.

    Attributes:
        ratios: for each goal: its ratio in every round, and their median.
        whole: the input has the size that the goals are for.
    """

    name: str
    title: str
    size: int
    workers: int
    rounds: int
    rows: list[Row]
    ratios: list[Ratio]
    whole: bool


@dataclass(frozen=True, slots=True)
class Ratio:
    """How a goal was met: `others` is the way that was best of those it names."""

    way: str
    others: str
    limit: float
    each: list[float]
    median: float


def compare(workload: Workload, settings: Settings, rounds: int, *, only: str = "") -> Compared:
    """Runs all ways `rounds` times.

    Args:
        only: ways whose names have this in them.

    Raises:
        AssertionError: results differ.
    """
    rows = {name: Row(name) for name in workload.ways if only in name}
    for number in range(rounds):
        for name in list(rows) if number % 2 == 0 else reversed(rows):
            _add(rows[name], workload, settings)
    digests = {row.digest for row in rows.values() if row.digest}
    if len(digests) > 1:
        found = ", ".join(f"{row.way}: {row.digest[:8]}" for row in rows.values() if row.digest)
        raise AssertionError(f"{workload.name}: results differ ({found})")
    ratios = [ratio for goal in workload.goals if (ratio := _ratio(goal, rows)) is not None]
    whole = settings.size >= workload.size
    return Compared(
        *(workload.name, workload.title, settings.size, settings.workers, rounds, list(rows.values()), ratios, whole)
    )


def _add(row: Row, workload: Workload, settings: Settings) -> None:
    if row.failed:
        return
    try:
        taken, start_s, facts, digest = apart(measure, workload.ways[row.way], workload.digest, settings)
    except (EC262Error, AssertionError, ImportError, OSError, BrokenProcessPool, RuntimeError) as reason:
        row.failed = f"{type(reason).__name__}: {reason}"[:300]
        row.taken, row.digest = [], ""
        return
    if row.digest and row.digest != digest:
        raise AssertionError(f"{workload.name}, {row.way}: another result in another round")
    row.taken.append(taken)
    row.start_s.append(start_s)
    row.facts, row.digest = facts, digest


def measure(way: Way, digest: Callable[[Any], str], settings: Settings) -> tuple[Taken, float, dict[str, int], str]:
    """One way, once, in this process: what it took, seconds to start, its facts, its result's digest."""
    start_s = time.perf_counter()
    with way(settings) as ready:
        started_s = time.perf_counter() - start_s
        with watched(ready.services) as taken:
            result = ready.run()
        return taken, started_s, ready.facts, digest(result)


def apart(function: Callable[..., T], *arguments: object) -> T:
    """Calls a function in a fresh process: its memory and what it starts are its own."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def _ratio(goal: Goal, rows: Mapping[str, Row]) -> Ratio | None:
    way = rows.get(goal.way)
    others: Sequence[Row] = [rows[name] for name in goal.others if name in rows and rows[name].taken]
    if way is None or not way.taken or not others:
        return None
    best = min(others, key=lambda row: row.wall_s)
    each = [one.wall_s / other.wall_s for one, other in zip(way.taken, best.taken, strict=True)]
    return Ratio(goal.way, best.way, goal.limit, each, median(each))
