"""Canonical bytes: the same data give the same bytes on every platform and every Python.

Data travel as *pairs*, a JSON array of ``[key, value]`` arrays. JSON says None, bool, int, float, str and
list by itself; what it cannot say is an object with one member, its tag:

=========  ======================  ==========================================
Python     JSON                    note
=========  ======================  ==========================================
tuple      ``{"t": [item, ...]}``
bytes      ``{"b": "base64"}``     RFC 4648, section 4
dict       ``{"d": [[k, v], ...]}``  sorted by key as `sort_key` says
list       ``{"n": [item, 32, 32, 5]}``  of `MANY` or more equal ints or strs: the
                                   item, then its counts, all but the last 32
=========  ======================  ==========================================

No plain JSON object is ever written, so a tag cannot be mistaken for data. The standard library's encoder
is used because its output (with ``ensure_ascii``) has been the same since Python 3.6, which was checked for
doubles, big integers and lone surrogates; faster encoders disagree about floats.

Everything here is pure, and the sandbox's child imports it: standard library only.
"""

from __future__ import annotations

import base64
import binascii
import json
import math
from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from operator import lt
from typing import Any, NoReturn

from ec262.errors import Malformed, ValueNotPortable

Key = Any
"""A key: None, bool, int, float, str, bytes or a tuple of keys."""
Value = Any
"""A value: None, bool, int, float, str, bytes, or a list, tuple or dict of values."""
Pair = tuple[Key, Value]

MANY = 16
"""A list of so many equal ints or strs is written as item and counts: what mappers emit most, such as ones."""
RUN = 32
"""Most a count stands for. A larger one would let a few bytes from outside become any amount of memory."""

_PLAIN = frozenset({int, str, float, bool, type(None)})
_INT, _STR = {int}, {str}
_TEXT, _NUMBERS, _BYTES = frozenset({str}), frozenset({int, float, bool}), frozenset({bytes})
_encode = json.JSONEncoder(ensure_ascii=True, allow_nan=False, separators=(",", ":"), check_circular=False).encode


def sort_key(key: Key) -> tuple[int, Any]:
    """Order for mixed keys: None < number (True is 1) < str < bytes < tuple, then by value.

    Keys that Python holds equal (1, 1.0, True) have equal places: sorted runs can be merged by it.
    """
    kind = type(key)
    if kind is str:
        return (2, key)
    if kind is int or kind is float or kind is bool:
        return (1, key)
    if key is None:
        return (0, 0)
    if kind is bytes:
        return (3, key)
    if kind is tuple:
        return (4, tuple(sort_key(item) for item in key))
    raise ValueNotPortable(_unfit_key(key))


def sort_pairs(pairs: Iterable[Pair], *, where: str = "data") -> list[Pair]:
    """Pairs sorted by key. Keys must be distinct; cost n log n, fast where all keys are of one plain type.

    Raises:
        ValueNotPortable: something that cannot be a key; names `where`, the key and the type.
    """
    listed = list(pairs)
    if comparable({type(pair[0]) for pair in listed}):
        listed.sort(key=_first)
        return listed
    places = dict(zip(map(id, listed), _places([pair[0] for pair in listed], where), strict=True))
    listed.sort(key=lambda pair: places[id(pair)])
    return listed


def sort_keys(keys: Iterable[Key], *, where: str = "data") -> list[Key]:
    """Keys in canonical order. Raises as `sort_pairs`."""
    listed = list(keys)
    if comparable(set(map(type, listed))):
        listed.sort()
        return listed
    return [key for _, _, key in sorted(zip(_places(listed, where), range(len(listed)), listed, strict=True))]


def _places(keys: list[Key], where: str) -> list[tuple[int, Any]]:
    try:
        return [sort_key(key) for key in keys]
    except ValueNotPortable as reason:
        raise ValueNotPortable(f"{where}: {reason}") from None
    except RecursionError:
        raise ValueNotPortable(f"{where}: a key is nested too deeply") from None


def comparable(kinds: set[type]) -> bool:
    """Whether keys of these types stand in canonical order by themselves, without `sort_key`."""
    return kinds <= _TEXT or kinds <= _NUMBERS or kinds <= _BYTES


def in_order(keys: Sequence[Key]) -> bool:
    """Whether keys stand in canonical order, each once.

    Raises:
        ValueNotPortable: something that cannot be a key. RecursionError: one that is nested too deeply.
    """
    places = keys if comparable(set(map(type, keys))) else list(map(sort_key, keys))
    return all(map(lt, places, islice(places, 1, None)))


