"""Sort of 1 GB on a network of this machine: what it takes in memory, with a memory limit and without.

The output is checked as the sort benchmark's valsort does it: as many records as the input, the same sum of checksums,
every key no less than the one before.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import sort
from benchmarks.compare import Settings
from benchmarks.inputs import records_file
from benchmarks.tree import Taken, watched
from ec262.policy import MEMORY_LIMIT
from tests.gensort import RECORD
from tests.reference import Checked, pieces_of, valsort

RECORDS = 10_000_000
SHORT_RECORDS = 1_000_000
LIMITS: tuple[int | None, ...] = (MEMORY_LIMIT, None)
FOREMAN_GOAL = 400_000_000
"""Bytes that the foreman may hold, with the default memory limit."""
WORKER_GOAL = 300_000_000
"""Bytes that a worker may hold."""


@dataclass(frozen=True, slots=True)
class Sorted:
    """One sort.

    Attributes:
        memory_limit: of the job; None: none.
        bytes_spilled: results that the foreman put on disk.
        files: how many output files.
        duplicates: records whose key is that of the record before.
    """

    records: int
    workers: int
    memory_limit: int | None
    start_s: float
    taken: Taken
    bytes_spilled: int
    bytes_in: int
    files: int
    duplicates: int


def measure(settings: Settings, memory_limit: int | None) -> Sorted:
    """Sorts and checks, in this process.

    Raises:
        AssertionError: the output is not the input, sorted.
    """
    begun_s = time.perf_counter()
    options: dict[str, Any] = {"memory_limit": memory_limit}
    with sort.ours(settings, network=True, **options) as ready:
        start_s = time.perf_counter() - begun_s
        with watched(ready.services) as taken:
            report = ready.run()
    files = sort.files_of(report)
    given = valsort(pieces_of(records_file(settings.directory, settings.size)))
    found = valsort(_pieces(files))
    check(given, found)
    for file in files:
        file.unlink()
    return Sorted(
        records=found.count,
        workers=settings.workers,
        memory_limit=memory_limit,
        start_s=start_s,
        taken=taken,
        bytes_spilled=ready.facts.get("bytes_spilled", 0),
        bytes_in=ready.facts.get("bytes_in", 0),
        files=len(files),
        duplicates=found.duplicates,
    )


def check(given: Checked, found: Checked) -> None:
    """Raises AssertionError if `found` is not `given` in order."""
    if found.unordered:
        raise AssertionError(f"{found.unordered:,} records are less than the one before")
    if (found.count, found.checksum) != (given.count, given.checksum):
        raise AssertionError(f"{found.count:,} records came out of {given.count:,}, or others")


def _pieces(files: list[Path]) -> Iterator[bytes]:
    for file in files:
        if file.stat().st_size % RECORD:
            raise AssertionError(f"{file.name} ends within a record")
        yield from pieces_of(file)
