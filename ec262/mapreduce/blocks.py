"""Blocks: the form of map and reduce results, columns of keys and values in key order.

A *part* is empty, or framed parts (see `ec262.protocol.framing`): keys and values of one block after the other, a
column each. A column is

- ``s``: texts without line breaks, with a line break between each two, as UTF-8;
- ``f`` or ``v``: byte strings, all of one length, or their lengths and then the bytes themselves;
- ``i``: whole numbers, all of the least width that fits: a byte (0 to 255), or 4 or 8 bytes, signed, little-endian;
- ``d``: floating-point numbers, IEEE 754 doubles, little-endian;
- ``l``: lists: how long each is (nothing: one item each), and the column of all their items;
- ``j``: anything else, and any one text or whole number repeated: canonical JSON.

What a map task gives a reduce partition has lists as values: those of each key. The same pairs give the same bytes.

Columns cost a tenth of what a list of pairs costs to encode, for most of the work is done by loops in C, and blocks let
a reducer merge parts of any number while it holds one block of each. Standard library only: the sandbox's child
loads it.

Parts come from strangers. Whoever reads one finds out whether its keys are in order, each once, whether blocks are
no larger than those written here, and that no group of values is empty. Whoever takes one from a stranger, to keep or
to hand on, has it looked through first (`check_part`), which also bounds what a block may become in memory: a few bytes
can stand for very many lists, or for one value many times.
"""

from __future__ import annotations

import contextlib
import math
import re
import struct
import sys
from array import array
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from itertools import accumulate, chain
from typing import Any

from ec262.errors import Malformed, ValueNotPortable
from ec262.protocol.canonical import (
    MANY,
    comparable,
    decode_value,
    encode_pairs,
    encode_value,
    in_order,
    is_key,
    sort_key,
    sort_keys,
)
from ec262.protocol.framing import frame_parts, unframe_parts

BLOCK_KEYS = 1024
"""Keys in a block."""
BLOCK_VALUES = 8192
"""A block ends with the key that brings it to so many values."""
EMPTY = b""
"""A part without pairs."""
BLOCK_MEMORY = 256 * 1024 * 1024
MEMORY_A_BYTE = 16
"""A stranger's block may become so many bytes of memory, or so many a byte that came if that is more. One of 8192
values is far below, and so is one whose last key has millions; 16 million equal values of one key would be above."""
_RUN_ITEM = 16
_HEAVIEST = 72
"""Bytes of memory: of an item of a counted run, and the most that one byte becomes but for these."""

_FIXED = struct.Struct(">cII")
_VARIED = struct.Struct(">cI")
_TEXT, _BYTES, _INTS, _FLOATS = {str}, {bytes}, {int}, {float}
_WIDTHS = ((1, "B", 0, 255), (4, "i", -(1 << 31), (1 << 31) - 1), (8, "q", -(1 << 63), (1 << 63) - 1))
"""Bytes of a whole number, what `array` calls them, the least and the most they hold. Two bytes are no width: a number
takes 40 bytes of memory if it is not one of the small ones that Python has but once."""
_TYPECODES = {width: typecode for width, typecode, _, _ in _WIDTHS}
_SWAP = sys.byteorder != "little"
_SIMPLE = frozenset({str, int, float, bool, type(None), bytes})
_MOST_SIZES = 32 * BLOCK_KEYS
"""Bytes of the lengths of a block's lists: no number has more than 20 digits."""
_QUOTED = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"', re.DOTALL)

Batch = tuple[list[Any], list[list[Any]]]
"""Keys in order, and for each the list of its values."""


# --- writing --------------------------------------------------------------------------------------


def encode_grouped(keys: list[Any], groups: list[list[Any]], *, where: str) -> bytes:
    """A part of keys, in the order given (canonical order is the caller's to see to), each with its values.

    Raises:
        ValueNotPortable: a key or value cannot travel; names `where`, the key and the type.
    """
    columns: list[bytes] = []
    for start, end in _borders(groups):
        columns += _encode_block(keys[start:end], groups[start:end], where)
    return frame_parts(columns) if columns else EMPTY


def encode_singles(keys: list[Any], values: list[Any], *, where: str) -> bytes:
    """As `encode_grouped`, of keys that have one value each, given without a list around it."""
    columns: list[bytes] = []
    for start in range(0, len(keys), BLOCK_KEYS):
        block = keys[start : start + BLOCK_KEYS]
        held = values[start : start + BLOCK_KEYS]
        with _named(block, held, where):
            columns += [_key_column(block), _VARIED.pack(b"l", 0) + _column(held)]
    return frame_parts(columns) if columns else EMPTY


