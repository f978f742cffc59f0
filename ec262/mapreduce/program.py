"""A program and how one task of it is computed: from input parts to output parts, pure.

The sandbox's child calls `execute`; so does every backend that needs no sandbox, for the same bytes. Standard library
only.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ec262.errors import Malformed, ProgramError, ValueNotPortable
from ec262.mapreduce import blocks, context
from ec262.mapreduce.partition import KeyPartitioner, partitions_of
from ec262.mapreduce.records import Reader, read_records
from ec262.protocol.canonical import decode_pairs, decode_value, encode_value, sort_keys

Mapper = Callable[[Any, Any], Iterable[tuple[Any, Any]]]
Reducer = Callable[[Any, list[Any]], Any]
Setup = Callable[[Mapping[str, Any]], None]

MAX_PARTITIONS = 65_536
MAX_HEADER = 1024 * 1024
"""Bytes of a header in which its program is looked for; one that `MapHeaders` makes may have any number."""
_MAX_COUNTERS_BYTES = context.MAX_COUNTERS * (12 * context.MAX_NAME + 32)
SHIPPED = ("mapper", "reducer", "combiner", "partitioner", "setup", "params")
"""The fields of a program that travel to workers."""
_ITEMS: Any = type({}.items())


@dataclass(frozen=True, slots=True)
class Program:
    """What a job computes.

    Attributes:
        mapper: called with each key and value of the input; returns an iterable of (key, value) pairs.
        reducer: called once a key with all values that mappers gave it, in the order of the input; returns the
            key's value in the result. Without one, the result holds the list of values.
        combiner: as the reducer, applied to what one map task gave a key before it leaves the worker. Its result
            stands in for those values, so it must be something the reducer takes (sums of sums, say).
        partitioner: ``"hash"`` (default: stable across machines), ``"range"`` (total order: every key of a reduce
            partition stands before those of the next; bounds are found by sampling), or a function of key and number
            of partitions.
        setup: called with the parameters once a task, before its first record; what it sets in the module's globals
            is there for that task. Each task begins with the program's fresh globals, on every worker.
        params: plain data that travels with the program; read with ``ec262.param(name)``.
        reader: how the records of files are read for this program; default: lines.
        output_format: how results are written to files: ``"text"``, ``"values"``, ``"binary"`` or ``"json"``.
        required: parameters that have to be given.
        prepare: called where the job starts with the parameters and the job's files (None if it has other input);
            gives the parameters that travel. For what only the whole input can tell, such as its size.
    """

    mapper: Mapper
    reducer: Reducer | None = None
    combiner: Reducer | None = None
    partitioner: KeyPartitioner | str = "hash"
    setup: Setup | None = None
    params: Mapping[str, Any] = field(default_factory=dict)
    reader: Reader | None = None
    output_format: str = "text"
    required: tuple[str, ...] = ()
    prepare: Callable[[Mapping[str, Any], Any], Mapping[str, Any]] | None = None


def map_header(
    program_digest: str,
    *,
    index: int,
    partitions: int,
    spec: Mapping[str, Any] | None = None,
    bounds: Sequence[Any] = (),
) -> bytes:
    """First part of a map task's input.

    Args:
        index: number of the task.
        partitions: so many result parts are wanted.
        spec: what the parts that follow are, see `ec262.mapreduce.split`; default: canonical pairs.
        bounds: of the range partitioner.
    """
    return MapHeaders(program_digest, partitions, bounds).header(index, spec or {"format": "pairs"})


class MapHeaders:
    """Makes the headers of a phase's map tasks: what they have in common is encoded once.

    A header is the canonical form of a dictionary: bounds (if there are any), index, input, partitions, phase, program.
    """

    def __init__(self, program_digest: str, partitions: int, bounds: Sequence[Any] = ()) -> None:
        before = b'["bounds",' + encode_value(list(bounds)) + b"]," if bounds else b""
        self._head = b'{"d":[' + before + b'["index",'
        self._tail = b'],["partitions",%d],["phase","map"],["program",%b]]}' % (
            partitions,
            encode_value(program_digest),
        )
        self._spec: Mapping[str, Any] | None = None
        self._encoded = b""

    def header(self, index: int, spec: Mapping[str, Any]) -> bytes:
        """The header of task number `index`."""
        if spec != self._spec:
            self._spec, self._encoded = spec, encode_value(dict(spec))
        return b'%b%d],["input",%b%b' % (self._head, index, self._encoded, self._tail)


def reduce_header(program_digest: str, *, index: int) -> bytes:
    """First part of a reduce task's input: partition `index` is to be reduced; its parts follow, in map task order."""
    return encode_value({"phase": "reduce", "program": program_digest, "index": index})


