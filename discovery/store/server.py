"""The embedded Redis-protocol server: started with discovery, durable, and gone when discovery is gone.

Three processes hold each other::

    discovery (any Python, monkey-patched or not)
        | stdin: a pipe that only discovery can keep open
    watchdog (python -I -S watchdog.py, one thread)        keeps data_dir/lock
        | parent-death signal of the kernel
    valkey-server                                          keeps data_dir/lock

- Discovery ends in whatever way: the pipe reaches its end, the watchdog stops the server, removes the socket
  and leaves.
- The watchdog is killed: the kernel kills the server. (Where the kernel cannot, a forked guard does.) A server
  killed with ``appendfsync always`` has every write it acknowledged.
- The server ends by itself or is killed: the watchdog says so, and `RedisServer.alive` is False. Whoever keeps it
  (`keeper`) starts it `again`.
- Nothing here needs a signal handler, a thread or an event loop in the caller's process, so it works the same
  under gevent's monkey-patching and without.
"""

from __future__ import annotations

import contextlib
import os
import posix  # the raw calls: gevent replaces os.posix_spawn and os.waitpid by ones that need its event loop
import re
import shutil
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Self

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from discovery.store.binary import check_version, find_binary
from discovery.store.configuration import Fsync, Place, Transport, choose_place, write_config
from discovery.store.descriptors import guard_against_fork, own, release
from discovery.store.directory import lock_directory, make_directory, try_lock, write_holder
from ec262.errors import SetupError

_LOG_MAX_BYTES = 1_000_000  # a longer log is set aside (one generation) at the next start
_TAIL_LINES = 12
_TAIL_BYTES = 4096
_FULL_BYTES = 64 * 1024
_WATCHDOG = Path(__file__).with_name("watchdog.py")
_DATA = ("appendonlydir", "appendonly.aof")  # since Redis 7, and before
_MALLOC = "glibc.malloc.tcache_count=4000"
"""A commit takes and frees thousands of small pieces of memory at once. glibc by itself keeps 7 of each size at hand:
what that led to took a seventh of the server's time. Other C libraries do not read this."""
_EXIT = re.compile(rb"exit (-?\d+)\n")

# Tests turn it off to run the guard on Linux as well.
_KERNEL_TIE = sys.platform == "linux"


@dataclass(frozen=True, slots=True)
class Options:
    """How a server was started; see `start_server`."""

    data_dir: Path
    ephemeral: bool
    fsync: Fsync
    transport: Transport
    binary: Path
    start_timeout_s: float
    stop_timeout_s: float

    @property
    def log_path(self) -> Path:
        """The server's log."""
        return self.data_dir / "redis.log"


