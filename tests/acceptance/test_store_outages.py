"""The store dies under a discovery that runs: its own is started again, somebody else's is waited for.

Real processes: ``kill -9`` of the store while foremen and workers settle.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis
import requests
from gevent.event import AsyncResult

from discovery.operator import store_of
from discovery.service import _reach
from discovery.store.binary import find_binary
from discovery.store.server import RedisServer, start_server
from discovery.store.store import Store
from ec262.credentials import Account
from ec262.discovery_client import DiscoveryClient, create_account_at
from ec262.errors import NetworkError
from ec262.protocol import messages as m
from tests.commands import run
from tests.processes import Process, kill_store, nothing_left, store_pid, until


def discovery(home: Path, *flags: str) -> Process:
    return Process(
        ["-m", "discovery", "--port", "0", "--network", "private", "--data-dir", str(home / "data"), *flags],
        home=home / "home",
        log=home / "discovery.log",
    )


def clean(home: Path, *where: str) -> None:
    done = run("ledger", "verify", *where, home=home)
    assert done.returncode == 0, done.stdout + done.stderr


class Payer(threading.Thread):
    """Sends credits one by one, and knows how many were acknowledged. What was not is asked for again."""

    def __init__(self, url: str, payer: Account, payee: Account) -> None:
        super().__init__(daemon=True)
        self._url, self._payer, self._payee = url, payer, payee
        self.told = 0
        self.over = threading.Event()
        self.odd: list[str] = []

    def run(self) -> None:
        payer = self._payer
        with DiscoveryClient(self._url, payer.account_id, payer.secret, retry_for_s=0) as client:
            while not self.over.is_set():
                key = f"{self.told:032x}"
                try:
                    client.transfer(m.Transfer(to=self._payee.account_id, amount=1, idempotency_key=key))
                    self.told += 1
                except NetworkError as reason:
                    if getattr(reason, "status", 0) != 503:
                        self.odd.append(str(reason))
                    time.sleep(0.01)

    def stop(self) -> int:
        self.over.set()
        self.join()
        return self.told


@pytest.fixture
def accounts() -> Callable[[str], tuple[Account, Account]]:
    def made(url: str) -> tuple[Account, Account]:
        with DiscoveryClient(url) as one, DiscoveryClient(url) as other:
            return create_account_at(one), create_account_at(other)

    return made


def balance(url: str, account: Account) -> int:
    answer = requests.get(f"{url}/v1/account", auth=(account.account_id, account.secret), timeout=30)
    return int(answer.json()["balance"])


def test_an_embedded_store_that_is_killed_comes_back_with_all_it_acknowledged(
    tmp_path: Path, accounts: Callable[[str], tuple[Account, Account]]
) -> None:
    """kill -9 of the store, then of its watchdog: discovery goes on, with its address and every payment."""
    with nothing_left():
        service = discovery(tmp_path)
        url = str(service.ready["url"])
        try:
            payer, payee = accounts(url)
            before = balance(url, payee)
            with store_of(None, tmp_path / "data") as (store, _):
                store.books.mint("mint", payer.account_id, 10**6, "to be sent")
            clerk = Payer(url, payer, payee)
            clerk.start()
            for kind in ("store", "store", "watchdog"):
                told = clerk.told
                until(lambda: clerk.told > told + 20 or bool(clerk.odd), what="payments")  # noqa: B023
                pid = store_pid(tmp_path / "data")
                assert pid > 0
                watchdog = next(p for p in service.family() if p.ppid() == service.pid and pid in kids(p))
                os.kill(pid if kind == "store" else watchdog.pid, signal.SIGKILL)
                until(lambda: store_pid(tmp_path / "data") not in (0, pid), what="another store")  # noqa: B023
            told = clerk.told
            until(lambda: clerk.told > told + 20 or bool(clerk.odd), what="payments after the last kill")
            told = clerk.stop()
            assert clerk.odd == [], "requests got anything but 503"
            assert balance(url, payee) - before == told
            clean(tmp_path, "--data-dir", str(tmp_path / "data"))
        finally:
            code = service.stop()
        assert code == 0
        clean(tmp_path, "--data-dir", str(tmp_path / "data"))
    log = (tmp_path / "discovery.log").read_text()
    assert log.count("ended by itself (killed by SIGKILL)") == 2
    assert log.count("ended by itself (its watchdog was killed)") == 1
    assert log.count("runs again") == 3
    assert "Traceback" not in log


def kids(process: object) -> set[int]:
    return {child.pid for child in process.children()}  # type: ignore[attr-defined]


def test_an_embedded_store_that_cannot_stay_up_ends_discovery_with_one_message(tmp_path: Path) -> None:
    """Its append-only file is damaged while it runs: no start can mend that, and nobody is served for ever with 503."""
    with nothing_left():
        service = discovery(tmp_path)
        (manifest,) = (tmp_path / "data" / "appendonlydir").glob("*.manifest")
        manifest.write_text("junk\n")
        kill_store(tmp_path / "data")
        assert service.wait(60) == 1
    log = (tmp_path / "discovery.log").read_text()
    assert "Traceback" not in log
    lines = log.splitlines()
    (said,) = [number for number, line in enumerate(lines) if line.startswith("ec262 discovery: ")]
    assert "failed 6 times, each time soon after its start" in lines[said]
    assert "manifest" in "\n".join(lines[said:]), "the reason, as the store logged it"


def test_an_embedded_networks_store_comes_back_too_and_still_leaves_nothing_behind(
    tmp_path: Path, accounts: Callable[[str], tuple[Account, Account]]
) -> None:
    with nothing_left():
        service = discovery(tmp_path, "--ephemeral")
        url = str(service.ready["url"])
        one, other = accounts(url)
        pid = kill_store(tmp_path / "data")
        until(lambda: store_pid(tmp_path / "data") not in (0, pid), what="another store")
        until(lambda: requests.get(f"{url}/v1/health", timeout=30).status_code == 200, what="its health")
        assert balance(url, one) == balance(url, other) == 1_000_000
        assert service.stop() == 0
    assert not (tmp_path / "data" / "redis.conf").exists()


@pytest.mark.skipif(os.geteuid() != 0 or sys.platform != "linux", reason="mounts a file system")
def test_a_full_disk_ends_discovery_and_loses_nothing_that_was_acknowledged(
    tmp_path: Path, accounts: Callable[[str], tuple[Account, Account]]
) -> None:
    """The store writes before it acknowledges; where the disk takes nothing it ends, and in the end discovery does."""
    small = tmp_path / "data"
    small.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(small)], capture_output=True)
    if done.returncode != 0:
        pytest.skip("may not mount")
    try:
        with nothing_left():
            service = discovery(tmp_path)
            url = str(service.ready["url"])
            payer, payee = accounts(url)
            with store_of(None, small) as (store, _):
                store.books.mint("mint", payer.account_id, 10**6, "to be sent")
            before = balance(url, payee)
            clerk = Payer(url, payer, payee)
            clerk.start()
            with contextlib.suppress(OSError), open(small / "other", "wb", buffering=0) as other:
                while True:
                    other.write(bytes(1024))
            assert service.wait(90) == 1
            told = clerk.stop()
        log = (tmp_path / "discovery.log").read_text()
        assert "Traceback" not in log
        assert "no space left on its disk" in log[log.index("ec262 discovery: the embedded store") :]
        (small / "other").unlink()
        with nothing_left():
            service = discovery(tmp_path)
            assert balance(str(service.ready["url"]), payee) - before in (told, told + 1)
            assert service.stop() == 0
            clean(tmp_path, "--data-dir", str(small))
    finally:
        subprocess.run(["umount", "-l", str(small)], check=True)


@pytest.fixture
def external(tmp_path: Path) -> Iterator[list[RedisServer]]:
    """A Redis of somebody else's, whose address stays the same."""
    with nothing_left():
        running = [start_server(tmp_path / "s", transport="unix")]
        yield running
        running[-1].close()


