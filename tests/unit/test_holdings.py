"""What a worker holds, and which receipts it keeps: rules without I/O."""

from __future__ import annotations

import pytest

from ec262.config import WorkerSettings
from ec262.errors import SealBroken, TicketRefused
from ec262.protocol import messages as m
from ec262.protocol.receipts import Kind, Receipt
from ec262.protocol.sealing import seal
from ec262.protocol.tickets import Ticket, TicketBundle
from ec262.worker.holdings import HeldJob, Holdings, WorkerFull
from ec262.worker.outcomes import seal_result
from ec262.worker.unsettled import MAX_BUNDLE_RECEIPTS, SHOW_AGAIN_S, UnsettledReceipts

KEY = bytes(32)
NOW = 1000.0


def ticket(number: int, *, deadline_s: float = NOW + 60) -> Ticket:
    return Ticket(f"{number:032x}.0", KEY, KEY, KEY, 1.0, 1000, deadline_s, 1)


def bundle(*tickets: Ticket, job_id: str = "aa" * 16) -> TicketBundle:
    return TicketBundle("w", 1, job_id, KEY, job_id.encode(), list(tickets))


def take(held: Holdings, *tickets: Ticket, job_id: str = "aa" * 16, program: bytes = b"p", now_s: float = NOW) -> int:
    given = bundle(*tickets, job_id=job_id)
    tasks = [m.PushedTask(lease_id=each.lease_id, payload=[b"x" * 10]) for each in tickets]
    push = m.PushTasks(tickets=b"", program=[seal(KEY, program)], tasks=tasks)
    by_lease = {each.lease_id: each for each in tickets}
    return held.take(given, by_lease, push, capacity=100, now_s=now_s).taken


def run_one(held: Holdings) -> HeldJob:
    job = held.next_job()
    assert job is not None
    task = held.start(job)
    assert task is not None
    assert held.finish(task, seal_result(task.ticket, [b"r"], cpu_s=0.1))
    return job


def test_jobs_take_turns() -> None:
    held = Holdings(WorkerSettings(slots=1))
    for job_id in ("aa" * 16, "bb" * 16):
        take(held, *(ticket(int(job_id, 16) % 1000 + n) for n in range(3)), job_id=job_id)
    order = [run_one(held).job_id[:2] for _ in range(6)]
    assert order == ["aa", "bb"] * 3
    assert held.next_job() is None
    assert held.unfinished == 0


def test_cursors_only_grow_and_acknowledge_what_they_name() -> None:
    held = Holdings(WorkerSettings(slots=1), first_cursor=50)
    take(held, ticket(1), ticket(2), ticket(3))
    for _ in range(3):
        job = run_one(held)
    assert [finished.cursor for finished in held.deliver(job)] == [51, 52, 53]
    held.acknowledge(job, 52, NOW)
    assert [finished.cursor for finished in held.deliver(job)] == [53]
    held.acknowledge(job, 99, NOW)  # of a life before this one
    assert len(held.deliver(job)) == 1
    held.acknowledge(job, 53, NOW)
    assert (held.held_bytes, held.unacknowledged) == (0, 0)


def test_an_answer_is_bounded_in_number_and_bytes_but_never_empty() -> None:
    held = Holdings(WorkerSettings(slots=1, answer_results=2, answer_bytes=10))
    take(held, ticket(1), ticket(2))
    for _ in range(2):
        job = run_one(held)
    assert len(held.deliver(job)) == 1
    held = Holdings(WorkerSettings(slots=1, answer_results=2))
    take(held, *(ticket(n) for n in range(5)))
    for _ in range(5):
        job = run_one(held)
    assert len(held.deliver(job)) == 2


def test_results_nobody_wants_any_more_are_dropped_and_idle_jobs_forgotten() -> None:
    held = Holdings(WorkerSettings(slots=1, job_idle_s=100.0))
    take(held, ticket(1, deadline_s=NOW + 10), ticket(2, deadline_s=NOW + 500))
    for _ in range(2):
        run_one(held)
    assert held.sweep(NOW + 30) == 0
    assert held.sweep(NOW + 50) == 1
    assert held.sweep(NOW + 600) == 1
    assert held.held_bytes == 0
    assert held.sweep(NOW + 601) == 0
    assert held.jobs
    held.sweep(NOW + 701)
    assert not held.jobs
    assert held.program_bytes == 0


