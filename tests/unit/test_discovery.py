"""Discovery's rules through its routes, over a real store. The fixture checks the books after each test."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
import redis

from discovery.app import Discovery
from discovery.store.store import Store
from ec262.protocol import messages as m
from ec262.protocol.receipts import Kind, Receipt, ReceiptBundle, seal_receipts
from ec262.protocol.routes import routes_of
from tests.conftest import MakeDiscovery
from tests.parties import RIGHT, WRONG, Caller, Foreman, Problem, Worker, answer_all, arrived, made_for, refusals


def totals(caller: Caller) -> tuple[int, int, int]:
    """Minted, on accounts, in escrow; past the second for which the service remembers the sums."""
    time.sleep(1.05)
    credits = caller.call("GET", "/v1/credits", m.Credits)
    return credits.minted, credits.accounts, credits.escrow


def trio(discovery: Discovery) -> tuple[Foreman, list[Worker]]:
    """A foreman and three workers of three accounts."""
    return Foreman(discovery), [Worker(Caller(discovery)) for _ in range(3)]


# --- accounts -------------------------------------------------------------------------------------


def test_an_account_sees_what_it_has(make_discovery: MakeDiscovery) -> None:
    caller = Caller(make_discovery(starting_credits=12))
    assert caller.state.balance == 12
    described = caller.call("GET", "/", m.ServiceState)
    assert described.account is not None
    assert described.account.account_id == caller.account.account_id
    assert totals(caller) == (12, 12, 0)


def test_without_credentials_the_front_page_says_nothing_of_accounts(discovery: Discovery) -> None:
    Caller(discovery)
    answer = m.decode(m.ServiceState, discovery.app.test_client().get("/").data)
    assert answer.account is None


@pytest.mark.parametrize(
    "header", ["", "Basic", "Basic !!!", "Basic Og==", "Basic bm9ib2R5OnNlY3JldA==", "Bearer abc", "Digest x=1"]
)
def test_wrong_credentials_get_401_on_every_route_that_wants_an_account(discovery: Discovery, header: str) -> None:
    client = discovery.app.test_client()
    for route in routes_of("discovery"):
        if route.auth == "account":
            path = route.path.replace("<worker_id>", "ab" * 8).replace("<job_id>", "ab" * 8)
            response = client.open(path, method=route.method, data=b"{}", headers={"Authorization": header})
            assert response.status_code == 401, route.name
            assert m.decode(m.Problem, response.data).code == "unauthorized"
            assert "WWW-Authenticate" in response.headers


def test_a_wrong_secret_is_refused(discovery: Discovery) -> None:
    right = Caller(discovery).account
    wrong = m.AccountCreated(account_id=right.account_id, secret=right.secret[:-1] + "!", balance=0)
    with pytest.raises(Problem) as caught:
        Caller(discovery, wrong).state  # noqa: B018 - the property calls
    assert caught.value.status == 401


def test_secrets_are_not_in_the_store(discovery: Discovery, redis_url: str) -> None:
    secret = Caller(discovery).account.secret.encode()
    client = redis.Redis.from_url(redis_url)
    assert not any(secret in (client.dump(key) or b"") for key in client.scan_iter())
    client.close()


# --- workers --------------------------------------------------------------------------------------


def test_a_heartbeat_of_a_forgotten_worker_creates_nothing(discovery: Discovery, redis_url: str) -> None:
    caller = Caller(discovery)
    client = redis.Redis.from_url(redis_url)
    before = sorted(client.scan_iter())
    with pytest.raises(Problem) as caught:
        caller.call(
            "POST", f"/v1/workers/{'ab' * 8}/heartbeats", m.HeartbeatAnswer, m.Heartbeat(boot_id=os.urandom(8).hex())
        )
    assert (caught.value.status, caught.value.code) == (404, "unknown-worker")
    assert sorted(client.scan_iter()) == before
    client.close()


def test_a_worker_whose_heartbeats_stop_leaves_the_pool_and_returns_in_the_same_epoch(
    make_discovery: MakeDiscovery,
) -> None:
    discovery = make_discovery(ttl_s=0.2)
    foreman, worker = Foreman(discovery), Worker(Caller(discovery))
    worker.heartbeat()
    time.sleep(0.3)
    assert foreman.lease().tasks == [], "nothing is leased to it even before a sweep"
    discovery.sweep()
    assert foreman.lease().network == m.NetworkState(workers=0, slots=0)
    with pytest.raises(Problem, match="unknown-worker"):
        worker.heartbeat()
    worker.register()
    assert worker.registered.epoch == 1
    assert len(foreman.lease().tasks) == 1


def test_a_worker_that_started_anew_loses_its_leases_and_the_foreman_gets_the_escrow_back(discovery: Discovery) -> None:
    foreman, worker = Foreman(discovery), Worker(Caller(discovery))
    leased = foreman.lease(3)
    old = worker.receipts([ticket.lease_id for ticket in worker.tickets(leased)])
    assert foreman.state.escrow == 3
    worker.boot_id = os.urandom(16).hex()
    worker.register()
    assert worker.registered.epoch == 2
    assert foreman.state.escrow == 0
    assert worker.heartbeat().open_leases == []
    settled = foreman.settle([old], [task.task_id for task in leased.tasks])
    assert {verdict.verdict for verdict in settled.tasks} == {"more"}, "the old receipts are not answers"
    assert worker.caller.state.earned == 0


def test_a_worker_id_of_another_account_is_forbidden(discovery: Discovery) -> None:
    worker = Worker(Caller(discovery))
    with pytest.raises(Problem) as caught:
        Worker(Caller(discovery), worker_id=worker.worker_id)
    assert (caught.value.status, caught.value.code) == (403, "forbidden")
    with pytest.raises(Problem, match="unknown-worker"):
        Caller(discovery).call("DELETE", f"/v1/workers/{worker.worker_id}", m.Message)
    worker.heartbeat()


def test_a_worker_that_left_gets_no_leases_but_is_paid_for_what_it_holds(discovery: Discovery) -> None:
    foreman, worker = Foreman(discovery), Worker(Caller(discovery))
    leased = foreman.lease(2)
    assert worker.caller.raw("DELETE", f"/v1/workers/{worker.worker_id}").status_code == 204
    assert foreman.lease().tasks == []
    foreman.settle(answer_all(leased, [worker]), [task.task_id for task in leased.tasks])
    assert worker.caller.state.earned == 2


# --- leases ---------------------------------------------------------------------------------------


def test_a_foreman_without_credits_is_told_what_is_needed_and_takes_no_worker(make_discovery: MakeDiscovery) -> None:
    discovery = make_discovery(starting_credits=2)
    foreman, workers = trio(discovery)
    with pytest.raises(Problem) as caught:
        foreman.lease(5, redundancy=3, quorum=2)
    assert (caught.value.status, caught.value.code) == (402, "insufficient-credits")
    assert (caught.value.problem.needed, caught.value.problem.available) == (3, 2)
    assert all(worker.heartbeat().open_leases == [] for worker in workers)
    assert foreman.state.balance == 2
    assert foreman.state.escrow == 0


def test_what_is_affordable_is_leased_whole_tasks_at_a_time(make_discovery: MakeDiscovery) -> None:
    foreman, _ = trio(make_discovery(starting_credits=8))
    leased = foreman.lease(5, redundancy=3, quorum=2)
    assert [len(task.replicas) for task in leased.tasks] == [3, 3]
    assert (foreman.state.balance, foreman.state.escrow) == (2, 6)


def test_a_longer_cpu_limit_costs_in_proportion(discovery: Discovery) -> None:
    foreman, _ = trio(discovery)
    for limit, price in ((0.5, 1), (60, 1), (60.5, 2), (600, 10)):
        assert foreman.lease(cpu_limit_s=limit).price == price
    assert foreman.state.escrow == 14


def test_replicas_of_a_task_go_to_different_workers(discovery: Discovery) -> None:
    foreman, _ = trio(discovery)
    for task in foreman.lease(20, redundancy=3, quorum=2).tasks:
        assert len({replica.worker_id for replica in task.replicas}) == 3
    assert foreman.lease(1, redundancy=4, quorum=2).tasks == []


def test_a_worker_never_holds_more_than_its_capacity(make_discovery: MakeDiscovery) -> None:
    discovery = make_discovery(prefetch=2)
    foreman, worker = Foreman(discovery), Worker(Caller(discovery), slots=3)
    assert len(foreman.lease(10).tasks) == 6
    assert foreman.lease(1).tasks == []
    leases = worker.heartbeat().open_leases
    foreman.settle([worker.receipts(leases[:2])], [lease.split(".")[0] for lease in leases[:2]])
    assert len(foreman.lease(10).tasks) == 2


def test_public_networks_keep_replicas_apart_by_account_and_neighbourhood(make_discovery: MakeDiscovery) -> None:
    discovery = make_discovery(network="public", distinct="account,address")
    foreman = Foreman(discovery)
    [Worker(Caller(discovery)) for _ in range(3)]
    assert foreman.lease(1, redundancy=2, quorum=2).tasks == [], "all three come from one address"
    by_account = make_discovery(network="public", distinct="account")
    foreman = Foreman(by_account)
    assert len(foreman.lease(1, redundancy=2, quorum=2).tasks) == 1


def test_on_a_public_network_nobody_is_served_by_its_own_workers(make_discovery: MakeDiscovery) -> None:
    discovery = make_discovery(network="public", distinct="none")
    foreman = Foreman(discovery)
    Worker(Caller(discovery, foreman.account))
    assert foreman.lease().tasks == []


def test_a_repeated_lease_request_gets_the_same_answer_and_costs_nothing(discovery: Discovery) -> None:
    foreman, workers = trio(discovery)
    first = foreman.lease(4, key="the-same-key", redundancy=2, quorum=2)
    again = foreman.lease(4, key="the-same-key", redundancy=2, quorum=2)
    assert again.tasks == first.tasks
    for worker in workers:
        assert worker.bundle(again) == worker.bundle(first)
    assert foreman.state.escrow == 8


def test_a_key_used_for_other_tasks_is_a_conflict(discovery: Discovery) -> None:
    foreman, _ = trio(discovery)
    foreman.lease(2, key="the-same-key")
    other = Foreman(discovery, foreman.account)
    other.job_id = "ff" * 16
    with pytest.raises(Problem, match="conflict"):
        other.lease(2, key="the-same-key")
    body = m.LeaseTasks(
        job_id=foreman.job_id,
        idempotency_key="the-same-key",
        tasks=[m.TaskWanted(input_digest=bytes(32))],
        requirements=m.Requirements(python="3.11"),
    )
    with pytest.raises(Problem, match="conflict"):
        foreman.call("POST", "/v1/tasks", m.Leased, body)
    assert foreman.state.escrow == 2


def test_tasks_of_different_prices_are_not_mixed(discovery: Discovery) -> None:
    foreman, _ = trio(discovery)
    body = m.LeaseTasks(
        job_id=foreman.job_id,
        idempotency_key="the-same-key",
        tasks=[m.TaskWanted(input_digest=bytes(32), cpu_limit_s=limit) for limit in (1, 3600)],
        requirements=m.Requirements(python="3.11"),
    )
    with pytest.raises(Problem, match="malformed-body"):
        foreman.call("POST", "/v1/tasks", m.Leased, body)
    assert foreman.state.escrow == 0


def test_nine_thousand_leases_of_one_worker_go_and_come_whole(discovery: Discovery) -> None:
    """More than Lua's unpack takes: a step that stopped in the middle would free the credits and keep the slots."""
    foreman, worker = Foreman(discovery), Worker(Caller(discovery), slots=18)
    leases = [replica.lease_id for _ in range(9) for task in foreman.lease(1000).tasks for replica in task.replicas]
    assert len(leases) == 9000
    assert discovery.store.workers([worker.worker_id])[worker.worker_id].used == 9000
    foreman.settle([worker.receipts(leases, kind=Kind.REFUSED)])
    assert foreman.state.escrow == 0
    assert discovery.store.workers([worker.worker_id])[worker.worker_id].used == 0
    assert worker.heartbeat().open_leases == []


