"""Canonical bytes: what may travel comes back as it was, equal data give equal bytes, all else is one named error."""

from __future__ import annotations

import copy
import decimal
import json
import math
from collections import OrderedDict
from enum import IntEnum
from typing import Any, NamedTuple

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ec262.errors import Malformed, ValueNotPortable
from ec262.protocol.canonical import (
    decode_pairs,
    decode_value,
    encode_pairs,
    encode_value,
    in_order,
    sort_key,
    sort_pairs,
)

QUICK = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])

# Lone surrogates are characters of a Python string, so they are among the texts that travel.
texts = st.text(st.characters(exclude_categories=[]), max_size=20)
integers = st.one_of(
    st.integers(),
    st.integers(min_value=-(2**200), max_value=2**200),
    st.integers(min_value=1, max_value=4300).map(lambda digits: 10**digits - 1),
    st.integers(min_value=1, max_value=4300).map(lambda digits: -(10**digits - 1)),
)
floats = st.floats(allow_nan=False, allow_infinity=False)
plain = st.one_of(st.none(), st.booleans(), integers, floats, texts)
keys = st.recursive(plain | st.binary(max_size=5), lambda inner: st.lists(inner, max_size=3).map(tuple), max_leaves=5)
values = st.recursive(
    st.one_of(plain, st.binary(max_size=20)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.lists(inner, max_size=4).map(tuple),
        st.dictionaries(keys, inner, max_size=4),
    ),
    max_leaves=12,
)


def typed(value: Any) -> Any:
    """The value with its types and the signs of its zeros: equal exactly where nothing at all differs."""
    kind = type(value)
    if kind in (list, tuple):
        return kind.__name__, tuple(typed(item) for item in value)
    if kind is dict:
        return kind.__name__, frozenset((typed(key), typed(item)) for key, item in value.items())
    return kind.__name__, value, math.copysign(1.0, value) if kind is float else None


# --- what may travel -----------------------------------------------------------------------------


@QUICK
@given(values)
def test_every_value_comes_back_equal_and_of_equal_type(value: Any) -> None:
    assert typed(decode_value(encode_value(value))) == typed(value)


@QUICK
@given(st.dictionaries(keys, values, max_size=6))
def test_every_dictionary_of_data_comes_back_in_key_order(data: dict[Any, Any]) -> None:
    ordered = sort_pairs(data.items())
    decoded = decode_pairs(encode_pairs(ordered))
    assert typed([tuple(pair) for pair in decoded]) == typed(ordered)
    assert typed({pair[0]: pair[1] for pair in decoded}) == typed(data)


@pytest.mark.parametrize(
    "value",
    [
        *(None, True, False, 0, 1, -1, 10**4299, -(10**4300 - 1), 2**53 + 1, 0.0, -0.0, 5e-324, 1.7976931348623157e308),
        *(0.1, 1e22, "", "\x00", "é", "\U0001f600", "\ud800", "\udfff\ud800", b"", b"\x00\xff", [], (), {}),
        *([()], ([],), {(): []}, {None: 1, True: 2, 3: 4, 3.5: 5, "": 6, (None, ("x",)): 7}, {"t": [1]}),
        *({"d": {"b": 1}}, [[1, "a"], (1, "a")], {1: {2: {3: b"x"}}}),
    ],
    ids=lambda value: None if isinstance(value, float) else "value",
)  # fmt: skip
def test_corner_values_come_back(value: Any) -> None:
    assert typed(decode_value(encode_value(value))) == typed(value)


def test_known_bytes() -> None:
    """Golden constants: these bytes are the protocol, on every machine and every Python."""
    assert encode_value({"b": (1, 2.0, -0.0), "a": b"\x00", None: [True, "é\ud800"]}) == (
        b'{"d":[[null,[true,"\\u00e9\\ud800"]],["a",{"b":"AA=="}],["b",{"t":[1,2.0,-0.0]}]]}'
    )
    assert encode_pairs([("a", 1), ((1, "x"), 1e300)]) == b'[["a",1],[{"t":[1,"x"]},1e+300]]'
    assert encode_pairs([]) == b"[]"


# --- one text for one thing ----------------------------------------------------------------------


