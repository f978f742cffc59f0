"""Executors that tests put in the child's seam; the zygote imports this file by name."""

from __future__ import annotations

import json
from collections.abc import Sequence

from ec262.mapreduce.program import Program


def echo(program: Program, parts: Sequence[bytes]) -> list[bytes]:
    """The least work there is: input back as output."""
    return list(parts)


def call(program: Program, parts: Sequence[bytes]) -> list[bytes]:
    """Calls the mapper with the first part's JSON; its text, bytes or list of bytes is the result."""
    made = program.mapper(json.loads(parts[0]), None)
    if isinstance(made, list):
        return made
    return [made if isinstance(made, bytes) else str(made).encode()]
