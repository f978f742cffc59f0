"""Disputes: junk is told from honest bytes by what the receipt commits to, and nobody gains by a false claim."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence

import pytest

from discovery.app import Discovery
from ec262.protocol import messages as m
from ec262.protocol.framing import frame_parts
from ec262.protocol.receipts import (
    Kind,
    Receipt,
    ReceiptBundle,
    digests_of,
    result_commitment,
    seal_receipts,
    tokens_digest,
)
from ec262.protocol.sealing import seal
from ec262.protocol.states import TaskState
from tests.conftest import MakeDiscovery
from tests.parties import Caller, Foreman, Problem, Worker

PARTS = [b"honest", b"parts"]
JUNK = os.urandom(100)


class Sold:
    """A replica that was paid, and the tokens that its worker delivered."""

    def __init__(
        self, discovery: Discovery, tokens: Sequence[bytes] | None = None, plain: bytes | None = None, **policy: object
    ) -> None:
        self.discovery = discovery
        self.worker = Worker(Caller(discovery))
        self.foreman = Foreman(discovery)
        leased = self.foreman.lease(1, **policy)  # type: ignore[arg-type]
        (self.task,) = leased.tasks
        (ticket,) = self.worker.tickets(leased)
        self.lease_id = ticket.lease_id
        framed = frame_parts(PARTS) if plain is None else plain
        cut = [framed[: len(framed) // 2], framed[len(framed) // 2 :]]
        self.tokens = list(tokens) if tokens is not None else [seal(ticket.result_key, piece) for piece in cut]
        digests = digests_of(self.tokens)
        receipt = Receipt(self.lease_id, Kind.OK, result_commitment(PARTS), digests, 0.5)
        bundle = ReceiptBundle(self.worker.worker_id, self.worker.registered.epoch, [receipt])
        token = seal_receipts(self.worker.registered.worker_key, bundle)
        arrived = {self.lease_id: tokens_digest(digests)}
        shown = m.SealedReceipts(worker_id=self.worker.worker_id, token=token, arrived=arrived)
        (self.verdict,) = self.foreman.settle([shown], [self.task.task_id]).tasks
        assert self.verdict.verdict == "accepted"

    def dispute(
        self,
        positions: Sequence[int] | None = None,
        tokens: Sequence[bytes] | None = None,
        foreman: Foreman | None = None,
    ) -> m.Disputed:
        """Shows tokens, all that were delivered unless told otherwise."""
        foreman, tokens = foreman or self.foreman, self.tokens if tokens is None else list(tokens)
        shown = range(len(tokens)) if positions is None else positions
        body = m.Dispute(
            job_id=foreman.job_id,
            lease_id=self.lease_id,
            digests=[hashlib.sha256(token).digest() for token in tokens],
            tokens=[m.ShownToken(position=position, token=tokens[position]) for position in shown],
        )
        return foreman.call("POST", "/v1/disputes", m.Disputed, body)

    @property
    def credits(self) -> tuple[int, int]:
        """Of foreman and worker."""
        return self.foreman.state.balance, self.worker.caller.state.balance


@pytest.fixture
def public(make_discovery: MakeDiscovery) -> Discovery:
    return make_discovery(network="public", distinct="account", starting_credits=5)


@pytest.mark.parametrize("positions", [[1], [0, 1]])
def test_a_token_that_does_not_open_costs_the_worker_its_pay_and_its_name(
    public: Discovery, positions: list[int]
) -> None:
    sold = Sold(public, tokens=[os.urandom(80), os.urandom(80)])
    assert sold.credits == (4, 6)
    first = sold.dispute(positions)
    assert (first.verdict, first.refund, first.fee, first.recompute) == ("upheld", 1, 0, True)
    assert sold.credits == (5, 5)
    public.sweep()
    assert public.store.accounts.record(sold.worker.caller.account.account_id).banned
    # Asked again it is not judged again, and nothing moves.
    again = sold.dispute(positions)
    assert (again.verdict, again.refund, again.recompute) == ("upheld", 0, True)
    assert sold.credits == (5, 5)
    assert sold.foreman.settle([], [sold.task.task_id]).tasks[0].keys == []
    assert sold.foreman.settle().recompute == [sold.task.task_id]


@pytest.mark.parametrize("plain", [b"no frame", frame_parts([b"another", b"result"]), frame_parts(PARTS) + b"\0"])
def test_bytes_that_are_not_what_was_committed_to_are_junk(public: Discovery, plain: bytes) -> None:
    sold = Sold(public, plain=plain)
    assert sold.dispute([0]).verdict == "unproven"  # it opens; the rest has to be shown
    assert sold.credits == (4, 6)
    assert sold.dispute().verdict == "upheld"
    assert sold.credits == (5, 5)


def test_disputing_honest_bytes_costs_the_foreman_and_gains_it_nothing(public: Discovery) -> None:
    """The attack: a foreman claims its money back for good work."""
    sold = Sold(public)
    refused = sold.dispute()
    assert (refused.verdict, refused.refund, refused.fee, refused.recompute) == ("refused", 0, 1, False)
    assert sold.credits == (3, 7)
    assert sold.dispute().verdict == "refused"
    assert sold.credits == (3, 7)  # once
    public.sweep()
    assert not public.store.accounts.record(sold.worker.caller.account.account_id).banned
    assert len(sold.foreman.settle([], [sold.task.task_id]).tasks[0].keys) == 1


def test_tokens_of_the_foremans_own_making_prove_nothing(public: Discovery) -> None:
    """The attack: a foreman shows junk that the worker never delivered."""
    sold = Sold(public)
    for tokens in ([JUNK], [JUNK, JUNK], [sold.tokens[0], JUNK], sold.tokens[:1], sold.tokens[::-1]):
        assert sold.dispute(tokens=tokens).verdict == "unproven"
    assert sold.credits == (4, 6)
    with pytest.raises(Problem) as refused:
        sold.foreman.call(
            "POST",
            "/v1/disputes",
            m.Disputed,
            m.Dispute(
                job_id=sold.foreman.job_id,
                lease_id=sold.lease_id,
                digests=[hashlib.sha256(token).digest() for token in sold.tokens],
                tokens=[m.ShownToken(position=0, token=JUNK)],
            ),
        )
    assert refused.value.code == "malformed-body"
    assert sold.credits == (4, 6)


@pytest.mark.parametrize("honest", [True, False])
def test_who_has_nothing_left_to_spend_is_heard_too(make_discovery: MakeDiscovery, honest: bool) -> None:
    discovery = make_discovery(network="public", distinct="account", starting_credits=1)
    sold = Sold(discovery, tokens=None if honest else [JUNK])
    assert sold.credits == (0, 2)
    for first in (True, False):
        outcome = sold.dispute()
        assert (outcome.verdict, outcome.fee) == ("refused" if honest else "upheld", 0)
        assert outcome.refund == (first and not honest)
    assert sold.credits == ((0, 2) if honest else (1, 1))


def test_a_fee_takes_no_more_than_there_is(make_discovery: MakeDiscovery) -> None:
    sold = Sold(make_discovery(network="public", distinct="account", starting_credits=3, dispute_fee=5))
    refused = sold.dispute()
    assert (refused.verdict, refused.fee, refused.balance) == ("refused", 2, 0)
    assert sold.credits == (0, 6)
    assert sold.dispute().fee == 0, "once"
    assert sold.credits == (0, 6)


def test_only_what_was_paid_by_oneself_and_lately_can_be_disputed(make_discovery: MakeDiscovery) -> None:
    discovery = make_discovery(network="public", distinct="account", starting_credits=5, settled_grace_s=0.0)
    sold = Sold(discovery, tokens=[JUNK], confidence=0.5, max_replicas=1)
    other = Foreman(discovery)
    for foreman in (other, sold.foreman):
        if foreman is sold.foreman:
            discovery.sweep()  # the keys are gone
            assert discovery.store.load([sold.task.task_id])[1][sold.task.task_id].state is TaskState.KEPT
        with pytest.raises(Problem) as refused:
            sold.dispute(foreman=foreman)
        assert refused.value.code == "unknown-task"


def test_in_a_private_network_pay_is_not_taken_back_but_the_name_is_lost(make_discovery: MakeDiscovery) -> None:
    discovery = make_discovery(distinct="account")
    sold = Sold(discovery, tokens=[JUNK])
    before = sold.credits
    upheld = sold.dispute()
    assert (upheld.verdict, upheld.refund) == ("upheld", 0)
    assert sold.credits == before
    assert discovery.store.accounts.record(sold.worker.caller.account.account_id).banned