def _first(pair: Pair) -> Any:
    return pair[0]


def encode_pairs(pairs: Iterable[Pair], *, where: str = "data") -> bytes:
    """Canonical bytes of pairs in the order given (use `sort_pairs` first where the order is free).

    Args:
        pairs: the pairs; values of any depth.
        where: what the pairs are, for the error message, such as ``"mapper count_words"``.

    Raises:
        ValueNotPortable: a key or value is outside the format; names `where`, the key and the type.
    """
    given = pairs if type(pairs) is list else list(pairs)
    try:
        listed = [
            [
                key if type(key) in _PLAIN else _wire_key(key, where),
                # A list of one plain value is what a combiner leaves of most keys: it needs no look inside.
                value
                if type(value) in _PLAIN or (type(value) is list and len(value) == 1 and type(value[0]) in _PLAIN)
                else _wire(value, where, key),
            ]
            for key, value in given
        ]
        return _encode(listed).encode("ascii")
    except (ValueError, RecursionError) as reason:
        _explain_pairs(given, where, reason)


def encode_value(value: Value, *, where: str = "value") -> bytes:
    """Canonical bytes of one value. Raises `ValueNotPortable` like `encode_pairs`."""
    try:
        return _encode(_wire(value, where, None)).encode("ascii")
    except (ValueError, RecursionError) as reason:
        raise ValueNotPortable(f"{where}: {_why(reason)}") from None


def decode_value(data: bytes, *, room: int | None = None) -> Value:
    """The value that `encode_value` made bytes of.

    Args:
        room: how many items counted runs may stand for in all. A byte becomes up to 85 bytes of memory by these, of
            everything else up to 32. None: any number, for bytes that are trusted or where memory is limited.

    Raises:
        Malformed: not canonical JSON of this format (NaN, unknown tag, too deep, integer too long, ...).
    """
    # Three bytes are a count of `RUN` at most: of so few no runs become too many.
    decoder = _decoder if room is None or RUN * len(data) <= 3 * room else _decoder_of(_untag_within(room))
    try:
        return decoder.decode(data.decode("ascii"))
    except Malformed:
        raise
    except (ValueError, RecursionError) as reason:
        raise Malformed(f"not canonical JSON: {_why(reason)}") from None


def decode_pairs(data: bytes) -> list[list[Any]]:
    """The pairs that `encode_pairs` made bytes of, as ``[[key, value], ...]``.

    Raises:
        Malformed: as `decode_value`, or not an array of two-item arrays, or something that cannot be a key.
    """
    pairs = decode_value(data)
    if type(pairs) is not list:
        raise Malformed("pairs are not an array")
    try:
        for pair in pairs:
            if type(pair) is not list or len(pair) != 2:
                raise Malformed("a pair is not an array of two")
            if type(pair[0]) is not str and not is_key(pair[0]):
                raise Malformed("a pair's key has a type that cannot be a key")
    except RecursionError:
        raise Malformed("a pair's key is nested too deeply") from None
    return pairs


# --- one way -------------------------------------------------------------------------------------


def _wire_key(key: Key, where: str) -> Any:
    kind = type(key)
    if kind in _PLAIN:
        return key
    if kind is tuple:
        return {"t": [_wire_key(item, where) for item in key]}
    if kind is bytes:
        return {"b": base64.b64encode(key).decode("ascii")}
    raise ValueNotPortable(f"{where}: {_unfit_key(key)}")


def _wire(value: Value, where: str, key: Key) -> Any:
    """`value` with what JSON cannot say replaced by tags; lists of plain values pass as they are."""
    kind = type(value)
    if kind in _PLAIN:
        return value
    if kind is list:
        kinds = set(map(type, value))
        if kinds <= _PLAIN:
            return _wire_equal(value) if len(value) >= MANY and kinds in (_INT, _STR) else value
        return [_wire(item, where, key) for item in value]
    if kind is tuple:
        return {"t": [_wire(item, where, key) for item in value]}
    if kind is bytes:
        return {"b": base64.b64encode(value).decode("ascii")}
    if kind is dict:
        return {"d": [[_wire_key(k, where), _wire(v, where, key)] for k, v in sort_pairs(value.items(), where=where)]}
    raise ValueNotPortable(
        f"{where}: the value of key {_show(key)} is or holds a {kind.__module__}.{kind.__qualname__}; only None, bool, "
        "int, float, str, bytes, list, tuple and dict travel: convert it first"
    )


