"""Inputs: files that all ways of a comparison read or send, made once, the same bytes for the same sizes."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

from benchmarks.text import SEED, chunks
from tests.gensort import RECORD, records

CHUNK = 1_000_000
"""Bytes of a piece of text, about: a map task each."""
AGAIN = 5
"""Every so many keys of `distinct_file` come twice."""


def text_file(directory: Path, size: int) -> Path:
    """About `size` bytes of text, see `benchmarks.text`."""
    path = directory / f"text-{size}"
    if not path.exists():
        with path.open("w", encoding="ascii", newline="") as file:
            file.writelines(chunks(size))
    return path


def records_file(directory: Path, count: int) -> Path:
    """So many records of the sort benchmark, 100 bytes each."""
    path = directory / f"records-{count}"
    if not path.exists():
        with path.open("wb") as file:
            file.writelines(records(count))
    return path


def distinct_file(directory: Path, count: int) -> Path:
    """Lines of words of 8 characters, `count` different ones in no order; a fifth of them come twice, far apart."""
    path = directory / f"distinct-{count}"
    if not path.exists():
        first = random.Random(SEED).randrange(1 << 32)
        with path.open("w", encoding="ascii", newline="") as file:
            for rows in (range(count), range(0, count, AGAIN)):
                for at in range(0, len(rows), 12):
                    # A multiplication by an odd number modulo 2^32 is a permutation: no two words are equal.
                    words = [f"{(first + row) * 2_654_435_761 & 0xFFFFFFFF:08x}" for row in rows[at : at + 12]]
                    file.write(" ".join(words) + "\n")
    return path


def pieces_of_text(path: Path, size: int = CHUNK) -> Iterator[str]:
    """A file of ASCII lines in pieces of whole lines, each about `size` bytes."""
    with path.open(encoding="ascii", newline="") as file:
        while piece := file.read(size):
            yield piece + file.readline()


def pieces_of_records(path: Path, size: int) -> Iterator[bytes]:
    """A file of records in pieces of whole records, `size` bytes at most."""
    with path.open("rb") as file:
        while piece := file.read(max(1, size // RECORD) * RECORD):
            yield piece
