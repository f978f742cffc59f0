"""The HTTP server against good, slow, greedy and malicious clients, over real sockets.

Every test runs the server in a process of its own thread's event loop, and its clients in plain threads of
the test: nothing is monkey-patched unless a test says so.
"""

from __future__ import annotations

import json
import logging
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gevent
import gevent.event
import pytest
from gevent import socket as gevent_socket

from ec262.errors import SetupError
from ec262.serving import Limits, Server, serve

LIMITS = Limits(
    max_body_bytes=100_000,
    max_header_bytes=4_000,
    max_headers=20,
    header_timeout_s=0.4,
    body_timeout_s=0.4,
    send_timeout_s=0.4,
    min_bytes_s=1_000_000,
    keep_alive_s=1.0,
    linger_s=0.5,
)


class App:
    """Echoes the body; counts its calls; some paths behave in special ways."""

    def __init__(self) -> None:
        self.calls = 0
        self.environ: dict[str, Any] = {}

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        self.calls += 1
        self.environ = environ
        path = environ["PATH_INFO"]
        body: bytes = environ["wsgi.input"].read()
        if path == "/slow":
            gevent.sleep(0.5)
        if path == "/broken":
            raise ConnectionResetError(104, "the application's own connection")
        if path == "/large":
            body = b"x" * 20_000_000
        start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))])
        if path == "/torn":
            return torn()
        return [body]


def torn() -> Iterator[bytes]:
    yield b"a"
    raise ValueError("half way")


@contextmanager
def running(app: App, limits: Limits = LIMITS, access_log: logging.Logger | None = None) -> Iterator[Server]:
    """A server in a thread with an event loop of its own."""
    ready = threading.Event()
    servers: list[Server] = []

    def run() -> None:
        server = serve(app, limits=limits, access_log=access_log)
        servers.append(server)
        ready.set()
        server.serve_forever(stop_timeout_s=2)

    thread = threading.Thread(target=run)
    thread.start()
    assert ready.wait(5)
    try:
        yield servers[0]
    finally:
        servers[0].stop_soon()
        thread.join(10)
        assert not thread.is_alive()


@pytest.fixture
def app() -> App:
    return App()


@pytest.fixture
def server(app: App) -> Iterator[Server]:
    with running(app) as server:
        yield server


def connect(server: Server) -> socket.socket:
    return socket.create_connection((server.host, server.port), timeout=10)


def answer(sock: socket.socket) -> tuple[int, dict[str, str], bytes]:
    """Reads one answer: status, headers (lower case), body."""
    data = b""
    while b"\r\n\r\n" not in data:
        piece = sock.recv(65536)
        assert piece, f"closed after {data!r}"
        data += piece
    head, _, body = data.partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    while len(body) < int(headers["content-length"]):
        body += sock.recv(65536)
    return int(first.split()[1]), headers, body


def closed(sock: socket.socket) -> bool:
    """Waits for the other side to close."""
    try:
        return sock.recv(1) == b""
    except ConnectionResetError:
        return True


