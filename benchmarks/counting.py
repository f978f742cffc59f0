"""Counting: the ways to count words, for whatever text and mapper. See `benchmarks.compare` for what a way is."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import baselines
from benchmarks.compare import Ready, Settings
from benchmarks.inputs import pieces_of_text
from benchmarks.ours import job, network_of
from ec262.jobs.report import Report
from ec262.mapreduce.program import Program
from ec262.storage.inputs import files


@dataclass(frozen=True, slots=True)
class Counting:
    """A problem of counting.

    Attributes:
        source: makes the text's file, of a directory and a size.
        program: maps a chunk of text to (word, count); its mapper and reducer are those of others, too.
        file_program: the same for lines of a file.
        count_plainly: pools and futures count a chunk with one Counter, without mapper and reducer.
    """

    source: Callable[[Path, int], Path]
    program: Program
    file_program: Program
    count_plainly: bool = False

    def path(self, settings: Settings) -> Path:
        """The text's file."""
        return self.source(settings.directory, settings.size)

    def chunks(self, settings: Settings) -> dict[int, str]:
        """The text in memory, in chunks of 1 MB."""
        return dict(enumerate(pieces_of_text(self.path(settings))))

    def count(self) -> baselines.Count:
        """Counts one chunk, for pools and futures."""
        if self.count_plainly:
            return baselines.count_words
        reducer = self.program.reducer
        assert reducer is not None
        return partial(baselines.counted, self.program.mapper, reducer)


@contextlib.contextmanager
def loop_alike(counting: Counting, settings: Settings) -> Iterator[Ready]:
    """Mapper and reducer in a loop."""
    data, program = counting.chunks(settings), counting.program
    assert program.reducer is not None
    yield Ready(partial(baselines.count_alike, data, program.mapper, program.reducer))


@contextlib.contextmanager
def loop_plain(counting: Counting, settings: Settings) -> Iterator[Ready]:
    """One Counter."""
    yield Ready(partial(baselines.count_plainly, counting.chunks(settings)))


@contextlib.contextmanager
def pool(counting: Counting, settings: Settings) -> Iterator[Ready]:
    """``Pool.imap`` over the chunks."""
    data, count = counting.chunks(settings), counting.count()
    with baselines.pool_of(settings.workers) as processes:
        baselines.count_in_pool(processes, _few(data), count)
        yield Ready(partial(baselines.count_in_pool, processes, data, count))


@contextlib.contextmanager
def dask_futures(counting: Counting, settings: Settings, *, scatter: bool) -> Iterator[Ready]:
    """Futures; the text scattered, or submitted."""
    data, count = counting.chunks(settings), counting.count()
    way = baselines.count_scattered if scatter else baselines.count_submitted
    with baselines.dask_client(settings.workers) as client:
        way(client, _few(data), count)
        yield Ready(partial(way, client, data, count))


@contextlib.contextmanager
def dask_bag(
    counting: Counting, settings: Settings, *, way: Callable[[dict[int, str]], baselines.Counts], cluster: bool
) -> Iterator[Ready]:
    """dask.bag of the chunks, on a cluster or with its own scheduler of processes."""
    data = counting.chunks(settings)
    with (baselines.dask_client if cluster else baselines.dask_pool)(settings.workers):
        way(_few(data))
        yield Ready(partial(way, data))


@contextlib.contextmanager
def dask_bag_of_file(counting: Counting, settings: Settings) -> Iterator[Ready]:
    """dask.bag of the file's lines, with its own scheduler."""
    path = counting.path(settings)
    with baselines.dask_pool(settings.workers):
        baselines.bag_frequencies({0: "warm up"})
        yield Ready(partial(baselines.bag_of_file, path))


@contextlib.contextmanager
def ours_of_chunks(counting: Counting, settings: Settings, *, network: bool) -> Iterator[Ready]:
    """An EC262 job, the text in a dictionary of chunks."""
    data = counting.chunks(settings)
    with _network(settings, wanted=network) as found:
        options = {"items_per_task": 1}
        yield job(lambda: data, counting.program, options, network=found, warm_up=_few(data))


@contextlib.contextmanager
def ours_of_file(counting: Counting, settings: Settings, *, network: bool, to_files: bool = False) -> Iterator[Ready]:
    """An EC262 job, reading the file's lines."""
    path = counting.path(settings)
    options: dict[str, Any] = {}
    if to_files:
        options = {"output": settings.directory / "counted", "overwrite": True}
    with _network(settings, wanted=network) as found:
        warm_up = dict(enumerate(next(pieces_of_text(path, 10_000)).splitlines()))
        data = partial(files, path)
        yield job(data, counting.file_program, options, network=found, warm_up=warm_up)


def _network(settings: Settings, *, wanted: bool) -> contextlib.AbstractContextManager[Any]:
    return network_of(settings.workers) if wanted else contextlib.nullcontext()


def _few(data: dict[int, str]) -> dict[int, str]:
    """Small input of the same kind, to warm up: enough that every worker gets some."""
    return {key: text[:10_000] for key, text in baselines.first(data, 16).items()}


def digest(result: Any) -> str:
    """Of counts, or of the files they were written to."""
    total = hashlib.sha256()
    for line in sorted(_lines(result)):
        total.update(line)
    return total.hexdigest()


def _lines(result: Any) -> Iterable[bytes]:
    if isinstance(result, Report):
        for name in result.files:
            yield from Path(name.removeprefix("file://")).read_bytes().splitlines(keepends=True)
    else:
        for word, count in result.items():
            yield f"{word}\t{count}\n".encode()
