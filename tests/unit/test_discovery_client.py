"""The client against a service that answers what the test says, in the same thread; against none; against nonsense."""

from __future__ import annotations

import base64
import socket
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import gevent
import pytest
from gevent.event import Event

from ec262 import discovery_client
from ec262.discovery_client import DiscoveryClient, create_account_at
from ec262.errors import (
    DiscoveryUnreachable,
    EC262Error,
    InsufficientCredits,
    NetworkError,
    ProblemError,
    SetupError,
    Unauthorized,
)
from ec262.protocol import messages as m
from ec262.protocol.problems import CONTENT_TYPE, problem_body
from ec262.protocol.routes import routes_of
from ec262.serving import Server

Answer = tuple[int, str, bytes]


class Service:
    """A discovery service of canned answers; remembers who asked for what."""

    def __init__(self) -> None:
        self.answers: list[Answer] = []
        self.always: Answer = (200, "application/json", b"{}")
        self.asked: list[tuple[str, str, str | None, bytes]] = []
        self.media: list[tuple[str, str]] = []
        self.at_work = self.most_at_work = 0
        self.takes_s = 0.0
        self.over = Event()

    def __call__(self, environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        account = environ.get("HTTP_AUTHORIZATION")
        self.asked.append((environ["REQUEST_METHOD"], environ["PATH_INFO"], account, environ["wsgi.input"].read()))
        self.media.append((environ.get("CONTENT_TYPE", ""), environ["HTTP_ACCEPT"]))
        self.at_work += 1
        self.most_at_work = max(self.most_at_work, self.at_work)
        self.over.wait(self.takes_s)
        self.at_work -= 1
        status, kind, body = self.answers.pop(0) if self.answers else self.always
        start(f"{status} X", [("Content-Type", kind), ("Content-Length", str(len(body)))])
        return [body]


def problem(code: str, **fields: int) -> Answer:
    status, body = problem_body(code, "because", **fields)
    return status, CONTENT_TYPE, body


def good(message: m.Message) -> Answer:
    return 200, "application/json", m.encode(message)


CREDITS = m.Credits(minted=3, burnt=0, accounts=2, escrow=1)
ACCOUNT = m.AccountState(account_id="a", name="", balance=1, escrow=0, earned=0, spent=0, workers=0)


@pytest.fixture
def service() -> Service:
    return Service()


@pytest.fixture
def url(service: Service) -> Iterator[str]:
    with Server(service) as server:
        yield server.url
        service.over.set()


@pytest.fixture
def client(url: str) -> Iterator[DiscoveryClient]:
    with DiscoveryClient(url, "acc", "s3cret", retry_for_s=5.0) as made:
        yield made


def test_there_is_a_method_for_every_route() -> None:
    for route in routes_of("discovery"):
        assert callable(getattr(DiscoveryClient, route.name))


def test_calls_carry_the_account_where_the_route_wants_one(client: DiscoveryClient, service: Service) -> None:
    service.answers = [good(CREDITS), good(ACCOUNT)]
    assert client.credits() == CREDITS
    assert client.account() == ACCOUNT
    basic = "Basic " + base64.b64encode(b"acc:s3cret").decode()
    assert service.asked == [("GET", "/v1/credits", None, b""), ("GET", "/v1/account", basic, b"")]


def test_a_path_before_the_routes_is_kept(url: str, service: Service) -> None:
    service.answers = [good(CREDITS)]
    with DiscoveryClient(url + "/behind/proxy/") as client:
        client.credits()
    assert service.asked[0][1] == "/behind/proxy/v1/credits"


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (problem("unauthorized"), Unauthorized),
        (problem("unknown-worker"), ProblemError),
        ((404, "text/html", b"<h1>nginx</h1>"), ProblemError),
        ((302, "text/html", b""), ProblemError),
        ((500, CONTENT_TYPE, b"junk"), ProblemError),
        ((200, "application/json", b"junk"), NetworkError),
        ((200, "application/json", b'{"minted": "many"}'), NetworkError),
    ],
)
def test_other_answers_are_errors_and_not_repeated(
    client: DiscoveryClient, service: Service, answer: Answer, error: type[EC262Error]
) -> None:
    service.answers = [answer]
    with pytest.raises(error):
        client.credits()
    assert len(service.asked) == 1


