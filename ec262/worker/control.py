"""Control: how the owner of a worker talks to it: a local socket in its home, of this user alone, never the network.

``HOME/workers/PORT.sock``, 0600 in a directory of 0700; where the system tells who calls, it has to be the same user or
root. A request and its answer are a line of JSON each. ``PORT.pid`` beside it has the worker's process id.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket as plain_socket
import stat
import struct
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gevent
import psutil
from gevent.pool import Pool
from gevent.server import StreamServer
from gevent.socket import socket as gevent_socket

from ec262.errors import SetupError

log = logging.getLogger("ec262.worker")

_DIRECTORY = "workers"
_MOST_BYTES = 256 * 1024
_PATIENCE_S = 5.0
_CALLERS = 8
_PID_SLACK_S = 2.0

Answer = Callable[[dict[str, Any]], dict[str, Any]]


def control_directory(home: Path) -> Path:
    """Where the sockets of this home's workers are."""
    return home / _DIRECTORY


class Control:
    """The worker's end.

    Args:
        home: the worker's.
        port: what it serves foremen on: its name here.
        answer: called with each request; what it raises is a fault of the worker.

    Raises:
        OSError: no socket can be made there.
    """

    def __init__(self, home: Path, port: int, answer: Answer) -> None:
        directory = control_directory(home)
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        about = os.stat(directory)
        if about.st_uid == os.geteuid() and stat.S_IMODE(about.st_mode) & 0o077:
            os.chmod(directory, 0o700)
        self._answer = answer
        self._path = directory / f"{port}.sock"
        self._pid = directory / f"{port}.pid"
        # Nobody else has this port: a socket that is there was left behind.
        self._path.unlink(missing_ok=True)
        listener = gevent_socket(plain_socket.AF_UNIX)
        try:
            with _reachable(self._path) as name:
                listener.bind(name)
            os.chmod(self._path, 0o600)
            listener.listen(_CALLERS)
            self._pid.write_text(f"{os.getpid()}\n")
        except BaseException:
            listener.close()
            raise
        self._server = StreamServer(listener, self._serve, spawn=Pool(_CALLERS))
        self._server.start()

    def close(self) -> None:
        """Takes no more requests; nothing is left in the directory. May be called twice."""
        self._server.stop(timeout=0.2)
        for path in (self._path, self._pid):
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)

    def _serve(self, caller: Any, _: object) -> None:
        with contextlib.suppress(OSError, ValueError, gevent.Timeout), gevent.Timeout(_PATIENCE_S):
            if not _is_own(caller):
                return
            request = json.loads(_line(caller))
            said = self._answer(request) if isinstance(request, dict) else {"error": "a request is an object"}
            caller.sendall(json.dumps(said).encode() + b"\n")


def workers_here(home: Path) -> list[int]:
    """Ports of the workers of a home that have a socket there, whether they live or not."""
    found = control_directory(home).glob("*.sock")
    return sorted(int(path.stem) for path in found if path.stem.isdecimal())


def ask(home: Path, port: int, request: dict[str, Any]) -> dict[str, Any] | None:
    """A worker's answer; None: there is none alive on that port.

    Raises:
        SetupError: it does not answer, or does not take the request.
    """
    path = control_directory(home) / f"{port}.sock"
    with plain_socket.socket(plain_socket.AF_UNIX) as caller:
        caller.settimeout(_PATIENCE_S)
        try:
            with _reachable(path) as name:
                caller.connect(name)
            caller.sendall(json.dumps(request).encode() + b"\n")
            said = json.loads(_line(caller))
        except (FileNotFoundError, ConnectionRefusedError):
            return None
        except (OSError, ValueError) as reason:
            raise SetupError(f"the worker on port {port} does not answer at {path}: {reason}") from None
    if not isinstance(said, dict) or "error" in said:
        raise SetupError(f"the worker on port {port}: {said.get('error') if isinstance(said, dict) else said!r}")
    return said


def own_pids(home: Path) -> set[int]:
    """This process, and the workers of a home: what they use is not others' use of the machine."""
    pids = {os.getpid()}
    for path in control_directory(home).glob("*.pid"):
        with contextlib.suppress(OSError, ValueError, psutil.Error):
            pid = int(path.read_text())
            # A process that began after the file was written has the number from somebody who is gone.
            if psutil.Process(pid).create_time() <= path.stat().st_mtime + _PID_SLACK_S:
                pids.add(pid)
    return pids


@contextlib.contextmanager
def _reachable(path: Path) -> Iterator[str]:
    """A name for a socket's path that is short enough: the kernel takes some hundred bytes."""
    if not sys.platform.startswith("linux"):
        yield str(path)
        return
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{directory}/{path.name}"
    finally:
        os.close(directory)


def _line(caller: Any) -> bytes:
    """Bytes up to a line break.

    Raises:
        ValueError: too many, or the caller ended.
    """
    text = b""
    while not text.endswith(b"\n"):
        piece = caller.recv(65_536)
        text += piece
        if not piece or len(text) > _MOST_BYTES:
            raise ValueError("no line came")
    return text


def _is_own(caller: Any) -> bool:
    """Whether the same user is at the other end, or root."""
    if not hasattr(plain_socket, "SO_PEERCRED"):
        return True  # the file's mode alone decides
    size = struct.calcsize("3i")
    _, user, _ = struct.unpack("3i", caller.getsockopt(plain_socket.SOL_SOCKET, plain_socket.SO_PEERCRED, size))
    return user in (0, os.geteuid())