def _shuffled(value: Any, draw: Any) -> Any:
    """An equal value whose dictionaries were filled in another order."""
    if type(value) is dict:
        items = draw(st.permutations(list(value.items())))
        return {key: _shuffled(item, draw) for key, item in items}
    if type(value) in (list, tuple):
        return type(value)(_shuffled(item, draw) for item in value)
    return copy.copy(value)


@QUICK
@given(values, st.data())
def test_the_order_of_insertion_does_not_matter(value: Any, data: st.DataObject) -> None:
    assert encode_value(_shuffled(value, data.draw)) == encode_value(value)


@QUICK
@given(st.dictionaries(keys, st.integers(), max_size=8), st.data())
def test_sorting_does_not_depend_on_the_order_given(known: dict[Any, int], data: st.DataObject) -> None:
    items = list(known.items())
    shuffled = data.draw(st.permutations(items))
    assert encode_pairs(sort_pairs(shuffled)) == encode_pairs(sort_pairs(items))


@QUICK
@given(values, values)
def test_no_two_values_encode_alike(one: Any, other: Any) -> None:
    assert (encode_value(one) == encode_value(other)) == (typed(one) == typed(other))


@pytest.mark.parametrize(
    "alike",
    [
        [1, 1.0, True, "1", b"1", (1,), [1], {1: None}],
        [0, 0.0, -0.0, False, None, "", b"", [], (), {}],
        [[1, 2], (1, 2), {1: 2}, [[1, 2]], [(1, 2)], ([1, 2],)],
        [{"t": [1]}, (1,), ["t", [1]], {"t": (1,)}, [["t", [1]]]],
        [b"\x00", {"b": "AA=="}, "AA==", ("b", "AA==")],
        ["\ud83d\ude00"[:1], "\U0001f600", "\\ud83d"],
    ],
)
def test_things_python_or_json_mix_up_differ(alike: list[Any]) -> None:
    assert len({encode_value(value) for value in alike}) == len(alike)


def test_keys_are_ordered_by_kind_and_then_by_value() -> None:
    ordered = [
        *[None, -(10**30), -1.5, False, 0.5, True, 2, 1e30, "", "a", "b", "\ud800", b"", b"a", b"b"],
        *[(), (None,), (1, "a"), ("a",), (b"a",)],
    ]
    assert [key for key, _ in sort_pairs([(key, 0) for key in reversed(ordered)])] == ordered
    assert [key for key, _ in sort_pairs([(2, 0), (1.5, 0), (-1, 0)])] == [-1, 1.5, 2]
    assert [key for key, _ in sort_pairs([("b", 0), ("a", 0)])] == ["a", "b"]


# --- what may not ---------------------------------------------------------------------------------


class Level(IntEnum):
    LOW = 1


class Point(NamedTuple):
    x: int


class Words(str):
    """A subclass would come back as its base."""


class Untold:
    def __repr__(self) -> str:
        raise RuntimeError("no name")


OUTSIDE = [
    (set(), "builtins.set"),
    (frozenset(), "builtins.frozenset"),
    (1j, "builtins.complex"),
    (bytearray(b"x"), "builtins.bytearray"),
    (memoryview(b"x"), "builtins.memoryview"),
    (decimal.Decimal(1), "decimal.Decimal"),
    (range(3), "builtins.range"),
    (object(), "builtins.object"),
    (OrderedDict(), "collections.OrderedDict"),
    (Level.LOW, "Level"),
    (Point(1), "Point"),
    (Words("x"), "Words"),
    (Untold(), "Untold"),
    (Untold, "builtins.type"),
]


@pytest.mark.parametrize(("value", "kind"), OUTSIDE)
@pytest.mark.parametrize("wrap", [lambda v: v, lambda v: [1, v], lambda v: (v,), lambda v: {"k": [v]}])
def test_a_value_outside_the_format_is_named(value: Any, kind: str, wrap: Any) -> None:
    with pytest.raises(ValueNotPortable) as caught:
        encode_pairs([("fine", 1), ("the key", wrap(value))], where="mapper count")
    assert "mapper count" in str(caught.value)
    assert "'the key'" in str(caught.value)
    assert kind in str(caught.value)
    with pytest.raises(ValueNotPortable, match="reducer total"):
        encode_value(wrap(value), where="reducer total")


