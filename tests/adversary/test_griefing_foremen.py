"""Foremen that want to harm workers: their names, their time, their capacity."""

from __future__ import annotations

import os
import random
import sys
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gevent
import pytest

from discovery.tasks import owes_hold_fee
from ec262.config import WorkerSettings
from ec262.discovery_client import DiscoveryClient, create_account_at
from ec262.mapreduce.program import map_header
from ec262.protocol import messages as m
from ec262.protocol.canonical import encode_pairs
from ec262.protocol.framing import frame_parts, parts_digest
from ec262.protocol.receipts import Kind, digests_of, tokens_digest
from ec262.protocol.sealing import seal
from ec262.serving import Server
from ec262.worker.service import Worker as RealWorker
from tests import worker_peers
from tests.adversary.conftest import MakeScene
from tests.adversary.scene import At, Scene, of, together
from tests.parties import RIGHT, Foreman, Problem, Worker, answer_all

# --- framing honest workers with nondeterministic code -------------------------------------------


def settle_all(foreman: Foreman, workers: list[Worker], answers: Any, count: int, **policy: Any) -> m.Settled:
    """A job's tasks until nothing is open; returns the last answer."""
    answered: m.Leased | m.Settled = foreman.lease(count, **policy)
    opened = [task.task_id for task in answered.tasks]
    while opened:
        shown = []
        for worker in workers:
            shown += [worker.receipts([lease_id], answers(worker)) for lease_id in of(worker, answered)]
        answered = foreman.settle(shown, opened)
        opened = [verdict.task_id for verdict in answered.tasks if verdict.verdict == "more"]
    assert isinstance(answered, m.Settled)
    return answered


@pytest.mark.parametrize("foremen", [1, 2], ids=["one foreman", "two that plan it"])
def test_attack_framing_honest_workers_with_nondeterministic_code(make_scene: MakeScene, foremen: int) -> None:
    """Each answer is another by chance, so that all of them dissent now and then: no name is lost, nobody is banned."""
    scene = make_scene(starting_credits=10_000)
    workers = scene.workers(10, verified=60)
    chance = random.Random(7)
    for _ in range(foremen):
        foreman = scene.foreman()
        for _ in range(8):
            settled = settle_all(
                foreman,
                workers,
                lambda worker: RIGHT if chance.random() < 0.7 else chance.randbytes(32),
                10,
                redundancy=3,
                quorum=2,
                max_replicas=6,
            )
        assert settled.clarity < 0.5
    scene.discovery.sweep()
    for worker in workers:
        name = scene.name(worker)
        assert (name["doubts"], name["words"], name["accusers"], name["banned"]) == (0, 0, 0, False)
    assert sum(worker.caller.state.earned for worker in workers) > 0, "and they were paid where they agreed"


def test_attack_one_person_with_two_accounts_is_one_accuser(make_scene: MakeScene) -> None:
    """A program that answers wrongly on one machine alone: two accounts of one network say so, and count as one."""
    scene = make_scene(starting_credits=10_000)
    victim, *others = scene.workers(5, verified=30)
    plotters = [scene.foreman("198.51.100.7"), scene.foreman("198.51.100.200")]
    for foreman in plotters:
        for _ in range(4):
            settle_all(
                foreman,
                [victim, *others],
                lambda worker: b"v" * 32 if worker is victim else RIGHT,
                12,
                redundancy=3,
                quorum=2,
                max_replicas=5,
            )
    scene.discovery.sweep()
    assert scene.name(victim)["doubts"] != 0, "it is doubted"
    assert scene.name(victim)["accusers"] == 1
    assert not scene.banned(victim)
    assert victim.caller.state.balance == 10_000 + victim.caller.state.earned


# --- leasing and never pushing -------------------------------------------------------------------


def deny(worker: Worker, leases: Sequence[str]) -> m.HeartbeatAnswer:
    """A worker says that it was never pushed these."""
    path, body = f"/v1/workers/{worker.worker_id}/heartbeats", m.Heartbeat(boot_id=worker.boot_id, unseen=list(leases))
    return worker.caller.call("POST", path, m.HeartbeatAnswer, body)


