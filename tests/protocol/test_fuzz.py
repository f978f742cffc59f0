"""Thousands of mutated tickets, receipts and bodies: none of them moves a credit, none makes a service fail.

What is mutated was recorded of parties that work: so most of it is almost right.
"""

from __future__ import annotations

import copy
import datetime
import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import msgspec
import pytest

from discovery.app import Discovery
from ec262.errors import TicketRefused
from ec262.protocol import messages as m
from ec262.protocol.routes import MEGABYTE, route
from ec262.protocol.tickets import open_tickets
from tests.conftest import MakeDiscovery
from tests.parties import Caller, Foreman, Worker, answer_all
from tests.worker_peers import Foreman as WorkersForeman
from tests.worker_peers import make_worker, state_of

ODD: list[Any] = [
    *(None, True, -1, 0, 1, 2**53, 2**63, -(2**63), 2**64, 10**400, 1e308, -0.0, 0.5, "", "\0", "é" * 40, "ab" * 16),
    *("f" * 32 + ".0", "A" * 10_000, "=", "!!!!", [], [[]], {}, {"": {}}, [None] * 1001, "\ud800", "../..", "${jndi}"),
]
ODD_PACKED: list[Any] = [
    *(each for each in ODD if each not in (2**64, 10**400, "\ud800")),
    *(b"", b"\0", b"\xff" * 32, b"ab" * 16, b"A" * 10_000, {b"": b""}, {1: 1}, {None: [b""] * 1001}),
    *(float("nan"), float("inf"), msgspec.msgpack.Ext(5, b"x"), datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC)),
]
"""What MessagePack can say: no whole numbers of more than 64 bits, and no halves of characters, but more types."""
SHORT, LONG = 400, 10_000


class Mutator:
    """Changes bytes and values a little, the same way each time."""

    def __init__(self, seed: int = 262) -> None:
        self.chance = random.Random(seed)

    def data(self, given: bytes, others: list[bytes]) -> bytes:
        """Bytes that are not `given`."""
        data = bytearray(given)
        while bytes(data) == given:
            at = self.chance.randrange(len(data) + 1) if data else 0
            match self.chance.randrange(6):
                case 0 if at < len(data):
                    data[at] ^= 1 << self.chance.randrange(8)
                case 1:
                    del data[at : at + self.chance.randint(1, 40)]
                case 2:
                    data[at:at] = self.chance.randbytes(self.chance.randint(1, 40))
                case 3:
                    del data[at:]
                case 4:
                    data += data[at:]
                case 5:
                    other = self.chance.choice(others)
                    data[at:] = other[min(at, len(other)) :]
        return bytes(data)

    def body(self, given: Any, odd: list[Any]) -> Any:
        """A body with one value replaced, removed, or added."""
        body = copy.deepcopy(given)
        at, key = body, self.chance.choice(sorted(body)) if body else ""
        while at and isinstance(at[key], dict | list) and at[key] and self.chance.random() < 0.7:
            at = at[key]
            key = self.chance.choice(sorted(at)) if isinstance(at, dict) else self.chance.randrange(len(at))
        match self.chance.randrange(4):
            case 0 if at:
                del at[key]
            case 1 if isinstance(at, list):
                at += at * 3
            case _:
                at[key] = self.chance.choice(odd)
        return body


class Ledger:
    """All credits, wherever they are, and every movement."""

    def __init__(self, discovery: Discovery) -> None:
        self._store = discovery.store

    def now(self) -> tuple[object, ...]:
        return self._store.balances(), self._store.books.waiting()


