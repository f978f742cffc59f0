"""The commands as an operator meets them: wrong flags and broken surroundings end in a sentence, not in a traceback."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from discovery.store.server import start_server
from ec262.programs import NAMES
from tests import reference
from tests.acceptance.conftest import Network
from tests.commands import run, start
from tests.processes import ROOT, until

BOOK = ROOT / "examples" / "data" / "new_testament.txt"

PROGRAM = """
import ec262

@ec262.mapper
def lines(name, line):
    ec262.counter("seen").add()
    yield "lines", ec262.param("weight", 1)

@ec262.reducer
def total(key, values):
    return sum(values)

def words(name, line):
    for word in line.split():
        yield word, 1

def slow(name, line):
    x = 0
    for i in range(3_000_000):
        x += i
    yield line, 1

def careful(name, line):
    assert line != "boom", "there it is"
    yield line, 1

def swap(word, count):
    yield count, word

def listed(key, words):
    return sorted(words)

def make():
    return [Words]

def broken():
    return missing

Words = ec262.Program(words, total)
Slow = ec262.Program(slow, total)
Careful = ec262.Program(careful, total)
Stages = [Words, ec262.Program(swap, listed)]
number = 3
"""


@pytest.mark.parametrize(
    "words, code, said",
    [
        (["discovery", "--port", "99999"], 2, "--port has to be from 0 to 65535"),
        (["discovery", "--starting-credits", "-1"], 2, "--starting-credits has to be from 0 to"),
        (["discovery", "--starting-credits", "9000000000000000000"], 2, "--starting-credits has to be from 0 to"),
        (["discovery", "--network", "secret"], 2, "invalid choice"),
        (["discovery", "--port", "0", "--data-dir", "{tmp}", "--redis", "nonsense"], 1, "redis://HOST:PORT/DB"),
        (["discovery", "--port", "0", "--data-dir", "{tmp}", "--redis", "redis://127.0.0.1:1"], 1, "--redis redis://127.0.0.1:1"),
        (["discovery", "--port", "0", "--data-dir", "/proc/nowhere"], 1, "/proc/nowhere"),
        (["discovery", "--port", "0", "--host", "192.0.2.1", "--data-dir", "{tmp}"], 1, "Cannot listen on"),
        (["worker", "--discovery", "http://example.invalid"], 1, "EC262_PLAIN_HTTP"),
        (["worker", "--port", "many"], 2, "--port"),
        (["worker", "--slots", "0"], 2, "--slots"),
        (["balance", "--discovery", "http://127.0.0.1:1"], 1, "no account at http://127.0.0.1:1 yet"),
        (["ledger", "verify", "--data-dir", "{tmp}/none"], 1, "is no directory of a discovery service"),
        (["ledger", "verify", "--redis", "redis://127.0.0.1:1"], 1, "does not answer"),
        (["ledger", "--discovery", "http://127.0.0.1:1"], 1, "no account at http://127.0.0.1:1 yet"),
        (["credits"], 2, "required"),
        ([], 2, "required"),
        (["nonsense"], 2, "invalid choice"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said(tmp_path: Path, words: list[str], code: int, said: str) -> None:
    done = run(*[word.format(tmp=tmp_path / "data") for word in words], home=tmp_path)
    assert (done.returncode, said in done.stderr) == (code, True), done.stderr
    assert "Traceback" not in done.stderr


def test_a_directory_in_use_is_named(tmp_path: Path) -> None:
    with start_server(tmp_path / "data"):
        done = run("discovery", "--port", "0", "--data-dir", str(tmp_path / "data"), home=tmp_path)
        assert done.returncode == 1
        assert str(tmp_path / "data") in done.stderr
        assert "Traceback" not in done.stderr
        # The books can be looked at while the service runs.
        done = run("ledger", "verify", "--data-dir", str(tmp_path / "data"), home=tmp_path)
        assert (done.returncode, "the books are clean" in done.stdout) == (0, True), done.stderr


COMMANDS = ["worker", "discovery", "balance", "account", "leaderboard", "simulate", "explain", "credits"]


@pytest.mark.parametrize("words", [[], *([each] for each in COMMANDS), ["ledger"], ["ledger", "verify"], ["operator"]])
def test_help_has_examples_or_flags(tmp_path: Path, words: list[str]) -> None:
    done = run(*words, "--help", home=tmp_path)
    assert done.returncode == 0
    assert "usage: " in done.stdout


def test_ledger_verify_of_clean_books(tmp_path: Path) -> None:
    with start_server(tmp_path / "data"):
        pass
    done = run("ledger", "verify", "--data-dir", str(tmp_path / "data"), home=tmp_path)
    assert (done.returncode, "the books are clean" in done.stdout) == (0, True), done.stderr


# --- ec262 run ----------------------------------------------------------------------------------------


@pytest.fixture
def desk(tmp_path: Path) -> Path:
    """A directory with a program and input, as a person has it."""
    made = tmp_path / "desk"
    made.mkdir()
    (made / "my.py").write_text(PROGRAM)
    (made / "sub").mkdir()
    (made / "sub" / "random.py").write_text(PROGRAM)  # called as one of Python's own
    (made / "one.txt").write_text("to be or\nnot to be\n")
    (made / "two.txt").write_text("be\n")
    (made / "bad.txt").write_text("good\nboom\nfine\n")
    (made / "many.txt").write_text("".join(f"line {number:06}\n" for number in range(300)))
    (made / "syntax.py").write_text("import ec262\nboom(\n")
    (made / "name.py").write_text("import ec262\n\nmissing()\n")
    (made / "empty.py").write_text("")
    return made


def left_over(home: Path) -> list[psutil.Process]:
    """Processes that a command has left: they have its home."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get("HOME") == str(home) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


