"""Workers that hang, stop and die, and foremen that are killed: what is lost is computed elsewhere, nothing is paid
for twice, and what may not run twice does not."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gevent
import psutil
import pytest

from ec262.errors import EC262Error, JobFailed, NoWorkers
from ec262.foreman.engine import Engine
from ec262.foreman.payloads import input_digest
from ec262.foreman.repeating import ASK_AGAIN_S
from ec262.foreman.schedule import Task
from ec262.foreman.session import CreditLimitReached
from ec262.mapreduce.program import Program, map_header
from ec262.policy import Policy
from ec262.protocol.canonical import encode_pairs
from ec262.sandbox.pack import pack_program
from tests.acceptance.conftest import Network
from tests.acceptance.engine_job import EXPECTED, MAPS, PARTITIONS, EngineJob
from tests.acceptance.test_network import audit
from tests.processes import ROOT, Process, until

HANGING = """
import gevent
import ec262.worker.runner as runner
runner._Unit._on_outcome = lambda self, task, outcome: gevent.sleep(1e6)
from ec262.cli.worker import main
raise SystemExit(main())
"""
MakeNetwork = Callable[..., Network]


class Run:
    """A job in a thread of its own, as `ec262.submit` has it."""

    def __init__(self, make: Callable[[], EngineJob]) -> None:
        self._make = make
        self.job: EngineJob | None = None
        self.result: Any = None
        self.error: BaseException | None = None
        self.elapsed_s = 0.0
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self) -> None:
        started_s = time.monotonic()
        try:
            self.job = self._make()
            self.result = self.job.run()
        except BaseException as reason:
            self.error = reason
        finally:
            self.elapsed_s = time.monotonic() - started_s
            gevent.get_hub().destroy(destroy_loop=True)

    def wait(self, timeout_s: float = 60.0) -> EngineJob:
        """Waits for the end; raises what it failed of."""
        self.thread.join(timeout_s)
        assert not self.thread.is_alive(), "the job did not end"
        if self.error is not None:
            raise self.error
        assert self.job is not None
        return self.job


def hanging_worker(network: Network, directory: Path) -> Process:
    """A worker that answers over HTTP and never has a result."""
    script = directory / "hanging.py"
    script.write_text(HANGING)
    made = Process(
        [str(script), "-v", "-P", "0", "--slots", "1", "--discovery", network.url],
        home=directory / "hanging",
        log=directory / "hanging.log",
    )
    network.workers.append(made)
    return made


def stop(worker: Process) -> None:
    """SIGSTOP: its connections are there, and nothing answers."""
    os.kill(worker.pid, signal.SIGSTOP)
    until(lambda: psutil.Process(worker.pid).status() == psutil.STATUS_STOPPED, what="the stop")


def spent(network: Network) -> int:
    return int(str(network.account("foreman")["spent"]))


def test_a_worker_that_hangs_is_replaced_after_the_timeout(make_network: MakeNetwork, tmp_path: Path) -> None:
    network = make_network()
    network.worker()
    hanging = hanging_worker(network, tmp_path)
    policy = Policy(timeout_s=1.5, backup_tasks=False)
    job = Run(lambda: EngineJob(network.url, policy, loops=lambda n: 1000)).wait(30)
    hanging.kill()
    assert len(job.done) == MAPS + PARTITIONS
    assert job.facts is not None
    assert job.facts.retried > 0
    assert job.facts.credits_spent == MAPS + PARTITIONS == spent(network), "it is not paid"
    assert job.facts.credits_escrow > 0, "nor is it decided that it will not be"
    workers = {each.worker_id: each for each in job.facts.workers}
    assert workers[str(hanging.ready["worker_id"])].finished == 0
    audit(network)


def test_a_stopped_worker_is_overtaken_by_a_backup_and_not_waited_for(
    make_network: MakeNetwork, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "ec262.foreman")
    network = make_network()
    stopped = network.worker()
    network.worker()
    stopped_at: list[float] = []

    def on_result(job: EngineJob, task: Task) -> None:
        if not stopped_at and any(
            each.out and each.worker_id == stopped.ready["worker_id"] for each in job.engine.facts().workers
        ):
            stop(stopped)
            stopped_at.append(time.monotonic())

    run = Run(lambda: EngineJob(network.url, Policy(), on_result=on_result, patience_s=60.0))
    try:
        job = run.wait(40)
        assert stopped_at
        assert run.result == EXPECTED
        assert time.monotonic() - stopped_at[0] < 20, "nobody waited for it to come back"
    finally:
        stopped.kill()  # it would wait until somebody fetches what it has
    assert job.facts is not None
    assert job.facts.credits_spent >= MAPS + PARTITIONS
    lines = [record.getMessage() for record in caplog.records if "gets a backup" in record.getMessage()]
    assert any(str(stopped.ready["worker_id"]) in line and "task" in line for line in lines), lines
    audit(network)


def test_tasks_of_a_worker_that_takes_no_push_go_elsewhere(make_network: MakeNetwork) -> None:
    network = make_network()
    stopped = network.worker()
    network.worker()
    stop(stopped)
    try:
        policy = Policy(backup_tasks=False)
        run = Run(lambda: EngineJob(network.url, policy, loops=lambda n: 1000))
        job = run.wait(40)
    finally:
        stopped.kill()  # it would wait until somebody fetches what it has
    assert run.result == EXPECTED
    assert job.facts is not None
    assert job.facts.retried > 0
    audit(network)


def test_without_backups_allowed_there_are_none(
    make_network: MakeNetwork, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    network = make_network()
    network.worker()
    hanging = hanging_worker(network, tmp_path)
    caplog.set_level(logging.INFO, "ec262.foreman")
    run = Run(lambda: EngineJob(network.url, Policy(timeout_s=2.5, backup_tasks=False), loops=lambda n: 1000))
    job = run.wait(40)
    hanging.kill()
    assert run.result == EXPECTED
    assert not [record for record in caplog.records if "gets a backup" in record.getMessage()]
    assert job.facts is not None
    assert job.facts.retried > 0


def test_what_may_not_run_twice_is_started_once_and_reported(make_network: MakeNetwork) -> None:
    """max_retries=0: of two workers one is killed with tasks at hand; these have failed, all others are done."""
    network = make_network()
    victim = network.worker()
    network.worker()
    killed = False

    def on_result(job: EngineJob, task: Task) -> None:
        nonlocal killed
        at_hand = {each.worker_id: each.out for each in job.engine.facts().workers}
        if not killed and at_hand.get(str(victim.ready["worker_id"])) and task.phase == "map":
            killed = True
            victim.kill()

    policy = Policy(max_retries=0, on_failure="skip")
    run = Run(lambda: EngineJob(network.url, policy, loops=lambda n: 2_000_000, on_result=on_result))
    job = run.wait(60)
    maps = {number for phase, number in job.failed if phase == "map"}
    assert killed
    assert 1 <= len(maps) <= 4, "what it had at hand or was on its way to it, and no more"
    assert {number for phase, number in job.done if phase == "map"} == set(range(MAPS)) - maps
    assert all(isinstance(error, JobFailed) and "max_retries=0" in str(error) for error in job.failed.values())
    digests = [hash_of(job, number) for number in maps]
    assert [job.client.leases[digest] for digest in digests] == [1] * len(maps)
    audit(network)


def hash_of(job: EngineJob, number: int) -> bytes:
    """The digest of a map task's input."""
    return input_digest(job.map_input(number))


