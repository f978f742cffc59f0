"""Jobs without a network: planning, stages, output, what is skipped, checkpoints, and what the calls refuse."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
import textwrap
import threading
import tracemalloc
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ec262.errors import JobCancelled, ProgramError, SetupError, TaskFailed
from ec262.jobs.plan import AHEAD_BYTES, MOST_REDUCERS, UNKNOWN_REDUCERS, Source, choose_reducers, source_of
from ec262.jobs.report import Progress, describe
from ec262.jobs.run import run_job, submit
from ec262.mapreduce import context
from ec262.mapreduce.program import Program
from ec262.policy import Policy
from tests.processes import ROOT


def words(_: Any, line: str) -> Iterator[tuple[str, int]]:
    for word in line.split():
        context.counter("words").add()
        yield word, 1


def total(_: Any, counts: list[int]) -> int:
    return sum(counts)


COUNT = Program(words, total)


def but_1(key: int, line: str) -> Iterator[tuple[str, int]]:
    if key == 1:
        raise LookupError("one")
    yield from words(key, line)


COUNT_BUT_1 = Program(but_1, total)


def local(data: Any, program: Program = COUNT, **options: Any) -> Any:
    return run_job(data, program=program, backend="local", progress=False, **options)


# --- input ----------------------------------------------------------------------------------------


def test_a_dictionary_pairs_and_a_generator_are_the_same() -> None:
    data = {1: "a b", 2: "b c"}
    expected = {"a": 1, "b": 2, "c": 1}
    assert local(data) == local(list(data.items())) == local(iter(data.items())) == expected


def test_an_iterable_is_never_in_memory_as_a_whole() -> None:
    taken = 0

    def endless() -> Iterator[tuple[int, str]]:
        nonlocal taken
        for number in range(400):
            taken += 1
            yield number, "x" * 1_000_000

    tracemalloc.start()
    try:
        found = local(endless(), Program(lambda key, value: [(0, len(value))], total), items_per_task=1)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert found == {0: 400_000_000}
    assert taken == 400
    assert peak < AHEAD_BYTES + 40_000_000


def test_files_by_path_by_glob_and_by_base_name(tmp_path: Path) -> None:
    (tmp_path / "book_00").write_text("a b\n")
    (tmp_path / "book_01").write_text("b c")
    expected = {"a": 1, "b": 2, "c": 1}
    for data in (tmp_path / "book_*", tmp_path / "book_", [tmp_path / "book_00", str(tmp_path / "book_01")], tmp_path):
        assert local(data) == expected
    with pytest.raises(ProgramError, match="nothing_here"):
        local(str(tmp_path / "nothing_here"))


def source(size: int | None) -> Source:
    return Source(lambda: [], size, None, lambda: [])


def test_reducers_follow_from_the_size_of_the_input_alone() -> None:
    megabyte = 1024 * 1024
    assert choose_reducers(source(0), Policy()) == 1
    assert choose_reducers(source(8 * megabyte), Policy()) == 1
    assert choose_reducers(source(100 * megabyte), Policy()) == 13
    assert choose_reducers(source(10**15), Policy()) == MOST_REDUCERS
    assert choose_reducers(source(None), Policy()) == UNKNOWN_REDUCERS
    assert choose_reducers(source(None), Policy(reducers=3)) == 3


def test_the_size_of_what_has_a_length_is_guessed_from_its_beginning() -> None:
    data = dict.fromkeys(range(200000), "x" * 1000)
    guessed = source_of(data, Policy()).size
    assert guessed is not None
    assert 0.9 < guessed / 200_000_000 < 1.2


# --- programs -------------------------------------------------------------------------------------


def test_stages_parameters_and_counters() -> None:
    def by_count(word: str, count: int) -> Iterator[tuple[int, str]]:
        if count >= context.param("least"):
            yield count, word

    job = submit(
        {1: "a b c b", 2: "c b"},
        stages=[COUNT, Program(by_count, lambda count, found: sorted(found), partitioner="range")],
        params={"least": 2},
        backend="local",
    )
    assert job.result() == {2: ["c"], 3: ["b"]}
    assert job.counters() == {"words": 6}
    assert job.report().counters == {"words": 6}
    job.close()


def test_what_a_program_requires_has_to_be_given() -> None:
    program = Program(words, required=("pattern",))
    with pytest.raises(ProgramError, match="needs the parameter 'pattern'"):
        local({1: "a"}, program)
    local({1: "a"}, program, params={"pattern": "x"})


def test_prepare_makes_the_parameters_that_travel(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("12345")

    def prepare(params: Any, files: Any) -> dict[str, Any]:
        return {**params, "size": files.size()}

    program = Program(lambda key, line: [(context.param("size"), line)], prepare=prepare)
    assert local(tmp_path / "file", program) == {5: ["12345"]}


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"backend": "cloud"}, "backend='cloud'"),
        ({"stages": []}, "stages="),
        ({"stages": [COUNT], "mapper": words}, "not several"),
        ({"program": words}, "ec262.Program"),
        ({"no_such_option": 1}, "options are: .*redundancy"),
        ({"reducers": 0}, "reducers=0"),
        ({"reducers": "2"}, "reducers='2'"),
        ({"on_failure": "retry"}, "on_failure="),
        ({"requirements": "data:books"}, "has to be a list"),
        ({"requirements": ["No Capital"]}, "no capability"),
        ({"max_retries": 0, "redundancy": 3}, "goes with redundancy=1"),
        ({"output_format": "json"}, "goes with output="),
        ({"output": "x", "output_format": "xml"}, "output_format='xml'"),
        ({"cluster": "tcp://x"}, "goes with backend='dask'"),
        ({"sandbox": True, "backend": "local"}, "goes with backend='processes'"),
        ({"discovery": "http://x", "backend": "local"}, "goes with backend='network'"),
        ({"progress": 3}, "progress=3"),
    ],
)
def test_wrong_calls_say_what_is_wrong(wrong: dict[str, Any], message: str) -> None:
    given: dict[str, Any] = {"program": COUNT, "backend": "local", **wrong}
    if "stages" in wrong:
        del given["program"]
    with pytest.raises(ProgramError, match=message):
        run_job({1: "a"}, **given)


# --- failures -------------------------------------------------------------------------------------


def fails_on(number: int) -> Program:
    def mapper(key: int, value: str) -> Iterator[tuple[str, int]]:
        if key == number:
            raise LookupError("no such thing")
        yield value, 1

    return Program(mapper, total)


def test_the_programs_own_exception_is_the_cause() -> None:
    with pytest.raises(TaskFailed, match=r"map task 1 .*LookupError: no such thing") as caught:
        local({0: "a", 1: "b"}, fails_on(1))
    assert caught.value.error_type == "LookupError"
    assert isinstance(caught.value.__cause__, LookupError)


def test_failed_tasks_can_be_left_out_and_are_named() -> None:
    job = submit({0: "a", 1: "b", 2: "a"}, program=fails_on(1), backend="local", on_failure="skip")
    assert job.result() == {"a": 2}
    (failed,) = job.report().failed
    assert (failed.phase, failed.number) == ("map", 1)
    assert "LookupError" in failed.reason
    assert job.progress().failed == 1
    job.close()


def test_a_job_can_be_cancelled() -> None:
    begun = threading.Event()

    def mapper(key: int, value: int) -> Iterator[tuple[int, int]]:
        begun.wait(30)
        job.cancel()
        yield key, value

    job = submit([(n, n) for n in range(100)], program=Program(mapper), backend="local")
    begun.set()
    with pytest.raises(JobCancelled):
        job.result(30)


# --- output ---------------------------------------------------------------------------------------


def test_files_in_key_order_appear_together(tmp_path: Path) -> None:
    report = local({1: "d c b a a"}, output=tmp_path / "out", reducers=3)
    files = sorted(path.name for path in tmp_path.iterdir())
    assert files == ["out_00", "out_01", "out_02", "out_manifest.json"]
    assert [Path(name).name for name in report.files] == files[:3]
    lines = [path.read_text().splitlines() for path in sorted(tmp_path.glob("out_0*"))]
    assert all(each == sorted(each) for each in lines)
    assert sorted(line for each in lines for line in each) == ["a\t2", "b\t1", "c\t1", "d\t1"]
    with pytest.raises(ProgramError, match="overwrite"):
        local({1: "x"}, output=tmp_path / "out", reducers=3)
    local({1: "x"}, output=tmp_path / "out", reducers=1, overwrite=True)
    assert "x\t1\n" in [path.read_text() for path in tmp_path.glob("out_0*")]


def test_a_job_that_fails_leaves_no_output(tmp_path: Path) -> None:
    with pytest.raises(TaskFailed):
        local({0: "a", 1: "b"}, fails_on(1), output=tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_an_iterator_gives_pairs_in_key_order() -> None:
    pairs = local([(n, f"{n % 100:03}") for n in range(1000)], as_iterator=True, reducers=7)
    assert [key for key, _ in pairs] == [f"{n:03}" for n in range(100)]


# --- watching -------------------------------------------------------------------------------------


def test_progress_tells_phases_and_counters() -> None:
    seen: list[Progress] = []
    run_job([(n, "a b") for n in range(50)], program=COUNT, backend="local", progress=seen.append)
    assert [each.phase for each in seen][-1] == "done"
    assert {"map", "reduce"} <= {each.phase for each in seen}
    assert seen[-1].counters == {"words": 100}
    for each in seen:
        assert describe(each)


# --- checkpoints ----------------------------------------------------------------------------------

JOB = """
import os, sys
from pathlib import Path
from ec262.jobs.run import run_job
from ec262.mapreduce.program import Program

