"""What goes into a unit and comes out of it: tasks and outcomes, as plain values."""

from __future__ import annotations

import json
import signal
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from ec262.errors import Malformed
from ec262.sandbox.frames import MAX_ERROR_BYTES

LimitName = Literal["cpu", "wall", "memory", "output", "forbidden", "crash", "protocol"]
_LIMIT_NAMES_OF_CHILD: Final = {"memory", "output"}


@dataclass(slots=True)
class UnitTask:
    """One task for a unit.

    Attributes:
        id: the caller's own; the sandbox only gives it back.
        parts: the input.
        cpu_limit_s: CPU seconds after which the task is killed.
        wall_limit_s: seconds after which it is killed whatever it does.
        max_output_bytes: longest result, all parts together.
    """

    id: str | int
    parts: list[bytes]
    cpu_limit_s: float = 60.0
    wall_limit_s: float = 120.0
    max_output_bytes: int = 64 << 20


@dataclass(frozen=True, slots=True)
class ErrorInfo:
    """Why there is no result. All texts come from a stranger: without control characters, and of bounded length.

    Attributes:
        type: name of the exception's type, or ``LimitExceeded``.
        message: what it says.
        line: ``file:line`` of the program where it was raised, or empty.
        traceback: the program's own frames.
        limit: which limit ended the task; empty for an exception.
    """

    type: str
    message: str
    line: str = ""
    traceback: str = ""
    limit: LimitName | Literal[""] = ""


@dataclass(slots=True)
class Outcome:
    """How a task ended.

    Attributes:
        kind: ``ok``, ``error`` (the program raised) or ``limit`` (it used more than allowed, or its process died).
        parts: the result, when ok.
        cpu_s: CPU seconds as the child says, at most the wall clock the parent saw.
        wall_s: wall clock, a batch's mean where several came at once.
        error: why, when not ok.
    """

    kind: Literal["ok", "error", "limit"]
    parts: list[bytes] = field(default_factory=list)
    cpu_s: float = 0.0
    wall_s: float = 0.0
    error: ErrorInfo | None = None


def exceeded(limit: LimitName, message: str) -> ErrorInfo:
    """The error of a task that was ended."""
    return ErrorInfo("LimitExceeded", message, limit=limit)


def sanitise(text: object, longest: int) -> str:
    """Printable text from a stranger: control and format characters, such as terminal escapes, become ``\\x1b``."""
    shown = str(text)[:longest]
    if shown.isascii() and shown.isprintable():
        return shown
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in shown)


def read_error(body: bytes, *, is_limit: bool) -> ErrorInfo:
    """What a child says about a task that failed.

    Raises:
        Malformed: not what an honest child writes.
    """
    try:
        said: Any = json.loads(body) if len(body) <= MAX_ERROR_BYTES else None
    except (ValueError, RecursionError):
        said = None
    if type(said) is not dict or not all(type(item) is str for item in said.values()):
        raise Malformed("an error that is none")
    if is_limit:
        limit = said.get("limit")
        if limit not in _LIMIT_NAMES_OF_CHILD:
            raise Malformed("an unknown limit")
        return exceeded(limit, sanitise(said.get("message", ""), 500))
    return ErrorInfo(
        type=sanitise(said.get("type", ""), 200),
        message=sanitise(said.get("message", ""), 4000),
        line=sanitise(said.get("line", ""), 1000),
        traceback=sanitise(said.get("traceback", ""), 17_000),
    )


def death(status: int) -> ErrorInfo:
    """What a child's wait status says about the task it died of."""
    if status & 0x7F == 0:
        return exceeded("crash", f"the task ended its process (exit code {status >> 8 & 0xFF})")
    number = status & 0x7F
    try:
        name = signal.Signals(number).name
    except ValueError:
        name = f"signal {number}"
    if name == "SIGSYS":
        return exceeded("forbidden", "the task made a system call that the sandbox does not have")
    if name == "SIGXCPU":
        return exceeded("cpu", "the unit used more CPU time than it may have")
    if name == "SIGKILL":
        return exceeded("crash", "the task's process was killed: out of memory, or the unit's CPU time is up")
    return exceeded("crash", f"the task's process died of {name}")