def test_a_task_that_times_out_and_may_not_run_twice_fails_the_job(make_network: MakeNetwork, tmp_path: Path) -> None:
    network = make_network()
    hanging = hanging_worker(network, tmp_path)
    run = Run(lambda: EngineJob(network.url, Policy(max_retries=0, timeout_s=1.0), patience_s=0.5))
    with pytest.raises(JobFailed, match=r"max_retries=0.*gave no result in 1 s"):
        run.wait(20)
    assert run.job is not None
    assert set(run.job.client.leases.values()) == {1}
    hanging.kill()


def test_attempts_are_bounded(make_network: MakeNetwork, tmp_path: Path) -> None:
    network = make_network()
    hanging = [hanging_worker(network, tmp_path) for _ in range(2)]
    policy = Policy(max_retries=1, timeout_s=0.6)
    run = Run(lambda: EngineJob(network.url, policy, maps=1, patience_s=0.5))
    with pytest.raises(JobFailed, match="was lost 2 times"):
        run.wait(20)
    for each in hanging:
        each.kill()


def test_workers_die_one_after_another_until_one_is_left(make_network: MakeNetwork) -> None:
    network = make_network()
    for _ in range(3):
        network.worker()
    alive = list(network.workers)

    def on_result(job: EngineJob, task: Task) -> None:
        done = sum(phase == task.phase for phase, _ in job.done)
        if len(alive) > 1 and (task.phase, done) in (("map", 3), ("reduce", 0)):
            alive.pop().kill()

    run = Run(lambda: EngineJob(network.url, Policy(timeout_s=60), on_result=on_result))
    job = run.wait(60)
    assert run.result == EXPECTED
    assert len(alive) == 1
    assert job.facts is not None
    assert job.facts.credits_spent == spent(network)
    audit(network)


