"""Accepted: the results that a job's outcome rests on, from when discovery believes them until the job closes. No I/O.

Who gave a result may be convicted later. Then discovery names its task, in an answer or when it is asked (an audit),
and the foreman has it computed anew: Sarmenta's backtracking, see docs/trust.md.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice

from ec262.foreman.records import Kept

Place = tuple[str, int]
"""A task's phase and number."""


class Accepted:
    """The accepted tasks of one job.

    Args:
        before: those that an earlier run of the foreman had.

    Attributes:
        stale: those to be computed anew, by place.
        vouched: the ids of these that may be named when they are leased again: discovery remembers who answered.
        recomputed: how many were computed anew.
        unaudited: ids of those of an earlier run that discovery has forgotten: nobody can say whether they still hold.
    """

    def __init__(self, before: Iterable[Kept] = ()) -> None:
        self._by_place: dict[Place, Kept] = {}
        self._by_id: dict[str, Kept] = {}
        self._earlier: set[str] = set()
        self._to_audit: dict[str, None] = {}
        self._heard: dict[str, None] = {}
        self.stale: dict[Place, Kept] = {}
        self.vouched: set[str] = set()
        self.recomputed = 0
        self.unaudited: set[str] = set()
        for kept in before:
            self.add(kept)
            self._earlier.add(kept.task_id)

    def __len__(self) -> int:
        return len(self._by_place)

    def add(self, kept: Kept) -> None:
        """A task has a result that is believed, perhaps instead of one that no longer is."""
        place = kept.phase, kept.number
        if place in self.stale:
            self.recomputed += 1
        self.forget(place)
        self._by_place[place] = self._by_id[kept.task_id] = kept
        self._to_audit[kept.task_id] = None

    def forget(self, place: Place) -> None:
        """The task's result is not used: it rests on others that were wrong, or it is replaced."""
        kept = self._by_place.pop(place, None)
        if kept is None:
            return
        del self._by_id[kept.task_id]
        self._to_audit.pop(kept.task_id, None)
        if self.stale.pop(place, None) is not None:
            self.vouched.discard(kept.task_id)
            self._heard[kept.task_id] = None

    # --- what discovery says ---

    def recall(self, task_ids: Iterable[str]) -> None:
        """These no longer hold. Of others than those that are kept discovery need not speak again."""
        for task_id in task_ids:
            kept = self._by_id.get(task_id)
            if kept is None:
                self._heard[task_id] = None
                continue
            self.stale[kept.phase, kept.number] = kept
            self.vouched.add(task_id)
            self._to_audit.pop(task_id, None)

    def unknown(self, task_ids: Iterable[str]) -> None:
        """Of these discovery knows nothing. What it knew of when an earlier run got it is left as it was believed then;
        a job that goes on after hours would be computed, and paid for, from the start."""
        for task_id in task_ids:
            kept = self._by_id.get(task_id)
            if kept is None:
                continue
            self._to_audit.pop(task_id, None)
            if task_id in self._earlier:
                self.unaudited.add(task_id)
            elif task_id not in self.vouched:
                self.stale[kept.phase, kept.number] = kept

    # --- what to tell it ---

    def audit_all(self) -> None:
        """All are to be asked for once more, those excepted that are stale anyway, or forgotten."""
        self._to_audit = {
            task_id: None
            for task_id, kept in self._by_id.items()
            if (kept.phase, kept.number) not in self.stale and task_id not in self.unaudited
        }

    def to_audit(self, most: int) -> list[str]:
        """Ids to ask for next."""
        return list(islice(self._to_audit, most))

    @property
    def backlog(self) -> tuple[int, int]:
        """How many are to be asked for, and to be told of."""
        return len(self._to_audit), len(self._heard)

    def audited(self, task_ids: Iterable[str]) -> None:
        """Discovery was asked for these."""
        for task_id in task_ids:
            self._to_audit.pop(task_id, None)

    def to_hear(self, most: int) -> list[str]:
        """Ids that discovery is told not to repeat: they are computed anew, or not used."""
        return list(islice(self._heard, most))

    def heard(self, task_ids: Iterable[str]) -> None:
        """Discovery was told these."""
        for task_id in task_ids:
            self._heard.pop(task_id, None)
