"""Sums: adds movements up and says what cannot be. Pure.

What is checked: each movement is of more than nothing and leads elsewhere; after each commit no place but the mint is
below zero. In double entry the sum of all places is zero by construction, so ``minted - burnt = accounts + escrow``
holds for the sums here; that it holds for what is stored is seen by comparing with it, place by place.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

from discovery.archive.segment import Totals
from discovery.changes import Move

KINDS = ("account:", "escrow:")
MOST_FAULTS = 50
"""Faults that are put in words; further ones are counted."""


class Faults:
    """Faults in words, not too many of them."""

    def __init__(self) -> None:
        self._listed: list[str] = []
        self._more = 0

    def add(self, fault: str) -> None:
        """Notes a fault."""
        if len(self._listed) < MOST_FAULTS:
            self._listed.append(fault)
        else:
            self._more += 1

    @property
    def listed(self) -> list[str]:
        """All of them, the last line saying how many were left out."""
        return self._listed + ([f"and {self._more} further faults"] if self._more else [])


class Sums:
    """Balances by place. Holds only those that are not zero, so that it grows with accounts and open tasks alone.

    Args:
        balances, movements: where to start from.
    """

    def __init__(self, balances: Mapping[str, int] | None = None, movements: int = 0) -> None:
        self._balances: defaultdict[str, int] = defaultdict(int, balances or {})
        self._movements = movements
        self._escrow = sum(amount for place, amount in self._balances.items() if place.startswith("escrow:"))

    def add(self, moves: Sequence[Move], at: str, faults: Faults) -> None:
        """Adds one commit's movements; `at` says where they stand. Costs about 0.5 us a movement."""
        balances = self._balances
        count = escrow = 0
        for source, target, amount in moves:
            count += 1
            if amount <= 0 or source == target:
                faults.add(f"{at}: a movement of {amount} credits from {source} to {target}")
            balances[source] -= amount
            balances[target] += amount
            if source[0:1] == "e":
                escrow -= amount
            if target[0:1] == "e":
                escrow += amount
        for source in {source for source, _, _ in moves}:
            left = balances[source]
            if left == 0:
                del balances[source]
            elif left < 0 and source != "mint":
                faults.add(f"{at}: {source} is below zero ({left})")
        self._movements += count
        self._escrow += escrow

    @property
    def balances(self) -> dict[str, int]:
        """All balances that are not zero, by place."""
        return self._balances

    @property
    def totals(self) -> Totals:
        """All there is. Costs nothing: accounts are what the other sums leave for them."""
        minted, burnt = -self._balances.get("mint", 0), self._balances.get("burn", 0)
        return Totals(self._movements, minted, burnt, minted - burnt - self._escrow, self._escrow)


def compare(reckoned: Mapping[str, int], stored: Mapping[str, int], whose: str, faults: Faults) -> None:
    """Notes every place where `stored` (`whose` balances) is not what the movements add up to."""
    for place in sorted(reckoned.keys() | stored.keys()):
        sum_, held = reckoned.get(place, 0), stored.get(place, 0)
        if sum_ != held:
            faults.add(f"{place}: the ledger adds up to {sum_}, {whose} says {held}")
        if held < 0 and place != "mint":
            faults.add(f"{place}: below zero ({held})")
        if place not in ("mint", "burn") and not place.startswith(KINDS):
            faults.add(f"{place}: no such place can hold credits")
    if sum(stored.values()):
        faults.add(f"{whose}: balances and escrows differ from minted less burnt by {sum(stored.values())}")
