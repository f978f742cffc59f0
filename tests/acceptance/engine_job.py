"""A job at the level of the engine, also for a process of its own that kills itself."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

from ec262.credentials import CredentialStore
from ec262.discovery_client import DiscoveryClient, create_account_at
from ec262.errors import EC262Error
from ec262.foreman.engine import Engine, Facts
from ec262.foreman.journal import Journal
from ec262.foreman.schedule import Task
from ec262.mapreduce.blocks import pairs_of
from ec262.mapreduce.program import Program, map_header, reduce_header
from ec262.policy import Policy
from ec262.protocol import messages as m
from ec262.protocol.canonical import encode_pairs
from ec262.sandbox.pack import pack_program

MAPS, PARTITIONS = 12, 4


def burn(key: int, loops: int) -> Iterator[tuple[int, int]]:
    x = 0
    for i in range(loops):
        x += i
    yield key % 4, key


def total(key: int, values: list[int]) -> int:
    x = 0
    for i in range(400_000):
        x += i
    return sum(values)


EXPECTED = {rest: sum(n for n in range(MAPS) if n % 4 == rest) for rest in range(4)}
DYING = {
    "asked": ("asked", False),
    "noting": ("leased", False),
    "noted": ("answered", False),
    "sent": ("pushed", True),
    "start": ("pushed", False),
}
"""What the journal was told last by a foreman that dies at that point, and whether it dies before that is noted."""


class CountingClient(DiscoveryClient):
    """Counts how often an input was leased to a worker."""

    leases: dict[bytes, int]

    def lease_tasks(self, body: m.LeaseTasks) -> m.Leased:
        leased = super().lease_tasks(body)
        self.leases = getattr(self, "leases", {})
        for task, _ in zip(body.tasks, leased.tasks, strict=False):
            self.leases[task.input_digest] = self.leases.get(task.input_digest, 0) + 1
        return leased


class EngineJob:
    """A map and a reduce phase. Results that came before (`kept`) are not computed again.

    Args:
        loops: of a map task with that number: how long it takes.
        on_result: called in the engine's thread with each task that is done, before anything else is.
    """

    def __init__(
        self,
        url: str,
        policy: Policy,
        *,
        maps: int = MAPS,
        loops: Callable[[int], int] = lambda number: 400_000,
        on_result: Callable[[EngineJob, Task], None] = lambda job, task: None,
        kept: Path | None = None,
        journal: Path | None = None,
        credits_limit: int | None = None,
        patience_s: float = 5.0,
    ) -> None:
        self.failed: dict[tuple[str, int], EC262Error] = {}
        self.done: dict[tuple[str, int], list[bytes]] = {}
        self.facts: Facts | None = None
        self._maps, self._loops, self._on_result, self._kept = maps, loops, on_result, kept
        self._patience_s = patience_s
        program = pack_program(Program(mapper=burn, reducer=total))
        if kept is not None:
            # Packed in another process, after other tests there, it may be other bytes of the same program.
            packed = kept.with_suffix(".program")
            if packed.exists():
                program = packed.read_bytes()
            else:
                packed.write_bytes(program)
        self._digest = hashlib.sha256(program).hexdigest()
        if kept is not None and kept.exists():
            with open(kept, "rb") as file:
                while file.peek(1):
                    where, parts = pickle.load(file)
                    self.done[where] = parts
        self.client = CountingClient(url)
        account = CredentialStore().ensure_account(url, lambda: create_account_at(self.client))
        self.client.use_account(account.account_id, account.secret)
        self.journal = Journal(journal) if journal is not None else None
        self.engine = Engine(
            *(self.client, policy),
            program=program,
            lane="native",
            journal=self.journal,
            credits_limit=credits_limit,
        )

    def run(self) -> dict[int, int]:
        """Both phases; the result."""
        try:
            self.engine.run_phase(self.map_tasks(), self._take, self._fail)
            self.engine.run_phase(self.reduce_tasks(), self._take, self._fail)
        finally:
            self.engine.close(self._patience_s)
            self.facts = self.engine.facts()
            self.client.close()
            if self.journal is not None:
                self.journal.close()
        parts = [parts[0] for (phase, _), parts in self.done.items() if phase == "reduce"]
        return {key: value for part in parts for key, value in pairs_of(part)}

    def map_tasks(self) -> Iterator[Task]:
        for number in range(self._maps):
            if ("map", number) not in self.done:
                yield Task(number, lambda n=number: self.map_input(n))  # type: ignore[misc]

    def reduce_tasks(self) -> Iterator[Task]:
        for number in range(PARTITIONS):
            if ("reduce", number) not in self.done:
                yield Task(number, lambda n=number: self._reduce_input(n), "reduce")  # type: ignore[misc]

    def map_input(self, number: int) -> list[bytes]:
        header = map_header(self._digest, index=number, partitions=PARTITIONS)
        return [header, encode_pairs([(number, self._loops(number))])]

    def _reduce_input(self, number: int) -> list[bytes]:
        mapped = [self.done["map", n][number] for n in range(self._maps) if ("map", n) in self.done]
        return [reduce_header(self._digest, index=number), *filter(None, mapped)]

    def _take(self, task: Task, parts: list[bytes]) -> None:
        self._on_result(self, task)
        where = (task.phase, task.number)
        assert where not in self.done, "a result is handed on once"
        self.done[where] = parts
        if self._kept is not None:
            with open(self._kept, "ab") as file:
                pickle.dump((where, parts), file)

    def _fail(self, task: Task, error: EC262Error) -> None:
        self.failed[task.phase, task.number] = error


def main(url: str, directory: str, point: str, limit: str = "") -> None:
    """Runs the job with a journal in a directory; the process dies at `point`, empty for none."""

    def die() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def on_result(job: EngineJob, task: Task) -> None:
        if (point, task.phase, sum(phase == task.phase for phase, _ in job.done)) in (
            ("map", "map", 3),
            ("reduce", "reduce", 1),
        ):
            die()

    job = EngineJob(
        *(url, Policy(backup_tasks=False)),
        on_result=on_result,
        kept=Path(directory) / "kept",
        journal=Path(directory) / "journal",
        credits_limit=int(limit) if limit else None,
    )
    assert job.journal is not None
    if point == "answered":
        client = job.client

        def lease_tasks(body: m.LeaseTasks) -> m.Leased:
            if CountingClient.lease_tasks(client, body).tasks:
                die()  # discovery has leased them, and nobody has noted that
            raise AssertionError("there are workers")

        client.lease_tasks = lease_tasks  # type: ignore[method-assign]
    elif point in DYING:
        name, before = DYING[point]
        noted = getattr(job.journal, name)

        def dying(*arguments: object) -> None:
            if not before:
                noted(*arguments)
            die()

        setattr(job.journal, name, dying)
    result = job.run()
    assert job.facts is not None
    print(json.dumps({"result": sorted(result.items()), "spent": job.facts.credits_spent, "job": job.engine.job_id}))
