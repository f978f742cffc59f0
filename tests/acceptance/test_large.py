"""More than fits: sorting and five million keys with bounded memory. The short forms run always, the long on demand.

python -m pytest tests/acceptance/test_large.py -m slow
"""

from __future__ import annotations

import multiprocessing
import os
import zlib
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any

import pytest

from benchmarks import sort1g
from benchmarks.compare import Settings
from benchmarks.inputs import distinct_file
from benchmarks.tree import Taken, watched
from ec262.embedded import embedded_network
from ec262.jobs.run import submit
from ec262.policy import MEMORY_LIMIT
from ec262.programs import find
from tests.processes import nothing_left

MB = 1_000_000
FOREMAN, WORKER = 400 * MB, 300 * MB


@pytest.fixture(autouse=True)
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("EC262_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("EC262_DISCOVERY", raising=False)
    resource_tracker.ensure_running()  # multiprocessing's own, which stays as long as this process
    with nothing_left():
        yield


def apart(function: Any, *arguments: object) -> Any:
    """The function's result, computed in a fresh process: what is measured there is its own."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


# --- sorting --------------------------------------------------------------------------------------


def test_a_sort_spills_and_is_right(tmp_path: Path) -> None:
    """300,000 records of 100 bytes through a memory limit of 8 MB: checked as valsort does."""
    made = apart(sort1g.measure, Settings(tmp_path, 300_000, 2), 8 * 1024 * 1024)
    assert made.records == 300_000
    assert made.bytes_spilled > 40 * MB


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_sort_of_a_gigabyte_in_bounded_memory(tmp_path: Path) -> None:
    made = apart(sort1g.measure, Settings(tmp_path, 10_000_000, 3), MEMORY_LIMIT)
    print(made)
    assert made.records == 10_000_000
    assert made.taken.driver_peak < FOREMAN
    assert made.taken.process_peak < WORKER
    assert made.taken.worker_peak < WORKER
    assert made.bytes_spilled > 1000 * MB


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_without_a_limit_the_same_sort_costs_its_size_in_memory(tmp_path: Path) -> None:
    made = apart(sort1g.measure, Settings(tmp_path, 10_000_000, 3), None)
    print(made)
    assert made.records == 10_000_000
    assert made.bytes_spilled == 0
    assert made.taken.driver_peak > 1000 * MB


# --- many keys ------------------------------------------------------------------------------------


def count_keys(directory: Path, count: int, limit: int) -> tuple[Taken, int, int, int, int, int]:
    """Counts words that are all different; reads the result as it comes.

    Returns:
        What it took; keys, sum of counts, XOR of the keys' CRC-32, keys not in order, bytes spilled.
    """
    path = distinct_file(directory, count)
    os.environ["EC262_WORKERS"] = "2"
    network = embedded_network()
    try:
        with watched((network.discovery_pid,)) as taken:
            job = submit(str(path), program=find("wordcount").program, memory_limit=limit)
            keys = total = check = unordered = 0
            last = ""
            for key, value in job.pairs():
                keys += 1
                total += value
                check ^= zlib.crc32(key.encode())
                unordered += key <= last
                last = key
            spilled = job.progress().bytes_spilled
            job.close()
    finally:
        network.close()
    return taken, keys, total, check, unordered, spilled


def expected(path: Path) -> tuple[int, int, int]:
    """Number of keys, sum of counts, and XOR of the keys' CRC-32, as a plain loop finds them."""
    seen: set[str] = set()
    words = 0
    with open(path, encoding="utf-8") as file:
        for line in file:
            found = line.split()
            words += len(found)
            seen.update(found)
    check = 0
    for word in seen:
        check ^= zlib.crc32(word.encode())
    return len(seen), words, check


def test_many_keys_through_a_small_memory(tmp_path: Path) -> None:
    _, keys, total, check, unordered, spilled = apart(count_keys, tmp_path, 200_000, 1 << 20)
    assert (keys, total, check) == expected(distinct_file(tmp_path, 200_000))
    assert (keys, unordered) == (200_000, 0)
    assert spilled > MB


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_five_million_keys_in_bounded_memory(tmp_path: Path) -> None:
    taken, keys, total, check, unordered, spilled = apart(count_keys, tmp_path, 5_000_000, MEMORY_LIMIT)
    print(taken, spilled)
    assert (keys, total, check) == expected(distinct_file(tmp_path, 5_000_000))
    assert (keys, unordered) == (5_000_000, 0)
    assert taken.driver_peak < FOREMAN
    assert taken.process_peak < WORKER
    assert taken.worker_peak < WORKER
