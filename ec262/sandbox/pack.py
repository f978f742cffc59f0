"""A program to bytes: what a foreman ships and a worker's child loads.

The blob is a list of parts (see `ec262.protocol.framing`): a JSON header (format, Python), a pickle by value made with
cloudpickle, the source, and for a program that an executor maps what that executor needs.
"""

from __future__ import annotations

import functools
import io
import json
import pickle
import random
import sys
import types
from collections.abc import Iterable, Mapping
from typing import Any, Final

import cloudpickle.cloudpickle as cloudpickle

from ec262.errors import ProgramError, ValueNotPortable
from ec262.mapreduce.program import SHIPPED, Program, name_of
from ec262.protocol.canonical import encode_value
from ec262.protocol.framing import frame_parts
from ec262.sandbox import facade
from ec262.sandbox.executor_program import ExecutorMapper, call_of
from ec262.sandbox.policy import C_HOMES, STANDARD_MODULES
from ec262.sandbox.rebuild import fill_cached
from ec262.sandbox.source import NoSource, global_names, recipe_of
from ec262.sandbox.unpack import FORMAT, Loader

DEFAULT_ALLOWED: Final = STANDARD_MODULES | {"numpy"}
_RANDOM_NAMES: Final = frozenset(random.__all__)


class NotShippable(ProgramError):
    """Something the program's functions use cannot travel to a worker; the message names it and where it is used."""


def pack_program(program: Program, *, allowed: Iterable[str] = DEFAULT_ALLOWED) -> bytes:
    """The portable form of a program: functions of the user's own modules by value.

    Args:
        program: the functions.
        allowed: modules that workers are expected to let a program import.

    Returns:
        A blob for `load_program`; equal for equal functions within one process.

    Raises:
        NotShippable: names what cannot travel, and which function uses it.
        ValueNotPortable: a parameter that cannot travel; names it.
    """
    functions = {name: getattr(program, name) for name in SHIPPED}
    functions["params"] = params = _portable_params(program.params)
    header: dict[str, Any] = {"format": FORMAT, "python": [sys.implementation.name, *sys.version_info[:2]]}
    more: list[bytes] = []
    if isinstance(program.mapper, ExecutorMapper):
        more = [call_of(program, params)]
        functions["mapper"] = None
    try:
        forbidden = _blame(functions, frozenset(allowed), modules_only=True)
        if forbidden:
            raise NotShippable(forbidden)
        pickled = _dump(functions, frozenset(allowed))
    except NotShippable as reason:
        raise NotShippable(_blame(functions, frozenset(allowed)) or str(reason)) from None
    except Exception as reason:
        message = _blame(functions, frozenset(allowed)) or f"the program cannot be shipped: {reason}"
        raise NotShippable(message) from reason
    try:
        recipe = recipe_of(functions, is_users_module)
    except (NoSource, RecursionError) as reason:
        recipe = {"why": str(reason)}
    return frame_parts([json.dumps(header, sort_keys=True).encode(), pickled, json.dumps(recipe).encode(), *more])


def load_program(blob: bytes) -> Program:
    """Loads a packed program WITHOUT any confinement: inside the child, or for a program one has packed oneself.

    Raises:
        Malformed: not what `pack_program` makes.
    """
    return Loader(None, cloudpickle).prepare(blob)(b"")


def _portable_params(params: Any) -> dict[str, Any]:
    """The parameters, in one order whatever the order they were given in."""
    if not isinstance(params, Mapping):
        raise ValueNotPortable(f"params= takes a dictionary of names and values, not a {type(params).__name__}")
    for name, value in params.items():
        if type(name) is not str:
            raise ValueNotPortable(f"params: {name!r:.80} is not a name; parameters have names of type str")
        encode_value(value, where=f"parameter {name!r:.80}")
    return {name: params[name] for name in sorted(params)}


def _dump(thing: object, allowed: frozenset[str]) -> bytes:
    with io.BytesIO() as file:
        _Pickler(file, allowed).dump(thing)
        return file.getvalue()


