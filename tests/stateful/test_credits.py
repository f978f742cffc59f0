"""Every way in which credits move, in any order, against a real store: none appears, vanishes or is paid for nothing.

Where `test_books` is about leases and the index of workers, this machine is about money: prices of one's own, pay that
vests, effort fees, honest and junk results and disputes of both, results that do not arrive or of which that is said,
transfers, minting and burning, bans, archive moves.
The ledger's entries are read as they appear: each movement has to be one that somebody had a right to.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter, defaultdict
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

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
from discovery.archive.entry import decode_entry
from discovery.archive.mover import Mover
from discovery.ledger import verify
from discovery.records import TaskRecord, split_lease
from discovery.settings import Settings
from ec262.protocol import messages as m
from ec262.protocol.canonical import encode_value
from ec262.protocol.framing import frame_parts
from ec262.protocol.receipts import (
    Kind,
    Receipt,
    ReceiptBundle,
    digests_of,
    failure_commitment,
    result_commitment,
    seal_receipts,
    tokens_digest,
)
from ec262.protocol.sealing import seal
from ec262.protocol.states import ReplicaState
from ec262.protocol.tickets import Ticket
from tests.adversary.scene import At
from tests.clock import Clock
from tests.parties import Caller, Foreman, Problem, Worker

STORE: dict[str, Any] = {}
"""Where the store and the keyrings are; set by the test, because hypothesis makes the machines."""

FOREMEN, WORKERS = 2, 5
STARTING = 100
UNITS = 2
TIMEOUT_S = 240
"""The nearest deadline there is for so much work."""
SEGMENT_BYTES = 2000

Answer = Literal["right", "wrong", "junk", "error", "refused", "undelivered", "tokenless"]
ANSWERS = st.sampled_from(
    ["right", "right", "right", "right", "junk", "junk", "wrong", "error", "refused", "undelivered", "tokenless"]
)
ROUNDS = st.lists(st.none() | ANSWERS | ANSWERS | ANSWERS, min_size=WORKERS, max_size=WORKERS) | st.tuples(
    st.integers(0, WORKERS - 1), st.none() | ANSWERS
).map(lambda one: [one[1] if n == one[0] else "right" for n in range(WORKERS)])
"""What each worker answers in a settlement, anything or all but one rightly; None: nothing."""
DENIES = st.sampled_from([0, 0, 0, 0, 1, WORKERS])
"""Of how many results that arrived a foreman says that others did."""
SELDOM = st.sampled_from([False, False, False, False, True])
WAS_PAID = (ReplicaState.PAID, ReplicaState.FORFEITED, ReplicaState.RECLAIMED)
FACTS = encode_value({"type": "ValueError", "message": "no", "line": "3", "traceback": ""})
PARTS = {
    "right": [b"right"],
    "wrong": [b"wrong"],
    "junk": [b"right"],
    "error": [FACTS],
    "refused": [b"refused"],
    "undelivered": [b"right"],
    "tokenless": [b"right"],
}


def number_of(lease_id: str) -> int:
    """The replica's number in its task."""
    return split_lease(lease_id)[1]


class Idle(Mover):
    """Archives nothing with a sweep: what is archived was read here before (`Credits.archive`)."""

    def move(self) -> int:
        return 0


class Seller(Worker):
    """A worker that asks a price."""

    ask = 1

    def register(self) -> None:
        body = m.RegisterWorker(
            worker_id=self.worker_id, boot_id=self.boot_id, port=1, slots=1, python="3.11", ask=self.ask
        )
        self.registered = self.caller.call("POST", "/v1/workers", m.WorkerRegistered, body)