def test_attack_leasing_and_never_pushing(make_scene: MakeScene) -> None:
    """All capacity of a worker is leased and nothing is pushed: it says so and is free for others, its name whole."""
    costs = {"prefetch": 4, "hold_leases": 1, "hold_cap": 99}
    scene = make_scene(hold_s=3600.0, **costs)
    griefer, other, worker = scene.foreman(), scene.foreman(), scene.worker()
    leased = griefer.lease(64)
    assert len(leased.tasks) == 32
    assert other.lease(1).tasks == [], "nothing is left of it"
    before = scene.name(worker)
    unseen = of(worker, leased)
    assert len(deny(worker, unseen).open_leases) == 32, "it may still be pushed"
    here = worker.caller._client.environ_base["REMOTE_ADDR"]
    worker.caller = At(make_scene(hold_s=0.0, **costs).discovery, here, account=worker.caller.account)
    assert deny(worker, unseen).open_leases == []
    assert len(other.lease(32).tasks) == 32
    assert scene.name(worker) == before
    assert (griefer.state.balance, griefer.state.escrow) == (68, 0), "it cost the griefer, who was not asked"
    assert worker.caller.state.earned == 0, "which is not the worker's: else it would live on saying so"
    late = griefer.settle([worker.receipts(unseen)], [task.task_id for task in leased.tasks])
    assert {verdict.verdict for verdict in late.tasks} <= {"pending", "more", "undecided"}
    assert worker.caller.state.earned == 0, "nor is it paid for what it denied"


def test_attack_a_worker_denies_anothers_leases(make_scene: MakeScene) -> None:
    """Who says that a rival was never pushed anything takes nothing from the rival, nor from its foreman."""
    scene = make_scene(hold_s=0.0)
    foreman, victim = scene.foreman(), scene.worker()
    leased = foreman.lease(3)
    rival = scene.worker()
    deny(rival, of(victim, leased))
    path, body = f"/v1/workers/{victim.worker_id}/heartbeats", m.Heartbeat(boot_id=rival.boot_id)
    with pytest.raises(Problem) as refused:
        rival.caller.call("POST", path, m.HeartbeatAnswer, body)
    assert refused.value.code == "unknown-worker"
    assert len(victim.heartbeat().open_leases) == 3
    assert (foreman.state.balance, foreman.state.escrow) == (97, 3)


def test_attack_a_worker_denies_its_leases_one_by_one(make_scene: MakeScene) -> None:
    """Were the first of each batch what costs, each would cost. It is one in sixteen, and the worker cannot tell which:
    so it is the same price one by one, together, and said again.
    """
    scene = make_scene(hold_s=0.0, hold_cap=99)
    foreman, worker = scene.foreman(), scene.worker()
    leases = of(worker, foreman.lease(96))
    secret = scene.discovery.trust.view((foreman.account_id, foreman.job_id)).secret
    owed = sum(owes_hold_fee(secret, lease_id, 16) for lease_id in leases)
    for lease_id in leases[:48]:
        deny(worker, [lease_id])
        deny(worker, [lease_id, lease_id])
    deny(worker, leases[48:])
    deny(worker, leases)
    assert owed < 30
    assert (foreman.state.balance, foreman.state.escrow) == (100 - owed, 0)
    assert worker.caller.state.earned == 0


@pytest.mark.parametrize("policy", [{}, {"confidence": 0.99}], ids=["quorum", "confidence"])
def test_attack_a_worker_denies_all_it_was_pushed_so_that_its_foreman_is_ruined(
    make_scene: MakeScene, policy: dict[str, Any]
) -> None:
    """Nobody can prove what was pushed. So it costs so much at most, and then the two part for this job."""
    scene = make_scene(hold_s=0.0, hold_leases=1)
    foreman, other, worker = scene.foreman(), scene.foreman(), scene.worker()
    second = scene.worker(worker.caller)
    for _ in range(4):
        leased = foreman.lease(20, **policy)
        for each in (worker, second):
            for lease_id in of(each, leased):
                deny(each, [lease_id])
    cap = scene.discovery.settings.hold_cap
    assert (foreman.state.balance, foreman.state.escrow) == (100 - cap, 0)
    assert foreman.lease(5, **policy).tasks == [], "none of the account's workers has anything of this job any more"
    assert len(other.lease(5, **policy).tasks) == 5
    foreman.job_id = "e" * 32
    assert len(foreman.lease(5, **policy).tasks) == 5, "nor is it for ever"


