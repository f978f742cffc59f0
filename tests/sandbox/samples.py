"""Functions of every kind a job may be written in. Each maps (key, value) to pairs; `expected` runs them here."""

from __future__ import annotations

import collections
import dataclasses
import enum
import functools
import math
import operator
import random
import re
from collections import Counter
from collections.abc import Callable, Iterator
from decimal import Decimal
from random import choice
from typing import Any

from tests.sandbox import sample_helpers as helpers
from tests.sandbox.sample_helpers import shout

Pairs = Any
FACTOR = 3
TABLE: dict[Any, Any] = {"a": 1, "b": [1, 2, {"c": (1, 2)}], 3: {4, 5}}
WORD = re.compile(r"[a-z]+")


def plain(key: Any, value: Any) -> Pairs:
    return [(key, value * 2)]


def generator(key: Any, value: Any) -> Pairs:
    for word in str(value).split():
        yield word, 1


def with_constants(key: Any, value: Any) -> Pairs:
    return [(key, [FACTOR, TABLE["b"], sorted(TABLE[3]), math.pi])]


def _helper(value: Any) -> Any:
    return _second_helper(value) + "!"


def _second_helper(value: Any) -> Any:
    return f"{value}?"


def with_helpers(key: Any, value: Any) -> Pairs:
    return [(key, _helper(value))]


def with_another_module(key: Any, value: Any) -> Pairs:
    return [(key, helpers.whisper(value)), ("s", shout(value)), ("c", helpers.LEVEL), ("o", helpers.around(value))]


def recursive(key: Any, value: Any) -> Pairs:
    def fibonacci(n: int) -> int:
        return n if n < 2 else fibonacci(n - 1) + fibonacci(n - 2)

    return [(key, fibonacci(12)), ("f", _factorial(20))]


def _factorial(n: int) -> int:
    return 1 if n < 2 else n * _factorial(n - 1)


def _even(n: int) -> bool:
    return n == 0 or _odd(n - 1)


def _odd(n: int) -> bool:
    return n != 0 and _even(n - 1)


def mutually_recursive(key: Any, value: Any) -> Pairs:
    return [(key, [_even(10), _odd(7), _even(3)])]


def _make_closure(step: int) -> Callable[[Any, Any], Pairs]:
    seen = [step]

    def closure(key: Any, value: Any) -> Pairs:
        nonlocal step
        step += 1
        seen.append(step)
        return [(key, list(seen))]

    return closure


closure = _make_closure(5)
anonymous = lambda key, value: [(key, len(str(value)) + FACTOR)]  # noqa: E731
two_on_a_line = (lambda k, v: [(k, 1)], lambda k, v: [(k, 2)])


def _with_prefix(prefix: str, key: Any, value: Any, *, suffix: str = "") -> Pairs:
    return [(key, f"{prefix}{value}{suffix}")]


partial = functools.partial(_with_prefix, "<", suffix=">")


class Base:
    kind = "base"

    def __init__(self, size: int) -> None:
        self.size = size

    def describe(self) -> str:
        return f"{self.kind}:{self.size}"


class Derived(Base):
    kind = "derived"

    def describe(self) -> str:
        return super().describe() + f" x{FACTOR}"

    @property
    def twice(self) -> int:
        return self.size * 2

    @staticmethod
    def constant() -> int:
        return FACTOR

    @classmethod
    def make(cls, size: int) -> Derived:
        return cls(size)

    def map(self, key: Any, value: Any) -> Pairs:
        return [(key, [self.describe(), self.twice, self.constant(), value])]


def with_classes(key: Any, value: Any) -> Pairs:
    thing = Derived.make(7)
    return [(key, [thing.describe(), thing.twice, isinstance(thing, Base)])]


bound_method = Derived(4).map


@dataclasses.dataclass(frozen=True, order=True)
class Point:
    x: int
    y: int = 2
    tags: list[str] = dataclasses.field(default_factory=list, compare=False)


def with_dataclass(key: Any, value: Any) -> Pairs:
    point = Point(1)
    moved = dataclasses.replace(point, y=9)
    return [(key, [repr(moved), point < moved, dataclasses.asdict(ORIGIN)])]


ORIGIN = Point(0, 0, ["o"])


