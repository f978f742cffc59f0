"""Peers of a worker for tests: they seal tickets as discovery does, push and poll over HTTP as a foreman does."""

from __future__ import annotations

import hashlib
import sys
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from geventhttpclient import HTTPClient

from ec262.config import WorkerSettings
from ec262.discovery_client import DiscoveryClient
from ec262.mapreduce.program import Program, map_header
from ec262.protocol import keys
from ec262.protocol import messages as m
from ec262.protocol.canonical import encode_pairs
from ec262.protocol.framing import frame_parts, parts_digest, unframe_parts
from ec262.protocol.polling import poll_authorization
from ec262.protocol.receipts import Receipt, open_receipts
from ec262.protocol.sealing import seal, unseal
from ec262.protocol.tickets import Ticket, TicketBundle, seal_tickets
from ec262.sandbox.pack import pack_program
from ec262.worker.lease import Standing
from ec262.worker.service import Worker

WORKER_KEY = bytes(range(32))
WORKER_ID = "ab" * 16
EPOCH = 3
SETTINGS = WorkerSettings(port=0, slots=1, linger_s=0.005, drain_s=5.0)


def double(key: Any, value: Any) -> Any:
    """A mapper."""
    yield key, value * 2


class Foreman:
    """Leases that the test seals itself, pushed and polled over HTTP."""

    def __init__(self, port: int, mapper: Callable[[Any, Any], Any] = double) -> None:
        self.http = HTTPClient("127.0.0.1", port, network_timeout=30, concurrency=8, block_size=65536)
        self.job_id = uuid.uuid4().hex
        self.program_key, self.poll_key = keys.derive(b"p", keys.Label.PROGRAM), keys.derive(b"q", keys.Label.POLL)
        self.poll_key = hashlib.sha256(self.job_id.encode()).digest()
        self.blob = pack_program(Program(mapper=mapper))
        self.digest = hashlib.sha256(self.blob).hexdigest()
        self.sequence = 0
        self.cursor = 0
        self.tickets: dict[str, Ticket] = {}
        self.inputs: dict[str, bytes] = {}

    def lease(
        self, values: list[Any], *, digest: str = "", timeout_s: float = 60.0, cpu_limit_s: float = 10.0
    ) -> list[str]:
        """Leases, a task a value."""
        made = []
        for index, value in enumerate(values):
            parts = [map_header(digest or self.digest, index=index, partitions=1), encode_pairs([("k", value)])]
            lease_id = f"{uuid.uuid4().hex}.0"
            self.tickets[lease_id] = Ticket(
                lease_id=lease_id,
                input_digest=parts_digest(parts, domain=b"input"),
                input_key=hashlib.sha256(b"i" + lease_id.encode()).digest(),
                result_key=hashlib.sha256(b"r" + lease_id.encode()).digest(),
                cpu_limit_s=cpu_limit_s,
                max_result_bytes=1 << 20,
                deadline_s=time.time() + timeout_s,
                price=1,
            )
            self.inputs[lease_id] = frame_parts(parts)
            made.append(lease_id)
        return made

    def bundle(self, leases: list[str], **changes: Any) -> bytes:
        """Their tickets, as discovery seals them."""
        fields: dict[str, Any] = {
            "worker_id": WORKER_ID, "epoch": EPOCH, "job_id": self.job_id, "program_key": self.program_key,
            "poll_key": self.poll_key, "tickets": [self.tickets[lease_id] for lease_id in leases],
        }  # fmt: skip
        worker_key = changes.pop("worker_key", WORKER_KEY)
        return seal_tickets(worker_key, TicketBundle(**{**fields, **changes}))

    def message(self, leases: list[str], *, program: bool = True, tickets: bytes = b"") -> m.PushTasks:
        """A push of these leases."""
        return m.PushTasks(
            tickets=tickets or self.bundle(leases),
            program=[seal(self.program_key, self.blob)] if program else [],
            tasks=[
                m.PushedTask(lease_id=lease_id, payload=[seal(self.tickets[lease_id].input_key, self.inputs[lease_id])])
                for lease_id in leases
            ],
        )

    def call(
        self, method: str, target: str, body: bytes = b"", headers: dict[str, str] | None = None
    ) -> tuple[int, bytes]:
        """Status and body of an answer."""
        response = self.http.request(method, target, body=body, headers=headers or {})
        return response.status_code, response.read()

    def post(self, message: m.PushTasks) -> tuple[int, bytes]:
        """Sends a push."""
        return self.call("POST", "/v1/tasks", m.encode(message), {"Content-Type": "application/json"})

    def push(self, leases: list[str], **how: Any) -> m.Pushed:
        """Pushes, which has to be taken."""
        status, body = self.post(self.message(leases, **how))
        assert status == 200, body
        return m.decode(m.Pushed, body)

    def authorized(self, method: str, target: str, sequence: int | None = None) -> dict[str, str]:
        """The header of a poll or a cancellation."""
        self.sequence += 1
        number = self.sequence if sequence is None else sequence
        return {"Authorization": poll_authorization(self.poll_key, method=method, target=target, sequence=number)}

    def poll(self, *, wait_s: float = 20.0, after: int | None = None) -> m.Results:
        """One poll, without acknowledging what it brings."""
        target = f"/v1/jobs/{self.job_id}/results?after={self.cursor if after is None else after}&wait_s={wait_s}"
        status, body = self.call("GET", target, headers=self.authorized("GET", target))
        assert status == 200, body
        return m.decode(m.Results, body)

    def collect(self, count: int) -> tuple[dict[str, m.SealedResult], dict[str, Receipt]]:
        """Polls until so many results are there."""
        results: dict[str, m.SealedResult] = {}
        receipts: dict[str, Receipt] = {}
        while len(results) < count:
            answer = self.poll()
            assert answer.results, "nothing came within the wait"
            self.cursor = answer.cursor
            results |= {result.lease_id: result for result in answer.results}
            bundle = open_receipts(WORKER_KEY, answer.receipts, worker_id=WORKER_ID)
            assert [receipt.lease_id for receipt in bundle.receipts] == [result.lease_id for result in answer.results]
            assert bundle.epoch == EPOCH
            receipts |= {receipt.lease_id: receipt for receipt in bundle.receipts}
        return results, receipts

    def cancel(self) -> m.Cancelled:
        """Cancels the job."""
        target = f"/v1/jobs/{self.job_id}"
        status, body = self.call("DELETE", target, headers=self.authorized("DELETE", target))
        assert status == 200, body
        return m.decode(m.Cancelled, body)

    def open(self, result: m.SealedResult) -> list[bytes]:
        """A result's parts, as the foreman reads them once it has paid."""
        key = self.tickets[result.lease_id].result_key
        return unframe_parts(b"".join(unseal(key, token) for token in result.tokens))


