"""Sampling: who is drawn for a lease: by price and platform, at random, at a cost that does not grow with workers."""

from __future__ import annotations

import os
import random
from collections import Counter
from collections.abc import Iterator

import msgspec
import pytest
import redis

from benchmarks import matching
from discovery.app import Discovery
from discovery.changes import Changes
from discovery.records import needs_of, pools_for, pools_of
from discovery.settings import Settings
from discovery.store.store import Store
from discovery.trust import terms_of
from ec262.config import WorkerSettings
from ec262.errors import Malformed, SetupError
from ec262.protocol import messages as m
from ec262.worker.lease import platform_family
from tests.parties import Caller, Foreman, Problem

CLASS = "native/3.11"
BOOKS, MAPS = "data:books", "data:maps"


@pytest.fixture
def store(discovery: Discovery) -> Store:
    return discovery.store


@pytest.fixture
def client(redis_url: str) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(redis_url) as made:
        yield made


def enter(
    store: Store,
    number: int,
    *,
    ask: int = 1,
    platform: str = "",
    capabilities: tuple[str, ...] = (),
    slots: int = 1,
    capacity: int = 10,
    near: str = "",
) -> str:
    worker_id = f"{number:016x}"
    store.register(
        worker_id=worker_id, account_id=f"{number:032x}", address="127.0.0.1", port=1, slots=slots, capacity=capacity,
        boot_id=worker_id, worker_class=CLASS, ttl_ms=600_000, layers=[], capabilities=capabilities, ask=ask,
        platform=platform, near=near,
    )  # fmt: skip
    return worker_id


def leave(store: Store, number: int) -> None:
    assert store.leave(f"{number:016x}", f"{number:032x}")


def drawn(store: Store, count: int = 100, *, offer: int = 1, needs: tuple[str, ...] = ()) -> list[int]:
    return [worker.ask for worker in store.sample(CLASS, needs, count, offer=offer).workers]


# --- prices ---------------------------------------------------------------------------------------


def test_nobody_is_drawn_who_asks_for_more_than_is_offered(store: Store) -> None:
    for number, ask in enumerate([1, 1, 2, 3, 5, 100]):
        enter(store, number, ask=ask, slots=number + 1)
    for offer, asks, slots in [
        (1, [1, 1], 3),
        (2, [1, 1, 2], 6),
        (4, [1, 1, 2, 3], 10),
        (100, [1, 1, 2, 3, 5, 100], 21),
    ]:
        sample = store.sample(CLASS, [], 100, offer=offer)
        assert [worker.ask for worker in sample.workers] == asks
        assert (sample.workers_alive, sample.slots_alive) == (len(asks), slots), "nor counted as fit"


def test_the_cheapest_are_drawn_first_and_the_draw_among_them_is_by_chance(store: Store) -> None:
    for number in range(60):
        enter(store, number, ask=1 + number % 3)
    assert sorted(drawn(store, 50, offer=3)) == [1] * 20 + [2] * 20 + [3] * 10
    assert drawn(store, 20, offer=3) == [1] * 20
    seen = Counter(worker.worker_id for _ in range(200) for worker in store.sample(CLASS, [], 10, offer=3).workers)
    assert len(seen) == 20
    assert max(seen.values()) < 3 * min(seen.values())  # each about 100 times, standard deviation 7


def test_a_worker_that_changes_its_price_is_found_by_the_new_one_alone(store: Store, client: redis.Redis) -> None:
    for ask in (1, 4, 2, 2, 1, 7):
        enter(store, 1, ask=ask)
        assert drawn(store, offer=100) == [ask]
        assert drawn(store, offer=ask) == [ask]
        assert ask == 1 or drawn(store, offer=ask - 1) == []
    leave(store, 1)
    for pattern in ("{ec}:asks:*", "{ec}:pool:*", "{ec}:class:*", "{ec}:have:*"):
        assert list(client.scan_iter(pattern)) == []