def mutated_bodies(make_discovery: MakeDiscovery, count: int) -> None:
    discovery = make_discovery()
    foreman = Foreman(discovery)
    owner = Caller(discovery)
    workers = [Worker(owner), Worker(owner)]
    leased = foreman.lease(6, redundancy=2, quorum=2)
    shown = answer_all(leased, workers)
    task_ids = [task.task_id for task in leased.tasks]
    settled = foreman.settle(shown, task_ids[:3])
    assert {each.verdict for each in settled.tasks} == {"accepted"}

    # The attacker has an account without a credit, and has heard everything that the others said.
    attacker = Caller(discovery, Caller(make_discovery(starting_credits=0)).account)
    receipts = [json.loads(m.encode(each)) for each in shown]
    digest = json.loads(m.encode(m.TaskWanted(input_digest=b"i" * 32)))
    bodies: list[tuple[str, str, Any]] = [
        ("settle", "/v1/settlements", {"job_id": foreman.job_id, "receipts": receipts, "decide": task_ids}),
        ("audit", "/v1/audits", {"job_id": foreman.job_id, "tasks": task_ids, "closing": True, "heard": []}),
        ("report_job", f"/v1/jobs/{foreman.job_id}", {"state": "running", "name": "x", "tasks_done": 3}),
        ("heartbeat", f"/v1/workers/{workers[0].worker_id}/heartbeats",
         {"boot_id": workers[0].boot_id, "receipts": [each["token"] for each in receipts], "unseen": []}),
        ("register_worker", "/v1/workers",
         {"worker_id": workers[0].worker_id, "boot_id": "ef" * 16, "port": 1, "slots": 1, "python": "3.11"}),
        ("transfer", "/v1/transfers", {"to": owner.account.account_id, "amount": 1, "idempotency_key": "k" * 12}),
        ("lease_tasks", "/v1/tasks",
         {"job_id": foreman.job_id, "idempotency_key": "l" * 12, "tasks": [digest, digest],
          "requirements": {"python": "3.11"}, "policy": {"redundancy": 2, "quorum": 2}}),
        ("dispute", "/v1/disputes",
         {"job_id": foreman.job_id, "lease_id": f"{task_ids[0]}.0", "digests": [digest["input_digest"]],
          "tokens": [{"position": 0, "token": "AAAA"}]}),
        ("show_account", "/v1/account/name", {"name": "x"}),
    ]  # fmt: skip
    ledger = Ledger(discovery)
    before = ledger.now()
    mutator = Mutator()
    encoded = [json.dumps(body).encode() for _, _, body in bodies]
    packed = [
        m.encode(m.decode(route("discovery", name).request or m.Message, plain), m.PACKED)
        for (name, *_), plain in zip(bodies, encoded, strict=True)
    ]
    answered: Counter[tuple[str, bool]] = Counter()
    for number in range(count):
        at = mutator.chance.randrange(len(bodies))
        name, path, body = bodies[at]
        method = route("discovery", name).method
        media = m.PACKED if number % 2 else m.JSON
        if mutator.chance.random() < 1 / 3:
            content = mutator.data(*((packed[at], packed) if media == m.PACKED else (encoded[at], encoded)))
        elif media == m.PACKED:
            content = msgspec.msgpack.encode(mutator.body(msgspec.msgpack.decode(packed[at]), ODD_PACKED))
        else:
            content = json.dumps(mutator.body(body, ODD)).encode()
        answer = attacker.raw(method, path, content[: 8 * MEGABYTE], **{"Content-Type": media, "Accept": media})
        assert answer.status_code < 500, (method, path, content[:2000], answer.data)
        code = m.decode(m.Problem, answer.data).code if answer.status_code >= 400 else ""
        answered[media, code == "malformed-body"] += 1
    assert ledger.now() == before
    assert len(answered) == 4
    assert min(answered.values()) > count // 20, "in either form many were understood, and many were not"

    # What the attacker showed stands in nobody's way: the rest is decided as if it had said nothing.
    settled = foreman.settle(shown, task_ids[3:])
    assert [each.verdict for each in settled.tasks] == ["accepted"] * 3


def mutated_receipts(make_discovery: MakeDiscovery, count: int) -> None:
    """The foreman itself shows receipts that were changed on their way, and a worker's heartbeat does."""
    discovery = make_discovery()
    foreman, owner = Foreman(discovery), Caller(discovery)
    workers = [Worker(owner), Worker(owner)]
    leased = foreman.lease(8, redundancy=2, quorum=2)
    shown = answer_all(leased, workers)
    tokens = [each.token for each in shown]
    ledger = Ledger(discovery)
    before = ledger.now()
    mutator = Mutator()
    for number in range(count):
        at = number % len(shown)
        token = mutator.data(tokens[at], tokens)
        if token in tokens:
            continue
        body: m.Message
        sender: Caller
        if number % 2:
            worker = next(each for each in workers if each.worker_id == shown[at].worker_id)
            body = m.Heartbeat(boot_id=worker.boot_id, receipts=[token])
            path, sender = f"/v1/workers/{worker.worker_id}/heartbeats", owner
        else:
            body = m.Settle(job_id=foreman.job_id, receipts=[msgspec.structs.replace(shown[at], token=token)])
            path, sender = "/v1/settlements", foreman
        media = mutator.chance.choice((m.JSON, m.PACKED))
        answer = sender.raw("POST", path, m.encode(body, media), **{"Content-Type": media})
        assert answer.status_code < 500, answer.data
    assert ledger.now() == before
    settled = foreman.settle(shown, [task.task_id for task in leased.tasks])
    assert [each.verdict for each in settled.tasks] == ["accepted"] * 8


def mutated_tickets(home: Path, count: int) -> None:
    with make_worker(home) as worker:
        foreman = WorkersForeman(worker.server.port)
        leases = foreman.lease([1, 2, 3])
        good = [foreman.bundle(leases), foreman.bundle(leases[:1])]
        push = foreman.message(leases)
        before = state_of(worker)
        mutator = Mutator()
        app = worker._api.app().test_client()
        for number in range(count):
            token = mutator.data(good[number % 2], good)
            if token in good:
                continue
            pushed = m.encode(msgspec.structs.replace(push, tickets=token))
            answer = app.post("/v1/tasks", data=pushed, content_type=m.JSON)
            assert (answer.status_code, answer.get_json()["code"]) == (403, "ticket-refused")
            with pytest.raises(TicketRefused):
                open_tickets(bytes(range(32)), token, worker_id="ab" * 16, epoch=3)
        assert state_of(worker) == before


COUNTS = pytest.mark.parametrize(
    "count", [SHORT, pytest.param(LONG, marks=[pytest.mark.slow, pytest.mark.timeout(900)])]
)


@COUNTS
def test_mutated_bodies_move_nothing(make_discovery: MakeDiscovery, count: int) -> None:
    mutated_bodies(make_discovery, count)


@COUNTS
def test_mutated_receipts_move_nothing(make_discovery: MakeDiscovery, count: int) -> None:
    mutated_receipts(make_discovery, count)


@COUNTS
def test_mutated_tickets_are_refused(tmp_path: Path, count: int) -> None:
    mutated_tickets(tmp_path, count)