def encode_results(batches: Iterable[tuple[list[Any], list[Any]]], *, where: str) -> bytes:
    """A part of keys and their values in the order given, taken as they come: only the encoded form is held.

    Raises:
        ValueNotPortable: a key or value cannot travel; names `where`, the key and the type.
    """
    columns: list[bytes] = []
    keys: list[Any] = []
    values: list[Any] = []
    for more_keys, more_values in batches:
        keys += more_keys
        values += more_values
        at = 0
        while len(keys) - at >= BLOCK_KEYS:
            columns += _encode_block(keys[at : at + BLOCK_KEYS], values[at : at + BLOCK_KEYS], where)
            at += BLOCK_KEYS
        del keys[:at], values[:at]
    if keys:
        columns += _encode_block(keys, values, where)
    return frame_parts(columns) if columns else EMPTY


def _borders(groups: list[list[Any]]) -> Iterator[tuple[int, int]]:
    """Where blocks begin and end."""
    at = 0
    while at < len(groups):
        end = min(at + BLOCK_KEYS, len(groups))
        sizes = list(map(len, groups[at:end]))
        if sum(sizes) >= BLOCK_VALUES:
            end = at + 1 + next(n for n, held in enumerate(accumulate(sizes)) if held >= BLOCK_VALUES)
        yield at, end
        at = end


def _encode_block(keys: list[Any], values: list[Any], where: str) -> list[bytes]:
    with _named(keys, values, where):
        if set(map(type, values)) == {list}:
            return [_key_column(keys), _list_column(values)]
        return [_key_column(keys), _column(values)]


@contextlib.contextmanager
def _named(keys: list[Any], values: list[Any], where: str) -> Iterator[None]:
    """What cannot travel is said with its key's name."""
    try:
        yield
    except (ValueNotPortable, ValueError, RecursionError):
        encode_pairs(list(zip(keys, values, strict=True)), where=where)
        raise


def _key_column(keys: list[Any]) -> bytes:
    if not set(map(type, keys)) <= _SIMPLE and not all(map(is_key, keys)):
        raise ValueNotPortable("a key that cannot be one")
    return _column(keys)


def _column(items: list[Any]) -> bytes:
    kinds = set(map(type, items))
    if kinds == _TEXT and (items[0] != items[-1] or items.count(items[0]) != len(items)):
        text = "\n".join(items)
        if text.count("\n") == len(items) - 1:
            return b"s" + text.encode("utf-8", "surrogatepass")
    elif kinds == _BYTES:
        lengths = list(map(len, items))
        if lengths[0] and lengths.count(lengths[0]) == len(lengths):
            return _FIXED.pack(b"f", len(items), lengths[0]) + b"".join(items)
        return _VARIED.pack(b"v", len(items)) + struct.pack(f">{len(items)}I", *lengths) + b"".join(items)
    elif kinds == _INTS:
        least, most = min(items), max(items)
        if least != most or len(items) < MANY:
            for width, typecode, lowest, highest in _WIDTHS:
                if lowest <= least and most <= highest:
                    return b"i%d" % width + _packed(array(typecode, items))
    elif kinds == _FLOATS and all(map(math.isfinite, items)):
        return b"d" + _packed(array("d", items))
    return b"j" + encode_value(items)


def _packed(numbers: array[Any]) -> bytes:
    if _SWAP:
        numbers.byteswap()
    return numbers.tobytes()


def _unpacked(typecode: str, data: bytes) -> list[Any]:
    numbers = array(typecode, data)
    if _SWAP:
        numbers.byteswap()
    return numbers.tolist()


def _list_column(lists: list[list[Any]]) -> bytes:
    flat = list(chain.from_iterable(lists))
    sizes = list(map(len, lists))
    if len(flat) == len(lists) and sizes.count(1) == len(sizes):
        return _VARIED.pack(b"l", 0) + _column(flat)
    counts = _column(sizes)
    return _VARIED.pack(b"l", len(counts)) + counts + _column(flat)


# --- reading --------------------------------------------------------------------------------------


def batches_of(part: bytes) -> Iterator[Batch]:
    """The blocks of a part that a map task made, one after the other.

    Raises:
        Malformed: not what `encode_grouped` writes.
    """
    for keys, values in columns_of(part):
        _check_groups(values)
        yield keys, values


def pairs_of(part: bytes) -> Iterator[tuple[Any, Any]]:
    """The pairs of a part, one after the other.

    Raises:
        Malformed: not what `encode_results` writes.
    """
    for keys, values in columns_of(part):
        yield from zip(keys, values, strict=True)


def columns_of(part: bytes) -> Iterator[tuple[list[Any], list[Any]]]:
    """The blocks of a part, keys and values. Raises as `pairs_of`."""
    return _blocks_of(part, bounded=False)


