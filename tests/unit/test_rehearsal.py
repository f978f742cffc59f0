"""The rehearsal: real sandboxes, real forks. Budgets are so large or so small that no machine's speed matters."""

from __future__ import annotations

import ctypes
import functools
import gc
import itertools
import json
import os
import random
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import ec262
from ec262.errors import ProgramError, ValueNotPortable
from ec262.foreman import rehearsal
from ec262.foreman.original import run_original
from ec262.foreman.rehearsal import rehearse
from ec262.foreman.sample import Sample, sample_of
from ec262.mapreduce.blocks import batches_of, encode_results
from ec262.mapreduce.program import Program, map_header
from ec262.mapreduce.records import Reader
from ec262.mapreduce.split import BlocksSplit, PairsSplit, RecordsSplit, split_items
from ec262.protocol.canonical import decode_pairs, encode_pairs
from ec262.sandbox.executor_program import executor_program
from ec262.sandbox.launcher import Sandbox
from ec262.sandbox.pack import pack_program
from ec262.sandbox.policy import DEFAULT
from tests.processes import ROOT, nothing_left

AMPLE_S = 60.0


def splits_of(data: Any, items_per_task: int | None = None) -> list[PairsSplit]:
    return [PairsSplit(part) for part in split_items(data, items_per_task)]


