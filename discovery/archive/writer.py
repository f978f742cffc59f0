"""Appends to the segment files, and mends a torn end; nothing else writes there.

A block is on disk (fsync of the file, and of the directory when the file is new) before anybody is told of it. What a
crash leaves behind is the beginning of one frame at the end of the last file; `Writer` cuts it off.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from discovery.archive.entry import decode_entry
from discovery.archive.files import ArchiveFault, Torn, Walk, first_number, segments
from discovery.archive.rows import Rows, add_rows
from discovery.archive.segment import (
    CHECKPOINT,
    HEADER,
    NOTHING,
    Checkpoint,
    Damaged,
    Entry,
    StreamId,
    encode_block,
    encode_checkpoint,
    read_header,
)
from discovery.archive.sums import Faults, Sums
from discovery.archive.turnover import Turnover
from ec262.errors import Malformed

log = logging.getLogger("ec262.discovery")

SEGMENT_BYTES = 64 * 1024 * 1024
MOST_PENDING = 256
"""Blocks that Redis may have forgotten to have acknowledged: the last second of its append-only file holds fewer."""


@dataclass(frozen=True, slots=True)
class Written:
    """A block on disk."""

    number: int
    digest: bytes
    entries: Sequence[Entry]

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
        begun: rows of statements, of the blocks that were being posted; `begun_last` is the id of their last entry.
        rows: those of all blocks after these; whoever posts them takes them away.
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
        self.begun: Rows = {}
        self.begun_last: StreamId = (0, 0)
        self.rows: Rows = {}

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
        _reckon(number, entries, self._sums, self.rows)
        data, digest = encode_block(number, self._chain, entries, self._sums.totals)
        try:
            _write(self._file, data)
        except OSError:
            # What could not be brought to disk may stand in the system's memory as if it were there; the next one who
            # reads it would believe it. And on a full disk it is in the way.
            with contextlib.suppress(OSError):
                os.ftruncate(self._file, self._size)
            raise
        self._size += len(data)
        written = Written(number, digest, entries)
        self.number, self.digest, self._chain, self.last = number, digest, digest, written.last
        return written

    def recall(self, acknowledged: int, posted: tuple[int, int]) -> None:
        """Reads what there is from block `acknowledged` on, or the first that is not posted; cuts off a torn end.

        Raises:
            ArchiveFault: the archive is damaged, or ends before block `acknowledged`.
        """
        wanted = min(acknowledged, posted[0]) + 1
        found = segments(self._directory)
        if not found and not acknowledged:
            self.archive = secrets.token_hex(16)
            self._begin_segment()
            return
        start = max((path for path in found if first_number(path) <= wanted), default=None)
        if start is None:
            raise ArchiveFault(f"{self._directory}: the segment with block {wanted} is missing")
        walk = Walk(self._directory, start)
        try:
            self._read_all(walk, acknowledged, posted)
        except ArchiveFault:
            # Wrong bytes at the very end may be of a write that the power cut: Redis still has what they should say.
            if walk.torn is None or walk.number < acknowledged or not _is_last(walk.torn, found[-1]):
                raise
        finally:
            walk.close()
        if walk.torn is not None and walk.torn.start == 0 and first_number(walk.torn.path) > acknowledged:
            log.warning("%s: its first write did not come to its end: removed", walk.torn.path)
            walk.torn.path.unlink()
            sync(self._directory)
            self.pending, self.begun, self.rows = [], {}, {}
            self.recall(acknowledged, posted)
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

    def _read_all(self, walk: Walk, acknowledged: int, posted: tuple[int, int]) -> None:
        done, upto = posted
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
                rows = None if walk.number <= done else self.begun if walk.number <= upto else self.rows
                _reckon(walk.number, entries, self._sums, rows, faults_known=walk.number <= acknowledged)
                if walk.number == upto:
                    self.begun_last = walk.last
                if walk.number > acknowledged + MOST_PENDING:
                    raise ArchiveFault(
                        f"{self._directory} goes on past block {walk.number}, and Redis knows of {acknowledged}: it "
                        "was restored from an older state"
                    )
                if walk.number > acknowledged:
                    self.pending.append(Written(walk.number, walk.digest, entries))
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
        sync(self._directory)
        self._size = self._checkpoint_size = len(data)


def open_writer(
    directory: Path,
    acknowledged: int,
    segment_bytes: int = SEGMENT_BYTES,
    posted: tuple[int, int] | None = None,
) -> Writer | None:
    """Opens the archive for writing, made anew if there is none; None: another process writes it.

    Args:
        acknowledged: the last block that Redis acknowledged, 0 for none.
        posted: up to which block rows are in the statements, and up to which they were being added; None: to that one.

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
        writer.recall(acknowledged, posted or (acknowledged, acknowledged))
    except BaseException:
        writer.close()
        raise
    return writer


def _reckon(
    number: int, entries: Sequence[Entry], sums: Sums, rows: Rows | None, *, faults_known: bool = False
) -> None:
    """Adds a block up. What is wrong in it is logged and written all the same: the archive says what happened.

    Args:
        rows: its rows are added to these; None: they are not wanted.
        faults_known: they were logged when it was written.
    """
    faults = Faults()
    for ms, sequence, data in entries:
        try:
            moves, whats = decode_entry(data)
        except Malformed as reason:
            faults.add(f"entry {ms}-{sequence}: {reason}")
            continue
        turnover = Turnover(moves)
        sums.add(turnover, f"entry {ms}-{sequence}", faults)
        if rows is not None:
            add_rows(rows, (ms, sequence), turnover, whats)
    for fault in () if faults_known else faults.listed:
        log.error("the ledger's block %d: %s", number, fault)


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


def sync(path: Path) -> None:
    """Waits until a file's length or a directory's names are on disk."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
