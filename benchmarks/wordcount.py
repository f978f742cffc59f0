"""Word count: much data, little computation. Two mappers: one that counts within its chunk, one that does not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

from benchmarks import baselines, counting
from benchmarks.compare import Goal, Way, Workload
from benchmarks.counting import Counting
from benchmarks.inputs import text_file
from ec262.mapreduce.program import Program


def one_by_one(_: Any, text: str) -> Iterable[tuple[str, int]]:
    """A mapper as in every introduction: (word, 1) for each word."""
    for word in text.split():
        yield word, 1


def chunk_by_chunk(_: Any, text: str) -> Iterable[tuple[str, int]]:
    """A mapper that counts within its chunk first."""
    return Counter(text.split()).items()


def total(_: str, counts: list[int]) -> int:
    """The reducer."""
    return sum(counts)


COUNTING = Counting(text_file, Program(chunk_by_chunk, total), Program(one_by_one, total, total), count_plainly=True)
NAIVE = Counting(text_file, Program(one_by_one, total), Program(one_by_one, total))


def ways(problem: Counting) -> Mapping[str, Way]:
    """All but dask.bag, of which there are several."""
    return {
        "sequential, same functions": partial(counting.loop_alike, problem),
        "sequential, one Counter": partial(counting.loop_plain, problem),
        "multiprocessing": partial(counting.pool, problem),
        "Dask futures, scattered": partial(counting.dask_futures, problem, scatter=True),
        "Dask futures, submitted": partial(counting.dask_futures, problem, scatter=False),
        "EC262 processes": partial(counting.ours_of_chunks, problem, network=False),
        "EC262 network": partial(counting.ours_of_chunks, problem, network=True),
        "EC262 network, file": partial(counting.ours_of_file, problem, network=True),
    }


WORDCOUNT = Workload(
    name="wordcount",
    title="word count, a Counter a chunk (file: (word, 1) a word of a line, combined)",
    ways={
        **ways(COUNTING),
        "dask.bag, frequencies": partial(counting.dask_bag, COUNTING, way=baselines.bag_frequencies, cluster=False),
    },
    digest=counting.digest,
    size=100_000_000,
    short_size=10_000_000,
    goals=(
        Goal("EC262 network", ("sequential, same functions",), 1.0),
        Goal("EC262 network", ("sequential, one Counter",), 1.0),
        Goal("EC262 network", ("Dask futures, scattered", "Dask futures, submitted"), 1.3),
    ),
)

NAIVE_WORDCOUNT = Workload(
    name="naive",
    title="word count, (word, 1) a word, no combiner",
    ways={
        **ways(NAIVE),
        "dask.bag, frequencies": partial(counting.dask_bag, NAIVE, way=baselines.bag_frequencies, cluster=False),
        "dask.bag, foldby": partial(counting.dask_bag, NAIVE, way=baselines.bag_foldby, cluster=False),
        "dask.bag, frequencies, cluster": partial(
            counting.dask_bag, NAIVE, way=baselines.bag_frequencies, cluster=True
        ),
        "dask.bag, file": partial(counting.dask_bag_of_file, NAIVE),
    },
    digest=counting.digest,
    size=10_000_000,
    short_size=3_000_000,
    goals=(
        Goal("EC262 network", ("dask.bag, frequencies, cluster",), 1.0),
        Goal("EC262 network", ("dask.bag, frequencies",), 1.0),
        Goal("EC262 network", ("dask.bag, foldby",), 1.0),
        Goal("EC262 network, file", ("dask.bag, file",), 1.0),
    ),
)