LINES = {number: f"{number} the quick brown fox jumps over the lazy dog {'again ' * number}" for number in range(5)}
SAMPLE = sample_of(splits_of(LINES))


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nothing is known before a test; no process, thread or descriptor is left after it."""
    monkeypatch.setattr(rehearsal, "_known", {})
    threads, descriptors = threading.active_count(), set(os.listdir("/proc/self/fd"))
    with nothing_left():
        yield
    assert threading.active_count() == threads
    gc.collect()
    # Fewer than before is chance: what earlier tests left to the collector. Listing the directory takes one itself.
    assert len(os.listdir("/proc/self/fd")) <= len(descriptors)


def try_out(program: Program, **options: Any) -> None:
    rehearse(program, pack_program(program), options.pop("sample", SAMPLE), **{"budget_s": AMPLE_S, **options})


def refused(program: Program, kind: type[ProgramError] = ProgramError, **options: Any) -> str:
    """What is said against a program, and that it is said again the next time."""
    for _ in range(2):
        with pytest.raises(kind) as caught:
            try_out(program, **options)
        assert type(caught.value) is kind
    return str(caught.value)


def line_of(function: Callable[..., Any], more: int = 0) -> str:
    return f"{function.__code__.co_filename}:{function.__code__.co_firstlineno + more}"


# --- programs -------------------------------------------------------------------------------------


def words(_: Any, line: str) -> Any:
    for word in line.split():
        yield word, 1


def total(_: Any, counts: list[int]) -> int:
    return sum(counts)


def share(_: Any, counts: list[int]) -> float:
    return sum(count / 7 for count in counts)


def lengths(_: Any, line: str) -> Any:
    for word in line.split():
        yield len(word) % 2, len(line)


def mean(_: Any, values: list[float]) -> float:
    return sum(values) / len(values)


def unordered(_: Any, line: str) -> Any:
    yield "before", 1
    yield "words", list(set(line.split()))


def unordered_total(_: Any, values: list[list[str]]) -> Any:
    return list({word for value in values for word in value})


def sorted_words(_: Any, line: str) -> Any:
    yield "words", sorted(set(line.split()))


def one_number(_: Any, __: Any) -> Any:
    return 3


def one_text(_: Any, line: str) -> Any:
    yield line


def a_set(_: Any, line: str) -> Any:
    yield "words", set(line.split())


def gives_a_set(_: Any, values: list[int]) -> Any:
    return set(values)


def opens(_: Any, __: Any) -> Any:
    yield 1, 1
    yield 2, open("/etc/hostname").read()  # noqa: SIM115 - never opened


def connects(_: Any, __: Any) -> Any:
    import socket  # noqa: PLC0415 - found when it is called

    yield 1, socket.gethostname()


def with_numpy(key: Any, _: Any) -> Any:
    import numpy  # type: ignore[import-not-found, unused-ignore]  # noqa: PLC0415

    yield key, float(numpy.zeros(1)[0])


def divides(key: Any, _: Any) -> Any:
    yield key, 1 // 0


def divides_by_total(_: Any, __: Any) -> Any:
    return 1 // 0


class Forgetful:
    """Loses on its way what it needs."""

    def __init__(self) -> None:
        self.factor = 3

    def __getstate__(self) -> dict[str, int]:
        return {}


class Changed(Forgetful):
    """Comes back as another."""

    def __getstate__(self) -> dict[str, int]:
        return {"factor": 4}


FORGETFUL, CHANGED = Forgetful(), Changed()
SEEN: list[Any] = []
COUNTS = {"calls": 0}
TOUCHED = [""]


def uses_forgetful(key: Any, _: Any) -> Any:
    yield key, FORGETFUL.factor


def reduces_forgetful(_: Any, values: list[Any]) -> Any:
    return FORGETFUL.factor * len(values)


def uses_changed(key: Any, _: Any) -> Any:
    yield key, CHANGED.factor


def numbers_its_calls(key: Any, _: Any) -> Any:
    COUNTS["calls"] += 1
    yield key, COUNTS["calls"]


def remembers(key: Any, line: str) -> Any:
    SEEN.append(key)
    print("to standard output", flush=True)
    yield key, len(line)


def writes_if_it_can(key: Any, _: Any) -> Any:
    try:
        with open(TOUCHED[0], "w") as file:
            file.write("touched")
    except Exception:
        pass
    yield key, 1


def draws(key: Any, _: Any) -> Any:
    yield key, random.random()


def imports_when_called(key: Any, _: Any) -> Any:
    import colorsys  # noqa: PLC0415, F401 - not on the list

    yield key, 1


LEAST = 0


def set_up(params: Any) -> None:
    global LEAST
    LEAST = params["least"]


def counts_lines(_: Any, line: str) -> Any:
    if not LEAST:
        raise ValueError("not set up")
    ec262.counter("lines").add(ec262.param("least"))
    yield len(line), 1


def counts_by_chance(_: Any, line: str) -> Any:
    ec262.counter("places").add(1 + list(set(line.split())).index("fox"))
    yield "all", 1


def asks_where(key: Any, line: str) -> Any:
    yield ec262.input_name().split("/")[1], line


def by_length(key: str, partitions: int) -> int:
    return len(key) % partitions


def by_hash(key: str, partitions: int) -> int:
    return hash(key) % partitions


def nowhere(key: str, partitions: int) -> int:
    return partitions


def fails_to_set_up(params: Any) -> None:
    raise ValueError("no")


def lasts_for_ever(_: Any, __: Any) -> Any:
    while True:
        pass


def lasts_for_ever_later(key: Any, line: str) -> Any:
    while key > 0:
        pass
    yield key, line


def takes_all_memory(_: Any, __: Any) -> Any:
    yield 1, len(bytearray(1 << 45))


# --- the sample ------------------------------------------------------------------------------------


def test_a_sample_is_a_few_items_from_all_over() -> None:
    data = {number: "[" + '",]\\' * number for number in range(100)}
    for per_task in (1, 7, 100):
        sample = sample_of(splits_of(data, per_task))
        assert len(sample) == 8
        pairs = [pair for part in sample.parts(0, 8) for pair in decode_pairs(part)]
        assert pairs[0][0] == 0
        assert all(data[key] == value for key, value in pairs)
        assert len({key for key, _ in pairs}) == 8
    assert decode_pairs(sample_of(splits_of(data, 1)).parts(7, 8)[0])[0][0] == 99
    assert len(sample_of(splits_of({}))) == 0
    assert len(sample_of(splits_of({1: "a"}))) == 1


def test_of_splits_that_come_one_by_one_no_more_are_taken_than_needed() -> None:
    taken = []

    def splits() -> Iterator[PairsSplit]:
        for split in splits_of(dict.fromkeys(range(100), "x"), 3):
            taken.append(split)
            yield split

    assert len(sample_of(splits())) == 8
    assert len(taken) == 3


def test_of_large_items_only_the_first_is_taken() -> None:
    sample = sample_of(splits_of(dict.fromkeys(range(5), "x" * 300_000)))
    assert [key for key, _ in decode_pairs(sample.parts(0, 9)[0])] == [0]


def from_file(data: bytes, offset: int = 0, **reader: Any) -> Sample:
    return sample_of([RecordsSplit(data, offset, "a/file.txt", Reader(**reader))])


def test_long_texts_are_cut_where_a_line_ends() -> None:
    text = "".join(f"{n} a line\n" for n in range(20_000))
    brief = sample_of(splits_of({1: text, 2: "short"}, 1)).brief()
    assert brief is not None
    ((key, value),) = decode_pairs(brief.parts(0, 1)[0])
    assert key == 1
    assert text.startswith(value)
    assert 30_000 < len(value) <= 32 * 1024
    assert value.endswith(" a line\n")
    bytes_cut = sample_of(splits_of({1: bytes(100_000)})).brief()
    assert bytes_cut is not None
    assert decode_pairs(bytes_cut.parts(0, 1)[0]) == [[1, bytes(32 * 1024)]]
    for whole in ({1: "short", 2: b"x"}, {1: [*range(100_000)]}):
        assert sample_of(splits_of(whole)).brief() is None


def _last_line(key: int, value: str) -> Iterator[tuple[str, int]]:
    if not value.endswith("end"):
        raise ValueError("half a text")
    yield "lines", len(set(value.split()))


def test_a_program_that_cannot_do_with_half_an_item_is_tried_with_a_whole_one() -> None:
    sample = sample_of(splits_of({1: " ".join(f"word{n}" for n in range(20_000)) + " end"}))
    assert sample.brief() is not None
    rehearse(Program(_last_line), pack_program(Program(_last_line)), sample, budget_s=AMPLE_S)


def test_of_a_file_the_first_records_are_taken_as_they_stand_in_it() -> None:
    lines = from_file(b"".join(b"line %d\n" % number for number in range(100)), offset=70)
    assert len(lines) == 8
    assert lines.parts(0, 2) == [b"line 0\nline 1\n", b"70"]
    assert lines.parts(7, 8) == [b"line 7\n", b"119"]
    assert from_file(b"one line").parts(0, 9) == [b"one line", b"0"]
    assert len(from_file(b"")) == 0
    assert from_file(bytes(100), kind="records", record_size=7).parts(1, 3) == [bytes(14), b"7"]
    assert from_file(b"a;b;c", delimiter=b";").parts(1, 2) == [b"b;", b"2"]
    named = from_file(b"x,y\n1,2\n3,4\n", kind="csv", header=True, fields=("x", "y"))
    assert named.parts(0, 1) == [b"x,y\n1,2\n", b"0"]


def test_a_file_that_is_one_record_is_not_cut() -> None:
    assert from_file(b"a whole\nfile", kind="whole").parts(0, 1) == [b"a whole\nfile", b"0"]
    assert len(from_file(bytes(1 << 20), kind="whole")) == 0
    assert len(from_file(b'"a\n",b\n' * 100_000, kind="csv", multiline=True)) == 0


def test_results_of_an_earlier_stage_are_sampled() -> None:
    part = encode_results([(list(range(100)), list(map(str, range(100))))], where="x")
    sample = sample_of([BlocksSplit(0, lambda: part)])
    assert decode_pairs(sample.parts(0, 2)[0]) == [[0, "0"], [1, "1"]]


# --- good programs ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "program",
    [
        Program(words),
        Program(words, total),
        Program(words, total, total),
        Program(words, share, total),
        Program(sorted_words),
        Program(draws),
        Program(remembers, total),
        Program(with_numpy),
        Program(lambda key, line: [(key, line)]),
        Program(words, total, total, partitioner="range"),
        Program(words, total, partitioner=by_length),
        Program(counts_lines, total, setup=set_up, params={"least": 3}),
    ],
    ids=[
        *("map", "reduce", "combine", "floats", "sorted", "random", "state", "numpy", "lambda"),
        *("range", "partitioner", "setup"),
    ],
)
def test_nothing_is_said_against_a_good_program(program: Program) -> None:
    try_out(program)


def test_files_are_tried_with_their_names_and_readers() -> None:
    rehearse(Program(asks_where), pack_program(Program(asks_where)), from_file(b"a\nb\n"))
    assert len(rehearsal._known) == 1, "it ran to its end"


def test_what_is_wrong_with_the_file_is_for_the_job_to_report() -> None:
    rehearse(Program(words), pack_program(Program(words)), from_file(b"no json\n", kind="jsonl"))
    assert rehearsal._known == {}


def test_what_an_executor_maps_is_not_tried() -> None:
    try_out(executor_program("simulator", reducer=total))


def test_partitioners_and_counters_have_to_be_deterministic() -> None:
    assert f"or partitioner by_hash ({line_of(by_hash)})" in refused(Program(words, total, partitioner=by_hash))
    assert "from 0 to 1" in refused(Program(words, total, partitioner=nowhere))
    said = refused(Program(counts_by_chance))
    assert "is not deterministic" in said
    assert "'counter places'" in said


def test_a_setup_that_fails_anyway_is_for_the_job_to_report() -> None:
    try_out(Program(words, setup=fails_to_set_up))
    assert rehearsal._known == {}


def test_a_good_program_is_tried_once(monkeypatch: pytest.MonkeyPatch) -> None:
    try_out(Program(words, total))
    monkeypatch.setattr(rehearsal, "_Rehearsal", None)
    try_out(Program(words, total))
    with pytest.raises(TypeError):
        try_out(Program(words))


def test_without_items_there_is_nothing_to_try() -> None:
    try_out(Program(lasts_for_ever), sample=sample_of([]))


def test_a_program_may_be_tried_in_any_thread() -> None:
    said: list[str] = []
    thread = threading.Thread(target=lambda: said.append(refused(Program(unordered))))
    thread.start()
    thread.join()
    assert "not deterministic" in said[0]


# --- what cannot be shipped --------------------------------------------------------------------------


def test_what_the_sandbox_does_not_have_is_named_with_its_line() -> None:
    said = refused(Program(opens))
    assert f"mapper opens ({line_of(opens)}): function open is not available in the sandbox" in said
    assert line_of(opens, 2) in said
    said = refused(Program(connects))
    assert "module socket is not available in the sandbox" in said
    assert line_of(connects, 1) in said
    assert "colorsys" in refused(Program(imports_when_called))


def test_what_fails_only_when_shipped_is_an_error() -> None:
    said = refused(Program(uses_forgetful))
    assert said.startswith(f"mapper uses_forgetful ({line_of(uses_forgetful)}) fails in the sandbox")
    assert f"has no attribute 'factor' (at {line_of(uses_forgetful, 1)})" in said
    said = refused(Program(words, reduces_forgetful))
    assert said.startswith("reducer reduces_forgetful")
    said = refused(Program(words, total, reduces_forgetful))
    assert said.startswith("combiner reduces_forgetful")


def test_what_fails_anyway_is_for_the_job_to_report() -> None:
    for program in (Program(divides), Program(words, divides_by_total), Program(takes_all_memory)):
        try_out(program)
        assert rehearsal._known == {}


# --- what it gives ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("program", "kind", "words"),
    [
        (Program(one_number), ProgramError, "mapper one_number: returned a int for key 0"),
        (Program(one_text), ProgramError, "mapper one_text: gave '0 the quick"),
        (Program(a_set), ValueNotPortable, "mapper a_set: the value of key 'words' is or holds a builtins.set"),
        (Program(words, gives_a_set), ValueNotPortable, "reducer gives_a_set: the value of key '0' is or holds"),
    ],
    ids=["number", "text", "set", "reducer"],
)
def test_what_is_no_pair_or_cannot_travel_is_named(program: Program, kind: type[ProgramError], words: str) -> None:
    said = refused(program, kind)
    assert words in said
    assert line_of(program.reducer or program.mapper) in said


def test_a_program_that_depends_on_the_order_of_sets_is_shown() -> None:
    said = refused(Program(unordered, None))
    assert said.startswith(f"mapper unordered ({line_of(unordered)}) is not deterministic")
    assert "for key 'words' first [['" in said
    assert "'before'" not in said
    assert refused(Program(sorted_words, unordered_total)).startswith("reducer unordered_total")


def test_a_program_that_changes_on_its_way_is_shown() -> None:
    said = refused(Program(uses_changed))
    assert said.startswith(f"mapper uses_changed ({line_of(uses_changed)}) gives another result when it is shipped")
    assert "for key 0 shipped [4], here [3]" in said
    said = refused(Program(numbers_its_calls))
    assert "for key 1 shipped [1], here [2]" in said
    assert COUNTS == {"calls": 0}


def test_a_program_whose_state_moved_on_since_it_was_packed_is_not_blamed(monkeypatch: pytest.MonkeyPatch) -> None:
    program = Program(numbers_its_calls)
    packed = pack_program(program)
    monkeypatch.setitem(COUNTS, "calls", 7)
    rehearse(program, packed, SAMPLE, budget_s=AMPLE_S)


def test_a_combiner_that_does_not_suit_is_shown() -> None:
    said = refused(Program(lengths, mean, mean))
    assert said.startswith(f"combiner mean ({line_of(mean)}) does not suit reducer mean")
    assert "for key 0 with " in said
    # A reducer that cannot do without its combiner has nothing to be compared with.
    try_out(Program(words, lambda _, pairs: sum(pair[0] for pair in pairs), lambda _, counts: (sum(counts), 1)))


# --- bounds, and the author's process ---------------------------------------------------------------


def test_what_takes_long_is_left_to_the_job() -> None:
    try_out(Program(lasts_for_ever), budget_s=0.3)
    try_out(Program(lasts_for_ever_later), budget_s=2.0)
    try_out(Program(unordered), budget_s=0.0)
    assert len(rehearsal._known) == 3, "and not tried again"


def test_it_ends_when_asked_to() -> None:
    asked = itertools.count()
    try_out(Program(lasts_for_ever), stop=lambda: next(asked) > 5)
    assert rehearsal._known == {}


def test_nothing_of_it_is_seen_in_the_authors_process(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    state = random.getstate()
    try_out(Program(remembers))
    try_out(Program(draws))
    assert SEEN == []
    assert random.getstate() == state
    assert capfd.readouterr() == ("", "")
    TOUCHED[0] = str(tmp_path / "touched")
    try_out(Program(writes_if_it_can))
    assert not list(tmp_path.iterdir())


def test_without_a_sandbox_programs_are_tried_all_the_same() -> None:
    unconfined = replace(DEFAULT, seccomp=False, landlock=False, namespaces=())
    try_out(Program(words, total, total), policy=unconfined)
    assert "not deterministic" in refused(Program(unordered), policy=unconfined)


def test_where_not_even_an_interpreter_starts_the_job_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rehearsal, "Sandbox", functools.partial(Sandbox, python="/nowhere/python"))
    try_out(Program(unordered))
    assert rehearsal._known == {}


# --- the functions themselves, in a fork -----------------------------------------------------------


def original(mapper: Callable[..., Any], within_s: float = AMPLE_S, stop: bool = False) -> Any:
    def steps() -> Any:
        for number in range(2):
            yield [map_header("p", index=number, partitions=1), encode_pairs([(number, "a b")])]

    return run_original(Program(mapper), steps, within_s, lambda: stop)


def die(_: Any, __: Any) -> Any:
    ctypes.string_at(0)
    yield 1, 1


def stop_iteration(_: Any, __: Any) -> Any:
    raise StopIteration


def test_the_original_computes_in_a_fork() -> None:
    made = original(words)
    assert [list(batches_of(result[0])) for result in made.results] == [[(["a", "b"], [[1], [1]])]] * 2
    assert made.raised == ""


def test_what_the_original_raises_is_told() -> None:
    assert original(divides).raised == "ZeroDivisionError"
    assert original(stop_iteration).raised == "StopIteration"
    assert original(lambda *_: sys.exit(3)).raised == "SystemExit"
    assert original(lambda *_: os.kill(os.getppid(), 9)).raised == "PermissionError"
    assert original(lambda *_: tempfile.mkdtemp()).raised in ("PermissionError", "FileNotFoundError")


def test_of_an_original_that_does_not_end_well_nothing_is_known() -> None:
    assert original(lasts_for_ever, within_s=0.2) is None
    assert original(lasts_for_ever, stop=True) is None
    assert original(die) is None
    assert original(lambda *_: os._exit(0)) is None


# --- through run_job ----------------------------------------------------------------------------------

JOB = """
import json, ec262
def words(key, line):
    for word in line.split():
        yield word, 1
