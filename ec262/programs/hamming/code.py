"""The code: extended Hamming (72,64). One wrong bit in a block is corrected, two are found out. See docs/hamming.md.

A block is 9 bytes: 8 of data and a check byte. Nothing here loops over bits or blocks: the bytes of equal place in all
blocks (a *column*) are looked up by ``bytes.translate`` and added up as one large integer.
"""

from __future__ import annotations

from collections.abc import Sequence

DATA = 8
"""Bytes of data in a block."""
BLOCK = 9
"""Bytes of a block: the data, and the check byte."""

FINE, SINGLE, DOUBLE, MANY = 0, 1, 2, 3
"""What a block's syndrome says: no wrong bit, one, two (any even number), or three and more."""

# Data bit k (bit k % 8, from the least, of byte k // 8) has the number POSITIONS[k]: the numbers from 1 on that are no
# power of two. The powers of two are the numbers of the check bits 0 to 6; check bit 7 makes the whole block even.
POSITIONS = tuple(number for number in range(1, 72) if number & (number - 1))

# What a wrong data bit changes of the check byte: the bits of its number, and bit 7 unless those are odd many.
_CHANGES = tuple(number | (1 + number.bit_count()) % 2 << 7 for number in POSITIONS)


def _check_table(column: int) -> bytes:
    """For each value of a data byte what it adds to the check byte."""
    table = bytearray(256)
    for value in range(256):
        for bit in range(8):
            if value >> bit & 1:
                table[value] ^= _CHANGES[8 * column + bit]
    return bytes(table)


def _repair_table(column: int) -> bytes:
    """For each syndrome which bits to turn in a byte of a block; the check byte is column 8."""
    table = bytearray(256)
    for bit in range(8):
        table[_CHANGES[8 * column + bit] if column < DATA else 1 << bit] = 1 << bit
    return bytes(table)


CHECK = tuple(map(_check_table, range(DATA)))
REPAIR = tuple(map(_repair_table, range(BLOCK)))
KINDS = bytes(
    FINE if not syndrome
    else DOUBLE if syndrome.bit_count() % 2 == 0
    else SINGLE if syndrome in _CHANGES or syndrome.bit_count() == 1
    else MANY
    for syndrome in range(256)
)  # fmt: skip


def encode_blocks(data: bytes) -> bytes:
    """The blocks of data, whose length is a multiple of 8."""
    columns = [data[place::DATA] for place in range(DATA)]
    coded = bytearray(len(data) // DATA * BLOCK)
    for place, column in enumerate(columns):
        coded[place::BLOCK] = column
    coded[DATA::BLOCK] = _sum([column.translate(CHECK[place]) for place, column in enumerate(columns)])
    return bytes(coded)


def syndromes_of(coded: bytes) -> bytes:
    """One byte a block: what the check byte is off by, 0 where nothing is wrong."""
    columns = [coded[place::BLOCK].translate(CHECK[place]) for place in range(DATA)]
    return _sum([*columns, coded[DATA::BLOCK]])


def corrected(coded: bytes, syndromes: bytes) -> bytes:
    """Blocks with all single errors corrected; those with more stay as they are."""
    if not any(syndromes):
        return coded
    made = bytearray(coded)
    for place in range(BLOCK):
        turned = syndromes.translate(REPAIR[place])
        made[place::BLOCK] = _sum([made[place::BLOCK], turned])
    return bytes(made)


def data_of(coded: bytes) -> bytes:
    """The data bytes of blocks, as they are."""
    data = bytearray(len(coded) // BLOCK * DATA)
    for place in range(DATA):
        data[place::DATA] = coded[place::BLOCK]
    return bytes(data)


def bit_of(syndrome: int) -> int:
    """Which bit of its block a single error's syndrome means: 0 to 71, check byte last."""
    for place, table in enumerate(REPAIR):
        if table[syndrome]:
            return 8 * place + table[syndrome].bit_length() - 1
    raise ValueError(f"syndrome {syndrome} is no single error's")


def _sum(columns: Sequence[bytes | bytearray]) -> bytes:
    """Columns of equal length, added bit by bit (exclusive or)."""
    total = 0
    for column in columns:
        total ^= int.from_bytes(column, "little")
    return total.to_bytes(len(columns[0]), "little")
