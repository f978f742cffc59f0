"""A worker over real HTTP with its real sandbox; the test plays discovery (seals tickets) and the foreman."""

from __future__ import annotations

import hashlib
from typing import Any

import gevent
import pytest

from ec262.mapreduce.blocks import batches_of
from ec262.protocol import messages as m
from ec262.protocol.canonical import decode_value
from ec262.protocol.receipts import Kind, failure_commitment, result_commitment
from ec262.protocol.sealing import seal
from ec262.worker.service import Worker
from tests.worker_peers import Foreman, code_of, state_of


def _fail(key: Any, value: Any) -> Any:
    yield key, 1 // value


def _spin(key: Any, value: Any) -> Any:
    end = 10**value
    count = 0
    while count < end:
        count += 1
    yield key, count


# --- the way of a task ---


def test_tasks_are_run_sealed_and_vouched_for(foreman: Foreman) -> None:
    leases = foreman.lease([1, 2, 3])
    assert foreman.push(leases) == m.Pushed(taken=3)
    results, receipts = foreman.collect(3)
    for lease_id, value in zip(leases, [2, 4, 6], strict=True):
        parts = foreman.open(results[lease_id])
        assert list(batches_of(parts[0])) == [(["k"], [[value]])]
        receipt = receipts[lease_id]
        assert receipt.kind == Kind.OK
        assert receipt.commitment == result_commitment(parts)
        digests = [hashlib.sha256(token).digest() for token in results[lease_id].tokens]
        assert receipt.token_digests == digests


def test_a_lease_is_run_once_however_often_it_is_pushed(foreman: Foreman, worker: Worker) -> None:
    leases = foreman.lease([1, 2])
    message = foreman.message(leases)
    for _ in range(3):
        status, body = foreman.post(message)
        assert (status, m.decode(m.Pushed, body)) == (200, m.Pushed(taken=2))
    assert foreman.push(leases) == m.Pushed(taken=2)  # the same leases in a bundle sealed anew
    results, _ = foreman.collect(2)
    assert set(results) == set(leases)
    assert worker.holdings.taken == 2
    assert foreman.poll(wait_s=0.05).results == []
    assert foreman.push(leases).taken == 2  # also after the results were fetched
    assert worker.holdings.taken == 2


def test_the_program_is_asked_for_once(foreman: Foreman) -> None:
    first, second = foreman.lease([1]), foreman.lease([2])
    assert foreman.push(first, program=False) == m.Pushed(taken=0, missing_program=True)
    assert foreman.push(first) == m.Pushed(taken=1)
    assert foreman.push(second, program=False) == m.Pushed(taken=1)
    foreman.collect(2)


def test_an_exception_is_an_outcome_with_type_and_line(worker: Worker) -> None:
    foreman = Foreman(worker.server.port, _fail)
    (lease_id,) = foreman.lease([0])
    foreman.push([lease_id])
    results, receipts = foreman.collect(1)
    error = decode_value(foreman.open(results[lease_id])[0])
    assert error["type"] == "ZeroDivisionError"
    assert receipts[lease_id].kind == Kind.ERROR
    assert receipts[lease_id].commitment == failure_commitment(Kind.ERROR, error["type"], error["line"])
    assert receipts[lease_id].token_digests


def test_a_limit_is_an_outcome(worker: Worker) -> None:
    foreman = Foreman(worker.server.port, _spin)
    (lease_id,) = foreman.lease([15], cpu_limit_s=0.2)
    foreman.push([lease_id])
    results, receipts = foreman.collect(1)
    assert receipts[lease_id].kind == Kind.LIMIT
    assert receipts[lease_id].commitment == failure_commitment(Kind.LIMIT, "cpu")
    assert decode_value(foreman.open(results[lease_id])[0])["limit"] == "cpu"