def unordered(key, line):
    yield "all", list(set(line.split()))
def unshippable(key, line):
    import socket
    yield key, socket.gethostname()
if __name__ == "__main__":
    data = {1: "the quick brown fox jumps over the lazy dog", 2: "to be or not to be"}
    first = ec262.submit(data, mapper=words)
    first.result()
    said, spent = [], []
    for mapper in (unordered, unshippable):
        job = ec262.submit(data, mapper=mapper)
        try:
            job.result()
        except ec262.ProgramError as reason:
            said.append(str(reason))
        spent.append(job.report().credits_spent)
    last = ec262.submit(data, mapper=words)
    last.result()
    off = ec262.run_job(data, mapper=unordered, rehearse=False)
    print(json.dumps([said, spent, first.report().balance_after - last.report().balance_before, len(off["all"])]))
"""


def test_run_job_refuses_before_a_credit_is_spent(tmp_path: Path) -> None:
    path = tmp_path / "program.py"
    path.write_text(JOB)
    environment = {**os.environ, "HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}
    for name in ("EC262_DISCOVERY", "EC262_ACCOUNT", "EC262_SECRET", "EC262_HOME"):
        environment.pop(name, None)
    done = subprocess.run(
        [sys.executable, str(path)], env=environment, capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 0, done.stderr
    said, spent, difference, values = json.loads(done.stdout)
    assert f"mapper unordered ({path}:6) is not deterministic" in said[0]
    assert f"mapper unshippable ({path}:8): module socket is not available" in said[1]
    assert f"{path}:9" in said[1]
    assert (spent, difference, values) == ([0, 0], 0, 2)
