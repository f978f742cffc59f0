"""Rules: whose result counts, by the real policy and by those it is compared with."""

from __future__ import annotations

import hmac
import random
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Protocol

from discovery.credibility import (
    NOTHING,
    USUAL,
    Assumptions,
    Noise,
    Tally,
    clarity,
    credibility,
    established,
    unwelcome,
)
from discovery.simulation.behaviours import Person, Replica, State
from discovery.simulation.book import Book
from discovery.verdict import Answer, Verdict, Voice, belief, decide, decide_credible, lessons

MAX_REPLICAS = 24


@dataclass(slots=True, eq=False)
class Task:
    """One made-up task.

    Attributes:
        lot: what accomplices draw by.
        first: what was accepted at first; later findings may differ.
        taught: what was added to whose tally because of it.
    """

    number: int
    foreman: int
    job: int
    lot: float
    flaky: bool = False
    replicas: list[Replica] = field(default_factory=list)
    accepted: Answer | None = None
    first: Answer | None = None
    given_up: bool = False
    taught: list[tuple[Person, Tally]] = field(default_factory=list)
    differed: list[Person] = field(default_factory=list)
    chance: int = 0
    trusted: bool = False

    def reported(self) -> list[Replica]:
        """The replicas that answered."""
        return [each for each in self.replicas if each.state is State.REPORTED]

    def counts(self) -> tuple[int, int]:
        """Replicas that are waited for, and those that nobody waits for any more."""
        states = [each.state for each in self.replicas]
        return states.count(State.OPEN), states.count(State.GONE)


class Rule(Protocol):
    """A policy in the simulation.

    Attributes:
        first: how many replicas a task has at first.
        convicted: who is, at the end.
        acquitted: how many convictions were lifted.
    """

    first: int
    convicted: set[Person]
    acquitted: int

    def leased(self, task: Task) -> int:
        """Told that the first replicas of a task are leased; returns how many more it wants at once."""

    def decide(self, task: Task) -> Verdict:
        """The verdict on a task."""

    def settled(self, task: Task) -> list[Task]:
        """Told that a task was accepted; returns those that are open again because of it."""

    def close(self, tasks: list[Task]) -> list[Task]:
        """Told that all tasks of a job are accepted; returns those that are open again."""

    def closed(self, tasks: list[Task]) -> None:
        """Told that a job is over."""

    def welcome(self, person: Person, foreman: int) -> bool:
        """Whether a foreman's tasks may be leased to the worker."""

    def newcomers(self, people: Iterable[Person], foreman: int) -> frozenset[str]:
        """Those of whom a task should have one at most."""


class _Plain:
    """What rules without reputations have in common."""

    first = 1

    def __init__(self) -> None:
        self.convicted: set[Person] = set()
        self.acquitted = 0

    def leased(self, task: Task) -> int:
        return 0

    def settled(self, task: Task) -> list[Task]:
        return []

    def close(self, tasks: list[Task]) -> list[Task]:
        return []

    def closed(self, tasks: list[Task]) -> None:
        return

    def welcome(self, person: Person, foreman: int) -> bool:
        return True

    def newcomers(self, people: Iterable[Person], foreman: int) -> frozenset[str]:
        return frozenset()


def _by_quorum(task: Task, quorum: int) -> Verdict:
    outstanding, gone = task.counts()
    answers = [each.answer for each in task.reported() if each.answer is not None]
    return decide(answers, outstanding=outstanding, gone=gone, quorum=quorum, max_replicas=MAX_REPLICAS)


class Quorum(_Plain):
    """So many copies, of which so many have to agree."""

    def __init__(self, redundancy: int, quorum: int) -> None:
        super().__init__()
        self.first = redundancy
        self._quorum = quorum

    def decide(self, task: Task) -> Verdict:
        return _by_quorum(task, self._quorum)


