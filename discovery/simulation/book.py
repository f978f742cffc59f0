"""The book of tallies, as the store keeps it: increments only, for each worker and each foreman."""

from __future__ import annotations

from collections import defaultdict

from discovery.credibility import NOTHING, Assumptions, Standing, Tally, aged, convicted, shared, standing
from discovery.simulation.behaviours import Person


class Book:
    """What is known of whom."""

    def __init__(self, assumed: Assumptions) -> None:
        self._assumed = assumed
        self._known: defaultdict[str, Tally] = defaultdict(Tally)
        self._accusers: defaultdict[str, int] = defaultdict(int)
        self._own: dict[tuple[int, str], Tally] = {}
        self._standings: defaultdict[str, dict[int, Standing]] = defaultdict(dict)

    def add(self, person: Person, foreman: int, gained: Tally) -> None:
        """Adds to what `foreman` knows of a worker, and so to what all do."""
        if gained == NOTHING:
            return
        name = person.worker_id
        before = self._own.get((foreman, name), NOTHING)
        after = aged(before.plus(gained), self._assumed)
        self._own[foreman, name] = after
        old, new = shared(before, self._assumed), shared(after, self._assumed)
        self._known[name] = self._known[name].plus(new).minus(old)
        self._accusers[name] += new.accuses - old.accuses
        self._standings.pop(name, None)

    def standing(self, person: Person, foreman: int) -> Standing:
        """A worker in a foreman's eyes."""
        seen = self._standings[person.worker_id]
        found = seen.get(foreman)
        if found is None or found.banned != person.banned:
            found = seen[foreman] = standing(
                self._known[person.worker_id],
                self._own.get((foreman, person.worker_id), NOTHING),
                auditor=person.auditor,
                banned=person.banned,
                assumed=self._assumed,
            )
        return found

    def doubted(self, person: Person, foreman: int) -> bool:
        """Whether the worker dissented in jobs of this foreman."""
        return self._own.get((foreman, person.worker_id), NOTHING).doubts > 0

    def convicts(self, person: Person) -> bool:
        """Whether what is known now is enough to ban the worker."""
        if person.auditor:
            return False
        name = person.worker_id
        return convicted(self._known[name], self._accusers[name], self._assumed)
