"""Matching: whole tasks, distinct workers, nobody over capacity, the load spread."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from discovery.matching import assign, neighbourhood
from discovery.records import WorkerRecord
from discovery.settings import Distinct

QUICK = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
DISTINCT: list[Distinct] = ["none", "account", "account,address"]


def worker(number: int, **fields: object) -> WorkerRecord:
    usual = WorkerRecord(f"{number:032x}", f"account {number}", f"10.0.{number}.1", 1000 + number, 1, 1, 0, 4)
    return replace(usual, **fields)  # type: ignore[arg-type]


@st.composite
def pools(draw: st.DrawFn) -> list[WorkerRecord]:
    made = []
    for number in range(draw(st.integers(0, 12))):
        capacity = draw(st.integers(1, 6))
        made.append(
            worker(
                number,
                account_id=f"account {draw(st.integers(0, 5))}",
                address=f"10.0.{draw(st.integers(0, 3))}.{draw(st.integers(1, 3))}",
                slots=draw(st.integers(1, 4)),
                used=draw(st.integers(0, capacity + 1)),
                capacity=capacity,
            )
        )
    return made


def clash(one: WorkerRecord, other: WorkerRecord, distinct: Distinct) -> bool:
    if one.worker_id == other.worker_id:
        return True
    if distinct != "none" and one.account_id == other.account_id:
        return True
    return distinct == "account,address" and neighbourhood(one.address) == neighbourhood(other.address)


@QUICK
@given(pools(), st.integers(0, 12), st.integers(1, 4), st.sampled_from(DISTINCT), st.integers(0, 3), st.integers(0, 9))
def test_every_assignment_keeps_the_rules(
    pool: list[WorkerRecord], tasks: int, replicas: int, distinct: Distinct, had: int, seed: int
) -> None:
    exclude, pool_left = pool[:had], pool
    groups = assign(
        pool_left, tasks=tasks, replicas=replicas, distinct=distinct, chance=random.Random(seed), exclude=exclude
    )
    assert len(groups) <= tasks
    for group in groups:
        assert len(group) == replicas  # whole tasks only
        for at, one in enumerate(group):
            assert not any(clash(one, other, distinct) for other in [*group[at + 1 :], *exclude])
    counts = Counter(each.worker_id for group in groups for each in group)
    free = {each.worker_id: each.free for each in pool}
    assert all(count <= free[worker_id] for worker_id, count in counts.items())


@QUICK
@given(pools(), st.integers(0, 40), st.integers(0, 9))
def test_single_replicas_use_all_there_is(pool: list[WorkerRecord], tasks: int, seed: int) -> None:
    groups = assign(pool, tasks=tasks, replicas=1, distinct="account,address", chance=random.Random(seed))
    assert len(groups) == min(tasks, sum(each.free for each in pool))


@QUICK
@given(st.integers(1, 8), st.integers(1, 8), st.integers(1, 3), st.integers(0, 9))
def test_equal_workers_get_equal_loads(workers: int, rounds: int, replicas: int, seed: int) -> None:
    pool = [worker(number, capacity=100) for number in range(max(workers, replicas))]
    groups = assign(
        pool, tasks=rounds * len(pool), replicas=replicas, distinct="account,address", chance=random.Random(seed)
    )
    assert len(groups) == rounds * len(pool)
    counts = Counter(each.worker_id for group in groups for each in group)
    assert set(counts.values()) == {rounds * replicas}


def test_load_is_counted_by_the_slot() -> None:
    pool = [worker(1, slots=4, capacity=100), worker(2, slots=1, capacity=100)]
    groups = assign(pool, tasks=50, replicas=1, distinct="none", chance=random.Random(1))
    counts = Counter(each.port for group in groups for each in group)
    assert counts[1001] == 40
    assert counts[1002] == 10


def test_the_busy_are_served_last() -> None:
    pool = [worker(1, used=3), worker(2, used=0), worker(3, used=1)]
    groups = assign(pool, tasks=3, replicas=1, distinct="none", chance=random.Random(1))
    assert Counter(each.port for group in groups for each in group) == {1002: 2, 1003: 1}


def test_ties_are_broken_by_chance() -> None:
    pool = [worker(number) for number in range(5)]
    first = {
        assign(pool, tasks=1, replicas=1, distinct="none", chance=random.Random(seed))[0][0].port for seed in range(60)
    }
    assert len(first) == 5


def test_too_few_workers_serve_no_task() -> None:
    pool = [worker(1), worker(2)]
    assert assign(pool, tasks=3, replicas=3, distinct="none", chance=random.Random(1)) == []
    assert assign([], tasks=3, replicas=1, distinct="none", chance=random.Random(1)) == []
    same = [worker(1, account_id="x"), worker(2, account_id="x")]
    assert assign(same, tasks=1, replicas=2, distinct="account", chance=random.Random(1)) == []
    assert len(assign(same, tasks=1, replicas=2, distinct="none", chance=random.Random(1))) == 1


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("10.1.2.3", "10.1.2.250", True),
        ("10.1.2.3", "10.1.3.3", False),
        ("::ffff:10.1.2.3", "10.1.2.9", True),
        ("2001:db8:1:2::1", "2001:db8:1:2:ffff::9", True),
        ("2001:db8:1:2::1", "2001:db8:1:3::1", False),
        ("0.0.0.1", "::1", False),
    ],
)
def test_neighbourhoods(one: str, other: str, same: bool) -> None:
    assert (neighbourhood(one) == neighbourhood(other)) == same


def test_a_choice_that_leaves_nobody_for_the_rest_is_taken_back() -> None:
    """The least loaded worker shares its account with one and its neighbourhood with the other."""
    workers = [
        WorkerRecord("x", "a", "10.0.1.1", 1, 1, 1, 0, 10),
        WorkerRecord("y", "a", "10.0.2.1", 1, 1, 1, 1, 10),
        WorkerRecord("z", "b", "10.0.1.2", 1, 1, 1, 2, 10),
    ]
    (chosen,) = assign(workers, tasks=1, replicas=2, distinct="account,address", chance=random.Random(1))
    assert {worker.worker_id for worker in chosen} == {"y", "z"}