def test_more_receipts_than_a_foreman_can_have_are_refused(discovery: Discovery) -> None:
    foreman, worker = Foreman(discovery), Worker(Caller(discovery))
    with pytest.raises(Problem, match="malformed-body"):
        foreman.settle([worker.receipts([f"{'ab' * 8}.0"] * 20_001)])


@pytest.mark.parametrize("cpu_s", [float("nan"), float("inf"), -1.0, -1e300])
def test_receipts_with_impossible_times_do_not_count(discovery: Discovery, cpu_s: float) -> None:
    foreman, worker = Foreman(discovery), Worker(Caller(discovery))
    leased = foreman.lease()
    lease_id = leased.tasks[0].replicas[0].lease_id
    bundle = ReceiptBundle(worker.worker_id, 1, [Receipt(lease_id, Kind.OK, RIGHT, made_for(lease_id), cpu_s)])
    token = seal_receipts(worker.registered.worker_key, bundle)
    shown = m.SealedReceipts(worker_id=worker.worker_id, token=token, arrived=arrived([lease_id]))
    settled = foreman.settle([shown], [leased.tasks[0].task_id])
    assert (settled.tasks[0].verdict, refusals(settled)) == ("pending", [0])


@pytest.mark.parametrize("credits", [0, 1, 10**15, 10**18])
def test_starting_credits_are_minted_and_credited_as_one(make_discovery: MakeDiscovery, credits: int) -> None:
    """However large: numbers that Lua would write as 1e+18 once left an account with credits nobody had minted."""
    caller = Caller(make_discovery(starting_credits=credits))
    assert totals(caller) == (credits, credits, 0)


