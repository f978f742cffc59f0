# mypy: allow-untyped-calls
"""The same programs on every backend that needs no network: the same bytes, the same counters, the same errors."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import distributed
import psutil
import pytest

from ec262.backends.base import Backend, Stage, Tally
from ec262.backends.dask import DaskBackend
from ec262.backends.dask_cluster import OwnCluster
from ec262.backends.local import LocalBackend
from ec262.backends.processes import ProcessesBackend
from ec262.backends.spool import Memory
from ec262.errors import JobCancelled, LimitExceeded, ProgramError, SetupError, TaskFailed
from ec262.mapreduce.blocks import pairs_of
from ec262.mapreduce.context import counter, input_name, param
from ec262.mapreduce.program import Program
from ec262.mapreduce.records import Reader
from ec262.mapreduce.split import PairsSplit, RecordsSplit, Split
from ec262.policy import Policy
from ec262.protocol.canonical import encode_pairs
from tests.processes import nothing_left, until
from tests.splits import FileSplit, HomeSplit, split_file

ROOT = Path(__file__).parents[2]
Made = Callable[[Policy, Tally, Callable[[], None]], Backend]

# --- what there is to run on ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def cluster() -> Iterator[OwnCluster]:
    """A real Dask cluster with two worker processes, for all tests."""
    with nothing_left():
        made = OwnCluster(2, 3, lambda: False)
        yield made
        made.close()


@pytest.fixture(params=["local", "processes", "sandbox", "dask"])
def make(request: pytest.FixtureRequest) -> Made:
    """Each backend."""
    return made_of(request, request.param)


@pytest.fixture(params=["processes", "dask"])
def make_other(request: pytest.FixtureRequest) -> Made:
    """Backends whose tasks run in other processes, unconfined."""
    return made_of(request, request.param)


def made_of(request: pytest.FixtureRequest, name: str) -> Made:
    if name == "dask":
        return functools.partial(DaskBackend, address=request.getfixturevalue("cluster").address)
    if name == "local":
        return LocalBackend
    return functools.partial(ProcessesBackend, processes=2, sandbox=name == "sandbox")


@dataclass
class Outcome:
    """What a stage left behind."""

    rows: dict[int, list[bytes]]
    tally: Tally


def run(
    make: Made,
    program: Program,
    splits: Iterable[Split],
    *,
    partitions: int = 3,
    bounds: Sequence[Any] = (),
    policy: Policy | None = None,
    directory: Path | None = None,
    started: Callable[[Backend], None] | None = None,
    tally: Tally | None = None,
) -> Outcome:
    """Runs one stage."""
    tally = tally or Tally()
    backend = make(policy or Policy(), tally, lambda: None)
    items = splits if isinstance(splits, list) else None
    stage = Stage(
        number=0,
        program=program,
        splits=lambda: iter(splits),
        count=None if items is None else len(items),
        partitions=partitions,
        bounds=bounds,
        sample=lambda: (items or [])[:1],
        memory=Memory(None),
        directory=directory,
    )
    failed = True
    try:
        backend.start(stage)
        if started is not None:
            started(backend)
        with backend.run_stage(stage) as spool:
            failed = False
            return Outcome({number: spool.row(number) for number in spool.numbers()}, tally)
    finally:
        backend.close(failed=failed)


# --- programs -------------------------------------------------------------------------------------


def words(_: Any, line: str) -> Iterator[tuple[str, int]]:
    for word in line.split():
        yield word, 1


def total(_: Any, counts: list[int]) -> int:
    return sum(counts)


def noted(name: Any, line: str) -> Iterator[tuple[Any, Any]]:
    counter("lines").add()
    if not line:
        counter("empty lines").add()
    yield (input_name()[-4:], len(line) % 3), line.encode()
    yield len(line), [param("greeting"), {"a": (1, None)}, table["ready"]]


table: dict[str, Any] = {}


def prepare(params: Mapping[str, Any]) -> None:
    table["ready"] = params["greeting"] + "!"
    counter("tasks").add()


def longest(_: Any, values: list[Any]) -> Any:
    counter("reduced").add(len(values))
    return max(values, key=len)


def by_first(key: Any, partitions: int) -> int:
    return ord(str(key)[0]) % partitions


def nothing(_: Any, __: Any) -> tuple[()]:
    return ()


PROGRAMS: dict[str, tuple[Program, Sequence[Any]]] = {
    "word count": (Program(words, total, total), ()),
    "lists": (Program(words), ()),
    "range": (Program(words, total, partitioner="range"), ("f", "t")),
    "own partitioner": (Program(words, total, total, by_first), ()),
    "all that there is": (Program(noted, longest, setup=prepare, params={"greeting": "ho"}), ()),
    "nothing": (Program(nothing, setup=prepare, params={"greeting": ""}), ()),
}
TEXT = "to be or not to be\n\nthat is the question\nwhether tis nobler in the mind to suffer\n" * 20


@pytest.fixture(scope="module")
def book(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with some lines."""
    path = tmp_path_factory.mktemp("books") / "book"
    path.write_text(TEXT)
    return path


