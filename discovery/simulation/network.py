"""The network: foremen lease, made-up workers answer, a rule decides; in virtual time, one second a round."""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable
from dataclasses import dataclass, field

from discovery.matching import assign
from discovery.records import WorkerRecord
from discovery.simulation.behaviours import OTHER, RIGHT, Person, Replica, State, Tactic, answer_of
from discovery.simulation.rules import Rule, Task
from discovery.verdict import Accepted, More, Undecided

SAMPLE = 64
"""Workers drawn for one request, as `discovery.settings` has it."""
CAPACITY = 2
DEADLINE_S = 30.0
AWAY_S = 60.0
"""How long a worker that crashed is away, and until one that was convicted has a new name."""
MOST_ROUNDS = 100_000
STILL_ROUNDS = 200
"""Of so many rounds in which nobody computes or comes back none will come any more: longer than any wait above."""


@dataclass(frozen=True, slots=True)
class Setup:
    """One network and its work.

    Attributes:
        saboteurs: share of workers, auditors apart.
        foremen: of unrelated accounts, each with its part of the tasks.
        jobs: one after the other, for each foreman.
        flaky: share of tasks on which the program is not deterministic.
        flaky_foremen: so many foremen of whose tasks all are so.
        errors: share of results in which honest workers err.
    """

    workers: int = 200
    tasks: int = 20_000
    saboteurs: float = 0.2
    tactic: Tactic = field(default_factory=Tactic)
    auditors: int = 0
    foremen: int = 4
    jobs: int = 1
    flaky: float = 0.0
    flaky_foremen: int = 0
    errors: float = 0.0
    seed: int = 1


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of it.

    Attributes:
        wrong_first: tasks of which a wrong result was accepted at first.
        wrong: those of which it was still accepted when their job was closed.
        undecided: tasks that ended without a result.
        replicas: leased in all, recomputation and spot checks included.
        honest_earned: credits of all honest workers together, what was taken back not counted; `dishonest_earned`:
            of all saboteurs.
        rightly: saboteurs convicted at the end, by name; `wrongly`: others.
        acquitted: convictions that were lifted.
        names: names under which saboteurs took part.
    """

    tasks: int
    wrong_first: int
    wrong: int
    undecided: int
    replicas: int
    honest: int
    dishonest: int
    honest_earned: int
    dishonest_earned: int
    rightly: int
    wrongly: int
    acquitted: int
    names: int
    seconds: float


class Network:
    """One run."""

    def __init__(self, setup: Setup, rule: Callable[[random.Random], Rule]) -> None:
        self._setup = setup
        self._chance = random.Random(setup.seed)
        self._rule = rule(self._chance)
        self._now = 0.0
        self._events: list[tuple[float, int, Task, Replica, bool]] = []
        self._count = 0
        self._people = self._recruit()
        self._names = sum(1 for each in self._people if each.saboteur)
        self._returning: list[tuple[float, Person]] = []
        self._dirty: dict[int, Task] = {}
        self._wants: list[dict[int, tuple[Task, int]]] = [{} for _ in range(setup.foremen)]
        self._everybody = list(self._people)

    def run(self) -> Outcome:
        """Until all jobs are closed."""
        setup = self._setup
        queues = self._jobs()
        todo: list[list[Task]] = [[] for _ in queues]
        current: list[list[Task]] = [[] for _ in queues]
        done: list[Task] = []
        still = 0
        for _ in range(MOST_ROUNDS):
            self._now += 1.0
            still = 0 if self._events or self._returning else still + 1
            if still > STILL_ROUNDS:  # too few workers, or none that are believed: what is left stays undecided
                done += [task for tasks in (*current, *(job for queue in queues for job in queue)) for task in tasks]
                break
            self._answers()
            self._settle()
            for foreman in self._chance.sample(range(setup.foremen), setup.foremen):
                tasks = current[foreman]
                if not todo[foreman] and all(task.accepted is not None or task.given_up for task in tasks):
                    if tasks:
                        opened = self._rule.close(tasks)
                        if opened:
                            self._dirty.update((task.number, task) for task in opened)
                            continue
                        self._rule.closed(tasks)
                        done += tasks
                    current[foreman] = queues[foreman].pop(0) if queues[foreman] else []
                    todo[foreman] = current[foreman][::-1]
                self._lease(foreman, todo[foreman])
            if not any(current) and not any(queues):
                break
            self._settle()
        return self._outcome(done)

    # --- inside ---

    def _recruit(self) -> list[Person]:
        setup = self._setup
        bad = round(setup.workers * setup.saboteurs)
        people = []
        for number in range(setup.workers):
            seconds = 2.0 * self._chance.lognormvariate(0.0, 0.3)
            people.append(Person(f"{number:04d}", seconds, saboteur=number < bad))
        for each in people[setup.workers - setup.auditors :]:
            each.auditor = True
        return people

    def _jobs(self) -> list[list[list[Task]]]:
        setup = self._setup
        queues: list[list[list[Task]]] = [[[] for _ in range(setup.jobs)] for _ in range(setup.foremen)]
        for number in range(setup.tasks):
            foreman = number % setup.foremen
            at = number * setup.jobs // setup.tasks
            flaky = foreman < setup.flaky_foremen or self._chance.random() < setup.flaky
            task = Task(number, foreman, foreman * setup.jobs + at, self._chance.random(), flaky)
            queues[foreman][at].append(task)
        return queues

    def _answers(self) -> None:
        while self._events and self._events[0][0] <= self._now:
            _, _, task, replica, lost = heapq.heappop(self._events)
            replica.person.used -= 1
            if lost:
                replica.state = State.GONE
            else:
                replica.answer = answer_of(
                    replica.person,
                    self._setup.tactic,
                    task.replicas,
                    task.lot,
                    self._chance,
                    flaky=task.flaky,
                    errors=self._setup.errors,
                )
                replica.state = State.REPORTED
            if task.accepted is None and not task.given_up:
                self._dirty[task.number] = task
        while self._returning and self._returning[0][0] <= self._now:
            _, gone = self._returning.pop(0)
            self._names += 1
            fresh = Person(f"{gone.worker_id}+", gone.seconds, saboteur=True)
            self._people[self._people.index(gone)] = fresh
            self._everybody.append(fresh)

    def _settle(self) -> None:
        while self._dirty:
            _, task = self._dirty.popitem()
            if task.accepted is not None or task.given_up:
                continue
            self._wants[task.foreman].pop(task.number, None)
            verdict = self._rule.decide(task)
            if isinstance(verdict, Accepted):
                task.accepted = verdict.answer
                if task.first is None:
                    task.first = verdict.answer
                opened = self._rule.settled(task)
                self._dirty.update((each.number, each) for each in opened)
                self._see_off()
            elif isinstance(verdict, Undecided):
                task.given_up = True
            elif isinstance(verdict, More):
                self._wants[task.foreman][task.number] = (task, verdict.replicas)

    def _see_off(self) -> None:
        if not self._setup.tactic.returns:
            return
        waiting = {id(person) for _, person in self._returning}
        for person in self._people:
            if person.banned and person.saboteur and id(person) not in waiting:
                self._returning.append((self._now + AWAY_S, person))

    def _lease(self, foreman: int, todo: list[Task]) -> None:
        wants = self._wants[foreman]
        if not todo and not wants:
            return
        free = [
            each
            for each in self._people
            if each.used < CAPACITY
            and not each.banned
            and each.away_until <= self._now
            and self._rule.welcome(each, foreman)
        ]
        drawn = self._chance.sample(free, min(SAMPLE, len(free)))
        people = {each.worker_id: each for each in drawn}
        newcomers = self._rule.newcomers(drawn, foreman)
        records = {each.worker_id: _record(each) for each in drawn}
        for number, (task, count) in list(wants.items()):
            had = [_record(each.person) for each in task.replicas]
            groups = self._assign(records, 1, count, had, newcomers) if records else []
            if not groups and count > 1 and records:
                groups = self._assign(records, 1, 1, had, newcomers)
            if groups:
                self._give(task, groups[0], people, records)
                del wants[number]
        room = sum(record.free for record in records.values()) // self._rule.first
        wanted = min(len(todo), room)
        for group in self._assign(records, wanted, self._rule.first, [], newcomers):
            task = todo.pop()
            self._give(task, group, people, records)
            more = self._rule.leased(task)
            if more:
                wants[task.number] = (task, more)

    def _assign(
        self,
        records: dict[str, WorkerRecord],
        tasks: int,
        replicas: int,
        had: list[WorkerRecord],
        newcomers: frozenset[str],
    ) -> list[list[WorkerRecord]]:
        return assign(
            list(records.values()),
            tasks=tasks,
            replicas=replicas,
            distinct="none",  # each has an account and a network of its own
            chance=self._chance,
            exclude=had,
            newcomers=newcomers,
        )

    def _give(
        self, task: Task, group: list[WorkerRecord], people: dict[str, Person], records: dict[str, WorkerRecord]
    ) -> None:
        tactic = self._setup.tactic
        for chosen in group:
            person = people[chosen.worker_id]
            replica = Replica(person)
            task.replicas.append(replica)
            lost = False
            takes = person.seconds * self._chance.lognormvariate(0.0, 0.2) * (person.used + 1)
            if person.saboteur and (tactic.crash or tactic.silent):
                draw = self._chance.random()
                if draw < tactic.crash:
                    person.away_until = self._now + AWAY_S
                lost = draw < tactic.crash + tactic.silent
            person.used += 1
            self._count += 1
            heapq.heappush(
                self._events, (self._now + (DEADLINE_S if lost else takes), self._count, task, replica, lost)
            )
            records[person.worker_id] = _record(person)

    def _outcome(self, done: list[Task]) -> Outcome:
        for task in done:
            for each in task.replicas:
                if each.answer is not None and each.answer == task.accepted:
                    each.person.paid += 1
        honest = [each for each in self._everybody if not each.saboteur]
        dishonest = [each for each in self._everybody if each.saboteur]
        banned = self._rule.convicted
        return Outcome(
            tasks=len(done),
            wrong_first=sum(1 for task in done if task.first not in (RIGHT, OTHER, None)),
            wrong=sum(1 for task in done if task.accepted not in (RIGHT, OTHER, None)),
            undecided=sum(1 for task in done if task.accepted is None),
            replicas=sum(len(task.replicas) for task in done),
            honest=len(honest),
            dishonest=round(self._setup.workers * self._setup.saboteurs),
            honest_earned=sum(each.paid for each in honest),
            dishonest_earned=sum(each.paid for each in dishonest),
            rightly=sum(1 for each in banned if each.saboteur),
            wrongly=sum(1 for each in banned if not each.saboteur),
            acquitted=self._rule.acquitted,
            names=self._names,
            seconds=self._now,
        )


def _record(person: Person) -> WorkerRecord:
    return WorkerRecord(person.worker_id, person.account_id, "192.0.2.1", 1, 1, 1, person.used, CAPACITY)