def make_worker(home: Path, settings: WorkerSettings = SETTINGS, *, capacity: int = 64) -> Worker:
    """A worker that discovery has let in."""
    worker = Worker(settings, "http://127.0.0.1:9", home=home)
    worker.registration.standing = Standing(WORKER_ID, WORKER_KEY, EPOCH, capacity, 3600.0)
    return worker


def code_of(answer: tuple[int, bytes]) -> tuple[int, str]:
    """Status and code of a problem document."""
    problem = m.decode(m.Problem, answer[1])
    assert problem.status == answer[0]
    return answer[0], problem.code


def state_of(worker: Worker) -> tuple[object, ...]:
    """What no bad request may change."""
    held = worker.holdings
    return held.taken, held.unfinished, held.held_bytes, held.program_bytes, held.cursor, len(held.jobs)


def push_leased(client: DiscoveryClient, foreman: Foreman, values: list[Any]) -> list[str]:
    """Leases tasks at discovery and pushes them; returns the leases."""
    inputs = [
        [map_header(foreman.digest, index=index, partitions=1), encode_pairs([("k", value)])]
        for index, value in enumerate(values)
    ]
    version = f"{sys.version_info[0]}.{sys.version_info[1]}"
    leased = client.lease_tasks(
        m.LeaseTasks(
            job_id=foreman.job_id,
            idempotency_key=uuid.uuid4().hex,
            tasks=[m.TaskWanted(input_digest=parts_digest(parts, domain=b"input")) for parts in inputs],
            requirements=m.Requirements(python=version),
        )
    )
    assert len(leased.tasks) == len(values)
    foreman.poll_key = leased.poll_key
    message = m.PushTasks(
        tickets=leased.workers[0].tickets,
        program=[seal(leased.program_key, foreman.blob)],
        tasks=[
            m.PushedTask(lease_id=task.replicas[0].lease_id, payload=[seal(task.input_key, frame_parts(parts))])
            for task, parts in zip(leased.tasks, inputs, strict=True)
        ],
    )
    status, body = foreman.post(message)
    assert (status, m.decode(m.Pushed, body).taken) == (200, len(values)), body
    return [task.lease_id for task in message.tasks]
