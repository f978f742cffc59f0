"""A worker obeys its owner, with a real discovery service: each preference, and what its owner asks over the socket."""

from __future__ import annotations

import json
import os
import socket
import stat
import sys
import time
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import gevent
import pytest
import redis

from discovery.app import Discovery
from ec262.config import WorkerSettings
from ec262.discovery_client import DiscoveryClient, create_account_at
from ec262.errors import SetupError
from ec262.protocol import messages as m
from ec262.protocol.receipts import Kind, digests_of, tokens_digest
from ec262.serving import Server
from ec262.worker.control import ask, control_directory, own_pids, workers_here
from ec262.worker.preferences import choose
from ec262.worker.service import Worker
from tests.conftest import MakeDiscovery
from tests.worker_peers import Foreman, make_worker, push_leased

SETTINGS = WorkerSettings(
    port=0, slots=1, linger_s=0.005, drain_s=2.0, retry_s=0.05, retry_max_s=0.1, look_every_s=0.02
)
PYTHON = f"{sys.version_info[0]}.{sys.version_info[1]}"


@pytest.fixture
def discovery(make_discovery: MakeDiscovery) -> Discovery:
    return make_discovery(heartbeat_s=0.1, ttl_s=30.0)


@pytest.fixture
def server(discovery: Discovery) -> Iterator[Server]:
    with Server(discovery.app) as made:
        yield made


@pytest.fixture
def foreman(server: Server) -> Iterator[DiscoveryClient]:
    """An account that buys work."""
    with DiscoveryClient(server.url) as client:
        create_account_at(client, "foreman")
        yield client


@contextmanager
def at_work(url: str, home: Path, settings: WorkerSettings = SETTINGS, **more: Any) -> Iterator[Worker]:
    """A worker that discovery has let in."""
    with Worker(settings, url, home=home, **more) as worker:
        assert worker.enter()
        yield worker
        worker.registration.leave()
        worker.hurry()


def eventually(true: Callable[[], object], what: str) -> None:
    """Waits, letting the worker work."""
    until = time.monotonic() + 20
    while not true():
        assert time.monotonic() < until, f"never: {what}"
        gevent.sleep(0.01)


def lease(client: DiscoveryClient, count: int = 1, *, job_id: str = "", **task: Any) -> m.Leased:
    """Leases tasks without a program."""
    wanted = [m.TaskWanted(input_digest=os.urandom(32), **task) for _ in range(count)]
    return client.lease_tasks(
        m.LeaseTasks(
            job_id=job_id or uuid.uuid4().hex,
            idempotency_key=uuid.uuid4().hex,
            tasks=wanted,
            requirements=m.Requirements(python=PYTHON),
        )
    )


def is_leased_to(client: DiscoveryClient, **how: Any) -> bool:
    """Whether discovery has a worker for a task."""
    return bool(lease(client, **how).tasks)


def push(client: DiscoveryClient, worker: Worker, values: list[Any]) -> tuple[Foreman, list[str]]:
    """Leases real tasks and pushes them."""
    foreman = Foreman(worker.server.port)
    return foreman, push_leased(client, foreman, values)


def settle(client: DiscoveryClient, worker: Worker, peer: Foreman, leases: list[str]) -> m.Settled:
    """Fetches what there is for a job, and asks for verdicts."""
    results, standing = peer.poll(), worker.registration.standing
    assert standing is not None
    assert [each.lease_id for each in results.results] == leases
    arrived = {each.lease_id: tokens_digest(digests_of(each.tokens)) for each in results.results}
    shown = m.SealedReceipts(worker_id=standing.worker_id, token=results.receipts, arrived=arrived)
    decide = [lease_id.partition(".")[0] for lease_id in leases]
    return client.settle(m.Settle(job_id=peer.job_id, receipts=[shown], decide=decide))


# --- when ---


