"""Purse: what a job has spent and has in escrow, as the foreman knows it, against a limit. Counts alone, no I/O."""

from __future__ import annotations

ESCROW_AFTER_S = 120.0
"""So long after its deadline no replica's price is in escrow any more."""


class Purse:
    """Credits of one job.

    Args:
        limit: most it may cost; None: no limit.
        price: the most a replica may cost.

    Attributes:
        spent: paid to workers; `earned` says to which.
        escrow: taken for replicas that may still be paid.
        reserved: what replicas that are about to be leased, and further ones of tasks that are out, may cost; 0
            without a limit.
        balance: of the account, as discovery last said; None: it has not.
    """

    def __init__(self, limit: int | None, price: int) -> None:
        self.limit = limit
        self.price = price
        self.spent = 0
        self.earned: dict[str, int] = {}
        self.escrow = 0
        self.reserved = 0
        self.balance: int | None = None
        self._leases: dict[str, tuple[int, float]] = {}
        self._reclaimed: dict[str, int] = {}

    def affordable(self, replicas: int, most: int) -> int:
        """How many tasks of so many replicas each stay within the limit; at most `most`."""
        left = self.left
        return most if left is None else min(most, left // (self.price * replicas))

    def spares(self, replicas: int) -> bool:
        """Whether so many replicas that are not needed stay within the limit and the balance."""
        enough = self.balance is None or self.balance >= replicas * self.price
        return enough and self.affordable(replicas, 1) == 1

    def reserve(self, replicas: int) -> int:
        """Puts aside what so many replicas cost, and returns it; 0 without a limit."""
        cost = replicas * self.price if self.limit is not None else 0
        self.reserved += cost
        return cost

    @property
    def left(self) -> int | None:
        """What the limit leaves; None: there is none."""
        return None if self.limit is None else max(0, self.limit - self.spent - self.escrow - self.reserved)

    def leased(self, lease_id: str, price: int, until_s: float) -> None:
        """A replica's price went into escrow, where it is until a while after `until_s` at the latest."""
        if lease_id not in self._leases:
            self._leases[lease_id] = (price, until_s + ESCROW_AFTER_S)
            self.escrow += price

    def paid(self, lease_id: str, worker_id: str) -> int:
        """A replica was paid; returns how much, 0 where that was known."""
        price = self._take(lease_id)
        if price:
            self.spent += price
            self.earned[worker_id] = self.earned.get(worker_id, 0) + price
        return price

    def took_back(self, worker_id: str, amount: int) -> None:
        """Pay came back after a dispute; negative: a fee for one that was lost."""
        self.spent -= amount
        self.earned[worker_id] = self.earned.get(worker_id, 0) - amount

    def reclaimed(self, worker_id: str, total: int) -> None:
        """So much of a convicted worker's pay has come back by now; it is told again and again."""
        more = total - self._reclaimed.get(worker_id, 0)
        if more > 0:  # what discovery forgot of a job that was silent for long has come back all the same
            self.took_back(worker_id, more)
            self._reclaimed[worker_id] = total

    def returned(self, lease_id: str) -> None:
        """A replica's price came back."""
        self._take(lease_id)

    def sweep(self, now: float) -> None:
        """Time goes by."""
        while self._leases:
            lease_id, (price, until_s) = next(iter(self._leases.items()))
            if until_s > now:
                return
            del self._leases[lease_id]
            self.escrow -= price

    def _take(self, lease_id: str) -> int:
        price, _ = self._leases.pop(lease_id, (0, 0.0))
        self.escrow -= price
        return price