def with_local_dataclass(key: Any, value: Any) -> Pairs:
    @dataclasses.dataclass
    class Local:
        x: int = FACTOR

        def more(self) -> int:
            return self.x + 1

    return [(key, [repr(Local(2)), Local().more()])]


class Colour(enum.Enum):
    RED = 1
    GREEN = 2


def with_enum(key: Any, value: Any) -> Pairs:
    return [(key, [Colour(2).name, Colour.RED.value, DEFAULT_COLOUR is Colour.GREEN])]


DEFAULT_COLOUR = Colour.GREEN


def with_namedtuple(key: Any, value: Any) -> Pairs:
    Inner: Any = collections.namedtuple("Inner", "a b")
    return [(key, list(Inner(1, 2)))]


@functools.cache
def _slow(n: int) -> int:
    return n if n < 2 else _slow(n - 1) + _slow(n - 2)


def with_cache(key: Any, value: Any) -> Pairs:
    return [(key, _slow(60))]


def _twice(function: Callable[[Any, Any], Pairs]) -> Callable[[Any, Any], Pairs]:
    @functools.wraps(function)
    def wrapper(key: Any, value: Any) -> Pairs:
        return [pair for _ in range(2) for pair in function(key, value)]

    return wrapper


@_twice
def decorated(key: Any, value: Any) -> Pairs:
    return [(key, "wrapped")]


def with_defaults(key: Any, value: Any, extra: Any = (1, FACTOR), *, named: Any = "n") -> Pairs:
    return [(key, [list(extra), named])]


def with_regex(key: Any, value: Any) -> Pairs:
    return [(word, 1) for word in WORD.findall("some words here")]


def with_standard_library(key: Any, value: Any) -> Pairs:
    counts = Counter("abracadabra").most_common(2)
    return [(key, [list(map(list, counts)), str(Decimal("1.10") + 1), functools.reduce(operator.add, [1, 2, 3])])]


def with_random(key: Any, value: Any) -> Pairs:
    random.seed(4)
    return [(key, [random.randint(1, 1000), choice("abcdef"), random.Random(9).random()])]


def with_walrus_and_match(key: Any, value: Any) -> Pairs:
    if (size := len(str(value))) > 1:
        match value:
            case str() as text:
                return [(key, [size, text])]
    return [(key, size)]


class Callable_:
    """An object that is called."""

    def __init__(self, times: int) -> None:
        self.times = times

    def __call__(self, key: Any, value: Any) -> Pairs:
        return [(key, str(value) * self.times)]


callable_object = Callable_(3)


def with_comprehensions(key: Any, value: Any) -> Pairs:
    return [(key, [{x: [y * FACTOR for y in range(x)] for x in range(3)}, sorted({z % 2 for z in range(9)})])]


def with_try(key: Any, value: Any) -> Pairs:
    try:
        raise _Trouble("x")
    except _Trouble as trouble:
        return [(key, str(trouble))]
    finally:
        pass


class _Trouble(Exception):
    pass


def with_inner_import(key: Any, value: Any) -> Pairs:
    import hashlib  # noqa: PLC0415
    from datetime import datetime  # noqa: PLC0415

    moment = datetime.strptime("2020-02-03", "%Y-%m-%d")
    return [(key, [hashlib.sha256(b"x").hexdigest()[:8], moment.isoformat(), isinstance(moment, datetime)])]


def _numbers() -> Iterator[int]:
    yield from range(3)


def with_generators(key: Any, value: Any) -> Pairs:
    yield from ((number, key) for number in _numbers())


_ALL: list[Callable[[Any, Any], Pairs]] = [
    plain,
    generator,
    with_constants,
    with_helpers,
    with_another_module,
    recursive,
    mutually_recursive,
    with_classes,
    with_dataclass,
    with_local_dataclass,
    with_enum,
    with_namedtuple,
    with_cache,
    decorated,
    with_defaults,
    with_regex,
    with_standard_library,
    with_random,
    with_walrus_and_match,
    with_comprehensions,
    with_try,
    with_inner_import,
    with_generators,
]
KINDS: dict[str, Callable[[Any, Any], Pairs]] = {function.__name__: function for function in _ALL} | {
    "closure": closure,
    "anonymous": anonymous,
    "partial": partial,
    "bound_method": bound_method,
    "callable_object": callable_object,
    "first_of_two_lambdas": two_on_a_line[0],
    "second_of_two_lambdas": two_on_a_line[1],
}
