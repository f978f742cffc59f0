"""Word count: much data, little computation. The same mapper and reducer on the network and in a plain loop."""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import ec262
from benchmarks.text import chunks
from benchmarks.usage import metered
from ec262.embedded import embedded_network

Mapper = Callable[[int, str], Iterable[tuple[str, int]]]


def one_by_one(_: int, text: str) -> Iterable[tuple[str, int]]:
    """A mapper as in every introduction: (word, 1) for each word."""
    for word in text.split():
        yield word, 1


def chunk_by_chunk(_: int, text: str) -> Iterable[tuple[str, int]]:
    """A mapper that counts within its chunk first."""
    return Counter(text.split()).items()


def total(_: str, counts: list[int]) -> int:
    """The reducer."""
    return sum(counts)


MAPPERS: dict[str, Mapper] = {"naive": one_by_one, "counting": chunk_by_chunk}


@dataclass(frozen=True, slots=True)
class WordCount:
    """One mapper over one text.

    Attributes:
        text_sha256: of the generated text.
        items: chunks, each about 1 MB, each a map task.
        sequential_s: the plain loop in this process, after the jobs.
        network_s: of each repeat, from the call to the result, on a network that is up.
        ratio: best network_s / sequential_s: below 1 the network is faster.
        peak_bytes: largest resident set of any one process of a party; the foreman's includes the text.
        cpu_s: CPU seconds by party of the last repeat.
    """

    mapper: str
    text_bytes: int
    text_sha256: str
    words: int
    distinct_words: int
    items: int
    workers: int
    sequential_s: float
    network_s: list[float]
    ratio: float
    peak_bytes: dict[str, int]
    cpu_s: dict[str, float]
    others_cores: float | None


def measure(name: str, text_bytes: int, repeats: int) -> WordCount:
    """Counts `text_bytes` of text with mapper `name`, `repeats` times on the network and once without.

    Raises:
        AssertionError: the results differ.
    """
    mapper = MAPPERS[name]
    data = dict(enumerate(chunks(text_bytes)))
    digest = hashlib.sha256()
    for text in data.values():
        digest.update(text.encode())
    network = embedded_network()
    try:
        ec262.run_job(dict.fromkeys(range(16), "warm up"), mapper=mapper, reducer=total, progress=False)
        walls = []
        for _ in range(repeats):
            with metered(network, memory=True) as usage:
                found = ec262.run_job(data, mapper=mapper, reducer=total, items_per_task=1, progress=False)
            walls.append(usage.wall_s)
        workers = len(network.workers)
    finally:
        network.close()
    start_s = time.perf_counter()
    expected = run_sequentially(data, mapper, total)
    sequential_s = time.perf_counter() - start_s
    if found != expected:
        raise AssertionError(f"word count ({name}): the network's result differs from the sequential one")
    return WordCount(
        mapper=name,
        text_bytes=sum(map(len, data.values())),
        text_sha256=digest.hexdigest(),
        words=sum(expected.values()),
        distinct_words=len(expected),
        items=len(data),
        workers=workers,
        sequential_s=sequential_s,
        network_s=walls,
        ratio=min(walls) / sequential_s,
        peak_bytes=usage.peak_bytes,
        cpu_s=usage.cpu_s,
        others_cores=usage.others_cores,
    )


def run_sequentially(data: dict[int, str], mapper: Mapper, reducer: Callable[[str, list[int]], int]) -> dict[str, int]:
    """The obvious program without a network: map each item, group in a dictionary, reduce each key."""
    groups: dict[str, list[Any]] = {}
    for key, value in data.items():
        for out_key, out_value in mapper(key, value):
            groups.setdefault(out_key, []).append(out_value)
    return {key: reducer(key, values) for key, values in groups.items()}