@pytest.mark.parametrize(
    ("wanted", "bad", "good", "why"),
    [
        ({"only_on_mains": True}, {"on_mains": False}, {"on_mains": True}, "on battery"),
        ({"hours": ("10:00-11:00",)}, {"minute": 5}, {"minute": 630}, "outside its hours (10:00-11:00)"),
        (
            {"only_idle": True, "idle_after_s": 0.3, "idle_load": 0.2},
            {"others_load": 0.9},
            {"others_load": 0.1},
            "the machine is in use (it has to be idle for 0.3 s)",
        ),
        (
            {"only_idle": True, "idle_after_s": 0.3},
            {"untouched_s": 0.0},
            {"untouched_s": 100.0},
            "the machine is in use (it has to be idle for 0.3 s)",
        ),
    ],
)
def test_it_is_leased_to_only_while_its_owner_wants_it(
    server: Server,
    foreman: DiscoveryClient,
    tmp_path: Path,
    wanted: dict[str, Any],
    bad: dict[str, Any],
    good: dict[str, Any],
    why: str,
) -> None:
    sensors = tmp_path / "sensors.json"

    def read(readings: dict[str, Any]) -> None:
        (tmp_path / "new").write_text(json.dumps(readings))
        os.replace(tmp_path / "new", sensors)

    read(bad)
    with at_work(server.url, tmp_path, replace(SETTINGS, sensors=str(sensors), **wanted)) as worker:
        assert worker.status().reasons == [why]
        assert not is_leased_to(foreman), "not from the first moment on"
        read(good)
        eventually(lambda: not worker.status().reasons, "willing")
        eventually(lambda: is_leased_to(foreman), "leased to")
        read(bad)
        eventually(lambda: worker.status().reasons == [why], "unwilling")
        eventually(lambda: not is_leased_to(foreman), "not leased to")
        sensors.unlink()
        gevent.sleep(0.1)
        assert worker.status().reasons == [why], "sensors that fail change nothing"


def test_a_pause_gives_back_what_waits_and_finishes_what_runs(
    discovery: Discovery, server: Server, foreman: DiscoveryClient, tmp_path: Path
) -> None:
    with at_work(server.url, tmp_path) as worker:
        status = worker.attendance.answer({"do": "pause"}, worker.status)
        assert status["reasons"] == ["paused by its owner"]
        assert not status["willing"]
        eventually(lambda: not is_leased_to(foreman), "not leased to")
        worker.attendance.answer({"do": "resume"}, worker.status)
        eventually(lambda: is_leased_to(foreman), "leased to again")

        before = worker.registration.standing
        assert before is not None
        # The pause comes between lease and push: the foreman hears at once, and nothing is held against the worker.
        original = worker.holdings.take

        def take(*args: Any, **how: Any) -> m.Pushed:
            worker.attendance.answer({"do": "pause"}, worker.status)
            return original(*args, **how)

        worker.holdings.take = take  # type: ignore[method-assign]
        peer, leases = push(foreman, worker, [1, 2, 3])
        settled = settle(foreman, worker, peer, leases)
        assert not settled.refused_receipts
        counts = discovery.store.worker_counts(before.worker_id)
        assert (counts["refused"], counts["expired"], counts["dissented"]) == (3, 0, 0)
        assert worker.status().finished == {"refused": 3}
        assert worker.holdings.unfinished == 0


def test_a_pause_of_some_time_ends_by_itself(server: Server, foreman: DiscoveryClient, tmp_path: Path) -> None:
    with at_work(server.url, tmp_path) as worker:
        said = worker.attendance.answer({"do": "pause", "for_s": 0.3}, worker.status)
        assert said["reasons"][0].startswith("paused by its owner until ")
        eventually(lambda: worker.status().willing, "over")
        eventually(lambda: is_leased_to(foreman), "leased to again")


def test_a_pause_outlasts_a_restart(server: Server, foreman: DiscoveryClient, tmp_path: Path) -> None:
    with Server(lambda *_: []) as free:
        port = free.port
    settings = replace(SETTINGS, port=port)
    with at_work(server.url, tmp_path, settings) as worker:
        worker.attendance.answer({"do": "pause"}, worker.status)
    with at_work(server.url, tmp_path, settings) as worker:
        assert worker.status().reasons == ["paused by its owner"]
        assert not is_leased_to(foreman)


def test_leases_that_it_has_stay_its_own_while_it_is_away(
    discovery: Discovery, server: Server, foreman: DiscoveryClient, tmp_path: Path
) -> None:
    with at_work(server.url, tmp_path) as worker:
        foreman_of_it, leases = push(foreman, worker, [1])
        eventually(lambda: worker.holdings.unacknowledged == 1, "computed")
        worker.attendance.answer({"do": "pause"}, worker.status)
        eventually(lambda: not is_leased_to(foreman), "away")
        (verdict,) = settle(foreman, worker, foreman_of_it, leases).tasks
        assert (verdict.verdict, verdict.kind) == ("accepted", Kind.OK)
        eventually(lambda: worker.registration.earned == 1, "paid")
        assert not is_leased_to(foreman), "a slot that is free again does not bring it back"


