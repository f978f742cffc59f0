"""Units: order, limits, the guilty alone, nothing left behind, under threads and greenlets alike."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from ec262.errors import SandboxUnavailable
from ec262.mapreduce.program import Program
from ec262.sandbox.launcher import Outcome, Sandbox, UnitTask
from ec262.sandbox.pack import pack_program
from ec262.sandbox.policy import Limits, Policy
from tests.sandbox.modes import HERE, PROJECT, Runner, one, several

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="confines on Linux")


def _plus_one(number: int, _: Any) -> Any:
    return str(number + 1)


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    with Sandbox(executor="executors:call", import_paths=[str(HERE)], slots=2) as made:
        yield made


def _unit(sandbox: Sandbox, function: Callable[..., Any], facts: list[Any], **limits: Any) -> list[Outcome]:
    tasks = [UnitTask(i, [json.dumps(fact).encode()], **limits) for i, fact in enumerate(facts)]
    queue, outcomes = list(reversed(tasks)), []
    sandbox.run_unit(
        pack_program(Program(function)),
        lambda: queue.pop() if queue else None,
        lambda task, outcome: outcomes.append((task.id, outcome)),
    )
    assert [number for number, _ in outcomes] == list(range(len(tasks)))
    return [outcome for _, outcome in outcomes]


def test_thousand_tasks_in_order(sandbox: Sandbox) -> None:
    outcomes = _unit(sandbox, _plus_one, list(range(1000)))
    assert [outcome.parts for outcome in outcomes] == [[str(n + 1).encode()] for n in range(1000)]


def test_unit_ends_after_its_most_tasks(sandbox: Sandbox) -> None:
    taken, done = [], []

    def next_task() -> UnitTask:
        taken.append(1)
        return UnitTask(len(taken), [b"1"])

    limits = Limits(max_unit_tasks=300)
    count = sandbox.run_unit(pack_program(Program(_plus_one)), next_task, lambda t, _: done.append(t), limits)
    assert count == len(done) == len(taken) == 300


def test_no_task_no_child(sandbox: Sandbox) -> None:
    assert sandbox.run_unit(b"", lambda: None, lambda *_: None) == 0


def _megabytes(size: int, _: Any) -> bytes:
    return bytes(range(256)) * (size * 4096)


def test_large_input_and_output_do_not_lock_up(runner: Runner) -> None:
    big = [os.urandom(24 << 20), b"", os.urandom(1 << 20)]
    tasks = [UnitTask(i, big) for i in range(4)]
    outcomes = runner.run("full", pack_program(Program(_plus_one)), tasks, executor="echo")
    assert [(outcome.kind, outcome.parts == big) for outcome in outcomes] == [("ok", True)] * 4


def test_output_is_capped(runner: Runner) -> None:
    outcome = one(runner, "full", _megabytes, 9, max_output_bytes=8 << 20)
    assert outcome.error is not None
    assert outcome.error.limit == "output"
    assert one(runner, "full", _megabytes, 9, max_output_bytes=10 << 20).kind == "ok"


def _misbehave(what: str, _: Any) -> Any:
    os_ = json.dumps.__globals__["__builtins__"]["__import__"]("os")
    if what == "spin":
        while True:
            pass
    if what == "sleep":
        json.dumps.__globals__["__builtins__"]["__import__"]("time").sleep(1e9)
    if what == "memory":
        return str(len(bytearray(1 << 33)))
    if what == "hoard":
        hoard = []
        while True:
            hoard.append(bytearray(1 << 20))
    if what == "exit":
        os_._exit(7)
    if what == "raise":
        raise KeyError(what)
    if what == "crash":
        json.dumps.__globals__["__builtins__"]["__import__"]("ctypes").string_at(0)
    if what == "forbidden":
        json.dumps.__globals__["__builtins__"]["__import__"]("ctypes").CDLL(None).ptrace(0, 0, 0, 0)
    if what == "output":
        return b"x" * (2 << 20)
    if what == "forge":
        os_.write(1, b"nonsense" * 100)
    return f"fine {what}"


GUILTY = {
    "spin": "cpu", "sleep": "wall", "memory": "memory", "hoard": "memory", "exit": "crash", "crash": "crash",
    "forbidden": "forbidden", "output": "output", "forge": "protocol", "raise": "",
}  # fmt: skip


@pytest.mark.parametrize("what", GUILTY)
def test_guilty_task_costs_itself_alone(what: str, runner: Runner) -> None:
    facts = ["a"] * 5 + [what] + ["b"] * 20 + [what] + ["c"]
    wall = 0.6 if what == "sleep" else 60.0
    cpu = 0.4 if what == "spin" else 30.0  # touching a gigabyte takes its time on a busy machine
    outcomes = several(runner, "full", _misbehave, facts, cpu_limit_s=cpu, wall_limit_s=wall, max_output_bytes=1 << 20)
    assert len(outcomes) == len(facts)
    for fact, outcome in zip(facts, outcomes, strict=True):
        if fact != what:
            assert (outcome.kind, outcome.parts) == ("ok", [f"fine {fact}".encode()])
        else:
            assert outcome.error is not None
            assert outcome.error.limit == GUILTY[what]
            assert outcome.kind == ("error" if what == "raise" else "limit")
            assert outcome.error.message


def test_limits_are_measured(runner: Runner) -> None:
    spun = one(runner, "full", _misbehave, "spin", cpu_limit_s=0.3, wall_limit_s=5)
    assert 0.25 < spun.cpu_s < 1.5
    slept = one(runner, "full", _misbehave, "sleep", cpu_limit_s=5, wall_limit_s=0.3)
    assert 0.25 < slept.wall_s < 1.5
    assert slept.cpu_s < 0.2


def _work(_: Any, __: Any) -> str:
    return str(sum(range(2_000_000)))


def test_cpu_time_is_told(sandbox: Sandbox) -> None:
    (outcome,) = _unit(sandbox, _work, [0])
    assert 0.005 < outcome.cpu_s <= outcome.wall_s * 1.5


def test_stop_kills_the_unit(sandbox: Sandbox) -> None:
    begun, outcomes = time.monotonic(), []
    queue = [UnitTask(i, [b'"spin"'], cpu_limit_s=60) for i in range(3)]
    sandbox.run_unit(
        pack_program(Program(_misbehave)),
        lambda: queue.pop() if queue else None,
        lambda *outcome: outcomes.append(outcome),
        stop=lambda: time.monotonic() > begun + 0.3,
    )
    assert outcomes == []
    assert time.monotonic() - begun < 2


def test_callback_that_raises_ends_the_unit(sandbox: Sandbox) -> None:
    def on_outcome(*_: Any) -> None:
        raise RuntimeError("mine")

    with pytest.raises(RuntimeError, match="mine"):
        sandbox.run_unit(pack_program(Program(_plus_one)), lambda: UnitTask(1, [b"1"]), on_outcome)
    assert _unit(sandbox, _plus_one, [1])[0].parts == [b"2"]


def test_threads_share_a_sandbox(sandbox: Sandbox) -> None:
    results: dict[int, list[Outcome]] = {}

    def run(number: int) -> None:
        results[number] = _unit(sandbox, _plus_one, list(range(number, number + 200)))

    threads = [threading.Thread(target=run, args=(n * 1000,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    for number, outcomes in results.items():
        assert [outcome.parts for outcome in outcomes] == [[str(n + 1).encode()] for n in range(number, number + 200)]
    assert len(results) == 4


def test_greenlets_share_a_sandbox() -> None:
    """In a process of its own: gevent's hub is for the whole thread."""
    script = """
import gevent, gevent.select, json, sys, time
from ec262.sandbox.launcher import Sandbox, UnitTask
from ec262.sandbox.pack import pack_program
from ec262.mapreduce.program import Program
def sleepy(n, _):
    t = json.dumps.__globals__["__builtins__"]["__import__"]("time"); t.sleep(0.3); return str(n + 1)
ticks = []
def tick():
    while True:
        ticks.append(1); gevent.sleep(0.01)
gevent.spawn(tick)
def unit(n, out):
    q = [UnitTask(0, [json.dumps(n).encode()])]
    sandbox.run_unit(pack_program(Program(sleepy)), lambda: q.pop() if q else None, lambda t, o: out.append(o))
out = []
with Sandbox(executor="executors:call", import_paths=[sys.argv[1]], slots=3, poll=gevent.select.poll) as sandbox:
    begun = time.monotonic()
    gevent.joinall([gevent.spawn(unit, n, out) for n in range(3)], raise_error=True)
    took = time.monotonic() - begun
print(json.dumps([sorted(o.parts[0].decode() for o in out), took, len(ticks)]))
"""
    done = subprocess.run(
        [sys.executable, "-c", script, str(HERE)], capture_output=True, text=True, timeout=60, cwd=PROJECT, check=False
    )
    assert done.returncode == 0, done.stderr
    parts, took, ticks = json.loads(done.stdout)
    assert parts == ["1", "2", "3"]
    assert took < 0.85, "the units did not run at once"
    assert ticks > 10, "other greenlets stood still"