@dataclass
class Replica:
    """A lease as its worker knows it. A worker answers each once.

    Attributes:
        epoch: of its worker when it got the lease.
        tokens: what the worker delivered; ``undelivered``: other bytes than its receipt names.
        shown: discovery was shown a receipt of it by which it may be paid.
        arrived: and its foreman said that the result arrived.
    """

    ticket: Ticket
    buyer: Foreman
    seller: Seller
    epoch: int
    answer: Answer | None = None
    receipt: Receipt | None = None
    tokens: tuple[bytes, ...] = ()
    shown: bool = False
    arrived: bool = False

    @property
    def task_id(self) -> str:
        return self.ticket.lease_id.split(".")[0]

    def make(self, answer: Answer) -> Receipt:
        """Its worker's receipt, made the first time."""
        if self.receipt is None:
            framed = frame_parts(PARTS[answer])
            self.answer = answer
            self.tokens = (os.urandom(60) if answer == "junk" else seal(self.ticket.result_key, framed),)
            digests = [] if answer in ("refused", "tokenless") else digests_of(self.tokens)
            if answer == "undelivered":
                self.tokens = (os.urandom(60),)
            kind = {"error": Kind.ERROR, "refused": Kind.REFUSED}.get(answer, Kind.OK)
            committed = result_commitment(PARTS[answer])
            if kind is Kind.ERROR:
                committed = failure_commitment(kind, "ValueError", "3")
            self.receipt = Receipt(self.ticket.lease_id, kind, committed, digests, 0.5)
        return self.receipt

    def sealed(self, answer: Answer) -> bytes:
        """The receipt as it travels; whoever asks for it shows it to discovery."""
        receipt = self.make(answer)
        epoch = self.seller.registered.epoch
        self.shown |= bool(receipt.token_digests) and epoch == self.epoch
        return seal_receipts(self.seller.registered.worker_key, ReceiptBundle(self.seller.worker_id, epoch, [receipt]))

    def settled_with(self, answer: Answer, *, denied: bool) -> m.SealedReceipts:
        """The receipt as its foreman shows it, with what arrived; or it says that other bytes did."""
        token = self.sealed(answer)
        assert self.receipt is not None
        arrived = os.urandom(32) if denied else tokens_digest(digests_of(self.tokens))
        true = self.shown and self.seller.registered.epoch == self.epoch
        self.arrived |= true and arrived == tokens_digest(self.receipt.token_digests)
        return m.SealedReceipts(worker_id=self.seller.worker_id, token=token, arrived={self.ticket.lease_id: arrived})


