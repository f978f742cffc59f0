"""Damages a coded file on purpose, to see what `check`, `fix` and `decode` make of it.

    ec262 run hamming.error photo.coded.bin --output photo.damaged
    ec262 run hamming.error photo.coded.bin --output photo.damaged -p per_block=2 -p rate=0.001 -p seed=7

``per_block``: wrong bits in a block that is hit, 1 (default) or 2. ``rate``: the share of blocks that are hit, 0 to 1
(default: all). ``seed``: default 262. Which bits are turned follows from the seed and their place in the file alone.
One file a job; what is behind the last whole block of 9 bytes stays as it is.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator, Mapping
from typing import Any

import ec262
from ec262.programs.hamming.code import BLOCK
from ec262.programs.hamming.frames import FRAME
from ec262.programs.hamming.one_file import one_file

BITS = 8 * BLOCK
PLACES = bytes(value * BITS >> 8 for value in range(256))
"""A random byte to the number of a bit in a block."""
SPARED = 255
"""In place of a bit's number: the block is not hit."""
TURNS = tuple(bytes(1 << bit % 8 if bit // 8 == place else 0 for bit in range(256)) for place in range(BLOCK))
"""For each byte of a block: the number of a bit to what is turned of the byte."""


def setup(params: Mapping[str, Any]) -> None:
    """Refuses parameters that make no sense."""
    if str(params.get("per_block", 1)) not in ("1", "2"):
        raise ValueError(f"per_block is 1 or 2, not {params['per_block']}")
    if not 0 <= float(params.get("rate", 1)) <= 1:
        raise ValueError(f"rate is a share from 0 to 1, not {params['rate']}")


def damage(place: int, coded: bytes) -> Iterator[tuple[int, bytes]]:
    """A frame with some bits turned."""
    number, count = place // FRAME, len(coded) // BLOCK
    turned = chosen_bits(number, count)
    made = bytearray(coded)
    for at in range(BLOCK):
        column = slice(at, count * BLOCK, BLOCK)
        mask = int.from_bytes(made[column], "little")
        for bits in turned:
            mask ^= int.from_bytes(bits.translate(TURNS[at]), "little")
        made[column] = mask.to_bytes(count, "little")
    ec262.counter("wrong bits").add(sum(count - bits.count(SPARED) for bits in turned))
    yield number, bytes(made)


def chosen_bits(number: int, count: int) -> list[bytes]:
    """For each error of a block which bit it turns, 0 to 71, a byte for each of `count` blocks of a frame."""
    rate = float(ec262.param("rate", 1))
    stream = hashlib.shake_256(f"ec262 hamming.error {ec262.param('seed', 262)} {number}".encode())
    random = stream.digest(2 * count if rate >= 1 else 6 * count)
    chosen = [random[:count].translate(PLACES)]
    if int(ec262.param("per_block", 1)) == 2:
        chosen.append(apart(chosen[0], random[count : 2 * count].translate(PLACES)))
    if rate >= 1:
        return chosen
    most = int(rate * (1 << 32))
    spared = bytes([0 if drawn < most else SPARED for drawn in struct.unpack(f">{count}I", random[2 * count :])])
    return [union(bits, spared) for bits in chosen]


def apart(first: bytes, second: bytes) -> bytes:
    """The second errors; where they fall on the first, on the bit behind it."""
    made = bytearray(second)
    same = (int.from_bytes(first, "little") ^ int.from_bytes(second, "little")).to_bytes(len(first), "little")
    at = same.find(0)
    while at >= 0:
        made[at] = (made[at] + 1) % BITS
        at = same.find(0, at + 1)
    return bytes(made)


def union(one: bytes, other: bytes) -> bytes:
    """Bytes of equal length, bit by bit or."""
    return (int.from_bytes(one, "little") | int.from_bytes(other, "little")).to_bytes(len(one), "little")


def only(number: int, frames: list[bytes]) -> bytes:
    """The one frame of its number."""
    if len(frames) > 1:
        raise ValueError(f"there are {len(frames)} frames {number}: hamming.error takes one file a job")
    return frames[0]


program = ec262.Program(
    damage,
    only,
    partitioner="range",
    setup=setup,
    reader=ec262.Reader("records", record_size=FRAME),
    output_format="binary",
    prepare=one_file,
)
