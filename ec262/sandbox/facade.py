"""Inside: the module ``ec262`` as a program sees it: `counter`, `param` and `input_name`, and nothing else.

Made anew for each task from the code of `ec262.mapreduce.context`: functions with globals of their own, so that neither
a changed class nor a changed global of one task is there in the next, and no other module of EC262 hangs on them. As
all of the language layer this is for honest programs; frames and the object graph lead around it.
"""

from __future__ import annotations

import types
from typing import Any, Final, NoReturn

from ec262.mapreduce import context

HOME: Final = context.__name__
"""Where pickles and recipes say that the names live."""
NAMES: Final = ("counter", "input_name", "param")
FILE: Final = "<ec262>"
"""File name in tracebacks: such frames are not the program's, and the volunteer's paths are nobody's business."""


def make_module(builtins: dict[str, Any], not_available: type[Exception]) -> types.ModuleType:
    """The module, fresh.

    Args:
        builtins: for its functions.
        not_available: what asking it for any other name raises.
    """
    space: dict[str, Any] = {"__name__": "ec262", "__builtins__": builtins, "_not_available": not_available}
    module = types.ModuleType("ec262", "What a running task may ask and note down.")
    for name in NAMES:
        module.__dict__[name] = _copy(getattr(context, name), space)
    module.__dict__["__all__"] = list(NAMES)
    module.__dict__["__getattr__"] = types.FunctionType(_anonymous(_missing.__code__), space)
    return module


_not_available: type[Exception] = ImportError  # where this module's own functions are not copied


def _missing(name: str) -> NoReturn:
    if name.startswith("__") and name.endswith("__"):
        raise AttributeError(f"module 'ec262' has no attribute {name!r}")
    # No AttributeError: `from ec262 import protocol` would look in sys.modules then.
    raise _not_available(f"ec262.{name} is not available in the sandbox: only counter, input_name and param are")


def _copy(thing: Any, space: dict[str, Any]) -> Any:
    """A function or class of the context with the globals it uses copied into `space`; other things as they are."""
    if getattr(thing, "__module__", None) != HOME:
        return thing
    if isinstance(thing, types.FunctionType):
        code = _anonymous(thing.__code__)
        made = types.FunctionType(code, space, thing.__name__, thing.__defaults__)
        made.__kwdefaults__, made.__doc__ = thing.__kwdefaults__, thing.__doc__
        made.__module__ = "ec262"
        for name in code.co_names:
            if name not in space and name in thing.__globals__:
                space[name] = None  # functions may name one another
                space[name] = _copy(thing.__globals__[name], space)
        return made
    if isinstance(thing, type):
        slots = vars(thing).get("__slots__", ())
        names = {
            name: _copy(value, space)
            for name, value in vars(thing).items()
            if name not in slots and name not in ("__dict__", "__weakref__")
        }
        return type(thing.__name__, thing.__bases__, {**names, "__module__": "ec262"})
    return thing


_anonymous_codes: dict[types.CodeType, types.CodeType] = {}


def _anonymous(code: types.CodeType) -> types.CodeType:
    made = _anonymous_codes.get(code)
    if made is None:
        made = _anonymous_codes[code] = code.replace(co_filename=FILE)
    return made
