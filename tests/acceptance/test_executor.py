"""Jobs whose map tasks a volunteer's own program computes: discovery, workers and foreman as real processes."""

from __future__ import annotations

import importlib
import shutil
from collections.abc import Callable
from typing import Any

import pytest

import ec262
from tests.acceptance.conftest import Network

EXECUTOR = ("--executor", "examples.factor:Factor")

pytestmark = pytest.mark.skipif(shutil.which("factor") is None, reason="no factor program on this machine")


def count(prime: int, numbers: list[int]) -> int:
    ec262.counter("primes").add()
    return len(numbers)


def test_a_lab_serves_tasks_of_its_own_kind(make_network: Callable[..., Network]) -> None:
    network = make_network()
    laboratory = network.worker(*EXECUTOR)
    ordinary = network.worker()
    job = ec262.submit(
        enumerate(range(2, 101)),
        program=ec262.executor_program("factor", reducer=count),
        discovery=network.url,
        items_per_task=20,
        reducers=2,
    )
    divides = job.result(60)
    assert len(divides) == 25
    assert (divides[2], divides[3], divides[97]) == (50, 33, 1)
    report = job.report()
    assert report.earned[str(laboratory.ready["worker_id"])] == 5
    assert report.earned[str(ordinary.ready["worker_id"])] == 2


def test_the_example_runs(
    make_network: Callable[..., Network], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    network = make_network()
    network.worker(*EXECUTOR)
    network.worker()
    monkeypatch.setenv("EC262_DISCOVERY", network.url)
    monkeypatch.setattr("sys.argv", ["factor.py", "60"])
    example: Any = importlib.import_module("examples.factor")
    example.main()
    assert "2 divides 30 of the numbers from 2 to 60" in capsys.readouterr().out


def test_without_such_a_worker_the_job_says_what_it_lacks(make_network: Callable[..., Network]) -> None:
    network = make_network()
    network.worker()
    with pytest.raises(ec262.NoWorkers, match="executor:factor"):
        ec262.run_job({1: 2}, program=ec262.executor_program("factor"), discovery=network.url, wait_for_workers_s=0.5)
