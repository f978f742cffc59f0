"""Backup tasks: one more replica while a straggler keeps its own; whichever comes first counts, both can be paid."""

from __future__ import annotations

import os
import time
from typing import Any

import pytest

from discovery.app import Discovery
from ec262.protocol import messages as m
from ec262.protocol.receipts import Kind
from tests.conftest import MakeDiscovery
from tests.parties import RIGHT, WRONG, Caller, Foreman, Worker


class Race:
    """A task that is out with a straggler, and its backup once it is asked for. Nobody has answered yet."""

    def __init__(self, discovery: Discovery, workers: int = 3, **lease: Any) -> None:
        self.discovery = discovery
        self.foreman = Foreman(discovery)
        self.workers = {w.worker_id: w for w in (Worker(Caller(discovery)) for _ in range(workers))}
        (task,) = self.foreman.lease(1, **lease).tasks
        self.task_id = task.task_id
        self.input_key = task.input_key
        (replica,) = task.replicas
        self.slow_lease, self.slow = replica.lease_id, self.workers[replica.worker_id]

    def ask(self) -> m.TaskVerdict:
        """Asks for a backup; where it is given, it is `quick`'s."""
        (verdict,) = self.foreman.settle([], [self.task_id], [self.slow_lease]).tasks
        if verdict.task is not None:
            (replica,) = verdict.task.replicas
            self.quick_lease, self.quick = replica.lease_id, self.workers[replica.worker_id]
        return verdict

    def show(self, worker: Worker, lease: str, answer: bytes = RIGHT, kind: Kind = Kind.OK) -> m.Settled:
        """The foreman shows a receipt and does not ask for a verdict."""
        return self.foreman.settle([worker.receipts([lease], answer, kind)])

    def decide(self) -> m.TaskVerdict:
        (verdict,) = self.foreman.settle([], [self.task_id]).tasks
        return verdict


def test_a_backup_goes_to_another_worker_and_takes_nothing_from_the_straggler(discovery: Discovery) -> None:
    race = Race(discovery)
    verdict = race.ask()
    assert verdict.verdict == "more"
    assert verdict.task is not None
    assert verdict.task.input_key == race.input_key, "what was sealed for the first serves the second"
    assert race.quick is not race.slow
    assert race.foreman.state.escrow == 2
    assert race.slow.heartbeat().open_leases == [race.slow_lease], "its slot stays taken"
    assert race.quick.heartbeat().open_leases == [race.quick_lease]
    assert race.decide().verdict == "pending"
    assert race.foreman.state.escrow == 2


def test_asking_again_after_an_answer_that_got_lost_gets_the_same_backup_and_costs_nothing(
    discovery: Discovery,
) -> None:
    race = Race(discovery)
    body = m.Settle(job_id=race.foreman.job_id, decide=[race.task_id], lost=[race.slow_lease])
    first, again = [race.foreman.call("POST", "/v1/settlements", m.Settled, body) for _ in range(2)]
    assert first.tasks == again.tasks
    assert race.ask().task == first.tasks[0].task
    assert race.quick.bundle(again) == race.quick.bundle(first)
    assert race.foreman.state.escrow == 2
    race.show(race.quick, race.quick_lease)
    assert race.ask().verdict == "accepted"
    assert race.ask().verdict == "accepted"


def test_the_backup_is_first_and_the_straggler_is_paid_when_it_agrees_late(discovery: Discovery) -> None:
    race = Race(discovery)
    race.ask()
    race.show(race.quick, race.quick_lease)
    verdict = race.decide()
    assert (verdict.verdict, [key.lease_id for key in verdict.keys]) == ("accepted", [race.quick_lease])
    assert race.foreman.state.escrow == 1
    settled = race.show(race.slow, race.slow_lease)
    assert settled.late == [m.LateReplica(lease_id=race.slow_lease, worker_id=race.slow.worker_id, paid=True)]
    assert race.slow.caller.state.earned == race.quick.caller.state.earned == 1
    assert (race.foreman.state.escrow, race.foreman.state.spent) == (0, 2)
    assert race.slow.heartbeat().open_leases == []


def test_the_straggler_is_first_and_its_backup_is_paid_when_it_agrees_late(discovery: Discovery) -> None:
    race = Race(discovery)
    race.ask()
    race.show(race.slow, race.slow_lease)
    verdict = race.decide()
    assert (verdict.verdict, [key.lease_id for key in verdict.keys]) == ("accepted", [race.slow_lease])
    settled = race.show(race.quick, race.quick_lease)
    assert [late.paid for late in settled.late] == [True]
    assert race.foreman.state.spent == 2


