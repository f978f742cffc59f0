"""A network under attack: parties at addresses of their own, and what honest ones must not lose."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import redis

from discovery.app import Discovery
from discovery.ledger import verify
from ec262.protocol import messages as m
from ec262.protocol.framing import frame_parts
from ec262.protocol.receipts import (
    Kind,
    Receipt,
    ReceiptBundle,
    digests_of,
    result_commitment,
    seal_receipts,
    tokens_digest,
)
from ec262.protocol.sealing import seal
from ec262.protocol.tickets import Ticket
from tests.clock import Clock
from tests.parties import Caller, Foreman, Problem, Worker

HOME = "198.51.100.7"
PARTS = [b"honest", b"parts"]


class At(Foreman):
    """An account made from an address; it buys work, and workers may belong to it."""

    def __init__(self, discovery: Discovery, address: str = HOME, account: m.AccountCreated | None = None) -> None:
        self.discovery = discovery
        self._client = discovery.app.test_client()
        self._client.environ_base["REMOTE_ADDR"] = address
        self.account = account or self.call("POST", "/v1/accounts", m.AccountCreated, m.CreateAccount())

    @property
    def account_id(self) -> str:
        """Its id."""
        return self.account.account_id


def elsewhere(number: int) -> str:
    """An address; those of different numbers are in different networks."""
    return f"203.{number // 250}.{number % 250}.9"


@dataclass(frozen=True)
class Delivery:
    """What a worker hands its foreman for one lease."""

    tokens: list[bytes]
    receipt: Receipt
    shown: m.SealedReceipts


def deliver(
    worker: Worker,
    ticket: Ticket,
    parts: Sequence[bytes] = PARTS,
    *,
    tokens: Sequence[bytes] | None = None,
    commitment: bytes | None = None,
    kind: Kind = Kind.OK,
) -> Delivery:
    """An honest result and its receipt, unless told otherwise."""
    made = [seal(ticket.result_key, frame_parts(list(parts)))] if tokens is None else list(tokens)
    digests = digests_of(made)
    receipt = Receipt(ticket.lease_id, kind, commitment or result_commitment(list(parts)), digests, 0.5)
    bundle = ReceiptBundle(worker.worker_id, worker.registered.epoch, [receipt])
    token = seal_receipts(worker.registered.worker_key, bundle)
    arrived = {ticket.lease_id: tokens_digest(digests)}
    return Delivery(made, receipt, m.SealedReceipts(worker_id=worker.worker_id, token=token, arrived=arrived))


class Scene:
    """One service, and what can be seen of it from outside and in its store."""

    def __init__(self, discovery: Discovery, redis_url: str) -> None:
        self.discovery = discovery
        self.redis = redis.Redis.from_url(redis_url)
        self.clock = Clock(discovery.store)
        self._made = 0

    def foreman(self, address: str = "") -> At:
        """A foreman in a network of its own, unless told where."""
        self._made += 1
        return At(self.discovery, address or elsewhere(self._made))

    def worker(self, owner: Caller | None = None, *, verified: int = 0, slots: int = 8, address: str = "") -> Worker:
        """A worker with an account and a network of its own, unless told whose; `verified` results are on record."""
        made = Worker(owner or self.foreman(address), slots=slots)
        if verified:
            self.redis.hset(f"{{ec}}:worker:{made.worker_id}", "verified", verified * 1000)
        return made

    def workers(self, count: int, *, verified: int = 0) -> list[Worker]:
        """Unrelated workers."""
        return [self.worker(verified=verified) for _ in range(count)]

    def name(self, worker: Worker) -> dict[str, int]:
        """What is known of a worker by all: nobody honest may come out worse."""
        fields = ["verified", "doubts", "words", "accusers", "share"]
        values = self.redis.hmget(f"{{ec}}:worker:{worker.worker_id}", fields)
        known = {field: int(value or 0) for field, value in zip(fields, values, strict=True)}
        return {**known, "banned": int(self.banned(worker))}

    def banned(self, worker: Worker) -> bool:
        """Whether its account is."""
        return bool(self.discovery.store.accounts.record(worker.caller.account.account_id).banned)

    def mint(self, caller: Caller, amount: int) -> None:
        """Gives an account credits that are no gift."""
        self.discovery.store.books.mint("mint", caller.account.account_id, amount, "bought")

    def until_swept(self, worker: Worker) -> None:
        """Lets time pass until all that a worker holds is settled or due; its registration has to last so long."""
        settings = self.discovery.settings
        self.clock.move(int(settings.max_timeout_s + settings.late_grace_s) + 1)
        while worker.heartbeat().open_leases:
            self.discovery.sweep()

    def escrow(self) -> int:
        """All credits in escrow."""
        return sum(self.discovery.store.balances()[1].values())

    def clean(self) -> None:
        """The books add up, from the first movement on, and nobody has less than nothing."""
        assert verify(self.discovery.store).faults == []
        balances, escrows = self.discovery.store.balances()
        assert all(amount >= 0 for place, amount in balances.items() if place != "mint"), balances
        assert all(amount > 0 for amount in escrows.values()), escrows


def of(worker: Worker, answer: m.Leased | m.Settled) -> list[str]:
    """What a worker was leased in an answer."""
    return [ticket.lease_id for ticket in worker.tickets(answer)]


def dispute(foreman: Foreman, lease_id: str, tokens: Sequence[bytes]) -> m.Disputed:
    """Shows all of these tokens as those of a lease."""
    body = m.Dispute(
        job_id=foreman.job_id,
        lease_id=lease_id,
        digests=digests_of(tokens),
        tokens=[m.ShownToken(position=position, token=token) for position, token in enumerate(tokens)],
    )
    return foreman.call("POST", "/v1/disputes", m.Disputed, body)


def send(sender: Caller, to: Caller, amount: int) -> m.Transferred:
    """Sends credits."""
    body = m.Transfer(to=to.account.account_id, amount=amount, idempotency_key=os.urandom(8).hex())
    return sender.call("POST", "/v1/transfers", m.Transferred, body)


def attempted(work: Callable[[], object]) -> str:
    """Calls what may be refused; the code with which it was, or nothing."""
    try:
        work()
    except Problem as problem:
        return problem.code
    return ""


def together(works: Sequence[Callable[[], object]]) -> None:
    """Calls all of them at once, in threads; none may raise."""
    barrier = threading.Barrier(len(works))
    failed: list[BaseException] = []

    def run(work: Callable[[], object]) -> None:
        barrier.wait()
        try:
            work()
        except BaseException as reason:
            failed.append(reason)

    threads = [threading.Thread(target=run, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed, failed
