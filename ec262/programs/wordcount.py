"""Counts the words of text files: what stands between white space, as ``str.split()`` cuts it.

    ec262 run wordcount books/*.txt --output counts
    ec262 collect counts -

    be      2
    not     1
    or      1
    to      2

In the files a tab stands between word and count.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import repeat

import ec262


def words(_: str, line: str) -> Iterable[tuple[str, int]]:
    """Each word of a line, and 1."""
    return zip(line.split(), repeat(1))


def total(_: str, counts: list[int]) -> int:
    """How often a word was found; of ones as of sums of ones."""
    return sum(counts)


program = ec262.Program(words, total, total, reader=ec262.Reader("lines"))
