"""A program and how one task of it is computed: from input parts to output parts, pure.

The sandbox's child calls `execute`; so does whoever wants the same bytes without a sandbox. Standard library only.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from ec262.errors import Malformed, ProgramError, ValueNotPortable
from ec262.mapreduce.partition import partition_of
from ec262.protocol.canonical import (
    Pair,
    decode_pairs,
    decode_value,
    encode_pairs,
    encode_value,
    sort_pairs,
)

Mapper = Callable[[Any, Any], Iterable[tuple[Any, Any]]]
Reducer = Callable[[Any, list[Any]], Any]


@dataclass(frozen=True, slots=True)
class Program:
    """What a job computes.

    Attributes:
        mapper: called with each key and value of the input; returns an iterable of (key, value) pairs.
        reducer: called once a key with all values that mappers gave it, in the order of the input; returns the
            key's value in the result. Without one, the result holds the list of values.
        combiner: as the reducer, applied to what one map task gave a key before it leaves the worker. Its result
            stands in for those values, so it must be something the reducer takes (sums of sums, say).
    """

    mapper: Mapper
    reducer: Reducer | None = None
    combiner: Reducer | None = None


def map_header(program_digest: str, *, index: int, partitions: int) -> bytes:
    """First part of a map task's input: `partitions` result parts are wanted of task number `index`."""
    return encode_value({"phase": "map", "program": program_digest, "index": index, "partitions": partitions})


def reduce_header(program_digest: str, *, index: int) -> bytes:
    """First part of a reduce task's input: partition `index` is to be reduced; its parts follow, in map task order."""
    return encode_value({"phase": "reduce", "program": program_digest, "index": index})


def program_digest_of(header: bytes) -> str:
    """The program a task's input names.

    Raises:
        Malformed: not a task's header.
    """
    fields = decode_value(header)
    if type(fields) is not dict or type(fields.get("program")) is not str:
        raise Malformed("the input names no program")
    return str(fields["program"])


def execute(program: Program, parts: Sequence[bytes]) -> list[bytes]:
    """Computes one task.

    Args:
        program: the job's functions.
        parts: the task's input: a header (`map_header` or `reduce_header`) and parts of canonical pairs.

    Returns:
        A map task's result: one part a reduce partition, each the canonical pairs ``[[key, [value, ...]], ...]``.
        A reduce task's: one part, ``[[key, value], ...]``. Keys in order either way.

    Raises:
        Malformed: the input is not what a foreman sends.
        ProgramError: the mapper does not give pairs.
        ValueNotPortable: a key or value cannot travel.
        Exception: whatever the user's functions raise.
    """
    if not parts:
        raise Malformed("a task without input")
    header = decode_value(parts[0])
    phase = header.get("phase") if type(header) is dict else None
    if phase == "map":
        partitions = header.get("partitions")
        if type(partitions) is not int or not 1 <= partitions <= 65_536:
            raise Malformed("a map task with an impossible number of partitions")
        return run_map(program, parts[1:], partitions)
    if phase == "reduce":
        return [run_reduce(program, parts[1:])]
    raise Malformed("a task that is neither map nor reduce")


def run_map(program: Program, parts: Iterable[bytes], partitions: int) -> list[bytes]:
    """Maps the pairs in `parts`, groups what comes out by key, combines and partitions it."""
    mapper = program.mapper
    where = f"mapper {name_of(mapper)}"
    groups: defaultdict[Any, list[Any]] = defaultdict(list)
    for part in parts:
        for key, value in decode_pairs(part):
            emitted = mapper(key, value)
            # Text would be taken apart into characters, a dictionary into its keys: two of either look like a pair.
            if isinstance(emitted, (str, bytes, dict)) or not hasattr(emitted, "__iter__"):
                raise ProgramError(
                    f"{where}: returned a {type(emitted).__name__} for key {key!r:.80}; "
                    "it has to yield or return (key, value) pairs"
                )
            try:
                # The one loop that runs for every pair: what is wrong with one is found out afterwards.
                for out_key, out_value in emitted:
                    groups[out_key].append(out_value)
            except (TypeError, ValueError) as reason:
                if reason.__traceback__ is not None and reason.__traceback__.tb_next is None:
                    _explain_pair(mapper(key, value), where)
                raise
    combiner = program.combiner
    if combiner is not None:
        for key, values in groups.items():
            groups[key] = [combiner(key, values)]
    if partitions == 1:
        return [encode_pairs(sort_pairs(groups.items(), where=where), where=where)]
    split: list[list[Pair]] = [[] for _ in range(partitions)]
    for item in groups.items():
        split[partition_of(item[0], partitions, where=where)].append(item)
    return [encode_pairs(sort_pairs(items, where=where), where=where) for items in split]


def _explain_pair(emitted: Iterable[Any], where: str) -> None:
    """Raises for the first thing in a mapper's output that is not a pair with a key that can be one."""
    for pair in emitted:
        try:
            out_key, _ = pair
        except (TypeError, ValueError):
            raise ProgramError(f"{where}: gave {pair!r:.80}, which is not a (key, value) pair") from None
        try:
            hash(out_key)
        except TypeError:
            raise ValueNotPortable(
                f"{where}: {out_key!r:.80} is a {type(out_key).__name__} and cannot be a key"
            ) from None


def run_reduce(program: Program, parts: Iterable[bytes]) -> bytes:
    """Merges map parts in the order given and reduces each key's values."""
    groups: dict[Any, list[Any]] = {}
    for part in parts:
        for key, values in decode_pairs(part):
            if type(values) is not list:
                raise Malformed("a map part whose values are no list")
            known = groups.get(key)
            if known is None:
                groups[key] = values
            else:
                known.extend(values)
    reducer = program.reducer
    ordered = sort_pairs(groups.items(), where="map part")
    if reducer is None:
        return encode_pairs(ordered, where="mapper's values")
    return encode_pairs([(key, reducer(key, values)) for key, values in ordered], where=f"reducer {name_of(reducer)}")


def name_of(function: Any) -> str:
    """A function's name for messages: also of partials and callable objects."""
    name = getattr(function, "__name__", None) or getattr(getattr(function, "func", None), "__name__", None)
    return str(name or type(function).__name__)
