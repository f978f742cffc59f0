"""Behaviours: how made-up workers answer. The honest are right; saboteurs choose when to lie.

Saboteurs who collude know each other, talk at once and without limit, give one and the same wrong answer to a task,
and never contradict each other: the worst there is short of breaking the protocol.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from enum import IntEnum

from discovery.verdict import Answer
from ec262.protocol.receipts import Kind

RIGHT: Answer = (Kind.OK, b"right")
WRONG: Answer = (Kind.OK, b"wrong")
OTHER: Answer = (Kind.OK, b"right as well")
"""What a program that is not deterministic may give in the place of `RIGHT`."""


@dataclass(frozen=True, slots=True)
class Tactic:
    """What saboteurs do.

    Attributes:
        lie: share of results they falsify.
        together: accomplices lie on the same tasks (they draw lots by the task), not each by chance.
        after: honest for so many results first (sleepers).
        shared: lie only where an accomplice has the task as well.
        collude: they give the same wrong answer, and back each other.
        crash: share of leases at which the worker is gone, to come back later.
        silent: share of leases that they take and never answer.
        returns: come back under a new name once convicted.
    """

    lie: float = 1.0
    together: bool = True
    after: int = 0
    shared: bool = False
    collude: bool = True
    crash: float = 0.0
    silent: float = 0.0
    returns: bool = False


class State(IntEnum):
    """Of one replica."""

    OPEN = 0
    REPORTED = 1
    GONE = 2


@dataclass(slots=True, eq=False)
class Person:
    """One made-up worker under one name.

    Attributes:
        seconds: a task takes, on average.
        done: results given so far.
        paid: credits earned and not taken back.
    """

    worker_id: str
    seconds: float
    saboteur: bool = False
    auditor: bool = False
    banned: bool = False
    used: int = 0
    done: int = 0
    paid: int = 0
    away_until: float = 0.0

    @property
    def account_id(self) -> str:
        """Everybody has an account of its own; it is also its party."""
        return f"account {self.worker_id}"


@dataclass(slots=True, eq=False)
class Replica:
    """One made-up attempt at a task."""

    person: Person
    answer: Answer | None = None
    state: State = State.OPEN


def answer_of(
    person: Person,
    tactic: Tactic,
    others: list[Replica],
    lot: float,
    chance: random.Random,
    *,
    flaky: bool,
    errors: float,
) -> Answer:
    """The answer a worker gives.

    Args:
        others: the task's replicas.
        lot: the task's lot, from 0 to 1, which accomplices agree on.
        flaky: whether the program is not deterministic on this task.
        errors: share of results in which the honest err.
    """
    person.done += 1
    if person.saboteur and _lies(person, tactic, others, lot, chance):
        return WRONG if tactic.collude else (Kind.OK, f"wrong by {person.worker_id}".encode())
    if errors and not person.auditor and chance.random() < errors:
        return (Kind.OK, f"slip of {person.worker_id} {chance.random()}".encode())
    if flaky and chance.random() < 0.5:
        return OTHER
    return RIGHT


def _lies(person: Person, tactic: Tactic, others: list[Replica], lot: float, chance: random.Random) -> bool:
    if tactic.collude:
        accomplices = [each for each in others if each.person.saboteur and each.person is not person]
        for each in accomplices:
            if each.answer is not None:
                return each.answer == WRONG
        if tactic.shared and not accomplices:
            return False
    if person.done <= tactic.after:
        return False
    return (lot if tactic.collude and tactic.together else chance.random()) < tactic.lie
