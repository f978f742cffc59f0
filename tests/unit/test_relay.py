"""The relay: calls come through it, whichever process holds them; and nobody can fill it, read it or misuse it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import redis

from discovery.app import Discovery
from discovery.relay import MOST_POLLS
from discovery.store.calls import Offer
from ec262.protocol import messages as m
from tests.conftest import MakeDiscovery
from tests.parties import Caller, Foreman, Problem, Worker
from tests.processes import until

CALL = b"what a foreman says"
REPLY = b"what the worker says to that"


class Relayed:
    """A worker that serves through the relay, and a foreman that was leased it."""

    def __init__(self, discovery: Discovery) -> None:
        self.owner = Caller(discovery)
        self.worker = Worker(self.owner, relay="always", port=0)
        self.foreman = Foreman(discovery)
        self.assigned = self.foreman.lease().workers[0]
        self.path = f"/v1/workers/{self.worker.worker_id}/calls"

    def of_another(self, discovery: Discovery) -> Relayed:
        """The same worker, and a foreman of another account."""
        other = Relayed.__new__(Relayed)
        other.__dict__ |= self.__dict__ | {"foreman": Foreman(discovery)}
        other.assigned = other.foreman.lease().workers[0]
        return other

    def call(self, call: bytes = CALL, *, wait_s: float = 10.0, caller: Caller | None = None) -> bytes:
        """The foreman calls; raises `Problem`."""
        body = m.CallRelay(relay_pass=self.assigned.relay_pass, wait_s=wait_s, call=call)
        return (caller or self.foreman).call("POST", f"/v1/relay/{self.worker.worker_id}", m.RelayReply, body).reply

    def take(
        self, *, wait_s: float = 10.0, received: list[str] | None = None, anew: bool = False, at: Caller | None = None
    ) -> Any:
        """The worker polls once; raises `Problem`."""
        body = m.TakeCalls(boot_id=self.worker.boot_id, wait_s=wait_s, received=received or [], anew=anew)
        return (at or self.owner).call("POST", self.path, m.CallsTaken, body)

    def reply(self, call: m.RelayedCall, reply: bytes = REPLY, *, at: Caller | None = None) -> None:
        """The worker replies; raises `Problem`."""
        (at or self.owner).tell(f"{self.path}/{call.call_id}", m.RelayReply(reply=reply))


@pytest.fixture
def relayed(discovery: Discovery) -> Relayed:
    return Relayed(discovery)


class Threads(ThreadPoolExecutor):
    """Calls that wait."""

    def begin(self, function: Callable[..., Any], *arguments: Any, **named: Any) -> Future[Any]:
        """Starts one."""
        return self.submit(function, *arguments, **named)


@pytest.fixture
def threads() -> Any:
    with Threads(40) as made:
        yield made


def waiting(discovery: Discovery, count: int) -> None:
    """Waits until so many calls and polls wait."""
    until(lambda: discovery.relay._waiting == count, what=f"{count} waiting")


def offered(discovery: Discovery, relayed: Relayed, count: int) -> None:
    """Waits until so many calls for the worker are noted."""
    notes = f"{{ec}}:relay:{relayed.worker.worker_id}:open"
    until(lambda: discovery.store._redis.hlen(notes) == count, what=f"{count} noted")


# --- how it works ---------------------------------------------------------------------------------


def test_a_worker_at_the_relay_has_no_address(relayed: Relayed) -> None:
    assert relayed.worker.registered.relay
    assert (relayed.assigned.relay, relayed.assigned.address, relayed.assigned.port) == ("must", "", 0)


@pytest.mark.parametrize("first", ["worker", "foreman"])
def test_a_call_reaches_the_worker_and_its_reply_the_foreman(
    discovery: Discovery, relayed: Relayed, threads: Threads, first: str
) -> None:
    """Whoever comes first waits for the other."""
    if first == "worker":
        taken = threads.begin(relayed.take)
        waiting(discovery, 1)
        called = threads.begin(relayed.call)
    else:
        called = threads.begin(relayed.call)
        waiting(discovery, 1)
        taken = threads.begin(relayed.take)
    (call,) = taken.result(10).calls
    assert call.call == CALL
    relayed.reply(call)
    assert called.result(10) == REPLY
    assert discovery.relay.held_bytes == discovery.relay._waiting == 0


def test_a_poll_that_gets_nothing_says_so(relayed: Relayed) -> None:
    assert relayed.take(wait_s=0.05).calls == []


def test_a_call_wakes_a_poll_at_once(discovery: Discovery, relayed: Relayed, threads: Threads) -> None:
    """No party looks again and again: what waits is woken."""
    taken = threads.begin(relayed.take, wait_s=30.0)
    waiting(discovery, 1)
    started = time.monotonic()
    threads.begin(relayed.call, wait_s=0.5)
    assert taken.result(10).calls
    assert time.monotonic() - started < 5.0


def test_several_processes_over_one_store(make_discovery: MakeDiscovery, threads: Threads) -> None:
    """The foreman's call is held by one process, the worker polls another, and replies to a third."""
    first, second, third = (make_discovery() for _ in range(3))
    relayed = Relayed(first)
    at_second, at_third = (Caller(each, relayed.owner.account) for each in (second, third))
    taken = threads.begin(relayed.take, at=at_second)
    waiting(second, 1)
    body = b"x" * 1_000_000
    called = threads.begin(relayed.call, body)
    (call,) = taken.result(10).calls
    assert call.call == body
    relayed.take(at=at_third, wait_s=0.0, received=[call.call_id])
    relayed.reply(call, body[::-1], at=at_third)
    assert called.result(10) == body[::-1]
    assert all(each.relay.held_bytes == 0 for each in (first, second, third))


