"""Jobs through the relay, with programs as a person starts them."""

from __future__ import annotations

import errno
import socket
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import redis

import ec262
from ec262.discovery_client import DiscoveryClient
from tests.acceptance.conftest import Network
from tests.processes import Process, nothing_left, until

MakeNetwork = Callable[..., Network]
MEGABYTE = 1_000_000


def test_large_inputs_and_results_go_through_in_parts(make_network: MakeNetwork) -> None:
    network = make_network()
    for _ in range(2):
        network.worker("--relay", "always")
    result = ec262.run_job(
        {number: chr(97 + number) * (3 * MEGABYTE) for number in range(6)},
        mapper=lambda number, text: [(number, text)],
        reducer=lambda _, texts: sum(len(text) for text in texts),
        discovery=network.url,
        items_per_task=1,
        rehearse=False,
    )
    assert result == dict.fromkeys(range(6), 3 * MEGABYTE)
    credits = network.credits()
    assert credits["minted"] == credits["accounts"], "and everybody is paid"


def test_limits_of_requests_make_a_job_through_the_relay_slower_and_no_more(make_network: MakeNetwork) -> None:
    """Where megabytes are more than an account may send. No worker is blamed: one that is lost would fail the job."""
    network = make_network(
        *("--network", "private", "--metrics", "127.0.0.1", "--account-requests", "20", "--address-requests", "60")
    )
    for _ in range(2):
        network.worker("--relay", "always")
    job = ec262.submit(
        {number: chr(97 + number) * (2 * MEGABYTE) for number in range(9)},
        mapper=lambda number, text: [(number, len(text))],
        reducer=lambda _, sizes: sum(sizes),
        discovery=network.url,
        items_per_task=1,
        max_retries=0,
        rehearse=False,
    )
    assert job.result(60) == dict.fromkeys(range(9), 2 * MEGABYTE)
    report = job.report()
    with DiscoveryClient(network.url) as client:
        refused = [line for line in client.metrics().splitlines() if line.startswith("ec262_rate_limited_total{")]
    assert sum(float(line.rpartition(" ")[2]) for line in refused) > 0, "the limits were felt"
    assert report.credits_spent == report.map_tasks + report.reduce_tasks


def test_a_worker_at_the_relay_leaves_at_once_when_it_has_nothing(make_network: MakeNetwork) -> None:
    network = make_network()
    worker = network.worker("--relay", "always")
    with socket.socket() as caller:
        assert caller.connect_ex(("127.0.0.1", int(str(worker.ready["port"])))) == errno.ECONNREFUSED
    started = time.monotonic()
    assert worker.stop() == 0
    assert time.monotonic() - started < 10.0
    log = worker.log.read_text()
    assert "through the relay alone" in log
    assert "Traceback" not in log


def test_discovery_ends_at_once_though_workers_wait_at_it(make_network: MakeNetwork) -> None:
    network = make_network()
    network.worker("--relay", "always")
    started = time.monotonic()
    assert network.discovery.stop() == 0
    assert time.monotonic() - started < 5.0


NARROW = """
import dataclasses
import os
from gevent import monkey
monkey.patch_all()
import discovery.relay
import discovery.service as service

carry = discovery.relay.Relay.call

def noted(self, account, worker, sender, call, **named):
    reply = carry(self, account, worker, sender, call, **named)
    with open(os.environ["CARRIED"], "ab") as file:
        file.write(call + reply)
    return reply

discovery.relay.Relay.call = noted
usual = service.settings_for
service.settings_for = lambda *given, **named: dataclasses.replace(
    usual(*given, **named), relay_worker_calls=6, relay_worker_bytes=4_800_000, relay_bytes=4_800_000
)
raise SystemExit(service.main())
"""


def test_several_processes_with_little_room_carry_a_job_and_lose_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, redis_url: str
) -> None:
    """The foreman calls one process, the workers poll another; what finds no room comes again. One of the processes is
    killed meanwhile and started anew. All that they carry is sealed."""
    monkeypatch.setenv("EC262_HOME", str(tmp_path / "foreman"))
    monkeypatch.delenv("EC262_DISCOVERY", raising=False)
    carried = tmp_path / "carried"
    with redis.Redis.from_url(redis_url) as client:
        client.flushall()

    def start(name: str, port: str = "0") -> Process:
        flags = ["--network", "private", "--port", port, "--redis", redis_url, "--data-dir", str(tmp_path / "keys")]
        said = {"CARRIED": str(carried)}
        return Process(["-c", NARROW, *flags], home=tmp_path, log=tmp_path / f"{name}.log", environment=said)

    with nothing_left():
        with ThreadPoolExecutor() as starting:
            running = list(starting.map(start, ("first", "second")))
        first, second = (str(each.ready["url"]) for each in running)

        def lend(name: str) -> Process:
            flags = ["-P", "0", "--slots", "1", "--drain", "1s", "--discovery", second, "--relay", "always"]
            return Process(["worker.py", *flags], home=tmp_path / name, log=tmp_path / f"{name}.log")

        with ThreadPoolExecutor() as starting:
            running += starting.map(lend, ("worker0", "worker1"))
        try:
            job = ec262.submit(
                {number: chr(97 + number) * (2 * MEGABYTE) for number in range(5)},
                mapper=lambda number, text: [(number, text)],
                reducer=lambda _, texts: sum(len(text) for text in texts),
                discovery=first,
                items_per_task=1,
                rehearse=False,
            )
            until(lambda: job.progress().done > 0, what="some of it")
            running[1].kill()
            running[1] = start("second", second.rpartition(":")[2])
            assert job.result(90) == dict.fromkeys(range(5), 2 * MEGABYTE)
            report = job.report()
            seen = carried.read_bytes()
            assert len(seen) > 20 * MEGABYTE, "each text went there and came back, twice"
            assert b"/v1/tasks" in seen
            assert not any(bytes([97 + number]) * 32 in seen for number in range(5))
            # A task that was taken over counts twice where both did it: whoever agrees is paid.
            assert report.credits_spent >= report.map_tasks + report.reduce_tasks
            with DiscoveryClient(first) as client:
                books = client.credits()
            assert books.minted - books.burnt == books.accounts + books.escrow
        finally:
            for process in reversed(running):
                process.stop()
