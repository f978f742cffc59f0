"""Sorts the lines of text files by their bytes, as ``LC_ALL=C sort`` does. Equal lines all stay.

    ec262 run sort logs/*.log --output sorted --reducers 8
    ec262 collect sorted sorted.log

Every line of the result ends in a newline; a carriage return before it is dropped.
"""

from __future__ import annotations

from collections.abc import Iterable

import ec262


def line_as_key(_: str, line: bytes) -> Iterable[tuple[bytes, int]]:
    """The line is the key: MapReduce sorts by it, and the range partitioner puts the partitions in order."""
    return ((line, 1),)


def total(_: bytes, counts: list[int]) -> int:
    """How many equal lines there are."""
    return sum(counts)


def repeated(line: bytes, counts: list[int]) -> bytes:
    """The line as often as it was there."""
    return b"\n".join([line] * sum(counts))


program = ec262.Program(
    line_as_key,
    repeated,
    total,
    partitioner="range",
    reader=ec262.Reader("lines", encoding=None),
    output_format="values",
)
