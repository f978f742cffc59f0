"""Tickets and receipts: they open for whom they were sealed and for nobody else, and strangers' bytes are one error."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ec262.errors import SealBroken, TicketRefused
from ec262.protocol.keys import Label, derive
from ec262.protocol.receipts import (
    Kind,
    Receipt,
    ReceiptBundle,
    failure_commitment,
    open_receipts,
    result_commitment,
    seal_receipts,
)
from ec262.protocol.sealing import seal, unseal
from ec262.protocol.tickets import Ticket, TicketBundle, open_tickets, seal_tickets

QUICK = settings(max_examples=100, deadline=None)
KEY, OTHER_KEY = b"k" * 32, b"o" * 32
WORKER, OTHER_WORKER = "a" * 32, "b" * 32
byte_keys = st.binary(min_size=32, max_size=32)
seconds = st.floats(0, 1e12)
ids = st.text("0123456789abcdef", min_size=16, max_size=32)
lease_ids = st.builds(lambda task, number: f"{task}.{number}", ids, st.integers(0, 63))

tickets = st.builds(
    Ticket,
    lease_id=lease_ids,
    input_digest=byte_keys,
    input_key=byte_keys,
    result_key=byte_keys,
    cpu_limit_s=seconds,
    max_result_bytes=st.integers(0, 2**40),
    deadline_s=seconds,
    price=st.integers(0, 2**40),
)
ticket_bundles = st.builds(
    TicketBundle,
    worker_id=ids,
    epoch=st.integers(1, 2**40),
    job_id=ids,
    program_key=byte_keys,
    poll_key=byte_keys,
    tickets=st.lists(tickets, max_size=4),
)
receipts = st.builds(
    Receipt,
    lease_id=lease_ids,
    kind=st.sampled_from(Kind),
    commitment=byte_keys,
    token_digests=st.lists(byte_keys, max_size=3),
    cpu_s=st.floats(0, 1e8),
    reason=st.text(max_size=20),
)
receipt_bundles = st.builds(
    ReceiptBundle, worker_id=ids, epoch=st.integers(1, 2**40), receipts=st.lists(receipts, max_size=4)
)


def changed(token: bytes, at: int, other: int) -> bytes:
    at %= len(token)
    return token[:at] + bytes([other]) + token[at + 1 :]


# --- tickets --------------------------------------------------------------------------------------


@QUICK
@given(byte_keys, ticket_bundles)
def test_tickets_open_for_their_worker(key: bytes, bundle: TicketBundle) -> None:
    assert open_tickets(key, seal_tickets(key, bundle), worker_id=bundle.worker_id, epoch=bundle.epoch) == bundle


BUNDLE = TicketBundle(
    WORKER,
    3,
    "c" * 32,
    b"p" * 32,
    b"q" * 32,
    [Ticket("d" * 24 + ".0", b"1" * 32, b"2" * 32, b"3" * 32, 60.0, 9, 1.5, 1)],
)


def test_tickets_are_refused_by_anybody_else() -> None:
    token = seal_tickets(KEY, BUNDLE)
    with pytest.raises(TicketRefused, match="not sealed for this worker"):
        open_tickets(OTHER_KEY, token, worker_id=WORKER, epoch=3)
    with pytest.raises(TicketRefused, match="another worker"):
        open_tickets(KEY, token, worker_id=OTHER_WORKER, epoch=3)


@pytest.mark.parametrize("epoch", [0, 2, 4])
def test_tickets_of_another_epoch_are_refused(epoch: int) -> None:
    with pytest.raises(TicketRefused, match="started anew"):
        open_tickets(KEY, seal_tickets(KEY, BUNDLE), worker_id=WORKER, epoch=epoch)


@QUICK
@given(st.integers(0, 10**6), st.integers(0, 255))
def test_changed_tickets_are_refused(at: int, other: int) -> None:
    token = seal_tickets(KEY, BUNDLE)
    tampered = changed(token, at, other)
    if tampered == token:
        return
    with pytest.raises(TicketRefused):
        open_tickets(KEY, tampered, worker_id=WORKER, epoch=3)


def test_a_receipt_is_no_ticket_and_a_ticket_no_receipt() -> None:
    """Both are sealed under the worker's key, but each under a label of its own."""
    receipt = seal_receipts(KEY, ReceiptBundle(WORKER, 3, []))
    with pytest.raises(TicketRefused):
        open_tickets(KEY, receipt, worker_id=WORKER, epoch=3)
    with pytest.raises(SealBroken):
        open_receipts(KEY, seal_tickets(KEY, BUNDLE), worker_id=WORKER)


# --- receipts -------------------------------------------------------------------------------------


@QUICK
@given(byte_keys, receipt_bundles)
def test_receipts_open_for_discovery(key: bytes, bundle: ReceiptBundle) -> None:
    assert open_receipts(key, seal_receipts(key, bundle), worker_id=bundle.worker_id) == bundle


def test_receipts_of_another_worker_are_refused() -> None:
    token = seal_receipts(KEY, ReceiptBundle(WORKER, 1, []))
    with pytest.raises(SealBroken):
        open_receipts(OTHER_KEY, token, worker_id=WORKER)
    with pytest.raises(SealBroken, match="another worker"):
        open_receipts(KEY, token, worker_id=OTHER_WORKER)