def inputs(book: Path) -> dict[str, list[Split]]:
    """Splits of every kind; the first kinds are loaded by whoever computes them."""
    ranges: list[Split] = [*split_file(book, 300)]
    here = HomeSplit(str(book), 0, 300)
    lines = [PairsSplit(encode_pairs([(at, line)], where="data")) for at, line in enumerate(TEXT.splitlines()[:6])]
    records = RecordsSplit(TEXT.encode(), 0, "the book", Reader())
    return {
        "files": ranges,
        "files and others": [*ranges[:2], records, FileSplit(str(book), 5, 5), here, *lines[:2]],
        "pairs": [*lines, RecordsSplit(b"", 0, "empty", Reader())],
        "none": [],
    }


@pytest.mark.parametrize("kind", ["files", "files and others", "pairs", "none"])
def test_the_same_bytes_everywhere(make: Made, kind: str, book: Path) -> None:
    if make is LocalBackend:
        pytest.skip("what the others are compared with")
    for name, (program, bounds) in PROGRAMS.items():
        splits = inputs(book)[kind]
        wanted = run(LocalBackend, program, splits, bounds=bounds)
        got = run(make, program, splits, bounds=bounds)
        assert got.rows == wanted.rows, name
        assert got.tally.counters == wanted.tally.counters, name
        assert (got.tally.map_tasks, got.tally.reduce_tasks) == (wanted.tally.map_tasks, wanted.tally.reduce_tasks)
        assert got.tally.done == got.tally.total == wanted.tally.done
        assert got.tally.running == 0
        if kind != "none":
            assert got.tally.bytes_in > 0
            assert got.tally.workers
            assert sum(worker.finished for worker in got.tally.workers) >= got.tally.done


def test_more_partitions_than_results_are_no_results(make: Made) -> None:
    splits: list[Split] = [PairsSplit(encode_pairs([(0, "to be")], where="data"))]
    got = run(make, PROGRAMS["word count"][0], splits, partitions=50)
    assert got.rows == run(LocalBackend, PROGRAMS["word count"][0], splits, partitions=50).rows
    assert len(got.rows) == got.tally.reduce_tasks == 2


def test_each_task_has_fresh_globals(make: Made) -> None:
    if make is LocalBackend:
        pytest.skip("there the functions are the author's own")
    got = run(make, Program(seen), one_each(range(12)), partitions=1)
    assert got.rows == run(make, Program(first_time), one_each(range(12)), partitions=1).rows


def first_time(key: int, _: Any) -> list[tuple[int, int]]:
    return [(key, 1)]


before: list[int] = []


def seen(key: int, _: Any) -> list[tuple[int, int]]:
    before.append(key)
    return [(key, len(before))]