def test_a_call_that_did_not_arrive_is_sent_again_and_one_that_did_is_not(
    discovery: Discovery, relayed: Relayed, threads: Threads, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("discovery.relay.AGAIN_S", 0.2)
    called = threads.begin(relayed.call)
    (lost,) = relayed.take().calls  # say that this answer never came
    (again,) = relayed.take().calls
    assert again == lost
    assert relayed.take(received=[again.call_id], wait_s=0.6).calls == []
    relayed.reply(again)
    assert called.result(10) == REPLY


def test_calls_in_an_answer_that_got_lost_are_wanted_again_and_come_at_once(
    make_discovery: MakeDiscovery, threads: Threads
) -> None:
    """Also at another process. What came, and what was replied to, does not come again."""
    first, second = make_discovery(), make_discovery()
    relayed = Relayed(first)
    at_second = Caller(second, relayed.owner.account)
    calls = [threads.begin(relayed.call, b"%d" % number) for number in range(3)]
    offered(first, relayed, 3)
    done, came, lost = (relayed.take(at=at_second).calls[0] for _ in calls)
    relayed.reply(done)
    started = time.monotonic()
    (again,) = relayed.take(received=[came.call_id], anew=True).calls
    assert again == lost
    assert time.monotonic() - started < 3.0
    assert relayed.take(received=[again.call_id], anew=True, wait_s=0.05).calls == []
    relayed.reply(came)
    relayed.reply(again)
    assert [each.result(10) for each in calls] == [REPLY] * 3


@pytest.mark.parametrize("lost", ["fetch", "reply", "answer"])
def test_messages_between_processes_that_get_lost_lose_no_call(
    make_discovery: MakeDiscovery, threads: Threads, monkeypatch: pytest.MonkeyPatch, lost: str
) -> None:
    """Redis drops what a process is told that listens too slowly."""
    monkeypatch.setattr("discovery.relay.TELL_S", 0.3)
    monkeypatch.setattr("discovery.relay.AGAIN_S", 0.3)
    holds, polled = make_discovery(), make_discovery()
    relayed = Relayed(holds)
    at_polled = Caller(polled, relayed.owner.account)
    dropped: list[str] = []
    for each in (holds, polled):

        def hear(message: list[Any], usual: Callable[[list[Any]], None] = each.relay._hear) -> None:
            if message[0] == lost and not dropped:
                dropped.append(lost)
            else:
                usual(message)

        each.relay._hear = hear  # type: ignore[method-assign]
    called = threads.begin(relayed.call)
    (call,) = relayed.take(at=at_polled).calls
    if lost == "reply":
        with pytest.raises(Problem) as refused:
            relayed.reply(call, at=at_polled)
        assert refused.value.code == "busy", "and not that nobody waits for it: it comes again"
    relayed.reply(call, at=at_polled)
    assert called.result(10) == REPLY
    assert dropped == [lost]


def test_a_second_reply_changes_nothing(relayed: Relayed, threads: Threads) -> None:
    called = threads.begin(relayed.call)
    (call,) = relayed.take().calls
    relayed.reply(call)
    assert called.result(10) == REPLY
    with pytest.raises(Problem) as late:
        relayed.reply(call, b"another")
    assert late.value.code == "too-late"


def test_a_worker_that_does_not_reply(discovery: Discovery, relayed: Relayed, threads: Threads) -> None:
    called = threads.begin(relayed.call, wait_s=0.3)
    (call,) = relayed.take().calls
    with pytest.raises(Problem) as silent:
        called.result(10)
    assert (silent.value.status, silent.value.code) == (504, "no-answer")
    with pytest.raises(Problem) as late:
        relayed.reply(call)
    assert (late.value.status, late.value.code) == (410, "too-late")
    assert discovery.relay.held_bytes == 0


def test_a_worker_of_which_nothing_was_heard_for_long(make_discovery: MakeDiscovery) -> None:
    relayed = Relayed(make_discovery(relay_absent_s=0.1))
    relayed.take(wait_s=0.0)
    time.sleep(0.2)
    started = time.monotonic()
    with pytest.raises(Problem) as absent:
        relayed.call()
    assert absent.value.code == "absent"
    assert time.monotonic() - started < 5.0


def test_a_worker_that_left_is_called_as_long_as_it_polls(relayed: Relayed, threads: Threads) -> None:
    """It hands over what it has; then it is unknown."""
    relayed.owner.raw("DELETE", f"/v1/workers/{relayed.worker.worker_id}")
    with pytest.raises(Problem) as gone:
        relayed.call()
    assert gone.value.code == "unknown-worker"
    relayed.take(wait_s=0.0)
    called = threads.begin(relayed.call)
    (call,) = relayed.take().calls
    relayed.reply(call)
    assert called.result(10) == REPLY


def test_what_is_relayed_is_in_no_file(relayed: Relayed, threads: Threads, redis_url: str, tmp_path: Path) -> None:
    with redis.Redis.from_url(redis_url) as client:
        before = client.info("persistence")["aof_current_size"]
        called = threads.begin(relayed.call)
        (call,) = relayed.take().calls
        relayed.reply(call)
        called.result(10)
        assert client.info("persistence")["aof_current_size"] == before
        assert not list(client.scan_iter("{ec}:relay:*:open"))


# --- who may --------------------------------------------------------------------------------------


def test_attack_call_a_worker_without_having_been_leased_it(
    discovery: Discovery, relayed: Relayed, threads: Threads
) -> None:
    stranger = Foreman(discovery)
    for given in (relayed.assigned.relay_pass, b"", b"x" * 40):
        body = m.CallRelay(relay_pass=given, wait_s=0.0, call=CALL)
        with pytest.raises(Problem) as refused:
            stranger.call("POST", f"/v1/relay/{relayed.worker.worker_id}", m.RelayReply, body)
        assert refused.value.code == "relay-refused"
    assert relayed.take(wait_s=0.0).calls == []


def test_attack_use_a_pass_for_another_worker(discovery: Discovery, relayed: Relayed) -> None:
    other = Worker(Caller(discovery), relay="always", port=0)
    body = m.CallRelay(relay_pass=relayed.assigned.relay_pass, wait_s=0.0, call=CALL)
    with pytest.raises(Problem) as refused:
        relayed.foreman.call("POST", f"/v1/relay/{other.worker_id}", m.RelayReply, body)
    assert refused.value.code == "relay-refused"


def test_attack_use_a_pass_after_its_leases(make_discovery: MakeDiscovery) -> None:
    discovery = make_discovery(min_timeout_s=0.1, late_grace_s=0.1)
    relayed = Relayed(discovery)
    relayed.assigned = relayed.foreman.lease(timeout_s=0.1, cpu_limit_s=0.05).workers[0]
    time.sleep(0.4)
    with pytest.raises(Problem) as refused:
        relayed.call()
    assert refused.value.code == "relay-refused"


def test_attack_take_the_calls_of_anothers_worker(discovery: Discovery, relayed: Relayed, threads: Threads) -> None:
    called = threads.begin(relayed.call, wait_s=1.0)
    thief = Caller(discovery)
    with pytest.raises(Problem) as refused:
        relayed.take(at=thief, wait_s=0.0)
    assert refused.value.code == "unknown-worker"
    with pytest.raises(Problem):
        called.result(10)


def test_a_worker_before_its_restart_gets_nothing_more(relayed: Relayed) -> None:
    body = m.TakeCalls(boot_id="ab" * 16, wait_s=0.0)
    with pytest.raises(Problem) as refused:
        relayed.owner.call("POST", relayed.path, m.CallsTaken, body)
    assert refused.value.code == "unknown-worker"


def test_attack_reply_in_anothers_name(discovery: Discovery, relayed: Relayed, threads: Threads) -> None:
    """A call's id is told to its worker alone; a guess is not one, and neither is another worker's name with it."""
    called = threads.begin(relayed.call)
    (call,) = relayed.take().calls
    thief = Caller(discovery)
    other = Worker(thief, relay="always", port=0)
    for path, code in (
        (f"/v1/workers/{other.worker_id}/calls/{call.call_id}", "too-late"),
        (f"{relayed.path}/{call.call_id[:16]}{'0' * 16}", "too-late"),
        (f"/v1/workers/x/calls/{call.call_id}", "not-found"),
        (f"{relayed.path}/x", "not-found"),
        (f"{relayed.path}/{'*' * 32}", "not-found"),
        (f"{relayed.path}/*%0a", "not-found"),
    ):
        with pytest.raises(Problem) as refused:
            thief.tell(path, m.RelayReply(reply=b"forged"))
        assert refused.value.code == code
    relayed.reply(call)
    assert called.result(10) == REPLY


def test_foremen_are_told_apart_and_not_named(discovery: Discovery, relayed: Relayed, threads: Threads) -> None:
    threads.begin(relayed.call, wait_s=0.5)
    (call,) = relayed.take().calls
    assert len(call.sender) == 16
    assert call.sender not in relayed.foreman.account.account_id


def test_a_worker_that_listens_serves_no_relay_unasked(discovery: Discovery) -> None:
    worker = Worker(Caller(discovery))
    foreman = Foreman(discovery)
    (assigned,) = foreman.lease().workers
    assert (assigned.relay, assigned.relay_pass) == ("never", b"")
    assert not worker.registered.relay


# --- bounds ---------------------------------------------------------------------------------------


def refused_when_full(relayed: Relayed, call: bytes = CALL) -> None:
    response = relayed.foreman.raw(
        "POST",
        f"/v1/relay/{relayed.worker.worker_id}",
        m.encode(m.CallRelay(relay_pass=relayed.assigned.relay_pass, wait_s=5.0, call=call)),
    )
    assert response.status_code == 503
    assert m.decode(m.Problem, response.data).code == "busy"
    assert int(response.headers["Retry-After"]) >= 1


def test_attack_more_calls_for_a_worker_than_may_wait(make_discovery: MakeDiscovery, threads: Threads) -> None:
    """An account has no more places than it leaves to others; what waits is done all the same."""
    discovery = make_discovery(relay_worker_calls=8)
    relayed = Relayed(discovery)
    calls: list[Future[Any]] = []
    for share in (4, 2, 1):  # of one account, then of another, and a third
        foreman = relayed.of_another(discovery) if calls else relayed
        calls += [threads.begin(foreman.call) for _ in range(share)]
        offered(discovery, relayed, len(calls))
        refused_when_full(foreman)
    for _ in calls:
        (call,) = relayed.take().calls
        relayed.reply(call)
    assert [each.result(10) for each in calls] == [REPLY] * 7


def test_attack_fill_a_worker_with_bytes_so_that_nobody_else_gets_through(
    make_discovery: MakeDiscovery, threads: Threads
) -> None:
    """Polls with large bodies wait for as long as they like. One account has half of the bytes, as of the places."""
    discovery = make_discovery(relay_worker_bytes=100_000)
    attacker = Relayed(discovery)
    floods = [threads.begin(attacker.call, b"x" * 24_000) for _ in range(2)]
    offered(discovery, attacker, 2)
    refused_when_full(attacker, b"x" * 24_000)
    honest = attacker.of_another(discovery)
    calls = [*floods, threads.begin(honest.call, b"x" * 24_000)]
    offered(discovery, attacker, 3)
    for _ in calls:
        (call,) = attacker.take().calls
        attacker.reply(call)
    assert [each.result(10) for each in calls] == [REPLY] * 3


def test_attack_confirm_calls_of_very_many_processes(
    discovery: Discovery, relayed: Relayed, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each would be a message to the store, of one small request."""
    told: list[str] = []
    monkeypatch.setattr(discovery.store.channel, "tell", lambda process, _: bool(told.append(process)))  # type: ignore[func-returns-value]
    relayed.take(received=[f"{number:032x}" for number in range(0, 256 << 64, 1 << 64)], wait_s=0.0)
    assert 0 < len(told) <= 32


def test_attack_more_bytes_for_a_worker_than_may_wait(make_discovery: MakeDiscovery, threads: Threads) -> None:
    discovery = make_discovery(relay_worker_bytes=100_000)
    relayed = Relayed(discovery)
    called = threads.begin(relayed.call, b"x" * 60_000)
    offered(discovery, relayed, 1)
    refused_when_full(relayed, b"x" * 60_000)
    (call,) = relayed.take().calls
    relayed.reply(call)
    assert called.result(10) == REPLY
    threads.begin(relayed.call, b"x" * 60_000, wait_s=0.2)
    assert relayed.take().calls, "and there is room again"


def test_attack_more_bytes_than_a_process_holds(make_discovery: MakeDiscovery, threads: Threads) -> None:
    """Calls and replies both count; a reply without room is sent again, and nothing is lost."""
    discovery = make_discovery(relay_bytes=100_000)
    relayed = Relayed(discovery)
    called = threads.begin(relayed.call, b"x" * 60_000)
    offered(discovery, relayed, 1)
    refused_when_full(relayed, b"x" * 60_000)
    (call,) = relayed.take().calls
    with pytest.raises(Problem) as full:
        relayed.reply(call, b"y" * 60_000)
    assert full.value.code == "busy"
    relayed.reply(call)
    assert called.result(10) == REPLY
    assert discovery.relay.held_bytes == 0


def test_attack_more_polls_than_a_process_holds(discovery: Discovery, relayed: Relayed, threads: Threads) -> None:
    """The other half of the connections is for everybody else."""
    discovery.relay.most_waiting = 2
    polls = [threads.begin(relayed.take, wait_s=1.0) for _ in range(2)]
    waiting(discovery, 2)
    with pytest.raises(Problem) as full:
        relayed.take()
    assert full.value.code == "busy"
    assert relayed.foreman.state.balance > 0
    assert all(each.result(10).calls == [] for each in polls)


def test_attack_one_worker_with_all_polls(discovery: Discovery, relayed: Relayed, threads: Threads) -> None:
    """The room is for the workers of all. Whose line broke is not kept out by its own old polls."""
    discovery.relay.most_waiting = MOST_POLLS + 3
    polls = [threads.begin(relayed.take, wait_s=30.0) for _ in range(MOST_POLLS + 2)]
    until(lambda: sum(each.done() for each in polls) == 2, what="the oldest answered")
    waiting(discovery, MOST_POLLS)
    assert all(each.result().calls == [] for each in polls if each.done())
    newest = threads.begin(relayed.take, wait_s=30.0)
    until(lambda: sum(each.done() for each in polls) == 3, what="one more")
    calls = [threads.begin(relayed.call, wait_s=30.0) for _ in range(3)]  # more have no room before a poll is over

    def told() -> dict[str, m.RelayedCall]:
        done = [each.result().calls for each in [*polls, newest] if each.done()]
        return {call.call_id: call for some in done for call in some}

    until(lambda: bool(told()), what="a call told")
    replied: set[str] = set()
    # Two calls that come at once may wake one poll: the worker's next poll, which comes at once, has the other.
    for _ in calls:
        for call in (*told().values(), *relayed.take(wait_s=0.5).calls):
            if call.call_id not in replied:
                replied.add(call.call_id)
                relayed.reply(call)
    assert [each.result(10) for each in calls] == [REPLY] * 3
    discovery.relay.let_go()
    assert all(each.result(10) for each in polls)
    until(lambda: not discovery.relay._polls, what="nothing kept of polls that were answered")


@pytest.mark.parametrize("size", [1_100 * 1024 + 1, 2_300_000])
def test_attack_a_call_larger_than_any_part(relayed: Relayed, size: int) -> None:
    with pytest.raises(Problem) as refused:
        relayed.call(b"x" * size)
    assert refused.value.status in (400, 413)


def test_a_process_that_dies_takes_its_calls_along(make_discovery: MakeDiscovery, threads: Threads) -> None:
    """The note of the call is still there; the worker that finds it is not held up."""
    first, second = make_discovery(), make_discovery()
    relayed = Relayed(first)
    call_id = first.store.channel.process[::-1] + "0" * 16
    lost = Offer(relayed.worker.worker_id, call_id, call_id[:16], relayed.foreman.account.account_id, 1, 30.0, 1 << 60)
    assert first.store.calls.offer(lost, (9, 9999), 60.0)[0] == "ok"
    at_second = Caller(second, relayed.owner.account)
    called = threads.begin(relayed.call)
    waiting(first, 1)
    (call,) = relayed.take(at=at_second).calls
    relayed.reply(call, at=at_second)
    assert called.result(10) == REPLY


def test_nothing_listens_until_the_relay_is_used(discovery: Discovery) -> None:
    before = threading.active_count()
    Worker(Caller(discovery))
    Foreman(discovery).lease()
    assert threading.active_count() == before
