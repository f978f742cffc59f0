"""The segment files as they are read: which there are, frame after frame, the chain checked."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NoReturn

from discovery.archive.segment import (
    BLOCK,
    CHECKPOINT,
    HEADER,
    NOTHING,
    Damaged,
    Frame,
    StreamId,
    read_frame,
    read_header,
)
from ec262.errors import EC262Error

LEDGER = "ledger"
"""The archive's directory in a service's data directory."""
_NAME = re.compile(r"[0-9]{12}\.segment")


class ArchiveFault(EC262Error):
    """Archive and Redis do not fit, or the archive is damaged; nothing was changed. An operator has to look."""


@dataclass(frozen=True, slots=True)
class Torn:
    """Bytes at the end of the last file that are no whole frame."""

    path: Path
    start: int
    size: int


def segments(directory: Path) -> list[Path]:
    """The segment files, the oldest first."""
    if not directory.is_dir():
        return []
    return sorted(path for path in directory.iterdir() if _NAME.fullmatch(path.name))


def first_number(path: Path) -> int:
    """The number of the first block of a segment, from its name."""
    return int(path.name[:12])


class Walk:
    """Frames one after the other, with their chain checked. May go on where it ended, once there is more to read.

    Args:
        start: the segment to begin with; None: the first. What is before it is not read, and so not checked.

    Attributes:
        number, digest, last: of the block read last, or what the first checkpoint says of the one before it.
        torn: what stood at the end when `step` last found nothing more.
        read_bytes: read so far.
    """

    def __init__(self, directory: Path, start: Path | None = None) -> None:
        self._directory = directory
        self._start = start
        self._path: Path | None = None
        self._file: BinaryIO | None = None
        self._chain: bytes | None = None
        self.number = 0
        self.digest = NOTHING
        self.last: StreamId = (0, 0)
        self.position = 0
        self.torn: Torn | None = None
        self.read_bytes = 0

    @property
    def path(self) -> Path | None:
        """The segment that the last frame came from."""
        return self._path

    def close(self) -> None:
        """Closes the file."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def step(self) -> Frame | None:
        """The next frame; None: there is none now.

        Raises:
            ArchiveFault: the files are not as they were written; says which and where.
        """
        self.torn = None
        while True:
            # Looked for before reading on: what follows a file that has a successor was written before that.
            following = self._following()
            if self._file is not None:
                frame = self._read()
                if frame is not None:
                    return self._checked(frame)
                if following is not None and self.torn is not None:
                    self._fail("the segment ends within a frame, and it is not the last one")
            if following is None:
                return None
            self.close()
            self.torn = None
            self._path, self.position = following, 0
            self._file = open(following, "rb")  # noqa: SIM115 - `close` closes it

    def _following(self) -> Path | None:
        """The segment after the one that is open."""
        if self._path is None and self._start is not None:
            return self._start
        found = segments(self._directory)
        if self._path is not None:
            found = [path for path in found if path.name > self._path.name]
        return found[0] if found else None

    def _read(self) -> Frame | None:
        assert self._file is not None
        assert self._path is not None
        self._file.seek(self.position)
        head = self._file.read(HEADER.size)
        size = os.fstat(self._file.fileno()).st_size
        left = size - self.position
        try:
            if len(head) < HEADER.size:
                if left or not self.position:  # a file without a checkpoint is torn, too
                    self.torn = Torn(self._path, self.position, left)
                return None
            header = read_header(head)
            if header.size > left:
                self.torn = Torn(self._path, self.position, left)
                return None
            return read_frame(header, head + self._file.read(header.size - HEADER.size))
        except Damaged as reason:
            # Power that fails leaves blocks of a file in any order: the last frame may be whole and wrong.
            self.torn = Torn(self._path, self.position, left)
            self._fail(str(reason))

    def _checked(self, frame: Frame) -> Frame:
        header = frame.header
        start = self.position == 0
        if start != (header.kind == CHECKPOINT):
            self._fail("a segment begins with a checkpoint, and has no other")
        if self._path is not None and start and header.number != first_number(self._path):
            self._fail(f"the file's name says block {first_number(self._path)}, its checkpoint {header.number}")
        if self._chain is None:
            if self._start is None and (header.previous != NOTHING or header.number != 1):
                self._fail("the first segment is missing")
            self.number, self.digest, self.last = header.number - 1, header.previous, header.last
        elif header.previous != self._chain:
            self._fail("the chain is broken: what is before is not what was there when this was written")
        if header.number != self.number + 1:
            self._fail(f"block {header.number} stands where block {self.number + 1} belongs")
        if header.kind == BLOCK and not self.last < header.first <= header.last:
            self._fail(f"block {header.number} is not younger than the one before")
        if header.kind == BLOCK:
            self.number, self.digest, self.last = header.number, frame.digest, header.last
        self._chain = frame.digest
        self.position += header.size
        self.read_bytes += header.size
        return frame

    @property
    def chain(self) -> bytes:
        """The digest of the last frame of whatever kind."""
        return self._chain or NOTHING

    def _fail(self, reason: str) -> NoReturn:
        raise ArchiveFault(f"{self._path} at byte {self.position}: {reason}")
