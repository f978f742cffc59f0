"""Whether a worker can be connected to: tried once, at its own address, and never anywhere that somebody names."""

from __future__ import annotations

import contextlib
import dataclasses
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import gevent
import msgspec
import pytest

import discovery.reach as reach_module
from discovery.app import Discovery
from ec262.config import WorkerSettings
from ec262.discovery_client import DiscoveryClient
from ec262.errors import ProblemError, SetupError
from ec262.foreman.direct import Direct
from ec262.protocol import messages as m
from ec262.protocol.relaying import RelayedRequest, challenge, pack, unpack_answer
from ec262.serving import Server
from ec262.worker.relay import Nowhere
from ec262.worker.service import Worker as RealWorker
from tests.conftest import MakeDiscovery
from tests.parties import Caller, Foreman, Problem, Worker
from tests.processes import ROOT, Process
from tests.unit.test_worker_lease import SETTINGS

ELSEWHERE = "198.51.100.7"


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reach_module, "TRY_S", 0.5)


@pytest.fixture
def server(discovery: Discovery) -> Iterator[Server]:
    with Server(discovery.app) as made:
        yield made


class Listener:
    """Somebody who listens and notes what comes."""

    def __init__(self, answer: bytes = b"") -> None:
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._socket.getsockname()[1])
        self.came: list[bytes] = []
        self._answer = answer
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._socket.accept()
                self.came.append(connection.recv(4096))
                connection.sendall(self._answer)
                connection.close()

    def close(self) -> None:
        self._socket.close()


@contextlib.contextmanager
def listening(answer: bytes = b"") -> Iterator[Listener]:
    made = Listener(answer)
    try:
        yield made
    finally:
        made.close()


def worker_at(discovery: Discovery, port: int, relay: Literal["auto", "never"] = "auto") -> Worker:
    return Worker(Caller(discovery), port=port, relay=relay)


# --- trying ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("relay", ["auto", "never"])
def test_a_worker_that_can_be_reached_stays_direct(server: Server, tmp_path: Path, relay: str) -> None:
    settings = dataclasses.replace(SETTINGS, relay=relay)
    with RealWorker(settings, server.url, home=tmp_path) as worker:
        assert worker.enter()
        standing = worker.registration.standing
        assert standing is not None
        assert not standing.relay


def test_a_worker_that_cannot_be_reached_serves_through_the_relay(discovery: Discovery) -> None:
    assert worker_at(discovery, 1).registered.relay
    (assigned,) = Foreman(discovery).lease().workers
    assert (assigned.relay, assigned.address) == ("must", "")


def test_a_worker_that_wants_no_relay_and_cannot_be_reached_stays_out(discovery: Discovery) -> None:
    with pytest.raises(Problem) as refused:
        worker_at(discovery, 1, "never")
    assert (refused.value.status, refused.value.code) == (403, "unreachable")
    assert "firewall" in refused.value.problem.detail
    assert discovery.store.workers_alive() == 0


def test_the_command_says_so_and_has_an_exit_code_of_its_own(tmp_path: Path) -> None:
    """A worker that listens on one address of this machine, and comes to discovery from another."""
    service = Process(
        ["-m", "discovery", "--network", "private", "--port", "0", "--ephemeral", "--data-dir", str(tmp_path / "d")],
        home=tmp_path,
        log=tmp_path / "discovery.log",
    )
    try:
        done = subprocess.run(
            [sys.executable, "worker.py", "--relay", "never", "--host", "127.0.0.9", "-P", "0", "--slots", "1"],
            cwd=ROOT, capture_output=True, text=True, timeout=60, check=False,
            env={"PATH": "/usr/bin", "EC262_HOME": str(tmp_path), "EC262_DISCOVERY": str(service.ready["url"])},
        )  # fmt: skip
    finally:
        service.stop()
    assert done.returncode == 5, done.stderr
    assert "nobody can connect to this worker at 127.0.0.1" in done.stderr
    assert "--relay auto" in done.stderr


def test_attack_have_discovery_scan_and_talk_to_others(discovery: Discovery) -> None:
    """One connection, at the caller's own address, with a request that commands nothing; what answers is no worker."""
    with listening(b"HTTP/1.1 200 OK\r\n\r\n" + b"0" * 64) as victim:
        worker = worker_at(discovery, victim.port)
        assert worker.registered.relay, "whoever does not prove to be this worker is not it"
        (request,) = victim.came
    assert request.startswith(b"GET /v1/challenge/")
    assert request.count(b"\r\n") == 4
    assert worker.boot_id.encode() not in request


