"""A whole job in this process, by `execute` alone: split, map, shuffle, reduce, collect. For tests of programs."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ec262.mapreduce.blocks import batches_of, pairs_of
from ec262.mapreduce.partition import bounds_of
from ec262.mapreduce.program import Program, execute, map_header, reduce_header, split_counters
from ec262.mapreduce.records import Reader
from ec262.mapreduce.split import RecordsSplit
from ec262.protocol.canonical import sort_key

DIGEST = "d" * 64
Execute = Callable[[Program, Sequence[bytes]], list[bytes]]


@dataclass(frozen=True)
class Done:
    """A job's end.

    Attributes:
        output: the collected output, in the program's format.
        pairs: the result, in key order.
        counters: what was counted.
    """

    output: bytes
    pairs: list[tuple[Any, Any]]
    counters: dict[str, int]


def run(
    program: Program,
    files: Sequence[str | Path],
    *,
    split_size: int = 1 << 20,
    partitions: int = 3,
    params: dict[str, Any] | None = None,
    execute: Execute = execute,
) -> Done:
    """Computes a job.

    Args:
        files: the input; records have these names.
        split_size: bytes a map task gets, about.
        params: beside the program's own.
        execute: what computes a task.
    """
    program = dataclasses.replace(program, params={**program.params, **(params or {})})
    splits = list(splits_of(files, program.reader or Reader(), split_size))
    counters: Counter[str] = Counter()

    def task(header: bytes, parts: list[bytes], expected: int) -> list[bytes]:
        made, counted = split_counters(execute(program, [header, *parts]), expected)
        counters.update(counted)
        return made

    bounds: list[Any] = []
    if program.partitioner == "range" and partitions > 1:
        sample: list[Any] = []
        for split in splits:
            header = map_header(DIGEST, index=0, partitions=1, spec=split.spec())
            for keys, _ in batches_of(execute(program, [header, *split.load()])[0]):
                sample += keys
        bounds = bounds_of(sample, partitions)
    mapped = []
    for index, split in enumerate(splits):
        header = map_header(DIGEST, index=index, partitions=partitions, spec=split.spec(), bounds=bounds)
        mapped.append(task(header, split.load(), partitions))
    pairs: list[tuple[Any, Any]] = []
    for index in range(partitions):
        header = reduce_header(DIGEST, index=index)
        (reduced,) = task(header, [parts[index] for parts in mapped], 1)
        pairs += pairs_of(reduced)
    if program.partitioner != "range":
        pairs.sort(key=lambda pair: sort_key(pair[0]))
    assert pairs == sorted(pairs, key=lambda pair: sort_key(pair[0])), "partitions are not in order"
    return Done(b"".join(formatted(program.output_format, *pair) for pair in pairs), pairs, dict(counters))


def splits_of(files: Sequence[str | Path], reader: Reader, size: int) -> Iterator[RecordsSplit]:
    """Files in order of their names, cut at ends of lines or records."""
    for name in sorted(map(str, files)):
        data = Path(name).read_bytes()
        at = 0
        while at < len(data):
            if reader.kind == "records":
                end = at + max(1, size // reader.record_size) * reader.record_size
            else:
                end = data.find(b"\n", at + size - 1) + 1 or len(data)
            yield RecordsSplit(data[at:end], at, name, reader)
            at = end


def formatted(form: str, key: Any, value: Any) -> bytes:
    """A pair in an output file."""
    if form == "text":
        return escaped(key) + b"\t" + escaped(value) + b"\n"
    if form == "values":
        return plain(value) + b"\n"
    assert form == "binary"
    assert type(value) is bytes
    return value


def plain(thing: Any) -> bytes:
    if isinstance(thing, str):
        return thing.encode("utf-8", "surrogateescape")
    return thing if isinstance(thing, bytes) else json.dumps(thing, separators=(",", ":")).encode()


def escaped(thing: Any) -> bytes:
    text = plain(thing)
    if not isinstance(thing, str | bytes):
        return text
    for byte, escape in ((b"\\", rb"\\"), (b"\t", rb"\t"), (b"\n", rb"\n"), (b"\r", rb"\r")):
        text = text.replace(byte, escape)
    return text
