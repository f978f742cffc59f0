"""Encodes a file with a Hamming code: any one wrong bit in 72 can be corrected later, any two are found out.

    ec262 run hamming.encode photo.raw --output photo.coded
    ec262 collect photo.coded photo.coded.bin

The coded file is an eighth longer than the original (and at least 81 bytes). One file a job. docs/hamming.md states
the format.
"""

from __future__ import annotations

from collections.abc import Iterator

import ec262
from ec262.programs.hamming.frames import FOLLOWS, PAYLOAD, make_frame, marked_last
from ec262.programs.hamming.one_file import one_file


def encode(offset: int, data: bytes) -> Iterator[tuple[int, bytes]]:
    """A frame of the original's bytes from `offset` on."""
    number = offset // PAYLOAD
    if number:
        yield number - 1, FOLLOWS  # to the frame before: a map task does not see where the file ends
    yield number, make_frame(data, offset, last=False)
    ec262.counter("frames").add(1)
    ec262.counter("bytes").add(len(data))


def end(number: int, values: list[bytes]) -> bytes:
    """The frame, marked as the last if none follows."""
    frames = [value for value in values if value != FOLLOWS]
    if len(frames) != 1:
        raise ValueError(f"there are {len(frames)} frames {number}: hamming.encode takes one file a job")
    return frames[0] if len(values) > 1 else marked_last(frames[0])


program = ec262.Program(
    encode,
    end,
    partitioner="range",
    reader=ec262.Reader("records", record_size=PAYLOAD),
    output_format="binary",
    prepare=one_file,
)
