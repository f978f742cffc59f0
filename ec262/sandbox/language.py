"""The language layer inside the child: restricted builtins, an import whitelist, seeded random, no clocks.

It is there for honest authors: a clear error naming what is not available, and equal results on every replica. It is
not what keeps a stranger in (that is the kernel's part): object graphs lead around any layer written in Python.
"""

from __future__ import annotations

import builtins
import ctypes
import importlib
import sys
import types
from collections.abc import Callable, Iterable
from typing import Any, Final, NoReturn

from ec262.errors import ProgramError
from ec262.sandbox import facade

_IMMUTABLE_TYPE: Final = 1 << 8  # Py_TPFLAGS_IMMUTABLETYPE, CPython 3.10
_FLAGS_OFFSET: Final = 168  # of tp_flags in PyTypeObject on 64-bit CPython; checked against __flags__ before use


class NotAvailable(ProgramError, ImportError):
    """The program uses something that the sandbox does not have: a module, a file, a clock; change the program."""


class Denied:
    """Stands for a module or function that may not be used: passing it around is fine, using it says why not."""

    def __init__(self, what: str) -> None:
        object.__setattr__(self, "_what", what)

    def _refuse(self, *_: Any, **__: Any) -> NoReturn:
        raise NotAvailable(f"{object.__getattribute__(self, '_what')} is not available in the sandbox")

    __call__ = __iter__ = __enter__ = _refuse

    def __getattr__(self, name: str) -> NoReturn:
        self._refuse()


