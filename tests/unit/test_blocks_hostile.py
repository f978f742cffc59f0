"""Parts and counters that a worker made up: what no computed task gives is refused, in bounded memory, and what honest
tasks give is not."""

from __future__ import annotations

import json
import struct
import tracemalloc
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ec262.errors import LimitExceeded, Malformed, ProgramError
from ec262.foreman.payloads import MAX_PUSH_BYTES, batches, check_fits, seal_input, sealed_size
from ec262.foreman.schedule import Replica, Task
from ec262.mapreduce import context
from ec262.mapreduce.blocks import (
    BLOCK_MEMORY,
    batches_of,
    check_part,
    columns_of,
    encode_grouped,
    encode_results,
    merge,
)
from ec262.mapreduce.program import (
    MAX_HEADER,
    Program,
    check_result,
    execute,
    map_header,
    program_digest_of,
    split_counters,
)
from ec262.protocol.canonical import decode_value, encode_pairs, encode_value, in_order, sort_keys
from ec262.protocol.framing import frame_parts, unframe_parts

QUICK = settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow])
KIB, MIB = 1024, 1024 * 1024


def part(*columns: bytes) -> bytes:
    return frame_parts(columns)


def grouped(*keys: Any) -> bytes:
    """A block of keys in the order given, each with a value."""
    return encode_grouped(list(keys), [[1]] * len(keys), where="")


def lists(sizes: bytes, flat: bytes) -> bytes:
    sizes = sizes and b"j" + sizes
    return b"l" + len(sizes).to_bytes(4, "big") + sizes + flat


def run(item: bytes, count: int) -> bytes:
    """A counted run of so many equal items, three bytes for 32."""
    return b'{"n":[' + item + b",32" * (count // 32) + b"]}"


# --- keys -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "keys",
    [
        *[("b", "a"), ("a", "a"), (2, 1), (1, 1.0), (0, False), (1, True), (0.0, -0.0), (b"b", b"a"), ("a", "b", "b")],
        *[("a", 1), (1, None), (b"a", "a"), ((1,), b"a"), ((2,), (1,)), ((1,), (1,)), ((1, 0.0), (True, -0.0))],
        *[(None, None), ("a", (1,), (1,)), ("\ud800", "\ud7ff")],
    ],
)
def test_attack_keys_out_of_order_or_doubled(keys: tuple[Any, ...]) -> None:
    """Within a block, and across two."""
    for made in (grouped(*keys), part(*unframe_parts(grouped(*keys[:-1])), *unframe_parts(grouped(keys[-1])))):
        with pytest.raises(Malformed, match="out of order"):
            check_part(made, grouped=True)
        for read in (columns_of, batches_of, lambda p: merge([p])):
            with pytest.raises(Malformed, match="out of order"):
                list(read(made))


scalars = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False, allow_infinity=False))
plain_keys = st.one_of(scalars, st.text(max_size=3), st.binary(max_size=3))
all_keys = st.one_of(plain_keys, st.tuples(plain_keys), st.tuples(plain_keys, plain_keys))
values = st.recursive(
    plain_keys,
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.tuples(inner), st.dictionaries(plain_keys, inner)),
)


@QUICK
@given(st.sets(all_keys, max_size=40), st.data())
def test_whatever_honest_tasks_give_is_taken(keys: set[Any], data: st.DataObject) -> None:
    ordered = sort_keys(keys)
    assert in_order(ordered)
    groups = [data.draw(st.lists(values, min_size=1, max_size=3)) for _ in ordered]
    check_part(encode_grouped(ordered, groups, where=""), grouped=True)
    check_part(encode_results([(ordered, groups)], where=""), grouped=False)
    check_part(encode_results([(ordered, [group[0] for group in groups])], where=""), grouped=False)


