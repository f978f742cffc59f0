"""Runs the author's own functions, as they are, on a small sample: in a fork, so that nothing of it stays.

The functions belong to a program that goes on: they may append to its lists, print, advance its generators, or never
come back. So they run in a forked child, which sees the program as it is and whose changes are gone with it. The child
is silent, ends itself after a while whatever happens, and on Linux puts the sandbox's own system call filter on before
it calls anything: the functions can compute, and touch nothing. What is not yet imported is imported before that.

Only on Linux: forking a program with threads is safe there as long as the child calls no libraries that keep locks of
their own (a child that hangs is killed, and nothing is concluded from it), and is not on macOS.
"""

from __future__ import annotations

import contextlib
import faulthandler
import gc
import importlib
import io
import os
import platform
import resource
import select
import signal
import sys
import time
import types
import warnings
from collections.abc import Callable, Generator
from dataclasses import dataclass, fields
from typing import Any, Final, NoReturn

from ec262.errors import Malformed
from ec262.mapreduce.program import Program, execute
from ec262.protocol.framing import frame_parts, unframe_parts
from ec262.sandbox import kernel, seccomp
from ec262.sandbox.policy import STANDARD_MODULES

Steps = Generator[list[bytes], list[bytes], None]
"""Yields a task's input, is sent its result, yields the next."""

_MEMORY_BYTES: Final = 1 << 30
_MOST_BYTES: Final = 64 << 20


@dataclass(frozen=True, slots=True)
class Original:
    """How the functions did.

    Attributes:
        results: of each task that was done.
        raised: type of the exception that ended them, or empty.
    """

    results: list[list[bytes]]
    raised: str = ""


def advance(steps: Steps, result: list[bytes]) -> list[bytes] | None:
    """The task that follows a result; None after the last."""
    try:
        return steps.send(result)
    except StopIteration:
        return None


def run_original(
    program: Program, steps: Callable[[], Steps], within_s: float, stop: Callable[[], bool]
) -> Original | None:
    """Computes tasks with the program's own functions, in a fork.

    Args:
        steps: makes the generator of the tasks.
        within_s: seconds after which the child is killed.
        stop: asked now and then; True kills it.

    Returns:
        None where that cannot be told: too slow, it did not survive, or no fork on this system.
    """
    if sys.platform != "linux":
        return None
    reading, writing = os.pipe()
    try:
        with warnings.catch_warnings():  # Python 3.12 warns of forks beside threads; see above
            warnings.simplefilter("ignore", DeprecationWarning)
            process = os.fork()
    except OSError:
        os.close(reading)
        os.close(writing)
        return None
    if process == 0:
        _child(program, steps, writing, within_s)
    os.close(writing)
    pidfd = -1
    try:
        with contextlib.suppress(OSError):
            pidfd = os.pidfd_open(process)
        return _read_all(reading, time.monotonic() + within_s, stop)
    finally:
        os.close(reading)
        with contextlib.suppress(OSError):
            if pidfd >= 0:
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            else:
                os.kill(process, signal.SIGKILL)
        with contextlib.suppress(OSError):  # the program may have children waited for by other means
            os.waitpid(process, 0)
        if pidfd >= 0:
            os.close(pidfd)


def _read_all(descriptor: int, until: float, stop: Callable[[], bool]) -> Original | None:
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    said = bytearray()
    while len(said) <= _MOST_BYTES:
        left = until - time.monotonic()
        if left <= 0 or stop():
            return None
        if poll.poll(min(left, 0.1) * 1000):
            piece = os.read(descriptor, 1 << 20)
            if not piece:
                return _parse(bytes(said))
            said += piece
    return None


def _parse(said: bytes) -> Original | None:
    try:
        raised, *results = unframe_parts(said)
        return Original([unframe_parts(result) for result in results], raised.decode())
    except (Malformed, ValueError):
        return None


# --- in the fork -------------------------------------------------------------------------------------------------


