"""The embedded network: it comes with a program, serves it, and is gone with it, however it ends."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.processes import ROOT, nothing_left, until

PROGRAM = """
import sys, time, ec262
def words(key, line):
    for word in line.split():
        yield word, 1
def slow(key, value):
    x = 0
    for i in range(300_000):
        x += i
    yield key % 3, value
def total(word, counts):
    return sum(counts)
"""


@pytest.fixture
def environment(tmp_path: Path) -> Iterator[dict[str, str]]:
    """An environment with an empty home and temporary directory; both are empty again afterwards."""
    home, temporary = tmp_path / "home", Path(tempfile.mkdtemp(prefix="t", dir="/tmp"))
    home.mkdir()
    made = {**os.environ, "HOME": str(home), "TMPDIR": str(temporary), "PYTHONPATH": str(ROOT)}
    for name in ("EC262_DISCOVERY", "EC262_ACCOUNT", "EC262_SECRET", "EC262_HOME", "XDG_CONFIG_HOME"):
        made.pop(name, None)
    with nothing_left():
        yield made
    until(lambda: not list(temporary.iterdir()), what="an empty temporary directory")
    temporary.rmdir()
    left = [path for path in home.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    assert left == [], "nothing is written to the home of somebody who only ran a program"


def run(program: str, environment: dict[str, str], timeout_s: float = 60) -> subprocess.CompletedProcess[str]:
    """Runs a program to its end."""
    path = Path(environment["HOME"]).parent / "program.py"
    path.write_text(PROGRAM + program)
    return subprocess.run(
        [sys.executable, str(path)], env=environment, capture_output=True, text=True, timeout=timeout_s, check=False
    )


def start(program: str, environment: dict[str, str]) -> subprocess.Popen[str]:
    """Starts a program and waits until it prints a line."""
    path = Path(environment["HOME"]).parent / "program.py"
    path.write_text(PROGRAM + program)
    started = subprocess.Popen(
        [sys.executable, "-u", str(path)], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert started.stdout is not None
    assert started.stdout.readline() == "running\n"
    return started


def finish(started: subprocess.Popen[str]) -> tuple[str, str]:
    """What a program still said; closes its pipes."""
    return started.communicate(timeout=60)


def test_the_example_prints_counts_and_credits_that_balance(environment: dict[str, str]) -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "example.py")],
        env=environment, capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    assert re.search(r"^ +3  humpty$", done.stdout, re.MULTILINE)
    assert re.search(r"^ +2  dumpty$", done.stdout, re.MULTILINE)
    assert "4 map and 1 reduce tasks cost 5 credits" in done.stdout
    assert sum(map(int, re.findall(r"^worker \w+ earned (\d+)$", done.stdout, re.MULTILINE))) == 5
    assert "had 1000000 credits and has 999995" in done.stdout
    assert done.stderr == "", "silent when not a terminal"


def test_the_book_is_counted_rightly(environment: dict[str, str]) -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples" / "book.py")],
        env=environment, capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "the same as a plain Counter finds" in done.stdout
    assert (ROOT / "examples" / "data" / "new_testament.txt").stat().st_size > 500_000


def test_two_jobs_threads_asyncio_and_a_fork_share_one_network(environment: dict[str, str]) -> None:
    done = run(
        """
import asyncio, os, threading
from ec262.embedded import embedded_network
if __name__ == "__main__":
    job = lambda: ec262.run_job({1: "a b", 2: "a"}, mapper=words, reducer=total)
    print(job())
    pid = embedded_network().discovery_pid
    found = []
    threads = [threading.Thread(target=lambda: found.append(job())) for _ in range(2)]
    [t.start() for t in threads]; [t.join() for t in threads]
    print(found[0]); print(found[1])
    async def main():
        print(await asyncio.to_thread(job))
    asyncio.run(main())
    assert embedded_network().discovery_pid == pid
    sys.stdout.flush()  # or the child would print it once more
    child = os.fork()
    if child == 0:
        print(job(), flush=True)  # a network of the child's own
        assert embedded_network().discovery_pid != pid
        sys.exit(0)
    assert os.waitpid(child, 0)[1] == 0
    print(job())
""",
        environment,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["{'a': 2, 'b': 1}"] * 6


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_everything_is_gone_after_the_program_was_killed(environment: dict[str, str], number: signal.Signals) -> None:
    program = start(
        """
