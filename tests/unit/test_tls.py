"""TLS: discovery speaks it, and clients believe nobody whom an authority does not vouch for."""

from __future__ import annotations

import contextlib
import dataclasses
import select
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

import ec262
from ec262.discovery_client import DiscoveryClient
from ec262.errors import DiscoveryUnreachable, SetupError
from ec262.protocol import messages as m
from ec262.serving import Limits, Server, serve, server_context
from tests.certificates import DAY, NOW, Authority
from tests.processes import ROOT, Process, nothing_left

LIMITS = Limits(header_timeout_s=0.5, keep_alive_s=30.0, max_connections=4)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@contextlib.contextmanager
def running(certificate: Path, key: Path | None, limits: Limits = LIMITS) -> Iterator[Server]:
    """A service over TLS, in a thread of its own."""
    servers: list[Server] = []
    ready = threading.Event()

    def application(environ: dict[str, object], start_response: object) -> list[bytes]:
        assert environ["wsgi.url_scheme"] == "https"
        start_response("200 OK", [("Content-Type", m.JSON)])  # type: ignore[operator]
        return [m.encode(m.Health(status="ok"))]

    def run() -> None:
        servers.append(Server(application, limits=limits, tls=server_context(certificate, key)).start())
        ready.set()
        servers[0].serve_forever(stop_timeout_s=2)

    thread = threading.Thread(target=run)
    thread.start()
    assert ready.wait(10)
    try:
        yield servers[0]
    finally:
        servers[0].stop_soon()
        thread.join(10)
        assert not thread.is_alive()


def healthy(server: Server, bundle: Path | str, url: str = "") -> None:
    with DiscoveryClient(url or server.url, retry_for_s=0.0, ca_bundle=str(bundle)) as client:
        assert client.health().status == "ok"
        assert client.health().status == "ok"
        assert client.addresses == {"127.0.0.1"}


def test_a_service_with_a_certificate(authority: Authority) -> None:
    with running(*authority.issue("127.0.0.1")) as server:
        assert server.url.startswith("https://127.0.0.1:")
        healthy(server, authority.bundle)


def test_certificate_and_key_in_one_file(authority: Authority) -> None:
    certificate, key = authority.issue("127.0.0.1")
    both = certificate.with_suffix(".both")
    both.write_bytes(key.read_bytes() + certificate.read_bytes())
    with running(both, None) as server:
        healthy(server, authority.bundle)


def test_attack_a_certificate_of_another_authority(authority: Authority, tmp_path: Path) -> None:
    with running(*Authority(tmp_path).issue("127.0.0.1")) as server:
        for bundle in (authority.bundle, ""):
            started = time.monotonic()
            with pytest.raises(DiscoveryUnreachable, match="EC262_CA_BUNDLE"):
                healthy(server, bundle)
            assert time.monotonic() - started < 5.0, "asking again makes it no better"


def test_attack_a_good_certificate_of_another_name(authority: Authority) -> None:
    with running(*authority.issue("example.org", "127.0.0.2")) as server:
        for url in (server.url, server.url.replace("127.0.0.1", "localhost")):
            with pytest.raises(DiscoveryUnreachable, match="not to be believed"):
                healthy(server, authority.bundle, url)


def test_attack_a_certificate_that_is_over(authority: Authority) -> None:
    with (
        running(*authority.issue("127.0.0.1", until=NOW - DAY)) as server,
        pytest.raises(DiscoveryUnreachable, match="expired"),
    ):
        healthy(server, authority.bundle)


def test_attack_a_certificate_of_nobody_but_itself(authority: Authority, tmp_path: Path) -> None:
    """Anybody between can make such a one: it is refused, and the message says what to do if it is one's own."""
    alone = Authority(tmp_path, "127.0.0.1")
    certificate, key = alone.of_itself("127.0.0.1")
    with running(certificate, key) as server:
        for bundle in (authority.bundle, ""):
            with pytest.raises(DiscoveryUnreachable, match=r"self-signed certificate.*EC262_CA_BUNDLE"):
                healthy(server, bundle)
        healthy(server, certificate)  # its owner has named it


def test_https_to_a_service_without_it_is_said() -> None:
    with (
        Server(lambda environ, start_response: []) as server,
        DiscoveryClient(server.url.replace("http", "https"), retry_for_s=0.0) as client,
        pytest.raises(DiscoveryUnreachable, match="does not speak TLS"),
    ):
        client.health()


