"""What all backends have in common: the stage they are to run, what they tell while they do, and two phases of tasks.

A backend turns a `Stage` into a spool of reduce results. Three of the four (local, processes, network) run tasks one
phase after the other, `run_phases`; Dask has its own way of doing that.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

from ec262.backends.spool import Memory, Spool
from ec262.errors import EC262Error, JobFailed, ProgramError
from ec262.mapreduce.blocks import EMPTY
from ec262.mapreduce.program import MapHeaders, Program, reduce_header, split_counters
from ec262.mapreduce.split import Split
from ec262.policy import Policy
from ec262.protocol.framing import MAX_PARTS

PhaseName = Literal["map", "reduce"]


@dataclass(slots=True, eq=False)
class Unit:
    """One task as a backend sees it.

    Attributes:
        load: its whole input, header first; may read files, and may be called again.
        label: gives the task for a person.
        split: of a map task, for backends whose own workers load it; without it `tag` is the split's, where there is a
            checkpoint.
    """

    number: int
    phase: PhaseName
    load: Callable[[], list[bytes]]
    label: Callable[[], str]
    split: Split | None = None
    tag: bytes = b""


@dataclass(slots=True)
class Tally:
    """What a running job has to show; written by the backend, read by whoever watches.

    Attributes:
        phase: "starting", "map", "reduce", "writing" or "done".
        total: tasks of the phase; None while the input's end is not known.
        running, retried: tasks at workers now; attempts beyond each task's first.
        failed: tasks left out (`Policy.on_failure`), and why.
        workers: id, tasks at hand, tasks finished, tasks a second, credits, one for each.
        bytes_in, bytes_out: task inputs sent and results received.
        believed: of the network's results, how workers agreed on them.
    """

    stage: int = 0
    stages: int = 1
    phase: str = "starting"
    total: int | None = 0
    done: int = 0
    running: int = 0
    retried: int = 0
    map_tasks: int = 0
    reduce_tasks: int = 0
    workers: list[WorkerTally] = field(default_factory=list)
    bytes_in: int = 0
    bytes_out: int = 0
    bytes_spilled: int = 0
    credits_spent: int = 0
    earned: dict[str, int] = field(default_factory=dict)
    dissenters: set[str] = field(default_factory=set)
    balance_before: int = 0
    balance_after: int = 0
    failed: list[FailedTask] = field(default_factory=list)
    believed: Believed = field(default_factory=lambda: Believed())
    counters: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class WorkerTally:
    """A worker as the job sees it; `rate` is tasks a second."""

    worker_id: str
    out: int
    finished: int
    rate: float
    credits: int = 0


@dataclass(frozen=True, slots=True)
class FailedTask:
    """A task that failed and was left out. `task_id`: for ``ec262 explain``, where discovery decided it."""

    stage: int
    phase: str
    number: int
    label: str
    reason: str
    task_id: str = ""


@dataclass(frozen=True, slots=True)
class DisputedTask:
    """A result that was paid for and was not what its worker had committed itself to.

    Attributes:
        task_id: for ``ec262 explain``.
        verdict: of discovery: ``upheld``, ``refused``, ``unproven``; or ``untold``: it could not be shown the result.
        refund: credits that came back; negative: what the dispute cost.
    """

    stage: int
    label: str
    task_id: str
    worker_id: str
    verdict: str
    reason: str
    refund: int


@dataclass(frozen=True, slots=True)
class Believed:
    """How the workers of a job agreed.

    Attributes:
        tasks, answers: tasks that discovery accepted a result of, and answers to them that were paid or outvoted.
        disagreements: those outvoted.
        confidence: the lowest that any result reached; None where redundancy and quorum decide.
        recomputed: tasks computed anew, as what they rested on was no longer believed.
        unaudited: tasks whose results an earlier run got, and of which discovery has forgotten who gave them.
        clarity: below 0.5 workers disagree as if the program were not deterministic.
        disputed: results that were junk.
    """

    tasks: int = 0
    answers: int = 0
    disagreements: int = 0
    confidence: float | None = None
    recomputed: int = 0
    unaudited: int = 0
    clarity: float = 1.0
    disputed: tuple[DisputedTask, ...] = ()

    @property
    def replicas(self) -> float:
        """Answers for each task."""
        return self.answers / self.tasks if self.tasks else 0.0

    def plus(self, other: Believed) -> Believed:
        """Of two parts of a job together."""
        reached = [each.confidence for each in (self, other) if each.confidence is not None]
        return Believed(
            tasks=self.tasks + other.tasks,
            answers=self.answers + other.answers,
            disagreements=self.disagreements + other.disagreements,
            confidence=min(reached) if reached else None,
            recomputed=self.recomputed + other.recomputed,
            unaudited=self.unaudited + other.unaudited,
            clarity=min(self.clarity, other.clarity),
            disputed=self.disputed + other.disputed,
        )


@dataclass(slots=True)
class Stage:
    """One program over one input.

    Attributes:
        splits: the input's splits, in order; called once, and taken as tasks are wanted.
        count: how many splits there are; None if nobody knows before the end.
        partitions: reduce partitions.
        bounds: of the range partitioner.
        sample: some of the splits, for a trial.
        directory: of a checkpoint, where results are kept durably.
        counts: what this stage's tasks counted so far.
        inputs: with a checkpoint, a digest over what all splits were.
    """

    number: int
    program: Program
    splits: Callable[[], Iterable[Split]]
    count: int | None
    partitions: int
    bounds: Sequence[Any]
    sample: Callable[[], Sequence[Split]]
    memory: Memory
    directory: Path | None = None
    counts: dict[str, int] = field(default_factory=dict)
    inputs: str = ""


class Backend(ABC):
    """Where a job runs.

    Args:
        policy: the job's.
        tally: where to write what there is to show.
        changed: to be called when there is something new to show; cheap.
    """

    def __init__(self, policy: Policy, tally: Tally, changed: Callable[[], None]) -> None:
        self.policy = policy
        self.tally = tally
        self.changed = changed
        self._cancelled = False

    def start(self, stage: Stage) -> None:  # noqa: B027 - most have nothing to prepare
        """Before the first stage: connections, and a check of what that stage will cost (others are not known yet)."""

    @abstractmethod
    def run_stage(self, stage: Stage) -> Spool:
        """Computes a stage; the spool's row r is the result of reduce partition r.

        Raises:
            EC262Error: the job failed, see `ec262.errors`.
        """

    def close(self, *, failed: bool) -> None:  # noqa: B027 - most have nothing to close
        """Lets go of everything; called once, in the thread that called `start`."""

    def cancel(self) -> None:
        """Has the stage that runs end with `JobCancelled`; may be called in any thread, returns at once."""
        self._cancelled = True

    @property
    def cancelled(self) -> bool:
        """Whether `cancel` was called."""
        return self._cancelled

    # --- for subclasses ---

    def skip(
        self, stage: Stage, unit: Unit, spool: Spool, reason: EC262Error, task_id: str = "", *, instead: bool = False
    ) -> None:
        """Leaves a failed task out, if the policy says so.

        Args:
            instead: of its result that is in the spool.

        Raises:
            EC262Error: `reason`, if it does not.
        """
        if self.policy.on_failure != "skip":
            raise reason
        label, why = unit.label(), str(reason)
        self.tally.failed.append(FailedTask(stage.number, unit.phase, unit.number, label, why, task_id))
        empty = [EMPTY] * (stage.partitions if unit.phase == "map" else 1)
        spool.put(unit.number, empty, tag=tag_of(stage, unit), failed=(label, why), instead=instead)


PhaseRunner = Callable[[PhaseName, Iterable[Unit], int | None, Callable[[Unit, list[bytes]], None], Spool], None]
"""Runs units: phase, units (taken lazily), how many there are if known, what to call with each result, the phase's
spool."""


def run_phases(
    backend: Backend, stage: Stage, digest: str, run: PhaseRunner, seen: Callable[[Unit], Unit] | None = None
) -> Spool:
    """Maps, shuffles and reduces with a function that runs the tasks of a phase.

    Args:
        seen: called with every map task that there is, also with those that have a result; gives the one to be run.
    """
    tally = backend.tally
    maps = open_spool(stage, "map")
    results = open_spool(stage, "reduce")
    for phase, spool in (("map", maps), ("reduce", results)):
        # What an earlier run of this job counted and left out.
        count(stage, tally, spool.counts())
        for number, (label, why) in spool.failed().items():
            tally.failed.append(FailedTask(stage.number, phase, number, label, why))

    def keep(spool: Spool, width: int) -> Callable[[Unit, list[bytes]], None]:
        def done(unit: Unit, made: list[bytes]) -> None:
            parts, counts = split_counters(made, width)
            spool.put(unit.number, parts, counts, tag_of(stage, unit))
            count(stage, tally, counts)
            tally.bytes_spilled = maps.spilled + results.spilled

        return done

    try:
        _begin(backend, "map", stage, stage.count, len(maps))
        run("map", map_units(stage, digest, maps, seen), stage.count, keep(maps, stage.partitions), maps)
        tally.map_tasks += len(maps)
        wanted = [index for index in range(stage.partitions) if maps.column_size(index)]
        _begin(backend, "reduce", stage, len(wanted), len(results))
        units = (reduce_unit(digest, index, maps) for index in wanted if index not in results)
        run("reduce", units, len(wanted), keep(results, 1), results)
        tally.reduce_tasks += len(wanted)
        tally.bytes_spilled = maps.spilled + results.spilled
    except BaseException:
        results.close()
        raise
    finally:
        maps.close()
    return results


def tag_of(stage: Stage, unit: Unit) -> bytes:
    """What tells a unit's input from other input, where there is a checkpoint that has to know."""
    return unit.split.tag() if unit.split is not None and stage.directory is not None else unit.tag