def test_large_results_come_in_several_tokens(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ec262.worker.outcomes.PIECE_BYTES", 100)
    foreman = Foreman(worker.server.port)
    (lease_id,) = foreman.lease(["x" * 500])
    foreman.push([lease_id])
    results, receipts = foreman.collect(1)
    assert len(results[lease_id].tokens) > 5
    assert list(batches_of(foreman.open(results[lease_id])[0])) == [(["k"], [["x" * 1000]])]
    assert len(receipts[lease_id].token_digests) == len(results[lease_id].tokens)


# --- what is refused with a receipt: nobody is paid, nothing is run ---


def refused(foreman: Foreman, lease_id: str, payload: bytes) -> str:
    """The reason of the refusal that a payload gets."""
    message = m.PushTasks(
        tickets=foreman.bundle([lease_id]),
        program=[seal(foreman.program_key, foreman.blob)],
        tasks=[m.PushedTask(lease_id=lease_id, payload=[seal(foreman.tickets[lease_id].input_key, payload)])],
    )
    assert foreman.post(message)[0] == 200
    results, receipts = foreman.collect(1)
    assert results[lease_id].tokens == []
    receipt = receipts[lease_id]
    assert receipt.kind == Kind.REFUSED
    assert receipt.commitment == failure_commitment(Kind.REFUSED, receipt.reason)
    assert receipt.cpu_s == 0
    return receipt.reason


def test_another_input_than_leased_is_refused(foreman: Foreman) -> None:
    mine, other = foreman.lease([1, 2])
    assert "not the one" in refused(foreman, mine, foreman.inputs[other])


def test_a_malformed_input_is_refused(foreman: Foreman) -> None:
    (lease_id,) = foreman.lease([1])
    assert "malformed" in refused(foreman, lease_id, b"junk")


def test_an_input_for_another_program_is_refused(foreman: Foreman) -> None:
    (lease_id,) = foreman.lease([1], digest="0" * 64)
    assert "another program" in refused(foreman, lease_id, foreman.inputs[lease_id])


def test_an_input_under_another_key_is_refused(foreman: Foreman) -> None:
    (lease_id,) = foreman.lease([1])
    message = foreman.message([lease_id])
    wrong = m.PushedTask(lease_id=lease_id, payload=[seal(bytes(32), foreman.inputs[lease_id])])
    foreman.post(m.PushTasks(tickets=message.tickets, program=message.program, tasks=[wrong]))
    assert foreman.collect(1)[1][lease_id].kind == Kind.REFUSED


# --- polls ---


def test_results_stay_until_a_later_cursor_is_named(foreman: Foreman) -> None:
    foreman.push(foreman.lease([1]))
    first = foreman.poll()
    again = foreman.poll()
    assert again.results == first.results
    assert again.cursor == first.cursor
    assert foreman.poll(after=first.cursor + 10**6, wait_s=0.05).results == first.results  # never given: no effect
    assert foreman.poll(after=first.cursor, wait_s=0.05).results == []
    assert foreman.poll(after=0, wait_s=0.05).results == []


def test_a_poll_waits_until_there_is_a_result(foreman: Foreman) -> None:
    foreman.push([])  # the job is known
    waiting = gevent.spawn(foreman.poll)
    gevent.sleep(0.1)
    assert not waiting.ready()
    (lease_id,) = foreman.lease([1])
    foreman.push([lease_id], program=False)
    answer = waiting.get(timeout=20)
    assert [result.lease_id for result in answer.results] == [lease_id]
    assert answer.held == 0


def test_of_two_polls_the_older_answers_empty_at_once(foreman: Foreman) -> None:
    foreman.push([])
    older = gevent.spawn(foreman.poll)
    gevent.sleep(0.05)
    newer = gevent.spawn(foreman.poll)
    assert older.get(timeout=10).results == []
    foreman.push(foreman.lease([1]), program=False)
    assert len(newer.get(timeout=20).results) == 1


def test_only_the_jobs_foreman_polls_and_no_request_twice(foreman: Foreman, worker: Worker) -> None:
    foreman.push(foreman.lease([1]))
    target = f"/v1/jobs/{foreman.job_id}/results?after=0&wait_s=1"
    good = foreman.authorized("GET", target)
    stranger = Foreman(worker.server.port)
    stranger.job_id = foreman.job_id
    for headers in ({}, {"Authorization": "Basic eDp5"}, stranger.authorized("GET", target)):
        assert code_of(foreman.call("GET", target, headers=headers)) == (401, "unauthorized")
    assert code_of(foreman.call("GET", target + "0", headers=good)) == (401, "unauthorized")
    assert code_of(foreman.call("DELETE", f"/v1/jobs/{foreman.job_id}", headers=good)) == (401, "unauthorized")
    assert foreman.call("GET", target, headers=good)[0] == 200
    assert code_of(foreman.call("GET", target, headers=good)) == (401, "unauthorized")
    earlier = foreman.authorized("GET", target, sequence=0)
    assert code_of(foreman.call("GET", target, headers=earlier)) == (401, "unauthorized")


def test_the_same_job_id_of_two_foremen_is_two_jobs(worker: Worker, foreman: Foreman) -> None:
    other = Foreman(worker.server.port)
    other.job_id = foreman.job_id
    assert other.poll_key != hashlib.sha256(foreman.job_id.encode()).digest()
    (mine,), (theirs,) = foreman.lease([1]), other.lease([2])
    foreman.push([mine])
    other.push([theirs])
    assert list(foreman.collect(1)[0]) == [mine]
    assert list(other.collect(1)[0]) == [theirs]


# --- the end of things ---


def test_a_cancelled_job_gives_back_what_was_not_started(worker: Worker) -> None:
    foreman = Foreman(worker.server.port, _spin)
    leases = foreman.lease([7, *[0] * 20], cpu_limit_s=20)
    foreman.push(leases)
    while not any(job.running for job in worker.holdings.jobs.values()):
        gevent.sleep(0.002)
    given_back = foreman.cancel().refused
    assert given_back >= 1
    _, receipts = foreman.collect(len(leases))
    kinds = [receipt.kind for receipt in receipts.values()]
    assert kinds.count(Kind.REFUSED) == given_back
    assert receipts[leases[0]].kind == Kind.OK  # what runs goes on
    assert {receipt.reason for receipt in receipts.values()} <= {"", "cancelled"}


def test_a_new_epoch_voids_what_was_taken(worker: Worker, foreman: Foreman) -> None:
    leases = foreman.lease([1])
    foreman.push(leases)
    worker._start_anew()
    target = f"/v1/jobs/{foreman.job_id}/results?after=0"
    assert code_of(foreman.call("GET", target, headers=foreman.authorized("GET", target))) == (404, "unknown-job")
    gevent.sleep(0.3)  # a unit that was at work finds nobody to deliver to
    assert state_of(worker)[1:4] == (0, 0, 0)
    foreman.push(leases)
    foreman.collect(1)


def test_a_worker_that_leaves_finishes_first(worker: Worker, foreman: Foreman) -> None:
    worker.registration.leave = lambda: None  # type: ignore[method-assign] # no discovery here
    leases = foreman.lease(list(range(10)))
    foreman.push(leases)
    leaving = gevent.spawn(worker.serve_until_asked)
    worker.ask_to_leave()
    gevent.sleep(0.05)
    results, _ = foreman.collect(10)
    assert set(results) == set(leases)
    foreman.poll(wait_s=0.0)  # acknowledges
    leaving.get(timeout=10)
