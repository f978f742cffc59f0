"""Workers and foremen without programs to run: processes of their own that keep to the protocol over real sockets.

They lease, push, answer and settle as the real ones do, and are fast enough for a hundred thousand settlements. Run as
a program (``python -m tests.light worker|foreman FILE``) with what it is told in a file of JSON. A party that is killed
and started again with the same file goes on: a worker as a new start of the same worker, a foreman from its journal.
"""

from __future__ import annotations

import faulthandler
import hashlib
import http.client
import json
import os
import sys
import threading
import time
from collections.abc import Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from ec262.discovery_client import DiscoveryClient
from ec262.errors import ProblemError, TicketRefused
from ec262.protocol import messages as m
from ec262.protocol.receipts import Kind, Receipt, ReceiptBundle, seal_receipts, tokens_digest
from ec262.protocol.tickets import Ticket, open_tickets

PATIENCE_S = 60.0
"""How long a party asks discovery again that does not answer."""
HEARTBEAT_S = 0.5
WITHHELD_S = 1.5
"""A receipt that nobody settled for so long is shown with the heartbeat."""
PENDING_S = 3.0
"""A task is computed anew whose verdict waits for so long for somebody that this foreman does not know of."""


def input_of(job_id: str, item: int) -> bytes:
    """The digest of an item's input."""
    return hashlib.sha256(f"{job_id} {item}".encode()).digest()


def right(input_digest: bytes) -> bytes:
    """The commitment to the right answer."""
    return hashlib.sha256(b"right" + input_digest).digest()


class LightWorker:
    """Answers at once: rightly; or refuses now and then; or, where it is a liar, lies to one job now and then."""

    def __init__(self, told: dict[str, Any]) -> None:
        self.worker_id = str(told["worker_id"])
        self.lies_to = told["lies_to"]
        self.client = DiscoveryClient(told["url"], told["account_id"], told["secret"], retry_for_s=PATIENCE_S)
        self.boot_id = os.urandom(16).hex()
        self.turn = threading.Lock()
        self.answered: dict[str, tuple[float, Receipt]] = {}
        worker = self

        class Handler(BaseHTTPRequestHandler):
            """Takes a bundle of tickets, answers with a bundle of receipts and what it delivers with them."""

            def do_POST(self) -> None:
                token = self.rfile.read(int(self.headers["Content-Length"]))
                try:
                    status, answer = 200, worker.answer(token)
                except TicketRefused:
                    status, answer = 403, b""
                self.send_response(status)
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, *_: object) -> None:
                """Nothing."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.register()

    def register(self) -> None:
        port = int(self.server.server_address[1])
        self.registered = self.client.register_worker(
            m.RegisterWorker(worker_id=self.worker_id, boot_id=self.boot_id, port=port, slots=1, python="3.11")
        )

    def answer(self, token: bytes) -> bytes:
        """Receipts for what a foreman pushed, and digests of the results; raises `TicketRefused`."""
        known = self.registered
        bundle = open_tickets(known.worker_key, token, worker_id=self.worker_id, epoch=known.epoch)
        with self.turn:
            for ticket in bundle.tickets:
                self.answered.setdefault(ticket.lease_id, (time.monotonic(), self.compute(bundle.job_id, ticket)))
            receipts = [self.answered[ticket.lease_id][1] for ticket in bundle.tickets]
        shown = m.SealedReceipts(
            worker_id=self.worker_id,
            token=seal_receipts(known.worker_key, ReceiptBundle(self.worker_id, known.epoch, receipts)),
            arrived={receipt.lease_id: tokens_digest(receipt.token_digests) for receipt in receipts},
        )
        return m.encode(shown)

    def compute(self, job_id: str, ticket: Ticket) -> Receipt:
        chance = hashlib.sha256(ticket.lease_id.encode() + ticket.input_digest).digest()[0]
        if chance < 4:
            return Receipt(ticket.lease_id, Kind.REFUSED, bytes(32), [], 0.0, "a test")
        lie = job_id == self.lies_to and chance < 24
        commitment = bytes(32) if lie else right(ticket.input_digest)
        return Receipt(ticket.lease_id, Kind.OK, commitment, [commitment], 0.01)

    def serve(self) -> None:
        """Serves, and sends heartbeats with receipts that nobody settled, for ever."""
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        unseen: list[str] = []
        while True:
            with self.turn:
                old = time.monotonic() - WITHHELD_S
                waiting = [receipt for since, receipt in self.answered.values() if since < old]
            bundles = [waiting[start : start + 500] for start in range(0, min(len(waiting), 8000), 500)]
            known = self.registered
            tokens = [
                seal_receipts(known.worker_key, ReceiptBundle(self.worker_id, known.epoch, each)) for each in bundles
            ]
            body = m.Heartbeat(boot_id=self.boot_id, receipts=tokens, unseen=unseen[:1000])
            try:
                listed = set(self.client.heartbeat(self.worker_id, body).open_leases)
            except ProblemError as problem:
                if problem.code != "unknown-worker":
                    raise
                self.register()
                continue
            with self.turn:
                unseen = [lease_id for lease_id in listed if lease_id not in self.answered]
                gone = [each.lease_id for each in waiting if each.lease_id not in listed]
                for lease_id in gone:
                    del self.answered[lease_id]
            time.sleep(HEARTBEAT_S)


class Notes:
    """A foreman's journal, read on from where it was read before.

    Attributes:
        accepted: what discovery answered `accepted` to, by item: task, and the workers by the leases whose keys came.
        leased: the last lease request of each batch: key, items, and for items the tasks that they compute anew.
        tasks: the tasks that were accepted, in the order in which that was noted.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._read = 0
        self.accepted: dict[int, tuple[str, dict[str, str]]] = {}
        self.leased: dict[int, tuple[str, list[int], dict[str, str]]] = {}
        self.tasks: list[str] = []
        self.refresh()

    def refresh(self) -> None:
        """Reads what was noted since. A line without an end is one within which the foreman was killed."""
        if not self._path.exists():
            return
        with open(self._path, "rb") as file:
            file.seek(self._read)
            data = file.read()
        whole = data[: data.rfind(b"\n") + 1]
        self._read += len(whole)
        for line in whole.splitlines():
            try:
                noted = json.loads(line)
            except ValueError:
                continue
            if "batch" in noted:
                self.leased[noted["batch"]] = (noted["key"], noted["items"], noted["again"])
            for item, task_id, payees in noted.get("accepted", ()):
                self.accepted[item] = (task_id, payees)
                self.tasks.append(task_id)


