"""What `@mapper`, `@reducer` and `@combiner` recorded, per module: they note a function down and return it as it is."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, TypeVar

from ec262.errors import ProgramError
from ec262.mapreduce.program import Program, name_of

F = TypeVar("F", bound=Callable[..., Any])

_recorded: dict[tuple[str, str], dict[str, Callable[..., Any]]] = {}


def mapper(function: F) -> F:
    """Marks the module's mapper: ``function(key, value)`` yields (key, value) pairs."""
    return _record("mapper", function)


def reducer(function: F) -> F:
    """Marks the module's reducer: ``function(key, values)`` returns the key's value in the result."""
    return _record("reducer", function)


def combiner(function: F) -> F:
    """Marks the module's combiner: like a reducer, applied on the worker to what one map task gave a key."""
    return _record("combiner", function)


def _record(role: str, function: F) -> F:
    if not callable(function):
        raise ProgramError(f"@ec262.{role} marks a function, not a {type(function).__name__}")
    module = getattr(function, "__module__", None) or "__main__"
    # By name: a notebook cell or module that runs again replaces what it recorded before.
    _recorded.setdefault((module, role), {})[getattr(function, "__qualname__", name_of(function))] = function
    return function


def program_for(
    module: str,
    *,
    mapper: Callable[..., Any] | None = None,
    reducer: Callable[..., Any] | None = None,
    combiner: Callable[..., Any] | None = None,
) -> Program:
    """The program of a job started from `module`: functions given outright, else those the module recorded.

    Raises:
        ProgramError: no mapper, or several to choose from.
    """
    chosen_mapper = mapper if mapper is not None else _only(module, "mapper")
    if chosen_mapper is None:
        raise ProgramError(
            f"no mapper: mark a function of module {module} with @ec262.mapper, or call run_job(data, mapper=...)"
        )
    # A mapper given outright with no reducer means just that: a recorded one may belong to another program.
    if mapper is None:
        reducer = reducer if reducer is not None else _only(module, "reducer")
        combiner = combiner if combiner is not None else _only(module, "combiner")
    for role, function in (("mapper", chosen_mapper), ("reducer", reducer), ("combiner", combiner)):
        if function is not None and not callable(function):
            raise ProgramError(f"{role}= takes a function, not a {type(function).__name__}")
    return Program(chosen_mapper, reducer, combiner)


def _only(module: str, role: str) -> Callable[..., Any] | None:
    found = _recorded.get((module, role), {})
    if len(found) > 1:
        names = ", ".join(sorted(found))
        raise ProgramError(f"module {module} has several {role}s ({names}): say which, run_job(data, {role}=...)")
    return next(iter(found.values()), None)


def calling_module(depth: int = 2) -> str:
    """Name of the module that called the function that calls this (`depth` frames up)."""
    return str(sys._getframe(depth).f_globals.get("__name__", "__main__"))
