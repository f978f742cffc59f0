"""Whole jobs over real processes: they end rightly, are paid rightly, and leave nothing behind."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import ec262
from discovery.ledger import verify
from discovery.store.server import start_server
from discovery.store.store import Store
from tests.acceptance.conftest import Network
from tests.processes import Process, until

TEXT = ["to be or not to be", "that is the question", "whether tis nobler in the mind to suffer", ""] * 10
EXPECTED = Counter(" ".join(TEXT).split())


def words(number: int, line: str) -> Iterator[tuple[str, int]]:
    for word in line.split():
        yield word, 1


def total(word: str, counts: list[int]) -> int:
    return sum(counts)


def slow_words(number: int, line: str) -> Iterator[tuple[str, int]]:
    x = 0
    for i in range(400_000):
        x += i
    for word in line.split():
        yield word, 1


def slow_total(word: str, counts: list[int]) -> int:
    x = 0
    for i in range(400_000):
        x += i
    return sum(counts)


def audit(network: Network) -> None:
    """Ends the network and checks its books."""
    network.close()
    with start_server(network.directory / "store") as server:
        store = Store(server.url)
        assert verify(store).faults == []
        store.close()


def test_three_parties_started_by_hand(make_network: Callable[..., Network]) -> None:
    network = make_network()
    for _ in range(2):
        network.worker()
    time.sleep(1.05)
    minted = network.credits()["minted"]
    job = ec262.submit(dict(enumerate(TEXT)), mapper=words, reducer=total, discovery=network.url)
    assert job.result(60) == EXPECTED
    report = job.report()
    assert report.credits_spent == report.map_tasks + report.reduce_tasks == sum(report.earned.values())
    foreman = network.account("foreman")
    earned = [network.account(f"worker{n}")["earned"] for n in range(2)]
    assert foreman["spent"] == report.credits_spent == sum(map(int, map(str, earned)))
    assert foreman["escrow"] == 0
    time.sleep(1.05)
    after = network.credits()
    assert int(str(after["minted"])) == int(str(minted)) + int(str(foreman["balance"])) + int(str(foreman["spent"]))
    assert (after["accounts"], after["escrow"]) == (after["minted"], 0)
    audit(network)


def test_a_second_job_and_another_program_on_the_same_network(make_network: Callable[..., Network]) -> None:
    network = make_network()
    network.worker()
    network.worker()
    for factor in (2, 3):
        result = ec262.run_job(
            {n: n for n in range(20)},
            mapper=lambda key, value, factor=factor: [(key % 2, value * factor)],
            reducer=total,
            discovery=network.url,
        )
        assert result == {0: 90 * factor, 1: 100 * factor}


def test_a_worker_killed_while_it_maps_and_another_while_it_reduces(make_network: Callable[..., Network]) -> None:
    network = make_network()
    for _ in range(3):
        network.worker()
    job = ec262.submit(
        dict(enumerate(TEXT)), mapper=slow_words, reducer=slow_total, discovery=network.url, reducers=8, timeout_s=60
    )
    until(lambda: (job.progress().phase == "map" and job.progress().done >= 3) or job.done(), what="a few maps")
    assert job.progress().phase == "map"
    network.workers[0].kill()
    until(lambda: job.progress().phase == "reduce" or job.done(), what="the reduce phase")
    assert not job.done()
    network.workers[1].kill()
    assert job.result(90) == EXPECTED
    assert job.report().retried > 0
    audit(network)


def test_a_liar_under_redundancy_three(make_network: Callable[..., Network], tmp_path: Path) -> None:
    """A worker with credentials of its own computes, seals and commits to wrong results."""
    network = make_network()
    network.worker()
    network.worker()
    liar = Path(tmp_path / "liar.py")
    liar.write_text(
        "import ec262.worker.outcomes as outcomes\n"
        "from ec262.mapreduce.blocks import encode_grouped\n"
        "honest = outcomes.seal_result\n"
        "def lie(ticket, parts, **more):\n"
        "    lies = [encode_grouped(['lie'], [[1]], where='') if part else part for part in parts]\n"
        "    return honest(ticket, lies, **more)\n"
        "outcomes.seal_result = lie\n"
        "import ec262.worker.runner as runner\n"
        "runner.seal_result = lie\n"
        "from ec262.cli.worker import main\n"
        "raise SystemExit(main())\n"
    )
    network.workers.append(
        Process(
            [str(liar), "-v", "-P", "0", "--slots", "1", "--discovery", network.url],
            home=tmp_path / "worker2",
            log=tmp_path / "liar.log",
        )
    )
    job = ec262.submit(dict(enumerate(TEXT)), mapper=words, reducer=total, discovery=network.url, redundancy=3)
    assert job.result(60) == EXPECTED
    report = job.report()
    liar_id = network.workers[2].ready["worker_id"]
    assert liar_id in report.dissenters, "the liar is marked"
    lines = sum(1 for line in TEXT if line)
    earned = [int(str(network.account(f"worker{n}")["earned"])) for n in range(3)]
    # Maps of empty lines have empty results, about which it could not lie.
    assert earned[2] == len(TEXT) - lines
    assert earned[0] == earned[1] == report.map_tasks + report.reduce_tasks
    assert int(str(network.account("foreman")["escrow"])) == 0
    audit(network)


def test_a_foreman_without_credits_gets_a_clear_error_and_takes_no_worker(make_network: Callable[..., Network]) -> None:
    network = make_network("--network", "private", "--starting-credits", "0")
    network.worker()
    with pytest.raises(ec262.InsufficientCredits, match=r"needs 41 credits.*has 0"):
        ec262.run_job(dict(enumerate(TEXT)), mapper=words, reducer=total, discovery=network.url)
    assert int(str(network.account("foreman")["escrow"])) == 0


def test_no_worker_is_said_and_nothing_is_spent(make_network: Callable[..., Network]) -> None:
    network = make_network()
    with pytest.raises(ec262.NoWorkers, match=r"python worker\.py"):
        ec262.run_job({1: "a"}, mapper=words, discovery=network.url, wait_for_workers_s=0.5)
    network.worker()
    with pytest.raises(ec262.NoWorkers, match="redundancy=3"):
        ec262.run_job({1: "a"}, mapper=words, discovery=network.url, wait_for_workers_s=0.5, redundancy=3)
    assert int(str(network.account("foreman")["spent"])) == 0


def test_workers_may_come_late(make_network: Callable[..., Network]) -> None:
    network = make_network()
    job = ec262.submit({1: "a b"}, mapper=words, reducer=total, discovery=network.url)
    time.sleep(0.5)
    network.worker()
    assert job.result(30) == {"a": 1, "b": 1}


def test_an_error_in_the_program_reaches_the_user_with_its_line(make_network: Callable[..., Network]) -> None:
    network = make_network()
    network.worker()

    def divides(key: int, value: int) -> list[tuple[int, float]]:
        return [(key, 1 / value)]

    with pytest.raises(ec262.TaskFailed) as caught:
        ec262.run_job({n: n for n in range(5)}, mapper=divides, discovery=network.url)
    assert caught.value.error_type == "ZeroDivisionError"
    assert "divides" in caught.value.remote_traceback
    assert "1 / value" in str(caught.value)


def test_a_job_over_its_cpu_limit_says_so(make_network: Callable[..., Network]) -> None:
    network = make_network()
    network.worker()

    def spins(key: int, value: int) -> list[Any]:
        while True:
            pass

    with pytest.raises(ec262.LimitExceeded, match=r"(?i)cpu"):
        ec262.run_job({1: 1}, mapper=spins, discovery=network.url, cpu_limit_s=0.5)


def test_cancel_settles_what_is_done_and_returns_the_rest(make_network: Callable[..., Network]) -> None:
    network = make_network()
    network.worker()
    network.worker()
    job = ec262.submit(dict.fromkeys(range(200), "a"), mapper=slow_words, reducer=total, discovery=network.url)
    until(lambda: job.progress().done >= 5, what="five maps")
    job.cancel()
    with pytest.raises(ec262.JobCancelled):
        job.result(30)
    foreman = network.account("foreman")
    assert int(str(foreman["escrow"])) == 0
    assert 5 <= int(str(foreman["spent"])) < 200
    assert ec262.run_job({1: "a"}, mapper=words, reducer=total, discovery=network.url) == {"a": 1}


def test_a_worker_told_to_leave_finishes_what_it_holds(make_network: Callable[..., Network]) -> None:
    network = make_network()
    leaving = network.worker()
    network.worker()
    job = ec262.submit(dict(enumerate(TEXT)), mapper=slow_words, reducer=total, discovery=network.url)
    until(lambda: job.progress().done >= 3, what="three maps")
    assert leaving.stop() == 0
    assert job.result(60) == EXPECTED
    assert job.report().retried == 0, "nothing it held was lost"
    audit(network)


def test_a_worker_goes_when_its_parent_goes(make_network: Callable[..., Network]) -> None:
    worker = make_network().worker()
    family = worker.family()
    assert len(family) >= 2, "the sandbox is a process of its own"
    assert worker.popen.stdin is not None
    worker.popen.stdin.close()
    until(lambda: not any(process.is_running() and process.status() != "zombie" for process in family[1:]))
    worker.popen.wait(10)


def test_discovery_restarted_in_the_middle_of_a_job(make_network: Callable[..., Network], tmp_path: Path) -> None:
    """kill -9 of discovery and its store: the job goes on when it is back, and the books are clean."""
    network = make_network()
    network.worker()
    network.worker()
    port = network.url.rsplit(":", 1)[1]
    job = ec262.submit(dict.fromkeys(range(60), "a"), mapper=slow_words, reducer=total, discovery=network.url)
    until(lambda: job.progress().done >= 5, what="five maps")
    network.discovery.kill()
    network.discovery = Process(
        ["-m", "discovery", "--port", port, "--data-dir", str(tmp_path / "store"), "--network", "private"],
        home=tmp_path / "discovery",
        log=tmp_path / "discovery.log",
    )
    assert job.result(60) == {"a": 60}
    audit(network)


def test_no_home_is_touched_but_the_one_named(make_network: Callable[..., Network], tmp_path: Path) -> None:
    network = make_network()
    network.worker()
    ec262.run_job({1: "a"}, mapper=words, reducer=total, discovery=network.url)
    stored = tmp_path / "foreman" / "credentials.json"
    assert os.stat(stored).st_mode & 0o777 == 0o600
    assert os.stat(stored.parent).st_mode & 0o777 == 0o700