class Language:
    """Everything a program sees of Python, made once in the zygote; `begin` makes it fresh for a task.

    Args:
        modules: names that may be imported; each is handed out as a copy without private names and foreign modules.
        extra_modules: names (with their submodules) handed out as they are.
        internal: names that the standard library's C code imports with the job's ``__import__``.
        denied_builtins: names in ``builtins`` that raise.
        c_homes: modules written in C that pickles name, and the allowed module each belongs to.
    """

    def __init__(
        self,
        modules: Iterable[str],
        extra_modules: Iterable[str],
        internal: Iterable[str],
        denied_builtins: Iterable[str],
        c_homes: dict[str, str],
    ) -> None:
        self._pristine: dict[str, dict[str, Any]] = {}
        self._extra = tuple(extra_modules)
        self._internal = frozenset(internal)
        self._fresh: dict[str, types.ModuleType] = {}
        self._seed = b""
        self._seeded = False
        self._pickling: types.ModuleType | None = None
        self.random = _make_random(self)
        self._builtins = self._current = self._restricted_builtins(denied_builtins)
        self._c_homes = c_homes
        replaced = _replacements(self)
        for name in sorted(modules):
            try:
                real = importlib.import_module(name)
            except ImportError:
                continue  # a module this Python was built without
            self._pristine[name] = _public_names(real) | replaced.get(name, {})
        for name in self._pristine:
            parent, _, leaf = name.rpartition(".")
            if parent in self._pristine:
                self._pristine[parent].pop(leaf, None)
        _freeze_classes(self._pristine)

    def begin(self, seed: bytes) -> dict[str, Any]:
        """Forgets what the last task did to modules and builtins.

        Args:
            seed: what ``random`` and ``uuid`` derive from; equal inputs give equal seeds.

        Returns:
            The builtins for the program's functions.
        """
        if self._fresh:
            if "calendar" in self._fresh:
                sys.modules["calendar"].setfirstweekday(0)
            self._fresh.clear()
        self._seed = seed
        self._seeded = False
        fresh = self._current = self._builtins.copy()
        if self._pickling is not None:
            self._pickling.__dict__["__builtins__"] = fresh
        return fresh

    def adopt_pickling(self, cloudpickle: types.ModuleType) -> None:
        """Functions that this cloudpickle rebuilds get the restricted builtins of the current task."""
        self._pickling = cloudpickle
        # It takes builtins from its own global name; its own functions have bound the real ones already.
        cloudpickle.__dict__["__builtins__"] = self._builtins

    def import_module(self, name: str) -> types.ModuleType:
        """The module as the job may see it.

        Raises:
            NotAvailable: the name is not on the list.
        """
        known = self._fresh.get(name)
        if known is not None:
            return known
        if name == "ec262":
            module = self._fresh[name] = facade.make_module(self._current, NotAvailable)
            return module
        names = self._pristine.get(name)
        if names is None:
            return self._other_module(name)
        if name in ("random", "uuid"):
            self._seed_random()
        module = types.ModuleType(name, names.get("__doc__"))
        module.__dict__.update(names)
        self._fresh[name] = module
        parent, _, leaf = name.rpartition(".")
        if parent:
            setattr(self.import_module(parent), leaf, module)
        elif name == "collections":
            self.import_module("collections.abc")  # hosts import it with the package
        return module

    def find(self, module: str, name: str) -> Any:
        """What a pickle's global reference means here: never the real thing behind a replaced one."""
        if module == "builtins":
            return self._builtins[name] if name in self._builtins else Denied(f"function {name}")
        if (module, name) == ("_thread", "get_ident"):
            return _one_thread
        if module.partition(".")[0] == "ec262":
            known = module == facade.HOME and name in facade.NAMES
            return getattr(self.import_module("ec262"), name) if known else Denied(f"{module}.{name}")
        owner = self._c_homes.get(module, module)
        try:
            allowed: Any = self.import_module(owner)
        except NotAvailable:
            return Denied(f"{module}.{name}")
        first, *rest = name.split(".")
        # Reductions use private names of allowed modules, such as re._compile, and C homes such as _operator.
        thing = getattr(allowed, first, None) or getattr(sys.modules.get(module), first, None)
        if thing is None or isinstance(thing, types.ModuleType):
            return Denied(f"{module}.{name}")
        for part in rest:
            thing = getattr(thing, part)
        return thing

    def make_module(self, name: str, names: dict[str, Any]) -> types.ModuleType:
        """A module of the job's own, shipped by value."""
        module = types.ModuleType(name)
        module.__dict__.update(names)
        module.__dict__["__builtins__"] = self._current
        return module

    def import_or_deny(self, name: str) -> Any:
        """As `import_module`, but a module that is not available is an error only once it is used."""
        try:
            return self.import_module(name)
        except NotAvailable:
            if name == "_thread":  # a dataclass's repr asks which thread it is in
                module = types.ModuleType(name)
                module.__dict__["get_ident"] = _one_thread
                return module
            return Denied(f"module {name}")

    def _other_module(self, name: str) -> types.ModuleType:
        for allowed in self._extra:
            if name == allowed or name.startswith(allowed + "."):
                module = importlib.import_module(name)
                if allowed == "numpy" and not self._seeded:
                    self._seed_random()
                self._fresh[name] = module
                return module
        if name in self._internal:
            return types.ModuleType(name)
        raise NotAvailable(f"module {name} is not available in the sandbox", name=name)

    def _import(
        self, name: str, globals: Any = None, locals: Any = None, fromlist: Any = (), level: int = 0
    ) -> types.ModuleType:
        """The job's ``__import__``."""
        if level:
            raise NotAvailable(f"relative import of {name or '.'} is not available in the sandbox")
        leaf = self.import_module(name)
        if fromlist:
            for item in fromlist:
                inner = f"{name}.{item}"
                if inner in self._pristine and not hasattr(leaf, item):
                    self.import_module(inner)
            return leaf
        top = name.partition(".")[0]
        return leaf if top == name else self.import_module(top)

    def _seed_random(self) -> None:
        if self._seeded:
            return
        self._seeded = True
        self.random.reseed(self._seed)
        numpy_random = sys.modules.get("numpy.random")
        if numpy_random is not None:
            numpy_random.seed(list(self._seed))

    def _restricted_builtins(self, denied: Iterable[str]) -> dict[str, Any]:
        names = {name: thing for name, thing in vars(builtins).items() if name not in ("__loader__", "__spec__")}
        for name in denied:
            if name in names:
                names[name] = _refusal(f"function {name}")
        names["__import__"] = self._import
        names["print"] = _print
        return names


def _one_thread() -> int:
    return 1


def _print(*_: Any, **__: Any) -> None:
    """There is nobody to read it; honest debugging lines must not fail."""


def _refusal(what: str, why: str = "") -> Callable[..., NoReturn]:
    def refuse(*_: Any, **__: Any) -> NoReturn:
        raise NotAvailable(f"{what} is not available in the sandbox{why}")

    return refuse


