"""Inside the child: builds functions from a recipe of source (see `ec262.sandbox.source`)."""

from __future__ import annotations

import base64
import functools
import importlib
import io
import linecache
import sys
import types
from collections.abc import Callable
from typing import Any, Protocol

from ec262.errors import Malformed, ProgramError

Node = dict[str, Any]
_CONTAINERS: dict[str, Callable[..., Any]] = {"tuple": tuple, "list": list, "set": set, "frozenset": frozenset}


class Names(Protocol):
    """Where names of modules lead, as `language.Language` says it."""

    def find(self, module: str, name: str) -> Any: ...
    def import_or_deny(self, name: str) -> Any: ...


class PlainNames:
    """Names without the language layer."""

    def find(self, module: str, name: str) -> Any:
        """The real thing."""
        thing: Any = importlib.import_module(module)
        for part in name.split("."):
            thing = getattr(thing, part)
        return thing

    def import_or_deny(self, name: str) -> Any:
        """The real module."""
        return importlib.import_module(name)


class Recipe:
    """A recipe, compiled once; `build` makes fresh functions of it.

    Args:
        recipe: as `source.recipe_of` made it, from JSON.
    """

    def __init__(self, recipe: Node) -> None:
        self._nodes: list[Node] = recipe["nodes"]
        self._roots: dict[str, int] = recipe["roots"]
        self._spaces: dict[str, dict[str, int]] = recipe["spaces"]
        self._codes = [_compile(node) if node["k"] in ("function", "class") else None for node in self._nodes]

    def build(self, names: Names, builtins: Any, unpickler: Callable[[io.BytesIO], Any]) -> dict[str, Any]:
        """Functions by role, with globals of their own."""
        work = _Build(self._nodes, self._codes, names, builtins, unpickler)
        made = {role: work.get(number) for role, number in self._roots.items()}
        for space, contents in self._spaces.items():
            into = work.space(space)
            for name, number in contents.items():
                into[name] = work.get(number)
        work.finish()
        return made


def announce(name: object) -> None:
    """Puts an empty module of this name where ``dataclasses`` looks for the one a class was defined in."""
    if isinstance(name, str) and name not in sys.modules:
        sys.modules[name] = types.ModuleType(name)


def fill_cached(wrapper: Any, state: tuple[Callable[..., Any], types.FunctionType, Any]) -> None:
    """The second half of building a function behind ``functools.lru_cache``; named by pickles."""
    fill, function, contents = state
    fill(function, contents)
    functools.update_wrapper(wrapper, function)


def remember_lines(recipe: Node) -> None:
    """Lets tracebacks show the program's lines, which no file in here has."""
    files: dict[str, dict[int, str]] = {}
    for node in recipe.get("nodes", ()):
        if node["k"] in ("function", "class"):
            for offset, line in enumerate(node["text"].splitlines(keepends=True)):
                files.setdefault(node["file"], {})[node["line"] + offset] = line
    for name, numbered in files.items():
        lines = [numbered.get(number, "\n") for number in range(1, max(numbered) + 1)]
        linecache.cache[name] = (1, None, lines, name)


