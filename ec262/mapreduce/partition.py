"""Partitioner: key to reduce partition, the same on every machine. Pure, standard library only."""

from __future__ import annotations

from typing import Any
from zlib import crc32

from ec262.protocol.canonical import encode_value


def partition_of(key: Any, partitions: int) -> int:
    """The reduce partition of a key, 0 to ``partitions - 1``.

    CRC-32 of the key's text (Python's own hash of strings differs from process to process). Keys that Python holds
    equal (1, 1.0, True; (0.0,), (-0.0,)) fall into one partition.
    """
    if type(key) is str:
        return crc32(key.encode("utf-8", "surrogatepass")) % partitions
    return crc32(encode_value(_equal_form(key), where="key")) % partitions


def _equal_form(key: Any) -> Any:
    """One representative of all keys that are equal to `key`."""
    kind = type(key)
    if kind is bool or (kind is float and key.is_integer()):
        return int(key)
    if kind is tuple:
        return tuple(_equal_form(item) for item in key)
    return key