def test_the_last_worker_dies_and_the_job_says_so(make_network: MakeNetwork) -> None:
    network = make_network()
    only = network.worker()
    run = Run(
        lambda: EngineJob(
            *(network.url, Policy(wait_for_workers_s=1.0)),
            on_result=lambda job, task: only.kill() if only.popen.poll() is None else None,
            patience_s=0.5,
        )
    )
    with pytest.raises(NoWorkers):
        run.wait(30)


# --- memory ----------------------------------------------------------------------------------------


def echo(key: int, value: str) -> list[tuple[int, str]]:
    return [(key, value)]


def test_bytes_in_flight_are_bounded_and_nothing_is_kept(make_network: MakeNetwork) -> None:
    network = make_network()
    network.worker()
    network.worker()
    size, count, limit = 500_000, 40, 8_000_000
    held: dict[str, int] = {"loaded": 0, "most": 0}

    class Data(bytes):
        def __del__(self) -> None:
            held["loaded"] -= 1

    def work() -> EngineJob:
        job = EngineJob(network.url, Policy())
        program = pack_program(Program(mapper=echo))
        digest = hashlib.sha256(program).hexdigest()
        engine = Engine(job.client, Policy(), program=program, lane="native", inflight_bytes=limit)

        def load(number: int) -> list[bytes]:
            held["loaded"] += 1
            held["most"] = max(held["most"], held["loaded"])
            data = Data(encode_pairs([(number, os.urandom(size // 2).hex())]))
            return [map_header(digest, index=number, partitions=1), data]

        def on_done(task: Task, parts: list[bytes]) -> None:
            job.done["map", task.number] = [b""]
            assert len(parts[0]) >= size

        def source() -> Any:
            for number in range(count):
                assert engine.schedule.bytes.total <= limit
                yield Task(number, lambda n=number: load(n))  # type: ignore[misc]

        engine.run_phase(source(), on_done)
        bytes_in_flight = engine.schedule.bytes
        assert limit / 4 < bytes_in_flight.most <= limit, "there is something to bound"
        gevent.sleep(0.05)
        engine.close(2.0)
        assert bytes_in_flight.total == 0
        return job

    class Bounded(Run):
        def _run(self) -> None:
            try:
                self.job = work()
            except BaseException as reason:
                self.error = reason
            finally:
                gevent.get_hub().destroy(destroy_loop=True)

    job = Bounded(lambda: EngineJob(network.url, Policy())).wait(40)
    assert len(job.done) == count
    assert held["most"] * size <= limit
    assert held["loaded"] == 0


# --- credits ---------------------------------------------------------------------------------------


def test_a_limit_of_credits_is_kept(make_network: MakeNetwork) -> None:
    network = make_network()
    network.worker()
    run = Run(lambda: EngineJob(network.url, Policy(), loops=lambda n: 1000, credits_limit=7))
    with pytest.raises(CreditLimitReached, match="max_credits=7"):
        run.wait(20)
    assert run.job is not None
    assert len(run.job.done) == 7 == spent(network)
    enough = Run(lambda: EngineJob(network.url, Policy(redundancy=1), credits_limit=MAPS + PARTITIONS))
    enough.wait(30)
    assert enough.result == EXPECTED


# --- foremen that are killed -----------------------------------------------------------------------


def child(network: Network, directory: Path, point: str, limit: str = "") -> subprocess.CompletedProcess[bytes]:
    """A foreman in a process of its own."""
    directory.mkdir(exist_ok=True)
    environment = {**os.environ, "EC262_HOME": str(network.directory / "foreman"), "PYTHONPATH": str(ROOT)}
    # Not as a program: its functions would be another module's, and its tasks not those of a job in this process.
    call = "import sys; from tests.acceptance.engine_job import main; main(*sys.argv[1:])"
    command = [sys.executable, "-c", call, network.url, str(directory), point, limit]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, timeout=60)


@pytest.mark.parametrize(
    "points",
    [
        *(["noted"], ["start", "map", "reduce"], ["asked", "answered", "answered", "noting", "sent", "answered"]),
        *(
            pytest.param([point], marks=pytest.mark.slow)  # they are in those above, too
            for point in ("asked", "answered", "noting", "sent", "start", "map", "reduce")
        ),
    ],
)
def test_a_foreman_that_was_killed_goes_on_and_pays_once(
    make_network: MakeNetwork, tmp_path: Path, points: list[str]
) -> None:
    network = make_network()
    network.worker()
    network.worker()
    for point in points:
        killed = child(network, tmp_path / "job", point)
        assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    if not {"map", "reduce"} & set(points):
        assert spent(network) == 0, "it was killed before it had results"
    ended = child(network, tmp_path / "job", "")
    assert ended.returncode == 0, ended.stderr.decode()
    said = json.loads(ended.stdout)
    assert dict(said["result"]) == EXPECTED
    assert said["spent"] == spent(network) == MAPS + PARTITIONS, "each task was paid for once"
    # No deadline has passed yet: what was leased and never used would still be in escrow.
    assert network.account("foreman")["escrow"] == 0, "what was leased before a kill was used, or given back"
    audit(network)


@pytest.mark.parametrize("point", ["answered", "noting"])
@pytest.mark.parametrize("once", [False, True])
def test_leases_that_nobody_was_sent_are_asked_for_again(
    make_network: MakeNetwork, tmp_path: Path, point: str, once: bool
) -> None:
    """No lease is bought twice; also where nothing may run twice, as it is certain that none has run."""
    network = make_network()
    network.worker()
    killed = child(network, tmp_path, point)
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    leased = int(str(network.account("foreman")["escrow"]))
    assert leased > 0

    def make() -> EngineJob:
        policy = Policy(backup_tasks=False, max_retries=0 if once else 2)
        return EngineJob(network.url, policy, kept=tmp_path / "kept", journal=tmp_path / "journal")

    run = Run(make)
    job = run.wait()
    assert run.result == EXPECTED
    assert set(job.client.leases.values()) == {1}, "by this foreman, those of before included"
    assert spent(network) == MAPS + PARTITIONS
    assert network.account("foreman")["escrow"] == 0
    audit(network)


@pytest.mark.parametrize("point", ["start", "sent", "answered", "map"])
def test_a_limit_of_credits_is_kept_by_a_foreman_that_was_killed(
    make_network: MakeNetwork, tmp_path: Path, point: str
) -> None:
    """What was leased before the kill counts, whether it is paid yet or not: the next one does not spend it again."""
    limit = 9
    network = make_network()
    network.worker()
    killed = child(network, tmp_path, point, str(limit))
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    assert taken(network) > (3 if point == "map" else 0)
    run = Run(
        lambda: EngineJob(
            *(network.url, Policy(backup_tasks=False)),
            kept=tmp_path / "kept",
            journal=tmp_path / "journal",
            credits_limit=limit,
        )
    )
    most = 0
    while run.thread.is_alive():
        most = max(most, taken(network))
        time.sleep(0.02)
    with pytest.raises(CreditLimitReached, match=f"max_credits={limit}"):
        run.wait()
    assert most <= limit
    assert run.job is not None
    assert len(run.job.done) == spent(network) == limit, "and all that it allows is bought"
    audit(network)


def taken(network: Network) -> int:
    """Credits that the foreman's account has spent or in escrow."""
    account = network.account("foreman")
    return int(str(account["spent"])) + int(str(account["escrow"]))


def test_a_request_of_long_ago_is_not_asked_again(
    make_network: MakeNetwork, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Discovery would take it for a new one: its tasks are leased as any, and their escrow comes back in time."""
    network = make_network()
    network.worker()
    assert child(network, tmp_path, "answered").returncode == -signal.SIGKILL
    leased = network.account("foreman")["escrow"]
    later = time.time() + ASK_AGAIN_S + 1
    monkeypatch.setattr("ec262.foreman.repeating.time.time", lambda: later)
    run = Run(
        lambda: EngineJob(network.url, Policy(backup_tasks=False), kept=tmp_path / "kept", journal=tmp_path / "journal")
    )
    run.wait()
    assert run.result == EXPECTED
    assert spent(network) == MAPS + PARTITIONS
    assert network.account("foreman")["escrow"] == leased


def test_a_failure_is_a_failure_also_after_a_kill(make_network: MakeNetwork, tmp_path: Path) -> None:
    """What may not run twice is not started again by the next foreman."""
    network = make_network()
    hanging = hanging_worker(network, tmp_path)
    policy = Policy(max_retries=0, timeout_s=1.0)

    def make() -> EngineJob:
        return EngineJob(network.url, policy, maps=1, journal=tmp_path / "journal", patience_s=0.2)

    for _ in range(2):
        run = Run(make)
        with pytest.raises(EC262Error, match="max_retries=0"):
            run.wait(20)
    assert run.job is not None
    assert getattr(run.job.client, "leases", {}) == {}
    hanging.kill()