class _Build:
    """One building of a recipe's things."""

    def __init__(
        self,
        nodes: list[Node],
        codes: list[types.CodeType | None],
        names: Names,
        builtins: Any,
        unpickler: Callable[[io.BytesIO], Any],
    ) -> None:
        self._nodes = nodes
        self._codes = codes
        self._names = names
        self._builtins = builtins
        self._unpickler = unpickler
        self._made: dict[int, Any] = {}
        self._spaces: dict[str, dict[str, Any]] = {}
        self._later: list[Callable[[], None]] = []

    def space(self, name: str) -> dict[str, Any]:
        """The globals of a module of the user's."""
        found = self._spaces.get(name)
        if found is None:
            found = self._spaces[name] = {"__name__": name, "__builtins__": self._builtins}
            announce(name)
        return found

    def finish(self) -> None:
        """Fills in what may go round in circles: cells, defaults, attributes."""
        while self._later:
            self._later.pop()()

    def get(self, number: int) -> Any:
        """The thing a node stands for."""
        if number in self._made:
            return self._made[number]
        node = self._nodes[number]
        maker = getattr(self, f"_make_{node['k']}", None)
        made = maker(node, number) if maker else self._make_container(node)
        self._made[number] = made
        return made

    def _make_data(self, node: Node, _: int) -> Any:
        return self._unpickler(io.BytesIO(base64.b64decode(node["v"]))).load()

    _make_pickle = _make_data

    def _make_container(self, node: Node) -> Any:
        return _CONTAINERS[node["k"]](self.get(item) for item in node["i"])

    def _make_dict(self, node: Node, _: int) -> Any:
        return {self.get(key): self.get(value) for key, value in node["i"]}

    def _make_list(self, node: Node, number: int) -> Any:
        self._made[number] = made = []  # a list may hold itself
        made += [self.get(item) for item in node["i"]]
        return made

    def _make_module(self, node: Node, _: int) -> Any:
        return self._names.import_or_deny(node["n"])

    def _make_namespace(self, node: Node, number: int) -> Any:
        self._made[number] = module = types.ModuleType(node["n"])
        for name, inner in node["names"].items():
            setattr(module, name, self.get(inner))
        return module

    def _make_global(self, node: Node, _: int) -> Any:
        return self._names.find(node["m"], node["n"])

    def _make_partial(self, node: Node, _: int) -> Any:
        named = {name: self.get(item) for name, item in node["n"].items()}
        return functools.partial(self.get(node["f"]), *map(self.get, node["a"]), **named)

    def _make_cached(self, node: Node, _: int) -> Any:
        return functools.lru_cache(**node["n"])(self.get(node["f"]))

    def _make_attribute(self, node: Node, _: int) -> Any:
        return getattr(self.get(node["o"]), node["n"])

    def _make_instance(self, node: Node, number: int) -> Any:
        kind = self.get(node["c"])
        self._made[number] = made = kind.__new__(kind)
        for name, value in self.get(node["s"]).items():
            object.__setattr__(made, name, value)  # also where the class is frozen
        return made

    def _make_cell(self, node: Node, number: int) -> Any:
        self._made[number] = cell = types.CellType()
        if node["v"] is not None:

            def fill() -> None:
                cell.cell_contents = self.get(node["v"])

            self._later.append(fill)
        return cell

    def _make_function(self, node: Node, number: int) -> Any:
        code = self._codes[number]
        assert code is not None
        closure = tuple(self.get(node["cells"][name]) for name in code.co_freevars)
        function = types.FunctionType(code, self.space(node["space"]), node["name"], None, closure)
        function.__qualname__ = node["qualname"]
        self._made[number] = function

        def fill() -> None:
            function.__defaults__ = tuple(self.get(item) for item in node["defaults"]) or None
            function.__kwdefaults__ = {name: self.get(item) for name, item in node["named"].items()} or None
            for name, item in node["dict"].items():
                setattr(function, name, self.get(item))

        self._later.append(fill)
        return function

    def _make_class(self, node: Node, number: int) -> Any:
        space = self.space(node["space"])
        for name, item in node["now"].items():
            if item != number:
                space.setdefault(name, self.get(item))
        code = self._codes[number]
        assert code is not None
        name, missing = node["name"], object()
        before = space.get(name, missing)
        exec(code, space)
        if node["cells"]:
            made = space.pop("__made")(**{inner: self.get(item) for inner, item in node["cells"].items()})
        else:
            made = space.pop(name)
        if before is not missing:
            space[name] = before
        made.__qualname__ = node["qualname"]
        return made


def _compile(node: Node) -> types.CodeType:
    """The code of a function, or of a function ``__made`` that makes a class, on the author's line numbers."""
    text, line, cells = node["text"], node["line"], ", ".join(node["cells"])
    try:
        if node["k"] == "class":
            return _compile_class(node, text, line, cells)
        if node["name"] == "<lambda>":
            whole = "\n" * (line - 1) + f"def __made({cells}): return ({text})\n"
        else:
            indented = text[:1] in (" ", "\t")
            # A block to be indented in stands on the line before; a definition on line 1 is never indented.
            whole = "\n" * (line - 2) + f"def __made({cells}):\n{text}" if indented else "\n" * (line - 1) + text
        code = compile(whole, node["file"], "exec", flags=node["flags"], dont_inherit=True)
    except SyntaxError as reason:
        raise ProgramError(f"the source of {node['name']} does not suit this worker's Python: {reason}") from None
    found = _code_named(code, node["name"])
    if found is None:
        raise Malformed(f"the source of {node['name']} does not define it")
    return found


def _compile_class(node: Node, text: str, line: int, cells: str) -> types.CodeType:
    if not node["cells"]:
        indented = text[:1] in (" ", "\t")
        whole = "\n" * (line - 2) + f"if True:\n{text}" if indented else "\n" * (line - 1) + text
        return compile(whole, node["file"], "exec", flags=node["flags"], dont_inherit=True)
    indent = text[: len(text) - len(text.lstrip(" \t"))]
    body = text if indent else "".join(f" {part}" for part in text.splitlines(keepends=True))
    indent = indent or " "
    whole = "\n" * max(line - 2, 0) + f"def __made({cells}):\n{body}{indent}return {node['name']}\n"
    return compile(whole, node["file"], "exec", flags=node["flags"], dont_inherit=True)


def _code_named(code: types.CodeType, name: str) -> types.CodeType | None:
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            if constant.co_name == name:
                return constant
            found = _code_named(constant, name)
            if found is not None:
                return found
    return None
