"""Disputes: a foreman says that a paid worker delivered junk, and shows it.

A receipt names the SHA-256 of every sealed token of the result, and the commitment to what is in them. So discovery,
which can make the replica's key, can judge tokens that the receipt names: honest ones open, and hold what was committed
to. Tokens that the receipt does not name prove nothing, for their foreman may have made them.
"""

from __future__ import annotations

import hashlib

from discovery import tasks as rules
from discovery.beliefs import holds, opened_by_anybody, overturn
from discovery.changes import Changes
from discovery.changing import ATTEMPTS, fingerprints, note_changed
from discovery.credibility import lost_dispute
from discovery.reclaiming import reclaim
from discovery.records import TaskRecord, split_lease
from discovery.settings import Settings
from discovery.store.answers import Conflict
from discovery.store.store import Store
from discovery.ticketing import Ticketing
from discovery.trust import Trust
from ec262.errors import Malformed, ProblemError, SealBroken
from ec262.protocol import messages as m
from ec262.protocol.canonical import decode_value
from ec262.protocol.framing import unframe_parts
from ec262.protocol.receipts import Kind, failure_commitment, result_commitment, tokens_digest
from ec262.protocol.sealing import unseal
from ec262.protocol.states import ReplicaState, TaskState

MAX_FACTS_BYTES = 1024 * 1024
"""Facts of a failure that are larger are none to a foreman either; an honest worker's are some 20 KB at most."""


class Disputes:
    """Judges disputes; each once, whatever is asked."""

    def __init__(self, store: Store, trust: Trust, ticketing: Ticketing, settings: Settings) -> None:
        self._store = store
        self._trust = trust
        self._ticketing = ticketing
        self._settings = settings

    def dispute(self, account_id: str, asked: m.Dispute) -> m.Disputed:
        """Judges what a foreman shows of a replica that it paid.

        A foreman that has nothing left to spend is heard, too: who sells it junk for its last credits would keep them.
        If it is wrong it pays what it has. There is one judgement for each replica that it paid, so that whoever
        disputes for nothing has bought as much work.

        Raises:
            ProblemError: ``unknown-task``, no such paid replica, or its grace period is over; ``conflict`` after many
                attempts.
            Malformed: what is shown is not what the digests name.
        """
        task_id, number = split_lease(asked.lease_id)
        _check_shown(asked)
        job = (account_id, asked.job_id)
        for _ in range(ATTEMPTS):
            now_ms, records = self._store.load([task_id])
            record = _own(records.get(task_id), account_id, asked.job_id, number)
            replica = record.replicas[number]
            if replica.disputed:
                return self._answer(record, asked.lease_id, replica.disputed, "it was judged before")
            wrapping = self._ticketing.wrapping_of(record)
            if record.state is not TaskState.ACCEPTED or replica.state is not ReplicaState.PAID or wrapping is None:
                raise _unknown()
            view = self._trust.views([record])[job]
            verdict, reason = judge(asked, replica.tokens, wrapping.result_key(record.nonce, asked.lease_id), record)
            if verdict == "unproven":
                return self._answer(record, asked.lease_id, verdict, reason)
            before = fingerprints(records)
            changes = Changes()
            refund = fee = 0
            if verdict == "upheld":
                refund = rules.lose_dispute(record, number, now_ms, lost_dispute(), view, changes)
                if not opened_by_anybody(record) or not holds(record, view):
                    overturn(record, view, changes)
                    reclaim(record, view, now_ms, changes)
            else:
                spendable = self._store.accounts.record(account_id).balance - view.unvested
                fee = min(self._settings.dispute_fee, max(0, spendable))
                rules.refuse_dispute(record, number, fee, changes)
            note_changed(records, before, self._trust.terms, changes)
            needs = {f"account:{account_id}": fee} if fee else None
            try:
                self._store.commit(changes, now_ms, self._trust.terms, needs=needs)
            except Conflict:
                continue
            self._trust.review()
            return self._answer(record, asked.lease_id, verdict, reason, refund, fee)
        raise ProblemError(409, "conflict", "this task is being changed by another request: try again")

    def _answer(
        self, record: TaskRecord, lease_id: str, verdict: str, reason: str, refund: int = 0, fee: int = 0
    ) -> m.Disputed:
        return m.Disputed(
            lease_id=lease_id,
            verdict=verdict,  # type: ignore[arg-type]
            reason=reason,
            refund=refund,
            fee=fee,
            recompute=record.state is TaskState.OVERTURNED,
            balance=self._store.accounts.record(record.account_id).balance,
        )


def judge(shown: m.Dispute, tokens: bytes, result_key: bytes, record: TaskRecord) -> tuple[str, str]:
    """Who is right, and why.

    Args:
        tokens: what the receipt says of the tokens (`tokens_digest`).
    """
    if tokens_digest(shown.digests) != tokens:
        return "unproven", "the receipt names other tokens than these: they say nothing of who made them"
    opened = {}
    for each in shown.tokens:
        try:
            opened[each.position] = unseal(result_key, each.token)
        except SealBroken:
            return "upheld", f"token {each.position} does not open with the replica's key"
    if len(opened) < len(shown.digests):
        return "unproven", "the tokens that were shown open: show all of them"
    try:
        parts = unframe_parts(b"".join(opened[position] for position in range(len(opened))))
        commitment = _commitment(record.kind, parts)
    except Malformed as reason:
        return "upheld", f"what is in the tokens is no result: {reason}"
    if commitment != record.commitment:
        return "upheld", "what is in the tokens is another result than was committed to"
    return "refused", "the tokens open, and hold what was committed to"


def _commitment(kind: Kind | None, parts: list[bytes]) -> bytes:
    """The commitment to what was delivered: a result's parts, or, as foremen read them, the facts of a failure.

    Raises:
        Malformed: a failure without its facts.
    """
    if kind is None or kind is Kind.OK:
        return result_commitment(parts)
    facts = decode_value(parts[0], room=0) if len(parts) == 1 and len(parts[0]) <= MAX_FACTS_BYTES else None
    if not isinstance(facts, dict):
        raise Malformed("a failure without its facts")
    agreed = ("limit",) if kind is Kind.LIMIT else ("type", "line")
    return failure_commitment(kind, *(str(facts.get(name, "")) for name in agreed))


def _check_shown(asked: m.Dispute) -> None:
    positions = [each.position for each in asked.tokens]
    if len(set(positions)) < len(positions):
        raise Malformed("tokens: a position is shown twice")
    for each in asked.tokens:
        if each.position >= len(asked.digests) or hashlib.sha256(each.token).digest() != asked.digests[each.position]:
            raise Malformed(f"tokens: the digest at {each.position} is not that of the token shown")


def _own(record: TaskRecord | None, account_id: str, job_id: str, number: int) -> TaskRecord:
    if record is None or (record.account_id, record.job_id) != (account_id, job_id) or number >= len(record.replicas):
        raise _unknown()
    return record


def _unknown() -> ProblemError:
    return ProblemError(404, "unknown-task", "you paid no such replica, or its grace period is over")
