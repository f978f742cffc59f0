"""Named programs: ``ec262 run NAME``. Each is a module whose functions are as a user's own would be, and `program`."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType

from ec262.errors import ProgramError

NAMES = (
    *("wordcount", "grep", "inverted_index", "sort", "sort_records"),
    *("hamming.encode", "hamming.decode", "hamming.check", "hamming.fix", "hamming.error"),
)
"""The programs there are."""


def find(name: str) -> ModuleType:
    """The module of a named program; a hyphen may stand for an underscore.

    Raises:
        ProgramError: no such program; lists those there are.
    """
    known = name.replace("-", "_")
    if known not in NAMES:
        raise ProgramError(f"there is no program {name!r}; there are {', '.join(NAMES)}")
    return import_module(f"ec262.programs.{known}")
