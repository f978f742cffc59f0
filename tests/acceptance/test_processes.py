"""Several processes over one Redis behave as one: leases, settlements, limits, counters, and one that sweeps."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import signal
import ssl
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil
import pytest

from discovery.operator import store_of
from ec262.discovery_client import DiscoveryClient, create_account_at
from ec262.errors import ProblemError
from ec262.protocol import messages as m
from tests.certificates import Authority
from tests.commands import run
from tests.load import load
from tests.processes import ROOT, Process, nothing_left, until

FLAGS = ["-m", "discovery", "--port", "0", "--metrics", "127.0.0.1"]


def service(directory: Path, *flags: str, network: str = "private") -> Process:
    data = ["--data-dir", str(directory / "data"), "--network", network]
    return Process([*FLAGS, *data, *flags], home=directory / "home", log=directory / "log")


def web_processes(discovery: Process) -> list[psutil.Process]:
    """Those that answer, or finish."""
    found = []
    for child in psutil.Process(discovery.pid).children():
        with contextlib.suppress(psutil.NoSuchProcess):  # so are those called that ended a moment ago
            if "--parent-pipe" in child.cmdline()[5:] and "discovery" in child.cmdline():
                found.append(child)
    return found


def metric(text: str, name: str) -> dict[str, float]:
    """Samples of a metric, by their labels."""
    found = re.findall(rf"^{name}(\{{[^}}]*\}})? (\S+)$", text, re.MULTILINE)
    return {labels: float(value) for labels, value in found}


class Hammer(threading.Thread):
    """Asks again and again over one connection, and again over the next where an answer said that it ends.

    It forgives nothing: a request without an answer, or with a bad one, is a failure.
    """

    def __init__(self, url: str, pause_s: float = 0.005) -> None:
        super().__init__(daemon=True)
        self._at = urlsplit(url)
        self._pause_s = pause_s
        self.over = threading.Event()
        self.answers: Counter[int] = Counter()
        self.failures: list[str] = []

    def run(self) -> None:
        connection: http.client.HTTPConnection | None = None
        while not self.over.is_set():
            try:
                connection = connection or http.client.HTTPConnection(str(self._at.hostname), self._at.port, timeout=30)
                connection.request("GET", "/v1/health")
                answer = connection.getresponse()
                answer.read()
                self.answers[answer.status] += 1
                if answer.will_close:
                    connection.close()
                    connection = None
            except (OSError, http.client.HTTPException) as reason:
                self.failures.append(repr(reason))
                connection = None
            time.sleep(self._pause_s)
        if connection is not None:
            connection.close()

    def end(self) -> None:
        self.over.set()
        self.join()


def test_three_processes_are_one_service(tmp_path: Path) -> None:
    with nothing_left():
        discovery = service(tmp_path, "--processes", "3")
        url = discovery.ready["url"]
        with load(tmp_path / "load", url, items=120) as busy, DiscoveryClient(url) as client:
            busy.finish()
            until(lambda: len(metric(client.metrics(), "ec262_process_leads")) == 3, 20, "a word of all processes")
            text = client.metrics()
            assert sorted(metric(text, "ec262_process_leads").values()) == [0, 0, 1]
            assert metric(text, "ec262_requests_total")['{route="settle",status="200"}'] >= 120 / 20
            assert metric(text, "ec262_credits")['{place="escrow"}'] == 0
            assert not [labels for labels in metric(text, "ec262_requests_total") if 'status="5' in labels]
        assert run("ledger", "verify", "--data-dir", str(tmp_path / "data"), home=tmp_path).returncode == 0
        assert discovery.stop() == 0
    assert "Traceback" not in discovery.log.read_text()


def test_one_process_leads_and_when_it_is_killed_another_does(tmp_path: Path) -> None:
    with nothing_left():
        discovery = service(tmp_path, "--processes", "2")

        with store_of(None, tmp_path / "data") as (store, _):

            def leader() -> int:
                found: Any = store._redis.get("{ec}:leader")
                return int(str(found.decode()).rsplit(":", 1)[1]) if found else 0

            until(lambda: leader() != 0, 20, "a leader")
            first = leader()
            os.kill(first, signal.SIGKILL)
            until(lambda: leader() not in (0, first), 40, "another leader")
            second = leader()
            # One that leaves in order says so: nobody waits for it to be missed.
            discovery.popen.send_signal(signal.SIGHUP)
            until(lambda: leader() not in (0, first, second), 40, "a third leader")
        assert discovery.stop() == 0


def test_limits_hold_over_all_processes_together(tmp_path: Path) -> None:
    rate, burst = 2, 20
    with nothing_left():
        discovery = service(
            *(tmp_path, "--processes", "3", "--account-requests", str(rate), "--address-requests", "0"),
            network="public",
        )
        url = discovery.ready["url"]
        with DiscoveryClient(url) as client:
            account = create_account_at(client)
        refused: list[ProblemError] = []
        good = 0
        started = time.monotonic()
        # A connection each: whichever process has time takes it.
        for _ in range(2 * burst):
            with DiscoveryClient(url, account.account_id, account.secret, retry_for_s=0) as client:
                try:
                    client.account()
                    good += 1
                except ProblemError as reason:
                    refused.append(reason)
                    if len(refused) == 3:
                        break
        took_s = time.monotonic() - started
        assert burst <= good <= burst + rate * took_s + 1
        assert {each.code for each in refused} == {"rate-limited"}
        with DiscoveryClient(url, account.account_id, account.secret) as patient:
            assert patient.account().account_id == account.account_id  # it waits as long as it is told
        assert discovery.stop() == 0


def test_renewed_under_load_without_a_failed_request(tmp_path: Path) -> None:
    with nothing_left():
        discovery = service(tmp_path, "--processes", "2")
        url = discovery.ready["url"]
        hammers = [Hammer(url) for _ in range(6)]
        for each in hammers:
            each.start()
        until(lambda: all(sum(each.answers.values()) > 20 for each in hammers), 30, "answers")
        before = {child.pid for child in web_processes(discovery)}
        discovery.popen.send_signal(signal.SIGHUP)
        until(
            lambda: not {child.pid for child in web_processes(discovery)} & before, 60, "the end of the old processes"
        )
        counts = [sum(each.answers.values()) for each in hammers]
        until(lambda: all(sum(each.answers.values()) > n + 20 for each, n in zip(hammers, counts, strict=True)), 30)
        assert len(web_processes(discovery)) == 2
        for each in hammers:
            each.end()
        assert [each.failures for each in hammers] == [[]] * 6
        assert {status for each in hammers for status in each.answers} == {200}
        assert discovery.stop() == 0


def test_a_renewal_takes_the_new_certificate_and_keeps_the_old_one_where_that_is_none(tmp_path: Path) -> None:
    """What an operator does when a certificate runs out: put the files in place, and reload."""
    authority = Authority(tmp_path / "authority")
    files = tmp_path / "fullchain.pem", tmp_path / "privkey.pem"

    def issue() -> None:
        for made, place in zip(authority.issue("127.0.0.1"), files, strict=True):
            place.write_bytes(made.read_bytes())

    issue()
    with nothing_left():
        tls = ["--tls-cert", str(files[0]), "--tls-key", str(files[1])]
        discovery = service(tmp_path, "--processes", "1", *tls)
        at = urlsplit(discovery.ready["url"])
        assert at.port

        def shown() -> str:
            return ssl.get_server_certificate(("127.0.0.1", at.port))

        assert shown() == files[0].read_text()
        issue()
        discovery.popen.send_signal(signal.SIGHUP)
        until(lambda: "renewed" in discovery.log.read_text(), 30, "new processes")
        until(lambda: shown() == files[0].read_text(), 30, "the new certificate")
        good = files[0].read_text()
        files[0].write_text("not a certificate")
        discovery.popen.send_signal(signal.SIGHUP)
        until(lambda: "not renewed" in discovery.log.read_text(), 30, "a word of it")
        assert shown() == good
        assert discovery.stop() == 0


@pytest.mark.parametrize("processes", [[], ["--processes", "1"]], ids=["one", "watched"])
def test_a_log_of_objects_has_nothing_else(tmp_path: Path, processes: list[str]) -> None:
    """From the first line to the last, so that whatever reads it understands all of it."""
    flags = ["--network", "private", "--ephemeral", "--log-format", "json", "--port", "0"]
    command = [sys.executable, "-m", "discovery", *flags, *processes]
    with nothing_left():
        started = subprocess.Popen(
            [*command, "--data-dir", str(tmp_path / "data")], cwd=ROOT, text=True, stderr=subprocess.PIPE,
            stdin=subprocess.DEVNULL,
        )  # fmt: skip
        assert started.stderr is not None
        try:
            assert "at http://127.0.0.1" in json.loads(started.stderr.readline())["message"]
        finally:
            started.send_signal(signal.SIGTERM)
            _, rest = started.communicate(timeout=30)
        assert [json.loads(line) for line in rest.splitlines()] == []
        assert started.returncode == 0
        (tmp_path / "file").write_text("no directory")
        failed = subprocess.run(
            [*command, "--data-dir", str(tmp_path / "file")], cwd=ROOT, text=True, capture_output=True, check=False,
            stdin=subprocess.DEVNULL, timeout=60,
        )  # fmt: skip
        assert failed.returncode == 1
        assert {json.loads(line)["level"] for line in failed.stderr.splitlines()} == {"error"}


def test_a_request_in_progress_is_answered_when_the_service_ends(tmp_path: Path) -> None:
    with nothing_left():
        discovery = service(tmp_path, "--processes", "1")
        at = urlsplit(discovery.ready["url"])
        connection = http.client.HTTPConnection(str(at.hostname), at.port, timeout=30)
        body = m.encode(m.CreateAccount(name="slow"))
        connection.putrequest("POST", "/v1/accounts")
        connection.putheader("Content-Type", "application/json")
        connection.putheader("Content-Length", str(len(body)))
        connection.endheaders()
        connection.send(body[:3])
        time.sleep(0.3)  # its headers have arrived
        discovery.popen.send_signal(signal.SIGTERM)
        time.sleep(0.3)
        connection.send(body[3:])
        answer = connection.getresponse()
        assert answer.status == 200
        assert json.loads(answer.read())["account_id"]
        assert answer.will_close
        connection.close()
        assert discovery.wait() == 0


def test_killed_processes_are_replaced_and_a_killed_supervisor_takes_all_with_it(tmp_path: Path) -> None:
    with nothing_left():
        discovery = service(tmp_path, "--processes", "2")
        url = discovery.ready["url"]
        before = {child.pid for child in web_processes(discovery)}
        for pid in before:
            os.kill(pid, signal.SIGKILL)
        with DiscoveryClient(url, retry_for_s=60) as client:
            assert client.health().status == "ok"  # connections wait in the supervisor's socket meanwhile
        until(lambda: len({child.pid for child in web_processes(discovery)} - before) == 2, 60, "two new processes")
        discovery.kill()


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--redis", "redis://127.0.0.1:1/0"], "do not start"),
        (["--processes", "0"], "from 1 to"),
        (["--host", "192.0.2.1"], "Cannot listen"),
    ],
)
def test_what_cannot_start_says_why_and_leaves_nothing(tmp_path: Path, flags: list[str], said: str) -> None:
    with nothing_left():
        done = subprocess.run(
            [sys.executable, *FLAGS, "--data-dir", str(tmp_path / "data"), "--processes", "2", *flags],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=100,
        )
    assert done.returncode in (1, 2)
    assert said in done.stderr
    assert "Traceback" not in done.stderr