def test_attack_name_another_address(discovery: Discovery) -> None:
    """No header says where a worker is; where there is one that nobody is believed for, nobody is tried at all."""
    caller = Caller(discovery)
    with listening() as victim:
        body = m.RegisterWorker(
            worker_id="ab" * 16, boot_id="cd" * 16, port=victim.port, slots=1, python="3.11", relay="auto"
        )
        for header in ("X-Forwarded-For", "X-Real-IP", "Forwarded", "Via"):
            caller.raw("POST", "/v1/workers", m.encode(body), **{header: ELSEWHERE})
            assert discovery.store.workers(["ab" * 16])["ab" * 16].address == "127.0.0.1"
        assert victim.came == [], "it may be the port of a proxy that was named"


def test_attack_invent_an_address_before_a_proxy_that_is_believed(
    make_discovery: MakeDiscovery, tmp_path: Path
) -> None:
    """A worker behind a reverse proxy is tried where it is, whatever its own header says; and is direct."""
    discovery = make_discovery(proxies=("127.0.0.1/32",))

    def behind(environ: dict[str, Any], start_response: Any) -> Any:
        environ["HTTP_X_FORWARDED_FOR"] = f"169.254.169.254, {ELSEWHERE}, 127.0.0.9"  # the proxy appends to it
        return discovery.app(environ, start_response)

    settings = dataclasses.replace(SETTINGS, host="127.0.0.9")
    with Server(behind) as proxied, RealWorker(settings, proxied.url, home=tmp_path) as worker:
        assert worker.enter()
        standing = worker.registration.standing
        assert standing is not None
        assert not standing.relay
        assert discovery.store.workers([standing.worker_id])[standing.worker_id].address == "127.0.0.9"


def test_attack_have_discovery_connect_to_its_own_proxy(make_discovery: MakeDiscovery) -> None:
    """A proxy that is believed and names nobody, or nonsense, is no worker."""
    discovery = make_discovery(proxies=("127.0.0.0/8",))
    caller = Caller(discovery)
    with listening() as victim:
        body = m.RegisterWorker(
            worker_id="ab" * 16, boot_id="cd" * 16, port=victim.port, slots=1, python="3.11", relay="auto"
        )
        for headers in ({}, {"X-Forwarded-For": "unknown"}, {"X-Forwarded-For": "127.0.0.1"}):
            answer = m.decode(m.WorkerRegistered, caller.raw("POST", "/v1/workers", m.encode(body), **headers).data)
            assert answer.relay
        assert victim.came == []


METADATA = "http://169.254.169.254/latest/meta-data/"


def test_attack_redirect_discovery_to_a_metadata_service(discovery: Discovery) -> None:
    """Whoever is tried may answer what he likes: nobody is connected to on that word."""
    with listening() as metadata:
        for where in (f"http://127.0.0.1:{metadata.port}/", METADATA):
            answer = f"HTTP/1.1 302 Found\r\nLocation: {where}\r\nContent-Length: 0\r\n\r\n".encode()
            with listening(answer) as redirects:
                assert worker_at(discovery, redirects.port).registered.relay
                assert len(redirects.came) == 1
        assert metadata.came == []


def test_attack_redirect_a_foreman_to_a_metadata_service() -> None:
    """By a worker that it was leased, and by a discovery that turned bad."""
    with listening() as metadata:
        where = f"http://127.0.0.1:{metadata.port}/"
        answer = f"HTTP/1.1 307 Found\r\nLocation: {where}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
        with listening(answer.encode()) as redirects:
            way = Direct("127.0.0.1", redirects.port, 0.1)
            assert way.exchange("GET", "/v1/jobs/x/results", b"", {}, 0.0)[0] == 307
            way.close()
            url = f"http://127.0.0.1:{redirects.port}"
            with DiscoveryClient(url, retry_for_s=0.0) as client, pytest.raises(ProblemError):
                client.health()
        assert metadata.came == []