@QUICK
@given(st.integers(0, 10**6), st.integers(0, 255))
def test_changed_receipts_are_refused(at: int, other: int) -> None:
    token = seal_receipts(
        KEY, ReceiptBundle(WORKER, 1, [Receipt("d" * 24 + ".0", Kind.OK, b"c" * 32, [b"t" * 32], 0.5)])
    )
    tampered = changed(token, at, other)
    if tampered == token:
        return
    with pytest.raises(SealBroken):
        open_receipts(KEY, tampered, worker_id=WORKER)


@pytest.mark.parametrize("size", [0, 31, 33])
def test_a_commitment_of_another_length_is_refused(size: int) -> None:
    token = seal_receipts(KEY, ReceiptBundle(WORKER, 1, [Receipt("x.0", Kind.OK, bytes(size), [], 0.0)]))
    with pytest.raises(SealBroken, match="another form"):
        open_receipts(KEY, token, worker_id=WORKER)


@pytest.mark.parametrize("digests", [[b""], [b"t" * 31], [b"t" * 33], [b"t" * 32, b""], [b"t" * 32] * 65_537])
def test_digests_that_no_dispute_can_name_are_refused(digests: list[bytes]) -> None:
    """An empty one, joined with none, would be the digest of a result of no tokens at all."""
    token = seal_receipts(KEY, ReceiptBundle(WORKER, 1, [Receipt("x.0", Kind.OK, b"c" * 32, digests, 0.0)]))
    with pytest.raises(SealBroken, match="another form"):
        open_receipts(KEY, token, worker_id=WORKER)


NO_BUNDLES = [
    b"",
    b"\xc1",
    b"\xff",
    b"\x93",
    b"\x93\xa1\xff\x01\x90",  # the worker id is not UTF-8
    b"\x94\xa1w\x01\x90" + b"\x91" * 100_000 + b"\xc0",  # a field nobody knows, nested past any stack
    b"\x93\xa1w\x01\xdd\xff\xff\xff\xff",  # four thousand million receipts, says the length
    msgspec.msgpack.encode([WORKER, 1]),
    msgspec.msgpack.encode([WORKER, "1", []]),
    msgspec.msgpack.encode([WORKER, 1, [["x.0", "paid", b"c" * 32, [], 0.0]]]),
    msgspec.msgpack.encode([WORKER, 1, [["x.0", "ok", None, [], 0.0]]]),
    msgspec.msgpack.encode({"worker_id": WORKER}),
]


@pytest.mark.parametrize("junk", NO_BUNDLES, ids=lambda junk: repr(junk[:12]))
def test_junk_that_a_worker_sealed_itself_is_refused(junk: bytes) -> None:
    with pytest.raises(SealBroken):
        open_receipts(KEY, seal(derive(KEY, Label.RECEIPT_SEAL), junk), worker_id=WORKER)
    with pytest.raises(TicketRefused):
        open_tickets(KEY, seal(derive(KEY, Label.TICKET_SEAL), junk), worker_id=WORKER, epoch=1)


@QUICK
@given(st.binary(max_size=60))
def test_any_bytes_that_a_worker_sealed_are_a_bundle_or_refused(junk: bytes) -> None:
    try:
        bundle = open_receipts(KEY, seal(derive(KEY, Label.RECEIPT_SEAL), junk), worker_id=WORKER)
    except SealBroken:
        return
    assert bundle.worker_id == WORKER


@QUICK
@given(receipt_bundles, st.data())
def test_changed_contents_are_a_bundle_or_refused(bundle: ReceiptBundle, data: st.DataObject) -> None:
    """What only the worker itself could seal: discovery must stand whatever is inside."""
    inside = bytearray(unseal(derive(KEY, Label.RECEIPT_SEAL), seal_receipts(KEY, bundle)))
    inside[data.draw(st.integers(0, len(inside) - 1))] ^= data.draw(st.integers(1, 255))
    try:
        opened = open_receipts(KEY, seal(derive(KEY, Label.RECEIPT_SEAL), bytes(inside)), worker_id=bundle.worker_id)
    except SealBroken:
        return
    assert all(len(receipt.commitment) == 32 for receipt in opened.receipts)


# --- commitments ----------------------------------------------------------------------------------


def test_commitments_differ_in_kind_and_in_facts() -> None:
    made = [
        result_commitment([]),
        result_commitment([b""]),
        result_commitment([b"x"]),
        result_commitment([b"ValueError", b"f.py:3"]),
        failure_commitment(Kind.ERROR, "ValueError", "f.py:3"),
        failure_commitment(Kind.ERROR, "ValueError", "f.py:4"),
        failure_commitment(Kind.ERROR, "ValueErrorf.py:3"),
        failure_commitment(Kind.LIMIT, "ValueError", "f.py:3"),
        failure_commitment(Kind.LIMIT, "cpu"),
        failure_commitment(Kind.REFUSED, "cpu"),
        failure_commitment(Kind.ERROR, "\ud800", ""),
    ]
    assert len(set(made)) == len(made)
    assert {len(commitment) for commitment in made} == {32}


def test_golden_commitments() -> None:
    assert result_commitment([b"x"]).hex() == "945f707e1e469d3c399ba0122322167115213f82162912de69827ab75fa900da"
    assert failure_commitment(Kind.ERROR, "ValueError", "f.py:3").hex() == (
        "59a8381abfd631ad578ff7bb207ff2de21191d7824a486e6e2fed5020684fe70"
    )
