"""What a worker refuses over HTTP: bad tickets, too much, junk; and that nothing changes by it."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest

from ec262.config import WorkerSettings
from ec262.protocol import messages as m
from ec262.protocol.routes import routes_of
from ec262.protocol.sealing import seal
from ec262.worker.service import Worker
from tests.worker_peers import EPOCH, Foreman, code_of, make_worker, state_of


def _spin(key: Any, value: Any) -> Any:
    end = 10**value
    count = 0
    while count < end:
        count += 1
    yield key, count


# --- tickets ---


@pytest.mark.parametrize(
    "changes", [{"worker_id": "cd" * 16}, {"epoch": EPOCH - 1}, {"epoch": EPOCH + 1}, {"worker_key": bytes(32)}]
)
def test_tickets_for_others_or_of_other_epochs_are_refused(
    foreman: Foreman, worker: Worker, changes: dict[str, Any]
) -> None:
    leases = foreman.lease([1])
    before = state_of(worker)
    answer = foreman.post(foreman.message(leases, tickets=foreman.bundle(leases, **changes)))
    assert code_of(answer) == (403, "ticket-refused")
    assert state_of(worker) == before


def test_a_lease_past_its_deadline_takes_the_whole_push_down(foreman: Foreman, worker: Worker) -> None:
    leases = [*foreman.lease([1]), *foreman.lease([2], timeout_s=-60)]
    before = state_of(worker)
    assert code_of(foreman.post(foreman.message(leases))) == (403, "ticket-refused")
    assert state_of(worker) == before


def test_a_lease_outside_the_bundle_is_refused(foreman: Foreman, worker: Worker) -> None:
    mine, other = foreman.lease([1, 2])
    before = state_of(worker)
    answer = foreman.post(foreman.message([mine, other], tickets=foreman.bundle([mine])))
    assert code_of(answer) == (403, "ticket-refused")
    assert state_of(worker) == before


def test_no_more_is_taken_than_the_capacity(tmp_path: Path) -> None:
    with make_worker(tmp_path, capacity=2) as worker:
        foreman = Foreman(worker.server.port, _spin)
        leases = foreman.lease([0, 0, 0])
        # Until this test waits for something, no slot runs: a push is judged as a whole.
        assert foreman.push(leases).taken == 2
        foreman.collect(2)
        assert foreman.push(leases[2:]).taken == 1
        foreman.collect(1)
        worker.hurry()


def test_beyond_its_memory_a_worker_takes_nothing(tmp_path: Path) -> None:
    settings = WorkerSettings(port=0, slots=1, held_bytes=2000)
    with make_worker(tmp_path, settings) as worker:
        foreman = Foreman(worker.server.port)
        assert code_of(foreman.post(foreman.message(foreman.lease(["x" * 5000])))) == (503, "unavailable")
        assert worker.holdings.taken == 0
        foreman.push(foreman.lease([1]))
        foreman.collect(1)
        worker.hurry()


# --- bytes from strangers ---

JUNK = [
    b"", b"{", b"[]", b"null", b"\xff\xfe", b'{"tickets": 5}', b'{"tickets": "x"}', b"{}" * 10, b"[" * 100_000,
    b'{"tickets": "\xc3\xa9", "tasks": []}', b'{"tickets": "' + b"A" * 200 + b'", "tasks": 7}',
]  # fmt: skip


def test_a_push_may_be_json_or_messagepack_and_its_results_too(foreman: Foreman) -> None:
    leases = foreman.lease([1, 2])
    for lease_id, media in zip(leases, (m.JSON, m.PACKED), strict=True):
        body = m.encode(foreman.message([lease_id]), media)
        status, answer = foreman.call("POST", "/v1/tasks", body, {"Content-Type": media})
        assert (status, m.decode(m.Pushed, answer).taken) == (200, 1)
    foreman.collect(2)
    target = f"/v1/jobs/{foreman.job_id}/results?after=0&wait_s=0"
    headers = {"Accept": m.PACKED, **foreman.authorized("GET", target)}
    response = foreman.http.request("GET", target, headers=headers)
    assert response.get("content-type") == m.PACKED
    assert m.decode(m.Results, bytes(response.read()), m.PACKED).receipts


@pytest.mark.parametrize("body", [b"", b"\x80", b"\xc1", b"\xdf\xff\xff\xff\xff", b"\x91" * 100_000, b"{}"])
def test_junk_as_messagepack_is_refused_and_changes_nothing(foreman: Foreman, worker: Worker, body: bytes) -> None:
    before = state_of(worker)
    status, answer = foreman.call("POST", "/v1/tasks", body, {"Content-Type": m.PACKED})
    assert code_of((status, answer)) == (400, "malformed-body")
    assert state_of(worker) == before


@pytest.mark.parametrize("body", JUNK, ids=range(len(JUNK)))
def test_junk_is_refused_and_changes_nothing(foreman: Foreman, worker: Worker, body: bytes) -> None:
    before = state_of(worker)
    for route in routes_of("worker"):
        target = route.path.replace("<job_id>", foreman.job_id)
        for kind in ("application/json", "text/plain", ""):
            headers = {"Content-Type": kind} if kind else {}
            status, answer = foreman.call(route.method, target, body, headers)
            if route.auth == "none" and route.request is None:
                assert status == 200  # takes no body and reads none
            else:
                assert 400 <= status < 500, (route, answer)
                code_of((status, answer))
    assert state_of(worker) == before


def _mangled(foreman: Foreman, leases: list[str]) -> list[dict[str, Any]]:
    good = json.loads(m.encode(foreman.message(leases)))
    bad = [{**good, "tasks": None}, {**good, "tasks": "x"}, {**good, "program": 3}, {**good, "program": ["x"]}]
    other = base64.b64encode(seal(bytes(32), b"x")).decode()
    bad += [{**good, "tasks": good["tasks"] * 1001}, {**good, "program": [other]}]
    fields = [("lease_id", "../.."), ("lease_id", "\0"), ("payload", []), ("payload", "x"), ("payload", [1])]
    for field, value in fields:
        bad.append({**good, "tasks": [{**good["tasks"][0], field: value}]})
    return bad


def test_a_good_ticket_does_not_excuse_a_bad_body(foreman: Foreman, worker: Worker) -> None:
    leases = foreman.lease([1])
    before = state_of(worker)
    for body in _mangled(foreman, leases):
        answer = foreman.call("POST", "/v1/tasks", json.dumps(body).encode(), {"Content-Type": "application/json"})
        assert code_of(answer) == (400, "malformed-body")
        assert state_of(worker) == before
    assert foreman.push(leases).taken == 1
    foreman.collect(1)


@pytest.mark.parametrize("query", ["after=x", "after=-1", "wait_s=nan", "wait_s=-1", "wait_s=inf", "after=1e3"])
def test_a_poll_with_odd_numbers_is_refused(foreman: Foreman, query: str) -> None:
    foreman.push([])
    target = f"/v1/jobs/{foreman.job_id}/results?{query}"
    assert code_of(foreman.call("GET", target, headers=foreman.authorized("GET", target))) == (400, "bad-request")


def test_unknown_paths_and_methods_are_problems_too(foreman: Foreman) -> None:
    assert code_of(foreman.call("GET", "/v1/nowhere")) == (404, "not-found")
    assert code_of(foreman.call("PUT", "/v1/tasks", b"{}")) == (405, "method-not-allowed")
    assert code_of(foreman.call("GET", "/v1/jobs/none/results")) == (404, "unknown-job")


def test_an_oversized_body_is_refused_unread(foreman: Foreman, worker: Worker) -> None:
    before = state_of(worker)
    headers = {"Content-Type": "application/json", "Content-Length": str(1 << 40)}
    assert code_of(foreman.call("POST", "/v1/tasks", b"{", headers)) == (413, "body-too-large")
    assert state_of(worker) == before


def test_before_discovery_has_let_it_in_a_worker_takes_nothing(foreman: Foreman, worker: Worker) -> None:
    worker.registration.standing = None
    assert code_of(foreman.post(foreman.message(foreman.lease([1])))) == (503, "unavailable")