def test_attack_dns_rebinding(server: Server) -> None:
    """A service whose name means a public address first, and this machine then, may name nothing nearer than before;
    and a worker's address is one in numbers, which nobody has to look up."""
    with DiscoveryClient(server.url) as client:
        client.health()
        assert client.addresses == {"127.0.0.1"}
        assert not client.refuses("127.0.0.1"), "discovery is on this machine itself"
        client.addresses.add("93.184.215.14")  # the connection before went there
        assert client.refuses("127.0.0.1")
        assert client.refuses("192.168.1.1")
        for name in ("localhost", "rebind.attacker.example", "0x7f.1", "2130706433", "127.1", "169.254.169.254"):
            assert client.refuses(name)


def test_attack_try_very_often(discovery: Discovery, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reach_module, "MOST_A_MINUTE", 3)
    with listening() as victim:
        for _ in range(8):
            assert worker_at(discovery, victim.port).registered.relay
        assert 3 <= len(victim.came) <= 6, "three a minute; a minute may end meanwhile"


def test_attack_answer_slowly_or_without_end(discovery: Discovery) -> None:
    with listening(b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * 10_000_000) as endless:
        assert worker_at(discovery, endless.port).registered.relay
    quiet = socket.create_server(("127.0.0.1", 0))
    with quiet:
        assert worker_at(discovery, quiet.getsockname()[1]).registered.relay


def test_port_0_is_for_the_relay_alone(discovery: Discovery) -> None:
    with pytest.raises(Problem) as refused:
        worker_at(discovery, 0)
    assert refused.value.code == "malformed-body"


def test_a_worker_proves_itself_to_nobody_else(server: Server, tmp_path: Path) -> None:
    """Who does not know the boot id learns nothing, and calls nobody to the relay."""
    with RealWorker(SETTINGS, server.url, home=tmp_path) as worker:
        assert worker.enter()
        called: list[bool] = []
        worker._api.on_call = lambda: called.append(True)
        boot_id = worker.registration.boot_id
        client = worker._api.app().test_client()
        right = challenge(boot_id, "n", "call")
        for nonce, why, mac in (
            ("n", "call", challenge("00" * 16, "n", "call")),
            ("m", "call", right),
            ("n", "reach", right),
            ("n", "other", challenge(boot_id, "n", "other")),
            ("n", "call", "é" * 64),
        ):
            assert client.get(f"/v1/challenge/{nonce}/{why}/{mac}").status_code == 404
        assert not called
        assert client.get(f"/v1/challenge/n/call/{right}").status_code == 200
        assert called == [True]


# --- moving ---------------------------------------------------------------------------------------


def beat_from(worker: Worker, address: str) -> m.HeartbeatAnswer:
    worker.caller._client.environ_base["REMOTE_ADDR"] = address
    return worker.heartbeat()


def test_a_worker_that_moved_registers_again_and_keeps_what_it_holds(discovery: Discovery) -> None:
    worker = Worker(Caller(discovery), relay="always", port=0)
    leased = Foreman(discovery).lease(3)
    assert len(beat_from(worker, "127.0.0.77").open_leases) == 3, "in its neighbourhood it is where it was"
    with pytest.raises(Problem) as moved:
        beat_from(worker, ELSEWHERE)
    assert moved.value.code == "unknown-worker"
    epoch = worker.registered.epoch
    worker.register()
    assert worker.registered.epoch == epoch
    assert sorted(worker.heartbeat().open_leases) == sorted(
        replica.lease_id for task in leased.tasks for replica in task.replicas
    )
    assert discovery.store.workers([worker.worker_id])[worker.worker_id].address == ELSEWHERE


def test_a_worker_that_was_reached_is_tried_anew_wherever_it_comes_from(server: Server, tmp_path: Path) -> None:
    with RealWorker(SETTINGS, server.url, home=tmp_path) as worker, DiscoveryClient(server.url) as client:
        assert worker.enter()
        standing, credentials = worker.registration.standing, worker._client
        assert standing is not None
        client.account_id, client._authorization = credentials.account_id, credentials._authorization
        beat = m.Heartbeat(boot_id=worker.registration.boot_id)
        assert client.heartbeat(standing.worker_id, beat).open_leases == []
        client._authorization = credentials._authorization | {"X-Forwarded-For": ELSEWHERE}
        client.heartbeat(standing.worker_id, beat)


def test_a_worker_that_says_nothing_of_the_relay_registers_again_too(discovery: Discovery) -> None:
    """Foremen push to the address that is noted: next door is elsewhere."""
    worker = Worker(Caller(discovery))
    with pytest.raises(Problem) as moved:
        beat_from(worker, "127.0.0.77")
    assert moved.value.code == "unknown-worker"