def test_an_external_redis_that_is_away_is_waited_for(
    tmp_path: Path, external: list[RedisServer], accounts: Callable[[str], tuple[Account, Account]]
) -> None:
    service = discovery(tmp_path, "--redis", external[0].url)
    url = str(service.ready["url"])
    try:
        payer, payee = accounts(url)
        os.kill(external[0].pid, signal.SIGKILL)
        until(lambda: not external[0].alive, what="its end")
        for path in ("/v1/health", "/v1/account", "/"):
            auth = (payer.account_id, payer.secret)
            answer = requests.get(url + path, auth=auth, timeout=30)
            assert (answer.status_code, answer.json()["code"]) == (503, "unavailable")
            assert answer.headers["Content-Type"] == "application/problem+json"
            assert answer.headers["Retry-After"]
        until(lambda: "sweeping waits for it" in (tmp_path / "discovery.log").read_text(), what="a line in the log")
        assert service.popen.poll() is None
        external.append(external[0].again())
        assert external[1].url == external[0].url
        until(lambda: requests.get(f"{url}/v1/health", timeout=30).status_code == 200, what="its health")
        assert balance(url, payer) == balance(url, payee) == 1_000_000
        until(lambda: "sweeping goes on" in (tmp_path / "discovery.log").read_text(), what="the end in the log")
        clean(tmp_path, "--redis", external[1].url, "--archive", str(tmp_path / "data" / "ledger"))
    finally:
        assert service.stop() == 0
    log = (tmp_path / "discovery.log").read_text()
    assert log.count("sweeping waits for it") == 1, "one line for the outage, not one a second"
    assert "Traceback" not in log


def test_a_redis_that_loads_its_data_is_waited_for_at_the_start(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with start_server(tmp_path / "s", fsync="no") as server:
        pipeline = redis.Redis.from_url(server.url).pipeline(transaction=False)
        for number in range(15_000):  # it looks around after each thousand
            pipeline.set(f"key{number}", number)
        pipeline.execute()
    address = tmp_path / "redis.sock"
    slow = subprocess.Popen(
        [
            *(find_binary(), "--port", "0", "--unixsocket", address, "--dir", tmp_path / "s", "--appendonly", "yes"),
            *("--key-load-delay", "60", "--logfile", tmp_path / "redis.log"),
        ]
    )
    store = Store(f"unix://{address}")
    try:
        until(address.exists, what="its socket")
        with pytest.raises(redis.BusyLoadingError):
            store.ping()
        _reach(store, AsyncResult())
        store.ping()
        assert [record.message for record in caplog.records] == [
            "Redis loads its data; the service begins when that is done"
        ]
    finally:
        store.close()
        slow.kill()
        slow.wait()


def test_a_redis_that_is_not_there_at_the_start_is_a_clear_error(tmp_path: Path) -> None:
    done = run("discovery", "--redis", f"unix://{tmp_path}/nothing", "--data-dir", str(tmp_path / "d"), home=tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith("ec262 discovery: --redis unix://")
    assert "Traceback" not in done.stderr