def test_attack_many_workers_of_one_account_deny_at_once(make_scene: MakeScene) -> None:
    """Each heartbeat finds that nothing was paid yet: the step that commits looks again."""
    scene = make_scene(hold_s=0.0, hold_leases=1)
    foreman, owner = scene.foreman(), scene.foreman()
    workers = [scene.worker(owner, slots=1) for _ in range(6)]
    leased = foreman.lease(48)
    leases = {worker.worker_id: of(worker, leased) for worker in workers}
    assert all(leases.values())
    together([lambda each=each: deny(each, leases[each.worker_id]) for each in workers])  # type: ignore[misc]
    for worker in workers:
        deny(worker, leases[worker.worker_id])
    assert (foreman.state.balance, foreman.state.escrow) == (100 - scene.discovery.settings.hold_cap, 0)


def test_attack_a_worker_denies_the_leases_of_foreman_after_foreman(make_scene: MakeScene) -> None:
    """One foreman may have pushed nothing, or two; that many unrelated ones did is less likely than that it lies. Who
    owns several accounts of one network is one of them.
    """
    scene = make_scene(hold_s=0.0, prefetch=4)
    victims = [scene.foreman() for _ in range(3)]
    worker = scene.worker(verified=40)
    griefers = [scene.foreman(f"192.0.2.{number + 1}") for number in range(5)]
    before = scene.name(worker)
    for foreman in [*griefers, *griefers, victims[0]]:
        deny(worker, of(worker, foreman.lease(2)))
    assert scene.name(worker) == before, "two parties"
    for share, foreman in ((2, victims[1]), (2, victims[1]), (4, victims[2])):
        deny(worker, of(worker, foreman.lease(2)))
        assert scene.name(worker) == {**before, "share": share}
    assert len(victims[0].lease(40).tasks) == 8, "a quarter of its capacity"
    worker.boot_id = os.urandom(16).hex()
    worker.register()
    leased = victims[1].lease(1)
    victims[1].settle([worker.receipts(of(worker, leased))], [leased.tasks[0].task_id])
    assert len(victims[2].lease(40).tasks) == 32, "and all of it once it has answered"


# --- impossible deadlines ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("timeout_s", "cpu_limit_s", "floor_s"),
    [(1e-6, 1e-9, 5), (1e-6, 60, 120), (59.9, 60, 120), (119, 60, 120), (1, 3600, 7200), (5, 10, 20), (400, 60, 400)],
)
def test_attack_impossible_deadlines(
    make_scene: MakeScene, timeout_s: float, cpu_limit_s: float, floor_s: float
) -> None:
    """A millisecond for an hour of work, a CPU limit of nothing: whoever uses all of its CPU time, after another task
    that does so too, is in time. That holds for who is asked later (`more`) as well, and the grace comes on top.
    """
    scene = make_scene(ttl_s=1e6, starting_credits=200)
    foreman, workers = scene.foreman(), scene.workers(2)
    asked_s = scene.discovery.store.now_ms() / 1000
    first = foreman.lease(1, timeout_s=timeout_s, cpu_limit_s=cpu_limit_s)
    tasks, lost = [first.tasks[0].task_id], [first.tasks[0].replicas[0].lease_id]
    second = foreman.settle([], tasks, lost)
    assert second.tasks[0].verdict == "more"
    tickets = [ticket for answer in (first, second) for worker in workers for ticket in worker.tickets(answer)]
    assert len(tickets) == 2
    for ticket in tickets:
        assert floor_s - 0.001 <= ticket.deadline_s - asked_s < floor_s + 25
        assert ticket.cpu_limit_s == max(cpu_limit_s, scene.discovery.settings.min_cpu_limit_s)
        assert ticket.price >= 1
    scene.clock.move(int(floor_s) + 30)
    scene.discovery.sweep()
    foreman.settle([*answer_all(first, workers), *answer_all(second, workers)], tasks)
    assert [worker.caller.state.earned for worker in workers] == [tickets[0].price] * 2
    assert [scene.name(worker)["share"] for worker in workers] == [0, 0], "nobody was late"


def test_attack_a_deadline_that_discovery_raised_keeps_no_credits_for_ever(make_scene: MakeScene) -> None:
    """It was meant to harm workers; its foreman waits for its escrow as long as it asked them to compute."""
    scene = make_scene(ttl_s=1e6)
    griefer, worker = scene.foreman(), scene.worker()
    griefer.lease(3, timeout_s=1e-6, cpu_limit_s=600)
    scene.clock.move(1200 + 50)
    scene.discovery.sweep()
    assert griefer.state.escrow == 30
    scene.clock.move(20)
    scene.discovery.sweep()
    assert (griefer.state.escrow, griefer.state.balance) == (0, 100)
    assert worker.heartbeat().open_leases == []


