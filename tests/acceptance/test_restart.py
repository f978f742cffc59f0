"""A service of several processes under load, of which everything ends in turn: no job fails, the books are clean."""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from discovery.store.server import start_server
from ec262.discovery_client import DiscoveryClient
from tests.acceptance.test_processes import service, web_processes
from tests.commands import run
from tests.load import load
from tests.processes import Process, nothing_left, until


def renew(discovery: Process) -> None:
    """New processes in the place of all."""
    before = {child.pid for child in web_processes(discovery)}
    discovery.popen.send_signal(signal.SIGHUP)
    until(lambda: len({child.pid for child in web_processes(discovery)} - before) == 2, 60, "two new processes")


def kill_one(discovery: Process) -> None:
    """kill -9 of a process that answers, with Redis alive."""
    os.kill(random.choice(web_processes(discovery)).pid, signal.SIGKILL)


def kill_store(discovery: Process) -> None:
    """kill -9 of the embedded store; the supervisor starts it again."""
    for child in psutil.Process(discovery.pid).children(recursive=True):
        if "valkey" in child.name() or "redis" in child.name():
            child.kill()


def stop_one(discovery: Process) -> None:
    """SIGTERM to one process, as a person may who mistakes it for the service."""
    os.kill(random.choice(web_processes(discovery)).pid, signal.SIGTERM)


HAPPENINGS: list[Callable[[Process], None]] = [renew, kill_one, kill_store, stop_one]


def check(data: Path, home: Path) -> None:
    done = run("ledger", "verify", "--data-dir", str(data), home=home)
    assert done.returncode == 0, done.stdout + done.stderr


def restarts(directory: Path, rounds: int, items: int) -> None:
    """Has every happening happen, again and again, while a job is computed."""
    data = directory / "data"
    with nothing_left():
        discovery = service(directory, "--processes", "2")
        with load(directory / "load", discovery.ready["url"], items=items) as busy:
            todo = HAPPENINGS * rounds
            for number, happening in enumerate(todo):
                busy.go(items * (number + 1) // (len(todo) + 1))
                happening(discovery)
                with DiscoveryClient(discovery.ready["url"], retry_for_s=60) as client:
                    assert client.ready().status == "ok"
                check(data, directory)
            busy.finish()
        check(data, directory)
        assert discovery.stop() == 0
    check(data, directory)
    assert "Traceback" not in discovery.log.read_text()


@pytest.mark.timeout(240)
def test_everything_ends_in_turn_and_the_job_goes_on(tmp_path: Path) -> None:
    restarts(tmp_path, 1, 400)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_everything_ends_in_turn_for_long(tmp_path: Path) -> None:
    restarts(tmp_path, 8, 6400)


@pytest.mark.timeout(240)
def test_a_redis_of_its_own_is_restarted_under_load(tmp_path: Path) -> None:
    """Nobody starts it again but its operator; until then requests are answered with 503, and clients ask again."""
    with nothing_left():
        server = start_server(tmp_path / "store", transport="unix")
        flags = ["--processes", "2", "--redis", server.url]
        discovery = service(tmp_path, *flags)
        with load(tmp_path / "load", discovery.ready["url"], items=200) as busy:
            for share in (1, 2):
                busy.go(200 * share // 3)
                before = server.url
                os.kill(server.pid, signal.SIGKILL)
                server.close()
                server = start_server(tmp_path / "store", transport="unix")
                assert server.url == before
            busy.finish()
        done = run("ledger", "verify", "--redis", server.url, home=tmp_path)
        assert done.returncode == 0, done.stdout + done.stderr
        assert discovery.stop() == 0
        server.close()
    assert "Traceback" not in discovery.log.read_text()