def test_who_is_away_is_in_no_pool_and_in_no_count_and_returns_whole(
    make_discovery: MakeDiscovery, redis_url: str, tmp_path: Path
) -> None:
    discovery = make_discovery(heartbeat_s=0.05, ttl_s=30.0)
    client = redis.Redis.from_url(redis_url)

    def groups() -> dict[bytes, object]:
        found: dict[bytes, object] = {}
        for key in client.scan_iter("{ec}:pool:*"):
            found[key] = client.smembers(key)
        for key in client.scan_iter("{ec}:have:*"):
            found[key] = client.zrange(key, 0, -1)
        for kind in ("class", "asks"):
            for key in client.scan_iter(f"{{ec}}:{kind}:*"):
                found[key] = client.hgetall(key)
        return found

    settings = replace(SETTINGS, min_price=3, data_dirs=(("books", str(tmp_path / "books")),))
    (tmp_path / "books").mkdir()
    with Server(discovery.app) as server, at_work(server.url, tmp_path / "home", settings) as worker:
        whole = groups()
        assert len(whole) > 6
        for _ in range(2):
            worker.attendance.answer({"do": "pause"}, worker.status)
            eventually(lambda: groups() == {}, "away")
            worker.registration.set_terms(m.WorkerTerms(max_task_cpu_s=5.0))  # registers again, and stays away
            eventually(lambda: worker.registration.is_registered, "registered again")
            assert groups() == {}
            worker.attendance.answer({"do": "resume"}, worker.status)
            eventually(lambda: groups() == whole, "back")
        worker.attendance.answer({"do": "pause"}, worker.status)
        eventually(lambda: groups() == {}, "away")
        worker.registration.leave()
        assert groups() == {}
    client.close()


# --- what, and for whom ---


def test_only_tasks_that_are_short_enough_are_leased_to_it(
    server: Server, foreman: DiscoveryClient, tmp_path: Path
) -> None:
    with at_work(server.url, tmp_path, replace(SETTINGS, max_task_cpu_s=30.0)):
        assert is_leased_to(foreman, cpu_limit_s=30.0)
        assert not is_leased_to(foreman, cpu_limit_s=31.0)


@pytest.mark.parametrize("kind", ["accounts", "jobs"])
def test_only_those_are_served_whom_its_owner_wants(
    server: Server, foreman: DiscoveryClient, tmp_path: Path, kind: str
) -> None:
    job_id, somebody = uuid.uuid4().hex, uuid.uuid4().hex
    this = foreman.account_id if kind == "accounts" else job_id
    cases: tuple[tuple[dict[str, Any], bool], ...] = (
        ({f"deny_{kind}": (this,)}, False),
        ({f"deny_{kind}": (somebody,)}, True),
        ({f"allow_{kind}": (this,)}, True),
        ({f"allow_{kind}": (somebody,)}, False),
    )
    for terms, served in cases:
        with at_work(server.url, tmp_path, replace(SETTINGS, **terms)):
            assert is_leased_to(foreman, job_id=job_id) is served, terms


def test_terms_that_change_while_it_works_reach_discovery(
    server: Server, foreman: DiscoveryClient, tmp_path: Path
) -> None:
    (tmp_path / "worker.toml").write_text("port = 0\nslots = 1\n")
    settings, _, watched = choose(tmp_path, look_every_s=0.02, retry_s=0.05)
    with at_work(server.url, tmp_path, settings, watched=watched) as worker:
        epoch = worker.registration.standing.epoch if worker.registration.standing else 0
        assert is_leased_to(foreman)
        (tmp_path / "worker.toml").write_text(f'deny_accounts = ["{foreman.account_id}"]\n')
        eventually(lambda: not is_leased_to(foreman), "denied")
        assert worker.status().limits["deny_accounts"] == foreman.account_id
        (tmp_path / "worker.toml").write_text("deny_accounts = [\n")
        gevent.sleep(0.1)
        assert not is_leased_to(foreman), "a file that is wrong changes nothing"
        (tmp_path / "worker.toml").write_text("")
        eventually(lambda: is_leased_to(foreman), "served again")
        assert worker.registration.standing is not None
        assert worker.registration.standing.epoch == epoch, "what it held is still good"


