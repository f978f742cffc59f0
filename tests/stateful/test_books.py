"""Any order of leases, receipts, settlements, losses, restarts and expiries: no credit appears or vanishes.

A state machine drives a real discovery over a real store. After every step the books add up; at every release of a key
the replica it belongs to was paid.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import redis
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from discovery.app import create_discovery
from discovery.ledger import totals, verify
from discovery.records import class_of
from discovery.settings import Settings
from ec262.protocol import messages as m
from ec262.protocol.receipts import Kind
from ec262.protocol.states import ReplicaState
from tests.clock import Clock
from tests.parties import RIGHT, WRONG, Caller, Foreman, Problem, Worker

STORE: dict[str, Any] = {}
"""Where the store and the keyring are; set by the test, because hypothesis makes the machines."""

TIMEOUT_S = 30

HAS: list[list[str]] = [[], ["data:books"], ["data:books", "data:maps"], ["executor:simulator", "data:maps"]]
"""What workers may come with, and foremen ask for."""


def fit(has: Sequence[str], wants: Sequence[str]) -> bool:
    """Whether a worker with these capabilities may serve a job that wants those."""
    executes = [any(each.startswith("executor:") for each in listed) for listed in (has, wants)]
    return set(wants) <= set(has) and executes[0] == executes[1]


class Books(RuleBasedStateMachine):
    """Two foremen, four workers, and whatever they do."""

    def __init__(self) -> None:
        super().__init__()
        client = redis.Redis.from_url(STORE["url"])
        client.flushall()
        client.close()
        self.discovery = create_discovery(
            Settings(
                starting_credits=30,
                min_timeout_s=TIMEOUT_S,
                late_grace_s=TIMEOUT_S,
                settled_grace_s=TIMEOUT_S,
                kept_job_s=TIMEOUT_S,
                hold_s=0.0,
                ttl_s=1e6,
                prefetch=4,
            ),
            STORE["url"],
            STORE["directory"],
        )
        self.clock = Clock(self.discovery.store)
        self.foremen: list[Foreman] = []
        self.workers: list[Worker] = []
        self.leased: list[tuple[Foreman, str, dict[str, str]]] = []
        self.accounts = 0
        self.wanted: dict[str, list[str]] = {}

    @initialize()
    def enter(self) -> None:
        """Everybody comes."""
        self.foremen = [Foreman(self.discovery) for _ in range(2)]
        self.workers = [Worker(Caller(self.discovery)) for _ in range(4)]
        self.accounts = 6

    @rule(
        foreman=st.integers(0, 1),
        count=st.integers(1, 4),
        redundancy=st.integers(1, 3),
        quorum=st.integers(1, 3),
        confidence=st.sampled_from([0.0, 0.0, 0.7, 0.95]),
        repeat=st.booleans(),
        wants=st.sampled_from([*HAS, [], [], []]),
    )
    def lease(
        self, foreman: int, count: int, redundancy: int, quorum: int, confidence: float, repeat: bool, wants: list[str]
    ) -> None:
        """A foreman leases, maybe twice with one key."""
        buyer = self.foremen[foreman]
        key = os.urandom(8).hex()
        try:
            leased = buyer.lease(
                count,
                key=key,
                redundancy=redundancy,
                quorum=quorum,
                confidence=confidence,
                max_replicas=4,
                timeout_s=TIMEOUT_S,
                cpu_limit_s=TIMEOUT_S / 2,
                capabilities=wants,
            )
        except Problem as problem:
            if problem.code != "insufficient-credits" or buyer.state.balance >= (1 if confidence else redundancy):
                raise
            return
        if repeat and leased.tasks:
            again = buyer.lease(
                count, key=key, redundancy=redundancy, quorum=quorum, confidence=confidence, max_replicas=4
            )
            assert [task.task_id for task in again.tasks] == [task.task_id for task in leased.tasks]
        assert leased.network.workers == sum(fit(worker.capabilities, wants) for worker in self.workers)
        for task in leased.tasks:
            self.wanted[task.task_id] = wants
            self.check_fit(task)
            self.leased.append((buyer, task.task_id, {r.lease_id: r.worker_id for r in task.replicas}))

    @precondition(lambda self: self.leased)
    @rule(
        pick=st.integers(0, 1000),
        lies=st.lists(st.booleans(), min_size=4, max_size=4),
        silent=st.lists(st.booleans(), min_size=4, max_size=4),
        kind=st.sampled_from([Kind.OK, Kind.OK, Kind.ERROR, Kind.REFUSED]),
        decide=st.booleans(),
        lost=st.booleans(),
        thief=st.booleans(),
    )
    def settle(
        self, pick: int, lies: list[bool], silent: list[bool], kind: Kind, decide: bool, lost: bool, thief: bool
    ) -> None:
        """A foreman shows receipts of some replicas and asks for a verdict; or another tries to."""
        buyer, task_id, leases = self.leased[pick % len(self.leased)]
        asker = next(f for f in self.foremen if f is not buyer) if thief else buyer
        shown = []
        for number, worker in enumerate(self.workers):
            mine = [lease for lease, worker_id in leases.items() if worker_id == worker.worker_id]
            if mine and not silent[number]:
                shown.append(worker.receipts(mine, WRONG if lies[number] else RIGHT, kind))
        gone = [lease for n, lease in enumerate(leases) if silent[n % 4]] if lost else []
        settled = asker.settle(shown, [task_id] if decide else [], gone)
        for verdict in settled.tasks:
            if thief:
                assert (verdict.verdict, verdict.keys) == ("unknown", [])
                continue
            if verdict.verdict != "accepted":
                assert verdict.keys == []
            if verdict.task is not None:
                self.check_fit(verdict.task)
                leases.update({r.lease_id: r.worker_id for r in verdict.task.replicas})
            again = asker.settle([], [task_id]).tasks[0]
            # Once it is overturned nobody gets its keys any more.
            if again.verdict == "accepted" or verdict.verdict != "accepted":
                assert again.keys[: len(verdict.keys)] == verdict.keys
            else:
                assert (again.verdict, again.keys) in (("undecided", []), ("unknown", []))

    @precondition(lambda self: self.leased)
    @rule(pick=st.integers(0, 1000), worker=st.integers(0, 3), lie=st.booleans())
    def show(self, pick: int, worker: int, lie: bool) -> None:
        """A worker shows a receipt with its heartbeat."""
        _, _, leases = self.leased[pick % len(self.leased)]
        shower = self.workers[worker]
        mine = [lease for lease, worker_id in leases.items() if worker_id == shower.worker_id]
        shower.heartbeat(shower.token(mine, WRONG if lie else RIGHT))

    @precondition(lambda self: self.leased)
    @rule(pick=st.integers(0, 1000), lease=st.integers(0, 10))
    def back_up(self, pick: int, lease: int) -> None:
        """A foreman wants a further replica of a task, without one that is out."""
        buyer, task_id, leases = self.leased[pick % len(self.leased)]
        slow = sorted(leases)[lease % len(leases)]
        (verdict,) = buyer.settle([], [task_id], [slow]).tasks
        if verdict.task is not None:
            assert verdict.verdict == "more"
            self.check_fit(verdict.task)
            assert leases[slow] not in {replica.worker_id for replica in verdict.task.replicas} or self.is_over(slow)
            leases.update({r.lease_id: r.worker_id for r in verdict.task.replicas})

    @precondition(lambda self: self.leased)
    @rule(pick=st.integers(0, 1000), lease=st.integers(0, 10), thief=st.booleans())
    def dispute(self, pick: int, lease: int, thief: bool) -> None:
        """A foreman disputes a result, paid or not, with tokens that the receipt does or does not name."""
        buyer, _, leases = self.leased[pick % len(self.leased)]
        asker = next(f for f in self.foremen if f is not buyer) if thief else buyer
        token = b"x" * 40
        body = m.Dispute(
            job_id=asker.job_id,
            lease_id=sorted(leases)[lease % len(leases)],
            digests=[hashlib.sha256(token).digest()],
            tokens=[m.ShownToken(position=0, token=token)],
        )
        before = self.discovery.store.balances()
        try:
            done = asker.call("POST", "/v1/disputes", m.Disputed, body)
        except Problem as problem:
            if problem.code not in ("unknown-task", "insufficient-credits"):
                raise
            return
        assert not thief
        assert done.verdict == "unproven"
        assert self.discovery.store.balances() == before

    @precondition(lambda self: self.leased)
    @rule(pick=st.integers(0, 1000), worker=st.integers(0, 3))
    def deny(self, pick: int, worker: int) -> None:
        """A worker says that it was never pushed some leases, its own or not."""
        _, _, leases = self.leased[pick % len(self.leased)]
        denier = self.workers[worker]
        before = denier.caller.state.earned
        body = m.Heartbeat(boot_id=denier.boot_id, unseen=sorted(leases))
        path = f"/v1/workers/{denier.worker_id}/heartbeats"
        denier.caller.call("POST", path, m.HeartbeatAnswer, body)
        assert denier.caller.state.earned == before

    @rule(foreman=st.integers(0, 1), closing=st.booleans(), heard=st.booleans())
    def audit(self, foreman: int, closing: bool, heard: bool) -> None:
        """A foreman asks whether its tasks hold, and maybe closes its job."""
        mine = [task_id for buyer, task_id, _ in self.leased if buyer is self.foremen[foreman]]
        audited = self.foremen[foreman].audit(mine[-1000:], closing=closing)
        assert not (audited.closed and (audited.recompute or audited.unknown))
        again = self.foremen[foreman].settle(heard=audited.recompute if heard else []).recompute
        assert set(again) <= (set() if heard else set(audited.recompute))

    @rule(worker=st.integers(0, 3), anew=st.booleans(), has=st.sampled_from([None, *HAS]))
    def register(self, worker: int, anew: bool, has: list[str] | None) -> None:
        """A worker registers again, as it was or started anew, maybe with other capabilities."""
        if anew:
            self.workers[worker].boot_id = os.urandom(8).hex()
        if has is not None:
            self.workers[worker].capabilities = has
        self.workers[worker].register()

    @rule(worker=st.integers(0, 3))
    def leave_and_return(self, worker: int) -> None:
        """A worker leaves the pool and comes back."""
        leaver = self.workers[worker]
        assert leaver.caller.raw("DELETE", f"/v1/workers/{leaver.worker_id}").status_code == 204
        leaver.register()

    def lift(self) -> None:
        """Ends bans: who is banned can do nothing at all, and a machine of such workers would stand still."""
        for worker in self.workers:
            account_id = worker.caller.account.account_id
            if self.discovery.store.accounts.record(account_id).banned:
                self.discovery.end_leases()
                assert self.discovery.store.accounts.unban(account_id, "operator")
                worker.register()

    def check_fit(self, task: m.LeasedTask) -> None:
        """Nobody is given what it cannot compute."""
        has = {worker.worker_id: worker.capabilities for worker in self.workers}
        for replica in task.replicas:
            assert fit(has[replica.worker_id], self.wanted[task.task_id])

    def is_over(self, lease_id: str) -> bool:
        """Whether a replica expired, so that its worker may have the task again."""
        task_id, number = lease_id.split(".")
        return self.discovery.store.load([task_id])[1][task_id].replicas[int(number)].state is ReplicaState.EXPIRED

    @rule(wait=st.booleans())
    def sweep(self, wait: bool) -> None:
        """Time passes."""
        if wait:
            self.clock.move(2 * TIMEOUT_S + 1)
        self.discovery.sweep()

    @invariant()
    def the_books_add_up(self) -> None:
        """Conservation at every instant, nobody below zero, and nobody holds more leases than it may."""
        self.lift()
        minted, burnt, accounts, escrow = totals(self.discovery.store)
        assert minted == 30 * self.accounts
        assert accounts + escrow == minted - burnt
        balances, escrows = self.discovery.store.balances()
        assert all(amount >= 0 for place, amount in balances.items() if place != "mint")
        assert all(amount > 0 for amount in escrows.values())
        for worker in self.workers:
            assert len(worker.heartbeat().open_leases) <= 4

    @invariant()
    def the_index_is_true(self) -> None:
        """Who is alive and has a slot free stands in the pools of all it has, and nobody else in any."""
        self.lift()
        store = self.discovery.store
        records = store.workers([worker.worker_id for worker in self.workers])
        for wants in HAS:
            free = {
                worker.worker_id
                for worker in self.workers
                if fit(worker.capabilities, wants) and records[worker.worker_id].free
            }
            drawn = store.sample(class_of("native", "3.11", wants), sorted(wants), 64).workers
            assert {worker.worker_id for worker in drawn} == free

    def teardown(self) -> None:
        """In the end everything falls due, nothing stays in escrow, and the ledger agrees."""
        if self.accounts:
            self.clock.move(2 * TIMEOUT_S + 1)
            self.discovery.sweep()
            self.clock.move(TIMEOUT_S + 1)
            self.discovery.sweep()
            audit = verify(self.discovery.store)
            assert audit.faults == []
            assert audit.escrow == 0
            assert self.discovery.store.load([task_id for _, task_id, _ in self.leased])[1] == {}
            assert all(worker.heartbeat().open_leases == [] for worker in self.workers)
        self.discovery.store.close()


def check_books(redis_url: str, directory: Path, examples: int, steps: int) -> None:
    """Runs the machine."""
    STORE.update(url=redis_url, directory=directory)
    chosen = settings(
        max_examples=examples,
        stateful_step_count=steps,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        print_blob=True,
    )
    run_state_machine_as_test(Books, settings=chosen)


def test_the_books_add_up_whatever_happens(redis_url: str, tmp_path: Path) -> None:
    check_books(redis_url, tmp_path, examples=15, steps=25)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_books_add_up_in_ten_thousand_steps(redis_url: str, tmp_path: Path) -> None:
    check_books(redis_url, tmp_path, examples=250, steps=50)
