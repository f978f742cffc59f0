"""A program as source: what a worker of another Python minor builds the functions from.

A recipe is a graph of nodes in JSON. Functions and classes are the lines of their files, so that tracebacks name the
author's lines; what they refer to (globals, closures, defaults) are further nodes. `rebuild` is the other half.
"""

from __future__ import annotations
import __future__

import ast
import base64
import dis
import enum
import functools
import linecache
import pickle
import random
import sys
import types
from collections.abc import Callable, Iterator
from typing import Any, Final

from ec262.errors import ProgramError

Node = dict[str, Any]
_SCALARS: Final = (type(None), bool, int, float, complex, str, bytes)
_CONTAINERS: Final = (tuple, list, dict, set, frozenset)


class NoSource(ProgramError):
    """Something in the program has no source that could be shipped: it runs on workers of the same Python only."""


def recipe_of(functions: dict[str, Any], is_users: Callable[[str | None], bool]) -> Node:
    """The recipe of functions by role.

    Args:
        functions: role to function; None stays None.
        is_users: whether a module is the user's own, by name.

    Raises:
        NoSource: names what has none.
    """
    writer = _Writer(is_users)
    roots = {role: writer.refer(function) for role, function in functions.items()}
    writer.finish()
    return {"nodes": writer.nodes, "roots": roots, "spaces": writer.spaces}


