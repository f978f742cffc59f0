"""Inside the child: a packed program becomes functions again, once a task.

Equal Python minors load the pickle; others build the functions from source, because bytecode of another minor
crashes the interpreter.
"""

from __future__ import annotations

import builtins
import contextlib
import io
import json
import pickle
import sys
import types
from collections.abc import Callable
from typing import Any, Protocol

from ec262.errors import Malformed, ProgramError
from ec262.mapreduce.program import Program
from ec262.protocol.framing import unframe_parts
from ec262.sandbox.executor_program import ExecutorCall, ExecutorMapper, executor_call
from ec262.sandbox.rebuild import PlainNames, Recipe, announce, fill_cached, remember_lines

FORMAT = 2


class LanguageLike(Protocol):
    """What loading asks of the language layer."""

    def begin(self, seed: bytes) -> dict[str, Any]: ...
    def find(self, module: str, name: str) -> Any: ...
    def import_or_deny(self, name: str) -> Any: ...
    def make_module(self, name: str, names: dict[str, Any]) -> types.ModuleType: ...


class Loader:
    """Turns packed programs into programs.

    Args:
        language: what resolves names; None gives the program plain Python.
        cloudpickle: the module whose functions the pickle names.
    """

    def __init__(self, language: LanguageLike | None, cloudpickle: types.ModuleType) -> None:
        self._language = language
        self._unpickler = _confined_unpickler(language, cloudpickle) if language else pickle.Unpickler
        self._last = b""

    def prepare(self, blob: bytes) -> Callable[[bytes], Program]:
        """A function that gives the program with fresh globals, called with a task's seed.

        Nothing of the blob is looked at before that call, so that a bad one is that task's error.
        """
        language, unpickler = self._language, self._unpickler
        self._last = blob
        ready: list[tuple[bytes | Recipe, ExecutorCall | None]] = []

        def load(seed: bytes) -> Program:
            names = language.begin(seed) if language is not None else vars(builtins)
            if not ready:
                ready.append(_choose(blob))
            form, executor = ready[0]
            if isinstance(form, Recipe):
                functions = form.build(language or PlainNames(), names, unpickler)
            else:
                functions = unpickler(io.BytesIO(form)).load()
                for function in functions.values():
                    if type(function) is types.FunctionType:
                        announce(function.__module__)
            if executor is not None:
                functions["mapper"] = ExecutorMapper(executor.name)
            return Program(**functions)

        return load

    def remember_lines(self) -> None:
        """Lets tracebacks show lines of the program loaded last; silent when it has none to show."""
        with contextlib.suppress(Exception):
            remember_lines(json.loads(unframe_parts(self._last)[2]))


def _choose(blob: bytes) -> tuple[bytes | Recipe, ExecutorCall | None]:
    """The pickle, when this interpreter may load it, or the source; and the executor that maps, if one does."""
    parts = unframe_parts(blob)
    try:
        header = json.loads(parts[0])
        python = header["python"]
        if header["format"] != FORMAT or len(parts) not in (3, 4):
            raise Malformed("a packed program of another format")
        recipe = json.loads(parts[2])
    except (ValueError, KeyError, IndexError, TypeError):
        raise Malformed("not a packed program") from None
    executor = executor_call(blob)
    mine = [sys.implementation.name, *sys.version_info[:2]]
    if python == mine:
        return parts[1], executor
    if "nodes" in recipe:
        return Recipe(recipe), executor
    raise ProgramError(
        f"the program was packed by {_show(python)}, this worker runs {_show(mine)}, and it could not be shipped as "
        f"source ({recipe.get('why', 'no reason given')}): it needs workers of its own Python version"
    )


def _show(python: Any) -> str:
    return f"{python[0]} {python[1]}.{python[2]}" if isinstance(python, list) and len(python) == 3 else "another Python"


def _confined_unpickler(language: LanguageLike, cloudpickle: types.ModuleType) -> type[pickle.Unpickler]:
    builders: dict[str, Any] = {
        name: thing for name, thing in vars(cloudpickle).items() if name.startswith(("_make_", "_get", "_class_", "_"))
    }
    builders = {name: thing for name, thing in builders.items() if isinstance(thing, types.FunctionType)}
    builders["subimport"] = language.import_or_deny
    builders["dynamic_subimport"] = language.make_module

    class Confined(pickle.Unpickler):
        def find_class(self, module: str, name: str) -> Any:
            if module == "cloudpickle.cloudpickle":
                return builders[name]
            if (module, name) == (fill_cached.__module__, fill_cached.__name__):
                return fill_cached
            return language.find(module, name)

    return Confined
