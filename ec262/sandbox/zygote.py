"""The parent's side of the zygote: starts it, asks it for children, notices when it dies, leaves nothing behind."""

from __future__ import annotations

import base64
import contextlib
import fcntl
import importlib.util
import json
import os
import platform
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

from ec262.errors import SandboxUnavailable
from ec262.sandbox import seccomp
from ec262.sandbox.frames import EXITED, REPORT, STARTED
from ec262.sandbox.policy import Policy
from ec262.sandbox.syscalls import MACHINES

_PIPE_BYTES: Final = 1 << 20
_F_SETPIPE_SZ: Final = 1031  # fcntl(2); named in the fcntl module for Linux only
_START_S: Final = 30.0
_SOCKET_KIND: Final = socket.SOCK_SEQPACKET if sys.platform == "linux" else socket.SOCK_STREAM


class PollLike(Protocol):
    """What is used of ``select.poll``."""

    def register(self, fd: int, eventmask: int = ..., /) -> None: ...
    def unregister(self, fd: int, /) -> None: ...
    def poll(self, timeout: float | None = ..., /) -> list[tuple[int, int]]: ...


class ZygoteGone(Exception):
    """The zygote died; a new one may do better."""


@dataclass(frozen=True, slots=True)
class Grants:
    """What the machine granted; found out by trying, in the zygote.

    Attributes:
        seccomp: the system call filter.
        namespaces: which of `policy.NAMESPACES`.
        empty_root: an empty read-only file system.
        landlock: ABI version in force, 0 without.
        capabilities: True where every capability set was emptied.
        no_new_privileges: True where exec can gain nothing.
        nobody: True where the zygote does not run as root (any more).
        uid: the user id it runs under.
        rlimits: True where resource limits are set in children.
        language: True with the language layer.
        python: version of the zygote's Python.
        base_bytes: address space of a child before it does anything.
    """

    seccomp: bool
    namespaces: tuple[str, ...]
    empty_root: bool
    landlock: int
    capabilities: bool
    no_new_privileges: bool
    nobody: bool
    uid: int
    rlimits: bool
    language: bool
    python: tuple[int, ...]
    base_bytes: int

    @property
    def lane(self) -> str:
        """The worker's class for comparing results: replicas of a task stay within one."""
        return f"native-{'.'.join(map(str, self.python[:2]))}-{platform.machine()}"