log, checkpoint = sys.argv[1], sys.argv[2]

def note(what):
    with open(log, "a") as file:
        file.write(what + "\\n")
    if len(open(log).readlines()) == int(os.environ["DIE_AT"]):
        os.kill(os.getpid(), 9)

def mapper(key, value):
    note(f"map {key}")
    yield key % 3, value

def reducer(key, values):
    note(f"reduce {key}")
    return sum(values)

print(run_job({n: n for n in range(10)}, program=Program(mapper, reducer), backend="local", checkpoint=checkpoint,
              reducers=3))
"""


@pytest.mark.parametrize("die_at", [1, 6, 12])
def test_a_killed_job_goes_on_from_its_checkpoint(die_at: int, tmp_path: Path) -> None:
    """What was done is not done again, whatever the moment; the result is the same."""
    (tmp_path / "job.py").write_text(textwrap.dedent(JOB))

    def run(at: int) -> subprocess.CompletedProcess[str]:
        words = [sys.executable, "job.py", str(tmp_path / "log"), str(tmp_path / "kept")]
        return subprocess.run(
            words,
            cwd=tmp_path,
            env={"PYTHONPATH": str(ROOT), "DIE_AT": str(at)},
            capture_output=True,
            text=True,
            timeout=60,
        )

    killed = run(die_at)
    assert killed.returncode == -9, killed.stderr
    done = run(-1)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "{0: 18, 1: 12, 2: 15}\n"
    calls = Counter((tmp_path / "log").read_text().splitlines())
    assert len(calls) == 13
    assert sum(calls.values()) == 14, "only what was under way when it was killed runs again"
    again = run(-1)
    assert again.stdout == done.stdout
    assert sum(Counter((tmp_path / "log").read_text().splitlines()).values()) == 14, "all of it was kept"


def test_a_checkpoint_keeps_what_was_counted_and_what_was_left_out(tmp_path: Path) -> None:
    """Also of stages that are complete; the second call asks nobody."""

    def run() -> tuple[Any, Any, Any]:
        job = submit(
            {0: "a b", 1: "b", 2: "c"},
            stages=[COUNT_BUT_1, Program(lambda word, count: [(count, word)])],
            backend="local",
            on_failure="skip",
            checkpoint=tmp_path / "kept",
        )
        made = job.result(), job.counters(), [(each.phase, each.number) for each in job.report().failed]
        job.close()
        return made

    first = run()
    assert first == ({1: ["a", "b", "c"]}, {"words": 3}, [("map", 1)])
    assert run() == first


def test_a_finished_checkpoint_is_not_another_inputs(tmp_path: Path) -> None:
    assert local({1: "a b"}, checkpoint=tmp_path / "kept") == {"a": 1, "b": 1}
    for other in ({1: "c d"}, {1: "a b", 2: "e"}, {}):
        with pytest.raises(ProgramError, match="made of other input"):
            local(other, checkpoint=tmp_path / "kept")


def test_input_that_became_shorter_is_noticed(tmp_path: Path) -> None:
    with pytest.raises(TaskFailed):
        local({0: "a", 1: "b", 2: "c"}, fails_on(2), checkpoint=tmp_path / "kept")
    with pytest.raises(ProgramError, match="the input has 1 splits now"):
        local({0: "a"}, fails_on(2), checkpoint=tmp_path / "kept")


def test_a_program_without_a_name_of_its_own_gets_no_checkpoint(tmp_path: Path) -> None:
    lock = threading.Lock()

    def mapper(key: int, value: str) -> Iterator[tuple[str, int]]:
        with lock:
            yield value, key

    with pytest.raises(ProgramError, match="can be told from others by its code"):
        local({1: "a"}, Program(mapper), checkpoint=tmp_path / "kept")


def test_a_partitioner_that_tears_keys_apart_is_found_out() -> None:
    """Nothing of a key's values is lost silently."""
    program = Program(words, total, partitioner=lambda key, partitions: next(turn) % partitions)
    turn = itertools.count()
    for as_iterator in (False, True):
        with pytest.raises(ProgramError, match="came from two reduce partitions"):
            list(local([(n, "a b c") for n in range(8)], program, reducers=2, as_iterator=as_iterator))


