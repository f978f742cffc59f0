"""Dissent: the workers that a job's report names as wrong, and for how long. No I/O.

Whoever was outvoted is named for as long as the answer that won is believed: liars who agree can win a vote, and then
it is the honest who differ. Whoever delivered other bytes than its receipt says was wrong whatever the others say.
"""

from __future__ import annotations

from collections.abc import Iterable


class Dissent:
    """Of one job. Memory grows with the tasks in which anybody differed, and with those that were overturned."""

    def __init__(self) -> None:
        self._outvoted: dict[str, set[str]] = {}
        self._overturned: set[str] = set()
        self._wrong: set[str] = set()

    def outvoted(self, task_id: str, worker_ids: Iterable[str]) -> None:
        """These gave another answer of the task than the one that was accepted."""
        if task_id not in self._overturned and (differed := set(worker_ids)):
            self._outvoted.setdefault(task_id, set()).update(differed)

    def overturned(self, task_ids: Iterable[str]) -> None:
        """What was accepted of these tasks is no longer believed: to differ from it was no fault."""
        for task_id in task_ids:
            self._overturned.add(task_id)
            self._outvoted.pop(task_id, None)

    def wrong(self, worker_ids: Iterable[str]) -> None:
        """These are wrong by what they themselves gave."""
        self._wrong.update(worker_ids)

    @property
    def workers(self) -> set[str]:
        """Ids of all that are named."""
        return self._wrong.union(*self._outvoted.values())
