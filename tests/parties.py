"""Parties for tests: they call a discovery service through its routes and keep to the protocol unless told not to."""

from __future__ import annotations

import base64
import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from werkzeug.test import TestResponse

from discovery.app import Discovery
from ec262.protocol import messages as m
from ec262.protocol.receipts import Kind, Receipt, ReceiptBundle, seal_receipts, tokens_digest
from ec262.protocol.tickets import Ticket, TicketBundle, open_tickets

RIGHT = b"r" * 32
WRONG = b"w" * 32


def made_for(lease_id: str) -> list[bytes]:
    """The digests of the tokens that a worker of these tests makes for a lease, and delivers unless told not to."""
    return [hashlib.sha256(lease_id.encode()).digest()]


def arrived(lease_ids: Sequence[str]) -> dict[str, bytes]:
    """What a foreman says to whom these were delivered."""
    return {lease_id: tokens_digest(made_for(lease_id)) for lease_id in lease_ids}


def refusals(settled: m.Settled) -> list[int]:
    """The positions of the bundles in which receipts do not count."""
    return sorted({each.position for each in settled.refused_receipts})


class Problem(Exception):
    """A problem document came back."""

    def __init__(self, response: TestResponse) -> None:
        self.status = response.status_code
        self.problem = m.decode(m.Problem, response.data)
        self.code = self.problem.code
        super().__init__(f"{self.status} {self.code}: {self.problem.detail}")


class Caller:
    """An account that calls a discovery service."""

    def __init__(self, discovery: Discovery, account: m.AccountCreated | None = None) -> None:
        self.discovery = discovery
        self._client = discovery.app.test_client()
        self.account = account or self.call("POST", "/v1/accounts", m.AccountCreated, m.CreateAccount())

    def call(self, method: str, path: str, kind: type[m.M], body: m.Message | None = None) -> m.M:
        """Calls a route; raises `Problem`."""
        response = self.raw(method, path, None if body is None else m.encode(body))
        if response.status_code >= 300:
            raise Problem(response)
        return m.decode(kind, response.data)

    def tell(self, path: str, body: m.Message) -> None:
        """Posts to a route that has nothing to say; raises `Problem`."""
        response = self.raw("POST", path, m.encode(body))
        if response.status_code >= 300:
            raise Problem(response)

    def raw(self, method: str, path: str, body: bytes | None = None, **headers: str) -> TestResponse:
        """Calls a route with whatever body."""
        if hasattr(self, "account"):
            credentials = f"{self.account.account_id}:{self.account.secret}".encode()
            headers.setdefault("Authorization", "Basic " + base64.b64encode(credentials).decode())
        if body is not None:
            headers.setdefault("Content-Type", "application/json")
        return self._client.open(path, method=method, data=body, headers=headers)

    @property
    def state(self) -> m.AccountState:
        """What the account has."""
        return self.call("GET", "/v1/account", m.AccountState)


class Foreman(Caller):
    """Buys work."""

    job_id = "0123456789abcdef" * 2

    def lease(self, count: int = 1, *, key: str | None = None, cpu_limit_s: float = 60.0, **policy: Any) -> m.Leased:
        """Leases `count` tasks; with the same `key` the same ones."""
        key = key or os.urandom(12).hex()
        timeout_s = policy.pop("timeout_s", None)
        capabilities = list(policy.pop("capabilities", ()))
        offer = policy.pop("offer", 1)
        again = list(policy.pop("again", ()))
        digests = [hashlib.sha256(f"{key} {n}".encode()).digest() for n in range(count)]
        if again:
            digests = [each[1] for each in again]
        return self.call(
            "POST",
            "/v1/tasks",
            m.Leased,
            m.LeaseTasks(
                job_id=self.job_id,
                idempotency_key=key,
                tasks=[
                    m.TaskWanted(input_digest=digest, cpu_limit_s=cpu_limit_s, again=again[n][0] if again else None)
                    for n, digest in enumerate(digests)
                ],
                requirements=m.Requirements(python="3.11", capabilities=capabilities),
                policy=m.Policy(**policy),
                timeout_s=timeout_s,
                offer=offer,
            ),
        )

    def settle(
        self,
        receipts: Sequence[m.SealedReceipts] = (),
        decide: Sequence[str] = (),
        lost: Sequence[str] = (),
        heard: Sequence[str] = (),
        known: Sequence[str] = (),
    ) -> m.Settled:
        """Shows receipts and asks for verdicts."""
        body = m.Settle(
            job_id=self.job_id,
            receipts=list(receipts),
            decide=list(decide),
            lost=list(lost),
            heard=list(heard),
            known=list(known),
        )
        return self.call("POST", "/v1/settlements", m.Settled, body)

    def audit(self, tasks: Sequence[str] = (), *, closing: bool = False, heard: Sequence[str] = ()) -> m.Audited:
        """Asks whether tasks still hold."""
        body = m.AuditTasks(job_id=self.job_id, tasks=list(tasks), closing=closing, heard=list(heard))
        return self.call("POST", "/v1/audits", m.Audited, body)

    def explain(self, task_id: str) -> m.Explanation:
        """Asks why a task was decided so."""
        return self.call("GET", f"/v1/tasks/{task_id}/explanation", m.Explanation)


