"""Functions of every kind ship and run: by pickle, by source, and on other Python versions."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ec262.mapreduce.program import Program, execute, map_header
from ec262.protocol.canonical import encode_pairs
from ec262.protocol.framing import frame_parts, unframe_parts
from ec262.sandbox.launcher import Outcome, Sandbox, UnitTask
from ec262.sandbox.pack import NotShippable, load_program, pack_program
from tests.sandbox.samples import KINDS

PARTS = [map_header("p", index=0, partitions=2), encode_pairs([("key", "Some Value"), ("other", "b")])]


def _run(sandbox: Sandbox, blob: bytes, copies: int = 1) -> list[Outcome]:
    tasks = [UnitTask(i, PARTS) for i in range(copies)]
    outcomes: list[Outcome] = []
    sandbox.run_unit(blob, lambda: tasks.pop() if tasks else None, lambda _, outcome: outcomes.append(outcome))
    return outcomes


def _from_elsewhere(blob: bytes) -> bytes:
    """The same program, as if packed by a Python that nobody runs: only its source is of use."""
    header, pickled, recipe = unframe_parts(blob)
    fields = json.loads(header)
    fields["python"] = ["cpython", 3, 99]
    return frame_parts([json.dumps(fields).encode(), b"\xff" * len(pickled), recipe])


def _expected(name: str) -> list[bytes]:
    # `closure` counts up as it is called: ask a copy, as every task does
    return execute(load_program(pack_program(Program(KINDS[name]))), PARTS)


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    with Sandbox() as made:
        yield made


def _pythons() -> list[str]:
    root = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    found = []
    for minor in (11, 12, 13, 14):
        if minor == sys.version_info.minor:
            continue
        here = [str(path / "bin/python") for path in sorted(root.glob(f"3.{minor}.*"))]
        elsewhere = shutil.which(f"python3.{minor}")
        found += here[-1:] or ([elsewhere] if elsewhere else [])
    return [python for python in found if _is_another(python)]


def _is_another(python: str) -> bool:
    """Whether it runs (a version manager's shim may not) and is of another version than this."""
    told = subprocess.run(
        [python, "-c", "import sys; print(sys.version_info[:2])"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return told.returncode == 0 and told.stdout.strip() not in ("", str(sys.version_info[:2]))


@pytest.fixture(scope="module", params=_pythons() or [""], ids=lambda path: path.split("/")[-3] if path else "none")
def other_python(request: pytest.FixtureRequest) -> Iterator[Sandbox]:
    if not request.param:
        pytest.skip("no other Python on this machine")
    with Sandbox(python=request.param) as made:
        assert made.start().python[:2] != sys.version_info[:2]
        yield made


@pytest.mark.parametrize("name", KINDS)
def test_kind_ships_by_pickle(name: str, sandbox: Sandbox) -> None:
    outcomes = _run(sandbox, pack_program(Program(KINDS[name])), copies=3)
    for outcome in outcomes:  # equal each time: every task starts from fresh globals
        assert (outcome.kind, outcome.parts) == ("ok", _expected(name)), outcome.error


@pytest.mark.parametrize("name", KINDS)
def test_kind_ships_by_source(name: str, sandbox: Sandbox) -> None:
    outcomes = _run(sandbox, _from_elsewhere(pack_program(Program(KINDS[name]))), copies=3)
    for outcome in outcomes:
        assert (outcome.kind, outcome.parts) == ("ok", _expected(name)), outcome.error


@pytest.mark.parametrize("name", KINDS)
def test_kind_runs_on_another_python(name: str, other_python: Sandbox) -> None:
    (outcome,) = _run(other_python, pack_program(Program(KINDS[name])))
    assert (outcome.kind, outcome.parts) == ("ok", _expected(name)), outcome.error


def test_there_are_twenty_kinds() -> None:
    assert len(KINDS) >= 20


def test_packing_twice_gives_equal_bytes() -> None:
    for name, function in KINDS.items():
        assert pack_program(Program(function)) == pack_program(Program(function)), name


def test_program_without_source_is_an_error_on_another_python(sandbox: Sandbox) -> None:
    namespace: dict[str, Any] = {}
    exec("def mapper(key, value):\n    return [(key, value)]", namespace)
    blob = pack_program(Program(namespace["mapper"]))
    (outcome,) = _run(sandbox, blob)
    assert outcome.kind == "ok", outcome.error
    (outcome,) = _run(sandbox, _from_elsewhere(blob))
    assert outcome.error is not None
    assert "cpython 3.99" in outcome.error.message
    assert "its own Python version" in outcome.error.message


_lock = threading.Lock()


def _uses_a_lock(key: Any, value: Any) -> Any:
    with _lock:
        return [(key, value)]


def _uses_os(key: Any, value: Any) -> Any:
    return [(key, os.getcwd())]


def _calls_what_uses_os(key: Any, value: Any) -> Any:
    return _uses_os(key, value)


def test_what_cannot_ship_is_named() -> None:
    with pytest.raises(NotShippable, match=r"mapper _uses_a_lock .*test_pack.py:\d+.* '_lock'.* _thread.lock"):
        pack_program(Program(_uses_a_lock))
    with pytest.raises(NotShippable, match=r"_uses_os .*'os'.*module os is not available in the sandbox"):
        pack_program(Program(_uses_os))
    with pytest.raises(NotShippable, match=r"calls _uses_os.*module os"):
        pack_program(Program(_calls_what_uses_os))


def test_generator_in_a_closure_is_named() -> None:
    numbers = (n for n in range(3))

    def mapper(key: Any, value: Any) -> Any:
        return [(key, next(numbers))]

    with pytest.raises(NotShippable, match=r"'numbers'.*generator"):
        pack_program(Program(mapper))


@pytest.mark.parametrize("form", ["pickle", "source"])
def test_error_names_the_authors_line(form: str, sandbox: Sandbox) -> None:
    blob = pack_program(Program(_fails))
    (outcome,) = _run(sandbox, blob if form == "pickle" else _from_elsewhere(blob))
    error = outcome.error
    assert error is not None
    line = _fails.__code__.co_firstlineno + 2
    assert error.type == "ZeroDivisionError"
    assert error.line == f"{__file__}:{line}"
    assert "return [(key, 1 // nothing)]" in error.traceback
    assert "execute" not in error.traceback


def _fails(key: Any, value: Any) -> Any:
    nothing = 0
    return [(key, 1 // nothing)]


@pytest.mark.parametrize("damage", [b"", b"EP1", b"\x80\x05garbage", b"EP1\0\0\0\1\0\0\0\2{}"])
def test_broken_program_is_its_tasks_error(damage: bytes, sandbox: Sandbox) -> None:
    (outcome,) = _run(sandbox, damage)
    assert outcome.kind == "error"