@pytest.mark.parametrize(
    ("made", "is_grouped"),
    [
        (encode_grouped(["k"], [[1] * 8_000_000], where=""), True),
        (encode_grouped(["k"], [[n % 256 for n in range(8_000_000)]], where=""), True),
        (encode_grouped(["k"], [[*range(3_000_000)]], where=""), True),
        (encode_grouped(["k"], [[n * 2.5 for n in range(3_000_000)]], where=""), True),
        (encode_grouped(["k"], [[str(n) for n in range(300_000)]], where=""), True),
        (encode_grouped([*range(3000)], [[n] * (n % 9 + 1) for n in range(3000)], where=""), True),
        (encode_grouped([*range(2000)], [[b""] * 20] * 2000, where=""), True),
        (encode_results([([*range(5000)], [[]] * 5000)], where=""), False),
        (encode_results([([*range(1000)], [[[n, [n]] for n in range(100)]] * 1000)], where=""), False),
        # Brackets in a text are none.
        (encode_results([(["k"], [json.dumps([[{"a": []}]] * 10) * 40_000 + "\n"])], where=""), False),
        (encode_results([([*range(64)], [b"x" * MIB] * 64)], where=""), False),
    ],
    ids=[
        *("ones", "bytes", "whole numbers", "numbers", "texts", "many", "empty bytes", "empty lists", "nested"),
        *("json in text", "64 MB"),
    ],
)
def test_large_honest_parts_are_taken(made: bytes, is_grouped: bool) -> None:
    check_part(made, grouped=is_grouped)


# --- memory ---------------------------------------------------------------------------------------


def _zeros() -> bytes:
    return part(b"j[]", lists(run(b"0", 30_000_000), b"j[]"))


def _many_ones() -> bytes:
    return part(b"j[1]", lists(b"[30000000]", b"j" + run(b"1", 30_000_000)))


def _runs_in_values() -> bytes:
    return part(b"j[1]", b"j[[" + b",".join([run(b'"x"', 100_000)] * 300) + b"]]")


def _runs_in_keys() -> bytes:
    return part(b'j[{"t":[' + run(b"1", 30_000_000) + b"]}]", b"j[[1]]")


def _empty_lists() -> bytes:
    return part(b"j[1]", b"j[[" + b"[]," * 5_000_000 + b"[]]]")


def _hidden_lists() -> bytes:
    """As though they were in a text."""
    return part(b"j[1]", b'j[["\\"",' + b"[]," * 5_000_000 + b'"\\""]]')


def _short_texts() -> bytes:
    return part(b"j[1]", lists(b"[6000001]", b"s" + b"\n" * 6_000_000))


def _singles() -> bytes:
    return part(b"s" + b"\n" * 2_000_000, lists(b"", b"s" + b"\n" * 2_000_000))


def _short_bytes() -> bytes:
    count = 3_000_000
    return part(b"j[1]", lists(b"[%d]" % count, b"v" + count.to_bytes(4, "big") + bytes(4 * count)))


def _numbers_of_two_bytes() -> bytes:
    return part(b"j[1]", lists(b"[15000000]", b"i2" + bytes(30_000_000)))


@pytest.mark.parametrize(
    "bomb",
    [
        *(_zeros, _many_ones, _runs_in_values, _runs_in_keys, _empty_lists, _hidden_lists, _short_texts, _singles),
        *(_short_bytes, _numbers_of_two_bytes),
    ],
)
def test_attack_a_few_megabytes_that_become_gigabytes(bomb: Callable[[], bytes]) -> None:
    made = bomb()
    tracemalloc.start()
    try:
        with pytest.raises(Malformed):
            check_part(made, grouped=False)
        assert tracemalloc.get_traced_memory()[1] < BLOCK_MEMORY + 8 * len(made)
    finally:
        tracemalloc.stop()


def test_attack_a_list_of_no_items_for_every_byte_and_less() -> None:
    """Also where memory is not looked at, no block has more lists than those that are written."""
    for made in (_zeros(), part(b"j[1]", lists(run(b"0", 64_000), b"j[]"))):
        with pytest.raises(Malformed):
            list(columns_of(made))


