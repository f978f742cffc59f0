"""Condition: what keeps the service from doing all of its work; said to whoever asks for its health.

Entries of the ledger wait in the store's memory until they are on disk. Where they come faster than they go, or do not
go at all, nothing new is begun any more: no leases, no accounts, no transfers. What is leased is settled and paid as
ever, since a worker that did its work must not wait for an operator; it adds as much again as is leased, at most.
"""

from __future__ import annotations

from discovery.archive.mover import Mover
from discovery.store.books import Books, Memory
from ec262.errors import ProblemError
from ec262.protocol import messages as m

MOST_USED = 0.9
"""Of the memory that the store may use at most (`maxmemory`, where it has any): the rest is for settlement."""


class Condition:
    """What `measure` found last.

    Args:
        most_backlog_bytes: memory that entries of the ledger may take before nothing new is begun.

    Attributes:
        elsewhere: what keeps another process from archiving, where that one does it.
    """

    def __init__(self, books: Books, mover: Mover, most_backlog_bytes: int) -> None:
        self._books = books
        self._mover = mover
        self._most = most_backlog_bytes
        self._memory = Memory()
        self.elsewhere = ""

    def measure(self) -> None:
        """Looks at the store; costs it about 0.1 ms, and 1 ms for each 10 MB that wait."""
        self._memory = self._books.memory()

    def obstacles(self) -> list[str]:
        """Why nothing new is begun; empty: it is."""
        memory = self._memory
        found = []
        if memory.ledger > self._most:
            found.append(
                f"entries of the ledger that are not on disk yet take {_mb(memory.ledger)} MB of the store's memory, "
                f"more than {_mb(self._most)} MB"
            )
        if memory.most and memory.used > MOST_USED * memory.most:
            found.append(f"the store uses {_mb(memory.used)} MB of the {_mb(memory.most)} MB that it may")
        return found

    def admit(self) -> None:
        """Raises ProblemError (503, ``unavailable``) where nothing new is to be begun."""
        obstacles = self.obstacles()
        if obstacles:
            raise ProblemError(
                *(503, "unavailable"),
                f"nothing new is begun here for now: {'; '.join(obstacles)}. What is leased is settled and paid. Try "
                "again later; the operator finds the reason in /v1/health and in the log",
            )

    def health(self) -> m.Health:
        """What is wrong, for everybody: without paths."""
        obstacles = self.obstacles()
        trouble = self._mover.trouble or self.elsewhere
        faults = [f"the ledger does not get to disk: {trouble}"] if trouble else []
        return m.Health(
            status="degraded" if obstacles or faults else "ok",
            leasing=not obstacles,
            backlog_bytes=self._memory.ledger,
            faults=faults + obstacles,
        )


def _mb(count: int) -> str:
    return f"{count / 1e6:,.0f}" if count >= 10_000_000 else f"{count / 1e6:,.2f}"