@pytest.mark.parametrize(
    ("key", "kind"), [*OUTSIDE, (bytearray(), "builtins.bytearray"), ([1], "builtins.list"), ({}, "builtins.dict")]
)
def test_a_key_outside_the_format_is_named(key: Any, kind: str) -> None:
    for call in (
        lambda: encode_pairs([(key, 1)], where="mapper count"),
        lambda: encode_pairs([((1, key), 1)], where="mapper count"),
        lambda: sort_pairs([("a", 1), (key, 1)], where="mapper count"),
        lambda: sort_pairs([(key, 1)], where="mapper count"),
    ):
        with pytest.raises(ValueNotPortable) as caught:
            call()
        assert "mapper count" in str(caught.value)
        assert kind in str(caught.value)
    with pytest.raises(ValueNotPortable, match="cannot be a key"):
        sort_key(key)


def test_a_key_outside_the_format_inside_a_value_is_named() -> None:
    with pytest.raises(ValueNotPortable, match=r"mapper count.*frozenset.*builtins\.frozenset"):
        encode_pairs([(1, {frozenset(): 1})], where="mapper count")


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_numbers_that_json_does_not_have_are_refused(number: float) -> None:
    for value in (number, [number], (number,), {1: number}, {number: 1}, {(1, number): 1}):
        with pytest.raises(ValueNotPortable, match="value: NaN and Infinity do not travel"):
            encode_value(value)
    with pytest.raises(ValueNotPortable, match="mapper m: key 'k': NaN and Infinity do not travel"):
        encode_pairs([("a", 1), ("k", [number])], where="mapper m")
    with pytest.raises(ValueNotPortable, match=r"mapper m: key .*: NaN and Infinity do not travel"):
        encode_pairs([("a", 1), (number, 1)], where="mapper m")


@pytest.mark.parametrize(("digits", "sign"), [(4301, 1), (4301, -1), (20_000, 1)])
def test_integers_too_long_are_refused(digits: int, sign: int) -> None:
    number = sign * 10 ** (digits - 1)
    for value in (number, [number], {number: 1}):
        with pytest.raises(ValueNotPortable, match="more than 4300 digits"):
            encode_value(value)
    with pytest.raises(ValueNotPortable, match="mapper m: key 'k': an integer of more than 4300 digits"):
        encode_pairs([("k", number)], where="mapper m")


def _nest(depth: int, wrap: Any, inner: Any = 0) -> Any:
    for _ in range(depth):
        inner = wrap(inner)
    return inner


WRAPS = [lambda v: [v], lambda v: (v,), lambda v: {"k": v}, lambda v: [1, [v]]]


@pytest.mark.parametrize("wrap", WRAPS)
def test_deep_values_travel_or_are_refused(wrap: Any) -> None:
    value = _nest(60, wrap)
    assert decode_value(encode_value(value)) == value
    with pytest.raises(ValueNotPortable, match="nested too deeply"):
        encode_value(_nest(20_000, wrap))
    with pytest.raises(ValueNotPortable, match="mapper m: key 'k': nested too deeply"):
        encode_pairs([("k", _nest(20_000, wrap))], where="mapper m")


def test_deep_keys_are_refused() -> None:
    key = _nest(5_000, lambda v: (v,))
    for call in (
        lambda: encode_pairs([(key, 1)], where="mapper m"),
        lambda: sort_pairs([(key, 1)], where="mapper m"),
        lambda: encode_value({key: 1}, where="mapper m"),
    ):
        with pytest.raises(ValueNotPortable, match=r"mapper m.*nested too deeply"):
            call()


def test_values_that_hold_themselves_are_refused() -> None:
    loop: list[Any] = []
    loop.append(loop)
    round_about: dict[Any, Any] = {}
    round_about["me"] = ([round_about],)
    for value in (loop, round_about):
        with pytest.raises(ValueNotPortable, match="holds itself"):
            encode_pairs([(1, value)])


# --- bytes from strangers -------------------------------------------------------------------------