class _Pickler(cloudpickle.Pickler):  # type: ignore[misc]
    """cloudpickle, with the user's own modules always by value and no identity that differs from run to run."""

    def __init__(self, file: io.BytesIO, allowed: frozenset[str], *, trial: bool = False) -> None:
        super().__init__(file, protocol=5)
        self._allowed = allowed
        self._trial = trial  # modules stay shut, or trials would start further trials without end

    def reducer_override(self, obj: Any) -> Any:
        if isinstance(obj, type):
            if obj.__module__ == "builtins":  # including those without a name there, such as the type of code
                return super().reducer_override(obj)
            if _ships_by_value(obj):
                return _without_identity(cloudpickle._dynamic_class_reduce(obj))
            self._check(obj.__module__, obj.__qualname__)
        elif isinstance(obj, types.FunctionType):
            if _ships_by_value(obj):
                return self._dynamic_function_reduce(obj)
            self._check(obj.__module__, obj.__qualname__)
            return NotImplemented
        elif isinstance(obj, types.ModuleType):
            if is_users_module(obj.__name__):
                # As state, after the module is known to the pickle: modules import one another.
                names = {} if self._trial else _portable_names(obj, self._allowed)
                return cloudpickle.dynamic_subimport, (obj.__name__, {}), names
            # Not checked: the standard library's own closures, such as a dataclass's repr, refer to modules too.
            return cloudpickle.subimport, (obj.__name__,)
        elif isinstance(obj, _Skeleton):
            return cloudpickle._make_function, self._function_getnewargs(obj.function)
        elif isinstance(obj, functools._lru_cache_wrapper):
            return _reduce_cached(obj)
        elif isinstance(obj, (types.MethodType, types.BuiltinMethodType)):
            owner = obj.__self__
            if owner is getattr(random, "_inst", None) and obj.__name__ in _RANDOM_NAMES:
                # `from random import choice`: by name, or the foreman's state would travel with it.
                return getattr, (random, obj.__name__)
            if isinstance(owner, types.ModuleType):
                self._check(owner.__name__, obj.__name__)
        return super().reducer_override(obj)

    def _dynamic_function_reduce(self, func: types.FunctionType) -> Any:
        build, arguments, (state, slots), *rest = super()._dynamic_function_reduce(func)
        # cloudpickle overlooks the names that a class statement inside the function uses.
        for name in global_names(func.__code__):
            if name in func.__globals__:
                slots["__globals__"].setdefault(name, func.__globals__[name])
        slots["__globals__"].pop("__builtins__", None)  # the child has its own
        return (build, arguments, (state, slots), *rest)

    def _check(self, module: str | None, name: str) -> None:
        home = C_HOMES.get(module or "builtins", module or "builtins")
        if home == facade.HOME and name in facade.NAMES:
            return
        if (home, name) == (fill_cached.__module__, fill_cached.__name__):
            return
        if not _is_allowed(home, self._allowed) and (home, name) != ("_thread", "get_ident"):
            raise NotShippable(f"{home}.{name} is not available in the sandbox")


class _Skeleton:
    """Stands for a function without its globals and closure, which come later: it may be among them itself."""

    def __init__(self, function: types.FunctionType) -> None:
        self.function = function


def _reduce_cached(cached: Any) -> Any:
    """A function behind ``functools.lru_cache``, which cannot be pickled by value otherwise; its cache stays here."""
    parameters = cached.cache_parameters()
    skeleton = _Skeleton(cached.__wrapped__)
    arguments = (skeleton, parameters["maxsize"], parameters["typed"], functools._CacheInfo)
    state = (cloudpickle._function_setstate, skeleton, cloudpickle._function_getstate(cached.__wrapped__))
    return functools._lru_cache_wrapper, arguments, state, None, None, fill_cached


def _is_allowed(module: str, allowed: frozenset[str]) -> bool:
    root = module.partition(".")[0]
    # Of EC262 there is the package's own name alone, with what a running task may ask (see `facade`).
    return module in allowed or module == "ec262" or root in allowed or root in ("builtins", "types", "cloudpickle")