# --- nothing left, nothing lost ---------------------------------------------------------------------------


def _zygotes(pid: int) -> list[psutil.Process]:
    """The zygotes and children below a process."""
    found = []
    for process in psutil.Process(pid).children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if "child.py" in " ".join(process.cmdline()):
                found.append(process)
    return found


def _gone(processes: list[psutil.Process], seconds: float = 5) -> bool:
    return not psutil.wait_procs(processes, timeout=seconds)[1]


def test_close_leaves_nothing() -> None:
    before = len(os.listdir("/proc/self/fd"))
    sandbox = Sandbox(executor="executors:call", import_paths=[str(HERE)])
    _unit(sandbox, _plus_one, [1])
    assert sandbox._zygote is not None
    mine = [psutil.Process(sandbox._zygote.process.pid), *_zygotes(sandbox._zygote.process.pid)]
    assert len(mine) >= 2
    sandbox.close()
    sandbox.close()
    assert _gone(mine)
    assert len(os.listdir("/proc/self/fd")) <= before
    with pytest.raises(SandboxUnavailable, match="closed"):
        sandbox.start()


def test_killed_zygote_is_replaced_and_nobody_blamed() -> None:
    with Sandbox(executor="executors:call", import_paths=[str(HERE)]) as sandbox:
        _unit(sandbox, _plus_one, [1])
        assert sandbox._zygote is not None
        first = sandbox._zygote.process.pid
        family = [psutil.Process(first), *_zygotes(first)]
        assert len(family) >= 2
        killer = threading.Timer(0.3, lambda: os.kill(first, signal.SIGKILL))
        killer.start()
        outcomes = _unit(sandbox, _nap, [0.02] * 30)
        assert {outcome.kind for outcome in outcomes} == {"ok"}
        assert sandbox._zygote is not None
        assert sandbox._zygote.process.pid != first
        assert _gone(family)