if __name__ == "__main__":
    job = ec262.submit({n: n for n in range(10_000)}, mapper=slow, reducer=total, items_per_task=1)
    while not job.progress().done:
        time.sleep(0.01)
    print("running")
    job.result()
""",
        environment,
    )
    family = psutil.Process(program.pid).children(recursive=True)
    assert len(family) >= 8, "discovery, watchdog, store, three workers, three sandboxes"
    program.send_signal(number)
    finish(program)
    until(lambda: not any(process.is_running() for process in family), what="the end of the whole network")


def test_ctrl_c_cancels_the_job_and_the_program_may_go_on(environment: dict[str, str]) -> None:
    program = start(
        """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)
if __name__ == "__main__":
    said = []
    def once(progress):
        if progress.phase == "map" and progress.done > 3 and not said:
            said.append(1)
            print("running", flush=True)
    try:
        ec262.run_job({n: n for n in range(10_000)}, mapper=slow, reducer=total, items_per_task=1, progress=once)
    except KeyboardInterrupt:
        print("cancelled")
    print(ec262.run_job({1: "a"}, mapper=words, reducer=total))
""",
        environment,
    )
    program.send_signal(signal.SIGINT)
    out, err = finish(program)
    assert out.splitlines() == ["cancelled", "{'a': 1}"], err
    assert program.returncode == 0


def test_progress_is_shown_on_a_terminal_only(environment: dict[str, str]) -> None:
    program = "if __name__ == '__main__':\n    ec262.run_job({1: 'a'}, mapper=words, reducer=total%s)\n"
    assert run(program % "", environment).stderr == ""
    shown = run(program % ", progress=True", environment).stderr
    assert "map 0/1" in shown
    assert "reduce 0/1" in shown
    assert "2 credits" in shown


def test_a_network_that_cannot_start_says_why(environment: dict[str, str]) -> None:
    environment["EC262_WORKERS"] = "many"
    done = run("ec262.run_job({1: 'a'}, mapper=words)", environment)
    assert done.returncode == 1
    assert "EC262_WORKERS='many': has to be a number" in done.stderr


def test_an_empty_job_has_an_empty_result(environment: dict[str, str]) -> None:
    done = run("if __name__ == '__main__': print(ec262.run_job({}, mapper=words, reducer=total))", environment)
    assert done.stdout == "{}\n", done.stderr


def test_large_inputs_and_results_travel_in_pieces(environment: dict[str, str]) -> None:
    done = run(
        """
def echo(key, value):
    yield key, value
def longest(key, values):
    return values[0]
if __name__ == "__main__":
    data = {n: chr(97 + n) * 11_000_000 for n in range(3)}
    result = ec262.run_job(data, mapper=echo, reducer=longest)
    assert result == data
    print("equal")
""",
        environment,
    )
    assert done.stdout == "equal\n", done.stderr


def test_a_progress_callback_that_fails_does_not_fail_the_job(environment: dict[str, str]) -> None:
    done = run(
        """
if __name__ == "__main__":
    print(ec262.run_job({1: "a"}, mapper=words, reducer=total, progress=lambda p: 1 / 0))
    sys.stderr.close()
    print(ec262.run_job({1: "a"}, mapper=words, reducer=total, progress=True))
""",
        environment,
    )
    assert done.stdout.splitlines() == ["{'a': 1}"] * 2
    assert "the progress callback failed" in done.stderr


@pytest.mark.parametrize(
    "call, said",
    [
        ("{1: 'a'}, mapper=words, items_per_task=1.5", "items_per_task=1.5: has to be a whole number"),
        ("{1: 'a'}, mapper=words, items_per_task=0", "has to be a number of 1 or more"),
        ("{1: 'a'}, mapper=words, progress=5", "progress=5: has to be a function, True, False or None"),
        (
            "{1: 'a'}, mapper=words, redundnacy=3",
            "options are: mapper, reducer, combiner, program",
        ),
        ("{1: 'a'}", "no mapper: mark a function of module __main__ with @ec262.mapper"),
        ("5, mapper=words", "data has to be a dictionary or (key, value) pairs, not a int"),
        ("{1: {2}}, mapper=words", "only None, bool, int, float, str, bytes, list, tuple and dict travel"),
    ],
)
def test_calls_that_cannot_be_meant_are_refused_before_anything_starts(
    environment: dict[str, str], call: str, said: str
) -> None:
    done = run(f"ec262.run_job({call})", environment)
    assert done.returncode == 1
    assert said in done.stderr
    assert "ec262-" not in done.stderr
