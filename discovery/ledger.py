"""Ledger: what the books must satisfy, checked from the movements up."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

from discovery.store.store import Store


@dataclass(frozen=True, slots=True)
class Audit:
    """The outcome of `verify`.

    Attributes:
        movements: how many were added up.
        minted, burnt, accounts, escrow: credits in all.
        faults: what is wrong, in words; empty when the books are clean.
    """

    movements: int
    minted: int
    burnt: int
    accounts: int
    escrow: int
    faults: list[str]


def totals(store: Store) -> tuple[int, int, int, int]:
    """Minted, burnt, on accounts and in escrow, read at one instant."""
    balances, escrows = store.balances()
    accounts = sum(amount for place, amount in balances.items() if place.startswith("account:"))
    return -balances.get("mint", 0), balances.get("burn", 0), accounts, sum(escrows.values())


def verify(store: Store) -> Audit:
    """Adds up every movement there ever was and compares with the balances.

    Movements committed while it reads can look like faults: run it on a service at rest, or twice.
    Cost grows with the ledger's length.
    """
    sums: defaultdict[str, int] = defaultdict(int)
    count = 0
    for source, target, amount in store.ledger():
        count += 1
        if amount <= 0:
            sums["fault"] += 1
        sums[source] -= amount
        sums[target] += amount
    balances, escrows = store.balances()
    held = {place: amount for place, amount in balances.items() if amount}
    held.update((f"escrow:{task_id}", amount) for task_id, amount in escrows.items())
    faults = []
    if sums.pop("fault", 0):
        faults.append("the ledger has movements of nothing or less")
    for place in sorted({place for place, amount in sums.items() if amount} | set(held)):
        if sums.get(place, 0) != held.get(place, 0):
            faults.append(f"{place}: the ledger adds up to {sums.get(place, 0)}, the balance is {held.get(place, 0)}")
        if place != "mint" and held.get(place, 0) < 0:
            faults.append(f"{place}: below zero ({held[place]})")
    if sum(held.values()):
        faults.append(f"balances and escrows differ from minted less burnt by {sum(held.values())}")
    minted, burnt = -balances.get("mint", 0), balances.get("burn", 0)
    accounts = sum(amount for place, amount in balances.items() if place.startswith("account:"))
    return Audit(count, minted, burnt, accounts, sum(escrows.values()), faults)
