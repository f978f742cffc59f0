"""Programs whose map tasks are computed by an executor: code that volunteers installed, and not the job's author.

Such a program has an `ExecutorMapper` for a mapper. It travels like any other; its map tasks go to workers with the
capability ``executor:NAME``, its reduce tasks to any. Standard library only: the sandbox's child loads it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, NoReturn

from ec262.errors import Malformed, ProgramError
from ec262.mapreduce.program import Program
from ec262.protocol.canonical import decode_value, encode_value
from ec262.protocol.framing import unframe_parts

_NAME: Final = re.compile(r"[a-z0-9][a-z0-9._-]{0,47}")


class ExecutorMapper:
    """Stands for a mapper that is not shipped.

    Attributes:
        name: of the executor.

    Raises:
        ProgramError: not a name.
    """

    __slots__ = ("name",)

    def __init__(self, name: str) -> None:
        if type(name) is not str or not _NAME.fullmatch(name):
            raise ProgramError(
                f"{name!r:.80} is no name of an executor: it has 1 to 48 of a-z, 0-9, dot, _ and -, the first a letter "
                "or digit"
            )
        self.name = name

    @property
    def capability(self) -> str:
        """What a worker has to have for the map tasks."""
        return f"executor:{self.name}"

    @property
    def __name__(self) -> str:
        return f"executor {self.name}"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ExecutorMapper) and other.name == self.name

    def __hash__(self) -> int:
        return hash(self.name)

    def __call__(self, key: Any, value: Any) -> NoReturn:
        """Raises `ProgramError`: the records are mapped elsewhere."""
        raise ProgramError(f"map tasks of this program run on workers with {self.capability}, not in Python here")


def executor_program(
    name: str,
    params: Mapping[str, Any] | None = None,
    *,
    reducer: Callable[[Any, list[Any]], Any] | None = None,
    partitioner: Literal["hash", "range"] = "hash",
    **more: Any,
) -> Program:
    """A program whose map tasks workers compute with an executor of theirs (see `ec262.worker.executor`).

    Args:
        name: of the executor.
        params: for the executor and the reducer; plain data.
        reducer: an ordinary function, shipped and run in sandboxes; None: the result has lists of values.
        more: further fields of `Program`, such as ``reader`` and ``output_format``.

    Raises:
        ProgramError: not a name of an executor.
    """
    return Program(ExecutorMapper(name), reducer, partitioner=partitioner, params=dict(params or {}), **more)


@dataclass(frozen=True, slots=True)
class ExecutorCall:
    """What a packed program tells the executor that maps for it.

    Attributes:
        name: of the executor.
        partitioner: how its pairs are dealt to the reduce partitions.
        params: the program's parameters.
    """

    name: str
    partitioner: str
    params: dict[str, Any]


def call_of(program: Program, params: Mapping[str, Any]) -> bytes:
    """The part of a packed program that is for the executor: canonical, for no worker unpickles outside a sandbox.

    Raises:
        ProgramError: the program has functions that would have to run beside the executor, unconfined.
    """
    name = program.mapper.name if isinstance(program.mapper, ExecutorMapper) else ""
    for role in ("combiner", "setup"):
        if getattr(program, role) is not None:
            raise ProgramError(f"a program for executor {name} cannot have a {role}: only its reducer is shipped")
    if program.partitioner not in ("hash", "range"):
        raise ProgramError(f"a program for executor {name} has partitioner 'hash' or 'range', no function")
    return encode_value({"executor": name, "partitioner": program.partitioner, "params": dict(params)})


def executor_call(blob: bytes) -> ExecutorCall | None:
    """What a packed program has an executor do; None: nothing, its map tasks run in the sandbox.

    Raises:
        Malformed: not a packed program.
    """
    parts = unframe_parts(blob)
    if len(parts) != 4:
        return None
    fields = decode_value(parts[3])
    if type(fields) is not dict:
        raise Malformed("a packed program whose call of an executor is none")
    name, partitioner, params = fields.get("executor"), fields.get("partitioner"), fields.get("params")
    named = type(name) is str and _NAME.fullmatch(name) is not None
    if not named or partitioner not in ("hash", "range") or type(params) is not dict:
        raise Malformed("a packed program whose call of an executor is none")
    return ExecutorCall(str(name), partitioner, params)
