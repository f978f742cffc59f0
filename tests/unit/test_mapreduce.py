"""MapReduce without a network: from input parts to output parts, the same bytes however the data were cut."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any, cast

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ec262.errors import Malformed, ProgramError, ValueNotPortable
from ec262.mapreduce import context
from ec262.mapreduce.blocks import EMPTY, encode_grouped, pairs_of
from ec262.mapreduce.partition import bounds_of, partition_of
from ec262.mapreduce.program import (
    Program,
    execute,
    map_header,
    name_of,
    program_digest_of,
    reduce_header,
    run_reduce,
    split_counters,
)
from ec262.mapreduce.program import run_map as run_map_records
from ec262.mapreduce.recorded import calling_module, program_for
from ec262.mapreduce.recorded import combiner as mark_combiner
from ec262.mapreduce.recorded import mapper as mark_mapper
from ec262.mapreduce.recorded import reducer as mark_reducer
from ec262.mapreduce.records import Reader
from ec262.mapreduce.split import SPLIT_BYTES, TASKS_BY_ITEM, RecordsSplit
from ec262.mapreduce.split import split_items as splits_of
from ec262.protocol.canonical import decode_pairs, encode_pairs, encode_value, sort_key
from ec262.protocol.framing import frame_parts

QUICK = settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow])
DIGEST = "d" * 64
words = st.text("abcde", min_size=1, max_size=2)
lines = st.lists(st.lists(words, max_size=6).map(" ".join), max_size=12)


def count_words(_: Any, line: str) -> Iterator[tuple[str, int]]:
    for word in line.split():
        yield word, 1


def total(_: Any, counts: list[int]) -> int:
    return sum(counts)


def run_map(program: Program, parts: Iterable[bytes], partitions: int) -> list[bytes]:
    """Maps the canonical pairs in `parts`."""
    return run_map_records(program, [(key, value) for part in parts for key, value in decode_pairs(part)], partitions)


def read(part: bytes) -> list[list[Any]]:
    """The pairs of a result."""
    return [[key, value] for key, value in pairs_of(part)]


def split_items(data: Any, items_per_task: int | None = None) -> list[bytes]:
    """All splits."""
    return list(splits_of(data, items_per_task))


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
        for key, value in pairs_of(reduced):
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
    parts = [read(part) for part in run_map(COUNT, [split], partitions)]
    assert len(parts) == partitions
    for number, part in enumerate(parts):
        assert all(partition_of(key, partitions) == number for key, _ in part)
        assert part == sorted(part)
    assert sorted(pair for part in parts for pair in part) == read(whole)


@QUICK
@given(lines)
def test_how_a_task_was_cut_does_not_show(text: list[str]) -> None:
    """The input of one task as one part or as several gives the same bytes."""
    pairs = list(enumerate(text))
    cut = [encode_pairs([pair]) for pair in pairs]
    assert run_map(COUNT_COMBINED, cut, 3) == run_map(COUNT_COMBINED, [encode_pairs(pairs)], 3)


def test_a_combiner_makes_one_value_a_key() -> None:
    split = encode_pairs([(0, "a b a"), (1, "a")])
    assert read(run_map(COUNT, [split], 1)[0]) == [["a", [1, 1, 1]], ["b", [1]]]
    assert read(run_map(COUNT_COMBINED, [split], 1)[0]) == [["a", [3]], ["b", [1]]]


def test_without_a_reducer_the_values_are_listed_in_the_order_of_the_input() -> None:
    program = Program(lambda key, value: [(value, key)])
    assert run(program, split_items([(1, "x"), (2, "y"), (3, "x"), (0, "x")]), 2) == {"x": [1, 3, 0], "y": [2]}


def test_nothing_gives_nothing() -> None:
    assert split_items({}) == []
    assert run_map(COUNT, [], 2) == [EMPTY, EMPTY]
    assert run_reduce(COUNT, []) == EMPTY
    assert execute(COUNT, [map_header(DIGEST, index=0, partitions=1)]) == [EMPTY]


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
    keys = ["b", None, (1,), 2, True, b"a", "a", 1.5, 0]
    (mapped,) = run_map(program, [encode_pairs([(key, 0) for key in keys])], 1)
    ordered = [key for key, _ in pairs_of(run_reduce(program, [mapped]))]
    assert ordered == [None, 0, True, 1.5, 2, "a", "b", b"a", (1,)]


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
        *[(bytearray(), "bytearray"), (frozenset(), "frozenset"), (1j, "complex")],
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
        run_reduce(Program(count_words, bad), [encode_grouped(["k"], [[1]], where="")])
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
    assert read(run_map(gives(["k", 1]), ONE, 1)[0]) == [["k", [1]]]
    assert read(run_map(Program(lambda key, value: {"k": 1}.items()), ONE, 1)[0]) == [["k", [1]]]


def test_exceptions_of_the_program_come_through() -> None:
    def fails(_: Any, __: Any) -> Any:
        raise ZeroDivisionError("its own")

    for program in (Program(fails), Program(lambda k, v: [(k, v)], None, fails)):
        with pytest.raises(ZeroDivisionError, match="its own"):
            run_map(program, ONE, 1)
    with pytest.raises(ZeroDivisionError):
        run_reduce(Program(count_words, fails), [encode_grouped(["k"], [[1]], where="")])


@pytest.mark.parametrize(
    ("function", "name"),
    [(count_words, "count_words"), (partial(count_words), "count_words"), (len, "len"), (Counter(), "Counter")],
)
def test_functions_have_names(function: Callable[..., Any], name: str) -> None:
    assert name_of(function) == name


# --- inputs from strangers ------------------------------------------------------------------------


NO_BLOCKS: list[list[bytes]] = [
    *[[b"j[1]"], [b"j[1]", b"j[[1]]", b"j[1]"], [b"j[1]", b"j[1]"], [b"j[1]", b"j[[1],[2]]"], [b"j[[1]]", b"j[[1]]"]],
    *[
        [b"j1", b"j[[1]]"],
        [b"", b""],
        [b"x", b"y"],
        [b"j[1]", b"f"],
        [b"j[1]", b"v\0\0\0\1"],
        [b"f" + bytes(8), b"j[[1]]"],
    ],
    # Attack: a column of empty items that claims more of them than memory has.
    [b"f\xff\xff\xff\xff\0\0\0\0", b"j[]"],
    [b"j[1]", b"v\xff\xff\xff\xff"],
    *[[b"j[1]", b"l\0\0\0\3[2]j[1]"], [b"j[1]", b"l\0\0\0\4[-1]j[]"], [b"j[1]", b"l\xff\0\0\0j[1]"]],
    [b"j[1]", b"l\0\0\0\0l\0\0\0\0j[1]"],
]
NO_INPUTS: list[Any] = [
    *[None, "pairs", {}, {"format": "rows"}, {"format": "records"}],
    {"format": "records", "name": 1, "reader": {}},
    {"format": "records", "name": "n", "reader": {"kind": "no such"}},
]


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
        [reduce_header(DIGEST, index=0), b'[["k",[1]]]'],
        *[[reduce_header(DIGEST, index=0), frame_parts(columns)] for columns in NO_BLOCKS],
        *[[encode_value({"phase": "map", "partitions": 2, "input": spec}), b"x"] for spec in NO_INPUTS],
        *[
            [encode_value({"phase": "map", "partitions": 2, "input": {"format": "pairs"}, "bounds": bounds})]
            for bounds in (None, 1, "ab", ["a", "b"], {"a": 1})
        ],
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
    assert made == [EMPTY] * 2


def test_headers_name_their_program() -> None:
    assert program_digest_of(map_header(DIGEST, index=3, partitions=7)) == DIGEST
    assert program_digest_of(reduce_header(DIGEST, index=3)) == DIGEST
    for header in (b"", b"[]", encode_value({}), encode_value({"program": 1})):
        with pytest.raises(Malformed):
            program_digest_of(header)


@pytest.mark.parametrize("bounds", [[], ["a", 1, ("index", 0)]])
@pytest.mark.parametrize(
    "spec", [{"format": "pairs"}, {"name": "x", "format": "records", "reader": {"delimiter": b"\n"}}]
)
def test_headers_are_the_canonical_form_of_what_they_say(bounds: list[Any], spec: dict[str, Any]) -> None:
    fields = {"phase": "map", "program": DIGEST, "index": 12, "partitions": 7, "input": spec}
    made = map_header(DIGEST, index=12, partitions=7, spec=spec, bounds=bounds)
    assert made == encode_value({**fields, "bounds": bounds} if bounds else fields)


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
        split_items({frozenset(): 1})
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


# --- blocks ---------------------------------------------------------------------------------------

keys = st.one_of(st.none(), st.booleans(), st.integers(), st.text(max_size=3), st.binary(max_size=3))
values = st.one_of(
    *[st.integers(0, 3), st.text(max_size=3), st.binary(max_size=2), st.binary(min_size=2, max_size=2)],
    st.lists(st.integers(0, 2), max_size=2),
    st.just([b"x"]),
)


@QUICK
@given(st.lists(st.lists(st.tuples(keys | st.text("ab", max_size=2), values), max_size=12), max_size=5))
def test_merging_sorted_parts_is_grouping_in_the_order_of_the_parts(tasks: list[list[tuple[Any, Any]]]) -> None:
    """Whatever is mixed in keys and values, and however many blocks the parts have."""
    parts = [run_map_records(Program(lambda key, value: [(key, value)]), pairs, 1)[0] for pairs in tasks]
    expected: dict[Any, list[Any]] = {}
    for pairs in tasks:
        for key, value in pairs:
            expected.setdefault(key, []).append(value)
    reduced = list(pairs_of(run_reduce(Program(count_words), parts)))
    assert reduced == sorted(expected.items(), key=lambda pair: sort_key(pair[0]))


@pytest.mark.parametrize(
    "make", [str, int, lambda n: b"%06d" % n, lambda n: (n, "x"), lambda n: n if n % 3 else str(n)]
)
def test_parts_of_many_blocks_are_merged_block_by_block(make: Callable[[int], Any]) -> None:
    numbers = [list(range(start, 9_000, 3)) for start in range(3)] + [list(range(0, 9_000, 100)), [], [4]]
    parts = [
        run_map_records(Program(lambda key, value: [(key, value)]), [(make(n), n) for n in run], 1)[0]
        for run in numbers
    ]
    reduced = list(pairs_of(run_reduce(Program(count_words, lambda key, values: values), parts)))
    assert [key for key, _ in reduced] == sorted(map(make, range(9_000)), key=sort_key)
    assert dict(reduced)[make(4)] == [4, 4]
    assert sum(len(values) for _, values in reduced) == 9_000 + 90 + 1


# --- counters, parameters, setup ------------------------------------------------------------------


def test_what_a_task_counts_is_one_more_part() -> None:
    def mapper(key: Any, value: str) -> Iterator[tuple[str, int]]:
        context.counter("lines").add()
        context.counter("characters").add(len(value))
        yield value, 1

    header = map_header(DIGEST, index=0, partitions=2)
    made = execute(Program(mapper, total), [header, encode_pairs([(0, "abc"), (1, "de")])])
    parts, counts = split_counters(made, 2)
    assert len(parts) == 2
    assert counts == {"characters": 5, "lines": 2}
    assert split_counters(execute(COUNT, [header]), 2) == ([EMPTY, EMPTY], {})
    for nonsense in ([b""], [b"", b"", b"", b""], [b"", b"", b"[]"], [b"", b"", encode_value({"a": -1})]):
        with pytest.raises(Malformed):
            split_counters(nonsense, 2)


def test_counters_say_what_is_wrong_and_do_nothing_outside_a_task() -> None:
    context.counter("anything").add(3)
    for amount in (-1, 1.5, True, "1", None):
        with pytest.raises(ProgramError, match="takes a whole number"):
            context.counter("lines").add(amount)  # type: ignore[arg-type]
    for name in ("", "x" * 201, 1, None):
        with pytest.raises(ProgramError, match="a counter's name"):
            context.counter(name)  # type: ignore[arg-type]

    def mapper(key: Any, value: Any) -> Iterator[tuple[str, int]]:
        for number in range(1001):
            context.counter(str(number)).add()
        yield "", 1

    with pytest.raises(ProgramError, match="1000 counters already"):
        execute(Program(mapper), [map_header(DIGEST, index=0, partitions=1), ONE[0]])


def test_setup_runs_once_a_task_and_parameters_are_there() -> None:
    seen: list[Any] = []

    def mapper(key: Any, value: Any) -> Iterator[tuple[Any, Any]]:
        yield context.param("word"), context.param("missing", "default")

    program = Program(mapper, lambda key, values: values, setup=seen.append, params={"word": "w"})
    made = execute(program, [map_header(DIGEST, index=0, partitions=1), encode_pairs([(1, 1), (2, 2)])])
    assert seen == [{"word": "w"}]
    assert read(made[0]) == [["w", ["default", "default"]]]
    execute(program, [reduce_header(DIGEST, index=0), *made])
    assert len(seen) == 2
    assert context.param("word") is None  # the task is over


def test_records_of_a_file_know_its_name() -> None:
    def mapper(name: str, line: str) -> Iterator[tuple[str, str]]:
        yield context.input_name(), line

    split = RecordsSplit(b"one\r\ntwo", 0, "book.txt", Reader())
    made = execute(Program(mapper), [map_header(DIGEST, index=0, partitions=1, spec=split.spec()), *split.load()])
    assert read(made[0]) == [["book.txt", ["one", "two"]]]


# --- partitioners ---------------------------------------------------------------------------------


@QUICK
@given(st.lists(st.integers(-5, 5) | st.text("ab", max_size=2), max_size=30), st.integers(1, 6))
def test_a_range_partitioner_gives_a_total_order(keys: list[Any], partitions: int) -> None:
    program = Program(lambda key, value: [(key, value)], partitioner="range")
    bounds = bounds_of(keys, partitions)
    assert len(bounds) < partitions or (partitions == 1 and not bounds)
    parts = run_map_records(program, [(key, 0) for key in keys], partitions, bounds)
    together = [key for part in parts for key, _ in pairs_of(part)]
    assert together == sorted(set(keys), key=sort_key)


def test_bounds_cut_a_sample_into_about_equal_runs() -> None:
    assert bounds_of(list(range(100)), 4) == [25, 50, 75]
    assert bounds_of([7] * 100, 4) == [7]
    assert bounds_of([], 4) == []


def test_a_partitioner_of_ones_own() -> None:
    program = Program(count_words, total, partitioner=lambda key, partitions: len(key) % partitions)
    assert [[key for key, _ in read(part)] for part in run_map(program, [encode_pairs([(0, "a bb ccc dd")])], 2)] == [
        ["bb", "dd"],
        ["a", "ccc"],
    ]
    for wrong in (2, -1, "0", None, True):
        with pytest.raises(ProgramError, match="the partitioner gave"):
            run_map(Program(count_words, partitioner=lambda *_: cast(int, wrong)), [encode_pairs([(0, "a")])], 2)  # noqa: B023
    with pytest.raises(ProgramError, match="has to be 'hash', 'range' or a function"):
        run_map(Program(count_words, partitioner="sorted"), [encode_pairs([(0, "a")])], 2)
