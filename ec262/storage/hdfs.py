"""HDFS with hdfs-native: whether it answers, and how files are written."""

from __future__ import annotations

import socket
import threading
import time
from typing import Any

from ec262.errors import SetupError
from ec262.storage.address import shown

BLOCK_BYTES = 128 * 1024 * 1024
"""Size of the blocks that are written: Hadoop's own default."""
CONNECT_S = 10.0
ANSWER_S = 30.0
"""A name node may take so long to answer; two of which one takes over from the other, too."""
_FRESH_S = 10.0

_answered: dict[str, float] = {}
"""When file systems answered last, by their tokens."""
_kept: dict[str, Any] = {}
"""File systems that were used, for good. In a process that is forked off (the rehearsal forks) fsspec forgets its own,
and to let go of hdfs-native's client there is to wait for ever for threads that are not there."""


def reach(fs: Any, address: str) -> None:
    """Returns once HDFS has answered. To be called before a file system is used.

    Without it hdfs-native tries for some minutes, or for ever where nobody says no, and Ctrl-C does not end that.

    Raises:
        SetupError: it does not.
    """
    name, token = shown(address), str(fs._fs_token)
    _kept[token] = fs
    if time.monotonic() - _answered.get(token, float("-inf")) < _FRESH_S:
        return
    host, port = getattr(fs, "host", None), getattr(fs, "port", None)
    if host and port:
        try:
            socket.create_connection((host, port), CONNECT_S).close()
        except OSError as reason:
            why = "no answer" if isinstance(reason, TimeoutError) else reason.strerror or str(reason)
            raise SetupError(
                f"{name}: there is no name node at {host}:{port} ({why}): is it running, and is that its RPC port?"
            ) from None
    over = threading.Event()

    def ask() -> None:
        try:
            fs.info("/")
            _answered[token] = time.monotonic()
        except Exception:
            pass  # an answer as well: whoever asks for more will be told
        finally:
            over.set()

    threading.Thread(target=ask, name="ec262-hdfs", daemon=True).start()
    if not over.wait(ANSWER_S):
        raise SetupError(f"{name}: the name node has not answered for {ANSWER_S:.0f} s; is it one?")


class HdfsWriter:
    """A new file, written block by block; the file is closed after each, and appended to.

    A name node refuses a file's next block until a data node has told it of the one before. Clients are to ask again;
    hdfs-native (0.14) gives up, and what was written is lost. To close a file it does wait for the data nodes.
    """

    def __init__(self, fs: Any, path: str, block: int | None = None) -> None:
        self._fs, self._path, self._block = fs, path, block or BLOCK_BYTES
        self._file = fs.open(path, "wb", block_size=self._block)
        self._room = self._block

    def write(self, data: bytes) -> int:
        """Writes all of it."""
        view = memoryview(data)
        while view:
            if not self._room:
                self._file.close()
                self._file = self._fs.open(self._path, "ab")
                self._room = self._block
            piece = view[: self._room]
            self._file.write(bytes(piece))
            self._room -= len(piece)
            view = view[len(piece) :]
        return len(data)

    def close(self) -> None:
        """Completes the file."""
        self._file.close()

    def __enter__(self) -> HdfsWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
