"""The coded file: frames of one size, each complete in itself. docs/hamming.md gives every byte.

A frame is coded as a whole: a header, up to `PAYLOAD` bytes of the original, zeros up to a multiple of 8, and the
header again. Only the last one may be shorter, and it alone says that it is the last: so a map task that sees some of
the frames can check all it sees, and what is missing between frames is found where they come together (`following`).
"""

from __future__ import annotations

import struct
import zlib

from ec262.programs.hamming.code import (
    BLOCK,
    DATA,
    DOUBLE,
    FINE,
    KINDS,
    SINGLE,
    corrected,
    data_of,
    encode_blocks,
    syndromes_of,
)

PAYLOAD = 65_536
"""Bytes of the original in a frame."""
HEADER = 32
"""Bytes of a header before it is coded."""
CODED_HEADER = HEADER // DATA * BLOCK
FRAME = (PAYLOAD + 2 * HEADER) // DATA * BLOCK
"""Bytes of a full frame: what a coded file is cut at."""
MAGIC = b"EC262 H1"
"""Name and version of the format."""
LAST = 1
"""Flag of a file's last frame."""

FOLLOWS = b"follows"
MAY_FOLLOW = b"may follow"
"""What a frame that is not the last says to the one behind it; the second where its header is lost."""

Header = tuple[int, int, int, int]
"""Offset of the payload in the original, its length, its CRC-32, and the flags."""


def make_frame(payload: bytes, offset: int, *, last: bool) -> bytes:
    """The frame of 1 to `PAYLOAD` bytes that begin at byte `offset` of the original."""
    header = pack_header((offset, len(payload), zlib.crc32(payload), LAST if last else 0))
    return encode_blocks(header + payload + bytes(-len(payload) % DATA) + header)


def pack_header(header: Header) -> bytes:
    """The bytes of a header, before they are coded."""
    offset, length, checksum, flags = header
    fields = MAGIC + struct.pack(">QIII", offset, length, checksum, flags)
    return fields + struct.pack(">I", zlib.crc32(fields))


def unpack_header(data: bytes) -> Header | None:
    """A header's fields, if it is one and undamaged."""
    if data[:8] != MAGIC or zlib.crc32(data[:28]) != int.from_bytes(data[28:], "big"):
        return None
    offset, length, checksum, flags = struct.unpack(">QIII", data[8:28])
    return offset, length, checksum, flags


def marked_last(frame: bytes) -> bytes:
    """A frame as `make_frame` makes it, now the file's last."""
    header = unpack_header(data_of(frame[:CODED_HEADER]))
    if header is None:
        raise ValueError("not a frame")
    coded = encode_blocks(pack_header((*header[:3], LAST)))
    return coded + frame[CODED_HEADER:-CODED_HEADER] + coded


class Frame:
    """A frame that was read, at byte `place` of a coded file.

    Attributes:
        number: which frame of the file it is by its place, from 0.
        syndromes: of its blocks, a byte each.
        coded: its blocks, single errors corrected.
        header: None where both copies are damaged.
        payload: its part of the original, as good as it could be read; right if `fault` is empty.
        fault: why the payload is not what was coded; empty if it is, whatever had to be corrected.
    """

    def __init__(self, coded: bytes, place: int) -> None:
        self.place = place
        self.number = place // FRAME
        whole = len(coded) // BLOCK * BLOCK
        self.syndromes = syndromes_of(coded[:whole])
        self.coded = corrected(coded[:whole], self.syndromes)
        self.rest = coded[whole:]
        self.kinds = self.syndromes.translate(KINDS)
        data = data_of(self.coded)
        self.header = self._header(data)
        held = max(0, len(data) - 2 * HEADER)
        length = min(held, self.header[1]) if self.header is not None else held
        self.payload = data[HEADER : HEADER + length]
        self.fault = self._fault()

    @property
    def is_last(self) -> bool:
        """Whether it says so; a frame without a header says nothing."""
        return self.header is not None and bool(self.header[3] & LAST)

    @property
    def singles(self) -> int:
        """Blocks with one wrong bit, which was corrected."""
        return self.kinds.count(SINGLE)

    @property
    def uncorrectable(self) -> int:
        """Blocks with more than one wrong bit."""
        return len(self.kinds) - self.singles - self.kinds.count(FINE)

    def following(self) -> bytes:
        """What it says to the frame behind it: `FOLLOWS`, `MAY_FOLLOW`, or nothing if it is the last."""
        return b"" if self.is_last else MAY_FOLLOW if self.header is None else FOLLOWS

    def blocks(self, kind: int, most: int) -> list[int]:
        """The first blocks of a kind, as numbers within the frame."""
        found: list[int] = []
        at = self.kinds.find(kind)
        while at >= 0 and len(found) < most:
            found.append(at)
            at = self.kinds.find(kind, at + 1)
        return found

    def repaired(self) -> bytes:
        """The frame with all that can be corrected corrected, and the rest as it is."""
        if self.header is None or len(self.coded) + len(self.rest) != coded_size(self.header[1]):
            return self.coded + self.rest
        header = encode_blocks(pack_header(self.header))  # either copy restores the other
        return header + self.coded[CODED_HEADER:-CODED_HEADER] + header

    def _header(self, data: bytes) -> Header | None:
        """From the first copy, from the second, or from the better blocks of both."""
        first, second = data[:HEADER], data[-HEADER:]
        blocks = HEADER // DATA
        mixed = b"".join(
            (first if self.kinds[at] <= SINGLE else second)[DATA * at : DATA * at + DATA]
            for at in range(min(blocks, len(self.kinds)))
        )
        for copy in (first, second, mixed):
            header = unpack_header(copy) if len(copy) == HEADER else None
            if header is not None:
                return header
        return None

    def _fault(self) -> str:
        where = f"the frame at byte {self.place}"
        if self.header is None:
            if self.rest or len(self.coded) < 2 * CODED_HEADER:
                return f"{where} is cut off, or this is no file that hamming.encode made"
            return f"both headers of {where} are damaged, or this is no file that hamming.encode made"
        offset, length, checksum, _ = self.header
        if offset != self.number * PAYLOAD:
            return f"{where} belongs to byte {offset} of the original: frames are missing, added or in another order"
        size = len(self.coded) + len(self.rest)
        if size != coded_size(length):
            return f"{where} is cut off, or something follows it: {size} bytes instead of {coded_size(length)}"
        if zlib.crc32(self.payload) == checksum:
            return ""
        ends = HEADER // DATA
        for at, kind in enumerate(self.kinds[ends:-ends], ends):
            if kind > SINGLE:
                bits = "two" if kind == DOUBLE else "three or more"
                return f"the block at byte {self.place + at * BLOCK} has {bits} wrong bits, which cannot be corrected"
        return f"{where} has a wrong checksum: some block of it has three or more wrong bits"


def coded_size(length: int) -> int:
    """Bytes of a frame with so many bytes of the original."""
    return (length + -length % DATA + 2 * HEADER) // DATA * BLOCK