def _public_names(module: types.ModuleType) -> dict[str, Any]:
    """A module's public names; modules among them are left out, or the whitelist would lead round itself."""
    listed = getattr(module, "__all__", None)
    names = listed if listed is not None else [name for name in vars(module) if not name.startswith("_")]
    public = {name: getattr(module, name) for name in names if hasattr(module, name)}
    public = {name: thing for name, thing in public.items() if not isinstance(thing, types.ModuleType)}
    for name in ("__doc__", "__all__"):
        if hasattr(module, name):
            public[name] = getattr(module, name)
    if module.__name__ == "__future__":
        public.update({name: getattr(module, name) for name in module.all_feature_names})
    return public


def _make_random(language: Language) -> Any:
    real = importlib.import_module("random")

    class Random(real.Random):  # type: ignore[misc, name-defined]
        """``random.Random``, whose unseeded state comes from the task's input."""

        def __init__(self, x: Any = None) -> None:
            super().__init__(_root.getrandbits(256) if x is None else x)

        def seed(self, a: Any = None, version: int = 2) -> None:
            super().seed(_root.getrandbits(256) if a is None else a, version)

        def __reduce__(self) -> Any:
            return Random, (0,), self.getstate()

    class Root(real.Random):  # type: ignore[misc, name-defined]
        def reseed(self, seed: bytes) -> None:
            super().seed(int.from_bytes(seed, "big"))
            shared.seed()

    _root = Root(0)
    shared = Random(0)
    _root.shared = shared
    _root.kind = Random
    return _root


def _replacements(language: Language) -> dict[str, dict[str, Any]]:
    """Names that modules get instead of their own: clocks and entropy are hidden, random is seeded."""
    no_clock = ": tasks have no clock, so that replicas agree"
    no_entropy = ": use random, which is seeded by the task's input"
    real_random = importlib.import_module("random")
    shared, kind = language.random.shared, language.random.kind
    methods = {
        name: getattr(shared, name) for name in real_random.__all__ if not isinstance(getattr(real_random, name), type)
    }
    uuid = importlib.import_module("uuid")

    def uuid4() -> Any:
        """A random UUID from the task's seed."""
        return uuid.UUID(int=shared.getrandbits(128), version=4)

    return {
        "random": methods | {"Random": kind, "SystemRandom": _refusal("random.SystemRandom", no_entropy)},
        "uuid": {
            "uuid4": uuid4,
            "uuid1": _refusal("uuid.uuid1", no_clock),
            "getnode": _refusal("uuid.getnode"),
        },
        "datetime": _clockless_datetime(no_clock),
    }


def _clockless_datetime(why: str) -> dict[str, Any]:
    real = importlib.import_module("datetime")

    class Kind(type):
        """Instances of the real class, as C code makes them, count as instances of ours."""

        def __instancecheck__(cls, thing: Any) -> bool:
            behind = vars(cls).get("_real")  # a job's own subclass has none of its own
            return isinstance(thing, behind) if behind else type.__instancecheck__(cls, thing)

        def __subclasscheck__(cls, other: type) -> bool:
            behind = vars(cls).get("_real")
            return issubclass(other, behind) if behind else type.__subclasscheck__(cls, other)

    no_today = staticmethod(_refusal("date.today", why))
    date = Kind("date", (real.date,), {"_real": real.date, "today": no_today, "__slots__": ()})
    moment = Kind(
        "datetime",
        (real.datetime,),
        {
            "_real": real.datetime,
            "__slots__": (),
            **{name: staticmethod(_refusal(f"datetime.{name}", why)) for name in ("now", "today", "utcnow")},
            "date": lambda self: date(self.year, self.month, self.day),
        },
    )
    for made in (date, moment):
        made.__module__ = "datetime"
        made.__qualname__ = made.__name__
    return {"date": date, "datetime": moment}


def _freeze_classes(modules: dict[str, dict[str, Any]]) -> None:
    """Makes the whitelisted modules' own classes immutable, as those written in C are.

    Otherwise one task could change ``string.Template.delimiter`` for the next of its unit, and replicas that batched
    differently would disagree.
    """
    if sys.implementation.name != "cpython" or sys.maxsize < 1 << 32:
        return
    for names in modules.values():
        for thing in names.values():
            if isinstance(thing, type) and not thing.__flags__ & _IMMUTABLE_TYPE:
                flags = ctypes.c_ulong.from_address(id(thing) + _FLAGS_OFFSET)
                if flags.value == thing.__flags__:
                    flags.value |= _IMMUTABLE_TYPE