class Boinc(_Plain):
    """BOINC's adaptive replication: https://boinc.berkeley.edu/trac/wiki/AdaptiveReplication.

    A worker with fewer than ten consecutive valid results is not trusted; one with n is trusted with probability
    1 - 1/n. What a trusted one gets is not replicated; all else has two copies that have to agree. A valid result of
    a replicated task counts one, an invalid one sets the count to zero.
    """

    def __init__(self, chance: random.Random) -> None:
        super().__init__()
        self._chance = chance
        self._valid: defaultdict[str, int] = defaultdict(int)

    def leased(self, task: Task) -> int:
        valid = self._valid[task.replicas[0].person.worker_id]
        task.trusted = valid >= 10 and self._chance.random() < 1 - 1 / valid
        return 0 if task.trusted else 1

    def decide(self, task: Task) -> Verdict:
        return _by_quorum(task, 1 if task.trusted else 2)

    def settled(self, task: Task) -> list[Task]:
        if not task.trusted:
            for each in task.reported():
                name = each.person.worker_id
                self._valid[name] = self._valid[name] + 1 if each.answer == task.accepted else 0
        return []


class Credible:
    """``confidence``: discovery.verdict and discovery.credibility, and what the service does around them."""

    def __init__(self, confidence: float, assumed: Assumptions = USUAL, secret: bytes = b"simulation") -> None:
        self.first = 1
        self.confidence = confidence
        self._assumed = assumed
        self._secret = secret
        self._book = Book(assumed)
        self._rests: defaultdict[str, dict[int, Task]] = defaultdict(dict)
        self._compared: defaultdict[int, defaultdict[str, int]] = defaultdict(lambda: defaultdict(int))
        self._differed: defaultdict[int, defaultdict[str, int]] = defaultdict(lambda: defaultdict(int))
        self._jobs: defaultdict[int, dict[int, Task]] = defaultdict(dict)
        self._noisy: set[int] = set()
        self._further: float | None = None
        self.convicted: set[Person] = set()
        self.acquitted = 0

    def leased(self, task: Task) -> int:
        task.chance = _chance(self._secret, task.number)
        return 0

    def voices(self, task: Task) -> list[Voice]:
        """The task's answers as the verdict wants them."""
        return [
            Voice(
                each.person.worker_id,
                each.person.worker_id,
                each.answer,
                self._book.standing(each.person, task.foreman),
            )
            for each in task.replicas
            if each.state is State.REPORTED and each.answer is not None
        ]

    def decide(self, task: Task) -> Verdict:
        outstanding, gone = task.counts()
        return decide_credible(
            self.voices(task),
            outstanding=outstanding,
            confidence=self.confidence,
            max_replicas=MAX_REPLICAS,
            chance=task.chance,
            gone=gone,
            further=self._further,
            assumed=self._assumed,
        )

    def settled(self, task: Task) -> list[Task]:
        for each in task.reported():
            self._rests[each.person.worker_id][task.number] = task
        self._jobs[task.job][task.number] = task
        self._teach(task)
        suspects = [person for person, tally in task.taught if tally.doubts]
        if task.differed and task.job not in self._noisy and not clarity(self._noise(task.job), self._assumed):
            suspects += self._pardon(task.job)
        return self._judge(suspects)

    def close(self, tasks: list[Task]) -> list[Task]:
        opened = []
        for task in tasks:
            if task.accepted is not None and self._believed(task) < self.confidence:
                self._untie(task)
                opened.append(task)
        return opened

    def closed(self, tasks: list[Task]) -> None:
        for task in tasks:
            self._jobs[task.job].pop(task.number, None)
            for each in task.replicas:
                self._rests[each.person.worker_id].pop(task.number, None)

    def welcome(self, person: Person, foreman: int) -> bool:
        standing, doubted = self._book.standing(person, foreman), self._book.doubted(person, foreman)
        return not unwelcome(standing, doubted=doubted, assumed=self._assumed)

    def newcomers(self, people: Iterable[Person], foreman: int) -> frozenset[str]:
        known = {each.worker_id: self._book.standing(each, foreman) for each in people}
        fresh = {name for name, standing in known.items() if not established(standing, self._assumed)}
        if 2 * len(fresh) > len(known):
            self._further = None
            return frozenset()
        believed = sorted(credibility(standing, self._assumed) for standing in known.values())
        self._further = believed[len(believed) // 3] if believed else None
        return frozenset(fresh)

    # --- inside ---

    def _believed(self, task: Task) -> float:
        assert task.accepted is not None
        return belief(self.voices(task), task.accepted, assumed=self._assumed)

    def _noise(self, job: int) -> Noise:
        compared = self._compared[job]
        return Noise(sum(compared.values()), len(compared), len(self._differed[job]))

    def _teach(self, task: Task) -> None:
        """Adds to tallies what a task that was accepted teaches."""
        assert task.accepted is not None
        reported = task.reported()
        if len(reported) < 2:
            return
        noise = self._noise(task.job)
        taught = lessons(self.voices(task), task.accepted, noise=noise, assumed=self._assumed)
        task.taught = [(each.person, tally) for each, tally in zip(reported, taught, strict=True)]
        for person, tally in task.taught:
            self._book.add(person, task.foreman, tally)
        for each in reported:
            if not each.person.banned:
                self._compared[task.job][each.person.worker_id] += 1
                if each.answer != task.accepted:
                    self._differed[task.job][each.person.worker_id] += 1
                    task.differed.append(each.person)

    def _forget(self, task: Task) -> None:
        """Takes back what a task taught."""
        for person, tally in task.taught:
            self._book.add(person, task.foreman, NOTHING.minus(tally))
        for person, _ in task.taught:
            _less(self._compared[task.job], person.worker_id)
        for person in task.differed:
            _less(self._differed[task.job], person.worker_id)
        task.taught = []
        task.differed = []

    def _pardon(self, job: int) -> list[Person]:
        """Takes back all doubts that came of a job that looks nondeterministic; returns whose."""
        self._noisy.add(job)
        pardoned = []
        for task in self._jobs[job].values():
            if task.accepted is not None and task.differed:
                pardoned += [person for person, tally in task.taught if tally.doubts]
                self._forget(task)
                self._teach(task)
        return pardoned

    def _untie(self, task: Task) -> None:
        """Opens a task again."""
        self._forget(task)
        task.accepted = None

    def _judge(self, suspects: list[Person]) -> list[Task]:
        """Convicts who is to be convicted, and all that follows from it; returns tasks that are open again."""
        opened: dict[int, Task] = {}
        queue = list(suspects)
        seen = set()
        while queue:
            person = queue.pop()
            guilty = self._book.convicts(person)
            if guilty == person.banned or person in seen:
                continue
            seen.add(person)  # once only: two may each be guilty as long as the other is believed
            person.banned = guilty
            if not guilty:
                self.convicted.discard(person)
                self.acquitted += 1
                continue
            self.convicted.add(person)
            for task in list(self._rests[person.worker_id].values()):
                if task.accepted is None:
                    continue
                doubted = [each for each, tally in task.taught if tally.doubts]
                if self._believed(task) < self.confidence:
                    self._untie(task)
                    opened[task.number] = task
                else:
                    self._forget(task)
                    self._teach(task)
                queue += doubted
                queue += [each for each, tally in task.taught if tally.doubts]
        return list(opened.values())


def _less(counts: defaultdict[str, int], name: str) -> None:
    counts[name] -= 1
    if counts[name] <= 0:
        del counts[name]


def _chance(secret: bytes, number: int) -> int:
    """As good as `credibility.chance_of`, and its own: a seed's run stays what it was, however discovery draws it."""
    digest = hmac.digest(secret, b"spot check %d" % number, "sha256")
    return int.from_bytes(digest[:4], "big")
