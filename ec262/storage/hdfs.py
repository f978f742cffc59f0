"""Writing to HDFS with hdfs-native."""

from __future__ import annotations

from typing import Any

BLOCK_BYTES = 128 * 1024 * 1024
"""Size of the blocks that are written: Hadoop's own default."""


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
