"""Events: what a worker tells the person whose machine it is."""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Iterator

EVENT = 15
"""Level of a line for each thing that happened (``-v``), between DEBUG (``-V``) and INFO (start, end)."""


def shown(thing: object, longest: int = 500) -> str:
    """Text from outside, fit for a terminal: no control characters, no escapes, of a bearable length."""
    text = str(thing)
    text = text if len(text) <= longest else text[: longest - 3] + "..."
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


@contextlib.contextmanager
def printed(verbosity: int) -> Iterator[None]:
    """Prints the worker's lines to standard error, unless the program has a place for them already.

    Args:
        verbosity: 0: start, warnings and the end; 1: a line an event; 2: everything.
    """
    root = logging.getLogger("ec262")
    if root.hasHandlers():
        yield
        return
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    level = root.level
    root.addHandler(handler)
    root.setLevel((logging.INFO, EVENT, logging.DEBUG)[min(max(verbosity, 0), 2)])
    try:
        yield
    finally:
        root.removeHandler(handler)
        root.setLevel(level)