def test_the_environment_names_the_authority(authority: Authority, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EC262_CA_BUNDLE", str(authority.bundle))
    with running(*authority.issue("127.0.0.1")) as server, DiscoveryClient(server.url, retry_for_s=0.0) as client:
        assert client.health().status == "ok"


def test_a_bundle_that_is_none(tmp_path: Path) -> None:
    junk = tmp_path / "junk"
    junk.write_text("no certificate")
    for bundle in (junk, tmp_path / "missing"):
        with pytest.raises(SetupError, match="EC262_CA_BUNDLE"):
            DiscoveryClient("https://127.0.0.1:1", ca_bundle=str(bundle))


def test_attack_speak_an_old_version(authority: Authority) -> None:
    with running(*authority.issue("127.0.0.1")) as server:
        old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        old.check_hostname, old.verify_mode = False, ssl.CERT_NONE
        with pytest.warns(DeprecationWarning, match="TLSv1_1"):
            old.minimum_version = old.maximum_version = ssl.TLSVersion.TLSv1_1
        with (
            socket.create_connection((server.host, server.port), 5) as plain,
            pytest.raises(OSError, match=r"(?i)ssl|reset|protocol|version"),
        ):
            old.wrap_socket(plain)


@pytest.mark.parametrize("greeting", [b"", b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"\x16\x03\x01\x02\x00\x01"])
def test_attack_connect_and_do_not_greet(authority: Authority, greeting: bytes) -> None:
    """Such connections end by themselves, and more of them than there may be do not keep others out."""
    with running(*authority.issue("127.0.0.1")) as server, contextlib.ExitStack() as stack:
        idle = [
            stack.enter_context(socket.create_connection((server.host, server.port), 10))
            for _ in range(LIMITS.max_connections)
        ]
        for each in idle:
            each.sendall(greeting)
        healthy(server, authority.bundle)
        for each in idle:
            with contextlib.suppress(OSError):
                while each.recv(4096):
                    pass


def flooded(server: Server, stack: contextlib.ExitStack) -> list[socket.socket]:
    """More connections than there may be, which begin a greeting and go on with it a byte now and then."""
    opened = []
    for _ in range(40):
        opened.append(stack.enter_context(socket.create_connection((server.host, server.port), 10)))
        opened[-1].sendall(b"\x16\x03\x01\x40\x00\x01")
    over = threading.Event()

    def drip() -> None:
        while not over.wait(0.1):
            for each in opened:
                with contextlib.suppress(OSError):
                    each.send(b"\x00", socket.MSG_DONTWAIT)

    thread = threading.Thread(target=drip)
    thread.start()
    stack.callback(thread.join)
    stack.callback(over.set)
    return opened


def test_attack_greet_a_byte_at_a_time(authority: Authority) -> None:
    """A byte now and then buys no time, and who greets so keeps nobody out: neither now nor later."""
    with running(*authority.issue("127.0.0.1")) as server, contextlib.ExitStack() as stack:
        opened = flooded(server, stack)
        started = time.monotonic()
        healthy(server, authority.bundle)
        for each in opened:
            with contextlib.suppress(ConnectionError):
                while each.recv(4096):
                    pass
        assert time.monotonic() - started < 5.0, "ten times what they have"


def test_attack_connections_that_do_not_greet_count_for_their_address(authority: Authority) -> None:
    few = dataclasses.replace(LIMITS, max_connections=100, header_timeout_s=30.0, max_connections_address=3)
    with running(*authority.issue("127.0.0.1"), few) as server, contextlib.ExitStack() as stack:
        opened = set(flooded(server, stack))
        until = time.monotonic() + 10
        while len(opened) > 3 and time.monotonic() < until:
            for each in select.select(list(opened), [], [], 1.0)[0]:
                with contextlib.suppress(ConnectionError):
                    assert each.recv(4096) == b""
                opened.discard(each)
        assert len(opened) == server.connections == 3


def test_a_greeting_does_not_hold_up_the_end(authority: Authority) -> None:
    with (
        running(*authority.issue("127.0.0.1"), dataclasses.replace(LIMITS, header_timeout_s=30.0)) as server,
        socket.create_connection((server.host, server.port), 10) as silent,
    ):
        while not server.connections:
            time.sleep(0.01)
        started = time.monotonic()
        server.stop_soon()
        with contextlib.suppress(ConnectionError):
            assert silent.recv(4096) == b""
        assert time.monotonic() - started < 1.5


def test_a_connection_at_rest_does_not_hold_up_the_end(authority: Authority) -> None:
    """And what is said on it meanwhile is never taken for what it says without TLS."""
    with running(*authority.issue("127.0.0.1")) as server:
        context = ssl.create_default_context(cafile=str(authority.bundle))
        with (
            socket.create_connection((server.host, server.port), 10) as plain,
            context.wrap_socket(plain, server_hostname="127.0.0.1") as connection,
        ):
            connection.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            assert connection.recv(4096).startswith(b"HTTP/1.1 200")
            started = time.monotonic()
            server.stop_soon()
            with contextlib.suppress(OSError):
                assert connection.recv(4096) == b""
            assert time.monotonic() - started < 2.0


def test_a_refusal_arrives_over_tls(authority: Authority) -> None:
    with running(*authority.issue("127.0.0.1")) as server:
        answer = requests.get(
            f"{server.url}/", headers={"X-Large": "x" * 20_000}, verify=str(authority.bundle), timeout=10
        )
        assert answer.status_code == 431
        assert answer.json()["code"] == "headers-too-large"


def test_files_that_do_not_fit(authority: Authority, tmp_path: Path) -> None:
    certificate, key = authority.issue("127.0.0.1")
    _, other = authority.issue("127.0.0.1")
    _, locked = authority.issue("127.0.0.1", password=b"secret")
    for files, why in (
        ((certificate, other), "no certificate and its key"),
        ((key, key), "no certificate and its key"),
        ((tmp_path / "missing", key), "cannot be read"),
        ((certificate, locked), "has a password|no certificate"),
    ):
        with pytest.raises(SetupError, match=why):
            server_context(*files)


def test_flags_of_the_command(authority: Authority, tmp_path: Path) -> None:
    _, key = authority.issue("127.0.0.1")
    base = [sys.executable, "-m", "discovery", "--port", "0", "--ephemeral", "--data-dir", str(tmp_path)]
    unfit = ["--tls-cert", str(key)]
    for flags, code in ((["--tls-key", str(key)], 2), (unfit, 1), ([*unfit, "--processes", "2"], 1)):
        done = subprocess.run(
            [*base, *flags], cwd=ROOT, capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL, check=False
        )
        assert done.returncode == code
        assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "processes", [pytest.param([], marks=pytest.mark.slow, id="one"), pytest.param(["--processes", "3"], id="three")]
)
def test_a_network_over_tls(
    authority: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, processes: list[str]
) -> None:
    """Discovery, a worker that is reached, one at the relay, and a job."""
    certificate, key = authority.issue("127.0.0.1", "localhost")
    monkeypatch.setenv("EC262_HOME", str(tmp_path / "foreman"))
    monkeypatch.setenv("EC262_CA_BUNDLE", str(authority.bundle))
    monkeypatch.delenv("EC262_DISCOVERY", raising=False)
    flags = ["--network", "private", "--port", "0", "--ephemeral", "--data-dir", str(tmp_path / "store")]
    with nothing_left():
        started = []
        try:
            started.append(
                Process(
                    ["-m", "discovery", *flags, *processes, "--tls-cert", str(certificate), "--tls-key", str(key)],
                    home=tmp_path,
                    log=tmp_path / "discovery.log",
                )
            )
            url = str(started[0].ready["url"])
            assert url.startswith("https://")
            for relay in ("auto", "always"):
                worker = ["worker.py", "-P", "0", "--slots", "1", "--discovery", url, "--relay", relay]
                started.append(
                    Process(
                        [*worker, "--ca-bundle", str(authority.bundle)],
                        home=tmp_path / relay,
                        log=tmp_path / f"{relay}.log",
                        environment={"EC262_CA_BUNDLE": ""},
                    )
                )
            result = ec262.run_job(
                {n: "x" * n for n in range(40)},
                mapper=lambda number, text: [(number % 3, len(text))],
                reducer=lambda _, lengths: sum(lengths),
                discovery=url,
                items_per_task=1,
                rehearse=False,
            )
            assert sum(result.values()) == sum(range(40))
        finally:
            for process in reversed(started):
                process.stop()


def test_serve_is_plain_unless_told() -> None:
    server = serve(lambda environ, start_response: [])
    assert server.url.startswith("http://")
    server.stop()
