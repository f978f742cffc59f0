"""Reports: several runs of one policy together, and policies side by side."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from discovery.credibility import USUAL
from discovery.simulation.network import Network, Outcome, Setup
from discovery.simulation.rules import Boinc, Credible, Quorum, Rule

POLICIES = ("3/2", "boinc", "0.99", "0.999")
_COLUMNS = (
    *("POLICY", "WRONG %", "WORST %", "AT FIRST %", "REPLICAS", "UNDECIDED", "CONVICTED", "WRONGLY", "LIFTED"),
    *("HONEST EARN", "LIARS EARN", "NAMES"),
)


@dataclass(frozen=True, slots=True)
class Summary:
    """Means over runs that differ in their seed.

    Attributes:
        wrong: share of tasks with a wrong result when their job was closed; `worst`: of the worst run.
        wrong_first: share of which a wrong result was accepted at first.
        replicas: a task, checks and recomputation included.
        honest_earned: credits of one honest worker; `dishonest_earned`: of one saboteur, all its names together.
    """

    policy: str
    wrong: float
    worst: float
    wrong_first: float
    replicas: float
    undecided: float
    rightly: float
    wrongly: float
    acquitted: float
    honest_earned: float
    dishonest_earned: float
    names: float


def rule_of(policy: str) -> Callable[[random.Random], Rule]:
    """What makes the rule that a policy's name stands for, anew for each run.

    Args:
        policy: ``N/M`` for N replicas of which M agree; ``boinc``; a confidence such as ``0.99``, or ``0.99:0.2`` with
            a share of tasks to check other than the usual.

    Raises:
        ValueError: no such policy.
    """
    if policy == "boinc":
        return Boinc
    copies = re.fullmatch(r"([1-9][0-9]?)/([1-9][0-9]?)", policy)
    if copies is not None:
        redundancy, quorum = int(copies[1]), int(copies[2])
        if quorum > redundancy:
            raise ValueError(f"{policy}: of {redundancy} replicas no {quorum} can agree")
        return lambda chance: Quorum(redundancy, quorum)
    sure = re.fullmatch(r"(0\.[0-9]+)(?::(0?\.[0-9]+|1|0))?", policy)
    if sure is None or not 0.5 <= float(sure[1]) < 1:
        raise ValueError(f"{policy!r:.40} is no policy; some are 3/2, boinc, 0.99 and 0.99:0.2")
    check = USUAL.check if sure[2] is None else float(sure[2])
    least = USUAL.least_check * check / USUAL.check
    assumed = replace(USUAL, check=check, least_check=least, most_check=max(USUAL.most_check, least))
    confidence = float(sure[1])
    return lambda chance: Credible(confidence, assumed)


def summary(policy: str, setup: Setup, seeds: Sequence[int]) -> Summary:
    """Runs a policy once for each seed."""
    outcomes = [Network(replace(setup, seed=seed), rule_of(policy)).run() for seed in seeds]

    def mean(of: Callable[[Outcome], float]) -> float:
        return sum(of(each) for each in outcomes) / len(outcomes)

    return Summary(
        policy=policy,
        wrong=mean(lambda o: o.wrong / o.tasks),
        worst=max(each.wrong / each.tasks for each in outcomes),
        wrong_first=mean(lambda o: o.wrong_first / o.tasks),
        replicas=mean(lambda o: o.replicas / o.tasks),
        undecided=mean(lambda o: o.undecided),
        rightly=mean(lambda o: o.rightly),
        wrongly=mean(lambda o: o.wrongly),
        acquitted=mean(lambda o: o.acquitted),
        honest_earned=mean(lambda o: o.honest_earned / max(1, o.honest)),
        dishonest_earned=mean(lambda o: o.dishonest_earned / max(1, o.dishonest)),
        names=mean(lambda o: o.names),
    )


def table(summaries: Sequence[Summary]) -> str:
    """Policies, a line each, under a line of headings."""
    rows = [list(_COLUMNS), *(_row(each) for each in summaries)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_COLUMNS))]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)


def _row(of: Summary) -> list[str]:
    return [
        *(of.policy, f"{100 * of.wrong:.3f}", f"{100 * of.worst:.3f}", f"{100 * of.wrong_first:.3f}"),
        *(f"{of.replicas:.3f}", f"{of.undecided:.1f}", f"{of.rightly:.1f}", f"{of.wrongly:.1f}"),
        *(f"{of.acquitted:.1f}", f"{of.honest_earned:.0f}", f"{of.dishonest_earned:.0f}", f"{of.names:.0f}"),
    ]
