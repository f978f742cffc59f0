"""Baselines: what a good programmer would write without EC262: a loop, a pool of processes, Dask futures, dask.bag.

All send their input from the program that the user started, as EC262 does, and have the result there in the end.
Clusters are up, and have run a small job, before the clock starts. Dask: a ``LocalCluster`` of processes with one
thread each, the scheduler in the user's program, as ``Client()`` has it. Pools: started with "spawn".
"""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import tempfile
import warnings
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from importlib import import_module
from itertools import islice
from multiprocessing.pool import Pool
from operator import add, itemgetter
from pathlib import Path
from typing import Any

from benchmarks.inputs import CHUNK, pieces_of_records
from tests.gensort import KEY, RECORD

Mapper = Callable[[Any, str], Iterable[tuple[str, int]]]
Reducer = Callable[[str, list[int]], int]
Counts = dict[str, int]
Count = Callable[[str], Counts]

SAMPLE = 10_000
"""Keys that say where to cut the range of keys."""
RUN_BYTES = 4_000_000
"""Bytes of records sorted at once, and sent at once, about."""


# --- clusters -------------------------------------------------------------------------------------


@contextlib.contextmanager
def pool_of(workers: int) -> Iterator[Pool]:
    """A pool whose processes are up."""
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        pool.map(abs, range(8 * workers), chunksize=1)
        yield pool


