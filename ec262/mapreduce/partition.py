"""Partitioner: key to reduce partition, the same on every machine. Pure, standard library only."""

from __future__ import annotations

from typing import Any
from zlib import crc32

from ec262.errors import ValueNotPortable
from ec262.protocol.canonical import encode_pairs, encode_value


def partition_of(key: Any, partitions: int, *, where: str = "data") -> int:
    """The reduce partition of a key, 0 to ``partitions - 1``.

    CRC-32 of the key's text (Python's own hash of strings differs from process to process). Keys that Python holds
    equal (1, 1.0, True; (0.0,), (-0.0,)) fall into one partition.

    Raises:
        ValueNotPortable: something that cannot be a key; names `where`, the key and the type.
    """
    if type(key) is str:
        return crc32(key.encode("utf-8", "surrogatepass")) % partitions
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