def test_attack_a_foreman_pushes_what_the_owner_does_not_want(tmp_path: Path) -> None:
    """Leases from before the owner said no, or from a discovery that does not ask: nothing of it is run."""
    cases: tuple[tuple[dict[str, Any], str], ...] = (
        ({"max_task_cpu_s": 5.0}, "no task of more than 5 CPU seconds"),
        ({"max_task_input_bytes": 50}, "more than 50 bytes"),
        ({"deny_accounts": ("ee" * 16,)}, "does not serve"),
        ({"allow_jobs": ("dd" * 16,)}, "serves other"),
    )
    for terms, reason in cases:
        with make_worker(tmp_path, replace(SETTINGS, **terms)) as worker:
            foreman = Foreman(worker.server.port)
            leases = foreman.lease([1, 2], cpu_limit_s=10.0)
            bundle = foreman.bundle(leases, account_id="ee" * 16)
            assert foreman.push(leases, tickets=bundle).taken == 2
            _, receipts = foreman.collect(2)
            for receipt in receipts.values():
                assert receipt.kind is Kind.REFUSED
                assert reason in receipt.reason
            assert worker.status().finished == {"refused": 2}
            assert worker._runner.running == 0
            worker.hurry()


def test_status_says_for_whom(tmp_path: Path) -> None:
    with make_worker(tmp_path, SETTINGS) as worker:
        foreman = Foreman(worker.server.port)
        leases = foreman.lease([1])
        foreman.push(leases, tickets=foreman.bundle(leases, account_id="ee" * 16))
        (job,) = worker.status().jobs
        assert (job.job_id, job.account_id) == (foreman.job_id, "ee" * 16)
        worker.hurry()


def test_too_little_memory_is_an_error_and_enough_means_fewer_slots(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match="GiB"):
        Worker(replace(SETTINGS, memory_bytes=2**30), "http://127.0.0.1:9", home=tmp_path)
    with make_worker(tmp_path, replace(SETTINGS, slots=4, memory_bytes=3 * 2**30)) as worker:
        assert worker.settings.slots == worker.status().slots == 2
        worker.hurry()


def test_hours_that_are_none_keep_it_from_starting(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match="22:00-07:00"):
        Worker(replace(SETTINGS, hours=("late",)), "http://127.0.0.1:9", home=tmp_path)


# --- contact ---


def test_lost_for_too_long_it_ends_and_not_before(discovery: Discovery, tmp_path: Path) -> None:
    first = Server(discovery.app).start()
    with at_work(first.url, tmp_path, replace(SETTINGS, max_living_s=1.0)) as worker:
        gevent.sleep(1.3)
        assert not worker.lost, "as long as discovery answers it lives"
        first.stop()
        eventually(lambda: worker.registration.is_down, "noticed")
        second = Server(discovery.app, port=first.port).start()
        eventually(lambda: not worker.registration.is_down, "found again")
        assert not worker.lost
        second.stop()
        eventually(lambda: worker.lost, "lost")
        assert worker.registration.silent_s >= 1.0
        worker.serve_until_asked()


def test_from_another_address_it_registers_again(make_discovery: MakeDiscovery, tmp_path: Path) -> None:
    """A machine that moved would be pushed to where it was."""
    discovery = make_discovery(heartbeat_s=0.1, ttl_s=30.0)
    peer = ["127.0.0.1"]

    def moved(environ: dict[str, Any], start: Any) -> Any:
        environ["REMOTE_ADDR"] = peer[0]
        return discovery.app(environ, start)

    everywhere = replace(SETTINGS, host="0.0.0.0")
    with Server(moved) as server, at_work(server.url, tmp_path, everywhere) as worker:
        standing = worker.registration.standing
        assert standing is not None
        known = discovery.store.workers([standing.worker_id])[standing.worker_id]
        assert known.address == "127.0.0.1"
        peer[0] = "127.0.0.2"
        worker.registration.hurry()

        def address() -> str:
            return discovery.store.workers([standing.worker_id])[standing.worker_id].address

        eventually(lambda: address() == "127.0.0.2", "at its new address")
        assert worker.registration.standing == standing, "in the same epoch: what it holds is still good"


# --- the socket, and metrics ---