def program_digest_of(header: bytes) -> str:
    """The program a task's input names.

    Raises:
        Malformed: not a task's header.
    """
    # Outside the sandbox, and perhaps not a foreman's: a worker looks into headers that do not end as they should.
    fields = decode_value(header, room=0) if len(header) <= MAX_HEADER else None
    if type(fields) is not dict or type(fields.get("program")) is not str:
        raise Malformed("the input names no program")
    return str(fields["program"])


def execute(program: Program, parts: Sequence[bytes]) -> list[bytes]:
    """Computes one task.

    Args:
        program: the job's functions.
        parts: the task's input: a header (`map_header` or `reduce_header`) and its data.

    Returns:
        A map task's result: one part a reduce partition, grouped (see `blocks`). A reduce task's: one part of
        results. Keys in order either way. One part more, a canonical dictionary of names and sums, if the
        task counted anything.

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
    if phase not in ("map", "reduce"):
        raise Malformed("a task that is neither map nor reduce")
    task = context.begin(program.params)
    try:
        if program.setup is not None:
            program.setup(program.params)
        made = _run_map(program, header, parts[1:], task) if phase == "map" else [run_reduce(program, parts[1:])]
    finally:
        context.end()
    if task.counts:
        made.append(encode_value(task.counts))
    return made


def split_counters(made: list[bytes], expected: int) -> tuple[list[bytes], dict[str, int]]:
    """A task's result as its parts and what it counted.

    Args:
        made: what `execute` gave.
        expected: how many parts a task of this phase has.

    Raises:
        Malformed: not so many parts, or counters that no task can have.
    """
    if len(made) == expected:
        return made, {}
    if len(made) != expected + 1:
        raise Malformed(f"a result of {len(made)} parts where {expected} were wanted")
    counts = decode_value(made[-1], room=0) if len(made[-1]) <= _MAX_COUNTERS_BYTES else None
    if type(counts) is not dict or not 1 <= len(counts) <= context.MAX_COUNTERS:
        raise Malformed("a result whose counters are none, or too many")
    if not all(context.is_name(n) and type(c) is int and 0 <= c <= context.MAX_COUNT for n, c in counts.items()):
        raise Malformed("a result with a counter that no task can have")
    return made[:-1], counts


def check_result(made: list[bytes], expected: int, *, grouped: bool) -> None:
    """Looks through a result that a stranger gave: whether it is one that a task of this phase can have.

    Costs as much as reading it. Afterwards whoever reads its parts finds nothing wrong with them.

    Args:
        made: as of `split_counters`; `expected` likewise.
        grouped: a map task's, else a reduce task's.

    Raises:
        Malformed: it is not; says what is wrong.
    """
    parts, _ = split_counters(made, expected)
    for number, part in enumerate(parts):
        try:
            blocks.check_part(part, grouped=grouped)
        except Malformed as reason:
            raise Malformed(f"part {number}: {reason}" if expected > 1 else str(reason)) from None


# --- map ------------------------------------------------------------------------------------------


def _run_map(
    program: Program, header: Mapping[str, Any], parts: Sequence[bytes], task: context.TaskState
) -> list[bytes]:
    partitions, bounds = header.get("partitions"), header.get("bounds", [])
    if type(partitions) is not int or not 1 <= partitions <= MAX_PARTITIONS:
        raise Malformed("a map task with an impossible number of partitions")
    if type(bounds) is not list or len(bounds) >= partitions:
        raise Malformed("a map task with impossible bounds")
    return run_map(program, records_of(header.get("input"), parts, task), partitions, bounds)


def records_of(spec: object, parts: Sequence[bytes], task: context.TaskState) -> Iterator[tuple[Any, Any]]:
    """The records of a map task's data, one after the other.

    Raises:
        Malformed: no such form of input.
        ProgramError: what a file holds cannot be read as the program's reader wants it.
    """
    form = spec.get("format") if type(spec) is dict else None
    if form == "pairs":
        for part in parts:
            yield from decode_pairs(part)  # type: ignore[misc]
    elif form == "blocks":
        for part in parts:
            yield from blocks.pairs_of(part)
    elif form == "records" and type(spec) is dict and len(parts) == 2:
        name, reader, offset = spec.get("name"), spec.get("reader"), decode_value(parts[1])
        if type(name) is not str or type(reader) is not dict or type(offset) is not int:
            raise Malformed("a map task whose records cannot be read")
        task.input_name = name
        yield from read_records(Reader.from_wire(reader), parts[0], name=name, offset=offset)
    else:
        raise Malformed("a map task with an unknown form of input")


def run_map(
    program: Program, records: Iterable[tuple[Any, Any]], partitions: int, bounds: Sequence[Any] = ()
) -> list[bytes]:
    """Maps records, groups what comes out by key, combines and partitions it."""
    mapper = program.mapper
    where = f"mapper {name_of(mapper)}"
    groups: defaultdict[Any, list[Any]] = defaultdict(list)
    single: dict[Any, Any] | None = None
    for key, value in records:
        emitted = mapper(key, value)
        if type(emitted) is _ITEMS and single is None and not groups:
            single = dict(emitted)  # the items of a dictionary are grouped already, as long as nothing else comes
            continue
        if single is not None:
            _add_singles(groups, single)
            single = None
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
        if single is not None:
            _add_singles(groups, single)
        single = {key: combiner(key, values) for key, values in groups.items()}
    held: Mapping[Any, Any] = groups if single is None else single
    encode = blocks.encode_grouped if single is None else blocks.encode_singles
    parts = []
    for chosen in _dealt(list(held), partitions, program.partitioner, bounds, where):
        keys = sort_keys(chosen, where=where)
        parts.append(encode(keys, list(map(held.__getitem__, keys)), where=where))
    return parts


def _add_singles(groups: defaultdict[Any, list[Any]], single: dict[Any, Any]) -> None:
    for key, value in single.items():
        groups[key].append(value)


def _dealt(
    keys: list[Any], partitions: int, partitioner: KeyPartitioner | str, bounds: Sequence[Any], where: str
) -> list[list[Any]]:
    """Keys by the reduce partition they belong to."""
    if partitions == 1:
        return [keys]
    dealt: list[list[Any]] = [[] for _ in range(partitions)]
    for key, number in zip(keys, partitions_of(keys, partitions, partitioner, bounds, where=where), strict=True):
        dealt[number].append(key)
    return dealt


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


# --- reduce ---------------------------------------------------------------------------------------


def run_reduce(program: Program, parts: Iterable[bytes]) -> bytes:
    """Merges map parts, which are in key order, in the order given, and reduces each key's values as it goes."""
    reducer = program.reducer
    where = "mapper's values" if reducer is None else f"reducer {name_of(reducer)}"
    return blocks.encode_results(_reduced(reducer, parts), where=where)


def _reduced(reducer: Reducer | None, parts: Iterable[bytes]) -> Iterator[tuple[list[Any], list[Any]]]:
    for keys, groups in blocks.merge(parts):
        yield (
            keys,
            groups if reducer is None else [reducer(key, group) for key, group in zip(keys, groups, strict=True)],
        )


def name_of(function: Any) -> str:
    """A function's name for messages: also of partials and callable objects."""
    name = getattr(function, "__name__", None) or getattr(getattr(function, "func", None), "__name__", None)
    return str(name or type(function).__name__)
