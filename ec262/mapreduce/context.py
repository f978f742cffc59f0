"""What a running task may ask and note down: counters, the program's parameters, where its records come from.

The state of a task lives in a context variable: tasks that run in other threads of the same process have their own.
Standard library only: the sandbox's child loads it.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextvars import ContextVar
from typing import Any

from ec262.errors import ProgramError

MAX_COUNTERS = 1000
"""Distinct names a task may count; what is counted travels with every result."""
MAX_NAME = 200
MAX_COUNT = 2**63 - 1
"""What one task can count, by name."""


class TaskState:
    """What belongs to one task: made before its first record, read after its last."""

    __slots__ = ("counts", "input_name", "params")

    def __init__(self, params: Mapping[str, Any]) -> None:
        self.params = params
        self.counts: dict[str, int] = {}
        self.input_name = ""


_task: ContextVar[TaskState | None] = ContextVar("ec262_task", default=None)


class Counter:
    """A named number that mappers, reducers and combiners add to; the job's result has the sum."""

    __slots__ = ("_counts", "name")

    def __init__(self, name: str, counts: dict[str, int]) -> None:
        self.name = name
        self._counts = counts

    def add(self, amount: int = 1) -> None:
        """Adds a whole number, 0 or more.

        Raises:
            ProgramError: anything else, or the task's sum would be 2**63 or more.
        """
        if type(amount) is not int or amount < 0:
            raise ProgramError(f"counter {self.name!r}: add() takes a whole number from 0, not {amount!r:.80}")
        count = self._counts.get(self.name, 0) + amount
        if count > MAX_COUNT:
            raise ProgramError(f"counter {self.name!r}: a task counts to 2**63 - 1")
        self._counts[self.name] = count


def counter(name: str) -> Counter:
    """The counter of that name in this task. Outside a task it counts into nothing.

    Raises:
        ProgramError: no name for one (see `is_name`), or more than `MAX_COUNTERS` different ones.
    """
    if not is_name(name):
        raise ProgramError(f"a counter's name is a text of 1 to {MAX_NAME} printable characters, not {name!r:.80}")
    task = _task.get()
    counts = {} if task is None else task.counts
    if name not in counts and len(counts) >= MAX_COUNTERS:
        raise ProgramError(f"a task has {MAX_COUNTERS} counters already, {name!r:.80} would be one more")
    return Counter(name, counts)


def is_name(name: object) -> bool:
    """Whether something may be a counter's name. What is not printable could drive the terminal that shows it."""
    return type(name) is str and 1 <= len(name) <= MAX_NAME and name.isprintable()


def param(name: str, default: Any = None) -> Any:
    """The program's parameter of that name."""
    task = _task.get()
    return default if task is None else task.params.get(name, default)


def input_name() -> str:
    """The name of the file that the records being mapped come from; empty where they come from no file."""
    task = _task.get()
    return "" if task is None else task.input_name


def begin(params: Mapping[str, Any]) -> TaskState:
    """A task begins in this context; what an earlier one left is gone."""
    task = TaskState(params)
    _task.set(task)
    return task


def end() -> None:
    """The task is over: counters made from now on count into nothing."""
    _task.set(None)
