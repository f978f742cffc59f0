"""A worker's life with a real discovery service: it enters, stays, is forgotten, is paid late, and leaves."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import gevent
import psutil
import pytest

from discovery.app import Discovery
from ec262.config import WorkerSettings
from ec262.credentials import CredentialStore
from ec262.discovery_client import DiscoveryClient, create_account_at
from ec262.errors import Unauthorized
from ec262.protocol import messages as m
from ec262.protocol.receipts import digests_of, tokens_digest
from ec262.sandbox.selftest import ATTACKS
from ec262.serving import Server
from ec262.worker.service import Worker
from tests.conftest import MakeDiscovery
from tests.worker_peers import Foreman, push_leased

SETTINGS = WorkerSettings(
    port=0, slots=1, linger_s=0.005, drain_s=2.0, show_receipts_after_s=0.0, retry_s=0.05, retry_max_s=0.1
)


@pytest.fixture
def discovery(make_discovery: MakeDiscovery) -> Discovery:
    return make_discovery(heartbeat_s=0.1, ttl_s=30.0)


@pytest.fixture
def server(discovery: Discovery) -> Iterator[Server]:
    with Server(discovery.app) as made:
        yield made


@contextmanager
def at_work(url: str, home: Path, settings: WorkerSettings = SETTINGS) -> Iterator[Worker]:
    """A worker that discovery has let in."""
    with Worker(settings, url, home=home) as worker:
        assert worker.enter()
        yield worker
        worker.hurry()


def eventually(true: Callable[[], object], what: str) -> None:
    """Waits, letting the worker work."""
    until = time.monotonic() + 20
    while not true():
        assert time.monotonic() < until, f"never: {what}"
        gevent.sleep(0.01)


def test_it_enters_with_an_account_of_its_own_and_leaves(discovery: Discovery, server: Server, tmp_path: Path) -> None:
    with at_work(server.url, tmp_path) as worker, DiscoveryClient(server.url) as client:
        assert client.describe().workers == 1
        account = CredentialStore(tmp_path, environ={}).account(server.url)
        assert account is not None
        standing = worker.registration.standing
        assert standing is not None
        assert account.secret not in repr(vars(worker.registration))
        leaving = gevent.spawn(worker.serve_until_asked)
        worker.ask_to_leave()
        leaving.get(timeout=10)
        assert client.describe().workers == 0


def test_two_workers_that_start_at_once_share_one_account(server: Server, tmp_path: Path) -> None:
    with ExitStack() as stack:
        workers = [stack.enter_context(Worker(SETTINGS, server.url, home=tmp_path)) for _ in range(3)]
        entering = [gevent.spawn(worker.enter) for worker in workers]
        assert [each.get(timeout=20) for each in entering] == [True] * 3
        with DiscoveryClient(server.url) as client:
            assert client.describe().workers == 3
            credits = client.credits()
            account = CredentialStore(tmp_path, environ={}).account(server.url)
            assert account is not None
            client.use_account(account.account_id, account.secret)
            assert client.account().balance == credits.minted


def test_a_receipt_that_the_foreman_keeps_to_itself_is_shown_to_discovery(
    discovery: Discovery, server: Server, tmp_path: Path
) -> None:
    with at_work(server.url, tmp_path) as worker, DiscoveryClient(server.url) as client:
        create_account_at(client, "foreman")
        foreman = Foreman(worker.server.port)
        leases = push_leased(client, foreman, [1, 2])
        task_ids = [lease_id.partition(".")[0] for lease_id in leases]

        def known() -> set[str]:
            return {record.replicas[0].state.value for record in discovery.store.load(task_ids)[1].values()}

        # The foreman does not ask for results. To be paid in full, the worker's word is not enough.
        eventually(lambda: known() == {"shown"}, "shown by the worker itself")
        asked = m.Settle(job_id=foreman.job_id, decide=task_ids)
        assert {verdict.verdict for verdict in client.settle(asked).tasks} == {"pending"}
        answer = foreman.poll()
        arrived = {each.lease_id: tokens_digest(digests_of(each.tokens)) for each in answer.results}
        standing = worker.registration.standing
        assert standing is not None
        shown = m.SealedReceipts(worker_id=standing.worker_id, token=answer.receipts, arrived=arrived)
        settled = client.settle(m.Settle(job_id=foreman.job_id, receipts=[shown], decide=task_ids))
        assert {verdict.verdict for verdict in settled.tasks} == {"accepted"}
        eventually(lambda: worker.registration.earned == 2, "paid")
        eventually(lambda: len(worker._unsettled) == 0, "forgotten once settled")


def test_forgotten_by_discovery_it_registers_again_in_the_same_epoch(
    discovery: Discovery, server: Server, tmp_path: Path
) -> None:
    with at_work(server.url, tmp_path) as worker, DiscoveryClient(server.url) as client:
        before = worker.registration.standing
        assert before is not None
        account = CredentialStore(tmp_path, environ={}).account(server.url)
        assert account is not None
        client.use_account(account.account_id, account.secret)
        client.leave(before.worker_id)  # to the worker it looks like a registration that lapsed
        eventually(lambda: client.describe().workers == 1, "in the pool again")
        eventually(lambda: worker.registration.standing is not before, "registered again")
        assert worker.registration.standing == before


def test_discovery_without_memory_is_entered_anew(
    make_discovery: MakeDiscovery, discovery: Discovery, server: Server, tmp_path: Path
) -> None:
    with at_work(server.url, tmp_path) as worker:
        store = CredentialStore(tmp_path, environ={})
        before, standing = store.account(server.url), worker.registration.standing
        foreman = Foreman(worker.server.port)
        with DiscoveryClient(server.url) as client:
            create_account_at(client, "foreman")
            push_leased(client, foreman, [1])
            eventually(lambda: worker.holdings.unacknowledged, "computed")
            discovery.store._redis.flushall()
            discovery.registry._keyring.master = bytes(32)
            eventually(lambda: store.account(server.url) not in (None, before), "a new account")
        with DiscoveryClient(server.url) as client:
            eventually(lambda: client.describe().workers == 1, "in the pool")
        eventually(lambda: worker.registration.standing != standing, "registered")
        assert worker.holdings.unacknowledged == 0  # what was taken before is void


def test_without_discovery_it_keeps_serving_and_trying(discovery: Discovery, tmp_path: Path) -> None:
    first = Server(discovery.app).start()
    with at_work(first.url, tmp_path) as worker:
        first.stop()
        eventually(lambda: worker.registration._down_since_s, "noticed")
        foreman = Foreman(worker.server.port)
        assert foreman.call("GET", "/")[0] == 200
        second = Server(discovery.app, port=first.port).start()
        eventually(lambda: not worker.registration._down_since_s, "back")
        second.stop()


def test_a_wrong_account_of_the_environment_is_an_error(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EC262_ACCOUNT", uuid.uuid4().hex)
    monkeypatch.setenv("EC262_SECRET", "wrong")
    with Worker(SETTINGS, server.url, home=tmp_path) as worker, pytest.raises(Unauthorized):
        worker.enter()


# --- as a program ---


@contextmanager
def program(server: Server, home: Path, *flags: str) -> Iterator[tuple[subprocess.Popen[bytes], dict[str, Any]]]:
    """``python -m ec262.worker`` as the embedded network starts it, once it is ready."""
    process = subprocess.Popen(
        [sys.executable, "-m", "ec262.worker", "--port", "0", "--slots", "1", "--discovery", server.url,
         "--report-ready", *flags],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env={**os.environ, "EC262_HOME": str(home)},
    )  # fmt: skip
    try:
        assert process.stdout is not None
        gevent.socket.wait_read(process.stdout.fileno(), timeout=30)
        yield process, json.loads(process.stdout.readline())
    finally:
        process.kill()
        process.communicate()


def ended(process: subprocess.Popen[bytes]) -> int:
    """The exit code, when it comes."""
    eventually(lambda: process.poll() is not None, "the worker's end")
    return int(process.returncode)


def family(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    """All processes a worker has started."""
    return psutil.Process(process.pid).children(recursive=True)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_makes_it_leave_in_good_order(server: Server, tmp_path: Path, number: signal.Signals) -> None:
    with program(server, tmp_path) as (process, ready), DiscoveryClient(server.url) as client:
        assert {"port", "worker_id"} <= set(ready)
        children = family(process)
        assert children
        assert client.describe().workers == 1
        process.send_signal(number)
        assert ended(process) == 0
        assert client.describe().workers == 0
        assert process.stderr is not None
        assert b"left the pool after 0 tasks" in process.stderr.read()
        eventually(lambda: not any(child.is_running() for child in children), "nothing left running")


def test_a_second_signal_ends_it_at_once(server: Server, tmp_path: Path) -> None:
    with program(server, tmp_path) as (process, ready), DiscoveryClient(server.url) as client:
        create_account_at(client, "foreman")
        push_leased(client, Foreman(int(ready["port"])), [1])  # never fetched: it would wait for that
        process.send_signal(signal.SIGINT)
        eventually(lambda: client.describe().workers == 0, "left the pool")
        gevent.sleep(0.2)
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        began = time.monotonic()
        assert ended(process) == 0
        assert time.monotonic() - began < 10  # and not the 30 s of a drain


@pytest.mark.parametrize("how", ["pipe", "kill"])
def test_nothing_outlives_whoever_started_it(server: Server, tmp_path: Path, how: str) -> None:
    with program(server, tmp_path, "--parent-pipe") as (process, _):
        children = family(process)
        assert children
        if how == "pipe":
            assert process.stdin is not None
            process.stdin.close()
            process.stdin = None
            assert ended(process) == 0
        else:
            process.kill()
        eventually(lambda: not any(child.is_running() for child in children), "nothing left running")


def test_flags_and_failures_have_exit_codes(tmp_path: Path, server: Server) -> None:
    def run(*flags: str) -> tuple[int, str]:
        done = subprocess.run(
            [sys.executable, "worker.py", *flags], capture_output=True, text=True, timeout=60,
            env={**os.environ, "EC262_HOME": str(tmp_path)}, cwd=Path(__file__).parents[2],
        )  # fmt: skip
        return done.returncode, done.stdout + done.stderr

    assert run("--help")[0] == 0
    assert run("--port", "x")[0] == 2
    code, said = run("--check")
    assert "Traceback" not in said
    layers = re.findall(r"^  (yes|NO ) {2}(.+?) {2,}\S", said, re.MULTILINE)
    assert {name for _, name in layers} >= {"seccomp", "namespaces", "landlock", "resource limits", "language layer"}
    attacks = re.findall(r"^  (stopped|ESCAPED) {2}(.+?) {2,}\S", said, re.MULTILINE)
    if ("yes", "seccomp") in layers:
        assert [name for _, name in attacks] == list(ATTACKS)
        assert {how for how, _ in attacks} == {"stopped"}
        assert code == 0
        assert "\nsafe: " in said
    else:
        assert attacks == []
        assert code == 3
        assert "\nNOT SAFE: " in said
    code, said = run("--port", str(server.port), "--discovery", server.url)
    assert code == 1
    assert "another program listens there" in said
    assert "Traceback" not in said


def test_a_restarted_worker_starts_a_new_epoch(server: Server, tmp_path: Path) -> None:
    with Server(lambda *_: []) as free:
        port = free.port
    settings = replace(SETTINGS, port=port)
    epochs = []
    ids = set()
    for _ in range(2):
        with at_work(server.url, tmp_path, settings) as worker:
            standing = worker.registration.standing
            assert standing is not None
            epochs.append(standing.epoch)
            ids.add(standing.worker_id)
    assert len(ids) == 1
    assert epochs[1] == epochs[0] + 1


def test_a_lease_that_no_foreman_pushed_is_told_and_one_that_was_is_not(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[list[str]] = []
    heartbeat = DiscoveryClient.heartbeat

    def listening(client: DiscoveryClient, worker_id: str, body: m.Heartbeat) -> m.HeartbeatAnswer:
        told.append(body.unseen)
        return heartbeat(client, worker_id, body)

    monkeypatch.setattr(DiscoveryClient, "heartbeat", listening)
    with at_work(server.url, tmp_path) as worker, DiscoveryClient(server.url) as client:
        create_account_at(client)
        foreman = Foreman(worker.server.port)
        pushed = push_leased(client, foreman, [1, 2])
        version = f"{sys.version_info[0]}.{sys.version_info[1]}"
        kept_back = client.lease_tasks(
            m.LeaseTasks(
                job_id=foreman.job_id,
                idempotency_key=uuid.uuid4().hex,
                tasks=[m.TaskWanted(input_digest=bytes(32))],
                requirements=m.Requirements(python=version),
            )
        )
        (replica,) = kept_back.tasks[0].replicas
        eventually(lambda: [replica.lease_id] in told, "the lease that was kept back is told")
        assert not {lease_id for unseen in told for lease_id in unseen} & set(pushed)