@dataclass
class Worker:
    """Sells work: has no server, for discovery calls none unless the worker says something of the relay."""

    caller: Caller
    worker_id: str = field(default_factory=lambda: os.urandom(16).hex())
    boot_id: str = field(default_factory=lambda: os.urandom(16).hex())
    slots: int = 1
    port: int = 1
    capabilities: Sequence[str] = ()
    relay: Literal["", "auto", "always", "never"] = ""
    registered: m.WorkerRegistered = field(init=False)

    def __post_init__(self) -> None:
        self.register()

    def register(self) -> None:
        """Enters the pool."""
        body = m.RegisterWorker(
            worker_id=self.worker_id,
            boot_id=self.boot_id,
            port=self.port,
            slots=self.slots,
            python="3.11",
            capabilities=list(self.capabilities),
            relay=self.relay,
        )
        self.registered = self.caller.call("POST", "/v1/workers", m.WorkerRegistered, body)

    def heartbeat(self, *tokens: bytes) -> m.HeartbeatAnswer:
        """Says that it is alive, and shows receipts."""
        path = f"/v1/workers/{self.worker_id}/heartbeats"
        return self.caller.call(
            "POST", path, m.HeartbeatAnswer, m.Heartbeat(boot_id=self.boot_id, receipts=list(tokens))
        )

    def bundle(self, leased: m.Leased | m.Settled) -> TicketBundle | None:
        """Its tickets in an answer."""
        for assigned in leased.workers:
            if assigned.worker_id == self.worker_id:
                return open_tickets(
                    self.registered.worker_key,
                    assigned.tickets,
                    worker_id=self.worker_id,
                    epoch=self.registered.epoch,
                )
        return None

    def tickets(self, leased: m.Leased | m.Settled) -> list[Ticket]:
        """Its single tickets in an answer."""
        bundle = self.bundle(leased)
        return [] if bundle is None else bundle.tickets

    def token(
        self,
        lease_ids: Sequence[str],
        commitment: bytes = RIGHT,
        kind: Kind = Kind.OK,
        *,
        key: bytes | None = None,
        worker_id: str | None = None,
        epoch: int | None = None,
    ) -> bytes:
        """A receipt bundle, true unless arguments say otherwise."""
        listed = [
            Receipt(lease_id, kind, commitment, [] if kind is Kind.REFUSED else made_for(lease_id), 0.5)
            for lease_id in lease_ids
        ]
        return seal_receipts(
            key or self.registered.worker_key,
            ReceiptBundle(
                worker_id or self.worker_id,
                self.registered.epoch if epoch is None else epoch,
                listed,
            ),
        )

    def receipts(self, lease_ids: Sequence[str], commitment: bytes = RIGHT, kind: Kind = Kind.OK) -> m.SealedReceipts:
        """A receipt bundle as a foreman shows it that has the results, too."""
        token = self.token(lease_ids, commitment, kind)
        return m.SealedReceipts(worker_id=self.worker_id, token=token, arrived=arrived(lease_ids))


def answer_all(
    leased: m.Leased | m.Settled,
    workers: Sequence[Worker],
    commitment: Callable[[Worker], bytes] = lambda worker: RIGHT,
) -> list[m.SealedReceipts]:
    """Receipts of all workers for all they were leased."""
    shown = []
    for worker in workers:
        leases = [ticket.lease_id for ticket in worker.tickets(leased)]
        if leases:
            shown.append(worker.receipts(leases, commitment(worker)))
    return shown