def test_a_lease_is_remembered_as_long_as_its_ticket_is_good() -> None:
    held = Holdings(WorkerSettings(slots=1))
    take(held, ticket(1))
    run_one(held)
    for later_s in (NOW + 30, NOW + 60, NOW + 89):
        held.sweep(later_s)
        assert take(held, ticket(1), now_s=later_s) == 1
        assert held.taken == 1
    with pytest.raises(TicketRefused):
        take(held, ticket(1), now_s=NOW + 91)
    held.sweep(NOW + 1000)
    assert not held._redeemed


def test_programs_of_idle_jobs_make_room_those_of_jobs_at_work_do_not() -> None:
    held = Holdings(WorkerSettings(slots=1, program_bytes=250))
    jobs = [f"{n:032x}" for n in range(1, 5)]
    take(held, job_id=jobs[0], program=b"p" * 100)
    take(held, ticket(1), job_id=jobs[1], program=b"p" * 100)
    take(held, job_id=jobs[2], program=b"p" * 100)
    assert [job_id for job_id, _ in held.jobs] == jobs[1:3]
    with pytest.raises(WorkerFull):
        take(held, job_id=jobs[3], program=b"p" * 200)
    with pytest.raises(WorkerFull):
        take(held, job_id=jobs[3], program=b"p" * 300)
    assert held.program_bytes == sum(len(job.program or b"") for job in held.jobs.values())


def test_a_program_under_another_key_changes_nothing() -> None:
    held = Holdings(WorkerSettings(slots=1))
    one = ticket(1)
    push = m.PushTasks(
        tickets=b"", program=[seal(bytes([1]) * 32, b"p")], tasks=[m.PushedTask(lease_id=one.lease_id, payload=[b"x"])]
    )
    with pytest.raises(SealBroken):
        held.take(bundle(one), {one.lease_id: one}, push, capacity=9, now_s=NOW)
    assert (held.taken, len(held.jobs), held.held_bytes) == (0, 0, 0)


def test_what_was_started_and_not_computed_is_queued_first_again() -> None:
    held = Holdings(WorkerSettings(slots=1))
    take(held, ticket(1), ticket(2))
    job = held.next_job()
    assert job is not None
    first, second = held.start(job), held.start(job)
    assert first is not None
    assert second is not None
    assert held.next_job() is None
    for task in (second, first):
        held.put_back(task)
    assert held.next_job() is job
    assert [task.ticket.lease_id for task in job.queue] == [first.ticket.lease_id, second.ticket.lease_id]
    assert (job.running, held.unfinished) == (0, 2)


def test_sequence_numbers_outlive_the_job() -> None:
    held = Holdings(WorkerSettings(slots=1, job_idle_s=1.0))
    take(held)
    ((key, job),) = held.jobs.items()
    assert held.accept_sequence(job, 5)
    held.sweep(NOW + 100)
    assert not held.jobs
    take(held)
    assert not held.accept_sequence(held.jobs[key], 5)
    assert held.accept_sequence(held.jobs[key], 6)


# --- receipts ---


def receipt(number: int) -> Receipt:
    return Receipt(f"{number:032x}.0", Kind.OK, KEY, [], 0.0)


def test_receipts_are_kept_until_settled_and_shown_when_late() -> None:
    kept = UnsettledReceipts(30.0)
    for number in range(3):
        kept.keep(receipt(number), 100.0 + number)
    assert kept.due(200.0) == []  # whether they are open is not known yet
    kept.settle([receipt(1).lease_id, receipt(2).lease_id], asked_s=110.0)
    assert len(kept) == 2
    assert kept.due(130.0) == []
    assert kept.due(131.5) == [[receipt(1)]]
    kept.mark_shown(kept.due(131.5), 131.5)
    assert kept.due(133.0) == [[receipt(2)]]
    assert kept.due(131.5 + SHOW_AGAIN_S + 1) == [[receipt(1), receipt(2)]]
    kept.settle([], asked_s=300.0)
    assert len(kept) == 0


def test_what_was_finished_after_discovery_was_asked_is_kept() -> None:
    kept = UnsettledReceipts(30.0)
    kept.keep(receipt(1), 100.0)
    kept.settle([], asked_s=99.0)
    assert len(kept) == 1


def test_bundles_are_bounded() -> None:
    kept = UnsettledReceipts(0.0)
    many = range(MAX_BUNDLE_RECEIPTS * 20)
    for number in many:
        kept.keep(receipt(number), 1.0)
    kept.settle([receipt(number).lease_id for number in many], asked_s=2.0)
    bundles = kept.due(3.0)
    assert [len(each) for each in bundles] == [MAX_BUNDLE_RECEIPTS] * 16
