"""Real processes for tests: discovery and workers as a person starts them, and proof that none is left."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parent.parent
START_S = 60.0


class Process:
    """A child that says in one line of JSON that it is ready."""

    def __init__(
        self,
        arguments: Sequence[str],
        *,
        home: Path,
        log: Path,
        within: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.log = log
        environment = {**os.environ, "EC262_HOME": str(home), "PYTHONPATH": str(ROOT), **(environment or {})}
        for name in ("EC262_DISCOVERY", "EC262_ACCOUNT", "EC262_SECRET"):
            environment.pop(name, None)
        with open(log, "ab") as errors:
            self.popen = subprocess.Popen(
                [*within, sys.executable, *arguments, "--report-ready", "--parent-pipe"],
                cwd=ROOT,
                env=environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
            )
        assert self.popen.stdout is not None
        line = b""
        deadline = time.monotonic() + START_S
        while not line.endswith(b"\n"):
            ready, _, _ = select.select([self.popen.stdout], [], [], max(0.0, deadline - time.monotonic()))
            piece = os.read(self.popen.stdout.fileno(), 4096) if ready else b""
            if not piece:
                self.kill()
                raise AssertionError(f"{arguments} did not start:\n{log.read_text()}")
            line += piece
        self.ready = json.loads(line)

    @property
    def pid(self) -> int:
        """Of the process."""
        return self.popen.pid

    def family(self) -> list[psutil.Process]:
        """The process and all it started."""
        with contextlib.suppress(psutil.NoSuchProcess):
            parent = psutil.Process(self.pid)
            return [parent, *parent.children(recursive=True)]
        return []

    def kill(self) -> None:
        """kill -9."""
        self.popen.kill()
        self.wait()

    def stop(self, timeout_s: float = 30.0) -> int:
        """Asks it to leave, as a person would with Ctrl-C."""
        self.popen.send_signal(signal.SIGTERM)
        return self.wait(timeout_s)

    def wait(self, timeout_s: float = 30.0) -> int:
        """Its exit code."""
        code = self.popen.wait(timeout_s)
        for pipe in (self.popen.stdin, self.popen.stdout):
            if pipe is not None:
                pipe.close()
        return code


def store_pid(data_dir: Path) -> int:
    """Of the embedded store of a discovery service that runs; 0 while there is none."""
    text = (data_dir / "lock").read_text()
    return int(json.loads(text)["server"] or 0) if text else 0


def kill_store(data_dir: Path) -> int:
    """kill -9 of the embedded store; returns which it was."""
    pid = store_pid(data_dir)
    assert pid > 0, "there is none to kill"
    os.kill(pid, signal.SIGKILL)
    return pid


def until(condition: Callable[[], bool], timeout_s: float = 30.0, what: str = "the condition") -> None:
    """Waits for something that has to come; fails where it does not."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not come true in {timeout_s} s"
        time.sleep(0.02)


@contextlib.contextmanager
def nothing_left() -> Iterator[None]:
    """Fails when processes that this one started inside are still there a moment after."""
    me = psutil.Process()
    before = set(me.children(recursive=True))
    yield
    until(
        lambda: not {child for child in me.children(recursive=True) if child.is_running()} - before,
        20.0,
        "the end of all child processes",
    )