def test_both_come_at_once(discovery: Discovery) -> None:
    race = Race(discovery)
    race.ask()
    shown = [race.slow.receipts([race.slow_lease]), race.quick.receipts([race.quick_lease])]
    (verdict,) = race.foreman.settle(shown, [race.task_id]).tasks
    assert {key.lease_id for key in verdict.keys} == {race.slow_lease, race.quick_lease}
    assert race.foreman.state.spent == 2


def test_the_straggler_answers_in_the_request_that_gives_it_up(discovery: Discovery) -> None:
    race = Race(discovery)
    shown = [race.slow.receipts([race.slow_lease])]
    (verdict,) = race.foreman.settle(shown, [race.task_id], [race.slow_lease]).tasks
    assert verdict.verdict == "accepted"
    assert race.foreman.state.spent == 1, "nobody else was asked"


def test_a_late_answer_that_differs_is_not_paid(discovery: Discovery) -> None:
    race = Race(discovery)
    race.ask()
    race.show(race.quick, race.quick_lease)
    race.decide()
    settled = race.show(race.slow, race.slow_lease, WRONG)
    assert [late.paid for late in settled.late] == [False]
    assert race.slow.caller.state.earned == 0
    assert (race.foreman.state.escrow, race.foreman.state.spent) == (0, 1)


def test_a_straggler_whose_foreman_withholds_its_answer_shows_it_itself(discovery: Discovery) -> None:
    race = Race(discovery)
    race.ask()
    race.show(race.quick, race.quick_lease)
    race.decide()
    assert race.slow.heartbeat(race.slow.token([race.slow_lease])).earned == 1


def test_the_escrow_of_a_straggler_that_never_answers_comes_back_at_deadline_and_grace(
    make_discovery: MakeDiscovery,
) -> None:
    race = Race(make_discovery(min_timeout_s=0.2, late_grace_s=1.3), timeout_s=0.2, cpu_limit_s=0.1)
    race.ask()
    race.show(race.quick, race.quick_lease)
    race.decide()
    race.discovery.sweep()
    assert race.foreman.state.escrow == 1, "not before"
    time.sleep(1.6)
    race.discovery.sweep()
    assert (race.foreman.state.escrow, race.foreman.state.spent) == (0, 1)
    assert race.slow.heartbeat().open_leases == []
    assert race.show(race.slow, race.slow_lease).late == []
    assert race.slow.caller.state.earned == 0, "too late"


def test_a_straggler_that_confirms_that_it_was_cancelled_gives_the_escrow_back_at_once(discovery: Discovery) -> None:
    race = Race(discovery)
    race.ask()
    race.show(race.quick, race.quick_lease)
    race.decide()
    race.show(race.slow, race.slow_lease, kind=Kind.REFUSED)
    assert (race.foreman.state.escrow, race.foreman.state.spent) == (0, 1)
    assert race.slow.heartbeat().open_leases == []
    assert race.discovery.store.worker_counts(race.slow.worker_id)["expired"] == 0


def test_a_foreman_that_closes_gets_back_what_is_confirmed_and_the_rest_at_its_deadline(
    make_discovery: MakeDiscovery,
) -> None:
    race = Race(make_discovery(min_timeout_s=0.2, late_grace_s=0.1), timeout_s=0.2, cpu_limit_s=0.1)
    race.ask()
    race.show(race.quick, race.quick_lease, kind=Kind.REFUSED)
    assert race.foreman.state.escrow == 1
    time.sleep(0.4)
    race.discovery.sweep()
    assert (race.foreman.state.escrow, race.foreman.state.spent) == (0, 0)


def test_where_nobody_else_is_free_the_straggler_is_waited_for(discovery: Discovery) -> None:
    race = Race(discovery, workers=1)
    assert race.ask().verdict == "pending"
    assert race.foreman.state.escrow == 1
    race.show(race.slow, race.slow_lease)
    assert race.decide().verdict == "accepted"


def test_a_backup_that_cannot_be_paid_does_not_cost_the_straggler_its_task(make_discovery: MakeDiscovery) -> None:
    race = Race(make_discovery(starting_credits=1))
    assert race.ask().verdict == "pending"
    assert race.foreman.state.escrow == 1
    race.show(race.slow, race.slow_lease)
    assert race.decide().verdict == "accepted"
    assert race.slow.caller.state.earned == 1


