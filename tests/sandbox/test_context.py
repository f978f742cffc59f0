"""What a running task may ask: counters, parameters, the name of its input; and that nothing else hangs on it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

import ec262
from ec262 import counter
from ec262.errors import ProgramError, ValueNotPortable
from ec262.mapreduce.blocks import batches_of, pairs_of
from ec262.mapreduce.program import Program, map_header, reduce_header, split_counters
from ec262.mapreduce.records import Reader
from ec262.protocol.canonical import encode_pairs, encode_value
from ec262.sandbox.launcher import Outcome, Sandbox, UnitTask
from ec262.sandbox.pack import NotShippable, load_program, pack_program
from ec262.sandbox.policy import DEFAULT
from tests.sandbox.test_pack import _from_elsewhere, _pythons

TASK = [map_header("p", index=0, partitions=1), encode_pairs([("key", 1), ("other", 2)])]
LIMIT = 0


def by_module(key: Any, value: Any) -> Any:
    ec262.counter("seen").add()
    yield key, ec262.param("factor") * value


def by_name(key: Any, value: Any) -> Any:
    counter("seen").add()
    yield key, ec262.param("factor", 9) * value


def inside(key: Any, value: Any) -> Any:
    import ec262 as local  # noqa: PLC0415
    from ec262 import counter as count  # noqa: PLC0415
    from ec262 import param  # noqa: PLC0415

    count("seen").add(value - value)
    local.counter("seen").add(1)
    yield key, param("factor") * value


@ec262.mapper
def decorated(key: Any, value: Any) -> Any:
    ec262.counter("seen").add()
    yield key, LIMIT * value


@ec262.reducer
def total(key: Any, values: list[Any]) -> Any:
    counter("reduced").add(len(values))
    return sum(values)


def set_limit(params: Any) -> None:
    global LIMIT
    LIMIT += params["factor"]  # a task that began with another's globals would have more


@pytest.fixture(scope="module", params=["language", "plain"])
def sandbox(request: pytest.FixtureRequest) -> Iterator[Sandbox]:
    with Sandbox(policy=replace(DEFAULT, language=request.param == "language")) as made:
        yield made


@pytest.fixture(scope="module")
def confined() -> Iterator[Sandbox]:
    with Sandbox() as made:
        yield made


@pytest.fixture(scope="module", params=_pythons() or [""], ids=lambda path: path.split("/")[-3] if path else "none")
def other_python(request: pytest.FixtureRequest) -> Iterator[Sandbox]:
    if not request.param:
        pytest.skip("no other Python on this machine")
    with Sandbox(python=request.param) as made:
        yield made


def run(sandbox: Sandbox, blob: bytes, *tasks: list[bytes]) -> list[Outcome]:
    """The outcomes of tasks of one unit."""
    waiting = [UnitTask(number, parts) for number, parts in enumerate(tasks)][::-1]
    outcomes: list[Outcome] = []
    sandbox.run_unit(blob, lambda: waiting.pop() if waiting else None, lambda _, outcome: outcomes.append(outcome))
    return outcomes


def mapped(outcome: Outcome) -> tuple[dict[Any, Any], dict[str, int]]:
    assert outcome.kind == "ok", outcome.error
    (part,), counts = split_counters(outcome.parts, 1)
    return {key: values for keys, groups in batches_of(part) for key, values in zip(keys, groups, strict=True)}, counts


@pytest.mark.parametrize("form", ["pickle", "source"])
@pytest.mark.parametrize("mapper", [by_module, by_name, inside, decorated], ids=lambda mapper: mapper.__name__)
def test_a_task_counts_and_asks_for_parameters(mapper: Any, form: str, sandbox: Sandbox) -> None:
    blob = pack_program(Program(mapper, setup=set_limit, params={"factor": 3}))
    for outcome in run(sandbox, blob if form == "pickle" else _from_elsewhere(blob), *[TASK] * 3):
        assert mapped(outcome) == ({"key": [3], "other": [6]}, {"seen": 2})  # every task begins anew


@pytest.mark.parametrize("mapper", [by_module, by_name, inside, decorated], ids=lambda mapper: mapper.__name__)
def test_also_on_another_python(mapper: Any, other_python: Sandbox) -> None:
    blob = pack_program(Program(mapper, total, setup=set_limit, params={"factor": 3}))
    for outcome in run(other_python, blob, TASK, TASK):
        assert mapped(outcome) == ({"key": [3], "other": [6]}, {"seen": 2})


def test_reducers_count_too(sandbox: Sandbox) -> None:
    blob = pack_program(Program(by_module, total, params={"factor": 2}))
    (outcome,) = run(sandbox, blob, TASK)
    (outcome,) = run(sandbox, blob, [reduce_header("p", index=0), outcome.parts[0], outcome.parts[0]])
    (part,), counts = split_counters(outcome.parts, 1)
    assert dict(pairs_of(part)) == {"key": 4, "other": 8}
    assert counts == {"reduced": 4}


def where_from(key: Any, value: Any) -> Any:
    yield value, ec262.input_name()


def test_the_name_of_the_input_is_known(sandbox: Sandbox) -> None:
    spec = {"format": "records", "name": "a/book.txt", "reader": Reader().to_wire()}
    task = [map_header("p", index=0, partitions=1, spec=spec), b"x", encode_value(0)]
    blob = pack_program(Program(where_from))
    first, second = run(sandbox, blob, task, TASK)
    assert mapped(first)[0] == {"x": ["a/book.txt"]}
    assert mapped(second)[0] == {1: [""], 2: [""]}


def deal(key: Any, partitions: int) -> int:
    counter("dealt").add()
    return LIMIT % partitions


@pytest.mark.parametrize("form", ["pickle", "source"])
@pytest.mark.parametrize(
    ("partitioner", "filled"), [(deal, [2]), ("hash", None), ("range", [0, 3])], ids=["own", "hash", "range"]
)
def test_partitioners_travel(partitioner: Any, filled: Any, form: str, sandbox: Sandbox) -> None:
    program = Program(by_module, partitioner=partitioner, setup=set_limit, params={"factor": 2})
    header = map_header("p", index=0, partitions=4, bounds=["l", "m", "n"] if partitioner == "range" else ())
    blob = pack_program(program)
    (outcome,) = run(sandbox, blob if form == "pickle" else _from_elsewhere(blob), [header, TASK[1]])
    assert outcome.kind == "ok", outcome.error
    parts, counts = split_counters(outcome.parts, 4)
    if filled is not None:
        assert [number for number, part in enumerate(parts) if part] == filled
    assert counts.get("dealt", 0) == (2 if partitioner is deal else 0)


def test_only_what_a_task_needs_travels() -> None:
    program = Program(by_module, params={"b": 1, "a": (1, b"x", {"c": None})}, required=("b",), output_format="json")
    blob = pack_program(program)
    loaded = load_program(blob)
    assert loaded.params == program.params
    assert (loaded.required, loaded.output_format, loaded.reader, loaded.setup) == ((), "text", None, None)
    again = Program(by_module, params={"a": (1, b"x", {"c": None}), "b": 1})
    assert pack_program(again) == blob


def test_a_parameter_that_cannot_travel_is_named() -> None:
    with pytest.raises(ValueNotPortable, match=r"parameter 'files'.*set"):
        pack_program(Program(by_module, params={"ok": 1, "files": {1, 2}}))
    with pytest.raises(ValueNotPortable, match="3 is not a name"):
        pack_program(Program(by_module, params={3: 1}))  # type: ignore[dict-item]


def uses_os(params: Any) -> None:
    import os  # noqa: PLC0415

    os.getcwd()


LOCK = __import__("threading").Lock()


def locks(*_: Any) -> Any:
    with LOCK:
        return 1


def uses_errors(key: Any, value: Any) -> Any:
    raise ProgramError("a text")


def uses_run_job(key: Any, value: Any) -> Any:
    yield key, RUN_JOB({})


RUN_JOB = ec262.run_job


def test_roles_are_named_in_errors(confined: Sandbox) -> None:
    with pytest.raises(NotShippable, match=r"setup locks .*'LOCK'"):
        pack_program(Program(by_module, setup=locks))
    with pytest.raises(NotShippable, match=r"partitioner locks .*'LOCK'"):
        pack_program(Program(by_module, partitioner=locks))
    with pytest.raises(NotShippable, match=r"uses_errors .*'ProgramError'.*not available in the sandbox"):
        pack_program(Program(uses_errors))
    with pytest.raises(NotShippable, match=r"uses_run_job .*'RUN_JOB'.*not available in the sandbox"):
        pack_program(Program(uses_run_job))
    (outcome,) = run(confined, pack_program(Program(by_module, setup=uses_os)), TASK)
    assert outcome.error is not None
    assert "module os is not available" in outcome.error.message


# --- nothing else hangs on it -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "source",
    [
        "ec262.protocol",
        "ec262.sandbox",
        "ec262.run_job",
        "ec262.errors",
        "ec262.mapreduce",
        "ec262.context",
        "ec262.config",
    ],
)
def test_no_other_module_of_ec262_can_be_named(source: str, confined: Sandbox) -> None:
    """Neither as an attribute nor by any form of import."""
    module, _, name = source.partition(".")
    for lines in (f"import {module}\n    {source}", f"from {module} import {name}", f"import {source}"):
        space: dict[str, Any] = {}
        exec(f"def mapper(key, value):\n    {lines}\n    yield key, 'reached'", space)
        (outcome,) = run(confined, pack_program(Program(space["mapper"])), TASK)
        assert outcome.error is not None, lines
        assert "not available in the sandbox" in outcome.error.message


def looks_around(key: Any, value: Any) -> Any:
    names = sorted(name for name in dir(ec262) if not name.startswith("_"))
    reachable = []
    waiting = [ec262.counter, ec262.param, ec262.input_name, ec262.counter("x").add, ec262.__getattr__]
    for function in waiting:
        inner = getattr(function, "__func__", function)
        reachable += [name for name, thing in inner.__globals__.items() if type(thing) is type(ec262)]
        reachable += [str(inner.__closure__)] if inner.__closure__ else []
    yield key, [names, reachable, sorted(ec262.__all__)]


def test_it_has_its_three_names_and_leads_to_no_module(confined: Sandbox) -> None:
    (outcome,) = run(confined, pack_program(Program(looks_around)), TASK)
    names = ["counter", "input_name", "param"]
    assert mapped(outcome)[0]["key"] == [[names, [], names]]


def vandal(key: Any, value: Any) -> Any:
    """Breaks what it can for the tasks after it."""
    held = getattr(ec262, "held", None) if "held" in vars(ec262) else None
    seen = [held is None, ec262.param("factor"), ec262.input_name(), "stowed" in ec262.counter.__globals__]
    ec262.held = ec262.counter("forged")
    ec262.counter.__globals__["stowed"] = 1
    type(ec262.counter("x")).add = lambda *_: None  # type: ignore[method-assign]
    ec262.counter.__globals__["MAX_COUNTERS"] = 0
    ec262.param.__globals__["_task"] = None
    ec262.counter = ec262.param = ec262.input_name = None  # type: ignore[assignment]
    yield "seen", seen


def test_no_task_leaves_anything_in_it_for_the_next(confined: Sandbox) -> None:
    only = [TASK[0], encode_pairs([("key", 1)])]
    outcomes = run(confined, pack_program(Program(vandal, params={"factor": 5})), *[only] * 4)
    assert {json.dumps(mapped(outcome)) for outcome in outcomes} == {json.dumps(({"seen": [[True, 5, "", False]]}, {}))}


def miscounts(key: Any, value: Any) -> Any:
    ec262.counter("x").add(-1)
    yield key, value


def test_errors_name_the_authors_line_and_not_the_workers_files(sandbox: Sandbox) -> None:
    (outcome,) = run(sandbox, pack_program(Program(miscounts)), TASK)
    error = outcome.error
    assert error is not None
    assert "a whole number from 0" in error.message
    assert error.line == f"{__file__}:{miscounts.__code__.co_firstlineno + 1}"
    assert "mapreduce" not in error.traceback
    assert "<ec262>" not in error.traceback
