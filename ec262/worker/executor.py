"""Executors: map tasks computed by a program that the volunteer installed, such as a simulator, and not in Python.

    class Squares(JobExecutor):
        name = "squares"

        def run(self, task):
            for key, value in task.records:
                yield key, value**2

    run_worker(executor=Squares())

The worker registers the capability ``executor:squares`` and computes map tasks of programs made by
`ec262.executor_program("squares", params)`. docs/cluster.md has more.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar


@dataclass(frozen=True, slots=True)
class ExecutorTask:
    """One task. All of it comes from a stranger: check `params` and records as you would a web form.

    Attributes:
        params: the program's parameters, plain data.
        records: the (key, value) pairs of the task's input, read as they are asked for.
        index: number of the task in its job; the same when it is tried again, on every worker.
        input_name: name of the file the records come from; empty where they come from none.
    """

    params: Mapping[str, Any]
    records: Iterator[tuple[Any, Any]]
    index: int
    input_name: str = ""


class JobExecutor(ABC):
    """Computes map tasks in a process of its own, which the worker starts and, past a task's time, kills.

    The instance is pickled to that process (classes of the main script, too). One process computes one task at a time;
    there are as many as the worker has slots, each for as long as a job keeps its slot.

    Attributes:
        name: 1 to 48 of ``a-z0-9._-``.
    """

    name: ClassVar[str]

    def start(self) -> None:  # noqa: B027 - nothing to do is a fine default
        """Called once in each process before its first task; here goes what takes long, such as loading tables."""

    @abstractmethod
    def run(self, task: ExecutorTask) -> Iterable[tuple[Any, Any]]:
        """The (key, value) pairs that a task gives.

        Equal tasks have to give equal pairs, on every worker, or replicas cannot agree. What it raises goes to the
        job's author as an error of the task, by type and message; so a message should have no secrets in it.
        `ec262.counter` and `print` (to the worker's standard error) may be used.
        """
