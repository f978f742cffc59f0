"""Unsettled: receipts that a worker keeps until discovery says that their leases are settled.

A foreman that keeps receipts to itself would get work for nothing; so the worker shows discovery, with its heartbeat,
what has been finished for a while and is still open there. Rules without I/O; times are `time.monotonic` seconds.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from ec262.protocol.receipts import Receipt

MAX_BUNDLE_RECEIPTS = 500
MAX_BUNDLES = 16
SHOW_AGAIN_S = 120.0


class _Kept:
    __slots__ = ("finished_s", "receipt", "shown_s")

    def __init__(self, receipt: Receipt, finished_s: float) -> None:
        self.receipt = receipt
        self.finished_s = finished_s
        self.shown_s = float("-inf")


class UnsettledReceipts:
    """Receipts by lease, oldest first.

    Args:
        show_after_s: how long a lease may stay open after it was finished before its receipt is shown.

    Attributes:
        kinds: how many leases were finished since the start, by the kind of their receipts; and `cpu_s` used by them.
    """

    def __init__(self, show_after_s: float) -> None:
        self._show_after_s = show_after_s
        self._kept: dict[str, _Kept] = {}
        self._open: frozenset[str] = frozenset()
        self.kinds: Counter[str] = Counter()
        self.cpu_s = 0.0

    def __len__(self) -> int:
        return len(self._kept)

    def keep(self, receipt: Receipt, now_s: float) -> None:
        """A lease was finished."""
        self.kinds[str(receipt.kind)] += 1
        self.cpu_s += receipt.cpu_s
        self._kept[receipt.lease_id] = _Kept(receipt, now_s)

    def due(self, now_s: float) -> list[list[Receipt]]:
        """What the next heartbeat shows, in bundles: finished long ago and open at discovery when last heard."""
        oldest_s, again_s = now_s - self._show_after_s, now_s - SHOW_AGAIN_S
        chosen: list[Receipt] = []
        for lease_id, kept in self._kept.items():
            if kept.finished_s > oldest_s or len(chosen) == MAX_BUNDLES * MAX_BUNDLE_RECEIPTS:
                break  # all further ones are younger
            if lease_id in self._open and kept.shown_s < again_s:
                chosen.append(kept.receipt)
        return [chosen[start : start + MAX_BUNDLE_RECEIPTS] for start in range(0, len(chosen), MAX_BUNDLE_RECEIPTS)]

    def mark_shown(self, bundles: Iterable[Iterable[Receipt]], now_s: float) -> None:
        """Discovery has these."""
        for bundle in bundles:
            for receipt in bundle:
                kept = self._kept.get(receipt.lease_id)
                if kept is not None:
                    kept.shown_s = now_s

    def settle(self, open_leases: Iterable[str], asked_s: float) -> None:
        """Forgets what was finished before discovery was asked and is not open there any more."""
        self._open = frozenset(open_leases)
        for lease_id, kept in list(self._kept.items()):
            if kept.finished_s >= asked_s:
                break
            if lease_id not in self._open:
                del self._kept[lease_id]

    def clear(self) -> None:
        """A new epoch: discovery takes none of these."""
        self._kept.clear()
        self._open = frozenset()
