"""The directory of an embedded store: made for one owner, and locked by whoever may still write there.

The lock (`flock` on the file ``lock``) is inherited by watchdog and server, so that it lives exactly as long as
anything may still write: two servers on one append-only file would diverge without a word.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import time
from pathlib import Path

from discovery.store.descriptors import own, release
from ec262.errors import SetupError

_HOLDER_GRACE_S = 1.0  # a lock that is about to be released belongs to somebody alive for no longer
_DYING_HOLDER_GRACE_S = 20.0  # …and to somebody killed while its watchdog stops the server


def make_directory(data_dir: Path, *, empty: bool) -> None:
    """Makes the directory (mode 0700) where it is missing.

    Args:
        empty: it must hold nothing yet: it is thrown away after use, and nobody is to lose anything else.
    Raises:
        SetupError: it cannot be used.
    """
    try:
        data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        if empty and any(data_dir.iterdir()):
            raise SetupError(f"{data_dir} is to be thrown away after use, but it is not empty; name a new one.")
        if not os.access(data_dir, os.R_OK | os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, "it may not be written")
    except OSError as error:
        raise SetupError(f"The data directory {data_dir} cannot be used: {error.strerror or error}.") from error


def try_lock(path: Path) -> int | None:
    """Takes the lock if it is free.

    Returns:
        The locked descriptor (owned, see `descriptors`), None if somebody holds it or the directory is gone.
    Raises:
        SetupError: the file system cannot lock.
    """
    try:
        descriptor = own(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
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
        release(descriptor)
        raise SetupError(
            f"The file system of {path.parent} cannot lock files ({error.strerror}); use a local directory."
        ) from error
    release(descriptor)
    return None


def lock_directory(data_dir: Path) -> int:
    """Takes the directory's lock; waits for a server that is being stopped.

    Raises:
        SetupError: another discovery uses the directory; the message says which.
    """
    path = data_dir / "lock"
    started = time.monotonic()
    while True:
        lock = try_lock(path)
        if lock is not None:
            write_holder(lock, None)
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


def write_holder(lock: int, server_pid: int | None) -> None:
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
