"""A worker with an executor: real processes of the executor's, tasks as a foreman sends them."""

from __future__ import annotations

import hashlib
import os
import pickle
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gevent
import msgspec
import psutil
import pytest

import ec262
from ec262.errors import ProgramError, SetupError
from ec262.mapreduce.blocks import batches_of, pairs_of
from ec262.mapreduce.program import Program, reduce_header, split_counters
from ec262.protocol.canonical import decode_value
from ec262.protocol.framing import frame_parts, parts_digest, unframe_parts
from ec262.protocol.receipts import Kind, Receipt
from ec262.sandbox.executor_program import ExecutorMapper, executor_call, executor_program
from ec262.sandbox.pack import load_program, pack_program
from ec262.worker.executor import ExecutorTask, JobExecutor
from ec262.worker.executor_process import ExecutorProcesses
from ec262.worker.lease import Standing
from ec262.worker.service import Worker
from tests.processes import nothing_left, until
from tests.worker_peers import EPOCH, SETTINGS, WORKER_ID, WORKER_KEY, Foreman, double


class Powers(JobExecutor):
    """Does what the first word of a value says."""

    name = "powers"

    def __init__(self, directory: str = "") -> None:
        self.directory = directory

    def start(self) -> None:
        self.process = os.getpid()

    def run(self, task: ExecutorTask) -> Iterator[tuple[Any, Any]]:
        print("printed by an executor")
        for key, value in task.records:
            ec262.counter("records").add()
            if value == "process":
                yield key, [self.process, os.getpid(), os.environ.get("EC262_SECRET", "")]
            elif value == "crash":
                os.abort()
            elif value == "exit":
                os._exit(3)
            elif value == "hang":
                children = [subprocess.Popen(["sleep", "600"]) for _ in range(2)]
                Path(self.directory, "pids").write_text(f"{os.getpid()} " + " ".join(str(c.pid) for c in children))
                time.sleep(600)
            elif value == "large":
                yield key, "x" * (2 << 20)
            elif value == "raise":
                raise LookupError(f"no such thing as {value}")
            elif value == "junk":
                os.write(1, b"junk")
                yield key, 0
            else:
                yield key, value ** task.params["power"]


class Broken(JobExecutor):
    name = "broken"

    def start(self) -> None:
        raise RuntimeError("no tables")

    def run(self, task: ExecutorTask) -> Any: ...


class Nameless(JobExecutor):
    def run(self, task: ExecutorTask) -> Any: ...


class Locked(Powers):
    def __init__(self) -> None:
        super().__init__()
        self.lock = __import__("threading").Lock()


def total(_: Any, values: list[int]) -> int:
    ec262.counter("keys").add()
    return sum(values)


PROGRAM = executor_program("powers", {"power": 3}, reducer=total)


@contextmanager
def at_work(home: Path, executor: JobExecutor | None) -> Iterator[Worker]:
    with nothing_left():
        worker = Worker(SETTINGS, "http://127.0.0.1:9", home=home, executor=executor)
        worker.registration.standing = Standing(WORKER_ID, WORKER_KEY, EPOCH, 64, 3600.0)
        with worker:
            yield worker
            worker.hurry()


@pytest.fixture
def worker(tmp_path: Path) -> Iterator[Worker]:
    with at_work(tmp_path, Powers(str(tmp_path))) as made:
        yield made


def foreman_of(worker: Worker, program: Program = PROGRAM) -> Foreman:
    foreman = Foreman(worker.server.port)
    foreman.blob = pack_program(program)
    foreman.digest = hashlib.sha256(foreman.blob).hexdigest()
    return foreman


def results(foreman: Foreman, values: list[Any], **limits: Any) -> list[tuple[Receipt, list[bytes]]]:
    leases = foreman.lease(values, **limits)
    foreman.push(leases)
    found, receipts = foreman.collect(len(leases))
    return [(receipts[lease], foreman.open(found[lease]) if found[lease].tokens else []) for lease in leases]


