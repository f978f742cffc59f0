"""The one door to the segment files: read them, mend a torn end, append to them.

A block is on disk (fsync of the file, and of the directory when the file is new) before anybody is told of it. What a
crash leaves behind is the beginning of one frame at the end of the last file; `Writer` cuts it off.
"""

from __future__ import annotations

import fcntl
import logging
import os
import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NoReturn

from discovery.archive.entry import decode_entry
from discovery.archive.rows import Rows, add_rows
from discovery.archive.segment import (
    BLOCK,
    CHECKPOINT,
    HEADER,
    NOTHING,
    Checkpoint,
    Damaged,
    Entry,
    Frame,
    StreamId,
    encode_block,
    encode_checkpoint,
    read_frame,
    read_header,
)
from discovery.archive.sums import Faults, Sums
from ec262.errors import EC262Error, Malformed

log = logging.getLogger("ec262.discovery")

LEDGER = "ledger"
"""The archive's directory in a service's data directory."""
SEGMENT_BYTES = 64 * 1024 * 1024
MOST_PENDING = 256
"""Blocks that Redis may have forgotten to have acknowledged: the last second of its append-only file holds fewer."""
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


@dataclass(frozen=True, slots=True)
class Written:
    """A block on disk, and the rows of statements that follow from it."""

    number: int
    digest: bytes
    entries: Sequence[Entry]
    rows: Rows

    @property
    def first(self) -> StreamId:
        """Id of its first entry."""
        return self.entries[0][:2]

    @property
    def last(self) -> StreamId:
        """Id of its last entry."""
        return self.entries[-1][:2]


class Writer:
    """Appends to the archive; holds the directory's lock as long as it lives. Only `open_writer` makes one.

    Attributes:
        archive: the archive's random id.
        number, digest, last: of the last block; nothing while there is none.
        known_digest: of the block that Redis acknowledged last, as it stands on disk; None: it is not there.
        pending: blocks on disk past that one, the oldest first.
    """

    def __init__(self, directory: Path, lock: int, segment_bytes: int) -> None:
        self._directory = directory
        self._lock = lock
        self._segment_bytes = segment_bytes
        self._file = -1
        self._size = 0
        self._checkpoint_size = 0
        self._sums = Sums()
        self._chain = NOTHING
        self.archive = ""
        self.number = 0
        self.digest = NOTHING
        self.last: StreamId = (0, 0)
        self.known_digest: bytes | None = None
        self.pending: list[Written] = []

    def close(self) -> None:
        """Lets others write. May be called twice."""
        for descriptor in (self._file, self._lock):
            if descriptor >= 0:
                os.close(descriptor)
        self._file = self._lock = -1

    def __del__(self) -> None:
        self.close()

    def append(self, entries: Sequence[Entry]) -> Written:
        """Writes a block; when this returns it is on disk.

        After an error this object is of no more use: close it and open another, which cuts off what was half written.

        Raises:
            OSError: it could not be written.
        """
        if self._size >= max(self._segment_bytes, 4 * self._checkpoint_size) + self._checkpoint_size:
            self._begin_segment()
        number = self.number + 1
        rows = _reckon(number, entries, self._sums)
        data, digest = encode_block(number, self._chain, entries, self._sums.totals)
        _write(self._file, data)
        self._size += len(data)
        written = Written(number, digest, entries, rows)
        self.number, self.digest, self._chain, self.last = number, digest, digest, written.last
        return written

    def recall(self, acknowledged: int) -> None:
        """Reads what there is from block `acknowledged` on, and cuts off a torn end.

        Raises:
            ArchiveFault: the archive is damaged, or ends before block `acknowledged`.
        """
        found = segments(self._directory)
        if not found and not acknowledged:
            self.archive = secrets.token_hex(16)
            self._begin_segment()
            return
        start = max((path for path in found if first_number(path) <= acknowledged + 1), default=None)
        if start is None:
            raise ArchiveFault(f"{self._directory}: the segment with block {acknowledged + 1} is missing")
        walk = Walk(self._directory, start)
        try:
            self._read_all(walk, acknowledged)
        except ArchiveFault:
            # Wrong bytes at the very end may be of a write that the power cut: Redis still has what they should say.
            if walk.torn is None or walk.number < acknowledged or not _is_last(walk.torn, found[-1]):
                raise
        finally:
            walk.close()
        if walk.torn is not None and walk.torn.start == 0 and first_number(walk.torn.path) > acknowledged:
            log.warning("%s: its first write did not come to its end: removed", walk.torn.path)
            walk.torn.path.unlink()
            _sync(self._directory)
            self.pending = []
            self.recall(acknowledged)
            return
        self.number, self.digest, self.last, self._chain = walk.number, walk.digest, walk.last, walk.chain
        if self.number < acknowledged:
            raise ArchiveFault(
                f"{self._directory} ends with block {self.number}, but block {acknowledged} was once written and "
                "acknowledged: files are missing or cut"
            )
        if walk.torn is not None:
            log.warning(
                "%s: the last %d bytes, from %d, are of a write that did not come to its end: cut off",
                *(walk.torn.path, walk.torn.size, walk.torn.start),
            )
            os.truncate(walk.torn.path, walk.torn.start)
        path = segments(self._directory)[-1]
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
        self._size = os.fstat(self._file).st_size
        # A block may have been written, and the machine died before this was said to be on disk.
        os.fsync(self._file)

    def _read_all(self, walk: Walk, acknowledged: int) -> None:
        while (frame := walk.step()) is not None:
            if frame.header.kind == CHECKPOINT:
                try:
                    checkpoint = frame.checkpoint()
                except Damaged as reason:
                    raise ArchiveFault(f"{walk.path}: {reason}") from None
                self.archive = checkpoint.archive
                self._sums = Sums(checkpoint.balances, checkpoint.totals.movements)
                self._checkpoint_size = frame.header.size
            else:
                try:
                    entries = frame.block().entries
                except Damaged as reason:
                    raise ArchiveFault(f"{walk.path}, block {walk.number}: {reason}") from None
                rows = _reckon(walk.number, entries, self._sums, news=walk.number > acknowledged)
                if walk.number > acknowledged + MOST_PENDING:
                    raise ArchiveFault(
                        f"{self._directory} goes on past block {walk.number}, and Redis knows of {acknowledged}: it "
                        "was restored from an older state"
                    )
                if walk.number > acknowledged:
                    self.pending.append(Written(walk.number, walk.digest, entries, rows))
            if walk.number == acknowledged:
                self.known_digest = walk.digest

    def _begin_segment(self) -> None:
        """Starts a file with a checkpoint of all balances; the one before is only read from now on."""
        number = self.number + 1
        checkpoint = Checkpoint(self.archive, self._sums.totals, {p: n for p, n in self._sums.balances.items() if n})
        data, self._chain = encode_checkpoint(number, self._chain, self.last, checkpoint)
        path = self._directory / f"{number:012}.segment"
        if self._file >= 0:
            os.fchmod(self._file, 0o400)
            os.close(self._file)
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        _write(self._file, data)
        _sync(self._directory)
        self._size = self._checkpoint_size = len(data)