def check_part(part: bytes, *, grouped: bool) -> None:
    """Looks through a part that a stranger made, a block at a time. Costs as much as reading it.

    Args:
        grouped: a map task's, else a reduce task's.

    Raises:
        Malformed: not what a task that was computed gives, or a block takes too much memory (see `BLOCK_MEMORY`).
    """
    for _, values in _blocks_of(part, bounded=True):
        if grouped:
            _check_groups(values)


def _blocks_of(part: bytes, *, bounded: bool) -> Iterator[tuple[list[Any], list[Any]]]:
    if part == EMPTY:
        return
    columns = unframe_parts(part)
    if len(columns) % 2 or not columns:
        raise Malformed("a part that is not in blocks")
    last: list[Any] = []
    for at in range(0, len(columns), 2):
        room = _room_of(columns[at], columns[at + 1]) if bounded else None
        keys, values = _read_column(columns[at], room), _read_column(columns[at + 1], room, lists=True)
        columns[at] = columns[at + 1] = b""  # decoded, they are needed no more
        if len(keys) != len(values):
            raise Malformed("a block with more or fewer keys than values")
        if not 0 < len(keys) <= BLOCK_KEYS:
            raise Malformed("a block with more keys than blocks have, or none")
        try:
            if not set(map(type, keys)) <= _SIMPLE and not all(map(is_key, keys)):
                raise Malformed("a block with something that cannot be a key")
            if not (in_order(keys) and (not last or in_order([*last, keys[0]]))):
                raise Malformed("keys that are out of order, or there twice")
        except RecursionError:
            raise Malformed("a key that is nested too deeply") from None
        last = keys[-1:]
        yield keys, values


def _check_groups(values: list[Any]) -> None:
    if set(map(type, values)) != {list}:
        raise Malformed("a map part whose values are no lists")
    if not all(values):
        raise Malformed("a map part with a key that has no values")
    if sum(map(len, values)) - len(values[-1]) >= BLOCK_VALUES:
        raise Malformed("a block with more values than blocks have")


def _room_of(*columns: bytes) -> int:
    """How many items counted runs in a block may stand for.

    Raises:
        Malformed: without any, too much memory would be taken.
    """
    size = sum(map(len, columns))
    limit = max(BLOCK_MEMORY, MEMORY_A_BYTE * size)
    weight = size * _HEAVIEST
    if weight > limit:
        weight = sum(map(_weight, columns))
    if weight > limit:
        raise Malformed(f"a block of {size} bytes that would take {weight} of memory; at most {limit} are taken")
    return (limit - weight) // _RUN_ITEM


