"""Sort: records of 100 bytes by their first 10, from a file to files, as the sort benchmark's GraySort has it.

dask.bag cannot sort, so it is not among the ways.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import baselines
from benchmarks.compare import Ready, Settings, Workload
from benchmarks.inputs import records_file
from benchmarks.ours import job, network_of
from ec262.jobs.report import Report
from ec262.programs.sort_records import program
from tests.gensort import RECORD
from tests.reference import pieces_of

WARM_UP = 1000
"""Records of the small input."""


@contextlib.contextmanager
def loop(settings: Settings) -> Iterator[Ready]:
    """All records in memory, one sort."""
    source, target = _paths(settings)
    yield Ready(partial(baselines.sort_plainly, source, target))


@contextlib.contextmanager
def pool(settings: Settings) -> Iterator[Ready]:
    """A pool: cut by ranges, sort ranges."""
    source, target = _paths(settings)
    with baselines.pool_of(settings.workers) as processes:
        parts = _parts(settings)
        baselines.sort_in_pool(processes, records_file(settings.directory, WARM_UP), target, parts)
        yield Ready(partial(baselines.sort_in_pool, processes, source, target, parts))


@contextlib.contextmanager
def dask_futures(settings: Settings) -> Iterator[Ready]:
    """The same with futures."""
    source, target = _paths(settings)
    with baselines.dask_client(settings.workers) as client:
        parts = _parts(settings)
        baselines.sort_with_futures(client, records_file(settings.directory, WARM_UP), target, parts)
        yield Ready(partial(baselines.sort_with_futures, client, source, target, parts))


@contextlib.contextmanager
def ours(settings: Settings, *, network: bool, **options: Any) -> Iterator[Ready]:
    """An EC262 job."""
    source, target = _paths(settings)
    chosen = {"output": target, "overwrite": True, **options}
    with network_of(settings.workers) if network else contextlib.nullcontext() as found:
        warm_up = str(records_file(settings.directory, WARM_UP))
        yield job(lambda: str(source), program, chosen, network=found, warm_up=warm_up)


def digest(result: list[Path] | Report) -> str:
    """Of all records, in order."""
    total = hashlib.sha256()
    for path in files_of(result):
        for piece in pieces_of(path):
            total.update(piece)
    return total.hexdigest()


def files_of(result: list[Path] | Report) -> list[Path]:
    """The files that a way has written, in order."""
    if isinstance(result, Report):
        return [Path(name.removeprefix("file://")) for name in result.files]
    return result


def _paths(settings: Settings) -> tuple[Path, Path]:
    return records_file(settings.directory, settings.size), settings.directory / "sorted"


def _parts(settings: Settings) -> int:
    """Ranges: each as large as a piece of the input, and no fewer than workers."""
    return max(settings.workers, -(-settings.size * RECORD // baselines.RUN_BYTES))


SORT = Workload(
    name="sort",
    title="sort of 100-byte records, file to files",
    ways={
        "sequential": loop,
        "multiprocessing": pool,
        "Dask futures": dask_futures,
        "EC262 processes": partial(ours, network=False),
        "EC262 network": partial(ours, network=True),
    },
    digest=digest,
    size=1_000_000,
    short_size=100_000,
)
