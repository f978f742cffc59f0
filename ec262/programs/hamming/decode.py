"""Decodes what `hamming.encode` wrote, correcting what can be corrected. It never gives wrong bytes for right ones.

    ec262 run hamming.decode photo.coded.bin --output photo
    ec262 run hamming.decode photo.coded.bin --output photo --param force=1

Where the original cannot be had (two wrong bits in a block, a frame missing) the job fails and says which byte of
the coded file is to blame. With ``force`` it goes on: damaged bytes stay as they are, missing frames are left out, and
the counters say how many. One file a job.
"""

from __future__ import annotations

from collections.abc import Iterator

import ec262
from ec262.programs.hamming.frames import FOLLOWS, FRAME, Frame
from ec262.programs.hamming.one_file import one_file

PAYLOAD_MARK = b"="
"""Stands before a payload, and not before what frames say to one another."""


def decode(place: int, coded: bytes) -> Iterator[tuple[int, bytes]]:
    """The payload of the frame at byte `place`, and word to the one behind it."""
    frame = Frame(coded, place)
    ec262.counter("frames").add(1)
    ec262.counter("single errors corrected").add(frame.singles)
    ec262.counter("uncorrectable blocks").add(frame.uncorrectable)
    ec262.counter("damaged frames").add(1 if frame.fault else 0)
    if frame.fault:
        refuse(f"{ec262.input_name()}: {frame.fault}")
    yield frame.number, PAYLOAD_MARK + frame.payload
    said = frame.following()
    if said:
        yield frame.number + 1, said


def join(number: int, values: list[bytes]) -> bytes:
    """The payload of a frame that stands where the one before it says."""
    payloads = [value[1:] for value in values if value.startswith(PAYLOAD_MARK)]
    said = [value for value in values if not value.startswith(PAYLOAD_MARK)]
    if len(payloads) > 1:
        raise ValueError(f"there are {len(payloads)} frames {number}: hamming.decode takes one file a job")
    if not payloads:
        if FOLLOWS in said:
            ec262.counter("missing frames").add(1)
            refuse(f"the file is cut off: the frame at byte {number * FRAME} is missing")
        return b""
    if number and not said:
        ec262.counter("damaged frames").add(1)
        refuse(f"the frame at byte {number * FRAME} stands behind the last one")
        return b""
    return payloads[0]


def refuse(fault: str) -> None:
    """Ends the job, unless it is to go on whatever is wrong."""
    if str(ec262.param("force", "")).lower() not in ("1", "true", "yes"):
        raise ValueError(f"{fault}. The original cannot be had; the parameter force=1 decodes what is left of it")


program = ec262.Program(
    decode,
    join,
    partitioner="range",
    reader=ec262.Reader("records", record_size=FRAME),
    output_format="binary",
    prepare=one_file,
)
