"""Statements: what an account sees of the ledger, and credits it sends to others."""

from __future__ import annotations

from discovery.archive.rows import Line, page
from discovery.store.store import Store
from ec262.errors import Malformed, ProblemError
from ec262.protocol import messages as m

MOST_LINES = 100
"""Lines of one answer."""


class Statements:
    """An account's own view of the books."""

    def __init__(self, store: Store) -> None:
        self._books = store.books

    def transfer(self, account_id: str, wanted: m.Transfer) -> m.Transferred:
        """Sends credits. The same idempotency key again answers again, and sends nothing.

        Raises:
            ProblemError: ``insufficient-credits`` (also where there are enough, but of a gift or not vested),
                ``unknown-account``, ``conflict``; nothing was sent.
            Malformed: an account sends to itself.
        """
        if wanted.to == account_id:
            raise Malformed("to: an account cannot send credits to itself")
        done = self._books.transfer(account_id, wanted.to, wanted.amount, wanted.note, wanted.idempotency_key)
        if done.outcome == "conflict":
            raise ProblemError(409, "conflict", "this idempotency key was used for another transfer: choose a new one")
        if done.outcome == "unknown":
            raise ProblemError(404, "unknown-account", "there is no account to send to with this id")
        if done.outcome == "credits":
            raise ProblemError(
                *(402, "insufficient-credits"),
                f"of the balance of {done.balance} credits {done.transferable} may be sent: not what the account was "
                "given at its start, and not what it earned a moment ago",
                needed=wanted.amount,
                available=done.transferable,
            )
        return m.Transferred(to=wanted.to, amount=wanted.amount, balance=done.balance, transferable=done.transferable)

    def of(self, account_id: str, before: int, limit: int) -> m.Statement:
        """Up to `limit` rows of an account's statement begun before row `before`, and what the account has."""
        holdings = self._books.holdings(account_id)
        shown, following = page(holdings.lines, before, min(limit, MOST_LINES))
        return m.Statement(
            balance=holdings.balance,
            escrow=holdings.escrow,
            gift=holdings.gift,
            unvested=holdings.unvested,
            transferable=holdings.transferable,
            complete_until_s=holdings.complete_ms / 1000,
            rows=[_row(line) for line in shown],
            before=following or None,
        )


def _row(line: Line) -> m.StatementRow:
    kind, _, about = line.what.partition(":")
    return m.StatementRow(
        serial=line.serial,
        kind=kind or "other",
        about=about,
        other=line.other,
        received=line.received,
        paid=line.paid,
        movements=line.movements,
        first_s=line.first_ms / 1000,
        last_s=line.last_ms / 1000,
    )
