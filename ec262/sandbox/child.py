"""Inside: the zygote that the launcher starts, and the children it forks, one a work unit.

The zygote is a clean interpreter without secrets. It loads what jobs may use, locks itself up, then serves: three
descriptors come in (where tasks come from, where results go, where to report), a child is forked, its pidfd goes out.
A child keeps two descriptors, puts the remaining layers on, and only then reads the first byte of a stranger's program.

Strangers' bytes are unpickled here and nowhere else.
"""

from __future__ import annotations

import base64
import contextlib
import contextvars
import gc
import hashlib
import importlib
import importlib.util
import io
import json
import os
import resource
import select
import signal
import socket
import sys
import time
import traceback
import types
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

_EXIT_OK, _EXIT_FAILED = 0, 1
FACADE_FILE = "<ec262>"  # as in `ec262.sandbox.facade`, which cannot be imported before `sys.path` is known


def main() -> NoReturn:
    """Entry of the process: argument one is the descriptor of the socket to the launcher."""
    control = socket.socket(fileno=int(sys.argv[1]))
    try:
        config = json.loads(_receive_line(control))
        sys.path.append(config["root"])
        zygote = Zygote(control, config)
    except BaseException:  # whatever it is, the launcher shall hear of it
        control.send(json.dumps({"error": traceback.format_exc()[-8000:]}).encode() + b"\n")
        os._exit(_EXIT_FAILED)
    zygote.serve()


def _receive_line(control: socket.socket) -> bytes:
    message = b""
    while not message.endswith(b"\n"):
        piece = control.recv(1 << 20)
        if not piece:
            os._exit(_EXIT_FAILED)
        message += piece
    return message