def test_map_tasks_run_in_the_executor_and_reduce_tasks_in_the_sandbox(worker: Worker) -> None:
    assert worker.capabilities == ["executor:powers"]
    foreman = foreman_of(worker)
    mapped = []
    for (receipt, parts), value in zip(results(foreman, [1, 2, 3]), [1, 8, 27], strict=True):
        assert receipt.kind == Kind.OK
        (part,), counts = split_counters(parts, 1)
        assert (list(batches_of(part)), counts) == ([(["k"], [[value]])], {"records": 1})
        mapped.append(part)
    # One push with tasks of both phases: each goes where it belongs.
    (again,) = foreman.lease([4])
    (reduce,) = foreman.lease([0])
    parts = [reduce_header(foreman.digest, index=0), *mapped]
    digest = parts_digest(parts, domain=b"input")
    foreman.tickets[reduce] = msgspec.structs.replace(foreman.tickets[reduce], input_digest=digest)
    foreman.inputs[reduce] = frame_parts(parts)
    (after,) = foreman.lease([5])
    foreman.push([again, reduce, after], program=False)
    found, receipts = foreman.collect(3)
    assert {receipt.kind for receipt in receipts.values()} == {Kind.OK}
    (part,), counts = split_counters(foreman.open(found[reduce]), 1)
    assert (list(pairs_of(part)), counts) == ([("k", 36)], {"keys": 1})
    assert list(batches_of(foreman.open(found[after])[0])) == [(["k"], [[125]])]


