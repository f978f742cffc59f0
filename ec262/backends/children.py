"""The parent's side of the processes backend's children: start, talk without waiting, tell how one ended, end it."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections import deque
from pathlib import Path
from typing import Final

from ec262.backends.base import Unit
from ec262.backends.process_child import HEADER, SOCKET_BYTES
from ec262.errors import SetupError
from ec262.sandbox.policy import DEFAULT

CLOSE_S: Final = 2.0
"""How long children may take to end by themselves."""
_CHUNK: Final = 1 << 20
_VECTORS: Final = 64

# Not `-m`: a script that found EC262 beside itself has it on its path alone, which is handed over here. And not
# multiprocessing, whose children would run the user's script once more.
_BOOT: Final = (
    "import sys; sys.path[:] = sys.argv[3:]; from ec262.backends.{module} import main; "
    "main(int(sys.argv[1]), int(sys.argv[2]))"
)


def start_python(module: str, theirs: socket.socket) -> subprocess.Popen[bytes]:
    """Starts an interpreter like this one in a session of its own, so that Ctrl-C is for the parent.

    It has the parent's import path and environment, one descriptor (`theirs`), nothing to read, and the parent's
    standard error to print to.

    Args:
        module: of `ec262.backends`; its ``main`` is called with the descriptor and the parent's process id.

    Raises:
        SetupError: it does not start.
    """
    if not sys.executable:
        raise SetupError("this Python does not know its own interpreter (sys.executable), so none can be started")
    root = str(Path(__file__).parents[2])
    path = [item for item in sys.path if isinstance(item, str)]
    environment = dict(os.environ)
    # Sets have one order in all of them, that of volunteers' sandboxes; and a core has one process already.
    environment["PYTHONHASHSEED"] = str(DEFAULT.hash_seed)
    for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        environment.setdefault(name, "1")
    output = 2
    try:
        os.fstat(output)
    except OSError:
        output = subprocess.DEVNULL
    command = [sys.executable, "-c", _BOOT.format(module=module), str(theirs.fileno()), str(os.getpid()), *path, root]
    try:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            pass_fds=(theirs.fileno(),),
            env=environment,
            start_new_session=True,
        )
    except OSError as reason:
        raise SetupError(f"another process cannot be started: {reason}") from None


def kill_group(process: subprocess.Popen[bytes]) -> None:
    """Ends a process of `start_python` with all that it has started, and waits for it."""
    if process.poll() is None:
        with contextlib.suppress(OSError):
            os.killpg(process.pid, signal.SIGKILL)
    process.wait()


class Child:
    """A child: what it has to do, what is on its way there and back.

    Attributes:
        sent: tasks it has, the first of them at work.
        ready: whether it is up.
        since: when its first task began, at the earliest.
    """

    def __init__(self) -> None:
        mine, theirs = socket.socketpair()
        try:
            with contextlib.suppress(OSError):
                mine.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SOCKET_BYTES)
            mine.setblocking(False)
            self.process = start_python("process_child", theirs)
        except BaseException:
            mine.close()
            raise
        finally:
            theirs.close()
        self._channel = mine
        self.descriptor = mine.fileno()
        self.sent: deque[Unit] = deque()
        self.ready = False
        self.since = time.monotonic()
        self.program = b""
        self._out: deque[memoryview] = deque()
        self._chunks: list[bytes] = []
        self._missing = HEADER.size
        self._kind = 0
        self._loaded = 0

    def post(self, kind: int, body: bytes) -> None:
        """Puts a frame on its way."""
        self._out += (memoryview(HEADER.pack(kind, len(body), 0)), memoryview(body))
        self.flush()

    @property
    def events(self) -> int:
        """What is to be waited for."""
        return select.POLLIN | select.POLLOUT if self._out else select.POLLIN

    def flush(self) -> None:
        """Writes what can be written at once."""
        out = self._out
        while out:
            try:
                written = self._channel.sendmsg([out[at] for at in range(min(len(out), _VECTORS))])
            except BlockingIOError:
                return
            except OSError:  # it has ended: its answers, then their end, are still to be read
                out.clear()
                return
            while out and written >= len(out[0]):
                written -= len(out.popleft())
            if written:
                out[0] = out[0][written:]

    def read(self) -> tuple[int, bytes, int] | None:
        """The next answer, as far as it is here: kind, body, bytes loaded.

        Raises:
            EOFError: there will be none any more.
        """
        while True:
            while self._missing:
                try:
                    chunk = self._channel.recv(min(self._missing, _CHUNK))
                except BlockingIOError:
                    return None
                except OSError:
                    chunk = b""
                if not chunk:
                    raise EOFError
                self._chunks.append(chunk)
                self._missing -= len(chunk)
            whole = self._chunks[0] if len(self._chunks) == 1 else b"".join(self._chunks)
            self._chunks = []
            if not self._kind:
                self._kind, self._missing, self._loaded = HEADER.unpack(whole)
                continue
            kind, self._kind, self._missing = self._kind, 0, HEADER.size
            return kind, whole, self._loaded

    def end(self) -> str:
        """Waits for a child that has let go of its socket; how it ended, for a message."""
        try:
            code = self.process.wait(CLOSE_S)
        except subprocess.TimeoutExpired:
            self.kill()
            return "closed its connection"
        self._channel.close()
        if code >= 0:
            return f"ended with exit code {code}"
        try:
            name = signal.Signals(-code).name
        except ValueError:
            name = f"signal {-code}"
        return f"was killed by {name}" + (" (out of memory?)" if name == "SIGKILL" else "")

    def kill(self) -> None:
        """Ends it at once, with what its task has started."""
        kill_group(self.process)
        self._channel.close()

    def let_go(self) -> None:
        """Tells it to end; `kill` is to follow."""
        with contextlib.suppress(OSError):
            self._channel.shutdown(socket.SHUT_RDWR)


def close_all(children: list[Child]) -> None:
    """Ends children that have nothing to do, each in its own way if it is quick about it."""
    for child in children:
        child.let_go()
    until = time.monotonic() + CLOSE_S
    for child in children:
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.process.wait(max(0.0, until - time.monotonic()))
        child.kill()