def test_too_little_credit_says_how_much(client: DiscoveryClient, service: Service) -> None:
    service.answers = [problem("insufficient-credits", needed=3, available=2)]
    with pytest.raises(InsufficientCredits) as caught:
        client.account()
    assert caught.value.fields == {"needed": 3, "available": 2}


def test_control_characters_of_an_answer_stay_out_of_the_message(client: DiscoveryClient, service: Service) -> None:
    body = m.encode(m.Problem(title="t", status=409, code="conflict", detail="\x1b[31mred\r\n"))
    service.answers = [(409, CONTENT_TYPE, body)]
    with pytest.raises(ProblemError) as caught:
        client.credits()
    assert str(caught.value).isprintable()


def test_unavailable_is_asked_again(client: DiscoveryClient, service: Service) -> None:
    service.answers = [problem("unavailable"), problem("unavailable"), good(CREDITS)]
    assert client.credits() == CREDITS
    assert len(service.asked) == 3


def test_making_an_account_is_never_repeated(client: DiscoveryClient, service: Service) -> None:
    service.answers = [problem("unavailable")]
    with pytest.raises(ProblemError):
        create_account_at(client)
    assert len(service.asked) == 1


def test_a_connection_that_broke_is_replaced(service: Service) -> None:
    server = Server(service).start()
    service.always = good(CREDITS)
    with DiscoveryClient(server.url, retry_for_s=10.0) as client:
        client.credits()
        server.stop()
        again = Server(service, port=server.port).start()
        assert client.credits() == CREDITS
        again.stop()


def test_nobody_there_names_the_url() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound and not listening: refused
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        with DiscoveryClient(url, retry_for_s=0.1) as client, pytest.raises(DiscoveryUnreachable, match=url):
            client.health()