def test_prices_and_capabilities_together(store: Store) -> None:
    for number, (ask, has) in enumerate([(1, (BOOKS,)), (2, (BOOKS, MAPS)), (2, (MAPS,)), (3, (BOOKS, MAPS))]):
        enter(store, number, ask=ask, capabilities=has)
    assert drawn(store, offer=3, needs=(BOOKS,)) == [1, 2, 3]
    assert drawn(store, offer=2, needs=(BOOKS, MAPS)) == [2]
    assert drawn(store, offer=3, needs=(BOOKS, MAPS)) == [2, 3]


@pytest.mark.parametrize("ask", [0, -1, 101, 10**9, 1.5, "2", None, True])
def test_attack_odd_prices_are_malformed(discovery: Discovery, ask: object) -> None:
    body = {"worker_id": "ab" * 8, "boot_id": "cd" * 8, "port": 1, "slots": 1, "python": "3.11", "ask": ask}
    response = Caller(discovery).raw("POST", "/v1/workers", msgspec.json.encode(body))
    assert response.status_code == 400
    assert discovery.store.workers_alive() == 0


def test_a_worker_says_what_it_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    assert WorkerSettings.from_environment({"EC262_WORKER_MIN_PRICE": "3"}).min_price == 3
    assert WorkerSettings.from_environment({}, min_price=2).min_price == 2
    for odd in (0, 101):
        with pytest.raises(SetupError, match="may ask for"):
            WorkerSettings(min_price=odd)


# --- platforms ------------------------------------------------------------------------------------


def test_who_needs_a_platform_gets_that_platform_alone(discovery: Discovery) -> None:
    store = discovery.store
    x86, arm = enter(store, 1, platform="x86_64"), enter(store, 2, platform="aarch64")
    enter(store, 3)  # it does not say
    foreman = Foreman(discovery)
    for platform, fit in ((None, {x86, arm, f"{3:016x}"}), ("x86_64", {x86}), ("aarch64", {arm}), ("riscv64", set())):
        leased = foreman.call(
            "POST",
            "/v1/tasks",
            m.Leased,
            m.LeaseTasks(
                job_id=foreman.job_id,
                idempotency_key=os.urandom(8).hex(),
                tasks=[m.TaskWanted(input_digest=os.urandom(32)) for _ in range(6)],
                requirements=m.Requirements(python="3.11", platform=platform),
            ),
        )
        assert {worker.worker_id for worker in leased.workers} == fit
        assert leased.network.workers == len(fit)


def test_further_replicas_stay_on_the_platform(discovery: Discovery) -> None:
    for number, platform in enumerate(["x86_64", "x86_64", "aarch64", "aarch64", "aarch64", ""]):
        enter(discovery.store, number, platform=platform)
    foreman = Foreman(discovery)
    leased = foreman.call(
        "POST",
        "/v1/tasks",
        m.Leased,
        m.LeaseTasks(
            job_id=foreman.job_id,
            idempotency_key="a-good-key",
            tasks=[m.TaskWanted(input_digest=bytes(32))],
            requirements=m.Requirements(python="3.11", platform="x86_64"),
        ),
    )
    (task,) = leased.tasks
    first = task.replicas[0]
    (verdict,) = foreman.settle([], [task.task_id], [first.lease_id]).tasks
    assert verdict.task is not None
    assert {first.worker_id, verdict.task.replicas[0].worker_id} == {f"{0:016x}", f"{1:016x}"}
    (verdict,) = foreman.settle([], [task.task_id], [verdict.task.replicas[0].lease_id]).tasks
    assert verdict.verdict == "pending", "the platform has no third, however many others are free"


def test_platforms_and_capabilities_together(store: Store) -> None:
    enter(store, 1, platform="x86_64", capabilities=(BOOKS, MAPS))
    enter(store, 2, platform="aarch64", capabilities=(BOOKS, MAPS))
    enter(store, 3, platform="x86_64", capabilities=(BOOKS,))
    for needs, count in [
        ((BOOKS, "platform:x86_64"), 2),
        ((BOOKS, MAPS, "platform:x86_64"), 1),
        (("platform:aarch64",), 1),
        ((MAPS, "platform:riscv64"), 0),
        (("platform:aarch64", "platform:x86_64"), 0),
    ]:
        sample = store.sample(CLASS, needs, 10)
        assert (len(sample.workers), sample.workers_alive) == (count, count)