@functools.lru_cache(maxsize=1024)
def is_users_module(name: str | None) -> bool:
    """Whether a module is the user's own: neither Python's, nor installed, nor EC262's."""
    if name is None or name == "__main__":
        return True
    root = name.partition(".")[0]
    if root == "ec262":
        return name.startswith(("ec262.programs.", "ec262.sandbox.selftest"))
    if root in sys.stdlib_module_names or root in DEFAULT_ALLOWED or root == "cloudpickle":
        return False
    if name not in sys.modules:
        return True  # made on the fly; nobody could import it
    file = getattr(sys.modules[name], "__file__", None)
    return file is not None and file.endswith(".py") and "-packages" not in file


def _ships_by_value(thing: Any) -> bool:
    return is_users_module(getattr(thing, "__module__", None)) or cloudpickle._lookup_module_and_qualname(thing) is None


def _without_identity(reduced: Any) -> Any:
    """Takes out the random id by which cloudpickle would merge a class with an earlier load of it.

    Merging is what must not happen: each task gets classes of its own. And random bytes differ between equal programs.
    """
    if not isinstance(reduced, tuple):
        return reduced
    build, arguments, *rest = reduced
    if build in (cloudpickle._make_skeleton_class, cloudpickle._make_skeleton_enum):
        *fields, _, extra = arguments
        arguments = (*fields, None, extra)
    return (build, arguments, *rest)


def _portable_names(module: types.ModuleType, allowed: frozenset[str]) -> dict[str, Any]:
    """What of a user's module travels with it: leaves out what cannot, such as open files and foreign modules."""
    return {
        name: thing
        for name, thing in vars(module).items()
        if name in ("__name__", "__package__", "__doc__")
        or (not name.startswith("__") and _is_portable(thing, module.__name__, allowed))
    }


def _is_portable(thing: Any, module: str, allowed: frozenset[str]) -> bool:
    if isinstance(thing, types.ModuleType):
        return is_users_module(thing.__name__) or _is_allowed(thing.__name__, allowed)
    if getattr(thing, "__module__", None) == module:
        return True
    try:
        with io.BytesIO() as file:
            _Pickler(file, allowed, trial=True).dump(thing)
    except Exception:
        return False
    return True


def _blame(functions: dict[str, Any], allowed: frozenset[str], *, modules_only: bool = False) -> str:
    """Which variable of which function cannot travel, by trying each alone; or which module may not be imported."""
    for role, function in functions.items():
        found = _culprit(function, f"{role} {name_of(function)}", allowed, set(), modules_only)
        if found:
            return found
    return ""


def _culprit(function: Any, where: str, allowed: frozenset[str], seen: set[int], modules_only: bool) -> str:
    if function is None or id(function) in seen:
        return ""
    seen.add(id(function))
    if not isinstance(function, types.FunctionType):
        return "" if modules_only else _complaint(function, where, allowed)
    code = function.__code__
    place = f"{where} ({code.co_filename}:{code.co_firstlineno})"
    variables: list[tuple[str, Any]] = [
        (f"global variable {name!r}", function.__globals__[name])
        for name in cloudpickle._extract_code_globals(code)
        if name in function.__globals__ and name != "__builtins__"
    ]
    for name, cell in zip(code.co_freevars, function.__closure__ or (), strict=True):
        try:
            variables.append((f"variable {name!r}", cell.cell_contents))
        except ValueError:
            continue  # not bound yet
    variables += [("a default argument", item) for item in function.__defaults__ or ()]
    for what, value in variables:
        if isinstance(value, types.FunctionType) and _ships_by_value(value):
            found = _culprit(value, f"{where} calls {value.__name__}, which", allowed, seen, modules_only)
        elif modules_only and not isinstance(value, types.ModuleType):
            continue
        else:
            found = _complaint(value, f"{place} uses {what}, which", allowed)
        if found:
            return found
    return ""


def _complaint(value: Any, where: str, allowed: frozenset[str]) -> str:
    if isinstance(value, types.ModuleType):
        if is_users_module(value.__name__) or _is_allowed(value.__name__, allowed):
            return ""
        return f"{where} cannot be shipped: module {value.__name__} is not available in the sandbox"
    try:
        _dump(value, allowed)
    except NotShippable as reason:
        return f"{where} cannot be shipped: {reason}"
    except (pickle.PicklingError, TypeError, ValueError, AttributeError, RecursionError) as reason:
        return f"{where} is a {type(value).__module__}.{type(value).__qualname__} and cannot be shipped: {reason}"
    return ""