@pytest.mark.parametrize("field", ["timeout_s", "cpu_limit_s"])
@pytest.mark.parametrize("value", ["0", "-5", "1e9", "NaN", "Infinity", "1e999", "null1", '"9"'])
def test_attack_times_that_are_none(scene: Scene, field: str, value: str) -> None:
    foreman, worker = scene.foreman(), scene.worker()
    said = {"timeout_s": "30", "cpu_limit_s": "60"}

    def ask() -> int:
        body = (
            f'{{"job_id": "{foreman.job_id}", "idempotency_key": "{uuid.uuid4().hex}", '
            f'"requirements": {{"python": "3.11"}}, "timeout_s": {said["timeout_s"]}, '
            f'"tasks": [{{"input_digest": "{"A" * 43}=", "cpu_limit_s": {said["cpu_limit_s"]}}}]}}'
        )
        return foreman.raw("POST", "/v1/tasks", body.encode()).status_code

    assert ask() == 200
    said[field] = value
    assert ask() == 400
    assert (foreman.state.balance, len(worker.heartbeat().open_leases)) == (99, 1)


def test_attack_a_worker_that_missed_impossible_deadlines_is_whole_again_with_its_next_answer(
    make_scene: MakeScene,
) -> None:
    """A program that computes past every deadline halves what its worker is given; not its name, nor for long."""
    scene = make_scene(prefetch=2, ttl_s=1e6)
    griefer, other, worker = scene.foreman(), scene.foreman(), scene.worker(verified=40)
    for _ in range(4):
        griefer.lease(2, timeout_s=0.001, cpu_limit_s=0.001)
        scene.until_swept(worker)
    name = scene.name(worker)
    assert (name["verified"], name["doubts"], name["share"], name["banned"]) == (40_000, 0, 16, False)
    leased = other.lease(1)
    other.settle([worker.receipts(of(worker, leased))], [leased.tasks[0].task_id])
    assert len(other.lease(40).tasks) == 16
    assert griefer.state.balance == 100


# --- a real worker: another input, a ticket used twice -------------------------------------------

QUICK = WorkerSettings(port=0, slots=1, linger_s=0.005, drain_s=2.0, retry_s=0.05, retry_max_s=0.1)


@contextmanager
def at_work(scene: Scene, home: Path) -> Iterator[tuple[RealWorker, DiscoveryClient, At]]:
    """A worker as people run it, let in by the scene's discovery; and an account that buys of it."""
    with Server(scene.discovery.app) as server, RealWorker(QUICK, server.url, home=home) as worker:
        assert worker.enter()
        client = DiscoveryClient(server.url)
        made = create_account_at(client)
        client.use_account(made.account_id, made.secret)
        caller = m.AccountCreated(account_id=made.account_id, secret=made.secret, balance=0)
        yield worker, client, At(scene.discovery, account=caller)
        client.close()
        worker.hurry()


class Leased:
    """One task leased of a real worker, and ways to push it."""

    def __init__(self, worker: RealWorker, client: DiscoveryClient, value: int) -> None:
        self.http = worker_peers.Foreman(worker.server.port)
        parts = self.parts(value)
        self.leased = client.lease_tasks(
            m.LeaseTasks(
                job_id=self.http.job_id,
                idempotency_key=uuid.uuid4().hex,
                tasks=[m.TaskWanted(input_digest=parts_digest(parts, domain=b"input"), cpu_limit_s=30.0)],
                requirements=m.Requirements(python=worker_python()),
            )
        )
        (self.task,) = self.leased.tasks
        self.http.poll_key = self.leased.poll_key

    def parts(self, value: int) -> list[bytes]:
        """An input."""
        return [map_header(self.http.digest, index=0, partitions=1), encode_pairs([("k", value)])]

    def push(self, value: int, tickets: bytes = b"") -> tuple[int, bytes]:
        """Pushes an input, that of the lease or another."""
        payload = [seal(self.task.input_key, frame_parts(self.parts(value)))]
        message = m.PushTasks(
            tickets=tickets or self.leased.workers[0].tickets,
            program=[seal(self.leased.program_key, self.http.blob)],
            tasks=[m.PushedTask(lease_id=self.task.replicas[0].lease_id, payload=payload)],
        )
        return self.http.post(message)

    def collect(self) -> m.Results:
        """The one result."""
        while True:
            answer = self.http.poll()
            if answer.results:
                return answer