def _wire_equal(value: list[Any]) -> Any:
    """A list of ints or of strs: item and counts if all are equal."""
    first, length = value[0], len(value)
    if first != value[-1] or value.count(first) != length:
        return value
    full, rest = divmod(length - 1, RUN)
    return {"n": [first, *([RUN] * full), rest + 1]}


def _explain_pairs(pairs: list[Pair], where: str, reason: Exception) -> NoReturn:
    for key, value in pairs:
        try:
            _encode([_wire_key(key, where), _wire(value, where, key)])
        except (ValueError, RecursionError):
            raise ValueNotPortable(f"{where}: key {_show(key)}: {_why(reason)}") from None
    raise ValueNotPortable(f"{where}: {_why(reason)}") from None


def _why(reason: Exception) -> str:
    text = str(reason)
    if isinstance(reason, RecursionError):
        return "nested too deeply, or holds itself"
    if "digits" in text:
        return "an integer of more than 4300 digits"
    if "Out of range float" in text:
        return "NaN and Infinity do not travel"
    return text


def _unfit_key(key: object) -> str:
    kind = type(key)
    return (
        f"{_show(key)} is a {kind.__module__}.{kind.__qualname__} and cannot be a key; "
        "keys are None, bool, int, float, str, bytes or tuples of these"
    )


def _show(thing: object) -> str:
    try:
        text = repr(thing)
    except Exception:
        text = f"<{type(thing).__name__}>"
    return text if len(text) <= 80 else text[:77] + "..."


# --- and back ------------------------------------------------------------------------------------


def _untag(members: dict[str, Any]) -> Any:
    if len(members) == 1:
        ((tag, inner),) = members.items()
        if tag == "t" and type(inner) is list:
            return tuple(inner)
        if tag == "b" and type(inner) is str:
            try:
                return base64.b64decode(inner.encode("ascii"), validate=True)
            except (binascii.Error, UnicodeEncodeError):
                raise Malformed("bytes are not Base64") from None
        if tag == "n" and type(inner) is list:
            return _equal(inner)
        if tag == "d" and type(inner) is list:
            return _dictionary(inner)
    raise Malformed("an object that is no known tag")


def _untag_within(room: int) -> Callable[[dict[str, Any]], Any]:
    """As `_untag`, but counted runs stand for at most so many items together."""
    left = room

    def untag(members: dict[str, Any]) -> Any:
        nonlocal left
        counts = members.get("n")
        if type(counts) is list:
            left -= RUN * (len(counts) - 1)
            if left < 0:
                raise Malformed("counts of equal items that would take too much memory")
        return _untag(members)

    return untag


def _equal(inner: list[Any]) -> list[Any]:
    if len(inner) < 2 or type(inner[0]) not in (int, str) or inner[1:-1].count(RUN) != len(inner) - 2:
        raise Malformed("equal items without their counts")
    last = inner[-1]
    if type(last) is not int or not 1 <= last <= RUN or (len(inner) == 2 and last < MANY):
        raise Malformed("equal items with an impossible count")
    return [inner[0]] * (RUN * (len(inner) - 2) + last)


def _dictionary(pairs: list[Any]) -> dict[Any, Any]:
    made: dict[Any, Any] = {}
    for pair in pairs:
        if type(pair) is not list or len(pair) != 2 or not is_key(pair[0]) or pair[0] in made:
            raise Malformed("a dictionary with an unfit or repeated key")
        made[pair[0]] = pair[1]
    return made


def is_key(key: Any) -> bool:
    """Whether a value may be a key."""
    kind = type(key)
    return kind in _PLAIN or kind is bytes or (kind is tuple and all(map(is_key, key)))


def _no_constant(name: str) -> NoReturn:
    raise Malformed(f"{name} does not travel")


def _finite(text: str) -> float:
    number = float(text)
    if math.isinf(number):
        raise Malformed("a number beyond the range of a double")
    return number


def _decoder_of(hook: Callable[[dict[str, Any]], Any]) -> json.JSONDecoder:
    return json.JSONDecoder(object_hook=hook, parse_constant=_no_constant, parse_float=_finite)


_decoder = _decoder_of(_untag)