@pytest.mark.parametrize(
    ("made", "why"),
    [
        (part(b"s" + b"\n".join(b"%05d" % n for n in range(1025)), b"j" + encode_value([[1]] * 1025)), "more keys"),
        (part(b"j[]", b"j[]"), "or none"),
        (part(), "not in blocks"),
        (grouped("a", "b")[:-1], "add up"),
        (part(b'j["a"]', b"j[[]]"), "no values"),
        (part(b'j["a","b"]', lists(b"[8192,1]", b"j" + run(b"1", 8192)[:-2] + b",1]}")), "more values"),
        (part(b'j["a","b"]', lists(b"[3,-1]", b"i1ab")), "their lengths"),
        (part(b'j["a","b"]', b"l\0\0\0\x03sxy" + b"i1ab"), "their lengths"),
        (part(b'j["a"]', b"l\0\0\0\0i2ab"), "whole numbers"),
        (part(b'j["a"]', b"l\0\0\0\0i4abc"), "whole numbers"),
        (part(b'j["a"]', b"l\0\0\0\0i"), "whole numbers"),
        (part(b'j["a"]', b"l\0\0\0\0d1234567"), "numbers whose"),
        (part(b'j["a"]', b"l\0\0\0\0d" + struct.pack("<d", float("nan"))), "none, or infinite"),
        (part(b'j["a"]', b"l\0\0\0\0d" + struct.pack("<d", float("-inf"))), "none, or infinite"),
        (part(b'j["a"]', b"j[1]"), "no lists"),
        (part(b'j["a"]', b"j[[1]"), "canonical JSON"),
        (part(b'j["a"]', 'j[["é"]]'.encode()), "canonical JSON"),
        (part(b'j["a"]', 'j[["e"]]'.encode("utf-16")), "no known form|canonical"),
    ],
)
def test_attack_what_no_map_task_gives(made: bytes, why: str) -> None:
    with pytest.raises(Malformed, match=why):
        check_part(made, grouped=True)


def test_attack_keys_nested_without_end() -> None:
    for depth in (300, 900, 5000, 100_000):
        deep = b"j[" + b'{"t":[' * depth + b"1" + b"]}" * depth + b"]"
        for made in (part(deep, b"j[[1]]"), part(b"j[1]", b"j[[" + deep[2:-1] + b"]]")):
            try:
                check_part(made, grouped=True)
            except Malformed:
                continue
            assert depth < 1000


@QUICK
@given(st.lists(st.one_of(st.binary(max_size=30), st.sampled_from([b"j[1]", b"j[[1]]", b"sa", b"l\0\0\0\0j[1]"]))))
def test_any_columns_are_taken_or_malformed(columns: list[bytes]) -> None:
    made = part(*columns)
    for form in (True, False):
        try:
            check_part(made, grouped=form)
        except Malformed:
            continue
        assert list(columns_of(made))


def test_room_bounds_all_runs_of_a_value_together() -> None:
    thrice = b"[" + b",".join([run(b"1", 320)] * 3) + b"]"
    assert len(decode_value(thrice, room=960)) == 3
    for room in (0, 320, 959):
        with pytest.raises(Malformed, match="memory"):
            decode_value(thrice, room=room)


def test_attack_a_header_that_a_worker_looks_into_outside_its_sandbox() -> None:
    for header in (b'{"d":[["x",' + run(b"1", 3200) + b"]]}", b'{"d":[["program","' + b"x" * MAX_HEADER + b'"]]}'):
        with pytest.raises(Malformed):
            program_digest_of(header)


# --- results --------------------------------------------------------------------------------------