@contextlib.contextmanager
def dask_client(workers: int) -> Iterator[Any]:
    """A client of a cluster of this machine."""
    dask, distributed = _module("dask"), _module("distributed")
    with (
        warnings.catch_warnings(),
        tempfile.TemporaryDirectory() as directory,
        dask.config.set({"distributed.admin.large-graph-warning-threshold": "1GB"}),
        distributed.LocalCluster(
            silence_logs=logging.CRITICAL,  # it complains of itself when it ends
            n_workers=workers,
            threads_per_worker=1,
            processes=True,
            dashboard_address=None,
            local_directory=directory,
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        client.gather(client.map(abs, range(8 * workers), pure=False))
        yield client


def _module(name: str) -> Any:
    """Dask is an extra, and its functions are not all annotated."""
    return import_module(name)


@contextlib.contextmanager
def dask_pool(workers: int) -> Iterator[None]:
    """dask.bag's own scheduler, the default where there is no cluster; its processes are up."""
    dask = _module("dask")
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
        list(pool.map(abs, range(8 * workers)))
        with dask.config.set(scheduler="processes", pool=pool, num_workers=workers):
            yield


# --- counting -------------------------------------------------------------------------------------


def count_alike(data: dict[int, str], mapper: Mapper, reducer: Reducer) -> Counts:
    """Mapper and reducer as EC262 has them, in one process: map each item, group in a dictionary, reduce each key."""
    groups: dict[str, list[Any]] = {}
    for key, value in data.items():
        for out_key, out_value in mapper(key, value):
            groups.setdefault(out_key, []).append(out_value)
    return {key: reducer(key, values) for key, values in groups.items()}


def count_plainly(data: dict[int, str]) -> Counts:
    """The least that Python offers for this one problem."""
    counts: Counter[str] = Counter()
    for text in data.values():
        counts.update(text.split())
    return counts


def count_in_pool(pool: Pool, data: dict[int, str], count: Count) -> Counts:
    """Chunks to the pool, counts back as they come."""
    return _merged(pool.imap(count, data.values()))


def count_scattered(client: Any, data: dict[int, str], count: Count) -> Counts:
    """As Dask's documentation advises for large data: scattered first, then futures of futures."""
    futures = client.map(count, client.scatter(list(data.values()), hash=False), pure=False)
    return _merged(found for _, found in _module("distributed").as_completed(futures, with_results=True))


def count_submitted(client: Any, data: dict[int, str], count: Count) -> Counts:
    """A task for each chunk, the text its argument."""
    futures = [client.submit(count, text, pure=False) for text in data.values()]
    return _merged(found for _, found in _module("distributed").as_completed(futures, with_results=True))


def bag_frequencies(data: dict[int, str]) -> Counts:
    """dask.bag as in its documentation: split, flatten, frequencies."""
    bag = _module("dask.bag").from_sequence(data.values(), npartitions=len(data))
    return dict(bag.map(str.split).flatten().frequencies().compute())


def bag_foldby(data: dict[int, str]) -> Counts:
    """dask.bag with (word, 1) for each word, folded by word: what its documentation has instead of groupby."""
    bag = _module("dask.bag").from_sequence(data.values(), npartitions=len(data))
    pairs = bag.map(str.split).flatten().map(with_one)
    return dict(pairs.foldby(itemgetter(0), add_one, 0, add, 0).compute())


def bag_of_file(path: Path) -> Counts:
    """dask.bag reading the file in the workers, line by line."""
    lines = _module("dask.bag").read_text(str(path), blocksize=CHUNK)
    return dict(lines.str.split().flatten().frequencies().compute())


def with_one(word: str) -> tuple[str, int]:
    """What a naive mapper gives for a word."""
    return word, 1


def add_one(count: int, pair: tuple[str, int]) -> int:
    """A count and one pair more."""
    return count + pair[1]


def count_words(text: str) -> Counter[str]:
    """What a user of a pool or of futures would write."""
    return Counter(text.split())


def counted(mapper: Mapper, reducer: Reducer, text: str) -> Counts:
    """One chunk, mapped, grouped and reduced.

    A Counter, for distributed 2026.8 serializes what is a dict and nothing else item by item: 40 times as slow.
    """
    return Counter(count_alike({0: text}, mapper, reducer))


def _merged(found: Iterable[Counts]) -> Counts:
    total: Counts = {}
    get = total.get
    for counts in found:
        for word, count in counts.items():
            total[word] = get(word, 0) + count
    return total


# --- sorting --------------------------------------------------------------------------------------


def sort_plainly(source: Path, target: Path) -> list[Path]:
    """All in memory."""
    target.write_bytes(sort_run(source.read_bytes()))
    return [target]


def sort_in_pool(pool: Pool, source: Path, target: Path, parts: int) -> list[Path]:
    """Pieces are cut by ranges of keys in the pool, each range is then sorted there."""
    bounds = bounds_of(source, parts)
    columns: list[list[bytes]] = [[] for _ in range(parts)]
    for row in pool.imap(partial(cut_by_range, bounds), pieces_of_records(source, RUN_BYTES)):
        for column, part in zip(columns, row, strict=True):
            column.append(part)
    joined = (b"".join(columns.pop(0)) for _ in range(parts))
    return _written(target, pool.imap(sort_run, joined))


def sort_with_futures(client: Any, source: Path, target: Path, parts: int) -> list[Path]:
    """The same with futures: the pieces are scattered, the ranges go from worker to worker."""
    bounds = bounds_of(source, parts)
    rows = []
    for piece in pieces_of_records(source, RUN_BYTES):
        sent = client.scatter(piece, hash=False)
        row = client.submit(cut_by_range, bounds, sent, pure=False)
        rows.append([client.submit(itemgetter(index), row, pure=False) for index in range(parts)])
        del sent, row  # the cluster forgets what is wanted no more
    sorted_runs = [client.submit(sort_runs, [row[index] for row in rows], pure=False) for index in range(parts)]
    del rows
    return _written(target, (future.result() for future in sorted_runs))


def bounds_of(source: Path, parts: int) -> list[bytes]:
    """Keys that cut the file's into runs of about equal length, by a sample from all over the file."""
    count = source.stat().st_size // RECORD
    keys = []
    with source.open("rb") as file:
        for at in range(0, count, max(1, count // SAMPLE)):
            file.seek(at * RECORD)
            keys.append(file.read(KEY))
    keys.sort()
    return [keys[index * len(keys) // parts] for index in range(1, parts)]


def cut_by_range(bounds: Sequence[bytes], data: bytes) -> list[bytes]:
    """Records by the range that their key falls into."""
    ranges: list[list[bytes]] = [[] for _ in range(len(bounds) + 1)]
    for at in range(0, len(data), RECORD):
        ranges[bisect_right(bounds, data[at : at + KEY])].append(data[at : at + RECORD])
    return [b"".join(records) for records in ranges]


def sort_runs(runs: Sequence[bytes]) -> bytes:
    """The records of several runs in order."""
    return sort_run(b"".join(runs))


def sort_run(data: bytes) -> bytes:
    """Records in the order of their keys; those of equal keys stay as they were."""
    records = [data[at : at + RECORD] for at in range(0, len(data), RECORD)]
    records.sort(key=itemgetter(slice(0, KEY)))
    return b"".join(records)


def _written(target: Path, runs: Iterable[bytes]) -> list[Path]:
    files = []
    for index, run in enumerate(runs):
        files.append(target.with_name(f"{target.name}_{index:02d}"))
        files[-1].write_bytes(run)
    return files


def first(data: dict[int, str], count: int) -> dict[int, str]:
    """A few items, to warm up."""
    return dict(islice(data.items(), count))
