"""MessagePack on the wire: it says what JSON says; what is not of its form is refused, cheaply, and moves nothing."""

from __future__ import annotations

import hashlib
import json
import math
import tracemalloc
from typing import Any

import msgspec
import pytest

from discovery.app import Discovery
from ec262.errors import Malformed
from ec262.protocol import messages as m
from ec262.protocol.openapi import openapi_document
from ec262.protocol.problems import CONTENT_TYPE
from ec262.protocol.routes import ROUTES, routes_of
from tests.parties import Caller, Foreman, Worker, answer_all

AS_PACKED = {"Content-Type": m.PACKED, "Accept": m.PACKED}
MOST_MEMORY = 16
"""Bytes that one of a body may take while it is read; a list of empty texts takes eight, and as much while it grows."""

pack = msgspec.msgpack.encode
unpack = msgspec.msgpack.decode


def both(caller: Caller, path: str, body: m.Message, kind: type[m.M]) -> tuple[m.M, m.M]:
    """What a route answers to the same message, first as JSON, then as MessagePack."""
    plain = caller.raw("POST", path, m.encode(body))
    packed = caller.raw("POST", path, m.encode(body, m.PACKED), **AS_PACKED)
    assert (plain.status_code, plain.content_type) == (200, m.JSON), plain.data
    assert (packed.status_code, packed.content_type) == (200, m.PACKED), packed.data
    assert len(packed.data) < len(plain.data)
    return m.decode(kind, plain.data), m.decode(kind, packed.data, m.PACKED)


# --- what is right --------------------------------------------------------------------------------


def test_a_job_goes_the_same_way_in_either_form(discovery: Discovery) -> None:
    """Leases, settlements, audits and disputes may be repeated: so the same is asked twice, in JSON and MessagePack."""
    foreman, owner = Foreman(discovery), Caller(discovery)
    workers = [Worker(owner), Worker(owner)]
    wanted = m.LeaseTasks(
        job_id=foreman.job_id,
        idempotency_key="k" * 12,
        tasks=[m.TaskWanted(input_digest=hashlib.sha256(bytes([n])).digest()) for n in range(6)],
        requirements=m.Requirements(python="3.11"),
        policy=m.Policy(redundancy=2, quorum=2),
    )
    leased, again = both(foreman, "/v1/tasks", wanted, m.Leased)
    assert len(leased.tasks) == 6
    assert (again.tasks, again.program_key, again.poll_key) == (leased.tasks, leased.program_key, leased.poll_key)
    for worker in workers:  # the tokens differ, for each is sealed anew
        assert worker.bundle(again) == worker.bundle(leased) is not None
    task_ids = [task.task_id for task in leased.tasks]

    shown = answer_all(leased, workers)
    settle = m.Settle(job_id=foreman.job_id, receipts=shown, decide=task_ids)
    settled, settled_again = both(foreman, "/v1/settlements", settle, m.Settled)
    assert [each.verdict for each in settled.tasks] == ["accepted"] * 6
    assert settled_again.tasks == settled.tasks
    assert settled_again.balance == settled.balance, "paid once"

    disputed = both(
        foreman,
        "/v1/disputes",
        m.Dispute(
            job_id=foreman.job_id,
            lease_id=next(iter(shown[0].arrived)),
            digests=[hashlib.sha256(b"junk").digest()],
            tokens=[m.ShownToken(position=0, token=b"junk")],
        ),
        m.Disputed,
    )
    assert disputed[0] == disputed[1]
    assert disputed[0].verdict == "unproven"

    audited = both(foreman, "/v1/audits", m.AuditTasks(job_id=foreman.job_id, tasks=task_ids, closing=True), m.Audited)
    assert audited[0] == audited[1]
    assert audited[0].closed


def test_the_form_of_a_body_and_that_of_its_answer_are_two_things(discovery: Discovery) -> None:
    foreman = Foreman(discovery)
    body = m.AuditTasks(job_id=foreman.job_id)
    for sent in (m.JSON, m.PACKED):
        for wanted in (m.JSON, m.PACKED):
            answer = foreman.raw("POST", "/v1/audits", m.encode(body, sent), **{"Content-Type": sent, "Accept": wanted})
            assert (answer.status_code, answer.content_type) == (200, wanted)
            assert m.decode(m.Audited, answer.data, wanted) == m.Audited(recompute=[], unknown=[])