def test_the_owner_alone_can_talk_to_it(tmp_path: Path) -> None:
    with make_worker(tmp_path, SETTINGS) as worker:
        path = control_directory(tmp_path) / f"{worker.server.port}.sock"
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
        assert workers_here(tmp_path) == [worker.server.port]
        assert os.getpid() in own_pids(tmp_path)

        def told(request: dict[str, Any]) -> Any:
            return gevent.get_hub().threadpool.spawn(ask, tmp_path, worker.server.port, request).get(timeout=10)

        said = told({"do": "status"})
        assert said is not None
        assert said["port"] == worker.server.port
        for wrong in (
            {"do": "leave"},
            {},
            {"do": "pause", "for_s": -1},
            {"do": "pause", "for_s": "x"},
            {"do": "pause", "for_s": 1e12},
        ):
            with pytest.raises(SetupError, match=r"it takes|a pause"):
                told(wrong)
        assert worker.status().willing, "nothing of that was done"
        for garbage in (b"\n", b"[]\n", b"{", b"x" * 300_000, b'{"do": "status"}'):
            _send(path, garbage)
        assert told({"do": "pause"})["reasons"] == ["paused by its owner"]
        worker.hurry()
    assert list(control_directory(tmp_path).iterdir()) == [], "nothing is left behind"
    assert ask(tmp_path, worker.server.port, {"do": "status"}) is None


def _send(path: Path, text: bytes) -> None:
    """Sends what is no request, and hangs up."""

    def send() -> None:
        here = os.open(path.parent, os.O_RDONLY)
        try:
            with socket.socket(socket.AF_UNIX) as caller:
                caller.settimeout(5.0)
                caller.connect(f"/proc/self/fd/{here}/{path.name}")
                try:
                    caller.sendall(text)
                    caller.shutdown(socket.SHUT_WR)
                    caller.recv(65_536)
                except OSError:
                    pass
        finally:
            os.close(here)

    gevent.get_hub().threadpool.spawn(send).get(timeout=20)


def test_a_socket_left_behind_is_nobody(tmp_path: Path) -> None:
    control_directory(tmp_path).mkdir()
    path = control_directory(tmp_path) / "11235.sock"
    here = os.open(path.parent, os.O_RDONLY)
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(f"/proc/self/fd/{here}/{path.name}")
    os.close(here)
    assert workers_here(tmp_path) == [11235]
    assert ask(tmp_path, 11235, {"do": "status"}) is None


def test_metrics_are_what_prometheus_reads(tmp_path: Path) -> None:
    with make_worker(tmp_path, replace(SETTINGS, metrics_port=0)) as worker:
        foreman = Foreman(worker.server.port)
        foreman.push(foreman.lease([1, 2]))
        foreman.collect(2)
        assert worker._metrics is not None
        assert worker._metrics.host == "127.0.0.1", "of this machine alone, unless told otherwise"
        url = worker._metrics.url

        def get(path: str) -> tuple[str, str]:
            with urllib.request.urlopen(f"{url}{path}", timeout=10) as answer:
                return answer.headers["Content-Type"], answer.read().decode()

        kind, text = gevent.get_hub().threadpool.spawn(get, "/metrics").get(timeout=10)
        assert kind.startswith("text/plain; version=0.0.4")
        samples = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
        assert samples["ec262_worker_tasks_taken_total"] == "2"
        assert samples['ec262_worker_tasks_finished_total{kind="ok"}'] == "2"
        assert samples["ec262_worker_willing"] == "1"
        kinds = [line.split()[2:] for line in text.splitlines() if line.startswith("# TYPE")]
        assert {name for name, _ in kinds} == {name.split("{")[0] for name in samples}
        assert {kind for _, kind in kinds} == {"counter", "gauge"}
        with pytest.raises(urllib.error.HTTPError):
            gevent.get_hub().threadpool.spawn(get, "/").get(timeout=10)
        worker.hurry()


def test_the_line_at_the_end_has_what_was_earned_a_moment_ago(
    server: Server, foreman: DiscoveryClient, tmp_path: Path
) -> None:
    with at_work(server.url, tmp_path, replace(SETTINGS, look_every_s=60.0)) as worker:
        eventually(lambda: worker.registration.earned_at_start == 0, "nothing yet")
        assert worker.status().earned_today == 0
        peer, leases = push(foreman, worker, [1])
        settle(foreman, worker, peer, leases)
        eventually(lambda: worker.registration.earned == 1, "paid")
        status = worker.status()
        assert (status.earned, status.earned_since_start, status.earned_today) == (1, 1, 1)
