"""Sums: adds movements up and says what cannot be. Pure.

What is checked: each movement is of more than nothing and leads elsewhere; after each commit no place but the mint is
below zero. In double entry the sum of all places is zero by construction, so ``minted - burnt = accounts + escrow``
holds for the sums here; that it holds for what is stored is seen by comparing with it, place by place.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from itertools import repeat

from discovery.archive.segment import Totals
from discovery.archive.turnover import MANY, Turnover

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
        self._accounts = sum(amount for place, amount in self._balances.items() if place.startswith("account:"))

    def add(self, turnover: Turnover, at: str, faults: Faults) -> None:
        """Adds one commit's movements; `at` says where they stand. Costs 0.05 us a place."""
        balances, lost, gained = self._balances, turnover.lost, turnover.gained
        if turnover.least <= 0 or not lost.keys().isdisjoint(gained.keys()):
            for source, target, amount in turnover.moves:
                if amount <= 0 or source == target:
                    faults.add(f"{at}: a movement of {amount} credits from {source} to {target}")
        if len(gained) >= MANY and balances.keys().isdisjoint(gained.keys()):  # escrows of new tasks
            balances.update(gained)
        else:
            for target, amount in gained.items():
                balances[target] += amount
        rest = self._empty(lost) if len(lost) >= MANY else lost
        for source, amount in rest.items():
            left = balances[source] - amount
            if left == 0:
                del balances[source]
                continue
            balances[source] = left
            if left < 0 and source != "mint":
                faults.add(f"{at}: {source} is below zero ({left})")
        for payee in turnover.payees:
            self._accounts += gained[payee]
        for payer in turnover.payers:
            self._accounts -= lost[payer]
        self._movements += len(turnover.moves)

    def _empty(self, lost: Mapping[str, int]) -> Mapping[str, int]:
        """Removes the places that had just what they lose, as most escrows; returns what the others lose."""
        held = list(map(self._balances.pop, lost, repeat(0)))
        if held == list(lost.values()):
            return {}
        others = {}
        for (place, amount), had in zip(lost.items(), held, strict=True):
            if had != amount:
                self._balances[place] = had
                others[place] = amount
        return others

    @property
    def balances(self) -> dict[str, int]:
        """All balances that are not zero, by place."""
        return self._balances

    @property
    def totals(self) -> Totals:
        """All there is. Costs nothing: escrow is what the other sums leave for it."""
        minted, burnt = -self._balances.get("mint", 0), self._balances.get("burn", 0)
        return Totals(self._movements, minted, burnt, self._accounts, minted - burnt - self._accounts)


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
