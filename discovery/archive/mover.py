"""Mover: takes the ledger's entries from Redis to disk, block by block.

For each block: write it, wait until it is on disk, then have Redis compare, set the head and let the entries go, in one
step. Whatever is killed in between, the next mover finds either a torn end (cut off: Redis still has the entries) or a
whole block that Redis does not know of. That one is compared with what Redis still has and acknowledged, not written
again; if Redis has something else, it lost data, and nobody mends that here.

Rows of statements are posted afterwards, those of several blocks at once where there are many: a row costs Redis far
more than a movement, and an account that is in ten blocks has one row of them all. How far that came is in the head,
too, and a mover that finds rows missing takes them from the blocks.

Redis may lose the last second or two of its append-only file (``appendfsync everysec``). So that nothing is on disk
that Redis can still forget, an entry is archived only when it is `settle_s` old.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from discovery.archive.files import ArchiveFault, segments
from discovery.archive.rows import Rows
from discovery.archive.segment import Entry, StreamId
from discovery.archive.writer import SEGMENT_BYTES, Writer, Written, open_writer
from discovery.store.books import PAGE, Books, Head

log = logging.getLogger("ec262.discovery")

BLOCK_ENTRIES = 4096
BLOCK_BYTES = 1 << 20
MOST_BLOCKS = 32
"""Blocks of one `Mover.move`: whoever calls it has other things to do as well."""
POST_SHARE = 0.05
"""Of the time that posting rows takes at most: after a posting it waits 19 times as long as that took."""
POST_WITHIN_S = 60.0
MOST_ROWS_HELD = 200_000
"""Rows that are not posted take 400 bytes each here."""
_LAST = 2**64 - 1
"""The largest sequence number of an entry's id."""
_AGAIN_S = 30.0
"""How long a mover that met a fault waits before it looks again."""

_UNFIT = "the archive on disk and the store do not fit; the service's log says more"

Run = Callable[..., Any]