class Credits(RuleBasedStateMachine):
    """Two foremen, five workers, an operator, and whatever they do."""

    def __init__(self) -> None:
        super().__init__()
        self.ready = False

    @initialize(
        network=st.sampled_from(["private", "public"]),
        distinct=st.sampled_from(["account", "account,address"]),
        grace_s=st.sampled_from([TIMEOUT_S, 10 * TIMEOUT_S]),
    )
    def enter(
        self, network: Literal["private", "public"], distinct: Literal["account", "account,address"], grace_s: float
    ) -> None:
        """Everybody comes, from networks of their own; but the first worker is the first foreman's neighbour."""
        client = redis.Redis.from_url(STORE["url"])
        client.flushall()
        client.close()
        home = Path(STORE["directory"]) / os.urandom(8).hex()
        self.discovery = create_discovery(
            Settings(
                network=network,
                distinct=distinct,
                starting_credits=STARTING,
                min_timeout_s=TIMEOUT_S,
                late_grace_s=TIMEOUT_S,
                settled_grace_s=grace_s,
                kept_job_s=2 * grace_s,
                ttl_s=1e6,
                hold_s=0.0,
                hold_leases=2,
                hold_cap=3,
                prefetch=4,
            ),
            STORE["url"],
            home,
        )
        self.store = self.discovery.store
        self.discovery = replace(self.discovery, mover=Idle(self.store.books, home / "ledger"))
        self.clock = Clock(self.store)
        self.archive_at = home / "ledger"
        self.foremen: list[Foreman] = [At(self.discovery, f"198.51.{number}.1") for number in range(FOREMEN)]
        homes = ["198.51.0.7", *(f"203.0.{number}.1" for number in range(1, WORKERS))]
        self.workers = [Seller(At(self.discovery, home)) for home in homes]
        self.parties: list[Caller] = [*self.foremen, *(worker.caller for worker in self.workers)]
        self.replicas: dict[str, Replica] = {}
        self.inputs: dict[str, bytes] = {}
        self.minted, self.burnt = STARTING * len(self.parties), 0
        self.mover = self.new_mover()
        self.read_upto = "-"
        self.paid: Counter[str] = Counter()
        self.received: defaultdict[tuple[str, str], int] = defaultdict(int)
        self.hold_fees = 0
        self.reclaimed: set[str] = set()
        self.own: Counter[str] = Counter({self.id_of(party): 0 for party in self.parties})
        self.between: list[tuple[str, str, int]] = []
        # This mover has the archive from now on: discovery's own, for which hours pass within a sweep, would take
        # entries away that were not read yet.
        self.read_ledger()
        assert self.mover.move() > 0
        self.ready = True
        STORE["examples"] += 1

    def new_mover(self) -> Mover:
        return Mover(self.store.books, self.archive_at, settle_s=0, wait_s=0, post_share=1, segment_bytes=SEGMENT_BYTES)

    def id_of(self, party: Caller) -> str:
        return party.account.account_id

    def is_banned(self, party: Caller) -> bool:
        return bool(self.store.accounts.record(self.id_of(party)).banned)

    def allowed(self, problem: Problem, party: Caller, *codes: str) -> None:
        """Whether a party was refused rightly."""
        if problem.code == "banned":
            assert self.is_banned(party)
        elif problem.code not in codes:
            raise problem

    # --- tasks ---

    def note(self, buyer: Foreman, answer: m.Leased | m.Settled) -> None:
        """Workers get their tickets."""
        for worker in self.workers:
            for ticket in worker.tickets(answer):
                known = self.replicas.setdefault(
                    ticket.lease_id, Replica(ticket, buyer, worker, worker.registered.epoch)
                )
                assert known.ticket == ticket, "the same lease, and another ticket"

    def lease_from(self, buyer: Foreman, count: int, **terms: Any) -> m.Leased | None:
        """Leases, if the foreman can pay."""
        before, bound = buyer.state, self.bound(buyer)
        try:
            leased = buyer.lease(count, cpu_limit_s=UNITS * 60.0, max_replicas=4, timeout_s=TIMEOUT_S, **terms)
        except Problem as problem:
            self.allowed(problem, buyer, "insufficient-credits")
            assert buyer.state == before
            return None
        replicas = [replica for task in leased.tasks for replica in task.replicas]
        assert leased.balance == before.balance - sum(replica.price for replica in replicas)
        assert all(UNITS <= replica.price <= leased.price for replica in replicas)
        self.note(buyer, leased)
        self.no_neighbour(leased, bound)
        return leased

    def bound(self, buyer: Foreman) -> bool:
        """Whether the neighbour's worker may not serve a foreman now."""
        settings, key = self.discovery.settings, "{ec}:account:" + self.id_of(buyer)
        granted, spent = self.store._redis.hmget(key, ["granted", "spent"])
        return settings.gifts_bound and buyer is self.foremen[0] and int(granted or 0) > int(spent or 0)

    def no_neighbour(self, answer: m.Leased | m.Settled, bound: bool) -> None:
        """A gift buys nothing of neighbours."""
        assert not (bound and self.workers[0].tickets(answer)), "a gift bought a neighbour's work"

    @rule(
        foreman=st.integers(0, FOREMEN - 1),
        count=st.integers(1, 2),
        copies=st.sampled_from([1, 2, 3, 3]),
        confidence=st.sampled_from([0.0, 0.7, 0.95]),
        offer=st.integers(1, 2),
        twice=SELDOM,
        answers=st.none() | ROUNDS | ROUNDS,
        denies=DENIES,
    )
    def lease(
        self,
        foreman: int,
        count: int,
        copies: int,
        confidence: float,
        offer: int,
        twice: bool,
        answers: list[Answer | None] | None,
        denies: int,
    ) -> None:
        """A foreman leases, maybe twice with one key, and maybe settles at once."""
        buyer, key = self.foremen[foreman], os.urandom(8).hex()
        terms: dict[str, Any] = {"redundancy": copies, "quorum": (copies + 1) // 2}
        terms |= {"confidence": confidence, "offer": offer}
        leased = self.lease_from(buyer, count, key=key, **terms)
        if leased is None:
            return
        for number, task in enumerate(leased.tasks):
            self.inputs[task.task_id] = hashlib.sha256(f"{key} {number}".encode()).digest()
        if twice and leased.tasks:
            before = self.store.balances()
            again = buyer.lease(count, key=key, cpu_limit_s=UNITS * 60.0, max_replicas=4, **terms)
            assert [task.task_id for task in again.tasks] == [task.task_id for task in leased.tasks]
            assert self.store.balances() == before
        if answers is not None:
            for task in leased.tasks:
                self.settle_task(task.task_id, buyer, answers, denies=denies)

    @precondition(lambda self: self.replicas)
    @rule(
        pick=st.integers(0, 1000),
        answers=ROUNDS,
        undecided=SELDOM,
        lost=st.booleans(),
        thief=SELDOM,
        denies=DENIES,
    )
    def settle(
        self, pick: int, answers: list[Answer | None], undecided: bool, lost: bool, thief: bool, denies: int
    ) -> None:
        """A foreman shows receipts and asks for a verdict, and may deny that results arrived; or another tries to."""
        replica = self.pick(pick)
        self.settle_task(
            *(replica.task_id, replica.buyer, answers), decide=not undecided, lost=lost, thief=thief, denies=denies
        )

    def settle_task(
        self,
        task_id: str,
        buyer: Foreman,
        answers: list[Answer | None],
        *,
        decide: bool = True,
        lost: bool = False,
        thief: bool = False,
        denies: int = 0,
    ) -> None:
        asker = self.other(buyer) if thief else buyer
        mine = [replica for replica in self.replicas.values() if replica.task_id == task_id]
        shown: list[m.SealedReceipts] = []
        gone = []
        for replica in mine:
            answer = answers[self.workers.index(replica.seller)]
            if answer is None:
                gone.append(replica.ticket.lease_id)
            elif not thief:
                shown.append(replica.settled_with(answer, denied=len(shown) < denies))
        bound = self.bound(buyer)
        try:
            settled = asker.settle(shown, [task_id] if decide else [], gone if lost else [])
        except Problem as problem:
            for replica in mine:  # nothing was recorded, whatever was shown
                replica.shown = replica.shown and self.record_of(replica) is not None
                replica.arrived = replica.arrived and replica.shown
            self.allowed(problem, asker)
            return
        if thief:
            assert [(verdict.verdict, verdict.keys) for verdict in settled.tasks] == [("unknown", [])] * decide
            return
        self.note(buyer, settled)
        self.no_neighbour(settled, bound)
        self.read_ledger()
        for verdict in settled.tasks:
            assert verdict.verdict == "accepted" or verdict.keys == []
            assert {key.lease_id for key in verdict.keys} <= set(self.replicas)
            if verdict.verdict == "accepted":
                assert any(self.replicas[lease_id].arrived for lease_id in self.paid_of(task_id)), "for bytes of nobody"
            for key in verdict.keys:
                replica = self.replicas[key.lease_id]
                assert key.result_key == replica.ticket.result_key
                assert replica.shown, "a key of a replica of which no receipt was shown"
                assert self.paid_in(task_id, replica.seller) >= replica.ticket.price, "a key that was not paid"

    @precondition(lambda self: self.replicas)
    @rule(pick=st.integers(0, 1000), answer=ANSWERS, unseen=SELDOM, strange=SELDOM)
    def heartbeat(self, pick: int, answer: Answer, unseen: bool, strange: bool) -> None:
        """A worker shows a receipt that its foreman withheld, or another's; or says that it never saw the lease."""
        replica = self.pick(pick)
        teller = next(worker for worker in self.workers if worker is not replica.seller) if strange else replica.seller
        body = m.Heartbeat(boot_id=teller.boot_id, unseen=[replica.ticket.lease_id])
        if not unseen:
            body = m.Heartbeat(boot_id=teller.boot_id, receipts=[replica.sealed(answer)])
        before = self.store.accounts.record(self.id_of(teller.caller)).earned
        try:
            path = f"/v1/workers/{teller.worker_id}/heartbeats"
            teller.caller.call("POST", path, m.HeartbeatAnswer, body)
        except Problem as problem:
            self.allowed(problem, teller.caller, "unknown-worker")
        if unseen or strange:
            assert self.store.accounts.record(self.id_of(teller.caller)).earned == before

    @precondition(lambda self: self.replicas)
    @rule(pick=st.integers(0, 1000), forged=SELDOM, thief=SELDOM)
    def dispute(self, pick: int, forged: bool, thief: bool) -> None:
        """A foreman disputes honest bytes, junk, or bytes of its own making; mostly of what was paid."""
        paid = [each for each in self.replicas.values() if self.paid_in(each.task_id, each.seller)]
        replica = self.pick(pick, paid if pick % 4 else None)
        asker = self.other(replica.buyer) if thief else replica.buyer
        forged = forged or not replica.tokens
        tokens = [os.urandom(50)] if forged else list(replica.tokens)
        body = m.Dispute(
            job_id=asker.job_id,
            lease_id=replica.ticket.lease_id,
            digests=digests_of(tokens),
            tokens=[m.ShownToken(position=position, token=token) for position, token in enumerate(tokens)],
        )
        record = self.record_of(replica)
        judged = record.replicas[number_of(replica.ticket.lease_id)].disputed if record else ""
        before = self.store.balances()[0]
        try:
            done = asker.call("POST", "/v1/disputes", m.Disputed, body)
        except Problem as problem:
            self.allowed(problem, asker, "unknown-task")
            assert self.store.balances()[0] == before
            return
        assert not thief
        right = {"junk": "upheld", "undelivered": "unproven"}.get(str(replica.answer), "refused")
        assert done.verdict == (judged or ("unproven" if forged else right))
        moved: dict[str, int] = {}
        if not judged and done.verdict == "upheld":
            assert done.refund in (0, replica.ticket.price)
            moved = self.expect(replica.seller.caller, replica.buyer, done.refund)
            self.own[self.id_of(replica.seller.caller)] -= done.refund
        elif not judged and done.verdict == "refused":
            moved = self.expect(replica.buyer, replica.seller.caller, done.fee)
            self.own[self.id_of(replica.seller.caller)] += done.fee
        after = self.store.balances()[0]
        assert {place: after[place] - before[place] for place in after if after[place] != before[place]} == moved

    @rule(foreman=st.integers(0, FOREMEN - 1), closing=st.booleans(), heard=st.booleans())
    def audit(self, foreman: int, closing: bool, heard: bool) -> None:
        """A foreman asks whether its tasks hold, and maybe closes its job."""
        asker = self.foremen[foreman]
        mine = list(dict.fromkeys(each.task_id for each in self.replicas.values() if each.buyer is asker))
        before = self.store.balances()
        back = 0
        try:
            audited = asker.audit(mine[-1000:], closing=closing)
            assert not (audited.closed and (audited.recompute or audited.unknown))
            back = sum(each.amount for each in audited.refunded)
            asker.settle(heard=audited.recompute if heard else [])
        except Problem as problem:
            self.allowed(problem, asker)
        # What went back was a convicted worker's: `reclaim` looks at each movement.
        assert back or self.store.balances() == before

    @rule(foreman=st.integers(0, FOREMEN - 1))
    def recompute(self, foreman: int) -> None:
        """A foreman leases anew what no longer holds."""
        buyer = self.foremen[foreman]
        try:
            olds = [old for old in buyer.settle().recompute if old in self.inputs][:3]
        except Problem as problem:
            self.allowed(problem, buyer)
            return
        if olds:
            again = [(old, self.inputs[old]) for old in olds]
            leased = self.lease_from(buyer, len(olds), confidence=0.7, again=again)
            for task, old in zip(leased.tasks if leased else [], olds, strict=False):
                self.inputs[task.task_id] = self.inputs[old]

    # --- credits ---

    @rule(
        sender=st.integers(0, FOREMEN + WORKERS - 1),
        to=st.integers(0, FOREMEN + WORKERS - 1),
        amount=st.integers(1, 12),
        most=st.booleans(),
        twice=st.booleans(),
    )
    def transfer(self, sender: int, to: int, amount: int, most: bool, twice: bool) -> None:
        """An account sends credits, maybe all that it may, maybe to itself, maybe twice with one key."""
        giver, taker = self.parties[sender], self.parties[to]
        may = self.store.books.holdings(self.id_of(giver)).transferable
        amount = max(1, may) if most else amount
        body = m.Transfer(to=self.id_of(taker), amount=amount, idempotency_key=os.urandom(8).hex())
        before = self.store.balances()[0]
        done = 0
        for _ in range(2 if twice else 1):
            try:
                giver.call("POST", "/v1/transfers", m.Transferred, body)
                done = 1
            except Problem as problem:
                here = [
                    *(["malformed-body"] if giver is taker else []),
                    *(["insufficient-credits"] if amount > may else []),
                ]
                self.allowed(problem, giver, *here)
        assert done <= (amount <= may)
        moved = self.expect(giver, taker, amount * done) if giver is not taker else {}
        self.own[self.id_of(giver)] -= amount * done
        self.own[self.id_of(taker)] += amount * done
        after = self.store.balances()[0]
        assert {place: after[place] - before[place] for place in after if after[place] != before[place]} == moved

    @rule(party=st.integers(0, FOREMEN + WORKERS - 1), amount=st.integers(1, 20))
    def mint(self, party: int, amount: int) -> None:
        """The operator makes credits."""
        account_id = self.id_of(self.parties[party])
        assert self.store.books.mint("mint", account_id, amount, "").outcome == "ok"
        self.minted += amount
        self.own[account_id] += amount

    @rule(party=st.integers(0, FOREMEN + WORKERS - 1), amount=st.sampled_from([1, 5, 20, 100]))
    def burn(self, party: int, amount: int) -> None:
        """The operator takes credits away."""
        account_id = self.id_of(self.parties[party])
        balance = self.store.accounts.record(account_id).balance
        done = self.store.books.mint("burn", account_id, amount, "")
        assert done.outcome == "ok" or (done.outcome == "credits" and done.balance < amount)
        burnt = amount if done.outcome == "ok" else 0
        assert self.store.accounts.record(account_id).balance == balance - burnt
        self.burnt += burnt

    # --- who is here, and time ---

    @rule(party=st.integers(0, FOREMEN + WORKERS - 1))
    def ban(self, party: int) -> None:
        """The operator bans an account; what its workers hold ends with a sweep, or later."""
        self.store.accounts.ban(self.id_of(self.parties[party]), "operator", "a test")

    @precondition(lambda self: self.replicas)
    @rule(pick=st.integers(0, 1000), sweep=st.booleans())
    def convict(self, pick: int, sweep: bool) -> None:
        """A worker is convicted, one whose pay under a confidence has not vested if there is any: it may go back."""
        now_ms, young = self.store.now_ms(), []
        for lease_id, each in self.replicas.items():
            record = self.record_of(each)
            if record is not None and record.keep and now_ms < record.replicas[number_of(lease_id)].vests_ms:
                young.append(each)
        self.store.accounts.ban(self.id_of(self.pick(pick, young).seller.caller), "evidence", "a test")
        if sweep:
            self.discovery.sweep()

    @rule()
    def pardon(self) -> None:
        """The operator ends all bans, so that the machine does not stand still."""
        for party in self.parties:
            self.store.accounts.unban(self.id_of(party), "operator")
        for worker in self.workers:
            worker.register()

    @rule(worker=st.integers(0, WORKERS - 1), yes=st.booleans())
    def auditor(self, worker: int, yes: bool) -> None:
        """The operator believes a worker, or no longer."""
        self.store.accounts.mark_auditor(self.id_of(self.workers[worker].caller), yes)

    @rule(worker=st.integers(0, WORKERS - 1), anew=SELDOM, ask=st.integers(1, 2))
    def register(self, worker: int, anew: bool, ask: int) -> None:
        """A worker registers again, as it was or started anew, maybe at another price."""
        comer = self.workers[worker]
        comer.ask = ask
        if anew:
            comer.boot_id = os.urandom(8).hex()
        try:
            comer.register()
        except Problem as problem:
            self.allowed(problem, comer.caller)

    @rule(worker=st.integers(0, WORKERS - 1))
    def leave(self, worker: int) -> None:
        """A worker leaves."""
        leaver = self.workers[worker]
        status = leaver.caller.raw("DELETE", f"/v1/workers/{leaver.worker_id}").status_code
        assert status in (204, 404) or (status == 403 and self.is_banned(leaver.caller))

    @rule(wait_s=st.sampled_from([0, 0, 1, 1, TIMEOUT_S + 1, 2 * TIMEOUT_S + 1]), sweep=st.booleans())
    def wait(self, wait_s: int, sweep: bool) -> None:
        """Time passes."""
        self.clock.move(wait_s)
        if sweep:
            self.discovery.sweep()

    @rule(anew=st.booleans())
    def archive(self, anew: bool) -> None:
        """The ledger's entries move to disk, maybe by a mover that starts anew."""
        self.read_ledger()
        if anew:
            self.mover.close()
            self.mover = self.new_mover()
        self.mover.move()
        assert self.mover.fault == ""

    # --- what has to be true ---

    @invariant()
    def the_books_add_up(self) -> None:
        """Conservation, from the movements up; nobody below zero; nothing unvested that is not there."""
        if not self.ready:
            return
        STORE["steps"] += 1
        self.read_ledger()
        audit = verify(self.store, self.archive_at)
        assert audit.faults == []
        assert audit.accounts + audit.escrow == audit.minted - audit.burnt
        assert (audit.minted, audit.burnt) == (self.minted, self.burnt + self.hold_fees)
        balances, escrows = self.store.balances()
        assert all(amount >= 0 for place, amount in balances.items() if place != "mint")
        assert all(amount > 0 for amount in escrows.values())
        counted = 0
        for party in self.parties:
            account_id = self.id_of(party)
            record = self.store.accounts.record(account_id)
            unvested = int(self.store._redis.hget("{ec}:account:" + account_id, "unvested") or 0)
            assert 0 <= unvested <= record.balance, "what may be taken back is there"
            assert min(record.escrow, record.earned, record.spent) >= 0
            assert self.own[account_id] >= 0, "a gift was sent on"
            counted += record.escrow
        assert counted == audit.escrow
        for buyer in self.foremen:
            fees: Any = self.store._redis.hvals(f"{{ec}}:job:{self.id_of(buyer)}:{buyer.job_id}:effort")
            assert all(int(fee) <= self.discovery.settings.effort_cap for fee in fees)

    def read_ledger(self) -> None:
        """Takes in new entries: each movement is one that somebody had a right to."""
        buyers = {each.task_id: self.id_of(each.buyer) for each in self.replicas.values()}
        entries: Any = self.store._redis.xrange("{ec}:ledger", self.read_upto, "+")
        for entry_id, fields in entries:
            self.read_upto = f"({entry_id.decode()}"
            for source, target, amount in decode_entry(fields[b"m"])[0]:
                task_id = source.removeprefix("escrow:")
                if source == "mint" or (source.startswith("account:") and target.startswith("escrow:")):
                    continue
                if target == "burn":
                    self.hold_fees += amount if source.startswith("escrow:") else 0
                elif task_id == source and (source, target, amount) in self.between:
                    self.between.remove((source, target, amount))
                elif task_id == source:
                    self.reclaim(source, target, amount)
                elif target != f"account:{buyers[task_id]}":
                    self.pay(task_id, target.removeprefix("account:"), amount)

    def pay(self, task_id: str, account_id: str, amount: int) -> None:
        """A worker was paid: for a receipt that discovery was shown, and no more than was agreed."""
        shown = [
            each
            for each in self.replicas.values()
            if each.task_id == task_id and self.id_of(each.seller.caller) == account_id and each.shown
        ]
        assert shown, "paid without a receipt"
        self.received[task_id, account_id] += amount
        self.own[account_id] += amount
        assert self.received[task_id, account_id] <= sum(each.ticket.price for each in shown), "paid twice"
        record = self.record_of(shown[0])
        if record is not None:
            numbers = [number_of(each.ticket.lease_id) for each in shown]
            states = {record.replicas[number].state for number in numbers}
            full = amount in {each.ticket.price for each in shown}
            had = set(WAS_PAID) if full else {ReplicaState.COMPENSATED}
            assert states & had, f"paid {amount}, and the replicas are {states}"
            if full and record.kind is not None:
                told = {(each.receipt.kind, each.receipt.commitment) for each in shown if each.receipt is not None}
                assert (record.kind, record.commitment) in told, "paid for another answer than the accepted one"

    def paid_of(self, task_id: str) -> list[str]:
        """Leases of a task that were paid in full."""
        record = self.store.load([task_id])[1][task_id]
        return [record.lease_id(number) for number, each in enumerate(record.replicas) if each.state in WAS_PAID]

    def reclaim(self, source: str, target: str, amount: int) -> None:
        """Pay went back: of a worker that was banned, for a task that is computed again, once."""
        for lease_id, each in self.replicas.items():
            places = f"account:{self.id_of(each.seller.caller)}", f"account:{self.id_of(each.buyer)}"
            record = self.record_of(each)
            # Of a job that was closed since the records are gone.
            there = record is None or record.replicas[number_of(lease_id)].state is ReplicaState.RECLAIMED
            if (*places, each.ticket.price) == (source, target, amount) and there and lease_id not in self.reclaimed:
                self.reclaimed.add(lease_id)
                self.own[self.id_of(each.seller.caller)] -= amount
                STORE["reclaimed"] += 1
                return
        raise AssertionError("credits moved that nobody sent")

    def paid_in(self, task_id: str, seller: Seller) -> int:
        return self.received.get((task_id, self.id_of(seller.caller)), 0)

    def expect(self, source: Caller, target: Caller, amount: int) -> dict[str, int]:
        """Notes that credits move from one account to another; returns how balances change."""
        if not amount:
            return {}
        places = f"account:{self.id_of(source)}", f"account:{self.id_of(target)}"
        self.between.append((*places, amount))
        return {places[0]: -amount, places[1]: amount}

    def pick(self, number: int, among: list[Replica] | None = None) -> Replica:
        """One of the last replicas there are, or of those given."""
        listed = (among or list(self.replicas.values()))[-12:]
        return listed[number % len(listed)]

    def other(self, buyer: Foreman) -> Foreman:
        return next(foreman for foreman in self.foremen if foreman is not buyer)

    def record_of(self, replica: Replica) -> TaskRecord | None:
        return self.store.load([replica.task_id])[1].get(replica.task_id)

    def teardown(self) -> None:
        """In the end everything falls due, and nothing stays in escrow."""
        if not self.ready:
            return
        self.clock.move(2 * TIMEOUT_S + 1)
        self.discovery.sweep()
        self.the_books_add_up()
        audit = verify(self.store, self.archive_at)
        assert (audit.faults, audit.escrow, self.between) == ([], 0, [])
        self.mover.close()
        self.discovery.mover.close()
        self.store.close()


def check_credits(redis_url: str, directory: Path, examples: int, steps: int) -> int:
    """Runs the machine; returns how many steps it took."""
    STORE.update(url=redis_url, directory=directory, steps=0, examples=0, reclaimed=0)
    chosen = settings(
        max_examples=examples,
        stateful_step_count=steps,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        print_blob=True,
    )
    run_state_machine_as_test(Credits, settings=chosen)
    return int(STORE["steps"])


def test_no_credit_is_made_lost_or_paid_for_nothing(redis_url: str, tmp_path: Path) -> None:
    check_credits(redis_url, tmp_path, examples=10, steps=30)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_no_credit_is_made_lost_or_paid_for_nothing_in_ten_thousand_steps(redis_url: str, tmp_path: Path) -> None:
    steps = check_credits(redis_url, tmp_path, examples=270, steps=50)
    print(f"{steps} steps, pay went back {STORE['reclaimed']} times")
    assert steps >= 10_000