def test_another_foreman_with_the_same_key_and_job_gets_other_keys(discovery: Discovery) -> None:
    foreman, _ = trio(discovery)
    other = Foreman(discovery)
    mine, theirs = foreman.lease(key="the-same-key"), other.lease(key="the-same-key")
    assert mine.tasks[0].task_id != theirs.tasks[0].task_id
    assert mine.program_key != theirs.program_key
    assert mine.poll_key != theirs.poll_key


def test_workers_of_another_python_are_not_leased(discovery: Discovery) -> None:
    foreman = Foreman(discovery)
    caller = Caller(discovery)
    body = m.RegisterWorker(worker_id="ab" * 8, boot_id="cd" * 8, port=1, slots=1, python="3.13")
    caller.call("POST", "/v1/workers", m.WorkerRegistered, body)
    leased = foreman.lease()
    assert (leased.tasks, leased.network.workers) == ([], 0)


# --- settlement -----------------------------------------------------------------------------------


def test_agreeing_workers_are_paid_and_a_liar_is_not_and_is_marked(discovery: Discovery) -> None:
    foreman, workers = trio(discovery)
    liar = workers[1]
    leased = foreman.lease(5, redundancy=3, quorum=2)
    shown = answer_all(leased, workers, lambda worker: WRONG if worker is liar else RIGHT)
    settled = foreman.settle(shown, [task.task_id for task in leased.tasks])
    for verdict in settled.tasks:
        assert (verdict.verdict, verdict.kind, verdict.commitment) == ("accepted", Kind.OK, RIGHT)
        assert {key.worker_id for key in verdict.keys} == {workers[0].worker_id, workers[2].worker_id}
        assert verdict.dissenters == [liar.worker_id]
    assert [worker.caller.state.earned for worker in workers] == [5, 0, 5]
    assert discovery.store.worker_counts(liar.worker_id)["dissented"] == 5
    assert discovery.store.worker_counts(workers[0].worker_id)["agreed"] == 5
    assert (foreman.state.spent, foreman.state.escrow) == (10, 0)
    minted, accounts, escrow = totals(foreman)
    assert (minted, escrow) == (accounts, 0)