def worker_python() -> str:
    """The Python that both run."""
    return f"{sys.version_info[0]}.{sys.version_info[1]}"


def test_attack_sending_one_worker_another_input(make_scene: MakeScene, tmp_path: Path) -> None:
    """Computed from other bytes than the others had, its answer would differ: it says so and does not compute."""
    scene = make_scene(heartbeat_s=0.1, distinct="account")
    with at_work(scene, tmp_path) as (worker, client, foreman):
        standing = worker.registration.standing
        assert standing is not None
        lease = Leased(worker, client, 1)
        assert lease.push(2)[0] == 200
        answer = lease.collect()
        assert answer.results[0].tokens == []
        shown = m.SealedReceipts(worker_id=standing.worker_id, token=answer.receipts)
        foreman.job_id = lease.http.job_id
        settled = foreman.settle([shown], [lease.task.task_id])
        assert settled.tasks[0].verdict in {"more", "pending"}
        record = scene.discovery.store.load([lease.task.task_id])[1][lease.task.task_id]
        assert record.replicas[0].state == Kind.REFUSED.value
        counts = scene.discovery.store.worker_counts(standing.worker_id)
        assert (counts["refused"], counts["dissented"], counts["agreed"]) == (1, 0, 0)
        known = scene.redis.hmget(f"{{ec}}:worker:{standing.worker_id}", ["doubts", "words", "share"])
        assert known == [None, None, None]
        # And it is given work again, which it computes.
        again = Leased(worker, client, 5)
        assert again.push(5)[0] == 200
        assert again.collect().results[0].tokens != []


def test_attack_reusing_a_ticket(make_scene: MakeScene, tmp_path: Path) -> None:
    """Pushed again and again, before and after its result was fetched and paid: it is computed once, for one pay."""
    scene = make_scene(heartbeat_s=0.1, distinct="account")
    with at_work(scene, tmp_path) as (worker, client, foreman):
        standing = worker.registration.standing
        assert standing is not None
        lease = Leased(worker, client, 3)
        for _ in range(3):
            assert lease.push(3)[0] == 200
        first = lease.collect()
        lease.http.cursor = first.cursor
        assert lease.push(3)[0] == 200
        assert lease.push(4)[0] == 200, "nor for other bytes"
        assert worker.holdings.taken == 1
        arrived = {each.lease_id: tokens_digest(digests_of(each.tokens)) for each in first.results}
        shown = m.SealedReceipts(worker_id=standing.worker_id, token=first.receipts, arrived=arrived)
        foreman.job_id = lease.http.job_id
        assert foreman.settle([shown], [lease.task.task_id]).tasks[0].verdict == "accepted"
        lease.push(3)
        assert worker.holdings.taken == 1
        assert lease.http.poll(wait_s=0.05).results == []
        foreman.settle([shown], [lease.task.task_id])
        assert scene.discovery.store.worker_counts(standing.worker_id)["earned"] == 1
        # Carried to another worker, the ticket opens nothing there.
        with RealWorker(QUICK, worker.url, home=tmp_path / "other") as other:
            assert other.enter()
            lease.http.http.close()
            lease.http.http = worker_peers.Foreman(other.server.port).http
            assert worker_peers.code_of(lease.push(3)) == (403, "ticket-refused")
            assert other.holdings.taken == 0
            other.hurry()
        gevent.sleep(0)


def test_attack_pushing_what_was_never_leased(make_scene: MakeScene, tmp_path: Path) -> None:
    """A bundle of tickets for one task carries no other; one of another job opens nothing."""
    scene = make_scene(heartbeat_s=0.1, distinct="account")
    with at_work(scene, tmp_path) as (worker, client, _):
        mine, other = Leased(worker, client, 1), Leased(worker, client, 2)
        refused = mine.push(1, tickets=other.leased.workers[0].tickets)
        assert worker_peers.code_of(refused) == (403, "ticket-refused")
        assert worker.holdings.taken == 0
