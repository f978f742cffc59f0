"""What each part of ``confidence`` contributes: the simulation of docs/trust.md with one part left out at a time.

python -m benchmarks.trust [--seeds 3]
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Callable
from dataclasses import replace

from discovery.credibility import USUAL
from discovery.simulation.behaviours import Person, Tactic
from discovery.simulation.network import Network, Setup
from discovery.simulation.rules import Credible, Rule, Task


class NothingTakenBack(Credible):
    """Convicts and bans, but what was accepted stays accepted."""

    def close(self, tasks: list[Task]) -> list[Task]:
        return []

    def _judge(self, suspects: list[Person]) -> list[Task]:
        for person in suspects:
            if self._book.convicts(person):
                person.banned = True
                self.convicted.add(person)
        return []


class NoLastLook(Credible):
    """Takes back what rested on the convicted, but does not look at all tasks again when a job is closed."""

    def close(self, tasks: list[Task]) -> list[Task]:
        return []


UNCAPPED = replace(USUAL, contested=1 - 1e-9)
PARTS: dict[str, Callable[[random.Random], Rule]] = {
    "all of it": lambda chance: Credible(0.99),
    "contested tasks like others": lambda chance: Credible(0.99, UNCAPPED),
    "no last look": lambda chance: NoLastLook(0.99),
    "nothing taken back": lambda chance: NothingTakenBack(0.99),
}
TACTICS = {"one lie in ten": Tactic(lie=0.1), "sleepers of 50": Tactic(after=50)}


def main() -> None:
    """Prints a line for each part left out and each tactic."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3, help="runs of each (default: %(default)s)")
    seeds = range(1, parser.parse_args().seeds + 1)
    print(f"{'':28}  {'':14}  AT FIRST %  WRONG %  REPLICAS")
    for part, rule in PARTS.items():
        for name, tactic in TACTICS.items():
            came = [Network(Setup(tactic=tactic, seed=seed), rule).run() for seed in seeds]
            tasks = sum(each.tasks for each in came)
            first, wrong = (100 * sum(of) / tasks for of in ([o.wrong_first for o in came], [o.wrong for o in came]))
            replicas = sum(each.replicas for each in came) / tasks
            print(f"{part:28}  {name:14}  {first:10.3f}  {wrong:7.3f}  {replicas:8.3f}", flush=True)


if __name__ == "__main__":
    main()