def test_attack_a_platform_claimed_as_a_capability_does_not_count(store: Store) -> None:
    enter(store, 1, platform="aarch64", capabilities=("platform:x86_64", BOOKS))
    assert store.sample(CLASS, ["platform:x86_64"], 10).workers == []
    assert len(store.sample(CLASS, ["platform:aarch64", BOOKS], 10).workers) == 1


@pytest.mark.parametrize("odd", ["X86", "x86-64", "a b", "x" * 17, "x\n", "a+b", "*", "x$2", "é"], ids=ascii)
def test_attack_odd_platforms_are_malformed(discovery: Discovery, odd: str) -> None:
    body = {"worker_id": "ab" * 8, "boot_id": "cd" * 8, "port": 1, "slots": 1, "python": "3.11", "platform": odd}
    assert Caller(discovery).raw("POST", "/v1/workers", msgspec.json.encode(body)).status_code == 400
    with pytest.raises(Malformed):
        m.decode(m.Requirements, msgspec.json.encode({"python": "3.11", "platform": odd}))


def test_names_of_pools() -> None:
    assert pools_of([MAPS, BOOKS, BOOKS], "") == [BOOKS, MAPS]
    assert pools_of([BOOKS], "x86_64") == [BOOKS, "platform:x86_64", f"{BOOKS}+platform:x86_64"]
    assert needs_of(m.Requirements(python="3.11", capabilities=[MAPS, MAPS])) == [MAPS]
    needs = needs_of(m.Requirements(python="3.11", capabilities=[MAPS, BOOKS], platform="x86_64"))
    assert pools_for(needs) == [f"{BOOKS}+platform:x86_64", f"{MAPS}+platform:x86_64"]
    assert set(pools_for(needs)) < set(pools_of([MAPS, BOOKS, "data:other"], "x86_64"))


@pytest.mark.parametrize(
    ("machine", "family"),
    [("x86_64", "x86_64"), ("AMD64", "x86_64"), ("arm64", "aarch64"), ("aarch64", "aarch64"), ("", "")],
)
def test_families_of_processors(machine: str, family: str) -> None:
    assert platform_family(machine) == family


def test_any_name_of_a_machine_is_a_platform_that_discovery_takes() -> None:
    for machine in ("i686", "Power Macintosh", "sun4v/" * 9, "\u0661\x00", "ARMv8 Processor rev 4"):
        body = {"python": "3.11", "platform": platform_family(machine)}
        m.decode(m.Requirements, msgspec.json.encode(body))


# --- who is in the pools --------------------------------------------------------------------------