@pytest.mark.parametrize(
    "said", [b"", b"\x00\xff", b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf", b"SSH-2.0-OpenSSH\r\n",
             b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n"]
)  # fmt: skip
def test_something_else_there_is_unreachable_too(said: bytes) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        listener.setblocking(False)

        def talk() -> None:
            gevent.socket.wait_read(listener.fileno())
            connection, _ = listener.accept()
            connection.sendall(said)
            connection.shutdown(socket.SHUT_WR)
            gevent.sleep(0.05)
            connection.close()

        talking = gevent.spawn(talk)
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        with DiscoveryClient(url, retry_for_s=0.0, answer_timeout_s=0.5) as client, pytest.raises(DiscoveryUnreachable):
            client.health()
        talking.get(timeout=5)


def test_silence_ends(service: Service, url: str) -> None:
    service.takes_s = 30.0
    with DiscoveryClient(url, retry_for_s=0.0, answer_timeout_s=0.1) as client, pytest.raises(DiscoveryUnreachable):
        client.health()


def test_an_answer_has_an_end(client: DiscoveryClient, service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(discovery_client, "MAX_ANSWER_BYTES", 1_000_000)
    service.answers = [(200, "application/json", b" " * 1_000_001), good(CREDITS)]
    with pytest.raises(NetworkError, match="more than"):
        client.credits()
    assert client.credits() == CREDITS


def test_greenlets_share_a_client_and_wait_for_their_turn(url: str, service: Service) -> None:
    service.takes_s = 0.01
    service.always = good(CREDITS)
    with DiscoveryClient(url, concurrency=4) as client:
        calls = [gevent.spawn(client.credits) for _ in range(40)]
        assert [call.get(timeout=20) for call in calls] == [CREDITS] * 40
    assert service.most_at_work == 4


def test_killed_calls_give_their_turn_back(url: str, service: Service) -> None:
    service.takes_s = 30.0
    with DiscoveryClient(url, concurrency=2) as client:
        calls = [gevent.spawn(client.credits) for _ in range(5)]
        gevent.sleep(0.1)
        gevent.killall(calls)
        service.takes_s = 0.0
        service.always = good(CREDITS)
        assert gevent.spawn(client.credits).get(timeout=10) == CREDITS


def test_the_secret_is_not_shown(client: DiscoveryClient) -> None:
    assert "s3cret" not in repr(client)


def test_secrets_are_not_sent_in_the_open(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("EC262_PLAIN_HTTP", raising=False)
    with pytest.raises(SetupError, match="https"):
        DiscoveryClient("http://192.0.2.1:26262", "acc", "s3cret")


class Refusing(Service):
    """Refuses so often, with a header that says how long to wait."""

    def __init__(self, refusal: Answer, retry: str, times: int = 1) -> None:
        super().__init__()
        self.refusal, self.retry, self.times = refusal, retry, times

    def __call__(self, environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        self.asked.append((environ["REQUEST_METHOD"], environ["PATH_INFO"], None, b""))
        status, kind, body = self.refusal if len(self.asked) <= self.times else good(CREDITS)
        headers = [("Content-Type", kind), ("Content-Length", str(len(body)))]
        start(f"{status} X", [*headers, ("Retry-After", self.retry)] if status != 200 else headers)
        return [body]


@pytest.mark.parametrize("code", ["rate-limited", "busy", "unavailable"])
def test_it_waits_as_long_as_it_is_told(code: str) -> None:
    service = Refusing(problem(code), "1")
    with Server(service) as server, DiscoveryClient(server.url, retry_for_s=10) as client:
        started = time.monotonic()
        assert client.credits() == CREDITS
        assert time.monotonic() - started >= 1.0
    assert len(service.asked) == 2


@pytest.mark.parametrize("retry", ["86400", "99999999", "Fri, 31 Dec 1999 23:59:59 GMT", "-1", "soon"])
def test_a_wait_beyond_its_patience_or_that_is_none_does_not_hold_it(retry: str) -> None:
    service = Refusing(problem("rate-limited"), retry, times=1000)
    with Server(service) as server, DiscoveryClient(server.url, retry_for_s=0.3) as client:
        started = time.monotonic()
        with pytest.raises(ProblemError, match="rate-limited"):
            client.credits()
        assert time.monotonic() - started < 5.0


@pytest.mark.parametrize("route", ["call_relay", "take_calls", "reply_to_call"])
def test_the_relay_waits_for_its_turn_and_says_nothing_of_it(route: str) -> None:
    """Limits of requests slow a job down: that its foreman, or a worker, goes too fast is not the other one's fault."""
    body = m.RelayReply(reply=b"x" * 100_000)

    good_answer = {
        "call_relay": m.RelayReply(reply=b"yes"),
        "take_calls": m.CallsTaken(calls=[]),
        "reply_to_call": m.RelayReply(reply=b""),
    }[route]
    content = m.encode(good_answer, m.PACKED)
    service = Service()
    service.answers = [problem("rate-limited")] * 2 + [(200, m.PACKED, content)]
    with (
        Server(service) as server,
        DiscoveryClient(server.url, "acc", "s3cret") as base,
        base.sibling(concurrency=4, answer_timeout_s=5.0) as client,
    ):
        started = time.monotonic()
        if route == "call_relay":
            call = m.CallRelay(relay_pass=b"", wait_s=1.0, call=b"x")
            assert client.call_relay("ab" * 16, call) == good_answer
        elif route == "take_calls":
            assert client.take_calls("ab" * 16, m.TakeCalls(boot_id="cd" * 16)) == good_answer
        else:
            client.reply_to_call("ab" * 16, "ef" * 16, body)
        assert time.monotonic() - started >= 2.0, "a second each, though nobody said how long"
    assert len(service.asked) == 3


LARGE: dict[str, tuple[m.Message, m.Message]] = {
    "lease_tasks": (
        m.LeaseTasks(
            job_id="ab" * 16,
            idempotency_key="k" * 8,
            tasks=[m.TaskWanted(input_digest=bytes(32))],
            requirements=m.Requirements(python="3.11"),
        ),
        m.Leased(
            program_key=bytes(32),
            poll_key=bytes(32),
            tasks=[],
            workers=[],
            network=m.NetworkState(workers=0, slots=0),
            price=1,
            balance=3,
        ),
    ),
    "settle": (
        m.Settle(job_id="ab" * 16, receipts=[m.SealedReceipts(worker_id="cd" * 16, token=b"\xff\0")]),
        m.Settled(tasks=[], workers=[], refused_receipts=[], balance=3),
    ),
    "audit": (m.AuditTasks(job_id="ab" * 16, tasks=["cd" * 16]), m.Audited(recompute=[], unknown=["cd" * 16])),
    "dispute": (
        m.Dispute(
            job_id="ab" * 16,
            lease_id="cd" * 16 + ".0",
            digests=[bytes(32)],
            tokens=[m.ShownToken(position=0, token=b"\xff\0")],
        ),
        m.Disputed(lease_id="cd" * 16 + ".0", verdict="upheld", reason="x", refund=1),
    ),
}
"""What foremen say much with, and what they are answered."""


@pytest.mark.parametrize("answered", [m.JSON, m.PACKED])
@pytest.mark.parametrize("route", LARGE)
def test_large_messages_go_as_messagepack_and_are_answered_in_either_form(
    client: DiscoveryClient, service: Service, route: str, answered: str
) -> None:
    body, answer = LARGE[route]
    service.answers = [(200, answered, m.encode(answer, answered))]
    assert getattr(client, route)(body) == answer
    assert service.media == [(m.PACKED, m.PACKED)]
    assert m.decode(type(body), service.asked[0][3], m.PACKED) == body


def test_all_other_messages_go_as_json(client: DiscoveryClient, service: Service) -> None:
    service.answers = [good(m.JobReported(kept_s=1.0)), good(ACCOUNT), good(ACCOUNT)]
    client.report_job("ab" * 16, m.JobReport(state="running"))
    client.rename_account(m.RenameAccount(name="x"))
    client.account()
    assert service.media == [(m.JSON, m.JSON)] * 2 + [("", m.JSON)]


@pytest.mark.parametrize("route", LARGE)
@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (problem("insufficient-credits", needed=3, available=2), InsufficientCredits),
        (problem("conflict"), ProblemError),
        ((200, m.PACKED, b"\x81\xa1"), NetworkError),
        ((200, m.PACKED, b"\xdd\xff\xff\xff\xff"), NetworkError),
        ((200, m.PACKED, b"\x91" * 100_000), NetworkError),
        ((200, m.JSON, b"\x80"), NetworkError),
        ((200, m.PACKED, b"{}"), NetworkError),
        ((200, "text/html", b"<h1>nginx</h1>"), NetworkError),
    ],
)
def test_large_messages_that_are_answered_otherwise_are_errors(
    client: DiscoveryClient, service: Service, route: str, answer: Answer, error: type[EC262Error]
) -> None:
    service.answers = [answer]
    with pytest.raises(error):
        getattr(client, route)(LARGE[route][0])
    assert len(service.asked) == 1


@pytest.mark.parametrize("route", LARGE)
def test_large_messages_are_not_paced_as_those_of_the_relay_are(url: str, service: Service, route: str) -> None:
    """A limit is told to the caller in the end, and slows nothing else down."""
    service.always = problem("rate-limited")
    with DiscoveryClient(url, "acc", "s3cret", retry_for_s=0.1) as client:
        with pytest.raises(ProblemError, match="rate-limited"):
            getattr(client, route)(LARGE[route][0])
        assert client._pace.slowed == 0


def test_having_too_many_is_no_reason_to_ask_again() -> None:
    service = Refusing(problem("too-many"), "1")
    with Server(service) as server, pytest.raises(ProblemError, match="too-many"):
        DiscoveryClient(server.url).credits()
    assert len(service.asked) == 1