class Zygote:
    """The process children are forked from.

    Args:
        control: datagrams from the launcher; its end means that the launcher is gone.
        config: what `Sandbox` wrote: policy, paths, filter.
    """

    def __init__(self, control: socket.socket, config: dict[str, Any]) -> None:
        self.control = control
        self.policy: dict[str, Any] = config["policy"]
        self.filter = base64.b64decode(config["filter"])
        self._load(config)
        self.dies_with_parent = bool(config["die_with_parent"])
        base_bytes = _address_space()  # while /proc is there to read it from
        grants = self._lock_up()
        self.me = os.getpid()
        self.units: dict[int, tuple[socket.socket, int]] = {}
        gc.collect()
        gc.freeze()  # the collector shall not touch, and so copy, what children share
        # Data are many small containers and hardly ever cycles: collecting at Python's own pace takes a fifth of the
        # time of a word count. What a task leaves behind ends with the unit.
        gc.set_threshold(200_000, 50, 50)
        grants["base_bytes"] = base_bytes
        control.send(json.dumps(grants).encode() + b"\n")

    def _load(self, config: dict[str, Any]) -> None:
        """Imports all that will be needed: after lock-down there is no file to import from."""
        policy = importlib.import_module("ec262.sandbox.policy")
        self.kernel: Any = importlib.import_module("ec262.sandbox.kernel")
        self.frames: Any = importlib.import_module("ec262.sandbox.frames")
        self.framing: Any = importlib.import_module("ec262.protocol.framing")
        unpack: Any = importlib.import_module("ec262.sandbox.unpack")
        language: Any = importlib.import_module("ec262.sandbox.language")
        cloudpickle = _load_package("cloudpickle", config["cloudpickle"])
        for name in self.policy["preload"]:
            _try_import(name)
        sys.path += config["extra_paths"]
        for name in self.policy["extra_modules"]:
            _try_import(name)
            for inner in ("linalg", "fft", "random", "polynomial", "ma"):
                if name == "numpy":
                    _try_import(f"{name}.{inner}")
        module, _, name = config["executor"].partition(":")
        self.execute: Callable[[Any, Sequence[bytes]], list[bytes]] = getattr(importlib.import_module(module), name)
        self.language = None
        if self.policy["language"]:
            self.language = language.Language(
                self.policy["modules"],
                self.policy["extra_modules"],
                policy.INTERNAL_MODULES,
                policy.DENIED_BUILTINS,
                policy.C_HOMES,
            )
            self.language.adopt_pickling(cloudpickle)
        else:
            for name in policy.ATTACK_MODULES:
                _try_import(name)
        self.loader: Any = unpack.Loader(self.language, cloudpickle)
        del sys.path[:]
        sys.path_importer_cache.clear()

    def _lock_up(self) -> dict[str, Any]:
        """Puts the layers on that outlive a fork; what the machine refuses is left out and told."""
        kernel = self.kernel
        nobody = kernel.become_nobody() if self.policy["become_nobody"] else False
        namespaces = kernel.enter_namespaces(self.policy["namespaces"])
        root = "mnt" in namespaces and kernel.empty_root()
        # After the changes of user and namespace: they clear the signal (prctl(2)).
        if self.dies_with_parent:
            kernel.die_with_parent(signal.SIGKILL)
        if "pid" in namespaces:
            self._become_first_process()
        locked = bool(self.policy["namespaces"] or self.policy["landlock"] or self.policy["seccomp"])
        capabilities = locked and kernel.drop_capabilities()
        privileges = locked and kernel.forbid_new_privileges()
        self.ruleset = kernel.landlock_ruleset() if self.policy["landlock"] else -1
        landlock = self.ruleset >= 0 and kernel.landlock_restrict(self.ruleset)
        return {
            "seccomp": bool(self.policy["seccomp"] and self.filter and kernel.has_seccomp()),
            "namespaces": namespaces,
            "empty_root": root,
            "landlock": kernel.landlock_version() if landlock else 0,
            "capabilities": capabilities,
            "no_new_privileges": privileges,
            "nobody": nobody and os.geteuid() != 0,
            "uid": os.geteuid(),
            "rlimits": self.policy["rlimits"],
            "language": self.policy["language"],
            "python": list(sys.version_info[:3]),
        }

    def _become_first_process(self) -> None:
        """Only what is forked after ``unshare`` is inside the process namespace: fork, and wait outside."""
        inner = os.fork()
        if inner == 0:
            self.kernel.die_with_parent(signal.SIGKILL)
            return
        self.kernel.close_from(0)
        _, status = os.waitpid(inner, 0)
        os._exit(os.waitstatus_to_exitcode(status) & 0xFF)

    def serve(self) -> NoReturn:
        """Forks on request and reports ends, until the launcher closes its end."""
        poll = select.poll()
        poll.register(self.control.fileno(), select.POLLIN)
        has_pidfd = hasattr(os, "pidfd_open")  # without (macOS) the dead are looked for now and then
        while True:
            for descriptor, _ in poll.poll(None if has_pidfd else 20):
                if descriptor == self.control.fileno():
                    message, descriptors, _, _ = socket.recv_fds(self.control, 1, 3)
                    if not message:
                        os._exit(_EXIT_OK)
                    pidfd = self._fork(*descriptors)
                    if pidfd >= 0:
                        poll.register(pidfd, select.POLLIN)
                else:
                    poll.unregister(descriptor)
                    self._bury(descriptor)
            if not has_pidfd:
                for process in list(self.units):
                    self._bury(process)

    def _fork(self, tasks: int, results: int, report: int) -> int:
        """Forks a unit's child; returns its pidfd, -1 where there is none."""
        frames = self.frames
        reports = socket.socket(fileno=report)
        try:
            process = os.fork()
        except OSError as reason:
            reports.send(frames.REPORT.pack(frames.REFUSED, reason.errno or 0, 0))
            reports.close()
            os.close(tasks)
            os.close(results)
            return -1
        if process == 0:
            try:
                Unit(self, tasks, results).run()
            finally:
                os._exit(_EXIT_FAILED)
        os.close(tasks)
        os.close(results)
        pidfd = os.pidfd_open(process) if hasattr(os, "pidfd_open") else -1
        try:
            message = frames.REPORT.pack(frames.STARTED, process, 0)
            if pidfd < 0:
                reports.send(message)
            else:
                socket.send_fds(reports, [message], [pidfd])
        except OSError:
            pass  # the launcher has given the unit up already; its pipes are closed, so the child ends
        self.units[pidfd if pidfd >= 0 else process] = (reports, process)
        return pidfd

    def _bury(self, unit: int) -> None:
        reports, process = self.units[unit]
        ended, status, usage = os.wait4(process, os.WNOHANG)
        if not ended:
            return
        del self.units[unit]
        if hasattr(os, "pidfd_open"):
            os.close(unit)
        with contextlib.suppress(OSError):  # nobody waits for it any more
            reports.send(self.frames.REPORT.pack(self.frames.EXITED, status, usage.ru_maxrss))
        reports.close()