def test_attack_a_result_of_other_parts_than_the_phase_has() -> None:
    good = grouped("a")
    check_result([good, b""], 2, grouped=True)
    check_result([good, b"", encode_value({"lines": 1})], 2, grouped=True)
    check_result([encode_results([(["a"], [1])], where="")], 1, grouped=False)
    for made in ([], [good], [good] * 4, [good, b"", b"junk"], [good, b"junk"], [good, grouped("b", "a")]):
        with pytest.raises(Malformed):
            check_result(made, 2, grouped=True)
    with pytest.raises(Malformed, match="part 1: keys that are out of order"):
        check_result([good, grouped("b", "a")], 2, grouped=True)


# --- counters -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "counters",
    [
        encode_value({f"c{n}": 1 for n in range(context.MAX_COUNTERS + 1)}),
        encode_value({"x" * (context.MAX_NAME + 1): 1}),
        encode_value({"": 1}),
        encode_value({"a": 2**63}),
        encode_value({"a": 10**4000}),
        encode_value({"a": True}),
        encode_value({"a": -1}),
        encode_value({"\x1b[2J": 1}),
        encode_value({"a\nb": 1}),
        encode_value({"\u202e": 1}),
        encode_value({}),
        b'{"d":[["a",' + run(b"1", 3200) + b"]]}",
        b'{"d":[' + b",".join(b'["%09d",1]' % n for n in range(400_000)) + b"]}",
    ],
    ids=str,
)
def test_attack_counters_that_no_task_can_have(counters: bytes) -> None:
    with pytest.raises(Malformed):
        split_counters([b"", counters], 1)


def test_counters_that_a_task_can_have() -> None:
    most = {("\N{DOG FACE}" * (context.MAX_NAME - 4) + f"{n:04}"): context.MAX_COUNT for n in range(1000)}
    assert split_counters([b"", encode_value(most)], 1) == ([b""], most)


def test_programs_cannot_count_what_would_be_refused() -> None:
    for name in ("a\nb", "\x1b[2J", "\x7f", "\u202e", ""):
        with pytest.raises(ProgramError, match="printable"):
            context.counter(name)
    context.counter("höhe (m)")

    def counts(key: int, amount: int) -> list[Any]:
        context.counter("n").add(amount)
        return []

    header = map_header("d" * 64, index=0, partitions=1)
    for amounts in ([2**63], [2**63 - 1, 1]):
        with pytest.raises(ProgramError, match="2\\*\\*63"):
            execute(Program(counts), [header, encode_pairs(list(enumerate(amounts)))])
    made = execute(Program(counts), [header, encode_pairs([(0, 2**63 - 1)])])
    assert split_counters(made, 1)[1] == {"n": 2**63 - 1}


# --- inputs that fit into no push -----------------------------------------------------------------


def test_what_passes_the_check_of_its_size_fits_into_a_push() -> None:
    for size in (0, 1, 4 * MIB, 4 * MIB + 1, 63 * MIB):
        parts = [b"h", bytes(size)]
        task = Task(3, lambda parts=parts: parts, label="map task 3 (book)", input_key=bytes(32))  # type: ignore[misc]
        sealed = sum(map(len, seal_input(task, parts)))
        assert sealed <= sealed_size(size + 16)
        if size < 63 * MIB:
            check_fits(task, parts, 100 * KIB)
        else:
            with pytest.raises(
                LimitExceeded, match=r"map task 3 \(book\): its input has 66\.1 MB.*at most .*split_size"
            ):
                check_fits(task, parts, MIB)
    limit = MAX_PUSH_BYTES
    with pytest.raises(LimitExceeded, match="more reducers, or a combiner"):
        check_fits(Task(0, list, "reduce"), [bytes(limit)], 0)


def test_small_inputs_do_not_travel_with_one_that_fills_a_push() -> None:
    pairs = [(Task(n, list, size=size * MIB), Replica(str(n), "w")) for n, size in enumerate((10, 45, 1, 1, 45))]
    assert batches(pairs) == [0, 1, 2, 4, 5]
