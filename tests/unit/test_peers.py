"""The foreman's two ways to a worker: which is taken when, and to whom it does not connect whoever says so."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from typing import Any, Literal

import gevent
import pytest

from ec262.errors import DiscoveryUnreachable, ProblemError
from ec262.foreman import peers, relayed
from ec262.foreman.peers import PeerClient, PeerUnreachable
from ec262.foreman.relayed import Relay, RelayDown
from ec262.protocol import messages as m
from ec262.protocol.relaying import RelayedAnswer, pack, unpack_request
from ec262.protocol.scopes import refusal
from ec262.serving import Server

RESULTS = m.Results(results=[], receipts=b"", cursor=7, held=0)


class FakeRelay(Relay):
    """A relay behind which the worker answers, or that says no."""

    def __init__(self) -> None:
        self.calls = 0
        self.failing: list[Exception] = []

    def call(self, worker_id: str, call: m.CallRelay) -> m.RelayReply:
        self.calls += 1
        if self.failing:
            raise self.failing.pop(0)
        assert unpack_request(call.call).authorization.startswith("EC262-Poll ")
        body = m.encode(RESULTS, m.PACKED)
        return m.RelayReply(reply=pack(RelayedAnswer(status=200, media=m.PACKED, size=len(body), body=body)))

    def close(self) -> None:
        pass


@pytest.fixture
def relay() -> FakeRelay:
    return FakeRelay()


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    """Somebody who listens and should not be connected to."""
    with socket.create_server(("127.0.0.1", 0)) as made:
        made.settimeout(0.2)
        yield made


@pytest.fixture
def worker() -> Iterator[Server]:
    """A worker's port that answers polls."""

    def answer(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        start_response("200 OK", [("Content-Type", m.PACKED)])
        return [m.encode(RESULTS, m.PACKED)]

    with Server(answer) as made:
        yield made


def assigned(port: int, reached: Literal["never", "may", "must"], address: str = "127.0.0.1") -> m.AssignedWorker:
    relay_pass = b"" if reached == "never" else b"pass"
    return m.AssignedWorker(
        worker_id="ab" * 16, address=address, port=port, slots=1, tickets=b"", relay=reached, relay_pass=relay_pass
    )


def client(worker: m.AssignedWorker, relay: Relay, why_not: str = "") -> PeerClient:
    return PeerClient(worker, relay, job_id="cd" * 16, poll_key=os.urandom(32), refusal=why_not)


def nobody_came(listener: socket.socket) -> bool:
    try:
        listener.accept()[0].close()
    except TimeoutError:
        return True
    return False


@pytest.mark.parametrize("reached", ["never", "may"])
def test_attack_have_a_foreman_connect_to_its_own_machine(
    listener: socket.socket, relay: FakeRelay, reached: Literal["never", "may"]
) -> None:
    """A discovery on the Internet names loopback: nothing is sent there. A relayed worker is served all the same."""
    port = int(listener.getsockname()[1])
    peer = client(assigned(port, reached), relay, refusal("127.0.0.1", ["93.184.215.14"]))
    if reached == "may":
        assert peer.results(after=0) == RESULTS
    else:
        with pytest.raises(PeerUnreachable, match=r"discovery is elsewhere and named 127\.0\.0\.1"):
            peer.results(after=0)
        assert relay.calls == 0
    assert nobody_came(listener)


def test_attack_say_later_that_a_worker_moved_to_the_foremans_machine(
    worker: Server, listener: socket.socket, relay: FakeRelay
) -> None:
    peer = client(assigned(worker.port, "never"), relay)
    assert peer.results(after=0) == RESULTS
    peer.renew(assigned(int(listener.getsockname()[1]), "never"), "it is not to be connected to")
    with pytest.raises(PeerUnreachable, match="not to be connected to"):
        peer.results(after=0)
    assert nobody_came(listener)


def test_a_worker_that_is_reached_is_direct(worker: Server, relay: FakeRelay) -> None:
    peer = client(assigned(worker.port, "may"), relay)
    assert [peer.results(after=0) for _ in range(2)] == [RESULTS] * 2
    assert relay.calls == 0


def test_where_nobody_answers_the_relay_is_tried_and_stays_the_way(relay: FakeRelay) -> None:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        peer = client(assigned(int(held.getsockname()[1]), "may"), relay)
        assert [peer.results(after=0) for _ in range(2)] == [RESULTS] * 2
    assert relay.calls == 2


def test_a_worker_that_ended_where_it_was_is_not_sought_at_the_relay(worker: Server, relay: FakeRelay) -> None:
    peer = client(assigned(worker.port, "may"), relay)
    assert peer.results(after=0) == RESULTS
    worker.stop(timeout_s=0.2)
    with pytest.raises(PeerUnreachable) as ended:
        peer.results(after=0)
    assert ended.value.refused
    assert relay.calls == 0


def test_one_that_moved_is_found_where_it_is_now(worker: Server, relay: FakeRelay) -> None:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        peer = client(assigned(int(held.getsockname()[1]), "never"), relay)
        with pytest.raises(PeerUnreachable):
            peer.results(after=0)
        peer.renew(assigned(worker.port, "never"))
        assert peer.results(after=0) == RESULTS


def test_a_relay_without_room_and_a_limit_of_requests_are_waited_for(
    relay: FakeRelay, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relayed, "PAUSE_S", 0.01)
    relay.failing = [ProblemError(503, "busy", "full"), ProblemError(429, "rate-limited", "often")]
    assert client(assigned(0, "must", ""), relay).results(after=0) == RESULTS
    assert relay.calls == 3


def test_a_relay_that_is_down_is_not_the_workers_fault(relay: FakeRelay, monkeypatch: pytest.MonkeyPatch) -> None:
    """A discovery that is started anew is waited for; a worker is given up when it was away for long."""
    monkeypatch.setattr(peers, "PAUSE_S", 0.01)
    down = DiscoveryUnreachable("connection refused")
    relay.failing = [down] * 3
    peer = client(assigned(0, "must", ""), relay)
    assert peer.results(after=0) == RESULTS
    monkeypatch.setattr(peers, "RELAY_DOWN_FOR_S", 0.05)
    relay.failing = [down] * 1000
    with pytest.raises(RelayDown):
        peer.results(after=0)


def test_parts_that_fail_print_no_traceback(
    relay: FakeRelay, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(relayed, "PAUSE_S", 0.01)
    monkeypatch.setattr(peers, "RELAY_DOWN_FOR_S", 0.0)
    relay.failing = [DiscoveryUnreachable("connection refused")] * 100
    peer = client(assigned(0, "must", ""), relay)
    task = m.PushedTask(lease_id=f"{'ab' * 16}.0", payload=[b"x" * 3_000_000])
    with pytest.raises(RelayDown):
        peer.push(m.PushTasks(tickets=b"t", program=[], tasks=[task]))
    gevent.sleep(0.05)
    assert capfd.readouterr().err == ""