@pytest.mark.parametrize(
    "accept",
    [
        None,
        "",
        "*/*",
        m.JSON,
        "application/*",
        f"{m.JSON}, {m.PACKED}",
        f"{m.PACKED};q=0.9, {m.JSON};q=0.1",
        "text/html",
    ],
)
def test_who_does_not_ask_for_messagepack_alone_is_answered_in_json(discovery: Discovery, accept: str | None) -> None:
    foreman = Foreman(discovery)
    headers = {"Content-Type": m.PACKED} if accept is None else {"Content-Type": m.PACKED, "Accept": accept}
    body = m.encode(m.AuditTasks(job_id=foreman.job_id), m.PACKED)
    answer = foreman.raw("POST", "/v1/audits", body, **headers)
    assert (answer.status_code, answer.content_type) == (200, m.JSON)
    assert answer.get_json()["recompute"] == []


def test_every_message_is_documented_in_both_forms_and_answered_so(discovery: Discovery) -> None:
    caller = Caller(discovery)
    paths = openapi_document("discovery", "1")["paths"]
    for route in routes_of("discovery"):
        if route.response is None:
            continue
        told = paths[route.path.replace("<", "{").replace(">", "}")][route.method.lower()]
        assert set(told["responses"]["200"]["content"]) == {m.JSON, m.PACKED}, route.name
        if route.request is not None:
            assert set(told["requestBody"]["content"]) == {m.JSON, m.PACKED}, route.name
        elif "<" not in route.path:
            answer = caller.raw("GET", route.path, Accept=m.PACKED)
            assert (answer.status_code, answer.content_type) == (200, m.PACKED), route.name
            m.decode(route.response, answer.data, m.PACKED)


def test_what_is_wrong_is_told_in_json_whatever_was_asked_for(discovery: Discovery) -> None:
    foreman, nobody = Foreman(discovery), Caller(discovery)
    nobody.account = m.AccountCreated(account_id="ab" * 16, secret="x", balance=0)
    good = m.encode(m.Settle(job_id=foreman.job_id), m.PACKED)
    for caller, body, headers, code in (
        (foreman, good[:-1], {}, "malformed-body"),
        (foreman, b"", {}, "malformed-body"),
        (nobody, good, {}, "unauthorized"),
        (foreman, good, {"Content-Type": "application/msgpack"}, "unsupported-media-type"),
        (foreman, good, {"Content-Type": m.JSON}, "malformed-body"),
        (foreman, m.encode(m.Settle(job_id=foreman.job_id)), {}, "malformed-body"),
    ):
        answer = caller.raw("POST", "/v1/settlements", body, **{**AS_PACKED, **headers})
        assert answer.content_type == CONTENT_TYPE
        assert m.decode(m.Problem, answer.data).code == code


# --- what is hostile ------------------------------------------------------------------------------


def array(declared: int) -> bytes:
    """The head of an array, whatever follows."""
    return b"\xdd" + declared.to_bytes(4, "big")


def mapping(declared: int) -> bytes:
    """The head of a map, whatever follows."""
    return b"\xdf" + declared.to_bytes(4, "big")


def settlement(fields: int = 2, **more: bytes) -> bytes:
    """A settlement whose further fields are these bytes."""
    head = bytes([0x80 + fields]) + pack("job_id") + pack(Foreman.job_id)
    return head + b"".join(pack(name) + value for name, value in more.items())


def shown(**more: bytes) -> bytes:
    """A settlement of one receipt bundle whose further fields are these bytes."""
    bundle = bytes([0x81 + len(more)]) + pack("worker_id") + pack("ab" * 16)
    return settlement(receipts=b"\x91" + bundle + b"".join(pack(name) + value for name, value in more.items()))