def _weight(column: bytes) -> int:
    """How much memory a column takes when it is read, but for counted runs: rather more than less."""
    size = len(column)
    form = column[:1]
    if form == b"s":
        return (size if column.isascii() else 4 * size) + 68 * (column.count(b"\n") + 1)
    if form in (b"i", b"d"):
        width = _width(column)
        return size + (8 if width == 1 else 40) * (size // width)
    if form in (b"f", b"v") and size >= _VARIED.size:
        count: int = _VARIED.unpack_from(column)[1]
        return size + (50 if form == b"f" else 90) * min(count, size)
    if form == b"l" and size >= _VARIED.size:
        return _weight(column[_VARIED.size + _VARIED.unpack_from(column)[1] :]) + 100 * BLOCK_KEYS
    # JSON. Brackets in texts are none, but looking for these costs more than counting.
    weight = _json_weight(column)
    return weight if weight <= MEMORY_A_BYTE * size else _json_weight(_QUOTED.sub(b'""', column)) + size


def _width(column: bytes) -> int:
    """Bytes of one number in a column of numbers."""
    return {b"i1": 1, b"i4": 4}.get(column[:2], 8)


def _json_weight(column: bytes) -> int:
    return 8 * len(column) + 72 * column.count(b"[") + 100 * column.count(b"{") + 26 * column.count(b'"')


def _read_column(column: bytes, room: int | None, *, lists: bool = False) -> list[Any]:
    form = column[:1]
    if form == b"j":
        items = decode_value(column[1:], room=room)
        if type(items) is not list:
            raise Malformed("a column that is no list")
        return items
    if form == b"s":
        try:
            return column[1:].decode("utf-8", "surrogatepass").split("\n")
        except UnicodeDecodeError:
            raise Malformed("a column of text that is not UTF-8") from None
    if form == b"f" and len(column) >= _FIXED.size:
        _, count, width = _FIXED.unpack_from(column)
        # Of empty items a few bytes could claim any number: these are written the other way.
        if width == 0 or len(column) != _FIXED.size + count * width:
            raise Malformed("a column of bytes whose length does not fit")
        return [column[at : at + width] for at in range(_FIXED.size, len(column), width)]
    if form == b"v" and len(column) >= _VARIED.size:
        _, count = _VARIED.unpack_from(column)
        at = _VARIED.size + 4 * count
        if at > len(column):
            raise Malformed("a column of bytes whose lengths are missing")
        lengths = struct.unpack_from(f">{count}I", column, _VARIED.size)
        if at + sum(lengths) != len(column):
            raise Malformed("a column of bytes whose lengths do not add up")
        items = []
        for length in lengths:
            items.append(column[at : at + length])
            at += length
        return items
    if form == b"l" and lists and len(column) >= _VARIED.size:
        return _read_lists(column, room)
    if form == b"i":
        width = _width(column)
        if column[1:2] != b"%d" % width or (len(column) - 2) % width:
            raise Malformed("a column of whole numbers whose length does not fit")
        return _unpacked(_TYPECODES[width], column[2:])
    if form == b"d":
        if (len(column) - 1) % 8:
            raise Malformed("a column of numbers whose length does not fit")
        items = _unpacked("d", column[1:])
        if not all(map(math.isfinite, items)):
            raise Malformed("a column with a number that is none, or infinite")
        return items
    raise Malformed("a column of no known form")


def _read_lists(column: bytes, room: int | None) -> list[Any]:
    _, length = _VARIED.unpack_from(column)
    at = _VARIED.size + length
    sizes: Any = None
    if length:
        # Before anything else: lists without items could be any number.
        if length > _MOST_SIZES:
            raise Malformed("a column of more lists than blocks have")
        sizes = _read_column(column[_VARIED.size : at], BLOCK_KEYS)
        if type(sizes) is not list or (sizes and (set(map(type, sizes)) != {int} or min(sizes) < 0)):
            raise Malformed("a column of lists without their lengths")
    flat = _read_column(column[at:], room)
    if sizes is None:
        if len(flat) > BLOCK_KEYS:
            raise Malformed("a column of more lists than blocks have")
        return [[value] for value in flat]
    if sum(sizes) != len(flat):
        raise Malformed("a column of lists whose lengths do not add up")
    lists: list[Any] = []
    at = 0
    for size in sizes:
        lists.append(flat[at : at + size])
        at += size
    return lists


# --- merging --------------------------------------------------------------------------------------


def merge(parts: Iterable[bytes]) -> Iterator[Batch]:
    """Grouped parts as one, in key order: runs of keys, each with all its values in the order of the parts.

    Holds one block of each part at a time. A round takes from every part the keys up to the least last key of those
    blocks (nothing smaller can follow) and sorts these at once, which is faster than a heap of single keys.

    Raises:
        Malformed: a part that is not in blocks.
    """
    runs = [run for run in map(_Run, parts) if run.keys]
    while runs:
        going = [run for run in runs if run.more]
        natural = comparable({kind for run in runs for kind in run.kinds})
        groups: dict[Any, list[Any]] = {}
        if going:
            if natural:
                last = min(run.keys[-1] for run in going)
                for run in runs:
                    run.take(bisect_right(run.keys, last), groups)
            else:
                place = min(sort_key(run.keys[-1]) for run in going)
                for run in runs:
                    run.take(bisect_right(run.keys, place, key=sort_key), groups)
        else:
            for run in runs:
                run.take(len(run.keys), groups)
        ordered = sort_keys(groups, where="map part")
        yield ordered, [groups[key] for key in ordered]
        runs = [run for run in runs if run.keys]


class _Run:
    """A part being read: its current block, and whether others follow."""

    __slots__ = ("_blocks", "_next", "groups", "keys", "kinds", "more")

    def __init__(self, part: bytes) -> None:
        self._blocks = batches_of(part)
        self._next = next(self._blocks, None)
        self._load()

    def _load(self) -> None:
        self.keys: list[Any] = []
        self.groups: list[list[Any]] = []
        if self._next is not None:
            self.keys, self.groups = self._next
            self._next = next(self._blocks, None)
        self.more = self._next is not None
        self.kinds = set(map(type, self.keys))

    def take(self, count: int, into: dict[Any, list[Any]]) -> None:
        """Moves the first `count` keys of the block over."""
        if count == len(self.keys):
            keys, groups = self.keys, self.groups
        else:
            keys, groups = self.keys[:count], self.groups[:count]
        for key, values in zip(keys, groups, strict=True):
            known = into.get(key)
            if known is None:
                into[key] = values
            else:
                known.extend(values)
        if count == len(self.keys):
            self._load()
        else:
            del self.keys[:count], self.groups[:count]
