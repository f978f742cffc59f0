"""Capabilities: who needs something gets workers that have it, quickly and at random, and nobody else's."""

from __future__ import annotations

import json
import os
import time
from collections import Counter

import msgspec
import pytest
import redis

from discovery.app import Discovery
from discovery.records import TaskRecord, class_of, set_of
from discovery.store.store import Store
from ec262.protocol import messages as m
from ec262.protocol.receipts import Kind
from tests.conftest import MakeDiscovery
from tests.parties import Caller, Foreman, Problem, Worker, answer_all

BOOKS, MAPS, SIMULATOR = "data:books", "data:maps", "executor:simulator"


def network(discovery: Discovery, *capabilities: list[str]) -> tuple[Foreman, list[Worker]]:
    """A foreman, and a worker with each of these lists."""
    return Foreman(discovery), [Worker(Caller(discovery), capabilities=each) for each in capabilities]


def served_by(leased: m.Leased | m.Settled) -> set[str]:
    return {assigned.worker_id for assigned in leased.workers}


def keys_of(redis_url: str, pattern: str) -> list[str]:
    client = redis.Redis.from_url(redis_url)
    found = sorted(key.decode() for key in client.scan_iter(pattern))
    client.close()
    return found


@pytest.mark.parametrize(
    ("required", "fit"),
    [
        ([], [0, 1, 2, 3]),
        ([BOOKS], [1, 3]),
        ([MAPS], [2, 3]),
        ([BOOKS, MAPS], [3]),
        ([MAPS, BOOKS, MAPS], [3]),
        (["data:none"], []),
        ([BOOKS, "data:none"], []),
        ([SIMULATOR], [4, 5]),
        ([SIMULATOR, BOOKS], [5]),
        (["executor:other"], [5]),
        ([SIMULATOR, "executor:other"], [5]),
        ([SIMULATOR, MAPS], []),
    ],
)
def test_only_the_fit_are_leased_and_counted(discovery: Discovery, required: list[str], fit: list[int]) -> None:
    """In particular: who has an executor serves nobody that does not ask for it."""
    has = [[], [BOOKS], [MAPS], [MAPS, BOOKS], [SIMULATOR], [SIMULATOR, "executor:other", BOOKS]]
    foreman, workers = network(discovery, *has)
    leased = foreman.lease(60, capabilities=required)
    assert served_by(leased) == {workers[number].worker_id for number in fit}
    assert leased.network == m.NetworkState(workers=len(fit), slots=len(fit))
    assert len(leased.tasks) == (60 if fit else 0)


def test_the_network_counts_the_slots_of_the_fit(discovery: Discovery) -> None:
    foreman = Foreman(discovery)
    for slots, has in [(1, []), (2, [BOOKS]), (4, [MAPS]), (8, [BOOKS, MAPS])]:
        Worker(Caller(discovery), slots=slots, capabilities=has)
    counted = {
        required: foreman.lease(capabilities=required).network for required in ((), (BOOKS,), (MAPS,), (BOOKS, MAPS))
    }
    assert [(state.workers, state.slots) for state in counted.values()] == [(4, 15), (2, 10), (2, 12), (1, 8)]


def test_a_rare_capability_among_thousands_of_workers_is_found_every_time(discovery: Discovery) -> None:
    foreman = Foreman(discovery)
    for number in range(3000):
        _register(discovery.store, f"{number:016x}", ["data:common", f"data:{number % 50}"], slots=1)
    for number in range(3):
        _register(discovery.store, f"fd{number:014x}", ["data:rare", "data:common"], slots=2)
        _register(discovery.store, f"fe{number:014x}", [SIMULATOR], slots=2)
    for required in (["data:rare"], ["data:rare", "data:common"], [SIMULATOR]):
        for _ in range(20):
            leased = foreman.lease(capabilities=required)
            assert len(leased.tasks) == 1
            assert leased.network == m.NetworkState(workers=3, slots=6)
            assert leased.workers[0].worker_id.startswith("fe" if SIMULATOR in required else "fd")