class Zygote:
    """A running zygote.

    Args:
        policy: what to confine with.
        executor: ``module:function`` that computes a task from program and parts.
        import_paths: directories the executor and allowed extra modules are imported from.
        python: interpreter.
        poll: factory of what waits.

    Raises:
        SandboxUnavailable: it did not come up; the message holds why.
    """

    def __init__(
        self,
        policy: Policy,
        *,
        executor: str,
        import_paths: Sequence[str],
        python: str,
        poll: Callable[[], PollLike],
    ) -> None:
        self._poll = poll
        self._send_lock = threading.Lock()
        mine, theirs = socket.socketpair(socket.AF_UNIX, _SOCKET_KIND)
        self._control = mine
        child = Path(__file__).with_name("child.py")
        try:
            self.process = subprocess.Popen(
                # -I and -E would ignore PYTHONHASHSEED.
                [python, "-s", "-S", "-P", "-B", str(child), str(theirs.fileno())],
                env=_environment(policy),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(),),
                cwd="/",
                start_new_session=True,  # Ctrl-C in the worker's terminal is for the worker
            )
        except OSError as reason:
            mine.close()
            raise SandboxUnavailable(f"the sandbox's interpreter does not start: {reason}") from None
        finally:
            theirs.close()
        try:
            config = _config(policy, executor, import_paths)
            mine.sendall(json.dumps(config).encode() + b"\n")
            mine.setblocking(False)
            self.grants = self._hello()
        except BaseException:
            self.close()
            raise

    def _hello(self) -> Grants:
        message = b""
        until = time.monotonic() + _START_S
        while not message.endswith(b"\n"):
            if not wait_for(self._poll, self._control.fileno(), select.POLLIN, until):
                raise SandboxUnavailable(f"the sandbox did not start within {_START_S:.0f} s")
            try:
                piece = self._control.recv(1 << 20)
            except OSError:
                piece = b""
            if not piece:
                raise SandboxUnavailable("the sandbox's interpreter ended while it started")
            message += piece
        said = json.loads(message)
        if "error" in said:
            raise SandboxUnavailable(f"the sandbox did not start:\n{said['error']}")
        return Grants(**{**said, "namespaces": tuple(said["namespaces"]), "python": tuple(said["python"])})

    @property
    def alive(self) -> bool:
        """Whether the process has not ended."""
        return self.process.poll() is None

    def request(self) -> Child:
        """Asks for a child, without waiting for it.

        Raises:
            ZygoteGone: nobody is there to ask.
            SandboxUnavailable: this process is out of descriptors.
        """
        opened: list[int] = []
        try:
            for _ in range(2):
                opened += os.pipe()
            mine, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        except OSError as reason:
            for descriptor in opened:
                os.close(descriptor)
            raise SandboxUnavailable(f"no descriptors for another unit: {reason}") from None
        tasks_read, tasks_write, results_read, results_write = opened
        child = Child(tasks_write, results_read, mine)
        try:
            while True:
                try:
                    with self._send_lock:
                        socket.send_fds(self._control, [b"F"], [tasks_read, results_write, theirs.fileno()])
                    return child
                except BlockingIOError:
                    wait_for(self._poll, self._control.fileno(), select.POLLOUT, time.monotonic() + 1)
        except OSError:
            child.discard()
            raise ZygoteGone from None
        finally:
            theirs.close()
            os.close(tasks_read)
            os.close(results_write)

    def close(self) -> None:
        """Ends the zygote and, with it, every child; waits until it is gone."""
        self._control.close()  # its end is what the zygote waits for
        until = time.monotonic() + 2
        pidfd = -1
        with contextlib.suppress(OSError, AttributeError):
            pidfd = os.pidfd_open(self.process.pid)
        try:
            while self.process.poll() is None and time.monotonic() < until:
                if pidfd >= 0:
                    wait_for(self._poll, pidfd, select.POLLIN, until)
                else:
                    time.sleep(0.005)
        finally:
            if pidfd >= 0:
                os.close(pidfd)
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()


class Child:
    """One forked process: where its tasks go, where its results come from, and the handle to kill it by."""

    def __init__(self, tasks: int, results: int, report: socket.socket) -> None:
        self.tasks = tasks
        self.results = results
        self._report = report
        self._pidfd = -1
        self._process = 0
        self._clock = 0
        report.setblocking(False)
        for descriptor in (tasks, results):
            os.set_blocking(descriptor, False)
            with contextlib.suppress(OSError):
                fcntl.fcntl(descriptor, _F_SETPIPE_SZ, _PIPE_BYTES)

    def await_start(self, poll: Callable[[], PollLike]) -> None:
        """Waits until the zygote has forked it.

        Raises:
            ZygoteGone: it did not.
        """
        if self._process:
            return
        wait_for(poll, self._report.fileno(), select.POLLIN, time.monotonic() + 10)
        try:
            message, descriptors, _, _ = socket.recv_fds(self._report, REPORT.size, 1)
        except OSError:
            raise ZygoteGone from None
        if len(message) != REPORT.size or message[:1] != STARTED:
            raise ZygoteGone
        self._process = REPORT.unpack(message)[1]
        if descriptors:
            self._pidfd = descriptors[0]
            os.set_inheritable(self._pidfd, False)
            # clock_getcpuclockid(3): the process as seen from here, which pidfd tells and the zygote does not know
            seen = _pid_of(self._pidfd)
            self._clock = (~seen << 3) | 2 if seen > 0 else 0

    def cpu_s(self) -> float:
        """CPU seconds the process has used; -1.0 where the system does not tell."""
        if not self._clock:
            return -1.0
        try:
            return time.clock_gettime(self._clock)
        except OSError:  # it has ended
            return -1.0

    def kill(self) -> None:
        """Ends it at once. The pidfd cannot name another process, however late this comes."""
        with contextlib.suppress(OSError):
            if self._pidfd >= 0:
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
            elif self._process and not hasattr(signal, "pidfd_send_signal"):
                os.kill(self._process, signal.SIGKILL)

    def await_end(self, poll: Callable[[], PollLike], seconds: float) -> int | None:
        """Its wait status; None when it lives on.

        Raises:
            ZygoteGone: nobody is left who could say.
        """
        if not wait_for(poll, self._report.fileno(), select.POLLIN, time.monotonic() + seconds):
            return None
        try:
            message = self._report.recv(REPORT.size)
        except OSError:
            raise ZygoteGone from None
        if len(message) != REPORT.size or message[:1] != EXITED:
            raise ZygoteGone
        return int(REPORT.unpack(message)[1])

    def discard(self) -> None:
        """Kills it and lets go of everything; may be called twice."""
        if self.tasks < 0:
            return
        if not self._process:  # asked for, but its handle not fetched yet
            with contextlib.suppress(ZygoteGone, ValueError):
                self._fetch_now()
        self.kill()
        for descriptor in (self.tasks, self.results, self._pidfd):
            if descriptor >= 0:
                os.close(descriptor)
        self.tasks = self.results = self._pidfd = -1
        self._report.close()

    def _fetch_now(self) -> None:
        ready = select.poll()
        ready.register(self._report.fileno(), select.POLLIN)
        if ready.poll(0):
            self.await_start(select.poll)


