"""Matching: whole tasks, distinct workers, nobody over capacity, the load spread."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from discovery.addresses import neighbourhood
from discovery.matching import assign, newcomers_of
from discovery.records import WorkerRecord
from discovery.settings import Distinct

QUICK = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
DISTINCT: list[Distinct] = ["none", "account", "account,address"]


def worker(number: int, **fields: object) -> WorkerRecord:
    usual = WorkerRecord(f"{number:032x}", f"account {number}", f"10.0.{number}.1", 1000 + number, 1, 1, 0, 4)
    return replace(usual, **fields)


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


# --- who is believed, and what it asks ------------------------------------------------------------


def established_worker(number: int, **fields: object) -> WorkerRecord:
    return worker(number, verified=100_000, **fields)


def firsts(pool: list[WorkerRecord], draws: int = 300) -> Counter[int]:
    """How often each worker comes first."""
    return Counter(
        assign(pool, tasks=1, replicas=1, distinct="none", chance=random.Random(seed))[0][0].port - 1000
        for seed in range(draws)
    )


def test_of_workers_believed_alike_the_cheapest_comes_first() -> None:
    pool = [worker(1, ask=3), worker(2, ask=1), worker(3, ask=2)]
    assert firsts(pool) == {2: 300}
    (group,) = assign(pool, tasks=1, replicas=3, distinct="account", chance=random.Random(1))
    assert [each.ask for each in group] == [1, 2, 3]


def test_of_equally_cheap_workers_chance_decides() -> None:
    pool = [worker(number, ask=1 + (number > 3)) for number in range(1, 7)]
    counts = firsts(pool)
    assert set(counts) == {1, 2, 3}
    assert min(counts.values()) > 60  # each about 100 times, standard deviation 8


def test_a_low_price_does_not_bring_a_newcomer_before_the_established() -> None:
    """Else new identities that work for nothing would get all the work."""
    cheap = [worker(number) for number in (1, 2)]
    dear = [established_worker(number, ask=2) for number in (3, 4)]
    counts = firsts([*cheap, *dear], draws=600)
    assert set(counts) == {1, 2, 3, 4}
    assert abs(counts[1] + counts[2] - 300) < 75  # as by chance: six standard deviations


def test_load_comes_before_price() -> None:
    pool = [worker(1, ask=1, used=1), worker(2, ask=5)]
    groups = assign(pool, tasks=3, replicas=1, distinct="none", chance=random.Random(1))
    assert [group[0].port for group in groups] == [1002, 1001, 1002]


def test_newcomers_are_told_apart_once_half_are_established() -> None:
    old = [established_worker(number) for number in range(3)]
    new = [worker(number) for number in range(3, 7)]
    assert newcomers_of([*old, *new]) == frozenset()
    assert newcomers_of([*old, *new[:3]]) == {each.worker_id for each in new[:3]}
    assert newcomers_of([]) == frozenset()
    auditor = worker(8, auditor=True)
    doubted = established_worker(9, doubts=90_000)
    assert newcomers_of([*old, auditor, doubted]) == {doubted.worker_id}


@QUICK
@given(pools(), st.integers(1, 4), st.integers(0, 9))
def test_a_task_has_one_newcomer_at_most(pool: list[WorkerRecord], replicas: int, seed: int) -> None:
    newcomers = {each.worker_id for each in pool[::2]}
    for exclude in ([], pool[:1]):
        groups = assign(
            pool, tasks=5, replicas=replicas, distinct="none", chance=random.Random(seed), exclude=exclude,
            newcomers=newcomers,
        )  # fmt: skip
        for group in groups:
            assert sum(each.worker_id in newcomers for each in [*group, *exclude]) <= 1


def test_who_takes_leases_and_returns_nothing_gets_a_smaller_share() -> None:
    pool = [worker(1, capacity=64, share=16), worker(2, capacity=64)]
    groups = assign(pool, tasks=200, replicas=1, distinct="none", chance=random.Random(1))
    assert Counter(group[0].port for group in groups) == {1001: 4, 1002: 64}