def test_leaving_the_interpreter_is_a_failed_task() -> None:
    def mapper(key: int, value: str) -> Any:
        sys.exit(0)

    with pytest.raises(TaskFailed, match="SystemExit"):
        local({1: "a"}, Program(mapper))
    with pytest.raises(ProgramError, match="SystemExit"):
        local({1: "a", 2: "b"}, Program(mapper, partitioner="range"), reducers=2)


def test_a_mapper_that_never_ends_does_not_hold_up_the_sample() -> None:
    def mapper(key: int, value: str) -> Any:
        while True:
            pass

    with pytest.raises(ProgramError, match="failed on a sample of the input"):
        local({1: "a", 2: "b"}, Program(mapper, partitioner="range"), reducers=2, timeout_s=1.0)


def test_a_slow_iterable_does_not_hold_up_the_call() -> None:
    go = threading.Event()

    def waits() -> Iterator[tuple[int, str]]:
        assert go.wait(30)
        yield 1, "a"

    job = submit(waits(), program=COUNT, backend="local")
    assert not job.done()
    go.set()
    assert job.result(30) == {"a": 1}
    job.close()


def test_a_checkpoint_is_for_one_job_and_one_process(tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    data = {1: "a b", 2: "b"}
    assert local(data, checkpoint=kept) == {"a": 1, "b": 2}
    with pytest.raises(ProgramError, match="another job's"):
        local(data, Program(words, lambda key, counts: 0), checkpoint=kept)
    with pytest.raises(ProgramError, match="another job's"):
        local(data, checkpoint=kept, reducers=2)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("")
    with pytest.raises(SetupError, match="no checkpoint and not empty"):
        local(data, checkpoint=tmp_path / "other")
    assert (kept.stat().st_mode & 0o777) == 0o700

    def mapper(key: int, value: str) -> Iterator[tuple[int, str]]:
        with pytest.raises(SetupError, match="another process uses"):
            local({1: "x"}, checkpoint=tmp_path / "busy")
        yield key, value

    local(data, Program(mapper), checkpoint=tmp_path / "busy")


def test_other_input_is_noticed(tmp_path: Path) -> None:
    broken = {0: "a", 1: "b", 2: "c"}
    with pytest.raises(TaskFailed):
        local(broken, fails_on(2), checkpoint=tmp_path / "kept")
    with pytest.raises(ProgramError, match="other input: split 1 is not what it was"):
        local({**broken, 1: "other"}, fails_on(2), checkpoint=tmp_path / "kept")
    facts = json.loads((tmp_path / "kept" / "job.json").read_text())
    assert facts["stages"]["0"]["complete"] is False