@contextlib.contextmanager
def running(*words: str, **where: Any) -> Iterator[subprocess.Popen[str]]:
    """The command, which is gone afterwards."""
    process = start(*words, **where)
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
            process.communicate()


def interrupt(process: subprocess.Popen[str]) -> tuple[str, str]:
    """Ctrl-C, which a terminal sends to all of the process group."""
    os.killpg(process.pid, signal.SIGINT)
    return process.communicate(timeout=60)


def test_the_readmes_commands(tmp_path: Path) -> None:
    words = ["run", "wordcount", str(BOOK), "--output", "count", "--reducers", "4"]
    done = run(*words, home=tmp_path, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "written: count_00 ... count_03" in done.stderr
    assert "4 reduce tasks" in done.stderr
    assert " credits to " in done.stderr
    assert sorted(path.name for path in tmp_path.glob("count*")) == [
        *(f"count_0{number}" for number in range(4)),
        "count_manifest.json",
    ]
    done = run("collect", "count", "count_all", home=tmp_path, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    assert (tmp_path / "count_all").read_bytes() == reference.wordcount([BOOK])
    done = run(*words, home=tmp_path, cwd=tmp_path)
    assert (done.returncode, "count_00 is there already" in done.stderr) == (1, True), done.stderr
    until(lambda: not left_over(tmp_path), 20, "the end of all processes")


def test_the_programs_are_listed(tmp_path: Path) -> None:
    done = run("run", "--list", home=tmp_path)
    assert (done.returncode, done.stdout.split()) == (0, list(NAMES))


@pytest.mark.parametrize(
    "words, printed",
    [
        (["my.py"], "lines\t2\n"),
        (["my.py", "--param", "weight=10"], "lines\t20\n"),
        (["my.py:Words"], "be\t2\nnot\t1\nor\t1\nto\t2\n"),
        (["./my.py:make"], "be\t2\nnot\t1\nor\t1\nto\t2\n"),
        (["{desk}/my.py:Stages", "--reducers", "2"], '1\t["not","or"]\n2\t["be","to"]\n'),
        (["sub/random.py:Words"], "be\t2\nnot\t1\nor\t1\nto\t2\n"),
        (["wordcount", "--format", "json"], '["be",2]\n["not",1]\n["or",1]\n["to",2]\n'),
        (["wordcount", "two.txt"], "be\t3\nnot\t1\nor\t1\nto\t2\n"),
        (["grep", "-p", "pattern=not|x{{1,2}}"], "not to be\n"),
        (["sort"], "not to be\nto be or\n"),
    ],
)
def test_what_a_program_may_be(words: list[str], printed: str, desk: Path) -> None:
    program, *more = [word.format(desk=desk) for word in words]
    done = run("run", program, "one.txt", *more, "--local", home=desk, cwd=desk)
    assert (done.returncode, done.stdout) == (0, printed), done.stderr
    assert " map and " in done.stderr
    again = run("run", "--local", "--quiet", *more, program, "one.txt", home=desk, cwd=desk)
    if "two.txt" not in more:
        assert (again.returncode, again.stdout, again.stderr) == (0, printed, "")


@pytest.mark.parametrize(
    "words, code, said",
    [
        (["wordcount", "none.txt"], 1, "none.txt: no such file or directory"),
        (["wordcount", "*.csv"], 1, "*.csv: no file matches"),
        (["nosuch", "one.txt"], 1, "there is no program 'nosuch'; there are wordcount"),
        (["none.py", "one.txt"], 1, "there is no file none.py"),
        (["my.py:Nothing", "one.txt"], 1, "my.py has nothing called Nothing"),
        (["my.py:number", "one.txt"], 1, "number in my.py has to be an ec262.Program, a list of them, or a function"),
        (["my.py:words", "one.txt"], 1, "words in my.py has to be an ec262.Program, a list of them, or a function"),
        (["my.py:broken", "one.txt"], 1, "broken() in my.py failed: NameError: name 'missing' is not defined (line"),
        (["syntax.py", "one.txt"], 1, "syntax.py cannot be loaded: SyntaxError"),
        (["name.py", "one.txt"], 1, "name.py cannot be loaded: NameError: name 'missing' is not defined (line 3)"),
        (["empty.py", "one.txt"], 1, "no mapper: mark a function"),
        (["grep", "one.txt"], 1, "--param pattern="),
        (["grep", "one.txt", "--param", "pattern=("], 1, "is no regular expression"),
        (["wordcount", "one.txt", "--format", "binary"], 1, "format 'binary' holds values that are bytes"),
        (["wordcount", "one.txt", "--checkpoint", "."], 1, "is no checkpoint and not empty"),
        (["my.py:Careful", "bad.txt"], 1, "there it is"),
        (["wordcount"], 2, "a program and at least one input are needed"),
        ([], 2, "a program and at least one input are needed"),
        (["wordcount", "one.txt", "--reducers", "0"], 2, "reducers=0: has to be a number from 1"),
        (["wordcount", "one.txt", "--reducers", "many"], 2, "invalid int value"),
        (["wordcount", "one.txt", "--split-size", "1X"], 2, "is no number of bytes: 100000, 64K, 4M"),
        (["wordcount", "one.txt", "--param", "x"], 2, "--param 'x': has to be NAME=VALUE"),
        (["wordcount", "one.txt", "--backend", "dask"], 2, "exclude each other"),
        (["wordcount", "one.txt", "--discovery", "http://x"], 2, "goes with backend='network'"),
        (["wordcount", "one.txt", "--cluster", "tcp://x"], 2, "goes with backend='dask'"),
        (["wordcount", "one.txt", "--on-failure", "retry"], 2, "invalid choice"),
        (["wordcount", "one.txt", "--outputs", "x"], 2, "ec262 run: error: unrecognized arguments: --outputs"),
    ],
)
def test_what_is_wrong_with_a_job_is_said(words: list[str], code: int, said: str, desk: Path) -> None:
    done = run("run", "--local", *words, home=desk, cwd=desk)
    assert (done.returncode, done.stdout, said in done.stderr) == (code, "", True), done.stderr
    assert "ec262/" not in done.stderr, "a traceback of ours"


def test_a_network_that_is_not_there_is_said(desk: Path) -> None:
    for words in (["--discovery", "http://127.0.0.1:1"], ["--backend", "dask", "--cluster", "tcp://127.0.0.1:1"]):
        done = run("run", "wordcount", "one.txt", *words, "--output", "made", home=desk, cwd=desk)
        assert (done.returncode, "Traceback" in done.stderr) == (1, False), done.stderr
        assert "127.0.0.1:1" in done.stderr
    assert not list(desk.glob("*made*"))


@pytest.mark.parametrize("backend", ["local", "processes", "network"])
def test_failed_tasks_are_skipped_and_named(backend: str, desk: Path) -> None:
    words = ["run", "my.py:Careful", "bad.txt", "--split-size", "5", "--backend", backend, "--no-rehearsal"]
    done = run(*words, "--on-failure", "skip", home=desk, cwd=desk)
    assert (done.returncode, done.stdout) == (4, "fine\t1\ngood\t1\n"), done.stderr
    assert "failed and skipped: map task 1 (bad.txt, from byte 5):" in done.stderr
    done = run(*words, "--on-failure", "skip", "--output", "made", home=desk, cwd=desk)
    assert done.returncode == 4, done.stderr
    assert (desk / "made_manifest.json").exists()
    done = run(*words, "--output", "not", home=desk, cwd=desk)
    assert (done.returncode, "there it is" in done.stderr) == (1, True), done.stderr
    assert not list(desk.glob("*not*"))


def test_a_reader_that_has_enough_is_no_failure(desk: Path) -> None:
    process = start("run", "sort", str(BOOK), "--local", home=desk, cwd=desk)
    assert process.stdout is not None
    assert process.stderr is not None
    assert process.stdout.readline()
    process.stdout.close()
    assert (process.stderr.read(), process.wait(60)) == ("", 141)
    process.stderr.close()


@pytest.mark.parametrize("backend", ["local", "processes", "network"])
def test_ctrl_c_leaves_nothing(backend: str, desk: Path) -> None:
    words = ["run", "my.py:Slow", "many.txt", "--split-size", "12", "--backend", backend, "--output", "made"]
    with running(*words, "--no-rehearsal", home=desk, cwd=desk) as process:
        if backend == "local":
            until(lambda: psutil.Process(process.pid).cpu_times().user > 2.5, 60, "some work")
        else:
            until(lambda: len(psutil.Process(process.pid).children(recursive=True)) >= 2, 60, "some processes")
        out, errors = interrupt(process)
    assert (process.returncode, out, errors) == (130, "", "")
    assert not list(desk.glob("*made*"))
    until(lambda: not left_over(desk), 20, "the end of all processes")


def test_ctrl_c_settles_and_jobs_tell(make_network: Callable[..., Network], desk: Path) -> None:
    network = make_network()
    network.worker()
    home: dict[str, Any] = {"home": desk, "cwd": desk, "EC262_HOME": str(network.directory / "foreman")}
    at = ["--discovery", network.url]
    done = run("jobs", *at, **home)
    assert (done.returncode, "no account" in done.stderr) == (1, True)

    words = ["run", "my.py:Slow", "many.txt", "--split-size", "12", "--reducers", "2", "--output", "made", *at]
    with running(*words, "--name", "slow and long", "--param", "x=1", **home) as process:
        until(lambda: "slow and long" in run("jobs", *at, **home).stdout, 60, "the job in the list")
        (known,) = json.loads(run("jobs", "--json", *at, **home).stdout)["jobs"]
        assert (known["name"], known["state"], known["tasks_total"]) == ("slow and long", "running", 300)
        out, errors = interrupt(process)
    assert (process.returncode, out, errors) == (130, "", "")
    assert network.account("foreman")["escrow"] == 0, "what is done is paid and the rest is back when the command ends"
    assert 0 < int(str(network.account("foreman")["spent"])) < 300
    assert not list(desk.glob("*made*"))
    done = run("jobs", *at, **home)
    assert done.returncode == 0
    assert "no job of yours runs" in done.stdout
    assert "cancelled" in run("jobs", "--all", *at, **home).stdout
    until(lambda: not left_over(desk), 20, "the end of all processes")


@pytest.mark.slow
def test_the_same_command_goes_on_after_kill_9(make_network: Callable[..., Network], desk: Path) -> None:
    network = make_network()
    for _ in range(2):
        network.worker()
    home: dict[str, Any] = {"home": desk, "cwd": desk, "EC262_HOME": str(network.directory / "foreman")}
    (desk / "quick.py").write_text(PROGRAM.replace("3_000_000", "150_000"))
    (desk / "long.txt").write_text("".join(f"line {number:06}\n" for number in range(300)))
    words = [
        *("run", "quick.py:Slow", "long.txt", "--split-size", "48", "--reducers", "2", "--output", "made"),
        *("--checkpoint", "kept", "--timeout", "25", "--discovery", network.url),
    ]
    with running(*words, **home):
        until(lambda: (desk / "kept" / "map-0.spool").exists(), 60, "the first phase")
        until(lambda: int(str(network.account("foreman")["spent"])) >= 10, 60, "some tasks")
    assert not list(desk.glob("*made*"))
    done = run(*words, **home)
    assert done.returncode == 0, done.stderr
    lines = [f"line {number:06}\t1\n" for number in range(300)]
    made = [path.read_text().splitlines(keepends=True) for path in sorted(desk.glob("made_0*"))]
    assert len(made) == 2
    assert sorted(made[0] + made[1]) == lines
    # What was leased in the moment of the kill comes back when the leases end, after --timeout.
    until(lambda: network.account("foreman")["escrow"] == 0, 60, "an empty escrow")
    spent = int(str(network.account("foreman")["spent"]))
    assert 77 <= spent <= 77 + 8, f"only what was being sent in that moment may be paid twice: {done.stderr}"
    again = run(*words, **home)
    assert (again.returncode, "is there already" in again.stderr) == (1, True), again.stderr
    other = run(*words, "--overwrite", "--seed", "7", **home)
    assert (other.returncode, "another job's" in other.stderr) == (1, True), other.stderr