def open_writer(directory: Path, acknowledged: int, segment_bytes: int = SEGMENT_BYTES) -> Writer | None:
    """Opens the archive for writing, made anew if there is none; None: another process writes it.

    Args:
        acknowledged: the last block that Redis acknowledged, 0 for none.

    Raises:
        ArchiveFault: the archive is damaged or lacks that block.
        OSError: the directory cannot be used.
    """
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    lock = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        return None
    writer = Writer(directory, lock, segment_bytes)
    try:
        writer.recall(acknowledged)
    except BaseException:
        writer.close()
        raise
    return writer


def _reckon(number: int, entries: Sequence[Entry], sums: Sums, *, news: bool = True) -> Rows:
    """Adds a block up. What is wrong in it is logged and written all the same: the archive says what happened.

    Args:
        news: it was not acknowledged before, so its rows and faults are wanted.
    """
    rows: Rows = {}
    faults = Faults()
    for ms, sequence, data in entries:
        try:
            moves, whats = decode_entry(data)
        except Malformed as reason:
            faults.add(f"entry {ms}-{sequence}: {reason}")
            continue
        sums.add(moves, f"entry {ms}-{sequence}", faults)
        if news:
            add_rows(rows, (ms, sequence), moves, whats)
    for fault in faults.listed if news else ():
        log.error("the ledger's block %d: %s", number, fault)
    return rows


def _is_last(torn: Torn, last: Path) -> bool:
    """Whether wrong bytes are one frame at the very end, as a write that was cut leaves it."""
    with open(torn.path, "rb") as file:
        file.seek(torn.start)
        head = file.read(HEADER.size)
    try:
        size = read_header(head).size if len(head) == HEADER.size else torn.size
    except Damaged:
        size = torn.size
    return torn.path == last and size >= torn.size


def _write(file: int, data: bytes) -> None:
    """Writes all of it, and waits until it is on disk."""
    left = memoryview(data)
    while left:
        left = left[os.write(file, left) :]
    os.fsync(file)


def _sync(path: Path) -> None:
    """Waits until a file's length or a directory's names are on disk."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