def check_decoding(data: bytes) -> None:
    """Any bytes either decode to something that can travel on, or are the one named error."""
    try:
        value = decode_value(data)
    except Malformed:
        with pytest.raises(Malformed):
            decode_pairs(data)
        return
    assert typed(decode_value(encode_value(value))) == typed(value)
    try:
        pairs = decode_pairs(data)
    except Malformed:
        return
    again = decode_pairs(encode_pairs([(key, item) for key, item in pairs]))
    assert typed(again) == typed(pairs)


@QUICK
@given(st.binary(max_size=60))
def test_any_bytes_decode_or_are_malformed(data: bytes) -> None:
    check_decoding(data)


json_texts = st.recursive(
    st.one_of(
        st.sampled_from(["null", "true", "0", "-0", "-0.0", "1e5", "1E400", "-1e999", "NaN", "Infinity", "-Infinity"]),
        st.sampled_from(['"t"', '"AA=="', '"A"', '"\\ud800"', '"\\u0000"', '"é"', "1.", "01", "[", "}", ",", " "]),
        st.integers(min_value=0, max_value=5000).map(lambda digits: "7" * digits),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3).map(lambda items: "[" + ",".join(items) + "]"),
        st.tuples(st.sampled_from(["t", "b", "d", "x", "d"]), inner).map(lambda p: f'{{"{p[0]}":{p[1]}}}'),
        st.tuples(inner, inner).map(lambda p: f'{{"d":[[{p[0]},1],[{p[1]},2]]}}'),
        st.tuples(inner, inner).map(lambda p: f"[[{p[0]},{p[1]}]]"),
        st.tuples(inner, inner).map(lambda p: f'{{"t":[{p[0]}],"b":{p[1]}}}'),
    ),
    max_leaves=10,
)


@settings(QUICK, max_examples=300)
@given(json_texts, st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "utf-32-le"]))
def test_anything_that_looks_like_json_decodes_or_is_malformed(text: str, encoding: str) -> None:
    check_decoding(text.encode(encoding))


@QUICK
@given(values, st.data())
def test_changed_bytes_decode_or_are_malformed(value: Any, data: st.DataObject) -> None:
    encoded = bytearray(encode_value(value))
    at = data.draw(st.integers(0, len(encoded) - 1))
    how = data.draw(st.sampled_from(["flip", "cut", "double", "replace"]))
    if how == "flip":
        encoded[at] ^= 1 << data.draw(st.integers(0, 7))
    elif how == "cut":
        del encoded[at:]
    elif how == "double":
        encoded[at:at] = encoded[: data.draw(st.integers(0, len(encoded)))]
    else:
        encoded[at : at + 1] = data.draw(st.sampled_from([b"[", b"]", b"{", b"}", b'"', b",", b"-", b"e", b"\\u"]))
    check_decoding(bytes(encoded))


@pytest.mark.parametrize(
    "data",
    [
        *(b"", b" ", b"nul", b"[1,]", b"[1 2]", b"{}", b'{"t":1}', b'{"t":{"t":[]}}', b'{"b":1}', b'{"b":"A"}'),
        *(b'{"b":"AA="}', b'{"b":"AA==\\n"}', '{"b":"ä"}'.encode(), b'{"d":1}', b'{"d":[1]}', b'{"d":[[1]]}'),
        *(b'{"d":[[1,2],[1,3]]}', b'{"d":[[1,2],[1.0,3]]}', b'{"d":[[1,2],[true,3]]}', b'{"d":[[[1],2]]}'),
        *(b'{"d":[[{"b":1},2]]}', b'{"d":[[{"t":[[]]},2]]}', b'{"x":1}', b'{"t":[],"b":""}', b"NaN", b"[Infinity]"),
        *(b"-Infinity", b"1e999", b"-1e999", b"9" * 4301, b"[" * 100_000, b'{"t":[' * 100_000, b"\xff", b'"\xff"'),
        *(b"\xef\xbb\xbf", b"\xff\xfe", b"\x00", b'"\x00"', b'"\\x"', b'"'),
    ],
    ids=lambda data: repr(data[:20]),
)  # fmt: skip
def test_malformed_bytes_are_one_error(data: bytes) -> None:
    with pytest.raises(Malformed):
        decode_value(data)
    with pytest.raises(Malformed):
        decode_pairs(data)