def _child(program: Program, steps: Callable[[], Steps], writing: int, within_s: float) -> NoReturn:
    try:
        _calm_down(within_s)
        _import_ahead(program)
        _lock_up(writing, within_s)
        left = memoryview(_answer(program, steps()))
        while left:
            left = left[os.write(seccomp.OUTPUT_FD, left) :]
    except BaseException:  # whatever it is: the parent sees that there is no answer
        pass
    finally:
        os._exit(0)


def _calm_down(within_s: float) -> None:
    """What the program had set up shall not act in its copy: handlers, finalizers, tracing, streams."""
    gc.disable()
    faulthandler.disable()  # its handler would fault again and again: it may not send itself the signal
    sys.settrace(None)
    sys.setprofile(None)
    for number in signal.valid_signals():
        if callable(signal.getsignal(number)):
            signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGALRM])
    signal.setitimer(signal.ITIMER_REAL, within_s + 1)
    kernel.die_with_parent(signal.SIGKILL)
    sys.stdin, sys.stdout, sys.stderr = io.StringIO(), _Nowhere(), _Nowhere()


class _Nowhere(io.StringIO):
    """A text stream that keeps nothing."""

    def write(self, text: str, /) -> int:
        return len(text)


def _import_ahead(program: Program) -> None:
    """Imports what the functions import when they are called, as far as jobs may: later there are no files."""
    for name in _names_in([getattr(program, field.name) for field in fields(program)]):
        name = "_strptime" if name == "strptime" else name
        if (name in STANDARD_MODULES or name == "_strptime") and name not in sys.modules:
            with contextlib.suppress(Exception):
                importlib.import_module(name)


def _names_in(waiting: list[Any]) -> set[str]:
    """Names used by functions and by the functions they call."""
    names: set[str] = set()
    seen: set[int] = set()
    while waiting:
        thing = waiting.pop()
        if id(thing) in seen:
            continue
        seen.add(id(thing))
        if isinstance(thing, types.CodeType):
            names.update(thing.co_names)
            waiting += [item for item in thing.co_consts if isinstance(item, types.CodeType)]
        elif isinstance(thing, types.FunctionType):
            code = thing.__code__
            waiting += [code, *(thing.__globals__[name] for name in code.co_names if name in thing.__globals__)]
            waiting += [getattr(thing, "__wrapped__", None)]
    return names


def _lock_up(writing: int, within_s: float) -> None:
    """Leaves one descriptor to write to; files, processes and memory limited; then the filter, where there is one."""
    nothing = os.open(os.devnull, os.O_RDWR)
    writing = os.dup(writing) if writing < 3 else writing
    os.dup2(nothing, seccomp.INPUT_FD)
    os.dup2(writing, seccomp.OUTPUT_FD)
    os.dup2(nothing, 2)
    kernel.close_from(3)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _lower(resource.RLIMIT_FSIZE, 0)
    _lower(resource.RLIMIT_CPU, int(within_s) + 2)
    with open("/proc/self/statm", "rb") as file:
        _lower(resource.RLIMIT_AS, int(file.read().split()[0]) * resource.getpagesize() + _MEMORY_BYTES)
    with contextlib.suppress(OSError, KeyError):  # without, it runs as it would have in the program itself
        if kernel.forbid_new_privileges():
            kernel.install_filter(seccomp.assemble(platform.machine()))


def _lower(which: int, value: int) -> None:
    hard = resource.getrlimit(which)[1]
    value = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.setrlimit(which, (value, value))


def _answer(program: Program, steps: Steps) -> bytes:
    results: list[bytes] = []
    parts: list[bytes] | None = next(steps, None)
    while parts is not None:
        try:
            made = execute(program, parts)
        except BaseException as reason:
            return frame_parts([type(reason).__name__.encode(), *results])
        results.append(frame_parts(made))
        parts = advance(steps, made)
    return frame_parts([b"", *results])
