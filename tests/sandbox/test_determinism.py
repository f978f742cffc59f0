"""The same task gives the same bytes: on another worker, after other jobs, however batched, on another Python."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from ec262.mapreduce.program import Program, map_header
from ec262.protocol.canonical import encode_pairs
from ec262.sandbox.launcher import Outcome, Sandbox, UnitTask
from ec262.sandbox.pack import pack_program
from tests.sandbox.test_pack import _pythons

seen: list[int] = []


def busy(key: int, value: str) -> Iterator[tuple[Any, Any]]:
    """Uses all that is chance elsewhere, and a global that grows."""
    import math  # noqa: PLC0415 - as a job may
    import random  # noqa: PLC0415
    import uuid  # noqa: PLC0415

    seen.append(key)
    yield "random", random.random()
    yield "own generator", random.Random().randrange(10**9)
    yield "shuffled", random.sample(range(100), 10)
    yield "uuid", str(uuid.uuid4())
    yield "float", math.fsum(math.sqrt(n) for n in range(1, 100))
    yield "set", sorted({value, value * 2, "x"})
    yield "global", list(seen)


def vandal(key: int, value: str) -> Iterator[tuple[Any, Any]]:
    """Leaves what it can behind."""
    import random  # noqa: PLC0415

    random.seed(1)
    seen.extend(range(1000))
    yield key, random.random()


def tasks(count: int) -> list[UnitTask]:
    digest = "ab" * 32
    return [
        UnitTask(n, [map_header(digest, index=n, partitions=2), encode_pairs([(n, "a" * n)])]) for n in range(count)
    ]


def run(sandbox: Sandbox, mapper: Any, wanted: list[UnitTask]) -> list[list[bytes]]:
    """The parts of each task, all in one unit."""
    waiting, outcomes = list(reversed(wanted)), list[Outcome]()
    sandbox.run_unit(
        pack_program(Program(mapper)), lambda: waiting.pop() if waiting else None, lambda _, o: outcomes.append(o)
    )
    assert [outcome.kind for outcome in outcomes] == ["ok"] * len(wanted), outcomes[0].error
    return [outcome.parts for outcome in outcomes]


def test_another_worker_other_jobs_and_other_batches_change_nothing() -> None:
    with Sandbox() as first, Sandbox() as second:
        expected = run(first, busy, tasks(6))
        assert len({tuple(parts) for parts in expected}) == 6, "each task has chance of its own"
        assert run(second, busy, tasks(6)) == expected
        run(first, vandal, tasks(3))
        assert run(first, busy, tasks(6)) == expected
        assert [run(first, busy, [task])[0] for task in reversed(tasks(6))] == expected[::-1]


@pytest.mark.parametrize("python", _pythons() or [""], ids=lambda path: path.split("/")[-3] if path else "none")
def test_another_python_gives_the_same_bytes(python: str) -> None:
    if not python:
        pytest.skip("no other Python on this machine")
    with Sandbox() as mine, Sandbox(python=python) as other:
        assert run(other, busy, tasks(4)) == run(mine, busy, tasks(4))
