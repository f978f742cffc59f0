"""Parts: how a list of byte strings becomes one, and what its digest is.

A task's input and its result are both lists of *parts* (the input: a header and data; a map result: one part
a reduce partition). Framed they are ``b"EP1"``, the count and each length as unsigned 32-bit big-endian numbers, then
the parts themselves: one way to write a list and one way to read it, so equal lists give equal bytes.

Pure and standard library only: the sandbox's child imports it.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence

from ec262.errors import Malformed

_MAGIC = b"EP1"
_COUNT = struct.Struct(">I")
MAX_PARTS = 262_144


def frame_parts(parts: Sequence[bytes]) -> bytes:
    """One byte string that holds `parts` (at most `MAX_PARTS`, each below 4 GiB)."""
    return b"".join([_MAGIC, struct.pack(f">{len(parts) + 1}I", len(parts), *map(len, parts)), *parts])


def unframe_parts(data: bytes) -> list[bytes]:
    """The parts that `frame_parts` put together.

    Raises:
        Malformed: anything but the exact bytes `frame_parts` writes.
    """
    if data[:3] != _MAGIC or len(data) < 7:
        raise Malformed("not a list of parts")
    (count,) = _COUNT.unpack_from(data, 3)
    start = 7 + 4 * count
    if count > MAX_PARTS or start > len(data):
        raise Malformed("a list of parts with an impossible count")
    lengths = struct.unpack_from(f">{count}I", data, 7)
    if start + sum(lengths) != len(data):
        raise Malformed("a list of parts whose lengths do not add up")
    parts = []
    for length in lengths:
        parts.append(data[start : start + length])
        start += length
    return parts


def parts_digest(parts: Sequence[bytes], *, domain: bytes) -> bytes:
    """SHA-256 over the domain and the SHA-256 of each part: commits to the list, its order and its borders.

    Args:
        parts: the plain (not sealed) parts.
        domain: what the list is for, such as ``b"input"``; lists of different domains never have equal digests.

    Returns:
        32 bytes.
    """
    outer = hashlib.sha256(b"ec262/v1/" + domain + b"\0" + _COUNT.pack(len(parts)))
    for part in parts:
        outer.update(hashlib.sha256(part).digest())
    return outer.digest()