class _Writer:
    def __init__(self, is_users: Callable[[str | None], bool]) -> None:
        self.nodes: list[Node] = []
        self.spaces: dict[str, dict[str, int]] = {}
        self._is_users = is_users
        self._known: dict[int, tuple[int, Any]] = {}  # holds the object, so that its id stays its own
        self._wanted: list[tuple[str, dict[str, Any], list[str]]] = []

    def refer(self, thing: Any) -> int:
        """The number of the node that stands for a thing."""
        known = self._known.get(id(thing))
        if known is not None:
            return known[0]
        number = len(self.nodes)
        self._known[id(thing)] = (number, thing)
        self.nodes.append({})
        self.nodes[number] = self._describe(thing)
        return number

    def finish(self) -> None:
        """Follows the global names of all functions, and those of what they lead to."""
        while self._wanted:
            space, names, used = self._wanted.pop()
            into = self.spaces.setdefault(space, {})
            for name in used:
                if name in names and name not in into and name != "__builtins__":
                    into[name] = self.refer(names[name])

    def _describe(self, thing: Any) -> Node:
        if _is_data(thing):
            return {"k": "data", "v": base64.b64encode(pickle.dumps(thing, protocol=4)).decode()}
        if isinstance(thing, types.FunctionType) and self._is_own(thing):
            return self._function(thing)
        if isinstance(thing, type) and self._is_own(thing):
            return self._class(thing)
        if isinstance(thing, types.ModuleType):
            return self._module(thing)
        if isinstance(thing, _CONTAINERS):
            return self._container(thing)
        if isinstance(thing, functools.partial):
            names = {name: self.refer(value) for name, value in thing.keywords.items()}
            return {"k": "partial", "f": self.refer(thing.func), "a": [*map(self.refer, thing.args)], "n": names}
        if isinstance(thing, types.MethodType | types.BuiltinMethodType) and thing.__self__ is not None:
            return self._method(thing)
        if isinstance(thing, enum.Enum) and self._is_own(type(thing)):
            return {"k": "attribute", "o": self.refer(type(thing)), "n": thing.name}
        if hasattr(thing, "cache_parameters") and hasattr(thing, "__wrapped__"):
            return {"k": "cached", "f": self.refer(thing.__wrapped__), "n": thing.cache_parameters()}
        name = getattr(thing, "__qualname__", None) or getattr(thing, "__name__", None)
        if name and isinstance(thing, type | types.FunctionType | types.BuiltinFunctionType | functools.partial):
            return {"k": "global", "m": thing.__module__ or "builtins", "n": name}
        if self._is_own(type(thing)):
            return {"k": "instance", "c": self.refer(type(thing)), "s": self.refer(_state(thing))}
        try:  # what the standard library pickles by itself, such as a Decimal or a compiled regular expression
            return {"k": "pickle", "v": base64.b64encode(pickle.dumps(thing, protocol=4)).decode()}
        except Exception as reason:
            raise NoSource(f"a {type(thing).__qualname__} cannot be shipped as source: {reason}") from None

    def _is_own(self, thing: Any) -> bool:
        return self._is_users(getattr(thing, "__module__", None)) or "<" in getattr(thing, "__qualname__", "")

    def _module(self, module: types.ModuleType) -> Node:
        if not self._is_users(module.__name__):
            return {"k": "module", "n": module.__name__}
        names = {}
        for name, value in list(vars(module).items()):
            own = getattr(value, "__module__", None) == module.__name__
            if not name.startswith("__") and (own or _is_data(value)):
                names[name] = self.refer(value)
        return {"k": "namespace", "n": module.__name__, "names": names}

    def _container(self, thing: Any) -> Node:
        if isinstance(thing, dict):
            items = [[self.refer(key), self.refer(value)] for key, value in thing.items()]
            return {"k": "dict", "i": items}
        return {"k": type(thing).__name__, "i": [self.refer(item) for item in thing]}

    def _method(self, thing: Any) -> Node:
        owner = thing.__self__
        if owner is getattr(random, "_inst", None):
            return {"k": "global", "m": "random", "n": thing.__name__}
        if isinstance(owner, types.ModuleType):
            return {"k": "global", "m": owner.__name__, "n": thing.__name__}
        return {"k": "attribute", "o": self.refer(owner), "n": thing.__name__}

    def _function(self, function: types.FunctionType) -> Node:
        code = function.__code__
        tree, lines = _file(code.co_filename)
        found = _find_function(tree, code)
        text = _lines_of(lines, found) if isinstance(found, ast.stmt) else ast.get_source_segment("".join(lines), found)
        cells = {}
        for name, cell in zip(code.co_freevars, function.__closure__ or (), strict=True):
            cells[name] = self._cell(cell)
        self._want(function, list(global_names(code)))
        return {
            "k": "function",
            "name": code.co_name,
            "text": text,
            "line": found.lineno,
            "file": code.co_filename,
            "flags": _future_flags(tree),
            "cells": cells,
            "space": function.__module__ or "__main__",
            "defaults": [self.refer(item) for item in function.__defaults__ or ()],
            "named": {name: self.refer(item) for name, item in (function.__kwdefaults__ or {}).items()},
            "qualname": function.__qualname__,
            "dict": {name: self.refer(v) for name, v in vars(function).items() if name != "__wrapped__"},
        }

    def _cell(self, cell: types.CellType) -> int:
        known = self._known.get(id(cell))
        if known is not None:
            return known[0]
        number = len(self.nodes)
        self._known[id(cell)] = (number, cell)
        self.nodes.append({"k": "cell", "v": None})
        try:
            self.nodes[number]["v"] = self.refer(cell.cell_contents)
        except ValueError:
            pass  # not bound yet
        return number

    def _class(self, kind: type) -> Node:
        module = kind.__module__
        names: dict[str, Any] = {}
        for method in _own_methods(kind):
            names = method.__globals__
        names = names or vars(sys.modules.get(module, types.ModuleType(module)))
        filename = _file_of(kind, names)
        tree, lines = _file(filename)
        found = _find_class(tree, kind)
        text = _lines_of(lines, found, decorators=True)
        first = min([found.lineno, *(item.lineno for item in found.decorator_list)])
        used = sorted(set(_names_in(found)))
        local = _closure_names(kind)
        now = {name: self.refer(names[name]) for name in _statement_names(found) if name in names and name not in local}
        self._wanted.append((module, names, used))
        return {
            "k": "class",
            "name": kind.__name__,
            "text": text,
            "line": first,
            "file": filename,
            "space": module,
            "flags": _future_flags(tree),
            "now": now,
            "cells": {name: self.refer(value) for name, value in local.items()},
            "qualname": kind.__qualname__,
        }

    def _want(self, function: types.FunctionType, used: list[str]) -> None:
        self._wanted.append((function.__module__ or "__main__", function.__globals__, used))


def _is_data(thing: Any) -> bool:
    if type(thing) in _SCALARS:
        return True
    if type(thing) is dict:
        return all(_is_data(key) and _is_data(value) for key, value in thing.items())
    return type(thing) in _CONTAINERS and all(map(_is_data, thing))


def _state(thing: Any) -> dict[str, Any]:
    state = dict(getattr(thing, "__dict__", {}))
    for kind in type(thing).__mro__:
        slots = vars(kind).get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            if hasattr(thing, name) and name not in ("__dict__", "__weakref__"):
                state[name] = getattr(thing, name)
    return state


def _file(filename: str) -> tuple[ast.Module, list[str]]:
    lines = linecache.getlines(filename)
    if not lines:
        raise NoSource(f"the source of {filename} is not to be had")
    return _parse("".join(lines), filename), lines


@functools.lru_cache(maxsize=16)
def _parse(text: str, filename: str) -> ast.Module:
    try:
        return ast.parse(text, filename)
    except SyntaxError as reason:
        raise NoSource(f"the source of {filename} changed since it was imported: {reason}") from None


