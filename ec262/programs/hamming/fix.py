"""Corrects a file that `hamming.encode` wrote: writes it again with every single error of a block corrected.

    ec262 run hamming.fix photo.damaged.bin --output photo.fixed

Blocks with more than one wrong bit stay as they are (but a header is restored from its other copy); the counters say
how many were found, `hamming.check` says where. One file a job.
"""

from __future__ import annotations

from collections.abc import Iterator

import ec262
from ec262.programs.hamming.frames import FRAME, Frame
from ec262.programs.hamming.one_file import one_file


def fix(place: int, coded: bytes) -> Iterator[tuple[int, bytes]]:
    """The frame at byte `place`, corrected."""
    frame = Frame(coded, place)
    ec262.counter("frames").add(1)
    ec262.counter("single errors corrected").add(frame.singles)
    ec262.counter("uncorrectable blocks").add(frame.uncorrectable)
    ec262.counter("damaged frames").add(1 if frame.fault else 0)
    yield frame.number, frame.repaired()


def only(number: int, frames: list[bytes]) -> bytes:
    """The one frame of its number."""
    if len(frames) > 1:
        raise ValueError(f"there are {len(frames)} frames {number}: hamming.fix takes one file a job")
    return frames[0]


program = ec262.Program(
    fix,
    only,
    partitioner="range",
    reader=ec262.Reader("records", record_size=FRAME),
    output_format="binary",
    prepare=one_file,
)