class RedisServer:
    """A running server; a context manager that stops it.

    Attributes:
        url: what `redis.Redis.from_url` takes, ``unix://…`` or, with a password, ``redis://…``.
        pid: process id of the server.
        watchdog_pid: process id of its watchdog.
        data_dir: where it keeps its append-only file, its log and its lock.
        log_path: the server's log.
        socket_path: the unix socket, None on TCP.
    """

    def __init__(self, options: Options, place: Place, watchdog_pid: int, lifeline: int, reports: int) -> None:
        """Only `start_server` makes one."""
        self._options = options
        self.url = place.url
        self.pid = 0
        self.watchdog_pid = watchdog_pid
        self.data_dir = options.data_dir
        self.log_path = options.log_path
        self.socket_path = place.socket_path
        self._lifeline = lifeline
        self._reports = reports
        self._owner = os.getpid()
        self._heard = b""
        self._watchdog_gone = False
        self._closed = self._kept = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<RedisServer pid={self.pid} {self.data_dir}>"  # not the URL: it may hold the password

    @property
    def alive(self) -> bool:
        """Whether the server runs and is watched; False also once it ended by itself."""
        if self._closed or os.getpid() != self._owner:
            return False
        self._listen()
        return not self._watchdog_gone and b"exit" not in self._heard

    @property
    def ending(self) -> str:
        """How it ended, in words; empty where it is not known."""
        found = _EXIT.search(self._heard)
        status = int(found[1]) if found else None
        if status is None:
            return "its watchdog was killed" if self._watchdog_gone else ""
        if status >= 0:
            return f"exit code {status}"
        with contextlib.suppress(ValueError):
            return f"killed by {signal.Signals(-status).name}"
        return f"killed by signal {-status}"

    def last_words(self) -> str:
        """The end of its log, as the second half of an error message."""
        try:
            with open(self.log_path, "rb") as log:
                log.seek(max(0, os.fstat(log.fileno()).st_size - _TAIL_BYTES))
                return _tail(log)
        except OSError:
            return "Its log is gone."

    def again(self) -> RedisServer:
        """Starts a server on the directory of this one, which is closed; all that it acknowledged is there.

        Raises:
            SetupError: it did not come up, or its data are gone: it is not started on nothing.
        """
        self.close(keep=True)
        if not any((self.data_dir / name).exists() for name in _DATA):
            raise SetupError(f"The data of the embedded store are gone from {self.data_dir}.")
        started = _start(self._options, fresh=False)
        self._kept = False
        return started

    def close(self, *, keep: bool = False) -> None:
        """Stops the server with everything it acknowledged on disk; returns when no process is left.

        Idempotent. In a forked child it does nothing: the server is the parent's.

        Args:
            keep: also an ephemeral directory stays, until this is called once more.
        """
        if os.getpid() != self._owner:
            return
        if self._closed:
            if self._kept and not keep:
                self._kept = False
                shutil.rmtree(self.data_dir, ignore_errors=True)
            return
        self._closed = True
        if keep and self._options.ephemeral:
            self._kept = True
            with contextlib.suppress(OSError):  # the watchdog is gone
                os.write(self._lifeline, b"k")
        release(self._lifeline)
        # The watchdog itself waits `stop_timeout_s` and then kills.
        deadline = time.monotonic() + self._options.stop_timeout_s + 5
        while not self._watchdog_gone and time.monotonic() < deadline:
            self._listen()
            time.sleep(0.005)
        if not self._watchdog_gone:  # stopped or hung; the server's tie to it does the rest
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.watchdog_pid, 9)
        self._reap_watchdog()
        if b"exit" not in self._heard:
            self._finish_for_watchdog(keep=keep)
        release(self._reports)

    def _listen(self) -> None:
        """Takes in what the watchdog reported; never waits."""
        while not self._watchdog_gone:
            try:
                report = os.read(self._reports, 4096)
            except BlockingIOError:
                return
            self._heard += report
            if not report:
                self._watchdog_gone = True
            elif not self.pid and b"\n" in self._heard:
                self.pid = int(self._heard.split()[1])

    def _reap_watchdog(self) -> None:
        # Somebody else may have reaped it: gevent's loop reaps every child once it watches one.
        deadline = time.monotonic() + 5
        while time.monotonic() < deadline:
            try:
                if posix.waitpid(self.watchdog_pid, os.WNOHANG)[0]:
                    return
            except ChildProcessError:
                return
            time.sleep(0.002)

    def _finish_for_watchdog(self, *, keep: bool) -> None:
        """The watchdog was killed: makes sure that the server is gone, and tidies in its place."""
        # Who holds the lock is alive, so its process id is still its own: safe to kill. (Linux has done so.)
        deadline = time.monotonic() + 5
        lock = try_lock(self.data_dir / "lock")
        while lock is None and time.monotonic() < deadline:
            if self.pid:
                with contextlib.suppress(OSError):
                    os.kill(self.pid, 9)
            time.sleep(0.01)
            lock = try_lock(self.data_dir / "lock")
        if lock is not None:
            if self.socket_path is not None:
                shutil.rmtree(self.socket_path.parent, ignore_errors=True)
            if self._options.ephemeral and not keep:
                shutil.rmtree(self.data_dir, ignore_errors=True)
            release(lock)


def start_server(
    data_dir: Path,
    *,
    ephemeral: bool = False,
    fsync: Fsync = "always",
    transport: Transport = "auto",
    binary: Path | None = None,
    start_timeout_s: float = 30.0,
    stop_timeout_s: float = 10.0,
) -> RedisServer:
    """Starts the embedded server on a directory of its own and waits until it answers.

    Args:
        data_dir: holds its append-only file, log, lock and (if its path is short enough) its socket. Made with
            mode 0700 if missing.
        ephemeral: the directory is thrown away when the server ends, also after a kill -9 of this process.
            It must be missing or empty, so that nobody loses anything else.
        fsync: `always` loses no acknowledged write whatever is killed; `everysec` and `no` may.
        transport: `auto` takes a unix socket where one can be, else loopback TCP with a password.
        binary: the server to run; looked for if None (`find_binary`).
        start_timeout_s: seconds without any sign of life before it counts as failed. Loading a long
            append-only file is a sign of life and may take as long as it takes.
        stop_timeout_s: seconds that `close` gives it to leave by itself.
    Returns:
        The running server.
    Raises:
        SetupError: no server on this machine, the directory cannot be used or is in use by another discovery,
            or the server did not come up; the message has the end of its log.
    """
    binary = binary or find_binary()
    data_dir = data_dir.expanduser().absolute()
    guard_against_fork()
    options = Options(data_dir, ephemeral, fsync, transport, binary, start_timeout_s, stop_timeout_s)
    return _start(options, fresh=True)


def _start(options: Options, *, fresh: bool) -> RedisServer:
    for attempts_left in (2, 1, 0):
        make_directory(options.data_dir, empty=options.ephemeral and fresh)
        lock = lock_directory(options.data_dir)
        try:
            return _start_locked(options, lock, fresh)
        except SetupError as error:
            # Somebody took the free port between our finding it and the server's binding it.
            if not attempts_left or "Address already in use" not in str(error):
                raise
        finally:
            release(lock)
    raise AssertionError("unreachable")


