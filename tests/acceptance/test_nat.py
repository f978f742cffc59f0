"""Workers behind NATs: a job on several machines, most of which nobody can connect to, and what breaks on the way."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.netns import PORT, Machines, Unavailable
from tests.processes import Process, until

DISCOVERY, FOREMAN, OPEN, NAT_A, NAT_B = "11.0.0.1", "11.0.1.1", "11.0.2.1", "11.0.3.1", "11.0.4.1"
MOVED = "11.0.5.1"
URL = f"http://{DISCOVERY}:{PORT}"

JOB = """
import json, sys, time
import ec262
from ec262.discovery_client import DiscoveryClient

SECONDS, TASKS, URL = float(sys.argv[1]), int(sys.argv[2]), sys.argv[3]

def busy(number, text):
    x = 0
    for i in range(ec262.param("rounds")):
        x ^= i
    yield number % 7, len(text)

def total(key, values):
    return sum(values)

began, x = time.thread_time(), 0
for i in range(500_000):
    x ^= i
rounds = int(500_000 * SECONDS / (time.thread_time() - began))

job = ec262.submit(
    {n: "x" * 1000 * n for n in range(TASKS)}, mapper=busy, reducer=total, params={"rounds": rounds}, discovery=URL,
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
HEARTBEAT_S = 2.0


class World:
    """Discovery, a foreman's machine, a worker that can be reached, and two that cannot."""

    def __init__(self, machines: Machines) -> None:
        self.machines = machines
        self._at = machines.machine("d", DISCOVERY)
        self._foreman = machines.machine("f", FOREMAN)
        self.discovery = self._discovery()
        places = {
            "open": machines.machine("o", OPEN),
            "a": machines.behind_router("a", NAT_A),
            "b": machines.behind_router("b", NAT_B),
        }
        with ThreadPoolExecutor() as starting:  # two of them wait until they are found to be out of reach
            self.workers = dict(zip(places, starting.map(self._worker, places, places.values()), strict=True))
        self._before: dict[str, int] = {}

    def _discovery(self) -> Process:
        return self.machines.start(
            *(self._at, "discovery", "-m", "discovery", "--network", "private", "--host", "0.0.0.0"),
            *("--port", str(PORT), "--data-dir", str(self.machines.directory / "store")),
            *("--heartbeat", str(HEARTBEAT_S)),
        )

    def _worker(self, name: str, namespace: str) -> Process:
        return self.machines.start(namespace, name, "worker.py", "-v", "--slots", "1", "--discovery", URL)

    def restart_discovery(self) -> None:
        """kill -9, and another one over the same files."""
        self.discovery.kill()
        self.discovery = self._discovery()

    def job(self, *, seconds: float, tasks: int) -> subprocess.Popen[str]:
        """A foreman's program, whose tasks take so long each; `said` begins anew."""
        self._before = {name: len(self.log(name)) for name in self.workers}
        return self.machines.run(self._foreman, "foreman", JOB, str(seconds), str(tasks), URL)

    def said(self, name: str) -> str:
        """What a worker wrote since the job began."""
        return self.log(name)[self._before[name] :]

    def took(self, name: str) -> int:
        """How often a worker has taken tasks of this job."""
        return self.said(name).count(" took ")

    def at_work(self) -> bool:
        """Whether all workers have taken tasks of this job."""
        return all(self.took(name) for name in self.workers)

    def log(self, name: str) -> str:
        """All that a worker wrote."""
        return (self.machines.directory / f"{name}.log").read_text()


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """One for all tests here: each leaves it as it was."""
    try:
        machines = Machines(tmp_path_factory.mktemp("machines"))
    except Unavailable as reason:
        pytest.skip(str(reason))
    with machines:
        yield World(machines)


def done(world: World, job: subprocess.Popen[str]) -> dict[str, Any]:
    """What became of a job: the right result, by all workers, and no credit lost or made."""
    out, _ = job.communicate(timeout=150)
    assert job.returncode == 0
    report = dict(json.loads(out))
    assert report["right"]
    assert report["sound"]
    assert set(report["earned"]) == {worker.ready["worker_id"] for worker in world.workers.values()}
    return report


def test_a_job_uses_workers_behind_nats_and_those_that_are_reached(world: World) -> None:
    report = done(world, world.job(seconds=0.02, tasks=60))
    assert report["paid"] == report["spent"] == report["tasks"], "nothing was done twice"
    told = {name: "nobody can connect" in world.log(name) for name in world.workers}
    assert told == {"open": False, "a": True, "b": True}


@pytest.mark.parametrize("told", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_a_foreman_that_cannot_connect_where_discovery_can_comes_through_the_relay(world: World, told: bool) -> None:
    """It is told so at once, or hears nothing at all; and the other workers are direct or relayed as before."""
    where = ("f", OPEN, "unreachable") if told else ("o", FOREMAN, "blackhole")
    with world.machines.blocked(*where):
        done(world, world.job(seconds=0.02 if told else 0.3, tasks=80))
    log = world.log("open")
    assert "nobody can connect" not in log
    assert "serving through the relay" in log


def disturbed(world: World, disturb: Callable[[], None], seconds: float, tasks: int) -> dict[str, Any]:
    """A job during which something happens, and is over before the job is."""
    job = world.job(seconds=seconds, tasks=tasks)
    until(world.at_work, what="work for all")
    disturb()
    assert job.poll() is None, "the job was there for all of it"
    return done(world, job)


def back_at_work(world: World, name: str) -> None:
    """Waits until a worker takes tasks again."""
    before = world.took(name)
    until(lambda: world.took(name) > before, what=f"new work for {name}")


@pytest.mark.parametrize(("cut_s", "tasks"), [(2.0, 140), pytest.param(20.0, 700, marks=pytest.mark.slow)])
def test_a_cut_line_loses_nothing(world: World, cut_s: float, tasks: int) -> None:
    def disturb() -> None:
        world.machines.cut("a")
        time.sleep(cut_s)
        world.machines.mend("a")
        back_at_work(world, "a")

    report = disturbed(world, disturb, 0.1, tasks)
    # What the others took over and it had done as well counts twice: whoever agrees is paid.
    assert report["tasks"] <= report["spent"] <= report["paid"]


def test_the_relay_starts_anew_and_nothing_is_lost(world: World) -> None:
    def disturb() -> None:
        world.restart_discovery()
        for name in ("a", "b"):
            back_at_work(world, name)

    report = disturbed(world, disturb, 0.05, 160)
    assert report["paid"] == report["spent"] == report["tasks"], "nothing was done twice"


@pytest.mark.parametrize(
    ("worker", "machine", "address", "tasks"),
    [("a", "ar", NAT_A, 160), pytest.param("open", "o", OPEN, 600, marks=pytest.mark.slow)],
)
def test_a_worker_whose_address_changes_is_back_with_its_next_heartbeat(
    world: World, worker: str, machine: str, address: str, tasks: int
) -> None:
    """Its router's, or its own. It is tried at its new address, keeps what it holds, and goes on by itself."""

    def disturb() -> None:
        world.machines.move(machine, address, MOVED)
        moved_s = time.monotonic()
        until(lambda: "registering again" in world.said(worker), what="the worker's return")
        assert time.monotonic() - moved_s < HEARTBEAT_S + 5.0
        back_at_work(world, worker)

    try:
        report = disturbed(world, disturb, 0.1, tasks)
    finally:
        world.machines.move(machine, MOVED, address)
    assert report["tasks"] <= report["spent"] <= report["paid"]