def _future_flags(tree: ast.Module) -> int:
    """How the file's ``from __future__`` lines change what is compiled, in numbers that all versions share."""
    names = [
        item.name
        for node in tree.body
        if isinstance(node, ast.ImportFrom) and node.module == "__future__"
        for item in node.names
    ]
    return sum({getattr(__future__, name).compiler_flag for name in names})


def _file_of(kind: type, names: dict[str, Any]) -> str:
    for method in _own_methods(kind):
        return method.__code__.co_filename
    filename = names.get("__file__")
    if not isinstance(filename, str):
        raise NoSource(f"the source of class {kind.__qualname__} is not to be had")
    return filename


def _find_function(tree: ast.Module, code: types.CodeType) -> ast.stmt | ast.expr:
    """The statement or lambda that a code object was compiled from."""
    found: list[ast.stmt | ast.expr] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name == code.co_name:
            if code.co_firstlineno == min([node.lineno, *(item.lineno for item in node.decorator_list)]):
                found.append(node)
        elif isinstance(node, ast.Lambda) and code.co_name == "<lambda>" and node.lineno == code.co_firstlineno:
            found.append(node)
    if len(found) > 1:
        places = [(line, column) for line, _, column, _ in code.co_positions() if line is not None and column]
        inside = [
            node
            for node in found
            if places and all((node.lineno, node.col_offset) <= place <= _end(node) for place in places)
        ]
        found = sorted(inside, key=lambda node: (_end(node)[0] - node.lineno, _end(node)[1] - node.col_offset))[:1]
    if len(found) != 1:
        raise NoSource(f"the source of {code.co_name} is not in {code.co_filename}:{code.co_firstlineno}")
    return found[0]


def _end(node: ast.stmt | ast.expr) -> tuple[int, int]:
    return node.end_lineno or 0, node.end_col_offset or 0


def _find_class(tree: ast.Module, kind: type) -> ast.ClassDef:
    path = [name for name in kind.__qualname__.split(".") if name != "<locals>"]
    level: list[ast.AST] = [tree]
    for name in path:
        level = [
            node
            for outer in level
            for node in _statements(outer)
            if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and node.name == name
        ]
    found = [node for node in level if isinstance(node, ast.ClassDef)]
    if not found:
        raise NoSource(f"the source of class {kind.__qualname__} was not found")
    return found[-1]  # of several definitions the last one counts


def _statements(outer: ast.AST) -> Iterator[ast.AST]:
    """What is inside, down to the next function or class."""
    for node in ast.iter_child_nodes(outer):
        yield node
        if not isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield from _statements(node)


def _lines_of(lines: list[str], node: ast.stmt, *, decorators: bool = False) -> str:
    first = node.lineno
    if decorators and isinstance(node, ast.ClassDef):
        first = min([first, *(item.lineno for item in node.decorator_list)])
    return "".join(lines[first - 1 : node.end_lineno]).rstrip("\n") + "\n"


def global_names(code: types.CodeType) -> Iterator[str]:
    """Names that code, and code inside it, looks up as globals."""
    for instruction in dis.get_instructions(code):
        if instruction.opname in ("LOAD_GLOBAL", "LOAD_NAME"):
            yield instruction.argval
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from global_names(constant)


def _names_in(node: ast.AST) -> Iterator[str]:
    return (item.id for item in ast.walk(node) if isinstance(item, ast.Name))


def _statement_names(node: ast.ClassDef) -> list[str]:
    """Names that executing the class statement needs: all but those inside its functions' bodies."""
    names: list[str] = []

    def visit(item: ast.AST) -> None:
        if isinstance(item, ast.Name):
            names.append(item.id)
        for part in ast.iter_child_nodes(item):
            if isinstance(item, ast.FunctionDef | ast.AsyncFunctionDef) and part in item.body:
                continue
            visit(part)

    visit(node)
    return sorted(set(names))


def _own_methods(kind: type) -> Iterator[types.FunctionType]:
    """The functions that the class statement itself defines; a dataclass or an enum gets others from elsewhere."""
    for value in vars(kind).values():
        inner = getattr(value, "__func__", getattr(value, "fget", value))
        own = isinstance(inner, types.FunctionType) and inner.__globals__.get("__name__") == kind.__module__
        if own and inner.__code__.co_filename != "<string>":
            yield inner


def _closure_names(kind: type) -> dict[str, Any]:
    local: dict[str, Any] = {}
    for method in _own_methods(kind):
        for name, cell in zip(method.__code__.co_freevars, method.__closure__ or (), strict=True):
            if name != "__class__":
                local[name] = cell.cell_contents
    return local
