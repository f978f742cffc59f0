"""Ticketing: the keys of leases, and the tickets that carry them to workers past their foreman."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from discovery.keyring import Keyring
from discovery.passes import make_pass
from discovery.records import TaskRecord, WorkerRecord
from discovery.registry import Registry
from discovery.settings import Settings
from ec262.protocol import keys
from ec262.protocol import messages as m
from ec262.protocol.keys import Wrapping
from ec262.protocol.tickets import Ticket, TicketBundle, seal_tickets

Lease = tuple[TaskRecord, Sequence[int], m.LeasedTask, Wrapping]
"""Replicas of a task that were just leased: which, what their foreman is told, and what makes their keys."""


class Ticketing:
    """Makes what foremen are told of leases: keys for them, and sealed tickets for their workers."""

    def __init__(self, keyring: Keyring, registry: Registry, settings: Settings) -> None:
        self._keyring = keyring
        self._registry = registry
        self._settings = settings

    def leased_task(
        self, task: TaskRecord, numbers: Sequence[int], wrapping: Wrapping, position: int = 0
    ) -> m.LeasedTask:
        """A task for its foreman, which asked for it as task `position` of its request."""
        return m.LeasedTask(
            task_id=task.task_id,
            input_key=wrapping.input_key(task.nonce, task.task_id),
            replicas=[
                m.LeasedReplica(
                    lease_id=task.lease_id(number),
                    worker_id=task.replicas[number].worker_id,
                    price=task.replicas[number].price,
                )
                for number in numbers
            ],
            position=position,
        )

    def wrapping_of(self, task: TaskRecord) -> Wrapping | None:
        """What makes the keys of a task; None once they are destroyed."""
        return self._keyring.wrapping(task.wrapping) if task.nonce else None

    def assigned_workers(
        self,
        account_id: str,
        job_id: str,
        leases: Sequence[Lease],
        workers: dict[str, WorkerRecord],
    ) -> list[m.AssignedWorker]:
        """The workers of some leases, each with its tickets in one bundle."""
        master = self._keyring.master
        program_key = keys.program_key(master, account_id, job_id)
        poll_key = keys.poll_key(master, account_id, job_id)
        tickets: defaultdict[tuple[str, int], list[Ticket]] = defaultdict(list)
        max_result_bytes = self._settings.max_result_bytes
        for task, numbers, leased, wrapping in leases:
            for number, told in zip(numbers, leased.replicas, strict=True):
                replica = task.replicas[number]
                tickets[replica.worker_id, replica.epoch].append(
                    Ticket(
                        lease_id=told.lease_id,
                        input_digest=task.input_digest,
                        input_key=leased.input_key,
                        result_key=wrapping.result_key(task.nonce, told.lease_id),
                        cpu_limit_s=task.cpu_limit_s,
                        max_result_bytes=max_result_bytes,
                        deadline_s=replica.deadline_ms / 1000,
                        price=replica.price,
                    )
                )
        relay_key = keys.relay_pass_key(master) if any(worker.relay != "never" for worker in workers.values()) else b""
        assigned = []
        for (worker_id, epoch), listed in tickets.items():
            worker = workers[worker_id]
            direct, relay_pass = worker.relay != "must", b""
            if worker.relay != "never":
                until_s = max(ticket.deadline_s for ticket in listed) + self._settings.late_grace_s
                relay_pass = make_pass(relay_key, account_id, worker_id, int(until_s * 1000))
            bundle = TicketBundle(worker_id, epoch, job_id, program_key, poll_key, listed, account_id)
            assigned.append(
                m.AssignedWorker(
                    worker_id=worker_id,
                    address=worker.address if direct else "",
                    port=worker.port if direct else 0,
                    slots=worker.slots,
                    tickets=seal_tickets(self._registry.worker_key(worker_id), bundle),
                    relay=worker.relay,
                    relay_pass=relay_pass,
                )
            )
        return assigned
