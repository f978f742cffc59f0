"""MapReduce without a network: from input parts to output parts, the same bytes however the data were cut."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ec262.errors import Malformed, ProgramError, ValueNotPortable
from ec262.mapreduce.partition import partition_of
from ec262.mapreduce.program import (
    Program,
    execute,
    map_header,
    name_of,
    program_digest_of,
    reduce_header,
    run_map,
    run_reduce,
)
from ec262.mapreduce.recorded import calling_module, program_for
from ec262.mapreduce.recorded import combiner as mark_combiner
from ec262.mapreduce.recorded import mapper as mark_mapper
from ec262.mapreduce.recorded import reducer as mark_reducer
from ec262.mapreduce.split import SPLIT_BYTES, TASKS_BY_ITEM, split_items
from ec262.protocol.canonical import decode_pairs, encode_pairs, encode_value

QUICK = settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow])
DIGEST = "d" * 64
words = st.text("abcde", min_size=1, max_size=2)
lines = st.lists(st.lists(words, max_size=6).map(" ".join), max_size=12)


def count_words(_: Any, line: str) -> Iterator[tuple[str, int]]:
    for word in line.split():
        yield word, 1


def total(_: Any, counts: list[int]) -> int:
    return sum(counts)


COUNT = Program(count_words, total)
COUNT_COMBINED = Program(count_words, total, total)


def run(program: Program, splits: Iterable[bytes], partitions: int) -> dict[Any, Any]:
    """A whole job: map each split, bring equal partitions together, reduce each, collect."""
    mapped = [
        execute(program, [map_header(DIGEST, index=index, partitions=partitions), split])
        for index, split in enumerate(splits)
    ]
    result: dict[Any, Any] = {}
    for index in range(partitions):
        parts = [reduce_header(DIGEST, index=index), *[parts[index] for parts in mapped]]
        (reduced,) = execute(program, parts)
        for key, value in decode_pairs(reduced):
            assert key not in result
            result[key] = value
    return result


# --- word count -----------------------------------------------------------------------------------


@QUICK
@given(lines, st.integers(1, 7), st.integers(1, 5), st.booleans())
def test_word_count_is_a_counter(text: list[str], partitions: int, items_per_task: int, combined: bool) -> None:
    splits = split_items(dict(enumerate(text)), items_per_task)
    expected = Counter(word for line in text for word in line.split())
    assert run(COUNT_COMBINED if combined else COUNT, splits, partitions) == expected


@QUICK
@given(lines, st.integers(2, 7))
def test_partitions_together_are_the_single_partition(text: list[str], partitions: int) -> None:
    split = encode_pairs(list(enumerate(text)))
    (whole,) = run_map(COUNT, [split], 1)
    parts = [decode_pairs(part) for part in run_map(COUNT, [split], partitions)]
    assert len(parts) == partitions
    for number, part in enumerate(parts):
        assert all(partition_of(key, partitions) == number for key, _ in part)
        assert part == sorted(part)
    assert sorted(pair for part in parts for pair in part) == decode_pairs(whole)


@QUICK
@given(lines)
def test_how_a_task_was_cut_does_not_show(text: list[str]) -> None:
    """The input of one task as one part or as several gives the same bytes."""
    pairs = list(enumerate(text))
    cut = [encode_pairs([pair]) for pair in pairs]
    assert run_map(COUNT_COMBINED, cut, 3) == run_map(COUNT_COMBINED, [encode_pairs(pairs)], 3)


def test_a_combiner_makes_one_value_a_key() -> None:
    split = encode_pairs([(0, "a b a"), (1, "a")])
    assert decode_pairs(run_map(COUNT, [split], 1)[0]) == [["a", [1, 1, 1]], ["b", [1]]]
    assert decode_pairs(run_map(COUNT_COMBINED, [split], 1)[0]) == [["a", [3]], ["b", [1]]]


def test_without_a_reducer_the_values_are_listed_in_the_order_of_the_input() -> None:
    program = Program(lambda key, value: [(value, key)])
    assert run(program, split_items([(1, "x"), (2, "y"), (3, "x"), (0, "x")]), 2) == {"x": [1, 3, 0], "y": [2]}


def test_nothing_gives_nothing() -> None:
    assert split_items({}) == []
    assert run_map(COUNT, [], 2) == [b"[]", b"[]"]
    assert run_reduce(COUNT, []) == b"[]"
    assert execute(COUNT, [map_header(DIGEST, index=0, partitions=1)]) == [b"[]"]


# --- keys -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("partitions", [1, 5])
@pytest.mark.parametrize("equal", [[1, 1.0, True], [0, -0.0, False], [(1, 0.0), (True, -0.0), (1.0, False)]])
def test_keys_that_python_holds_equal_are_one(equal: list[Any], partitions: int) -> None:
    """Within one task, and across tasks."""
    program = Program(lambda key, value: [(value, 1)], total)
    assert list(run(program, split_items(list(enumerate(equal)), 10), partitions).values()) == [len(equal)]
    result = run(program, split_items(list(enumerate(equal)), 1), partitions)
    assert list(result.items()) == [(equal[0], len(equal))]
    assert type(next(iter(result))) is type(equal[0])  # the first one seen stands for all


def test_result_keys_are_in_canonical_order() -> None:
    program = Program(lambda key, value: [(key, value)], lambda key, values: values[0])
    keys = ["b", None, (1,), 2, True, "a", 1.5]
    (mapped,) = run_map(program, [encode_pairs([(key, 0) for key in keys])], 1)
    ordered = [key for key, _ in decode_pairs(run_reduce(program, [mapped]))]
    assert ordered == [None, True, 1.5, 2, "a", "b", (1,)]


def gives(*emitted: Any) -> Program:
    def emitter(_: Any, __: Any) -> Any:
        return list(emitted)

    return Program(emitter)


ONE = [encode_pairs([("in", 0)])]


@pytest.mark.parametrize("partitions", [1, 4])
@pytest.mark.parametrize(
    ("key", "kind"),
    [
        *[([1], "list"), ({}, "dict"), (set(), "set"), ((1, []), "list|tuple")],
        *[(b"x", "bytes"), ((1, b"x"), "bytes"), (frozenset(), "frozenset"), (1j, "complex")],
    ],
)
def test_what_cannot_be_a_key_is_named(key: Any, kind: str, partitions: int) -> None:
    with pytest.raises(ValueNotPortable, match=rf"mapper emitter: .*({kind})"):
        run_map(gives(("fine", 1), (key, 1)), ONE, partitions)


@pytest.mark.parametrize("partitions", [1, 4])
@pytest.mark.parametrize("number", [math.nan, math.inf])
def test_numbers_that_do_not_travel_are_named(number: float, partitions: int) -> None:
    with pytest.raises(ValueNotPortable, match=r"mapper emitter: key .*NaN and Infinity do not travel"):
        run_map(gives((number, 1)), ONE, partitions)
    with pytest.raises(ValueNotPortable, match="mapper emitter: key 'k': NaN and Infinity do not travel"):
        run_map(gives(("k", number)), ONE, partitions)


def test_values_that_do_not_travel_are_named() -> None:
    with pytest.raises(ValueNotPortable, match=r"mapper emitter: the value of key 'k' is or holds a builtins\.set"):
        run_map(gives(("k", {1})), ONE, 1)

    def bad(_: Any, values: list[int]) -> Any:
        return {1}

    with pytest.raises(ValueNotPortable, match=r"reducer bad: the value of key 'k' is or holds a builtins\.set"):
        run_reduce(Program(count_words, bad), [encode_pairs([("k", [1])])])
    with pytest.raises(ValueNotPortable, match="mapper count_words"):
        run_map(Program(count_words, None, bad), [encode_pairs([(0, "a")])], 1)


# --- what is no pair ------------------------------------------------------------------------------


@pytest.mark.parametrize("returned", [None, 3, 1.5, True])
def test_a_mapper_that_returns_nothing_to_go_through(returned: Any) -> None:
    def forgot_to_yield(key: Any, value: Any) -> Any:
        return returned

    with pytest.raises(
        ProgramError, match=rf"mapper forgot_to_yield: returned a {type(returned).__name__} for key 'in'"
    ):
        run_map(Program(forgot_to_yield), ONE, 1)


@pytest.mark.parametrize("item", [1, None, (), (1,), (1, 2, 3), "abc", [1]])
def test_something_that_is_no_pair(item: Any) -> None:
    with pytest.raises(ProgramError, match=r"mapper emitter: gave .* not a \(key, value\) pair"):
        run_map(gives(item), ONE, 1)


def test_pairs_may_be_lists_and_mappers_may_return_dictionaries_items() -> None:
    assert run_map(gives(["k", 1]), ONE, 1) == [b'[["k",[1]]]']
    assert run_map(Program(lambda key, value: {"k": 1}.items()), ONE, 1) == [b'[["k",[1]]]']


def test_exceptions_of_the_program_come_through() -> None:
    def fails(_: Any, __: Any) -> Any:
        raise ZeroDivisionError("its own")

    for program in (Program(fails), Program(lambda k, v: [(k, v)], None, fails)):
        with pytest.raises(ZeroDivisionError, match="its own"):
            run_map(program, ONE, 1)
    with pytest.raises(ZeroDivisionError):
        run_reduce(Program(count_words, fails), [encode_pairs([("k", [1])])])


@pytest.mark.parametrize(
    ("function", "name"),
    [(count_words, "count_words"), (partial(count_words), "count_words"), (len, "len"), (Counter(), "Counter")],
)
def test_functions_have_names(function: Callable[..., Any], name: str) -> None:
    assert name_of(function) == name


# --- inputs from strangers ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "parts",
    [
        [],
        [b""],
        [b"[]"],
        [b"null"],
        [encode_value({})],
        [encode_value({"phase": "sort"})],
        [encode_value({"phase": "map"})],
        *[[encode_value({"phase": "map", "partitions": n})] for n in (0, -1, 65_537, 1.0, True, "1", None)],
        [map_header(DIGEST, index=0, partitions=1), b"junk"],
        [map_header(DIGEST, index=0, partitions=1), b"[[1]]"],
        [reduce_header(DIGEST, index=0), b'[["k",1]]'],
        [reduce_header(DIGEST, index=0), b'[["k",{"t":[1]}]]'],
        [reduce_header(DIGEST, index=0), b"{}"],
    ],
)
def test_inputs_that_no_foreman_sends(parts: list[bytes]) -> None:
    with pytest.raises(Malformed):
        execute(COUNT, parts)


@QUICK
@given(st.lists(st.one_of(st.binary(max_size=20), st.just(map_header(DIGEST, index=0, partitions=2))), max_size=3))
def test_any_input_is_computed_or_malformed(parts: list[bytes]) -> None:
    try:
        made = execute(Program(lambda key, value: []), parts)
    except Malformed:
        return
    assert made == [b"[]"] * 2


def test_headers_name_their_program() -> None:
    assert program_digest_of(map_header(DIGEST, index=3, partitions=7)) == DIGEST
    assert program_digest_of(reduce_header(DIGEST, index=3)) == DIGEST
    for header in (b"", b"[]", encode_value({}), encode_value({"program": 1})):
        with pytest.raises(Malformed):
            program_digest_of(header)


# --- splitting ------------------------------------------------------------------------------------


def rejoined(splits: list[bytes]) -> list[tuple[Any, Any]]:
    return [(key, value) for split in splits for key, value in decode_pairs(split)]


@QUICK
@given(st.lists(st.tuples(st.integers(), st.text(max_size=5)), max_size=20), st.integers(1, 25))
def test_splits_together_are_the_data(pairs: list[tuple[int, str]], items_per_task: int) -> None:
    splits = split_items(pairs, items_per_task)
    assert rejoined(splits) == pairs
    assert len(splits) == -(-len(pairs) // items_per_task)
    assert all(1 <= len(decode_pairs(split)) <= items_per_task for split in splits)


def test_dictionaries_are_taken_in_key_order_and_pairs_in_their_own() -> None:
    assert split_items({"b": 1, "a": 2}) == [b'[["a",2]]', b'[["b",1]]']
    assert split_items([("b", 1), ("a", 2)]) == [b'[["b",1]]', b'[["a",2]]']
    assert split_items(iter([("b", 1), ("b", 2)])) == [b'[["b",1]]', b'[["b",2]]']


def test_few_items_make_a_task_each_and_many_are_put_together() -> None:
    assert len(split_items([(n, n) for n in range(TASKS_BY_ITEM)])) == TASKS_BY_ITEM
    pairs = [(n, n) for n in range(3 * TASKS_BY_ITEM + 1)]
    splits = split_items(pairs)
    assert len(splits) <= TASKS_BY_ITEM
    assert rejoined(splits) == pairs


def test_a_task_of_several_items_is_not_too_large() -> None:
    pairs = [(n, "x" * (SPLIT_BYTES // 3 if n < 10 else 2 * SPLIT_BYTES if n == 10 else 1)) for n in range(8_000)]
    splits = split_items(pairs)
    assert rejoined(splits) == pairs
    assert all(len(split) <= SPLIT_BYTES or len(decode_pairs(split)) == 1 for split in splits)


@pytest.mark.parametrize("data", [3, None, 1.5])
def test_data_that_are_nothing_to_go_through(data: Any) -> None:
    with pytest.raises(ProgramError, match="has to be a dictionary or"):
        split_items(data)


@pytest.mark.parametrize("data", [[1], ["abc"], [(1,)], [(1, 2, 3)], "word", [None]])
def test_data_that_are_no_pairs(data: Any) -> None:
    with pytest.raises(ProgramError, match=r"is not a \(key, value\) pair"):
        split_items(data)


def test_data_that_cannot_travel() -> None:
    with pytest.raises(ValueNotPortable, match="data: "):
        split_items({"k": {1}})
    with pytest.raises(ValueNotPortable, match="data: "):
        split_items({b"k": 1})
    with pytest.raises(ProgramError, match="items_per_task"):
        split_items({}, 0)


# --- what the decorators recorded -----------------------------------------------------------------


def in_module(name: str, *functions: Callable[..., Any]) -> None:
    for function in functions:
        function.__module__ = name


def test_decorators_note_down_and_change_nothing() -> None:
    def map_it(key: Any, value: Any) -> Any: ...
    def reduce_it(key: Any, values: Any) -> Any: ...
    def combine_it(key: Any, values: Any) -> Any: ...

    in_module("one program", map_it, reduce_it, combine_it)
    assert mark_mapper(map_it) is map_it
    assert mark_reducer(reduce_it) is reduce_it
    assert mark_combiner(combine_it) is combine_it
    assert program_for("one program") == Program(map_it, reduce_it, combine_it)
    # Said outright: what the module recorded may belong to another program.
    assert program_for("one program", mapper=count_words) == Program(count_words)
    assert program_for("one program", reducer=total) == Program(map_it, total, combine_it)


def test_a_cell_that_runs_again_replaces_what_it_recorded() -> None:
    def make() -> Callable[..., Any]:
        def map_it(key: Any, value: Any) -> Any: ...

        in_module("a notebook", map_it)
        return mark_mapper(map_it)

    make()
    last = make()
    assert program_for("a notebook").mapper is last


def test_no_mapper_or_several_are_errors_that_say_what_to_do() -> None:
    def one(key: Any, value: Any) -> Any: ...
    def two(key: Any, value: Any) -> Any: ...

    with pytest.raises(ProgramError, match="no mapper: mark a function of module empty"):
        program_for("empty")
    in_module("full", one, two)
    mark_mapper(one)
    mark_mapper(two)
    with pytest.raises(ProgramError, match=r"several mappers .*one.*two.*run_job\(data, mapper="):
        program_for("full")
    assert program_for("full", mapper=one).mapper is one


@pytest.mark.parametrize("role", ["mapper", "reducer", "combiner"])
def test_only_functions_can_be_marked_or_given(role: str) -> None:
    mark: Callable[[Any], Any] = {"mapper": mark_mapper, "reducer": mark_reducer, "combiner": mark_combiner}[role]
    with pytest.raises(ProgramError, match=f"@ec262.{role} marks a function, not a int"):
        mark(3)
    given = {"mapper": count_words, role: 3}
    with pytest.raises(ProgramError, match=f"{role}= takes a function"):
        program_for("any", **given)  # type: ignore[arg-type]


def test_the_calling_module_is_known() -> None:
    assert calling_module(1) == __name__
