"""Where two results of a task differ, in words. Pure."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from ec262.errors import Malformed
from ec262.mapreduce.blocks import batches_of, pairs_of
from ec262.protocol.canonical import decode_value, sort_key
from ec262.protocol.framing import unframe_parts


def first_unlike(one: Sequence[list[bytes]], two: Sequence[list[bytes]]) -> int | None:
    """Which task's results differ by more than the last digits of a number; compared as far as both go."""
    for at, (left, right) in enumerate(zip(one, two, strict=False)):
        if left != right and not _alike([_records([part]) for part in left], [_records([part]) for part in right]):
            return at
    return None


def _records(result: Sequence[bytes]) -> list[list[Any]]:
    """The records of a map or reduce task's result, all parts; what it counted stands last."""
    found: list[list[Any]] = []
    for part in result:
        if part.startswith(b"{"):
            counts = decode_value(part)
            found += [[f"counter {name}", count] for name, count in counts.items()]
        elif part and unframe_parts(part)[0] == b"G":
            for keys, groups in batches_of(part):
                found += [[key, values] for key, values in zip(keys, groups, strict=True)]
        else:
            found += [[key, value] for key, value in pairs_of(part)]
    return found


def _alike(one: Any, two: Any) -> bool:
    if type(one) is not type(two):
        return {type(one), type(two)} == {int, float} and math.isclose(one, two, rel_tol=1e-9)
    if isinstance(one, float):
        return math.isclose(one, two, rel_tol=1e-9, abs_tol=1e-12)
    if isinstance(one, (list, tuple)):
        return len(one) == len(two) and all(map(_alike, one, two))
    if isinstance(one, dict):
        return one.keys() == two.keys() and all(_alike(value, two[key]) for key, value in one.items())
    return bool(one == two)


def difference(
    one: Sequence[bytes],
    two: Sequence[bytes],
    name_one: str,
    name_two: str,
    same: Callable[[Any, Any], bool] = _alike,
) -> str:
    """The first record in which two results of a task differ, in words."""
    try:
        left, right = ({_identity(key): (key, value) for key, value in _records(result)} for result in (one, two))
    except Malformed:
        return "bytes that are no records"
    if left == right and [len(part) for part in one] != [len(part) for part in two]:
        return "the same records in other partitions"
    for place in sorted({**left, **right}):
        mine, yours = left.get(place), right.get(place)
        if mine is None or yours is None:
            key = (mine or yours or (None,))[0]
            has, lacks = (name_one, name_two) if yours is None else (name_two, name_one)
            value = (mine or yours or (None, None))[1]
            return f"key {_show(key)} {has} with {_show(value)}, {lacks} not at all"
        if not same(mine[1], yours[1]):
            return f"for key {_show(mine[0])} {name_one} {_contrast(mine[1], yours[1])}, {name_two} " + _contrast(
                yours[1], mine[1]
            )
    return "the same records in another order"


def equal(one: Any, two: Any) -> bool:
    return repr(one) == repr(two)  # 1 is not 1.0 here, nor 0.0 -0.0


def _identity(key: Any) -> tuple[Any, str]:
    return sort_key(key), type(key).__name__


def _contrast(value: Any, other: Any) -> str:
    """A value, where it is long from the first place on in which it differs from the other."""
    text = repr(value)
    if len(text) > 120 and isinstance(value, list) and isinstance(other, list):
        at = next((at for at, (one, two) in enumerate(zip(value, other, strict=False)) if one != two), len(other))
        if at < len(value):
            return f"{_show(value[at])} (place {at} of {len(value)})"
        return f"a list of {len(value)}"
    return _show(value)


def _show(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 160 else text[:157] + "..."
