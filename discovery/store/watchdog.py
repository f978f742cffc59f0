"""The watchdog of an embedded store: starts the server, ends it when discovery is gone, and tidies after it.

A program of its own, run as ``python -I -S watchdog.py PARENT BINARY CONFIG PATIENCE TIE RUN SCRAP``:

- PARENT: process id of discovery, BINARY and CONFIG: the server and the file it is told to read.
- PATIENCE: seconds that the server has to leave by itself once it was asked to.
- TIE: ``kernel``: the kernel kills the server when this process dies (Linux); ``guard``: a forked guard does.
- RUN: a directory that is removed at the end, SCRAP: another, unless discovery says ``k`` (keep) first; or empty.

Descriptors: 0 the lifeline, a pipe that only discovery can keep open; 1 reports to discovery (``pid N``, ``exit N``);
2 the log; 3 the lock. A server that ends by itself is reported, and the watchdog stays, with the lock, until discovery
has decided what now.

It has one thread, which is why the parent-death signal (it fires when the starting *thread* ends) is safe here and
would not be in discovery itself. It imports little of the standard library and nothing else: it starts in 15 ms.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import time

_SET_PDEATHSIG = 1  # prctl(2)
_LOCK = 3


def main() -> int:
    """Watches until discovery is gone or lets go; returns the exit code, always 0."""
    parent, binary, config, patience, tie, run, scrap = sys.argv[1:]
    os.umask(0o077)  # what the server writes is its owner's alone
    signals = Signals()
    server = Server(binary, config, kernel=tie == "kernel")
    report(f"pid {server.pid}\n")
    keep = told = False
    while not signals.asked:
        if server.ended() and not told:
            server.clear()
            report(f"exit {server.status}\n")
            told = True
        ready = select.select([0, signals.woken], [], [], 1.0)[0]
        if signals.woken in ready:
            os.read(signals.woken, 512)
        if 0 in ready:
            said = os.read(0, 512)
            if not said:  # end of file: discovery closed it or is dead
                break
            keep = keep or b"k" in said
        if os.getppid() != int(parent):  # dead, though somebody it forked keeps the pipe open
            keep = False
            break
    server.end(float(patience))
    leftovers = [directory for directory in (run, "" if keep else scrap) if directory]
    if leftovers:
        import shutil  # noqa: PLC0415 - 5 ms that the start need not wait for

        for directory in leftovers:  # the lock is still held: no next server can be in there
            shutil.rmtree(directory, ignore_errors=True)
    if not told:
        report(f"exit {server.status}\n")
    return 0


class Signals:
    """Signals as bytes of a pipe, so that select() sees them; `asked` is whether somebody wants the end."""

    def __init__(self) -> None:
        self.asked = False
        signal.signal(signal.SIGTERM, self._ask)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        self.woken, wake = os.pipe()
        os.set_blocking(self.woken, False)
        os.set_blocking(wake, False)
        signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())

    def _ask(self, *_: object) -> None:
        self.asked = True


class Server:
    """The server, a child of this process that cannot outlive it."""

    def __init__(self, binary: str, config: str, *, kernel: bool) -> None:
        self.status: int | None = None
        prctl = None
        if kernel:
            try:
                import ctypes  # noqa: PLC0415 - not on every system

                prctl = ctypes.CDLL(None).prctl
            except Exception:
                pass
        me = os.getpid()
        self.pid = os.fork()
        if self.pid == 0:
            try:
                if prctl is not None:
                    prctl(_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
                    if os.getppid() != me:  # it died before the tie was made
                        os._exit(1)
                os.setpgid(0, 0)
                # By a name without * ? [ since the server takes a name with them for a pattern, and when nothing
                # fits it starts without a word on its defaults: port 6379, no append-only file.
                os.dup2(os.open(config, os.O_RDONLY), 0)
                os.dup2(2, 1)
                os.execv(binary, [binary, "/dev/stdin"])
            except BaseException as problem:
                os.write(2, f"cannot run {binary}: {problem}\n".encode(errors="replace"))
            finally:
                os._exit(127)
        self._calm = -1 if prctl is not None else self._guard()
        self._cleared = False

    def _guard(self) -> int:
        """Forks who kills the server when this process is gone; returns the descriptor that calms it."""
        gone_quiet, calm = os.pipe()
        if os.fork() == 0:
            for descriptor in (0, 1, _LOCK, calm):
                os.close(descriptor)
            if not os.read(gone_quiet, 1):
                os.kill(self.pid, signal.SIGKILL)
            os._exit(0)
        return calm

    def ended(self) -> bool:
        """Whether it is gone; `status` is then its exit code, or the signal's number below zero."""
        if self.status is None:
            pid, code = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.status = os.waitstatus_to_exitcode(code)
        return self.status is not None

    def end(self, patience_s: float) -> None:
        """Has it write out what it has and leave; kills it where it does not."""
        if not self.ended():
            os.kill(self.pid, signal.SIGTERM)
            deadline = time.monotonic() + patience_s
            while not self.ended() and time.monotonic() < deadline:
                time.sleep(0.01)
        if not self.ended():
            os.kill(self.pid, signal.SIGKILL)
            while not self.ended():
                time.sleep(0.01)
        self.clear()

    def clear(self) -> None:
        """It is gone: kills a child of it that was rewriting the append-only file, and calms the guard.

        Once, and at once: its process id may soon be somebody else's.
        """
        if self._cleared:
            return
        self._cleared = True
        try:
            os.killpg(self.pid, signal.SIGKILL)
        except OSError:
            pass
        if self._calm >= 0:
            os.write(self._calm, b"x")


def report(text: str) -> None:
    """Tells discovery."""
    try:
        os.write(1, text.encode())
    except OSError:
        pass  # it is gone: nobody wants to know


if __name__ == "__main__":
    raise SystemExit(main())
