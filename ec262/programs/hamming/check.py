"""Checks files that `hamming.encode` wrote: a report for each, with every kind of error, how many and where.

    ec262 run hamming.check photo.damaged.bin --output report

    photo.damaged.bin
    frames: 3
    single errors, which fix corrects: 2
      byte 1042, bit 3
      byte 73811, bit 0
    blocks with two errors, uncorrectable: 1
      block at byte 147600
    blocks with three or more errors, uncorrectable: 0
    frames that cannot be decoded: 1
      the block at byte 147600 has two wrong bits, which cannot be corrected
    the original cannot be decoded

Places are counted in bytes of the coded file, bits of a byte from the least one. ``limit``: the most places listed of
a kind (default 100). Several files a job.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import ec262
from ec262.programs.hamming.code import BLOCK, DOUBLE, MANY, SINGLE, bit_of
from ec262.programs.hamming.frames import FRAME, Frame

Summary = dict[str, Any]
"""frames, end: how many frames, and bytes up to the end of the last one. lasts: [frame that says it is the last, end of
the original]. For each kind of error: [how many, the first places]."""

KINDS = ("single", "double", "many", "fault")


def check(place: int, coded: bytes) -> Iterator[tuple[str, Summary]]:
    """What there is to say of the frame at byte `place`."""
    frame = Frame(coded, place)
    most = limit()
    singles = []
    for at in frame.blocks(SINGLE, most):
        bit = bit_of(frame.syndromes[at])
        singles.append([place + at * BLOCK + bit // 8, bit % 8])
    summary: Summary = {
        "frames": 1,
        "highest": frame.number,
        "lasts": [],
        "single": [frame.singles, singles],
        "double": [frame.kinds.count(DOUBLE), [place + at * BLOCK for at in frame.blocks(DOUBLE, most)]],
        "many": [frame.kinds.count(MANY), [place + at * BLOCK for at in frame.blocks(MANY, most)]],
        "fault": [1, [[place, frame.fault]]] if frame.fault else [0, []],
    }
    if frame.is_last and frame.header is not None:
        summary["lasts"] = [[frame.number, frame.header[0] + frame.header[1]]]
    yield ec262.input_name(), summary


def merge(_: str, summaries: list[Summary]) -> Summary:
    """Summaries of several frames as one."""
    most = limit()
    merged: Summary = {
        "frames": sum(summary["frames"] for summary in summaries),
        "highest": max(summary["highest"] for summary in summaries),
        "lasts": sorted(last for summary in summaries for last in summary["lasts"])[:most],
    }
    for kind in KINDS:
        places = sorted(place for summary in summaries for place in summary[kind][1])
        merged[kind] = [sum(summary[kind][0] for summary in summaries), places[:most]]
    return merged


def report(name: str, summaries: list[Summary]) -> str:
    """The report on a file, as text of several lines."""
    found = merge(name, summaries)
    lasts, highest = found["lasts"], found["highest"]
    lines = [name, f"frames: {found['frames']}"]
    lines += listed("single errors, which fix corrects", found["single"][0], [
        f"byte {byte}, bit {bit}" for byte, bit in found["single"][1]
    ])  # fmt: skip
    for kind, how_many in (("double", "two"), ("many", "three or more")):
        title = f"blocks with {how_many} errors, uncorrectable"
        lines += listed(title, found[kind][0], [f"block at byte {byte}" for byte in found[kind][1]])
    lines += listed("frames that cannot be decoded", found["fault"][0], [text for _, text in found["fault"][1]])
    whole = len(lasts) == 1 and lasts[0][0] == highest == found["frames"] - 1
    if not whole:
        behind = lasts and lasts[0][0] < highest
        lines.append("something stands behind the last frame" if behind else "the last frame is missing or damaged")
    if whole and not found["fault"][0]:
        lines.append(f"the original, {lasts[0][1]} bytes, can be decoded")
    else:
        lines.append("the original cannot be decoded")
    return "\n".join(lines)


def listed(title: str, count: int, places: list[str]) -> list[str]:
    """A heading with a count, and the places below it."""
    more = [f"  and {count - len(places)} more"] if count > len(places) else []
    return [f"{title}: {count}", *[f"  {place}" for place in places], *more]


def limit() -> int:
    """How many places of a kind are listed."""
    return int(ec262.param("limit", 100))


program = ec262.Program(
    check,
    report,
    merge,
    partitioner="range",
    reader=ec262.Reader("records", record_size=FRAME),
    output_format="values",
)
