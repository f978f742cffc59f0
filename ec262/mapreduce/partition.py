"""Partitioner: key to reduce partition, the same on every machine. Pure, standard library only."""

from __future__ import annotations

import contextlib
from bisect import bisect_right
from collections.abc import Callable, Sequence
from typing import Any
from zlib import crc32

from ec262.errors import ProgramError, ValueNotPortable
from ec262.protocol.canonical import comparable, encode_pairs, encode_value, sort_key

KeyPartitioner = Callable[[Any, int], int]


def partition_of(key: Any, partitions: int, *, where: str = "data") -> int:
    """The reduce partition of a key, 0 to ``partitions - 1``.

    CRC-32 of the key's text (Python's own hash of strings differs from process to process). Keys that Python holds
    equal (1, 1.0, True; (0.0,), (-0.0,)) fall into one partition.

    Raises:
        ValueNotPortable: something that cannot be a key; names `where`, the key and the type.
    """
    if type(key) is str:
        return crc32(key.encode("utf-8", "surrogatepass")) % partitions
    if type(key) is bytes:
        return crc32(key) % partitions
    try:
        text = encode_value(_equal_form(key))
    except (ValueNotPortable, RecursionError):
        encode_pairs([(key, None)], where=where)  # says the same with the key's name and type
        raise
    return crc32(text) % partitions


def _equal_form(key: Any) -> Any:
    """One representative of all keys that are equal to `key`."""
    kind = type(key)
    if kind is bool or (kind is float and key.is_integer()):
        return int(key)
    if kind is tuple:
        return tuple(_equal_form(item) for item in key)
    return key


def partitions_of(
    keys: Sequence[Any], partitions: int, partitioner: KeyPartitioner | str, bounds: Sequence[Any], *, where: str
) -> list[int]:
    """The reduce partition of each key.

    Args:
        partitioner: ``"hash"``, ``"range"``, or the program's own function of key and number of partitions.
        bounds: for ``"range"``: at most ``partitions - 1`` keys in order; partition r has the keys from bound r - 1
            (included) up to bound r (not included), so that all keys of a partition stand before those of the next.

    Raises:
        ValueNotPortable: something that cannot be a key.
        ProgramError: the program's own function gives no number of a partition.
    """
    if partitioner == "hash":
        if set(map(type, keys)) == {str}:
            with contextlib.suppress(UnicodeEncodeError):  # lone surrogates take the longer way
                return [crc % partitions for crc in map(crc32, map(str.encode, keys))]
        return [partition_of(key, partitions, where=where) for key in keys]
    if partitioner == "range":
        if comparable(set(map(type, keys)) | set(map(type, bounds))):
            return [bisect_right(bounds, key) for key in keys]
        ordered = [sort_key(bound) for bound in bounds]
        return [bisect_right(ordered, sort_key(key)) for key in keys]
    if not callable(partitioner):
        raise ProgramError(f"partitioner={partitioner!r:.80}: has to be 'hash', 'range' or a function")
    chosen = [partitioner(key, partitions) for key in keys]
    for key, number in zip(keys, chosen, strict=True):
        if type(number) is not int or not 0 <= number < partitions:
            raise ProgramError(
                f"the partitioner gave {number!r:.80} for key {key!r:.80}; it has to give a whole number from 0 to "
                f"{partitions - 1}"
            )
    return chosen


def bounds_of(sample: Sequence[Any], partitions: int) -> list[Any]:
    """Bounds that cut the sampled keys into `partitions` runs of about equal length, for ``"range"``.

    Equal keys fall into one partition, so that there may be fewer bounds than partitions. Method: TeraSort's, a
    sorted sample cut at its quantiles (O'Malley, TeraByte Sort on Apache Hadoop, 2008).
    """
    ordered = sorted(sample, key=sort_key)
    bounds: list[Any] = []
    for number in range(1, partitions):
        bound = ordered[number * len(ordered) // partitions] if ordered else None
        if ordered and (not bounds or sort_key(bounds[-1]) < sort_key(bound)):
            bounds.append(bound)
    return bounds