def _nap(seconds: float, _: Any) -> str:
    json.dumps.__globals__["__builtins__"]["__import__"]("time").sleep(seconds)
    return "rested"


def test_zygote_that_keeps_dying_is_an_error() -> None:
    with Sandbox(executor="executors:call", import_paths=[str(HERE)]) as sandbox:

        def next_task() -> UnitTask:
            assert sandbox._zygote is not None
            sandbox._zygote.process.kill()  # nothing where it is dead already
            sandbox._zygote.process.wait()
            return UnitTask(1, [b"1"])

        def ten_units() -> None:
            for _ in range(10):
                sandbox.run_unit(pack_program(Program(_plus_one)), next_task, lambda *_: None, Limits(max_unit_tasks=1))

        with pytest.raises(SandboxUnavailable, match="died 5 times"):
            ten_units()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_dead_parent_leaves_no_orphan(number: int, tmp_path: Path) -> None:
    script = """
import sys
from ec262.sandbox.launcher import Sandbox, UnitTask
from ec262.sandbox.pack import pack_program
from ec262.mapreduce.program import Program
def spin(k, v):
    while True: pass
sandbox = Sandbox(executor="executors:call", import_paths=[sys.argv[1]])
sandbox.start()
def next_task():
    print("running", flush=True)
    return UnitTask(1, [b"1"], cpu_limit_s=60, wall_limit_s=60)
sandbox.run_unit(pack_program(Program(spin)), next_task, print)
"""
    parent = subprocess.Popen([sys.executable, "-c", script, str(HERE)], stdout=subprocess.PIPE, cwd=PROJECT)
    assert parent.stdout is not None
    parent.stdout.readline()
    deadline = time.monotonic() + 10
    while len(family := _zygotes(parent.pid)) < 3 and time.monotonic() < deadline:
        time.sleep(0.02)
    assert len(family) >= 3
    time.sleep(0.2)
    parent.send_signal(number)
    parent.wait()
    parent.stdout.close()
    assert _gone(family)


def test_zygote_knows_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EC262_TEST_TOKEN", "hush")
    with Sandbox() as sandbox:
        assert sandbox._zygote is not None
        pid = sandbox._zygote.process.pid
        environment = Path(f"/proc/{pid}/environ").read_bytes()
        assert b"EC262" not in environment
        assert b"HOME" not in environment


def test_without_seccomp_it_refuses_to_start() -> None:
    with pytest.raises(SandboxUnavailable, match="seccomp"):
        Sandbox(policy=Policy(seccomp=False)).start()


def test_interpreter_that_does_not_exist() -> None:
    with pytest.raises(SandboxUnavailable, match="does not start"):
        Sandbox(python="/nonexistent/python").start()


def test_executor_that_does_not_exist() -> None:
    with pytest.raises(SandboxUnavailable, match="no_such_module"):
        Sandbox(executor="no_such_module:run").start()


def test_poll_is_the_only_wait(sandbox: Sandbox) -> None:
    """The injected factory is what a unit waits with."""
    made = []

    def poll() -> Any:
        made.append(1)
        return select.poll()

    with Sandbox(executor="executors:call", import_paths=[str(HERE)], poll=poll) as mine:
        _unit(mine, _plus_one, [1, 2])
    assert len(made) >= 3
