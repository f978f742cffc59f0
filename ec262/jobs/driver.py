"""Driver: a job from top to bottom. Plan, have mapped, shuffle, have reduced, stage by stage; then collect."""

from __future__ import annotations

import heapq
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ec262.backends.base import Backend, FailedTask, Stage, Tally, digest_of, inputs_of, other_input
from ec262.backends.failures import everything_here
from ec262.backends.spool import Memory, Spool
from ec262.errors import ProgramError
from ec262.jobs.checkpoint import Checkpoint
from ec262.jobs.plan import Source, choose_bounds, choose_reducers, source_of, source_of_spool
from ec262.mapreduce.blocks import columns_of, pairs_of
from ec262.mapreduce.program import Program
from ec262.policy import Policy
from ec262.protocol.canonical import sort_key, sort_keys
from ec262.protocol.framing import unframe_parts
from ec262.sandbox.pack import NotShippable, pack_program

_NO_KEY = object()


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
        """All (key, value) pairs in key order; holds a block of each partition.

        Raises:
            ProgramError: the program's own partitioner put one key into two partitions.
        """
        runs = [self.partition(index) for index in range(self.partitions)]
        if self.ordered:
            for run in runs:
                yield from run
            return
        last: Any = _NO_KEY
        for key, value in heapq.merge(*runs, key=_order):
            if key == last:
                raise _torn(key)
            last = key
            yield key, value

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
        count = 0
        for index in range(self.partitions):
            for keys, values in self.batches(index):
                found.update(zip(keys, values, strict=True))
                count += len(keys)
        if count != len(found):
            raise _torn(_seen_twice(key for index in range(self.partitions) for key, _ in self.partition(index)))
        return found if self.ordered else {key: found[key] for key in sort_keys(found)}

    def close(self) -> None:
        """Lets go of memory and files."""
        self._spool.close()


def _torn(key: Any) -> ProgramError:
    return ProgramError(
        f"key {key!r:.80} came from two reduce partitions: the program's partitioner has to give equal keys the same "
        "partition, in every task and on every machine"
    )


def _seen_twice(keys: Iterator[Any]) -> Any:
    seen: set[Any] = set()
    return next(key for key in keys if key in seen or seen.add(key))  # type: ignore[func-returns-value]


def _order(pair: tuple[Any, Any]) -> Any:
    return sort_key(pair[0])


def run_stages(
    plan: Plan, source: Source | None, tally: Tally, connect: Callable[[], Backend], checkpoint: Path | None
) -> tuple[Results, Checkpoint | None]:
    """Runs all stages; the results are the caller's to close, then the checkpoint.

    Args:
        source: of the plan's data, see `open_source`; None: to be opened here.
        connect: makes the backend.

    Raises:
        EC262Error: see `ec262.errors`.
    """
    memory = Memory(None if plan.policy.memory_limit is None else plan.policy.memory_limit * 3 // 8)
    kept = Checkpoint(checkpoint) if checkpoint is not None else None
    spool: Spool | None = None
    try:
        source = source if source is not None else open_source(plan)
        if kept is not None:
            kept.open_job(_identity(plan, source))
        backend = connect()
        failed = True
        partitions = 1
        try:
            for number in range(len(plan.programs)):
                if spool is not None:
                    source = source_of_spool(spool)
                planned = kept.stage(number) if kept is not None else None
                stage = _plan_stage(plan, number, source, memory, kept, planned, lambda: backend.cancelled)
                partitions = stage.partitions
                if number == 0:
                    backend.start(stage)
                if planned is not None and planned["complete"] and stage.directory is not None:
                    made = _kept_stage(stage, planned, tally)
                else:
                    made = backend.run_stage(stage)
                    if kept is not None:
                        failed_tasks = [task for task in tally.failed if task.stage == number]
                        kept.complete_stage(
                            number,
                            inputs=stage.inputs,
                            counts=stage.counts,
                            failed=[(each.phase, each.number, each.label, each.reason) for each in failed_tasks],
                        )
                if spool is not None:
                    spool.close()
                spool = made
            failed = False
        finally:
            backend.close(failed=failed)
        assert spool is not None
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


def _plan_stage(
    plan: Plan,
    number: int,
    source: Source,
    memory: Memory,
    kept: Checkpoint | None,
    planned: dict[str, Any] | None,
    stop: Callable[[], bool],
) -> Stage:
    program = plan.programs[number]
    if planned is not None:
        partitions, bounds = planned["partitions"], planned["bounds"]
    else:
        partitions = choose_reducers(source, plan.policy)
        bounds = choose_bounds(program, source, partitions, plan.policy, stop)
        if kept is not None:
            kept.plan_stage(number, partitions=partitions, bounds=bounds)
    directory = kept.directory if kept is not None else None
    return Stage(number, program, source.splits, source.count, partitions, bounds, source.sample, memory, directory)


def _kept_stage(stage: Stage, planned: dict[str, Any], tally: Tally) -> Spool:
    """The results of a stage that an earlier run completed."""
    if stage.number == 0 and inputs_of(stage.splits()) != planned["inputs"]:
        raise other_input("its splits are not what they were")
    for name, count in planned["counts"].items():
        tally.counters[name] = tally.counters.get(name, 0) + count
    tally.failed += [FailedTask(stage.number, *fields) for fields in planned["failed"]]
    assert stage.directory is not None
    return Spool(stage.memory, stage.directory / f"reduce-{stage.number}.spool")


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
    """What tells the program from another: its source and all it refers to.

    Of what travels the pickle is left out where there is source: equal functions give other pickles when Python has
    read them from its cache of compiled files.
    """
    try:
        packed = pack_program(program, allowed=everything_here())
    except NotShippable as reason:
        raise ProgramError(f"checkpoint= needs a program that can be told from others by its code: {reason}") from None
    _, pickled, recipe, *_ = unframe_parts(packed)
    return digest_of(pickled if "why" in json.loads(recipe) else recipe)