class LightForeman:
    """Has all items of a job computed, and notes what it was told before it goes on."""

    def __init__(self, told: dict[str, Any]) -> None:
        self.told = told
        self.job_id: str = told["job_id"]
        self.policy = m.Policy(**told["policy"])
        path = Path(told["journal"])
        self.notes = Notes(path)
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.write(self._file, b"\n")
        self.done = set(self.notes.accepted)
        self.again: dict[int, str] = {}

    def note(self, **what: Any) -> None:
        os.write(self._file, json.dumps(what).encode() + b"\n")

    def client(self) -> DiscoveryClient:
        told = self.told
        return DiscoveryClient(told["url"], told["account_id"], told["secret"], retry_for_s=PATIENCE_S)

    def run(self) -> None:
        """Computes until everything is accepted and holds, then closes the job."""
        while True:
            lanes = [threading.Thread(target=self._guard, args=(lane,)) for lane in range(self.told["lanes"])]
            for each in lanes:
                each.start()
            for each in lanes:
                each.join()
            if self._close():
                return

    def _guard(self, lane: int) -> None:
        try:
            self.lane(self.client(), lane)
        except BaseException as reason:
            print(f"the foreman failed: {reason!r}", file=sys.stderr, flush=True)
            os._exit(3)

    def lane(self, client: DiscoveryClient, lane: int) -> None:
        """Every so-manieth batch of items."""
        size, items = self.told["batch"], self.told["items"]
        for batch in range(lane, -(-items // size), self.told["lanes"]):
            while True:
                wanted = [n for n in range(batch * size, min(items, (batch + 1) * size)) if n not in self.done]
                if not wanted:
                    break
                while len(self.done) >= int(Path(self.told["gate"]).read_text()):
                    time.sleep(0.005)
                self.attempt(client, batch, wanted)

    def attempt(self, client: DiscoveryClient, batch: int, wanted: list[int]) -> None:
        """Leases what is wanted of a batch, as it did when it was killed, and settles as much as can be."""
        again = {str(item): self.again[item] for item in wanted if item in self.again}
        key, items, again = self.notes.leased.pop(batch, (os.urandom(12).hex(), wanted, again))
        self.note(batch=batch, key=key, items=items, again=again)
        body = m.LeaseTasks(
            job_id=self.job_id,
            idempotency_key=key,
            tasks=[
                m.TaskWanted(input_digest=input_of(self.job_id, item), cpu_limit_s=15.0, again=again.get(str(item)))
                for item in items
            ],
            requirements=m.Requirements(python="3.11"),
            policy=self.policy,
            timeout_s=30.0,
        )
        try:
            leased = client.lease_tasks(body)
        except ProblemError as problem:
            if problem.code != "conflict":
                raise
            return
        todo = {task.task_id: items[task.position] for task in leased.tasks}
        todo = {task_id: item for task_id, item in todo.items() if item not in self.done}
        # Of replicas that came beside these nothing is noted: discovery is asked for them as after a kill.
        known = [task.replicas[-1].lease_id for task in leased.tasks if task.task_id in todo]
        receipts, lost = self.push(leased.workers, leased.tasks)
        since = time.monotonic()
        while todo:
            shown = m.Settle(job_id=self.job_id, receipts=receipts, decide=list(todo), lost=lost, known=known)
            try:
                settled = client.settle(shown)
            except ProblemError as problem:
                if problem.code != "conflict":
                    raise
                continue
            known = []
            self.take(settled, todo)
            receipts, lost = self.push(settled.workers, [v.task for v in settled.tasks if v.task is not None])
            if receipts or lost:
                since = time.monotonic()
            elif time.monotonic() - since > PENDING_S:
                return
            elif todo:
                time.sleep(0.02)
        if not leased.tasks:
            time.sleep(0.05)

    def take(self, settled: m.Settled, todo: dict[str, int]) -> None:
        """Notes what is accepted; what cannot be decided is leased anew."""
        accepted: list[tuple[int, str, dict[str, str]]] = []
        for verdict in settled.tasks:
            if verdict.verdict == "accepted":
                item = todo.pop(verdict.task_id)
                if verdict.commitment != right(input_of(self.job_id, item)):
                    raise AssertionError(f"a wrong answer was accepted for item {item}")
                accepted.append((item, verdict.task_id, {key.lease_id: key.worker_id for key in verdict.keys}))
            elif verdict.verdict in ("undecided", "unknown"):
                del todo[verdict.task_id]
        if accepted:
            self.note(accepted=accepted)
            self.done.update(item for item, _, _ in accepted)

    def push(
        self, workers: Sequence[m.AssignedWorker], tasks: Sequence[m.LeasedTask]
    ) -> tuple[list[m.SealedReceipts], list[str]]:
        """Redeems tickets; returns receipts, and the leases of workers that are not there."""
        receipts, lost = [], []
        for worker in workers:
            try:
                connection = http.client.HTTPConnection(worker.address, worker.port, timeout=20)
                connection.request("POST", "/", body=worker.tickets)
                answer = connection.getresponse()
                body = answer.read()
                connection.close()
            except (OSError, http.client.HTTPException):
                body = b""
            if body:
                receipts.append(m.decode(m.SealedReceipts, body))
            else:
                lost += [r.lease_id for task in tasks for r in task.replicas if r.worker_id == worker.worker_id]
        return receipts, lost

    def _close(self) -> bool:
        """Asks whether everything holds; returns whether the job is closed."""
        if not self.policy.confidence:
            return True
        client = self.client()
        # That reads the last request of each batch as well, which is then asked again where something of it does not
        # hold, as by a foreman that is killed just now: the answer lacks those tasks.
        self.notes.refresh()
        tasks = {task_id: item for item, (task_id, _) in self.notes.accepted.items()}
        listed = list(tasks)
        recompute: set[str] = set()
        for start in range(0, len(listed), 1000):
            recompute.update(
                client.audit(m.AuditTasks(job_id=self.job_id, tasks=listed[start : start + 1000])).recompute
            )
        if not recompute:
            audited = client.audit(m.AuditTasks(job_id=self.job_id, tasks=[], closing=True))
            recompute.update(audited.recompute)
            if audited.closed:
                return True
        self.again = {tasks[old]: old for old in recompute if old in tasks}
        self.done -= set(self.again)
        client.settle(m.Settle(job_id=self.job_id, heard=list(recompute)[:1000]))
        return False


def _end_with_parent() -> None:
    while os.read(0, 4096):
        pass
    os._exit(0)


def main(party: str, path: str) -> None:
    """Runs a party until it is over, or until whoever started it is gone."""
    faulthandler.enable()
    threading.Thread(target=_end_with_parent, daemon=True).start()
    told = json.loads(Path(path).read_text())
    if party == "worker":
        LightWorker(told).serve()
    else:
        LightForeman(told).run()


if __name__ == "__main__":
    main(*sys.argv[1:])