def test_the_released_keys_are_those_in_the_workers_tickets(discovery: Discovery) -> None:
    foreman, workers = trio(discovery)
    leased = foreman.lease(redundancy=3, quorum=2)
    (verdict,) = foreman.settle(answer_all(leased, workers), [leased.tasks[0].task_id]).tasks
    for worker in workers:
        (ticket,) = worker.tickets(leased)
        assert [key.result_key for key in verdict.keys if key.lease_id == ticket.lease_id] == [ticket.result_key]


def test_no_key_before_payment(discovery: Discovery) -> None:
    """A foreman that has receipts of fewer than a quorum gets nothing it could read a result with."""
    foreman, workers = trio(discovery)
    leased = foreman.lease(redundancy=3, quorum=2)
    (verdict,) = foreman.settle(answer_all(leased, workers[:1]), [leased.tasks[0].task_id]).tasks
    assert (verdict.verdict, verdict.keys, verdict.commitment) == ("pending", [], b"")


def test_settling_again_gives_the_same_answer_and_pays_nobody_twice(discovery: Discovery) -> None:
    foreman, workers = trio(discovery)
    leased = foreman.lease(10, redundancy=2, quorum=2)
    decide = [task.task_id for task in leased.tasks]
    shown = answer_all(leased, workers)
    first = foreman.settle(shown, decide)
    earned = [worker.caller.state.earned for worker in workers]
    assert foreman.settle(shown, decide).tasks == first.tasks
    assert foreman.settle([], decide).tasks == first.tasks
    assert [worker.caller.state.earned for worker in workers] == earned
    assert sum(earned) == 20