def _start_locked(options: Options, lock: int, fresh: bool) -> RedisServer:
    place = choose_place(options.data_dir, options.transport)
    config = write_config(options.data_dir, options.log_path, options.fsync, place)
    log = _open_log(options.log_path)
    server = _spawn(options, place, config, lock)
    try:
        with log:
            _wait_until_ready(server, options.start_timeout_s, log)
        write_holder(lock, server.pid)
    except BaseException:
        server.close(keep=not fresh)
        raise
    return server


def _open_log(log_path: Path) -> BinaryIO:
    """Sets a long log aside and opens the log at its end, to read there why a start failed.

    It is opened before the start because an ephemeral directory is gone as soon as the start has failed.
    """
    try:
        if log_path.exists() and log_path.stat().st_size > _LOG_MAX_BYTES:
            log_path.replace(log_path.with_name(log_path.name + ".1"))
        log_path.touch(mode=0o600)
        log = open(log_path, "rb")  # noqa: SIM115 (the caller closes it)
    except OSError as error:
        raise SetupError(f"{log_path} cannot be written: {error.strerror}.") from error
    log.seek(0, os.SEEK_END)
    return log


def _spawn(options: Options, place: Place, config: Path, lock: int) -> RedisServer:
    """Starts watchdog and server, in a session of their own: Ctrl-C in the terminal is discovery's to answer."""
    lifeline_end, lifeline = map(own, os.pipe())
    reports, reports_end = map(own, os.pipe())
    log = own(os.open(options.log_path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600))
    python = sys.executable or shutil.which("python3") or "python3"
    run = "" if place.socket_path is None else str(place.socket_path.parent)
    scrap = str(options.data_dir) if options.ephemeral else ""
    tie = "kernel" if _KERNEL_TIE else "guard"
    told = [str(os.getpid()), str(options.binary), str(config), str(options.stop_timeout_s), tie, run, scrap]
    try:
        # posix_spawn, and neither subprocess nor fork: no Python code runs in the child, whatever threads and
        # greenlets this process has, and gevent's versions would want an event loop.
        watchdog_pid = posix.posix_spawn(
            python,
            # Not by -m: that would look for the package where this process was started.
            [python, "-I", "-S", str(_WATCHDOG), *told],
            {"GLIBC_TUNABLES": _MALLOC, **os.environ},
            file_actions=[
                (os.POSIX_SPAWN_DUP2, lifeline_end, 0),
                (os.POSIX_SPAWN_DUP2, reports_end, 1),
                (os.POSIX_SPAWN_DUP2, log, 2),
                (os.POSIX_SPAWN_DUP2, lock, 3),
            ],
            setsid=True,
        )
    except BaseException as error:
        release(lifeline)
        release(reports)
        shutil.rmtree(run, ignore_errors=True)
        if isinstance(error, OSError):
            raise SetupError(f"{python} cannot be started as the store's watchdog: {error.strerror}.") from error
        raise
    finally:
        for descriptor in (lifeline_end, reports_end, log):
            release(descriptor)
    os.set_blocking(reports, False)
    return RedisServer(options, place, watchdog_pid, lifeline, reports)


def _wait_until_ready(server: RedisServer, timeout_s: float, log: BinaryIO) -> None:
    """Waits for PONG; as long as it takes while the server says that it is loading.

    Raises:
        SetupError: it ended, says nothing for `timeout_s` seconds, or is too old.
    """
    client = redis.Redis.from_url(server.url, retry=Retry(NoBackoff(), 0), socket_timeout=5, socket_connect_timeout=5)
    deadline = time.monotonic() + timeout_s
    pause_s = 0.002
    with contextlib.closing(client):
        while True:
            if not server.alive:
                raise SetupError(f"The embedded Redis server ended at once. {_tail(log)}")
            try:
                client.ping()
                version = str(client.info("server")["redis_version"])
                break
            except redis.BusyLoadingError:
                deadline = time.monotonic() + timeout_s
            except (redis.RedisError, OSError):
                pass  # not yet listening, ended meanwhile, or (TCP) somebody else on that port: then it ends by itself
            if time.monotonic() > deadline:
                raise SetupError(
                    f"The embedded Redis server does not answer within {timeout_s:g} seconds. " + _tail(log)
                )
            time.sleep(pause_s)
            pause_s = min(pause_s * 1.5, 0.1)
    check_version(version)


def _tail(log: BinaryIO) -> str:
    """The end of what the server logged since its start, as the second half of an error message."""
    lines = log.read(_LOG_MAX_BYTES).decode(errors="replace").strip().splitlines()
    full = ""
    with contextlib.suppress(OSError):
        if shutil.disk_usage(Path(log.name).parent).free < _FULL_BYTES:  # then nor can it say so itself
            full = "There is no space left on its disk. "
    if not lines:
        return f"{full}It left no word in {log.name}."
    return f"{full}The end of {log.name}:\n  " + "\n  ".join(lines[-_TAIL_LINES:])
