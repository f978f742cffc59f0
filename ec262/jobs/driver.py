"""Driver: a job from top to bottom. Plan, have mapped, shuffle, have reduced, stage by stage; then collect."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ec262.backends.base import Backend, Stage, Tally, digest_of
from ec262.backends.failures import everything_here
from ec262.backends.spool import Memory, Spool
from ec262.jobs.checkpoint import Checkpoint
from ec262.jobs.plan import Source, choose_bounds, choose_reducers, source_of, source_of_spool
from ec262.mapreduce.blocks import columns_of, pairs_of
from ec262.mapreduce.program import Program
from ec262.policy import Policy
from ec262.protocol.canonical import sort_key, sort_keys
from ec262.sandbox.pack import NotShippable, load_program, pack_program


@dataclass(frozen=True, slots=True)
class Plan:
    """What a job is: the programs of its stages, its input and how it is to be run."""

    programs: Sequence[Program]
    data: Any
    policy: Policy


class Results:
    """The results of the last stage, in key order.

    Args:
        ordered: whether every key of a partition stands before those of the next.
    """

    def __init__(self, spool: Spool, partitions: int, *, ordered: bool) -> None:
        self._spool = spool
        self.partitions = partitions
        self.ordered = ordered or partitions == 1

    def pairs(self) -> Iterator[tuple[Any, Any]]:
        """All (key, value) pairs in key order; holds a block of each partition."""
        runs = [self.partition(index) for index in range(self.partitions)]
        if self.ordered:
            for run in runs:
                yield from run
        else:
            yield from heapq.merge(*runs, key=_order)

    def partition(self, index: int) -> Iterator[tuple[Any, Any]]:
        """The pairs of one partition, in key order."""
        if index in self._spool:
            for part in self._spool.row(index):
                yield from pairs_of(part)

    def batches(self, index: int) -> Iterator[tuple[list[Any], list[Any]]]:
        """The keys and values of one partition, in key order."""
        if index in self._spool:
            for part in self._spool.row(index):
                yield from columns_of(part)

    def as_dict(self) -> dict[Any, Any]:
        """All pairs as a dictionary, keys in order."""
        found: dict[Any, Any] = {}
        for index in range(self.partitions):
            for keys, values in self.batches(index):
                found.update(zip(keys, values, strict=True))
        return found if self.ordered else {key: found[key] for key in sort_keys(found)}

    def close(self) -> None:
        """Lets go of memory and files."""
        self._spool.close()


def _order(pair: tuple[Any, Any]) -> Any:
    return sort_key(pair[0])


def run_stages(
    plan: Plan, source: Source, tally: Tally, connect: Callable[[], Backend], checkpoint: Path | None
) -> tuple[Results, Checkpoint | None]:
    """Runs all stages; the results are the caller's to close, then the checkpoint.

    Args:
        source: of the plan's data, see `open_source`.
        connect: makes the backend.

    Raises:
        EC262Error: see `ec262.errors`.
    """
    memory = Memory(None if plan.policy.memory_limit is None else plan.policy.memory_limit * 3 // 8)
    kept = Checkpoint(checkpoint) if checkpoint is not None else None
    spool: Spool | None = None
    try:
        if kept is not None:
            kept.open_job(_identity(plan, source))
        backend = connect()
        failed = True
        partitions = 1
        try:
            for number in range(len(plan.programs)):
                if spool is not None:
                    source = source_of_spool(spool)
                stage, complete = _plan_stage(plan, number, source, memory, kept)
                partitions = stage.partitions
                if number == 0:
                    backend.start(stage)
                if complete and stage.directory is not None:
                    made = Spool(memory, stage.directory / f"reduce-{number}.spool")
                else:
                    made = backend.run_stage(stage)
                if spool is not None:
                    spool.close()
                spool = made
                if kept is not None and not complete:
                    kept.complete_stage(number)
            failed = False
        finally:
            backend.close(failed=failed)
        assert spool is not None
        tally.counters = tally.counters or spool.counts()
        return Results(spool, partitions, ordered=plan.programs[-1].partitioner == "range"), kept
    except BaseException:
        if spool is not None:
            spool.close()
        if kept is not None:
            kept.close()
        raise


def open_source(plan: Plan) -> Source:
    """The first stage's source; raises what is wrong with the input before anything is started."""
    return source_of(plan.data, plan.policy)


def _plan_stage(plan: Plan, number: int, source: Source, memory: Memory, kept: Checkpoint | None) -> tuple[Stage, bool]:
    program = plan.programs[number]
    planned = kept.stage(number) if kept is not None else None
    if planned is not None:
        partitions, bounds = planned["partitions"], planned["bounds"]
    else:
        partitions = choose_reducers(source, plan.policy)
        bounds = choose_bounds(_copy_of(program), source, partitions, plan.policy)
        if kept is not None:
            kept.plan_stage(number, partitions=partitions, bounds=bounds)
    directory = kept.directory if kept is not None else None
    stage = Stage(number, program, source.splits, source.count, partitions, bounds, source.sample, memory, directory)
    return stage, bool(planned and planned["complete"])


def _copy_of(program: Program) -> Program:
    """The program with globals of its own, where it can be packed: sampling shall leave no traces in the user's."""
    if program.partitioner != "range":
        return program
    try:
        return load_program(pack_program(program, allowed=everything_here()))
    except NotShippable:
        return program


def _identity(plan: Plan, source: Source) -> dict[str, Any]:
    """What has to be the same when a job goes on from its checkpoint."""
    policy = plan.policy
    return {
        "programs": [_name_program(program) for program in plan.programs],
        "input": source.tag,
        "policy": {
            name: getattr(policy, name) for name in ("items_per_task", "split_size", "reducers", "seed", "on_failure")
        },
    }


def _name_program(program: Program) -> str:
    try:
        return digest_of(pack_program(program, allowed=everything_here()))
    except NotShippable:
        return f"{program.mapper.__module__}.{program.mapper.__qualname__}"