class Unit:
    """The child: one work unit of one job, from the fork to the last task."""

    def __init__(self, zygote: Zygote, tasks: int, results: int) -> None:
        kernel = zygote.kernel
        # Away from 0 and 1 first: either may be one of the descriptors being moved.
        tasks, results = os.dup(tasks), os.dup(results)
        os.dup2(tasks, 0)
        os.dup2(results, 1)
        kernel.close_from(2) if zygote.ruleset < 0 else _close_all_but(zygote.ruleset, kernel)
        kernel.die_with_parent(signal.SIGKILL)
        if zygote.policy["seccomp"]:
            kernel.forbid_inspection()
        if zygote.ruleset >= 0:
            kernel.landlock_restrict(zygote.ruleset)
            os.close(zygote.ruleset)
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        self.zygote = zygote
        self.frames = zygote.frames
        self.input = io.BufferedReader(io.FileIO(0, "rb", closefd=False), 1 << 16)

    def run(self) -> NoReturn:
        """Reads frames until their end; every answer is written before the next task begins."""
        frames = self.frames
        read_header, size = self.input.read, frames.HEADER.size
        begin = time.thread_time_ns  # exact; the process clock moves in ticks once RLIMIT_CPU is set
        while True:
            header = read_header(size)
            if len(header) != size:
                os._exit(_EXIT_OK)
            kind, number, length, most = frames.HEADER.unpack(header)
            body = self.input.read(length)
            if len(body) != length:
                os._exit(_EXIT_OK)
            if kind == frames.TASK:
                started = begin()
                # A copy of the context keeps what a task does to decimal's from the next.
                kind, body = contextvars.copy_context().run(self._compute, body, most)
                _write(frames.HEADER.pack(kind, number, len(body), begin() - started), body)
                if kind == frames.LIMIT:
                    os._exit(_EXIT_OK)  # after a MemoryError nothing in here is to be relied upon
            elif kind == frames.PROGRAM:
                self.load = self.zygote.loader.prepare(body)
            elif kind == frames.SETTINGS:
                self._limit(json.loads(body))

    def _limit(self, settings: dict[str, int]) -> None:
        """The last layers: from here on nothing but reading, writing and memory."""
        policy = self.zygote.policy
        if policy["rlimits"]:
            _set_limit("RLIMIT_CPU", settings["unit_cpu_s"])
            _set_limit("RLIMIT_AS", settings["base_bytes"] + settings["memory_bytes"])
            for name in ("FSIZE", "NPROC", "CORE", "MSGQUEUE", "MEMLOCK"):
                _set_limit(f"RLIMIT_{name}", 0)
            _set_limit("RLIMIT_NOFILE", 2)
        if policy["seccomp"] and self.zygote.filter:
            self.zygote.kernel.install_filter(self.zygote.filter)
        _write(self.frames.HEADER.pack(self.frames.READY, 0, 0, 0), b"")

    def _compute(self, body: bytes, most: int) -> tuple[int, bytes]:
        zygote, frames = self.zygote, self.frames
        try:
            parts = zygote.framing.unframe_parts(body)
            program = self.load(hashlib.sha256(body).digest())
            made = zygote.execute(program, parts)
            if sum(map(len, made)) > most:
                return frames.LIMIT, _describe("output", f"the task's output is larger than {most:,} bytes")
            return frames.OK, zygote.framing.frame_parts(made)
        except MemoryError as reason:
            reason.__traceback__ = None  # lets go of the frames, and of what filled the memory
        except BaseException as reason:
            zygote.loader.remember_lines()
            return frames.ERROR, explain(reason)
        return frames.LIMIT, _describe("memory", "the task needed more memory than it may have")


