"""Jobs through the relay, with programs as a person starts them."""

from __future__ import annotations

import errno
import socket
import time
from collections.abc import Callable

import ec262
from tests.acceptance.conftest import Network

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
