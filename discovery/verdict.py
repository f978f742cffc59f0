"""Verdict: whose result counts. Answers in, decision out; no I/O, no clock.

``redundancy=n, quorum=m``, the original's way: n replicas are asked, the first result that m of them agree on is
accepted. Where no m agree, just as many more are asked as could complete the largest group, up to `max_replicas`
that may have run it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from ec262.protocol.receipts import Kind

Answer = tuple[Kind, bytes]
"""How a replica ended, and its commitment: two replicas agree when both are equal."""


@dataclass(frozen=True, slots=True)
class Accepted:
    """`answer` counts."""

    answer: Answer


@dataclass(frozen=True, slots=True)
class More:
    """So many further replicas are needed."""

    replicas: int


@dataclass(frozen=True, slots=True)
class Pending:
    """Replicas that are still out can decide it."""


@dataclass(frozen=True, slots=True)
class Undecided:
    """Nobody agrees and no more may be asked."""


Verdict = Accepted | More | Pending | Undecided


def decide(answers: Sequence[Answer], *, outstanding: int, quorum: int, max_replicas: int, gone: int = 0) -> Verdict:
    """The verdict on a task.

    Args:
        answers: of the replicas that reported, in the order of their numbers; refusals are no answers.
        outstanding: replicas that are waited for.
        quorum: how many have to agree.
        max_replicas: most answers, outstanding and gone replicas together.
        gone: replicas that nobody waits for any more and that may have run: given up, or fallen due.
    """
    groups = Counter(answers)
    largest = 0
    if groups:
        answer, largest = groups.most_common(1)[0]  # of equals the first seen: the lowest replica number
        if largest >= quorum:
            return Accepted(answer)
    missing = quorum - largest - outstanding
    if missing <= 0:
        return Pending()
    if len(answers) + outstanding + gone + missing > max_replicas:
        return Undecided()
    return More(missing)