def explain(reason: BaseException) -> bytes:
    """An exception as JSON: type, message, place, and a traceback of the program's own frames."""
    chain: list[BaseException] = []
    link: BaseException | None = reason
    while link is not None and len(chain) < 4 and link not in chain:
        chain.append(link)
        link = link.__cause__ or (None if link.__suppress_context__ else link.__context__)
    text = "\n\nwhich led to:\n\n".join(_one_traceback(link) for link in reversed(chain))
    places = _places(reason)
    line = f"{places[-1].filename}:{places[-1].lineno}" if places else ""
    if not places and len(chain) == 1:
        text = ""  # not raised in the program: there is nothing to show but the message
    return json.dumps(
        {"type": _type_name(reason), "message": _message(reason), "line": line, "traceback": text[-16_000:]}
    ).encode()


def _describe(limit: str, message: str) -> bytes:
    return json.dumps({"limit": limit, "message": message}).encode()


def _type_name(reason: BaseException) -> str:
    return str(type(reason).__name__)[:200]


def _message(reason: BaseException) -> str:
    try:
        return str(reason)[:4000]
    except BaseException:
        return "(its message cannot be shown)"


def _one_traceback(reason: BaseException) -> str:
    lines = [
        f'  File "{place.filename}", line {place.lineno}, in {place.name}\n'
        + (f"    {place.line}\n" if place.line else "")
        for place in _shortened(_places(reason))
    ]
    return "".join(["Traceback (the program's own frames):\n", *lines, f"{_type_name(reason)}: {_message(reason)}"])


def _shortened(places: list[traceback.FrameSummary]) -> list[traceback.FrameSummary]:
    return places if len(places) <= 40 else places[:20] + places[-20:]


def _places(reason: BaseException) -> list[traceback.FrameSummary]:
    """The frames that are the program's: their globals are no module's of ours."""
    places = []
    step = reason.__traceback__
    while step is not None:
        names = step.tb_frame.f_globals
        module = sys.modules.get(str(names.get("__name__")))
        code = step.tb_frame.f_code
        if not (isinstance(module, types.ModuleType) and module.__dict__ is names) and code.co_filename != FACADE_FILE:
            places.append(traceback.FrameSummary(code.co_filename, step.tb_lineno, code.co_name, lookup_line=True))
        step = step.tb_next
    return places


def _write(header: bytes, body: bytes) -> None:
    if len(body) < 1 << 16:
        body, header = header + body, b""
    for chunk in (header, body):
        left = memoryview(chunk)
        while left:
            left = left[os.write(1, left) :]


def _close_all_but(keep: int, kernel: Any) -> None:
    if keep > 2:
        os.closerange(2, keep)
    kernel.close_from(keep + 1)


def _set_limit(name: str, value: int) -> None:
    number = getattr(resource, name, None)
    if name == "RLIMIT_MSGQUEUE" and sys.platform == "linux":
        number = 12  # the resource module does not name it everywhere
    if number is None:
        return
    _, hard = resource.getrlimit(number)
    if hard != resource.RLIM_INFINITY:
        value = min(value, hard)
    try:
        resource.setrlimit(number, (value, value))
    except (OSError, ValueError):
        if sys.platform == "linux":
            raise


def _address_space() -> int:
    """Bytes of address space this process has mapped (``proc_pid_statm(5)``)."""
    try:
        with open("/proc/self/statm", "rb") as file:
            return int(file.read().split()[0]) * resource.getpagesize()
    except OSError:
        return 1 << 29


def _try_import(name: str) -> None:
    with contextlib.suppress(ImportError):
        importlib.import_module(name)


def _load_package(name: str, directory: str) -> Any:
    """Loads a package from its directory alone, without putting what lies beside it on the path."""
    spec = importlib.util.spec_from_file_location(
        name, os.path.join(directory, "__init__.py"), submodule_search_locations=[directory]
    )
    if spec is None or spec.loader is None:
        raise ImportError(f"{name} is not in {directory}")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return importlib.import_module(f"{name}.{name}")


if __name__ == "__main__":
    main()