def post(body: bytes, path: str = "/", *headers: str) -> bytes:
    lines = [f"POST {path} HTTP/1.1", "Host: x", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def ask(server: Server, request: bytes) -> tuple[int, dict[str, str], bytes]:
    with connect(server) as sock:
        sock.sendall(request)
        return answer(sock)


def assert_problem(reply: tuple[int, dict[str, str], bytes], status: int) -> None:
    assert reply[0] == status
    assert reply[1]["content-type"] == "application/problem+json"
    assert reply[1]["connection"] == "close"
    problem = json.loads(reply[2])
    assert problem["status"] == status
    assert problem["code"]
    assert problem["detail"]


def assert_still_serving(server: Server) -> None:
    assert ask(server, post(b"hello"))[::2] == (200, b"hello")


def test_a_request_and_its_environment(server: Server, app: App) -> None:
    status, headers, body = ask(
        server, post(b"hello", "/a%20b?q=1", "X-Two: 1", "x-two: 2", "X_Two: spoofed", "Content-Type: text/x")
    )
    assert (status, body) == (200, b"hello")
    assert "date" in headers
    assert app.environ["PATH_INFO"] == "/a b"
    assert app.environ["QUERY_STRING"] == "q=1"
    assert app.environ["HTTP_X_TWO"] == "1,2"
    assert app.environ["CONTENT_TYPE"] == "text/x"
    assert app.environ["CONTENT_LENGTH"] == "5"
    assert app.environ["REMOTE_ADDR"] == "127.0.0.1"
    assert server.port > 0
    assert server.url == f"http://127.0.0.1:{server.port}"


def test_keep_alive_has_no_stall(server: Server) -> None:
    with connect(server) as sock:
        started = time.monotonic()
        for number in range(100):
            sock.sendall(post(b"%d" % number))
            assert answer(sock)[2] == b"%d" % number
        # Stock pywsgi needs 100 × 44 ms: headers and body apart, Nagle's algorithm, delayed acknowledgement.
        assert time.monotonic() - started < 2.0


def test_pipelined_requests_are_answered_in_order(server: Server) -> None:
    with connect(server) as sock:
        sock.sendall(post(b"a" * 10) + post(b"b" * 10) + b"GET / HTTP/1.1\r\nConnection: close\r\n\r\n")
        received = b""
        while piece := sock.recv(65536):
            received += piece
    assert received.count(b"200 OK") == 3
    assert received.index(b"aaaa") < received.index(b"bbbb")


def test_chunked_bodies_become_whole_ones(server: Server, app: App) -> None:
    reply = ask(server, b"POST / HTTP/1.1\r\nTransfer-Encoding: Chunked\r\n\r\n3\r\nabc\r\n2;x=y\r\nde\r\n0\r\n\r\n")
    assert reply[::2] == (200, b"abcde")
    assert app.environ["CONTENT_LENGTH"] == "5"


def test_expect_continue(server: Server) -> None:
    with connect(server) as sock:
        sock.sendall(post(b"", "/", "Expect: 100-continue").replace(b"Length: 0", b"Length: 3"))
        assert sock.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
        sock.sendall(b"abc")
        assert answer(sock)[2] == b"abc"


def test_http_1_0_closes(server: Server) -> None:
    with connect(server) as sock:
        sock.sendall(b"GET / HTTP/1.0\r\n\r\n")
        assert answer(sock)[1]["connection"] == "close"
        assert closed(sock)


def test_an_oversized_body_is_refused_unread(server: Server, app: App) -> None:
    with connect(server) as sock:
        sock.sendall(b"POST / HTTP/1.1\r\nContent-Length: 100001\r\nExpect: 100-continue\r\n\r\n")
        assert_problem(answer(sock), 413)  # though nothing of the body was sent
        assert closed(sock)
    assert app.calls == 0


def test_a_sender_of_an_oversized_body_comes_to_read_why(server: Server, app: App) -> None:
    """Closing with unread bytes would reset the connection before the answer is read."""
    with connect(server) as sock:
        sock.sendall(post(b"x" * 20_000_000))
        assert_problem(answer(sock), 413)
    assert app.calls == 0


def test_an_oversized_chunked_body_is_refused_midway(server: Server, app: App) -> None:
    with connect(server) as sock:
        sock.sendall(b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n" + b"8000\r\n" + b"x" * 0x8000 + b"\r\n")
        sock.sendall((b"8000\r\n" + b"x" * 0x8000 + b"\r\n") * 4)
        assert_problem(answer(sock), 413)
    assert app.calls == 0


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"GET\r\n\r\n", 400),
        (b"GET /\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400),
        (b"\x00" * 500 + b"\r\n", 400),
        (b"\r\n\r\n\r\nGET / HTTP/1.1\r\n\r\n", 400),
        (b"GET / HTTP/1\r\n\r\n", 400),
        (b"GET / HTTP/2.0\r\n\r\n", 400),
        (b"GET / HTTP/x.y\r\n\r\n", 400),
        (b"get / HTTP/1.1\r\n\r\n", 400),
        (b"GET  / HTTP/1.1\r\n\r\n", 400),
        (b"GET x HTTP/1.1\r\n\r\n", 400),
        (b"GET /\x7f HTTP/1.1\r\n\r\n", 400),
        (b"GET /%s%d HTTP/1.1 %s\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nno colon\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\n: x\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nA : x\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nA: x\r\n folded\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nA: x\x00\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nA: x\ry\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nContent-Length: -1\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nContent-Length: +1\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nContent-Length: 1_0\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nContent-Length: junk\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nContent-Length:\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nContent-Length: " + b"9" * 50 + b"\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nContent-Length: 99999999999\r\n\r\n", 413),
        (b"POST / HTTP/1.1\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", 400),
        (b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n", 400),
        (b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n-1\r\n", 400),
        (b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n" + b"f" * 20 + b"\r\n", 400),
        (b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabcdef\r\n", 400),
        (b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\x00: y\r\n\r\n", 400),
        (b"GET /" + b"a" * 9_000 + b" HTTP/1.1\r\n\r\n", 414),
        (b"GET / HTTP/1.1\r\nA: " + b"a" * 5_000 + b"\r\n\r\n", 431),
        (b"GET / HTTP/1.1\r\n" + b"A: a\r\n" * 21 + b"\r\n", 431),
        (b"GET / HTTP/1.1\r\n" + b"A: %s\r\n" % (b"a" * 500) * 10 + b"\r\n", 431),
    ],
)
def test_bad_requests_get_a_reason_and_nothing_else(
    server: Server, app: App, request_bytes: bytes, status: int, capfd: pytest.CaptureFixture[str]
) -> None:
    assert_problem(ask(server, request_bytes), status)
    assert app.calls == 0
    assert_still_serving(server)
    assert capfd.readouterr() == ("", "")


def test_junk_after_a_good_request(server: Server, app: App, capfd: pytest.CaptureFixture[str]) -> None:
    with connect(server) as sock:
        sock.sendall(post(b"good") + b"\x00\x01junk\r\n\r\n")
        received = b""
        while piece := sock.recv(65536):
            received += piece
    assert received.startswith(b"HTTP/1.1 200 OK")
    assert b"HTTP/1.1 400" in received
    assert app.calls == 1
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("where", [b"", b"GET / HT", b"GET / HTTP/1.1\r\nA: b", post(b"abc")[:-1]])
def test_clients_that_go_away(server: Server, app: App, where: bytes, capfd: pytest.CaptureFixture[str]) -> None:
    with connect(server) as sock:
        sock.sendall(where)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")  # a reset
    assert_still_serving(server)
    assert app.calls == 1
    assert capfd.readouterr() == ("", "")


def drip(sock: socket.socket, data: bytes, every_s: float = 0.05) -> float:
    """Sends byte by byte until the other side has had enough; returns after how many seconds."""
    started = time.monotonic()
    sock.settimeout(every_s)
    for byte in data:
        try:
            sock.sendall(bytes([byte]))
            if sock.recv(1, socket.MSG_PEEK) is not None:
                break
        except TimeoutError:
            continue
        except OSError:
            break
    sock.settimeout(5)
    return time.monotonic() - started


def test_slow_headers_are_cut_off(server: Server) -> None:
    with connect(server) as sock:
        assert drip(sock, b"GET / HTTP/1.1\r\n" + b"A: " + b"a" * 1000) < 1.5
        assert_problem(answer(sock), 408)


def test_slow_bodies_are_cut_off(server: Server, app: App) -> None:
    with connect(server) as sock:
        sock.sendall(b"POST / HTTP/1.1\r\nContent-Length: 1000\r\n\r\n")
        assert drip(sock, b"a" * 1000) < 1.5
        assert_problem(answer(sock), 408)
    assert app.calls == 0


def test_slow_chunks_are_cut_off(server: Server) -> None:
    with connect(server) as sock:
        sock.sendall(b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n")
        assert drip(sock, b"1\r\na\r\n" * 1000) < 1.5
        assert_problem(answer(sock), 408)


def test_a_client_that_does_not_read_is_cut_off(server: Server, capfd: pytest.CaptureFixture[str]) -> None:
    with connect(server) as sock:
        sock.sendall(b"GET /large HTTP/1.1\r\n\r\n")
        # 0.4 s plus 20 s at the least speed; with the speed of the limits here that is 20 MB / 1 MB/s.
        assert server.connections <= 1
    limits = Limits(send_timeout_s=0.3, min_bytes_s=1e9)
    with running(App(), limits) as server, connect(server) as sock:
        sock.sendall(b"GET /large HTTP/1.1\r\n\r\n")
        time.sleep(1)
        assert server.connections == 0
    assert capfd.readouterr() == ("", "")


def test_idle_connections_are_closed_in_the_end(server: Server) -> None:
    with connect(server) as silent, connect(server) as sock:
        sock.sendall(post(b"x"))
        answer(sock)
        started = time.monotonic()
        assert closed(sock)
        assert closed(silent)
        assert 0.5 < time.monotonic() - started < 2


def test_many_idle_connections_do_not_block_others(app: App) -> None:
    with running(app, Limits(max_connections=20)) as server:
        hoard = [connect(server) for _ in range(100)]
        half = [connect(server) for _ in range(50)]
        for sock in half:
            sock.sendall(b"GET / HTTP/1.1\r\n")  # forever in its headers
        started = time.monotonic()
        for _ in range(5):
            assert_still_serving(server)
        assert time.monotonic() - started < 2
        assert server.connections <= 36
        for sock in hoard + half:
            sock.close()


def test_bodies_in_memory_are_limited_together(app: App) -> None:
    with running(app, Limits(max_buffered_bytes=150_000)) as server:
        with connect(server) as first:
            first.sendall(post(b"x" * 100_000)[:-1])  # nearly all of it: 100 kB are held
            deadline = time.monotonic() + 20
            while server._server.buffered < 60_000:  # it is read in pieces of 64 KiB
                assert time.monotonic() < deadline
                time.sleep(0.01)
            reply = ask(server, post(b"y" * 100_000))
            assert_problem(reply, 503)
            assert reply[1]["retry-after"] == "1"
            first.sendall(b"x")
            assert answer(first)[0] == 200
        assert ask(server, post(b"y" * 100_000))[0] == 200  # and given back


def test_an_error_of_the_application_is_a_500_in_the_log(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    assert_problem(ask(server, post(b"", "/broken")), 500)
    assert "application's own connection" in caplog.text
    assert_still_serving(server)


def test_an_answer_that_breaks_off_closes_the_connection(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    with connect(server) as sock:
        sock.sendall(post(b"abc", "/torn"))
        received = b""
        while piece := sock.recv(65536):
            received += piece
    assert received.count(b"HTTP/1.1") == 1
    assert "half way" in caplog.text


def test_a_graceful_stop_finishes_what_runs(app: App) -> None:
    with running(app) as server:
        idle, busy = connect(server), connect(server)
        busy.sendall(post(b"running", "/slow"))
        time.sleep(0.2)
        server.stop_soon()
        assert closed(idle)
        reply = answer(busy)
        assert reply[::2] == (200, b"running")
        assert reply[1]["connection"] == "close"
        assert closed(busy)
        with pytest.raises(ConnectionRefusedError):
            connect(server)


def test_a_stop_does_not_wait_for_ever(app: App) -> None:
    with running(app, Limits(body_timeout_s=60)) as server, connect(server) as sock:
        sock.sendall(post(b"x" * 100)[:-1])
        time.sleep(0.2)
        started = time.monotonic()
        server.stop_soon()
        assert closed(sock)
        assert 1.5 < time.monotonic() - started < 4  # the stop's timeout here is 2 s


def test_the_access_log_is_there_only_if_wanted(app: App, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    with running(app) as server:
        assert_still_serving(server)
    assert "HTTP/1.1" not in caplog.text
    with running(app, access_log=logging.getLogger("access")) as server:
        assert_still_serving(server)
        ask(server, b"junk\r\n\r\n")
        ask(server, b"GET /\x9b31m HTTP/1.1\r\nHost: x\r\n\r\n")
    assert "\x9b" not in caplog.text, "what steers a terminal stays out of a log"
    assert r"GET /\x9b31m" in caplog.text
    assert '"POST / HTTP/1.1" 200 ' in caplog.text
    assert '"" 400 ' in caplog.text


def test_a_taken_port_is_a_clear_error(server: Server) -> None:
    with pytest.raises(SetupError, match="another program listens there"):
        serve(App(), port=server.port)
    with pytest.raises(SetupError, match="Cannot listen on"):
        serve(App(), host="192.0.2.1")
    with pytest.raises(SetupError, match="Cannot listen on"):
        serve(App(), host="no.such.name.invalid")


def test_in_the_main_thread_and_patched() -> None:
    """The way discovery runs it: monkey-patched, stopped by Ctrl-C."""
    program = """
import sys
if sys.argv[1] == "patched":
    from gevent import monkey
    monkey.patch_all()
import signal
from ec262.serving import serve
def app(environ, start_response):
    start_response("200 OK", [("Content-Length", "2")])
    return [b"ok"]
server = serve(app)
# Where a KeyboardInterrupt surfaces in an event loop is chance: programs give both signals a handler.
for number in (signal.SIGTERM, signal.SIGINT):
    signal.signal(number, lambda *_: server.stop_soon())
print(server.port, flush=True)
server.serve_forever()
print("stopped")
"""
    for patched in ("patched", "plain"):
        for by in (signal.SIGTERM, signal.SIGINT):
            process = subprocess.Popen(
                [sys.executable, "-c", program, patched],
                cwd=Path(__file__).parents[2],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            assert process.stdout is not None
            port = int(process.stdout.readline())
            with socket.create_connection(("127.0.0.1", port)) as sock:
                sock.sendall(b"GET / HTTP/1.1\r\n\r\n")
                assert answer(sock)[2] == b"ok"
                process.send_signal(by)
                out, err = process.communicate(timeout=10)
                assert (out, err) == ("stopped\n", "")


def test_an_address_has_only_so_many_connections(app: App) -> None:
    """The attack: one address takes all connections there are, and says nothing."""
    with running(app, Limits(max_connections_address=3, keep_alive_s=30)) as server:
        held = [connect(server) for _ in range(3)]
        for each in held:
            each.sendall(post(b"x"))
            assert answer(each)[0] == 200
        greedy = connect(server)
        assert closed(greedy)
        # Those it has go on, another address is not its neighbour, and what it gives back it may have again.
        held[0].sendall(post(b"x"))
        assert answer(held[0])[0] == 200
        with socket.create_connection((server.host, server.port), timeout=10, source_address=("127.0.0.9", 0)) as other:
            other.sendall(post(b"x"))
            assert answer(other)[0] == 200
        for each in (*held, greedy):
            each.close()
        deadline = time.monotonic() + 5
        while server.connections and time.monotonic() < deadline:
            time.sleep(0.01)
        assert_still_serving(server)


def test_a_trusted_proxy_has_as_many_connections_as_it_needs(app: App) -> None:
    limits = Limits(max_connections_address=2, trusted=frozenset({"127.0.0.1"}))
    with running(app, limits) as server:
        held = [connect(server) for _ in range(6)]
        for each in held:
            each.sendall(post(b"x"))
            assert answer(each)[0] == 200
            each.close()


def test_announcing_a_large_body_buys_no_time(app: App) -> None:
    """The attack: hours for a byte a second, by a large Content-Length."""
    with running(app, Limits(body_timeout_s=0.5, min_bytes_s=100, max_body_bytes=1_000_000)) as server:
        started = time.monotonic()
        with connect(server) as sock:
            sock.sendall(b"POST / HTTP/1.1\r\nContent-Length: 1000000\r\n\r\nabc")
            assert_problem(answer(sock), 408)
        assert time.monotonic() - started < 5
        assert app.calls == 0


def test_a_large_body_that_keeps_coming_has_time(app: App) -> None:
    with running(app, Limits(body_timeout_s=0.4, min_bytes_s=100_000, max_body_bytes=1_000_000)) as server:
        body = b"x" * 400_000
        with connect(server) as sock:
            sock.sendall(post(body)[:-200_000])
            time.sleep(1.0)  # longer than 0.4 s, but 200 kB have come
            sock.sendall(post(body)[-200_000:])
            assert answer(sock)[0] == 200


def test_a_drain_lets_every_connection_bring_one_more_request() -> None:
    server = serve(App())
    soon = gevent.event.Event()
    with gevent_socket.create_connection((server.host, server.port), timeout=10) as sock:
        sock.sendall(post(b"one"))
        assert answer(sock)[2] == b"one"
        draining = gevent.spawn(server.drain, 30.0, soon)
        gevent.sleep(0.2)
        with pytest.raises(OSError):
            gevent_socket.create_connection((server.host, server.port), timeout=10)
        sock.sendall(post(b"two"))
        status, headers, body = answer(sock)
        assert (status, body, headers["connection"]) == (200, b"two", "close")
    draining.join(5)
    assert draining.ready(), "no connection is left, and it waits all the same"
    server.stop()


def test_a_drain_ends_when_it_has_to() -> None:
    server = serve(App())
    soon = gevent.event.Event()
    with gevent_socket.create_connection((server.host, server.port), timeout=10):
        gevent.sleep(0.1)  # it is accepted
        draining = gevent.spawn(server.drain, 30.0, soon)
        gevent.sleep(0.1)
        assert not draining.ready()
        soon.set()
        draining.join(5)
        assert draining.ready()
        server.stop()
