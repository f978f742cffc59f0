"""Plan: from what the user gave to a stage's splits, partitions and bounds. The same for every backend."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice
from typing import Any

from ec262.backends.spool import Spool
from ec262.errors import ProgramError
from ec262.jobs.sampling import sample_keys
from ec262.mapreduce.partition import bounds_of
from ec262.mapreduce.program import Program
from ec262.mapreduce.records import Reader
from ec262.mapreduce.split import TASKS_BY_ITEM, BlocksSplit, PairsSplit, Split, split_items
from ec262.policy import Policy
from ec262.storage.inputs import FileInput, files

Data = Mapping[Any, Any] | Iterable[tuple[Any, Any]] | str | os.PathLike[str] | FileInput

REDUCER_BYTES = 8 * 1024 * 1024
"""About so much input makes a reduce partition: it has to fit a small worker's memory several times."""
MOST_REDUCERS = 512
UNKNOWN_REDUCERS = 64
"""Where nobody knows how large the input is, only that it is large."""
AHEAD_BYTES = 64 * 1024 * 1024
"""Of an iterable so much is read before mapping begins, to choose the number of reducers."""
SAMPLE_SPLITS = 32
"""Splits from all over the input that a program may be tried on."""


@dataclass(slots=True)
class Source:
    """Where a stage's splits come from.

    Attributes:
        splits: gives them in order; called once.
        size: bytes; None if nobody knows.
        count: of splits; None if nobody knows.
        sample: some splits from all over the input, as far as they can be had.
        tag: says what the input is, for checkpoints; "" if only its splits can tell.
    """

    splits: Callable[[], Iterable[Split]]
    size: int | None
    count: int | None
    sample: Callable[[], Sequence[Split]]
    tag: str = ""


def with_files(data: Any, program: Program, storage_options: Mapping[str, Any] | None = None) -> Any:
    """The input, paths in it taken for the files they name: read as the program wants it.

    Raises:
        SetupError: files that are not there or cannot be read.
    """
    if isinstance(data, (str, os.PathLike)):
        return files(os.fspath(data), reader=program.reader or Reader(), storage_options=storage_options)
    if isinstance(data, list | tuple) and data and all(isinstance(each, (str, os.PathLike)) for each in data):
        return files(*map(os.fspath, data), reader=program.reader or Reader(), storage_options=storage_options)
    return data


def source_of(data: Any, policy: Policy) -> Source:
    """The source of a job's first stage.

    Args:
        data: a dictionary, pairs, or what `ec262.files` gives.

    Raises:
        ProgramError: none of these.
        SetupError: files that are not there or cannot be read.
    """
    if isinstance(data, FileInput):
        return _files(data, policy)
    if isinstance(data, bytes):
        raise ProgramError("data are bytes: give a dictionary, pairs, or the path of a file")
    return _pairs(data, policy)


def _files(given: FileInput, policy: Policy) -> Source:
    size = given.size()
    split_size = given.split_size(policy.split_size)
    count = given.split_count(split_size)

    def sample() -> list[Split]:
        splits = given.local().splits(split_size)  # read here, whoever reads them later
        if count is None:
            return list(islice(splits, SAMPLE_SPLITS))
        return [split for _, split in _spread(enumerate(splits), count)]

    return Source(lambda: given.splits(split_size), size, count, sample, tag=f"files {split_size} {given.tag()}")


def _spread(numbered: Iterator[tuple[int, Split]], count: int) -> list[tuple[int, Split]]:
    """Up to `SAMPLE_SPLITS` of `count`, evenly apart."""
    wanted = {at * count // SAMPLE_SPLITS for at in range(SAMPLE_SPLITS)}
    return [(at, split) for at, split in numbered if at in wanted]


def _pairs(data: Mapping[Any, Any] | Iterable[tuple[Any, Any]], policy: Policy) -> Source:
    parts = split_items(data, policy.items_per_task)
    ahead: list[bytes] = []
    held = 0
    for part in parts:
        ahead.append(part)
        held += len(part)
        if held > AHEAD_BYTES:
            break
    more = next(parts, None)
    ended = more is None
    rest = chain(ahead, parts) if more is None else chain(ahead, [more], parts)
    size: int | None = held
    if not ended:
        size = None
        if isinstance(data, Sized):
            step = policy.items_per_task or -(-len(data) // TASKS_BY_ITEM)
            size = held // len(ahead) * max(len(ahead), -(-len(data) // step))
    some = [PairsSplit(part) for _, part in _spread_parts(ahead)]
    held_ahead, ahead = len(ahead), []

    def splits() -> Iterator[Split]:
        return map(PairsSplit, rest)

    return Source(splits, size, held_ahead if ended else None, lambda: some, tag="pairs")


def _spread_parts(parts: Sequence[bytes]) -> list[tuple[int, bytes]]:
    wanted = sorted({at * len(parts) // SAMPLE_SPLITS for at in range(SAMPLE_SPLITS)}) if parts else []
    return [(at, parts[at]) for at in wanted]


def source_of_spool(spool: Spool) -> Source:
    """The source of a later stage: the results of the one before."""
    numbers = [number for number in spool.numbers() if any(spool.row_sizes(number))]
    splits = [BlocksSplit(number, partial(_only_part, spool, number)) for number in numbers]
    return Source(lambda: splits, spool.column_size(0), len(splits), lambda: splits[:SAMPLE_SPLITS], tag="stage")


def _only_part(spool: Spool, number: int) -> bytes:
    (part,) = spool.row(number)
    return part


def choose_reducers(source: Source, policy: Policy) -> int:
    """How many reduce partitions: as the policy says, else one for every `REDUCER_BYTES` of input.

    A function of the input and the policy alone: every backend makes the same files.
    """
    if policy.reducers is not None:
        return policy.reducers
    if source.size is None:
        return UNKNOWN_REDUCERS
    return min(MOST_REDUCERS, max(1, -(-source.size // REDUCER_BYTES)))


def choose_bounds(
    program: Program, source: Source, partitions: int, policy: Policy, stop: Callable[[], bool] = lambda: False
) -> list[Any]:
    """The bounds of a range partitioner: the mapper, tried here on a sample of the input, says where keys lie.

    Raises:
        ProgramError: the mapper fails on the sample.
    """
    if program.partitioner != "range" or partitions == 1:
        return []
    return bounds_of(sample_keys(program, source.sample(), policy, stop), partitions)