def one_each(values: Iterable[Any]) -> list[Split]:
    return [PairsSplit(encode_pairs([(at, value)], where="data")) for at, value in enumerate(values)]


# --- programs that fail ---------------------------------------------------------------------------


def divide(key: int, value: int) -> list[tuple[int, float]]:
    return [(key, quotient(value))]


def quotient(value: int) -> float:
    return 12 / value


def reduce_badly(key: int, values: list[Any]) -> Any:
    if key == 2:
        raise LookupError(f"key {key} is not wanted")
    return values


@pytest.mark.parametrize("files", [False, True])
def test_what_the_program_raises_fails_the_job(make: Made, files: bool, book: Path) -> None:
    splits = inputs(book)["files"] if files else one_each([1, 0, 3])
    with pytest.raises(TaskFailed) as caught, nothing_left():
        run(make, Program(divide), splits)
    said = str(caught.value)
    assert caught.value.error_type == ("TypeError" if files else "ZeroDivisionError")
    assert "map task" in said
    assert ("book, from byte" if files else "map task 1 (key 1): ZeroDivisionError: division by zero") in said
    assert "in quotient" in caught.value.remote_traceback
    assert "return 12 / value" in caught.value.remote_traceback
    assert "process_child" not in caught.value.remote_traceback


def test_a_failed_task_may_be_left_out(make: Made, book: Path) -> None:
    policy = Policy(on_failure="skip", rehearse=False)
    got = run(make, Program(divide, reduce_badly), one_each([1, 0, 3, 4]), policy=policy, partitions=8)
    assert [(failed.phase, failed.number) for failed in got.tally.failed][:1] == [("map", 1)]
    assert "map task 1 (key 1): ZeroDivisionError" in got.tally.failed[0].reason
    (reduce,) = got.tally.failed[1:]
    assert "LookupError: key 2 is not wanted" in reduce.reason
    assert reduce.phase == "reduce"
    assert got.rows[reduce.number] == [b""]
    assert len([row for row in got.rows.values() if row != [b""]]) == 2
    assert (
        got.rows
        == run(LocalBackend, Program(divide, reduce_badly), one_each([1, 0, 3, 4]), policy=policy, partitions=8).rows
    )


def only_questions(name: str, line: str) -> Iterator[tuple[str, int]]:
    counter("lines").add()
    if "question" in line and param("from") in name:
        raise ValueError("no questions")
    yield line, 1


def test_files_may_be_left_out_as_well(make: Made, book: Path) -> None:
    policy = Policy(on_failure="skip")
    splits = inputs(book)["files"]
    program = Program(only_questions, total, params={"from": "book"})
    got = run(make, program, splits[:3], policy=policy)
    assert sorted(failed.number for failed in got.tally.failed) == [0, 1, 2]
    assert got.rows == {}
    assert got.tally.counters == {}
    fine = run(make, Program(only_questions, total, params={"from": "elsewhere"}), splits[:3], policy=policy)
    assert fine.tally.failed == []
    assert fine.tally.counters == {
        "lines": sum(
            line.count(b"\n") + (not line.endswith(b"\n")) for split in splits[:3] for line in split.load()[:1]
        )
    }


def test_what_cannot_travel_is_named(make_other: Made) -> None:
    lock = threading.Lock()

    def locked(key: Any, value: Any) -> list[tuple[Any, Any]]:
        with lock:
            return [(key, value)]

    with pytest.raises(ProgramError, match="variable 'lock'"):
        run(make_other, Program(locked), one_each([1]))


def test_an_input_that_is_not_there_is_said(make_other: Made, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), nothing_left():
        run(make_other, PROGRAMS["word count"][0], [FileSplit(str(tmp_path / "missing"), 0, 5)])


def asleep(key: int, value: str) -> list[tuple[int, int]]:
    if value:
        Path(value).write_text(str(os.getpid()))
    time.sleep(60)
    return []


