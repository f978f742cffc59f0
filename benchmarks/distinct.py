"""Distinct keys: a word count in which almost every word is a new one, so that the result is as large as the input."""

from __future__ import annotations

from functools import partial

from benchmarks import baselines, counting
from benchmarks.compare import Workload
from benchmarks.counting import Counting
from benchmarks.inputs import distinct_file
from benchmarks.wordcount import one_by_one, total
from ec262.mapreduce.program import Program

PROGRAM = Program(one_by_one, total, total)
PROBLEM = Counting(distinct_file, PROGRAM, PROGRAM)

DISTINCT = Workload(
    name="distinct",
    title="distinct keys, (word, 1) a word, combined",
    ways={
        "sequential, same functions": partial(counting.loop_alike, PROBLEM),
        "multiprocessing": partial(counting.pool, PROBLEM),
        "Dask futures, scattered": partial(counting.dask_futures, PROBLEM, scatter=True),
        "dask.bag, frequencies": partial(counting.dask_bag, PROBLEM, way=baselines.bag_frequencies, cluster=False),
        "EC262 processes": partial(counting.ours_of_chunks, PROBLEM, network=False),
        "EC262 network": partial(counting.ours_of_chunks, PROBLEM, network=True),
        "EC262 network, files": partial(counting.ours_of_file, PROBLEM, network=True, to_files=True),
    },
    digest=counting.digest,
    size=5_000_000,
    short_size=300_000,
)
