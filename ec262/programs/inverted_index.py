"""For each word the files it stands in: the sorted names, each once. A word is what ``str.split()`` gives.

ec262 run inverted_index books/*.txt --output index
ec262 collect index -

sea     ["books/moby_dick.txt","books/odyssey.txt"]
whale   ["books/moby_dick.txt"]
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import repeat

import ec262


def words(name: str, line: str) -> Iterable[tuple[str, list[str]]]:
    """Each word of a line once, and the file's name."""
    return zip(set(line.split()), repeat([name]))


def union(_: str, lists: list[list[str]]) -> list[str]:
    """The names in any of the lists."""
    return sorted({name for names in lists for name in names})


program = ec262.Program(words, union, union, reader=ec262.Reader("lines"))
