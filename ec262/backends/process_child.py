"""The child of the processes backend: tasks in, results out, over one socket, until its end.

It runs its owner's own program with all that this machine has installed; what confines strangers' programs is
`ec262.sandbox`. Frames are a header and a body; a body of parts is what `ec262.protocol.framing` writes.
"""

from __future__ import annotations

import contextlib
import contextvars
import gc
import io
import os
import pickle
import signal
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable
from typing import Final, NoReturn

from cloudpickle import cloudpickle

from ec262.mapreduce.program import Program, execute
from ec262.protocol.framing import frame_parts, unframe_parts
from ec262.sandbox import kernel
from ec262.sandbox.child import explain
from ec262.sandbox.unpack import Loader

PROGRAM, TASK, SPLIT = 1, 2, 3
"""To the child: the packed program; a task's parts; what loads a task's parts, pickled."""
READY, OK, FAILED, UNREAD = 10, 11, 12, 13
"""From it: it is up (once, first); a result's parts; what the program raised; the input could not be loaded here."""
HEADER: Final = struct.Struct("=BxxxxxxxQQ")
"""Kind, length of the body, bytes of input that the child has loaded by itself."""
SOCKET_BYTES: Final = 1 << 20
_READ_AHEAD: Final = 1 << 16


def main(descriptor: int, parent: int) -> NoReturn:
    """Serves until the other end is closed.

    Args:
        descriptor: of the socket.
        parent: process id of whoever is at the other end.
    """
    kernel.die_with_parent(signal.SIGKILL)
    channel = socket.socket(fileno=descriptor)
    channel.setblocking(True)  # a parent whose sockets are gevent's hands over one that is not
    with contextlib.suppress(OSError):
        channel.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SOCKET_BYTES)
    if sys.platform != "linux":
        threading.Thread(target=_watch, args=(parent,), daemon=True).start()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)  # it is a pipe or file for all that Python knows
    gc.collect()
    gc.freeze()
    gc.set_threshold(200_000, 50, 50)  # as in the sandbox's child: data are hardly ever cycles
    try:
        _Server(channel).serve()
    except (OSError, EOFError):
        sys.exit(0)  # the parent is gone, or done


def _watch(parent: int) -> None:
    """Ends the process with its parent, whatever it is doing; Linux has a signal for that."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


class _Server:
    def __init__(self, channel: socket.socket) -> None:
        self._channel = channel
        self._input = io.BufferedReader(io.FileIO(channel.fileno(), "rb", closefd=False), _READ_AHEAD)
        self._loader = Loader(None, cloudpickle)
        self._load: Callable[[bytes], Program] | None = None

    def serve(self) -> NoReturn:
        """Answers in the order of the tasks; an answer is written before the next task begins.

        Raises:
            EOFError: there is nothing more to come.
        """
        self._answer(READY, b"", 0)
        while True:
            kind, length, _ = HEADER.unpack(self._read(HEADER.size))
            body = self._read(length)
            if kind == PROGRAM:
                self._load = self._loader.prepare(body)
                continue
            loaded = 0
            try:
                if kind == TASK:
                    parts = unframe_parts(body)
                else:
                    parts = pickle.loads(body)()  # noqa: S301 - its own parent's
                    loaded = sum(map(len, parts))
            except BaseException:
                self._answer(UNREAD, b"", 0)
                continue
            del body
            # A copy of the context keeps what a task does to decimal's from the next.
            answer, made = contextvars.copy_context().run(self._compute, parts)
            del parts
            with contextlib.suppress(Exception):
                sys.stdout.flush()
            self._answer(answer, made, loaded)
            del made

    def _compute(self, parts: list[bytes]) -> tuple[int, bytes]:
        try:
            assert self._load is not None
            return OK, frame_parts(execute(self._load(b""), parts))
        except BaseException as reason:
            self._loader.remember_lines()
            return FAILED, explain(reason)

    def _read(self, length: int) -> bytes:
        body = self._input.read(length)
        if len(body) != length:
            raise EOFError
        return body

    def _answer(self, kind: int, body: bytes, loaded: int) -> None:
        header = HEADER.pack(kind, len(body), loaded)
        if len(body) < _READ_AHEAD:
            self._channel.sendall(header + body)
        else:
            self._channel.sendall(header)
            self._channel.sendall(body)
