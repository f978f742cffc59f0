"""Lines that match a regular expression, in the order of the files' names and of their places.

    ec262 run grep books/*.txt --output found --param pattern='\\bwhales?\\b' --param ignore_case=1
    ec262 collect found -

``pattern`` is Python's (``re``) and searched for anywhere in the line. The counter ``matches`` says how many there are;
results as pairs have (file name, byte offset of the line) as their keys.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

import ec262
from ec262.errors import ProgramError

pattern = re.compile("")


def prepare(params: Mapping[str, Any], _: object) -> Mapping[str, Any]:
    """The parameters, if the pattern is one: better told before the job starts than by its first task."""
    try:
        compiled(params)
    except re.error as reason:
        raise ProgramError(f"pattern {params['pattern']!r} is no regular expression: {reason}") from None
    return params


def setup(params: Mapping[str, Any]) -> None:
    """Compiles the pattern, once a task."""
    global pattern
    pattern = compiled(params)


def compiled(params: Mapping[str, Any]) -> re.Pattern[str]:
    """The pattern of the parameters."""
    ignore_case = str(params.get("ignore_case", "")).lower() in ("1", "true", "yes")
    return re.compile(str(params["pattern"]), re.IGNORECASE if ignore_case else 0)


def matching(offset: int, line: str) -> Iterable[tuple[tuple[str, int], str]]:
    """The line under its place, if it matches."""
    if not pattern.search(line):
        return ()
    ec262.counter("matches").add(1)
    return (((ec262.input_name(), offset), line),)


def only(_: tuple[str, int], lines: list[str]) -> str:
    """The line that stands at a place."""
    return lines[0]


program = ec262.Program(
    matching,
    only,
    partitioner="range",
    setup=setup,
    reader=ec262.Reader("offsets"),
    output_format="values",
    required=("pattern",),
    prepare=prepare,
)
