"""The worker's side of an executor: starts its processes, and runs units in them as the sandbox does."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import cloudpickle

from ec262.errors import SandboxUnavailable, SetupError
from ec262.sandbox.executor_program import ExecutorMapper
from ec262.sandbox.frames import HEADER, READY, SETTINGS
from ec262.sandbox.outcome import Outcome, UnitTask
from ec262.sandbox.policy import Limits, Policy
from ec262.sandbox.unit import UnitRun
from ec262.sandbox.zygote import Grants, PollLike, wait_for
from ec262.worker.executor import JobExecutor

START_S: Final = 60.0
_END_S: Final = 2.0
_NOTHING = Grants(
    seccomp=False, namespaces=(), empty_root=False, landlock=0, capabilities=False, no_new_privileges=False,
    nobody=False, uid=-1, rlimits=False, language=False, python=tuple(sys.version_info[:3]), base_bytes=0,
)  # fmt: skip
_SECRETS: Final = ("EC262_ACCOUNT", "EC262_SECRET")


class ExecutorProcesses:
    """Runs units of map tasks with an executor, each unit in a process of its own.

    Args:
        executor: the volunteer's.
        poll: makes objects like ``select.poll``.

    Raises:
        SetupError: it cannot be sent to a process of its own, or has no name.
    """

    def __init__(self, executor: JobExecutor, *, poll: Callable[[], PollLike] = select.poll) -> None:
        self.policy = Policy()
        self._poll = poll
        try:
            self.name = ExecutorMapper(executor.name).name
        except AttributeError:
            raise SetupError(f"executor {type(executor).__name__} has no name") from None
        try:
            pickled = cloudpickle.dumps(executor)
        except Exception as reason:
            raise SetupError(f"executor {self.name} cannot be sent to a process of its own: {reason}") from reason
        path = [os.path.abspath(each) for each in sys.path]  # "" is the directory it was started in
        self._description = json.dumps(path).encode() + b"\n" + pickled
        self._running: set[_Process] = set()

    @property
    def capability(self) -> str:
        """What the worker registers."""
        return f"executor:{self.name}"

    def check(self) -> None:
        """Starts a process and ends it.

        Raises:
            SetupError: it does not come up.
        """
        process = self.acquire()
        try:
            body = b"{}"
            os.write(process.tasks, HEADER.pack(SETTINGS, 0, len(body), 0) + body)
            wait_for(self._poll, process.results, select.POLLIN, time.monotonic() + START_S)
            with contextlib.suppress(BlockingIOError):
                if os.read(process.results, HEADER.size)[:1] == bytes([READY]):
                    return
        except OSError:
            pass
        finally:
            process.discard()
        raise SetupError(f"executor {self.name} does not start; what it wrote to standard error says why")

    def run_unit(
        self,
        program: bytes,
        next_task: Callable[[], UnitTask | None],
        on_outcome: Callable[[UnitTask, Outcome], None],
        limits: Limits = Limits(),  # noqa: B008 - immutable
        stop: Callable[[], bool] | None = None,
        more: Callable[[], bool] | None = None,
    ) -> int:
        """As `ec262.sandbox.launcher.Sandbox.run_unit`; of the limits, wall clock and output hold."""
        return UnitRun(self, self._poll, program, next_task, on_outcome, limits, stop, more).run()

    def close(self) -> None:
        """Ends every process."""
        for process in list(self._running):
            process.discard()

    # --- what `UnitRun` asks of a sandbox ---

    def acquire(self) -> _Process:
        """A process that starts."""
        process = _Process(self._description, self._poll, self._running.discard)
        self._running.add(process)
        return process

    def start(self) -> Grants:
        """Nothing is confined: it is the volunteer's own program."""
        return _NOTHING

    def lost(self) -> None:
        """There is nothing behind the processes that could have died."""


class _Process:
    """A process of an executor, with what `UnitRun` uses of a sandbox's child. Its group is killed with it."""

    def __init__(self, description: bytes, poll: Callable[[], PollLike], gone: Callable[[_Process], None]) -> None:
        self._poll = poll
        self._gone = gone
        tasks_read, self.tasks = os.pipe()
        self.results, results_write = os.pipe()
        environment = {name: value for name, value in os.environ.items() if name not in _SECRETS}
        try:
            with tempfile.TemporaryFile() as file:
                file.write(description)
                file.seek(0)
                script = str(Path(__file__).with_name("executor_child.py"))
                self._popen = subprocess.Popen(
                    [sys.executable, script, str(file.fileno())],
                    stdin=tasks_read,
                    stdout=results_write,
                    env=environment,
                    pass_fds=(file.fileno(),),
                    start_new_session=True,
                )
        except OSError as reason:
            os.close(self.tasks)
            os.close(self.results)
            raise SandboxUnavailable(f"no process for an executor: {reason}") from None
        finally:
            os.close(tasks_read)
            os.close(results_write)
        for descriptor in (self.tasks, self.results):
            os.set_blocking(descriptor, False)

    def cpu_s(self) -> float:
        """Not known from here: an executor may have processes of its own. It says so itself with each result."""
        return -1.0

    def kill(self) -> None:
        """Ends it and what it started; not waited for, its number is no other's meanwhile."""
        if self._popen.returncode is None:
            with contextlib.suppress(OSError):
                os.killpg(self._popen.pid, signal.SIGKILL)

    def await_end(self, poll: Callable[[], PollLike], seconds: float) -> int | None:
        """Its wait status; None when it lives on."""
        self.kill()  # its output has ended; what it started may still be there
        code = self._await(poll, seconds)
        if code is None:
            return None
        return -code if code < 0 else code << 8

    def _await(self, poll: Callable[[], PollLike], seconds: float) -> int | None:
        until = time.monotonic() + seconds
        while self._popen.poll() is None and time.monotonic() < until:
            poll().poll(5)
        return self._popen.returncode

    def discard(self) -> None:
        """Kills it and lets go of everything; may be called twice."""
        if self.tasks < 0:
            return
        self.kill()
        os.close(self.tasks)
        os.close(self.results)
        self.tasks = self.results = -1
        self._gone(self)
        self._await(self._poll, _END_S)  # it was killed: this takes a moment, unless a file server keeps it
