"""Segments: the form of the ledger on disk. Pure.

A segment begins with a checkpoint (all balances at that point) and goes on with blocks of entries. Both are frames::

    4  magic "ECL1"             8  number: of the block; of a checkpoint, of the block after it
    1  kind: C or B            16  id of the first entry: milliseconds, sequence number (as in the Redis stream)
    3  zero                    16  id of the last entry
    4  length of the payload   32  SHA-256 of the frame before, of whatever kind; zeros before the first
    n  payload: MessagePack, compressed by zlib (RFC 1950)
    32 SHA-256 of all of the above

Numbers are big endian. The digest of a frame covers the digest of the one before, so the last one stands for all of
them (a linear hash chain: Haber and Stornetta, How to Time-Stamp a Digital Document, 1991).
"""

from __future__ import annotations

import hashlib
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final, TypeVar

import msgspec

StreamId = tuple[int, int]
"""Milliseconds and sequence number of an entry in the Redis stream; they only ever grow."""
Entry = tuple[int, int, bytes]
"""Id of an entry, and its bytes as `entry.encode_entry` made them."""

CHECKPOINT: Final = b"C"
BLOCK: Final = b"B"
MAGIC: Final = b"ECL1"
NOTHING: Final = bytes(32)
"""What stands for the frame before the first."""

HEADER = struct.Struct(">4sc3xIQQQQQ32s")
DIGEST_BYTES = 32
MAX_PAYLOAD_BYTES = 1 << 30
MAX_PLAIN_BYTES = 1 << 31
"""Most bytes of a payload as it stands and unpacked: damage must not fill the memory."""
_LEVEL = 1
"""Of zlib: a higher level saves a tenth of the bytes at three times the time."""


class Damaged(Exception):
    """Bytes of the archive are not what was written."""


class Totals(msgspec.Struct, array_like=True, frozen=True):
    """All there is at one point of the ledger: ``minted - burnt = accounts + escrow``."""

    movements: int = 0
    minted: int = 0
    burnt: int = 0
    accounts: int = 0
    escrow: int = 0


class Checkpoint(msgspec.Struct, array_like=True, frozen=True):
    """All balances that are not zero, by place, at one point of the ledger; `archive` is the archive's random id."""

    archive: str
    totals: Totals
    balances: dict[str, int]


class Block(msgspec.Struct, array_like=True, frozen=True):
    """Entries in order, and what there is after them."""

    totals: Totals
    entries: list[Entry]


@dataclass(frozen=True, slots=True)
class Header:
    """What a frame says of itself."""

    kind: bytes
    length: int
    number: int
    first: StreamId
    last: StreamId
    previous: bytes

    @property
    def size(self) -> int:
        """Bytes of the whole frame."""
        return HEADER.size + self.length + DIGEST_BYTES


@dataclass(frozen=True, slots=True)
class Frame:
    """A checkpoint or block whose digest was found right."""

    header: Header
    payload: bytes
    digest: bytes

    def checkpoint(self) -> Checkpoint:
        """What a frame of kind `CHECKPOINT` holds; raises `Damaged`."""
        return _unpack(self.payload, _checkpoints)

    def block(self) -> Block:
        """What a frame of kind `BLOCK` holds; raises `Damaged`, also where its entries are out of order."""
        block = _unpack(self.payload, _blocks)
        ids = [(ms, sequence) for ms, sequence, _ in block.entries]
        if not ids or ids[0] != self.header.first or ids[-1] != self.header.last:
            raise Damaged("the block's entries are not those that its header names")
        if any(before >= after for before, after in pairwise(ids)):
            raise Damaged("the block's entries are not in order")
        return block


T = TypeVar("T")

_encoder = msgspec.msgpack.Encoder()
_checkpoints = msgspec.msgpack.Decoder(Checkpoint)
_blocks = msgspec.msgpack.Decoder(Block)


def encode_block(number: int, previous: bytes, entries: Sequence[Entry], totals: Totals) -> tuple[bytes, bytes]:
    """The frame of a block and its digest."""
    first, last = entries[0], entries[-1]
    payload = _encoder.encode((totals, entries))
    return _encode(BLOCK, number, (first[0], first[1]), (last[0], last[1]), previous, payload)


def encode_checkpoint(number: int, previous: bytes, last: StreamId, checkpoint: Checkpoint) -> tuple[bytes, bytes]:
    """The frame of a checkpoint and its digest; `number` is that of the next block, `last` the id before it."""
    return _encode(CHECKPOINT, number, last, last, previous, _encoder.encode(checkpoint))


def read_header(data: bytes) -> Header:
    """The header of a frame; raises `Damaged` where there is none."""
    magic, kind, length, number, *ids, previous = HEADER.unpack(data)
    if magic != MAGIC or kind not in (CHECKPOINT, BLOCK):
        raise Damaged("no frame begins here")
    if length > MAX_PAYLOAD_BYTES:
        raise Damaged(f"a frame of {length} bytes cannot be")
    return Header(kind, length, number, (ids[0], ids[1]), (ids[2], ids[3]), previous)


def read_frame(header: Header, data: bytes) -> Frame:
    """The whole frame from its bytes; raises `Damaged` where its digest is wrong."""
    digest = data[-DIGEST_BYTES:]
    if hashlib.sha256(memoryview(data)[:-DIGEST_BYTES]).digest() != digest:
        raise Damaged("the frame's digest is wrong: its bytes were changed")
    return Frame(header, data[HEADER.size : -DIGEST_BYTES], digest)


def _encode(
    kind: bytes, number: int, first: StreamId, last: StreamId, previous: bytes, plain: bytes
) -> tuple[bytes, bytes]:
    payload = zlib.compress(plain, _LEVEL)
    data = HEADER.pack(MAGIC, kind, len(payload), number, *first, *last, previous) + payload
    digest = hashlib.sha256(data).digest()
    return data + digest, digest


def _unpack(payload: bytes, decoder: msgspec.msgpack.Decoder[T]) -> T:
    unpacker = zlib.decompressobj()
    try:
        plain = unpacker.decompress(payload, MAX_PLAIN_BYTES)
        if not unpacker.eof or unpacker.unused_data:
            raise Damaged("the payload is cut or too large")
        return decoder.decode(plain)
    except (zlib.error, msgspec.DecodeError) as reason:
        raise Damaged(f"the payload cannot be read: {reason}") from None