# --- being called ---------------------------------------------------------------------------------


def test_somebody_who_cannot_connect_calls_a_worker_to_the_relay(tmp_path: Path) -> None:
    """The foreman calls at the relay; discovery connects to the worker, which comes and takes the call."""
    service = Process(
        ["-m", "discovery", "--network", "private", "--port", "0", "--ephemeral", "--data-dir", str(tmp_path / "d")],
        home=tmp_path,
        log=tmp_path / "discovery.log",
    )
    try:
        url = str(service.ready["url"])
        with RealWorker(SETTINGS, url, home=tmp_path) as worker, DiscoveryClient(url) as client:
            assert worker.enter()
            assert worker._relay._polls == 0, "nobody wants it there"
            made = client.create_account(m.CreateAccount())
            client.use_account(made.account_id, made.secret)
            version = f"{sys.version_info[0]}.{sys.version_info[1]}"
            leased = client.lease_tasks(
                m.LeaseTasks(
                    job_id="ab" * 16,
                    idempotency_key="12345678",
                    tasks=[m.TaskWanted(input_digest=b"x" * 32)],
                    requirements=m.Requirements(python=version, lane=worker_lane(worker)),
                )
            )
            (assigned,) = leased.workers
            assert assigned.relay == "may"
            call = pack(RelayedRequest(transfer="ab" * 16, target="/"))
            wanted = m.CallRelay(relay_pass=assigned.relay_pass, wait_s=10.0, call=call)
            reply = client.call_relay(assigned.worker_id, wanted)
            state = m.decode(m.WorkerState, unpack_answer(reply.reply).body)
            assert state.worker_id == assigned.worker_id
            old = pack(RelayedRequest(transfer="cd" * 16, target="/", agent="ec262/0.0.3"))
            reply = client.call_relay(assigned.worker_id, msgspec.structs.replace(wanted, call=old))
            answer = unpack_answer(reply.reply)
            assert answer.status == 426, "whoever is too old hears it through the relay as well"
            assert m.decode(m.Problem, answer.body).code == "upgrade-required"
            # Should discovery not be able to connect any more, the next heartbeat says that somebody waits.
            standing = worker.registration.standing
            assert standing is not None
            assert worker._client.heartbeat(standing.worker_id, m.Heartbeat(boot_id=worker.registration.boot_id)).relay
            gevent.sleep(0)
    finally:
        service.stop()


def worker_lane(worker: RealWorker) -> Literal["native", "none"]:
    return "none" if worker.settings.sandbox == "none" else "native"


def test_a_worker_that_is_gone_is_said_to_be(discovery: Discovery, server: Server, tmp_path: Path) -> None:
    foreman = Foreman(discovery)
    with RealWorker(SETTINGS, server.url, home=tmp_path) as worker:
        assert worker.enter()
        standing = worker.registration.standing
        assert standing is not None
        worker.registration.stop()
    (assigned,) = lease_any(foreman).workers
    body = m.CallRelay(relay_pass=assigned.relay_pass, wait_s=10.0, call=b"x")
    with pytest.raises(Problem) as absent:
        foreman.call("POST", f"/v1/relay/{standing.worker_id}", m.RelayReply, body)
    assert (absent.value.status, absent.value.code) == (504, "absent")


def lease_any(foreman: Foreman) -> m.Leased:
    """A lease of workers of this Python."""
    version = f"{sys.version_info[0]}.{sys.version_info[1]}"
    return foreman.call(
        "POST",
        "/v1/tasks",
        m.Leased,
        m.LeaseTasks(
            job_id=foreman.job_id,
            idempotency_key="123456789",
            tasks=[m.TaskWanted(input_digest=b"x" * 32)],
            requirements=m.Requirements(python=version),
        ),
    )


def test_settings_know_three_ways() -> None:
    with pytest.raises(SetupError, match="auto, always or never"):
        WorkerSettings(relay="sometimes")


def test_two_workers_that_listen_nowhere_are_two() -> None:
    """The port names a worker, to discovery and to its owner."""
    first = Nowhere(0)
    with pytest.raises(SetupError, match=f"port {first.port}"):
        Nowhere(first.port)
    with pytest.raises(SetupError):
        Server(lambda environ, start_response: [], "0.0.0.0", first.port)
    first.stop()
    Nowhere(first.port).stop()
