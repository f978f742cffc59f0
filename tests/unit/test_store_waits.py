"""What waits for the store: reads that are asked together, and commits that take turns."""

from __future__ import annotations

import itertools
import threading
from typing import Any

import pytest
import redis

from discovery.app import Discovery
from discovery.changes import Changes
from discovery.store.answers import Conflict
from discovery.store.sampling import Draw
from discovery.store.store import COMMITS_AT_ONCE, Store
from ec262.protocol import messages as m
from tests.conftest import MakeDiscovery
from tests.parties import Caller, Foreman, Worker, answer_all

JOB = ("a" * 32, "b" * 32)


@pytest.fixture
def store(discovery: Discovery) -> Store:
    return discovery.store


def test_a_store_that_forgot_its_scripts_is_told_them_again(store: Store, redis_url: str) -> None:
    """A store that was started again, or whose operator flushed them, knows no script."""
    with redis.Redis.from_url(redis_url) as client:
        client.script_flush()
    now_ms, records, known = store.load_known(["c" * 24], JOB, ["d" * 32], networks_count=True)
    assert now_ms > 0
    assert records == {}
    assert known.party == JOB[0]
    assert list(known.standings) == ["d" * 32]


def test_reads_asked_together_say_what_they_say_alone(store: Store, discovery: Discovery) -> None:
    account_id = discovery.registry.create_account("192.0.2.1", m.CreateAccount()).account_id
    kept, sample = store.sample_for(Draw("native/3.11", [], 8, (account_id, JOB[1]), idempotency_key="some key"))
    alone = store.sample("native/3.11", [], 8, account_id)
    assert kept is None
    assert (sample.balance, sample.workers, sample.slots_alive) == (alone.balance, alone.workers, alone.slots_alive)
    told = store.tell((account_id, JOB[1]))
    assert told.balance == store.accounts.record(account_id).balance == sample.balance > 0
    assert told.recompute == []


def test_how_often_requests_ask_the_store(make_discovery: MakeDiscovery, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each time waits behind the commits of others; docs/performance.md says how often it is."""
    discovery = make_discovery(distinct="account", account_requests=1000, address_requests=1000)
    foreman = Foreman(discovery)
    workers = [Worker(Caller(discovery)) for _ in range(12)]
    foreman.lease()  # the store learns its scripts
    pool = discovery.store._redis.connection_pool
    connection, asked = pool.get_connection, []

    def counted() -> Any:
        asked.append(1)
        return connection()

    monkeypatch.setattr(pool, "get_connection", counted)
    leased = foreman.lease(3, confidence=0.99, max_replicas=24)
    assert len(asked) == 3, "who asks, whom there is, the commit"
    tasks = [task.task_id for task in leased.tasks]
    verdicts, shown = ["more"], answer_all(leased, workers)
    while "more" in verdicts:  # nobody can tell which task is checked
        asked.clear()
        settled = foreman.settle(shown, tasks)
        verdicts, shown = [each.verdict for each in settled.tasks], answer_all(settled, workers)
        # Who asks, the tasks, whom there is, the commit.
        assert len(asked) == (4 if "more" in verdicts else 3)
    assert verdicts == ["accepted"] * 3


def test_whom_another_process_extended_a_task_by_is_found_out(make_discovery: MakeDiscovery) -> None:
    """What one process remembers of a task saves the store a question, and decides nothing."""
    settings = {"distinct": "account", "starting_credits": 100}
    one, other = make_discovery(**settings), make_discovery(**settings)
    first = Foreman(one)
    foremen = itertools.cycle([first, Foreman(other, first.account)])
    workers = [Worker(Caller(one)) for _ in range(12)]
    leased = first.lease(3, confidence=0.99, max_replicas=24)
    tasks = [task.task_id for task in leased.tasks]
    verdicts, shown = ["more"], answer_all(leased, workers)
    while "more" in verdicts:
        settled = next(foremen).settle(shown, tasks)
        verdicts, shown = [each.verdict for each in settled.tasks], answer_all(settled, workers)
    assert verdicts == ["accepted"] * 3
    assert next(foremen).settle([], tasks).tasks == settled.tasks, "both say the same"


def test_commits_that_are_refused_give_their_turn_back(store: Store, discovery: Discovery) -> None:
    for _ in range(2 * COMMITS_AT_ONCE + 1):
        with pytest.raises(Conflict, match="credits"):
            store.commit(Changes(), store.now_ms(), discovery.trust.terms, needs={"account:nobody": 1})
    assert store.commit(Changes(), store.now_ms(), discovery.trust.terms, tell=JOB) is not None


def test_reads_do_not_wait_behind_all_commits_that_there_are(store: Store, discovery: Discovery) -> None:
    """So many commits are on their way as may be; a further one waits here, and a read does not."""
    for _ in range(COMMITS_AT_ONCE):
        assert store._turn.acquire(timeout=5)
    done = threading.Event()

    def commit() -> None:
        store.commit(Changes(), store.now_ms(), discovery.trust.terms)
        done.set()

    thread = threading.Thread(target=commit)
    thread.start()
    try:
        assert not done.wait(0.2)
        assert store.now_ms() > 0
        assert store.tell(JOB).balance == 0
    finally:
        for _ in range(COMMITS_AT_ONCE):
            store._turn.release()
        thread.join(10)
    assert done.is_set()