def count(stage: Stage, tally: Tally, counts: dict[str, int], times: int = 1) -> None:
    """Adds what a task counted; `times` -1: takes it away."""
    for sums in (stage.counts, tally.counters):
        for name, number in counts.items():
            sums[name] = sums.get(name, 0) + times * number
            if not sums[name]:
                del sums[name]


def open_spool(stage: Stage, phase: PhaseName) -> Spool:
    """The spool of a stage's phase."""
    path = stage.directory / f"{phase}-{stage.number}.spool" if stage.directory is not None else None
    return Spool(stage.memory, path)


def _begin(backend: Backend, phase: PhaseName, stage: Stage, total: int | None, done: int) -> None:
    tally = backend.tally
    tally.stage, tally.phase, tally.total, tally.done, tally.running = stage.number, phase, total, done, 0
    backend.changed()


def map_units(stage: Stage, digest: str, done: Spool, seen: Callable[[Unit], Unit] | None = None) -> Iterator[Unit]:
    """The map tasks that have no result yet, as they are wanted.

    A split without data is no task: it would cost a credit. It gets its empty result at once.

    Args:
        seen: see `run_phases`.

    Raises:
        ProgramError: a checkpoint's result was made of other input.
    """
    headers = MapHeaders(digest, stage.partitions, stage.bounds)
    inputs = hashlib.sha256()
    index = -1
    for index, split in enumerate(stage.splits()):
        if stage.directory is not None:
            inputs.update(split.tag().ljust(16, b"\0"))
        if index in done:
            if done.tag_of(index) != split.tag().ljust(16, b"\0"):
                raise other_input(f"split {index} is not what it was")
            if seen is None or split.is_empty():
                continue
        elif split.is_empty():
            done.put(index, [EMPTY] * stage.partitions, tag=split.tag())
            continue
        header = headers.header(index, split.spec())
        unit = Unit(index, "map", partial(_with_header, header, split), partial(_map_label, index, split), split)
        if seen is not None:
            unit = seen(unit)
        if index not in done:
            yield unit
    numbers = done.numbers()
    if numbers and numbers[-1] > index:
        raise other_input(f"the input has {index + 1} splits now, and had more")
    stage.inputs = inputs.hexdigest()


