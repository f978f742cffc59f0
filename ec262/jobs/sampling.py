"""Sampling: which keys a mapper gives for a sample of the input, to find the bounds of ranges.

The mapper runs in a sandbox of this machine, with limits: what it does to its module's globals stays there, and one
that never ends does not hold the job up for ever. A program that cannot be shipped (its functions use modules that no
sandbox has) runs here, as it is.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any

from ec262.backends.base import digest_of
from ec262.errors import ProgramError, SandboxUnavailable
from ec262.mapreduce import context
from ec262.mapreduce.blocks import batches_of
from ec262.mapreduce.program import Program, execute, map_header, records_of
from ec262.mapreduce.records import Reader
from ec262.mapreduce.split import Split
from ec262.policy import Policy
from ec262.protocol.canonical import encode_pairs
from ec262.sandbox.executor_program import ExecutorMapper
from ec262.sandbox.launcher import Sandbox
from ec262.sandbox.outcome import Outcome, UnitTask
from ec262.sandbox.pack import NotShippable, pack_program
from ec262.sandbox.policy import DEFAULT

SAMPLE_RECORDS = 500
"""Records of each sampled split."""
SAMPLE_BYTES = 64 * 1024
"""About so many bytes of each, if its records are longer."""
WALL_S = 60.0
"""How long a sample of one split may take."""


def sample_keys(program: Program, splits: Sequence[Split], policy: Policy, stop: Callable[[], bool]) -> list[Any]:
    """The keys that the mapper gives for a few records of each split; a key as often as it was given.

    Args:
        stop: whether the job was cancelled.

    Raises:
        ProgramError: the mapper fails on the sample, or takes too long.
    """
    if isinstance(program.mapper, ExecutorMapper):
        raise ProgramError(
            "partitioner='range' tries the mapper on a sample of the input, and an executor's cannot be tried here: "
            "take 'hash', or reducers=1"
        )
    chance = random.Random(policy.seed)
    inputs = ((*_shortened(split, chance), split.label()) for split in splits)
    try:
        packed = pack_program(program)
    except NotShippable:
        return _sampled_here(program, inputs)
    digest = digest_of(packed)
    keys: list[Any] = []
    failed: list[tuple[str, Outcome]] = []
    labels: dict[int, str] = {}

    def next_task() -> UnitTask | None:
        taken = None if failed or stop() else next(inputs, None)
        if taken is None:
            return None
        spec, parts, label = taken
        labels[len(labels)] = label
        wall_s = min(WALL_S, policy.timeout_s or WALL_S)
        return UnitTask(len(labels) - 1, _task(digest, spec, parts), min(policy.cpu_limit_s, wall_s), wall_s)

    def on_outcome(task: UnitTask, outcome: Outcome) -> None:
        if outcome.kind == "ok":
            keys.extend(_keys(outcome.parts))
        else:
            failed.append((labels[int(task.id)], outcome))

    try:
        with Sandbox(policy=dataclasses.replace(DEFAULT, namespaces=()), unconfined=True) as sandbox:
            sandbox.run_unit(packed, next_task, on_outcome, stop=stop)
    except SandboxUnavailable:
        return _sampled_here(program, ((*_shortened(split, chance), split.label()) for split in splits))
    if failed:
        label, outcome = failed[0]
        error = outcome.error
        said = f"{error.type}: {error.message}" if error is not None else "no result"
        traceback = f"\n\n{error.traceback}" if error is not None and error.traceback else ""
        raise ProgramError(f"the mapper failed on a sample of the input, {label}: {said}{traceback}")
    return keys


def _sampled_here(program: Program, inputs: Iterator[tuple[dict[str, Any], list[bytes], str]]) -> list[Any]:
    """The keys, as the functions give them in this process."""
    keys: list[Any] = []
    for spec, parts, label in inputs:
        try:
            keys += _keys(execute(program, _task("", spec, parts)))
        except (Exception, SystemExit) as reason:
            said = f"{type(reason).__name__}: {reason}"
            raise ProgramError(f"the mapper failed on a sample of the input, {label}: {said}") from reason
    return keys


def _task(digest: str, spec: dict[str, Any], parts: list[bytes]) -> list[bytes]:
    return [map_header(digest, index=0, partitions=1, spec=spec), *parts]


def _keys(made: list[bytes]) -> Iterator[Any]:
    for keys, groups in batches_of(made[0]):
        for key, values in zip(keys, groups, strict=True):
            yield from [key] * len(values)


def _shortened(split: Split, chance: random.Random) -> tuple[dict[str, Any], list[bytes]]:
    """A split's first records: what a map task of them has."""
    spec, parts = split.spec(), split.load()
    if spec["format"] == "records":
        reader = Reader.from_wire(spec["reader"])
        data = parts[0]
        if reader.splits_by == "records":
            data = data[: SAMPLE_RECORDS * reader.record_size]
        elif reader.splits_by == "lines" and len(data) > SAMPLE_BYTES:
            end = data.find(reader.delimiter, SAMPLE_BYTES)
            data = data if end < 0 else data[: end + len(reader.delimiter)]
        return spec, [data, *parts[1:]]
    first = list(islice(records_of(spec, parts, context.TaskState({})), 2 * SAMPLE_RECORDS))
    some = first if len(first) <= SAMPLE_RECORDS else chance.sample(first, SAMPLE_RECORDS)
    return {"format": "pairs"}, [encode_pairs(some)]
