"""Health, and what is not begun while the ledger waits in the store's memory: real store, real disk."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import redis

from discovery.app import Discovery
from discovery.archive.entry import encode_entry
from discovery.condition import MOST_USED
from ec262.protocol import messages as m
from tests.parties import Caller, Foreman, Problem, Worker, answer_all

BOUND = 100_000
A = "account:" + "a" * 32


def health(caller: Caller) -> m.Health:
    return caller.call("GET", "/v1/health", m.Health)


def settle(foreman: Foreman, workers: list[Worker], leased: m.Leased) -> None:
    """All that was leased is answered, accepted and paid."""
    settled = foreman.settle(answer_all(leased, workers), [task.task_id for task in leased.tasks])
    assert {verdict.verdict for verdict in settled.tasks} == {"accepted"}


def crowd(discovery: Discovery, size: int) -> None:
    """Entries as many commits of large batches leave them."""
    client = discovery.store._redis
    for _ in range(size // 10_000):
        client.xadd("{ec}:ledger", {"m": os.urandom(10_000)})


def make_old(discovery: Discovery) -> None:
    """What is in the ledger was written long ago: the mover is to take it now."""
    discovery.mover._settle_ms = discovery.mover._wait_ms = 0


@pytest.fixture
def small(make_discovery: Callable[..., Discovery]) -> Discovery:
    """A service that may have little of the ledger in memory."""
    return make_discovery(most_backlog_bytes=BOUND)


def test_a_service_that_is_well_says_so(discovery: Discovery) -> None:
    discovery.sweep()
    assert health(Caller(discovery)) == m.Health(status="ok", leasing=True, backlog_bytes=0, faults=[])
    discovery.sweep()
    found = health(Caller(discovery))
    assert (found.status, found.leasing, found.faults) == ("ok", True, [])
    assert 0 < found.backlog_bytes < 10_000


def test_memory_is_bounded_where_the_mover_cannot_keep_up(small: Discovery) -> None:
    """Nothing new is begun; what is leased is settled and paid; once the disk has caught up all goes on."""
    foreman, workers = Foreman(small), [Worker(Caller(small)) for _ in range(3)]
    other = Caller(small)
    for _ in range(1000):
        done = foreman.lease(20, redundancy=3, quorum=2)
        small.sweep()
        if not health(foreman).leasing:
            break
        settle(foreman, workers, done)
    full = health(foreman)
    assert full.status == "degraded"
    assert BOUND < full.backlog_bytes < 1.5 * BOUND
    assert "not on disk yet" in full.faults[0]
    refused: list[Callable[[], object]] = [
        lambda: foreman.lease(),
        lambda: Caller(small),
        lambda: foreman.call(
            "POST", "/v1/transfers", m.Transferred,
            m.Transfer(to=other.account.account_id, amount=1, idempotency_key="0123456789"),
        ),
    ]  # fmt: skip
    waiting = small.store.books.waiting()
    for begin in refused:
        with pytest.raises(Problem) as caught:
            begin()
        assert (caught.value.status, caught.value.code) == (503, "unavailable")
        assert "What is leased is settled and paid" in caught.value.problem.detail
    assert small.store.books.waiting() == waiting, "no attempt adds to what waits"
    # The work that is out is paid as ever.
    earned = sum(worker.caller.state.earned for worker in workers)
    settle(foreman, workers, done)
    assert sum(worker.caller.state.earned for worker in workers) == earned + 60
    make_old(small)
    while small.mover.move():
        pass
    small.sweep()
    assert health(foreman).leasing
    assert health(foreman).status == "ok"
    foreman.lease()
    small.mover.close()


def test_few_large_entries_behind_many_small_ones_are_seen(small: Discovery) -> None:
    """An estimate from the oldest entries would see a hundredth of it, for as long as the disk takes nothing."""
    client = small.store._redis
    pipeline = client.pipeline()
    for _ in range(500):
        pipeline.xadd("{ec}:ledger", {"m": b"x"})
    pipeline.execute()
    crowd(small, 2 * BOUND)
    small.sweep()
    assert health_of(small).backlog_bytes > 2 * BOUND
    assert not health_of(small).leasing
    client.flushall()


def health_of(discovery: Discovery) -> m.Health:
    return m.decode(m.Health, discovery.app.test_client().get("/v1/health").data)


def test_a_ledger_that_cannot_be_written_is_in_the_health_and_stops_nothing_at_first(
    make_discovery: Callable[..., Discovery], tmp_path: Path
) -> None:
    """A file is where the directory should be. What it says is for everybody: no paths."""
    discovery = make_discovery(most_backlog_bytes=BOUND)
    (tmp_path / "ledger").write_text("in the way")
    foreman, workers = Foreman(discovery), [Worker(Caller(discovery)) for _ in range(3)]
    make_old(discovery)
    assert discovery.mover.move() == 0
    discovery.sweep()
    found = health(foreman)
    assert (found.status, found.leasing) == ("degraded", True)
    assert found.faults == ["the ledger does not get to disk: File exists"]
    assert str(tmp_path) not in "".join(found.faults)
    leased = foreman.lease(5, redundancy=3, quorum=2)
    settle(foreman, workers, leased)
    assert sum(worker.caller.state.earned for worker in workers) == 15
    (tmp_path / "ledger").unlink()
    discovery.mover._not_before = 0
    assert discovery.mover.move() > 0
    discovery.sweep()
    assert health(foreman).status == "ok"
    discovery.mover.close()


def test_an_archive_of_another_ledger_is_in_the_health(discovery: Discovery, tmp_path: Path) -> None:
    make_old(discovery)
    Caller(discovery)
    discovery.mover.move()
    discovery.mover.close()
    discovery.store._redis.hset("{ec}:ledger:head", "archive", "another")
    caller = Caller(discovery)
    discovery.mover.move()
    (fault,) = health(caller).faults
    assert fault.startswith("the ledger does not get to disk: the archive on disk and the store do not fit")
    assert str(tmp_path) not in fault
    discovery.store._redis.flushall()


def test_a_store_that_has_used_nearly_all_it_may_begins_nothing_and_one_that_has_used_all_is_a_503(
    discovery: Discovery, redis_url: str
) -> None:
    foreman, workers = Foreman(discovery), [Worker(Caller(discovery)) for _ in range(3)]
    first, second = (foreman.lease(2, redundancy=3, quorum=2) for _ in range(2))
    client = redis.Redis.from_url(redis_url)
    used = int(client.info("memory")["used_memory"])
    try:
        client.config_set("maxmemory", int(used / (MOST_USED + 0.05)))
        discovery.sweep()
        found = health(foreman)
        assert not found.leasing
        assert "of the" in found.faults[0]
        with pytest.raises(Problem, match="nothing new is begun"):
            foreman.lease()
        settle(foreman, workers, first)
        client.config_set("maxmemory", used // 2)
        earned = [worker.caller.state.earned for worker in workers]
        with pytest.raises(Problem) as caught:
            settle(foreman, workers, second)
        assert (caught.value.status, caught.value.code) == (503, "unavailable")
        assert [worker.caller.state.earned for worker in workers] == earned
    finally:
        client.config_set("maxmemory", 0)
        client.close()
    settle(foreman, workers, second)
    assert [worker.caller.state.earned for worker in workers] == [before + 2 for before in earned]


def test_entries_as_they_are_take_what_the_documentation_says(discovery: Discovery) -> None:
    """The bound is in bytes of memory, not of entries: the store's own costs are in it."""
    client = discovery.store._redis
    moves = [(A, "escrow:" + os.urandom(12).hex(), 1) for _ in range(200)]
    for _ in range(100):
        client.xadd("{ec}:ledger", {"m": encode_entry(moves, [("job:" + "j" * 32, 200)])})
    assert 60 < discovery.store.books.memory().ledger / 20_000 < 120
    client.flushall()