def inputs_of(splits: Iterable[Split]) -> str:
    """The digest that `map_units` leaves in `Stage.inputs`."""
    seen = hashlib.sha256()
    for split in splits:
        seen.update(split.tag().ljust(16, b"\0"))
    return seen.hexdigest()


def other_input(what: str) -> ProgramError:
    """The error of a checkpoint whose results were made of other input."""
    return ProgramError(
        f"the checkpoint was made of other input: {what}. Give the job the same input, or another checkpoint directory"
    )


def _map_label(index: int, split: Split) -> str:
    return f"map task {index} ({split.label()})"


def _with_header(header: bytes, split: Split) -> list[bytes]:
    return [header, *split.load()]


def reduce_unit(digest: str, index: int, maps: Spool) -> Unit:
    """The task that reduces partition `index`: that part of every map result, in map task order."""
    header = reduce_header(digest, index=index)

    def load() -> list[bytes]:
        parts = [header, *maps.column(index)]
        if len(parts) > MAX_PARTS:
            raise JobFailed(f"reduce takes the results of at most {MAX_PARTS - 1} map tasks: make the splits larger")
        return parts

    return Unit(index, "reduce", load, lambda: f"reduce task {index}")


def digest_of(packed: bytes) -> str:
    """How tasks name a program: SHA-256 of its portable form, in hex."""
    return hashlib.sha256(packed).hexdigest()
