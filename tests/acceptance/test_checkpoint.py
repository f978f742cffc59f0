"""A foreman killed with -9 goes on from its checkpoint: the same bytes, and no task is paid for twice."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.acceptance.conftest import Network
from tests.processes import ROOT, until

JOB = """
import sys
import ec262

def spin(key, value):
    x = 0
    for i in range(1_500_000):
        x += i
    yield value % 5, value
    yield "text", str(value)

def total(key, values):
    x = 0
    for i in range(8_000_000):
        x += i
    return sorted(values)

data = {n: n * n for n in range(40)}

def show(progress):
    print(progress.phase, progress.done, progress.credits_spent, flush=True)

report = ec262.run_job(data, mapper=spin, reducer=total, discovery=sys.argv[1], checkpoint="kept", output="made",
                       output_format="json", reducers=6, redundancy=int(sys.argv[2]), progress=show,
                       wait_for_workers_s=60, timeout_s=20, cpu_limit_s=10, backup_tasks=False)
print("report", report.credits_spent, report.map_tasks, report.reduce_tasks, flush=True)
"""


def start(network: Network, redundancy: int) -> subprocess.Popen[str]:
    folder = network.directory / "job"
    folder.mkdir(exist_ok=True)
    (folder / "job.py").write_text(JOB)
    environment = {**os.environ, "EC262_HOME": str(network.directory / "foreman"), "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [sys.executable, "job.py", network.url, str(redundancy)],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def read_until(job: subprocess.Popen[str], phase: str, done: int) -> None:
    """Reads what the job prints until so many tasks of a phase are done."""
    assert job.stdout is not None
    for line in job.stdout:
        words = line.split()
        if words[0] == phase and int(words[1]) >= done:
            return
    assert job.stderr is not None
    raise AssertionError(f"the job ended before {phase} {done}:\n{job.stderr.read()}")


def expected() -> dict[str, list[object]]:
    squares = [n * n for n in range(40)]
    pairs = {json.dumps(rest): sorted(s for s in squares if s % 5 == rest) for rest in range(5)}
    found: dict[str, list[object]] = {key: list(values) for key, values in pairs.items() if values}
    found['"text"'] = list[object](sorted(map(str, squares)))
    return found


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    "phase, done, redundancy",
    [
        *(("reduce", 1, 1), ("map", 10, 2)),
        *(pytest.param("map", done, 1, marks=pytest.mark.slow) for done in (0, 15)),
    ],
)
def test_a_killed_foreman_goes_on_and_pays_nothing_twice(
    phase: str, done: int, redundancy: int, make_network: Callable[..., Network]
) -> None:
    network = make_network()
    for _ in range(3):
        network.worker()
    job = start(network, redundancy)
    read_until(job, phase, done)
    job.send_signal(signal.SIGKILL)
    job.communicate()
    assert not list((network.directory / "job").glob("made_*")), "no output before its time"

    again = start(network, redundancy)
    said, errors = again.communicate(timeout=120)
    assert again.returncode == 0, errors
    word, spent, maps, reduces = said.splitlines()[-1].split()
    assert word == "report"
    found: dict[str, list[object]] = {}
    for path in sorted((network.directory / "job").glob("made_[0-9]*")):
        for line in path.read_text().splitlines():
            key, values = json.loads(line)
            found[json.dumps(key)] = values
    assert found == expected()

    tasks = int(maps) + int(reduces)
    assert int(maps) == 40
    # The ledger: the foreman's account paid each task's replicas once. Escrow of a lease whose worker had not shown its
    # receipt comes back some time after the lease's deadline.
    until(lambda: network.account("foreman")["escrow"] == 0, 100, "an empty escrow")
    assert network.account("foreman")["spent"] == tasks * redundancy
    assert int(spent) <= tasks * redundancy


@pytest.mark.slow
def test_after_the_end_the_same_call_costs_nothing(make_network: Callable[..., Network]) -> None:
    network = make_network()
    network.worker()
    job = start(network, 1)
    _, errors = job.communicate(timeout=120)
    assert job.returncode == 0, errors
    paid = network.account("foreman")["spent"]
    for path in Path(network.directory / "job").glob("made_*"):
        path.unlink()
    again = start(network, 1)
    _, errors = again.communicate(timeout=120)
    assert again.returncode == 0, errors
    assert len(list((network.directory / "job").glob("made_0*"))) == 6
    assert network.account("foreman")["spent"] == paid