class Mover:
    """Moves entries to the archive in `directory`; of several on one directory only one does so at a time.

    Args:
        settle_s: entries younger than this stay in Redis.
        wait_s: a block is written when it is full, or when its oldest entry is as old as this.
        post_share: of the time that posting rows takes at most; 1: whatever there is is posted.
        run: calls a function that computes and writes; a service gives it a thread.

    Attributes:
        fault: what it met last, empty when all is well.
        trouble: the same for strangers, without paths.
    """

    def __init__(
        self,
        books: Books,
        directory: Path,
        *,
        segment_bytes: int = SEGMENT_BYTES,
        settle_s: float = 5.0,
        wait_s: float = 10.0,
        post_share: float = POST_SHARE,
        run: Run | None = None,
    ) -> None:
        self._books = books
        self.directory = directory
        self._segment_bytes = segment_bytes
        self._settle_ms = int(settle_s * 1000)
        self._wait_ms = int(wait_s * 1000)
        self._pauses = 1 / post_share - 1
        self.run: Run = run or _call
        self._writer: Writer | None = None
        self._head = Head()
        self._entries: list[Entry] = []
        self._bytes = 0
        self._entry_bytes = 16 * 1024
        self._not_before = self._post_not_before = float("-inf")
        self._turn = threading.Lock()
        self.fault = self.trouble = ""

    def close(self) -> None:
        """Lets another mover write."""
        if self._writer is not None:
            self._writer.close()
        self._writer = None
        self._entries, self._bytes = [], 0

    def move(self) -> int:
        """Archives what is due, up to `MOST_BLOCKS`; returns how many entries. To be called every second or so.

        Faults are logged, not raised: entries then stay in Redis, and it looks again after a while.

        Raises:
            redis.RedisError: Redis does not answer.
        """
        if time.monotonic() < self._not_before or not self._turn.acquire(blocking=False):
            return 0
        try:
            moved = self._move()
        except (ArchiveFault, OSError) as reason:
            self.close()
            self.fault = str(reason)
            self.trouble = reason.strerror or type(reason).__name__ if isinstance(reason, OSError) else _UNFIT
            self._not_before = time.monotonic() + _AGAIN_S
            log.error("the ledger stays in Redis (%d entries) and grows there: %s", self._books.waiting(), reason)
            return 0
        except BaseException:
            self.close()
            raise
        finally:
            self._turn.release()
        self.fault = self.trouble = ""
        return moved

    def _move(self) -> int:
        moved = 0
        now_ms = self._books.now_ms()
        if self._writer is None:
            head, due = self._books.read((0, 0), (now_ms - self._wait_ms, _LAST), 1)
            if not due and self._books.waiting() < BLOCK_ENTRIES and head.posted[0] == head.number:
                return 0
            moved = self._open()
        for _ in range(MOST_BLOCKS):
            if self._writer is None or not self._fill(now_ms):
                break
            written = self.run(self._writer.append, self._entries)
            self._acknowledge(written)
            moved += len(self._entries)
            self._entries, self._bytes = [], 0
        self._post()
        return moved

    def _fill(self, now_ms: int) -> bool:
        """Reads on until a block is full or nothing more is due; returns whether it is to be written."""
        upto = (now_ms - self._settle_ms, _LAST)
        while len(self._entries) < BLOCK_ENTRIES and self._bytes < BLOCK_BYTES:
            after = self._entries[-1][:2] if self._entries else self._head.last
            most = (BLOCK_BYTES - self._bytes) // self._entry_bytes + 1
            count = min(PAGE, most, BLOCK_ENTRIES - len(self._entries))
            _, found = self._books.read(after, upto, count)
            if not found:
                return bool(self._entries) and self._entries[0][0] <= now_ms - self._wait_ms
            size = sum(len(entry[2]) for entry in found)
            self._entry_bytes = size // len(found) + 1
            self._entries += found
            self._bytes += size
        return True

    def _acknowledge(self, written: Written) -> None:
        answer = self._books.acknowledge(self._head, written.number, written.digest, written.first, written.last)
        if answer != "ok":
            raise ArchiveFault(
                f"{self.directory}: block {written.number} is written, but Redis changed meanwhile ({answer}): it was "
                "restored, or another archive is in use"
            )
        self._head = replace(self._head, number=written.number, digest=written.digest, last=written.last)

    def _post(self) -> None:
        """Posts what rows there are, if it is time to."""
        writer, started = self._writer, time.monotonic()
        if writer is None or self._head.posted[0] == self._head.number:
            return
        if started < self._post_not_before and sum(map(len, writer.rows.values())) < MOST_ROWS_HELD:
            return
        self._post_rows(self._head.number, self._head.last, writer.rows)
        writer.rows = {}
        now = time.monotonic()
        self._post_not_before = now + min((now - started) * self._pauses, POST_WITHIN_S)

    def _post_rows(self, upto: int, last: StreamId, rows: Rows) -> None:
        head = self._books.post(self._head, upto, last, rows)
        if head is None:
            raise ArchiveFault(
                f"{self.directory}: the rows of block {upto} were to be posted, but Redis changed meanwhile: it was "
                "restored, or another archive is in use"
            )
        self._head = head

    def _open(self) -> int:
        """Opens the archive and brings it and Redis to the same point; returns how many entries that archived."""
        head = self._books.head()
        if head.archive and not segments(self.directory):
            if not self.directory.exists() or str(self.directory) != head.where:
                raise ArchiveFault(f"Redis says that the ledger's archive is in {head.where}, not in {self.directory}")
            raise ArchiveFault(f"{self.directory} is empty, and Redis knows of {head.number} blocks there")
        writer = self.run(open_writer, self.directory, head.number, self._segment_bytes, head.posted[:2])
        if writer is None:
            return 0
        try:
            fresh = self._books.head()
            if fresh != head:  # whoever had the lock went on meanwhile
                writer.close()
                return 0
            return self._agree(writer, head)
        except BaseException:
            writer.close()
            raise

    def _agree(self, writer: Writer, head: Head) -> int:
        if not head.archive and writer.number:
            raise ArchiveFault(
                f"{self.directory} has {writer.number} blocks of a ledger that this Redis knows nothing of: it was "
                "emptied or restored from before, or the directory belongs to another"
            )
        if not self._books.claim(writer.archive, str(self.directory)):
            raise ArchiveFault(f"Redis says that the ledger's archive is another one, in {head.where}")
        head = self._books.head()
        if head.number and head.digest != writer.known_digest:
            raise ArchiveFault(
                f"{self.directory}: block {head.number} is not the one that Redis knows; one of the two was replaced"
            )
        self._writer, self._head = writer, head
        done, upto, _ = head.posted
        if upto > done:
            self._post_rows(upto, writer.begun_last, writer.begun)
            writer.begun = {}
        moved = 0
        for written in writer.pending:
            _, held = self._books.read((0, 0), written.last, len(written.entries) + 1)
            if not _same(held, written.entries):
                raise ArchiveFault(
                    f"{self.directory}: block {written.number} has entries that Redis does not have: Redis lost "
                    "data, or was restored from an older state"
                )
            self._acknowledge(written)
            log.warning("the ledger's block %d was written before a crash; acknowledged now", written.number)
            moved += len(written.entries)
        writer.pending = []
        return moved


def _same(held: Sequence[Entry], written: Sequence[Entry]) -> bool:
    """Whether Redis' oldest entries are exactly those of a block."""
    return [tuple(entry) for entry in held] == [tuple(entry) for entry in written]


def _call(function: Callable[..., Any], *arguments: Any) -> Any:
    return function(*arguments)
