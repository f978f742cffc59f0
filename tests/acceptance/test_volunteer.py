"""A volunteer's day with real processes: preferences, pause, leaving, suspend, discovery restarted, lost for good."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gevent
import psutil
import pytest
import requests

import ec262
from discovery.app import Discovery
from discovery.ledger import totals
from ec262.credentials import CredentialStore
from ec262.serving import Server
from tests.acceptance.conftest import Network
from tests.acceptance.test_network import audit
from tests.conftest import MakeDiscovery
from tests.processes import ROOT, START_S, Process, nothing_left, until

MakeNetwork = Callable[..., Network]
HEARTBEAT_S = 0.3
TASKS = 60


def burn(key: int, loops: int) -> Iterator[tuple[int, int]]:
    x = 0
    for i in range(loops):
        x += i
    yield key % 4, 1


def total(key: int, values: list[int]) -> int:
    return sum(values)


def job_of(url: str, *, tasks: int = TASKS, loops: int = 400_000, **options: Any) -> Any:
    """A job of so many map tasks, of some 20 ms each, that runs in the background."""
    options.setdefault("backup_tasks", False)  # a straggler and its backup may both be paid
    data = dict.fromkeys(range(tasks), loops)
    return ec262.submit(
        data, mapper=burn, reducer=total, discovery=url, items_per_task=1, reducers=1, rehearse=False, **options
    )


def finished_right(job: Any, tasks: int = TASKS) -> None:
    assert job.result(90) == {rest: len(range(rest, tasks, 4)) for rest in range(4)}


def command(home: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """``ec262 worker ...`` for the workers of a home."""
    return subprocess.run(
        [sys.executable, "-m", "ec262.cli", "worker", *words],
        cwd=ROOT, env={**os.environ, "EC262_HOME": str(home)}, capture_output=True, text=True, timeout=60,
    )  # fmt: skip


def status(home: Path, *flags: str) -> dict[str, Any]:
    """What the one worker of a home says of itself."""
    (line,) = command(home, "status", "--json", *flags).stdout.splitlines()
    return dict(json.loads(line))


def taken(worker: Process) -> int:
    """Tasks that a worker holds, by what it tells everybody."""
    state = requests.get(f"{worker.ready['url']}/", timeout=10).json()
    return int(state["running"]) + int(state["queued"])


def earned(network: Network, name: str) -> int:
    return int(str(network.account(name)["earned"]))


# --- preferences, with real processes ---


def test_flags_and_file_are_obeyed_and_shown(make_network: MakeNetwork, tmp_path: Path) -> None:
    network = make_network("--network", "private", "--heartbeat", str(HEARTBEAT_S))
    home, sensors = tmp_path / "worker0", tmp_path / "sensors.json"
    home.mkdir()
    (home / "worker.toml").write_text('only_on_mains = true\nmin_price = 1\nmemory = "6G"\n')
    sensors.write_text('{"on_mains": false}')
    os.environ["EC262_WORKER_SENSORS"] = str(sensors)
    try:
        worker = network.worker("--niceness", "7", "--slots", "2")
    finally:
        del os.environ["EC262_WORKER_SENSORS"]
    assert requests.get(f"{worker.ready['url']}/", timeout=10).json()["slots"] == 2
    assert {each.nice() for each in worker.family()} == {7}
    shown = command(home, "status")
    assert shown.returncode == 0
    assert "not working: on battery" in shown.stdout
    assert "only_on_mains True (on battery)" in shown.stdout
    assert "memory_bytes 6442450944" in shown.stdout
    job = job_of(network.url, tasks=4)
    time.sleep(1.0)
    assert taken(worker) == 0
    assert not job.done()
    sensors.write_text('{"on_mains": true}')
    finished_right(job, 4)
    until(lambda: earned(network, "worker0") == 5, what="paid")
    until(lambda: status(home)["earned_today"] == 5, what="shown as earned today")
    audit(network)


def test_wrong_preferences_are_said_and_nothing_starts(tmp_path: Path) -> None:
    (tmp_path / "worker.toml").write_text("slotz = 2\n")
    done = command(tmp_path, "-P", "0", "--discovery", "http://127.0.0.1:9")
    assert done.returncode == 1
    assert "there is no preference 'slotz'" in done.stderr
    assert "Traceback" not in done.stderr
    assert command(tmp_path, "--memory", "x").returncode == 2
    assert command(tmp_path, "status").returncode == 1, "none runs"


# --- pause ---


def test_a_paused_worker_takes_nothing_and_others_go_on(make_network: MakeNetwork, tmp_path: Path) -> None:
    network = make_network("--network", "private", "--heartbeat", str(HEARTBEAT_S))
    first, second = network.worker(), network.worker()
    job = job_of(network.url)
    until(lambda: taken(first) > 0, what="at work")
    said = command(tmp_path / "worker0", "pause")
    assert (said.returncode, said.stderr) == (0, "")
    assert "not working: paused by its owner" in said.stdout
    until(lambda: taken(first) == 0, what="what waited was given back, what ran finished")
    finished_right(job)
    assert taken(first) == 0
    assert status(tmp_path / "worker1")["willing"]
    until(
        lambda: earned(network, "worker0") + earned(network, "worker1") == TASKS + 1,
        what="each task paid once, to whoever computed it",
    )
    assert job.report().credits_spent == TASKS + 1
    assert second.popen.poll() is None
    audit(network)


def test_the_only_worker_pauses_and_resumes_and_the_job_ends(make_network: MakeNetwork, tmp_path: Path) -> None:
    network = make_network("--network", "private", "--heartbeat", str(HEARTBEAT_S))
    worker = network.worker()
    job = job_of(network.url)
    until(lambda: taken(worker) > 0, what="at work")
    command(tmp_path / "worker0", "pause")
    until(lambda: taken(worker) == 0, what="idle")
    time.sleep(1.0)
    assert taken(worker) == 0, "nothing is leased to it"
    assert "willing" in command(tmp_path / "worker0", "resume").stdout or taken(worker)
    finished_right(job)
    audit(network)


def test_of_two_workers_of_one_home_one_is_paused(make_network: MakeNetwork, tmp_path: Path) -> None:
    network = make_network("--network", "private", "--heartbeat", str(HEARTBEAT_S))
    one = network.worker()
    other = Process(
        ["worker.py", "-P", "0", "--slots", "1", "--discovery", network.url],
        home=tmp_path / "worker0", log=tmp_path / "other.log",
    )  # fmt: skip
    network.workers.append(other)
    home, port = tmp_path / "worker0", str(one.ready["port"])
    assert command(home, "status").stdout.count("state ") == 2
    assert command(home, "pause", "-P", port).stdout.count("paused") == 1
    assert not status(home, "-P", port)["willing"]
    assert status(home, "-P", str(other.ready["port"]))["willing"]
    assert command(home, "resume").stdout.count("worker on port") == 2


# --- leaving ---


def test_a_worker_that_is_told_to_leave_finishes_delivers_and_leaves(make_network: MakeNetwork, tmp_path: Path) -> None:
    network = make_network("--network", "private", "--heartbeat", str(HEARTBEAT_S))
    leaving = network.worker()
    job = job_of(network.url, tasks=16, loops=3_000_000)
    until(lambda: taken(leaving) > 1, what="at work")
    held = taken(leaving)
    leaving.popen.send_signal(signal.SIGTERM)
    network.worker()  # for what was not leased yet
    assert leaving.wait(60) == 0
    finished_right(job, 16)
    facts = job.report()
    assert facts.credits_spent == 17
    assert earned(network, "worker0") >= held, "all that it held was delivered, and paid"
    log = leaving.log.read_text()
    assert "finishing: " in log
    assert "left the pool after" in log
    assert "today" in log
    assert not list((tmp_path / "worker0" / "workers").glob("*.sock"))
    audit(network)


def test_a_lost_worker_ends_by_itself(make_network: MakeNetwork) -> None:
    network = make_network("--network", "private", "--heartbeat", str(HEARTBEAT_S))
    lost, patient = network.worker("--max-living", "2s", "--drain", "1s"), network.worker()
    children = lost.family()
    time.sleep(2.5)
    assert lost.popen.poll() is None, "discovery answers"
    network.discovery.kill()
    killed_s = time.monotonic()
    assert lost.wait(30) == 4
    assert 1.0 < time.monotonic() - killed_s < 25
    assert "no word from discovery for 2 s" in lost.log.read_text()
    until(lambda: not any(child.is_running() for child in children), what="nothing left running")
    assert patient.popen.poll() is None


def test_one_that_never_finds_discovery_ends_as_well(tmp_path: Path) -> None:
    with nothing_left():
        began_s = time.monotonic()
        done = command(tmp_path, "-P", "0", "--slots", "1", "--discovery", "http://127.0.0.1:9", "--max-living", "1s")
        assert done.returncode == 4, done.stderr
        assert time.monotonic() - began_s < START_S


# --- coming back ---


def test_discovery_is_restarted_and_the_worker_is_back_within_a_heartbeat(
    make_network: MakeNetwork, tmp_path: Path
) -> None:
    network = make_network("--network", "private", "--heartbeat", str(HEARTBEAT_S))
    worker = network.worker()
    finished_right(job_of(network.url, tasks=4), 4)
    until(lambda: earned(network, "worker0") == 5, what="paid")
    network.discovery.kill()
    until(lambda: not status(tmp_path / "worker0")["connected"], what="noticed")
    assert "discovery does not answer" in command(tmp_path / "worker0", "status").stdout
    port = network.url.rpartition(":")[2]
    network.discovery = Process(
        ["-m", "discovery", "--port", port, "--data-dir", str(tmp_path / "store"), "--network", "private",
         "--heartbeat", str(HEARTBEAT_S)],
        home=tmp_path / "discovery", log=tmp_path / "discovery.log",
    )  # fmt: skip
    # Until then it asks again and again, with pauses that grow to 15 s.
    until(lambda: bool(status(tmp_path / "worker0")["connected"]), 20.0, "back")
    finished_right(job_of(network.url, tasks=4), 4)
    until(lambda: earned(network, "worker0") == 10, what="paid before and after")
    assert worker.popen.poll() is None
    audit(network)


@pytest.fixture
def quick_discovery(make_discovery: MakeDiscovery) -> Discovery:
    """Times of a discovery service in small."""
    return make_discovery(
        **{"network": "private", "heartbeat_s": HEARTBEAT_S, "ttl_s": 3 * HEARTBEAT_S, "starting_credits": 1_000_000},
        **{"min_timeout_s": 0.5, "late_grace_s": 0.5, "hold_s": 0.5, "prefetch": 8},
    )


def test_suspended_and_resumed_it_is_back_within_a_heartbeat(
    quick_discovery: Discovery, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EC262_HOME", str(tmp_path / "foreman"))
    discovery = quick_discovery
    ended = False

    def sweep() -> None:
        while not ended:
            discovery.sweep()
            gevent.sleep(0.1)

    def eventually(true: Callable[[], Any], what: str) -> None:
        give_up_s = time.monotonic() + 40
        while not true():
            assert time.monotonic() < give_up_s, f"never: {what}"
            gevent.sleep(0.02)

    def alive() -> int:
        return discovery.store.sample(worker_class, [], 1).workers_alive

    workers: list[Process] = []
    with nothing_left(), Server(discovery.app) as server:
        sweeper = gevent.spawn(sweep)
        pool = gevent.get_hub().threadpool

        def start(name: str) -> Process:
            flags = ["worker.py", "-v", "-P", "0", "--slots", "1", "--drain", "1s", "--discovery", server.url]
            made = pool.spawn(lambda: Process(flags, home=tmp_path / name, log=tmp_path / f"{name}.log")).get(
                timeout=60
            )
            workers.append(made)
            return made  # type: ignore[no-any-return]

        def earned_by(name: str) -> int:
            account = CredentialStore(tmp_path / name, environ={}).account(server.url)
            assert account is not None
            return discovery.store.accounts.record(account.account_id).earned

        try:
            worker_class = f"native/3.{sys.version_info[1]}"
            suspended = start("suspended")
            start("other")
            job = job_of(server.url, timeout_s=2.0, cpu_limit_s=1.0, max_retries=5)
            eventually(lambda: earned_by("suspended") > 0, "paid")
            os.kill(suspended.pid, signal.SIGSTOP)
            eventually(lambda: alive() == 1, "it is missed")
            eventually(job.done, "the other takes over what it held")
            finished_right(job)
            report = job.report()
            # Deadlines and grace have passed: what it held is refunded.
            eventually(lambda: totals(discovery.store)[3] == 0, "nothing is in escrow")
            before = earned_by("suspended")
            assert before + earned_by("other") == TASKS + 1 == report.credits_spent, "each task is paid once"
            os.kill(suspended.pid, signal.SIGCONT)
            resumed_s = time.monotonic()
            eventually(lambda: alive() == 2, "back")
            assert time.monotonic() - resumed_s < 5.0
            gevent.sleep(1.0)
            assert earned_by("suspended") == before, "unpaid for what was taken over"
            again = job_of(server.url, tasks=40)
            eventually(again.done, "the next job")
            finished_right(again, 40)
            eventually(lambda: earned_by("suspended") > before, "paid for the rest")
            standing = (tmp_path / "suspended.log").read_text()
            assert "void" not in standing, "it kept its epoch"
        finally:
            for each in workers:
                each.popen.send_signal(signal.SIGCONT)
                each.popen.terminate()
            for each in workers:
                pool.spawn(each.wait).get(timeout=60)
            ended = True
            sweeper.join()


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_suspended_for_90_seconds_with_the_usual_times(make_network: MakeNetwork) -> None:
    network = make_network()
    suspended, _ = network.worker(), network.worker()
    job = job_of(network.url, tasks=200, timeout_s=10.0, cpu_limit_s=5.0)
    until(lambda: earned(network, "worker0") > 0, what="paid")
    os.kill(suspended.pid, signal.SIGSTOP)
    stopped_s = time.monotonic()
    until(lambda: psutil.Process(suspended.pid).status() == psutil.STATUS_STOPPED, what="the stop")
    finished_right(job, 200)
    until(lambda: network.credits()["escrow"] == 0, 120.0, "what it held is refunded")
    before = earned(network, "worker0")
    time.sleep(max(0.0, 90 - (time.monotonic() - stopped_s)))
    os.kill(suspended.pid, signal.SIGCONT)
    resumed_s = time.monotonic()
    home = network.directory / "worker0"
    until(lambda: bool(status(home)["connected"]) and status(home)["silent_s"] < 20, 20.0, "back within a heartbeat")
    print(f"back after {time.monotonic() - resumed_s:.1f} s")
    assert earned(network, "worker0") == before, "unpaid for what was taken over"
    finished_right(job_of(network.url, tasks=60), 60)
    until(lambda: earned(network, "worker0") > before, what="paid for the rest")
    audit(network)