@pytest.mark.parametrize("required", [[BOOKS], [BOOKS, MAPS]])
def test_the_draw_among_the_fit_is_by_chance(make_discovery: MakeDiscovery, required: list[str]) -> None:
    store = make_discovery().store
    for number in range(40):
        _register(store, f"{number:016x}", [BOOKS, MAPS] if number % 2 else [BOOKS], slots=1)
    fit = 20 if MAPS in required else 40
    worker_class = class_of("native", "3.11", required)
    drawn = Counter(
        worker.worker_id for _ in range(400) for worker in store.sample(worker_class, required, fit // 4).workers
    )
    assert len(drawn) == fit
    assert sum(drawn.values()) == 400 * (fit // 4)
    assert max(drawn.values()) < 4 * min(drawn.values())  # each about 100 times: six standard deviations are 52


def _register(store: Store, worker_id: str, capabilities: list[str], slots: int) -> None:
    capabilities = set_of(capabilities)
    done = store.register(
        worker_id=worker_id, account_id=worker_id, address="127.0.0.1", port=1, slots=slots, capacity=slots * 10,
        boot_id=worker_id, worker_class=class_of("native", "3.11", capabilities), ttl_ms=60_000, layers=[],
        capabilities=capabilities,
    )  # fmt: skip
    assert done is not None


def test_a_full_worker_is_drawn_for_none_of_its_capabilities_until_a_slot_is_free(
    make_discovery: MakeDiscovery,
) -> None:
    foreman, (worker,) = network(make_discovery(prefetch=2), [BOOKS, MAPS])
    wanted: list[list[str]] = [[], [BOOKS], [BOOKS, MAPS]]
    leased = foreman.lease(2, capabilities=[MAPS])
    for required in wanted:
        full = foreman.lease(capabilities=required)
        assert (full.tasks, full.network.workers) == ([], 1)
    first, second = [task.task_id for task in leased.tasks]
    foreman.settle([worker.receipts([f"{first}.0", f"{second}.0"])], [first, second])
    for required in wanted[1:]:
        assert len(foreman.lease(capabilities=required).tasks) == 1


def test_a_worker_that_comes_back_with_other_capabilities_is_found_by_those_alone(
    discovery: Discovery, redis_url: str
) -> None:
    foreman, (worker,) = network(discovery, [BOOKS])
    for has, found in [([MAPS], MAPS), ([SIMULATOR], SIMULATOR), ([BOOKS], BOOKS)]:
        worker.capabilities = has
        worker.register()
        for required in (BOOKS, MAPS, SIMULATOR):
            leased = foreman.lease(capabilities=[required])
            assert (len(leased.tasks), leased.network.workers) == ((1, 1) if required == found else (0, 0))
    assert worker.registered.epoch == 1
    worker.caller.raw("DELETE", f"/v1/workers/{worker.worker_id}")
    assert foreman.lease(capabilities=[BOOKS]).network.workers == 0
    for pattern in ("{ec}:pool:*", "{ec}:have:*", "{ec}:class:*"):
        assert keys_of(redis_url, pattern) == [], "nothing is left of who left"


def test_workers_that_lapse_leave_the_index(make_discovery: MakeDiscovery, redis_url: str) -> None:
    discovery = make_discovery(ttl_s=0.1)
    foreman, _ = network(discovery, [BOOKS, MAPS], [SIMULATOR])
    time.sleep(0.2)
    assert foreman.lease(capabilities=[BOOKS, MAPS]).tasks == [], "also before a sweep"
    discovery.sweep()
    for pattern in ("{ec}:pool:*", "{ec}:have:*", "{ec}:class:*"):
        assert keys_of(redis_url, pattern) == []


def test_further_replicas_go_to_workers_with_the_tasks_capabilities(discovery: Discovery) -> None:
    """Also where one settlement wants more of tasks that need different things."""
    foreman, workers = network(discovery, *[[]] * 5, [BOOKS], [BOOKS], [SIMULATOR], [SIMULATOR])
    by_id = {worker.worker_id: worker for worker in workers}
    leased = [foreman.lease(capabilities=required) for required in ([BOOKS], [SIMULATOR], [])]
    tasks = [one.tasks[0] for one in leased]
    lost = [task.replicas[0].lease_id for task in tasks]
    settled = foreman.settle([], [task.task_id for task in tasks], lost)
    assert [verdict.verdict for verdict in settled.tasks] == ["more"] * 3
    for task, verdict, required in zip(tasks, settled.tasks, ([BOOKS], [SIMULATOR], None), strict=True):
        assert verdict.task is not None
        (replica,) = verdict.task.replicas
        assert replica.worker_id != task.replicas[0].worker_id
        assert required in (None, by_id[replica.worker_id].capabilities)
        assert by_id[replica.worker_id].capabilities != [SIMULATOR] or required == [SIMULATOR]
    # Both of a kind have it now: a third has to wait, however many others are free.
    again = foreman.settle([], [tasks[0].task_id], [settled.tasks[0].task.replicas[0].lease_id])  # type: ignore[union-attr]
    assert again.tasks[0].verdict == "pending"


def test_replicas_of_one_task_differ_among_the_fit(discovery: Discovery) -> None:
    foreman, workers = network(discovery, [], [], [BOOKS], [BOOKS])
    leased = foreman.lease(1, capabilities=[BOOKS], redundancy=2, quorum=2)
    assert served_by(leased) == {worker.worker_id for worker in workers[2:]}
    assert foreman.lease(1, capabilities=[BOOKS], redundancy=3, quorum=2).tasks == []
    (verdict,) = foreman.settle(answer_all(leased, workers), [leased.tasks[0].task_id]).tasks
    assert verdict.verdict == "accepted"


def test_tasks_stored_before_there_were_capabilities_are_read(discovery: Discovery) -> None:
    foreman, _ = network(discovery, [])
    task_id = foreman.lease().tasks[0].task_id
    record = discovery.store.load([task_id])[1][task_id]
    older = msgspec.msgpack.decode(msgspec.msgpack.encode(record))[:-1]
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(older), type=TaskRecord) == record


def test_workers_registered_before_there_were_capabilities_go_on(discovery: Discovery, redis_url: str) -> None:
    foreman, (worker,) = network(discovery, [])
    client = redis.Redis.from_url(redis_url)
    client.hdel(f"{{ec}}:worker:{worker.worker_id}", "capabilities")
    client.close()
    leased = foreman.lease()
    foreman.settle(answer_all(leased, [worker]), [leased.tasks[0].task_id])
    worker.register()
    assert foreman.lease().network == m.NetworkState(workers=1, slots=1)


# --- what strangers may send ----------------------------------------------------------------------

ODD = [
    *("", " ", "Data:books", "data books", "data,books", "data+books", "data/books", "../x", "-x", ":x", ".x", "_x"),
    *(
        "data:books\n",
        "\ndata:books",
        "data:books\x00",
        "dätä",
        "٠",
        "x" * 65,
        "data:*",
        "{ec}:pool",
        "a\u202eb",
        "a b",
    ),
]


@pytest.mark.parametrize("odd", ODD, ids=ascii)
def test_odd_names_of_capabilities_are_malformed_and_change_nothing(
    discovery: Discovery, redis_url: str, odd: str
) -> None:
    foreman, _ = network(discovery, [BOOKS])
    client = redis.Redis.from_url(redis_url)
    before = {key: client.dump(key) for key in client.scan_iter()}
    with pytest.raises(Problem, match="malformed-body"):
        Worker(foreman, capabilities=[odd])
    with pytest.raises(Problem, match="malformed-body"):
        foreman.lease(capabilities=[odd])
    assert {key: client.dump(key) for key in client.scan_iter()} == before
    client.close()


@pytest.mark.parametrize("good", ["a", "0", "x" * 64, "data:books", "executor:simulator", "gpu", "a.b_c-d:e:f", "a::"])
def test_good_names_of_capabilities(discovery: Discovery, good: str) -> None:
    foreman, _ = network(discovery, [good])
    assert len(foreman.lease(capabilities=[good]).tasks) == 1


def test_a_million_capabilities_are_refused(discovery: Discovery) -> None:
    caller = Caller(discovery)
    worker = {"worker_id": "ab" * 8, "boot_id": "cd" * 8, "port": 1, "slots": 1, "python": "3.11"}
    many = [f"c{number}" for number in range(10**6)]
    assert caller.raw("POST", "/v1/workers", json.dumps({**worker, "capabilities": many}).encode()).status_code == 413
    lease = {
        "job_id": "ab" * 16,
        "idempotency_key": "a-good-key",
        "tasks": [{"input_digest": "A" * 43 + "="}],
        "requirements": {"python": "3.11", "capabilities": ["c"] * 10**6},
    }
    for count, status in ((10**6, 400), (17, 400), (16, 200)):
        lease["requirements"] = {"python": "3.11", "capabilities": [f"c{n % 20}" for n in range(count)]}
        assert caller.raw("POST", "/v1/tasks", json.dumps(lease).encode()).status_code == status
    for count, status in ((17, 400), (16, 200)):
        body = json.dumps({**worker, "capabilities": many[:count]}).encode()
        assert caller.raw("POST", "/v1/workers", body).status_code == status


def test_the_same_capability_sixteen_times_counts_once(discovery: Discovery) -> None:
    foreman, (worker,) = network(discovery, [BOOKS] * 16)
    assert foreman.lease(capabilities=[BOOKS] * 16).network == m.NetworkState(workers=1, slots=1)
    worker.register()
    assert foreman.lease(capabilities=[BOOKS]).network == m.NetworkState(workers=1, slots=1)


def test_a_worker_that_starts_anew_with_an_executor_is_leased_no_more_python(discovery: Discovery) -> None:
    foreman, (worker,) = network(discovery, [])
    leased = foreman.lease()
    worker.boot_id, worker.capabilities = os.urandom(8).hex(), [SIMULATOR]
    worker.register()
    assert foreman.lease().tasks == []
    settled = foreman.settle([], [leased.tasks[0].task_id])
    assert settled.tasks[0].verdict == "pending", "the task wants a worker without"
    foreman.settle([worker.receipts([f"{leased.tasks[0].task_id}.0"], kind=Kind.REFUSED)])