def test_a_backup_has_backups_up_to_max_replicas(discovery: Discovery) -> None:
    race = Race(discovery, workers=4, max_replicas=3)
    seen = {race.slow.worker_id}
    for _ in range(2):
        assert race.ask().verdict == "more"
        assert race.quick.worker_id not in seen
        seen.add(race.quick.worker_id)
        race.slow, race.slow_lease = race.quick, race.quick_lease
    verdict = race.ask()
    assert verdict.verdict == "undecided"
    assert "no more may be asked" in verdict.reason


def test_two_of_three_that_lag_are_backed_up_one_by_one(discovery: Discovery) -> None:
    foreman, workers = Foreman(discovery), [Worker(Caller(discovery)) for _ in range(6)]
    by_id = {worker.worker_id: worker for worker in workers}
    (task,) = foreman.lease(1, redundancy=2, quorum=2).tasks
    first, second = task.replicas
    (verdict,) = foreman.settle([], [task.task_id], [first.lease_id]).tasks
    assert verdict.task is not None
    (third,) = verdict.task.replicas
    assert third.worker_id not in (first.worker_id, second.worker_id)
    shown = [by_id[r.worker_id].receipts([r.lease_id]) for r in (second, third)]
    (verdict,) = foreman.settle(shown, [task.task_id]).tasks
    assert verdict.verdict == "accepted"


@pytest.mark.parametrize("distinct", ["account", "account,address"])
def test_a_backup_is_as_distinct_as_any_replica(make_discovery: MakeDiscovery, distinct: str) -> None:
    discovery = make_discovery(network="public", distinct=distinct, starting_credits=0)
    owner = Caller(discovery)
    foreman = Foreman(discovery)
    discovery.store.books.mint("mint", foreman.account.account_id, 10, "bought: a gift buys nothing of neighbours")
    [Worker(owner) for _ in range(3)]  # all of one account and address
    (task,) = foreman.lease(1).tasks
    (verdict,) = foreman.settle([], [task.task_id], [task.replicas[0].lease_id]).tasks
    assert verdict.verdict == "pending"


@pytest.mark.parametrize("happens", ["lost", "started anew"])
def test_without_retries_nothing_is_leased_twice(discovery: Discovery, happens: str) -> None:
    race = Race(discovery, redundancy=1, quorum=1, max_replicas=1)
    if happens == "lost":
        verdict = race.ask()
    else:
        race.slow.boot_id = os.urandom(8).hex()
        race.slow.register()
        verdict = race.decide()
    assert (verdict.verdict, verdict.task, verdict.keys) == ("undecided", None, [])
    assert "1 workers were asked and 0 answered" in verdict.reason
    assert race.decide().verdict == "undecided", "and that is final"
    race.show(race.slow, race.slow_lease)
    assert race.foreman.state.escrow == 0, "an answer that comes all the same gives the escrow back"
    assert (race.foreman.state.spent, race.slow.caller.state.earned) == (0, 0)


def test_without_retries_a_task_that_was_refused_unrun_may_be_leased_to_another(discovery: Discovery) -> None:
    race = Race(discovery, redundancy=1, quorum=1, max_replicas=1)
    race.show(race.slow, race.slow_lease, kind=Kind.REFUSED)
    assert race.decide().verdict == "more"


def test_without_retries_the_escrow_of_a_lost_task_comes_back_at_its_deadline(make_discovery: MakeDiscovery) -> None:
    race = Race(make_discovery(min_timeout_s=0.2, late_grace_s=0.1), timeout_s=0.2, cpu_limit_s=0.1, max_replicas=1)
    assert race.ask().verdict == "undecided"
    assert race.foreman.state.escrow == 1
    time.sleep(0.4)
    race.discovery.sweep()
    assert (race.foreman.state.escrow, race.foreman.state.spent) == (0, 0)


def test_nobody_gets_a_backup_of_another_foremans_task(discovery: Discovery) -> None:
    race = Race(discovery)
    thief = Foreman(discovery)
    (verdict,) = thief.settle([], [race.task_id], [race.slow_lease]).tasks
    assert verdict.verdict == "unknown"
    assert race.decide().verdict == "pending", "it was not marked as lost either"