def wait_for(poll: Callable[[], PollLike], descriptor: int, events: int, until: float) -> bool:
    """Waits for a descriptor until a moment of ``time.monotonic``; False when it passed."""
    waiter = poll()
    waiter.register(descriptor, events)
    while True:
        left = until - time.monotonic()
        if waiter.poll(max(left, 0.0) * 1000):
            return True
        if left <= 0:
            return False


def _pid_of(pidfd: int) -> int:
    try:
        with open(f"/proc/self/fdinfo/{pidfd}", "rb") as file:
            for line in file:
                if line.startswith(b"Pid:"):
                    return int(line.split()[1])
    except (OSError, ValueError):
        pass
    return 0


def _environment(policy: Policy) -> dict[str, str]:
    """The whole environment of the zygote: nothing of ours goes over."""
    single = dict.fromkeys(("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    return {
        "PYTHONHASHSEED": str(policy.hash_seed),
        "PYTHONUTF8": "1",
        "LC_ALL": "C.UTF-8",
        "TZ": "UTC",
        **single,  # a fork copies one thread only
    }


def _config(policy: Policy, executor: str, import_paths: Sequence[str]) -> dict[str, Any]:
    machine = platform.machine()
    code = seccomp.assemble(machine) if policy.seccomp and sys.platform == "linux" and machine in MACHINES else b""
    return {
        "policy": policy.as_message(),
        "root": str(Path(__file__).parents[2]),
        "cloudpickle": _directory_of("cloudpickle"),
        "extra_paths": [*import_paths, *_homes_of(policy.extra_modules)],
        "executor": executor,
        "filter": base64.b64encode(code).decode(),
        # The signal comes when the starting thread ends: only the main thread lives as long as the program.
        "die_with_parent": threading.current_thread() is threading.main_thread(),
    }


def _directory_of(package: str) -> str:
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise SandboxUnavailable(f"the package {package} is not installed")
    return next(iter(spec.submodule_search_locations))


def _homes_of(modules: frozenset[str]) -> list[str]:
    """Directories that hold the modules a volunteer allows; the zygote has no site-packages of its own."""
    homes = []
    for name in sorted({name.partition(".")[0] for name in modules}):
        spec = importlib.util.find_spec(name)
        if spec is None:
            raise SandboxUnavailable(f"the allowed module {name} is not installed")
        if spec.origin and os.path.isabs(spec.origin):
            place = Path(spec.origin)
            homes.append(str(place.parents[1] if place.name == "__init__.py" else place.parent))
    return homes
