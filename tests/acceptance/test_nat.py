"""Workers behind NATs: a job on several machines, most of which nobody can connect to, and what breaks on the way."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.netns import PORT, Machines, Unavailable
from tests.processes import Process, until

DISCOVERY, FOREMAN, OPEN, NAT_A, NAT_B = "11.0.0.1", "11.0.1.1", "11.0.2.1", "11.0.3.1", "11.0.4.1"
MOVED = "11.0.5.1"
URL = f"http://{DISCOVERY}:{PORT}"

JOB = """
import json, sys
import ec262
from ec262.discovery_client import DiscoveryClient

ROUNDS, TASKS, URL = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]

def busy(number, text):
    x = 0
    for i in range(ec262.param("rounds")):
        x ^= i
    yield number % 7, len(text)

def total(key, values):
    return sum(values)

job = ec262.submit(
    {n: "x" * 1000 * n for n in range(TASKS)}, mapper=busy, reducer=total, params={"rounds": ROUNDS}, discovery=URL,
    items_per_task=1, rehearse=False,
)
result = job.result(120)
report = job.report()
with DiscoveryClient(URL) as client:
    credits = client.credits()
print(json.dumps({
    "right": result == {k: sum(1000 * n for n in range(TASKS) if n % 7 == k) for k in range(7)},
    "tasks": report.map_tasks + report.reduce_tasks, "spent": report.credits_spent, "retried": report.retried,
    "sound": credits.minted - credits.burnt == credits.accounts + credits.escrow,
    "paid": report.balance_before - report.balance_after, "earned": report.earned,
}))
"""


class World:
    """Discovery, a foreman's machine, a worker that can be reached, and two that cannot."""

    def __init__(self, machines: Machines) -> None:
        self.machines = machines
        self._at = machines.machine("d", DISCOVERY)
        self._foreman = machines.machine("f", FOREMAN)
        self.discovery = self._discovery()
        self.workers = {
            "open": self._worker("open", machines.machine("o", OPEN), URL),
            "a": self._worker("a", *machines.behind_router("a", NAT_A, DISCOVERY)),
            "b": self._worker("b", *machines.behind_router("b", NAT_B, DISCOVERY)),
        }

    def _discovery(self) -> Process:
        return self.machines.start(
            *(self._at, "discovery", "-m", "discovery", "--network", "private", "--host", "0.0.0.0"),
            *("--port", str(PORT), "--data-dir", str(self.machines.directory / "store")),
        )

    def _worker(self, name: str, namespace: str, url: str) -> Process:
        return self.machines.start(namespace, name, "worker.py", "-v", "--slots", "1", "--discovery", url)

    def restart_discovery(self) -> None:
        """kill -9, and another one over the same files."""
        self.discovery.kill()
        self.discovery = self._discovery()

    def job(self, *, rounds: int, tasks: int) -> subprocess.Popen[str]:
        """A foreman's program."""
        return self.machines.run(self._foreman, "foreman", JOB, str(rounds), str(tasks), URL)

    def took(self, name: str) -> int:
        """How often a worker has taken tasks."""
        return (self.machines.directory / f"{name}.log").read_text().count(" took ")

    def at_work(self) -> bool:
        """Whether all workers have taken tasks."""
        return all(self.took(name) for name in self.workers)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    try:
        machines = Machines(tmp_path)
    except Unavailable as reason:
        pytest.skip(str(reason))
    with machines:
        yield World(machines)


def done(job: subprocess.Popen[str]) -> dict[str, Any]:
    out, _ = job.communicate(timeout=150)
    assert job.returncode == 0
    report = dict(json.loads(out))
    assert report["right"]
    assert report["sound"]
    return report


def test_a_job_uses_workers_behind_nats_and_those_that_are_reached(world: World) -> None:
    report = done(world.job(rounds=300_000, tasks=60))
    assert set(report["earned"]) == {worker.ready["worker_id"] for worker in world.workers.values()}
    assert report["paid"] == report["spent"] == report["tasks"], "nothing was done twice"
    logs = {name: (world.machines.directory / f"{name}.log").read_text() for name in world.workers}
    assert {name for name, log in logs.items() if "serving through the relay" in log} == {"a", "b"}


@pytest.mark.parametrize("told", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_a_foreman_that_cannot_connect_where_discovery_can_comes_through_the_relay(world: World, told: bool) -> None:
    """It is told so at once, or hears nothing at all; and the other workers are direct or relayed as before."""
    if told:
        world.machines.block("f", OPEN, "unreachable")
    else:
        world.machines.block("o", FOREMAN, "blackhole")
    report = done(world.job(rounds=300_000 if told else 2_000_000, tasks=80))
    assert set(report["earned"]) == {worker.ready["worker_id"] for worker in world.workers.values()}
    log = (world.machines.directory / "open.log").read_text()
    assert "nobody can connect" not in log
    assert "serving through the relay" in log


def disturbed(world: World, disturb: Callable[[], None], rounds: int, tasks: int) -> dict[str, Any]:
    """A job during which something happens."""
    job = world.job(rounds=rounds, tasks=tasks)
    until(world.at_work, what="work for all")
    disturb()
    return done(job)


def cut_for(world: World, seconds: float) -> Callable[[], None]:
    def disturb() -> None:
        world.machines.cut("a")
        time.sleep(seconds)
        world.machines.mend("a")

    return disturb


def test_a_cut_line_loses_nothing(world: World) -> None:
    before = world.took("a")
    report = disturbed(world, cut_for(world, 3.0), 1_000_000, 80)
    # What the others took over and it had done as well counts twice: whoever agrees is paid.
    assert report["tasks"] <= report["spent"] <= report["paid"]
    assert world.workers["a"].ready["worker_id"] in report["earned"]
    assert world.took("a") > before


@pytest.mark.slow
def test_a_line_that_is_cut_for_twenty_seconds_loses_nothing(world: World) -> None:
    report = disturbed(world, cut_for(world, 20.0), 8_000_000, 120)
    # What the others took over and it had done as well counts twice: whoever agrees is paid.
    assert report["tasks"] <= report["spent"] <= report["paid"]
    assert world.workers["a"].ready["worker_id"] in report["earned"]


def test_the_relay_starts_anew_and_nothing_is_lost(world: World) -> None:
    report = disturbed(world, world.restart_discovery, 1_000_000, 80)
    assert report["paid"] == report["spent"] == report["tasks"], "nothing was done twice"
    assert set(report["earned"]) == {worker.ready["worker_id"] for worker in world.workers.values()}


@pytest.mark.slow
def test_a_worker_whose_address_changes_is_back_with_its_next_heartbeat(world: World) -> None:
    """It is tried at its new address, keeps what it holds, and goes on; nobody needs to start it again."""

    def disturb() -> None:
        before = world.took("open")
        world.machines.move("o", OPEN, MOVED)
        log = world.machines.directory / "open.log"
        until(lambda: "registering again" in log.read_text(), 45.0, "the worker's return")
        until(lambda: world.took("open") > before, 45.0, "new work for it")

    report = disturbed(world, disturb, 8_000_000, 160)
    assert report["tasks"] <= report["spent"] <= report["paid"]
    assert world.workers["open"].ready["worker_id"] in report["earned"]