MANY = 2**32 - 1
HOSTILE: dict[str, tuple[type[m.Message], bytes]] = {
    # More is promised than comes.
    "a map of billions": (m.Settle, mapping(MANY) + pack("job_id") + pack(Foreman.job_id)),
    "tasks by the billion": (m.Settle, settlement(decide=array(MANY))),
    "as many tasks as may be, and none": (m.Settle, settlement(decide=array(1000))),
    "an unknown field of billions": (m.Settle, settlement(unknown=array(MANY))),
    "an unknown map of billions": (m.Settle, settlement(unknown=mapping(MANY))),
    "results by the billion": (m.Settle, shown(token=b"\xc4\x00", arrived=mapping(MANY))),
    "as many results as may be, and none": (m.Settle, shown(token=b"\xc4\x00", arrived=mapping(m.MAX_ARRIVED))),
    "a token of 4 GB": (m.Settle, shown(token=b"\xc6\xff\xff\xff\xff")),
    "a token of 8 MB": (m.Settle, shown(token=b"\xc6\x00\x80\x00\x00")),
    "a text of 4 GB": (m.Settle, settlement(decide=b"\x91\xdb\xff\xff\xff\xff")),
    "an extension of 4 GB": (m.Settle, settlement(unknown=b"\xc9\xff\xff\xff\xff\x05")),
    "layers by the billion": (m.RegisterWorker, b"\x81" + pack("layers") + array(MANY)),
    "layers by the billion, some of them there": (
        m.RegisterWorker, b"\x81" + pack("layers") + array(MANY) + b"\xa0" * 60_000),
    "payloads by the billion": (
        m.PushTasks,
        b"\x82" + pack("tickets") + b"\xc4\x00" + pack("tasks") + b"\x91\x81" + pack("payload") + array(MANY)),
    # More comes than anybody needs.
    "a nest of lists": (m.Settle, b"\x91" * 100_000),
    "a nest of lists nobody knows": (m.Settle, settlement(unknown=b"\x91" * 1_000_000)),
    "a nest of maps nobody knows": (m.Settle, settlement(unknown=b"\x81\x01" * 500_000)),
    "a nest of maps for keys": (m.Settle, settlement(unknown=b"\x81" * 1_000_000)),
    "a million empty tokens": (
        m.Heartbeat,
        b"\x82" + pack("boot_id") + pack("ab" * 16) + pack("receipts") + array(10**6) + b"\xc4\x00" * 10**6),
    "empty layers": (m.RegisterWorker, b"\x81" + pack("layers") + array(60_000) + b"\xa0" * 60_000),
    "a field a hundred times": (m.Settle, b"\xde\x00\x64" + (pack("decide") + pack(["ab" * 16] * 1000)) * 100),
    "something after it": (m.Settle, settlement(1) + b"\x00"),
    # Other types.
    "base64 for bytes": (m.Settle, shown(token=pack("AAAA"))),
    "bytes for a text": (m.Settle, settlement(decide=pack([b"ab" * 16]))),
    "a text for a list": (m.Settle, settlement(decide=pack("ab" * 16))),
    "a number for a name": (m.Settle, settlement() + b"\x01\x01"),
    "bytes for a name": (m.Settle, settlement() + pack(b"decide") + b"\x90"),
    "nothing": (m.Settle, b"\xc0"),
    "a code that is none": (m.Settle, settlement(unknown=b"\xc1")),
    "a time": (m.Settle, shown(token=b"\xd6\xff\x00\x00\x00\x00")),
    "not a number": (m.Policy, pack({"confidence": math.nan})),
    "no end": (m.TaskWanted, pack({"input_digest": bytes(32), "cpu_limit_s": math.inf})),
    "a whole number of 64 bits": (m.JobReport, pack({"state": "running", "tasks_done": 2**64 - 1})),
    # Texts that are none.
    "not UTF-8": (m.Settle, settlement(decide=b"\x91\xb0" + b"\xff" * 16)),
    "half a character": (m.CreateAccount, b"\x81" + pack("name") + b"\xa1\xc3"),
    "a surrogate": (m.CreateAccount, b"\x81" + pack("name") + b"\xa3\xed\xa0\x80"),
    "too long a way to say a letter": (m.CreateAccount, b"\x81" + pack("name") + b"\xa2\xc1\xa1"),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_what_is_hostile_is_malformed_and_takes_little_memory(name: str) -> None:
    kind, body = HOSTILE[name]
    tracemalloc.start()
    try:
        with pytest.raises(Malformed):
            m.decode(kind, body, m.PACKED)
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert most < MOST_MEMORY * len(body) + 100_000


def test_what_is_hostile_moves_nothing(discovery: Discovery) -> None:
    """The attacks, over HTTP, by an account that has credits and open tasks and might lose or win some."""
    foreman, worker = Foreman(discovery), Worker(Caller(discovery))
    leased = foreman.lease(1)
    path_of = {
        route.request: route.path.replace("<worker_id>", worker.worker_id).replace("<job_id>", foreman.job_id)
        for route in ROUTES
        if route.party == "discovery"
    }
    method_of = {route.request: route.method for route in ROUTES if route.party == "discovery"}
    before = discovery.store.balances(), discovery.store.books.waiting()
    asked = 0
    for name, (kind, body) in HOSTILE.items():
        if kind in path_of:
            asked += 1
            caller = worker.caller if kind in (m.Heartbeat, m.RegisterWorker) else foreman
            answer = caller.raw(method_of[kind], path_of[kind], body, **AS_PACKED)
            assert answer.status_code == 400, name
            assert m.decode(m.Problem, answer.data).code == "malformed-body", name
    assert asked > 25
    assert (discovery.store.balances(), discovery.store.books.waiting()) == before
    (task,) = foreman.settle(answer_all(leased, [worker]), [leased.tasks[0].task_id]).tasks
    assert task.verdict == "accepted"


@pytest.mark.parametrize("cut", [True, False])
def test_a_settlement_that_breaks_off_or_goes_on_is_none(discovery: Discovery, cut: bool) -> None:
    """The attack: half a settlement is heard for a whole one. At whatever byte it ends, it is none."""
    foreman, worker = Foreman(discovery), Worker(Caller(discovery))
    leased = foreman.lease(1)
    whole = m.Settle(job_id=foreman.job_id, receipts=answer_all(leased, [worker]), decide=[leased.tasks[0].task_id])
    body = m.encode(whole, m.PACKED)
    before = discovery.store.balances(), discovery.store.books.waiting()
    for at in range(len(body)) if cut else range(256):
        wrong = body[:at] if cut else body + bytes([at])
        assert foreman.raw("POST", "/v1/settlements", wrong, **AS_PACKED).status_code == 400
    assert (discovery.store.balances(), discovery.store.books.waiting()) == before


def test_a_name_that_repeats_means_the_same_in_either_form() -> None:
    """The attack: who looks at the first of two fields is told another thing than who looks at the last."""
    twice = [("job_id", "ab" * 16), ("decide", ["cd" * 16]), ("job_id", "ef" * 16), ("decide", [])]
    packed = bytes([0x80 + len(twice)]) + b"".join(pack(name) + pack(value) for name, value in twice)
    plain = "{" + ",".join(f"{json.dumps(name)}:{json.dumps(value)}" for name, value in twice) + "}"
    last = m.Settle(job_id="ef" * 16)
    assert m.decode(m.Settle, packed, m.PACKED) == m.decode(m.Settle, plain.encode()) == last
    # A field is checked each time, not only where it counts.
    wrong = bytes([0x82]) + pack("job_id") + pack("../..") + pack("job_id") + pack("ab" * 16)
    with pytest.raises(Malformed):
        m.decode(m.Settle, wrong, m.PACKED)


def test_of_results_that_repeat_one_counts(discovery: Discovery) -> None:
    """The attack: a foreman says of one lease that its result came and that another one did, to pay for neither."""
    foreman, worker = Foreman(discovery), Worker(Caller(discovery))
    leased = foreman.lease(1)
    (lease_id,) = [replica.lease_id for replica in leased.tasks[0].replicas]
    (bundle,) = answer_all(leased, [worker])
    fields: dict[str, Any] = unpack(m.encode(bundle, m.PACKED))
    arrived = b"\x82" + (pack(lease_id) + pack(bytes(32))) + (pack(lease_id) + pack(fields["arrived"][lease_id]))
    body = b"\x83" + pack("job_id") + pack(foreman.job_id) + pack("decide") + pack([leased.tasks[0].task_id])
    body += pack("receipts") + b"\x91\x83" + pack("worker_id") + pack(worker.worker_id)
    body += pack("token") + pack(bundle.token) + pack("arrived") + arrived
    answer = foreman.raw("POST", "/v1/settlements", body, **AS_PACKED)
    (verdict,) = m.decode(m.Settled, answer.data, m.PACKED).tasks
    assert (verdict.verdict, len(verdict.keys)) == ("accepted", 1)
    assert worker.caller.state.earned == 1