def test_a_worker_is_in_its_pools_as_long_as_it_has_room(store: Store, client: redis.Redis) -> None:
    """Whatever is leased to it, comes free, and becomes of its share: pools are written only where that changes."""
    worker_id = enter(store, 1, capacity=32, capabilities=(BOOKS,))
    terms = terms_of(Settings())
    held: list[str] = []
    share, made = 1, 0
    chance = random.Random(262)
    for _ in range(800):
        changes = Changes()
        room = max(1, 32 // share) - len(held)
        taking = chance.choice([0, 0, room // 2, room - 1, room]) if room > 0 else 0
        freeing = chance.sample(held, min(len(held), chance.choice([0, 1, 2, 32])))
        fate = chance.choice(["", "halved", "restored", "restored"])
        if taking:
            fresh = [f"{'c' * 24}.{made + n}" for n in range(taking)]
            changes.takes[worker_id, 1] += fresh
            held += fresh
            made += taking
        if freeing:
            changes.frees[worker_id] += freeing
            held = [lease for lease in held if lease not in freeing]
            if fate == "restored":
                changes.restored.add(worker_id)
                share = 1
            elif fate == "halved":
                changes.halved.add(worker_id)
                share = min(2 * share, terms.most_share)
        store.commit(changes, store.now_ms(), terms)
        fits = len(held) < max(1, 32 // share)
        assert client.hget(f"{{ec}}:worker:{worker_id}", "used") == str(len(held)).encode()
        for pool in (CLASS, f"{CLASS}+{BOOKS}"):
            assert client.sismember(f"{{ec}}:pool:{pool}", worker_id) == fits, (held, share, fate)
    assert made > 100


# --- what is known of workers ---------------------------------------------------------------------


def test_what_is_known_of_a_worker_comes_with_it(store: Store, client: redis.Redis) -> None:
    worker_id = enter(store, 1, ask=1, platform="x86_64", capacity=100)
    fields = {"verified": 12_000, "doubts": 500, "words": 1, "accusers": 2, "share": 4}
    client.hset(f"{{ec}}:worker:{worker_id}", mapping=fields)  # type: ignore[arg-type]
    (worker,) = store.sample(CLASS, [], 10).workers
    assert store.workers([worker_id]) == {worker_id: worker}
    assert {name: getattr(worker, name) for name in fields} == fields
    assert (worker.platform, worker.free, worker.banned, worker.auditor) == ("x86_64", 25, False, False)
    enter(store, 1, platform="x86_64", capacity=100)
    (worker,) = store.sample(CLASS, [], 10).workers
    assert worker.share == 4, "registering again takes nothing back"
    client.hset(f"{{ec}}:worker:{worker_id}", "share", 64)
    assert store.workers([worker_id])[worker_id].free == 1, "it can always show that it behaves again"


def test_workers_that_registered_before_there_was_all_this_go_on(store: Store, client: redis.Redis) -> None:
    worker_id = enter(store, 1)
    client.hdel(f"{{ec}}:worker:{worker_id}", "ask", "platform", "near")
    (worker,) = store.sample(CLASS, [], 10).workers
    assert (worker.ask, worker.platform, worker.share, worker.verified) == (1, "", 1, 0)
    enter(store, 1)
    client.hdel(f"{{ec}}:worker:{worker_id}", "ask", "platform", "near")
    leave(store, 1)
    assert store.sample(CLASS, [], 10).workers_alive == 0


def test_a_bound_gift_draws_no_neighbours_until_as_much_is_spent(store: Store, client: redis.Redis) -> None:
    """What is in escrow is not spent yet. The worker's address counts, and where its account was made."""
    store.accounts.create("a" * 32, b"", "", 12, network="here", bound=True)
    store.accounts.create("b" * 32, b"", "", 12, network="here", bound=False)
    for number, (near, home) in enumerate([("here", "here"), ("here", "there"), ("there", "here"), ("there", "there")]):
        worker_id = enter(store, number, near=near)
        account_id = client.hget(f"{{ec}}:worker:{worker_id}", "account").decode()  # type: ignore[union-attr]
        client.hset(f"{{ec}}:account:{account_id}", "network", home)
    account = "{ec}:account:" + "a" * 32
    stranger = enter(store, 3, near="there")
    for spent, escrow in ((0, 0), (11, 1), (0, 12)):
        client.hset(account, mapping={"spent": spent, "escrow": escrow})
        assert [worker.worker_id for worker in store.sample(CLASS, [], 10, "a" * 32).workers] == [stranger]
    client.hset(account, mapping={"spent": 12})
    assert len(store.sample(CLASS, [], 10, "a" * 32).workers) == 4
    assert len(store.sample(CLASS, [], 10, "b" * 32).workers) == len(store.sample(CLASS, [], 10).workers) == 4


# --- the cost -------------------------------------------------------------------------------------


@pytest.fixture
def hasty(client: redis.Redis) -> Iterator[None]:
    """The store does not wait for the disk: many workers come here."""
    before = str(client.config_get("appendfsync")["appendfsync"])
    client.config_set("appendfsync", "no")
    yield
    client.config_set("appendfsync", before)


def calls(client: redis.Redis) -> int:
    """Commands that the server has carried out."""
    stats = client.info("commandstats")
    return sum(int(each["calls"]) for name, each in stats.items() if name != "cmdstat_info")


@pytest.mark.usefixtures("hasty")
def test_drawing_costs_the_same_of_fifty_workers_and_of_three_thousand(store: Store, client: redis.Redis) -> None:
    costs: list[dict[tuple[str, ...], int]] = []
    for first, last in ((0, 50), (50, 3000)):
        for number in range(first, last):
            enter(store, number, ask=1 + number % 2, platform="x86_64", capabilities=(BOOKS,))
        cost: dict[tuple[str, ...], int] = {}
        for needs in ((), (BOOKS,), ("platform:x86_64",), (BOOKS, "platform:x86_64")):
            before = calls(client)
            sample = store.sample(CLASS, needs, 20, offer=2)
            cost[needs] = calls(client) - before
            assert (len(sample.workers), sample.workers_alive) == (20, last)
        costs.append(cost)
    few, many = costs
    assert few == many
    assert max(few.values()) < 60


def looked_at(client: redis.Redis) -> set[str]:
    """Commands since the counts were reset that go through whole sets, however large."""
    return {
        name for name in client.info("commandstats") if name in {"cmdstat_zinter", "cmdstat_sinter", "cmdstat_smembers"}
    }


@pytest.mark.usefixtures("hasty")
def test_of_many_that_have_one_of_two_capabilities_some_are_looked_at(store: Store, client: redis.Redis) -> None:
    """One in three has both. What is found is right; how many there are in all is an estimate."""
    for number in range(1800):
        has = (BOOKS, MAPS) if number % 3 == 0 else ((BOOKS,), (MAPS,))[number % 2]
        enter(store, number, capabilities=has, slots=2, ask=1 + number // 1600)
    client.config_resetstat()
    seen = set()
    for _ in range(20):
        sample = store.sample(CLASS, [BOOKS, MAPS], 20, offer=2)
        assert len({worker.worker_id for worker in sample.workers}) == 20
        assert all(int(worker.worker_id, 16) % 3 == 0 for worker in sample.workers)
        assert 400 < sample.workers_alive < 800
        assert 800 < sample.slots_alive < 1600
        seen |= {worker.worker_id for worker in sample.workers}
    assert len(seen) > 200, "and others each time"
    assert looked_at(client) == set()


@pytest.mark.usefixtures("hasty")
def test_a_pair_that_hardly_anybody_has_is_found_in_the_end(store: Store) -> None:
    """Of those who have the rarer of both some are looked at in a request: others in the next."""
    for number in range(1500):
        enter(store, number, capabilities=((BOOKS,), (MAPS,))[number % 2])
    enter(store, 1500, capabilities=(BOOKS, MAPS))
    assert any(store.sample(CLASS, [BOOKS, MAPS], 20).workers for _ in range(60))


@pytest.mark.usefixtures("hasty")
def test_attack_many_prices_and_many_capabilities_at_once_cost_little(store: Store, client: redis.Redis) -> None:
    names = tuple(f"data:{letter}" for letter in "abcdefghijklmnop")
    for number in range(1000):
        enter(store, number, ask=1 + number % 10, capabilities=names)
    before = calls(client)
    sample = store.sample(CLASS, names, 20, offer=100)
    assert (len(sample.workers), sample.workers_alive) == (20, 1000)
    assert calls(client) - before < 700


def test_attack_as_many_prices_as_there_can_be_cost_little(store: Store, client: redis.Redis) -> None:
    for ask in range(1, 101):
        enter(store, ask, ask=ask)
    before = calls(client)
    assert len(drawn(store, 20, offer=100)) == 20
    assert calls(client) - before < 300


def test_the_benchmark_runs(capsys: pytest.CaptureFixture[str]) -> None:
    assert matching.main(["--workers", "12", "1000", "--rounds", "2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 13
    assert not any(line.endswith(" -") for line in lines)


def test_attack_a_stranger_that_leases_finds_no_worker_by_its_price(discovery: Discovery) -> None:
    """Who offers little is served by those who ask for little, and told that there are no others."""
    enter(discovery.store, 1, ask=2)
    foreman = Foreman(discovery)
    leased = foreman.lease()
    assert (leased.tasks, leased.network) == ([], m.NetworkState(workers=0, slots=0))
    with pytest.raises(Problem):
        foreman.call("GET", f"/v1/workers/{1:016x}", m.Health)
