"""Ledger: what the books must satisfy, checked from the movements up; and every movement there ever was.

The oldest movements are in the archive on disk, the youngest in Redis. Both are read here as one, also while discovery
runs: the balances of one instant are compared with all movements up to that instant.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from discovery.archive.entry import decode_entry, with_whats
from discovery.archive.files import ArchiveFault, Walk, first_number, segments
from discovery.archive.segment import BLOCK, CHECKPOINT, NOTHING, Damaged, Entry, Frame, StreamId, Totals
from discovery.archive.sums import Faults, Sums, compare
from discovery.archive.turnover import Turnover
from discovery.store.books import Books, Head, Snapshot
from discovery.store.store import Store
from ec262.errors import Malformed

Progress = Callable[[int, int], object]
"""Told of bytes read and bytes there are."""


@dataclass(frozen=True, slots=True)
class Audit:
    """The outcome of `verify`.

    Attributes:
        movements: how many there ever were; those that a checkpoint stands for are not added up in a quick audit.
        minted, burnt, accounts, escrow: credits in all.
        faults: what is wrong, in words; empty when the books are clean.
        notes: what is worth knowing and no fault.
        blocks, digest: how many blocks are on disk and acknowledged, and the SHA-256 of the last: whoever keeps the two
            elsewhere can tell later that nothing before was changed (`anchor`).
    """

    movements: int
    minted: int
    burnt: int
    accounts: int
    escrow: int
    faults: list[str]
    notes: list[str] = field(default_factory=list)
    blocks: int = 0
    digest: str = ""


@dataclass(frozen=True, slots=True)
class Movement:
    """One movement, and where it stands: `block` is None while it is in Redis alone."""

    block: int | None
    entry_id: StreamId
    source: str
    target: str
    amount: int
    what: str


def totals(store: Store) -> tuple[int, int, int, int]:
    """Minted, burnt, on accounts and in escrow, read at one instant."""
    balances, escrows = store.balances()
    accounts = sum(amount for place, amount in balances.items() if place.startswith("account:"))
    return -balances.get("mint", 0), balances.get("burn", 0), accounts, sum(escrows.values())


def verify(
    store: Store,
    archive: Path | None = None,
    *,
    quick: bool = False,
    anchor: tuple[int, str] | None = None,
    progress: Progress | None = None,
) -> Audit:
    """Adds up every movement there ever was and compares with the balances, also while discovery runs.

    Args:
        archive: the directory with the segments; None: where Redis says that it is.
        quick: believe the last checkpoint, and add up what came after it.
        anchor: number and SHA-256 (hex) of a block, as an earlier audit told them.

    Cost: 1 to 2 us a movement; memory for accounts and open tasks alone.

    Raises:
        redis.RedisError: Redis does not answer.
    """
    check = _Check(store.books, archive)
    with check.follow:
        check.archived(quick=quick, anchor=anchor, progress=progress)
        if check.whole:
            check.in_redis()
            check.unacknowledged()
    stored = check.snapshot.balances
    # Where the movements are not all there, the balances can still be compared with each other.
    compare(check.sums.balances if check.whole else stored, stored, "the store", check.faults)
    head = check.snapshot.head
    return Audit(
        check.sums.totals.movements,
        -stored.get("mint", 0),
        stored.get("burn", 0),
        sum(amount for place, amount in stored.items() if place.startswith("account:")),
        sum(amount for place, amount in stored.items() if place.startswith("escrow:")),
        check.faults.listed,
        check.notes,
        head.number,
        head.digest.hex() if head.number else "",
    )


def export(
    store: Store,
    archive: Path | None = None,
    *,
    account_id: str | None = None,
    since_ms: int = 0,
    until_ms: int = 2**63,
) -> Iterator[Movement]:
    """Every movement, the oldest first, or those of an account or a time (`until_ms` is not part of it).

    The chain of all that is read is checked. Blocks outside of the time are not unpacked.

    Raises:
        ArchiveFault: the archive is damaged, or not the one that Redis knows.
        Malformed: an entry is none.
        redis.RedisError: Redis does not answer.
    """
    snapshot = store.books.snapshot()
    head = snapshot.head
    place = None if account_id is None else f"account:{account_id}"
    with _Follow(store.books, _directory(head, archive), snapshot.last) as follow:
        while follow.number < head.number:
            frame = follow.block()
            if frame.header.last[0] >= since_ms and frame.header.first[0] < until_ms:
                yield from _movements(frame.header.number, follow.entries(frame), place, since_ms, until_ms)
        if follow.digest != head.digest:
            raise ArchiveFault(f"block {head.number} is not the one that Redis knows; one of the two was replaced")
        for number, entries in follow.rest():
            yield from _movements(number, entries, place, since_ms, until_ms)


def _movements(
    number: int | None, entries: list[Entry], place: str | None, since_ms: int, until_ms: int
) -> Iterator[Movement]:
    for ms, sequence, data in entries:
        if since_ms <= ms < until_ms:
            moves, whats = decode_entry(data)
            for (source, target, amount), what in zip(moves, with_whats(moves, whats), strict=True):
                if place is None or place in (source, target):
                    yield Movement(number, (ms, sequence), source, target, amount, what)


def _directory(head: Head, archive: Path | None) -> Path | None:
    """Where the segments are; None: there are none."""
    if archive is not None:
        return archive
    return Path(head.where) if head.archive else None


class _Follow:
    """Entries up to one instant: blocks as far as Redis acknowledged them, then what Redis has, though they move on."""

    def __init__(self, books: Books, directory: Path | None, upto: StreamId, start: Path | None = None) -> None:
        self._books = books
        self._upto = upto
        self.walk = None if directory is None else Walk(directory, start)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.walk is not None:
            self.walk.close()

    @property
    def number(self) -> int:
        """Of the last block that was read."""
        return self.walk.number if self.walk is not None else 0

    @property
    def digest(self) -> bytes:
        """Of the last block that was read."""
        return self.walk.digest if self.walk is not None else NOTHING

    def block(self) -> Frame:
        """The next block, which has to be there; raises `ArchiveFault`."""
        while self.walk is not None and (frame := self.walk.step()) is not None:
            if frame.header.kind == BLOCK:
                return frame
        raise ArchiveFault(
            f"the archive ends with block {self.number}, and the store knows of more: files are missing, cut, or on "
            "another machine"
        )

    def entries(self, frame: Frame) -> list[Entry]:
        """What a block holds; raises `ArchiveFault`."""
        try:
            return frame.block().entries
        except Damaged as reason:
            raise ArchiveFault(f"block {frame.header.number}: {reason}") from None

    def rest(self) -> Iterator[tuple[int | None, list[Entry]]]:
        """What follows the blocks read so far, with the number of its block where it went to disk meanwhile."""
        at = self.walk.last if self.walk is not None else (0, 0)
        while at < self._upto:
            head, entries = self._books.read(at, self._upto)
            if self.number < head.number:
                if self.walk is None:
                    self.walk = Walk(Path(head.where))
                frame = self.block()
                here = [entry for entry in self.entries(frame) if at < entry[:2] <= self._upto]
                at = max(at, frame.header.last)
                yield frame.header.number, here
            elif entries:
                at = entries[-1][:2]
                yield None, entries
            else:
                return


class _Check:
    """The steps of an audit, and what they find.

    Attributes:
        whole: whether the movements are all there, so that their sums mean something.
    """

    def __init__(self, books: Books, archive: Path | None) -> None:
        self._books = books
        self.snapshot: Snapshot = books.snapshot()
        self._directory = _directory(self.snapshot.head, archive)
        self.follow = _Follow(books, None, self.snapshot.last)
        self.sums = Sums()
        self.faults = Faults()
        self.notes: list[str] = []
        self.whole = True

    def archived(self, *, quick: bool, anchor: tuple[int, str] | None, progress: Progress | None) -> None:
        """Reads the blocks that Redis acknowledged."""
        head = self.snapshot.head
        found = segments(self._directory) if self._directory is not None else []
        if not head.archive:
            if found and (found[-1] != found[0] or _has_blocks(self._directory)):
                self.faults.add(
                    f"{self._directory} holds blocks of a ledger that the store knows nothing of: the store was "
                    "emptied, or restored from before there was an archive"
                )
            return
        if not found:
            if head.number:
                self.whole = False
                self.faults.add(f"{head.number} blocks should be in {self._directory}, and none is there")
            return
        begun = [path for path in found if first_number(path) <= head.number + 1]
        start = begun[-1] if quick and begun else None
        self.follow = _Follow(self._books, self._directory, self.snapshot.last, start)
        todo = sum(path.stat().st_size for path in found if start is None or path.name >= start.name)
        try:
            self._read_blocks(anchor, progress, todo)
        except ArchiveFault as reason:
            self.whole = False
            self.faults.add(str(reason))
            return
        if anchor is not None and (anchor[0] > head.number or (start and anchor[0] < first_number(start) - 1)):
            self.faults.add(f"block {anchor[0]} is not among those that were read")
        if (self.follow.digest, self.follow.walk and self.follow.walk.last) != (head.digest, head.last):
            self.faults.add(
                f"the archive's block {head.number} is {self.follow.digest.hex()}, the store knows it as "
                f"{head.digest.hex()}: one of the two was replaced"
            )

    def _read_blocks(self, anchor: tuple[int, str] | None, progress: Progress | None, todo: int) -> None:
        head, walk = self.snapshot.head, self.follow.walk
        assert walk is not None
        first = True
        while first or walk.number < head.number:
            frame = walk.step()
            if frame is None:
                self.follow.block()  # says that there is none
            elif frame.header.kind == CHECKPOINT:
                self._checkpoint(frame, first=first, known=walk.number)
            else:
                self._block(frame)
            first = False
            if anchor is not None and anchor[0] == walk.number and anchor[1].lower() != walk.digest.hex():
                self.faults.add(f"block {walk.number} is {walk.digest.hex()}, and it once was {anchor[1]}")
            if progress is not None:
                progress(walk.read_bytes, max(todo, walk.read_bytes))

    def _checkpoint(self, frame: Frame, *, first: bool, known: int) -> None:
        try:
            checkpoint = frame.checkpoint()
        except Damaged as reason:
            raise ArchiveFault(f"the checkpoint before block {frame.header.number}: {reason}") from None
        if checkpoint.archive != self.snapshot.head.archive:
            raise ArchiveFault(
                f"the archive is {checkpoint.archive}, and the store's ledger is in {self.snapshot.head.archive}"
            )
        if first and known:
            self.sums = Sums(checkpoint.balances, checkpoint.totals.movements)
            self.notes.append(f"not added up: what the checkpoint after block {known} stands for")
        where = f"the checkpoint after block {known}"
        compare(self.sums.balances, checkpoint.balances, where, self.faults)
        self._compare_totals(checkpoint.totals, where)

    def _block(self, frame: Frame) -> None:
        number = frame.header.number
        try:
            block = frame.block()
        except Damaged as reason:
            raise ArchiveFault(f"block {number}: {reason}") from None
        self._add(block.entries, f"block {number}, ")
        self._compare_totals(block.totals, f"block {number}")

    def _compare_totals(self, written: Totals, where: str) -> None:
        if written != self.sums.totals:
            self.faults.add(f"{where}: the movements add up to {self.sums.totals}, written there is {written}")

    def _add(self, entries: list[Entry], where: str) -> None:
        for ms, sequence, data in entries:
            at = f"{where}entry {ms}-{sequence}"
            try:
                moves, _ = decode_entry(data)
            except Malformed as reason:
                self.faults.add(f"{at}: {reason}")
            else:
                self.sums.add(Turnover(moves), at, self.faults)

    def in_redis(self) -> None:
        """Reads what Redis still had at that instant, though it may go to disk meanwhile."""
        head, oldest = self._books.read((0, 0), self.snapshot.last, 1)
        if oldest and oldest[0][:2] <= head.last:
            self.faults.add(f"entry {oldest[0][0]}-{oldest[0][1]} is on disk, and in the store once more")
        try:
            for number, entries in self.follow.rest():
                self._add(entries, f"block {number}, " if number else "")
        except ArchiveFault as reason:
            self.whole = False
            self.faults.add(str(reason))

    def unacknowledged(self) -> None:
        """Looks at what is on disk and Redis does not know of: nothing, or a block written a moment ago."""
        walk = self.follow.walk
        if walk is None or not self.whole:
            return
        try:
            at = walk.last
            while (frame := walk.step()) is not None:
                if frame.header.kind == BLOCK:
                    entries = self.follow.entries(frame)
                    head, held = self._books.read(at, frame.header.last, len(entries) + 1)
                    at = frame.header.last
                    if head.number < walk.number and [tuple(e) for e in held] != [tuple(e) for e in entries]:
                        self.faults.add(
                            f"block {walk.number} has entries that the store does not have: the store lost data, or "
                            "was restored from an older state"
                        )
                        return
                    if head.number < walk.number:
                        self.notes.append(f"block {walk.number} is on disk and not acknowledged yet")
        except ArchiveFault as reason:
            self.notes.append(f"after the last block that counts: {reason}")
        if walk.torn is not None:
            self.notes.append(
                f"{walk.torn.path}: the last {walk.torn.size} bytes are of a write that is not at its end; the next "
                "start of discovery cuts them off if it does not come to it"
            )


def _has_blocks(directory: Path | None) -> bool:
    assert directory is not None
    walk = Walk(directory)
    try:
        walk.step()
        return walk.step() is not None
    except ArchiveFault:
        return True
    finally:
        walk.close()