@pytest.mark.parametrize("name", ["processes", "dask"])
def test_cancel_ends_a_job_that_hangs(name: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    make: Made = functools.partial(ProcessesBackend, processes=1) if name == "processes" else DaskBackend
    sign = tmp_path / "running"

    def cancel_soon(backend: Backend) -> None:
        def wait_and_cancel() -> None:
            until(sign.exists)
            backend.cancel()

        threading.Thread(target=wait_and_cancel).start()

    with nothing_left(), pytest.raises(JobCancelled):
        run(make, Program(asleep), one_each([str(sign), ""]), started=cancel_soon)
    assert not psutil.pid_exists(int(sign.read_text()))


# --- processes that die ---------------------------------------------------------------------------


def die_once(key: int, value: list[Any]) -> list[tuple[int, int]]:
    """Notes that it runs; dies in the way that is asked for, so many times."""
    directory, how, times = value
    runs = Path(directory) / f"runs-{key}"
    with open(runs, "a") as file:
        file.write(f"{os.getpid()}\n")
    if how and len(runs.read_text().splitlines()) <= times:
        if how == "hang":
            time.sleep(60)
        if how == "exit":
            os._exit(3)
        os.kill(os.getpid(), signal.SIGKILL)
    return [(key, key)]


def dying(directory: Path, how: str, times: int, at: int = 2) -> list[Split]:
    return one_each([[str(directory), how if key == at else "", times] for key in range(6)])


def runs(directory: Path) -> list[int]:
    # Where a job failed some tasks may not have begun.
    files = [directory / f"runs-{key}" for key in range(6)]
    return [len(file.read_text().splitlines()) if file.exists() else 0 for file in files]


@pytest.mark.parametrize("how", ["exit", "kill"])
def test_a_process_that_dies_is_replaced(make_other: Made, how: str, tmp_path: Path) -> None:
    if how == "exit" and not is_processes(make_other):
        pytest.skip("a cluster notices both in the same way, after half a minute")
    got = run(make_other, Program(die_once), dying(tmp_path, how, 2))
    assert got.rows == run(LocalBackend, Program(first_time_of_pair), one_each([[]] * 6)).rows
    if is_processes(make_other):
        assert runs(tmp_path) == [1, 1, 3, 1, 1, 1]
        assert got.tally.retried == 2


def is_processes(make: Made) -> bool:
    return isinstance(make, functools.partial) and make.func is ProcessesBackend


def first_time_of_pair(key: int, _: Any) -> list[tuple[int, int]]:
    return [(key, key)]


@pytest.mark.parametrize(("how", "says"), [("exit", "ended with exit code 3"), ("kill", "was killed by SIGKILL")])
def test_a_task_that_takes_its_process_along_fails(how: str, says: str, tmp_path: Path) -> None:
    make = functools.partial(ProcessesBackend, processes=2)
    with pytest.raises(TaskFailed) as caught, nothing_left():
        run(make, Program(die_once), dying(tmp_path, how, 99), policy=Policy(max_retries=2))
    assert says in str(caught.value)
    assert "map task 2 (key 2)" in str(caught.value)
    assert "(3 times)" in str(caught.value)
    assert caught.value.error_type == "ProcessDied"
    assert runs(tmp_path)[2] == 3


@pytest.mark.parametrize("how", ["exit", "kill"])
def test_what_must_not_run_twice_does_not(make_other: Made, how: str, tmp_path: Path) -> None:
    policy = Policy(max_retries=0, on_failure="skip")
    got = run(make_other, Program(die_once), dying(tmp_path, how, 99), policy=policy)
    assert runs(tmp_path) == [1] * 6
    lost = [failed.number for failed in got.tally.failed]
    assert 2 in lost
    # Dask's workers keep results for a while: those that the dead one had are lost with it.
    assert lost == [2] or not is_processes(make_other)
    assert got.tally.retried == 0
    assert len(got.tally.failed[0].reason) > 20


def test_a_task_that_takes_too_long_is_ended(tmp_path: Path) -> None:
    make = functools.partial(ProcessesBackend, processes=2)
    got = run(make, Program(die_once), dying(tmp_path, "hang", 1), policy=Policy(timeout_s=0.5))
    assert runs(tmp_path) == [1, 1, 2, 1, 1, 1]
    assert got.tally.retried == 1
    with pytest.raises(LimitExceeded, match=r"map task 2 \(key 2\).* timeout_s=0.5 s \(2 times\)"), nothing_left():
        run(make, Program(die_once), dying(tmp_path, "hang", 99), policy=Policy(timeout_s=0.5, max_retries=1))


def test_a_sandboxed_task_is_held_to_the_same_limits(tmp_path: Path) -> None:
    make = functools.partial(ProcessesBackend, processes=2, sandbox=True)
    with pytest.raises(ProgramError, match="is not available in the sandbox"), nothing_left():
        run(make, Program(die_once), one_each([1]))
    with pytest.raises(LimitExceeded, match=r"map task 0 \(key 0\).* timeout_s=0.5 s \(2 times\)"), nothing_left():
        run(make, Program(spin), one_each([1]), policy=Policy(timeout_s=0.5, max_retries=1))
    with pytest.raises(LimitExceeded, match="CPU"), nothing_left():
        run(make, Program(spin), one_each([1]), policy=Policy(cpu_limit_s=0.2))


def spin(_: Any, __: Any) -> list[tuple[Any, Any]]:
    while True:
        pass


# --- what else children are and have --------------------------------------------------------------


def look_around(key: int, _: Any) -> Iterator[tuple[str, Any]]:
    print("a print of the task")
    yield "descriptors", [os.readlink(f"/proc/self/fd/{at}") for at in range(3)]
    yield "others", sorted(os.listdir("/proc/self/fd"))
    yield "stdin", sys.stdin.read()
    yield "session", os.getsid(0) == os.getpid()
    yield "hash", hash("a text")


def test_children_have_nothing_but_their_own(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    tally = Tally()
    with open(tmp_path / "open", "w") as file:
        os.set_inheritable(file.fileno(), True)
        got = run(
            functools.partial(ProcessesBackend, processes=2),
            Program(look_around),
            one_each([1]),
            tally=tally,
            partitions=1,
        )
    seen = {key: values[0] for key, values in pairs_of(got.rows[0][0])}
    assert seen["descriptors"][0] == "/dev/null"
    assert len(seen["others"]) == 5  # the three, the socket, and the listed directory
    assert seen["stdin"] == ""
    assert seen["session"] is True
    captured = capfd.readouterr()
    assert "a print of the task" in captured.err
    assert captured.out == ""


def test_splits_are_taken_as_they_are_wanted(make: Made) -> None:
    taken = 0
    ahead: list[int] = []
    tally = Tally()

    def splits() -> Iterator[Split]:
        nonlocal taken
        for split in one_each(range(300)):
            ahead.append(taken - tally.done)
            taken += 1
            yield split

    got = run(make, Program(first_time), splits(), partitions=1, tally=tally)
    assert got.tally.map_tasks == 300
    assert max(ahead) <= 80


def test_a_checkpoint_is_gone_on_with(make: Made, book: Path, tmp_path: Path) -> None:
    splits = inputs(book)["files"]
    program = PROGRAMS["all that there is"][0]
    wanted = run(LocalBackend, program, splits)
    with pytest.raises(TaskFailed):
        run(make, Program(only_questions, params={"from": "book"}), splits, directory=tmp_path)
    for file in tmp_path.iterdir():
        file.unlink()
    for _ in range(2):
        got = run(make, program, splits, directory=tmp_path)
        assert got.rows == wanted.rows
        assert got.tally.counters == wanted.tally.counters
    assert got.tally.bytes_in == 0  # the second time nothing had to be computed


SCRIPT = """
{first}
import os, sys, time
sys.path.insert(0, {root!r})
from ec262.backends.{module} import {name}
from ec262.backends.base import Stage, Tally
from ec262.backends.spool import Memory
from ec262.mapreduce.program import Program
from ec262.mapreduce.split import PairsSplit
from ec262.policy import Policy
from ec262.protocol.canonical import encode_pairs

print("script", flush=True)

def mapper(key, value):
    if key == 1:
        os.write(2, b"here %d\\n" % os.getpid())
        {act}
    return [(key, value)]

splits = [PairsSplit(encode_pairs([(key, "v")], where="data")) for key in range(4)]
stage = Stage(number=0, program=Program(mapper), splits=lambda: splits, count=4, partitions=1, bounds=(),
              sample=lambda: [], memory=Memory(None))
backend = {name}(Policy(), Tally(), lambda: None)
failed = True
try:
    backend.start(stage)
    spool = backend.run_stage(stage)
    failed = False
    print(len(spool), flush=True)
finally:
    backend.close(failed=failed)
"""


def script_of(path: Path, module: str, name: str, act: str = "pass", first: str = "") -> list[str]:
    path.write_text(SCRIPT.format(root=str(ROOT), module=module, name=name, act=act, first=first))
    return [sys.executable, str(path)]


BOTH = pytest.mark.parametrize(("module", "name"), [("processes", "ProcessesBackend"), ("dask", "DaskBackend")])


@BOTH
def test_a_script_needs_no_guard(module: str, name: str, tmp_path: Path) -> None:
    with nothing_left():
        done = subprocess.run(
            script_of(tmp_path / "script.py", module, name), capture_output=True, text=True, timeout=60, cwd=tmp_path
        )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "script\n1\n"


@BOTH
def test_a_script_may_be_patched_by_gevent(module: str, name: str, tmp_path: Path) -> None:
    command = script_of(tmp_path / "script.py", module, name, first="from gevent import monkey; monkey.patch_all()")
    with nothing_left():
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=tmp_path)
    if module == "processes":
        assert (done.returncode, done.stdout) == (0, "script\n1\n")
        assert "Traceback" not in done.stderr
    else:
        assert "SetupError: Dask needs threads" in done.stderr


@BOTH
@pytest.mark.parametrize("how", ["kill", "interrupt"])
def test_nothing_outlives_the_parent(module: str, name: str, how: str, tmp_path: Path) -> None:
    act = "while True: pass" if module == "processes" else "time.sleep(60)"
    command = script_of(tmp_path / "script.py", module, name, act)
    with subprocess.Popen(
        command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, cwd=tmp_path
    ) as parent:
        assert parent.stderr is not None
        line = ""
        while not line.startswith("here "):
            line = parent.stderr.readline()
            assert line, "the script has ended"
        family = psutil.Process(parent.pid).children(recursive=True)
        assert int(line.split()[1]) in {process.pid for process in family}
        parent.send_signal(signal.SIGKILL if how == "kill" else signal.SIGINT)
        until(lambda: not any(alive(process) for process in family), what="the end of the children")
        rest = parent.stderr.read()
    if how == "interrupt":
        assert "KeyboardInterrupt" in rest


def alive(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


def test_children_that_cannot_start_are_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ec262.backends.children._BOOT", "import sys; sys.exit(7)")
    with pytest.raises(SetupError, match="exit code 7"), nothing_left():
        run(ProcessesBackend, Program(first_time), one_each([1]))
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    with pytest.raises(SetupError, match="nowhere"):
        run(ProcessesBackend, Program(first_time), one_each([1]))


@pytest.mark.parametrize("processes", [0, -1, True, "two"])
def test_processes_are_counted_in_whole_numbers(processes: Any) -> None:
    with pytest.raises(ProgramError, match="processes="):
        ProcessesBackend(Policy(), Tally(), lambda: None, processes=processes)


# --- Dask -----------------------------------------------------------------------------------------


def slow_words(name: str, line: str) -> Iterator[tuple[str, int]]:
    counter("lines").add()
    time.sleep(0.01)
    yield from words(name, line)


def test_dask_survives_a_killed_worker(book: Path) -> None:
    tally = Tally()

    def kill_one(backend: Backend) -> None:
        assert isinstance(backend, DaskBackend)
        workers = backend.client.run(os.getpid)

        def wait_and_kill() -> None:
            until(lambda: tally.done >= 3)
            os.kill(min(workers.values()), signal.SIGKILL)

        threading.Thread(target=wait_and_kill).start()

    splits: list[Split] = [*split_file(book, 100)]
    wanted = run(LocalBackend, Program(slow_words, total), splits)
    with nothing_left():
        make = functools.partial(DaskBackend, workers=2)
        got = run(make, Program(slow_words, total), splits, started=kill_one, tally=tally)
    assert got.rows == wanted.rows
    assert got.tally.counters == wanted.tally.counters


def test_dask_shuffles_in_groups_where_there_are_many(
    cluster: OwnCluster, book: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ec262.backends.dask_shuffle.MOST_PIECES", 20)
    make = functools.partial(DaskBackend, address=cluster.address)
    splits = inputs(book)["files"]
    for partitions in (1, 2, 37):
        for name in ("word count", "all that there is"):
            wanted = run(LocalBackend, PROGRAMS[name][0], splits, partitions=partitions)
            got = run(make, PROGRAMS[name][0], splits, partitions=partitions)
            assert got.rows == wanted.rows
            assert got.tally.counters == wanted.tally.counters
            assert got.tally.reduce_tasks == wanted.tally.reduce_tasks


def test_a_client_of_the_users_stays_open(cluster: OwnCluster) -> None:
    with distributed.Client(cluster.address, set_as_default=False) as client:
        make = functools.partial(DaskBackend, address=client)
        for _ in range(2):
            assert len(run(make, Program(first_time), one_each(range(3)), partitions=1).rows) == 1
        assert client.submit(len, "four").result() == 4


def test_what_is_wrong_with_dask_is_said(cluster: OwnCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ec262.backends.dask._CONNECT_S", 0.3)
    with pytest.raises(SetupError, match="no Dask scheduler answers at tcp:"):
        run(functools.partial(DaskBackend, address="tcp://127.0.0.1:1"), Program(first_time), one_each([1]))
    no_address: Any = 7
    with pytest.raises(ProgramError, match="address=7"):
        run(functools.partial(DaskBackend, address=no_address), Program(first_time), one_each([1]))
    monkeypatch.setattr("ec262.backends.dask.__version__", "0.0.0")
    with pytest.raises(SetupError, match="this program 0"):
        run(functools.partial(DaskBackend, address=cluster.address), Program(first_time), one_each([1]))
    monkeypatch.setattr("ec262.backends.dask._ASK_VERSION", "__import__('ec263')")
    with pytest.raises(SetupError, match="cannot import EC262"):
        run(functools.partial(DaskBackend, address=cluster.address), Program(first_time), one_each([1]))
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(SetupError, match=r"pip install 'ec262\[dask\]'"):
        run(DaskBackend, Program(first_time), one_each([1]))


def test_nothing_stays_on_a_cluster(cluster: OwnCluster, book: Path) -> None:
    make = functools.partial(DaskBackend, address=cluster.address)
    run(make, PROGRAMS["word count"][0], inputs(book)["files"])
    with pytest.raises(TaskFailed):
        run(make, Program(divide), inputs(book)["files"])
    with distributed.Client(cluster.address, set_as_default=False) as client:
        until(lambda: json.dumps(client.run_on_scheduler(tasks_of)) == "[]", what="an empty scheduler")


def tasks_of(dask_scheduler: Any) -> list[str]:
    return sorted(map(str, dask_scheduler.tasks))
