"""Turnover: what one commit took from each place and gave to each, and in how many movements. Pure.

A commit has a thousand movements, mostly of the same amount, and from or to one account. Counted by columns they cost a
third of what they cost one by one, and whoever goes on with them has but places to look at.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from discovery.changes import Move

MANY = 16
"""From so many movements on it is quicker to count columns."""


class Turnover:
    """One commit's movements in sum; places are in the order in which the movements name them. Only to be read.

    Attributes:
        moves: the movements themselves.
        least: the smallest amount, or 1.
        sent, received: how many movements began and ended at each place.
        lost, gained: how many credits these were.
        payers, payees: the accounts among those that sent and those that received, as the places that they are.
    """

    __slots__ = ("gained", "least", "lost", "moves", "payees", "payers", "received", "sent")

    def __init__(self, moves: Sequence[Move]) -> None:
        self.moves = moves
        if len(moves) < MANY:
            self._count_each()
        else:
            self._count_columns()
        # All other kinds of places come after "b", and to compare takes a third of the time of `startswith`.
        self.payers = [place for place in self.sent if place < "b" and place.startswith("account:")]
        self.payees = [place for place in self.received if place < "b" and place.startswith("account:")]

    def _count_each(self) -> None:
        sent: dict[str, int] = {}
        lost: dict[str, int] = {}
        received: dict[str, int] = {}
        gained: dict[str, int] = {}
        least = 1
        for source, target, amount in self.moves:
            sent[source] = sent.get(source, 0) + 1
            lost[source] = lost.get(source, 0) + amount
            received[target] = received.get(target, 0) + 1
            gained[target] = gained.get(target, 0) + amount
            if amount < least:
                least = amount
        self.sent, self.lost, self.received, self.gained, self.least = sent, lost, received, gained, least

    def _count_columns(self) -> None:
        sources, targets, amounts = zip(*self.moves, strict=True)
        price = amounts[0] if amounts.count(amounts[0]) == len(amounts) else None
        self.least = min(amounts) if price is None else price
        self.sent, self.lost = _by_place(sources, amounts, price)
        self.received, self.gained = _by_place(targets, amounts, price)


def _by_place(
    places: Sequence[str], amounts: Sequence[int], price: int | None
) -> tuple[dict[str, int], dict[str, int]]:
    """How often each place is named, and the sum of the amounts beside it.

    Args:
        price: what all of the amounts are; None: they differ.
    """
    first = places[0]
    if first == places[-1] and places.count(first) == len(places):  # who leases
        return {first: len(places)}, {first: sum(amounts)}
    counts = Counter(places)
    if price is not None:
        return counts, counts if price == 1 else {place: count * price for place, count in counts.items()}
    sums = dict.fromkeys(counts, 0)
    for place, amount in zip(places, amounts, strict=True):
        sums[place] += amount
    return counts, sums