def test_concurrent_settlements_of_the_same_tasks_pay_once(discovery: Discovery) -> None:
    foreman, workers = trio(discovery)
    leased = foreman.lease(40, redundancy=3, quorum=2)
    shown, decide = answer_all(leased, workers), [task.task_id for task in leased.tasks]
    answers: list[m.Settled] = []

    def settle() -> None:
        caller = Foreman(discovery, foreman.account)
        for _ in range(50):
            try:
                answers.append(caller.settle(shown, decide))
                return
            except Problem as problem:
                if problem.code != "conflict":
                    return

    threads = [threading.Thread(target=settle) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(answers) == 6
    assert all(answer.tasks == answers[0].tasks for answer in answers)
    assert [worker.caller.state.earned for worker in workers] == [40, 40, 40]


def test_after_the_grace_period_the_keys_are_gone(make_discovery: MakeDiscovery) -> None:
    discovery = make_discovery(settled_grace_s=0.3)
    foreman, workers = trio(discovery)
    leased = foreman.lease(redundancy=3, quorum=2)
    decide = [leased.tasks[0].task_id]
    assert foreman.settle(answer_all(leased, workers), decide).tasks[0].verdict == "accepted"
    time.sleep(0.4)
    discovery.sweep()
    (verdict,) = foreman.settle([], decide).tasks
    assert (verdict.verdict, verdict.keys) == ("unknown", [])
    assert discovery.store.load(decide)[1] == {}


def test_disagreement_asks_further_workers_until_enough_agree(discovery: Discovery) -> None:
    foreman = Foreman(discovery)
    workers = [Worker(Caller(discovery)) for _ in range(5)]
    leased = foreman.lease(redundancy=2, quorum=2)
    task_id = leased.tasks[0].task_id
    first = [worker for worker in workers if worker.tickets(leased)]
    shown = answer_all(leased, first, lambda worker: WRONG if worker is first[0] else RIGHT)
    settled = foreman.settle(shown, [task_id])
    (verdict,) = settled.tasks
    assert verdict.verdict == "more"
    assert verdict.task is not None
    assert verdict.task.input_key == leased.tasks[0].input_key
    (replica,) = verdict.task.replicas
    assert replica.worker_id not in {worker.worker_id for worker in first}
    third = next(worker for worker in workers if worker.worker_id == replica.worker_id)
    (final,) = foreman.settle(answer_all(settled, [third]), [task_id]).tasks
    assert final.verdict == "accepted"
    assert {key.worker_id for key in final.keys} == {first[1].worker_id, third.worker_id}
    assert first[0].caller.state.earned == 0
    assert foreman.state.escrow == 0


def test_where_nobody_agrees_it_ends_undecided_without_keys_and_the_escrow_goes_back(discovery: Discovery) -> None:
    foreman = Foreman(discovery)
    workers = [Worker(Caller(discovery)) for _ in range(4)]
    leased = foreman.lease(redundancy=2, quorum=2, max_replicas=3)
    task_id = leased.tasks[0].task_id
    shown = answer_all(leased, workers, lambda worker: worker.worker_id.encode()[:32])
    settled = foreman.settle(shown, [task_id])
    assert settled.tasks[0].verdict == "more"
    shown = answer_all(settled, workers, lambda worker: worker.worker_id.encode()[:32])
    settled = foreman.settle(shown, [task_id])
    assert settled.tasks[0].verdict == "undecided"
    assert settled.tasks[0].keys == []
    assert foreman.state.escrow == 0
    assert all(worker.heartbeat().open_leases == [] for worker in workers)
    assert all(worker.caller.state.earned == 0 for worker in workers)


def test_a_foreman_that_cannot_pay_on_ends_undecided(make_discovery: MakeDiscovery) -> None:
    discovery = make_discovery(starting_credits=2)
    foreman, workers = trio(discovery)
    leased = foreman.lease(redundancy=2, quorum=2)
    served = [worker for worker in workers if worker.tickets(leased)]
    shown = answer_all(leased, served, lambda worker: worker.worker_id.encode()[:32])
    (verdict,) = foreman.settle(shown, [leased.tasks[0].task_id]).tasks
    assert verdict.verdict == "undecided"
    assert foreman.state.balance == 2


def test_a_refusal_costs_nothing_and_another_worker_is_found(discovery: Discovery) -> None:
    foreman, workers = trio(discovery)
    leased = foreman.lease()
    (worker,) = [worker for worker in workers if worker.tickets(leased)]
    lease_id = leased.tasks[0].replicas[0].lease_id
    settled = foreman.settle([worker.receipts([lease_id], kind=Kind.REFUSED)], [leased.tasks[0].task_id])
    assert settled.tasks[0].verdict == "more"
    assert settled.tasks[0].task is not None
    assert settled.tasks[0].task.replicas[0].worker_id != worker.worker_id
    assert foreman.state.escrow == 1
    assert worker.caller.state.earned == 0


def test_an_error_all_agree_on_is_a_result_and_is_paid(discovery: Discovery) -> None:
    foreman, workers = trio(discovery)
    leased = foreman.lease(redundancy=3, quorum=2)
    lease = {worker.worker_id: worker.tickets(leased)[0].lease_id for worker in workers}
    shown = [
        workers[0].receipts([lease[workers[0].worker_id]], kind=Kind.ERROR),
        workers[1].receipts([lease[workers[1].worker_id]], kind=Kind.ERROR),
        workers[2].receipts([lease[workers[2].worker_id]], kind=Kind.OK),
    ]
    (verdict,) = foreman.settle(shown, [leased.tasks[0].task_id]).tasks
    assert (verdict.verdict, verdict.kind) == ("accepted", Kind.ERROR)
    assert [worker.caller.state.earned for worker in workers] == [1, 1, 0]


def test_a_lost_replica_is_replaced_and_its_escrow_stays_until_it_is_due(make_discovery: MakeDiscovery) -> None:
    discovery = make_discovery(min_timeout_s=0.1, min_cpu_limit_s=0.0, late_grace_s=0.2)
    foreman, workers = trio(discovery)
    leased = foreman.lease(timeout_s=0.1, cpu_limit_s=0.05)
    task_id, lost = leased.tasks[0].task_id, leased.tasks[0].replicas[0]
    settled = foreman.settle([], [task_id], [lost.lease_id])
    assert settled.tasks[0].verdict == "more"
    assert foreman.state.escrow == 2
    (verdict,) = foreman.settle(answer_all(settled, workers), [task_id]).tasks
    assert verdict.verdict == "accepted"
    assert foreman.state.escrow == 1
    time.sleep(0.4)
    discovery.sweep()
    assert foreman.state.escrow == 0
    gone = next(worker for worker in workers if worker.worker_id == lost.worker_id)
    assert gone.heartbeat().open_leases == []
    assert discovery.store.worker_counts(lost.worker_id)["expired"] == 1


# --- late and withheld receipts -------------------------------------------------------------------


def test_a_late_receipt_that_agrees_is_paid_and_one_that_does_not_is_refunded(discovery: Discovery) -> None:
    foreman = Foreman(discovery)
    workers = [Worker(Caller(discovery)) for _ in range(4)]
    leased = foreman.lease(redundancy=4, quorum=2)
    task_id = leased.tasks[0].task_id
    foreman.settle(answer_all(leased, workers[:2]), [task_id])
    assert foreman.state.escrow == 2
    late = answer_all(leased, workers[2:], lambda worker: RIGHT if worker is workers[2] else WRONG)
    (verdict,) = foreman.settle(late, [task_id]).tasks
    assert {key.worker_id for key in verdict.keys} == {worker.worker_id for worker in workers[:3]}
    assert [worker.caller.state.earned for worker in workers] == [1, 1, 1, 0]
    assert foreman.state.escrow == 0


def test_a_receipt_the_foreman_withheld_is_paid_when_its_worker_shows_it(discovery: Discovery) -> None:
    foreman, workers = trio(discovery)
    leased = foreman.lease(redundancy=3, quorum=2)
    foreman.settle(answer_all(leased, workers[:2]), [leased.tasks[0].task_id])
    cheated = workers[2]
    (ticket,) = cheated.tickets(leased)
    assert cheated.heartbeat().open_leases == [ticket.lease_id]
    answer = cheated.heartbeat(cheated.token([ticket.lease_id]))
    assert (answer.open_leases, answer.earned) == ([], 1)
    assert cheated.heartbeat(cheated.token([ticket.lease_id])).earned == 1, "showing it again pays nothing"


def test_a_receipt_shown_before_settlement_counts_once_its_result_arrived(discovery: Discovery) -> None:
    foreman, worker = Foreman(discovery), Worker(Caller(discovery))
    leased = foreman.lease()
    leases, decide = [leased.tasks[0].replicas[0].lease_id], [leased.tasks[0].task_id]
    worker.heartbeat(worker.token(leases))
    assert foreman.settle([], decide).tasks[0].verdict == "pending"
    assert worker.heartbeat().open_leases == leases
    assert foreman.settle([worker.receipts(leases)], decide).tasks[0].verdict == "accepted"
    assert worker.caller.state.earned == 1


def test_what_nobody_settles_goes_back_at_its_deadline_and_grace(make_discovery: MakeDiscovery) -> None:
    discovery = make_discovery(min_timeout_s=0.1, min_cpu_limit_s=0.0, late_grace_s=0.2, settled_grace_s=0.2)
    foreman, workers = trio(discovery)
    leased = foreman.lease(4, timeout_s=0.1, cpu_limit_s=0.05)
    discovery.sweep()
    assert foreman.state.escrow == 4, "nothing is due yet"
    time.sleep(0.4)
    discovery.sweep()
    assert (foreman.state.escrow, foreman.state.spent) == (0, 0)
    assert all(worker.heartbeat().open_leases == [] for worker in workers)
    settled = foreman.settle(answer_all(leased, workers), [leased.tasks[0].task_id])
    assert settled.tasks[0].verdict == "undecided"
    assert all(worker.caller.state.earned == 0 for worker in workers)
    time.sleep(0.3)
    discovery.sweep()
    assert discovery.store.load([task.task_id for task in leased.tasks])[1] == {}


# --- what strangers may not do --------------------------------------------------------------------


def test_forged_foreign_and_replayed_receipts_change_nothing(discovery: Discovery) -> None:
    foreman, workers = trio(discovery)
    leased = foreman.lease()
    (owner,) = [worker for worker in workers if worker.tickets(leased)]
    thief = next(worker for worker in workers if worker is not owner)
    lease_id = leased.tasks[0].replicas[0].lease_id
    forged = [
        owner.token([lease_id], key=os.urandom(32)),
        thief.token([lease_id], worker_id=owner.worker_id),
        thief.token([lease_id]),
        owner.token([lease_id], epoch=0),
        owner.token([lease_id], epoch=2),
        owner.token([lease_id])[:-2],
        b"",
        b"junk",
    ]
    shown = [m.SealedReceipts(worker_id=owner.worker_id, token=token, arrived=arrived([lease_id])) for token in forged]
    shown.append(thief.receipts([lease_id]))
    settled = foreman.settle(shown, [leased.tasks[0].task_id])
    assert refusals(settled) == list(range(len(shown)))
    assert (settled.tasks[0].verdict, settled.tasks[0].keys) == ("more", []), "its foreman has nothing that counts"
    record = discovery.store.load([leased.tasks[0].task_id])[1][leased.tasks[0].task_id]
    assert (record.replicas[0].state.value, record.replicas[0].kind) == ("open", None)
    assert foreman.state.escrow == 2
    assert all(worker.caller.state.earned == 0 for worker in workers)


def test_nobody_settles_or_reads_another_foremans_tasks(discovery: Discovery) -> None:
    foreman, workers = trio(discovery)
    leased = foreman.lease(redundancy=3, quorum=2)
    task_id = leased.tasks[0].task_id
    thief = Foreman(discovery)
    (verdict,) = thief.settle(answer_all(leased, workers), [task_id], [leased.tasks[0].replicas[0].lease_id]).tasks
    assert (verdict.verdict, verdict.keys) == ("unknown", [])
    assert foreman.state.escrow == 3
    (verdict,) = foreman.settle([], [task_id]).tasks
    assert verdict.verdict == "pending", "the thief's receipts and losses were not recorded"


def test_a_lease_id_of_a_replica_that_does_not_exist_changes_nothing(discovery: Discovery) -> None:
    foreman, worker = Foreman(discovery), Worker(Caller(discovery))
    leased = foreman.lease()
    task_id = leased.tasks[0].task_id
    for number in ("1", "7", "999"):
        foreman.settle([worker.receipts([f"{task_id}.{number}"])], [task_id], [f"{task_id}.{number}"])
    assert foreman.settle([], [task_id]).tasks[0].verdict == "pending"


BODIES: list[tuple[str, Callable[[], bytes]]] = [
    ("nothing", lambda: b""),
    ("not JSON", lambda: b"{"),
    ("an array", lambda: b"[]"),
    ("null", lambda: b"null"),
    ("empty object", lambda: b"{}"),
    ("not UTF-8", lambda: b'{"name":"\xff"}'),
    ("deep", lambda: b"[" * 50_000 + b"]" * 50_000),
    ("deep object", lambda: b'{"name":' * 50_000 + b"1" + b"}" * 50_000),
    ("huge number", lambda: b'{"name":' + b"9" * 5000 + b"}"),
    ("wrong types", lambda: json.dumps({name: {"x": [1]} for name in _all_fields()}).encode()),
    ("nulls", lambda: json.dumps(dict.fromkeys(_all_fields())).encode()),
    ("negative", lambda: json.dumps(dict.fromkeys(_all_fields(), -1)).encode()),
    ("long strings", lambda: json.dumps(dict.fromkeys(_all_fields(), "x" * 10_000)).encode()),
]


def _all_fields() -> list[str]:
    requests = [route.request for route in routes_of("discovery") if route.request]
    return sorted({name for request in requests for name in request.__struct_fields__})


@pytest.mark.parametrize("name, body", BODIES, ids=[name for name, _ in BODIES])
def test_malformed_bodies_get_a_reason_and_change_nothing(
    discovery: Discovery, redis_url: str, name: str, body: Callable[[], bytes]
) -> None:
    foreman, worker = Foreman(discovery), Worker(Caller(discovery))
    foreman.lease()
    client = redis.Redis.from_url(redis_url)
    before = {key: client.dump(key) for key in client.scan_iter()}
    for route in routes_of("discovery"):
        if route.request is None or (route.name, name) == ("create_account", "empty object"):
            continue
        path = route.path.replace("<worker_id>", worker.worker_id).replace("<job_id>", "ab" * 8)
        response = worker.caller.raw(route.method, path, body())
        assert 400 <= response.status_code < 500, (route.name, response.status_code)
        problem = m.decode(m.Problem, response.data)
        assert problem.detail
        assert problem.status == response.status_code
        assert response.content_type == "application/problem+json"
        assert worker.caller.raw(route.method, path, b"{}", **{"Content-Type": "text/plain"}).status_code == 415
    assert {key: client.dump(key) for key in client.scan_iter()} == before
    client.close()


def test_bodies_past_a_routes_limit_are_refused(discovery: Discovery) -> None:
    caller = Caller(discovery)
    for route in routes_of("discovery"):
        if route.request is not None:
            body = b'{"name":"' + b"x" * route.max_body_bytes + b'"}'
            path = route.path.replace("<worker_id>", "ab" * 8).replace("<job_id>", "ab" * 8)
            response = caller.raw(route.method, path, body)
            assert response.status_code == 413, route.name
            assert m.decode(m.Problem, response.data).code == "body-too-large"


def test_unknown_paths_and_methods_get_problems(discovery: Discovery) -> None:
    caller = Caller(discovery)
    assert m.decode(m.Problem, caller.raw("GET", "/v1/nothing").data).code == "not-found"
    response = caller.raw("PATCH", "/v1/tasks")
    assert m.decode(m.Problem, response.data).code == "method-not-allowed"
    assert "POST" in response.headers["Allow"]


def test_a_policy_that_contradicts_itself_is_refused(discovery: Discovery) -> None:
    foreman, _ = trio(discovery)
    policies: list[dict[str, Any]] = [{"quorum": 4, "max_replicas": 3}, {"redundancy": 5, "max_replicas": 4}]
    for policy in (*policies, {"redundancy": 0}):
        with pytest.raises(Problem, match="malformed-body"):
            foreman.lease(**policy)
    assert foreman.state.escrow == 0


def test_a_store_that_does_not_answer_is_a_503(discovery: Discovery, monkeypatch: pytest.MonkeyPatch) -> None:
    caller = Caller(discovery)
    dead = Store("redis://127.0.0.1:1/0")
    monkeypatch.setattr(discovery.store, "_redis", dead._redis)
    monkeypatch.setattr(discovery.store.accounts, "_redis", dead._redis)
    for path in ("/v1/health", "/", "/v1/account"):
        response = caller.raw("GET", path)
        assert response.status_code == 503
        assert m.decode(m.Problem, response.data).code == "unavailable"
        assert response.headers["Retry-After"]
    monkeypatch.undo()