@pytest.mark.parametrize(
    "data",
    [b"1", b'"ab"', b"null", b'{"t":[]}', b"[1]", b"[[1]]", b"[[1,2,3]]", b"[[[1],2]]", b'[[{"d":[]},2]]', b'["ab"]'],
)
def test_values_that_are_no_pairs(data: bytes) -> None:
    decode_value(data)
    with pytest.raises(Malformed):
        decode_pairs(data)


@pytest.mark.parametrize("depth", [300, 600, 900, 1500, 5000, 100_000])
@pytest.mark.parametrize(("opening", "closing"), [("[", "]"), ('{"t":[', "]}"), ('{"d":[[1,', "]]}")])
def test_deep_bytes_decode_or_are_malformed(depth: int, opening: str, closing: str) -> None:
    """How deep depends on the interpreter's stack; beyond it there is one error each way and no crash."""
    inner = opening * depth + closing * depth if opening == "[" else opening * depth + "1" + closing * depth
    for data in (inner.encode(), f"[[{inner},1]]".encode(), f"[[1,{inner}]]".encode()):
        try:
            pairs: Any = decode_pairs(data) if data.startswith(b"[[") else decode_value(data)
            encode_value(pairs)
        except (Malformed, ValueNotPortable):
            pass


def test_the_text_is_plain_ascii_json() -> None:
    data = {"ä": ["\ud800", 1.5, (b"\xff",)], None: {1: 2}}
    assert json.loads(encode_value(data).decode("ascii")) == {
        "d": [[None, {"d": [[1, 2]]}], ["ä", ["\ud800", 1.5, {"t": [{"b": "/w=="}]}]]]
    }


@pytest.mark.parametrize("item", [0, 1, -7, 10**30, "", "a", "\ud800"])
@pytest.mark.parametrize("count", [15, 16, 31, 32, 33, 64, 65, 100_000])
def test_lists_of_equal_items_come_back_whole_and_are_short(item: object, count: int) -> None:
    data = encode_value([item] * count)
    back = decode_value(data)
    assert back == [item] * count
    assert {type(one) for one in back} == {type(item)}
    if count > 100:
        assert len(data) < count // 8


def test_equal_is_not_alike_enough_to_be_counted() -> None:
    for value in ([1] * 20 + [True], [1.0] * 20, [True] * 20, [None] * 20, [0.0, -0.0] * 10, [1] * 20 + [1.0]):
        back = decode_value(encode_value(value))
        assert [(type(one), repr(one)) for one in back] == [(type(one), repr(one)) for one in value]


@pytest.mark.parametrize(
    "counts",
    [
        "", "1", "1,32,0", "1,32,33", "1,31,32", "1,16,32", "1,15", "1,-1", "1,1e3", "1,true", "true,20", "1.0,20",
        "null,20", "[1],20", "1,32,1000000000", "1,1000000000",
    ],
)  # fmt: skip
def test_a_few_bytes_cannot_claim_any_amount_of_items(counts: str) -> None:
    with pytest.raises(Malformed):
        decode_value(b'{"n":[' + counts.encode() + b"]}")


# --- order, and what strangers' bytes may become ---------------------------------------------------


@pytest.mark.parametrize("keys", [[], ["a"], ["a", "b"], [None, True, 1.5, "a", b"a", (1,), (1, 2)], [b"a", b"b"]])
def test_keys_in_order(keys: list[Any]) -> None:
    assert in_order(keys)
    assert not keys[:1] or not in_order([*keys, keys[0]])


@pytest.mark.parametrize("data", [b"\xff", '["é"]'.encode(), '["e"]'.encode("utf-16"), b"\xef\xbb\xbf[]"])
def test_what_is_not_ascii_is_not_canonical(data: bytes) -> None:
    with pytest.raises(Malformed):
        decode_value(data)


def test_counted_runs_have_to_fit_into_the_room_that_there_is() -> None:
    data = encode_value([["x"] * 100, ["y"] * 100])
    assert decode_value(data, room=256) == [["x"] * 100, ["y"] * 100]
    with pytest.raises(Malformed, match="memory"):
        decode_value(data, room=255)