def test_an_executor_has_a_process_of_its_own_and_no_secrets(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EC262_SECRET", "the account's")
    ((_, parts),) = results(foreman_of(worker), ["process"])
    ((_, ((process, same, secret),)),) = [(keys, values[0]) for keys, values in batches_of(parts[0])]
    assert process == same
    assert process != os.getpid()
    assert secret == ""


def test_what_it_raises_is_an_error_without_the_volunteers_files(worker: Worker) -> None:
    (receipt, parts), (fine, _) = results(foreman_of(worker), ["raise", 2])
    assert (receipt.kind, fine.kind) == (Kind.ERROR, Kind.OK)
    error = decode_value(parts[0])
    assert (error["type"], error["message"]) == ("LookupError", "no such thing as raise")
    assert __file__ not in str(error)
    assert str(Path.cwd()) not in str(error)


@pytest.mark.parametrize("value, limit", [("crash", "crash"), ("exit", "crash"), ("large", "output")])
def test_what_goes_wrong_costs_its_task_alone(value: str, limit: str, worker: Worker) -> None:
    before, (receipt, parts), after = results(foreman_of(worker), [1, value, 2])
    assert receipt.kind == Kind.LIMIT
    assert decode_value(parts[0])["limit"] == limit
    assert (before[0].kind, after[0].kind) == (Kind.OK, Kind.OK)


def test_printing_does_not_disturb_results(worker: Worker) -> None:
    ((receipt, _),) = results(foreman_of(worker), ["junk"])
    assert receipt.kind == Kind.OK


def pids(directory: Path) -> list[int]:
    """Of a hanging executor and what it started."""
    path = directory / "pids"
    deadline = time.monotonic() + 30
    while not path.exists() or len(path.read_text().split()) < 3:
        assert time.monotonic() < deadline
        gevent.sleep(0.02)
    return [int(text) for text in path.read_text().split()]


def alive(processes: list[int]) -> list[int]:
    return [pid for pid in processes if psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE]


def test_past_its_time_it_is_killed_with_all_it_started(
    worker: Worker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ec262.worker.runner.WALL_EXTRA_S", 3.0)
    (receipt, parts), (after, _) = results(foreman_of(worker), ["hang", 2], cpu_limit_s=0.5)
    assert receipt.kind == Kind.LIMIT
    assert decode_value(parts[0])["limit"] == "wall"
    assert after.kind == Kind.OK
    until(lambda: not alive(pids(tmp_path)))


def test_a_worker_that_stops_takes_it_along(tmp_path: Path) -> None:
    with at_work(tmp_path, Powers(str(tmp_path))) as worker:
        foreman = foreman_of(worker)
        foreman.push(foreman.lease(["hang"]))
        started = pids(tmp_path)
        assert alive(started) == started
    until(lambda: not alive(started))


def test_a_worker_that_is_killed_takes_it_along_too() -> None:
    """All that the process notices then is that the other end of its pipe closed."""
    with nothing_left():
        processes = ExecutorProcesses(Powers())
        process = processes.acquire()
        os.close(process.tasks)
        assert process._popen.wait(30) == -signal.SIGKILL
        process.tasks = os.open(os.devnull, os.O_RDONLY)  # for `close`
        processes.close()


def test_without_the_executor_tasks_are_refused(tmp_path: Path) -> None:
    with at_work(tmp_path, None) as worker:
        ((receipt, _),) = results(foreman_of(worker), [1])
        assert receipt.kind == Kind.REFUSED
        assert receipt.reason == "this worker has no executor powers"
        assert worker.capabilities == []


def test_ordinary_programs_run_in_the_sandbox_all_the_same(worker: Worker) -> None:
    ((receipt, parts),) = results(Foreman(worker.server.port), [2])
    assert receipt.kind == Kind.OK
    assert list(batches_of(parts[0])) == [(["k"], [[4]])]


class Bomb:
    """Goes off where it is unpickled."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (Path(self.path),)


def test_nothing_of_a_program_is_unpickled_for_an_executor(worker: Worker, tmp_path: Path) -> None:
    bomb = str(tmp_path / "exploded")
    foreman = foreman_of(worker)
    header, _, recipe, call = unframe_parts(foreman.blob)
    foreman.blob = frame_parts([header, pickle.dumps(Bomb(bomb)), recipe, call])
    foreman.digest = hashlib.sha256(foreman.blob).hexdigest()
    ((receipt, _),) = results(foreman, [2])
    assert receipt.kind == Kind.OK
    assert not os.path.exists(bomb)


def test_a_call_that_is_none_runs_nothing(worker: Worker) -> None:
    good = unframe_parts(pack_program(PROGRAM))
    for call in (b"{}", b"[]", b'{"d":[["executor","powers"],["params",1],["partitioner","hash"]]}', b"junk"):
        foreman = foreman_of(worker)
        foreman.blob = frame_parts([*good[:3], call])
        foreman.digest = hashlib.sha256(foreman.blob).hexdigest()
        ((receipt, parts),) = results(foreman, [2])
        assert receipt.kind == Kind.ERROR, parts


# --- before anything runs -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "make, words",
    [(Broken, "broken does not start"), (Nameless, "has no name"), (Locked, "cannot be sent to a process")],
)
def test_an_executor_that_cannot_work_is_said_at_the_start(
    make: Callable[[], JobExecutor], words: str, tmp_path: Path
) -> None:
    with nothing_left(), pytest.raises(SetupError, match=words):
        Worker(SETTINGS, "http://127.0.0.1:9", home=tmp_path, executor=make())


def test_a_program_for_an_executor_travels_with_its_reducer_alone() -> None:
    blob = pack_program(PROGRAM)
    call = executor_call(blob)
    assert call is not None
    assert (call.name, call.partitioner, call.params) == ("powers", "hash", {"power": 3})
    loaded = load_program(blob)
    assert loaded.mapper == ExecutorMapper("powers")
    assert loaded.reducer is not None
    with pytest.raises(ProgramError, match="executor:powers"):
        loaded.mapper(1, 2)
    assert executor_call(pack_program(Program(double))) is None


@pytest.mark.parametrize("role", ["combiner", "setup", "partitioner"])
def test_functions_that_would_run_unconfined_are_refused(role: str) -> None:
    functions: dict[str, Any] = {role: total}
    with pytest.raises(ProgramError, match=role):
        pack_program(executor_program("powers", **functions))


@pytest.mark.parametrize("name", ["", "Powers", "a b", "-x", "x" * 49, "a\n", 7])
def test_what_is_no_name_is_refused(name: Any) -> None:
    with pytest.raises(ProgramError, match="no name of an executor"):
        executor_program(name)
